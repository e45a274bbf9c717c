"""Matrices of floats of four bits (E2M1) with a scale for each group of a row: MXFP4 and NVFP4."""

from types import ModuleType

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from layerscope.stored.codes import CodedWeight, Rows, as_scales, of_nibbles

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
"""OCP Microscaling Formats (MX) Specification 1.0, 5.3.3."""


class Float4Weight(CodedWeight):
    """Two E2M1 floats in a byte, the low half first, times the scale of a group and one of the matrix.

    A stack of experts (gpt-oss's `*_blocks`) is one matrix of all their rows.
    """

    def __init__(
        self,
        packed: UInt8[Tensor, "*rows bytes"],
        scale: Tensor,
        storage: str,
        multiplied_by: Float[Tensor, "*one"] | None = None,
        divided_by: Float[Tensor, "*one"] | None = None,
    ) -> None:
        """Take the tensors as they are mapped.

        Args:
            packed: `[d_out, d_in / 2]`, or of gpt-oss `[experts, rows, groups, 16]`.
            scale: `[d_out, groups]` or `[experts, rows, groups]`; float8, or bytes that are powers of two.
            storage: what it is called.
            multiplied_by: the matrix's own scale, of one entry.
            divided_by: the same the other way round.
        """
        n_groups = scale.shape[-1]
        self._scale = scale.reshape(-1, n_groups)
        self._packed = packed.reshape(len(self._scale), -1)
        self._factor = None if multiplied_by is None else multiplied_by.float().reshape(())
        self._divisor = None if divided_by is None else divided_by.float().reshape(())
        n_columns = 2 * self._packed.shape[1]
        super().__init__(
            (len(self._packed), n_columns),
            storage,
            (packed, scale, multiplied_by, divided_by),
            of_nibbles(_E2M1),
            n_columns // n_groups,
        )
        every = torch.arange(256, dtype=torch.uint8).view(scale.dtype) if scale.element_size() == 1 else None
        self._scale_of = None if every is None else self._with_own(as_scales(every))

    def codes(self, rows: Rows) -> Tensor:
        """Their bytes."""
        return self._packed[rows]

    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' scales, with the matrix's own."""
        return self._with_own(as_scales(self._scale[rows]))

    def _at_once(self, kernels: ModuleType, rows: Rows, out: Float[Tensor, "rows d_in"]) -> bool:
        """From codes and those of their scales, where these are bytes."""
        if self._scale_of is None:
            return False
        table, bits = self._as_bits(out)
        kernels.scaled_by_codes(
            self.codes(rows).numpy(),
            table,
            bits,
            out.numpy(),
            self._scale[rows].view(torch.uint8).numpy(),
            self._scale_of.numpy(),
            self.group,
        )
        return True

    def _with_own(self, scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self._factor is not None:
            return scale * self._factor
        return scale if self._divisor is None else scale / self._divisor
