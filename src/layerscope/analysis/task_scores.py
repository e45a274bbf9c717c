"""What lenses score on tasks of words that a state leads towards, and which of them find more than the logit lens."""

from collections.abc import Sequence
from dataclasses import dataclass

from layerscope.analysis.pass_at import PassAt
from layerscope.suite.word_tasks import ReadAt

BASELINE = "logit"
"""What every lens is held against."""


@dataclass(frozen=True)
class Ahead:
    """How much more a lens gains over other items' words than the logit lens does, over the same items."""

    lens: str
    k: int
    difference: float
    interval: tuple[float, float]
    """95 %, over items."""


@dataclass(frozen=True)
class TaskScore:
    """How every lens does on one task."""

    task: str
    read_at: ReadAt
    scores: tuple[PassAt, ...]
    """By lens and k; a fitted lens' null, its weights shuffled, is called `<lens>_shuffled`."""
    over_logit: tuple[Ahead, ...]
    """Of every fitted lens and k; empty where the logit lens was not asked for."""
    n_items: int
    """As the task has them,"""
    n_scored: int
    """and those of which at least one word has a form of one token."""
    n_words: int
    """Words of all items,"""
    skipped: tuple[str, ...]
    """and those without such a form, as often as they are asked for."""


@dataclass(frozen=True)
class LensTasks:
    """How lenses do on several tasks."""

    model: str
    tasks: tuple[TaskScore, ...]


def sides(found: Sequence[TaskScore], lens: str, k: int) -> tuple[list[str], list[str], list[str]]:
    """Tasks in which a lens gains more than the logit lens, less, and where the two are not told apart.

    A task by itself: of many tasks that hold no difference, one in twenty would seem to hold one.

    Args:
        found: the tasks; those without the lens or the logit lens count nowhere.
        lens: a fitted one.
        k: the rank up to which words count.
    """
    more, less, neither = list[str](), list[str](), list[str]()
    for task in found:
        for one in task.over_logit:
            if (one.lens, one.k) == (lens, k):
                low, high = one.interval
                (more if low > 0 else less if high < 0 else neither).append(task.task)
    return more, less, neither
