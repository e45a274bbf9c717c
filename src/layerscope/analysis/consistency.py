"""Whether what one prompt showed survives another norm, another lens, another scale, and a second time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from layerscope.analysis.curve import Curve
from layerscope.analysis.milestones import Gates, Milestone, Milestones, semantic_layer
from layerscope.analysis.percentiles import median, percentile
from layerscope.record.measured import OverlapRecord, PositionReadoutRecord, SecondForwardRecord, ViewRecord
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG, STRONG_RUN2, rank_within
from layerscope.record.protocol import Thresholds

POST_LN2, NEXT_NORM = "post_ln2", "next_norm"
"""The two norms of the decoding-point test: of the block that wrote last, and of the block that reads next."""
SAME_DECODING = 0.5
"""Shared share of the ten most likely ids from which two norms tell the same; inclusive."""
LOW_AGREEMENT = 0.30
"""Shared share or correlation below which two lenses disagree."""
SCALES_TO_PASS = 0.75
"""Share of scales at which both gates should hold; inclusive."""
MAX_RANK_DEV, MAX_FLIP_RATE = 5, 0.02
"""Largest rank deviation and share of flipped layers that two decodes may have."""
TOLERANCE_LAYERS, SAME_FORWARD = 1, 0.5
"""How far apart the milestones of two forward passes may be; which share of their top ids they must have in common."""
TOP_IDS = 10
INFORMATIVE = rank_within(5)
"""The target of the decoding-point test that is shown and decides nothing."""

Stack: TypeAlias = Literal["pre_norm", "post_norm"]
TargetStatus: TypeAlias = Literal["ok", "missing_block", "not_measured"]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class DecodingTarget:
    """One residual decoded through both norms."""

    name: str
    """The milestone."""
    layer: int
    status: TargetStatus
    """`missing_block`: no block has written the embedding; `not_measured`: neither norm gave a top token."""
    answer_rank_post_ln2: int | None = None
    answer_rank_next_norm: int | None = None
    top1_id_post_ln2: int | None = None
    top1_id_next_norm: int | None = None
    p_answer_post_ln2: float | None = None
    p_answer_next_norm: float | None = None
    p_top1_post_ln2: float | None = None
    p_top1_next_norm: float | None = None
    jaccard_10: float | None = None
    jaccard_50: float | None = None
    spearman_top50_union: float | None = None

    @property
    def delta_answer_rank(self) -> int | None:
        """Rank under `post_ln2` less rank under `next_norm`."""
        a, b = self.answer_rank_post_ln2, self.answer_rank_next_norm
        return None if a is None or b is None else a - b

    @property
    def rank1_agree(self) -> bool | None:
        """Whether the answer stands first under both or under neither."""
        a, b = self.answer_rank_post_ln2, self.answer_rank_next_norm
        return None if a is None or b is None else (a == 1) == (b == 1)

    @property
    def top1_token_agree(self) -> bool | None:
        """Whether both have the same most likely token."""
        a, b = self.top1_id_post_ln2, self.top1_id_next_norm
        return None if a is None or b is None else a == b


@dataclass(frozen=True)
class OnsetGap:
    """The first layer with the answer on top under the final norm and under the next block's."""

    logit: int | None
    next_norm: int | None

    @property
    def gap_layers(self) -> int | None:
        """`next_norm` less `logit`: how many layers later the answer shows under the next block's norm."""
        return None if self.logit is None or self.next_norm is None else self.next_norm - self.logit


@dataclass(frozen=True)
class DecodingPoint:
    """Whether the milestones hang on which norm the residual is decoded through."""

    stack: Stack | None
    tested: bool
    reason: str | None
    """Why it was not tested; None where it was."""
    targets: tuple[DecodingTarget, ...]
    preferred_target: DecodingTarget | None
    """The target whose overlap decides: the preferred milestone, or the first that could be tested."""
    consistent: bool | None
    """Whether it does not; None where nothing that decides was measured."""
    onset_gap: OnsetGap | None
    """None where either lens was not looked through."""


@dataclass(frozen=True)
class LensAgreement:
    """How alike two lenses rank the vocabulary; None where it was not measured."""

    jaccard_10: float | None
    jaccard_50: float | None
    spearman_top50_ref: float | None
    """Over the headline lens' fifty most likely ids: their ranks there and under the other lens."""

    @property
    def low(self) -> bool | None:
        """Whether they disagree; None where nothing was measured."""
        known = [value for value in (self.jaccard_10, self.spearman_top50_ref) if value is not None]
        return any(value < LOW_AGREEMENT for value in known) if known else None


@dataclass(frozen=True)
class AgreementAt:
    """The agreement at a milestone."""

    name: str
    layer: int
    agreement: LensAgreement


@dataclass(frozen=True)
class LensPair:
    """The headline lens against another one."""

    against: str
    at_targets: tuple[AgreementAt, ...]
    p50: LensAgreement
    """Medians over the distinct layers of the targets."""
    p50_by_name: LensAgreement
    """Medians over the targets as published: a layer of four names counts four times."""


@dataclass(frozen=True)
class LensConsistency:
    """The headline lens against all others that were looked through."""

    headline: str
    targets: tuple[str, ...]
    pairs: tuple[LensPair, ...]
    low_at_semantic: bool | None
    """Whether any lens disagrees at a semantic milestone; None where none was measured there."""


@dataclass(frozen=True)
class ScaledTarget:
    """A milestone's gates with the logits multiplied by scales near 1; shares of the scales, None where unknown."""

    name: str
    layer: int
    uniform_margin_pass_frac: float | None
    """At which the answer is clearly more probable than under a uniform distribution; None for a run of two too."""
    top2_gap_pass_frac: float | None
    """At which it clearly leads; None for a run of two too."""
    both_gates_pass_frac: float | None
    """At which both hold; of a run of two, at both layers."""


@dataclass(frozen=True)
class GateStability:
    """Whether the gates of the semantic milestones hold only at the exact scale of the logits."""

    scales: tuple[float, ...]
    targets: tuple[ScaledTarget, ...]
    min_both_gates_pass_frac: float | None
    sensitive: bool | None
    """Whether that is less than three quarters; None without a target that could be judged."""


@dataclass(frozen=True)
class Repeatability:
    """Two decodes of the same residuals."""

    status: Literal["ok", "skipped", "unavailable"]
    reason: str | None
    """Why there was no second one; None where there was."""
    layers_checked: int
    max_rank_dev: int | None
    """Farthest that the first decode's top token has fallen in the second, in ranks."""
    p95_rank_dev: float | None
    top1_flip_rate: float | None
    """Share of layers whose top token changed."""
    high_variance: bool | None
    """Whether that is more than rounding explains; None where there was no second decode."""


@dataclass(frozen=True)
class ForwardOfTwo:
    """The preferred milestone in two forward passes."""

    enabled: bool
    mode: str | None
    """None where no second pass was thought of."""
    primary: str | None
    """The preferred milestone of the first pass."""
    pass1_layer: int | None
    pass2_primary: str | None
    """The preferred one of the second."""
    pass2_layer: int | None
    delta_layers: int | None
    """Second less first."""
    topk_k: int
    """How many of the most likely ids were compared: 10, or fewer where fewer are listed."""
    topk_jaccard_at_primary_layer: float | None
    agree: bool | None
    """Whether both passes tell the same; None where there was no second, or the first has no milestone."""


def decoding_point(
    readout: PositionReadoutRecord | None,
    milestones: Milestones,
    preferred: Milestone | None,
    stack: Stack | None,
    not_judged: int | None = None,
) -> DecodingPoint:
    """Decode the milestones' residuals through the norm of the last block that wrote, beside that of the next.

    Consistent if at every semantic target the answer stands first under both norms or under neither, and if at the
    preferred one the two sets of ten most likely ids share at least half.

    Args:
        readout: what was looked at closely; None where nothing was.
        milestones: of the headline lens on the same prompt.
        stack: how the blocks are built; only in a pre-norm stack is there such a choice.
        not_judged: a layer at which nothing follows, such as the last, after which no block reads.
    """
    gap = _onset_gap(readout)
    why_not = _why_not_tested(readout, stack)
    if readout is None or why_not is not None:
        return DecodingPoint(stack, False, why_not, (), None, None, gap)
    named: list[tuple[str, int | None]] = [
        (name, milestones[name].layer) for name in (ONSET, STRONG, STRONG_RUN2) if name in milestones
    ]
    run = milestones[STRONG_RUN2].layer if STRONG_RUN2 in milestones else None
    named.append((f"{STRONG_RUN2}_plus1", None if run is None else run + 1))
    named.append((INFORMATIVE, milestones[INFORMATIVE].layer if INFORMATIVE in milestones else None))
    placed = [(name, layer) for name, layer in named if layer is not None]
    targets = tuple(_decoding_target(readout, name, layer) for name, layer in placed if layer != not_judged)
    if len(targets) < len(placed) and not any(target.name != INFORMATIVE for target in targets):
        why_not = "the answer comes at the last layer, where there is no choice of norms"
        return DecodingPoint(stack, False, why_not, targets, None, None, gap)
    at = _preferred_target(targets, preferred)
    why_not = None if targets else "no milestone has a layer"
    return DecodingPoint(stack, bool(targets), why_not, targets, at, _consistent(targets, at), gap)


def lens_consistency(
    readout: PositionReadoutRecord | None, milestones: Milestones, not_judged: int | None = None
) -> LensConsistency | None:
    """Compare the headline lens with `raw` and `tuned` at its milestones; None where nothing was looked at closely.

    Args:
        not_judged: a layer at which agreement says nothing, such as the last, where some lenses are the model itself.
    """
    if readout is None:
        return None
    names = (rank_within(10), rank_within(5), ONSET, STRONG, STRONG_RUN2, CONFIRMED)
    targets = _placed(milestones, names)
    overlaps = [
        overlap
        for other in ("raw", "tuned")
        for overlap in readout.overlaps
        if (overlap.view, overlap.against) == (readout.headline, other)
    ]
    pairs = tuple(_lens_pair(overlap, targets) for overlap in overlaps)
    semantic = [at for pair in pairs for at in pair.at_targets if "semantic" in at.name]
    judged = [at.agreement.low for at in semantic if at.layer != not_judged]
    known = [low for low in judged if low is not None]
    return LensConsistency(
        headline=readout.headline,
        targets=tuple(name for name, _ in targets),
        pairs=pairs,
        low_at_semantic=any(known) if known else None,
    )


def gate_stability(
    readout: PositionReadoutRecord | None, milestones: Milestones, d_vocab: int, thresholds: Thresholds
) -> GateStability | None:
    """Scale the headline logits at its semantic milestones; None where nothing was looked at closely."""
    if readout is None:
        return None
    targets: list[ScaledTarget] = []
    seen: set[int] = set()
    for name, layer in _placed(milestones, (ONSET, STRONG, CONFIRMED, STRONG_RUN2)):
        if name == STRONG_RUN2:
            both = [_both(*_gates_at(readout, at, d_vocab, thresholds)) for at in (layer, layer + 1)]
            targets.append(ScaledTarget(name, layer, None, None, _frac(_both(*both))))
        elif name != CONFIRMED or layer not in seen:
            margin, lead = _gates_at(readout, layer, d_vocab, thresholds)
            targets.append(ScaledTarget(name, layer, _frac(margin), _frac(lead), _frac(_both(margin, lead))))
            seen.add(layer)
    known = [target.both_gates_pass_frac for target in targets if target.both_gates_pass_frac is not None]
    least = min(known, default=None)
    scales = tuple(scaled.scale for scaled in readout.scaled)
    return GateStability(scales, tuple(targets), least, None if least is None else least < SCALES_TO_PASS)


def repeatability(readout: PositionReadoutRecord | None) -> Repeatability:
    """Sum up the second decode."""
    if readout is None:
        return Repeatability("unavailable", "nothing was looked at closely", 0, None, None, None, None)
    measured = readout.repeatability
    deviations = [deviation for deviation in measured.rank_dev if deviation is not None]
    flips = [flip for flip in measured.top1_flip if flip is not None]
    furthest = max(deviations, default=None)
    rate = sum(flips) / len(flips) if flips else None
    high = None if furthest is None or rate is None else furthest > MAX_RANK_DEV or rate > MAX_FLIP_RATE
    return Repeatability(
        measured.status, measured.reason, len(deviations), furthest, percentile(deviations, 0.95), rate, high
    )


def forward_of_two(
    second: SecondForwardRecord | None, milestones: Milestones, curve: Curve, thresholds: Thresholds
) -> ForwardOfTwo:
    """Find the preferred milestone in a second forward pass, and compare it with the first pass.

    The raw and tuned lenses are not read in the second pass, so it has no confirmed onset of its own; since a confirmed
    onset is the onset, the second pass' onset answers to it.

    Args:
        second: the second pass; None where there is no record of one.
        milestones: of the first pass, under the headline lens.
        curve: the first pass under the headline lens.
    """
    first = semantic_layer(milestones)
    name, layer = (None, None) if first is None else (first.name, first.layer)
    ran = second is not None and bool(second.answer_rank)
    again = _second_milestone(second, curve, thresholds) if second is not None and ran else None
    name2, layer2 = (None, None) if again is None else again
    if name == CONFIRMED and name2 == ONSET:
        name2 = CONFIRMED
    k, shared = _top_overlap(second, curve, layer)
    delta = None if layer is None or layer2 is None else layer2 - layer
    return ForwardOfTwo(
        enabled=second is not None and second.mode != "off",
        mode=None if second is None else second.mode,
        primary=name,
        pass1_layer=layer,
        pass2_primary=name2,
        pass2_layer=layer2,
        delta_layers=delta,
        topk_k=k,
        topk_jaccard_at_primary_layer=shared,
        agree=_agree(name == name2, delta, shared) if first is not None and ran else None,
    )


def _at(values: Sequence[_Value | None], layer: int) -> _Value | None:
    """A layer's value; None where the list does not reach so far."""
    return values[layer] if 0 <= layer < len(values) else None


def _placed(milestones: Milestones, names: Sequence[str]) -> list[tuple[str, int]]:
    """The milestones of those names that have a layer."""
    layers = [(name, milestones[name].layer) for name in names if name in milestones]
    return [(name, layer) for name, layer in layers if layer is not None]


def _view(readout: PositionReadoutRecord, name: str) -> ViewRecord | None:
    return next((view for view in readout.views if view.view == name), None)


def _onset_gap(readout: PositionReadoutRecord | None) -> OnsetGap | None:
    if readout is None:
        return None
    logit, next_norm = _view(readout, "logit"), _view(readout, NEXT_NORM)
    if logit is None or next_norm is None:
        return None
    onsets = (
        next((layer for layer, rank in enumerate(view.answer_rank) if rank == 1), None) for view in (logit, next_norm)
    )
    return OnsetGap(*onsets)


def _why_not_tested(readout: PositionReadoutRecord | None, stack: Stack | None) -> str | None:
    if readout is None:
        return "nothing was looked at closely"
    if stack is None:
        return "it is not known how the blocks are built"
    if stack == "post_norm":
        return "the blocks of a post-norm stack norm what they have written, so there is no choice of norms"
    missing = [name for name in (POST_LN2, NEXT_NORM) if _view(readout, name) is None]
    return f"the residual was not looked at through {' and '.join(missing)}" if missing else None


def _decoding_target(readout: PositionReadoutRecord, name: str, layer: int) -> DecodingTarget:
    a, b = _view(readout, POST_LN2), _view(readout, NEXT_NORM)
    if a is None or b is None or layer == 0:
        return DecodingTarget(name, layer, "missing_block" if layer == 0 else "not_measured")
    read: dict[str, Any] = {
        f"{value}_{view}": _at(getattr(of, value), layer)
        for view, of in ((POST_LN2, a), (NEXT_NORM, b))
        for value in ("answer_rank", "top1_id", "p_answer", "p_top1")
    }
    tops = (read[f"top1_id_{POST_LN2}"], read[f"top1_id_{NEXT_NORM}"])
    alike = next((o for o in readout.overlaps if {o.view, o.against} == {POST_LN2, NEXT_NORM}), None)
    for value in ("jaccard_10", "jaccard_50", "spearman_top50_union"):
        read[value] = None if alike is None else _at(getattr(alike, value), layer)
    return DecodingTarget(name, layer, "not_measured" if None in tops else "ok", **read)


def _preferred_target(targets: Sequence[DecodingTarget], preferred: Milestone | None) -> DecodingTarget | None:
    """The preferred milestone by name, else by layer, else the first target that could be tested."""
    tested = [target for target in targets if target.status == "ok"]
    if preferred is not None:
        at_layer = [target for target in tested if target.layer == preferred.layer]
        tested = [target for target in at_layer if target.name == preferred.name] or at_layer or tested
    return tested[0] if tested else None


def _consistent(targets: Sequence[DecodingTarget], preferred: DecodingTarget | None) -> bool | None:
    if any(target.rank1_agree is False for target in targets if target.name != INFORMATIVE):
        return False
    if preferred is None or preferred.jaccard_10 is None:
        return None
    return preferred.jaccard_10 >= SAME_DECODING


def _lens_pair(overlap: OverlapRecord, targets: Sequence[tuple[str, int]]) -> LensPair:
    at_targets = tuple(AgreementAt(name, layer, _agreement(overlap, layer)) for name, layer in targets)
    distinct = {at.layer: at.agreement for at in at_targets}
    by_name = [at.agreement for at in at_targets]
    return LensPair(overlap.against, at_targets, _medians(list(distinct.values())), _medians(by_name))


def _agreement(overlap: OverlapRecord, layer: int) -> LensAgreement:
    columns = (overlap.jaccard_10, overlap.jaccard_50, overlap.spearman_top50_ref)
    return LensAgreement(*(_at(column, layer) for column in columns))


def _medians(agreements: Sequence[LensAgreement]) -> LensAgreement:
    columns = zip(*((a.jaccard_10, a.jaccard_50, a.spearman_top50_ref) for a in agreements), strict=True)
    medians = [median([value for value in column if value is not None]) for column in columns]
    return LensAgreement(*medians) if medians else LensAgreement(None, None, None)


def _gates_at(
    readout: PositionReadoutRecord, layer: int, d_vocab: int, thresholds: Thresholds
) -> tuple[list[bool | None], list[bool | None]]:
    """For every scale: whether the answer stands clear of uniform, and whether it leads clearly."""
    gap = _at(readout.answer_gap, layer)
    p_answer = [_at(scaled.p_answer, layer) for scaled in readout.scaled]
    margin = [None if p is None else p - 1 / d_vocab >= thresholds.semantic_margin for p in p_answer]
    lead = [None if gap is None else scaled.scale * gap >= thresholds.semantic_gap for scaled in readout.scaled]
    return margin, lead


def _both(a: Sequence[bool | None], b: Sequence[bool | None]) -> list[bool | None]:
    """Whether both hold, scale by scale."""
    return [None if left is None or right is None else left and right for left, right in zip(a, b, strict=True)]


def _frac(passes: Sequence[bool | None]) -> float | None:
    """Share that passes; None where any is unknown, or there is none."""
    known = [passed for passed in passes if passed is not None]
    return sum(known) / len(known) if known and len(known) == len(passes) else None


def _second_milestone(second: SecondForwardRecord, curve: Curve, thresholds: Thresholds) -> tuple[str, int] | None:
    """The preferred milestone of the second pass, as far as it can have one."""
    columns = ("answer_rank", "p_answer", "answer_logit_gap")
    rows = tuple(
        {"layer": layer, **{column: _at(getattr(second, column), layer) for column in columns}}
        for layer in range(len(second.answer_rank))
    )
    again = Curve(curve.prompt, curve.lens, curve.n_layers, curve.d_vocab, rows)
    gates = Gates(curve.d_vocab, thresholds)
    candidates = (
        (STRONG_RUN2, again.first_of_two(gates.strong)),
        (STRONG, again.first(gates.strong)),
        (ONSET, again.first(gates.rank_1)),
    )
    return next(((name, layer) for name, layer in candidates if layer is not None), None)


def _top_overlap(second: SecondForwardRecord | None, curve: Curve, layer: int | None) -> tuple[int, float | None]:
    """How many top ids of both passes were compared at a layer, and which share of them is shared."""
    ids = None if second is None or layer is None else _at(second.top_ids, layer)
    listed = curve.value("top_ids", layer)
    if not ids or not listed:
        return TOP_IDS, None
    k = min(TOP_IDS, len(ids), len(listed))
    return k, len({*ids[:k]} & {*listed[:k]}) / len({*ids[:k]} | {*listed[:k]})


def _agree(same_name: bool, delta: int | None, shared: float | None) -> bool | None:
    if delta is None or not same_name or abs(delta) > TOLERANCE_LAYERS:
        return False
    return None if shared is None else shared >= SAME_FORWARD
