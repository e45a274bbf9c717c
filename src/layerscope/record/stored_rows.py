"""Rows that do not fit in memory: written to files as they come, and read as far as they are asked for."""

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import polars as pl

from layerscope.errors import RunError

HELD_BYTES = 256 << 20
"""Rows that are kept in memory, at most, while there is room on the disk."""


def collected(rows: pl.LazyFrame, engine: Literal["auto", "streaming"] = "auto") -> pl.DataFrame:
    """What a query of a run's rows gives, which may read them from a file; `engine` is Polars'.

    Raises:
        RunError: the file was damaged, or changed or removed after the run was opened.
    """
    try:
        return rows.collect(engine=engine)
    except (OSError, pl.exceptions.ComputeError, pl.exceptions.PanicException) as error:
        raise unreadable(error) from error


def unreadable(error: BaseException) -> RunError:
    """What is said of rows whose file cannot be read."""
    reason = "not a whole Parquet file" if isinstance(error, pl.exceptions.PanicException) else str(error)
    return RunError(
        f"The rows cannot be read from their file ({reason}): it is damaged, or was changed or removed after the run "
        "was opened. Read the run again, or take it from a copy."
    )


class RowsInParts:
    """The rows of a run, part by part: in memory while they are few, beyond that in a temporary folder.

    The folder goes when this object does, so whoever reads the rows keeps it. Where it has no room for rows, they stay
    in memory.
    """

    def __init__(self, held_bytes: int = HELD_BYTES, warn: Callable[[str], object] = lambda sentence: None) -> None:
        """Begin without rows.

        Args:
            held_bytes: how many are kept in memory.
            warn: is told that rows stay there because they cannot be put aside.
        """
        self._held_bytes: int | None = held_bytes
        self._warn = warn
        self._frames: list[pl.DataFrame] = []
        self._files: list[Path] = []
        self._folder: Path | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Put rows behind those that are there."""
        self._frames.append(rows)
        if self._held_bytes is not None and self._n_bytes() > self._held_bytes:
            self._write()

    def table(self) -> pl.DataFrame | pl.LazyFrame:
        """All rows, as a table where they are in memory."""
        if not self._files:
            return pl.concat(self._frames)
        if self._frames and self._held_bytes is not None:
            self._write()
        return pl.concat([pl.scan_parquet(self._files), *(frame.lazy() for frame in self._frames)])

    def _n_bytes(self) -> int | float:
        return sum(frame.estimated_size() for frame in self._frames)

    def _write(self) -> None:
        """Put rows aside; where that fails they stay in memory, and so do all that come after them."""
        file: Path | None = None
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="layerscope-rows-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            file = self._folder / f"{len(self._files):06}.parquet"
            pl.concat(self._frames).write_parquet(file, compression="zstd")
        except (OSError, pl.exceptions.PolarsError) as error:
            if file is not None:
                file.unlink(missing_ok=True)
            self._held_bytes = None
            self._warn(
                f"rows stay in memory, for they cannot be put aside in the folder for temporary files ({error}); if "
                "memory runs short, set TMPDIR to a folder on a disk with more room"
            )
            return
        self._files.append(file)
        self._frames = []
