"""Milestones: the layer at which something first holds, from which on it holds for good, or why there is none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import ge, gt, le
from typing import Any, TypeAlias

from layerscope.analysis.curve import Curve, Predicate, Row
from layerscope.record.milestone_names import (
    CONFIRMED,
    ONSET,
    STRONG,
    STRONG_RUN2,
    MilestoneName,
    copy_soft,
    copy_strict,
    rank_within,
    stable_twin,
)
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds

NEVER = "holds at no layer"
NEVER_SEEN = "holds at no layer that has a value; some have none"
NOT_TO_THE_END = "does not hold to the last layer"
NO_TWO = "holds at no two layers in a row"
NOT_MEASURED = "has no value at any layer"


@dataclass(frozen=True)
class Milestone:
    """A layer with a name, and what was read there."""

    name: str
    lens: str
    prompt: PromptKey
    layer: int | None
    reason: str | None
    """Why there is no layer; None where there is one."""
    row: int | None
    """Place in the run's table of the row that it rests on."""
    entropy_bits: float | None = None
    kl_to_final_bits: float | None = None
    p_answer: float | None = None
    answer_rank: int | None = None

    @classmethod
    def at(cls, name: str, curve: Curve, layer: int | None, reason: str | None) -> "Milestone":
        """The milestone at a layer of a curve; `reason` is for where there is none."""
        row = curve.at(layer)
        if row is None:
            return cls(name, curve.lens, curve.prompt, None, reason, None)
        values = {key: row[key] for key in ("row", "entropy_bits", "kl_to_final_bits", "p_answer", "answer_rank")}
        return cls(name, curve.lens, curve.prompt, layer, None, **values)


Milestones: TypeAlias = Mapping[str, Milestone]
"""The milestones of one curve by name."""


@dataclass(frozen=True)
class Gates:
    """When a rank of 1 counts for more than a rank of 1."""

    d_vocab: int
    thresholds: Thresholds

    def rank_1(self, row: Row) -> bool | None:
        """The answer has the largest logit."""
        rank: int | None = row["answer_rank"]
        return None if rank is None else rank == 1

    def margin_ok(self, row: Row) -> bool | None:
        """Rank 1, and clearly more probable than under a uniform distribution."""
        if row["p_answer"] is None:
            return None
        return bool(self.rank_1(row)) and row["p_answer"] - 1 / self.d_vocab >= self.thresholds.semantic_margin

    def top2_ok(self, row: Row) -> bool | None:
        """Rank 1, with a clear lead over the second logit."""
        return _leads_by(row, self.thresholds.semantic_gap)

    def strong(self, row: Row) -> bool | None:
        """Both of them."""
        margin, lead = self.margin_ok(row), self.top2_ok(row)
        if margin is False or lead is False:
            return False
        return None if margin is None or lead is None else True


def definitions(thresholds: Thresholds, d_vocab: int) -> dict[str, Predicate]:
    """What each milestone asks of a row, by name; thresholds stand in the names as they print."""
    gates = Gates(d_vocab, thresholds)
    t = thresholds
    return {
        MilestoneName.COPY: _true("copy_collapse"),
        MilestoneName.LOW_ENTROPY: _true("entropy_collapse"),
        **{copy_strict(p): _true(f"copy_strict@{p:g}") for p in t.copy_strict},
        **{copy_soft(k): _true(f"copy_soft_k{k}@{t.copy_soft:g}") for k in t.copy_soft_windows},
        ONSET: _true("is_answer"),
        **{f"first_kl_below_{bits:.1f}": _compared("kl_to_final_bits", le, bits) for bits in t.kl_to_final_bits},
        **{rank_within(rank): _compared("answer_rank", le, rank) for rank in t.answer_rank},
        **{f"first_p_top1_gt_{p:.2f}": _compared("p_top1", gt, p) for p in t.p_top1},
        **{f"gap_ge_{gap:.1f}": partial(_leads_by, gap=gap) for gap in t.answer_gap},
        MilestoneName.SURFACE_TO_MEANING: _leads("answer_mass", "echo_mass_prompt", t.surface_margin),
        MilestoneName.GEOMETRY: _leads("cos_to_answer", "cos_to_prompt_max", t.geometry_margin),
        MilestoneName.TOPK_DECAY: _compared("topk_prompt_mass@50", le, t.topk_prompt_mass),
        **{f"cos_ge_{c:g}": _compared("cos_to_final", ge, c) for c in t.cos_to_final},
        **{f"cos_centered_ge_{c:g}": _compared("cos_to_final_centered", ge, c) for c in t.cos_to_final},
        MilestoneName.MARGIN_OK: gates.margin_ok,
        MilestoneName.TOP2_OK: gates.top2_ok,
        STRONG: gates.strong,
    }


def find_milestones(curve: Curve, thresholds: Thresholds) -> dict[str, Milestone]:
    """Every milestone of a curve: first crossings, their `_stable` twins, and runs of two.

    A run of two has no twin: from where a predicate holds for good it holds in runs of two as well.
    """
    milestones: dict[str, Milestone] = {}
    for name, holds in definitions(thresholds, curve.d_vocab).items():
        never = _why_never(curve, holds, NEVER)
        first, twin = curve.first(holds), stable_twin(name)
        milestones[name] = Milestone.at(name, curve, first, never)
        lost = never if first is None else NOT_TO_THE_END
        milestones[twin] = Milestone.at(twin, curve, curve.stable(holds), lost)
    gates = Gates(curve.d_vocab, thresholds)
    runs: dict[str, Callable[[Row], bool | None]] = {
        MilestoneName.ONSET_RUN2: gates.rank_1,
        STRONG_RUN2: gates.strong,
    }
    for name, holds in runs.items():
        milestones[name] = Milestone.at(name, curve, curve.first_of_two(holds), _why_never(curve, holds, NO_TWO))
    return milestones


def _why_never(curve: Curve, holds: Predicate, whole: str) -> str:
    """The reason for a missing layer; `whole` where every layer was asked, the embedding aside.

    A fitted lens has no map for the embedding, which is no gap.
    """
    answers = {row["layer"]: holds(row) for row in curve.rows}
    if all(answer is None for answer in answers.values()):
        return NOT_MEASURED
    due = set(range(1, curve.n_layers + 1)) | set(answers)
    return whole if all(answers.get(layer) is not None for layer in due) else NEVER_SEEN


PREFERENCE = (STRONG_RUN2, STRONG, CONFIRMED, ONSET)
"""Which milestone stands for "the answer became readable", strongest evidence first."""


def semantic_layer(milestones: Milestones) -> Milestone | None:
    """The one semantic milestone to headline: the first of `PREFERENCE` that has a layer; None where none has."""
    candidates = (milestones[name] for name in PREFERENCE if name in milestones)
    return next((milestone for milestone in candidates if milestone.layer is not None), None)


def layer_of(milestones: Milestones, name: str) -> int | None:
    """The layer of a milestone; None where it has none, or was not looked for."""
    return milestones[name].layer if name in milestones else None


def layers_between(later: int | None, earlier: int | None) -> int | None:
    """Layers from one to the other; None without both."""
    return None if later is None or earlier is None else later - earlier


def entropy_drop_bits(milestones: Milestones) -> float | None:
    """Entropy at the copy layer less entropy at the semantic one, in bits; None without both."""
    copy, semantic = milestones[MilestoneName.COPY].entropy_bits, milestones[ONSET].entropy_bits
    return None if copy is None or semantic is None else copy - semantic


def rest_mass_peak(curve: Curve, milestones: Milestones) -> tuple[int, float] | None:
    """Layer and value of the largest rest mass from the semantic layer on; None without one."""
    start = milestones[ONSET].layer
    if start is None:
        return None
    after = [row for row in curve.rows if row["layer"] >= start and row["rest_mass"] is not None]
    peak = max(after, key=lambda row: row["rest_mass"], default=None)
    return None if peak is None else (peak["layer"], peak["rest_mass"])


def copies_early(curve: Curve, thresholds: Thresholds) -> bool | None:
    """Whether any of layers 0 to 3 echoes the prompt, strictly or softly; None where neither was measured."""
    columns = ("copy_collapse", f"copy_soft_k1@{thresholds.copy_soft:g}")
    early = [row[column] for row in curve.rows if row["layer"] <= 3 for column in columns]
    known = [flag for flag in early if flag is not None]
    return any(known) if known else None


REFLEX_LAYERS = (1, 2, 3)
"""Where a strict copy is an early reflex; the embedding decodes to its own input wherever it is the unembedding."""


@dataclass(frozen=True)
class EarlyReflex:
    """Whether the first blocks hand on the prompt's words."""

    layers: tuple[int, ...]
    """Of layers 1 to 3, those that copy strictly."""
    known: bool
    """Whether that was measured at any of them."""
    embedding_copies: bool | None
    """Whether layer 0 does; None where that was not measured, or is so by construction: the embedding is tied to the
    unembedding."""

    @property
    def present(self) -> bool | None:
        """Whether any does; None where none was measured."""
        return bool(self.layers) if self.known else None


def early_reflex(curve: Curve, tied: bool) -> EarlyReflex:
    """Look for strict copies at the first layers.

    Args:
        tied: whether the embedding is the unembedding.
    """
    copies = {row["layer"]: row["copy_collapse"] for row in curve.rows}
    early = [layer for layer in REFLEX_LAYERS if copies.get(layer) is not None]
    return EarlyReflex(
        layers=tuple(layer for layer in early if copies[layer]),
        known=bool(early),
        embedding_copies=None if tied else copies.get(0),
    )


def _leads_by(row: Row, gap: float) -> bool | None:
    """Rank 1, with a lead over the second logit of at least so much; None where the lead of a rank 1 is not known."""
    if row["answer_rank"] is None:
        return None
    if row["answer_rank"] > 1:
        return False
    lead: float | None = row["answer_logit_gap"]
    return None if lead is None else lead >= gap


def _true(column: str) -> Predicate:
    return lambda row: row[column]


def _compared(column: str, compare: Callable[[Any, Any], bool], bound: int | float) -> Predicate:
    return lambda row: None if row[column] is None else compare(row[column], bound)


def _leads(column: str, other: str, margin: int | float) -> Predicate:
    return lambda row: None if row[column] is None or row[other] is None else row[column] >= row[other] + margin
