"""Pass at k: how often a lens has a word among its first k at any layer, and how often that happens to any word."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.drawn_facts import RESAMPLES, SEED


@dataclass(frozen=True)
class PassAt:
    """One lens and one k, over items."""

    lens: str
    k: int
    n_items: int
    passed: float
    """Share of items whose word is among the first k at one layer at least;"""
    others: float
    """the same of words of other items, in its place: what so many layers and so frequent words give by themselves."""
    gain: float
    """The difference of both,"""
    gain_interval: tuple[float, float]
    """with its 95 % interval: percentile bootstrap over items."""
    band: tuple[int, int]
    """The middle half of the layers, first and last, chosen by depth alone."""
    in_band: float
    """Share of items and layers of the band at which the word is among the first k: no best of many layers;"""
    others_in_band: float
    """the same of words of other items."""
    at_output: float
    """Share of items whose word is among the first k of the model's own output: there nothing was hidden."""


def pass_at(lens: str, ranks: NDArray[np.int64], word_of: Sequence[int], k: int) -> PassAt:
    """Score one lens.

    Args:
        lens: its name.
        ranks: `[item, word, layer]`, of every word in question, not of an item's own alone, from layer 1 to the output;
            1 is the first. The output is scored by itself.
        word_of: of every item which word it asks for; items may share one.
        k: counted as passed up to this rank.

    Source: pass@k of the evaluation of Gurnee et al. 2026; the null, the band and the interval are ours.
    """
    n_items, n_words, n_layers = ranks.shape[0], ranks.shape[1], ranks.shape[2] - 1
    within, at_output = ranks[..., :-1] <= k, ranks[..., -1] <= k
    first, last = n_layers // 4, n_layers - n_layers // 4
    own = np.zeros((n_items, n_words), dtype=bool)
    own[np.arange(n_items), list(word_of)] = True
    best, band = within.any(-1).astype(float), within[..., first:last].mean(-1)
    gains = best[own] - _of_others(best, own)
    drawn = np.random.default_rng(SEED).integers(n_items, size=(RESAMPLES, n_items))
    low, high = np.percentile(gains[drawn].mean(1), [2.5, 97.5])
    return PassAt(
        lens=lens,
        k=k,
        n_items=n_items,
        passed=float(best[own].mean()),
        others=float(_of_others(best, own).mean()),
        gain=float(gains.mean()),
        gain_interval=(float(low), float(high)),
        band=(first + 1, last),
        in_band=float(band[own].mean()),
        others_in_band=float(_of_others(band, own).mean()),
        at_output=float(at_output[own].mean()),
    )


def _of_others(score: NDArray[np.float64], own: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of every item the mean over words that are not its own."""
    return np.asarray((score * ~own).sum(1) / (~own).sum(1), dtype=np.float64)
