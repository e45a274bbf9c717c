"""Whether two sides read the same numbers; until they do, no time is told."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from task import TIE, TOP_K, Readings

BITS_TOLERANCE = 1e-4
"""Of entropy and KL: in bits up to one bit, relative above."""


class Disagreement(Exception):
    """The two sides read different numbers, so that their times say nothing."""


@dataclass(frozen=True)
class Agreement:
    """How far apart two sides are, none of it beyond tolerance; None where one of them gives no such number."""

    rows: int
    entropy_bits: float
    """Largest difference, in bits."""
    kl_bits: float | None
    ranks: int | None
    """How many ranks were compared."""
    ranks_equal: int | None
    tops_equal: int | None
    """Rows whose ids at the top are the same in the same order."""


def compare(reference: Readings, other: Readings) -> Agreement:
    """Hold a side's numbers against those of the plain loop.

    A rank may be off by at most the number of logits tied with the answer's; two ids at the top may have changed places
    if their logits are tied.

    Raises:
        Disagreement: for anything else, and for a table of another shape.
    """
    if reference.entropy_bits.shape != other.entropy_bits.shape:
        shapes = f"{reference.entropy_bits.shape} and {other.entropy_bits.shape}"
        raise Disagreement(f"expected as many prompts, layers and positions on both sides, found {shapes}")
    kl = ranks = equal = tops = None
    entropy = _largest_difference("entropy_bits", reference.entropy_bits, other.entropy_bits)
    if other.kl_to_final_bits is not None and reference.kl_to_final_bits is not None:
        kl = _largest_difference("kl_to_final_bits", reference.kl_to_final_bits, other.kl_to_final_bits)
    if other.answer_rank is not None:
        ranks, equal = _ranks(reference, other.answer_rank)
    if other.top_ids is not None:
        tops = _tops(reference, other.top_ids[..., :TOP_K])
    return Agreement(int(np.prod(other.entropy_bits.shape)), entropy, kl, ranks, equal, tops)


def _largest_difference(name: str, reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    difference = np.abs(reference - other)
    allowed = BITS_TOLERANCE * np.maximum(1.0, np.abs(reference))
    _refuse(name, ~(difference <= allowed), reference, other)  # so that a NaN is refused too
    return float(difference.max())


def _ranks(reference: Readings, ranks: NDArray[np.int64]) -> tuple[int, int]:
    if reference.answer_rank is None or reference.near_answer is None:
        raise Disagreement("expected ranks, and how near other logits are, of the side that is compared with")
    ranked = ranks > 0
    if not ranked[..., -1].all():
        raise Disagreement("expected an answer_rank at every last position, found some without")
    off = np.where(ranked, np.abs(reference.answer_rank - ranks), 0)
    _refuse("answer_rank", off > reference.near_answer, reference.answer_rank, ranks)
    return int(ranked.sum()), int((ranked & (off == 0)).sum())


def _tops(reference: Readings, top_ids: NDArray[np.int64]) -> int:
    if reference.top_ids is None or reference.top_logits is None:
        raise Disagreement("expected the most probable ids, and their logits, of the side that is compared with")
    expected = reference.top_ids[..., :TOP_K]
    same = top_ids == expected
    candidates = top_ids[..., :, None] == reference.top_ids[..., None, :]
    gaps = np.abs(reference.top_logits[..., :TOP_K, None] - reference.top_logits[..., None, :])
    tied = (candidates & (gaps < TIE)).any(-1)
    _refuse("top_ids", ~(same | tied), expected, top_ids)
    return int(same.all(-1).sum())


def _refuse(name: str, wrong: NDArray[np.bool_], reference: NDArray, other: NDArray) -> None:
    if wrong.any():
        first = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise Disagreement(
            f"{name}: {int(wrong.sum())} of {wrong.size} values differ beyond tolerance; the first at {first}: "
            f"{reference[first]} and {other[first]}"
        )
