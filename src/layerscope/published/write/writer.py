"""Writes a run as the files of the published format: one JSON, its tables, and a manifest of them all."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.errors import RunError
from layerscope.published.dialect import serialise
from layerscope.published.layout import (
    EXTENDED,
    GENERATION_M,
    HEADLINE,
    Dialect,
    check_lens_names,
    json_name,
    stem_of,
)
from layerscope.published.manifest import PublishedFile, manifest
from layerscope.published.write.csv_tables import csv_tables
from layerscope.published.write.json_document import tree
from layerscope.record.run_record import RunRecord

_LONGEST_STEM = 150
"""In bytes, of a model's name in those of its files."""

_CSV = {
    GENERATION_M: "UTF-8, commas, line feeds, quotes where needed; backslashes doubled, line breaks in quoted cells",
    EXTENDED: "UTF-8, RFC 4180 with line feeds; in texts, backslash sequences for backslashes and control characters",
}
"""How each dialect writes a table, for people; exactly in the module `dialect`."""


def write_published(run: AnalysedRun, folder: Path, dialect: Dialect = EXTENDED) -> tuple[str, ...]:
    """Write the files into a folder that is there.

    Args:
        run: any run; for `GENERATION_M` one under the protocol `published`.
        folder: where to; no file there is overwritten but the manifest, which tells of the last run written. See
            `store.new_folder` for a folder that is there whole or not at all.
        dialect: `GENERATION_M` writes what published files hold, key by key and column by column; `EXTENDED` all that
            the run holds.

    Returns:
        The files' names, the manifest last.

    Raises:
        RunError: the run was measured by other definitions than the published ones, no file can be named after its
            model or a lens, or a file of such a name is there already.
        OSError: the folder cannot be written to.
    """
    _check_protocol(run.record, dialect)
    _check_names(run.record)
    written = []
    for file in _files(run, dialect):  # one at a time, since a table of a large run is large
        _write_new(folder / file.name, file.content)
        written.append(file.entry())
    last = manifest(run.record, dialect, _CSV[dialect], written)
    (folder / last.name).write_bytes(last.content)
    return (*(str(file["name"]) for file in written), last.name)


def _check_protocol(record: RunRecord, dialect: Dialect) -> None:
    protocol = record.protocol
    if dialect is GENERATION_M and (protocol.name != "published" or protocol.headline_lens != HEADLINE):
        raise RunError(
            f"Files of generation M hold numbers of the protocol 'published' under the lens '{HEADLINE}', but this "
            f"run has '{protocol.name}' under '{protocol.headline_lens}'; probe with protocol published, or use the "
            "extended dialect."
        )


def _check_names(record: RunRecord) -> None:
    stem = stem_of(record.model.id)
    if not stem or len(stem.encode()) > _LONGEST_STEM or re.search(r"[\x00-\x1f\x7f-\x9f]", stem):
        raise RunError(
            f"No file can be named after the model {record.model.id[:80]!r}; give it an id that ends in a name of at "
            f"most {_LONGEST_STEM} bytes without control characters."
        )
    check_lens_names(record.protocol.lenses)


def _write_new(path: Path, content: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise RunError(
            f"{path}: is there already, from another model of that name or from a lens that is named like a table; "
            "write each run into a folder of its own, and name lenses otherwise."
        ) from error


def _files(run: AnalysedRun, dialect: Dialect) -> Iterator[PublishedFile]:
    text = json.dumps(tree(run, dialect), indent=2, ensure_ascii=False, allow_nan=False)
    yield PublishedFile(json_name(stem_of(run.record.model.id)), text.encode())
    for table in csv_tables(run, dialect):
        yield PublishedFile(table.name, serialise(table.columns, table.rows, dialect), len(table.rows), table.columns)
