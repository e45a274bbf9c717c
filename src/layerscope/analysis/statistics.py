"""Statistics over facts: where a depth lies in the middle, how widely it spreads, and how far a few facts tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log2, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.percentiles import median, percentile

SEED = 316
RESAMPLES = 10_000
FEWEST = 10
"""Facts with a layer below which there is no interval: it would run over a handful of values and look exact."""
Z_95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """A depth in layers over facts, some of which may not have it.

    Median, quartiles, mean and the interval of the median are about the facts that have a layer.
    """

    n: int
    """Number of facts, those without a layer included."""
    n_missing: int
    """Facts without a layer."""
    median: float | None
    median_rounded: int | None
    """Halves go to the even layer, here and below."""
    p25: float | None
    p25_rounded: int | None
    p75: float | None
    p75_rounded: int | None
    mean: float | None
    interval_95: Interval | None
    """Where the median of as many facts of the same kind would lie, see `summarize`."""
    interval_reason: str | None
    """Why there is no interval; None where there is one."""
    share_missing: float | None
    """n_missing / n; None of no facts."""
    share_missing_interval_95: Interval | None
    """Wilson's score interval of that share, which is no point even where none or all are missing."""


def summarize(
    layers: Sequence[int | float | None], seed: int = SEED, fewest: int = FEWEST, points: bool = True
) -> Summary:
    """A depth, or a shift of one, summarized over facts; None stands for a fact without one, in any order.

    The interval of the median is a percentile bootstrap over all facts: each of `RESAMPLES` draws takes n facts with
    replacement, those without a layer among them, and gives the median of those with one. So the interval speaks of
    facts that have a layer and claims no depth for the others, but is as uncertain as their number makes it. It takes
    the facts for independent draws from those that might have been asked.

    Args:
        fewest: values below which there is no interval.
        points: whether an interval may be a single point; if not, there is none there, with the reason. Equal values
            give one, and so do values most of which are equal: no certainty, but the grain of whole layers.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile interval).
    """
    known = [layer for layer in layers if layer is not None]
    n_missing = len(layers) - len(known)
    interval = _interval_of_median(known, n_missing, seed) if len(known) >= fewest else None
    reason = None if interval is not None else f"{len(known)} facts have a layer; an interval needs {fewest}"
    middle, p25, p75 = median(known), percentile(known, 0.25), percentile(known, 0.75)
    if not points and (interval is None or interval[0] == interval[1]):
        interval, reason = None, _why_no_interval(known, interval, fewest)
    return Summary(
        n=len(layers),
        n_missing=n_missing,
        median=middle,
        median_rounded=rounded(middle),
        p25=p25,
        p25_rounded=rounded(p25),
        p75=p75,
        p75_rounded=rounded(p75),
        mean=sum(known) / len(known) if known else None,
        interval_95=interval,
        interval_reason=reason,
        share_missing=n_missing / len(layers) if layers else None,
        share_missing_interval_95=_interval_of_share(n_missing, len(layers)) if layers else None,
    )


def rounded(layer: float | None) -> int | None:
    """A median or quartile as a layer, halves to even."""
    return None if layer is None else round(layer)


def entropy_fraction(entropy_bits: float | None, d_vocab: int) -> float | None:
    """Entropy as a share of the largest there is, log2(d_vocab): comparable between vocabularies.

    None where the entropy is absent, or a vocabulary of one token leaves nothing to be uncertain of.
    """
    return None if entropy_bits is None or d_vocab < 2 else entropy_bits / log2(d_vocab)


def _why_no_interval(known: Sequence[int | float], point: Interval | None, fewest: int) -> str:
    """That there are too few values, or how many are equal where the interval would be a point."""
    if len(known) > 1 and len(set(known)) == 1:
        return f"all {len(known)} equal"
    if point is not None:
        return f"{known.count(point[0])} of {len(known)} equal"
    return f"facts with a value: {len(known)}; an interval needs {fewest}"


def _interval_of_median(layers: Sequence[int | float], n_missing: int, seed: int) -> Interval:
    """Many milestones have the same layers, hence the same interval."""
    return _interval_of_sorted(tuple(sorted(layers)), n_missing, seed)


@lru_cache(maxsize=256)
def _interval_of_sorted(layers: tuple[int | float, ...], n_missing: int, seed: int) -> Interval:
    medians = _resampled_medians(layers, n_missing, seed)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def _resampled_medians(layers: Sequence[int | float], n_missing: int, seed: int) -> NDArray[np.float64]:
    """The median of each resample; of resamples without any layer, which have none, there are fewer.

    Facts with equal layers are alike, so a resample is how often each layer was drawn: the same distribution as
    drawing facts, at a cost that does not grow with their number.
    """
    distinct, counts = np.unique(np.asarray(layers), return_counts=True)
    n = len(layers) + n_missing
    # A kind of count 0 in the last place would receive what rounding leaves of the shares before it.
    kinds = np.append(counts, n_missing) if n_missing else counts
    drawn = np.random.default_rng(seed).multinomial(n, kinds / n, size=RESAMPLES)
    up_to = drawn[:, : len(distinct)].cumsum(axis=1)  # [resample, layer]: facts drawn at this layer or shallower
    up_to = up_to[up_to[:, -1] > 0]
    size = up_to[:, -1:]
    lower = distinct[(up_to > (size - 1) // 2).argmax(axis=1)]
    upper = distinct[(up_to > size // 2).argmax(axis=1)]
    medians: NDArray[np.float64] = (lower + upper) / 2
    return medians


def _interval_of_share(count: int, n: int) -> Interval:
    """Wilson 1927, "Probable inference, the law of succession, and statistical inference"."""
    share, z2 = count / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    # At either end the formula gives 0 and 1 but for rounding.
    return (0.0 if count == 0 else centre - half), (1.0 if count == n else centre + half)
