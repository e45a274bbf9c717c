"""One table of a published run: its columns by name and type, with everything damaged in it noted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from layerscope.analysis.curve_shapes import stretches
from layerscope.published.dialect import Fault, Sheet, parse
from layerscope.published.layout import GENERATION_M, Dialect, TableColumn, Value
from layerscope.record.parts import ProblemRecord
from layerscope.record.prompt_key import PromptKey

ROW = "data row"
"""In a frame: which data row of the file it was, counted from 0."""


PRIMARY = PromptKey(0, "pos", "orig")
"""The prompt that the JSON speaks of unless it says otherwise."""


@dataclass(frozen=True)
class TableRow:
    """One row, with what places it."""

    number: int
    """Data row in the file, counted from 0."""
    prompt: PromptKey
    layer: int
    position: int | None
    """Index of the input token; None in a table without that column."""
    values: dict[str, Value]
    """By the published column's name."""


@dataclass(frozen=True)
class TableRows:
    """A table of a generation's."""

    file: str
    columns: tuple[TableColumn, ...]
    rows: tuple[TableRow, ...]


def in_words(numbers: Iterable[int]) -> str:
    """`2, 5 to 7` of 2, 5, 6, 7; the ranges beyond twenty are counted alone."""
    ranges = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in stretches(numbers)]
    more = f" and {len(ranges) - 20} more" if len(ranges) > 20 else ""
    return ", ".join(ranges[:20]) + more


def note(problems: list[ProblemRecord], file: str, faults: Iterable[Fault]) -> None:
    """Add the faults of a file; one that several rows share is one problem, at the first of them."""
    by_message: dict[str, list[int | None]] = {}
    for fault in faults:
        by_message.setdefault(fault.message, []).append(fault.row)
    for message, numbers in by_message.items():
        rows = [row for row in numbers if row is not None]
        shared = f" (the same in rows {in_words(rows)})" if len(set(rows)) > 1 else ""
        # A file's name need not be UTF-8, but what is recorded must.
        name, whole = (text.encode(errors="replace").decode() for text in (file, message + shared))
        problems.append(ProblemRecord(file=name, row=min(rows) if rows else None, message=whole))


# Columns by name and type


def sheet_of(path: Path, dialect: Dialect, problems: list[ProblemRecord]) -> Sheet | None:
    """The file's cells; None, and a problem, where it cannot be read at all."""
    try:
        data = path.read_bytes()
    except OSError as error:
        note(problems, path.name, [Fault(None, f"the file cannot be read ({error.strerror}); it was passed over")])
        return None
    sheet = parse(data, dialect)
    note(problems, path.name, sheet.faults)
    return sheet


def frame_of(
    sheet: Sheet,
    columns: Sequence[TableColumn],
    keys: Sequence[str],
    file: str,
    problems: list[ProblemRecord],
    least: int | None = 0,
) -> pl.DataFrame | None:
    """The columns with their types, and `ROW`; null where the file has none, or nothing that fits.

    Args:
        columns: What to take; a column that the header lacks is null in every row.
        keys: Columns without which a row cannot be placed: a row that lacks one is left out.
        problems: Where what is wrong is added.
        least: The least whole number that makes sense; None if any does.

    Returns:
        None, and a problem, where the header itself lacks a key.
    """
    lacking = [key for key in keys if key not in sheet.header]
    if lacking:
        message = (
            f"lacks the columns {', '.join(lacking)}, without which no row can be placed; nothing was read from it"
        )
        note(problems, file, [Fault(None, message)])
        return None
    cells: dict[str, list[str | None]] = {}
    for column in columns:  # of a name that stands twice, `index` gives the first one
        at = sheet.header.index(column.name) if column.name in sheet.header else None
        cells[column.name] = [None] * len(sheet.rows) if at is None else [row[at] for row in sheet.rows]
    texts = pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String))
    numbers = pl.Series(ROW, sheet.numbers, dtype=pl.Int64)
    frame = texts.select(_typed(column, least) for column in columns).insert_column(0, numbers)
    faults = _lost_cells(texts, frame, columns)
    placed = pl.all_horizontal(pl.col(key).is_not_null() for key in keys)
    for key in keys:
        rows = frame.filter(pl.col(key).is_null())[ROW]
        faults += [Fault(row, f"the row has no {key}, so it cannot be placed; it was left out") for row in rows]
    note(problems, file, faults)
    return frame.filter(placed)


_KIND_IN_WORDS = {"int": "whole number", "float": "finite number", "bool": "truth value", "str": "text"}
_WHOLE = r"^-?\d{1,10}\.0*$"


def _typed(column: TableColumn, least: int | None) -> pl.Expr:
    """The column's values; null for a text that is none of its type."""
    text = pl.col(column.name)
    if column.kind == "float":
        number = text.cast(pl.Float64, strict=False)
        return pl.when(number.is_finite()).then(number)
    if column.kind == "int":
        # Another program may have written whole numbers with a decimal point, as `31.0`, which changes nothing.
        pointed = pl.when(text.str.contains(_WHOLE)).then(text.cast(pl.Float64, strict=False))
        whole = pl.coalesce(text.cast(pl.Int32, strict=False), pointed.cast(pl.Int32, strict=False))
        return whole if least is None else pl.when(whole >= least).then(whole).alias(column.name)
    if column.kind == "bool":
        spelled = {"True": True, "true": True, "False": False, "false": False}
        return text.replace_strict(spelled, default=None, return_dtype=pl.Boolean)
    return text


def _lost_cells(texts: pl.DataFrame, frame: pl.DataFrame, columns: Sequence[TableColumn]) -> list[Fault]:
    """Texts that are none of their column's type, one message a column, so that they make one problem."""
    faults = []
    lost = [column for column in columns if texts[column.name].null_count() != frame[column.name].null_count()]
    for column in lost:
        cells = texts[column.name]
        where = (frame[column.name].is_null() & cells.is_not_null()).arg_true()
        problem = f"holds {cells[where[0]][:30]!r}"
        if len(where) > 1:
            problem = f"in {len(where)} rows does not (the first {problem})"
        message = f"column `{column.name}` should hold a {_KIND_IN_WORDS[column.kind]}, but {problem}; left out"
        faults += [Fault(number, message) for number in frame[ROW].gather(where)]
    return faults


# A generation's table


_KEYS = ("prompt_id", "prompt_variant", "layer")


def read_table(
    path: Path, known: Sequence[TableColumn], due: Sequence[TableColumn], problems: list[ProblemRecord]
) -> TableRows | None:
    """A table of a generation; None, and a problem, where nothing can be read.

    Args:
        known: Every column that may stand there, in order.
        due: Those that the run's generation had.
        problems: Where what is wrong is added.
    """
    keys = (*_KEYS, "pos") if any(column.name == "pos" for column in known) else _KEYS
    header, frame = read_frame(path, known, due, keys, problems)
    if frame is None:
        return None
    rows, faults = _placed(frame, "fact_index" in header)
    note(problems, path.name, faults)
    return TableRows(path.name, tuple(column for column in known if column.name in header), tuple(rows))


def read_frame(
    path: Path,
    known: Sequence[TableColumn],
    due: Sequence[TableColumn],
    keys: Sequence[str],
    problems: list[ProblemRecord],
    least: int | None = 0,
) -> tuple[tuple[str, ...], pl.DataFrame | None]:
    """The header of a generation's table, and its cells as in `frame_of`, in which an empty text is no value."""
    sheet = sheet_of(path, GENERATION_M, problems)
    if sheet is None or not sheet.header:
        return (), None
    note(problems, path.name, header_faults(sheet.header, known, due, keys))
    blank_is_none = replace(sheet, rows=tuple(tuple(cell or None for cell in row) for row in sheet.rows))
    return sheet.header, frame_of(blank_is_none, known, keys, path.name, problems, least)


def check_table(
    path: Path,
    known: Sequence[TableColumn],
    due: Sequence[TableColumn],
    problems: list[ProblemRecord],
    dialect: Dialect = GENERATION_M,
) -> None:
    """Note what is wrong with the rows and the header of a table whose cells are not taken."""
    sheet = sheet_of(path, dialect, problems)
    if sheet is not None and sheet.header:
        note(problems, path.name, header_faults(sheet.header, known, due))


def _placed(frame: pl.DataFrame, has_facts: bool) -> tuple[list[TableRow], list[Fault]]:
    """Rows with what places them, each place once."""
    rows, faults, seen = list[TableRow](), list[Fault](), set[tuple[PromptKey, int, int | None]]()
    for values in frame.iter_rows(named=True):
        number = values.pop(ROW)
        prompt = _pass_of(values, has_facts)
        if prompt is None:
            faults.append(Fault(number, "the row of a fact has no fact_index, so it cannot be placed; it was left out"))
            continue
        row = TableRow(number, prompt, values["layer"], values.get("pos"), values)
        key = (prompt, row.layer, row.position)
        if key in seen:
            where = f"layer {row.layer}" + ("" if row.position is None else f", position {row.position}")
            faults.append(Fault(number, f"{prompt.label} has {where} a second time; the first one was kept"))
            continue
        seen.add(key)
        rows.append(row)
    return rows, faults


def _pass_of(values: dict[str, Value], has_facts: bool) -> PromptKey | None:
    """The prompt of a row; before there were several facts, every fact's row is the first one's."""
    index, prompt_id, variant = values.get("fact_index"), values["prompt_id"], values["prompt_variant"]
    assert isinstance(prompt_id, str) and isinstance(variant, str)  # columns of text, and keys
    if prompt_id == "pos" and index is None:
        return None if has_facts else PromptKey(0, prompt_id, variant)
    return PromptKey(index if isinstance(index, int) else None, prompt_id, variant)


def header_faults(
    header: Sequence[str], known: Sequence[TableColumn], due: Sequence[TableColumn], keys: Sequence[str] = ()
) -> list[Fault]:
    """What is wrong with the columns that a file has; a key that it lacks is left to `frame_of`."""
    names, due_names = [column.name for column in known], [column.name for column in due]
    missing = [name for name in due_names if name not in header and name not in keys]
    unknown = [name for name in dict.fromkeys(header) if name not in names]
    later = [name for name in dict.fromkeys(header) if name in names and name not in due_names]
    twice = [name for name in dict.fromkeys(header) if list(header).count(name) > 1]
    unplaced = [c.name for c in known if c.name in header and c.ours is None and c.name.startswith("copy_s")]
    messages = []
    if missing:
        messages.append(f"lacks the columns {', '.join(missing)}, which it should have; they are null in its rows")
    if [name for name in header if name in names] != [name for name in names if name in header] and not twice:
        messages.append("the columns stand in another order than they should; they were read by their names")
    if unknown:
        messages.append(f"has the unknown columns {', '.join(map(repr, unknown))}; they were left out")
    if later:
        messages.append(f"has the columns {', '.join(later)}, which the JSON does not announce; they were read")
    if twice:
        messages.append(f"has the columns {', '.join(twice)} more than once; the first of each was read")
    if unplaced:
        messages.append(f"has the copy flags {', '.join(unplaced)}, for which a run's rows have no column; left out")
    return [Fault(None, message) for message in messages]
