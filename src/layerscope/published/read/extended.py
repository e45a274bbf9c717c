"""An extended folder: the record stands whole in its JSON, and the tables of records hold every row of the run."""

import json
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from layerscope.analysis.analysed_run import AnalysedRun, n_pairs, n_write_patches
from layerscope.errors import RunError
from layerscope.published.dialect import Fault
from layerscope.published.layout import (
    EXTENDED,
    N_ROWS_KEY,
    PAIRS,
    PATCHES,
    RECORD_KEY,
    RECORDS,
    SINGLE_WRITES,
    TABLES,
    Table,
    TableColumn,
    check_lens_names,
    columns_of,
    csv_name,
)
from layerscope.published.read.csv_table import ROW, check_table, frame_of, header_faults, note, sheet_of
from layerscope.published.read.document import Block
from layerscope.record.parts import ProblemRecord
from layerscope.record.patches import PATCH_COLUMNS, patches_frame
from layerscope.record.rows import COLUMNS, NEWER, Column, rows_frame
from layerscope.record.run_record import READABLE_VERSIONS, SCHEMA_VERSION, RunRecord
from layerscope.record.write_patches import WRITE_PATCH_COLUMNS, write_patches_frame

_KEYS = ("prompt_id", "prompt_variant", "lens", "layer", "pos", "is_next", "finite", "row_in_run")
_FILE = "file"
"""In a frame of several tables: which one a row is from."""


def read_extended(folder: Path, stem: str, document: Block) -> AnalysedRun:
    """The run exactly as it was written; or what is whole of it, with a problem for all that is not.

    Raises:
        RunError: the record is not one, or another version of the format's, or names a lens as no file can be named.
    """
    record, problems = _record_of(document), document.problems
    check_lens_names(record.protocol.lenses)
    frames, complete = list[pl.DataFrame](), True
    for lens in record.protocol.lenses:
        suffix = None if lens == record.protocol.headline_lens else lens
        path = folder / csv_name(stem, RECORDS, suffix)
        frame = _records(path, lens, problems, document)
        complete &= frame is not None
        frames += [] if frame is None else [frame]
    columns = [*(column.name for column in COLUMNS), "row_in_run", ROW, _FILE]
    rows = (
        pl.concat([frame.select(columns) for frame in frames]).sort("row_in_run", maintain_order=True)
        if frames
        else None
    )
    if rows is not None:
        rows = _without_repeated(rows, problems)
        if complete:
            _note_gaps(rows, record, document.file, problems)
    due, n_rows = document.whole(N_ROWS_KEY), 0 if rows is None else rows.height
    if due is not None and due != n_rows:
        message = f"`{N_ROWS_KEY}` is {due}, but the tables of records hold {n_rows} rows that could be read"
        note(problems, document.file, [Fault(None, message)])
    _check_others(folder, stem, record, problems)
    patches = _patches(folder / csv_name(stem, PATCHES), record, problems)
    writes = _single_writes(folder / csv_name(stem, SINGLE_WRITES), record, problems)
    record = record.model_copy(update={"problems": (*record.problems, *dict.fromkeys(problems))})
    table = rows_frame({c.name: [] if rows is None else rows[c.name] for c in COLUMNS})
    return AnalysedRun(table, record, patches=patches, write_patches=writes)


def _record_of(document: Block) -> RunRecord:
    members = document.block(RECORD_KEY).members
    version = members.get("schema_version")
    if version not in READABLE_VERSIONS:
        raise RunError(
            f"{document.file}: `{RECORD_KEY}.schema_version` is {version}, but this layerscope reads "
            f"{', '.join(READABLE_VERSIONS)}; read the folder with the layerscope that wrote it."
        )
    try:
        return RunRecord.model_validate_json(json.dumps(members))
    except ValidationError as error:
        wrong = [f"{RECORD_KEY}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        raise RunError(f"{document.file}: {'; '.join(wrong)}; take the file from a whole copy.") from error


def _records(path: Path, lens: str, problems: list[ProblemRecord], document: Block) -> pl.DataFrame | None:
    """One table under our columns' names, with the number of each row in the run and in the file."""
    if not path.is_file():
        note(problems, path.name, [Fault(None, f"the file is missing, and with it all rows of the lens {lens}")])
        return None
    sheet = sheet_of(path, EXTENDED, problems)
    if sheet is None or not sheet.header:
        return None
    pairs = next(i for i in count(PAIRS) if f"top{i + 1}" not in sheet.header)
    columns = columns_of(RECORDS, EXTENDED, pairs=pairs)
    older = document.block(RECORD_KEY).members.get("schema_version") != SCHEMA_VERSION
    due = [column for column in columns if not (older and column.ours in NEWER)]
    note(problems, path.name, header_faults(sheet.header, columns, due, _KEYS))
    frame = frame_of(sheet, columns, _KEYS, path.name, problems, least=None)
    if frame is None:
        return None
    for column in columns:
        if column.part == "length":
            _note_short_lists(frame, column, columns, path.name, problems)
    plain = {column.ours: column.name for column in columns if column.ours and column.part is None}
    plain |= {"entropy_bits": "entropy_bits", "top1": "top1", "top1_id": "top1_id"}
    ours = [
        pl.col(plain[c.name]).alias(c.name) if c.name in plain else _list(c.name, columns).alias(c.name)
        for c in COLUMNS
    ]
    return frame.select(*ours, "row_in_run", ROW, pl.lit(path.name).alias(_FILE))


def _patches(path: Path, record: RunRecord, problems: list[ProblemRecord]) -> pl.DataFrame | None:
    """What came of every patch; None, and a problem, where the table is missing or not whole."""
    if n_pairs(record) == 0:
        return None
    return _interventions(path, PATCHES, PATCH_COLUMNS, patches_frame, "what came of every patch", problems)


def _single_writes(path: Path, record: RunRecord, problems: list[ProblemRecord]) -> pl.DataFrame | None:
    """What became of every write that was put into another run; None where none was, and as for patches."""
    if n_write_patches(record) == 0:
        return None
    lost = "what came of every write that was put into another run"
    return _interventions(path, SINGLE_WRITES, WRITE_PATCH_COLUMNS, write_patches_frame, lost, problems)


def _interventions(
    path: Path,
    table: Table,
    columns: Sequence[Column],
    framed: Callable[[dict[str, pl.Series]], pl.DataFrame],
    lost: str,
    problems: list[ProblemRecord],
) -> pl.DataFrame | None:
    """A table whose columns are a run's own; None, and a problem, where it is missing or not whole."""
    if not path.is_file():
        note(problems, path.name, [Fault(None, f"the file is missing, and with it {lost}")])
        return None
    sheet = sheet_of(path, EXTENDED, problems)
    keys = [column.name for column in columns if not column.nullable]
    frame = None if sheet is None else frame_of(sheet, columns_of(table, EXTENDED), keys, path.name, [], least=None)
    if frame is None:
        return None  # why, the check of tables has noted
    try:
        return framed({column.name: frame[column.name] for column in columns})
    except RunError as error:
        note(problems, path.name, [Fault(None, f"{error}; nothing was read from it")])
        return None


def _list(name: str, columns: Sequence[TableColumn]) -> pl.Expr:
    """A list column of its items and the number of them; null where there is no number."""
    items = [column.name for column in columns if column.ours == name and isinstance(column.part, int)]
    length = pl.col(f"n_{name}")
    return pl.when(length.is_not_null()).then(pl.concat_list(items).list.head(length))


def _note_short_lists(
    frame: pl.DataFrame, length: TableColumn, columns: Sequence[TableColumn], file: str, problems: list[ProblemRecord]
) -> None:
    room = sum(column.ours == length.ours and isinstance(column.part, int) for column in columns)
    wrong = frame.filter((pl.col(length.name) > room) | (pl.col(length.name) < 0))
    message = (
        f"`{length.name}` should be at most the {room} items that a row has room for; the list was cut to what is there"
    )
    note(problems, file, [Fault(number, message) for number in wrong[ROW]])


def _without_repeated(rows: pl.DataFrame, problems: list[ProblemRecord]) -> pl.DataFrame:
    first = rows["row_in_run"].is_first_distinct()
    repeated = rows.filter(~first)
    for file in repeated[_FILE].unique(maintain_order=True):
        message = "a row of the run stands here a second time, by its `row_in_run`; the first one was kept"
        note(problems, file, [Fault(row, message) for row in repeated.filter(pl.col(_FILE) == file)[ROW]])
    return rows.filter(first)


def _note_gaps(rows: pl.DataFrame, record: RunRecord, file: str, problems: list[ProblemRecord]) -> None:
    """Rows of the run that no table has. Which one lacks them cannot be told: any lens' rows may stand there."""
    gaps = [(before + 1, after - 1) for before, after in pairwise([-1, *rows["row_in_run"]]) if after - before > 1]
    if gaps:
        ranges = [f"{first}" if first == last else f"{first} to {last}" for first, last in gaps[:20]]
        more = f" and {len(gaps) - 20} more ranges" if len(gaps) > 20 else ""
        count = sum(last - first + 1 for first, last in gaps)
        message = (
            f"{count} rows of the run stand in none of the tables of records, those of the lenses "
            f"{', '.join(record.protocol.lenses)}: rows {', '.join(ranges)}{more} of the run"
        )
        note(problems, file, [Fault(None, message)])


def _check_others(folder: Path, stem: str, record: RunRecord, problems: list[ProblemRecord]) -> None:
    """The tables that repeat what rows and record say: nothing is taken from them, but damage to them is noted."""
    for table in TABLES:
        others = [lens for lens in record.protocol.lenses if lens != record.protocol.headline_lens]
        for lens in (None, *(others if table.by_lens else ())):
            path = folder / csv_name(stem, table, lens)
            if table is not RECORDS and path.is_file():
                columns = columns_of(table, EXTENDED)
                check_table(path, columns, columns, problems, EXTENDED)
