"""Matrices as bitsandbytes saves them: four bits by a table (NF4, FP4), its scales perhaps quantised again."""

import json

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from layerscope.errors import CheckpointError
from layerscope.stored.codes import CodedWeight, Rows, numbers, of_nibbles


class BitsAndBytesWeight(CodedWeight):
    """Codes of four bits, the high half of a byte first, in blocks of the matrix taken row after row."""

    def __init__(
        self,
        packed: UInt8[Tensor, "bytes 1"],
        absmax: Tensor,
        values: Float[Tensor, "16"],
        state: UInt8[Tensor, " characters"],
        nested_absmax: Float[Tensor, " blocks"] | None = None,
        nested_values: Float[Tensor, "256"] | None = None,
    ) -> None:
        """Take the tensors as they are mapped.

        Args:
            packed: all codes.
            absmax: the largest magnitude of each block, or its code.
            values: what a code stands for (`quant_map`).
            state: a JSON object: shape, size of blocks, and the like (`quant_state`).
            nested_absmax: the largest magnitude of each block of absmax, where that was quantised too.
            nested_values: what a code of absmax stands for.

        Raises:
            CheckpointError: the state is not that of a matrix whose rows are whole bytes.
        """
        about = json.loads(bytes(state.numpy()).decode())
        if len(about["shape"]) != 2 or about["shape"][1] % 2:
            raise CheckpointError(
                f"bitsandbytes weights of shape {about['shape']} cannot be read by rows; take the unquantised model."
            )
        d_out, d_in = about["shape"]
        self._packed, self._absmax = packed.reshape(d_out, d_in // 2), absmax
        self._nested = None if nested_absmax is None or nested_values is None else (nested_absmax, nested_values)
        self._block, self._offset = int(about["blocksize"]), float(about.get("nested_offset", 0.0))
        self._nested_block = int(about.get("nested_blocksize", 1))
        super().__init__(
            (d_out, d_in),
            f"bitsandbytes {about['quant_type'].upper()}",
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
