"""Where patches say that an answer is carried, and what that makes of a lens' layer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from layerscope import Run, load_suite
from layerscope.analysis.drawn_facts import FactDraws, drawn_medians
from layerscope.analysis.handover import (
    Effects,
    Handover,
    LayerAgainstPatches,
    Patching,
    PatchVerdict,
    handover,
    patch_verdict,
)
from layerscope.analysis.onsets import Blindness
from layerscope.errors import ModelError, RunError
from layerscope.interventions.pairs import PairedFact, Place, pairs_of
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.probe import probe
from layerscope.published.layout import EXTENDED
from layerscope.record.patches import METRICS, PATCH_COLUMNS, patches_frame
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import markdown
from layerscope.report.evaluation import evaluation
from layerscope.report.sentences import onsets
from layerscope.report.sentences.patching import sentence
from layerscope.report.sentences.verdict import VerdictText
from layerscope.report.synthesis import synthesis
from layerscope.report.synthesis.comparison_table import comparison_table
from layerscope.view import charts
from layerscope.view.charts.patching import NAMES
from layerscope.view.page.payload import payload
from layerscope.view.page.view import page_html
from rounding import of_residual


def patches(
    *effects: tuple[float | None, ...], place: str = "next", kind: str = "pair", source: int = 1
) -> pl.DataFrame:
    """A pair for each row of effects, of a fact and the one so many behind it."""
    cells = [(pair, layer, effect) for pair, of_pair in enumerate(effects) for layer, effect in enumerate(of_pair)]
    n = len(cells)
    known: dict[str, Sequence[object]] = {
        "kind": [kind] * n, "place": [place] * n, "position": [4] * n, "from_end": [0] * n,
        "pair": [pair for pair, _, _ in cells], "base": [pair for pair, _, _ in cells],
        "source": [pair + source for pair, _, _ in cells], "layer": [layer for _, layer, _ in cells],
    }  # fmt: skip
    metrics = {name: [None] * n for name in METRICS} | {"effect": [effect for _, _, effect in cells]}
    return patches_frame(known | metrics)


def beside_third(own: Sequence[tuple[float, ...]], third: Sequence[tuple[float, ...]]) -> pl.DataFrame:
    """Pairs, and the effect of a third fact's residual along each."""
    return pl.concat([patches(*own), patches(*third, kind="unrelated", source=2)])


def found(
    *effects: tuple[float, ...], lens_layer: float, n_unsure: int = 0, third: tuple[float, ...] | None = None
) -> Patching:
    n = len(effects[0]) - 1
    at = handover(patches(*effects) if third is None else beside_third(effects, [third] * len(effects)), n)
    against = LayerAgainstPatches(lens_layer, patch_verdict(lens_layer, at))
    return Patching(at, Effects((), (), {}), {"logit": {"on_top_for_good": against}}, n_unsure, 10, None)


def test_the_layer_is_the_first_from_which_on_the_median_stays_large():
    at = handover(patches((0.0, 0.9, 0.1, 0.6, 1.0), (0.0, 0.8, 0.2, 0.7, 1.0), (0.0, 0.9, 0.0, 0.5, 1.0)), 4)
    assert (at.layer, at.low, at.high, at.release, at.n_facts, at.n_pairs) == (3, None, None, None, 4, 3)
    assert handover(patches((0.0, 0.0, 0.0, 0.49, 1.0)), 4).layer == 4
    assert handover(patches((0.0, 0.0, None, 0.6, 1.0)), 4).layer == 3
    assert handover(patches((1.0, 0.9, 0.2, 0.6, 0.0), place="subject"), 4).release == 3


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
    assert [places(pair.subject_and_next) for pair in pairs] == [[("next", 4, 5)], [("next", 5, 4)]]
    assert [places(pair.every_place) for pair in pairs] == [[("next", 4, 5)], [("next", 5, 4)]]
    assert {pair.alignment for pair in pairs} == {"from_the_right"}
    pairs, _ = pairs_of([fact(0), fact(1)])
    assert places(pairs[0].subject_and_next) == [("subject", 3, 3), ("next", 4, 4)]


def test_every_position_from_the_first_difference_on_is_patched_where_all_are_asked_for():
    base = PairedFact(0, (1, 2, 7, 8, 3, 4), "t", 3, 100)
    source = PairedFact(1, (1, 2, 9, 6, 3, 4), "t", 3, 101)
    pairs, _ = pairs_of([base, source])
    due = [("other", 2, 2), ("subject", 3, 3), ("other", 4, 4), ("next", 5, 5)]
    assert places(pairs[0].every_place) == due


def test_where_the_subject_ends_the_prompt_the_last_position_alone_is_patched():
    short = PairedFact(0, (1, 2, 7), "t", 2, 100)
    long = PairedFact(1, (1, 2, 9, 6), "t", 3, 101)
    pairs, _ = pairs_of([short, long])
    assert [places(pair.every_place) for pair in pairs] == [[("next", 2, 3)], [("next", 3, 2)]]


def test_of_many_facts_every_so_many_are_paired():
    pairs, left_out = pairs_of([fact(i) for i in range(1000)])
    assert len(pairs) == 76
    assert len({pair.base.fact_index for pair in pairs}) == 38
    assert left_out == {"there are more facts than are needed": 962}


def places(of: Sequence[Place]) -> list[tuple[str, int, int]]:
    return [(place.name, place.position, place.source_position) for place in of]


@pytest.fixture(scope="module")
def bundled() -> Run:
    return probe(suite="capitals", causal_positions="all")


def test_effects_at_both_ends_of_the_model_are_known(bundled: Run):
    """Before the first block nothing at the last position differs; behind the last nothing else is read."""
    record, n = bundled.record.measured.patching, bundled.record.model.n_layers
    assert record is not None and len(record.pairs) == 20
    # Logits of this size, compared with themselves or with another product of the same rows.
    logit = 50 * of_residual(n_blocks=n, d_model=bundled.record.model.d_model)
    for i, pair in enumerate(record.pairs):
        close = 4 * logit / abs(pair.logit_difference_source - pair.logit_difference_base)
        of_pair = bundled.patches.filter(pl.col("kind") == "pair", pl.col("pair") == i)
        first, last = (of_pair.filter(pl.col("layer") == layer) for layer in (0, n))
        assert set(last["place"]) == {"subject", "next", "other"} or pair.alignment == "from_the_right"
        for row in last.to_dicts():
            assert row["effect"] == pytest.approx(1.0 if row["place"] == "next" else 0.0, abs=close)
            own = pair.logit_difference_source if row["place"] == "next" else pair.logit_difference_base
            assert row["logit_difference"] == pytest.approx(own, abs=4 * logit)
        for row in first.filter(pl.col("place") == "next").to_dicts():
            assert row["effect"] == pytest.approx(0.0, abs=close)
        subjects = [pair.alignment == "position" and first.filter(pl.col("place") != "next").height == 1]
        if all(subjects):  # a subject of one token: the prompts differ there alone, so the run becomes the source's
            alone = first.filter(pl.col("place") == "subject").to_dicts()
            assert all(row["effect"] == pytest.approx(1.0, abs=close) for row in alone)
    assert record.self_patch_logit_change is not None
    assert record.self_patch_logit_change <= 2 * logit


def test_effects_of_a_pair_add_up_to_one_where_its_prompts_differ_in_one_token(bundled: Run):
    """Where the subject is one token, the source is the base with it: at layer 0 and at the last, e sums to 1."""
    n = bundled.record.model.n_layers
    ends = bundled.patches.filter(pl.col("kind") == "pair", pl.col("layer").is_in([0, n]))
    one_token = ends.filter(pl.col("layer") == 0).group_by("pair").agg((pl.col("effect") > 0.5).sum() == 1)
    kept = one_token.filter("effect")["pair"].to_list()
    assert kept
    sums = ends.filter(pl.col("pair").is_in(kept)).group_by("pair", "layer").agg(pl.col("effect").sum())
    assert all(total == pytest.approx(1.0, abs=0.01) for total in sums["effect"])


def test_the_bundled_models_verdict_says_where_the_answer_is_carried(bundled: Run):
    told = [line.text for line in VerdictText(bundled.verdict, bundled.record).summary() if line.label == "patching"]
    patching = bundled.diagnostics.patching
    assert patching is not None
    layer = patching.handover.layer
    assert told[0].startswith(f"the answer is carried at the last token from layer {layer} on")
    assert set(patching.effects.controls) == {"same_answer", "unrelated", "random"}
    # Another wording of the same fact, and a step to nowhere, do not bring the source's answer.
    for kind in ("same_answer", "random"):
        assert max(abs(v) for v in patching.effects.controls[kind] if v is not None) < 0.5


def test_patches_are_saved_and_read_with_the_run_and_missed_where_they_are_not(bundled: Run, tmp_path: Path):
    bundled.save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == bundled
    table = pl.read_parquet(tmp_path / "run" / "patches.parquet")
    assert table.columns == [column.name for column in PATCH_COLUMNS]
    table.filter(pl.col("pair") > 0).write_parquet(tmp_path / "run" / "patches.parquet")
    with pytest.raises(RunError, match=r"patches\.parquet: the record has 20 patched pairs, .* is of 19"):
        Run.read(tmp_path / "run")
    alone = Run(bundled.rows, bundled.record)
    alone.save(tmp_path / "alone", published=EXTENDED)
    assert Run.read(tmp_path / "alone") == alone == Run.read(tmp_path / "alone" / "published")
    table.with_columns(kind=pl.lit("guess")).write_parquet(tmp_path / "run" / "patches.parquet")
    with pytest.raises(RunError, match="column `kind` of patches should be one of"):
        Run.read(tmp_path / "run")
    (tmp_path / "run" / "patches.parquet").unlink()
    with pytest.raises(RunError, match=r"patches\.parquet: cannot be read"):
        Run.read(tmp_path / "run")


def test_a_suite_of_one_fact_is_not_patched_and_says_why():
    run = probe(suite="berlin", lenses="logit")
    assert len(run.patches) == 0
    assert run.diagnostics.patching is not None
    assert (
        run.diagnostics.patching.reason
        == "in the wording orig no two facts of one template are answered by the model with different tokens"
    )
    assert probe(suite="berlin", lenses="logit", causal=False).diagnostics.patching is None


@pytest.mark.slow
def test_smollm2_hands_the_answer_over_in_block_24(smollm2: Path):
    """Found elsewhere with plain hooks: 0.03 at layer 23 and 0.87 at 24; the subject lets go from 0.96 to 0.00."""
    suite = load_suite("capitals-20")
    plain = replace(suite, prompts=tuple(p for p in suite.prompts if p.prompt_variant == "no_filler"))
    run = probe(smollm2, suite=plain, lenses="logit", positions="last")
    patching = run.diagnostics.patching
    assert patching is not None
    at, effects = patching.handover, patching.effects
    assert (at.layer, at.release) == (24, 23)
    # Its eight facts were others: halves and tenths are what two sets of facts can have in common.
    assert effects.next[23] < 0.1 < 0.8 < effects.next[24]
    assert effects.subject[24] < 0.1 < 0.9 < effects.subject[23]
    assert patching.verdict_of("logit") == PatchVerdict.READS_LATE


def test_where_nothing_before_the_output_carries_it_the_sentence_says_so():
    told = sentence(found((0.0, 0.0, 0.0, 0.2, 1.0), lens_layer=2), "logit")
    assert told == (
        "the answer is carried at the last token at no layer before the output (median over 2 facts in 1 pair); "
        "no third fact's state could be held against that; the logit lens has it on top for good from 2: "
        "refuted (an illustration: a claim takes 10 facts)"
    )


def test_published_files_hold_every_patch_and_reports_cite_them(bundled: Run, tmp_path: Path):
    bundled.save(tmp_path / "run", published=EXTENDED)
    assert Run.read(tmp_path / "run" / "published") == bundled
    evidence = Evidence.of(tmp_path / "run")
    text = markdown(evaluation(evidence))
    patching = bundled.diagnostics.patching
    assert patching is not None
    assert (
        f"carries at least half of the answer from layer {patching.handover.layer} on (median over 5 facts in 20"
        in text
    )
    assert "That is an illustration: a claim takes 10 facts." in text
    header = (
        "| layer | last token | subject | same fact, other wording | third fact | random step | beyond third fact |"
    )
    assert header in text
    table = comparison_table([evidence])
    assert table["handover_layer"].item() == patching.handover.layer
    assert table["handover_verdict"].item() == patching.verdict_of("logit")
    assert "Does the model use it?" in markdown(synthesis([evidence]))
    (tmp_path / "run" / "published" / "output-reference-patches.csv").unlink()
    lost = Run.read(tmp_path / "run" / "published")
    assert any("what came of every patch" in problem.message for problem in lost.problems)
    assert lost.diagnostics.patching is not None and lost.diagnostics.patching.reason is not None


def test_the_headline_says_that_the_answer_is_carried_before_a_lens_has_it():
    blind = Blindness("logit", 4, 0, 3, 9.0, 5, 1.0, None)
    third = (0.0, 0.0, 0.5, 0.5, 0.5)
    late = found(*[(0.0, 0.0, 0.9, 0.9, 1.0)] * 20, lens_layer=4, third=third)
    told = onsets.blind(blind, ("logit",), late)
    assert told == "By patching the answer is carried at the last token from layer 2 on."
    at_once = found(*[(0.0, 0.0, 0.0, 0.9, 1.0)] * 20, lens_layer=4, third=third)
    assert onsets.blind(blind, ("logit",), at_once) == ""
    assert "a tuned lens or a patch would tell" in onsets.blind(blind, ("logit",), None)


def test_patched_runs_less_certain_than_both_their_parents_are_said_to_be_so():
    told = sentence(found((0.0, 0.0, 0.9, 0.9, 1.0), lens_layer=2, n_unsure=3), "logit")
    assert "; 3 of 10 patched runs from there on are less certain than both runs that they mix" in told
    assert "less certain" not in sentence(found((0.0, 0.0, 0.9, 0.9, 1.0), lens_layer=2, n_unsure=2), "logit")


def test_charts_show_effects_by_layer_and_a_map_where_all_positions_were_patched(bundled: Run):
    curves, places = charts.patching(bundled, "effects"), charts.patching(bundled, "map")
    n = bundled.record.model.n_layers
    assert set(curves.table["curve"]) == set(NAMES.values())
    assert curves.table.filter(pl.col("curve") == NAMES["next"])["effect"].to_list()[n] == pytest.approx(1.0, abs=1e-3)
    assert "the last token at layers" in places.description
    cell = places.table.filter(pl.col("from_end") == 0, pl.col("layer") == n)["effect"].item()
    assert cell == pytest.approx(1.0, abs=1e-3)
    assert "Where the answer is carried" in bundled.plot("patching").to_json()
    with pytest.raises(RunError, match="There is no chart 'x' of patching; choose from effects, map"):
        charts.patching(bundled, "x")
    alone = probe(suite="berlin", lenses="logit")
    with pytest.raises(RunError, match="Nothing was patched in this run: in the wording orig no two facts"):
        charts.patching(alone, "effects")


def test_the_page_has_the_carrier_beside_every_layer(bundled: Run):
    shown = payload([bundled]).runs[0].carried
    assert shown is not None
    assert len(shown.next) == len(shown.subject) == bundled.record.model.n_layers + 1
    assert 'id="patching"' in page_html([bundled])
    assert 'id="patching"' not in page_html([probe(suite="berlin", lenses="logit", causal=False)])


def test_where_weights_would_be_read_again_patches_ride_along_and_say_the_same(bundled: Run, monkeypatch):
    passes: list[bool] = []
    forward, apart = CausalLM.forward, CausalLM.run_patched

    def counted(self, *args, riding=None, **kwargs):
        passes.append(riding is not None)
        return forward(self, *args, riding=riding, **kwargs)

    monkeypatch.setattr(CausalLM, "forward", counted)
    monkeypatch.setattr(CausalLM, "run_patched", lambda *args, **kwargs: pytest.fail("a pass of its own"))
    monkeypatch.setattr(CausalLM, "patches_ride", True)
    run = probe(suite="capitals", causal_positions="all")
    monkeypatch.setattr(CausalLM, "run_patched", apart)
    assert passes[0]
    keys = ["kind", "pair", "base", "source", "place", "position", "from_end", "layer"]
    assert run.patches.select(keys).equals(bundled.patches.select(keys))
    logit = 50 * of_residual(n_blocks=run.record.model.n_layers, d_model=run.record.model.d_model)
    assert_frame_equal(run.patches.select("effect"), bundled.patches.select("effect"), abs_tol=8 * logit)
    assert run.record.measured.patching is not None
    assert run.diagnostics.patching.handover == bundled.diagnostics.patching.handover


def test_patches_that_fail_lose_no_row_that_was_measured(monkeypatch):
    def fails(*args: object, **kwargs: object) -> None:
        raise ModelError("a block is strange")

    monkeypatch.setattr(CausalLM, "run_patched", fails)
    run = probe(suite="capitals", lenses="logit", positions="last")
    assert len(run.rows) > 0 and len(run.patches) == 0
    assert run.diagnostics.patching is not None
    assert run.diagnostics.patching.reason == "the patches failed (a block is strange)"


def test_facts_with_several_accepted_answers_are_patched_when_it_is_known_which_one_is_said(bundled: Run, monkeypatch):
    suite = load_suite("capitals")
    prompts = tuple(
        replace(p, answers=(" Bonn", *p.answers)) if p.subject == "Germany" and p.prompt_id == "pos" else p
        for p in suite.prompts
    )
    monkeypatch.setattr(CausalLM, "patches_ride", True)
    run = probe(suite=replace(suite, prompts=prompts), lenses="logit", positions="last")
    assert run.record.measured.patching is not None
    assert len(run.record.measured.patching.pairs) == 20


def test_a_headline_takes_ten_facts_and_a_third_fact_that_does_less():
    third = (0.0, 0.0, 0.5, 0.5, 0.5)
    enough = found(*[(0.0, 0.0, 0.9, 0.9, 1.0)] * 10, lens_layer=4, third=third).handover
    assert enough.supports_a_claim and enough.n_facts == 11
    assert not replace(enough, layer=0).supports_a_claim
    assert not replace(enough, beyond_third=None).supports_a_claim
    few = found(*[(0.0, 0.0, 0.9, 0.9, 1.0)] * 8, lens_layer=4, third=third).handover
    assert not few.supports_a_claim and few.n_facts == 9
    assert (few.low, few.high) == (None, None)


def test_taking_the_bases_answer_away_is_not_carrying_the_sources():
    """Half of the logit difference goes from layer 1 on, and as much with a third fact's state: nothing has come."""
    erased = found(*[(0.0, 0.6, 0.6, 0.6, 1.0)] * 12, lens_layer=2, third=(0.0, 0.6, 0.5, 0.6, 0.5))
    assert (erased.handover.layer, erased.handover.effect_from) == (4, 1)
    assert erased.verdict_of("logit") == PatchVerdict.REFUTED
    told = sentence(erased, "logit")
    assert "at no layer before the output" in told
    assert "from 1 on a patch takes the other answer away" in told
    # A state that brings the share a of one answer and takes the share b of the other away has the effect (a + b) / 2,
    # and the third fact's b / 2: with a = 0.6 at layer 2 it is carried from there on, with a = 0.4 at layer 1 not yet.
    half = found(*[(0.0, 0.7, 0.8, 0.9, 1.0)] * 12, lens_layer=2, third=(0.0, 0.5, 0.5, 0.5, 0.5))
    assert (half.handover.layer, half.handover.effect_from) == (2, 1)
    third = half.handover.beyond_third
    assert third is not None and third.is_clear
    assert (third.gap, third.at_the_output, third.n_pairs, third.n_facts) == (pytest.approx(0.3), 0.5, 12, 14)


def test_where_a_third_fact_may_do_as_much_nothing_is_claimed():
    own = [(0.0, 0.0, 0.9, 0.9, 1.0)] * 12
    at = handover(beside_third(own, [(0.0, 0.0, 0.5, 0.5, 0.5), (0.0, 0.0, 0.95, 0.95, 0.5)] * 6), 4)
    assert (at.layer, at.is_unclear) == (4, False)
    at = handover(beside_third(own, [(0.0, 0.0, 0.5, 0.5, 0.5)] * 7 + [(0.0, 0.0, 0.95, 0.95, 0.5)] * 5), 4)
    assert at.layer == 2 and at.beyond_third is not None
    assert at.beyond_third.low is not None and at.beyond_third.low <= 0 < at.beyond_third.gap
    assert at.is_unclear and not at.supports_a_claim
    assert patch_verdict(2, at) == PatchVerdict.UNDETERMINED
    told = sentence(Patching(at, Effects((), (), {}), {}, 0, 10, None), "logit")
    assert "whether it brings its own or takes the other away is not clear" in told
    assert "is carried" not in told


def test_what_is_not_clear_is_named_at_the_layer_where_it_was_found():
    """A patch moves the answer from layer 1 on; the gap that is not clear is that of layer 2."""
    own = [(0.0, 0.6, 0.9, 0.9, 1.0)] * 12
    third = [(0.0, 0.6, 0.5, 0.5, 0.5)] * 7 + [(0.0, 0.6, 0.95, 0.95, 0.5)] * 5
    at = handover(beside_third(own, third), 4)
    assert (at.effect_from, at.layer, at.is_unclear) == (1, 2, True)
    assert at.beyond_third is not None and at.beyond_third.gap == pytest.approx(0.4)
    told = sentence(Patching(at, Effects((), (), {}), {}, 0, 10, None), "logit")
    assert told.startswith("from layer 1 on a patch at the last token moves the answer by half or more (")
    assert "; at layer 2 a third fact's state has an effect smaller by 0.40" in told


def test_a_lens_far_from_the_model_beside_patches_of_few_facts():
    """What patches would tell was told by patches, but of too few facts for a claim."""
    few = found(*[(0.0, 0.9, 0.9, 0.9, 1.0)] * 8, lens_layer=3, third=(0.0, 0.5, 0.5, 0.5, 0.5))
    assert few.handover.is_an_illustration
    blindness = Blindness("logit", 3, 0, 2, 7.5, 9, 5.0, None)
    told = onsets.blind(blindness, ("logit",), few)
    assert told.endswith("so the answer may be carried earlier; the facts that were patched are too few for a claim.")


def test_where_there_is_no_third_fact_it_is_said_that_nothing_was_tested():
    two = found((0.0, 0.0, 0.9, 0.9, 1.0), lens_layer=2)
    assert two.handover.beyond_third is None
    assert "no third fact's state could be held against that" in sentence(two, "logit")
    # Third facts whose own runs say the source's answer tell nothing apart.
    same = found(*[(0.0, 0.0, 0.9, 0.9, 1.0)] * 12, lens_layer=2, third=(0.0, 0.0, 0.9, 0.9, 1.0))
    assert same.handover.layer == 2
    assert same.handover.beyond_third is None and not same.handover.supports_a_claim


def test_a_bootstrap_over_facts_covers_what_one_over_pairs_misses():
    """Twelve facts, each with an effect as base and one as source; the true median over pairs is zero."""
    generator, n = np.random.default_rng(1), 12
    pairs, _ = pairs_of([fact(i) for i in range(n)])
    base, source = np.array([(pair.base.fact_index, pair.source.fact_index) for pair in pairs]).T
    weights = FactDraws(range(n)).weights(np.stack([base, source], axis=1))
    of_pairs = np.random.default_rng(2).multinomial(len(base), [1 / len(base)] * len(base), size=500)
    covered = {"facts": 0, "pairs": 0}
    for _ in range(100):
        as_base, as_source = generator.normal(size=(2, n))
        effects = (as_base[base] + as_source[source] + 0.3 * generator.normal(size=len(base)))[:, None]
        for name, drawn in (("facts", weights[:500]), ("pairs", of_pairs)):
            found = drawn_medians(effects, drawn)
            low, high = np.nanpercentile(found, [2.5, 97.5])
            covered[name] += bool(low <= 0 <= high)
    assert covered["facts"] >= 88
    assert covered["pairs"] <= 80


def test_medians_of_resamples_are_those_of_rows_written_out_as_often():
    generator = np.random.default_rng(3)
    curves = generator.normal(size=(7, 4))
    curves[2, 1] = curves[5, 3] = np.nan
    weights = generator.integers(3, size=(50, 7))
    weights[0] = 0
    found = drawn_medians(curves, weights)
    assert np.isnan(found[0]).all()
    for drawn, times in zip(found[1:], weights[1:], strict=True):
        written_out = np.repeat(curves, times, axis=0)
        due = [np.median(column[~np.isnan(column)]) for column in written_out.T]
        assert drawn == pytest.approx(due, abs=1e-15)


def test_a_fact_drawn_twice_makes_no_pair_with_itself():
    weights = FactDraws([3, 8]).weights(np.array([[3, 8], [8, 3]]))
    assert set(np.unique(weights)) == {0, 1}  # once each, or one of them twice and the other not at all
    assert (weights[:, 0] == weights[:, 1]).all()
