"""Published folders as runs: every generation at hand, every fault by file and row, our own folders back exactly."""

import csv
import json
import math
import os
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from layerscope.errors import RunError
from layerscope.published.dialect import serialise
from layerscope.published.layout import (
    ARTIFACT_AUDIT,
    EXTENDED,
    GENERATION_M,
    MILESTONES,
    NEXT_TOKEN,
    POSITIONS_TUNED_AUDIT,
    RAWLENS,
    RAWLENS_WINDOW,
    RECORDS,
    TUNED_VARIANTS,
    Table,
    columns_of,
    csv_name,
    value_of,
)
from layerscope.published.read.reader import read_published
from layerscope.record import COLUMNS, SCHEMA_VERSION, RunRecord, rows_frame
from layerscope.run import Run
from made_sweep import MADE
from properties import examples
from published import SHARED

# A small folder of generation M, written here


@dataclass(frozen=True)
class Prompt:
    fact_index: int | None
    prompt_id: str
    prompt_variant: str
    tokens: tuple[str, ...]

    @property
    def fact_key(self) -> str | None:
        return None if self.fact_index is None else "Germany→Berlin"


PROMPTS = (
    Prompt(0, "pos", "orig", ("The", "\n", " simply")),
    Prompt(0, "pos", "no_filler", ("The", "\n")),
    Prompt(None, "ctl", "orig", ("The", "\r", " simply")),
)
N_LAYERS = 3
FIRST_LAYER = {"next_norm": 0, "prism": 0, "tuned": 1}
SIBLING = {"next_norm": None, "prism": "prism", "tuned": "tuned"}
STEM = "tiny"
NEXT, NEXT_PRISM, NEXT_TUNED = (csv_name(STEM, NEXT_TOKEN, lens) for lens in SIBLING.values())
REC, REC_PRISM, REC_TUNED = (csv_name(STEM, RECORDS, lens) for lens in SIBLING.values())
RAW, JSON = csv_name(STEM, RAWLENS), "output-tiny.json"
UNREAD = (RAWLENS_WINDOW, MILESTONES, ARTIFACT_AUDIT, TUNED_VARIANTS, POSITIONS_TUNED_AUDIT)
"""Tables without rows here that should be there; what is read of the last two is tested with fitted lenses."""


def _number(*key: object) -> float:
    """Some number in [0, 1), the same for the same key."""
    return zlib.crc32(repr(key).encode()) / 2**32


def _keys(prompt: Prompt, layer: int) -> dict[str, object]:
    return {
        "fact_key": prompt.fact_key, "fact_index": prompt.fact_index, "prompt_id": prompt.prompt_id,
        "prompt_variant": prompt.prompt_variant, "layer": layer,
    }  # fmt: skip


def _next_row(prompt: Prompt, lens: str, layer: int) -> dict[str, object]:
    row: dict[str, object] = {}
    for column in columns_of(NEXT_TOKEN, GENERATION_M):
        number = _number(column.name, prompt, layer, lens)
        row[column.name] = {"int": int(number * 1000) + 1, "float": number, "bool": number > 0.5, "str": "x"}[
            column.kind
        ]
    row |= _keys(prompt, layer) | {"pos": len(prompt.tokens) - 1, "token": "⟨NEXT⟩", "top2": "\\n", "top3": "\r\n"}
    row |= {f"{name}{i}": None for name in ("top", "prob") for i in range(6, 21)}
    row |= {"top1": f'a,"{layer}', "entropy_bits": row["entropy"], "teacher_entropy_bits": _number("teacher", prompt)}
    return row | {"is_answer": layer >= 2, "answer_rank": 1 if layer >= 2 else 5 + layer}


def _records_row(prompt: Prompt, lens: str, layer: int, position: int) -> dict[str, object]:
    if position == len(prompt.tokens) - 1:
        row = _next_row(prompt, lens, layer)
        row |= {f"top{i}": f"t{i}" for i in range(6, 21)} | {
            f"prob{i}": _number(i, row["entropy"]) for i in range(6, 21)
        }
        row["rest_mass"] = 0.125
    else:
        row = {"entropy": _number("entropy", prompt, layer, lens, position), "rest_mass": 0.5}
        row |= {"entropy_bits": row["entropy"], "top1": "", "prob1": 0.5, "top2": "b", "prob2": 0.0}
    return row | _keys(prompt, layer) | {"pos": position, "token": prompt.tokens[position]}


def _rawlens_row(prompt: Prompt, layer: int) -> dict[str, object]:
    row: dict[str, object] = {}
    for column in columns_of(RAWLENS, GENERATION_M):
        number = _number("rawlens", column.name, prompt, layer)
        row[column.name] = {"int": int(number * 1000) + 1, "float": number, "bool": number > 0.5, "str": "r"}[
            column.kind
        ]
    norm = _next_row(prompt, "next_norm", layer)
    row |= {f"{name}_norm": norm[name] for name in ("p_top1", "p_answer", "answer_rank", "entropy_bits")}
    return row | _keys(prompt, layer) | {"top1_token_str_norm": norm["top1"]}


def _write(folder: Path, table: Table, lens: str | None, rows: list[dict[str, object]], generation: str = "M") -> None:
    names = [column.name for column in columns_of(table, GENERATION_M, generation=generation)]
    cells = [[row.get(name) for name in names] for row in rows]
    (folder / csv_name(STEM, table, lens)).write_bytes(serialise(names, cells, GENERATION_M))  # type: ignore[arg-type]


def _gold(string: str, first_id: int) -> dict[str, object]:
    return {
        "string": string,
        "pieces": [f"Ġ{string}"],
        "first_id": first_id,
        "answer_ids": [first_id],
        "variant": "with_space",
    }


def _json() -> dict[str, object]:
    last = _next_row(PROMPTS[0], "next_norm", N_LAYERS)
    prediction = {
        "type": "final_prediction",
        "entropy": _number("teacher", PROMPTS[0]),
        "topk": [[" Berlin", 0.75], ["", 0.25]],
    }
    text = "Give the city name only, plain text. The capital of {} is called simply"
    return {
        "prompt": {"context_prompt": text.format("Germany"), "ground_truth": "Berlin", "fact_key": "Germany→Berlin"},
        "test_prompts": [{"prompt": "Berlin is the capital of", "entropy": 1.5, "topk": [[" Germany", 0.5]]}],
        "temperature_exploration": [{"temperature": 0.1, "entropy": 0.5, "topk": [[" Berlin", 1.0]]}],
        "final_prediction": prediction,
        "model_stats": {"num_layers": N_LAYERS, "d_model": 8, "n_heads": 2, "d_vocab": 50, "architecture": "pre_norm"},
        "gold_answer": _gold("Berlin", 7),
        "provenance": {"env": {
            "torch_version": "2.8.0", "cuda_version": None, "cudnn": 91002, "device": "cpu",
            "dtype_compute": "torch.bfloat16", "deterministic_algorithms": True, "cudnn_benchmark": False, "seed": 316,
            "python": "3.12.3", "platform": "Linux-6.8.0-78-generic-x86_64-with-glibc2.39",
        }},
        "copy_flag_columns": [c.name for c in columns_of(NEXT_TOKEN, GENERATION_M) if c.name.startswith("copy_s")],
        "control_prompt": {"context_prompt": text.format("France"), "gold_answer": _gold("Paris", 9)},
        "tuned_lens": {"status": "loaded"},
        "diagnostics": {
            "model": "house/tiny", "unembed_dtype": "torch.float32", "first_block_ln1_type": "RMSNorm",
            "final_ln_type": "RMSNorm", "unembed_bias": {"present": False, "l2_norm": 0.0, "max_abs": 0.0},
            "flags": {"normalization_spike": True, "repeatability_skipped": "deterministic_env"},
            "prism_summary": {"present": True, "compatible": True}, "tau_norm_per_layer": [0.2, 1.5, 5.0, 1],
            "copy_mask": {"ignored_token_ids": [5, 1, 2], "ignored_token_str_sample": ["!"], "size": 3},
            "L_semantic": 2, "raw_lens_window": {"radius": 4}, "raw_lens_full": {"mode": "full"},
            "normalization_provenance": {"per_layer": [
                {"layer": layer, "ln_source": f"norm{layer}", "raw_resid_norm": 10.0 + layer}
                for layer in range(N_LAYERS + 1)
            ]},
            "numeric_health": {
                "any_nan": False, "any_inf": False, "max_abs_logit_p99": 12.5, "min_prob_p01": 0.0,
                "layers_flagged": [],
            },
            "micro_suite": {}, "semantic_gate": {}, "lens_consistency": {}, "decoding_point": {},
            "repeatability_forward": {"mode": "skipped_deterministic"},
            "gold_alignment": {"ok": True, "status": "ok"}, "gold_alignment_rate": 1.0,
            "gold_alignment_prompts": [
                {"prompt_id": "pos", "prompt_variant": variant, "ok": True, "fact_index": 0, **_gold("Berlin", 7)}
                for variant in ("orig", "no_filler")
            ],
            "last_layer_consistency": {
                "kl_to_final_bits": last["kl_to_final_bits"], "top1_agree": True, "p_top1_lens": last["p_top1"],
                "p_top1_model": 0.5, "p_answer_lens": last["p_answer"], "answer_rank_lens": 1, "temp_est": 1.0,
                "kl_after_temp_bits": 0.25, "cfg_transform": {"scale": None, "softcap": 30.0},
                "kl_after_transform_bits": {"scale": None, "softcap": 0.001, "scale_then_softcap": None},
            },
        },
    }  # fmt: skip


def _set(folder: Path, path: str, value: object) -> None:
    """Change one member of the JSON, named by its place."""
    members = found = json.loads((folder / JSON).read_text(encoding="utf-8"))
    *above, last = path.split(".")
    for key in above:
        found = found[key]
    found[last] = value
    (folder / JSON).write_text(json.dumps(members, ensure_ascii=False), encoding="utf-8")


SINCE = {
    "C": ["diagnostics.prism_summary"],
    "D": ["copy_flag_columns"],
    "E": ["diagnostics.tau_norm_per_layer", "tuned_lens"],
    "F": ["diagnostics.raw_lens_window"],
    "G": ["diagnostics.raw_lens_full"],
    "H": ["provenance", "diagnostics.flags", "diagnostics.unembed_bias", "diagnostics.copy_mask",
          "diagnostics.normalization_provenance", "diagnostics.numeric_health"],
    "I": ["diagnostics.gold_alignment_prompts", "diagnostics.gold_alignment_rate"],
    "J": ["diagnostics.micro_suite"],
    "K": ["diagnostics.semantic_gate"],
    "L": ["diagnostics.lens_consistency"],
    "M": ["diagnostics.decoding_point", "diagnostics.repeatability_forward"],
}  # fmt: skip
"""Members of the JSON by the generation in which they appeared."""


def _build(folder: Path, generation: str = "M") -> Path:
    """A whole folder as a generation would have written it."""
    folder.mkdir()
    layers = range(N_LAYERS + 1)
    lenses = {"next_norm": "B", "prism": "C", "tuned": "E"}
    for lens in [lens for lens, since in lenses.items() if since <= generation]:
        own = [(p, layer) for p in PROMPTS for layer in layers if layer >= FIRST_LAYER[lens]]
        _write(folder, NEXT_TOKEN, SIBLING[lens], [_next_row(p, lens, layer) for p, layer in own], generation)
        places = [(p, layer, at) for p, layer in own for at in range(len(p.tokens))]
        _write(
            folder, RECORDS, SIBLING[lens], [_records_row(p, lens, layer, at) for p, layer, at in places], generation
        )
    if generation >= RAWLENS.since:
        _write(folder, RAWLENS, None, [_rawlens_row(p, layer) for p in PROMPTS for layer in layers], generation)
    for table in [table for table in UNREAD if table.since <= generation]:
        _write(folder, table, None, [], generation)
    (folder / JSON).write_text(json.dumps(_json(), ensure_ascii=False), encoding="utf-8")
    for path in [path for since, paths in SINCE.items() if since > generation for path in paths]:
        _set(folder, path, None)
    if generation >= "D":
        columns = columns_of(NEXT_TOKEN, GENERATION_M, generation=generation)
        _set(folder, "copy_flag_columns", [column.name for column in columns if column.name.startswith("copy_s")])
    if generation < "I":
        _set(folder, "diagnostics.gold_alignment", "ok")
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undamaged folder; tests copy what they change."""
    return _build(tmp_path_factory.mktemp("published") / "run-20251016-0930")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / whole.name
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.fixture(scope="session")
def rows_of_whole(whole: Path) -> pl.DataFrame:
    return read_published(whole).rows


def _of(rows: pl.DataFrame, prompt: Prompt, lens: str, layer: int, position: int) -> dict[str, object]:
    (row,) = rows.filter(
        pl.col("fact_index").eq_missing(prompt.fact_index) & (pl.col("prompt_id") == prompt.prompt_id)
        & (pl.col("prompt_variant") == prompt.prompt_variant) & (pl.col("lens") == lens) & (pl.col("layer") == layer)
        & (pl.col("position") == position)
    ).to_dicts()  # fmt: skip
    return row


# What an undamaged folder becomes


def test_a_whole_folder_has_a_row_for_each_prompt_lens_layer_and_position(whole):
    run = read_published(whole)
    assert run.record.problems == ()
    order = [
        (p.fact_index, p.prompt_id, p.prompt_variant, lens, layer, position)
        for p in PROMPTS
        for lens in ("next_norm", "raw", "prism", "tuned")
        for layer in range(FIRST_LAYER.get(lens, 0), N_LAYERS + 1)
        for position in (range(len(p.tokens)) if lens != "raw" else [len(p.tokens) - 1])
    ]
    keys = ["fact_index", "prompt_id", "prompt_variant", "lens", "layer", "position"]
    assert run.rows.select(keys).rows() == order


@pytest.mark.parametrize("lens", ["next_norm", "prism", "tuned"])
def test_a_row_at_the_last_position_has_all_of_its_next_token_row_and_the_longer_list(rows_of_whole, lens):
    same = {c.name for c in COLUMNS} & {c.name for c in columns_of(NEXT_TOKEN, GENERATION_M)}
    same -= {"token", "rest_mass", "top1"}
    if lens == "next_norm":
        same -= {"topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50"}
    for prompt in PROMPTS:
        for layer in range(FIRST_LAYER[lens], N_LAYERS + 1):
            published = _next_row(prompt, lens, layer)
            row = _of(rows_of_whole, prompt, lens, layer, len(prompt.tokens) - 1)
            primary = prompt is PROMPTS[0]
            assert {name: row[name] for name in same} == {name: published[name] for name in same}
            assert (row["is_next"], row["finite"], row["kl_saturated"]) == (True, True, False)
            assert row["token"] == prompt.tokens[-1]
            assert row["answer_id"] == (9 if prompt.prompt_id == "ctl" else 7)
            assert row["raw_resid_norm"] == (10.0 + layer if primary else None)
            assert row["top_tokens"] == [published[f"top{i}"] for i in range(1, 6)] + [f"t{i}" for i in range(6, 21)]
            assert row["top_probs"][:5] == [published[f"prob{i}"] for i in range(1, 6)]
            assert (row["top1"], row["rest_mass"]) == (published["top1"], 0.125)
            assert (row["top_ids"], row["token_id"]) == (None, None)


def test_rows_elsewhere_have_what_records_say_and_nothing_more(rows_of_whole):
    prompt = PROMPTS[2]
    row = _of(rows_of_whole, prompt, "prism", 1, 1)
    published = _records_row(prompt, "prism", 1, 1)
    expected = {column.name: None for column in COLUMNS} | {
        "prompt_id": "ctl", "prompt_variant": "orig", "lens": "prism", "layer": 1, "position": 1, "token": "\r",
        "is_next": False, "finite": True, "entropy_bits": published["entropy"], "rest_mass": 0.5, "top1": "",
        "top_tokens": ["", "b"], "top_probs": [0.5, 0.0], "answer_id": 9,
    }  # fmt: skip
    assert row == expected


def test_the_raw_lens_has_rows_of_its_own_and_what_compares_it_belongs_to_the_norm_lens(rows_of_whole):
    for prompt in PROMPTS:
        for layer in range(N_LAYERS + 1):
            published = _rawlens_row(prompt, layer)
            raw = _of(rows_of_whole, prompt, "raw", layer, len(prompt.tokens) - 1)
            norm = _of(rows_of_whole, prompt, "next_norm", layer, len(prompt.tokens) - 1)
            for name in ("p_top1", "p_answer", "answer_rank", "entropy_bits"):
                assert raw[name] == published[f"{name}_raw"]
            assert (raw["top1_id"], raw["top1"]) == (published["top1_token_id_raw"], published["top1_token_str_raw"])
            assert raw["is_answer"] is None and raw["top_tokens"] is None and raw["kl_norm_vs_raw_bits"] is None
            assert norm["top1_id"] == published["top1_token_id_norm"]
            assert norm["js_divergence_bits"] == published["js_divergence"]
            for name in ("kl_norm_vs_raw_bits", "kl_raw_to_norm_bits", "l1_prob_diff"):
                assert norm[name] == published[name]
            for name in ("topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50"):
                assert norm[name] == published[name] != _next_row(prompt, "next_norm", layer)[name]


@pytest.mark.parametrize("generation", "BCDEFGHIJKLM")
def test_every_generation_is_read_and_what_it_did_not_have_is_null(rows_of_whole, tmp_path, generation):
    run = read_published(_build(tmp_path / "run-20250901-0000", generation))
    assert run.record.problems == ()
    lenses = [
        lens
        for lens, since in {"next_norm": "B", "raw": "G", "prism": "C", "tuned": "E"}.items()
        if since <= generation
    ]
    assert run.record.protocol.lenses == tuple(lenses)
    tables = [table for table in (NEXT_TOKEN, RAWLENS) if table.since <= generation]
    had = {c.ours for table in tables for c in columns_of(table, GENERATION_M, generation=generation)}
    never = {c.name for c in COLUMNS if run.rows[c.name].null_count() == run.rows.height}
    always = {"fact_index", "answer_id", "token", "kl_saturated"} | (
        {"raw_resid_norm", "control_top2_logit_gap"} if generation >= "H" else set()
    )
    assert never == {c.name for c in COLUMNS if c.nullable} - had - always - {"top1"}
    expected = rows_of_whole.filter(pl.col("lens").is_in(lenses))
    facts = run.rows.filter(pl.col("prompt_id") == "pos")
    assert facts["fact_index"].unique().to_list() == [0]
    assert facts["fact_key"].unique().to_list() == (["Germany→Berlin"] if generation >= "J" else [None])
    keys = ["fact_index", "prompt_id", "prompt_variant", "lens", "layer", "position", "token", "p_answer", "top_tokens"]
    assert run.rows.select(keys).equals(expected.select(keys))
    assert run.rows["answer_id"].null_count() == 0
    assert (run.record.provenance is None) == (generation < "H")


def test_the_record_holds_what_the_json_says(whole):
    record = read_published(whole).record
    assert (record.run_id, record.source, record.created_utc) == ("run-20251016-0930", "published", None)
    protocol = record.protocol
    assert (protocol.name, protocol.version, protocol.headline_lens) == ("published", "2", "next_norm")
    assert protocol.lenses == ("next_norm", "raw", "prism", "tuned")
    assert not protocol.lens_head_transform
    model = record.model
    assert (model.id, model.n_layers, model.d_model, model.n_heads, model.d_vocab) == ("house/tiny", 3, 8, 2, 50)
    assert record.lens_sources["next_norm"] == ("norm0", "norm1", "norm2", "norm3")
    assert record.lens_sources["tuned"] == (None,) * 4
    assert record.flags == {"normalization_spike": True, "repeatability_skipped": "deterministic_env"}
    assert record.numeric_health is not None and record.numeric_health.max_abs_logit_p99 == 12.5
    provenance = record.provenance
    assert provenance is not None
    assert (provenance.platform, provenance.torch, provenance.cudnn_version) == ("Linux x86_64", "2.8.0", "91002")
    assert (provenance.dtype_compute, provenance.dtype_unembed) == ("bfloat16", "float32")
    assert (record.identity, record.positions, record.top_k, record.timings) == (None, None, None, None)


def test_the_record_holds_what_was_measured_beside_the_rows(whole):
    measured = read_published(whole).record.measured
    assert (measured.stack, measured.first_block_norm, measured.final_norm) == ("pre_norm", "RMSNorm", "RMSNorm")
    assert measured.copy_mask is not None and measured.copy_mask.ids == [1, 2, 5]
    tau = measured.norm_temperature
    assert tau is not None
    assert (tau.method, tau.tau_per_layer, tau.bound_hits) == ("grid", (0.2, 1.5, 5.0, 1.0), 2)
    last = measured.last_layer
    assert last is not None
    assert (last.answer_rank_lens, last.softcap, last.kl_after_softcap_bits) == (1, 30.0, 0.001)
    assert (last.temp_est_refined, last.kl_after_scale_bits) == (None, None)
    assert measured.second_forward is not None and measured.second_forward.mode == "skipped_deterministic"
    assert measured.final_prediction is not None and measured.final_prediction.top_tokens == (" Berlin", "")
    assert measured.temperature_exploration[0].temperature == 0.1
    assert measured.test_prompts[0].prompt == "Berlin is the capital of"
    assert set(measured.absent) == {"position_readout", "tuned_variants"}


def test_the_record_holds_prompts_answers_and_tokens(whole):
    suite = read_published(whole).record.suite
    assert (suite.name, suite.sha256, suite.gold_alignment_rate) == ("berlin", None, 1.0)
    primary, no_filler, control = suite.prompts
    assert primary.text == "Give the city name only, plain text. The capital of Germany is called simply"
    assert no_filler.text == "Give the city name only, plain text. The capital of Germany is called"
    assert control.text == "Give the city name only, plain text. The capital of France is called simply"
    assert [p.tokens for p in suite.prompts] == [p.tokens for p in PROMPTS]
    assert [p.decoded_positions for p in suite.prompts] == [(0, 1, 2), (0, 1), (0, 1, 2)]
    assert (primary.fact_key, primary.fact_index, control.fact_key) == ("Germany→Berlin", 0, None)
    assert [a.first_id for p in suite.prompts for a in p.answers] == [7, 7, 9]
    assert [a.string for a in control.contrast] == ["Berlin"]
    assert primary.answers[0].pieces == ("ĠBerlin",)


def test_an_answer_without_ids_is_unresolved_with_the_reason_that_the_file_gives(folder):
    gold = _gold("Berlin", 7) | {"first_id": None, "answer_ids": [], "pieces": [], "variant": "unknown"}
    entry = {"prompt_id": "pos", "ok": False, "status": "unresolved", "reason": "no_variant_extended_context"}
    prompts = [gold | entry | {"prompt_variant": v, "fact_index": 0} for v in ("orig", "no_filler")]
    _set(folder, "diagnostics.gold_alignment_prompts", prompts)
    _set(folder, "gold_answer", gold)
    run = read_published(folder)
    (answer,) = run.record.suite.prompts[0].answers
    assert (answer.ok, answer.reason) == (False, "no_variant_extended_context")
    assert run.rows.filter(pl.col("prompt_id") == "pos")["answer_id"].unique().to_list() == [None]


def test_a_flagged_layer_is_not_finite_and_has_no_metrics(folder):
    flagged = [{"layer": 1, "lens": "norm", "any_nan": True, "any_inf": False}]
    _set(folder, "diagnostics.numeric_health.layers_flagged", flagged)
    run = read_published(folder)
    row = _of(run.rows, PROMPTS[0], "next_norm", 1, 2)
    assert (row["finite"], row["entropy_bits"], row["top_tokens"]) == (False, None, None)
    assert run.rows["finite"].sum() == run.rows.height - 1
    assert _problems(run) == [(JSON, None, "layer 1 of next_norm is flagged as not finite")]


# Faults


def _problems(run: Run) -> list[tuple[str, int | None, str]]:
    """File, row and the beginning of what is said, up to the first `;` or `,`."""
    return [(p.file, p.row, p.message.partition(";")[0].partition(",")[0]) for p in run.record.problems]


def _edit(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))


def _cells(folder: Path, name: str) -> list[list[str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, escapechar="\\"))


def _put(folder: Path, name: str, cells: list[list[str]]) -> None:
    (folder / name).write_bytes(
        serialise(cells[0], [[cell or None for cell in row] for row in cells[1:]], GENERATION_M)
    )


def _change_cell(folder: Path, name: str, row: int, column: str, text: str) -> None:
    cells = _cells(folder, name)
    cells[row + 1][cells[0].index(column)] = text
    _put(folder, name, cells)


def _rest(run: Run, whole_rows: pl.DataFrame, lost: pl.Expr | bool) -> None:
    """Whether all other rows are as in the undamaged folder."""
    rest = whole_rows.filter(~(pl.lit(lost) if isinstance(lost, bool) else lost))
    keys = ["prompt_id", "prompt_variant", "lens", "layer", "position"]
    found = rest.select(keys).join(run.rows, on=keys, how="left", maintain_order="left")
    assert found.select(whole_rows.columns).equals(rest, null_equal=True)


NORM = pl.col("lens") == "next_norm"
PRIMARY = (pl.col("prompt_id") == "pos") & (pl.col("prompt_variant") == "orig")


def test_line_ends_and_byte_order_marks_cost_nothing(folder, rows_of_whole):
    _edit(folder, NEXT, lambda data: "\ufeff".encode() + data)
    _edit(folder, NEXT_PRISM, lambda data: data.replace(b"\n", b"\r\n").replace(b"\r\r\n", b"\r\n"))
    run = read_published(folder)
    assert _problems(run) == [
        (NEXT, None, "the file begins with a byte order mark"),
        (NEXT_PRISM, None, "lines end in CR LF"),
    ]
    assert run.rows.equals(rows_of_whole)


def test_a_table_cut_inside_a_row_keeps_the_rows_before_it(folder, rows_of_whole):
    data = (folder / NEXT_PRISM).read_bytes()
    at = data.rindex(b"ctl,orig,3")
    for cut, said in (
        (at + 40, "the file ends inside"),
        (data.index(b'"', at) + 1, "the file ends inside a quoted cell"),
    ):
        (folder / NEXT_PRISM).write_bytes(data[:cut])
        run = read_published(folder)
        assert _problems(run)[0][:2] == (NEXT_PRISM, 11)
        assert _problems(run)[0][2].startswith(said)
        assert (NEXT_PRISM, 10, "ctl/orig lacks layer 3") in _problems(run)
        lost = (pl.col("lens") == "prism") & (pl.col("prompt_id") == "ctl") & (pl.col("layer") == 3)
        _rest(run, rows_of_whole, lost & pl.col("is_next"))


def test_a_row_with_a_cell_too_few_is_left_out(folder, rows_of_whole):
    cells = _cells(folder, NEXT_TUNED)
    del cells[4][20]
    _put(folder, NEXT_TUNED, cells)
    run = read_published(folder)
    assert _problems(run) == [
        (NEXT_TUNED, 3, "the row has 84 cells where the header has 85"),
        (NEXT_TUNED, None, "pos/no_filler of fact 0 lacks layer 1"),
    ]
    lost = (pl.col("lens") == "tuned") & (pl.col("prompt_variant") == "no_filler") & (pl.col("layer") == 1)
    _rest(run, rows_of_whole, lost & pl.col("is_next"))


def test_a_missing_layer_is_named(folder, rows_of_whole):
    cells = _cells(folder, NEXT)
    _put(folder, NEXT, cells[:2] + cells[3:])
    cells = _cells(folder, REC_PRISM)
    _put(folder, REC_PRISM, cells[:4] + cells[5:])
    run = read_published(folder)
    assert _problems(run) == [
        (NEXT, 0, "pos/orig of fact 0 lacks layer 1"),
        (REC_PRISM, 2, "pos/orig of fact 0 lacks layer 1 at position 0"),
    ]
    _rest(run, rows_of_whole, (PRIMARY & (pl.col("layer") == 1)) & pl.col("lens").is_in(["next_norm", "prism"]))


def test_a_missing_prompt_is_named(folder):
    cells = _cells(folder, RAW)
    _put(folder, RAW, [row for row in cells if "ctl" not in row])
    run = read_published(folder)
    assert _problems(run) == [(RAW, None, "has no rows of ctl/orig")]
    assert run.rows.filter((pl.col("lens") == "raw") & (pl.col("prompt_id") == "ctl")).is_empty()


@pytest.mark.parametrize(
    "table",
    [NEXT, NEXT_PRISM, NEXT_TUNED, REC, REC_PRISM, REC_TUNED, RAW, *(csv_name(STEM, table) for table in UNREAD)],
)
def test_a_missing_table_is_named_and_the_others_are_read(folder, rows_of_whole, table):
    (folder / table).unlink()
    run = read_published(folder)
    assert _problems(run) == [(table, None, "the file is missing")]
    assert run.rows.height >= rows_of_whole.height - 32
    lens = {NEXT_PRISM: "prism", REC_PRISM: "prism", NEXT_TUNED: "tuned", REC_TUNED: "tuned", RAW: "raw"}.get(
        table, "next_norm"
    )
    if table not in (RAW, REC):
        _rest(run, rows_of_whole, pl.col("lens") == lens)


def test_a_table_without_its_siblings_still_gives_rows(folder):
    for path in folder.glob("*.csv"):
        if path.name != NEXT_PRISM:
            path.unlink()
    run = read_published(folder)
    assert run.record.protocol.lenses == ("next_norm", "prism")
    assert run.rows["lens"].unique().to_list() == ["prism"]
    assert run.rows.height == 12
    assert run.rows["token"].null_count() == 12
    assert len(run.record.problems) == 11


def test_no_table_at_all_leaves_the_record(folder):
    for path in folder.glob("*.csv"):
        path.unlink()
    run = read_published(folder)
    assert run.rows.is_empty()
    assert run.record.model.d_vocab == 50
    assert len(run.record.problems) == 12


def test_raw_rows_without_a_position_are_left_out(folder):
    for name in (NEXT, NEXT_PRISM, NEXT_TUNED, REC, REC_PRISM, REC_TUNED):
        (folder / name).unlink()
    run = read_published(folder)
    assert run.rows.is_empty()
    assert (RAW, 0, "no other table says at which position pos/orig of fact 0 ends") in _problems(run)


def test_a_file_that_cannot_be_read_is_named(folder, rows_of_whole):
    (folder / NEXT_TUNED).unlink()
    (folder / NEXT_TUNED).mkdir()
    run = read_published(folder)
    assert _problems(run) == [(NEXT_TUNED, None, "the file cannot be read (Is a directory)")]
    _rest(run, rows_of_whole, pl.col("lens") == "tuned")


def test_missing_moved_and_unknown_columns_are_named_and_read_by_name(folder, rows_of_whole):
    cells = _cells(folder, NEXT)
    at = cells[0].index("cos_to_final")
    moved = [[row[at + 1], *row[:at], *row[at + 2 :], "new" if row is cells[0] else "1"] for row in cells]
    _put(folder, NEXT, moved)
    run = read_published(folder)
    assert _problems(run) == [
        (NEXT, None, "lacks the columns cos_to_final"),
        (NEXT, None, "the columns stand in another order than they should"),
        (NEXT, None, "has the unknown columns 'new'"),
    ]
    assert run.rows.filter(NORM)["cos_to_final"].null_count() == run.rows.filter(NORM).height
    assert run.rows.drop("cos_to_final").equals(rows_of_whole.drop("cos_to_final"))


def test_a_table_without_a_key_column_is_passed_over(folder, rows_of_whole):
    cells = _cells(folder, NEXT_PRISM)
    cells[0][cells[0].index("layer")] = "level"
    _put(folder, NEXT_PRISM, cells)
    run = read_published(folder)
    assert [s for s in _problems(run) if s[2].startswith("lacks the columns")] == [
        (NEXT_PRISM, None, "lacks the columns layer")
    ]
    _rest(run, rows_of_whole, pl.col("lens") == "prism")


def test_cells_that_are_no_numbers_are_left_out_and_their_row_is_named(folder, rows_of_whole):
    for row, text in ((2, "abc"), (3, "nan")):
        _change_cell(folder, NEXT, row, "cos_to_final", text)
    _change_cell(folder, NEXT, 5, "is_answer", "perhaps")
    _change_cell(folder, NEXT, 6, "answer_logit_gap", "1e999")
    _change_cell(folder, NEXT, 7, "answer_rank", "3000000000")
    _change_cell(folder, NEXT, 8, "answer_rank", "-1")
    _change_cell(folder, NEXT, 9, "layer", "")
    run = read_published(folder)
    said = {(file, row, message) for file, row, message in _problems(run) if file == NEXT}
    assert said == {
        (NEXT, 2, "column `cos_to_final` should hold a finite number"),
        (NEXT, 5, "column `is_answer` should hold a truth value"),
        (NEXT, 6, "column `answer_logit_gap` should hold a finite number"),
        (NEXT, 7, "column `answer_rank` should hold a whole number"),
        (NEXT, 9, "the row has no layer"),
        (NEXT, 8, "ctl/orig lacks layer 1"),
    }
    (shared,) = [p.message for p in run.record.problems if "cos_to_final" in p.message]
    assert shared.endswith("in 2 rows does not (the first holds 'abc'); left out (the same in rows 2 to 3)")
    assert _of(run.rows, PROMPTS[0], "next_norm", 2, 2)["cos_to_final"] is None
    assert _of(run.rows, PROMPTS[1], "next_norm", 3, 1)["answer_rank"] == 1  # which the raw-lens table says too
    untouched = rows_of_whole.columns
    untouched = [n for n in untouched if n not in ("cos_to_final", "is_answer", "answer_logit_gap", "answer_rank")]
    lost = NORM & (pl.col("prompt_id") == "ctl") & (pl.col("layer") == 1)
    _rest(Run(run.rows, run.record), rows_of_whole, lost | (NORM & pl.col("is_next")))
    assert run.rows.select(untouched).filter(~lost).equals(rows_of_whole.select(untouched).filter(~lost))


def test_whole_numbers_written_with_a_decimal_point_are_whole(folder, rows_of_whole):
    cells = _cells(folder, NEXT)
    at = cells[0].index("answer_rank")
    for row in cells[1:]:
        row[at] += ".0"
    _put(folder, NEXT, cells)
    run = read_published(folder)
    assert run.record.problems == ()
    assert run.rows.equals(rows_of_whole)


def test_bytes_that_are_not_utf_8_are_replaced_in_their_row(folder, rows_of_whole):
    at = (folder / REC).read_bytes().index(b"t7")
    _edit(folder, REC, lambda data: data[:at] + b"\xe9" + data[at + 1 :])
    run = read_published(folder)
    assert _problems(run) == [(REC, 2, "column `top7` has bytes that are not UTF-8")]
    assert _of(run.rows, PROMPTS[0], "next_norm", 0, 2)["top_tokens"][6] == "\ufffd7"
    _rest(run, rows_of_whole, NORM & PRIMARY & (pl.col("layer") == 0) & pl.col("is_next"))


def test_a_row_that_stands_twice_is_read_once(folder, rows_of_whole):
    cells = _cells(folder, NEXT)
    changed = list(cells[2])
    changed[cells[0].index("cos_to_final")] = "0.5"
    _put(folder, NEXT, [*cells, changed])
    run = read_published(folder)
    assert _problems(run) == [(NEXT, 12, "pos/orig of fact 0 has layer 1")]
    assert run.rows.equals(rows_of_whole)


def test_a_fact_without_a_number_is_not_placed(folder):
    _change_cell(folder, NEXT, 1, "fact_index", "")
    assert (NEXT, 1, "the row of a fact has no fact_index") in _problems(read_published(folder))


def test_a_copy_flag_of_another_threshold_is_named(folder):
    _set(folder, "copy_flag_columns", [*_json()["copy_flag_columns"], "copy_soft_k1@0.33"])
    said = _problems(read_published(folder))
    assert [s for s in said if s[0] == NEXT] == [(NEXT, None, "lacks the columns copy_soft_k1@0.33")]
    for name in (NEXT, NEXT_PRISM, NEXT_TUNED):
        cells = _cells(folder, name)
        _put(
            folder, name, [[*row[:58], "copy_soft_k1@0.33" if row is cells[0] else "True", *row[58:]] for row in cells]
        )
    said = _problems(read_published(folder))
    assert [s for s in said if s[0] == NEXT] == [(NEXT, None, "has the copy flags copy_soft_k1@0.33")]


def test_odd_names_of_copy_flags_are_noted_and_left_out(folder, rows_of_whole):
    names = _json()["copy_flag_columns"]
    _set(folder, "copy_flag_columns", ["layer", *names, names[0], "a b", 3, ["x"]])
    run = read_published(folder)
    said = [p.message for p in run.record.problems]
    assert len(said) == 2 and "4 names of no copy flag, such as 'layer', 'a b', 3, ['x']" in said[0]
    assert "more than once" in said[1]
    assert run.rows.equals(rows_of_whole)


def test_a_copy_flag_with_a_space_is_one_column():
    flags = ["copy_strict@0.95 of all"]
    names = [column.name for column in columns_of(NEXT_TOKEN, GENERATION_M, flags=flags)]
    assert names[58 - 7 :][: len(flags)] == flags or flags[0] in names
    assert len(names) == len(columns_of(NEXT_TOKEN, GENERATION_M)) - 6


def test_a_damaged_table_of_which_no_rows_are_made_is_named(folder, rows_of_whole):
    names = [csv_name(STEM, table) for table in UNREAD]
    for name in names[:3]:
        (folder / name).write_bytes(b"")
    _edit(folder, names[3], lambda data: data + b"1,2\n")
    _edit(folder, names[4], lambda data: data.replace(b"pos_frac", b"fraction"))
    run = read_published(folder)
    said = [(file, row) for file, row, _ in _problems(run)]
    expected = [*((name, None) for name in names[:3]), (names[3], 0), (names[4], None), (names[4], None)]
    assert sorted(said, key=str) == sorted(expected, key=str)
    assert run.rows.equals(rows_of_whole)


def test_records_of_last_positions_alone_lack_nothing(folder):
    """They were read at the last position, as `positions="last"` does; the middle one of others is missing."""
    cells = _cells(folder, REC)
    at = {name: cells[0].index(name) for name in ("pos", "prompt_id", "prompt_variant")}
    ends = {(p.prompt_id, p.prompt_variant): str(len(p.tokens) - 1) for p in PROMPTS}
    last = [c for c in cells[1:] if c[at["pos"]] == ends[c[at["prompt_id"]], c[at["prompt_variant"]]]]
    _put(folder, REC, [cells[0], *last])
    assert read_published(folder).record.problems == ()
    _put(folder, REC, [cells[0], *(c for c in cells[1:] if c[at["pos"]] != "0")])
    (problem,) = read_published(folder).record.problems
    assert problem.file == REC
    assert problem.message == "pos/orig of fact 0 lacks positions 0 to 0, and 1 other prompts lack some too"


def test_numbers_that_are_not_finite_are_noted(folder):
    _edit(folder, JSON, lambda data: data.replace(b'"temp_est": 1.0', b'"temp_est": 1e999'))
    _set_text(folder, '"kl_after_temp_bits": 0.25', '"kl_after_temp_bits": 1' + "0" * 400)
    _set_text(folder, '"seed": 316', f'"seed": {2**64}')
    said = {p.message.partition(",")[0] for p in read_published(folder).record.problems}
    assert "`diagnostics.last_layer_consistency.temp_est` should be a finite number" in said
    assert "the JSON has a number of 401 digits; numbers that are none were left out" in said
    assert "`provenance.env.seed` should be a whole number of at most 64 bits" in said


def test_a_block_of_another_type_is_told_in_english(folder):
    _set(folder, "diagnostics.copy_mask", "none")
    assert "should be an object, but is 'none'" in read_published(folder).record.problems[0].message


def _set_text(folder: Path, old: str, new: str) -> None:
    _edit(folder, JSON, lambda data: data.replace(old.encode(), new.encode()))


def test_a_model_whose_name_begins_like_anothers_is_still_seen(folder, tmp_path):
    """`tiny` has a JSON; `tiny-base` has a table alone."""
    (folder / csv_name("tiny-base", RECORDS)).write_bytes((folder / REC).read_bytes())
    assert "holds several models; name one of them: tiny, tiny-base" in _refusal(folder)


# Two runs in one folder


def test_what_rounding_leaves_of_no_divergence_contradicts_nothing(made_sweep, tmp_path):
    """The table and the JSON compute the last layer apart: 1e-10 bits and half of that are two right answers."""
    folder = tmp_path / "copy"
    shutil.copytree(made_sweep, folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "output-echo.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    for bits, n_problems in ((5e-7, 0), (1e-3, 1)):
        tree["diagnostics"]["last_layer_consistency"]["kl_to_final_bits"] = bits
        path.write_text(json.dumps(tree), encoding="utf-8")
        assert len(read_published(folder, "echo").record.problems) == n_problems


@pytest.mark.parametrize(
    ("member", "value", "row", "said"),
    [
        ("final_prediction.entropy", 9.0, 0, "`final_prediction.entropy` of output-tiny.json is 9.0"),
        ("diagnostics.last_layer_consistency.p_answer_lens", 0.5, 3, "consistency.p_answer_lens` of output-tiny.json"),
        (
            "diagnostics.last_layer_consistency.answer_rank_lens",
            2,
            3,
            "consistency.answer_rank_lens` of output-tiny.json",
        ),
        ("diagnostics.L_semantic", 1, 2, "first on top at layer 2, but output-tiny.json has L_semantic 1"),
        ("diagnostics.L_semantic", None, 2, "first on top at layer 2, but output-tiny.json has L_semantic None"),
    ],
)
def test_a_json_that_contradicts_the_next_token_table_is_noted(folder, rows_of_whole, member, value, row, said):
    _set(folder, member, value)
    run = read_published(folder)
    ((file, found, _),) = _problems(run)
    assert (file, found) == (NEXT, row)
    assert said in run.record.problems[0].message
    assert run.record.problems[0].message.endswith("files of two runs may be mixed")
    assert run.rows.equals(rows_of_whole)


def test_a_model_with_fewer_layers_than_the_rows_is_noted(folder, rows_of_whole):
    _set(folder, "model_stats.num_layers", 2)
    _set(folder, "diagnostics.tau_norm_per_layer", [1.0, 1.0, 1.0])
    run = read_published(folder)
    first_rows = {p.file: p.row for p in run.record.problems if p.message.startswith("rows of layers 3 were left out")}
    assert first_rows == {NEXT: 3, NEXT_PRISM: 3, NEXT_TUNED: 2, REC: 9, REC_PRISM: 9, REC_TUNED: 6, RAW: 3}
    assert run.rows["layer"].max() == 2
    _rest(run, rows_of_whole, pl.col("layer") == 3)


def test_a_model_with_more_layers_than_the_rows_is_noted(folder, rows_of_whole):
    _set(folder, "model_stats.num_layers", 5)
    run = read_published(folder)
    assert (NEXT, 11, "the last layer is 3") in _problems(run)
    assert (JSON, None, "`diagnostics.tau_norm_per_layer` has 4 values") in _problems(run)
    assert run.rows.equals(rows_of_whole)


def test_a_raw_lens_table_of_another_run_is_noted(folder):
    _change_cell(folder, RAW, 6, "p_top1_norm", "0.5")
    (problem,) = read_published(folder).record.problems
    assert (problem.file, problem.row) == (RAW, 6)
    assert f"in {NEXT}, row 6" in problem.message


def test_records_of_another_run_are_noted(folder):
    _change_cell(folder, REC, 5, "entropy", "0.5")
    _change_cell(folder, REC, 9, "token", "Die")
    one, other = read_published(folder).record.problems
    assert (one.file, one.row) == (REC, 9)
    assert "input token of pos/orig of fact 0 at position 0 is not the same" in one.message
    assert (other.file, other.row) == (REC, 5)
    assert f"in {NEXT}, row 1" in other.message


def test_a_sibling_of_another_run_is_noted(folder, rows_of_whole):
    _change_cell(folder, NEXT_TUNED, 4, "teacher_entropy_bits", "0.5")
    run = read_published(folder)
    (problem,) = run.record.problems
    assert (problem.file, problem.row) == (NEXT_TUNED, 4)
    _rest(run, rows_of_whole, (pl.col("lens") == "tuned") & pl.col("is_next"))


def test_a_row_at_another_position_than_its_prompts_last_is_left_out(folder, rows_of_whole):
    _change_cell(folder, NEXT_PRISM, 2, "pos", "1")
    _change_cell(folder, NEXT, 8, "pos", "200")
    _change_cell(folder, REC_TUNED, 8, "pos", "200")
    run = read_published(folder)
    said = [p.message.partition(";")[0] for p in run.record.problems]
    assert [(p.file, p.row) for p in run.record.problems if "elsewhere" in p.message] == [
        (NEXT, 8), (NEXT_PRISM, 2), (REC_TUNED, 8),
    ]  # fmt: skip
    assert "pos/orig of fact 0 is at position 1 here and ends at 2 elsewhere" in said
    assert (REC_TUNED, 5, "pos/orig of fact 0 lacks layer 3 at position 2") in _problems(run)
    assert run.rows["position"].max() == 2
    _rest(run, rows_of_whole, pl.col("is_next"))


def test_two_time_stamps_are_noted(folder):
    (folder / "timestamp-20251016-0930").write_text("Experiment started: 2025-10-16 09:30:00", encoding="utf-8")
    assert read_published(folder).record.problems == ()
    (folder / "timestamp-20251017-0930").touch()
    ((file, _, said),) = _problems(read_published(folder))
    assert (file, said) == (JSON, "there are 2 time stamps beside it (timestamp-20251016-0930")


def test_a_time_stamp_names_the_run_where_the_folder_does_not(folder, tmp_path):
    (folder / "timestamp-20251017-0930").write_text("Experiment started: 2025-10-17 09:30:00+02:00", encoding="utf-8")
    assert _problems(read_published(folder)) == [(JSON, None, "the folder is named run-20251016-0930")]
    latest = folder.rename(tmp_path / "run-latest")
    record = read_published(latest).record
    assert (record.run_id, record.created_utc) == ("run-20251017-0930", "2025-10-17T07:30:00+00:00")
    (latest / "timestamp-20251017-0930").unlink()
    assert read_published(latest).record.run_id == "run-unknown"


def test_a_json_of_another_model_is_noted(folder):
    _set(folder, "diagnostics.model", "house/large")
    assert _problems(read_published(folder)) == [(JSON, None, "`diagnostics.model` is not tiny")]


# The JSON


def _refusal(path: Path, model: str | None = None) -> str:
    with pytest.raises(RunError) as refusal:
        read_published(path, model)
    return str(refusal.value)


def test_members_of_another_type_are_noted_and_left_out(folder, rows_of_whole):
    _set(folder, "diagnostics.copy_mask", "none")
    _set(folder, "diagnostics.unembed_bias", {"present": "no", "l2_norm": 0.0, "max_abs": 0.0})
    _set(folder, "diagnostics.flags", {"odd": 3})
    _set(folder, "final_prediction.topk", [[" Berlin", 0.5], [1]])
    _set(folder, "test_prompts", [7])
    _set(folder, "provenance.env.seed", None)
    run = read_published(folder)
    assert {p.message.partition("`")[2].partition("`")[0] for p in run.record.problems} == {
        "diagnostics.copy_mask", "diagnostics.unembed_bias.present", "diagnostics.unembed_bias",
        "diagnostics.flags.odd", "final_prediction.topk[1]", "test_prompts[0]", "provenance.env",
    }  # fmt: skip
    assert {p.file for p in run.record.problems} == {JSON}
    measured = run.record.measured
    assert {"copy_mask", "unembed_bias", "test_prompts"} <= set(measured.absent)
    assert measured.final_prediction is not None and measured.final_prediction.top_tokens == (" Berlin",)
    assert run.record.provenance is None
    assert run.rows.equals(rows_of_whole)


def test_nan_and_repeated_keys_are_noted(folder):
    _edit(folder, JSON, lambda data: data.replace(b'"temp_est": 1.0', b'"temp_est": NaN, "temp_est": NaN'))
    run = read_published(folder)
    assert _problems(run) == [(JSON, None, "the JSON has NaN")]
    assert "the key 'temp_est' twice" in run.record.problems[0].message
    assert run.record.measured.last_layer is not None and run.record.measured.last_layer.temp_est is None


def test_a_cut_json_is_read_as_far_as_it_is_whole(folder, rows_of_whole):
    text = (folder / JSON).read_text(encoding="utf-8")
    (folder / JSON).write_text(text[: text.index('"diagnostics"') + 40], encoding="utf-8")
    run = read_published(folder)
    messages = [p.message for p in run.record.problems if p.file == JSON]
    assert messages[0].startswith("the JSON is damaged (")
    assert "model_stats" in messages[0] and "diagnostics" not in messages[0]
    assert run.record.model.id == "tiny"
    keys = ["prompt_id", "lens", "layer", "position", "entropy_bits", "p_top1", "top_tokens"]
    assert run.rows.select(keys).equals(rows_of_whole.select(keys))
    (folder / JSON).write_text(text[: text.index('"d_model"')], encoding="utf-8")
    assert "tables do not say them" in _refusal(folder)


def test_what_stands_behind_a_damaged_place_of_the_json_is_found(folder):
    text = (folder / JSON).read_text(encoding="utf-8")
    members = json.loads(text)
    behind = {key: members.pop(key) for key in ("model_stats", "final_prediction")}
    damaged = json.dumps(members | behind).replace('"flags": {', '"flags": {,', 1)
    (folder / JSON).write_text(damaged, encoding="utf-8")
    record = read_published(folder).record
    assert (record.model.d_model, record.flags) == (8, {})
    assert record.measured.final_prediction is not None
    message = record.problems[0].message
    assert message.startswith("the JSON is damaged (")
    assert message.endswith("tuned_lens, model_stats, final_prediction")


def test_a_json_without_the_number_of_layers_takes_it_from_the_rows(folder, rows_of_whole):
    _set(folder, "model_stats.num_layers", None)
    run = read_published(folder)
    assert run.record.model.n_layers == 3
    assert _problems(run) == [(JSON, None, "`model_stats.num_layers` is missing")]
    assert run.rows.equals(rows_of_whole)


def test_a_byte_order_mark_before_the_json_is_left_out(folder):
    _edit(folder, JSON, lambda data: "\ufeff".encode() + data)
    assert _problems(read_published(folder)) == [(JSON, None, "the file begins with a byte order mark")]


def test_bytes_of_the_json_that_are_not_utf_8_are_noted(folder):
    _edit(folder, JSON, lambda data: data.replace(b"deterministic_env", "\ufffd".encode() + b"\xff"))
    run = read_published(folder)
    ((file, _, said),) = _problems(run)
    assert (file, said) == (JSON, "the file has bytes that are not UTF-8")
    assert run.record.flags["repeatability_skipped"] == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("CUDA out of memory. " + "x" * 300, "the file says: CUDA out of memory. " + "x" * 180 + "..."),
        ('{"status": "failed", "reason": "no weights", "stage": "load"}', "the run failed; the file says: no weights"),
        ("", "the file says: nothing, it is empty"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ("{}", "`model_stats` should give num_layers, d_model and d_vocab"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_json_that_holds_no_run_is_refused_with_what_it_says(folder, content, said):
    (folder / JSON).write_text(content, encoding="utf-8")
    assert said in _refusal(folder)


# Which model


def test_a_folder_of_several_models_needs_a_name(folder):
    members = json.loads((folder / JSON).read_text(encoding="utf-8"))
    members["diagnostics"]["model"] = "house/other"
    (folder / "output-other.json").write_text(json.dumps(members), encoding="utf-8")
    assert _refusal(folder).endswith("name one of them: other, tiny.")
    assert _refusal(folder, "third").endswith("does not hold third; the models there are other, tiny.")
    assert read_published(folder, "tiny").record.model.id == "house/tiny"
    assert read_published(folder, "house/tiny").record.model.id == "house/tiny"
    assert read_published(folder / "output-other.json").record.model.id == "house/other"
    assert "does not hold someone/tiny; output-tiny.json is of house/tiny" in _refusal(folder, "someone/tiny")
    assert "holds the model other, not tiny" in _refusal(folder / "output-other.json", "tiny")


def test_what_is_no_published_folder_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no output-<model>.json" in _refusal(tmp_path / "empty")
    assert "no such folder" in _refusal(tmp_path / "nowhere")
    assert "give its folder, or its output-<model>.json" in _refusal(folder / NEXT)
    (folder / JSON).unlink()
    assert "output-tiny.json: cannot be read (No such file or directory)" in _refusal(folder)


# Nothing raises


def test_random_damage_never_raises_anything_but_a_refusal(folder, whole):
    """A byte changed, a piece cut out or put in twice, anywhere in any file."""
    names = sorted(path.name for path in whole.iterdir())
    draw = random.Random(316)
    for _ in range(40):
        name = draw.choice(names)
        data = (whole / name).read_bytes()
        start = draw.randrange(len(data))
        end = min(len(data), start + draw.choice([1, 1, 5, 200, len(data)]))
        put = draw.choice([b"", b'"', b"\n", b"\\", b"\xff", b"9", b",", b"\x00", data[start:end] * 2])
        (folder / name).write_bytes(data[:start] + put + data[end:])
        try:
            assert read_published(folder).rows.width == len(COLUMNS)
        except RunError:
            assert name == JSON
        (folder / name).write_bytes(data)


# Our own folders


def _record(**changes: object) -> RunRecord:
    lenses = ("logit", "raw")
    fields = {
        "schema_version": SCHEMA_VERSION, "run_id": "tiny-20260301", "source": "layerscope",
        "created_utc": "2026-03-01T09:30:00Z", "layerscope_version": "0.1.0",
        "protocol": {
            "name": "standard", "version": "2", "lenses": lenses, "headline_lens": "logit",
            "lens_head_transform": True, "thresholds": {"entropy_collapse_bits": 0.1 + 0.2},
        },
        "model": {"id": "house/tiny", "n_layers": 2, "d_model": 8, "d_vocab": 11},
        "suite": {"name": "b\u2028\x00\\", "description": "x", "prompts": ()},
        "lens_sources": dict.fromkeys(lenses, (None, "ln", "ln_f")), "flags": {"a": True, "b": "why"},
        "measured": {}, "problems": ({"file": "other.csv", "row": 3, "message": "an older problem"},),
    }  # fmt: skip
    return RunRecord.model_validate(fields | changes)


_LISTS = ("top_ids", "top_tokens", "top_probs")


def _export(run: Run, folder: Path) -> Path:
    """An extended folder, with as much in it as reading needs."""
    folder.mkdir()
    longest = max([len(listed or []) for name in _LISTS for listed in run.rows[name].to_list()], default=0)
    columns = columns_of(RECORDS, EXTENDED, pairs=longest)
    rows = [row | {"row_in_run": i} for i, row in enumerate(run.rows.to_dicts())]
    for lens in run.record.protocol.lenses:
        cells = [
            [row["row_in_run"] if column.name == "row_in_run" else value_of(column, row) for column in columns]
            for row in rows
            if row["lens"] == lens
        ]
        own = None if lens == run.record.protocol.headline_lens else lens
        (folder / csv_name(STEM, RECORDS, own)).write_bytes(serialise([c.name for c in columns], cells, EXTENDED))
    members = {"record": json.loads(run.record.model_dump_json()), "n_rows": len(rows)}
    (folder / JSON).write_text(json.dumps(members), encoding="utf-8")
    return folder


_TEXTS = st.sampled_from(
    ["", '"', "\\", "\n", "\r", "\x00", "\x85", "\u2028", ",", "→", " Berlin", "⟨NEXT⟩"]
) | st.text(max_size=4)
_VALUES = {
    "Int32": st.integers(-(2**31), 2**31 - 1),
    "Float64": st.floats(allow_nan=False, allow_infinity=False),
    "Boolean": st.booleans(),
    "String": _TEXTS,
}


@st.composite
def _tables(draw: st.DrawFn) -> pl.DataFrame:
    """Any rows in which the first of the listed tokens and ids is the most likely one."""
    n = draw(st.integers(0, 4))
    columns: dict[str, list[object]] = {}
    for column in COLUMNS:
        nested = isinstance(column.dtype, pl.List)
        value = _VALUES[str(column.dtype.inner if nested else column.dtype)]
        value = st.lists(value | st.none(), max_size=23) if nested else value
        value = value | st.none() if column.nullable else value
        columns[column.name] = draw(st.lists(value, min_size=n, max_size=n))
    columns["lens"] = draw(st.lists(st.sampled_from(["logit", "raw"]), min_size=n, max_size=n))
    for listed, first in (("top_tokens", "top1"), ("top_ids", "top1_id")):
        columns[first] = [
            items[0] if items else own for items, own in zip(columns[listed], columns[first], strict=True)
        ]
    return rows_frame(columns)


@examples(25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(table=_tables())
def test_an_extended_folder_is_read_back_exactly(table, tmp_path_factory):
    run = Run(table, _record())
    assert read_published(_export(run, tmp_path_factory.mktemp("runs") / "out")) == run


def test_a_run_read_from_published_files_is_read_back_exactly_from_an_extended_folder(whole, tmp_path):
    run = read_published(whole)
    back = read_published(_export(run, tmp_path / "out"))
    assert back == run
    assert back.record.source == "published"


def _small() -> Run:
    n = 6
    names = {c.name: [None] * n for c in COLUMNS}
    names |= {
        "prompt_id": ["pos"] * n, "prompt_variant": ["orig"] * n, "lens": ["logit"] * 3 + ["raw"] * 3,
        "layer": [0, 1, 2] * 2, "position": [1] * n, "is_next": [True] * n, "finite": [True] * n, "token": [""] * n,
        "entropy_bits": [0.1 * i for i in range(n)], "top1": ["a"] * n, "top_tokens": [["a", None]] * n,
    }  # fmt: skip
    return Run(rows_frame(names), _record())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return _export(_small(), tmp_path / "out")


def _found(run: Run) -> list[tuple[str, int | None, str]]:
    assert run.record.problems[0].message == "an older problem"
    return _problems(run)[1:]


def test_a_missing_extended_table_costs_its_lens_alone(exported):
    (exported / "output-tiny-records-raw.csv").unlink()
    run = read_published(exported)
    assert _found(run) == [
        ("output-tiny-records-raw.csv", None, "the file is missing"),
        (JSON, None, "`n_rows` is 6"),
    ]
    assert run.rows.equals(_small().rows.head(3))


def test_missing_rows_of_an_extended_table_are_noted(exported):
    _edit(exported, REC, lambda data: b"\n".join(data.split(b"\n")[:2] + data.split(b"\n")[3:]))
    _edit(exported, "output-tiny-records-raw.csv", lambda data: data[: data[:-1].rindex(b"\n") + 1])
    run = read_published(exported)
    assert _found(run) == [
        (JSON, None, "1 rows of the run stand in none of the tables of records"),
        (JSON, None, "`n_rows` is 6"),
    ]
    assert run.rows.equals(_small().rows[[0, 2, 3, 4]])


def test_damaged_cells_of_an_extended_table_are_noted(exported):
    whole_rows = _small().rows
    header, *lines = (exported / REC).read_bytes().split(b"\n")
    cells = [line.split(b",") for line in lines[:3]]
    names = header.split(b",")
    cells[0][names.index(b"entropy_bits")] = b"x"
    cells[1][names.index(b"finite")] = b""
    cells[2][names.index(b"n_top_tokens")] = b"99"
    (exported / REC).write_bytes(b"\n".join([header, *(b",".join(c) for c in cells)]) + b"\n")
    run = read_published(exported)
    assert [(file, row) for file, row, _ in _found(run)] == [(REC, 0), (REC, 1), (REC, 2), (JSON, None), (JSON, None)]
    assert run.rows["entropy_bits"].to_list() == [None, *whole_rows["entropy_bits"].to_list()[2:]]
    assert run.rows[2:].equals(whole_rows[3:])


def test_a_repeated_row_of_an_extended_table_is_read_once(exported):
    _edit(exported, REC, lambda data: data + data.split(b"\n")[1] + b"\n")
    run = read_published(exported)
    assert _found(run) == [(REC, 3, "a row of the run stands here a second time")]
    assert run.rows.equals(_small().rows)


def test_many_missing_rows_of_the_run_are_one_problem_that_names_every_lens(exported):
    """Rows 1 and 4 are gone, one of each lens; the numbers alone do not tell whose they were."""
    for name in (REC, "output-tiny-records-raw.csv"):
        _edit(exported, name, lambda data: b"\n".join(data.split(b"\n")[:2] + data.split(b"\n")[3:]))
    problems = read_published(exported).record.problems[1:]
    assert [problem.file for problem in problems] == [JSON, JSON]
    assert (
        "2 rows of the run" in problems[0].message and "lenses logit, raw: rows 1, 4 of the run" in problems[0].message
    )


def test_repeated_rows_of_one_table_are_one_problem(exported):
    _edit(exported, REC, lambda data: data + b"\n".join(data.split(b"\n")[1:4]) + b"\n")
    (problem,) = read_published(exported).record.problems[1:]
    assert problem.row == 3 and problem.message.endswith("(the same in rows 3 to 5)")


def test_a_damaged_extended_table_of_which_no_rows_are_made_is_named(exported):
    (exported / "output-tiny-pure-next-token-raw.csv").write_bytes(b"layer,pos\n1\n")
    (exported / "output-tiny-milestones.csv").write_bytes(b"")
    said = {(file, row) for file, row, _ in _found(read_published(exported))}
    assert said == {
        ("output-tiny-pure-next-token-raw.csv", None), ("output-tiny-pure-next-token-raw.csv", 0),
        ("output-tiny-milestones.csv", None),
    }  # fmt: skip


@pytest.mark.parametrize("lens", ["../raw", "a\\b", "a\0b", "a\nb", "", "x" * 61])
def test_a_lens_that_no_file_can_be_named_after_is_refused_before_a_path_is_made_of_it(exported, lens):
    members = json.loads((exported / JSON).read_text(encoding="utf-8"))
    members["record"]["protocol"]["lenses"][1] = lens
    members["record"]["lens_sources"][lens] = members["record"]["lens_sources"].pop("raw")
    (exported / JSON).write_text(json.dumps(members), encoding="utf-8")
    assert f"The lens {lens!r} cannot be part of a file's name" in _refusal(exported)


def test_an_extended_json_that_lost_its_record_is_refused_and_not_read_as_an_older_one(exported):
    members = json.loads((exported / JSON).read_text(encoding="utf-8"))
    text = json.dumps({"dialect": "extended", "model_stats": _json()["model_stats"], **members})
    (exported / JSON).write_text(text[: text.index('"record"') + 40], encoding="utf-8")
    assert "extended JSON without its `record`" in _refusal(exported)


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), 2**64 - 1, 10**18])
def test_a_seed_of_many_digits_stays_a_whole_number(folder, seed):
    _set(folder, "provenance.env.seed", seed)
    record = read_published(folder).record
    assert record.problems == () and record.provenance is not None and record.provenance.seed == seed


def test_an_extended_record_with_a_seed_of_64_bits_is_read_back(whole, tmp_path):
    provenance = read_published(whole).record.provenance
    assert provenance is not None
    run = Run(_small().rows, _record(provenance=provenance.model_copy(update={"seed": 2**63 - 1})))
    assert read_published(_export(run, tmp_path / "out")) == run


def test_an_extended_folder_whose_record_is_damaged_is_refused(exported):
    _set(exported, "record.model.n_layers", "two")
    assert "record.model.n_layers: Input should be a valid integer" in _refusal(exported)
    _set(exported, "record.schema_version", "9.0")
    assert f"`record.schema_version` is 9.0, but this layerscope reads {SCHEMA_VERSION}" in _refusal(exported)


# Published runs


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference"


@pytest.fixture(scope="module")
def runs(reference: Path) -> dict[tuple[str, str], Run]:
    """Every published run, by folder and model."""
    paths = sorted(reference.rglob("output-*.json"))
    return {(path.parent.name, path.name[len("output-") : -len(".json")]): read_published(path) for path in paths}


SWEEPS = ("made", *(["run-20251004-1804"] if SHARED.is_dir() else []))


def _sweep(request: pytest.FixtureRequest, sweep: str) -> list[tuple[Path, str, Run]]:
    """Folder, name and run of each model: self-made ones, or every published one of every folder."""
    if sweep == "made":
        folder = request.getfixturevalue("made_sweep")
        return [(folder, model, read_published(folder, model)) for model in MADE]
    reference, runs = request.getfixturevalue("reference"), request.getfixturevalue("runs")
    at = {"published": reference / "tiny-qwen3" / "published"}
    return [(at.get(folder, reference / folder), model, run) for (folder, model), run in runs.items()]


def test_self_made_folders_are_read_without_a_problem_and_as_what_they_are(made_sweep):
    for model in MADE:
        record = read_published(made_sweep, model).record
        assert record.problems == ()
        assert record.suite.name == ("capitals" if model == "reference" else "berlin")
        lenses = ("next_norm", "raw", "prism", "tuned") if model == "reference" else ("next_norm", "raw")
        assert record.protocol.lenses == lenses


@pytest.mark.parametrize("model", ["reference", "echo"])
def test_self_made_runs_are_read_back_exactly_from_extended_folders(made_sweep, tmp_path, model):
    run = read_published(made_sweep, model)
    assert read_published(_export(run, tmp_path / "out")) == run


def test_every_published_folder_is_read_without_a_problem_but_tables_of_records_that_are_not_there(reference, runs):
    assert len(runs) == 22
    for (folder, model), run in runs.items():
        for problem in run.record.problems:
            assert problem.message.startswith("the file is missing"), (folder, model, problem)
            assert problem.file.startswith(f"output-{model}-records"), (folder, model, problem)
            assert not list(reference.rglob(f"{folder}/{problem.file}"))
    assert runs["run-20250921-1713", "Qwen2.5-72B"].record.problems == ()
    assert runs["published", "tiny-qwen3"].record.problems == ()


def test_run_ids_suites_and_lenses_are_those_of_the_folders(runs):
    for (folder, model), run in runs.items():
        record = run.record
        assert record.run_id == (folder if folder.startswith("run-") else "run-unknown")
        assert record.suite.name == ("capitals" if model == "tiny-qwen3" else "berlin")
        assert record.model.id.endswith(model)
    lenses = {key: run.record.protocol.lenses for key, run in runs.items()}
    assert lenses["run-20250921-1713", "Qwen2.5-72B"] == ("next_norm", "prism")
    assert lenses["run-20251004-1804", "Qwen2.5-72B"] == ("next_norm", "raw", "prism")
    assert lenses["run-20251004-1804", "Qwen3-8B"] == ("next_norm", "raw", "prism", "tuned")
    assert lenses["published", "tiny-qwen3"] == ("next_norm", "raw")


# Published figures of the primary prompt: the first layer with the answer on top, entropy, probability and KL there;
# then the KL of the last layer, and the probability of its most likely token and of the model's.
FIGURES = {
    "Mistral-7B-v0.1": (25, 13.5986, 0.033499, 8.0175, 0.0, 0.38216, 0.38216),
    "Meta-Llama-3-8B": (25, 16.8142, 0.00013231, 11.2059, 0.0, 0.52018, 0.52018),
    "Qwen3-8B": (31, 0.4539, 0.93593, 1.0607, 0.0, 0.43340, 0.43340),
    "gemma-2-9b": (42, 0.3701, 0.92977, 1.0129, 1.01289, 0.92977, 0.39433),
    "Qwen3-14B": (36, 0.3122, 0.95302, 1.6619, 0.0, 0.34514, 0.34514),
    "gemma-2-27b": (46, 0.1180, 0.98407, 1.1352, 1.13520, 0.98407, 0.42258),
    "Yi-34B": (44, 15.3273, 0.0084588, 11.4125, 2.7837e-4, 0.55551, 0.56269),
    "Meta-Llama-3-70B": (40, 16.9374, 2.3917e-5, 10.4198, 7.2935e-4, 0.47834, 0.46895),
    "Mistral-Small-24B-Base-2501": (33, 16.7740, 0.00042478, 10.5202, 0.0, 0.45546, 0.45546),
    "Qwen2.5-72B": (80, 4.1158, 0.33946, 0.0001, 1.0909e-4, 0.33946, 0.33828),
}


@pytest.mark.parametrize("folder", ["run-20250928-1722", "run-20251004-1804"])
@pytest.mark.parametrize("model", FIGURES)
def test_rows_and_record_hold_the_published_figures(runs, folder, model):
    layer, entropy, p_answer, kl, last_kl, p_lens, p_model = FIGURES[model]
    run = runs[folder, model]
    primary = run.rows.filter(NORM & PRIMARY & pl.col("is_next"))
    row = primary.filter(pl.col("answer_rank") == 1).row(0, named=True)
    assert (row["layer"], row["is_answer"]) == (layer, True)
    assert [row["entropy_bits"], row["p_answer"], row["kl_to_final_bits"]] == pytest.approx(
        [entropy, p_answer, kl], rel=1e-4, abs=5e-5
    )
    last, said = primary.row(-1, named=True), run.record.measured.last_layer
    assert last["layer"] == run.record.model.n_layers
    assert last["kl_to_final_bits"] == pytest.approx(last_kl, rel=1e-4, abs=1e-8)
    assert last["p_top1"] == pytest.approx(p_lens, rel=1e-4)
    assert said is not None and said.p_top1_model == pytest.approx(p_model, rel=1e-4)


def test_rows_are_records_of_the_table_and_not_lines(reference, runs):
    path = reference / "run-20251004-1804" / "output-Qwen3-8B-pure-next-token.csv"
    assert path.read_bytes().count(b"\n") == 1 + 118 - 1
    rows = runs["run-20251004-1804", "Qwen3-8B"].rows.filter(NORM & pl.col("is_next"))
    assert rows.height == 111


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_published_next_token_cell_is_in_the_rows(request, sweep):
    """All columns that ours have, by the csv module and Python's own numbers."""
    ours = {"pos": "position", "entropy": "entropy_bits"}
    names = {column.name for column in COLUMNS}
    cast = {"True": True, "False": False}
    compared = 0
    for folder, model, run in _sweep(request, sweep):
        for lens, sibling in SIBLING.items():
            path = folder / csv_name(model, NEXT_TOKEN, sibling)
            if not path.exists():
                continue
            rows = iter(run.rows.filter((pl.col("lens") == lens) & pl.col("is_next")).to_dicts())
            with path.open(newline="", encoding="utf-8") as file:
                for published, row in zip(csv.DictReader(file, escapechar="\\"), rows, strict=True):
                    for name, cell in published.items():
                        own = ours.get(name, name)
                        overlap = name.startswith("topk_jaccard") and (sweep != "made" or lens != "next_norm")
                        if overlap or own in ("token", "rest_mass", "top1") or own not in names:
                            continue
                        value, compared = row[own], compared + 1
                        if cell == "":
                            assert value is None, (model, lens, name)
                        elif isinstance(value, str | bool):
                            assert cast.get(cell, cell) == value, (model, lens, name)
                        else:
                            assert float(cell) == value, (model, lens, name)
                    tokens = [published[f"top{i}"] for i in range(1, 6)]
                    assert (row["top_tokens"][:5], row["top1"]) == (tokens, tokens[0])
    assert compared > 5000


@pytest.mark.parametrize("sweep", SWEEPS)
def test_records_add_input_tokens_and_twenty_candidates(request, sweep):
    model = "reference" if sweep == "made" else "gemma-2-9b"
    folder, run = next(
        (folder, run)
        for folder, name, run in _sweep(request, sweep)
        if name == model and (sweep == "made" or folder.name == sweep)
    )
    rows = run.rows.filter(NORM).to_dicts()
    with (folder / f"output-{model}-records.csv").open(newline="", encoding="utf-8") as file:
        for published, row in zip(csv.DictReader(file, escapechar="\\"), rows, strict=True):
            listed = [i for i in range(1, 21) if published[f"prob{i}"]]
            assert row["token"] == published["token"]
            assert row["top_tokens"] == [published[f"top{i}"] for i in listed]
            assert row["top_probs"] == [float(published[f"prob{i}"]) for i in listed]
            assert row["rest_mass"] == float(published["rest_mass"])
    tokens = run.record.suite.prompts[0].tokens
    if sweep != "made":  # whose records hold the last position alone
        assert tokens is not None and (tokens[0], tokens[-1], len(tokens)) == ("<bos>", " simply", 17)
    assert run.rows.filter(~NORM)["token"].null_count() == 0


def test_overlaps_are_each_facts_own_and_not_the_last_ones(reference, runs):
    """Caveat C6: the next-token table gives the last fact's overlaps to every fact; the raw-lens table does not."""
    rows = runs["published", "tiny-qwen3"].rows.filter(NORM & pl.col("is_next")).to_dicts()
    path = reference / "tiny-qwen3" / "published" / "output-tiny-qwen3-pure-next-token-rawlens.csv"
    with path.open(newline="", encoding="utf-8") as file:
        for published, row in zip(csv.DictReader(file, escapechar="\\"), rows, strict=True):
            assert row["topk_jaccard_raw_norm@50"] == float(published["topk_jaccard_raw_norm@50"])
            assert row["top1_id"] == int(published["top1_token_id_norm"])
            assert math.isclose(row["js_divergence_bits"], float(published["js_divergence"]))


def test_published_runs_are_read_back_exactly_from_extended_folders(runs, tmp_path):
    run = runs["published", "tiny-qwen3"]
    assert read_published(_export(run, tmp_path / "out")) == run


def test_no_path_of_a_machine_is_taken_from_published_files(runs):
    for run in runs.values():
        text = run.record.model_dump_json()
        assert "/home" not in text and "glibc" not in text and os.uname().release not in text
