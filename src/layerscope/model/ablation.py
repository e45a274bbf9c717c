"""Parts of blocks put out of action: attention, MLP, single heads or neurons, set to zero or to their mean."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.block_parts import Sublayers
from layerscope.model.module_calls import with_written, written_by
from layerscope.model.streaming import Hooks

Site: TypeAlias = Literal["attn", "mlp", "head", "neurons"]
By: TypeAlias = Literal["zero", "mean"]
FORMS = "block:12.attn, block:12.mlp, head:12.7 or neurons:12:5,77"
_BLOCK = re.compile(r"block:(\d+)\.(attn|mlp)")
_HEAD = re.compile(r"head:(\d+)\.(\d+)")
_NEURONS = re.compile(r"neurons:(\d+):(\d+(?:,\d+)*)")
_NAMED_AT_MOST = 3
"""Parts that a name spells out, and neurons of a part."""


@dataclass(frozen=True)
class Part:
    """One part of one block."""

    site: Site
    layer: int
    """The layer that its block writes: the first block is that of layer 1."""
    indices: tuple[int, ...] = ()
    """Which heads or neurons, counted from 0; empty where it is all that attention or MLP writes."""

    @classmethod
    def of(cls, text: str) -> "Part":
        """From words such as `head:12.7`.

        Raises:
            ModelError: they name no part.
        """
        if found := _BLOCK.fullmatch(text):
            return cls("attn" if found[2] == "attn" else "mlp", int(found[1]))
        if found := _HEAD.fullmatch(text):
            return cls("head", int(found[1]), (int(found[2]),))
        if found := _NEURONS.fullmatch(text):
            return cls("neurons", int(found[1]), tuple(sorted({int(i) for i in found[2].split(",")})))
        raise ModelError(f"'{text}' names no part that can be ablated; write {FORMS}.")

    @property
    def name(self) -> str:
        """Fit for the id of a model: `attn-12`, `head-12.7`, `neurons-12-5-77`."""
        if self.site == "head":
            return f"head-{self.layer}.{self.indices[0]}"
        few = self.indices[:_NAMED_AT_MOST]
        more = "" if len(self.indices) == len(few) else f"-and-{len(self.indices) - len(few)}-more"
        return "-".join(map(str, (self.site, self.layer, *few))) + more


@dataclass(frozen=True)
class Ablation:
    """What is put out of action, and by what."""

    parts: tuple[Part, ...]
    by: By = "zero"
    means: tuple[Tensor, ...] = ()
    """For each part, `[feature]`, what stands for it, where that is not zero."""

    @classmethod
    def of(cls, texts: Sequence[str], by: str) -> "Ablation":
        """From words; means have to be measured yet.

        Raises:
            ModelError: words that name no part, or one twice; or neither `zero` nor `mean`.
        """
        if by not in ("zero", "mean"):
            raise ModelError(f"A part is ablated with zero or with its mean, but '{by}' came.")
        parts = tuple(map(Part.of, texts))
        twice = next((part for i, part in enumerate(parts) if part in parts[:i]), None)
        if twice is not None:
            raise ModelError(f"'{texts[parts.index(twice)]}' is to be ablated twice; name each part once.")
        return cls(parts, "mean" if by == "mean" else "zero")

    def blocks_without(self, site: Site) -> list[int]:
        """Blocks, counted from 0, whose attention or MLP is put out of action as a whole."""
        return [part.layer - 1 for part in self.parts if part.site == site]

    @property
    def name(self) -> str:
        """What tells the ablated model from the model itself and from others."""
        how = "without" if self.by == "zero" else "with-mean"
        if len(self.parts) <= _NAMED_AT_MOST:
            return f"{how}-{'+'.join(part.name for part in self.parts)}"
        digest = hashlib.sha256(repr(self.parts).encode()).hexdigest()[:8]
        return f"{how}-{len(self.parts)}-parts-{digest}"


@dataclass(frozen=True)
class _Place:
    """Where a part can be taken hold of."""

    module: nn.Module
    features: slice | Tensor | None
    """Which features of what the module reads; None: all of what it returns."""


def _place(part: Part, blocks: Sequence[Sublayers], n_heads: int | None) -> _Place:
    """Where a part of a model is.

    Raises:
        ModelError: the model has no such part, which is then named with those there are.
    """
    if not 1 <= part.layer <= len(blocks):
        raise ModelError(
            f"There is no block of layer {part.layer}: blocks are counted by the layer that they write, 1 to "
            f"{len(blocks)}."
        )
    block = blocks[part.layer - 1]
    if part.site in ("attn", "mlp"):
        return _Place(block.attention if part.site == "attn" else block.mlp, None)
    if part.site == "head":
        width = width_read(block.projection)
        if n_heads is None or width is None or block.projection is None or width % n_heads:
            raise ModelError(f"The heads of layer {part.layer} cannot be told apart in this model; ablate its attn.")
        (head,) = part.indices
        if head >= n_heads:
            raise ModelError(f"Layer {part.layer} has no head {head}: it has {n_heads}, counted from 0.")
        size = width // n_heads
        return _Place(block.projection, slice(head * size, (head + 1) * size))
    width = width_read(block.down)
    if width is None or block.down is None:
        raise ModelError(
            f"The MLP of layer {part.layer} has no one matrix that reads its neurons, as where experts share the work; "
            "ablate its mlp."
        )
    if part.indices[-1] >= width:
        raise ModelError(f"Layer {part.layer} has no neuron {part.indices[-1]}: it has {width}, counted from 0.")
    return _Place(block.down, torch.tensor(part.indices))


def width_read(matrix: nn.Module | None) -> int | None:
    """Features that a linear reads."""
    width = getattr(matrix, "in_features", None) or getattr(matrix, "nx", None)  # GPT-2's own matrix has the latter
    return None if width is None else int(width)


def ablate(ablation: Ablation, blocks: Sequence[Sublayers], n_heads: int | None) -> None:
    """Put the parts out of action for as long as the modules live.

    Raises:
        ModelError: the model lacks a part.
    """
    hooks = Hooks()  # never taken away: the model is another one from here on
    for i, part in enumerate(ablation.parts):
        place = _place(part, blocks, n_heads)
        value = ablation.means[i] if ablation.by == "mean" else None
        if place.features is None:
            hooks.after(place.module, _returns(value))
        else:
            hooks.before(place.module, _reads(place.features, value))


def _returns(value: Tensor | None) -> Callable[..., Any]:
    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        written = written_by(output)
        put = torch.zeros_like(written)
        if value is not None:
            put += value.to(put)
        return with_written(output, put)

    return after


def _reads(features: slice | Tensor, value: Tensor | None) -> Callable[..., Any]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = args[0].clone()
        read[..., features] = 0.0 if value is None else value.to(read)
        return (read, *args[1:]), kwargs

    return before


class MeanHooks:
    """Adds up what parts write, over tokens."""

    def __init__(self, ablation: Ablation, blocks: Sequence[Sublayers], n_heads: int | None) -> None:
        """Find the parts.

        Raises:
            ModelError: the model lacks one.
        """
        self._places = [_place(part, blocks, n_heads) for part in ablation.parts]
        self._sums: list[Tensor | None] = [None] * len(self._places)
        self._n = 0

    @contextmanager
    def hooked(self, real: Bool[Tensor, "row position"]) -> Iterator[None]:
        """Hooks for one pass, of whose tokens these are no padding."""
        with Hooks() as hooks:
            for i, place in enumerate(self._places):
                if place.features is None:
                    hooks.after(place.module, self._add_output(i, real))
                else:
                    hooks.before(place.module, self._add_read(i, place.features, real))
            yield
        self._n += int(real.sum())

    @property
    def means(self) -> tuple[Tensor, ...]:
        """Of each part, float32.

        Raises:
            ModelError: one of them was not called.
        """
        if self._n == 0 or any(total is None for total in self._sums):
            raise ModelError("A part that is to be ablated was not called as a module, so its mean is not known.")
        return tuple((total / self._n).float() for total in self._sums if total is not None)

    def _add_output(self, i: int, real: Tensor) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._add(i, written_by(output), real)

        return after

    def _add_read(self, i: int, features: slice | Tensor, real: Tensor) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._add(i, args[0][..., features], real)

        return before

    def _add(self, i: int, values: Tensor, real: Tensor) -> None:
        rows = values.reshape(-1, values.shape[-1])[real.flatten().to(values.device)]
        total = rows.cpu().double().sum(0)
        before = self._sums[i]
        self._sums[i] = total if before is None else before + total
