"""Matrices as bitsandbytes saves them: four bits by a table (NF4, FP4), its scales perhaps quantised again."""

import json
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from layerscope.stored.codes import CodedWeight, Rows, numbers, of_nibbles


@dataclass(frozen=True)
class QuantState:
    """What bitsandbytes says of a weight beside its codes."""

    kind: str
    """`NF4` or `FP4`."""
    shape: tuple[int, int]
    """Rows and columns of the matrix."""
    block: int
    """Entries that share a scale."""
    nested_block: int | None
    """Scales that share one; None where they are not quantised too."""
    nested_offset: float


def quant_state(state: UInt8[Tensor, " characters"]) -> QuantState:
    """Read a weight's `quant_state`, a JSON object.

    Raises:
        ValueError: it is none, or not that of a matrix whose rows are whole bytes.
    """
    about = json.loads(bytes(state.numpy()).decode())
    if not isinstance(about, dict):
        raise ValueError(f"quant_state should be a JSON object, but is {about!r}")
    shape, kind, offset = about.get("shape"), about.get("quant_type"), about.get("nested_offset", 0.0)
    if not (isinstance(shape, list) and len(shape) == 2 and all(map(_is_length, shape)) and shape[1] % 2 == 0):
        raise ValueError(f"quant_state should have the `shape` of a matrix with an even number of columns, not {shape}")
    if not isinstance(kind, str):
        raise ValueError(f"quant_state should have nf4 or fp4 under `quant_type`, but has {kind!r}")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not -1e30 < offset < 1e30:
        raise ValueError(f"quant_state should have a finite number under `nested_offset`, but has {offset!r}")
    block, nested = about.get("blocksize"), about.get("nested_blocksize")
    nested_block = None if nested is None else _length("nested_blocksize", nested)
    return QuantState(kind.upper(), (shape[0], shape[1]), _length("blocksize", block), nested_block, float(offset))


def _length(key: str, value: object) -> int:
    if isinstance(value, int) and _is_length(value):
        return value
    raise ValueError(f"quant_state should have a whole number above zero under `{key}`, but has {value!r}")


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class BitsAndBytesWeight(CodedWeight):
    """Codes of four bits, the high half of a byte first, in blocks of the matrix taken row after row."""

    def __init__(
        self,
        packed: UInt8[Tensor, "*bytes"],
        absmax: Tensor,
        values: Float[Tensor, "16"],
        state: QuantState,
        nested_absmax: Float[Tensor, " blocks"] | None = None,
        nested_values: Float[Tensor, "256"] | None = None,
    ) -> None:
        """Take the tensors as they are mapped.

        Args:
            packed: all codes.
            absmax: the largest magnitude of each block, or its code.
            values: what a code stands for (`quant_map`).
            state: shape, size of blocks, and the like.
            nested_absmax: the largest magnitude of each block of absmax, where that was quantised too.
            nested_values: what a code of absmax stands for.
        """
        d_out, d_in = state.shape
        self._packed, self._absmax = packed.reshape(d_out, d_in // 2), absmax
        self._nested = None if nested_absmax is None or nested_values is None else (nested_absmax, nested_values)
        self._block, self._offset = state.block, state.nested_offset
        self._nested_block = state.nested_block or 1
        super().__init__(
            (d_out, d_in),
            f"bitsandbytes {state.kind}",
            (packed, absmax, values, nested_absmax, nested_values),
            of_nibbles(values.float(), high_first=True),
            self._block if d_in % self._block == 0 else 1,  # else blocks go across the ends of rows
        )

    def codes(self, rows: Rows) -> Tensor:
        """Their bytes."""
        return self._packed[rows]

    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The blocks' largest magnitudes, or each entry's."""
        columns = torch.arange(0, self.shape[1], self.group)
        blocks = (numbers(rows)[:, None] * self.shape[1] + columns) // self._block
        if self._nested is None:
            return self._absmax[blocks].float()
        largest, values = self._nested
        return values[self._absmax[blocks].int()] * largest[blocks // self._nested_block] + self._offset

    def _at_once(self, kernels: ModuleType, rows: Rows, out: Float[Tensor, "rows d_in"]) -> bool:
        """From codes and those of their scales, where what these stand for is in float32."""
        nothing = torch.empty(0)
        largest, values = (nothing, nothing) if self._nested is None else self._nested
        absmax, coded = (nothing, self._absmax) if self._nested is not None else (self._absmax, _NO_CODES)
        if any(each.dtype != torch.float32 for each in (absmax, largest, values)):
            return False
        table, bits = self._as_bits(out)
        kernels.in_blocks(
            self.codes(rows).numpy(),
            table,
            bits,
            out.numpy(),
            numbers(rows).numpy(),
            self._block,
            absmax.numpy(),
            coded.numpy(),
            values.numpy(),
            largest.numpy(),
            self._nested_block,
            np.float32(self._offset),
        )
        return True


_NO_CODES = torch.empty(0, dtype=torch.uint8)
