"""Whole answers: each piece after the ones before it, at every lens and layer, put together at the prompt's end.

The first piece is what the prompt itself is followed by. A later one is read where the model has been given the prompt
and the pieces before it (teacher forcing), a row beyond the prompt's own that goes through the same sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerscope.readout.decode import Question, Readout
from layerscope.readout.prompt_query import PromptQuery, Shape

Pieces: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class FurtherRow:
    """A row beyond the prompts' own: where a piece of an answer is looked for."""

    prompt: int
    """Which prompt, counted from 0."""
    read: Pieces
    """What the model has read behind the prompt; nothing at the prompt's own last position."""
    piece: int
    """The id that comes next."""


def without_longer(answers: Sequence[Pieces]) -> tuple[Pieces, ...]:
    """Distinct answers, in order, but for those that only continue another.

    Whatever continues an answer has said it, so its probability is a part of that one's and must not be added again.
    """
    distinct = tuple(dict.fromkeys(answers))
    return tuple(a for a in distinct if not any(a != b and a[: len(b)] == b for b in distinct))


def further_rows(queries: Sequence[PromptQuery]) -> tuple[FurtherRow, ...]:
    """Rows that whole answers need beside the prompts' own; none where every answer has one piece."""
    return tuple(row for prompt, query in enumerate(queries) for row in rows_of(prompt, query.whole))


def rows_of(prompt: int, answers: Sequence[Pieces]) -> tuple[FurtherRow, ...]:
    """Those of one prompt, each of them once.

    Where answers begin differently, the prompt's own row has the rank of the best beginning alone, so each beginning is
    looked for once more.
    """
    if all(len(pieces) == 1 for pieces in answers):
        return ()
    firsts = list(dict.fromkeys(pieces[0] for pieces in answers))
    rows = [FurtherRow(prompt, (), first) for first in firsts] if len(firsts) > 1 else []
    rows += [FurtherRow(prompt, pieces[:i], pieces[i]) for pieces in answers for i in range(1, len(pieces))]
    return tuple(dict.fromkeys(rows))


def known_ids(query: PromptQuery) -> Pieces:
    """Ids whose log-probabilities are wanted at the prompt's own rows: several answers, all of one piece."""
    return tuple(pieces[0] for pieces in query.whole) if _plain(query) and len(query.whole) > 1 else ()


def questions(rows: Sequence[FurtherRow]) -> list[Question]:
    """What is asked of the further rows."""
    return [Question(1, (row.piece,)) for row in rows]


def _plain(query: PromptQuery) -> bool:
    return all(len(pieces) == 1 for pieces in query.whole)


@dataclass(frozen=True)
class WholeAnswers:
    """Numbers of whole answers by lens, layer and position; there are some at last positions alone."""

    log_prob: NDArray[np.float64]
    """Natural log of the probability of any of the accepted answers."""
    rank: NDArray[np.int64]
    """The least over answers of the worst rank of a piece; 0 where nothing can be said."""
    gap: NDArray[np.float64]
    """Of an answer whose pieces are all on top, the least lead; of several such answers, the largest of these; -inf
    where there is no such answer."""


@dataclass(frozen=True)
class _Reading:
    """Of a piece or an answer, `[lens, layer]`."""

    log_prob: NDArray[np.float64]
    rank: NDArray[np.int64]
    """0 where the row is not finite."""
    lead: NDArray[np.float64]
    """-inf where it is not on top."""


def whole_answers(
    shape: Shape, readout: Readout, further: Readout, rows: Sequence[FurtherRow], known: Sequence[NDArray[np.float64]]
) -> WholeAnswers:
    """Put the pieces together.

    Args:
        readout: of the prompts' own rows.
        further: of the further rows.
        rows: what those are.
        known: for each prompt the log-probabilities of `known_ids` `[group, position, id]`.
    """
    with np.errstate(invalid="ignore"):  # what is not finite has no rank, and is nulled rather than computed around
        return _whole_answers(shape, readout, further, rows, known)


def _whole_answers(
    shape: Shape, readout: Readout, further: Readout, rows: Sequence[FurtherRow], known: Sequence[NDArray[np.float64]]
) -> WholeAnswers:
    axes = (len(shape.lenses), shape.n_layers)
    column = {row: i for i, row in enumerate(rows)}
    log_prob = np.full((*axes, shape.n_positions), np.nan)
    rank, gap = np.zeros(log_prob.shape, np.int64), np.full(log_prob.shape, -np.inf)
    for prompt, query in enumerate(shape.queries):
        if not query.whole:
            continue
        at = shape.columns_of(prompt).stop - 1
        own = _reading(readout, at, axes)
        if _plain(query):
            total = own.log_prob
            if len(query.whole) > 1:
                total = np.logaddexp.reduce(known[prompt][:, -1].reshape(*axes, -1), axis=-1)
            log_prob[..., at], rank[..., at], gap[..., at] = total, own.rank, own.lead
            continue
        answers = []
        for pieces in query.whole:
            places = [column.get(FurtherRow(prompt, pieces[:i], piece)) for i, piece in enumerate(pieces)]
            answers.append(_together([own if i is None else _reading(further, i, axes) for i in places]))
        ranks = np.stack([a.rank for a in answers])
        log_prob[..., at] = np.logaddexp.reduce([a.log_prob for a in answers])
        rank[..., at] = ranks.min(0)
        gap[..., at] = np.max([a.lead for a in answers], axis=0)
    return WholeAnswers(np.minimum(log_prob, 0.0), rank, gap)


def _reading(readout: Readout, at: int, axes: tuple[int, int]) -> _Reading:
    """A row of what is judged there."""
    top = readout.top_log_probs[:, at]
    rank, finite = readout.answer_rank[:, at], readout.finite[:, at]
    on_top = (rank == 1) & (readout.top_ids[:, at, 0] == readout.answer_id[:, at]) & finite
    return _Reading(
        np.where(finite, readout.answer_log_prob[:, at], np.nan).reshape(axes),
        np.where(finite, rank, 0).reshape(axes),
        np.where(on_top, top[:, 0] - top[:, min(1, top.shape[-1] - 1)], -np.inf).reshape(axes),
    )


def _together(pieces: Sequence[_Reading]) -> _Reading:
    """An answer of its pieces; one that is not finite spoils it."""
    ranks = np.stack([piece.rank for piece in pieces])
    return _Reading(
        np.sum([piece.log_prob for piece in pieces], axis=0),
        np.where((ranks > 0).all(0), ranks.max(0), 0),
        np.min([piece.lead for piece in pieces], axis=0),
    )
