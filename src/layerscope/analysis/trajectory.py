"""How the residual stream's length grows with depth, and at which layers a norm changes it out of proportion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.analysis.curve import Curve
from layerscope.analysis.percentiles import median

SPIKE_RATIO = 3.0
"""Ratio of lengths after and before the norm, or of such a ratio to its neighbours', above which a layer is a spike."""
SPIKE_COSINE = 0.8
"""Cosine between the stream before and after the norm below which a layer is a spike."""
NEIGHBOUR_LAYERS = 2
"""Neighbours of a layer are those within so many layers: a window of five with the layer itself."""
PLATEAU_SLOPE = 0.01
"""Largest slope, up or down, of a plateau."""
MONOTONIC_R2 = 0.70
_TINY = 1e-9
"""Added to a length, so that its logarithm exists."""

Shape: TypeAlias = Literal["spike", "plateau", "monotonic", "non_monotonic", "unknown"]


@dataclass(frozen=True)
class NormTrajectory:
    """A straight line through the logarithm of the stream's length, layer by layer, and what stands out."""

    slope: float | None
    """Growth of the natural logarithm of the length, per layer; 0 for a single layer."""
    r2: float | None
    """Share of its variance that the line explains; 1 where it does not vary, None for fewer than two layers."""
    sampled_layers: int
    """How many layers the line was drawn through."""
    n_spikes: int | None
    """Layers up to the onset at which the norm multiplies the length by more than 3, or turns the stream."""
    n_spikes_relative: int | None
    """Layers up to the onset at which the norm multiplies it by more than 3 times as much as at neighbouring layers."""
    shape: Shape
    """`spike` wherever `n_spikes` is not 0, else `shape_trend`: the published rule."""
    shape_trend: Shape
    """What the line says, whatever the spikes."""
    spike: bool | None
    """Whether there is a spike by the rule asked for; None where nothing was measured."""


def norm_trajectory(headline: Curve, onset: int | None, absolute_spikes: bool) -> NormTrajectory:
    """Fit and count along one curve.

    Where no layer has `raw_resid_norm`, the reciprocal of `resid_norm_ratio` stands for it; the two are not mixed.

    Args:
        headline: the curve; the columns of its norm are those of the headline lens.
        onset: layer of the answer, beyond which spikes do no harm; None to count them at every layer.
        absolute_spikes: whether `spike` means the published count, and not the relative one.
    """
    points = _log_lengths(headline)
    slope, r2 = _line(points)
    spikes, relative = _spikes(headline, onset), _relative_spikes(headline, onset)
    trend = _trend(slope, r2)
    counted = spikes if absolute_spikes else relative
    return NormTrajectory(
        slope=slope,
        r2=r2,
        sampled_layers=len(points),
        n_spikes=spikes,
        n_spikes_relative=relative,
        shape="spike" if spikes else trend,
        shape_trend=trend,
        spike=None if counted is None else counted > 0,
    )


def _log_lengths(curve: Curve) -> list[tuple[int, float]]:
    """Layer and logarithm of the length, where it is known."""
    lengths = {row["layer"]: row["raw_resid_norm"] for row in curve.rows if row["raw_resid_norm"] is not None}
    if not lengths:
        lengths = {row["layer"]: 1 / row["resid_norm_ratio"] for row in curve.rows if row["resid_norm_ratio"]}
    return [(layer, math.log(length + _TINY)) for layer, length in lengths.items()]


def _line(points: Sequence[tuple[int, float]]) -> tuple[float | None, float | None]:
    """Slope and coefficient of determination of the least-squares line."""
    if not points:
        return None, None
    if len(points) == 1:
        return 0.0, None
    start = points[0][1]  # taken off first, so that equal values have a variance of exactly 0
    mean_x = math.fsum(x for x, _ in points) / len(points)
    mean_y = math.fsum(y - start for _, y in points) / len(points)
    centred = [(x - mean_x, y - start - mean_y) for x, y in points]
    slope = math.fsum(x * y for x, y in centred) / math.fsum(x * x for x, _ in centred)
    total = math.fsum(y * y for _, y in centred)
    left = math.fsum((y - slope * x) ** 2 for x, y in centred)
    return slope, 1.0 if total == 0 else 1 - left / total


def _spikes(curve: Curve, onset: int | None) -> int | None:
    """How many layers are spikes in themselves."""
    pairs = [(row["resid_norm_ratio"], row["delta_resid_cos"]) for row in curve.rows if _counts(row["layer"], onset)]
    known = [pair for pair in pairs if pair != (None, None)]
    return sum(_is_spike(*pair) for pair in known) if known else None


def _is_spike(ratio: float | None, cosine: float | None) -> bool:
    return (ratio is not None and ratio > SPIKE_RATIO) or (cosine is not None and cosine < SPIKE_COSINE)


def _relative_spikes(curve: Curve, onset: int | None) -> int | None:
    """How many layers are spikes among their neighbours; a layer without neighbours cannot be one."""
    ratios = {row["layer"]: row["resid_norm_ratio"] for row in curve.rows if row["resid_norm_ratio"] is not None}
    counted = [layer for layer in ratios if _counts(layer, onset)]
    return sum(_stands_out(ratios, layer) for layer in counted) if counted else None


def _stands_out(ratios: dict[int, float], layer: int) -> bool:
    near = [ratio for other, ratio in ratios.items() if 0 < abs(other - layer) <= NEIGHBOUR_LAYERS]
    usual = median(near)
    return usual is not None and ratios[layer] > SPIKE_RATIO * usual


def _counts(layer: int, onset: int | None) -> bool:
    return onset is None or layer <= onset


def _trend(slope: float | None, r2: float | None) -> Shape:
    if slope is None:
        return "unknown"
    if abs(slope) <= PLATEAU_SLOPE:
        return "plateau"
    return "monotonic" if r2 is not None and r2 >= MONOTONIC_R2 else "non_monotonic"
