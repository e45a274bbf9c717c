"""The header of a GGUF file: what it says of the model and its tokenizer, and where its tensors lie.

Layout: docs/gguf.md of ggml, versions 2 and 3. Read here and not by the `gguf` package, whose reader makes an array of
its own of every token and takes seconds for a large vocabulary.
"""

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from layerscope.errors import CheckpointError
from layerscope.model.checkpoint import parts_of

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
"""Bytes of which every tensor's place is a multiple, where the file names no other number."""
_ALIGNED_TO = 8
"""Of that number itself."""
_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
"""Types of values that take a fixed number of bytes, by their ids."""
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 8


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file."""

    name: str
    file: Path
    start: int
    """Its first byte in the file."""
    shape: tuple[int, ...]
    """In the order of torch: the last axis lies together."""
    type: GGMLQuantizationType

    @property
    def row_bytes(self) -> int:
        """Of one row: what the last axis takes."""
        block, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * size

    @property
    def stop(self) -> int:
        """The byte behind its last."""
        return self.start + prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file, or all parts of a split one, say before the tensors' own bytes."""

    files: tuple[Path, ...]
    """The parts in their order; as a rule one."""
    metadata: Mapping[str, Any]
    """By key: a number, a text, a bool, or a list of them."""
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family."""
        return str(self.metadata["general.architecture"])

    @cached_property
    def type_counts(self) -> dict[str, int]:
        """How many tensors of each type it holds, those with the most bytes first."""
        sizes: dict[str, int] = {}
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = tensor.type.name
            sizes[name] = sizes.get(name, 0) + tensor.stop - tensor.start
            counts[name] = counts.get(name, 0) + 1
        return {name: counts[name] for name in sorted(sizes, key=lambda name: -sizes[name])}


def read_header(file: Path) -> GgufHeader:
    """Read a GGUF file's header; of a split file, those of all its parts, whichever of them is named.

    Raises:
        CheckpointError: no GGUF file, one that is cut short or damaged, a type of tensor that is not known, a part that
            is missing, or two tensors of one name.
    """
    files = _parts(file)
    read = [_read(part) for part in files]
    metadata = read[0][0]
    if not isinstance(metadata.get("general.architecture"), str):
        raise CheckpointError(
            f"{file.name} should say which architecture it holds (general.architecture), but does not; convert the "
            "model anew."
        )
    count = metadata.get("split.count", 0)
    if count not in (0, len(files)):
        raise CheckpointError(
            f"{file.name} says that it is one of {count} parts (split.count), but by its name there "
            f"{'is 1' if len(files) == 1 else f'are {len(files)}'}; give the parts the names that they were made with."
        )
    return GgufHeader(files, metadata, _by_name([tensor for _, found in read for tensor in found]))


def _by_name(tensors: Sequence[GgufTensor]) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    for tensor in tensors:
        if tensor.name in found:
            files = dict.fromkeys((found[tensor.name].file.name, tensor.file.name))
            raise CheckpointError(
                f"{' and '.join(files)} should hold every tensor once, but '{tensor.name}' is there twice, and nothing "
                "says which of them the model is; fetch the file again, or convert the model anew."
            )
        found[tensor.name] = tensor
    return found


def _parts(file: Path) -> tuple[Path, ...]:
    """All parts of a split file in order; the file alone where it is no part."""
    parts = tuple(file.with_name(name) for name in parts_of(file.name))
    missing = [part.name for part in parts if not part.is_file()]
    if missing == [file.name]:
        raise CheckpointError(f"There is no file '{file.name}' in '{file.parent.name}', or it leads nowhere; fetch it.")
    if missing:
        raise CheckpointError(
            f"{file.name} is one of {len(parts)} parts, but {len(missing)} of them are not beside it (first: "
            f"{missing[0]}); complete the download."
        )
    return parts


def _read(file: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    size = file.stat().st_size
    if size < 24:
        raise CheckpointError(f"{file.name} ({size} bytes) is no GGUF file: its header alone takes 24; fetch it again.")
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        try:
            return _Reader(file, mapped).read()
        except (struct.error, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{file.name} ({size:,} bytes) is not a whole GGUF file ({error}); fetch it again."
            ) from error


class _Reader:
    """Goes through a header once, from its beginning to its end."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.at = file, data, 0

    def read(self) -> tuple[dict[str, Any], list[GgufTensor]]:
        magic = self.data[:4]
        if magic != _MAGIC:
            raise CheckpointError(
                f"{self.file.name} should begin with the four letters GGUF, but begins with {magic!r}; give a GGUF "
                "file, or a folder with config.json and *.safetensors."
            )
        self.at = 4
        version = self._number("u4")
        if version not in _VERSIONS:
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            kind = "written for big-endian machines" if swapped in _VERSIONS else f"of version {version}"
            raise CheckpointError(
                f"{self.file.name} is a GGUF file {kind}; versions 2 and 3, little-endian, are read: convert the model "
                "with a current llama.cpp."
            )
        n_tensors, n_values = self._number("u8"), self._number("u8")
        metadata = {self._text(): self._value(self._number("u4")) for _ in range(n_values)}
        found = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment % _ALIGNED_TO:
            raise CheckpointError(
                f"The header of {self.file.name} should state 'general.alignment' as a multiple of {_ALIGNED_TO}, but "
                f"states {alignment!r}; convert the model anew."
            )
        for name, _, _, offset in found:
            if offset % alignment:
                raise ValueError(f"tensor '{name}' lies at {offset:,}, which is no multiple of {alignment}")
        base = -(-self.at // alignment) * alignment
        return metadata, [self._placed(base, *tensor) for tensor in found]

    def _placed(self, base: int, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> GgufTensor:
        try:
            kind = GGMLQuantizationType(type_id)
        except ValueError as error:
            raise CheckpointError(
                f"Tensor '{name}' of {self.file.name} is stored as GGML type {type_id}, which the installed `gguf` "
                "package does not know; update it (pip install -U gguf), or use another quantisation."
            ) from error
        block, _ = GGML_QUANT_SIZES[kind]
        if not shape or min(shape) < 1 or shape[-1] % block:
            raise ValueError(f"tensor '{name}' is {list(shape)} in blocks of {block}")
        tensor = GgufTensor(name, self.file, base + offset, shape, kind)
        if tensor.stop > len(self.data):
            raise ValueError(f"tensor '{name}' should end at byte {tensor.stop:,}")
        return tensor

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_dims = self._text(), self._number("u4")
        if n_dims > _MAX_DIMS:
            raise ValueError(f"tensor '{name}' has {n_dims} axes")
        sizes = tuple(self._number("u8") for _ in range(n_dims))
        return name, sizes[::-1], self._number("u4"), self._number("u8")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._array(_SCALARS[kind], 1)[0]
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"a value of type {kind} at byte {self.at:,}")
        of, count = self._number("u4"), self._number("u8")
        if of in _SCALARS:
            return self._array(_SCALARS[of], count)
        if of != _STRING:
            raise ValueError(f"a list of values of type {of} at byte {self.at:,}")
        self._room(8 * count)
        return [self._text() for _ in range(count)]

    def _text(self) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self.at)
        self._room(8 + length)
        start = self.at + 8
        self.at = start + length
        return self.data[start : self.at].decode("utf-8", errors="replace")

    def _number(self, dtype: str) -> int:
        value: int = self._array(dtype, 1)[0]
        return value

    def _array(self, dtype: str, count: int) -> list[Any]:
        kind = np.dtype(dtype).newbyteorder("<")
        self._room(kind.itemsize * count)
        values: list[Any] = np.frombuffer(self.data[self.at : self.at + kind.itemsize * count], kind).tolist()
        self.at += kind.itemsize * count
        return values

    def _room(self, size: int) -> None:
        """Refuse to read beyond the end, before any memory is asked for."""
        if self.at + size > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data):,}, and should hold {size:,} from byte {self.at:,} on")
