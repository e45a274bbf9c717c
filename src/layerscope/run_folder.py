"""The folder of a run: written whole, read back equal; or a run read from published files."""

import errno
import io
import json
import os
import re
from datetime import datetime
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from layerscope.analysis.analysed_run import AnalysedRun, check_pairs, n_pairs, n_write_patches
from layerscope.analysis.model_diff import ModelDiff
from layerscope.analysis.run_diff import RunDiff
from layerscope.analysis.verdict_json import verdict_text
from layerscope.analysis.write_effects import same_effects
from layerscope.errors import RunError
from layerscope.published.layout import Dialect
from layerscope.published.read.reader import holds_published, read_published
from layerscope.published.write.writer import write_published
from layerscope.record import routing, write_patches, writers
from layerscope.record.patches import check_patches
from layerscope.record.rows import table_bytes, with_newer_columns
from layerscope.record.run_record import READABLE_VERSIONS, RunRecord
from layerscope.record.store import new_folder
from layerscope.record.stored_rows import unreadable

PATCHES = "patches.parquet"
"""What came of every patch, where any were run."""
LARGE_BYTES = 64 << 20
"""Size of a Parquet file above which its rows are read as far as they are asked for, and no further."""


def save_run(run: AnalysedRun, path: str | Path, published: Dialect | None = None) -> None:
    """Write a run's folder, whole or not at all.

    Rows and record are the truth. `verdict.json` is made from them for other programs and never read back.

    Args:
        run: what to write.
        path: the folder, which is made.
        published: write the published format too, in this dialect, into the folder `published` inside.

    Raises:
        RunError: the folder is already there, the disk is full, or the place cannot be written to; or the dialect
            is generation M and the run's protocol is not `published`.
    """
    with new_folder(Path(path)) as folder:
        (folder / "run.json").write_bytes(run.record.model_dump_json(indent=2).encode() + b"\n")
        _write_rows(run, folder / "rows.parquet")
        if run.has_pairs:
            (folder / PATCHES).write_bytes(table_bytes(run.patches))
        if run.writers is not None or _attributed(run.record):
            table = pl.DataFrame(schema=writers.SCHEMA) if run.writers is None else run.writers
            (folder / writers.FILE).write_bytes(table_bytes(table))
        if run.write_patches is not None or n_write_patches(run.record):
            replaced = pl.DataFrame(schema=write_patches.SCHEMA) if run.write_patches is None else run.write_patches
            (folder / write_patches.FILE).write_bytes(table_bytes(replaced))
        if run.experts is not None or run.record.measured.routing is not None:
            chosen = pl.DataFrame(schema=routing.SCHEMA) if run.experts is None else run.experts
            (folder / routing.FILE).write_bytes(table_bytes(chosen))
        (folder / "verdict.json").write_text(verdict_text(run.verdict, run.record), encoding="utf-8")
        if published is not None:
            (folder / "published").mkdir()
            write_published(run, folder / "published", published)


def _write_rows(run: AnalysedRun, path: Path) -> None:
    if run.in_memory:
        path.write_bytes(table_bytes(run.rows))
        return
    try:
        run.scan.sink_parquet(path, compression="zstd")
    except (OSError, pl.exceptions.ComputeError, pl.exceptions.PanicException) as error:
        # Reading and writing fail in the same classes; what the system refused to write has its number in the text.
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = errno.ENOENT if found is None else int(found[1])
        if number == errno.ENOENT:  # the rows' own file, for that of the folder has just been made
            raise unreadable(error) from error
        raise OSError(number, os.strerror(number)) from error


def read_run(path: str | Path, model: str | None = None) -> AnalysedRun:
    """Read a run's folder, whatever else lies in it, or files in the published format.

    Args:
        path: a run's folder; or a folder of published files, or the `output-<M>.json` of one model in it.
        model: which model, where a folder of published files holds several.

    Raises:
        RunError: naming file and field: the folder or a file is missing or damaged, another version of the format
            wrote it, or it does not hold what a run holds. Published files are read as far as they go, and what
            they lack is in `problems`.
    """
    folder = Path(path)
    if not (folder / "run.json").exists() and holds_published(folder):
        return read_published(folder, model)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; give a run's folder, which holds run.json and rows.parquet.")
    if model is not None:
        raise RunError(f"{folder}: a run's own folder holds one model; leave the model out.")
    record = _read_record(folder / "run.json")
    rows = _read_rows(folder / "rows.parquet")
    patches = _read_patches(folder / PATCHES, record)
    table = _read_writers(folder / writers.FILE) if _attributed(record) else None
    replaced = _read_write_patches(folder / write_patches.FILE, record)
    chosen = _read_experts(folder / routing.FILE, record)
    try:
        return AnalysedRun(rows, record, patches=patches, writers=table, write_patches=replaced, experts=chosen)
    except RunError as error:
        raise RunError(f"{folder / 'rows.parquet'}: {error}") from error
    except pl.exceptions.PolarsError as error:
        raise _damaged(folder / "rows.parquet", error) from error


def default_folder_name(record: RunRecord) -> str:
    """`<model>-<suite>-<time>`, fit for any file system: `Qwen3-8B-capitals-20260301T093000Z`."""
    created = record.created_utc
    time = record.run_id if created is None else _compact(created)
    return "-".join(map(_file_safe, (_last_name(record.model.id), record.suite.name, time)))


def diff_folder_name(found: ModelDiff) -> str:
    """`<base>-<variant>-<time>`, likewise."""
    names = (_last_name(found.base.id), _last_name(found.variant.id), _compact(found.created_utc))
    return "-".join(map(_file_safe, names))


def run_diff_folder_name(found: RunDiff) -> str:
    """The same of two runs."""
    names = (_last_name(found.base.model_id), _last_name(found.variant.model_id), _compact(found.created_utc))
    return "-".join(map(_file_safe, ("runs", *names)))


def _last_name(model_id: str) -> str:
    return model_id.rsplit("/", 1)[-1]


def _compact(created_utc: str) -> str:
    return datetime.fromisoformat(created_utc).strftime("%Y%m%dT%H%M%SZ")


def _file_safe(name: str) -> str:
    """Letters, digits, `.`, `_` and `-`, not hidden, and short enough for a folder's name in UTF-8."""
    safe = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    return safe.encode()[:100].decode(errors="ignore") or "_"


def _read_record(path: Path) -> RunRecord:
    """The model classes are the check: they refuse whatever `run.schema.json` refuses, and contradictions besides."""
    text = _bytes_of(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not JSON ({error}); the file is damaged, take it from a copy.") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a JSON object, found a {type(content).__name__}; this is not a run's record.")
    _check_version(path, content)
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'the record'}: {e['msg']}" for e in error.errors()]
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise RunError(f"{path}: {'; '.join(wrong[:5])}{more}; mend these fields or measure again.") from error


def _check_version(path: Path, content: dict[str, object]) -> None:
    version, writer = content.get("schema_version"), content.get("layerscope_version")
    if not isinstance(version, str):
        raise RunError(f"{path}: field `schema_version` is missing or no text; this is not a run's record.")
    if version not in READABLE_VERSIONS:
        raise RunError(
            f"{path}: field `schema_version` is {version}, but this layerscope reads "
            f"{', '.join(READABLE_VERSIONS)}; layerscope "
            f"{writer if isinstance(writer, str) else 'of another version'} wrote the folder and reads it."
        )


def _read_rows(path: Path) -> pl.DataFrame | pl.LazyFrame:
    if path.exists() and path.stat().st_size > LARGE_BYTES:
        try:
            return with_newer_columns(pl.scan_parquet(path))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise _damaged(path, error) from error
    return with_newer_columns(_read_table(path))


def _read_patches(path: Path, record: RunRecord) -> pl.DataFrame | None:
    """What came of the record's pairs; None where it has none."""
    if n_pairs(record) == 0:
        return None
    patches = _read_table(path)
    try:
        check_patches(patches)
        check_pairs(patches, record)
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    return patches


def _attributed(record: RunRecord) -> bool:
    """Whether attention and MLPs were asked about."""
    return record.measured.sublayers is not None and bool(record.measured.sublayers.prompts)


def _read_writers(path: Path) -> pl.DataFrame | None:
    """The table; None where the run was saved without it."""
    table = _read_table(path)
    try:
        writers.check_writers(table)
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    return table if len(table) else None


def _read_write_patches(path: Path, record: RunRecord) -> pl.DataFrame | None:
    """The table; None where no write was replaced, or the run was saved without it."""
    due = n_write_patches(record)
    if due == 0:
        return None
    table = _read_table(path)
    try:
        write_patches.check_write_patches(table)
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    if len(table) not in (0, due):
        raise RunError(
            f"{path}: the record speaks of {due} replaced writes, but the table has {len(table)}; take run.json and "
            f"{path.name} from one run."
        )
    if len(table):
        _check_belongs(path, table, record)
    return table if len(table) else None


def _read_experts(path: Path, record: RunRecord) -> pl.DataFrame | None:
    """Which experts tokens were sent to; None where no block chooses, or the run was saved without it."""
    if record.measured.routing is None:
        return None
    table = _read_table(path)
    try:
        routing.check_routing(table)
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    told = {(one.layer, one.module) for one in record.measured.routing.mixtures}
    if len(table) and set(table.select("layer", "module").unique().rows()) != told:
        raise RunError(
            f"{path}: its blocks are not those whose experts the record names; take run.json and {path.name} from one "
            "run."
        )
    return table if len(table) else None


def _check_belongs(path: Path, table: pl.DataFrame, record: RunRecord) -> None:
    """Whether a table of replaced writes is of the record's own pairs, and gives the record's medians.

    Raises:
        RunError: it is another run's.
    """
    patching, found = record.measured.patching, record.measured.sublayers
    paired = set() if patching is None else {(pair.base, pair.source) for pair in patching.pairs}
    known = found is not None and found.write_patching is not None
    foreign = set(table.select("base", "source").unique().iter_rows()) - paired
    if foreign or (known and not same_effects(table, found.write_patching)):  # type: ignore[union-attr, arg-type]
        what = (
            f"of the pair {min(foreign)}, which the record has not" if foreign else "of other effects than the record"
        )
        raise RunError(f"{path}: its rows are {what}; take run.json and {path.name} from one run.")


def _read_table(path: Path) -> pl.DataFrame:
    parquet = _bytes_of(path)
    try:
        return pl.read_parquet(io.BytesIO(parquet))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> RunError:
    return RunError(f"{path}: not a whole Parquet file ({error}); it is damaged, take it from a copy.")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror}); a run's folder holds run.json, rows.parquet, and "
            f"{PATCHES} where residuals were patched, {write_patches.FILE} where writes were, and {routing.FILE} where "
            "tokens were sent to experts."
        ) from error
