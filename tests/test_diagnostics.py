"""The verdict of a run: what is put together from rows and measurements, and that no order matters."""

import json
import random
from dataclasses import fields

import polars as pl
import pytest

from fitted_lenses import with_fitted_lenses
from layerscope import Run, probe
from layerscope.analysis.diagnostics import judge, protocol_in_force
from layerscope.analysis.milestones import Milestone
from layerscope.analysis.verdict_json import verdict_text
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import PROTOCOLS, Thresholds
from probed import probed


@pytest.fixture(scope="module")
def run() -> Run:
    return probed("capitals-20", positions="last")


def test_every_milestone_rests_on_the_row_it_names(run: Run):
    rows = run.rows.with_row_index("row")
    placed = run.milestones.frame().drop_nulls("layer")
    assert placed.height > 1000
    joined = placed.join(rows, on="row", how="left", suffix="_in_row", nulls_equal=True)
    for name in (
        "fact_index",
        "prompt_id",
        "prompt_variant",
        "lens",
        "layer",
        "entropy_bits",
        "p_answer",
        "answer_rank",
    ):
        assert joined[name].eq_missing(joined[f"{name}_in_row"]).all(), name
    assert joined["is_next"].all()


def test_there_is_a_layer_or_a_reason(run: Run):
    assert all((m.layer is None) == (m.row is None) == (m.reason is not None) for m in run.milestones)


def test_plain_names_mean_the_headline_lens_and_the_primary_prompt(run: Run):
    assert run.milestones.of() == run.milestones.of("logit", PromptKey(0, "pos", "orig"))
    assert run.milestones.of("next_norm").keys() < run.milestones.of().keys()  # confirmation is sought for one lens
    assert run.milestones.of("tuned") == {}
    assert run.diagnostics.semantic == run.milestones.of()["L_semantic_strong_run2"]


def test_the_gap_between_the_decoding_points_is_that_of_their_onsets(run: Run):
    gap = run.diagnostics.decoding_point.onset_gap
    logit, next_norm = (run.milestones.of(lens)["L_semantic"].layer for lens in ("logit", "next_norm"))
    assert (gap.logit, gap.next_norm, gap.gap_layers) == (logit, next_norm, next_norm - logit)


def test_a_suite_of_ten_facts_or_more_has_intervals_and_a_small_one_says_why_not(run: Run):
    onset = run.diagnostics.statistics.by_milestone["L_semantic"]
    low, high = onset.interval_95
    assert onset.n == 20 and low <= onset.median <= high
    small = probe(suite="capitals", positions="last", device="cpu").diagnostics.statistics.by_milestone["L_semantic"]
    assert small.n == 5 and small.interval_95 is None and small.interval_reason


def test_shuffling_facts_changes_no_aggregate(run: Run):
    order = list(range(20))
    random.Random(5).shuffle(order)
    facts = run.rows.filter(pl.col("fact_index").is_not_null())
    shuffled = [facts.filter(fact_index=old).with_columns(pl.lit(new, pl.Int32).alias("fact_index")) for new, old in enumerate(order)]  # fmt: skip # noqa: E501
    controls = run.rows.filter(pl.col("fact_index").is_null())
    before, after = run.verdict, judge(pl.concat([*shuffled, controls]), run.record)
    assert before.diagnostics.statistics == after.diagnostics.statistics
    for field in fields(before.diagnostics.micro_suite):
        if field.name != "facts":
            assert getattr(before.diagnostics.micro_suite, field.name) == getattr(
                after.diagnostics.micro_suite, field.name
            )
    assert before.diagnostics.control == after.diagnostics.control


def test_the_thresholds_in_force_are_those_of_the_record(run: Run):
    strict = Thresholds(semantic_gap=50.0)
    record = run.record.model_copy(
        update={"protocol": run.record.protocol.model_copy(update={"thresholds": strict.as_dict()})}
    )
    assert protocol_in_force(record).thresholds == strict
    found = judge(run.rows, record).milestones.of()
    assert found["L_semantic_strong"].layer is None and found["L_semantic"].layer is not None
    assert Thresholds.from_dict(PROTOCOLS["published"].thresholds.as_dict()) == PROTOCOLS["published"].thresholds
    assert Thresholds.from_dict({}) == Thresholds()


def test_under_standard_the_last_layer_is_no_sign_of_a_lens_artefact(run: Run):
    """There the headline lens is the model itself, so an answer that only it has cannot be its doing."""
    n = run.record.model.n_layers
    wrong = pl.when((pl.col("lens") == "raw") & (pl.col("layer") == n)).then(9).otherwise("answer_rank")
    rows = run.rows.with_columns(wrong.cast(pl.Int32).alias("answer_rank"))
    verdict = judge(rows, run.record)
    assert n in verdict.diagnostics.raw_window.norm_only_semantics_layers
    assert "norm_only_semantics_window" not in {reason.name for reason in verdict.guidance.reasons}
    published = run.record.protocol.model_copy(update={"name": "published"})
    as_published = judge(rows, run.record.model_copy(update={"protocol": published}))
    assert "norm_only_semantics_window" in {reason.name for reason in as_published.guidance.reasons}


def test_a_run_without_its_headline_lens_or_any_fact_still_has_a_verdict(run: Run):
    without = judge(run.rows.filter(pl.col("lens") != "logit"), run.record)
    assert without.diagnostics.semantic is None and without.milestones.of() == {}
    nothing = judge(run.rows.head(0), run.record)
    assert nothing.diagnostics.primary is None and nothing.diagnostics.statistics.n == 0
    controls = judge(run.rows.filter(prompt_id="ctl"), run.record)
    assert controls.diagnostics.primary is None and controls.diagnostics.control.max_control_margin is not None


def test_the_verdict_is_written_as_plain_json(run: Run):
    said = json.loads(verdict_text(run.verdict, run.record))
    assert set(said) == {"run_id", "protocol", "model", "n_layers", "judge", "milestones", "diagnostics", "guidance"}
    assert said["judge"] == said["diagnostics"]["judge"] == "first_piece"
    own = said["milestones"]["logit"]["L_semantic"]
    found: Milestone = run.milestones.of()["L_semantic"]
    assert (own["layer"], own["row"], own["p_answer"]) == (found.layer, found.row, found.p_answer)
    assert [r["name"] for r in said["guidance"]["reasons"]] == [r.name for r in run.guidance.reasons]
    assert said["diagnostics"]["primary"] == "pos 0 orig"


# What the model says, over facts


def test_the_bundled_model_answers_every_fact_in_both_wordings_and_by_more_than_chance(run: Run):
    found = run.diagnostics
    assert (found.answered.n, found.answered.n_answered, found.answered.found_and_lost) == (20, 20, ())
    assert found.answered.n_prompts_by_variant == {"orig": (20, 20), "no_filler": (20, 20)}
    assert (found.chance.n_answers, found.chance.method, found.chance.above_chance) == (20, "sampled", True)
    answers, reason = found.wording.answers, found.wording.reason
    assert (answers.n, answers.only_first, answers.only_second, answers.mcnemar_p, reason) == (20, (), (), 1.0, None)
    assert found.controls.n == 1 and found.controls.controls[0].contrast_fact == "Germany→Berlin"


def test_outputs_are_those_of_the_last_layer_which_is_the_model(run: Run):
    last = run.rows.filter("is_next", lens="logit", layer=run.record.model.n_layers)
    assert len(run.diagnostics.outputs) == last.height == 41
    for output in run.diagnostics.outputs.values():
        (row,) = output.prompt.rows_of(last).to_dicts()
        assert (output.top_id, output.answer_rank) == (row["top1_id"], row["answer_rank"])
        assert output.p_answer == pytest.approx(row["p_answer"], rel=1e-4)


def test_each_median_is_that_of_the_milestones_of_answered_facts(run: Run):
    last, over = run.record.model.n_layers, run.diagnostics.layers_over_facts
    for layer in (over.first_on_top, over.on_top_for_good, over.clearly_ahead):
        placed = run.milestones.frame().filter(prompt_variant="orig", lens="logit", milestone=layer.milestone)
        values = placed.filter(pl.col("fact_index").is_not_null())["layer"]
        assert (layer.summary.n, layer.summary.median) == (20, values.median())
        assert layer.median_depth == pytest.approx(values.median() / last)


def test_the_last_layer_is_the_model_and_nothing_is_withheld(run: Run):
    found, last = run.diagnostics.quotability, run.record.model.n_layers
    assert [found.status(lens, last) for lens in ("logit", "next_norm")] == ["model", "model"]
    assert found.status("raw", last) in ("near", "decoded")  # without the final norm it is another thing
    assert not any(found.withheld(lens) for lens in found.by_lens)
    assert not run.guidance.suppress_abs_probs


def test_a_prompt_judged_by_its_whole_answer_is_looked_at_closely_by_its_first_piece(run: Run):
    """What was decoded again, through other norms or at other scales, was the first piece."""
    first, *others = run.record.suite.prompts
    suite = run.record.suite.model_copy(update={"prompts": (first.model_copy(update={"judge": "whole"}), *others)})
    whole = {"answer_rank_all": pl.lit(2, pl.Int32), "answer_log_prob_nats_all": pl.lit(-1.0)}
    verdict = judge(run.rows.with_columns(**whole), run.record.model_copy(update={"suite": suite}))
    found, before = verdict.diagnostics, run.diagnostics
    assert (found.judge, found.semantic, verdict.milestones.of()["L_semantic"].layer) == ("whole", None, None)
    assert (found.outputs[first.key].answer_rank, found.outputs[first.key].log_prob_nats) == (2, -1.0)
    assert found.answered.n_answered == before.answered.n_answered - 1
    assert (found.gate_stability, found.decoding_point) == (before.gate_stability, before.decoding_point)
    assert found.forward_of_two == before.forward_of_two


# Fitted lenses


@pytest.fixture(scope="module")
def fitted(run: Run) -> Run:
    return with_fitted_lenses(run)


def _with_parts(run: Run, rotation: float, temperature: float) -> Run:
    """The run with parts of the tuned lens that gain those shares of what the whole gains."""
    n = run.record.model.n_layers
    asked = run.diagnostics.primary
    own, tuned = (
        {row["layer"]: row["kl_to_final_bits"] for row in run.verdict.curves.get(asked, lens).rows}
        for lens in ("logit", "tuned")
    )
    measured = run.record.measured
    parts = {
        name: part.model_copy(
            update={
                "kl_to_final_bits": (
                    None, *(own[layer] - share * (own[layer] - tuned[layer]) for layer in range(1, n + 1))
                )
            }
        )
        for name, part, share in (
            ("rotation_only", measured.tuned_variants.rotation_only, rotation),
            ("temperature_only", measured.tuned_variants.temperature_only, temperature),
        )
    }  # fmt: skip
    variants = measured.tuned_variants.model_copy(update=parts)
    return Run(
        run.rows,
        run.record.model_copy(update={"measured": measured.model_copy(update={"tuned_variants": variants})}),
    )


def test_a_run_without_a_tuned_lens_has_no_audit_of_one_and_no_doubt_about_it(run: Run):
    found = run.diagnostics
    assert (found.tuned_audit, found.acceptance, found.skip_layers, found.attribution) == (None,) * 4
    assert run.guidance.preferred_semantics_lens_hint is None
    assert "tuned_is_calibration_only" not in run.guidance.undetermined


def test_a_tuned_lens_that_is_little_more_than_a_temperature_is_not_preferred(fitted: Run):
    calibrating = _with_parts(fitted, rotation=0.0, temperature=0.9)
    assert calibrating.diagnostics.tuned_audit.calibration_only is True
    assert "tuned_is_calibration_only" in {reason.name for reason in calibrating.guidance.reasons}
    assert calibrating.guidance.preferred_semantics_lens_hint == "tuned_for_calibration_only"
    assert calibrating.diagnostics.attribution.prefer_tuned is True
    assert calibrating.guidance.preferred_lens == "logit"
    turning = _with_parts(fitted, rotation=0.9, temperature=0.1)
    assert turning.diagnostics.tuned_audit.calibration_only is False
    assert "tuned_is_calibration_only" not in {reason.name for reason in turning.guidance.reasons}
    # Its lens removes 2 of 7.5 bits at a quarter of the depth, which is too little under `standard` and enough before.
    assert turning.diagnostics.acceptance.accepted is False
    assert turning.guidance.preferred_lens == "logit"
    protocol = turning.record.protocol.model_copy(update={"name": "published"})
    published = judge(turning.rows, turning.record.model_copy(update={"protocol": protocol}))
    assert published.guidance.preferred_lens == "tuned"


def test_a_tuned_lens_that_was_not_decoded_in_parts_leaves_that_question_open(fitted: Run):
    measured = fitted.record.measured.model_copy(update={"tuned_variants": None})
    found = judge(fitted.rows, fitted.record.model_copy(update={"measured": measured}))
    assert "tuned_is_calibration_only" in found.guidance.undetermined
    without_baseline = judge(fitted.rows.filter(pl.col("lens") != "logit"), fitted.record)
    assert without_baseline.diagnostics.tuned_audit is None
    assert "tuned_is_calibration_only" in without_baseline.guidance.undetermined


def _headed_by(run: Run, lens: str) -> Run:
    """The run as if that lens had been the headline lens."""
    protocol = run.record.protocol.model_copy(update={"headline_lens": lens})
    return Run(run.rows, run.record.model_copy(update={"protocol": protocol}))


def test_a_tuned_headline_lens_is_not_held_against_itself(fitted: Run):
    run = _headed_by(fitted, "tuned")
    found, advice = run.diagnostics, run.guidance
    assert found.headline == "tuned" and found.semantic is not None
    assert set(found.fitted_lenses) == {"prism"}
    assert found.fitted_lenses["prism"].baseline_lens == "tuned"
    assert (found.attribution, found.tuned_audit, found.acceptance) == (None, None, None)
    assert (advice.preferred_lens, advice.preferred_semantics_lens_hint) == ("tuned", None)
    # No lens beside it says what it gains, and no evidence is not good evidence.
    assert "tuned_is_calibration_only" in advice.undetermined
    assert found.skip_layers == fitted.diagnostics.skip_layers  # measured against the model itself
    unread = judge(run.rows.filter(pl.col("lens") != "tuned"), run.record)
    assert unread.diagnostics.skip_layers is None
    assert "tuned_is_calibration_only" in unread.guidance.undetermined


def test_a_tuned_headline_lens_read_alone_has_a_verdict(fitted: Run):
    run = _headed_by(fitted, "tuned")
    alone = judge(run.rows.filter(lens="tuned"), run.record)
    assert alone.diagnostics.fitted_lenses == {}
    assert (alone.diagnostics.attribution, alone.diagnostics.tuned_audit, alone.diagnostics.acceptance) == (None,) * 3
    said = json.loads(verdict_text(alone, run.record))["diagnostics"]
    assert (said["headline"], said["sidecars"], said["acceptance"]) == ("tuned", {}, None)


def test_a_prism_headline_lens_is_left_out_of_the_fitted_ones_and_the_tuned_lens_held_against_it(fitted: Run):
    found = _headed_by(fitted, "prism").diagnostics
    assert {lens: audit.baseline_lens for lens, audit in found.fitted_lenses.items()} == {"tuned": "prism"}
    assert found.attribution is not None and found.acceptance is not None
    assert found.tuned_audit is not None and found.tuned_audit.hint in ("prism", "tuned", "tuned_for_calibration_only")


def test_acceptance_rests_on_every_fact_once_and_on_the_record_of_the_lens(fitted: Run):
    criteria = {(c.name, c.on): c for c in fitted.diagnostics.acceptance.criteria}
    assert (criteria["D", "suite"].n, criteria["A", "held_out"].n) == (20, 3000)
    assert criteria["D", "held_out"].value == {"p25": 2.0, "p50": 2.0, "p75": 2.0}
    # The logit lens is 9 - layer / 2 bits from the model there, at layers 3, 6 and 9 of 12.
    assert criteria["A", "held_out"].value == {"p25": 2 / 7.5, "p50": 2 / 6, "p75": 2 / 4.5}
    assert fitted.diagnostics.skip_layers.regression is True
    sidecars = tuple(one.model_copy(update={"status": "off"}) for one in fitted.record.measured.fitted_lenses)
    measured = fitted.record.measured.model_copy(update={"fitted_lenses": sidecars})
    other = judge(fitted.rows, fitted.record.model_copy(update={"measured": measured})).diagnostics
    assert other.skip_layers.regression is None  # what was not loaded says nothing of the rows


def test_the_audit_of_a_tuned_lens_is_in_the_plain_json(fitted: Run):
    said = json.loads(verdict_text(fitted.verdict, fitted.record))["diagnostics"]
    found = fitted.diagnostics
    assert said["tuned_audit"]["hint"] == found.tuned_audit.hint
    assert said["tuned_audit"]["positions"]["gap_bits"] == found.tuned_audit.positions.gap_bits
    assert said["acceptance"]["accepted"] is found.acceptance.accepted
    directions = {criterion["on"]: criterion["direction"] for criterion in said["acceptance"]["criteria"]}
    assert directions == {"suite": "lens_to_model", "held_out": "model_to_lens"}  # of D, the last one of each
    assert said["skip_layers"]["skipped"][0]["relative_loss"] == 0.25
