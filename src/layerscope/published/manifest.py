"""The manifest of a folder of published files: what each file should be, and whether it is that."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from layerscope.published.dialect import Fault
from layerscope.published.layout import Dialect, is_file_of
from layerscope.published.read.csv_table import note
from layerscope.record.parts import ProblemRecord
from layerscope.record.run_record import RunRecord

MANIFEST = "manifest.json"
Entry: TypeAlias = dict[str, str | int | list[str] | None]
"""A file's entry in the manifest."""


@dataclass(frozen=True)
class PublishedFile:
    """One file of the folder."""

    name: str
    content: bytes
    n_rows: int | None = None
    """Data rows; None of a file that is no table."""
    columns: tuple[str, ...] | None = None

    def entry(self) -> Entry:
        """Its entry in the manifest, which outlives its content."""
        return {
            "name": self.name,
            "bytes": len(self.content),
            "sha256": _sha256(self.content),
            "n_rows": self.n_rows,
            "columns": None if self.columns is None else list(self.columns),
        }


def manifest(record: RunRecord, dialect: Dialect, csv: str, files: Sequence[Entry]) -> PublishedFile:
    """One line that names every file, with what tells whether it is whole.

    Args:
        csv: how tables are written, in words.
    """
    content = {
        "schema_version": record.schema_version,
        "run_id": record.run_id,
        "code_version": record.layerscope_version,
        "created_utc": record.created_utc,
        "dialect": dialect.value,
        "csv": csv,
        "files": list(files),
    }
    return PublishedFile(MANIFEST, json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def check_manifest(folder: Path, stem: str, problems: list[ProblemRecord]) -> None:
    """Note every file of one model that the folder's manifest names and that is missing, or is not what it was.

    A folder without a manifest, as the published ones are, has nothing to be compared with.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        files = [(str(file["name"]), str(file["sha256"])) for file in json.loads(path.read_bytes())["files"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        message = f"the manifest cannot be read ({type(error).__name__}: {error}), so no file was compared with it"
        note(problems, MANIFEST, [Fault(None, message)])
        return
    for named, sha256 in files:
        name = Path(named).name  # what a manifest says leads out of its folder to nothing
        if is_file_of(stem, name):
            note(problems, name, _faults(folder / name, sha256))


def _faults(path: Path, sha256: str) -> list[Fault]:
    """What is wrong with a file that the manifest names."""
    if not path.is_file():
        return [Fault(None, f"the file is missing, though {MANIFEST} names it")]
    try:
        content = path.read_bytes()
    except OSError as error:
        return [Fault(None, f"the file cannot be read ({error.strerror}), so it was not compared with {MANIFEST}")]
    if _sha256(content) == sha256:
        return []
    message = f"the file is not the one that {MANIFEST} names: it was changed, cut, or comes from another run"
    return [Fault(None, message)]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
