"""The run folder: the table's types, the round trip, whole or not at all, and every refusal.

`python tests/test_record.py --remake` writes the two things that are made from the code: the package's
`run.schema.json`, and the tables in `docs/run-folder.md`.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import layerscope.record.run_record as run_record
from fitted_lenses import prism_lens_folder, tuned_lens_folder, variants
from layerscope.errors import RunError
from layerscope.record import COLUMNS, RunRecord, describe_columns, new_folder, rows_frame
from layerscope.record.measured import FittedLensRecord, MeasuredRecord, TunedVariantRecord, TunedVariantsRecord
from layerscope.record.parts import AlignmentRecord
from layerscope.record.patches import PATCH_COLUMNS
from layerscope.record.routing import ROUTING_COLUMNS
from layerscope.record.write_patches import WRITE_PATCH_COLUMNS
from layerscope.record.writers import WRITERS_COLUMNS
from layerscope.run import Run
from layerscope.run_folder import default_folder_name
from properties import examples

SOURCE = Path(run_record.__file__).parents[2]
SCHEMA = Path(run_record.__file__).with_name("run.schema.json")
DOCS = Path(__file__).parent.parent / "docs" / "run-folder.md"
KEYS = [column.name for column in COLUMNS][:11]
NULL_KEYS = ("fact_key", "fact_index", "token_id", "token")
METRICS = [column.name for column in COLUMNS][11:]
AWKWARD = ["\r", "\n", "\u2028", "\ufffd", "→", "", " Berlin", '"', "\\", "\x00", "𝄞", "ß", "</script>"]


def _record(**changes: object) -> RunRecord:
    """A record as one would be written for a model of two blocks, with some fields of the top level changed."""
    berlin = {
        "string": "Berlin", "status": "ok", "ok": True, "variant": "with_space", "first_id": 7, "answer_ids": (7,),
        "pieces": (" Berlin",), "several_pieces": False,
    }  # fmt: skip
    missing = {
        "string": "Berlin", "status": "unresolved", "ok": False, "variant": "unknown", "answer_ids": (), "pieces": (),
        "several_pieces": False, "reason": "context_retokenised",
    }  # fmt: skip
    fields = {
        "schema_version": "2.3",
        "source": "layerscope",
        "run_id": "tiny-berlin-20260301T093000Z",
        "created_utc": "2026-03-01T09:30:00Z",
        "layerscope_version": "0.1.0",
        "protocol": {
            "name": "standard", "version": "1", "lenses": ("logit", "raw"), "headline_lens": "logit",
            "lens_head_transform": True, "thresholds": {"entropy_collapse_bits": 1.0},
        },
        "model": {
            "id": "house/tiny", "family": "qwen2", "family_verified": True, "n_layers": 2, "d_model": 8, "n_heads": 2,
            "d_vocab": 11, "n_parameters": 500, "tied_unembedding": False, "stored_dtype": "bfloat16",
            "bytes_on_disk": 1000, "head_transform": {"softcap": 30.0, "bias": False}, "fingerprint": "a" * 64,
            "tokenizer_sha256": "b" * 64, "bos": {"rule": "never", "note": "the family uses no BOS"},
            "trust_remote_code": False,
        },
        "suite": {
            "name": "berlin", "description": "One fact → one city.", "sha256": "c" * 64, "gold_alignment_rate": 0.5,
            "prompts": (
                {
                    "prompt_id": "pos", "prompt_variant": "orig", "fact_key": "Germany→Berlin", "fact_index": 0,
                    "text": "The capital\u2028of Germany is", "token_ids": (1, 2), "tokens": ("\r", "\ufffd"),
                    "decoded_positions": (1,), "answers": (berlin,),
                },
                {
                    "prompt_id": "ctl", "prompt_variant": "orig", "text": "The", "token_ids": (3,), "tokens": ("The",),
                    "decoded_positions": (0,), "answers": (missing,), "contrast": (berlin,),
                },
            ),
        },
        "lens_sources": {"logit": ("final_norm",) * 3, "raw": ("none",) * 3},
        "identity": {
            "ok": True, "kl_bits": 1e-9, "max_abs_logit_difference": 1e-6, "tolerance_bits": 1e-6, "n_prompts": 2,
            "fitted_bias": False, "note": "The last layer is the model itself.",
        },
        "numeric_health": {
            "any_nan": True, "any_inf": False, "max_abs_logit_p99": 12.5, "min_prob_p01": 0.0,
            "layers_flagged": ({"layer": 1, "lens": "raw", "any_nan": True, "any_inf": False},),
        },
        "measured": {"absent": {"position_readout": "a record made by hand"}},
        "flags": {"gold_alignment_partial": True, "repeatability_skipped": "asked for one pass"},
        "provenance": {
            "python": "3.11.9", "platform": "Linux x86_64", "torch": "2.13.0", "transformers": "5.23.0",
            "safetensors": "0.6.0", "polars": "2.1.0", "numpy": "2.4.6", "device": "cpu", "dtype_compute": "float32",
            "dtype_unembed": "float32", "seed": 316, "threads": 1, "deterministic_algorithms": True,
            "memory_budget_bytes": 10**9, "memory_planned_bytes": 10**8,
        },
        "positions": "next",
        "top_k": 5,
        "timings": {"start_s": 0.5, "forward_s": 1.0, "sweep_s": 2.0, "total_s": 3.75},
    }  # fmt: skip
    return RunRecord.model_validate(fields | changes)


def _columns(rows: int = 3) -> dict[str, object]:
    """Columns of so many rows, all metrics absent."""
    keys = {
        "fact_key": ["Germany→Berlin"] * rows, "fact_index": [0] * rows, "prompt_id": ["pos"] * rows,
        "prompt_variant": ["orig"] * rows, "lens": ["logit"] * rows, "layer": list(range(rows)),
        "position": [1] * rows, "token_id": [2] * rows, "token": ["\ufffd"] * rows, "is_next": [True] * rows,
        "finite": [True] * rows,
    }  # fmt: skip
    return keys | {name: [None] * rows for name in METRICS}


def _run(**columns: object) -> Run:
    return Run(rows_frame(_columns() | columns), _record())


# Fitted lenses


def _part(n: int) -> TunedVariantRecord:
    return TunedVariantRecord(kl_to_final_bits=(None, *(1.0,) * (n - 1)), answer_rank=(None, *(3,) * (n - 1)))


def test_parts_of_a_tuned_lens_have_a_value_for_each_layer_of_the_model():
    whole = TunedVariantsRecord(temperatures=(None, 1.5, 1.0), rotation_only=_part(3), temperature_only=_part(3))
    assert _record(measured=MeasuredRecord(tuned_variants=whole)).measured.tuned_variants == whole
    for name, short in (("temperatures", (1.0,)), ("rotation_only", _part(2)), ("bias_only", _part(4))):
        wrong = MeasuredRecord(tuned_variants=whole.model_copy(update={name: short}))
        with pytest.raises(ValidationError, match=rf"tuned_variants\.{name}.* layers, but the model has 3"):
            _record(measured=wrong)


def test_a_fitted_lens_is_loaded_or_has_a_reason_and_names_no_folder():
    assert FittedLensRecord(kind="tuned", status="loaded", path="tiny-tuned").reason is None
    for wrong in (
        {"status": "loaded", "reason": "why not"}, {"status": "missing"}, {"status": "loaded", "path": "/home/anna/x"},
        {"status": "loaded", "path": "a\\b"}, {"status": "loaded", "prism": {"k": 3}},
        {"status": "loaded", "created_utc": "2026-03-01T09:30:00+02:00"},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            FittedLensRecord.model_validate({"kind": "tuned", **wrong})


def test_each_kind_of_fitted_lens_is_recorded_once():
    tuned = FittedLensRecord(kind="tuned", status="loaded")
    prism = FittedLensRecord(kind="prism", status="off", reason="not asked for")
    assert MeasuredRecord(fitted_lenses=(tuned, prism)).fitted_lenses == (tuned, prism)
    with pytest.raises(ValidationError, match="each kind of fitted lens should be there once"):
        MeasuredRecord(fitted_lenses=(tuned, tuned))


def test_a_record_with_fitted_lenses_is_read_back_equal_and_fits_the_schema(tmp_path):
    fitted = (tuned_lens_folder(2), prism_lens_folder(2))
    measured = MeasuredRecord(fitted_lenses=fitted, tuned_variants=variants(2))
    run = Run(_run().rows, _record(measured=measured))
    run.save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == run
    jsonschema.validate(json.loads((tmp_path / "run" / "run.json").read_bytes()), json.loads(SCHEMA.read_text()))


# The table


def test_every_column_has_a_unit_and_a_meaning_and_a_name_of_its_own():
    assert len({column.name for column in COLUMNS}) == len(COLUMNS) == 68
    assert all(column.unit and column.meaning.endswith(".") for column in COLUMNS)
    assert [c.name for c in COLUMNS if not c.nullable] == [n for n in KEYS if n not in NULL_KEYS]


def test_numpy_arrays_of_any_width_become_the_columns_types():
    frame = rows_frame(
        _columns(2)
        | {
            "layer": np.array([0, 1], dtype=np.int64),
            "entropy_bits": np.array([0.5, 1.5], dtype=np.float32),
            "top_ids": np.array([[3, 1], [2, 0]], dtype=np.int64),
            "top_probs": np.array([[0.5, 0.25], [0.75, 0.125]]),
            "top_tokens": [["a", "b"], ("c", "d")],
            "answer_rank": [np.int64(4), None],
            "p_answer": [0, np.float32(0.5)],
            "is_answer": np.array([False, True]),
        }
    )
    assert frame.schema == {column.name: column.dtype for column in COLUMNS}
    assert frame["top_ids"].to_list() == [[3, 1], [2, 0]]
    assert frame["answer_rank"].to_list() == [4, None]
    assert frame["p_answer"].to_list() == [0.0, 0.5]


def test_nan_and_infinity_become_null_in_numbers_and_in_lists():
    frame = rows_frame(
        _columns(3)
        | {
            "entropy_bits": np.array([math.nan, -math.inf, 2.0]),
            "top_probs": [[0.5, math.nan], None, [math.inf]],
        }
    )
    assert frame["entropy_bits"].to_list() == [None, None, 2.0]
    assert frame["top_probs"].to_list() == [[0.5, None], None, [None]]


def test_a_row_that_is_not_finite_has_no_metrics():
    given = {"finite": [True, False, True], "entropy_bits": [1.0, 2.0, 3.0], "top_ids": np.ones((3, 2), dtype=int)}
    frame = rows_frame(_columns() | given | {"is_answer": [True, True, False]})
    assert frame.row(1, named=True)["token"] == "\ufffd"
    assert all(frame[1, name] is None for name in METRICS)
    assert frame["entropy_bits"].to_list() == [1.0, None, 3.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entropy": [1.0] * 3}, "unknown: entropy"),
        ({"entropy_bits": [1.0] * 2}, "`layer` has 3 values, but others have {'entropy_bits': 2}"),
        ({"layer": [0.0, 1.0, 2.0]}, "column `layer` should hold Int32, but was given Float64"),
        ({"layer": [0, 1, 2**31]}, "column `layer` should hold Int32, but conversion"),
        ({"layer": [0, None, 2]}, "column `layer` has no value in 1 rows"),
        ({"is_answer": [1, 0, 1]}, "column `is_answer` should hold Boolean, but was given Int64"),
        ({"entropy_bits": [True, False, True]}, "column `entropy_bits` should hold Float64, but was given Boolean"),
        ({"top1": [1, 2, 3]}, "column `top1` should hold String, but was given Int64"),
        ({"top1": ["a", 2, None]}, "column `top1` should hold String, but "),
        ({"top_ids": [1, 2, 3]}, r"column `top_ids` should hold List(Int32), but was given Int64"),
    ],
)
def test_a_column_that_does_not_fit_is_refused_by_name(changes, said):
    with pytest.raises(RunError) as refusal:
        rows_frame(_columns() | changes)
    assert said in str(refusal.value)


def test_missing_columns_are_named():
    columns = _columns()
    del columns["top1"], columns["layer"]
    with pytest.raises(RunError, match="missing: layer, top1"):
        rows_frame(columns)


def test_a_run_refuses_a_table_with_nan_or_another_type():
    frame = _run().rows
    with pytest.raises(RunError, match="`entropy_bits` holds NaN or infinity"):
        Run(frame.with_columns(entropy_bits=pl.lit(math.nan)), _record())
    with pytest.raises(RunError, match="`top_probs` holds NaN or infinity"):
        Run(frame.with_columns(top_probs=pl.lit([0.5, math.inf])), _record())
    with pytest.raises(RunError, match="`layer` should be of type Int32, but is Int64"):
        Run(frame.cast({"layer": pl.Int64}), _record())
    with pytest.raises(RunError, match="another order"):
        Run(frame.select(reversed(frame.columns)), _record())


# The round trip

_TEXTS = st.sampled_from(AWKWARD) | st.text(max_size=4)
_VALUES = {
    "Int32": st.integers(-(2**31), 2**31 - 1),
    "Float64": st.floats(),
    "Boolean": st.booleans(),
    "String": _TEXTS,
}


@st.composite
def _tables(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.integers(0, 4))
    columns = {}
    for column in COLUMNS:
        nested = isinstance(column.dtype, pl.List)
        value = _VALUES[str(column.dtype.inner if nested else column.dtype)]
        value = st.lists(value, max_size=3) if nested else value
        value = value | st.none() if column.nullable else value
        columns[column.name] = draw(st.lists(value, min_size=rows, max_size=rows))
    return rows_frame(columns)


@examples(25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(table=_tables())
def test_what_was_saved_is_read_back_equal(table, tmp_path_factory):
    run = Run(table, _record())
    folder = tmp_path_factory.mktemp("runs") / "saved"
    run.save(folder)
    assert Run.read(folder) == run
    assert pl.read_parquet_schema(folder / "rows.parquet") == {column.name: column.dtype for column in COLUMNS}


def test_awkward_tokens_survive_in_rows_and_in_the_record(tmp_path):
    rows = rows_frame(_columns(len(AWKWARD)) | {"token": AWKWARD, "top_tokens": [AWKWARD] * len(AWKWARD)})
    prompt = _record().suite.prompts[0]
    n = len(AWKWARD)
    suite = _record().suite.model_copy(
        update={"prompts": (prompt.model_copy(update={"tokens": tuple(AWKWARD), "token_ids": tuple(range(n))}),)}
    )
    Run(rows, _record(suite=suite)).save(tmp_path / "run")
    back = Run.read(tmp_path / "run")
    assert back.rows["token"].to_list() == AWKWARD
    assert back.rows["top_tokens"].to_list() == [AWKWARD] * n
    assert list(back.record.suite.prompts[0].tokens) == AWKWARD


def test_runs_that_differ_in_one_value_are_not_equal():
    run = _run(entropy_bits=[1.0, None, 2.0])
    assert run == _run(entropy_bits=[1.0, None, 2.0])
    assert run != _run(entropy_bits=[1.0, 0.0, 2.0])
    assert run != Run(run.rows, _record(top_k=6))
    assert run != "a run"


def test_the_same_run_is_written_byte_for_byte_alike(tmp_path):
    _run().save(tmp_path / "one")
    _run().save(tmp_path / "two")
    for name in ("run.json", "rows.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_no_path_and_no_user_is_in_what_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _run(top1=AWKWARD[:3]).save("out/run")
    written = {file.name: file.read_bytes() for file in Path("out/run").iterdir()}
    assert sorted(written) == ["rows.parquet", "run.json", "verdict.json"]
    secrets = [str(tmp_path), str(SOURCE), str(Path.home()), os.uname().nodename]
    for content in written.values():
        assert not [secret for secret in secrets if len(secret) > 1 and secret.encode() in content]


def test_a_model_named_by_its_path_is_refused():
    for path in ("/home/someone/models/tiny", "models/house/tiny", "C:\\models\\tiny"):
        with pytest.raises(ValidationError, match=r"model\.id"):
            _record(model=_record().model.model_dump() | {"id": path})


# The record


def test_the_shipped_schema_is_the_records_own():
    assert SCHEMA.read_text(encoding="utf-8") == run_record.schema_text()
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == RunRecord.model_json_schema()


def test_another_implementation_of_json_schema_accepts_what_is_written_and_refuses_a_change(tmp_path):
    _run().save(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    validator.check_schema(validator.schema)
    validator.validate(record)
    record["model"]["n_layers"] = "two"
    assert [list(error.path) for error in validator.iter_errors(record)] == [["model", "n_layers"]]


def _parts(part: type[BaseModel]) -> dict[str, dict[str, object]]:
    schema = part.model_json_schema()
    return {part.__name__: schema} | schema["$defs"]


def test_every_field_of_the_record_is_described():
    for name, part in _parts(RunRecord).items():
        assert part["description"], name
        for field, said in part["properties"].items():
            assert said.get("description", "").endswith("."), f"{name}.{field}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"created_utc": "2026-03-01T09:30:00+01:00"}, "should be in UTC"),
        ({"created_utc": "yesterday"}, "created_utc"),
        ({"flags": {"a": False}}, "flags"),
        ({"top_k": 5.0}, "top_k"),
        ({"surprise": 1}, "surprise"),
        ({"lens_sources": {"logit": ("a", "b"), "raw": ("a", "b", "c")}}, "'logit' has 2 layers, but the model has 3"),
        ({"lens_sources": {"logit": ("a", "b", "c")}}, r"lens_sources has \['logit'\]"),
        ({"timings": {"start_s": math.nan, "forward_s": 1.0, "sweep_s": 1.0, "total_s": 1.0}}, "timings.start_s"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        _record(**changes)


def test_an_alignment_that_contradicts_itself_is_refused():
    alignment = _record().suite.prompts[0].answers[0].model_dump()
    for change in ({"ok": False}, {"first_id": 8}, {"several_pieces": True}, {"reason": "why not"}):
        with pytest.raises(ValidationError, match="status and answer_ids say"):
            AlignmentRecord.model_validate(alignment | change)


def test_a_folder_is_named_for_model_suite_and_time():
    assert default_folder_name(_record()) == "tiny-berlin-20260301T093000Z"
    odd = _record(
        model=_record().model.model_copy(update={"id": ".my model:4 bit"}),
        suite=_record().suite.model_copy(update={"name": "städte" * 40}),
        created_utc="2026-03-01T09:30:00.25+00:00",
    )
    name = default_folder_name(odd)
    assert name.startswith("my_model_4_bit-städtestädte") and name.endswith("-20260301T093000Z")
    assert len(name.encode()) < 230  # with `.<name>.partial-<8 digits>` still below the usual limit of 255


# Refusals when reading


@pytest.fixture
def saved(tmp_path):
    _run().save(tmp_path / "run")
    return tmp_path / "run"


def _refusal(folder: Path) -> str:
    with pytest.raises(RunError) as refusal:
        Run.read(folder)
    return str(refusal.value)


def test_a_missing_folder_or_file_is_named(saved):
    assert f"{saved}x: no such folder" in _refusal(Path(f"{saved}x"))
    (saved / "rows.parquet").rename(saved / "other")
    assert "rows.parquet: cannot be read (No such file or directory)" in _refusal(saved)
    (saved / "run.json").unlink()
    assert "run.json: cannot be read (No such file or directory)" in _refusal(saved)


@pytest.mark.parametrize("content", [b'{"schema_version": ', b"\xff\xfe\xfa", b"[" * 100_000, b""])
def test_a_record_that_is_not_json_is_refused(saved, content):
    (saved / "run.json").write_bytes(content)
    assert "run.json: not JSON (" in _refusal(saved)


def test_the_line_of_broken_json_is_named(saved):
    (saved / "run.json").write_text('{\n "schema_version": "1.0",\n broken', encoding="utf-8")
    assert "line 3 column 2" in _refusal(saved)


def _change(saved: Path, **changes: object) -> None:
    record = json.loads((saved / "run.json").read_text(encoding="utf-8"))
    (saved / "run.json").write_text(json.dumps(record | changes), encoding="utf-8")


@pytest.mark.parametrize("version", ["1.0", "0.9", "2.7"])
def test_another_version_says_which_layerscope_reads_it(saved, version):
    _change(saved, schema_version=version, layerscope_version="7.4.0", unheard_of=1)
    said = _refusal(saved)
    assert f"`schema_version` is {version}, but this layerscope reads 2.6, 2.5, 2.4, 2.3, 2.2, 2.1, 2.0" in said
    assert "layerscope 7.4.0 wrote the folder and reads it" in said


def _with_former_keys(path: Path, version: str, without: tuple[str, ...] = ()) -> None:
    """Give a record the keys that it had in an older version."""
    record = json.loads(path.read_text(encoding="utf-8"))
    former = {"position_readout": "close_up", "fitted_lenses": "sidecars"}
    measured = {former.get(key, key): value for key, value in record["measured"].items() if key not in without}
    measured["absent"] = {former.get(key, key): why for key, why in measured["absent"].items()}
    text = json.dumps(record | {"schema_version": version, "measured": measured})
    assert "position_readout" not in text and "fitted_lenses" not in text
    path.write_text(text, encoding="utf-8")
    rows = pl.read_parquet(path.with_name("rows.parquet"))
    newer = [column.name for column in COLUMNS if column.since == "2.3"]
    assert len(newer) == 6
    rows.drop(newer).write_parquet(path.with_name("rows.parquet"))


def test_a_folder_of_2_0_is_read_as_one_without_fitted_lenses(saved):
    _with_former_keys(saved / "run.json", "2.0", without=("fitted_lenses", "tuned_variants"))
    found = Run.read(saved).record
    assert found == _record()
    assert (found.schema_version, found.measured.fitted_lenses, found.measured.tuned_variants) == ("2.6", (), None)
    assert found.measured.absent == {"position_readout": "a record made by hand"}


def test_a_folder_of_2_1_is_read_under_the_keys_of_now_and_written_with_them(tmp_path):
    readout = {
        "headline": "logit", "views": (), "overlaps": (), "answer_gap": (0.5, None, 1.0), "scaled": (),
        "repeatability": {"status": "ok", "rank_dev": (0, None, 0), "top1_flip": (False, None, False)},
    }  # fmt: skip
    measured = {"fitted_lenses": (tuned_lens_folder(2), prism_lens_folder(2)), "position_readout": readout}
    run = Run(_run().rows, _record(measured=measured))
    run.save(tmp_path / "now")
    shutil.copytree(tmp_path / "now", tmp_path / "former")
    _with_former_keys(tmp_path / "former" / "run.json", "2.1")
    former = Run.read(tmp_path / "former")
    assert former == run
    assert former.record.measured.position_readout.answer_gap == (0.5, None, 1.0)
    assert [lens.kind for lens in former.record.measured.fitted_lenses] == ["tuned", "prism"]
    former.save(tmp_path / "again")
    assert (tmp_path / "again" / "run.json").read_bytes() == (tmp_path / "now" / "run.json").read_bytes()


def test_something_else_than_a_record_is_refused(saved):
    (saved / "run.json").write_text("[1]", encoding="utf-8")
    assert "expected a JSON object, found a list" in _refusal(saved)
    (saved / "run.json").write_text("{}", encoding="utf-8")
    assert "`schema_version` is missing" in _refusal(saved)


def test_a_wrong_field_is_named_with_its_path(saved):
    record = json.loads((saved / "run.json").read_text(encoding="utf-8"))
    _change(saved, model=record["model"] | {"n_layers": "two"}, more=1)
    said = _refusal(saved)
    assert "run.json: model.n_layers: Input should be a valid integer" in said
    assert "more: Extra inputs are not permitted" in said
    _change(saved, model=record["model"], top_k=math.nan)
    assert "top_k" in _refusal(saved)


def test_a_parquet_file_cut_off_anywhere_is_refused(saved):
    whole = (saved / "rows.parquet").read_bytes()
    for length in (0, 3, 4, 100, len(whole) // 2, len(whole) - 1):
        (saved / "rows.parquet").write_bytes(whole[:length])
        assert "rows.parquet: not a whole Parquet file" in _refusal(saved)


def test_a_table_that_lacks_a_column_or_has_another_type_is_refused(saved):
    rows = pl.read_parquet(saved / "rows.parquet")
    rows.drop("top1").write_parquet(saved / "rows.parquet")
    assert "rows.parquet: a run's rows have the 68 columns of COLUMNS; missing: top1" in _refusal(saved)
    rows.cast({"answer_rank": pl.Float64}).write_parquet(saved / "rows.parquet")
    assert "rows.parquet: column `answer_rank` should be of type Int32, but is Float64" in _refusal(saved)


# Whole or not at all


def test_a_folder_is_never_overwritten(saved):
    before = (saved / "run.json").read_bytes()
    with pytest.raises(RunError, match="already there, and nothing is written over"):
        _run(layer=[3, 4, 5]).save(saved)
    assert (saved / "run.json").read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["run"]


def test_a_taken_name_is_refused_before_any_work(tmp_path):
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        path = tmp_path / f"taken-{len(list(tmp_path.iterdir()))}"
        make(path)
        with pytest.raises(RunError, match="already there"), new_folder(path):
            pytest.fail("the block ran")


@pytest.mark.parametrize("rival", ["folder", "file"])
def test_a_name_that_is_taken_meanwhile_is_refused_at_the_end(tmp_path, rival):
    path = tmp_path / "run"
    with pytest.raises(RunError, match="already there"), new_folder(path) as folder:
        (folder / "mine").write_text("mine", encoding="utf-8")
        if rival == "folder":
            path.mkdir()
        (path / "theirs" if rival == "folder" else path).write_text("theirs", encoding="utf-8")
    assert [found.name for found in tmp_path.iterdir()] == ["run"]
    assert not (path / "mine").exists()


def test_the_folder_is_hidden_until_it_is_whole_and_then_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "deep" / "run") as folder:
        (folder / "published").mkdir()
        (folder / "published" / "a.csv").write_text("a\n", encoding="utf-8")
        assert [path.name for path in (tmp_path / "deep").iterdir()] == [folder.name]
        assert folder.name.startswith(".run.partial-")
    assert (tmp_path / "deep" / "run" / "published" / "a.csv").read_text(encoding="utf-8") == "a\n"
    assert (tmp_path / "deep" / "run").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_inside_leaves_nothing_and_is_passed_on(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "run") as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"could not be written .* choose a folder that you may write to"):
        _run().save(tmp_path / "file" / "run")


_INTERRUPTED = """
import signal, sys, time
from pathlib import Path
from layerscope.record.store import new_folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def _interrupt(path: Path, sent: signal.Signals) -> None:
    """Run a writer in a process of its own and send it a signal in the midst of writing."""
    command = [sys.executable, "-c", _INTERRUPTED, str(path)]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(sent)
        assert writer.wait(timeout=600) != 0


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE)}


def test_a_killed_process_leaves_only_a_hidden_folder_and_the_name_stays_free(tmp_path):
    _interrupt(tmp_path / "run", signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".run.partial-")
    _run().save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == _run()


def test_an_interrupted_process_leaves_nothing(tmp_path):
    _interrupt(tmp_path / "run", signal.SIGINT)
    assert not list(tmp_path.iterdir())


_FULL = """
import sys
from pathlib import Path
import polars as pl
from layerscope.errors import RunError
from layerscope.run import Run
run, target = Run.read(sys.argv[1]), Path(sys.argv[2])
try:
    run.save(target)
except RunError as error:
    print(error)
print(sorted(path.name for path in target.parent.iterdir()))
"""


def _large(folder: Path) -> Path:
    """A saved run of some hundred kilobytes."""
    n = 20_000
    noise = np.random.default_rng(316).random((4, n))
    names = ("entropy_bits", "p_top1", "p_answer", "cos_to_final")
    Run(rows_frame(_columns(n) | dict(zip(names, noise, strict=True))), _record()).save(folder)
    assert (folder / "rows.parquet").stat().st_size > 200_000
    return folder


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_reported_and_leaves_nothing(tmp_path):
    target = tmp_path / "out" / "run"
    target.parent.mkdir()
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n" + _FULL
    command = [sys.executable, "-c", limited, str(_large(tmp_path / "large")), str(target)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    assert f"{target} could not be written (File too large), and nothing was left of it; make room" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.slow  # a file that may not grow takes the same way
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    """On a real file system of 64 kilobytes, where the user may mount one in a name space of their own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    script = 'mount -t tmpfs -o size=64k tmpfs "$1"; shift; exec "$@"'
    try:
        subprocess.run([*mount, script, "sh", str(disk), "true"], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    writer = [sys.executable, "-c", _FULL, str(_large(tmp_path / "large")), str(disk / "run")]
    command = [*mount, script, "sh", str(disk), *writer]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    assert "run could not be written (No space left on device), and nothing was left of it; make room" in done.stdout
    assert done.stdout.endswith("[]\n")


# What the package promises


def _heavy_after(statement: str) -> set[str]:
    """Which of the tensor libraries a fresh interpreter has loaded after the statement."""
    heavy = "{'torch', 'transformers', 'safetensors', 'accelerate'}"
    code = f"{statement}\nimport sys\nprint(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_reading_runs_loads_no_tensor_library():
    assert _heavy_after("import safetensors") == {"safetensors"}, "the guard sees nothing"
    assert _heavy_after("import layerscope.record") == set()


def _record_map() -> str:
    """The fields of the record's top level and of its parts, as a Markdown table."""
    lines = ["| field | meaning | fields in it |", "|---|---|---|"]
    for name, field in RunRecord.model_fields.items():
        part = field.annotation
        inner = part.model_fields if isinstance(part, type) and issubclass(part, BaseModel) else {}
        lines.append(f"| `{name}` | {field.description} | {', '.join(f'`{key}`' for key in inner)} |")
    return "\n".join(lines)


def _documented(text: str) -> str:
    """The page with its tables as the code has them."""
    tables = {
        "columns": describe_columns(),
        "patches": describe_columns(PATCH_COLUMNS),
        "write_patches": describe_columns(WRITE_PATCH_COLUMNS),
        "writers": describe_columns(WRITERS_COLUMNS),
        "experts": describe_columns(ROUTING_COLUMNS),
        "record": _record_map(),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + table + "\n" + end + rest.partition(end)[2]
    return text


def test_the_page_lists_every_column_and_field_as_the_code_has_them():
    text = DOCS.read_text(encoding="utf-8")
    assert text == _documented(text)
    assert all(
        f"\n| `{column.name}` |" in text
        for column in (*COLUMNS, *WRITE_PATCH_COLUMNS, *WRITERS_COLUMNS, *ROUTING_COLUMNS)
    )


def test_the_pages_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _run(answer_rank=[3, 2, 1]).save("runs/Qwen3-8B-capitals-20260301T093000Z")
    blocks = [block.partition("```")[0] for block in DOCS.read_text(encoding="utf-8").split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert "answer_rank" in capsys.readouterr().out
    assert Run.read("runs/a-copy") == _run(answer_rank=[3, 2, 1])


if __name__ == "__main__":
    if sys.argv[1:] != ["--remake"]:
        sys.exit(f"expected --remake, found {sys.argv[1:]}; tests are run by pytest")
    SCHEMA.write_text(run_record.schema_text(), encoding="utf-8")
    DOCS.write_text(_documented(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
