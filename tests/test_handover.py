"""Where patches say that an answer is carried, and what that makes of a lens' layer."""

import pytest

from layerscope.analysis.handover import Handover, PatchVerdict, handover, patch_verdict
from layerscope.interventions.pairs import PairedFact, pairs_of
from layerscope.probing.probe import probe
from layerscope.record.patching import PatchCurveRecord, PatchedPairRecord, PatchingRecord


def record(*effects: tuple[float | None, ...]) -> PatchingRecord:
    def curve(effect: tuple[float | None, ...]) -> PatchCurveRecord:
        nothing = (None,) * len(effect)
        names = set(PatchCurveRecord.model_fields) - {"position", "effect"}
        return PatchCurveRecord(position="next", effect=effect, **dict.fromkeys(names, nothing))

    def pair(i: int, effect: tuple[float | None, ...]) -> PatchedPairRecord:
        return PatchedPairRecord(
            base=i, source=i + 1, base_answer_id=1, source_answer_id=2, alignment="position",
            logit_difference_base=4.0, logit_difference_source=-4.0, entropy_base_bits=1.0, entropy_source_bits=1.0,
            curves=(curve(effect),),
        )  # fmt: skip

    return PatchingRecord(prompt_variant="orig", pairs=tuple(pair(i, e) for i, e in enumerate(effects)))


def test_the_layer_is_the_first_from_which_on_the_median_stays_large():
    found = handover(record((0.0, 0.9, 0.1, 0.6, 1.0), (0.0, 0.8, 0.2, 0.7, 1.0), (0.0, 0.9, 0.0, 0.5, 1.0)), 4)
    assert (found.layer, found.low, found.high, found.release, found.n_pairs) == (3, 3, 3, None, 3)
    assert handover(record((0.0, 0.0, 0.0, 0.49, 1.0)), 4).layer == 4
    assert handover(record((0.0, 0.0, None, 0.6, 1.0)), 4).layer == 3


@pytest.mark.parametrize(
    ("layer", "carried", "verdict"),
    [
        (30, 24, PatchVerdict.READS_LATE),
        (25, 24, PatchVerdict.CONFIRMED),
        (23, 24, PatchVerdict.CONFIRMED),
        (22.5, 24, PatchVerdict.READS_AHEAD),
        (20, 30, PatchVerdict.REFUTED),
        (29, 30, PatchVerdict.CONFIRMED),
        (None, 24, PatchVerdict.NOT_APPLICABLE),
        (24, None, PatchVerdict.NOT_APPLICABLE),
    ],
)
def test_a_lens_is_held_against_it(layer: float | None, carried: int | None, verdict: PatchVerdict):
    assert patch_verdict(layer, Handover(carried, None, None, None, 30, 30)) == verdict


def fact(i: int, n_tokens: int = 5, answer_id: int | None = None, template: str = "t") -> PairedFact:
    return PairedFact(i, tuple(range(n_tokens)), template, n_tokens - 2, 100 + i if answer_id is None else answer_id)


def test_eight_facts_have_fifty_six_ordered_pairs_and_a_ring_both_ways():
    pairs, left_out = pairs_of([fact(i) for i in range(8)], enough=56)
    named = {(pair.base.fact_index, pair.source.fact_index) for pair in pairs}
    assert len(pairs) == len(named) == 56
    assert not left_out
    few, _ = pairs_of([fact(i) for i in range(19)])
    assert len(few) == 38
    ways = {(pair.base.fact_index, pair.source.fact_index) for pair in few}
    assert ways == {(b, a) for a, b in ways}


def test_what_makes_no_pair_is_counted():
    pairs, left_out = pairs_of([fact(0), fact(1, template="u")])
    assert (pairs, sum(left_out.values())) == ([], 2)
    pairs, left_out = pairs_of([fact(0, answer_id=9), fact(1, answer_id=9)])
    assert (pairs, sum(left_out.values())) == ([], 2)


def test_prompts_of_different_lengths_are_patched_behind_both_subjects_alone():
    pairs, _ = pairs_of([fact(0, 5), fact(1, 6)])
    assert [dict(pair.places) for pair in pairs] == [{"next": (4, 5)}, {"next": (5, 4)}]
    assert {pair.alignment for pair in pairs} == {"from_the_right"}
    pairs, _ = pairs_of([fact(0), fact(1)])
    assert dict(pairs[0].places) == {"subject": (3, 3), "next": (4, 4)}


def test_the_bundled_model_is_patched_and_its_verdict_says_where_the_answer_is_carried():
    run = probe(suite="capitals", causal=True)
    patched = run.record.measured.patching
    assert patched is not None
    assert patched.pairs
    n = run.record.model.n_layers
    for pair in patched.pairs:
        for curve in pair.curves:
            at_next = curve.position == "next"
            # Behind the last block the state at `next` is the output, and at the subject it is read by nobody; in
            # front of the first both prompts end with the same token.
            assert curve.effect[n] == pytest.approx(1.0 if at_next else 0.0, abs=1e-5)
            if at_next:
                assert curve.effect[0] == pytest.approx(0.0, abs=1e-4)
                assert curve.kl_to_source_bits[n] == pytest.approx(0.0, abs=1e-4)
            assert curve.logit_difference[n] == pytest.approx(
                pair.logit_difference_source if at_next else pair.logit_difference_base, abs=1e-3
            )
    assert patched.self_patch_logit_change is not None
    assert patched.self_patch_logit_change < 1e-3
    found = handover(patched, n)
    assert found.layer is not None
    assert 0 < found.layer <= n
