"""The verdict of a run: what is put together from rows and measurements, and that no order matters."""

import json
import random
from dataclasses import fields

import polars as pl
import pytest

from layerscope import Run, probe
from layerscope.record.curve import Pass
from layerscope.record.diagnostics import judge, protocol_in_force
from layerscope.record.milestones import Milestone
from layerscope.record.protocol import PROTOCOLS, Thresholds
from layerscope.record.verdict_json import verdict_text


@pytest.fixture(scope="module")
def run() -> Run:
    return probe(suite="capitals-20", positions="last", device="cpu")


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
    assert run.milestones.of() == run.milestones.of("logit", Pass(0, "pos", "orig"))
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
    assert set(said) == {"run_id", "protocol", "model", "n_layers", "milestones", "diagnostics", "guidance"}
    own = said["milestones"]["logit"]["L_semantic"]
    found: Milestone = run.milestones.of()["L_semantic"]
    assert (own["layer"], own["row"], own["p_answer"]) == (found.layer, found.row, found.p_answer)
    assert [r["name"] for r in said["guidance"]["reasons"]] == [r.name for r in run.guidance.reasons]
    assert said["diagnostics"]["primary"] == "pos 0 orig"
