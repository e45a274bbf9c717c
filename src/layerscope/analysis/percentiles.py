"""Percentiles of values and of depth, rounded as every table of ours and of others rounds them."""

from collections.abc import Sequence

QUARTERS = (0.25, 0.50, 0.75)
QUARTER_NAMES = ("p25", "p50", "p75")


def percentile(values: Sequence[int | float], q: float) -> float | None:
    """The value at rank (N - 1) q of the sorted values, interpolated linearly; None of nothing.

    Definition 7 of Hyndman & Fan 1996, "Sample quantiles in statistical packages".
    """
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (rank - low))


def median(values: Sequence[int | float]) -> float | None:
    """The middle value, or the mean of the two middle ones; None of nothing."""
    return percentile(values, 0.5)


def quartiles(values: Sequence[int | float]) -> dict[str, float | None]:
    """The three quartiles by name; None of nothing."""
    return {name: percentile(values, q) for name, q in zip(QUARTER_NAMES, QUARTERS, strict=True)}


def depth_layer(fraction: float, n_layers: int) -> int:
    """The layer at a fraction of the depth, halves rounded to even."""
    return min(max(round(n_layers * fraction), 0), n_layers)


def depth_fraction(layer: int | None, n_layers: int, digits: int = 3) -> float | None:
    """A layer as a fraction of the depth; None for none."""
    return None if layer is None else round(layer / n_layers, digits)
