"""The raw lens held against the headline lens, on curves made by hand.

Tolerances. Float64 arithmetic on a few numbers, and published scores to their four decimals.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.curve import Curve
from layerscope.analysis.milestones import Milestone, find_milestones
from layerscope.analysis.raw_comparison import (
    ArtefactScores,
    artefact_scores,
    copy_thresholds,
    full_check,
    norm_only,
    sample_check,
    stability,
    window_centres,
    window_check,
)
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds
from layerscope.record.rows import COLUMNS

BLANK = {column.name: None for column in COLUMNS}
ASKED = PromptKey(0, "pos", "orig")
T = Thresholds()
STRICT = ("copy_strict@0.7", "copy_strict@0.8", "copy_strict@0.9", "copy_strict@0.95")


def curve(lens, n_layers, **columns):
    """A curve of layers 0 to n_layers with these columns; `{layer: value}` leaves the others blank."""
    rows = []
    for layer in range(n_layers + 1):
        row = BLANK | {"row": layer, "layer": layer}
        for name, values in columns.items():
            row[name] = values.get(layer) if isinstance(values, dict) else values[layer]
        if row["is_answer"] is None and row["answer_rank"] is not None:
            row["is_answer"] = row["answer_rank"] == 1
        rows.append(row)
    return Curve(ASKED, lens, n_layers, 100, tuple(rows))


def rank_1_at(n_layers, *layers):
    return [1 if layer in layers else 4 for layer in range(n_layers + 1)]


# One layer


@pytest.mark.parametrize(
    ("headline", "raw", "only"),
    [(1, 2, True), (1, 1, False), (2, 1, False), (2, None, False), (1, None, None), (None, 1, None)],
)
def test_norm_only_is_rank_1_here_and_not_there(headline, raw, only):
    assert norm_only(BLANK | {"answer_rank": headline}, BLANK | {"answer_rank": raw}) is only


def test_norm_only_is_open_where_the_raw_lens_was_not_read():
    assert norm_only(BLANK | {"answer_rank": 1}, None) is None


# Sample


@pytest.mark.parametrize(
    ("n_layers", "layers"),
    [
        (36, [0, 10, 19, 28]), (42, [0, 11, 22, 32]), (8, [0, 3, 5, 7]),
        (1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (4, [0, 2, 3, 4]),
    ],
)  # fmt: skip
def test_four_layers_are_sampled_and_none_twice(n_layers, layers):
    found = sample_check(curve("logit", n_layers), curve("raw", n_layers))
    assert [sample.layer for sample in found.samples] == layers


@pytest.mark.parametrize(
    ("bits", "raw_ranks", "risk", "first"),
    [
        ([0.1, 0.2, 0.4, 0.3], (1, 1), "low", None),
        ([0.1, 0.5, 0.4, 0.3], (1, 1), "medium", None),
        ([0.1, 0.2, 0.4, 1.0], (1, 1), "high", None),
        ([0.1, 0.2, 0.4, 0.3], (1, 9), "high", 7),
        ([0.1, 0.2, 0.4, 0.3], (9, 9), "high", 5),
        ([None, None, None, None], (9, 1), "high", 5),
        ([None, None, None, None], (1, 1), None, None),
    ],
)
def test_the_sampled_risk_is_of_the_divergence_or_of_an_answer_that_only_the_norm_shows(bits, raw_ranks, risk, first):
    headline = curve(
        "logit", 8, kl_norm_vs_raw_bits=dict(zip((0, 3, 5, 7), bits, strict=True)), answer_rank={3: 2, 5: 1, 7: 1}
    )
    raw = curve("raw", 8, answer_rank={3: 1, 5: raw_ranks[0], 7: raw_ranks[1]})
    found = sample_check(headline, raw)
    assert (found.lens_artifact_risk, found.first_norm_only_semantic_layer) == (risk, first)
    assert found.max_kl_norm_vs_raw_bits == (None if bits[0] is None else max(bits))


def test_layers_that_are_not_sampled_do_not_count():
    headline = curve("logit", 8, kl_norm_vs_raw_bits=[0.1, 9.0, 9.0, 0.1, 9.0, 0.1, 9.0, 0.1, 9.0], answer_rank=[1] * 9)
    raw = curve("raw", 8, answer_rank=[1, 9, 9, 1, 9, 1, 9, 1, 9])
    assert sample_check(headline, raw).lens_artifact_risk == "low"


def test_a_sample_shows_both_lenses():
    headline = curve("logit", 8, top1_id={0: 7, 3: 7}, p_top1={0: 0.5}, p_answer={0: 0.2}, answer_rank={0: 2})
    raw = curve("raw", 8, top1_id={0: 8}, p_top1={0: 0.75}, p_answer={0: 0.75}, answer_rank={0: 1}, is_answer={3: True})
    first, second = sample_check(headline, raw).samples[:2]
    assert (first.top1_agree, first.p_top1, first.p_top1_raw) == (False, 0.5, 0.75)
    assert (first.p_answer, first.p_answer_raw) == (0.2, 0.75)
    assert (first.answer_rank, first.answer_rank_raw, first.is_answer, first.is_answer_raw) == (2, 1, False, True)
    assert (second.top1_agree, second.is_answer, second.is_answer_raw) == (None, None, True)


def test_without_a_raw_lens_there_are_no_samples_and_no_risk():
    found = sample_check(curve("logit", 8, kl_norm_vs_raw_bits=[9.0] * 9), None)
    assert found.samples == ()
    assert (found.lens_artifact_risk, found.max_kl_norm_vs_raw_bits) == (None, None)


# Window


def milestones(**layers):
    """Milestones by name; `at` stands for `@` and a point."""
    names = {name.replace("_at_0", "@0.").replace("below_1_0", "below_1.0"): layer for name, layer in layers.items()}
    return {name: Milestone(name, "logit", ASKED, layer, None, layer) for name, layer in names.items()}


def test_the_centres_are_the_distinct_layers_of_the_milestones_that_have_one():
    found = milestones(
        L_semantic=30, first_rank_le_5=28, first_kl_below_1_0=36, L_copy=None, L_copy_soft_k1=5, L_copy_soft_k2=4,
        L_copy_soft_k3=None, L_copy_strict_at_07=2, L_copy_strict_at_095=30,
        # none of these is one
        L_copy_soft_k2_stable=9, L_copy_strict_at_07_stable=10, L_semantic_stable=31, first_rank_le_10=20, L_copy_H=1,
    )  # fmt: skip
    assert window_centres(found) == (2, 4, 28, 30, 36)


def test_without_milestones_there_is_no_centre():
    assert window_centres({}) == ()
    assert window_centres(find_milestones(curve("logit", 8), T)) == ()


def test_the_centres_are_those_of_a_curves_own_milestones():
    own = curve(
        "logit", 8, answer_rank=[9, 9, 5, 4, 3, 1, 1, 1, 1], kl_to_final_bits=[9.0] * 6 + [2.0, 1.0, 0.0],
        **{"copy_strict@0.7": [False, True] + [False] * 7, "copy_soft_k2@0.5": [False, True, True] + [False] * 6,
           "copy_soft_k3@0.5": [True] + [False] * 8},
    )  # fmt: skip
    assert window_centres(find_milestones(own, T)) == (0, 1, 2, 5, 7)


def test_the_window_is_four_layers_wide_and_eight_where_the_sample_warns():
    n = 40
    headline = curve("logit", n, kl_norm_vs_raw_bits=[float(layer) for layer in range(n + 1)])
    raw = curve("raw", n)
    calm = sample_check(curve("logit", n, kl_norm_vs_raw_bits=[0.9] * (n + 1)), raw)
    warned = sample_check(curve("logit", n, kl_norm_vs_raw_bits=[1.0] * (n + 1)), raw)
    assert (calm.lens_artifact_risk, warned.lens_artifact_risk) == ("medium", "high")
    for sample, radius in ((None, 4), (calm, 4), (warned, 8)):
        found = window_check(headline, raw, (2, 20), sample)
        expected = [layer for layer in range(n + 1) if abs(layer - 2) <= radius or abs(layer - 20) <= radius]
        assert (found.radius, list(found.layers), found.center_layers) == (radius, expected, (2, 20))
        assert found.layers_checked == found.layers
        assert found.max_kl_norm_vs_raw_bits_window == 20.0 + radius


def test_the_window_lists_norm_only_layers_inside_it_alone():
    headline = curve("logit", 20, answer_rank=rank_1_at(20, 3, 9, 10, 20))
    raw = curve("raw", 20, answer_rank=rank_1_at(20, 10))
    found = window_check(headline, raw, (12,))
    assert found.layers == tuple(range(8, 17))
    assert found.norm_only_semantics_layers == (9,)


def test_layers_that_could_not_be_compared_are_not_called_checked():
    headline = curve("logit", 8, kl_norm_vs_raw_bits={1: 0.1, 2: 0.2}, answer_rank={2: 3, 3: 1})
    raw = curve("raw", 8, answer_rank={2: 1, 3: 1})
    raw = Curve(raw.prompt, raw.lens, 8, 100, tuple(row for row in raw.rows if row["layer"] != 1))
    found = window_check(headline, raw, (4,))
    assert found.layers == tuple(range(9))
    assert found.layers_checked == (2, 3)
    assert (found.norm_only_semantics_layers, found.max_kl_norm_vs_raw_bits_window) == ((), 0.2)


def test_a_window_over_nothing_finds_nothing_out():
    headline, raw = curve("logit", 8), curve("raw", 8)
    for other, centres in ((raw, ()), (raw, (4,)), (None, (4,))):
        found = window_check(headline, other, centres)
        assert (found.layers_checked, found.norm_only_semantics_layers) == ((), None)
        assert found.max_kl_norm_vs_raw_bits_window is None


# All layers


def test_every_layer_is_compared_with_and_without_the_last():
    headline = curve(
        "logit", 4, answer_rank=[9, 9, 1, 1, 1], kl_norm_vs_raw_bits=[0.25, 0.5, 1.0, 2.0, 10.0],
        js_divergence_bits=[0.0, 0.1, 0.2, 0.3, 1.0], l1_prob_diff=[0.0, 0.4, 0.5, 0.6, 2.0],
        teacher_entropy_bits=[3.5] * 5,
    )  # fmt: skip
    found = full_check(headline, curve("raw", 4, answer_rank=[9, 9, 1, 1, 9]))
    whole, prefinal = found.whole, found.prefinal
    assert (whole.n_layers, prefinal.n_layers) == (5, 4)
    assert (whole.pct_layers_kl_ge_1_0, whole.pct_layers_kl_ge_0_5) == (3 / 5, 4 / 5)
    assert (prefinal.pct_layers_kl_ge_1_0, prefinal.pct_layers_kl_ge_0_5) == (2 / 4, 3 / 4)
    assert (whole.n_norm_only_semantics_layers, whole.earliest_norm_only_semantic) == (1, 4)
    assert (prefinal.n_norm_only_semantics_layers, prefinal.earliest_norm_only_semantic) == (0, None)
    assert (whole.max_kl_norm_vs_raw_bits, prefinal.max_kl_norm_vs_raw_bits) == (10.0, 2.0)
    assert whole.js_divergence_percentiles == pytest.approx({"p25": 0.1, "p50": 0.2, "p75": 0.3})
    assert prefinal.l1_prob_diff_percentiles == pytest.approx({"p25": 0.3, "p50": 0.45, "p75": 0.525})
    # 0.6 * 3/5 + 0.3 + 0.1 = 0.76, and 0.1 + 0.05 more; without the last layer 0.6 * 1/2 + 0.1 * 2/5 = 0.34, and
    # 0.1 + 0.05 * 0.45/0.5 = 0.145 more.
    assert (whole.score.v1, whole.score.v2, whole.score.tier) == (pytest.approx(0.76), pytest.approx(0.91), "high")
    assert prefinal.score.v1 == pytest.approx(0.34)
    assert (prefinal.score.v2, prefinal.score.tier) == (pytest.approx(0.485), "medium")
    assert found.teacher_entropy_bits == 3.5


def test_shares_are_of_the_layers_that_have_a_divergence():
    headline = curve("logit", 9, kl_norm_vs_raw_bits={2: 3.0, 5: 0.1, 9: 0.7})
    found = full_check(headline, curve("raw", 9)).whole
    assert (found.n_layers, found.pct_layers_kl_ge_1_0, found.pct_layers_kl_ge_0_5) == (3, 1 / 3, 2 / 3)
    assert found.n_norm_only_semantics_layers is None


def test_nearness_is_looked_for_from_the_start_and_from_the_onset_on():
    headline = curve(
        "logit", 5, answer_rank=[9, 9, 1, 9, 1, 1],
        js_divergence_bits=[0.0, 0.0, 0.3, 0.1, 0.0, 0.0], l1_prob_diff=[0.9, 0.5, 0.9, 0.9, 0.9, 0.4],
    )  # fmt: skip
    found = full_check(headline, None)
    assert (found.first_js_le_0_1, found.first_js_le_0_1_after_L_semantic) == (0, 3)
    assert (found.first_l1_le_0_5, found.first_l1_le_0_5_after_L_semantic) == (1, 5)
    at_once = full_check(curve("logit", 3, answer_rank=[9, 1, 1, 1], l1_prob_diff=[0.9, 0.5, 0.4, 0.3]), None)
    assert at_once.first_l1_le_0_5_after_L_semantic == 1
    never = full_check(curve("logit", 5, answer_rank=[9] * 6, js_divergence_bits=[0.0] * 6), None)
    assert (never.first_js_le_0_1, never.first_js_le_0_1_after_L_semantic) == (0, None)


def test_overlaps_stand_by_layer():
    columns = {
        "topk_jaccard_raw_norm@50": [0.25, None, 0.5, 0.75, 1.0],
        "topk_jaccard_consecutive@50": [None, 0.1, 0.2, 0.3, 0.4],
    }
    found = full_check(curve("logit", 4, **columns), curve("raw", 4)).topk_overlap
    assert (found.k, found.jaccard_raw_norm_p50, found.first_jaccard_raw_norm_ge_0_5) == (50, 0.625, 2)
    assert found.per_layer_raw_norm == (0.25, None, 0.5, 0.75, 1.0)
    assert found.per_layer_consecutive_norm == (None, 0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("raw", [None, curve("raw", 6)])
def test_with_nothing_measured_everything_is_absent(raw):
    found = full_check(curve("logit", 6), raw)
    for part in (found.whole, found.prefinal):
        assert part.n_layers == 0
        assert part.score == ArtefactScores(None, None, None)
        assert {part.pct_layers_kl_ge_1_0, part.n_norm_only_semantics_layers, part.max_kl_norm_vs_raw_bits} == {None}
        assert set(part.js_divergence_percentiles.values()) == {None}
    assert (found.first_js_le_0_1, found.teacher_entropy_bits, found.topk_overlap.jaccard_raw_norm_p50) == (None,) * 3
    assert found.topk_overlap.per_layer_raw_norm == (None,) * 7


# Scores


@pytest.mark.parametrize(
    ("inputs", "v1", "v2", "tier"),
    [
        ((0.0, 0, 0.0, 0.0, 0.0), 0.0, 0.0, "low"),
        ((1.0, 3, 50.0, 0.5, 1.9), 1.0, 1.0, "high"),
        ((0.5, 0, 10.0, 0.05, 0.25), 0.4, 0.475, "medium"),
        ((0.25, 0, 2.5, 0.2, 0.0), 0.2, 0.3, "medium"),  # inclusive below
        ((1 / 3, 1, 0.0, None, None), 0.5, 0.5, "medium"),  # inclusive above
        ((None, 1, None, None, 0.5), 0.3, 0.35, "medium"),
        ((0.25, None, None, None, None), 0.15, 0.15, "low"),
        # Three of the published models: shares are of 33, 43 and 41 layers.
        ((8 / 33, 1, 8.5569, 0.0741, 0.5050), 0.5455, 0.6695, "high"),
        ((13 / 43, 1, 92.3159, 0.0063, 0.0292), 0.5814, 0.5906, "high"),
        ((1 / 41, 0, 5.9801, 0.0353, 0.3473), 0.1146, 0.1847, "low"),
    ],
)
def test_scores_and_tier(inputs, v1, v2, tier):
    found = artefact_scores(*inputs)
    assert (found.v1, found.v2) == (pytest.approx(v1, abs=1e-4), pytest.approx(v2, abs=1e-4))
    assert found.tier == tier


def test_nothing_compared_has_no_score():
    assert artefact_scores(None, None, None, 0.5, 0.5) == ArtefactScores(None, None, None)


SHARE, COUNT, BITS = st.floats(0, 1), st.integers(0, 90), st.floats(0, 99)


@given(SHARE, COUNT, BITS, st.none() | SHARE, st.none() | st.floats(0, 2))
def test_scores_stay_between_nothing_and_one_and_grow_with_every_input(share, count, bits, js, l1):
    found = artefact_scores(share, count, bits, js, l1)
    assert 0 <= found.v1 <= found.v2 + 1e-12 <= 1 + 2e-12
    more = artefact_scores(min(1.0, share + 0.1), count + 1, bits + 1, None if js is None else js + 0.1, l1)
    assert more.v1 >= found.v1 and more.v2 >= found.v2


# Copy thresholds


def copying(lens, n_layers, strictest, **columns):
    """A curve that copies at those layers, up to that of the four thresholds (counted from 1)."""
    flags = {
        name: {layer: strictest.get(layer, 0) > i for layer in range(n_layers + 1)} for i, name in enumerate(STRICT)
    }
    return curve(lens, n_layers, **flags, **columns)


def thresholds_of(headline, raw, radius=4):
    return copy_thresholds(headline, raw, find_milestones(headline, T), radius, T)


def test_copy_layers_and_fractions_by_threshold():
    found = thresholds_of(copying("logit", 24, {1: 1, 2: 3, 7: 4}), None)
    assert found.L_copy_strict == {0.7: 1, 0.8: 2, 0.9: 2, 0.95: 7}
    assert found.L_copy_strict_frac == {0.7: 0.042, 0.8: 0.083, 0.9: 0.083, 0.95: 0.292}
    assert set(found.norm_only_flags.values()) == {None}
    assert found.stability == "fragile"


def test_copying_is_norm_only_unless_the_raw_lens_copies_nearby_at_the_same_threshold():
    headline = copying("logit", 24, {10: 3})
    raw = copying("raw", 24, {6: 1, 14: 2, 15: 3}, p_top1=[0.5] * 25)
    found = thresholds_of(headline, raw)
    assert found.norm_only_flags == {0.7: False, 0.8: False, 0.9: True, 0.95: None}
    assert thresholds_of(headline, raw, radius=8).norm_only_flags[0.9] is False


def test_layers_without_a_raw_reading_count_as_not_copying():
    headline = copying("logit", 24, {10: 4})
    flags = {name: {10: False} for name in STRICT}
    raw = curve("raw", 24, p_top1={10: 0.3}, **flags)
    assert set(thresholds_of(headline, raw).norm_only_flags.values()) == {True}
    assert set(thresholds_of(headline, curve("raw", 24)).norm_only_flags.values()) == {None}


def test_without_raw_flags_the_raw_top_token_tells():
    """Published tables of the raw lens have its top token and no copy flags."""
    headline = copying(
        "logit", 24, {10: 4}, top1_id={9: 50, 10: 60, 20: 70}, p_top1={9: 0.6, 10: 0.99, 20: 0.97}
    )  # fmt: skip
    cases = [
        # the token that the headline lens copies, with probability enough for all, or for two thresholds
        (60, 0.99, {0.7: False, 0.8: False, 0.9: False, 0.95: False}),
        (60, 0.85, {0.7: False, 0.8: False, 0.9: True, 0.95: True}),
        # one that the headline lens had on top at 0.97 without copying it
        (70, 0.99, {0.7: True, 0.8: True, 0.9: True, 0.95: True}),
        # one of which nothing is known: what the headline lens gave it was below every threshold
        (50, 0.85, {0.7: None, 0.8: None, 0.9: True, 0.95: True}),
        (999, 0.85, {0.7: None, 0.8: None, 0.9: True, 0.95: True}),
        (None, 0.85, {0.7: None, 0.8: None, 0.9: True, 0.95: True}),
    ]
    for top1_id, p_top1, flags in cases:
        found = thresholds_of(headline, curve("raw", 24, top1_id={11: top1_id}, p_top1={11: p_top1}))
        assert found.norm_only_flags == flags, (top1_id, p_top1)


@given(st.lists(st.floats(0.001, 1.0), min_size=3, max_size=8), st.sampled_from(T.copy_strict))
def test_above_a_threshold_the_margin_is_always_kept(weights, threshold):
    """Why a top token's probability is enough to tell a strict copy: the second's is what is left, at most."""
    first, second = sorted((weight / sum(weights) for weight in weights), reverse=True)[:2]
    assert first <= threshold or first - second > T.copy_margin


@pytest.mark.parametrize(
    ("loose", "strict", "n_layers", "label"),
    [
        (None, None, 40, "none"), (3, None, 40, "mixed"), (0, 0, 42, "stable"), (0, 2, 20, "stable"),
        (0, 3, 60, "stable"),  # a twentieth of the depth
        (0, 3, 40, "mixed"), (0, 5, 40, "mixed"), (0, 6, 100, "fragile"), (0, 3, 20, "fragile"),
        (0, 5, 32, "fragile"), (0, 6, 120, "stable"), (4, 10, 200, "stable"),
    ],
)  # fmt: skip
def test_stability_is_the_distance_of_the_strictest_from_the_loosest(loose, strict, n_layers, label):
    assert stability({0.7: loose, 0.8: loose, 0.9: strict, 0.95: strict}, n_layers) == label


def test_only_thresholds_between_the_outer_two_having_layers_is_mixed():
    assert stability({0.7: None, 0.8: 3, 0.9: None, 0.95: None}, 40) == "mixed"
