"""Where patches say that an answer is carried, and what that makes of a lens' layer."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from layerscope import load_suite
from layerscope.analysis.handover import Handover, PatchVerdict, handover, patch_verdict
from layerscope.interventions.pairs import PairedFact, pairs_of
from layerscope.probing.probe import probe
from layerscope.record.patching import PatchCurveRecord, PatchedPairRecord, PatchingRecord
from layerscope.report.sentences.patching import sentence
from layerscope.report.sentences.verdict import VerdictText
from rounding import of_residual


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
        (29, 30, PatchVerdict.REFUTED),
        (30, 30, PatchVerdict.NOT_APPLICABLE),
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
    patched, n = run.record.measured.patching, run.record.model.n_layers
    assert patched is not None
    # Logits of this size, compared with themselves or with another product of the same rows.
    logit = 50 * of_residual(n_blocks=n, d_model=run.record.model.d_model)
    assert len(patched.pairs) == 20
    for pair in patched.pairs:
        moved = abs(pair.logit_difference_source - pair.logit_difference_base)
        assert {curve.position for curve in pair.curves} == {"subject", "next"}
        for curve in pair.curves:
            # Behind the last block the state at `next` is the output, and at the subject it is read by nobody; in
            # front of the first block both prompts end with the same token.
            due = 1.0 if curve.position == "next" else 0.0
            assert curve.effect[n] == pytest.approx(due, abs=4 * logit / moved)
            if curve.position == "next":
                assert curve.effect[0] == pytest.approx(0.0, abs=4 * logit / moved)
            own = pair.logit_difference_source if curve.position == "next" else pair.logit_difference_base
            assert curve.logit_difference[n] == pytest.approx(own, abs=4 * logit)
    assert patched.self_patch_logit_change is not None
    assert patched.self_patch_logit_change <= 2 * logit
    told = [line.text for line in VerdictText(run.verdict, run.record).summary() if line.label == "patching"]
    assert told[0].startswith(f"the answer is carried at the last token from layer {handover(patched, n).layer} on")


@pytest.mark.slow
def test_smollm2_hands_the_answer_over_in_block_24(smollm2: Path):
    """Found elsewhere with plain hooks: 0.03 at layer 23 and 0.87 at 24; the subject lets go from 0.96 to 0.00."""
    suite = load_suite("capitals-20")
    plain = replace(suite, prompts=tuple(p for p in suite.prompts if p.prompt_variant == "no_filler"))
    run = probe(smollm2, suite=plain, causal=True, lenses="logit", positions="last")
    patched = run.record.measured.patching
    assert patched is not None
    found = handover(patched, 30)
    assert (found.layer, found.release) == (24, 23)
    effects = {
        position: [median(c.effect[layer] or 0.0 for p in patched.pairs for c in p.curves if c.position == position)
                   for layer in range(31)]
        for position in ("next", "subject")
    }  # fmt: skip
    # Its eight facts were others: halves and tenths are what two sets of facts can have in common.
    assert effects["next"][23] < 0.1 < 0.8 < effects["next"][24]
    assert effects["subject"][24] < 0.1 < 0.9 < effects["subject"][23]
    assert patch_verdict(30, found) == PatchVerdict.READS_LATE


def test_where_nothing_before_the_output_carries_it_the_sentence_says_so():
    patched = record((0.0, 0.0, 0.0, 0.2, 1.0))
    told = sentence(patched, handover(patched, 4), 2, "logit")
    assert told == (
        "the answer is carried at the last token at no layer before the output (median of 1 pair); the logit lens has "
        "it on top for good from 2: refuted (an illustration: a claim takes 20 pairs)"
    )
