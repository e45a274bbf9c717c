"""Matrices of integers of four or eight bits in 32-bit words along their rows: compressed-tensors and MLX."""

from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.stored.codes import CodedWeight, Rows, as_scales, beginnings, numbers, of_bytes, of_nibbles


def integers(bits: int, less: int = 0) -> Float[Tensor, "256 floats"]:
    """What a byte stands for, that holds unsigned integers of four or eight bits, less a number."""
    return of_bytes(torch.uint8, less) if bits == 8 else of_nibbles(torch.arange(16.0) - less)


class PackQuantizedWeight(CodedWeight):
    """compressed-tensors' `pack-quantized`: `(q - zero) scale`, in groups or in columns that are numbered by group."""

    def __init__(
        self,
        packed: Int[Tensor, "d_out words"],
        scale: Float[Tensor, "d_out groups"],
        n_columns: int,
        bits: int,
        zero: Int[Tensor, "zero_words groups"] | None = None,
        group_of: Int[Tensor, " d_in"] | None = None,
    ) -> None:
        """Take the tensors as they are mapped.

        Args:
            packed: the lowest bits of a word first.
            scale: for each row and group; one column where it is the row's, one entry where it is the matrix's.
            n_columns: of the matrix.
            bits: of an integer, 4 or 8.
            zero: zero points, packed along the rows; without them the middle stands for zero.
            group_of: the group of each column, where columns were quantised in the order of their activations.
        """
        self._packed, self._zero, self._bits = packed, zero, bits
        self._scale = scale.reshape(-1, 1).expand(len(packed), -1) if scale.numel() == 1 else _columns(scale)
        self.group_of = None if group_of is None else group_of.long()
        super().__init__(
            (len(packed), n_columns),
            f"compressed-tensors int{bits}",
            (packed, scale, zero, group_of),
            integers(bits, 0 if zero is not None else 1 << (bits - 1)),
            -(-n_columns // self._scale.shape[1]),
        )
        self._first, self._values = beginnings(self.group_of), self._table[:16, 0].numpy()

    def codes(self, rows: Rows) -> Tensor:
        """The words' bytes, which come lowest first."""
        return self._packed[rows].contiguous().view(torch.uint8)

    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' scales."""
        return as_scales(self._scale[rows])

    def zeros(self, rows: Rows) -> Float[Tensor, "rows groups"] | None:
        """The groups' zero points."""
        if self._zero is None:
            return None
        at = numbers(rows) * self._bits
        words = self._zero[at // 32] >> (at % 32).int()[:, None]
        return (words & ((1 << self._bits) - 1)).float()

    def _at_once(self, kernels: ModuleType, rows: Rows, out: Float[Tensor, "rows d_in"]) -> bool:
        """Codes of four bits whose columns are numbered by group."""
        if self.group_of is None or self._bits != 4:
            return False
        codes, scale, zero = self.codes(rows), self.scales(rows).contiguous(), self.zeros(rows)
        other = torch.zeros_like(scale) if zero is None else zero.contiguous()
        kernels.in_order(codes.numpy(), self._values, out.numpy(), scale.numpy(), other.numpy(), self._first)
        return True


class MlxWeight(CodedWeight):
    """MLX's affine form: `scale q + bias`, in groups of a row."""

    def __init__(
        self,
        packed: Tensor,
        scale: Float[Tensor, "d_out groups"],
        bias: Float[Tensor, "d_out groups"],
        bits: int,
    ) -> None:
        """Take the tensors as they are mapped; `packed` is uint32 `[d_out, words]`, the lowest bits first."""
        n_columns = packed.shape[1] * 32 // bits
        self._packed, self._scale, self._bias = packed.view(torch.int32), scale, bias
        super().__init__(
            (len(packed), n_columns),
            f"MLX {bits}-bit",
            (packed, scale, bias),
            integers(bits),
            n_columns // scale.shape[1],
        )

    def codes(self, rows: Rows) -> Tensor:
        """The words' bytes, which come lowest first."""
        return self._packed[rows].contiguous().view(torch.uint8)

    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' scales."""
        return self._scale[rows].float()

    def biases(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' biases."""
        return self._bias[rows].float()


def _columns(scale: Tensor) -> Tensor:
    """Scales with an axis of groups."""
    return scale if scale.ndim == 2 else scale[:, None]
