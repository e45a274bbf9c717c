"""Milestones: the layer at which something first holds, from which on it holds for good, or why there is none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import eq, ge, gt, le
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.conditions import Condition, both, compared, leads, leads_by, margin_over_uniform, true
from layerscope.analysis.crossings import NOWHERE, Crossings, Grid, Layers
from layerscope.analysis.curve import Curve, Curves
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


class Gates:
    """When a rank of 1 counts for more than a rank of 1."""

    def __init__(self, d_vocab: int, thresholds: Thresholds) -> None:
        self.rank_1 = compared("answer_rank", eq, 1)
        """The answer has the largest logit."""
        self.margin_ok = margin_over_uniform(thresholds.semantic_margin, 1 / d_vocab)
        """Rank 1, and clearly more probable than under a uniform distribution."""
        self.top2_ok = leads_by(thresholds.semantic_gap)
        """Rank 1, with a clear lead over the second logit."""
        self.strong = both(self.margin_ok, self.top2_ok)
        """Both of them."""


def definitions(thresholds: Thresholds, d_vocab: int) -> dict[str, Condition]:
    """What each milestone asks of a row, by name; thresholds stand in the names as they print."""
    gates = Gates(d_vocab, thresholds)
    t = thresholds
    return {
        MilestoneName.COPY: true("copy_collapse"),
        MilestoneName.LOW_ENTROPY: true("entropy_collapse"),
        **{copy_strict(p): true(f"copy_strict@{p:g}") for p in t.copy_strict},
        **{copy_soft(k): true(f"copy_soft_k{k}@{t.copy_soft:g}") for k in t.copy_soft_windows},
        ONSET: true("is_answer"),
        **{f"first_kl_below_{bits:.1f}": compared("kl_to_final_bits", le, bits) for bits in t.kl_to_final_bits},
        **{rank_within(rank): compared("answer_rank", le, rank) for rank in t.answer_rank},
        **{f"first_p_top1_gt_{p:.2f}": compared("p_top1", gt, p) for p in t.p_top1},
        **{f"gap_ge_{gap:.1f}": leads_by(gap) for gap in t.answer_gap},
        MilestoneName.SURFACE_TO_MEANING: leads("answer_mass", "echo_mass_prompt", t.surface_margin),
        MilestoneName.GEOMETRY: leads("cos_to_answer", "cos_to_prompt_max", t.geometry_margin),
        MilestoneName.TOPK_DECAY: compared("topk_prompt_mass@50", le, t.topk_prompt_mass),
        **{f"cos_ge_{c:g}": compared("cos_to_final", ge, c) for c in t.cos_to_final},
        **{f"cos_centered_ge_{c:g}": compared("cos_to_final_centered", ge, c) for c in t.cos_to_final},
        MilestoneName.MARGIN_OK: gates.margin_ok,
        MilestoneName.TOP2_OK: gates.top2_ok,
        STRONG: gates.strong,
    }


def find_milestones(curve: Curve, thresholds: Thresholds) -> dict[str, Milestone]:
    """Every milestone of a curve: first crossings, their `_stable` twins, and runs of two.

    A run of two has no twin: from where a condition holds for good it holds in runs of two as well.
    """
    key = curve.prompt, curve.lens
    return dict(milestones_of(Curves({key: curve}), thresholds)[key])


def milestones_of(curves: Curves, thresholds: Thresholds) -> "dict[tuple[PromptKey, str], CurveMilestones]":
    """The same of many curves at once, in their order; a milestone is made where it is asked for."""
    if not curves.by_key:
        return {}
    found = _Found.of(curves, thresholds)
    return {key: CurveMilestones(curve, found, at, {}) for at, (key, curve) in enumerate(curves.by_key.items())}


_REASONS = (NEVER, NEVER_SEEN, NOT_TO_THE_END, NO_TWO, NOT_MEASURED)
_Reasons: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class _Found:
    """Every milestone of many curves, as arrays."""

    names: Mapping[str, str]
    """Each as it is stated, whatever kind of string it is looked up by."""
    layers: Mapping[str, Layers]
    """By name, a layer of each curve."""
    reasons: Mapping[str, _Reasons]
    """By name, the place in `_REASONS` of what explains that a curve has none."""

    @classmethod
    def of(cls, curves: Curves, thresholds: Thresholds) -> "_Found":
        first_curve = next(iter(curves))
        d_vocab, grid = first_curve.d_vocab, Grid.of(curves, first_curve.n_layers)
        layers: dict[str, Layers] = {}
        reasons: dict[str, _Reasons] = {}
        for name, condition in definitions(thresholds, d_vocab).items():
            found, twin = grid.crossings(condition), stable_twin(name)
            layers[name], reasons[name] = found.first(), _why_never(found, NEVER)
            layers[twin] = found.stable()
            lost = np.uint8(_REASONS.index(NOT_TO_THE_END))
            reasons[twin] = np.where(layers[name] == NOWHERE, reasons[name], lost)
        gates = Gates(d_vocab, thresholds)
        for name, condition in ((MilestoneName.ONSET_RUN2, gates.rank_1), (STRONG_RUN2, gates.strong)):
            found = grid.crossings(condition)
            layers[name], reasons[name] = found.first_of_two(), _why_never(found, NO_TWO)
        return cls({name: name for name in layers}, layers, reasons)


def _why_never(found: Crossings, whole: str) -> _Reasons:
    """The reason for a missing layer; `whole` where every layer was asked, the embedding aside."""
    measured, complete, seen = (np.uint8(_REASONS.index(why)) for why in (NOT_MEASURED, whole, NEVER_SEEN))
    reasons: _Reasons = np.where(found.measured(), np.where(found.complete(), complete, seen), measured)
    return reasons


class CurveMilestones(Mapping[str, Milestone]):
    """The milestones of one curve by name."""

    __slots__ = ("_at", "_curve", "_found", "_more")

    def __init__(self, curve: Curve, found: _Found, at: int, more: Mapping[str, Milestone]) -> None:
        self._curve, self._found, self._at, self._more = curve, found, at, more

    def with_more(self, more: Mapping[str, Milestone]) -> "CurveMilestones":
        """These and others, which stand behind them."""
        return CurveMilestones(self._curve, self._found, self._at, {**self._more, **more})

    def layer(self, name: str) -> int | None:
        """The layer of one of them, which need not be made for that; None where it has none, or is none of them."""
        if name in self._more:
            return self._more[name].layer
        layer = int(self._found.layers[name][self._at]) if name in self._found.layers else NOWHERE
        return None if layer == NOWHERE else layer

    def __getitem__(self, name: str) -> Milestone:
        if name in self._more:
            return self._more[name]
        if name not in self._found.layers:
            raise KeyError(name)
        layer, stated = self.layer(name), self._found.names[name]
        return Milestone.at(stated, self._curve, layer, _REASONS[self._found.reasons[name][self._at]])

    def __contains__(self, name: object) -> bool:
        return name in self._more or name in self._found.layers

    def __iter__(self) -> Iterator[str]:
        yield from self._found.layers
        yield from self._more

    def __len__(self) -> int:
        return len(self._found.layers) + len(self._more)


PREFERENCE = (STRONG_RUN2, STRONG, CONFIRMED, ONSET)
"""Which milestone stands for "the answer became readable", strongest evidence first."""


def semantic_layer(milestones: Milestones) -> Milestone | None:
    """The one semantic milestone to headline: the first of `PREFERENCE` that has a layer; None where none has."""
    candidates = (milestones[name] for name in PREFERENCE if name in milestones)
    return next((milestone for milestone in candidates if milestone.layer is not None), None)


def layer_of(milestones: Milestones, name: str) -> int | None:
    """The layer of a milestone; None where it has none, or was not looked for."""
    if isinstance(milestones, CurveMilestones):
        return milestones.layer(name)
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
