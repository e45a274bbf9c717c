"""One run held against another of the same prompts."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from layerscope import Run
from layerscope.cli.main import app
from layerscope.diffing.run_tables import at_least_bits
from layerscope.diffing.runs import diff_runs
from layerscope.errors import RunError
from probed import probed


@pytest.fixture(scope="module")
def base() -> Run:
    """A run of the bundled model."""
    return probed("capitals")


def changed(run: Run, *columns: pl.Expr, **record: object) -> Run:
    """The run with other cells, or another record."""
    return Run(run.rows.with_columns(*columns), run.record.model_copy(update=record), patches=run.patches)


def test_a_run_against_itself_differs_in_nothing(base: Run):
    found = diff_runs(base, base).summary
    assert found.is_identical and not found.settings and not found.notes
    assert (found.n_rows, found.n_prompts) == (base.n_rows, len(base.record.suite.prompts))
    assert found.n_milestones == len(list(base.milestones)) > 0
    for layer in found.layers:
        assert layer.top1_agreement == 1 and layer.kl_at_least_bits == layer.entropy_change_bits == 0


def test_one_changed_cell_is_found_with_its_place(base: Run):
    place = base.rows.row(base.n_rows // 2, named=True)
    here = pl.int_range(pl.len()) == base.n_rows // 2
    variant = changed(
        base, pl.when(here).then(pl.col("entropy_bits") + 0.5).otherwise("entropy_bits").alias("entropy_bits")
    )
    (column,) = diff_runs(base, variant).summary.columns
    assert (column.column, column.n_different, column.n_in_one_only, column.unit) == ("entropy_bits", 1, 0, "bits")
    assert column.largest_difference == pytest.approx(0.5, abs=1e-12)
    assert (column.layer, column.lens, column.position) == (place["layer"], place["lens"], place["position"])
    found = diff_runs(base, variant).summary
    (layer,) = [layer for layer in found.layers if layer.entropy_change_bits]
    assert (layer.layer, layer.lens) == (place["layer"], place["lens"])
    assert layer.entropy_change_bits == pytest.approx(0.5 / layer.n_rows)


def test_absent_cells_lists_and_ids_are_told_apart(base: Run):
    first = pl.int_range(pl.len()) == 0
    variant = changed(
        base,
        pl.when(first).then(None).otherwise("kl_to_final_bits").alias("kl_to_final_bits"),
        (pl.col("top1_id") + first.cast(pl.Int32)).alias("top1_id"),
        pl.when(first)
        .then(pl.col("top_probs").list.eval(pl.element() * 0.5))
        .otherwise("top_probs")
        .alias("top_probs"),
    )
    found = diff_runs(base, variant).summary
    columns = {column.column: column for column in found.columns}
    assert set(columns) == {"kl_to_final_bits", "top1_id", "top_probs"}
    assert columns["kl_to_final_bits"].n_in_one_only == 1 and columns["kl_to_final_bits"].largest_difference is None
    assert [column.column for column in found.discrete()] == ["top1_id"]
    assert columns["top_probs"].largest_difference == pytest.approx(base.rows["p_top1"][0] / 2)


def test_prompts_are_matched_by_what_is_read_and_not_by_their_place(base: Run):
    suite = base.record.suite
    kept = [prompt for prompt in suite.prompts if prompt.fact_index in (None, 3)]
    rows = base.rows.filter(pl.col("fact_index").is_null() | (pl.col("fact_index") == 3))
    rows = rows.with_columns(pl.when(pl.col("fact_index") == 3).then(0).alias("fact_index").cast(pl.Int32))
    renumbered = [p if p.fact_index is None else p.model_copy(update={"fact_index": 0}) for p in kept]
    record = base.record.model_copy(update={"suite": suite.model_copy(update={"prompts": tuple(renumbered)})})
    found = diff_runs(base, Run(rows, record)).summary
    assert (found.n_prompts, found.n_rows) == (len(kept), len(rows))
    assert not found.columns and not found.milestones
    (note,) = [note for note in found.notes if "left out" in note]
    assert note.startswith(f"{len(suite.prompts) - len(kept)} of the base's {len(suite.prompts)} prompts")
    other = record.model_copy(
        update={
            "suite": suite.model_copy(
                update={"prompts": tuple(p.model_copy(update={"token_ids": (1,)}) for p in renumbered)}
            )
        }
    )
    with pytest.raises(RunError, match="have no prompt in common"):
        diff_runs(base, Run(rows, other))


def test_a_prompt_that_stands_twice_is_matched_twice(base: Run):
    again = base.rows.filter(pl.col("fact_index") == 0).with_columns(pl.lit(9, pl.Int32).alias("fact_index"))
    prompts = base.record.suite.prompts
    twice = [prompt.model_copy(update={"fact_index": 9}) for prompt in prompts if prompt.fact_index == 0]
    suite = base.record.suite.model_copy(update={"prompts": (*prompts, *twice)})
    run = Run(pl.concat([base.rows, again]), base.record.model_copy(update={"suite": suite}))
    assert diff_runs(run, run).summary.n_rows == run.n_rows
    found = diff_runs(run, base).summary
    assert found.n_rows == base.n_rows and not found.columns
    (note,) = found.notes
    assert note.startswith(f"{len(twice)} of the base's {len(prompts) + len(twice)} prompts")


def test_models_of_other_depth_have_no_last_layer_in_common(base: Run):
    model = base.record.model
    shorter = model.model_copy(update={"n_layers": model.n_layers - 1})
    found = diff_runs(
        base, Run(base.rows.filter(pl.col("layer") < model.n_layers), base.record.model_copy(update={"model": shorter}))
    )
    assert found.summary.last_layer is None and found.summary.n_rows_in_base_only > 0
    assert any("blocks" in note for note in found.summary.notes)
    same = diff_runs(base, base).summary.last_layer
    assert (same.layer, same.lens) == (model.n_layers, base.milestones.headline)


def test_how_runs_were_made_is_told_and_results_are_not(base: Run):
    provenance = base.record.provenance.model_copy(update={"torch": "1.0", "threads": None})
    variant = changed(base, provenance=provenance, layerscope_version="0.0.1", run_id="another")
    found = diff_runs(base, variant).summary
    settings = {one.name: (one.base, one.variant) for one in found.settings}
    assert settings["layerscope_version"][1] == '"0.0.1"' and settings["provenance.torch"][1] == '"1.0"'
    assert settings["provenance.threads"][1] is None and len(settings) == 3
    assert found.is_identical


def test_answers_lost_and_moved_are_those_of_the_rows(base: Run):
    """Where every answer ranks second at the last two layers, the model has none, and its onset is gone."""
    last = base.record.model.n_layers
    late = pl.col("layer") >= last - 1
    variant = changed(
        base,
        pl.when(late & pl.col("answer_rank").is_not_null())
        .then(2)
        .otherwise("answer_rank")
        .alias("answer_rank")
        .cast(pl.Int32),
        pl.when(late & pl.col("is_answer").is_not_null()).then(False).otherwise("is_answer").alias("is_answer"),
    )
    prompts = [
        prompt
        if prompt.output is None
        else prompt.model_copy(update={"output": prompt.output.model_copy(update={"answer_rank": 2})})
        for prompt in base.record.suite.prompts
    ]
    variant = changed(variant, suite=base.record.suite.model_copy(update={"prompts": tuple(prompts)}))
    found = diff_runs(base, variant).summary
    answered = [output for output in base.diagnostics.outputs.values() if output.prompt.is_fact and output.answered]
    assert found.suite.n_answered_by_base == len(answered) > 0
    assert found.suite.n_answered_by_variant == 0 and found.suite.n_lost == len(answered)
    assert found.suite.kl_mean_bits is None
    assert {"L_semantic_stable"} <= {move.milestone for move in found.milestones if move.variant is None}
    assert all(layer.n_rank_changes == 0 for layer in found.layers if layer.layer < last - 1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_the_bound_never_exceeds_the_divergence_and_is_it_where_all_is_listed(seed: int, k: int):
    random = np.random.default_rng(seed)
    p, q = random.dirichlet(np.full(8, 0.3), 2) * (1 - 8e-6) + 1e-6
    whole = float((p * np.log2(p / q)).sum())
    listed = [np.argsort(-of)[:k] for of in (p, q)]
    bound = at_least_bits(listed[0].tolist(), p[listed[0]].tolist(), listed[1].tolist(), q[listed[1]].tolist())
    # Sums of at most nine terms of size under 20 bits: rounding is far below 1e-9.
    assert bound <= whole + 1e-9
    if k == 8:
        assert bound == pytest.approx(whole, abs=1e-9)


# What people see


def test_the_command_holds_two_folders_against_each_other(base: Run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    base.save("one")
    changed(base, (pl.col("entropy_bits") * 1.5).alias("entropy_bits")).save("two")

    def diff(*words: str):
        return CliRunner().invoke(app, ["diff", *words])

    done = diff("one", "two", "--fail-above", "top1_changed=0")
    assert done.exit_code == 0, done.output
    assert "Every id, rank, flag and text of " in done.stdout and "entropy_bits in " in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("diff · diffs/"))
    (folder,) = Path("diffs").iterdir()
    kept = json.loads((folder / "run-diff.json").read_text(encoding="utf-8"))
    assert [column["column"] for column in kept["columns"]] == ["entropy_bits"]
    assert json.loads(diff("one", "one", "--json").stdout)["columns"] == []
    refused = {
        ("one",): "nothing else is named",
        ("one", "nowhere"): "'nowhere' is none",
        ("one", "two", "--fail-above", "kl_mean=1"): "needs two models",
        ("one", "two", "--modules"): "--modules says how two models are compared",
        ("one", "two", "--page", "p.html"): "layerscope view RUN RUN",
    }
    for words, sentence in refused.items():
        done = diff(*words)
        assert done.exit_code == 2 and sentence in done.output.replace("\n", " "), (words, done.output)
    assert not Path("p.html").exists()
