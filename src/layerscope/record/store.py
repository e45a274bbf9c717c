"""A folder that is there whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerscope.errors import NO_ROOM, RunError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `path` when the block ends well and is removed when it does not.

    It lies beside `path`, hence on the same file system, as `.<name>.partial-<random>`. Its files are on the disk
    before it takes its final name, and the name is given in one step. A process that is killed outright can leave the
    hidden folder, which may be deleted, and never `path`. Folders above `path` are made where missing.

    Raises:
        RunError: `path` is already there, before the block or by the time it ends; or the disk is full; or the place
            cannot be written to. Any other error of the block passes through.
    """
    if os.path.lexists(path):
        raise _taken(path)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        _sync(partial)
        _rename(partial, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already after a rename; else the first error is what matters


def _rename(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)  # refused by the system unless `path` is free, or an empty folder with nothing to lose
    except OSError as error:
        if os.path.lexists(path):
            raise _taken(path) from error
        raise


def _sync(folder: Path) -> None:
    """Wait until everything under the folder is on the disk, so that no crash leaves a whole name on half a file."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync_one(Path(place, name), os.O_RDWR)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync_one(Path(place), os.O_RDONLY)


def _sync_one(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _taken(path: Path) -> RunError:
    return RunError(f"{path} is already there, and nothing is written over; give another name, or delete it first.")


def _unwritable(path: Path, error: OSError) -> RunError:
    if error.errno in NO_ROOM:
        remedy = "make room on that disk, or choose a folder on another one"
    else:
        remedy = "choose a folder that you may write to"
    return RunError(f"{path} could not be written ({error.strerror or error}), and nothing was left of it; {remedy}.")
