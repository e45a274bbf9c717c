"""A matrix as it is stored: it stays where it lies, and gives some of its rows as floats when they are wanted."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

SCRATCH_ROWS_BYTES = 4 << 20
"""Of rows that are made at once on their way to another dtype or device, in float32."""


class StoredWeight(ABC):
    """A matrix `[d_out, d_in]` in whatever form a checkpoint keeps it.

    Whoever multiplies by it asks for a tile of rows, and has them in the dtype and on the device of the room given.
    """

    shape: tuple[int, int]
    """Rows and columns of the matrix of floats."""
    nbytes: int
    """What it takes as stored, scales and the like included."""
    storage: str
    """How it is stored, for a record: `bfloat16`, `GGUF Q4_1`."""
    row_bytes: int | None = None
    """Bytes of a row, where rows lie one after the other in one place of a file; None where they do not."""

    @abstractmethod
    def rows(self, start: int, stop: int, out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Rows `start..stop` in the dtype and on the device of `out`.

        They are written into `out`, whose first axis may be longer, or lent where they lie already as asked for. What
        is returned is valid until the room is used again, and must not be written to.
        """

    @abstractmethod
    def taken(self, ids: Int[Tensor, " rows"], out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Rows by their numbers, in any order, written into the first of `out`."""

    @abstractmethod
    def raw_rows(self, rows: slice, columns: int | None = None) -> bytes:
        """What tells some rows from other rows, as stored; of a long row its beginning, if `columns` says so."""

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> "StoredWeight":
        """The matrix on that device, for good: as stored where torch has it so, else decoded to `dtype`."""

    def decoded(self, raw: UInt8[Tensor, "rows row_bytes"], out: Float[Tensor, "room d_in"]) -> Tensor:
        """Rows given by their bytes, as `rows` gives them; for a matrix with `row_bytes`."""
        raise TypeError(f"Rows of a {self.storage} matrix do not lie together ({len(raw)} were given as bytes).")

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        """Entries of the matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return torch.device("cpu")

    def gather(self, ids: Int[Tensor, "*ids"], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "*ids d_in"]:
        """Single rows, such as those of an embedding, each read once."""
        found, place = torch.unique(ids.cpu(), return_inverse=True)
        out = torch.empty(len(found), self.shape[1], dtype=dtype, device=device)
        return self.taken(found, out)[place.to(device)]

    def whole(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "d_out d_in"]:
        """All of it, as a copy of its own."""
        out = torch.empty(*self.shape, dtype=dtype, device=device)
        step = max(1, SCRATCH_ROWS_BYTES // (4 * max(1, self.shape[1])))
        for start in range(0, len(self), step):
            room = out[start : start + step]
            lent = self.rows(start, min(start + step, len(self)), room)
            if lent.data_ptr() != room.data_ptr():
                room.copy_(lent)
        return out


class DenseWeight(StoredWeight):
    """A matrix of floats in a dtype of torch: memory-mapped, or kept on a device."""

    def __init__(self, tensor: Float[Tensor, "d_out d_in"]) -> None:
        self.tensor = tensor
        """The matrix itself."""
        self.shape = (tensor.shape[0], tensor.shape[1])
        self.nbytes = tensor.numel() * tensor.element_size()
        self.storage = str(tensor.dtype).removeprefix("torch.")
        self.row_bytes = self.shape[1] * tensor.element_size()

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tensor.device

    def rows(self, start: int, stop: int, out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """A view of the matrix where it lies as asked for; else the rows cast into `out`."""
        return _cast(self.tensor[start:stop], out)

    def decoded(self, raw: UInt8[Tensor, "rows row_bytes"], out: Float[Tensor, "room d_in"]) -> Tensor:
        """Their bytes are the rows."""
        return _cast(raw.view(self.tensor.dtype), out)

    def raw_rows(self, rows: slice, columns: int | None = None) -> bytes:
        """Their bytes."""
        return bytes_of(self.tensor[rows, :columns])

    def taken(self, ids: Int[Tensor, " rows"], out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Taken where the matrix lies, and cast after that."""
        return out[: len(ids)].copy_(self.tensor[ids.to(self.tensor.device)])

    def to(self, device: torch.device, dtype: torch.dtype) -> "DenseWeight":
        """A copy on the device, in its own dtype."""
        return DenseWeight(self.tensor.to(device))

    def gather(self, ids: Int[Tensor, "*ids"], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "*ids d_in"]:
        """Taken where the matrix lies, and cast after that."""
        return self.tensor[ids.to(self.tensor.device)].to(device, dtype)

    def whole(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "d_out d_in"]:
        """All of it, as a copy of its own."""
        return self.tensor.to(device, dtype, copy=True)


class PackedWeight(StoredWeight):
    """A matrix whose rows are bytes that have to be decoded: low-precision codes, and their scales among them."""

    def __init__(self, packed: UInt8[Tensor, "d_out row_bytes"], n_columns: int, storage: str) -> None:
        """Take the bytes as they are mapped.

        Args:
            packed: one row's bytes after the other.
            n_columns: floats that a row gives.
            storage: what it is called.
        """
        self.packed = packed
        self.shape = (packed.shape[0], n_columns)
        self.nbytes, self.storage, self.row_bytes = packed.numel(), storage, packed.shape[1]

    @abstractmethod
    def decode(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Fill `out`, float32 `[rows, d_in]`, from uint8 `[rows, row_bytes]`; both C-contiguous."""

    def rows(self, start: int, stop: int, out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Decoded in float32, and cast from there."""
        return self.decoded(self.packed[start:stop], out)

    def taken(self, ids: Int[Tensor, " rows"], out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Decoded in float32, and cast from there."""
        return self.decoded(self.packed[ids], out)

    def decoded(self, raw: UInt8[Tensor, "rows row_bytes"], out: Float[Tensor, "room d_in"]) -> Tensor:
        """Decoded in float32, and cast from there."""
        room = out[: len(raw)]
        direct = room.dtype == torch.float32 and room.device.type == "cpu" and room.is_contiguous()
        made = room if direct else torch.empty(len(raw), self.shape[1])
        self.decode(raw.contiguous().numpy(), made.numpy())
        return room if direct else room.copy_(made)

    def raw_rows(self, rows: slice, columns: int | None = None) -> bytes:
        """Their bytes, which `columns` counts here."""
        return bytes_of(self.packed[rows, :columns])

    def to(self, device: torch.device, dtype: torch.dtype) -> StoredWeight:
        """Itself on a CPU; elsewhere decoded."""
        return self if device.type == "cpu" else DenseWeight(self.whole(dtype, device))


class ReorderedWeight(StoredWeight):
    """A matrix whose rows are stored in another order, such as the query's and the key's of llama.cpp's files."""

    def __init__(self, stored: StoredWeight, order: Int[Tensor, " d_out"]) -> None:
        """Take a matrix, and for each row of this one its number in that."""
        self._stored, self._order = stored, order
        self.shape, self.nbytes, self.storage = stored.shape, stored.nbytes, stored.storage

    def rows(self, start: int, stop: int, out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Each taken from where it is stored."""
        return self._stored.taken(self._order[start:stop], out)

    def taken(self, ids: Int[Tensor, " rows"], out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Each taken from where it is stored."""
        return self._stored.taken(self._order[ids], out)

    def raw_rows(self, rows: slice, columns: int | None = None) -> bytes:
        """In the order in which they are stored."""
        return self._stored.raw_rows(rows, columns)

    def to(self, device: torch.device, dtype: torch.dtype) -> StoredWeight:
        """Itself on a CPU; elsewhere put in order."""
        return self if device.type == "cpu" else DenseWeight(self.whole(dtype, device))


def _cast(stored: Tensor, out: Tensor) -> Tensor:
    """Stored rows themselves where they are as `out` is; else cast into its first rows."""
    if stored.dtype == out.dtype and stored.device == out.device:
        return stored
    return out[: len(stored)].copy_(stored, non_blocking=True)


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's entries in order, as bytes."""
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
