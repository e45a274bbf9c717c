"""The published tables' columns and both dialects of CSV: as published to the byte, whole round trips, named faults."""

import csv
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerscope.errors import RunError
from layerscope.published.dialect import Sheet, parse, serialise
from layerscope.published.layout import (
    EXTENDED,
    FLAG_COLUMNS,
    GENERATION_M,
    NEXT_TOKEN,
    RAWLENS,
    RAWLENS_WINDOW,
    RECORDS,
    TABLES,
    TableColumn,
    columns_of,
    csv_name,
    json_name,
    stem_of,
    value_of,
)
from layerscope.record import COLUMNS
from properties import examples
from published import SHARED

AWKWARD = ["", '"', '""', "\\", "\\n", "\n", "\r", "\r\n", "\t", "\x00", "\x0b", "\x85", "\u2028", "\ufeff", ",", " ",
           "\\u2028", "a\\", '\\"', "→", "𝄞", "\ufffd", "None", "True", "1e-5"]  # fmt: skip
TEXTS = st.sampled_from(AWKWARD) | st.text(max_size=6) | st.lists(st.sampled_from(AWKWARD), max_size=4).map("".join)


@pytest.fixture(scope="module", params=["made", *(["published"] if SHARED.is_dir() else [])])
def published(request: pytest.FixtureRequest) -> dict[Path, list[list[str]]]:
    """Every table of the self-made sweep, or of the published ones, as the csv module reads it, its header first."""
    found = {}
    made = request.param == "made"
    for path in sorted((request.getfixturevalue("made_sweep") if made else SHARED / "reference").rglob("output-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found[path] = list(csv.reader(file, escapechar="\\"))
    assert len(found) > (20 if made else 80)
    return found


def _names(columns: tuple[TableColumn, ...]) -> list[str]:
    return [column.name for column in columns]


# Columns


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def _table_of(path: Path) -> str:
    """The table's suffix, siblings by lens taken together."""
    after = (
        path.name.partition("-records")[1:] if "-records" in path.name else path.name.partition("-pure-next-token")[1:]
    )
    suffix = "".join(after).removeprefix("-").removesuffix(".csv")
    return suffix.removesuffix("-prism").removesuffix("-tuned")


@pytest.mark.parametrize(
    ("folder", "generation", "flags"),
    [
        ("run-20250921-1713", "C", None),
        ("run-20250928-1722", "E", None),
        ("run-20251004-1804", "H", None),
        ("tiny-qwen3/published", "M", FLAG_COLUMNS),
    ],
)
def test_a_generations_tables_have_the_published_columns_in_the_published_order(shared, folder, generation, flags):
    tables = {table.suffix: table for table in TABLES}
    files = sorted((shared / "reference" / folder).glob("*.csv"))
    assert files
    for path in files:
        suffix = _table_of(path) if "-records" in path.name or "-pure-" in path.name else path.stem.split("qwen3-")[-1]
        columns = columns_of(tables[suffix], GENERATION_M, generation=generation, flags=flags)
        assert _names(columns) == _header(path), path.name


def test_every_published_cell_is_of_its_columns_type(published):
    """Written from the typed value, every cell is the published text: floats are in their shortest form."""
    kinds = {column.name: column.kind for table in TABLES for column in columns_of(table, GENERATION_M)}
    layer_of_audit = {"layer": "str"}
    make = {"int": int, "float": float, "str": str, "bool": {"True": True, "False": False}.__getitem__}
    for path, (header, *rows) in published.items():
        own = kinds | (layer_of_audit if path.name.endswith("audit.csv") else {})
        casts = [make[own[name]] for name in header]
        typed = [[cast(cell) if cell else None for cast, cell in zip(casts, row, strict=True)] for row in rows]
        assert serialise(header, typed, GENERATION_M) == path.read_bytes(), path.name


def test_no_table_has_a_column_twice():
    for dialect in (GENERATION_M, EXTENDED):
        for table in TABLES:
            names = _names(columns_of(table, dialect, pairs=25))
            assert len(set(names)) == len(names), (dialect, table.suffix)


def test_extended_tables_begin_with_the_columns_of_generation_m():
    for table in (RECORDS, NEXT_TOKEN, RAWLENS, RAWLENS_WINDOW):
        plain = _names(columns_of(table, GENERATION_M))
        assert _names(columns_of(table, EXTENDED))[: len(plain)] == plain
    assert _names(columns_of(NEXT_TOKEN, EXTENDED))[85:] == [
        "top1_id", "top2_id", "top3_id", "top4_id", "top5_id", "cos_to_final_centered", "control_top2_logit_gap",
        "entropy_gap_bits", "kl_saturated", "raw_resid_norm",
    ]  # fmt: skip


def test_an_extended_table_of_records_has_every_column_of_ours():
    columns = columns_of(RECORDS, EXTENDED, pairs=23)
    assert {column.ours for column in columns if column.ours} | {"top1", "top1_id"} == {c.name for c in COLUMNS}
    assert [c.name for c in columns if c.ours == "top_ids"] == [*(f"top{i}_id" for i in range(1, 24)), "n_top_ids"]
    assert [c.name for c in columns if c.ours == "top_probs"] == [*(f"prob{i}" for i in range(1, 24)), "n_top_probs"]


def test_a_column_without_a_place_in_ours_says_so():
    columns = {column.name: column for column in columns_of(RAWLENS, GENERATION_M)}
    assert columns["norm_only_semantics"].ours is None
    assert (columns["p_top1_raw"].ours, columns["p_top1_raw"].lens) == ("p_top1", "raw")
    assert (columns["js_divergence"].ours, columns["js_divergence"].lens) == ("js_divergence_bits", "next_norm")
    assert (columns["top1_token_str_norm"].ours, columns["entropy_bits_raw"].ours) == ("top1", "entropy_bits")


def test_other_copy_flags_take_the_place_of_the_usual_ones():
    names = _names(columns_of(NEXT_TOKEN, GENERATION_M, flags=["copy_strict@0.5", "copy_soft_k1@0.33"]))
    at = names.index("copy_collapse")
    assert names[at : at + 4] == ["copy_collapse", "copy_strict@0.5", "copy_soft_k1@0.33", "entropy_collapse"]


def test_a_cell_of_a_list_is_its_item_and_the_first_one_is_the_plain_column():
    columns = {column.name: column for column in columns_of(RECORDS, EXTENDED)}
    row = {"top_tokens": ["a", None], "top1": "a", "top_ids": None, "top1_id": 7, "top_probs": [0.5, 0.25]}
    names = ("top1", "top2", "top3", "n_top_tokens", "top1_id", "top2_id", "n_top_ids", "prob2", "n_top_probs")
    assert [value_of(columns[name], row) for name in names] == ["a", None, None, 2, 7, None, None, 0.25, 2]
    with pytest.raises(RunError, match="`top1` is 'b', but `top_tokens` begins with 'a'"):
        value_of(columns["top1"], row | {"top1": "b"})


def test_files_are_named_for_the_model_without_its_owner():
    assert json_name(stem_of("Qwen/Qwen3-8B")) == "output-Qwen3-8B.json"
    assert csv_name("Qwen3-8B", NEXT_TOKEN) == "output-Qwen3-8B-pure-next-token.csv"
    assert csv_name("Qwen3-8B", RECORDS, "raw") == "output-Qwen3-8B-records-raw.csv"


# Writing and reading cells


def test_every_published_file_is_read_as_the_csv_module_does_and_written_again_to_the_byte(published):
    for path, (header, *rows) in published.items():
        sheet = parse(path.read_bytes(), GENERATION_M)
        assert sheet.faults == (), path.name
        assert list(sheet.header) == header
        assert [[cell or "" for cell in row] for row in sheet.rows] == rows, path.name
        assert serialise(sheet.header, sheet.rows, GENERATION_M) == path.read_bytes(), path.name


@given(rows=st.lists(st.lists(TEXTS | st.none(), min_size=2, max_size=2), max_size=5))
@example(rows=[[text, None] for text in AWKWARD])
def test_extended_cells_are_read_back_equal_and_one_row_is_one_line(rows):
    data = serialise(["a", "b"], rows, EXTENDED)
    sheet = parse(data, EXTENDED)
    assert (sheet.header, sheet.faults) == (("a", "b"), ())
    assert [list(row) for row in sheet.rows] == rows
    assert len(data.decode().splitlines()) == 1 + len(rows)


@given(rows=st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=5))
@example(rows=[[text, "x"] for text in AWKWARD])
def test_published_cells_are_read_back_equal_but_for_empty_texts(rows):
    # A byte order mark cannot stand first: the header does.
    sheet = parse(serialise(["a", "b"], rows, GENERATION_M), GENERATION_M)
    assert [[cell or "" for cell in row] for row in sheet.rows] == rows
    assert [fault.message for fault in sheet.faults] == []


@given(rows=st.lists(st.tuples(TEXTS | st.none(), st.floats(allow_nan=False, allow_infinity=False)), max_size=5))
def test_polars_reads_extended_files_and_tells_no_value_from_an_empty_text(rows):
    data = serialise(["a", "b"], rows, EXTENDED)
    frame = pl.read_csv(io.BytesIO(data), schema={"a": pl.String, "b": pl.Float64})
    escapes = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
    for (text, number), (cell, value) in zip(rows, frame.iter_rows(), strict=True):
        assert value == number
        assert (cell is None) == (text is None)
        if text is not None and text.isprintable():
            assert cell == "".join(escapes.get(character, character) for character in text)


def test_the_escapes_are_the_documented_ones():
    assert serialise(["a"], [["\\ \n \r \t \x00 \x85 \u2028"]], EXTENDED) == (
        b"a\n\\\\ \\n \\r \\t \\u0000 \\u0085 \\u2028\n"
    )
    assert serialise(["a", "b", "c"], [["", None, 'say "x", y']], EXTENDED) == b'a,b,c\n"",,"say ""x"", y"\n'
    assert serialise(["a"], [["\\n \n"]], GENERATION_M) == b'a\n"\\\\n \n"\n'


def test_numbers_are_written_in_their_shortest_form():
    assert (
        serialise(["a", "b", "c"], [[1, 7.155105322453892e-06, True]], EXTENDED)
        == b"a,b,c\n1,7.155105322453892e-06,True\n"
    )
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite numbers alone"):
            serialise(["a"], [[number]], GENERATION_M)


# Damaged files

HEADER = b"a,b,c\n"


def _said(sheet: Sheet) -> list[tuple[int | None, str]]:
    return [(fault.row, fault.message) for fault in sheet.faults]


def _one_fault(data: bytes, row: int | None, said: str, dialect=GENERATION_M) -> Sheet:
    sheet = parse(data, dialect)
    ((found, message),) = _said(sheet)
    assert found == row
    assert said in message
    return sheet


def test_line_breaks_inside_quotes_are_part_of_the_cell():
    sheet = parse(HEADER + b'1,"\n",2\n3,"\r",4\n5,"x\r\ny",6\n7,\r,8\n', GENERATION_M)
    assert sheet.faults == ()
    assert [row[1] for row in sheet.rows] == ["\n", "\r", "x\r\ny", "\r"]


def test_doubled_backslashes_are_one_and_a_single_one_is_noted():
    sheet = _one_fault(HEADER + b'1,\\\\x,"\\\\,"\n2,\\x,\n', 1, "a backslash that escapes nothing")
    assert sheet.rows == (("1", "\\x", "\\,"), ("2", "\\x", None))


def test_a_byte_order_mark_is_left_out_and_one_inside_a_token_is_kept():
    sheet = _one_fault("\ufeffa,b,c\n1,\ufeff,2\n".encode(), None, "byte order mark")
    assert sheet.header == ("a", "b", "c")
    assert sheet.rows == (("1", "\ufeff", "2"),)


def test_a_file_in_utf_16_is_converted():
    sheet = _one_fault("a,b,c\n1,→,2\n".encode("utf-16"), None, "UTF-16")
    assert sheet.rows == (("1", "→", "2"),)


def test_carriage_returns_at_line_ends_are_left_out():
    sheet = _one_fault(b'a,b,c\r\n1,2,3\r\n4,"\r\n","5"\r\n', None, "CR LF")
    assert sheet.rows == (("1", "2", "3"), ("4", "\r\n", "5"))
    assert _one_fault(HEADER + b"1,2,3\n4,5,6\r\n", 1, "CR LF").rows[1] == ("4", "5", "6")


def test_a_row_with_too_few_or_too_many_cells_is_left_out():
    sheet = parse(HEADER + b"1,2,3\n1,2\n4,5,6\n1,2,3,4\n\n7,8,9\n", GENERATION_M)
    assert [(row, said.split(";")[0]) for row, said in _said(sheet)] == [
        (1, "the row has 2 cells where the header has 3"),
        (3, "the row has 4 cells where the header has 3"),
        (4, "the row has 1 cells where the header has 3"),
    ]
    assert sheet.rows == (("1", "2", "3"), ("4", "5", "6"), ("7", "8", "9"))
    assert sheet.numbers == (0, 2, 5)


def test_a_file_cut_inside_a_row_loses_that_row():
    assert _one_fault(HEADER + b"1,2,3\n4,5", 1, "the file ends inside this row").rows == (("1", "2", "3"),)
    assert _one_fault(HEADER + b'1,2,3\n4,"5', 1, "ends inside a quoted cell").rows == (("1", "2", "3"),)
    assert _one_fault(HEADER + b'1,2,3\n4,"5\n6', 1, "ends inside a quoted cell").rows == (("1", "2", "3"),)


def test_a_file_cut_inside_its_last_cell_loses_that_cell_unless_it_is_surely_whole():
    sheet = _one_fault(HEADER + b"1,2,3\n4,5,0.1", 1, "`c`, may be cut short; that cell was left out")
    assert sheet.rows[1] == ("4", "5", None)
    assert _one_fault(HEADER + b"1,2,3\n4,5,True", 1, "without a line break").rows[1] == ("4", "5", "True")


def test_a_stray_quote_costs_its_own_row_alone():
    sheet = parse(HEADER + b'1,2,3\n4,"5,6\n7,"\n",8\n9,"x",0\n', GENERATION_M)
    assert [row for row, _ in _said(sheet)] == [1]
    assert sheet.rows == (("1", "2", "3"), ("7", "\n", "8"), ("9", "x", "0"))
    assert sheet.numbers == (0, 2, 3)
    sheet = _one_fault(HEADER + b'1,2,3\n4,"5,6\n7,8,9\n', 1, "never closed")
    assert sheet.rows == (("1", "2", "3"), ("7", "8", "9"))


def test_text_after_a_closing_quote_is_noted():
    assert _one_fault(HEADER + b'1,"2"x,3\n', 0, "text after a closing quote").rows == (("1", "2x", "3"),)
    assert _one_fault(HEADER + b'1,2"x,3\n', 0, "quote in it").rows == (("1", '2"x', "3"),)


def test_bytes_that_are_not_utf_8_are_replaced_and_their_row_is_named():
    sheet = _one_fault(HEADER + b"1,2,3\n4,caf\xe9,5\n", 1, "column `b` has bytes that are not UTF-8")
    assert sheet.rows == (("1", "2", "3"), ("4", "caf\ufffd", "5"))


def test_an_empty_file_and_one_that_ends_in_its_header_are_noted():
    assert _one_fault(b"", None, "the file is empty").header == ()
    assert _one_fault(b"a,b,to", None, "ends inside its header").rows == ()
    assert _one_fault(b'a,"b', None, "ends inside its header").rows == ()


def test_an_extended_cell_with_an_unknown_escape_is_kept_and_noted():
    sheet = parse(HEADER + b"1,\\x,3\n1,\\ud800,3\n", EXTENDED)
    assert [row for row, said in _said(sheet) if "escapes nothing" in said] == [0, 1]
    assert [row[1] for row in sheet.rows] == ["\\x", "\\ud800"]


def test_an_open_quote_in_an_extended_file_costs_one_line():
    sheet = _one_fault(HEADER + b'1,"2,3\n4,5,6\n', 0, "never closed", EXTENDED)
    assert sheet.rows == (("4", "5", "6"),)


@examples(300)
@given(data=st.binary(max_size=60) | st.lists(st.sampled_from(list(b'a,b"\\\r\n\xff0')), max_size=60).map(bytes))
def test_nothing_that_is_read_raises_and_rows_are_as_wide_as_the_header(data):
    for dialect in (GENERATION_M, EXTENDED):
        for text in (data, HEADER + data):
            sheet = parse(text, dialect)
            assert all(len(row) == len(sheet.header) for row in sheet.rows)
            assert len(sheet.rows) == len(sheet.numbers)
            assert list(sheet.numbers) == sorted(set(sheet.numbers))
