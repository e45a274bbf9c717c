"""Matrices of low-precision codes with scales beside them: what the storages of safetensors checkpoints share."""

from abc import abstractmethod
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from layerscope.compiling import loops
from layerscope.stored.weight import DenseWeight, StoredWeight, bytes_of

Rows = slice | Tensor
"""Some rows: a range from a start to a stop, or their numbers."""


class CodedWeight(StoredWeight):
    """A matrix whose entry is `(code - zero) scale + bias`, the last three of a group of neighbours in a row.

    All is computed in float32, whatever the dtype of the scales. Codes are bytes that a table turns into one float or,
    where they are of four bits, into two.
    """

    group: int
    """Neighbours in a row that share a scale; 1 where scales are given entry by entry."""
    group_of: Int[Tensor, " d_in"] | None = None
    """The group of each column, where groups are not of neighbours."""

    def __init__(
        self,
        shape: tuple[int, int],
        storage: str,
        tensors: Sequence[Tensor | None],
        table: Float[Tensor, "256 floats"],
        group: int,
    ) -> None:
        """Say what it is called, which tensors it is made of, and what a byte stands for."""
        self.shape, self.storage, self.group = shape, storage, group
        self.nbytes = sum(t.numel() * t.element_size() for t in tensors if t is not None)
        self._table = table.contiguous()

    @abstractmethod
    def codes(self, rows: Rows) -> UInt8[Tensor, "rows bytes"]:
        """The bytes of some rows; what is beyond the last column is ignored."""

    @abstractmethod
    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """Their scales in float32; the last group of a row may be short."""

    def zeros(self, rows: Rows) -> Float[Tensor, "rows groups"] | None:
        """The codes that stand for zero, in float32; None where that is zero, or where there is a bias."""
        return None

    def biases(self, rows: Rows) -> Float[Tensor, "rows groups"] | None:
        """What is added after scaling, in float32; None where nothing is."""
        return None

    def rows(self, start: int, stop: int, out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Decoded in float32, and cast from there."""
        return self._made(slice(start, stop), out[: stop - start])

    def taken(self, ids: Int[Tensor, " rows"], out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Decoded in float32, and cast from there."""
        return self._made(ids.cpu(), out[: len(ids)])

    def raw_rows(self, rows: slice, columns: int | None = None) -> bytes:
        """Their codes, of which `columns` counts the bytes, and what they are scaled and moved by."""
        ids = torch.arange(*rows.indices(len(self)))
        beside = (self.scales(ids), self.zeros(ids), self.biases(ids))
        codes = bytes_of(self.codes(ids)[:, :columns])
        return codes + b"".join(bytes_of(values) for values in beside if values is not None)

    def to(self, device: torch.device, dtype: torch.dtype) -> StoredWeight:
        """Itself on a CPU; elsewhere decoded."""
        return self if device.type == "cpu" else DenseWeight(self.whole(dtype, device))

    def _made(self, rows: Rows, room: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        direct = room.dtype == torch.float32 and room.device.type == "cpu" and room.is_contiguous()
        made = room if direct else torch.empty(room.shape)
        self._decode(rows, made)
        return room if direct else room.copy_(made)

    def _decode(self, rows: Rows, out: Float[Tensor, "rows d_in"]) -> None:
        kernels = loops("layerscope.stored.code_kernels")
        if kernels is None or not (self._at_once(kernels, rows, out) or self._by_table(kernels, rows, out)):
            scale, zero, bias = self.scales(rows), self.zeros(rows), self.biases(rows)
            out.copy_(self._table[self.codes(rows).int()].flatten(1)[:, : self.shape[1]])
            self._scaled(out, scale, zero, bias)

    def _at_once(self, kernels: ModuleType, rows: Rows, out: Float[Tensor, "rows d_in"]) -> bool:
        """Decode from what is stored by one loop of this form's own; False where it has none for what came."""
        return False

    def _by_table(self, kernels: ModuleType, rows: Rows, out: Float[Tensor, "rows d_in"]) -> bool:
        """Decode codes and scales by the loops that all forms share; False where rows are no whole number of bytes."""
        codes, floats = self.codes(rows), self._table.shape[1]
        if codes.shape[1] * floats != self.shape[1]:
            return False
        scale, zero, bias = self.scales(rows), self.zeros(rows), self.biases(rows)
        table, bits = self._as_bits(out)
        if (
            self.group_of is None
            and self.group > 1
            and scale.shape[1] * self.group == self.shape[1]
            and self.group % floats == 0
        ):
            other = bias if bias is not None else torch.zeros_like(scale) if zero is None else zero
            (kernels.centred if bias is None else kernels.scaled)(
                codes.reshape(scale.numel(), -1).numpy(),
                table,
                bits.reshape(scale.numel(), -1),
                out.view(scale.numel(), -1).numpy(),
                scale.flatten().numpy(),
                other.flatten().numpy(),
            )
            return True
        kernels.look_up(codes.contiguous().numpy(), table, bits)
        if self.group_of is not None and bias is None:
            other = torch.zeros_like(scale) if zero is None else zero
            kernels.by_column(out.numpy(), scale.numpy(), other.numpy(), self.group_of.numpy())
        else:
            self._scaled(out, scale, zero, bias)
        return True

    def _as_bits(self, out: Float[Tensor, "rows d_in"]) -> tuple[np.ndarray, np.ndarray]:
        """The table, and the memory of floats, as integers of the width that a byte stands for."""
        kind = torch.int64 if self._table.shape[1] == 2 else torch.int32
        return self._table.view(kind).flatten().numpy(), out.view(kind).numpy()

    def _scaled(
        self,
        out: Float[Tensor, "rows d_in"],
        scale: Float[Tensor, "rows groups"],
        zero: Float[Tensor, "rows groups"] | None,
        bias: Float[Tensor, "rows groups"] | None,
    ) -> None:
        """What codes stand for, scaled in place."""
        if zero is not None:
            out -= self._spread(zero)
        out *= self._spread(scale)
        if bias is not None:
            out += self._spread(bias)

    def _spread(self, values: Float[Tensor, "rows groups"]) -> Float[Tensor, "rows d_in"]:
        """A value for each entry."""
        if self.group_of is not None:
            return values[:, self.group_of]
        return values.repeat_interleave(self.group, 1)[:, : self.shape[1]] if self.group > 1 else values


def numbers(rows: Rows) -> Int[Tensor, " rows"]:
    """The rows' numbers."""
    return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def of_bytes(dtype: torch.dtype, less: int = 0) -> Float[Tensor, "256 1"]:
    """What each byte stands for in a dtype of eight bits, less a number."""
    return (torch.arange(256, dtype=torch.uint8).view(dtype).float() - less)[:, None]


def of_nibbles(values: Float[Tensor, "16"], high_first: bool = False) -> Float[Tensor, "256 2"]:
    """What the two halves of each byte stand for, the low half first unless said otherwise."""
    byte = torch.arange(256)
    low, high = values[byte & 15], values[byte >> 4]
    return torch.stack([high, low] if high_first else [low, high], 1)


def as_scales(stored: Tensor) -> Float[Tensor, "*shape"]:
    """Scales in float32; bytes among them are powers of two, 127 for 1 (E8M0)."""
    return (stored.view(torch.float8_e8m0fnu) if stored.dtype == torch.uint8 else stored).float()


def beginnings(group_of: Int[Tensor, " d_in"] | None) -> np.ndarray:
    """Where each column's group begins in a list of what 16 codes stand for, group by group; empty without groups."""
    return np.empty(0, np.uint32) if group_of is None else (16 * group_of).numpy().astype(np.uint32)
