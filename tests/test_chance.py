"""The shuffled-answers null: p-values by hand and by enumeration, honest where nothing is known, strong where it is."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest

from layerscope.analysis.chance import ASSIGNMENTS, SIGNIFICANT, AgainstChance, against_chance, holm
from layerscope.record.parts import AnswerFormRecord
from small_record import answer, control, curve_of, curves_of, fact, record_of

OTHER = 999
"""A token that begins no answer."""


def dealt(tops, ids=None, decisive=None, **more) -> AgainstChance:
    """Facts whose top tokens at each layer are `tops[layer]`; fact i has the answers `ids[i]`, or the one of id i."""
    n = len(tops[0])
    ids = ids or [(i,) for i in range(n)]
    prompts = [fact(i, *(answer(f"{i} {j}", j) for j in ids[i]), **more) for i in range(n)]
    layers = len(tops)
    curves = [
        curve_of(prompt.key, layers - 1, {layer: {"top1_id": tops[layer][i]} for layer in range(layers)})
        for i, prompt in enumerate(prompts)
    ]
    record = record_of(prompts, max(1, layers - 1))
    return against_chance(curves_of(*curves), record, "logit", {"L": decisive}, "L")


def test_of_five_facts_three_on_top_are_as_rare_as_three_given_places_of_five_kept():
    found = dealt([[0, 1, 2, OTHER, OTHER], [OTHER] * 5, [0, 1, 2, 3, 4]])
    assert [at.n_on_top for at in found.by_layer] == [3, 0, 5]
    assert [at.p for at in found.by_layer] == pytest.approx([1 / 60, 1.0, 1 / 120])
    assert (found.method, found.n_assignments, found.n_layers_tested) == ("exact", 120, 2)
    # Of two layers tested, the smaller p-value counts twice and the other is no smaller.
    assert [at.p_holm for at in found.by_layer] == pytest.approx([2 / 120, 1.0, 2 / 120])
    assert found.smallest_p == pytest.approx(2 / 120)
    assert (found.above_chance, found.reason) == (None, "too few facts for a test")


def test_expected_count_and_null_rate_by_hand():
    """Facts 0 to 3 all say token 0; fact 4 says its own: 1 + 1 of 5 on top, 3 of the 20 other pairs."""
    found = dealt([[0, 0, 0, 0, 4]]).by_layer[0]
    assert (found.n_on_top, found.null_rate) == (2, 3 / 20)
    assert found.expected == pytest.approx(4 / 5 + 1 / 5)


def test_p_values_are_those_of_a_plain_enumeration_with_shared_answers_and_several_accepted_ones():
    random = np.random.default_rng(1)
    ids = [(0,), (0,), (1, 2), (2, 3), (4,), (5, 6)]  # 0 and 1 share their answer; 2 and 3 overlap in a token
    for _ in range(20):
        top = random.integers(0, 8, 6).tolist()
        found = dealt([top], ids).by_layer[0]
        counts = [sum(top[i] in ids[order[i]] for i in range(6)) for order in permutations(range(6))]
        own = sum(top[i] in ids[i] for i in range(6))
        assert found.n_on_top == own
        assert found.expected == pytest.approx(np.mean(counts))
        assert found.p == pytest.approx(np.mean([count >= own for count in counts]))


def test_with_more_assignments_than_are_drawn_the_p_value_is_near_the_exact_one_and_never_zero():
    two = [0, 1] + [OTHER] * 8
    found = dealt([two, list(range(10))])
    assert (found.method, found.n_assignments) == ("sampled", ASSIGNMENTS)
    exact = 1 / 90  # both of two given places kept: 1 / (10 * 9)
    error = (exact * (1 - exact) / ASSIGNMENTS) ** 0.5
    assert abs(found.by_layer[0].p - exact) < 4 * error
    assert found.by_layer[1].p == 1 / (ASSIGNMENTS + 1)
    assert found == dealt([two, list(range(10))])  # seeded


def test_random_answers_are_called_more_than_chance_no_more_often_than_the_level_says():
    random = np.random.default_rng(2)
    p = np.array([dealt([random.integers(0, 6, 6).tolist()]).by_layer[0].p for _ in range(300)])
    for level in (0.02, 0.1, 0.3):
        assert (p <= level).mean() <= level + 3 * (level * (1 - level) / len(p)) ** 0.5
    assert (p <= 0.3).mean() > 0.05  # nor is it never


def test_a_model_that_knows_most_of_its_facts_is_told_from_one_that_always_says_the_same():
    known = [i if i % 4 else OTHER for i in range(20)]
    parrot = [3] * 20
    assert dealt([parrot, parrot, known], decisive=2).above_chance is True
    found = dealt([parrot, known, parrot], decisive=2)
    assert found.by_layer[2].n_on_top == 1 and found.by_layer[2].p == 1.0
    assert (found.above_chance, found.at_milestones["L"].p_holm) == (False, 1.0)
    # A layer at which no reassignment matters is not corrected for.
    assert found.n_layers_tested == 1


def test_where_no_fact_is_answered_every_layer_is_looked_at():
    nothing = dealt([[OTHER] * 20, [3] * 20])
    assert (nothing.above_chance, nothing.n_layers_tested) == (False, 0)
    assert dealt([list(range(20)), [3] * 20]).above_chance is True


@pytest.mark.parametrize(("n", "layers", "enough"), [(5, 1, True), (5, 2, False), (6, 7, True), (6, 8, False), (7, 50, True), (7, 51, False)])  # fmt: skip # noqa: E501
def test_few_facts_suffice_where_the_rarest_outcome_survives_the_correction(n, layers, enough):
    """1 / n! for each of the layers that are tested, against 0.01."""
    found = dealt([list(range(n))] * layers, decisive=0)
    assert found.smallest_p == pytest.approx(layers / factorial(n))
    assert (layers / factorial(n) <= SIGNIFICANT) == enough == (found.above_chance is True)


def test_deep_models_are_dealt_more_so_that_the_rarest_outcome_still_counts():
    found = dealt([list(range(8))] * 121, decisive=120)
    assert found.n_assignments == 121 * 200 and found.smallest_p <= SIGNIFICANT
    assert found.above_chance is True


def test_facts_with_one_answer_are_one_answer():
    same = dealt([[1, 1, 1, 1, 2, 2]], [(1,), (1,), (1,), (1,), (2,), (2,)])
    assert (same.n_facts, same.n_answers) == (6, 2)
    assert same.by_layer[0].p == pytest.approx(factorial(4) * factorial(2) / factorial(6))
    assert same.above_chance is None


def test_others_answers_are_looked_for_in_the_form_in_which_a_prompt_is_judged():
    """Fact 0 is judged without a space, fact 1 with one; each has the other form on record."""

    def forms(text, with_space, without):
        both = (("with_space", with_space), ("no_space", without))
        return tuple(AnswerFormRecord(variant=variant, answer_ids=(i,)) for variant, i in both)

    prompts = [
        fact(0, answer("A", 10, variant="no_space", forms=forms("A", 0, 10))),
        fact(1, answer("B", 1, variant="with_space", forms=forms("B", 1, 11))),
    ]
    for tops, pairs in (((11, 0), 2), ((1, 10), 0)):
        curves = [curve_of(p.key, 1, {1: {"top1_id": top}}) for p, top in zip(prompts, tops, strict=True)]
        found = against_chance(curves_of(*curves), record_of(prompts, 1), "logit", {"L": None}, "L")
        assert found.at(1).null_rate == pairs / 2


def test_a_facts_own_answers_count_in_the_forms_in_which_each_is_judged():
    """Two accepted answers of fact 0, one judged with a space and one without: either is its own answer."""

    def judged(text, variant, with_space, without):
        both = (("with_space", with_space), ("no_space", without))
        forms = tuple(AnswerFormRecord(variant=name, answer_ids=(i,)) for name, i in both)
        return answer(text, with_space if variant == "with_space" else without, variant=variant, forms=forms)

    prompts = [
        fact(0, judged("A", "with_space", 0, 10), judged("a", "no_space", 20, 30)),
        fact(1, judged("B", "with_space", 1, 11)),
    ]
    for own, n_on_top in ((0, 1), (30, 1), (20, 0), (10, 0)):
        curves = [curve_of(p.key, 1, {1: {"top1_id": top}}) for p, top in zip(prompts, (own, OTHER), strict=True)]
        found = against_chance(curves_of(*curves), record_of(prompts, 1), "logit", {"L": None}, "L")
        assert found.at(1).n_on_top == n_on_top


def test_only_facts_with_an_answer_in_the_wording_that_stands_for_them_are_dealt():
    prompts = [
        fact(0, answer("A", 0)),
        fact(0, answer("A", 0), variant="no_filler"),
        fact(1, answer("B")),
        fact(2, answer("C", 2), judge="model_top1"),
        fact(3, answer("D"), answer("d", 3)),
        control(answer("E", 4), answer("A", 0)),
    ]
    curves = [curve_of(prompt.key, 1, {1: {"top1_id": 0}}) for prompt in prompts]
    found = against_chance(curves_of(*curves), record_of(prompts, 1), "logit", {"L": 1}, "L")
    assert (found.n_facts, found.n_answers) == (2, 2)
    assert found.at(1).null_rate == 1 / 2


def test_answers_are_dealt_within_a_wording():
    """Four facts in two wordings: each wording has two assignments."""
    prompts = [fact(i, answer(str(i), i), variant="ab"[i // 2]) for i in range(4)]
    curves = [curve_of(prompt.key, 1, {1: {"top1_id": i}}) for i, prompt in enumerate(prompts)]
    found = against_chance(curves_of(*curves), record_of(prompts, 1), "logit", {"L": 1}, "L")
    assert (found.n_assignments, found.at(1).p, found.at(1).expected) == (4, 1 / 4, 2.0)


def test_answers_are_dealt_among_prompts_with_the_same_words_around_their_subject():
    """A model that says any city where a city is asked for, and any tongue where a tongue is, knows no fact."""
    templates = ("{} lies in", "They speak {}: it is")
    asked = [(templates[i // 6].replace("{}", f"S{i}"), f"S{i}") for i in range(12)]
    says = [0] * 6 + [6] * 6  # of either kind always the same
    for known, p in ((True, 1.0), (False, None)):
        more = [{"text": text, "subject": subject if known else None} for text, subject in asked]
        prompts = [fact(i, answer(str(i), i), **more[i]) for i in range(12)]
        curves = [curve_of(prompt.key, 1, {1: {"top1_id": says[i]}}) for i, prompt in enumerate(prompts)]
        found = against_chance(curves_of(*curves), record_of(prompts, 1), "logit", {"L": 1}, "L").at(1)
        assert found.n_on_top == 2
        assert found.p == p if known else found.p < 1.0


def test_facts_that_are_each_asked_otherwise_cannot_be_tested():
    prompts = [fact(i, answer(str(i), i), text=f"{'so ' * i}S{i} is", subject=f"S{i}") for i in range(9)]
    curves = [curve_of(prompt.key, 1, {1: {"top1_id": i}}) for i, prompt in enumerate(prompts)]
    found = against_chance(curves_of(*curves), record_of(prompts, 1), "logit", {"L": 1}, "L")
    assert (found.above_chance, found.reason) == (None, "too few facts share a template for a test")


def test_without_facts_there_is_nothing_to_test():
    found = against_chance(curves_of(), record_of([], 4), "logit", {"L": None}, "L")
    assert (found.method, found.by_layer, found.above_chance, found.smallest_p) == (None, (), None, None)
    assert found.reason == "too few facts for a test"


def test_holms_correction_by_hand():
    assert holm({0: 0.01, 1: 0.04, 2: 0.03}) == pytest.approx({0: 0.03, 2: 0.06, 1: 0.06})
    assert holm({}) == {}
    assert holm({5: 0.9, 6: 0.8}) == {5: 1.0, 6: 1.0}
