"""Matrices that are stored transposed, inputs first: GPTQ and AWQ."""

from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.stored.codes import CodedWeight, Rows, beginnings, numbers, of_bytes
from layerscope.stored.integers import integers


class GptqWeight(CodedWeight):
    """GPTQ: words along the inputs, so that a few outputs' words, turned round, are rows of codes."""

    def __init__(
        self,
        qweight: Int[Tensor, "words d_out"],
        qzeros: Int[Tensor, "groups zero_words"],
        scales: Float[Tensor, "groups d_out"],
        bits: int,
        group: int,
        group_of: Int[Tensor, " d_in"] | None = None,
        first_version: bool = True,
    ) -> None:
        """Take the tensors as they are mapped.

        Args:
            qweight: the lowest bits of a word first.
            qzeros: zero points, packed along the outputs.
            scales: for each group of inputs.
            bits: of an integer, 4 or 8.
            group: neighbouring inputs of a group.
            group_of: the group of each input (`g_idx`), where that is not told by its place.
            first_version: whether zero points are stored less one, as in all but `gptq_v2`.
        """
        d_out, d_in = scales.shape[1], len(qweight) * 32 // bits
        in_order = group_of is None or torch.equal(group_of.long(), torch.arange(d_in) // group)
        self.group_of = None if group_of is None or in_order else group_of.long()
        self._qweight, self._scales, self._bits, self._less = qweight, scales, bits, int(first_version)
        self._zeros = qzeros.contiguous().view(torch.uint8)
        super().__init__(
            (d_out, d_in),
            f"GPTQ int{bits}",
            (qweight, qzeros, scales, group_of),
            integers(bits),
            group,
        )
        self._first, self._values = beginnings(self.group_of), self._table[:16, 0].numpy()

    def codes(self, rows: Rows) -> Tensor:
        """The words of their columns, as bytes, which come lowest first."""
        turned = self._qweight[:, rows].T.clone(memory_format=torch.contiguous_format)  # of one word a row too
        return turned.view(torch.uint8)

    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' scales."""
        return self._scales[:, rows].T.float().contiguous()

    def zeros(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' zero points; one that was stored as -1 has turned into the largest code."""
        at, largest = numbers(rows) * self._bits, (1 << self._bits) - 1
        codes = self._zeros[:, at // 8].int() >> (at % 8).int()
        return ((codes + self._less) & largest).T.float().contiguous()

    def _at_once(self, kernels: ModuleType, rows: Rows, out: Float[Tensor, "rows d_in"]) -> bool:
        """From words; but not eight bits whose columns are numbered by group."""
        if self.group_of is not None and self._bits != 4:
            return False
        table, bits = self._as_bits(out)
        kernels.of_words_along_inputs(
            self._qweight.numpy(),
            self._zeros.numpy(),
            self._scales[:, rows].float().contiguous().numpy(),
            numbers(rows).numpy(),
            np.array([self._bits, self._less]),
            table,
            bits,
            out.numpy(),
            self.group,
            self._values,
            self._first,
        )
        return True


_AWQ_SHIFTS = 4 * torch.tensor([0, 4, 1, 5, 2, 6, 3, 7], dtype=torch.int32)
"""Where in a word the code of each of eight neighbouring outputs begins (AutoAWQ, `gemm`)."""


class AwqWeight(CodedWeight):
    """AWQ in its `gemm` form: a word holds eight outputs of one input, in an interleaved order."""

    def __init__(
        self,
        qweight: Int[Tensor, "d_in words"],
        qzeros: Int[Tensor, "groups words"],
        scales: Float[Tensor, "groups d_out"],
    ) -> None:
        """Take the tensors as they are mapped."""
        d_in = len(qweight)
        self._qweight, self._qzeros, self._scales = qweight, qzeros, scales
        super().__init__(
            (scales.shape[1], d_in),
            "AWQ int4",
            (qweight, qzeros, scales),
            of_bytes(torch.uint8),
            d_in // len(scales),
        )

    def codes(self, rows: Rows) -> Tensor:
        """A byte for each code."""
        return _of_words(self._qweight, rows)

    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' scales."""
        return self._scales[:, rows].T.float().contiguous()

    def zeros(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The groups' zero points."""
        return _of_words(self._qzeros, rows).float()

    def _at_once(self, kernels: ModuleType, rows: Rows, out: Float[Tensor, "rows d_in"]) -> bool:
        """From words."""
        kernels.of_words_along_outputs(
            self._qweight.numpy(),
            self._qzeros.numpy(),
            self._scales[:, rows].float().contiguous().numpy(),
            numbers(rows).numpy(),
            _AWQ_SHIFTS.numpy(),
            out.numpy(),
            self.group,
        )
        return True


def _of_words(words: Int[Tensor, "inputs words"], rows: Rows) -> Tensor:
    """Codes of some outputs, uint8 `[rows, inputs]`."""
    at = numbers(rows)
    found, place = torch.unique_consecutive(at // 8, return_inverse=True)
    turned = words[:, found].T.contiguous()
    return ((turned[place] >> _AWQ_SHIFTS[at % 8][:, None]) & 15).to(torch.uint8)
