"""Acceptance of a tuned lens and the cost of skipped blocks: each criterion at its bound, and the published lenses."""

import pytest

from layerscope.analysis.acceptance import acceptance, skip_layers
from layerscope.analysis.curve import Curve, Curves
from layerscope.analysis.tuned_audit import HeadMismatch
from layerscope.record import COLUMNS
from layerscope.record.measured import FittedLensRecord, HeldOutRecord, SkipLayersRecord, TunedFitRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.run import Run

BLANK = {column.name: None for column in COLUMNS}
N = 8


def fact(index, gains=(1.0, 1.0, 1.0), earlier=(4, 2), ranked=True, prompt_id="pos", variant="orig"):
    """Both curves of a fact: gains at layers 2, 4 and 6; ranks 10 and 5 at layers 6 and 7, or so much earlier."""
    at = dict(zip((2, 4, 6), gains, strict=True))

    def rank(layer, first_10, first_5):
        return None if not ranked else 5 if layer >= first_5 else 10 if layer >= first_10 else 50

    asked = PromptKey(index, prompt_id, variant)
    for lens, less in (("logit", (0, 0)), ("tuned", earlier)):
        rows = tuple(
            BLANK
            | {
                "layer": layer,
                "kl_to_final_bits": 5.0 - (at.get(layer, 0.0) if lens == "tuned" else 0.0),
                "answer_rank": rank(layer, 6 - less[0], 7 - less[1]),
            }
            for layer in range(lens == "tuned", N + 1)
        )
        yield (asked, lens), Curve(asked, lens, N, 100, rows)


def judged(*facts, kl_after=0.0, held_out=None, relative=False):
    mismatch = HeadMismatch(kl_after, 1.0, kl_after, None, None)
    curves = Curves(dict(pair for pairs in facts for pair in pairs))
    return acceptance(curves, "logit", N, mismatch, held_out, relative)


def held_out(*gains):
    """Logit lens at 5 bits, and the fitted lens nearer by so much at layers 2, 4 and 6."""
    lens = [5.0] * (N + 1)
    for layer, gain in zip((2, 4, 6), gains, strict=True):
        lens[layer] -= gain
    return HeldOutRecord(n_positions=100, logit_bits=(5.0,) * (N + 1), lens_bits=tuple(lens))


def by_name(found, on="suite"):
    return {criterion.name: criterion for criterion in found.criteria if criterion.on == on}


def test_a_lens_that_meets_everything_is_accepted():
    found = judged(*(fact(i) for i in range(5)), held_out=held_out(1.0, 1.0, 1.0))
    assert [(c.name, c.on, c.passed) for c in found.criteria] == [
        ("A", "suite", True), ("B", "suite", True), ("C", "suite", True), ("D", "suite", True),
        ("A", "held_out", True), ("D", "held_out", True),
    ]  # fmt: skip
    assert found.accepted is True
    assert [c.n for c in found.criteria] == [5, 5, 1, 5, 100, 100]


def test_each_criterion_says_which_way_its_divergences_go():
    """Rows hold KL(lens || model); on held-out text a lens is measured by what it is fitted to, KL(model || lens)."""
    found = judged(fact(0), held_out=held_out(1.0, 1.0, 1.0))
    assert {(c.name, c.on): c.direction for c in found.criteria} == {
        ("A", "suite"): "lens_to_model", ("B", "suite"): None, ("C", "suite"): "lens_to_model",
        ("D", "suite"): "lens_to_model", ("A", "held_out"): "model_to_lens", ("D", "held_out"): "model_to_lens",
    }  # fmt: skip


def test_without_held_out_text_acceptance_stays_open_unless_something_fails():
    assert judged(fact(0)).accepted is None
    assert judged(fact(0, earlier=(0, 0))).accepted is False


@pytest.mark.parametrize(
    ("gains", "passed"),
    [
        ((0.25, 0.5, 0.5), True),
        ((0.125, 0.5, 0.5), False),
        ((0.25, 0.25, 0.5), False),
        ((0.25, 0.5, 0.25), False),
        ((0.25, 0.5, -0.0625), False),
    ],
)
def test_median_gains_of_the_facts_are_asked_for_at_three_depths(gains, passed):
    # Of three facts, one gains much more and one nothing, so the median is the middle one.
    found = by_name(judged(fact(0, (9.0, 9.0, 9.0)), fact(1, (-9.0, -9.0, -9.0)), fact(2, gains)))["A"]
    assert (found.value, found.passed) == (dict(zip(("p25", "p50", "p75"), gains, strict=True)), passed)
    assert found.threshold == {"p25": 0.2, "p50": 0.3, "p75": 0.3}
    assert by_name(judged(fact(0), held_out=held_out(*gains)), "held_out")["A"].passed is passed


@pytest.mark.parametrize(("worst", "passed"), [(0.0, True), (-0.0625, True), (-0.125, False)])
def test_no_depth_may_lose_more_than_a_tenth_of_a_bit(worst, passed):
    gains = (1.0, worst, 1.0)
    assert by_name(judged(fact(0, gains)))["D"].passed is passed
    assert by_name(judged(fact(0), held_out=held_out(*gains)), "held_out")["D"].passed is passed


@pytest.mark.parametrize(
    ("earlier", "share", "passed"),
    [
        ([(4, 2)] * 3 + [(0, 0)] * 2, 0.6, True),
        ([(4, 2)] * 2 + [(0, 0)] * 3, 0.4, False),
        ([(4, 1)] * 5, 0.0, False),  # both ranks have to come earlier
        ([(3, 2)] * 5, 0.0, False),
    ],
)
def test_ranks_of_10_and_5_come_earlier_on_most_prompts(earlier, share, passed):
    found = by_name(judged(*(fact(i, earlier=by) for i, by in enumerate(earlier))))["B"]
    assert (found.value, found.n, found.passed) == ({"share": share}, 5, passed)


def test_a_fact_that_either_lens_never_ranks_is_not_early_and_one_without_ranks_does_not_count():
    never = fact(1, earlier=(-99, -99))
    assert by_name(judged(fact(0), never))["B"].value == {"share": 0.5}
    assert by_name(judged(fact(0), fact(1, ranked=False)))["B"].value == {"share": 1.0}
    none = by_name(judged(fact(0, ranked=False)))["B"]
    assert (none.value, none.n, none.passed) == ({"share": None}, 0, None)


def test_a_fact_counts_once_whatever_its_wordings_and_a_control_not_at_all():
    others = [fact(0, (-9.0,) * 3, variant="no_filler"), fact(None, (-9.0,) * 3, prompt_id="ctl")]
    found = by_name(judged(fact(0), *others))["A"]
    assert (found.n, found.value["p50"]) == (1, 1.0)


@pytest.mark.parametrize(("kl", "passed"), [(0.0, True), (0.05, True), (0.0625, False), (None, None)])
def test_a_temperature_has_to_leave_the_last_row_near_the_head(kl, passed):
    assert by_name(judged(fact(0), kl_after=kl))["C"].passed is passed


def test_a_gain_that_is_not_known_leaves_its_criterion_open():
    short = HeldOutRecord(logit_bits=(5.0, 5.0, 5.0), lens_bits=(4.0, 4.0, 4.0))
    found = by_name(judged(fact(0), held_out=short), "held_out")
    assert found["A"].value == {"p25": 1.0, "p50": None, "p75": None}
    assert (found["A"].passed, found["D"].passed) == (None, None)
    assert by_name(judged())["A"].passed is None


# Skipped blocks


def skipping(*perplexities):
    fit = TunedFitRecord(
        temperatures=(1.0,) * (N + 1),
        skip_layers=tuple(
            SkipLayersRecord(blocks=m, layer=N - m, n_tokens=9, perplexity_lens=lens, perplexity_model=10.0)
            for m, lens in perplexities
        ),
    )
    return FittedLensRecord(kind="tuned", status="loaded", tuned=fit)


@pytest.mark.parametrize(("perplexity", "regression"), [(12.0, False), (12.5, True), (8.0, False)])
def test_two_skipped_blocks_may_cost_a_fifth_of_the_perplexity(perplexity, regression):
    found = skip_layers(skipping((2, perplexity), (4, 90.0)))
    assert [one.relative_loss for one in found.skipped] == pytest.approx([perplexity / 10 - 1, 8.0])
    assert (found.regression, found.reason) == (regression, None)


def test_where_two_blocks_were_not_skipped_no_regression_is_said():
    assert skip_layers(skipping((4, 90.0))).regression is None
    for sidecar in (None, skipping(), FittedLensRecord(kind="tuned", status="loaded")):
        found = skip_layers(sidecar)
        assert (found.skipped, found.regression) == ((), None)
        assert found.reason == "the tuned lens' own record has no perplexities"


# Published lenses

TUNED = [
    "Mistral-7B-v0.1", "Meta-Llama-3-8B", "Qwen3-8B", "gemma-2-9b", "Qwen3-14B", "gemma-2-27b", "Yi-34B",
    "Mistral-Small-24B-Base-2501",
]  # fmt: skip


@pytest.mark.parametrize("model", TUNED)
def test_no_published_lens_brings_ranks_earlier(shared, model):
    run = Run.read(shared / "reference" / "run-20251004-1804", model=model)
    found = by_name(run.diagnostics.acceptance)
    assert (found["B"].value, found["B"].passed) == ({"share": 0.0}, False)
    said = run.diagnostics.fitted_lenses["tuned"]
    assert all(pair.delta is None or pair.delta >= 0 for pair in said.rank_milestones.values())
    assert found["A"].value == {name: pair.delta for name, pair in said.kl_bits_at_percentiles.items()}
    assert found["C"].passed is (not model.startswith("gemma"))
    assert run.diagnostics.acceptance.accepted is False


# Under protocol `standard`: the gain as a share of what can be gained


def _left(*pairs):
    """Logit lens and fitted lens, in bits, at layers 2, 4 and 6."""
    both = [[1.0] * (N + 1), [1.0] * (N + 1)]
    for layer, bits in zip((2, 4, 6), pairs, strict=True):
        both[0][layer], both[1][layer] = bits
    return HeldOutRecord(n_positions=100, logit_bits=tuple(both[0]), lens_bits=tuple(both[1]))


@pytest.mark.parametrize(
    ("pairs", "shares", "passed"),
    [
        (((8.0, 4.0), (4.0, 2.5), (1.0, 0.5)), {"p25": 0.5, "p50": 0.375, "p75": 0.5}, True),
        (((8.0, 4.0), (4.0, 3.0), (1.0, 0.5)), {"p25": 0.5, "p50": 0.25, "p75": 0.5}, False),
        # A twentieth of a bit is not worth removing; what is left decides.
        (((8.0, 4.0), (4.0, 2.0), (0.05, 0.05)), {"p25": 0.5, "p50": 0.5}, True),
        (((8.0, 8.0), (4.0, 2.0), (0.05, 0.01)), {"p25": 0.0, "p50": 0.5}, False),
        (((0.1, 0.0), (0.1, 0.0), (0.1, 0.0)), {}, None),
    ],
)
def test_a_relative_gain_is_asked_for_where_there_is_something_to_gain(pairs, shares, passed):
    found = judged(fact(0), held_out=_left(*pairs), relative=True)
    (gain,) = [criterion for criterion in found.criteria if criterion.name == "A"]
    assert (gain.on, gain.value, gain.passed) == ("held_out", shares, passed)
    assert gain.threshold == dict.fromkeys(shares, 0.3)


def test_what_the_gain_is_on_the_suite_decides_nothing_then():
    """A fifth of a bit at a quarter of the depth is asked for in bits, and is nothing beside five."""
    without_gain = list(fact(0, gains=(0.0, 0.0, 0.0)))
    assert judged(without_gain, held_out=held_out(2.0, 2.0, 2.0)).accepted is False
    assert judged(without_gain, held_out=held_out(2.0, 2.0, 2.0), relative=True).accepted is True
    assert judged(without_gain, relative=True).accepted is None
