"""Prompt echo by token id: does a layer's top token, or the tokens of some layers in a row, repeat the prompt?"""

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

from layerscope.record.protocol import Thresholds


class Echo:
    """The runs of ids that a prompt contains, and how early each is complete."""

    def __init__(self, context_ids: Sequence[int], windows: Sequence[int]) -> None:
        """Index every run of ids as long as one of `windows`."""
        self._ends: dict[tuple[int, ...], int] = {}
        for k in sorted(set(windows)):
            for end in range(k - 1, len(context_ids)):
                self._ends.setdefault(tuple(context_ids[end - k + 1 : end + 1]), end)

    def contains(self, run: tuple[int, ...], upto: int) -> bool:
        """Whether the run stands in the prompt's first `upto + 1` ids, in order and without gaps."""
        end = self._ends.get(run)
        return end is not None and end <= upto


def copy_flags(
    top1_ids: NDArray[np.int64],
    p1: NDArray[np.float64],
    p2: NDArray[np.float64],
    upto: Sequence[int],
    echo: Echo,
    trivial: Set[int],
    thresholds: Thresholds,
) -> dict[str, NDArray[np.bool_]]:
    """The copy flags of one prompt under one lens.

    Args:
        top1_ids: `[layer, position]`, the lens' top id.
        p1: `[layer, position]`, its probability.
        p2: `[layer, position]`, the second largest probability.
        upto: for each position the last index of the context that the model has read there; -1 before the first.
        echo: the prompt's runs of ids.
        trivial: ids that never count as an echo (blank, punctuation).
        thresholds: probabilities and margins, all exceeded strictly.

    Returns:
        Arrays `[layer, position]` by column name. A window runs over depth at one position, and is false until as
        many layers have been seen.
    """
    shape = top1_ids.shape
    inside = {k: np.zeros(shape, dtype=np.bool_) for k in {1, *thresholds.copy_soft_windows}}
    for position in range(shape[1]):
        column = [int(i) for i in top1_ids[:, position]]
        for k, flag in inside.items():
            for layer in range(k - 1, shape[0]):
                run = tuple(column[layer - k + 1 : layer + 1])
                flag[layer, position] = run[-1] not in trivial and echo.contains(run, upto[position])
    lead = p1 - p2 > thresholds.copy_margin
    flags = {f"copy_strict@{threshold:g}": inside[1] & (p1 > threshold) & lead for threshold in thresholds.copy_strict}
    flags["copy_collapse"] = inside[1] & (p1 > thresholds.copy_collapse) & lead
    for k in thresholds.copy_soft_windows:
        flags[f"copy_soft_k{k}@{thresholds.copy_soft:g}"] = inside[k] & (p1 > thresholds.copy_soft)
    return flags
