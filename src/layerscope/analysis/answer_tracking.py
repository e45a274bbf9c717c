"""By layer, in how many facts the fact's own answer comes first among a suite's answers."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GUESSED = 0.01
"""How often, at most, guesses reach the count at any of the layers that is said to be more than guesswork."""


@dataclass(frozen=True)
class TrackedLayer:
    """One layer, read by two lenses."""

    layer: int
    jacobian_first: int
    """Facts whose own answer has the largest tracked logit of the suite's answers;"""
    jacobian_place: float
    """the median place of it among them, 1 being the first."""
    logit_first: int
    """The same of the logit lens, held to the same answers."""
    logit_place: float


@dataclass(frozen=True)
class TrackedAnswers:
    """All layers of one model on one suite."""

    model: str
    suite: str
    n_facts: int
    n_answers: int
    """Tokens that compete."""
    n_most_common: int
    """Facts that share the most common of them: what one and the same answer to all facts would get right."""
    left_out: tuple[str, ...]
    """Facts whose answer is none of the rows' tokens."""
    layers: tuple[TrackedLayer, ...]
    """0 to n_layers; at the last both read the model's own output."""

    @property
    def by_chance(self) -> float:
        """Facts whose answer comes first where each of them is as likely as any other."""
        return self.n_facts / self.n_answers

    @property
    def more_than_guesses(self) -> int | None:
        """The least count that such guesses reach at any of the layers with a probability of `GUESSED` or less.

        None where not even all facts would do. Facts guessed independently, and the bound of Bonferroni over layers.
        """
        return least_beyond(self.n_facts, 1 / self.n_answers, GUESSED / len(self.layers))


def least_beyond(n: int, p: float, at_most: float) -> int | None:
    """The least k that `n` independent draws, each successful with probability `p`, reach no more often than that."""
    tail, least = 0.0, None
    for k in range(n, -1, -1):
        tail += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if tail > at_most:
            break
        least = k
    return least


def places(values: NDArray[np.floating], own: NDArray[np.integer]) -> NDArray[np.int64]:
    """Place of each fact's own answer, 1 and those whose value is as large or larger; ties count against it.

    Args:
        values: `[layer, fact, answer]`.
        own: for each fact which of the answers is its own.

    Returns:
        `[layer, fact]`.
    """
    mine = np.take_along_axis(values, own[None, :, None], axis=2)
    found: NDArray[np.int64] = (values >= mine).sum(2)
    return found


def tracked_layers(
    jacobian: NDArray[np.floating], logit: NDArray[np.floating], own: NDArray[np.integer]
) -> tuple[TrackedLayer, ...]:
    """Counts and median places of every layer, from `[layer, fact, answer]`."""
    ours, plain = places(jacobian, own), places(logit, own)
    return tuple(
        TrackedLayer(
            layer=layer,
            jacobian_first=int((a == 1).sum()),
            jacobian_place=float(np.median(a)),
            logit_first=int((b == 1).sum()),
            logit_place=float(np.median(b)),
        )
        for layer, (a, b) in enumerate(zip(ours, plain, strict=True))
    )
