"""The positions from a fact's subject to the last: whether the answer is near the top there, at its own layer."""

from dataclasses import dataclass

import polars as pl

from layerscope.analysis.facts import LOW_STABILITY
from layerscope.record.parts import PromptRecord
from layerscope.record.prompt_key import PromptKey

TOP = 10
"""Rank up to which the answer counts as near the top; inclusive."""


@dataclass(frozen=True)
class Place:
    """One position."""

    position: int
    token: str | None
    answer_rank: int | None


@dataclass(frozen=True)
class SubjectWindow:
    """The primary prompt under the headline lens, at positions that know the subject.

    Before the subject's last token no model can know the answer, so its absence there says nothing.
    """

    subject_end: int | None
    """Position of the subject's last token."""
    layer: int | None
    """On top for good."""
    places: tuple[Place, ...]
    """Decoded positions from the subject's last token to the last of the prompt."""
    n_positions: int
    """Those with a rank."""
    share_top_10: float | None
    """Share of these at which the answer is among the top ten."""
    reason: str | None
    """Why it was not asked; None where it was."""

    @property
    def low(self) -> bool | None:
        """Whether that is fewer than half; None where it was not asked."""
        return None if self.share_top_10 is None else self.share_top_10 < LOW_STABILITY


def subject_window(
    rows: pl.DataFrame, primary: PromptKey, known: PromptRecord | None, headline: str, layer: int | None
) -> SubjectWindow:
    """Look along the primary prompt at the layer from which its answer is on top for good.

    Args:
        rows: the run's table.
        layer: that layer; None where there is none.
    """
    end = None if known is None else known.subject_end
    if end is None:
        return _not_asked(end, layer, "it is not known where the subject ends")
    if known is not None and known.judge != "first_piece":
        return _not_asked(end, layer, "the prompt is not judged by the first piece of an answer")
    if layer is None:
        return _not_asked(end, layer, "the answer is not on top for good at any layer")
    there = primary.rows_of(rows).filter(pl.col("lens") == headline, layer=layer).filter(pl.col("position") >= end)
    columns = there.sort("position").select("position", "token", "answer_rank")
    places = tuple(Place(*values) for values in columns.iter_rows())
    ranks = [place.answer_rank for place in places if place.answer_rank is not None]
    if len(ranks) < 2:
        return _not_asked(end, layer, "no other position after the subject was decoded")
    share = sum(rank <= TOP for rank in ranks) / len(ranks)
    return SubjectWindow(end, layer, places, len(ranks), share, None)


def _not_asked(end: int | None, layer: int | None, reason: str) -> SubjectWindow:
    return SubjectWindow(end, layer, (), 0, None, reason)
