"""Close looks and second passes summed up, from records made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.consistency import (
    LensAgreement,
    OnsetGap,
    decoding_point,
    forward_of_two,
    gate_stability,
    lens_consistency,
    repeatability,
)
from layerscope.analysis.curve import Curve
from layerscope.analysis.milestones import Milestone, find_milestones, semantic_layer
from layerscope.record.measured import (
    OverlapRecord,
    PositionReadoutRecord,
    RepeatabilityRecord,
    ScaledRecord,
    SecondForwardRecord,
    ViewRecord,
)
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds
from layerscope.record.rows import COLUMNS

BLANK = {column.name: None for column in COLUMNS}
ASKED = PromptKey(0, "pos", "orig")
T = Thresholds()
N = 6
NOTHING = (None,) * (N + 1)


def view(name, ranks, top1=None):
    """A view with these ranks; its top token is 1 where the answer leads and else 2, unless given."""
    ids = tuple(None if rank is None else 1 if rank == 1 else 2 for rank in ranks) if top1 is None else top1
    p = tuple(None if rank is None else 1.0 / rank for rank in ranks)
    return ViewRecord(view=name, answer_rank=ranks, p_answer=p, top1_id=ids, p_top1=p)


def overlap(one, other, jaccard_10=NOTHING, jaccard_50=NOTHING, union=NOTHING, ref=NOTHING):
    return OverlapRecord(
        view=one,
        against=other,
        jaccard_10=jaccard_10,
        jaccard_50=jaccard_50,
        spearman_top50_union=union,
        spearman_top50_ref=ref,
    )


def looked_at(views=(), overlaps=(), gap=NOTHING, scaled=(), second=None, headline="logit"):
    return PositionReadoutRecord(
        headline=headline,
        views=tuple(views),
        overlaps=tuple(overlaps),
        answer_gap=gap,
        scaled=tuple(ScaledRecord(scale=scale, p_answer=p) for scale, p in scaled),
        repeatability=second or RepeatabilityRecord(status="skipped", reason="not asked for"),
    )


def milestones(**layers):
    """Milestones by name, and None those that have no layer."""
    return {name: Milestone(name, "logit", ASKED, layer, None, layer) for name, layer in layers.items()}


# Decoding point

RANKS_A = (1, 30, 9, 1, 1, 4, 1)
RANKS_B = (1, 20, 5, 1, 2, 1, 1)
BOTH = (view("post_ln2", RANKS_A), view("next_norm", RANKS_B))
ALIKE = (1.0, 0.1, 0.2, 0.5, 0.4, 0.9, 0.6)
ONE = looked_at(BOTH, [overlap("post_ln2", "next_norm", ALIKE, (0.7,) * 7, (0.8,) * 7, (0.9,) * 7)])


def decided(close_up, stack="pre_norm", preferred=None, **layers):
    named = milestones(**layers)
    return decoding_point(close_up, named, named.get(preferred, semantic_layer(named)), stack)


def test_a_target_shows_both_norms_at_the_milestones_layer():
    (target,) = decided(ONE, L_semantic=4).targets
    assert (target.name, target.layer, target.status) == ("L_semantic", 4, "ok")
    assert (target.answer_rank_post_ln2, target.answer_rank_next_norm, target.delta_answer_rank) == (1, 2, -1)
    assert (target.top1_id_post_ln2, target.top1_id_next_norm, target.top1_token_agree) == (1, 2, False)
    assert (target.p_answer_post_ln2, target.p_top1_next_norm, target.rank1_agree) == (1.0, 0.5, False)
    assert (target.jaccard_10, target.jaccard_50, target.spearman_top50_union) == (0.4, 0.7, 0.8)


def test_the_targets_are_the_semantic_milestones_and_the_rank_of_five():
    found = decided(
        ONE, L_semantic=3, L_semantic_strong=None, L_semantic_strong_run2=5, first_rank_le_5=2, first_rank_le_10=2
    )
    assert [(target.name, target.layer) for target in found.targets] == [
        ("L_semantic", 3), ("L_semantic_strong_run2", 5), ("L_semantic_strong_run2_plus1", 6), ("first_rank_le_5", 2),
    ]  # fmt: skip


def test_the_gate_holds_where_ranks_agree_and_half_of_the_top_ids_are_shared():
    found = decided(ONE, L_semantic=3, first_rank_le_5=2)
    assert (found.tested, found.reason, found.consistent) == (True, None, True)
    assert found.preferred_target == found.targets[0]
    assert decided(looked_at(BOTH, [overlap("next_norm", "post_ln2", (0.49,) * 7)]), L_semantic=3).consistent is False


def test_at_a_layer_that_is_not_judged_no_norm_decides():
    """After the last layer no block reads, so there is no other norm to choose."""

    def found(**layers):
        named = milestones(**layers)
        return decoding_point(ONE, named, semantic_layer(named), "pre_norm", N)

    assert decided(ONE, L_semantic=N).consistent is True
    last = found(L_semantic=N, L_semantic_strong=N)
    assert (last.tested, last.targets, last.consistent) == (False, (), None)
    assert last.reason == "the answer comes at the last layer, where there is no choice of norms"
    ranked = found(L_semantic=N, first_rank_le_5=4)  # shown, and decides nothing
    assert ([t.name for t in ranked.targets], ranked.tested, ranked.consistent) == (["first_rank_le_5"], False, None)
    early = found(L_semantic=4, L_semantic_strong=N)
    assert ([t.layer for t in early.targets], early.tested, early.consistent) == ([4], True, False)


def test_two_norms_that_both_deny_the_answer_agree():
    ranks = looked_at([view("post_ln2", (9,) * 7), view("next_norm", (2,) * 7)], ONE.overlaps)
    (target,) = decided(ranks, L_semantic=3).targets
    assert (target.rank1_agree, target.delta_answer_rank) == (True, 7)
    assert decided(ranks, L_semantic=3).consistent is True


def test_one_semantic_target_whose_ranks_disagree_closes_the_gate():
    assert decided(ONE, preferred="L_semantic", L_semantic=3, L_semantic_strong=4).consistent is False
    assert decided(ONE, L_semantic=3, L_semantic_strong_run2=4).consistent is False


def test_the_rank_of_five_is_shown_and_decides_nothing():
    """Published files let it close the gate wherever it was not the onset (caveat C8)."""
    found = decided(ONE, L_semantic=3, first_rank_le_5=5)
    assert found.targets[1].rank1_agree is False
    assert found.consistent is True


def test_the_preferred_milestones_layer_decides_by_name_then_by_layer_then_the_first_that_was_tested():
    by_name = decided(ONE, preferred="L_semantic_strong", L_semantic=3, L_semantic_strong=3)
    assert by_name.preferred_target.name == "L_semantic_strong"
    by_layer = decided(ONE, preferred="L_semantic_confirmed", L_semantic=3, L_semantic_confirmed=3, first_rank_le_5=3)
    assert by_layer.preferred_target.name == "L_semantic"
    first = decided(ONE, preferred="L_semantic_confirmed", L_semantic=0, L_semantic_confirmed=0, first_rank_le_5=6)
    assert (first.preferred_target.name, first.consistent) == ("first_rank_le_5", True)


def test_the_embedding_has_no_block_that_wrote_it():
    found = decided(ONE, L_semantic=0)
    assert [target.status for target in found.targets] == ["missing_block"]
    assert (found.targets[0].answer_rank_next_norm, found.preferred_target, found.consistent) == (None, None, None)


def test_a_layer_that_a_norm_could_not_decode_is_not_measured():
    found = decided(looked_at([view("post_ln2", NOTHING), BOTH[1]], ONE.overlaps), L_semantic=3)
    assert found.targets[0].status == "not_measured"
    assert (found.targets[0].rank1_agree, found.targets[0].top1_token_agree, found.consistent) == (None, None, None)
    short = looked_at([view("post_ln2", (1,)), BOTH[1]])
    assert decided(short, L_semantic=3).targets[0].status == "not_measured"


def test_without_an_overlap_the_gate_stays_open_unless_ranks_disagree():
    alone = looked_at(BOTH)
    assert decided(alone, L_semantic=3).consistent is None
    assert decided(alone, L_semantic=4).consistent is False


@pytest.mark.parametrize(
    ("close_up", "stack", "layers", "reason"),
    [
        (None, "pre_norm", {"L_semantic": 3}, "nothing was looked at closely"),
        (ONE, "post_norm", {"L_semantic": 3}, "no choice of norms"),
        (ONE, None, {"L_semantic": 3}, "not known how the blocks are built"),
        (looked_at(BOTH[1:]), "pre_norm", {"L_semantic": 3}, "not looked at through post_ln2"),
        (looked_at(), "pre_norm", {"L_semantic": 3}, "not looked at through post_ln2 and next_norm"),
        (ONE, "pre_norm", {"L_semantic": None}, "no milestone has a layer"),
        (ONE, "pre_norm", {}, "no milestone has a layer"),
    ],
)
def test_what_was_not_tested_has_a_reason_and_no_outcome(close_up, stack, layers, reason):
    found = decided(close_up, stack, **layers)
    assert (found.tested, found.targets, found.consistent) == (False, (), None)
    assert reason in found.reason


def test_the_onset_gap_is_how_much_later_the_next_blocks_norm_shows_the_answer():
    logit, later = view("logit", (9, 9, 1, 5, 1, 1, 1)), view("next_norm", (9, 9, 9, 9, 9, 1, 1))
    found = decoding_point(looked_at([logit, later]), {}, None, "post_norm").onset_gap
    assert (found, found.gap_layers) == (OnsetGap(2, 5), 3)
    never = decoding_point(looked_at([logit, view("next_norm", NOTHING)]), {}, None, None).onset_gap
    assert (never, never.gap_layers) == (OnsetGap(2, None), None)
    assert decoding_point(looked_at([logit]), {}, None, "pre_norm").onset_gap is None
    assert decoding_point(None, {}, None, "pre_norm").onset_gap is None


# Lens consistency

RAW = overlap("logit", "raw", ALIKE, tuple(x / 2 for x in ALIKE), NOTHING, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.31))


def test_milestones_that_share_a_layer_count_once_in_the_median():
    named = milestones(first_rank_le_10=1, first_rank_le_5=2, L_semantic=5, L_semantic_strong=5, L_semantic_confirmed=5)
    found = lens_consistency(looked_at(overlaps=[RAW]), named)
    (pair,) = found.pairs
    assert found.targets == tuple(at.name for at in pair.at_targets) == (
        "first_rank_le_10", "first_rank_le_5", "L_semantic", "L_semantic_strong", "L_semantic_confirmed"
    )  # fmt: skip
    assert [at.layer for at in pair.at_targets] == [1, 2, 5, 5, 5]
    assert pair.at_targets[2].agreement == LensAgreement(0.9, 0.45, 0.4)
    assert pair.p50 == LensAgreement(0.2, 0.1, 0.7)  # of layers 1, 2, 5
    assert pair.p50_by_name == LensAgreement(0.9, 0.45, 0.4)  # of 1, 2, 5, 5, 5
    assert found.low_at_semantic is False


def test_the_lenses_disagree_where_either_number_is_low_at_a_semantic_milestone():
    def low(**layers):
        return lens_consistency(looked_at(overlaps=[RAW]), milestones(**layers)).low_at_semantic

    assert low(L_semantic=2) is True  # shares 0.2 of the ids
    assert low(first_rank_le_5=2, L_semantic=6) is False  # 0.31 is not below 0.30
    assert low(L_semantic=6, L_semantic_strong_run2=1) is True
    exactly = overlap("logit", "raw", (0.30,) * 7, ref=(0.30,) * 7)
    assert lens_consistency(looked_at(overlaps=[exactly]), milestones(L_semantic=2)).low_at_semantic is False
    spearman = overlap("logit", "raw", (0.9,) * 7, ref=(0.29,) * 7)
    assert lens_consistency(looked_at(overlaps=[spearman]), milestones(L_semantic=2)).low_at_semantic is True


def test_disagreement_at_a_layer_that_is_not_judged_is_shown_and_counts_for_nothing():
    low = looked_at((), [overlap("logit", "raw", (0.1,) * 7, (0.1,) * 7, ref=(0.9,) * 7)])
    at_last, before = milestones(L_semantic=N), milestones(L_semantic=2, L_semantic_strong=N)
    assert lens_consistency(low, at_last).low_at_semantic is True
    found = lens_consistency(low, at_last, N)
    assert (found.low_at_semantic, found.pairs[0].at_targets[0].layer) == (None, N)
    assert lens_consistency(low, before, N).low_at_semantic is True


def test_raw_and_tuned_are_compared_with_the_headline_lens_alone():
    tuned = overlap("logit", "tuned", (0.1,) * 7)
    others = [overlap("raw", "logit", (0.0,) * 7), overlap("logit", "next_norm", (0.0,) * 7)]
    found = lens_consistency(looked_at(overlaps=[*others, tuned, RAW]), milestones(L_semantic=5))
    assert [pair.against for pair in found.pairs] == ["raw", "tuned"]
    assert found.low_at_semantic is True
    assert lens_consistency(looked_at(overlaps=others), milestones(L_semantic=5)).pairs == ()


def test_agreement_that_was_not_measured_is_absent():
    empty = looked_at(overlaps=[overlap("logit", "raw")])
    found = lens_consistency(empty, milestones(L_semantic=5))
    assert found.pairs[0].p50 == LensAgreement(None, None, None)
    assert found.low_at_semantic is None
    none = lens_consistency(looked_at(overlaps=[RAW]), milestones(L_semantic=None))
    assert (none.targets, none.pairs[0].p50, none.low_at_semantic) == ((), LensAgreement(None, None, None), None)
    assert lens_consistency(None, milestones(L_semantic=5)) is None
    beyond = lens_consistency(looked_at(overlaps=[RAW]), milestones(L_semantic=50))
    assert beyond.low_at_semantic is None


# Gate stability

V = 1000
"""So that uniform is 0.001 and the margin asks for 0.003."""


def scaled_at(*by_scale):
    """The answer's probability at every layer alike, for each of the four scales."""
    return [(scale, (p,) * 7) for scale, p in zip((0.9, 0.95, 1.05, 1.1), by_scale, strict=True)]


def test_gates_are_judged_at_every_scale_by_probability_and_by_lead():
    # The lead of 0.5 passes from a scale of 1 on: 0.45 and 0.475, then 0.525 and 0.55.
    close = looked_at(gap=(0.5,) * 7, scaled=scaled_at(0.002, 0.0025, 0.0029, 0.0031))
    found = gate_stability(close, milestones(L_semantic=4), V, T)
    (target,) = found.targets
    assert (target.name, target.layer) == ("L_semantic", 4)
    assert (target.uniform_margin_pass_frac, target.top2_gap_pass_frac, target.both_gates_pass_frac) == (
        0.25,
        0.5,
        0.25,
    )
    assert (found.scales, found.min_both_gates_pass_frac, found.sensitive) == ((0.9, 0.95, 1.05, 1.1), 0.25, True)


def test_both_gates_must_hold_at_the_same_scale():
    close = looked_at(gap=(0.5,) * 7, scaled=scaled_at(0.9, 0.9, 0.0, 0.0))
    (target,) = gate_stability(close, milestones(L_semantic=4), V, T).targets
    assert (target.uniform_margin_pass_frac, target.top2_gap_pass_frac, target.both_gates_pass_frac) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("gaps", [(0.5, 5.0), (5.0, 0.5)])
def test_a_run_of_two_needs_both_layers_at_the_same_scale(gaps):
    close = looked_at(gap=(None, None, None, 5.0, *gaps, 5.0), scaled=scaled_at(0.9, 0.9, 0.9, 0.9))
    first, run = gate_stability(close, milestones(L_semantic=3, L_semantic_strong_run2=4), V, T).targets
    assert (first.name, first.both_gates_pass_frac) == ("L_semantic", 1.0)
    assert (run.name, run.layer, run.both_gates_pass_frac) == ("L_semantic_strong_run2", 4, 0.5)
    assert (run.uniform_margin_pass_frac, run.top2_gap_pass_frac) == (None, None)


def test_the_confirmed_layer_is_a_target_only_where_it_is_another():
    close = looked_at(gap=(9.0,) * 7, scaled=scaled_at(0.9, 0.9, 0.9, 0.9))
    same = gate_stability(close, milestones(L_semantic=4, L_semantic_confirmed=4), V, T)
    assert [target.name for target in same.targets] == ["L_semantic"]
    other = gate_stability(close, milestones(L_semantic=4, L_semantic_strong=4, L_semantic_confirmed=5), V, T)
    assert [target.name for target in other.targets] == ["L_semantic", "L_semantic_strong", "L_semantic_confirmed"]


def test_three_of_four_scales_are_enough():
    close = looked_at(gap=(9.0,) * 7, scaled=scaled_at(0.0, 0.9, 0.9, 0.9))
    found = gate_stability(close, milestones(L_semantic=4), V, T)
    assert (found.min_both_gates_pass_frac, found.sensitive) == (0.75, False)


def test_a_trailing_answer_fails_at_every_scale():
    close = looked_at(gap=(-0.1,) * 7, scaled=scaled_at(0.4, 0.4, 0.4, 0.4))
    (target,) = gate_stability(close, milestones(L_semantic=4), V, T).targets
    assert (target.uniform_margin_pass_frac, target.top2_gap_pass_frac, target.both_gates_pass_frac) == (1.0, 0.0, 0.0)


def test_gates_that_cannot_be_judged_are_absent():
    close = looked_at(scaled=scaled_at(0.9, 0.9, 0.9, None))
    found = gate_stability(close, milestones(L_semantic=4, L_semantic_strong_run2=6), V, T)
    assert {(t.top2_gap_pass_frac, t.both_gates_pass_frac, t.uniform_margin_pass_frac) for t in found.targets} == {
        (None, None, None)
    }
    assert (found.min_both_gates_pass_frac, found.sensitive) == (None, None)
    assert gate_stability(close, milestones(), V, T).targets == ()
    assert gate_stability(None, milestones(L_semantic=4), V, T) is None


# Repeatability


def second_decode(rank_dev, flips, status="ok", reason=None):
    return looked_at(second=RepeatabilityRecord(status=status, reason=reason, rank_dev=rank_dev, top1_flip=flips))


def test_two_equal_decodes_deviate_by_nothing():
    found = repeatability(second_decode((0,) * 7, (False,) * 7))
    assert (found.status, found.reason, found.layers_checked) == ("ok", None, 7)
    assert (found.max_rank_dev, found.p95_rank_dev, found.top1_flip_rate, found.high_variance) == (0, 0.0, 0.0, False)


def test_the_95th_percentile_lies_between_the_two_largest_of_twenty():
    found = repeatability(second_decode((*(0,) * 18, 2, 4), (False,) * 20))
    # Rank 19 * 0.95 = 18.05 of the sorted values, counted from 0.
    assert found.p95_rank_dev == pytest.approx(2.1)
    assert found.max_rank_dev == 4


@pytest.mark.parametrize(
    ("deviation", "n_flips", "n", "high"),
    [(5, 0, 10, False), (6, 0, 10, True), (1, 1, 50, False), (1, 1, 49, True), (0, 0, 1, False)],
)
def test_variance_is_high_beyond_five_ranks_or_one_flip_in_fifty(deviation, n_flips, n, high):
    found = repeatability(second_decode((deviation, *(0,) * (n - 1)), (*(True,) * n_flips, *(False,) * (n - n_flips))))
    assert (found.max_rank_dev, found.top1_flip_rate, found.high_variance) == (deviation, n_flips / n, high)


def test_layers_that_could_not_be_decoded_are_left_out():
    found = repeatability(second_decode((None, 3, None, 1), (None, True, None, False)))
    assert (found.layers_checked, found.max_rank_dev, found.top1_flip_rate) == (2, 3, 0.5)


def test_no_second_decode_has_a_reason_and_no_numbers():
    found = repeatability(second_decode((), (), "skipped", "switched off"))
    assert (found.status, found.reason, found.layers_checked) == ("skipped", "switched off", 0)
    assert {found.max_rank_dev, found.p95_rank_dev, found.top1_flip_rate, found.high_variance} == {None}
    assert repeatability(None).status == "unavailable"
    assert repeatability(second_decode((None,) * 7, (None,) * 7)).high_variance is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_the_95th_percentile_never_exceeds_the_largest_deviation(deviations):
    found = repeatability(second_decode(tuple(deviations), (False,) * len(deviations)))
    assert 0 <= found.p95_rank_dev <= found.max_rank_dev == max(deviations)


# Two forward passes

IDS = tuple(range(100, 110))


def prompt_key_of(strong=(), weak=(), ids=IDS):
    """Ranks, probabilities and leads of a pass: strong answers, weak ones (rank 1 with no lead), else none."""
    ranks = tuple(1 if layer in (*strong, *weak) else 8 for layer in range(N + 1))
    p = tuple(0.5 if rank == 1 else 0.01 for rank in ranks)
    gap = tuple(None if ranks[layer] != 1 else 2.0 if layer in strong else 0.1 for layer in range(N + 1))
    return {"answer_rank": ranks, "p_answer": p, "answer_logit_gap": gap, "top_ids": (ids,) * (N + 1)}


def curve_of(columns):
    rows = tuple(
        BLANK
        | {"row": layer, "layer": layer, "is_answer": columns["answer_rank"][layer] == 1}
        | {name: list(values[layer]) if name == "top_ids" else values[layer] for name, values in columns.items()}
        for layer in range(N + 1)
    )
    return Curve(ASKED, "logit", N, 100, rows)


def both_passes(first, second, confirmed=None, mode="always"):
    curve = curve_of(first)
    named = find_milestones(curve, T)
    if confirmed is not None:
        named["L_semantic_confirmed"] = Milestone.at("L_semantic_confirmed", curve, confirmed, None)
    return forward_of_two(SecondForwardRecord(mode=mode, **second), named, curve, T)


def test_a_pass_agrees_with_itself():
    once = prompt_key_of(strong=(3, 4, 5))
    found = both_passes(once, once)
    assert (found.enabled, found.mode, found.primary, found.pass2_primary) == (
        True, "always", "L_semantic_strong_run2", "L_semantic_strong_run2"
    )  # fmt: skip
    assert (found.pass1_layer, found.pass2_layer, found.delta_layers, found.agree) == (3, 3, 0, True)
    assert (found.topk_k, found.topk_jaccard_at_primary_layer) == (10, 1.0)


@pytest.mark.parametrize(
    ("layers", "delta", "agree"), [((2, 3), -1, True), ((4, 5), 1, True), ((5, 6), 2, False), ((1, 2), -2, False)]
)
def test_one_layer_apart_is_within_tolerance(layers, delta, agree):
    found = both_passes(prompt_key_of(strong=(3, 4)), prompt_key_of(strong=layers))
    assert (found.delta_layers, found.agree) == (delta, agree)


def test_another_kind_of_milestone_at_the_same_layer_disagrees():
    found = both_passes(prompt_key_of(strong=(3, 4)), prompt_key_of(strong=(3,)))
    assert (found.pass2_primary, found.delta_layers, found.agree) == ("L_semantic_strong", 0, False)


def test_other_top_ids_at_the_first_pass_layer_disagree():
    # Six of ten ids in common make 6 shared of 14 in either, seven make 7 of 13.
    for shared, agree in ((6, False), (7, True)):
        ids = (*IDS[:shared], *range(200, 210 - shared))
        found = both_passes(prompt_key_of(strong=(3, 4)), prompt_key_of(strong=(3, 4), ids=ids))
        assert found.topk_jaccard_at_primary_layer == shared / (20 - shared)
        assert found.agree is agree


def test_a_second_pass_without_the_answer_disagrees():
    found = both_passes(prompt_key_of(strong=(3, 4)), prompt_key_of())
    assert (found.pass2_primary, found.pass2_layer, found.delta_layers, found.agree) == (None, None, None, False)


def test_the_onset_of_the_second_pass_answers_to_a_confirmed_one():
    found = both_passes(prompt_key_of(weak=(3, 4)), prompt_key_of(weak=(4,)), confirmed=3)
    assert (found.primary, found.pass2_primary, found.agree) == ("L_semantic_confirmed", "L_semantic_confirmed", True)
    stronger = both_passes(prompt_key_of(weak=(3, 4)), prompt_key_of(strong=(3,)), confirmed=3)
    assert (stronger.pass2_primary, stronger.agree) == ("L_semantic_strong", False)


def test_without_a_first_milestone_nothing_can_agree():
    found = both_passes(prompt_key_of(), prompt_key_of(strong=(3, 4)))
    assert (found.primary, found.pass1_layer, found.pass2_layer, found.agree) == (None, None, 3, None)


@pytest.mark.parametrize(("mode", "enabled"), [("skipped_deterministic", True), ("off", False)])
def test_a_pass_that_was_not_made_has_no_outcome(mode, enabled):
    found = both_passes(prompt_key_of(strong=(3, 4)), {}, mode=mode)
    assert (found.enabled, found.mode, found.primary, found.pass1_layer) == (
        enabled, mode, "L_semantic_strong_run2", 3
    )  # fmt: skip
    assert (found.pass2_layer, found.topk_jaccard_at_primary_layer, found.agree) == (None, None, None)


def test_without_a_record_of_a_second_pass_it_was_not_enabled():
    curve = curve_of(prompt_key_of(strong=(3, 4)))
    found = forward_of_two(None, find_milestones(curve, T), curve, T)
    assert (found.enabled, found.mode, found.pass1_layer, found.agree) == (False, None, 3, None)


def test_without_ids_agreement_is_open_and_disagreement_is_not():
    first, second = prompt_key_of(strong=(3, 4)), prompt_key_of(strong=(3, 4)) | {"top_ids": ()}
    assert both_passes(first, second).agree is None
    assert both_passes(first, prompt_key_of(strong=(5, 6)) | {"top_ids": ()}).agree is False


def test_fewer_listed_ids_are_compared_as_many_as_there_are():
    found = both_passes(prompt_key_of(strong=(3, 4), ids=IDS[:4]), prompt_key_of(strong=(3, 4), ids=IDS))
    assert (found.topk_k, found.topk_jaccard_at_primary_layer) == (4, 1.0)
