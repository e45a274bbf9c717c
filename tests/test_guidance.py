"""Guidance: the published reasons from matching evidence, their order and weight, and what stays undetermined."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.guidance import (
    NOTES,
    PUBLISHED_NOTES,
    PUBLISHED_NOTES_APPEND,
    REASON_NAMES,
    Evidence,
    Guidance,
    guidance,
    numeric_layers_before,
    reason_names,
)
from layerscope.published.write.json_summary import published_guidance

PUBLISHED_ORDER = [
    "warn_high_last_layer_kl", "norm_only_semantics_window", "high_lens_artifact_risk", "high_lens_artifact_score",
    "repeatability_variance_high", "repeatability_forward_disagreement", "gold_alignment_partial",
    "nondeterministic_env", "normalization_spike", "numeric_health_caution", "copy_mask_missing", "copy_mask_error",
    "layer_map_missing", "rank_only_near_uniform", "decoding_point_sensitive", "low_lens_consistency_at_semantic",
    "tuned_is_calibration_only", "pos_window_low_stability", "scale_sensitive_semantic_gate",
]  # fmt: skip
PUBLISHED_BLOCKING = {
    "identity_failed", "warn_high_last_layer_kl", "norm_only_semantics_window", "high_lens_artifact_risk",
    "high_lens_artifact_score", "repeatability_variance_high", "repeatability_forward_disagreement",
    "numeric_health_caution",
}  # fmt: skip
STANDARD_ORDER = [
    "identity_failed", "warn_high_last_layer_kl", "norm_only_semantics_window", "repeatability_variance_high",
    "repeatability_forward_disagreement", "gold_alignment_partial", "nondeterministic_env", "numeric_health_caution",
    "copy_mask_missing", "copy_mask_error", "layer_map_missing", "rank_only_near_uniform", "decoding_point_sensitive",
    "low_lens_consistency_at_semantic", "tuned_is_calibration_only", "pos_window_low_stability",
    "scale_sensitive_semantic_gate",
]  # fmt: skip
STANDARD_BLOCKING = {
    "identity_failed", "repeatability_variance_high", "repeatability_forward_disagreement", "numeric_health_caution",
}  # fmt: skip
DETAILS = [
    "high_lens_artifact_risk", "lens_artifact_tier_high", "raw_overlap_low", "normalization_spike", "early_reflex",
]  # fmt: skip
ORDER = {"standard": STANDARD_ORDER, "published": ["identity_failed", *PUBLISHED_ORDER]}
BLOCKING = {"standard": STANDARD_BLOCKING, "published": PUBLISHED_BLOCKING}
BOTH = pytest.mark.parametrize("protocol", ["standard", "published"])
CLEAN = Evidence(
    identity_ok=True,
    warn_high_last_layer_kl=False,
    norm_only_layers=(),
    sampled_risk="low",
    full_tier="medium",
    raw_overlap=0.5,
    repeatability_high=False,
    forward_disagreement=False,
    alignment_rate=1.0,
    deterministic=True,
    n_spikes=0,
    numeric_layers=(),
    copy_mask_present=True,
    layer_map_present=True,
    rank_only_near_uniform=False,
    decoding_point_consistent=True,
    low_lens_consistency=False,
    tuned_is_calibration_only=False,
    pos_window_low=False,
    min_both_gates_pass_frac=0.75,
    prefer_tuned=False,
    tuned_accepted=True,
    reflex_layers=(),
    confirmed=True,
)
WORST = Evidence(
    identity_ok=False,
    warn_high_last_layer_kl=True,
    norm_only_layers=(25, 26),
    sampled_risk="high",
    full_tier="high",
    raw_overlap=0.25,
    repeatability_high=True,
    forward_disagreement=True,
    alignment_rate=0.9,
    deterministic=False,
    n_spikes=3,
    numeric_layers=(4,),
    copy_mask_present=False,
    layer_map_present=False,
    rank_only_near_uniform=True,
    decoding_point_consistent=False,
    low_lens_consistency=True,
    tuned_is_calibration_only=True,
    pos_window_low=True,
    min_both_gates_pass_frac=0.5,
    prefer_tuned=True,
    tuned_accepted=False,
    reflex_layers=(1, 2),
    audit_hint="tuned_for_calibration_only",
    confirmed=False,
)
ANY_FLAG = st.none() | st.booleans()
ANY_LAYERS = st.none() | st.lists(st.integers(0, 80), max_size=3).map(tuple)
ANY_SHARE = st.none() | st.floats(0, 1)
ANY_LEVEL = st.none() | st.sampled_from(["low", "medium", "high"])
ANY_VALUES = st.fixed_dictionaries(
    {f.name: ANY_FLAG for f in fields(Evidence)}
    | {
        "norm_only_layers": ANY_LAYERS,
        "numeric_layers": ANY_LAYERS,
        "reflex_layers": ANY_LAYERS,
        "raw_overlap": ANY_SHARE,
        "pos_window_asked": st.booleans(),
        "sampled_risk": ANY_LEVEL,
        "full_tier": ANY_LEVEL,
        "alignment_rate": ANY_SHARE,
        "min_both_gates_pass_frac": ANY_SHARE,
        "n_spikes": st.none() | st.integers(0, 9),
        "copy_mask_error": st.none() | st.text(),
        "audit_hint": st.none() | st.sampled_from(["tuned", "logit", "tuned_for_calibration_only"]),
    },
)


def _names(found: Guidance) -> list[str]:
    return [reason.name for reason in found.reasons]


W, R, S, K = (
    "norm_only_semantics_window",
    "high_lens_artifact_risk",
    "high_lens_artifact_score",
    "warn_high_last_layer_kl",
)


@pytest.mark.parametrize(
    ("evidence", "reasons"),
    [  # of ten models: window's norm-only layers, sampled risk, tier, last-layer warning
        (((32,), "high", "high", False), [W, R, S]),
        (((25, 26), "high", "medium", False), [W, R]),
        (((), "high", "high", False), [R, S]),
        (((42,), "high", "high", True), [K, W, R, S]),
        (((79, 80), "low", "medium", False), [W]),
        (((), "low", "low", False), []),
    ],
)
def test_the_published_reasons_of_ten_models_follow_from_their_evidence(evidence, reasons):
    norm_only, risk, tier, warn = evidence
    found = guidance(
        replace(
            CLEAN,
            norm_only_layers=norm_only,
            sampled_risk=risk,
            full_tier=tier,
            warn_high_last_layer_kl=warn,
            n_spikes=1,
        ),
        "published",
        "next_norm",
    )
    assert _names(found) == [*reasons, "normalization_spike"]
    assert (found.prefer_ranks, found.suppress_abs_probs) == (True, True)


@BOTH
def test_all_reasons_stand_in_the_published_order_after_the_identity_check(protocol):
    found = guidance(WORST, protocol, "logit")
    assert _names(found) == [name for name in ORDER[protocol] if name != "copy_mask_error"]
    failed = guidance(replace(WORST, copy_mask_error="no tokenizer"), protocol, "logit")
    assert _names(failed) == [name for name in ORDER[protocol] if name != "copy_mask_missing"]
    assert any("(no tokenizer)" in reason.text for reason in failed.reasons)


@BOTH
def test_reasons_can_be_listed_before_there_is_a_run(protocol):
    assert list(reason_names(protocol)) == ORDER[protocol]
    assert list(REASON_NAMES) == STANDARD_ORDER


@BOTH
def test_under_standard_only_what_withholds_a_layer_blocks_and_under_published_seven_reasons_more(protocol):
    found = guidance(WORST, protocol, "logit")
    assert {reason.name for reason in found.reasons if reason.severity == "block"} == BLOCKING[protocol]


def test_what_holds_of_good_and_bad_runs_alike_is_a_plain_fact_under_standard_and_a_reason_under_published():
    found = guidance(WORST, "standard", "logit")
    assert [detail.name for detail in found.details] == DETAILS
    texts = {detail.name: detail.text for detail in found.details}
    assert texts["normalization_spike"].endswith(": 3.") and texts["early_reflex"].endswith(" layers 1, 2.")
    assert not set(DETAILS) & {*_names(found), *found.undetermined}
    assert guidance(WORST, "published", "logit").details == ()


@BOTH
def test_without_findings_nothing_is_said_and_nothing_is_open(protocol):
    found = guidance(CLEAN, protocol, "logit")
    assert (found.reasons, found.undetermined, found.details) == ((), (), ())
    assert (found.prefer_ranks, found.suppress_abs_probs) == (False, False)
    assert (found.preferred_lens, found.use_confirmed, found.preferred_semantics_lens_hint) == ("logit", True, None)


@BOTH
def test_what_nobody_looked_for_gives_no_reason_but_is_named(protocol):
    found = guidance(Evidence(), protocol, "logit")
    assert found.reasons == ()
    assert list(found.undetermined) == ORDER[protocol]
    assert found.use_confirmed is None


def test_positions_that_were_not_asked_for_leave_nothing_open():
    assert (
        "pos_window_low_stability" not in guidance(Evidence(pos_window_asked=False), "standard", "logit").undetermined
    )


@given(ANY_VALUES, st.sampled_from(["standard", "published"]))
def test_every_caution_is_raised_ruled_out_or_open_and_the_booleans_follow(values, protocol):
    found = guidance(Evidence(**values), protocol, "logit")
    names, order = _names(found), ORDER[protocol]
    assert names == [name for name in order if name in names]
    assert list(found.undetermined) == [name for name in order if name in found.undetermined]
    assert not set(names) & set(found.undetermined)
    if protocol == "published":
        assert (found.prefer_ranks, found.suppress_abs_probs) == (bool(names), bool(names))
    else:
        assert found.prefer_ranks == bool(set(names) & STANDARD_BLOCKING)
        assert found.suppress_abs_probs == (values["identity_ok"] is False)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("identity_ok", "identity_failed"),
        ("warn_high_last_layer_kl", "warn_high_last_layer_kl"),
        ("norm_only_layers", "norm_only_semantics_window"),
        ("sampled_risk", "high_lens_artifact_risk"),
        ("full_tier", "high_lens_artifact_score"),
        ("raw_overlap", "raw_overlap_low"),
        ("repeatability_high", "repeatability_variance_high"),
        ("forward_disagreement", "repeatability_forward_disagreement"),
        ("alignment_rate", "gold_alignment_partial"),
        ("deterministic", "nondeterministic_env"),
        ("n_spikes", "normalization_spike"),
        ("numeric_layers", "numeric_health_caution"),
        ("copy_mask_present", "copy_mask_missing"),
        ("layer_map_present", "layer_map_missing"),
        ("rank_only_near_uniform", "rank_only_near_uniform"),
        ("decoding_point_consistent", "decoding_point_sensitive"),
        ("low_lens_consistency", "low_lens_consistency_at_semantic"),
        ("tuned_is_calibration_only", "tuned_is_calibration_only"),
        ("pos_window_low", "pos_window_low_stability"),
        ("min_both_gates_pass_frac", "scale_sensitive_semantic_gate"),
    ],
)
@BOTH
def test_each_finding_alone_raises_its_own_reason_and_its_absence_leaves_that_one_open(field, name, protocol):
    alone = guidance(replace(CLEAN, **{field: getattr(WORST, field)}), protocol, "logit")
    renamed = {"high_lens_artifact_score": "lens_artifact_tier_high"} if protocol == "standard" else {}
    name = renamed.get(name, name)
    if name not in ORDER[protocol]:
        assert (_names(alone), [detail.name for detail in alone.details]) == ([], [name] * (protocol == "standard"))
        return
    assert _names(alone) == [name]
    unknown = guidance(replace(CLEAN, **{field: None}), protocol, "logit")
    assert _names(unknown) == []
    assert name in unknown.undetermined
    assert set(unknown.undetermined) <= {name, "copy_mask_error"}


@BOTH
def test_a_reason_is_one_plain_sentence_that_says_what_was_found(protocol):
    found = guidance(WORST, protocol, "logit")
    texts = {said.name: said.text for said in (*found.reasons, *found.details)}
    for text in texts.values():
        assert text[0].isupper() and text.endswith(".") and ". " not in text
        assert not set("{}_`") & set(text)
    assert "layers 25, 26 " in texts["norm_only_semantics_window"]
    assert "layer 4," in texts["numeric_health_caution"]
    assert "0.9 " in texts["gold_alignment_partial"]
    assert "0.5 " in texts["scale_sensitive_semantic_gate"]
    assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize(
    ("prefer_tuned", "hint", "lens"),
    [
        (True, None, "tuned"),
        (True, "tuned", "tuned"),
        (True, "logit", "tuned"),
        (True, "tuned_for_calibration_only", "logit"),
        (False, "tuned", "logit"),
        (None, None, "logit"),
    ],
)
def test_the_tuned_lens_is_preferred_unless_it_is_a_mere_temperature(prefer_tuned, hint, lens):
    found = guidance(replace(CLEAN, prefer_tuned=prefer_tuned, audit_hint=hint), "standard", "logit")
    assert (found.preferred_lens, found.preferred_semantics_lens_hint) == (lens, hint)


@pytest.mark.parametrize("accepted", [False, None])
def test_under_standard_the_tuned_lens_is_preferred_only_where_it_is_accepted(accepted):
    evidence = replace(CLEAN, prefer_tuned=True, tuned_accepted=accepted)
    assert guidance(evidence, "standard", "logit").preferred_lens == "logit"
    assert guidance(evidence, "published", "logit").preferred_lens == "tuned"


def test_the_published_block_has_the_published_keys_and_sentences():
    found = guidance(replace(CLEAN, sampled_risk="high", n_spikes=1), "published", "next_norm")
    assert published_guidance(found) == {  # as published for a small model
        "prefer_ranks": True,
        "suppress_abs_probs": True,
        "reasons": ["high_lens_artifact_risk", "normalization_spike"],
        "notes": "Family-level head calibration; treat probabilities comparatively only within model.",
        "preferred_lens_for_reporting": "norm",
        "use_confirmed_semantics": True,
        "notes_append": "Prism is diagnostic-only; treat probabilities comparatively within model.",
    }


def test_the_published_block_names_neither_the_identity_check_nor_a_hint_that_nobody_gave():
    block = published_guidance(guidance(WORST, "published", "next_norm"))
    assert "identity_failed" not in block["reasons"]
    assert block["preferred_semantics_lens_hint"] == "tuned_for_calibration_only"
    alone = published_guidance(guidance(replace(CLEAN, identity_ok=False), "published", "next_norm"))
    assert (alone["reasons"], alone["suppress_abs_probs"]) == ([], True)


@pytest.mark.parametrize(
    ("hint", "said"),
    [("tuned", "tuned"), ("tuned_for_calibration_only", "tuned_for_calibration_only"), ("next_norm", "norm")],
)
def test_the_published_block_calls_the_headline_lens_norm_in_a_hint_too(hint, said):
    block = published_guidance(guidance(replace(CLEAN, audit_hint=hint), "published", "next_norm"))
    assert block["preferred_semantics_lens_hint"] == said
    assert "preferred_semantics_lens_hint" not in published_guidance(guidance(CLEAN, "published", "next_norm"))


def test_each_protocol_has_its_notes_and_both_say_when_kernels_were_not_deterministic():
    standard, published = (guidance(CLEAN, name, "logit") for name in ("standard", "published"))
    assert (standard.notes, standard.notes_append) == (NOTES, None)
    assert (published.notes, published.notes_append) == (PUBLISHED_NOTES, PUBLISHED_NOTES_APPEND)
    for name in ("standard", "published"):
        loose = guidance(replace(CLEAN, deterministic=False), name, "logit")
        assert "deterministic" in (loose.notes_append or "")


@pytest.mark.parametrize(
    ("flagged", "milestones", "found"),
    [
        ([3, 30], [None, 25], (3,)),
        ([25], [None, 25], (25,)),
        ([10, 20], [15, 5], (10,)),
        ([30, 3, 30], [None, None], (3, 30)),
        ([30], [0, 25], ()),
        ([], [None, None], ()),
    ],
)
def test_a_non_finite_layer_matters_up_to_the_deeper_milestone_and_everywhere_without_one(flagged, milestones, found):
    assert numeric_layers_before(flagged, milestones) == found
