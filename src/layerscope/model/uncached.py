"""Reading weights past the page cache: for models that are larger than it may become.

A page of the cache is had, filled, mapped and given back for every 4 KiB of a model of which nothing stays; where a
virtual machine gives free memory back to its host, each is fetched from there anew. A tile that is read into memory
which is used again and again costs a copy at most.
"""

import errno
import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layerscope.model.tensor_files import Place, cut_short

_ALIGNMENT = 4096
"""Of what a disk transfers by itself: bytes in the file and in memory begin and end at multiples of it."""
_NOT_DIRECTLY = (errno.EINVAL, errno.EOPNOTSUPP)
"""What filesystems say that read through the page cache alone."""


def reads_uncached() -> bool:
    """Whether the system can read a file and keep none of it."""
    return hasattr(os, "preadv") and hasattr(os, "posix_fadvise")


class Room:
    """Memory of one thread, into which it reads one tile after the other."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _ALIGNMENT)

    def of(self, size: int) -> memoryview:
        """So many bytes, beginning at a page; what was there is gone."""
        if size > len(self._memory):
            self._memory = mmap.mmap(-1, size)
        return memoryview(self._memory)[:size]


@dataclass
class _File:
    """An open file, and whether the page cache is passed by or only told to forget."""

    descriptor: int
    direct: bool


class UncachedFiles:
    """The files of a checkpoint, open for the time of a pass; threads read from them side by side."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}
        self._opening = threading.Lock()

    def rows(self, place: Place, row_bytes: int, start: int, stop: int, room: Room) -> Tensor:
        """Bytes `[rows, row_bytes]` of some rows of a stored matrix; valid until the room is used again.

        Args:
            place: where the matrix lies.
            row_bytes: of one row.
            start: first row.
            stop: the one behind the last.
            room: where they are read to.

        Raises:
            CheckpointError: the file has been cut short since it was opened.
            OSError: the disk cannot be read.
        """
        first, last = place.start + start * row_bytes, place.start + stop * row_bytes
        begin = first // _ALIGNMENT * _ALIGNMENT
        size = -(-last // _ALIGNMENT) * _ALIGNMENT - begin
        memory = room.of(size)
        if self._read(place.file, memory, begin) < last - begin:
            raise cut_short(place)
        rows = torch.frombuffer(memory, dtype=torch.uint8, count=last - first, offset=first - begin)
        return rows.view(stop - start, row_bytes)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()

    def _read(self, path: Path, memory: memoryview, begin: int) -> int:
        """Fill memory from the file's byte `begin` on, as far as the file goes; how many bytes it gave."""
        with self._opening:
            if path not in self._files:
                self._files[path] = _open(path)
            file = self._files[path]
        done = 0
        while done < len(memory):
            read = os.preadv(file.descriptor, [memory[done:]], begin + done)
            done += read
            if not read or (file.direct and read % _ALIGNMENT):
                break  # the file's end; read directly, it is met in the middle of a page
        if not file.direct:
            os.posix_fadvise(file.descriptor, begin, len(memory), os.POSIX_FADV_DONTNEED)
        return done


def _open(path: Path) -> _File:
    """Past the page cache where the filesystem can."""
    flag = getattr(os, "O_DIRECT", 0)
    try:
        descriptor = os.open(path, os.O_RDONLY | flag)
    except OSError as error:
        if not flag or error.errno not in _NOT_DIRECTLY:
            raise
        return _File(os.open(path, os.O_RDONLY), direct=False)
    try:
        os.preadv(descriptor, [Room().of(_ALIGNMENT)], 0)
    except OSError as error:
        os.close(descriptor)
        if not flag or error.errno not in _NOT_DIRECTLY:
            raise
        return _File(os.open(path, os.O_RDONLY), direct=False)  # some say no only when they are read
    return _File(descriptor, direct=bool(flag))
