"""Medians over pairs of facts, and what they might have been had other facts been asked.

Pairs that share a fact are not independent, and five facts make twenty ordered pairs. So facts are drawn with
replacement, and a pair counts as often as its facts were drawn, the one times the other: the vertex bootstrap of
Snijders & Borgatti 1999 (Connections 22(2), 161-170), shown to hold for such data by Davezies, D'Haultfœuille &
Guyonvarch 2021 (arXiv:1906.11293). A fact drawn twice is no pair with itself. Where facts make no difference and only
pairs do, the interval is too wide, by a factor of up to the square root of three (Owen 2007, arXiv:0712.1111).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FACTS_FOR_A_CLAIM = 10
"""From so many on an interval covers about as often as it says; of five it would be four times in five."""
RESAMPLES = 2000
SEED = 316


class FactDraws:
    """Resamples of some facts."""

    def __init__(self, facts: Sequence[int]) -> None:
        """Draw them.

        Args:
            facts: each once, in rising order.
        """
        self._facts = np.asarray(facts)
        n = len(facts)
        drawn = np.random.default_rng(SEED).integers(n, size=(RESAMPLES, n))
        self._times = np.stack([np.bincount(row, minlength=n) for row in drawn])

    def weights(self, facts: NDArray[np.int64]) -> NDArray[np.int64]:
        """How often each resample has each row, [resample, row].

        Args:
            facts: those that each row is of, [row, some]; all of them known.
        """
        found: NDArray[np.int64] = self._times[:, np.searchsorted(self._facts, facts)].prod(axis=2)
        return found


@dataclass(frozen=True)
class Median:
    """Over pairs of facts."""

    value: float
    low: float | None
    high: float | None
    """95 % interval, facts drawn again; None under `FACTS_FOR_A_CLAIM`."""


class MediansOverPairs:
    """Medians of several values of the same pairs; the same facts are drawn again for all of them."""

    def __init__(self, facts: NDArray[np.int64]) -> None:
        """Draw the facts.

        Args:
            facts: those that each pair is of, [pair, some].
        """
        known = np.unique(facts)
        self.n_facts = len(known)
        """How many different ones."""
        self._weights = FactDraws(known.tolist()).weights(facts) if self.n_facts >= FACTS_FOR_A_CLAIM else None

    def of(self, values: NDArray[np.float64]) -> Median:
        """The median of some values, [pair]."""
        middle = float(np.median(values))
        if self._weights is None:
            return Median(middle, None, None)
        low, high = interval(drawn_medians(values[:, None], self._weights))
        return Median(middle, float(low[0]), float(high[0]))


def interval(drawn: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the middle 95 % of resamples, each [layer]; those with no value say nothing.

    Args:
        drawn: [resample, layer].
    """
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def medians(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """By layer, over the rows that have a value there; NaN where none has.

    Args:
        curves: [row, layer]; NaN where there is none.
    """
    return drawn_medians(curves, np.ones((1, len(curves)), dtype=np.int64)).ravel()


def drawn_medians(curves: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same of rows that count several times or not at all, [resample, layer].

    Args:
        curves: [row, layer]; NaN where there is none.
        weights: [resample, row].
    """
    found = np.full((len(weights), curves.shape[1]), np.nan)
    for layer, values in enumerate(curves.T):
        known = np.flatnonzero(np.isfinite(values))
        order = known[np.argsort(values[known])]
        up_to = weights[:, order].cumsum(axis=1)
        some = up_to[:, -1] > 0 if len(order) else np.zeros(len(weights), dtype=bool)
        if some.any():
            n = up_to[some, -1]
            # The two in the middle, which are one where their number is odd.
            middle = [values[order][(up_to[some] > place[:, None]).argmax(axis=1)] for place in ((n - 1) // 2, n // 2)]
            found[some, layer] = (middle[0] + middle[1]) / 2
    return found
