"""Guidance: what a run's findings forbid or advise when its numbers are quoted, with the reason for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.analysis.consistency import LOW_AGREEMENT, SCALES_TO_PASS
from layerscope.analysis.tuned_audit import CALIBRATION_ONLY

Severity: TypeAlias = Literal["block", "advise"]
"""`block`: probabilities and entropies of lens rows must not be quoted; under protocol `standard` those of the layers
whose status is `withheld`. `advise`: quote with the sentence beside."""
Weight: TypeAlias = Literal["block", "advise", "detail"] | None
"""What a finding is under a protocol: a reason, a plain fact among the details, or nothing of its own."""
IDENTITY_FAILED = "identity_failed"
"""The one reason that files in the published format do not know."""
PUBLISHED_NOTES = "Family-level head calibration; treat probabilities comparatively only within model."
PUBLISHED_NOTES_APPEND = "Prism is diagnostic-only; treat probabilities comparatively within model."
NOTES = "Compare probabilities and entropies within this model alone; between models compare ranks and depth fractions."
NONDETERMINISTIC_NOTE = "Kernels were not held to be deterministic, so a second run may differ in the last digits."


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a run; None stands for what could not be determined."""

    identity_ok: bool | None = None
    """Whether the last layer, decoded by us, is the model's own output."""
    warn_high_last_layer_kl: bool | None = None
    """Whether the last layer under the headline lens, or what a temperature mends of it, is far from the output."""
    norm_only_layers: tuple[int, ...] | None = None
    """Layers of the window at which the headline lens has rank 1 and the raw lens has not."""
    sampled_risk: str | None = None
    """`low`, `medium` or `high`, of four sampled layers."""
    full_tier: str | None = None
    """The same of all layers; under protocol `standard` of all but the last."""
    raw_overlap: float | None = None
    """Shared share of the fifty most likely ids under the headline lens and the raw one: the median over all layers but
    the last, which is a matter of ranks alone."""
    repeatability_high: bool | None = None
    """Whether decoding the same residuals a second time changed ranks or top tokens too much."""
    forward_disagreement: bool | None = None
    """Whether a second forward pass moved the semantic layer or its top tokens."""
    alignment_rate: float | None = None
    """Share of prompts whose gold answer is resolved."""
    deterministic: bool | None = None
    """Whether only deterministic kernels were allowed."""
    n_spikes: int | None = None
    """Layers at which the norm jumps, counted by the protocol's own rule."""
    numeric_layers: tuple[int, ...] | None = None
    """Non-finite layers that a milestone may rest on, see `numeric_layers_before`."""
    copy_mask_present: bool | None = None
    copy_mask_error: str | None = None
    """Why there is no copy mask, where making it failed."""
    layer_map_present: bool | None = None
    """Whether it is recorded which norm was applied at which layer."""
    rank_only_near_uniform: bool | None = None
    """Whether the answer has rank 1 at L_semantic, but is hardly more probable there than any token."""
    decoding_point_consistent: bool | None = None
    low_lens_consistency: bool | None = None
    """Whether two lenses agree little on the top tokens at a semantic layer."""
    tuned_is_calibration_only: bool | None = None
    pos_window_low: bool | None = None
    """Whether the answer has rank 1 at fewer than half of the positions of the window; under protocol `standard`,
    whether it is among the top ten at fewer than half from the subject's end on."""
    pos_window_asked: bool = True
    """Whether that was asked at all."""
    min_both_gates_pass_frac: float | None = None
    """Least share of scales at which both semantic gates pass, over the semantic layers."""
    prefer_tuned: bool | None = None
    """Whether the tuned lens gains over the headline lens by more than a temperature."""
    tuned_accepted: bool | None = None
    """Whether the tuned lens may stand for the headline lens."""
    reflex_layers: tuple[int, ...] | None = None
    """Layers 1 to 3 that copy strictly; looked at under protocol `standard` alone."""
    audit_hint: str | None = None
    """The tuned lens' own audit: `tuned`, `tuned_for_calibration_only` or the headline lens; None without one."""
    confirmed: bool | None = None
    """Whether another lens confirms L_semantic."""


@dataclass(frozen=True)
class Reason:
    """One caution that holds."""

    name: str
    severity: Severity
    text: str
    """What was found and what follows, in one sentence."""


@dataclass(frozen=True)
class Detail:
    """A plain fact about the run, from which no caution follows."""

    name: str
    text: str
    """In one sentence."""


@dataclass(frozen=True)
class Guidance:
    """How the run's numbers may be quoted."""

    reasons: tuple[Reason, ...]
    undetermined: tuple[str, ...]
    """Names of cautions that could be neither raised nor ruled out, in the order of the reasons."""
    prefer_ranks: bool
    """Whether to quote ranks rather than probabilities: there is any reason; under protocol `standard`, one blocks."""
    suppress_abs_probs: bool
    """Whether to quote no probabilities and entropies of any layer: the identity check failed, or under protocol
    `published`, there is any reason. Else the status of a layer says what may be quoted of it."""
    preferred_lens: str
    """`tuned`, or the headline lens."""
    preferred_semantics_lens_hint: str | None
    """The tuned lens' audit hint; None without an audit."""
    use_confirmed: bool | None
    """Whether to quote the confirmed semantic layer; None where confirmation could not be sought."""
    notes: str
    notes_append: str | None
    details: tuple[Detail, ...] = ()
    """Plain facts that hold of many good runs and many bad ones."""


@dataclass(frozen=True)
class _Rule:
    """When a caution holds, and what is said then."""

    name: str
    published: Weight
    """Its weight under protocol `published`."""
    standard: Weight
    holds: Callable[[Evidence], bool | None]
    text: str
    """For `str.format`: `e` is the evidence, `norm_only`, `numeric` and `reflex` are its layers in words."""
    standard_text: str | None = None
    """What is said under protocol `standard`, where that is another thing."""

    def weight(self, protocol: str) -> Weight:
        """Under a protocol."""
        return self.published if protocol == "published" else self.standard


def numeric_layers_before(flagged: Sequence[int], milestones: Sequence[int | None]) -> tuple[int, ...]:
    """Non-finite layers at or below any of the milestones; all of them where no milestone has a layer."""
    deepest = max((layer for layer in milestones if layer is not None), default=None)
    return tuple(sorted({layer for layer in flagged if deepest is None or layer <= deepest}))


def guidance(evidence: Evidence, protocol: str, headline: str) -> Guidance:
    """What the evidence forbids or advises; what could not be determined gives no reason, but stands in `undetermined`.

    Args:
        headline: the lens that is preferred unless the tuned one is.
    """
    found = [(rule, rule.weight(protocol), rule.holds(evidence)) for rule in _RULES]
    reasons, details = [], []
    for rule, weight, holds in found:
        if holds and weight == "detail":
            details.append(Detail(rule.name, _text(rule, evidence, protocol)))
        elif holds and (weight == "block" or weight == "advise"):
            reasons.append(Reason(rule.name, weight, _text(rule, evidence, protocol)))
    published = protocol == "published"
    blocked = any(reason.severity == "block" for reason in reasons)
    accepted = published or evidence.tuned_accepted is True
    tuned = bool(evidence.prefer_tuned) and evidence.audit_hint != CALIBRATION_ONLY and accepted
    notes = [PUBLISHED_NOTES_APPEND] if published else []
    notes += [NONDETERMINISTIC_NOTE] if evidence.deterministic is False else []
    return Guidance(
        reasons=tuple(reasons),
        undetermined=tuple(r.name for r, weight, holds in found if holds is None and weight in ("block", "advise")),
        prefer_ranks=bool(reasons) if published else blocked,
        suppress_abs_probs=bool(reasons) if published else evidence.identity_ok is False,
        preferred_lens="tuned" if tuned else headline,
        preferred_semantics_lens_hint=evidence.audit_hint,
        use_confirmed=evidence.confirmed,
        notes=PUBLISHED_NOTES if published else NOTES,
        notes_append=" ".join(notes) or None,
        details=tuple(details),
    )


def negated(known: bool | None) -> bool | None:
    """The contrary of what is known; None of what is not."""
    return None if known is None else not known


def _any(layers: tuple[int, ...] | None) -> bool | None:
    return None if layers is None else bool(layers)


def _is_high(level: str | None) -> bool | None:
    return None if level is None else level == "high"


def _below(value: float | None, bound: float) -> bool | None:
    return None if value is None else value < bound


def _text(rule: _Rule, evidence: Evidence, protocol: str) -> str:
    layers = (evidence.norm_only_layers, evidence.numeric_layers, evidence.reflex_layers)
    norm_only, numeric, reflex = map(_listed, layers)
    text = rule.text if protocol == "published" or rule.standard_text is None else rule.standard_text
    return text.format(e=evidence, norm_only=norm_only, numeric=numeric, reflex=reflex)


def _listed(layers: tuple[int, ...] | None) -> str:
    return ("layer " if len(layers or ()) == 1 else "layers ") + ", ".join(map(str, layers or ()))


_RULES = (
    _Rule(
        IDENTITY_FAILED,
        "block",
        "block",
        lambda e: negated(e.identity_ok),
        "The last layer, decoded by us, is not the model's own output, so no probability, entropy or divergence of any "
        "lens can be trusted, and ranks only where a missing scale or softcap explains it.",
    ),
    _Rule(
        "warn_high_last_layer_kl",
        "block",
        "advise",
        lambda e: e.warn_high_last_layer_kl,
        "At the last layer the lens is far from the model's own output, so final probabilities and entropies are to be "
        "quoted from the model's head and not from lens rows.",
    ),
    _Rule(
        "norm_only_semantics_window",
        "block",
        "advise",
        lambda e: _any(e.norm_only_layers),
        "At {norm_only} the answer leads under the headline lens and not without its norm, so its lead there rests on "
        "the norm (which is the model's own at the last layer, and nowhere else).",
    ),
    _Rule(
        "high_lens_artifact_risk",
        "block",
        "detail",
        lambda e: _is_high(e.sampled_risk),
        "At one or more of four sampled layers the headline lens and the raw lens are a bit or more apart, or the "
        "answer leads under the first alone, so probabilities may be the lens' own making.",
        "At one or more of four sampled layers the headline lens and the raw lens are a bit or more apart, or the "
        "answer leads under the first alone.",
    ),
    _Rule(
        "high_lens_artifact_score",
        "block",
        None,
        lambda e: _is_high(e.full_tier),
        "Over all layers the headline lens and the raw lens disagree by a high score, so probabilities may be the "
        "lens' own making.",
    ),
    _Rule(
        "lens_artifact_tier_high",
        None,
        "detail",
        lambda e: _is_high(e.full_tier),
        "Over all layers but the last the headline lens and the raw lens disagree by a high score.",
    ),
    _Rule(
        "raw_overlap_low",
        None,
        "detail",
        lambda e: _below(e.raw_overlap, LOW_AGREEMENT),
        "In the median over all layers but the last, the headline lens and the raw one share only {e.raw_overlap:.0%} "
        "of their fifty most likely tokens.",
    ),
    _Rule(
        "repeatability_variance_high",
        "block",
        "block",
        lambda e: e.repeatability_high,
        "Decoding the same residuals twice changed top tokens or ranks, so single layers may shift by chance.",
    ),
    _Rule(
        "repeatability_forward_disagreement",
        "block",
        "block",
        lambda e: e.forward_disagreement,
        "A second forward pass moved the semantic layer or its top tokens, so this layer is not repeatable.",
        "A second forward pass moved the answer's layer or its top tokens, so this layer is not repeatable.",
    ),
    _Rule(
        "gold_alignment_partial",
        "advise",
        "advise",
        lambda e: _below(e.alignment_rate, 1.0),
        "Of the prompts only a share of {e.alignment_rate:g} has an answer that could be told in the model's tokens, "
        "so ranks are missing for the others.",
    ),
    _Rule(
        "nondeterministic_env",
        "advise",
        "advise",
        lambda e: negated(e.deterministic),
        NONDETERMINISTIC_NOTE,
    ),
    _Rule(
        "normalization_spike",
        "advise",
        "detail",
        lambda e: None if e.n_spikes is None else e.n_spikes > 0,
        "The norm changes the residual abruptly (number of layers: {e.n_spikes}), so steps of probabilities between "
        "neighbouring layers may come from the norm.",
        "Number of layers at which the norm changes the residual abruptly: {e.n_spikes}.",
    ),
    _Rule(
        "early_reflex",
        None,
        "detail",
        lambda e: _any(e.reflex_layers),
        "The prompt's own words are copied strictly at {reflex}.",
    ),
    _Rule(
        "numeric_health_caution",
        "block",
        "block",
        lambda e: _any(e.numeric_layers),
        "Numbers were not finite at {numeric}, so a milestone may be missing or too deep for want of a value there.",
    ),
    _Rule(
        "copy_mask_missing",
        "advise",
        "advise",
        lambda e: False if e.copy_mask_error is not None else negated(e.copy_mask_present),
        "No list of blank and punctuation tokens is recorded, so copy layers may rest on such tokens.",
    ),
    _Rule(
        "copy_mask_error",
        "advise",
        "advise",
        lambda e: True if e.copy_mask_error is not None else None if e.copy_mask_present is None else False,
        "The list of blank and punctuation tokens could not be made ({e.copy_mask_error}), so copy layers may rest on "
        "such tokens.",
    ),
    _Rule(
        "layer_map_missing",
        "advise",
        "advise",
        lambda e: negated(e.layer_map_present),
        "It is not recorded which norm was applied at which layer, so the lens cannot be checked afterwards.",
    ),
    _Rule(
        "rank_only_near_uniform",
        "advise",
        "advise",
        lambda e: e.rank_only_near_uniform,
        "Where the answer first leads it is hardly more probable than under a uniform distribution, so that layer is a "
        "matter of rank alone.",
    ),
    _Rule(
        "decoding_point_sensitive",
        "advise",
        "advise",
        lambda e: negated(e.decoding_point_consistent),
        "The norm of the block that wrote last reads other tokens than that of the next, so the semantic layer depends "
        "on which norm is chosen.",
        "The norm of the block that wrote last reads other tokens than that of the next, so the layer at which the "
        "answer is on top depends on which norm is chosen.",
    ),
    _Rule(
        "low_lens_consistency_at_semantic",
        "advise",
        "advise",
        lambda e: e.low_lens_consistency,
        "At a semantic layer two lenses share few top tokens, so what surrounds the answer depends on the lens.",
        "At a layer that is named for the answer two lenses share few top tokens, so what surrounds it depends on the "
        "lens.",
    ),
    _Rule(
        "tuned_is_calibration_only",
        "advise",
        "advise",
        lambda e: e.tuned_is_calibration_only,
        "What the tuned lens gains is mostly a temperature, so it tells little about layers that the headline lens "
        "does not.",
    ),
    _Rule(
        "pos_window_low_stability",
        "advise",
        "advise",
        lambda e: e.pos_window_low if e.pos_window_asked else False,
        "At the semantic layer the answer leads at fewer than half of the positions looked at, so the layer is one of "
        "the prompt's last position and not of the prompt.",
        "At the layer from which the answer is on top for good it is among the top ten at fewer than half of the "
        "positions from the subject's end on, so that layer is one of the prompt's last position alone.",
    ),
    _Rule(
        "scale_sensitive_semantic_gate",
        "advise",
        "advise",
        lambda e: _below(e.min_both_gates_pass_frac, SCALES_TO_PASS),
        "With logits scaled by 5 or 10 per cent the semantic gates pass at a share of only "
        "{e.min_both_gates_pass_frac:g} of the scales, so the semantic layer hangs on small differences.",
        "With logits scaled by 5 or 10 per cent the answer is clearly ahead at a share of "
        "{e.min_both_gates_pass_frac:g} of the scales, so that whether it is hangs on small differences.",
    ),
)
"""In the order in which reasons are given: the published one, after the identity check."""


def reason_names(protocol: str) -> tuple[str, ...]:
    """Every reason that can be given under a protocol, in the order in which they are."""
    return tuple(rule.name for rule in _RULES if rule.weight(protocol) in ("block", "advise"))


REASON_NAMES = reason_names("standard")
"""Every reason that protocol `standard` knows."""
