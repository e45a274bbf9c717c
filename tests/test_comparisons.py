"""Two wordings over all facts, controls against facts, and the exact test of answers that flip."""

from fractions import Fraction
from math import comb, exp, log

import pytest

from layerscope.analysis.comparisons import control_answers, mcnemar_p, wording_effect
from layerscope.analysis.milestones import find_milestones
from layerscope.analysis.outputs import outputs
from layerscope.record.protocol import Thresholds
from small_record import answer, control, curves_of, fact, ranked, record_of

N = 40


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 4), (1, 5), (3, 3), (2, 10), (0, 6), (17, 40)])
def test_the_exact_test_is_the_sum_of_binomial_outcomes_that_are_no_likelier(b, c):
    """With even odds, outcomes no likelier than the one seen are those at least as far from the middle."""
    n = b + c
    seen = abs(2 * b - n)
    expected = sum(Fraction(comb(n, k), 2**n) for k in range(n + 1) if abs(2 * k - n) >= seen)
    assert mcnemar_p(b, c) == mcnemar_p(c, b) == pytest.approx(float(expected), rel=1e-12)


def test_a_few_values_of_the_exact_test_by_hand():
    assert [mcnemar_p(*counts) for counts in ((0, 4), (0, 6), (1, 5), (3, 3))] == [1 / 8, 1 / 32, 14 / 64, 1.0]


def compared(*facts, n_layers=N):
    """Facts as ((onset, p), (onset, p)) in both wordings; an onset of None is not answered."""
    prompts, curves = [], []
    for index, wordings in enumerate(facts):
        for variant, (onset, p) in zip(("orig", "no_filler"), wordings, strict=True):
            prompt = fact(index, answer(f"A{index}", index), variant=variant)
            ranks = [1 if onset is not None and layer >= onset else 9 for layer in range(n_layers + 1)]
            prompts.append(prompt)
            curves.append(ranked(prompt.key, ranks, p_answer=p))
    found = curves_of(*curves)
    said = outputs(found, record_of(prompts, n_layers), "logit")
    return wording_effect(said, {c.prompt: find_milestones(c, Thresholds()) for c in curves}, n_layers)


def test_two_wordings_by_hand():
    found = compared(
        ((30, 0.5), (29, 0.25)),
        ((32, 0.5), (29, 0.5)),
        ((30, 0.5), (30, 0.5)),
        ((None, 0.125), (30, 0.5)),
        ((20, 0.5), (None, 0.5)),
    )
    assert (found.first, found.second) == ("orig", "no_filler")
    assert (found.answers.n, found.answers.n_first, found.answers.n_second) == (5, 4, 4)
    assert (found.answers.only_first, found.answers.only_second) == (("fact 4",), ("fact 3",))
    assert found.answers.mcnemar_p == 1.0
    assert (found.shift_layers.median, found.shift_layers.n, found.median_shift_depth) == (-1.0, 3, -1 / N)
    assert (found.median_shift_nats, found.n_nats) == (0.0, 5)
    assert (found.decided_by, found.sensitive) == ((), False)


SAME = ((30, 0.5), (30, 0.5))


@pytest.mark.parametrize(
    ("facts", "decided_by"),
    [
        ([((None, 0.5), (30, 0.5))] * 6, ("answers",)),
        ([((None, 0.5), (30, 0.5))] * 5 + [SAME], ()),  # 1 / 16 is more than 0.05
        ([((30, 0.5), (28, 0.5))], ("layers",)),
        ([((30, 0.5), (29, 0.5))], ()),
        ([((30, 0.5), (30, 0.5 * exp(-1.01)))], ("log_prob",)),
        ([((30, 0.5), (30, 0.5 * exp(-0.99)))], ()),
        ([((30, 0.5), (28, 0.01)), ((30, 0.5), (27, 0.01))], ("layers", "log_prob")),
    ],
)
def test_a_wording_matters_by_answers_layers_or_probability(facts, decided_by):
    found = compared(*facts)
    assert (found.decided_by, found.sensitive) == (decided_by, bool(decided_by))


def test_in_a_shallow_model_one_layer_is_more_than_a_twentieth_of_the_depth():
    assert compared(((10, 0.5), (9, 0.5)), n_layers=12).decided_by == ("layers",)
    assert compared(((10, 0.5), (9, 0.5)), n_layers=20).decided_by == ()  # exactly a twentieth


def test_layers_are_judged_only_where_a_fact_is_answered_in_both():
    found = compared(((None, 0.25), (30, 0.5)))
    assert found.judged == ("answers", "log_prob") and found.shift_layers.median is None
    assert found.median_shift_nats == pytest.approx(log(2))


def test_with_one_wording_nothing_is_compared():
    prompt = fact(0, answer("A", 0))
    curves = curves_of(ranked(prompt.key, (9, 1)))
    for said in ({}, outputs(curves, record_of([prompt], 1), "logit")):
        found = wording_effect(said, {}, 1)
        assert (found.sensitive, found.answers.mcnemar_p, found.judged) == (None, None, ())
        assert found.reason == "no fact was asked in two wordings"


# Controls


def controls(*said, contrast="Berlin"):
    """Germany's capital and controls compared with it, as (rank of its own answer, token that the model says)."""
    berlin = answer("Berlin", 7)
    prompts = [fact(0, berlin), fact(0, berlin, variant="no_filler")]
    curves = [ranked(prompts[0].key, (9, 1), top1_id=7), ranked(prompts[1].key, (9, 2), top1_id=5)]
    for i, (rank, top) in enumerate(said):
        own = control(answer(f"C{i}", 20 + i), answer(contrast, 7), variant=("orig", "no_filler")[i % 2])
        prompts.append(own)
        curves.append(ranked(own.key, (9, rank), top1_id=top))
    record = record_of(prompts, 1)
    return control_answers(outputs(curves_of(*curves), record, "logit"), record)


def test_controls_are_set_beside_the_fact_in_their_own_wording():
    found = controls((1, 20), (3, 7))
    assert (found.n, found.n_answered, found.n_says_contrast, found.reason) == (2, 1, 1, None)
    first, second = found.controls
    assert (first.contrast_fact, first.fact_answered, first.says_contrast) == ("fact 0", True, False)
    assert (second.contrast_fact, second.fact_answered, second.says_contrast) == ("fact 0", False, True)
    assert (found.answers.n, found.answers.n_first, found.answers.n_second) == (2, 1, 1)
    assert found.answers.only_first == found.answers.only_second == ()


def test_a_control_whose_fact_is_not_in_the_run_stands_alone():
    found = controls((1, 20), contrast="Vienna")
    assert (found.controls[0].contrast_fact, found.controls[0].fact_answered) == (None, None)
    assert (found.n_answered, found.answers.n, found.answers.mcnemar_p) == (1, 0, None)


def test_without_controls_it_is_said_so():
    assert (controls().n, controls().reason) == (0, "the suite has no control")
