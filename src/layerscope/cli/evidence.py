"""Where commands on finished runs find their evidence, and where they write: never into what was only to be read."""

import filecmp
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from layerscope.cli.console import free_name, print_line, warn
from layerscope.errors import RunError

if TYPE_CHECKING:  # what a command works with is imported where it works, so that no help waits for it
    import layerscope.report.cited.archive
    import layerscope.report.cited.evidence

RUNS = Path("runs")
"""Where runs are looked for, unless another place is named."""


def newest(parent: Path = RUNS) -> Path:
    """The run in a folder of runs that was written last.

    Raises:
        RunError: there is none.
    """
    # A folder whose name is hidden is one that a killed process left unfinished.
    runs = [record.parent for record in parent.glob("*/run.json") if not record.parent.name.startswith(".")]
    if not runs:
        raise RunError(f"There is no run in '{parent}'; give a run's folder, or make one with `layerscope probe`.")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime_ns)


def home(source: Path) -> Path:
    """Where what is written about a source goes, unless another place is named.

    A run's own folder; for published files, which were only to be read, the current one.
    """
    return source if _is_run(source) else Path()


def folder_of(source: Path) -> Path:
    """The folder that a source is, or lies in."""
    return source if source.is_dir() else source.parent


@contextmanager
def read_only(sources: Sequence[Path]) -> "Iterator[list[layerscope.report.cited.archive.Archive]]":
    """Runs as evidence; what published files a run lacks are made elsewhere, for as long as this lasts.

    Raises:
        RunError: a source that is none.
    """
    with tempfile.TemporaryDirectory(prefix="layerscope-") as kept:
        yield [archive_in(source, Path(kept) / str(place)) for place, source in enumerate(sources)]


def archive_in(source: Path, parent: Path) -> "layerscope.report.cited.archive.Archive":
    """A run as evidence, whose published files, if it lacks them, are made in a folder of its name in another one."""
    from layerscope.report.cited.archive import Archive

    return Archive(source, _published(source, parent / source.resolve().name) if _lacks_files(source) else None)


def archive_for(source: Path, out: Path | None) -> "layerscope.report.cited.archive.Archive":
    """A run whose report is written, with the files that the report cites: in the run's folder, or in `out`.

    Raises:
        RunError: a source that is none.
    """
    from layerscope.report.cited.archive import Archive

    if not _lacks_files(source):
        return Archive(source)
    folder = source / "published" if out is None else out / "published" / source.resolve().name
    made = _published(source, folder)
    print_line(f"published files · {made}")
    return Archive(source, made)


def readable(
    archive: "layerscope.report.cited.archive.Archive", model: str | None = None
) -> "Sequence[layerscope.report.cited.evidence.Evidence]":
    """The evidence on a model, or on all that can be read; a warning tells of the others."""
    if model is not None:
        return [archive.evidence(model.rsplit("/", 1)[-1])]
    evidences, reasons = archive.readable()
    for reason in reasons:
        warn(f"left out: {reason}")
    return evidences


def _is_run(source: Path) -> bool:
    return (source / "run.json").exists()


def _lacks_files(source: Path) -> bool:
    return _is_run(source) and not (source / "published").exists()


def _published(source: Path, folder: Path) -> Path:
    """The published files of a run in a folder; where the same stand there already, these."""
    from layerscope.published.write.writer import write_published
    from layerscope.record.store import new_folder
    from layerscope.run_folder import read_run

    run = read_run(source)
    if folder.exists():
        with tempfile.TemporaryDirectory(prefix="layerscope-") as made:
            names = write_published(run, Path(made))
            if not any(filecmp.cmpfiles(made, folder, names, shallow=False)[1:]):
                return folder
        folder = free_name(folder)
    with new_folder(folder) as partial:
        write_published(run, partial)
    return folder
