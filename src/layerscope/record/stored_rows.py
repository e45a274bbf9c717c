"""Rows that do not fit in memory: written to files as they come, and read as far as they are asked for."""

import shutil
import tempfile
import weakref
from pathlib import Path

import polars as pl

from layerscope.errors import RunError

HELD_BYTES = 256 << 20
"""Rows that are kept in memory, at most."""


class RowsInParts:
    """The rows of a run, part by part: in memory while they are few, beyond that in a temporary folder.

    The folder goes when this object does, so whoever reads the rows keeps it.
    """

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._held_bytes = held_bytes
        self._frames: list[pl.DataFrame] = []
        self._files: list[Path] = []
        self._folder: Path | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Put rows behind those that are there.

        Raises:
            RunError: the folder for temporary files has no room for them.
        """
        self._frames.append(rows)
        if sum(frame.estimated_size() for frame in self._frames) > self._held_bytes:
            self._write()

    def table(self) -> pl.DataFrame | pl.LazyFrame:
        """All rows, as a table where they are in memory."""
        if not self._files:
            return pl.concat(self._frames)
        if self._frames:
            self._write()
        return pl.scan_parquet(self._files)

    def _write(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="layerscope-rows-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        file = self._folder / f"{len(self._files):06}.parquet"
        try:
            pl.concat(self._frames).write_parquet(file, compression="zstd")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(
                f"{file}: the rows measured so far could not be put aside ({error}); make room there, or set TMPDIR "
                "to a folder on another disk."
            ) from error
        self._files.append(file)
        self._frames = []
