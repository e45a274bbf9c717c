"""A folder of a record, JSON, and the weights that it speaks of, safetensors: written whole or not at all."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerscope.errors import NO_ROOM, LensError
from layerscope.lens_record import AnswerRowsRecord, LensRecord

R = TypeVar("R", LensRecord, AnswerRowsRecord)


@dataclass(frozen=True)
class Layout(Generic[R]):
    """One kind of such folders."""

    noun: str
    """What one holds, for messages."""
    record_name: str
    weights_name: str
    format: str
    """What the record's `format` says."""
    versions: tuple[str, ...]
    """Those of the record that are read, the newest first."""
    record: type[R]

    def write(self, folder: Path, record: R, tensors: dict[str, Tensor]) -> tuple[R, dict[str, Tensor]]:
        """Write a folder, whole or not at all; equal tensors give an equal file.

        Returns:
            What reading the folder would give, the order of memory included.

        Raises:
            LensError: `folder` is already there; a number of the record is not finite; the disk is full or the place
                cannot be written to.
        """
        packed = {name: _packed(tensors[name]) for name in sorted(tensors)}
        with _new_folder(folder) as partial:
            weights = partial / self.weights_name
            save_file(packed, weights)
            written = record.model_copy(update={"weights_sha256": _sha256(weights)})
            text = written.model_dump_json(indent=2)
            self._parse(
                text, folder / self.record_name
            )  # what cannot be read back, as an infinite number, is not written
            (partial / self.record_name).write_text(text + "\n", encoding="utf-8")
            # Safetensors lets its owner alone read a file; both should be read by the same people.
            weights.chmod((partial / self.record_name).stat().st_mode)
        return written, packed

    def read_record(self, folder: Path) -> R:
        """Read a folder's record alone.

        Raises:
            LensError: it is missing, of another kind, or of another version.
        """
        path = folder / self.record_name
        try:
            text = path.read_bytes()
        except OSError as error:
            raise LensError(
                f"{path}: cannot be read ({error.strerror}); a {self.noun} is a folder with {self.record_name} and "
                f"{self.weights_name}."
            ) from error
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LensError(f"{path}: not JSON ({error}); the file is damaged, take it from a copy.") from error
        format_name = content.get("format") if isinstance(content, dict) else None
        if format_name != self.format:
            raise LensError(
                f"{path}: field `format` should be {self.format}, but it is {format_name}; this is no {self.noun} of "
                "ours."
            )
        self._check_version(path, content.get("schema_version"))
        return self._parse(text, path)

    def read_tensors(self, folder: Path, record: R, *, verify: bool) -> dict[str, Tensor]:
        """Read a folder's weights, memory-mapped.

        Args:
            verify: compare their hash with the record's, which reads every byte.

        Raises:
            LensError: they are missing or damaged.
        """
        path = folder / self.weights_name
        if not path.is_file():
            raise LensError(f"{path}: the lens' weights are missing; copy the folder again, or fit the lens again.")
        if verify and _sha256(path) != record.weights_sha256:
            raise LensError(f"{path}: damaged, its sha256 is not the one in {self.record_name}; take it from a copy.")
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise LensError(
                f"{path}: not a whole safetensors file ({error}); it is damaged, take it from a copy."
            ) from error
        return tensors

    def _check_version(self, path: Path, version: object) -> None:
        if version in self.versions:
            return
        newest = self.versions[0]
        try:
            newer = tuple(map(int, str(version).split("."))) > tuple(map(int, newest.split(".")))
        except ValueError:
            newer = False
        remedy = "a newer layerscope wrote it and reads it, so update" if newer else "fit the lens again"
        raise LensError(f"{path}: field `schema_version` is {version}, but this layerscope reads {newest}; {remedy}.")

    def _parse(self, text: str | bytes, path: Path) -> R:
        try:
            return self.record.model_validate_json(text)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc'])) or 'the record'}: {e['msg']}" for e in error.errors()]
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise LensError(
                f"{path}: {'; '.join(wrong[:5])}{more}; mend these fields or fit the lens again."
            ) from error


def _packed(tensor: Tensor) -> Tensor:
    """What may be saved: on the CPU, dense, and sharing memory with no other tensor."""
    packed = tensor.detach().cpu().contiguous()
    return packed.clone() if packed.untyped_storage().nbytes() != packed.nbytes else packed


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LensError(f"{path}: cannot be read ({error.strerror}); a fitted lens needs its weights.") from error


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, which takes that name when the block ends well and is gone when it does not."""
    taken = LensError(f"{path} is already there, and a fitted lens is never overwritten; give another name.")
    if os.path.lexists(path):
        raise taken
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in (*partial.iterdir(), partial):
            _sync(file)
        if os.path.lexists(path):
            raise taken
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        remedy = "make room on that disk" if _errno(error) in NO_ROOM else "choose a folder that you may write to"
        raise LensError(f"{path} could not be written ({error}), and nothing was left of it; {remedy}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _errno(error: OSError | SafetensorError) -> int | None:
    """The system's number; safetensors says it in words alone."""
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else None


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, or what a folder lists."""
    if path.is_dir() and os.name != "posix":
        return  # a folder cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
