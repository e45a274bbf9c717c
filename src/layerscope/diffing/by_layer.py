"""What two streams at the same positions say, layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from layerscope.analysis.model_diff import LayerDiff
from layerscope.diffing.divergences import Distributions, Heads
from layerscope.diffing.streams import Streams
from layerscope.workers import Workers

LAYERS_AT_ONCE = 8
"""For so many at least there is room, as long as it is enough for one row of each."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LayerRows:
    """Measures of every row at one layer."""

    relative_change: Numbers
    cosine: Numbers
    injected: Numbers | None
    """None at layer 0, where no block has run; likewise below."""
    inherited: Numbers | None
    injected_kl_bits: Numbers | None
    kl_bits: Numbers
    js_bits: Numbers
    base_to_output_bits: Numbers
    variant_to_output_bits: Numbers
    base_top1_id: NDArray[np.int64]
    variant_top1_id: NDArray[np.int64]
    base_rank: NDArray[np.int64]
    """Of the best of the tokens that are asked about."""
    variant_rank: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence["LayerRows"]) -> "LayerRows":
        """The rows of several parts, in their order."""

        def one(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        return cls(**{measure.name: one(measure.name) for measure in fields(cls)})

    def summary(self, layer: int, rows: slice) -> LayerDiff:
        """Over some of the rows."""

        def median(values: Numbers | None) -> float | None:
            return None if values is None else float(np.median(values[rows]))

        def mean(values: Numbers) -> float:
            return float(values[rows].mean())

        return LayerDiff(
            layer=layer,
            relative_change=float(np.median(self.relative_change[rows])),
            cosine=float(np.median(self.cosine[rows])),
            injected=median(self.injected),
            inherited=median(self.inherited),
            injected_kl_bits=None if self.injected_kl_bits is None else mean(self.injected_kl_bits),
            kl_bits=mean(self.kl_bits),
            js_bits=mean(self.js_bits),
            base_to_output_bits=mean(self.base_to_output_bits),
            variant_to_output_bits=mean(self.variant_to_output_bits),
            top1_agreement=float((self.base_top1_id == self.variant_top1_id)[rows].mean()),
        )


def by_layer(
    streams: Streams, heads: Heads, asked: Int[Tensor, "row id"], progress: Callable[[int, int], None]
) -> list[LayerRows]:
    """Every layer's measures at every row.

    Args:
        streams: of both models.
        heads: theirs.
        asked: for each row the tokens of which the best rank is told.
        progress: called with (rows done, rows to do).
    """
    n_layers, n_rows = streams.base.shape[:2]
    read: list[list[_Read]] = [[] for _ in range(n_layers)]
    chunk_size = min(n_rows, max(1, heads.rows_at_once // LAYERS_AT_ONCE // 3))
    for start in range(0, n_rows, chunk_size):
        chunk = slice(start, min(start + chunk_size, n_rows))
        for layer, of_layer in _chunk(streams, heads, chunk, asked[chunk]):
            read[layer].append(of_layer)
        progress(chunk.stop, n_rows)
    return [_rows(streams, layer, parts) for layer, parts in enumerate(read)]


def _chunk(streams: Streams, heads: Heads, chunk: slice, asked: Int[Tensor, "row id"]) -> Iterator[tuple[int, "_Read"]]:
    """Every layer at some rows, from the last one down; several at a time, for each time the heads are read anew."""
    n_layers, k = len(streams.base), chunk.stop - chunk.start
    # Both models' last layer is held throughout.
    at_once = max(1, (heads.rows_at_once - 2 * k) // (3 * k))
    final: tuple[Distributions, Distributions] | None = None
    threads = torch.get_num_threads() if heads.compiled else 1
    with Workers(threads) as workers:
        for stop in range(n_layers, 0, -at_once):
            layers = range(max(0, stop - at_once), stop)
            # Three products of one size: what is equal in two of them comes out equal to the last bit.
            base, variant, injected = (
                decode(of[layers.start : layers.stop, chunk].flatten(0, 1))
                for decode, of in (
                    (heads.base, streams.base),
                    (heads.variant, streams.variant),
                    (heads.base, streams.injected),
                )
            )
            if final is None:
                final = base[-k:].kept(), variant[-k:].kept()
            pieces = [slice(i * k, (i + 1) * k) for i in range(len(layers))]
            reads = [
                workers.submit(_Read.of, base[rows], variant[rows], injected[rows] if layer else None, final, asked)
                for layer, rows in zip(layers, pieces, strict=True)
            ]
            yield from ((layer, one.result()) for layer, one in zip(layers, reads, strict=True))


@dataclass(frozen=True)
class _Read:
    """What both lenses say of some rows at one layer."""

    kl: Tensor
    js: Tensor
    to_output: tuple[Tensor, Tensor]
    top1: tuple[Tensor, Tensor]
    ranks: tuple[Tensor, Tensor]
    injected_kl: Tensor | None

    @classmethod
    def of(
        cls,
        base: Distributions,
        variant: Distributions,
        injected: Distributions | None,
        final: tuple[Distributions, Distributions],
        asked: Tensor,
    ) -> "_Read":
        kl, js = base.kl_and_js_bits(variant)
        return cls(
            kl=kl,
            js=js,
            to_output=(final[0].kl_bits(base), final[1].kl_bits(variant)),
            top1=(base.top1, variant.top1),
            ranks=(base.ranks(asked), variant.ranks(asked)),
            injected_kl=None if injected is None else base.kl_bits(injected),
        )


def _rows(streams: Streams, layer: int, parts: Sequence[_Read]) -> LayerRows:
    """One layer's measures, chunks put together."""
    base, variant, injected = (of[layer].double() for of in (streams.base, streams.variant, streams.injected))
    norm = base.norm(dim=-1)
    by_itself = [part.injected_kl for part in parts if part.injected_kl is not None]
    return LayerRows(
        relative_change=_numbers((variant - base).norm(dim=-1) / norm),
        cosine=_numbers((base * variant).sum(-1) / (norm * variant.norm(dim=-1))),
        injected=_numbers((injected - base).norm(dim=-1) / norm) if layer else None,
        inherited=_numbers((variant - injected).norm(dim=-1) / norm) if layer else None,
        injected_kl_bits=_numbers(*by_itself) if by_itself else None,
        kl_bits=_numbers(*(part.kl for part in parts)),
        js_bits=_numbers(*(part.js for part in parts)),
        base_to_output_bits=_numbers(*(part.to_output[0] for part in parts)),
        variant_to_output_bits=_numbers(*(part.to_output[1] for part in parts)),
        base_top1_id=_whole(*(part.top1[0] for part in parts)),
        variant_top1_id=_whole(*(part.top1[1] for part in parts)),
        base_rank=_whole(*(part.ranks[0] for part in parts)),
        variant_rank=_whole(*(part.ranks[1] for part in parts)),
    )


def _numbers(*parts: Tensor) -> Numbers:
    return np.asarray(torch.cat(parts).double().numpy(), dtype=np.float64)


def _whole(*parts: Tensor) -> NDArray[np.int64]:
    return np.asarray(torch.cat(parts).numpy(), dtype=np.int64)
