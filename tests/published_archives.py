"""Published folders as evidence, each read once in a session: reading ten models with checked calls takes a while."""

from functools import cache
from pathlib import Path

from layerscope.report.cited.archive import Archive


@cache
def archive_of(folder: Path) -> Archive:
    """The archive of a folder that nobody writes to."""
    return Archive(folder)
