"""Files of tensors as they are mapped: where each lies, read ahead and let go of piece by piece."""

import ctypes
import errno
import mmap
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch

from layerscope.errors import CheckpointError
from layerscope.stored.weight import StoredWeight

PIECE_BYTES = 32 << 20
"""What is read at once: long enough for a disk to be quick, short enough that a pass broken off ends soon."""
_SCRATCH_BYTES = 4 << 20
_POPULATE_READ = 22
"""`MADV_POPULATE_READ` of Linux 5.14 and later."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    name: str
    """The tensor's."""
    file: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """Part of a tensor in its file, and where it is mapped."""

    name: str
    """The tensor's."""
    file: Path
    start: int
    """First byte in the file."""
    address: int | None
    """Where that byte is mapped; None where it is not known to be."""
    size: int
    """Bytes."""

    def bring_in(self) -> None:
        """Read it into the page cache, and map its pages where the system can do that in one call.

        Other threads go on meanwhile: neither way holds the interpreter.

        Raises:
            CheckpointError: the file ends before it.
            OSError: the disk cannot be read.
        """
        madvise = _madvise()
        if madvise is not None and self.address is not None:
            first = self.address // mmap.PAGESIZE * mmap.PAGESIZE
            failed = madvise(first, self.address + self.size - first, _POPULATE_READ)
            if failed == errno.EFAULT:
                # A page that cannot be had: it is beyond the file's end, or its disk or server is gone.
                if self.file.stat().st_size < self.start + self.size:
                    raise cut_short(self)
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.file))
            if failed == 0:
                return
            if failed != errno.EINVAL:  # a kernel before 5.14 does not know the word
                raise OSError(failed, os.strerror(failed), str(self.file))
        if hasattr(os, "preadv"):
            self._read()

    def _read(self) -> None:
        """Into memory that is forgotten at once: the page cache keeps it, and faulting in is quick from there."""
        scratch = memoryview(bytearray(min(_SCRATCH_BYTES, self.size)))
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            at, stop = self.start, self.start + self.size
            while at < stop:
                read = os.preadv(descriptor, [scratch[: stop - at]], at)
                if read == 0:
                    raise cut_short(self)
                at += read
        finally:
            os.close(descriptor)


def cut_short(part: Place | Piece) -> CheckpointError:
    """What to raise where a file ends before a part of it."""
    return CheckpointError(
        f"{part.file.name} should hold tensor '{part.name}' to its end, but it is shorter than when it was opened "
        f"({part.file.stat().st_size:,} bytes now); fetch it again, and leave it alone while it is read."
    )


def page_of(address: int) -> int | None:
    """An address at which a file can be mapped; None for one that is no page's, as where tensors are copies.

    The kernel is told to forget pages by their address, which would empty a copy.
    """
    return address if address % mmap.PAGESIZE == 0 else None


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Linux's `madvise`, which gives 0 or an error number; None elsewhere.

    That of the standard library's `mmap` holds the interpreter, and knows only maps of its own.
    """
    if sys.platform != "linux":
        return None
    call = ctypes.CDLL(None, use_errno=True).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def madvise(address: int, size: int, advice: int) -> int:
        return 0 if call(address, size, advice) == 0 else ctypes.get_errno()

    return madvise


class TensorFiles(ABC):
    """The files that hold a model's tensors, memory-mapped: a tensor costs no memory until its pages are read."""

    format: ClassVar[Literal["safetensors", "gguf"]]
    described_by: ClassVar[str] = "config.json"
    """What says of which model they are."""
    _places: Mapping[str, Place]
    """By tensor, in the files' order."""
    _mapped_at: Mapping[Path, int | None]
    """Where a file's first byte is mapped; None where that is not known."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """All files."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how they were read."""
        return ()

    @property
    def storage(self) -> str | None:
        """In what forms matrices are stored, those with the most bytes first; None where that is not known."""
        return None

    @property
    def description(self) -> str:
        """What the files themselves say of how the model computes; empty where config.json alone says it."""
        return ""

    def parts(self, name: str) -> tuple[str, ...]:
        """Names in the files of what together is a tensor."""
        return (name,)

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as floats: as stored, its memory being the file's pages, or decoded.

        Raises:
            CheckpointError: a form of storage that is not understood here.
        """

    def integers(self, name: str) -> torch.Tensor:
        """A tensor of whole numbers, such as a table of ids.

        Raises:
            CheckpointError: it holds something else.
        """
        raise CheckpointError(
            f"Tensor '{name}' should hold whole numbers, but {self.format} files are read for weights alone."
        )

    def matrix(self, name: str, i: int) -> torch.Tensor:
        """One matrix of a tensor with three axes, by its place on the first one; raises like `tensor`."""
        return self.tensor(name)[i]

    @abstractmethod
    def weight(self, name: str) -> StoredWeight:
        """A matrix that gives some of its rows as floats.

        Raises:
            CheckpointError: as `tensor`.
        """

    @abstractmethod
    def excerpt(self, name: str) -> bytes:
        """Shape, storage and a few rows of a tensor, to tell it from another.

        Raises:
            CheckpointError: as `tensor`.
        """

    @cached_property
    def bytes_on_disk(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)

    def bytes_kept(self, itemsize: int) -> int:
        """What an accelerator takes that keeps all weights: quantised ones are floats there, of that many bytes."""
        return self.bytes_on_disk

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All tensor names, in the files' order."""
        return tuple(self._places)

    def refusal(self, name: str) -> CheckpointError | None:
        """Why a weight is missed although something of that name is there; None where nothing is."""
        return None

    def place(self, name: str) -> Place | None:
        """Where a tensor lies; None where it does not lie in one place."""
        return self._places.get(name)

    def pieces(self, names: Iterable[str], share: tuple[int, int] = (0, 1)) -> Iterator[Piece]:
        """The bytes of some tensors, in parts that are read at once.

        Args:
            names: of the tensors.
            share: which of how many equal parts of each is wanted, as of a stack one matrix.
        """
        which, of = share
        for part in (part for name in names for part in self.parts(name)):
            place = self._places[part]
            size = place.stop - place.start
            first, stop = place.start + which * size // of, place.start - (-(which + 1) * size // of)
            base = self._mapped_at[place.file] if size else None
            for start in range(first, stop, PIECE_BYTES):
                length = min(PIECE_BYTES, stop - start)
                yield Piece(part, place.file, start, None if base is None else base + start, length)

    def let_go(self, names: Iterable[str]) -> None:
        """Let the page cache forget some tensors, so that others' files stay in it; they can still be read."""
        madvise = _madvise()
        if madvise is None or not hasattr(os, "posix_fadvise"):
            return
        files: dict[Path, list[Piece]] = {}
        for piece in self.pieces(names):
            files.setdefault(piece.file, []).append(piece)
        for file, pieces in files.items():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                for piece in pieces:
                    if piece.address is None:
                        continue
                    # Only what is mapped nowhere is forgotten, and of the pages at the ends a neighbour has a part.
                    first = -(-piece.address // mmap.PAGESIZE) * mmap.PAGESIZE
                    if first < piece.address + piece.size:
                        madvise(first, piece.address + piece.size - first, mmap.MADV_DONTNEED)
                    os.posix_fadvise(descriptor, piece.start, piece.size, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
