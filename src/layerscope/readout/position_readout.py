"""One position looked at closely: several views of every layer, how alike they are, and how firm their answer is."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import LensError
from layerscope.readout.decode import TILE_BYTES
from layerscope.readout.geometry import jaccard
from layerscope.record.measured import (
    OverlapRecord,
    PositionReadoutRecord,
    RepeatabilityRecord,
    ScaledRecord,
    ViewRecord,
)
from layerscope.record.rows import TOP_SET
from layerscope.unembedding import HeadTransform, Unembedding


@dataclass(frozen=True)
class DecodingView:
    """A way to read a residual; any lens is one at every layer."""

    row: Callable[[Tensor, int], Tensor]
    """From a residual and its layer to the row that is unembedded."""
    layers: frozenset[int] | None = None
    """Where the view is defined; everywhere where None."""


@dataclass(frozen=True)
class LayerReading:
    """What one view says at one layer."""

    top_ids: Int[Tensor, " k"]
    """Ids of the largest logits, largest first, the smaller id first among equals."""
    p_top1: float
    answer_rank: int | None = None
    """1 + number of ids with a larger logit than the judged answer; ties share the best rank. None without an answer.
    """
    p_answer: float | None = None
    gap: float | None = None
    """The answer's logit minus the largest of the others; negative where another leads."""
    scaled: tuple[float | None, ...] = ()
    """The answer's probability when the logits are multiplied by each of the scales."""

    @property
    def top1_id(self) -> int:
        """Id of the largest logit."""
        return int(self.top_ids[0])


Readings: TypeAlias = list[LayerReading | None]
"""Of one view, from the embedding on; None where it is undefined or its logits are not finite."""


def position_readout(
    residual: Float[Tensor, "layers d_model"],
    views: Mapping[str, DecodingView],
    *,
    headline: str,
    answer_ids: tuple[int, ...],
    pairs: Sequence[tuple[str, str]],
    scales: Sequence[float],
    unembedding: Unembedding,
    lens_transform: HeadTransform | None,
) -> PositionReadoutRecord:
    """Look at one position's residual stream through several views.

    One view's logits are held at a time. The unembedding is swept once for each view and once for the second decode;
    a pair whose second view stands before its first in `views` costs one sweep more.

    Args:
        residual: the residual of the position at every layer.
        headline: the view that is scaled and decoded a second time.
        answer_ids: accepted answers; in each row the one with the largest logit is judged. May be empty.
        pairs: names of views to compare.
        scales: what the headline view's logits are multiplied by.
        lens_transform: what is done to the logits; the head's own transform where None. Order is taken before it.

    Raises:
        LensError: the headline or a pair names no view, or a view is defined at layers that there are not.
    """
    _check(len(residual), views, headline, pairs)
    transform = unembedding.transform if lens_transform is None else lens_transform
    answers = tuple(sorted(set(answer_ids)))
    readings: dict[str, Readings] = {}
    ranks: dict[tuple[str, str], list[list[int] | None]] = {}
    for name in _visits(tuple(views), pairs):
        logits = _view_logits(residual, views[name], unembedding)
        if name not in readings:
            factors = tuple(scales) if name == headline else ()
            readings[name] = [None if z is None else _read(z, answers, factors, transform) for z in logits]
        for pair in pairs:
            if pair[1] == name and pair[0] in readings and pair not in ranks:
                ranks[pair] = [
                    None if z is None or first is None else _ranks(z, first.top_ids)
                    for z, first in zip(logits, readings[pair[0]], strict=True)
                ]
        del logits  # before the next view's are made
    scaled = by_layer(readings[headline], "scaled")
    return PositionReadoutRecord(
        headline=headline,
        views=tuple(_view_record(name, readings[name]) for name in views),
        overlaps=tuple(_overlap(pair, readings, ranks[pair]) for pair in pairs),
        answer_gap=by_layer(readings[headline], "gap"),
        scaled=tuple(
            ScaledRecord(scale=scale, p_answer=tuple(None if values is None else values[i] for values in scaled))
            for i, scale in enumerate(scales)
        ),
        repeatability=_repeat(residual, views[headline], readings[headline], unembedding),
    )


def read_view(
    residual: Float[Tensor, "layers d_model"],
    view: DecodingView,
    answer_ids: tuple[int, ...],
    unembedding: Unembedding,
    lens_transform: HeadTransform | None,
) -> Readings:
    """Look at one position through one view alone; for the arguments see `position_readout`."""
    transform = unembedding.transform if lens_transform is None else lens_transform
    answers = tuple(sorted(set(answer_ids)))
    logits = _view_logits(residual, view, unembedding)
    return [None if z is None else _read(z, answers, (), transform) for z in logits]


def by_layer(readings: Readings, name: str) -> tuple[Any, ...]:
    """One attribute of a view's readings; None where the view says nothing."""
    return tuple(None if reading is None else getattr(reading, name) for reading in readings)


def _check(n: int, views: Mapping[str, DecodingView], headline: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse names without a view, and layers that do not exist."""
    unknown = [name for name in (headline, *(name for pair in pairs for name in pair)) if name not in views]
    if unknown:
        raise LensError(f"There is no view called '{unknown[0]}'; the views given are {', '.join(views)}.")
    for name, view in views.items():
        beyond = sorted(layer for layer in view.layers or () if not 0 <= layer < n)
        if beyond:
            raise LensError(f"View '{name}' is defined at layer {beyond[0]}, but layers go from 0 to {n - 1}.")


def _visits(names: tuple[str, ...], pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Every view, then those whose logits are wanted again: a pair needs the top ids of its first beforehand."""
    yield from names
    yield from dict.fromkeys(second for first, second in pairs if names.index(second) < names.index(first))


def _rows(residual: Float[Tensor, "layers d_model"], view: DecodingView) -> dict[int, Float[Tensor, " d_model"]]:
    """What the view gives, by layer, where it is defined."""
    return {i: view.row(row, i) for i, row in enumerate(residual) if view.layers is None or i in view.layers}


def _view_logits(
    residual: Float[Tensor, "layers d_model"], view: DecodingView, unembedding: Unembedding
) -> list[Float[Tensor, " d_vocab"] | None]:
    """Linear logits of every layer from one product; None where undefined or not finite."""
    rows = _rows(residual, view)
    linear: list[Tensor | None] = [None] * len(residual)
    if rows:
        logits = unembedding.logits(unembedding.head_input(torch.stack(list(rows.values()))))
        for layer, z in zip(rows, logits, strict=True):
            linear[layer] = z if bool(z.isfinite().all()) else None
    return linear


def _read(
    linear: Float[Tensor, " d_vocab"], answers: tuple[int, ...], scales: tuple[float, ...], transform: HeadTransform
) -> LayerReading:
    """All numbers of one row of logits."""
    top_ids = _top_ids(linear, TOP_SET)
    z = transform.apply_(linear.double())
    log_probs = torch.log_softmax(z, -1)
    p_top1 = float(log_probs[top_ids[0]].exp())
    if not answers:
        return LayerReading(top_ids, p_top1, scaled=(None,) * len(scales))
    answer = max(answers, key=lambda token_id: float(linear[token_id]))
    others = [token_id for token_id in top_ids[:2].tolist() if token_id != answer]
    return LayerReading(
        top_ids,
        p_top1,
        answer_rank=1 + int((linear > linear[answer]).sum()),
        p_answer=float(log_probs[answer].exp()),
        gap=float(z[answer] - z[others[0]]) if others else None,
        scaled=tuple(float(torch.log_softmax(z * scale, -1)[answer].exp()) for scale in scales),
    )


def _top_ids(linear: Float[Tensor, " d_vocab"], k: int) -> Int[Tensor, " k"]:
    """Ids of the `k` largest logits, largest first, ties by id."""
    k = min(k, len(linear))
    least = torch.topk(linear, k).values[-1]
    ids = (linear >= least).nonzero().squeeze(-1)  # more than k where several equal the k-th
    return ids[torch.sort(linear[ids], descending=True, stable=True).indices[:k]]


def _ranks(linear: Float[Tensor, " d_vocab"], ids: Int[Tensor, " k"]) -> list[int]:
    """1 + number of ids with a larger logit, for each of a few ids."""
    values = linear.cpu().numpy()
    ascending = np.sort(values)  # by vectors, which torch's is not
    above = len(ascending) - np.searchsorted(ascending, values[ids.cpu().numpy()], side="right")
    ranks: list[int] = (1 + above).tolist()
    return ranks


def _view_record(name: str, readings: Readings) -> ViewRecord:
    columns = ("answer_rank", "p_answer", "top1_id", "p_top1")
    return ViewRecord(view=name, **{column: by_layer(readings, column) for column in columns})


def _overlap(pair: tuple[str, str], readings: Mapping[str, Readings], ranks: list[list[int] | None]) -> OverlapRecord:
    """Two views against each other; `ranks` are those of the first one's top ids in the second."""
    columns = ("jaccard_10", "jaccard_50", "spearman_top50_union", "spearman_top50_ref")
    layers = [_compare(a, b, at) for a, b, at in zip(readings[pair[0]], readings[pair[1]], ranks, strict=True)]
    by_column = dict(zip(columns, zip(*layers, strict=True), strict=True))
    return OverlapRecord(view=pair[0], against=pair[1], **by_column)


def _compare(
    a: LayerReading | None, b: LayerReading | None, ranks_in_b: list[int] | None
) -> tuple[float | None, float | None, float | None, float | None]:
    """The four numbers of an `OverlapRecord` at one layer."""
    if a is None or b is None or ranks_in_b is None:
        return None, None, None, None
    return (
        float(jaccard(a.top_ids[:10], b.top_ids[:10])),
        float(jaccard(a.top_ids, b.top_ids)),
        _union_spearman(a.top_ids.tolist(), b.top_ids.tolist()),
        _pearson(range(1, len(ranks_in_b) + 1), ranks_in_b),
    )


def _union_spearman(a: list[int], b: list[int]) -> float | None:
    """Correlation of two lists' ranks over the ids of either; a missing id stands just below the list."""
    ranks_a, ranks_b = ({token_id: rank for rank, token_id in enumerate(ids, 1)} for ids in (a, b))
    ids = ranks_a.keys() | ranks_b.keys()
    return _pearson(
        [ranks_a.get(token_id, len(a) + 1) for token_id in ids], [ranks_b.get(token_id, len(b) + 1) for token_id in ids]
    )


def _pearson(x: Sequence[int], y: Sequence[int]) -> float | None:
    """Correlation of two lists of ranks, in [-1, 1]; None where one does not vary, as one rank alone cannot."""
    # Sums of integers are exact, so the order of the ids leaves no trace.
    n, sum_x, sum_y = len(x), sum(x), sum(y)
    spread_x, spread_y = (n * sum(v * v for v in values) - sum(values) ** 2 for values in (x, y))
    if spread_x == 0 or spread_y == 0:
        return None
    shared = n * sum(a * b for a, b in zip(x, y, strict=True)) - sum_x * sum_y
    return max(-1.0, min(1.0, shared / (math.sqrt(spread_x) * math.sqrt(spread_y))))


def _repeat(
    residual: Float[Tensor, "layers d_model"], view: DecodingView, first: Readings, unembedding: Unembedding
) -> RepeatabilityRecord:
    """Decode the view again, row by row, and look where the top-1 ids of the first decode have gone."""
    sound = {i: row for i, row in _rows(residual, view).items() if first[i] is not None}
    rank_dev: list[int | None] = [None] * len(residual)
    flip: list[bool | None] = [None] * len(residual)
    if sound:
        rows = unembedding.head_input(torch.stack(list(sound.values())))
        for i, again in zip(sound, _logits_row_by_row(rows, unembedding), strict=True):
            reading = first[i]
            if reading is not None:
                rank_dev[i], flip[i] = _moved(again, reading.top1_id)
    return RepeatabilityRecord(status="ok", rank_dev=tuple(rank_dev), top1_flip=tuple(flip))


def _moved(again: Float[Tensor, " d_vocab"], top1_id: int) -> tuple[int, bool]:
    """How far an id is from the first rank, and whether another stands there."""
    return int((again > again[top1_id]).sum()), int(_top_ids(again, 1)[0]) != top1_id


def _logits_row_by_row(rows: Float[Tensor, "rows d_head"], unembedding: Unembedding) -> Float[Tensor, "rows d_vocab"]:
    """The logits of `Unembedding.logits` from products of one row each, which sum in another order.

    Tile by tile outside, so that the weight is read once, and few ids a tile, so that it stays in the cache meanwhile.
    """
    width = max(1, TILE_BYTES // (4 * unembedding.d_head))
    logits = rows.new_empty(len(rows), unembedding.d_vocab, dtype=torch.float32)
    for start in range(0, unembedding.d_vocab, width):
        stop = min(start + width, unembedding.d_vocab)
        weight = unembedding.tile(start, stop)
        for row, out in zip(rows, logits, strict=True):
            torch.mv(weight, row, out=out[start:stop])
    return logits if unembedding.bias is None else logits.add_(unembedding.bias)
