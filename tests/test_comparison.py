"""The comparison of runs as a table: the figures printed for ten published models, runs of our own, files on disk."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

import layerscope
from layerscope.errors import RunError
from layerscope.published.layout import EXTENDED
from layerscope.report.cited.evidence import Evidence
from layerscope.report.synthesis.comparison_table import comparison_files, comparison_table
from made_sweep import MADE, PLAIN
from published import SHARED
from published_archives import archive_of, folder_of, with_made

OCTOBER, SEPTEMBER, TINY = "run-20251004-1804", "run-20250928-1722", "tiny-qwen3/published"


@pytest.fixture(scope="module")
def october_runs(shared: Path) -> list[Evidence]:
    return list(archive_of(shared / "reference" / OCTOBER))


@pytest.fixture(scope="module")
def october(october_runs: list[Evidence]) -> pl.DataFrame:
    return comparison_table(october_runs)


@pytest.fixture(scope="module", params=["made", *([OCTOBER] if SHARED.is_dir() else [])])
def sweep_runs(request: pytest.FixtureRequest) -> list[Evidence]:
    """The self-made models, and the published ones where they are present."""
    return list(archive_of(folder_of(MADE[0] if request.param == "made" else "", request)))


@pytest.fixture(scope="module")
def sweep(sweep_runs: list[Evidence]) -> pl.DataFrame:
    return comparison_table(sweep_runs)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """The model that comes with the package, asked for twenty facts."""
    folder = tmp_path_factory.mktemp("own") / "run"
    run = layerscope.probe(suite="capitals-20", positions="last", lenses="logit", second_forward="off")
    run.save(folder, published=EXTENDED)
    return Evidence.of(folder)


# Printed figures


def _printed_tables(text: str, section: str) -> Iterator[dict[str, str]]:
    """The rows of the tables of a section, bold marks taken off, by header."""
    body = text.split(f"### {section} ", 1)[1].split("\n### ", 1)[0]
    header: list[str] = []
    for line in body.splitlines():
        cells = [cell.strip() for cell in line.replace("**", "").strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("|-: "):
            header = header if line.startswith("|") else []
        elif not header:
            header = cells
        else:
            yield dict(zip(header, cells, strict=True))


def _is_printed(value: object, text: str) -> bool:
    """Whether a value prints so: reals within half a unit of the last digit, `null` for none."""
    text = text.strip()
    if value is None or text in ("null", "none run"):
        return value is None and text in ("null", "none run")
    if isinstance(value, bool):
        return text == ("yes" if value else "no")
    if isinstance(value, str):
        return value == text
    if isinstance(value, int):
        return str(value) == text
    assert isinstance(value, float)
    half = 0.5 * 10.0 ** int(str(Decimal(text).as_tuple().exponent))
    return abs(value - float(text)) <= half * 1.001


def _split(pattern: str) -> Callable[[str], list[str]]:
    return lambda cell: [part for part in re.split(pattern, cell.rstrip(")")) if part != ""]


COLUMNS: dict[str, dict[str, tuple[Callable[[str], list[str]], list[str | None]]]] = {
    "2.1": {
        "L_semantic (frac)": (_split(r" \("), ["L_semantic", "L_semantic_frac"]),
        "rank <=10 / 5 / 1": (_split("/"), ["first_rank_le_10", "first_rank_le_5", "first_rank_le_1"]),
        "KL <=1.0 / 0.5": (_split("/"), ["first_kl_below_1.0", "first_kl_below_0.5"]),
        "L_copy": (_split("/"), ["L_copy"]),
        "L_copy_H": (_split("/"), ["L_copy_H"]),
        "soft k1": (_split("/"), ["L_copy_soft_k1"]),
        "cos >=0.2 / 0.4 / 0.6": (_split("/"), ["cos_ge_0.2", "cos_ge_0.4", "cos_ge_0.6"]),
        "p_top1 >0.30 / 0.60": (_split("/"), ["first_p_top1_gt_0.30", "first_p_top1_gt_0.60"]),
    },
    "2.2": {
        "final KL (bits)": (_split("/"), ["last_layer_kl_bits"]),
        "temp_est": (_split("/"), ["last_layer_temperature"]),
        "KL after temp": (_split("/"), ["last_layer_kl_after_temperature_bits"]),
    },
    "2.3": {
        "confirmed": (_split("/"), ["L_semantic_confirmed"]),
        "source": (_split("/"), ["confirmed_source"]),
        "L_sem raw / tuned": (_split(" / "), ["L_semantic_raw", "L_semantic_tuned"]),
        "sampled risk, max KL, first norm-only": (_split(", "), ["sampled_risk", "sampled_max_kl_bits", None]),
        "pct KL>=1.0 / 0.5": (_split(" / "), ["share_layers_kl_ge_1.0", "share_layers_kl_ge_0.5"]),
        "norm-only count, first": (_split(", "), ["n_norm_only_layers", "first_norm_only_layer"]),
        "max_kl_norm_vs_raw_bits (full)": (_split("/"), ["max_kl_norm_vs_raw_bits"]),
        "score v1": (_split("/"), ["artefact_score_v1"]),
        "tier": (_split("/"), ["artefact_tier"]),
    },
    "2.4": {
        "L_surface (answer / echo mass)": (_split(r" \("), ["L_surface_to_meaning", None]),
        "L_geom (cos answer / prompt)": (lambda cell: [cell.split(" (")[0]], ["L_geom"]),
        "L_topk_decay (mass)": (_split(r" \("), ["L_topk_decay", None]),
    },
    "2.5": {
        "run2": (_split("/"), ["L_semantic_run2"]),
        "margin-ok (at L_sem)": (_split(r" \("), ["L_semantic_margin_ok", "margin_ok_at_L_semantic"]),
        "gap at L_sem": (_split("/"), ["gap_at_L_semantic"]),
        "top2-ok / gap>=0.5": (_split("/"), ["L_semantic_top2_ok"]),
        "gap>=1.0": (_split("/"), ["gap_ge_1.0"]),
        "strong": (_split("/"), ["L_semantic_strong"]),
        "strong run2": (_split("/"), ["L_semantic_strong_run2"]),
        "entropy gap p25/p50/p75": (_split("/"), [f"entropy_gap_{q}_bits" for q in ("p25", "p50", "p75")]),
        "slope, r2, spikes": (_split(", "), [None, None, "trajectory_spikes"]),  # no norms to draw the line
    },
}  # fmt: skip
"""How each printed column falls apart, and which of ours its parts are; None for what the table leaves to reports."""


@pytest.mark.parametrize("section", COLUMNS)
def test_the_table_has_the_figures_printed_for_ten_models(shared: Path, october: pl.DataFrame, section: str) -> None:
    text = (shared / "spec" / "models.md").read_text(encoding="utf-8")
    rows = {row["model"]: row for row in october.to_dicts()}
    wrong, n = [], 0
    first = next(iter(COLUMNS[section]))
    for printed in _printed_tables(text, section):
        if first not in printed:
            continue  # a second table of the section, about files of a later generation
        (ours,) = (row for name, row in rows.items() if name.startswith(printed["model"]))
        for header, (parts, names) in COLUMNS[section].items():
            for name, part in zip(names, parts(printed[header]), strict=True):
                if name is not None:
                    n += 1
                    wrong += [] if _is_printed(ours[name], part) else [(ours["model"], name, ours[name], part)]
    assert wrong == []
    assert n == 10 * sum(name is not None for _, names in COLUMNS[section].values() for name in names)


FIRST = {
    "first_rank_le_10": lambda row: int(row["answer_rank"]) <= 10,
    "first_rank_le_1": lambda row: int(row["answer_rank"]) == 1,
    "first_kl_below_1.0": lambda row: float(row["kl_to_final_bits"]) <= 1.0,
    "cos_ge_0.4": lambda row: float(row["cos_to_final"]) >= 0.4,
    "first_p_top1_gt_0.60": lambda row: float(row["p_top1"]) > 0.60,
    "L_copy": lambda row: row["copy_collapse"] == "True",
}


def test_the_table_has_the_layers_of_each_models_own_rows(sweep_runs: list[Evidence], sweep: pl.DataFrame) -> None:
    """Rows are read without our reader."""
    assert sorted(sweep["model"]) == sorted(run.stem for run in sweep_runs)
    for found in sweep.to_dicts():
        path = sweep_runs[0].sources.folder / f"output-{found['model']}-pure-next-token.csv"
        with path.open(newline="", encoding="utf-8") as file:
            key = ("pos", "orig", "0")
            rows = list(csv.DictReader(file))
            rows = [r for r in rows if (r["prompt_id"], r["prompt_variant"], r.get("fact_index", "0")) == key]
        for name, holds in FIRST.items():
            layer = next((int(row["layer"]) for row in rows if holds(row)), None)
            assert found[name] == layer, (found["model"], name)
        assert found["n_layers"] == len(rows) - 1


def test_self_made_models_are_early_late_and_weak_by_their_rows(made_sweep: Path) -> None:
    found = {row["model"]: row for row in comparison_table(list(archive_of(made_sweep))).to_dicts()}
    earliness = {name: row["earliness"] for name, row in found.items()}
    assert earliness == {"reference": "early", "fickle": "early", "echo": "late", "mute": None}
    assert found["echo"]["L_semantic_frac"] == 0.75
    assert found["mute"]["strength"] is None


def test_confirmations_by_the_tuned_lens_own_last_row_are_marked_as_trivial(october: pl.DataFrame) -> None:
    trivial = october.filter(~pl.col("confirmed_nontrivial"))["model"].to_list()
    assert sorted(trivial) == ["gemma-2-27b", "gemma-2-9b"]


def test_one_model_alone_has_a_weak_headline_milestone_and_one_alone_is_early(october: pl.DataFrame) -> None:
    assert october.filter(strength="weak")["model"].to_list() == ["Qwen2.5-72B"]
    assert october.filter(earliness="early")["model"].to_list() == ["Meta-Llama-3-70B"]


def test_reasons_are_those_of_the_files_and_what_older_files_could_not_know(
    sweep_runs: list[Evidence], sweep: pl.DataFrame
) -> None:
    for row in sweep.to_dicts():
        later = () if row["model"] in MADE else ("rank_only_near_uniform",)
        path = sweep_runs[0].sources.folder / f"output-{row['model']}.json"
        stated = json.loads(path.read_text(encoding="utf-8"))["measurement_guidance"]["reasons"]
        assert [name for name in row["guidance_reasons"] if name not in later] == stated


def test_fitted_lenses_have_the_signs_of_the_files(sweep_runs: list[Evidence], sweep: pl.DataFrame) -> None:
    """Bits are baseline less variant, layers variant less baseline."""
    for row in sweep.to_dicts():
        path = sweep_runs[0].sources.folder / f"output-{row['model']}.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        if row["model"] in PLAIN:
            assert row["prism_delta_kl_p50_bits"] is None
        else:
            prism = document["diagnostics"]["prism_summary"]["metrics"]
            assert row["prism_delta_kl_p50_bits"] == pytest.approx(prism["kl_bits_at_percentiles"]["delta"]["p50"])
        tuned = document["tuned_lens"] if isinstance(document["tuned_lens"], dict) else {}
        if "summary" in tuned:
            assert row["tuned_delta_rank_le_1"] == tuned["summary"]["metrics"]["rank_milestones"]["delta"]["le_1"]
        else:
            assert row["tuned_delta_rank_le_1"] is None


def test_a_score_whose_distances_are_missing_is_absent(october: pl.DataFrame) -> None:
    """Files of this generation have no Jensen-Shannon and L1 distances, which the second score adds."""
    assert october["artefact_score_v2"].is_null().all()
    assert october["artefact_score_v1"].is_not_null().all()


@pytest.mark.parametrize("stem", with_made("tiny-qwen3", made=("reference",)))
def test_the_second_score_is_there_where_its_distances_are(stem: str, request: pytest.FixtureRequest) -> None:
    folder = folder_of(stem, request, TINY)
    frame = comparison_table([Evidence.of(folder, stem)])
    stated = json.loads((folder / f"output-{stem}.json").read_text(encoding="utf-8"))
    assert frame["artefact_score_v2"].item() == pytest.approx(
        stated["diagnostics"]["raw_lens_full"]["score"]["lens_artifact_score_v2"]
    )
    assert frame["facts_median"].item() == stated["micro_suite"]["aggregates"]["L_semantic_norm_median"]
    assert frame["facts_n"].item() == 5
    assert frame["facts_interval_95_low"].item() is None
    assert "needs 10" in frame["facts_interval_reason"].item()


def test_a_line_through_lengths_that_are_not_recorded_is_absent(october: pl.DataFrame, own: Evidence) -> None:
    """What the norm's factor tells is no length: for Qwen3-8B its slope has the other sign."""
    assert october["trajectory_slope"].is_null().all() and october["trajectory_r2"].is_null().all()
    assert comparison_table([own])["trajectory_slope"].item() is not None


# Comparability


def test_files_without_raw_lens_have_no_tier_and_say_so(shared: Path) -> None:
    archive = archive_of(shared / "reference" / SEPTEMBER)
    frame = comparison_table([archive.evidence(stem) for stem in ("Qwen3-8B", "Mistral-7B-v0.1")])
    assert frame["artefact_tier"].is_null().all()
    assert all(any(said.startswith("no_raw_lens") for said in row) for row in frame["not_comparable"].to_list())


def test_runs_of_different_protocols_are_marked_in_every_row(sweep_runs: list[Evidence], own: Evidence) -> None:
    frame = comparison_table([own, *sweep_runs])
    assert frame.height == 1 + len(sweep_runs)
    for row in frame.to_dicts():
        kinds = {said.split(":")[0] for said in row["not_comparable"]}
        assert {"mixed_protocols", "mixed_norm_strategies", "mixed_facts"} <= kinds
    high = frame.filter(pl.col("not_comparable").list.eval(pl.element().str.starts_with("high_last")).list.any())
    far = [run.stem for run in sweep_runs if run.curve().value("kl_to_final_bits", run.record.model.n_layers) > 0.25]
    assert sorted(high["model"]) == sorted(far)
    assert far == ([] if "mute" in frame["model"] else ["gemma-2-27b", "gemma-2-9b"])


def test_runs_of_one_suite_and_protocol_are_not_marked_as_mixed(sweep_runs: list[Evidence]) -> None:
    frame = comparison_table([run for run in sweep_runs if run.stem != "reference"])  # which was asked more
    assert not any("mixed_" in said for row in frame["not_comparable"].to_list() for said in row)
    if len(sweep_runs) == len(MADE):
        mixed = comparison_table(sweep_runs)["not_comparable"].to_list()
        assert all(any("mixed_facts" in said for said in row) for row in mixed)


def test_an_interval_comes_with_enough_facts(own: Evidence) -> None:
    (row,) = comparison_table([own]).to_dicts()
    layers = sorted(
        found["L_semantic"].layer
        for asked, found in own.verdict.milestones.by_pass().items()
        if asked.is_fact and found["L_semantic"].layer is not None and asked.prompt_variant == "orig"
    )
    middle = len(layers) // 2
    median = layers[middle] if len(layers) % 2 else (layers[middle - 1] + layers[middle]) / 2
    assert row["facts_n"] == 20
    assert row["facts_median"] == median
    assert row["facts_interval_95_low"] <= median <= row["facts_interval_95_high"]
    assert row["facts_median_frac"] == round(median / row["n_layers"], 3)


def test_two_folders_of_a_self_made_model_have_two_names(made_sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(made_sweep, tmp_path / "two")
    document = tmp_path / "two" / "output-mute.json"
    later = document.read_text(encoding="utf-8").replace('"seed": 316', '"seed": 317')
    document.write_text(later, encoding="utf-8")
    one, two = (Evidence.of(folder, "mute") for folder in (made_sweep, tmp_path / "two"))
    frame = comparison_table([one, two, Evidence.of(made_sweep, "mute")])
    assert frame["model"].to_list() == [f"mute ({made_sweep.name})", "mute (two)"]
    assert comparison_table([one, Evidence.of(made_sweep, "mute")])["model"].to_list() == ["mute"]


def test_two_runs_of_a_model_have_two_names_and_a_run_given_twice_one_row(shared: Path) -> None:
    october, september = (Evidence.of(shared / "reference" / run, "Qwen3-8B") for run in (OCTOBER, SEPTEMBER))
    again = Evidence.of(shared / "reference" / OCTOBER, "Qwen3-8B")
    frame = comparison_table([october, september, again])
    assert frame["model"].to_list() == [f"Qwen3-8B ({OCTOBER})", f"Qwen3-8B ({SEPTEMBER})"]
    assert comparison_table([october, again])["model"].to_list() == ["Qwen3-8B"]


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(RunError, match="at least one run"):
        comparison_table([])


# On disk


def test_the_table_is_written_twice_with_equal_values(sweep: pl.DataFrame, tmp_path: Path) -> None:
    files = comparison_files(sweep)
    assert sorted(files) == ["comparison.csv", "comparison.parquet"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert pl.read_parquet(tmp_path / "comparison.parquet").equals(sweep)
    flat = pl.read_csv(tmp_path / "comparison.csv", infer_schema_length=None)
    assert flat["L_semantic"].to_list() == sweep["L_semantic"].to_list()
    assert flat["L_semantic_frac"].to_list() == sweep["L_semantic_frac"].to_list()
    assert flat["guidance_reasons"].to_list() == ["; ".join(row) for row in sweep["guidance_reasons"].to_list()]


def test_answered_facts_stand_beside_the_published_milestones(own: Evidence, sweep: pl.DataFrame) -> None:
    """The bundled model answers every fact; layers are recomputed from its rows."""
    (row,) = comparison_table([own]).to_dicts()
    ranks = own.run.rows.filter((pl.col("lens") == "logit") & (pl.col("prompt_variant") == "orig")).filter(
        pl.col("prompt_id") == "pos"
    )
    for_good = [
        max([layer for layer, rank in fact.select("layer", "answer_rank").iter_rows() if rank != 1], default=-1) + 1
        for _, fact in ranks.group_by("fact_index")
    ]
    assert (row["answered"], row["facts_answered"], row["facts_asked"], row["facts_lost"]) == (True, 20, 20, 0)
    assert row["answered_on_top_for_good_median"] == pl.Series(for_good).median()
    assert row["answered_on_top_for_good_median_frac"] == pytest.approx(pl.Series(for_good).median() / row["n_layers"])
    for found in sweep.to_dicts():
        assert found["answered"] is (found["L_semantic_stable"] is not None)


def test_columns_have_one_type_whatever_the_runs(sweep: pl.DataFrame, own: Evidence) -> None:
    assert comparison_table([own]).schema == sweep.schema
    assert sweep.schema["L_semantic"] == pl.Int32
    assert sweep.schema["L_semantic_frac"] == pl.Float64
    assert sweep.schema["not_comparable"] == pl.List(pl.String)
