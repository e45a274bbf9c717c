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
    """Share of an item's words that are among the first k at one layer at least, in the mean over items;"""
    others: float
    """the same of other items' words in their place: what so many layers and so frequent words give by themselves."""
    gain: float
    """The difference of both,"""
    gain_interval: tuple[float, float]
    """with its 95 % interval: percentile bootstrap over items."""
    band: tuple[int, int]
    """The middle half of the layers, first and last, chosen by depth alone."""
    in_band: float
    """Share of layers of the band at which a word is among the first k, over words and items: no best of layers;"""
    others_in_band: float
    """the same of words of other items."""
    at_output: float
    """`passed` of the model's own output alone: there nothing was hidden."""
    band_rank: float
    """A word's median rank over the band's layers: geometric mean over an item's words, median over items;"""
    others_band_rank: float
    """the same of words of other items."""
    gains: tuple[float, ...]
    """Of every item the share of its words that passed, less that of other items' words."""


def pass_at(
    lens: str,
    ranks: NDArray[np.int64],
    words_of: Sequence[Sequence[int]],
    k: int,
    alike: NDArray[np.bool_] | None = None,
) -> PassAt:
    """Score one lens.

    Args:
        lens: its name.
        ranks: `[item, word, layer]`, of every word in question, not of an item's own alone, from layer 1 to the output;
            1 is the first. The output is scored by itself.
        words_of: of every item which words it asks for, at least one; items may share words.
        k: counted as passed up to this rank.
        alike: `[word, word]`, which share a token and so are no null for each other; each with itself alone where not
            given.

    Source: pass@k of the evaluation of Gurnee et al. 2026; the null, the band and the interval are ours.
    """
    n_items, n_words, n_layers = ranks.shape[0], ranks.shape[1], ranks.shape[2] - 1
    within, at_output = ranks[..., :-1] <= k, (ranks[..., -1] <= k).astype(float)
    first, last = n_layers // 4, n_layers - n_layers // 4
    own = np.zeros((n_items, n_words), dtype=bool)
    for item, words in enumerate(words_of):
        own[item, list(words)] = True
    # As a shuffle of targets would have it: as often as items ask for a word, but for the item's own.
    barred = own if alike is None else own @ alike
    others = np.where(barred, 0, own.sum(0))
    best, band = within.any(-1).astype(float), within[..., first:last].mean(-1)
    middle = np.log(np.median(ranks[..., first:last], axis=-1))
    passed = _mean(best, own)
    gains = passed - _mean(best, others)
    return PassAt(
        lens=lens,
        k=k,
        n_items=n_items,
        passed=float(passed.mean()),
        others=float(_mean(best, others).mean()),
        gain=float(gains.mean()),
        gain_interval=_interval(gains),
        band=(first + 1, last),
        in_band=float(_mean(band, own).mean()),
        others_in_band=float(_mean(band, others).mean()),
        at_output=float(_mean(at_output, own).mean()),
        band_rank=float(np.exp(np.median(_mean(middle, own)))),
        others_band_rank=float(np.exp(np.median(_mean(middle, others)))),
        gains=tuple(map(float, gains)),
    )


def ahead(score: PassAt, other: PassAt) -> tuple[float, tuple[float, float]]:
    """By how much one lens gains more than another over the same items, with a 95 % interval over items.

    Of gains, for a lens under which any word passes more often passes its own more often too.
    """
    differences = np.array(score.gains) - np.array(other.gains)
    return float(differences.mean()), _interval(differences)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of a mean: percentile bootstrap over items."""
    drawn = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


def _mean(score: NDArray[np.float64], weights: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of every item the weighted mean over words."""
    return np.asarray((score * weights).sum(1) / weights.sum(1), dtype=np.float64)
