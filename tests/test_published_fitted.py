"""Fitted lenses in the published format: blocks and tables of both dialects, and what is read of them again.

Tolerances. What is in a file is what a run holds in float64, and sums of it: 1e-12.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import layerscope
from fitted_lenses import prism_lens_folder, tuned_lens_folder, with_fitted_lenses
from layerscope.published.dialect import parse
from layerscope.published.layout import EXTENDED, GENERATION_M, Dialect
from layerscope.published.read.reader import read_published
from layerscope.published.write.writer import write_published
from layerscope.record import COLUMNS
from layerscope.record.measured import FittedLensRecord
from layerscope.run import Run
from probed import probed
from properties import slow

VARIANTS, POSITIONS = "pure-next-token-tuned-variants", "positions-tuned-audit"
NUMBERS = [
    "kl_bits_baseline", "kl_bits_tuned", "kl_bits_rot_only", "kl_bits_temp_only", "delta_kl_bits_tuned",
    "delta_kl_bits_rot_only", "delta_kl_bits_temp_only", "delta_kl_bits_interaction", "answer_rank_baseline",
    "answer_rank_tuned", "answer_rank_rot_only", "answer_rank_temp_only", "rank_shift_tuned", "rank_shift_rot_only",
    "rank_shift_temp_only", "entropy_bits_baseline", "entropy_bits_tuned",
]  # fmt: skip
"""Columns of the table of parts after the layer, as the format has them."""
PLACES = [
    "pos_frac", "pos_index", "layer", "kl_bits_baseline", "kl_bits_tuned", "delta_kl_bits_tuned",
    "answer_rank_baseline", "answer_rank_tuned", "rank_shift_tuned", "entropy_bits_baseline", "entropy_bits_tuned",
]  # fmt: skip


@pytest.fixture(scope="module")
def standard() -> Run:
    return with_fitted_lenses(probed("berlin"))


@pytest.fixture(scope="module")
def published() -> Run:
    return with_fitted_lenses(layerscope.probe(suite="capitals", protocol="published", lenses="next_norm,raw"))


@pytest.fixture(scope="module")
def extended_folder(standard: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(standard, tmp_path_factory.mktemp("extended"), EXTENDED)


@pytest.fixture(scope="module")
def m_folder(published: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(published, tmp_path_factory.mktemp("m"), GENERATION_M)


def _written(run: Run, folder: Path, dialect: Dialect) -> Path:
    write_published(run, folder, dialect)
    return folder


def _json(folder: Path) -> dict:
    (path,) = folder.glob("output-*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _table(folder: Path, suffix: str, dialect: Dialect) -> tuple[list[str], list[dict[str, str | None]]]:
    (path,) = folder.glob(f"output-*-{suffix}.csv")
    sheet = parse(path.read_bytes(), dialect)
    assert not sheet.faults
    return list(sheet.header), [dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]


def _changed(run: Run, *sidecars: FittedLensRecord, without: str | None = None) -> Run:
    """The run with other sidecars, and without the rows of a lens."""
    record = run.record
    protocol = record.protocol.model_copy(update={"lenses": tuple(x for x in record.protocol.lenses if x != without)})
    sources = {lens: said for lens, said in record.lens_sources.items() if lens != without}
    measured = record.measured.model_copy(
        update={"fitted_lenses": sidecars, **({"tuned_variants": None} if without == "tuned" else {})}
    )
    fields = {"protocol": protocol, "lens_sources": sources, "measured": measured}
    return Run(
        run.rows.filter(pl.col("lens") != (without or "")), record.model_copy(update=fields), patches=run.patches
    )


def _primary(run: Run, lens: str) -> Iterator[dict]:
    own = run.rows.filter(lens=lens, fact_index=0, prompt_variant="orig", prompt_id="pos")
    return own.iter_rows(named=True)


def _same(cell: str | None, value: float | int | None) -> bool:
    if cell is None or value is None:
        return cell is None and value is None
    return float(cell) == value


# Tables


@pytest.mark.parametrize("dialect", [EXTENDED, GENERATION_M], ids=lambda d: d.value)
def test_the_table_of_parts_holds_the_primary_prompts_last_position(request, dialect):
    run, folder = (
        (request.getfixturevalue(name) for name in ("standard", "extended_folder"))
        if dialect is EXTENDED
        else (request.getfixturevalue(name) for name in ("published", "m_folder"))
    )
    header, table = _table(folder, VARIANTS, dialect)
    assert header == [*(["fact_key", "fact_index"] if dialect is EXTENDED else []), "layer", *NUMBERS]
    n = run.record.model.n_layers
    own, tuned = (
        {row["layer"]: row for row in _primary(run, lens) if row["is_next"]}
        for lens in (run.record.protocol.headline_lens, "tuned")
    )
    parts = run.record.measured.tuned_variants
    assert [int(row["layer"]) for row in table] == list(range(1, n + 1))
    for cells in table:
        layer = int(cells["layer"])
        kl = {
            "baseline": own[layer]["kl_to_final_bits"], "tuned": tuned[layer]["kl_to_final_bits"],
            "rot_only": parts.rotation_only.kl_to_final_bits[layer],
            "temp_only": parts.temperature_only.kl_to_final_bits[layer],
        }  # fmt: skip
        rank = {
            "baseline": own[layer]["answer_rank"], "tuned": tuned[layer]["answer_rank"],
            "rot_only": parts.rotation_only.answer_rank[layer], "temp_only": parts.temperature_only.answer_rank[layer],
        }  # fmt: skip
        for name in kl:
            assert _same(cells[f"kl_bits_{name}"], kl[name]) and _same(cells[f"answer_rank_{name}"], rank[name])
        for name in ("tuned", "rot_only", "temp_only"):
            gain = None if kl[name] is None else kl["baseline"] - kl[name]
            shift = None if rank[name] is None else rank["baseline"] - rank[name]
            assert _same(cells[f"delta_kl_bits_{name}"], gain) and _same(cells[f"rank_shift_{name}"], shift)
        assert (cells["delta_kl_bits_interaction"] is None) == (layer == 2)  # where one part was not finite
        if layer != 2:
            whole, rotation, temperature = (kl["baseline"] - kl[x] for x in ("tuned", "rot_only", "temp_only"))
            assert float(cells["delta_kl_bits_interaction"]) == pytest.approx(whole - rotation - temperature, abs=1e-12)
        assert cells["entropy_bits_tuned"] == repr(tuned[layer]["entropy_bits"])
        if dialect is EXTENDED:
            assert (cells["fact_key"], cells["fact_index"]) == ("Germany→Berlin", "0")


def test_the_table_of_positions_compares_both_lenses_at_every_place_of_the_window(standard, extended_folder):
    header, table = _table(extended_folder, POSITIONS, EXTENDED)
    assert header == ["fact_key", "fact_index", *PLACES]
    own, tuned = ({(r["layer"], r["position"]): r for r in _primary(standard, lens)} for lens in ("logit", "tuned"))
    last = max(position for _, position in own)
    grid: dict[int, float] = {}
    for fraction in (0.2, 0.4, 0.6, 0.8, 0.92, 0.96, 0.98, 1.0):
        grid.setdefault(round(last * fraction), fraction)
    places = [(layer, at) for layer in range(1, standard.record.model.n_layers + 1) for at in grid]
    assert [(int(c["layer"]), int(c["pos_index"])) for c in table] == places
    for cells, place in zip(table, places, strict=True):
        one, other = own[place], tuned[place]
        assert float(cells["pos_frac"]) == grid[place[1]]
        assert _same(cells["delta_kl_bits_tuned"], one["kl_to_final_bits"] - other["kl_to_final_bits"])
        assert _same(cells["rank_shift_tuned"], one["answer_rank"] - other["answer_rank"])
        assert _same(cells["entropy_bits_tuned"], other["entropy_bits"])


def test_tables_of_the_tuned_lens_begin_at_layer_1_and_those_of_prism_at_0(published, m_folder):
    for lens, first in (("tuned", 1), ("prism", 0)):
        for suffix in ("pure-next-token", "records"):
            _, table = _table(m_folder, f"{suffix}-{lens}", GENERATION_M)
            assert {int(row["layer"]) for row in table} == set(range(first, published.record.model.n_layers + 1))


def test_without_its_parts_a_tuned_lens_has_no_table_of_them(standard, tmp_path):
    measured = standard.record.measured.model_copy(update={"tuned_variants": None})
    run = Run(standard.rows, standard.record.model_copy(update={"measured": measured}))
    names = write_published(run, tmp_path)
    assert not [name for name in names if VARIANTS in name] and [name for name in names if POSITIONS in name]
    tree = _json(tmp_path)
    assert tree["evaluation_pack"]["citations"]["files"]["tuned_variants_csv"] is None
    audit = tree["diagnostics"]["tuned_lens"]["audit_summary"]
    assert (audit["rotation_vs_temperature"], audit["tuned_is_calibration_only"]) == (None, None)
    assert audit["reason"] == "the tuned lens was not decoded in parts"
    assert read_published(tmp_path) == run


# JSON


def test_an_extended_folder_with_fitted_lenses_is_read_back_as_the_run_that_it_was(standard, extended_folder):
    assert read_published(extended_folder) == standard


def test_an_extended_folder_of_the_version_before_is_read_as_one_without_fitted_lenses(tmp_path):
    own = probed("berlin", positions="last")
    measured = own.record.measured.model_copy(update={"fitted_lenses": ()})
    run = layerscope.Run(own.rows, own.record.model_copy(update={"measured": measured}))
    folder = _written(run, tmp_path, EXTENDED)
    (folder / "manifest.json").unlink()
    tree = _json(folder)
    tree["record"]["schema_version"] = "2.0"
    measured = tree["record"]["measured"]
    del measured["fitted_lenses"], measured["tuned_variants"]
    measured["close_up"] = measured.pop("position_readout")
    (path,) = folder.glob("output-*.json")
    path.write_text(json.dumps(tree), encoding="utf-8")
    newer = [column.name for column in COLUMNS if column.since == "2.3"]
    for table in folder.glob("*records*.csv"):
        _without_columns(table, newer)
    known = own.rows.with_columns(pl.lit(None, own.rows.schema[name]).alias(name) for name in newer)
    assert read_published(folder) == layerscope.Run(known, run.record)


def _without_columns(table: Path, names: list[str]) -> None:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    kept = [at for at, name in enumerate(rows[0]) if name not in names]
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([row[at] for at in kept] for row in rows)


def test_the_audit_sums_up_the_tables(standard, extended_folder):
    tree = _json(extended_folder)
    audit = tree["diagnostics"]["tuned_lens"]["audit_summary"]
    _, table = _table(extended_folder, VARIANTS, EXTENDED)

    def medians(column: str, *quartiles: int) -> list[float]:
        values = [float(row[column]) for row in table if row[column] is not None]
        return [float(np.percentile(values, q)) for q in quartiles]

    said = audit["rotation_vs_temperature"]
    for name, column in (("rot", "delta_kl_bits_rot_only"), ("temp", "delta_kl_bits_temp_only")):
        assert [said[f"delta_kl_{name}_p{q}"] for q in (25, 50, 75)] == pytest.approx(medians(column, 25, 50, 75))
    assert [said["delta_kl_tuned_p50"]] == pytest.approx(medians("delta_kl_bits_tuned", 50))
    assert [said["delta_kl_interaction_p50"]] == pytest.approx(medians("delta_kl_bits_interaction", 50))
    _, places = _table(extended_folder, POSITIONS, EXTENDED)
    early, end = (
        float(
            np.median([float(c["delta_kl_bits_tuned"]) for c in places if (float(c["pos_frac"]) <= 0.92) is is_early])
        )
        for is_early in (True, False)
    )
    positional = audit["positional"]
    assert [positional[k] for k in ("pos_in_dist_le_0.92", "pos_ood_ge_0.96", "pos_ood_gap")] == pytest.approx(
        [early, end, end - early], abs=1e-12
    )
    last = standard.record.measured.last_layer
    assert audit["head_mismatch"] == {
        "kl_bits_tuned_final": pytest.approx(last.kl_to_final_bits, abs=1e-9),
        "kl_bits_tuned_final_after_tau_star": last.kl_after_temp_refined_bits,
        "tau_star_modelcal": last.temp_est_refined,
        "kl_bits_tuned_final_after_softcap": None,
        "reason": None,
    }
    assert tree["evaluation_pack"]["tuned_audit"] == "#/diagnostics/tuned_lens/audit_summary"
    assert tree["measurement_guidance"]["preferred_semantics_lens_hint"] == audit["preferred_semantics_lens_hint"]


def test_generation_m_repeats_the_audit_in_the_pack_and_calls_the_headline_lens_norm(published, m_folder):
    tree = _json(m_folder)
    audit = tree["tuned_lens"]["audit_summary"]
    assert tree["evaluation_pack"]["tuned_audit"] == audit
    assert published.diagnostics.tuned_audit.hint == "next_norm"
    assert audit["preferred_semantics_lens_hint"] == "norm"
    assert tree["measurement_guidance"]["preferred_semantics_lens_hint"] == "norm"
    assert set(tree["diagnostics"]["tuned_lens"]) == {"status", "mode", "path", "summaries"}
    assert {"provenance", "summary", "attribution", "provenance_snapshot"} < set(tree["tuned_lens"])
    files = tree["evaluation_pack"]["citations"]["files"]
    for key, suffix in (("tuned_variants_csv", VARIANTS), ("positions_audit_csv", POSITIONS)):
        assert (m_folder / files[key]).name.endswith(f"{suffix}.csv") and (m_folder / files[key]).is_file()


def test_summaries_of_the_tuned_lens_stand_once_by_prompt_in_the_extended_dialect(extended_folder, m_folder):
    extended, m = _json(extended_folder), _json(m_folder)
    assert extended["tuned_lens"] == "#/diagnostics/tuned_lens"
    assert list(extended["diagnostics"]["tuned_lens"]["summaries"]) == ["pos 0 orig", "pos 0 no_filler", "ctl orig"]
    assert isinstance(m["tuned_lens"]["summaries"], list)
    assert m["tuned_lens"]["summaries"] == m["diagnostics"]["tuned_lens"]["summaries"]


def test_the_gain_is_split_into_bias_and_map_in_the_extended_dialect_alone(standard, extended_folder, m_folder):
    parts = standard.record.measured.tuned_variants
    own, tuned = ({r["layer"]: r for r in _primary(standard, lens) if r["is_next"]} for lens in ("logit", "tuned"))
    said = _json(extended_folder)["diagnostics"]["tuned_lens"]["attribution"]["percentiles"]
    for name, layer in (("p25", 3), ("p50", 6), ("p75", 9)):  # of 12 layers
        no_map = parts.bias_only.kl_to_final_bits[layer]
        due = {
            "ΔKL_tuned": own[layer]["kl_to_final_bits"] - tuned[layer]["kl_to_final_bits"],
            "ΔKL_temp": own[layer]["kl_to_final_bits"] - own[layer]["kl_to_final_bits_norm_temp"],
            "ΔKL_bias": own[layer]["kl_to_final_bits_norm_temp"] - no_map,
            "ΔKL_linear": no_map - tuned[layer]["kl_to_final_bits"],
        }
        due["ΔKL_rot"] = due["ΔKL_bias"] + due["ΔKL_linear"]
        assert said[name] == pytest.approx(due, abs=1e-12)
    assert set(_json(m_folder)["tuned_lens"]["attribution"]["percentiles"]["p50"]) == {
        "ΔKL_tuned", "ΔKL_temp", "ΔKL_rot"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["extended_folder", "m_folder"])
def test_skipped_blocks_are_told_by_the_growth_of_perplexity(request, name):
    found = _json(request.getfixturevalue(name))["diagnostics"]
    assert found["skip_layers_sanity"] == {"m=2": 0.25, "m=4": 1.0}
    assert (found["tuned_lens_skip_warning"], found["tuned_lens_regression"]) == (0.25, True)


def test_what_a_lens_was_fitted_on_is_told_in_short(standard, extended_folder, m_folder):
    n = standard.record.model.n_layers
    for folder in (extended_folder, m_folder):
        tree = _json(folder)
        block = tree["tuned_lens"] if folder is m_folder else tree["diagnostics"]["tuned_lens"]
        said = block["provenance_snapshot"]
        assert (said["dataset_id"], said["content_hash"]) == ("wiki.txt", "2" * 64)
        assert (said["train_pos_window"], said["fit_total_tokens_est"], said["rank"]) == ([32 / 128, 1.0], 30_000, 8)
        taus = [1.5 - 0.03 * layer for layer in range(1, n)] + [1.0]
        assert said["temperatures_stats"] == pytest.approx(
            {"min": 1.0, "max": max(taus), **{f"p{q}": np.percentile(taus, q) for q in (25, 50, 75)}}
        )
    assert _json(extended_folder)["diagnostics"]["tuned_lens"]["provenance"] == "#/record/measured/fitted_lenses/0"
    provenance = _json(m_folder)["tuned_lens"]["provenance"]
    assert (provenance["model_id"], provenance["tl_version"]) == ("house/tiny", "20260301T0930Z")
    assert provenance["translator"]["temperatures"] == pytest.approx(taus)
    assert (provenance["training"]["seed"], provenance["training"]["tokens_seen"]) == (316, 30_000)


@pytest.mark.parametrize(
    ("status", "said", "mode", "dialect"),
    [
        ("missing", "missing", "auto", EXTENDED),
        slow("refused", "error", "auto", GENERATION_M),
        slow("off", "disabled", "off", EXTENDED),
        slow("missing", "missing", "auto", GENERATION_M),
        slow("refused", "error", "auto", EXTENDED),
        slow("off", "disabled", "off", GENERATION_M),
    ],
)
def test_a_lens_that_was_not_read_through_says_why(published, tmp_path, dialect, status, said, mode):
    n = published.record.model.n_layers
    why = {"status": status, "reason": f"it is {status}", "path": "here"}
    without = _changed(published, tuned_lens_folder(n, **why), prism_lens_folder(n, **why), without="tuned")
    run = _changed(without, *without.record.measured.fitted_lenses, without="prism")
    tree = _json(_written(run, tmp_path, dialect))
    tuned, prism = tree["diagnostics"]["tuned_lens"], tree["diagnostics"]["prism_summary"]
    assert (tuned["status"], tuned["mode"], tuned["path"]) == (said, mode, "here")
    if dialect is EXTENDED or status == "refused":
        assert tuned["error"] == f"it is {status}"
    else:
        assert "error" not in tuned
    assert (prism["present"], prism["compatible"], prism["mode"]) == (status == "refused", False, mode)
    assert (prism["error"], prism["artifact_path"]) == (f"it is {status}", "here")
    back = read_published(tmp_path).record
    assert back.problems == ()
    assert [(x.kind, x.status, x.path) for x in back.measured.fitted_lenses] == [
        ("tuned", status, "here"), ("prism", status, "here")
    ]  # fmt: skip


def test_a_run_that_says_nothing_of_fitted_lenses_is_one_that_found_none(published, tmp_path):
    run = _changed(_changed(published, without="tuned"), without="prism")
    tree = _json(_written(run, tmp_path, GENERATION_M))
    assert tree["tuned_lens"] == {"status": "missing", "mode": "auto", "path": "tuned_lenses/reference"}
    assert tree["diagnostics"]["prism_summary"]["error"] == "Missing prism artifacts in prisms/reference"
    assert tree["diagnostics"]["tuned_lens_regression"] is False
    assert tree["evaluation_pack"]["tuned_audit"] == {}


# Read again


def test_generation_m_gives_the_parts_and_the_positions_back(published, m_folder):
    back = read_published(m_folder)
    assert back.record.problems == ()
    before, after = published.record.measured.tuned_variants, back.record.measured.tuned_variants
    assert after == before.model_copy(update={"bias_only": None})
    ours, theirs = published.diagnostics.tuned_audit, back.diagnostics.tuned_audit
    assert (theirs.rotation_vs_temperature, theirs.positions) == (ours.rotation_vs_temperature, ours.positions)
    assert theirs.head_mismatch.temperature == published.record.measured.last_layer.temp_est  # the coarser one
    assert back.diagnostics.attribution.percentiles["p50"].bias_bits is None
    assert back.guidance.preferred_semantics_lens_hint == published.guidance.preferred_semantics_lens_hint
    tuned = back.record.measured.fitted_lenses[0]
    assert (tuned.kind, tuned.status, tuned.path, tuned.fitted_to) == ("tuned", "loaded", "tiny-tuned", "house/tiny")
    assert tuned.tuned.temperatures == before.temperatures


def test_a_lens_of_which_no_norms_are_recorded_is_read_again_without_a_problem(published, tmp_path):
    tuned = published.record.measured.fitted_lenses[0]
    bare = tuned.tuned.model_copy(update={"map_norms": (), "temperatures": (), "held_out": None, "skip_layers": ()})
    run = _changed(published, tuned.model_copy(update={"tuned": bare, "corpus": None, "settings": None}))
    folder = _written(run, tmp_path, GENERATION_M)
    block = _json(folder)["tuned_lens"]
    assert (block["provenance"]["training"], block["provenance"]["translator"]["uv_norms"]) == (None, None)
    assert block["provenance_snapshot"]["temperatures_stats"] == dict.fromkeys(("min", "p25", "p50", "p75", "max"))
    assert "skip_layers_sanity" not in _json(folder)["diagnostics"]
    back = read_published(folder).record
    assert back.problems == () and back.measured.fitted_lenses[0].tuned.map_norms == ()


def test_positions_of_the_audit_alone_have_divergences_after_generation_m(published, m_folder):
    rows = read_published(m_folder).rows.filter(lens="tuned", fact_index=0, prompt_variant="orig")
    _, table = _table(m_folder, POSITIONS, GENERATION_M)
    places = {(int(cells["layer"]), int(cells["pos_index"])) for cells in table}
    known = rows.filter(pl.col("kl_to_final_bits").is_not_null())
    assert set(known.select("layer", "position").rows()) == places
    assert known.filter(pl.col("answer_rank").is_null()).is_empty()
    others = rows.filter(pl.col("kl_to_final_bits").is_null())
    assert others.height > 0 and others["answer_rank"].is_null().all()


def _rewrite(folder: Path, suffix: str, change) -> str:
    """Change the rows of a table, and let the manifest go."""
    (path,) = folder.glob(f"output-*-{suffix}.csv")
    (folder / "manifest.json").unlink(missing_ok=True)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(change(rows))
    return path.name


def _as_of_fact_4(run: Run):
    """Rows of an audit table with the divergences of the last fact in them, as files from 2025-10-11 on have them."""
    own = run.rows.filter(pl.col("is_next"), lens="next_norm", fact_index=4, prompt_variant="orig")
    kl = {str(row["layer"]): row["kl_to_final_bits"] for row in own.iter_rows(named=True)}
    return lambda rows: [row | {"kl_bits_baseline": repr(kl[row["layer"]])} for row in rows]


def test_c5_audit_tables_of_the_last_fact_are_told_by_their_numbers_and_left_out(published, tmp_path):
    """Published tables of variants and positions describe the last fact of five, and say nothing of it."""
    folder = _written(published, tmp_path, GENERATION_M)
    names = [_rewrite(folder, suffix, _as_of_fact_4(published)) for suffix in (VARIANTS, POSITIONS)]
    back = read_published(folder)
    said = {problem.file: problem.message for problem in back.record.problems}
    assert set(said) == set(names)
    for message in said.values():
        assert message == (
            "is about pos/orig of fact 4, by its divergences, and not about the first fact, so it was left out"
        )
    assert back.record.measured.tuned_variants is None
    audit = back.diagnostics.tuned_audit
    assert (audit.hint, audit.positions.n_in_dist) == (None, 0)


def test_an_audit_table_of_another_run_is_left_out(published, tmp_path):
    folder = _written(published, tmp_path, GENERATION_M)
    name = _rewrite(folder, VARIANTS, lambda rows: [row | {"kl_bits_baseline": "77.5"} for row in rows])
    back = read_published(folder)
    (problem,) = back.record.problems
    assert problem.file == name and "those of no prompt in the other tables" in problem.message
    assert back.record.measured.tuned_variants is None


def test_damaged_cells_of_an_audit_table_are_named_and_the_others_read(published, tmp_path):
    folder = _written(published, tmp_path, GENERATION_M)

    def damaged(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        rows[0] |= {"answer_rank_rot_only": "first", "kl_bits_baseline": "nan"}
        return rows

    name = _rewrite(folder, VARIANTS, damaged)
    back = read_published(folder)
    assert {(problem.file, problem.row) for problem in back.record.problems} == {(name, 0)}
    before, after = published.record.measured.tuned_variants, back.record.measured.tuned_variants
    assert after.rotation_only.kl_to_final_bits == before.rotation_only.kl_to_final_bits
    assert after.rotation_only.answer_rank == (None, None, *before.rotation_only.answer_rank[2:])


# What published JSON says of fitted lenses


@pytest.mark.parametrize("model", ["Qwen3-8B", "Meta-Llama-3-70B"])
def test_published_lenses_are_in_the_record_as_their_json_has_them(shared, model):
    folder = shared / "reference" / "run-20251004-1804"
    said = json.loads((folder / f"output-{model}.json").read_text(encoding="utf-8"))
    measured = read_published(folder, model).record.measured
    found = {sidecar.kind: sidecar for sidecar in measured.fitted_lenses}
    prism = said["diagnostics"]["prism_summary"]
    assert (found["prism"].status, found["prism"].prism.k) == ("loaded", prism["k"])
    assert found["prism"].prism.layers == tuple(map(str, prism["layers"]))
    assert "/" not in found["prism"].path and found["prism"].path == prism["artifact_path"].rsplit("/", 1)[1]
    if said["tuned_lens"]["status"] == "missing":
        assert (found["tuned"].status, found["tuned"].path) == ("missing", model)
        return
    provenance = said["tuned_lens"]["provenance"]
    assert (found["tuned"].fitted_to, found["tuned"].created_utc[:16]) == (provenance["model_id"], "2025-09-27T18:48")
    assert found["tuned"].tuned.temperatures == (None, *provenance["translator"]["temperatures"])
    assert (found["tuned"].tuned.rank, found["tuned"].tuned.placement) == (provenance["translator"]["rank"], None)
    # What these files call skipped blocks is of three prompts, and of one block fewer (caveat C15).
    assert found["tuned"].tuned.skip_layers == ()


@pytest.mark.parametrize(
    ("tuned", "problem"),
    [
        ({"status": "broken"}, "`tuned_lens.status` should be one of loaded, missing, disabled, error"),
        ({"status": "loaded", "provenance": {"translator": {"temperatures": [1.0]}}}, "has 1 values, but the model 12"),
        ({"status": "loaded", "provenance": {"translator": {"rank": -3}}}, "makes no TunedFitRecord (rank:"),
    ],
)
def test_what_makes_no_sense_in_the_json_is_a_problem(published, m_folder, tmp_path, tuned, problem):
    for path in m_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").unlink()
    (path,) = tmp_path.glob("output-*.json")
    path.write_text(json.dumps(_json(tmp_path) | {"tuned_lens": tuned}), encoding="utf-8")
    said = [found.message for found in read_published(tmp_path).record.problems]
    assert [message for message in said if problem in message], said


def test_no_folder_of_another_machine_is_taken_into_the_record(published, m_folder, tmp_path):
    for path in m_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").unlink()
    (path,) = tmp_path.glob("output-*.json")
    said = {"status": "error", "path": "/home/anna/lenses/mine", "error": "cannot open /home/anna/lenses/mine: denied"}
    path.write_text(json.dumps(_json(tmp_path) | {"tuned_lens": said}), encoding="utf-8")
    found = read_published(tmp_path).record.measured.fitted_lenses[0]
    assert (found.status, found.path, found.reason) == ("refused", "mine", "cannot open mine: denied")


def test_numbers_written_and_read_again_stay_the_same_to_the_last_digit(published, m_folder):
    _, table = _table(m_folder, VARIANTS, GENERATION_M)
    rows = {row["layer"]: row for row in _primary(published, "next_norm") if row["is_next"]}
    assert all(float(c["kl_bits_baseline"]) == rows[int(c["layer"])]["kl_to_final_bits"] for c in table)
    assert all(math.isfinite(float(cell)) for row in table for cell in row.values() if cell is not None)
