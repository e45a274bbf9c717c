"""Matrices of eight bits an entry: float8 and int8, with a scale per matrix, row, block or group."""

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.stored.codes import CodedWeight, Rows, as_scales, numbers, of_bytes

_USUAL_BLOCK = (128, 128)


class EightBitWeight(CodedWeight):
    """A matrix in a float or integer dtype of torch of eight bits: DeepSeek's float8, compressed-tensors' naive forms.

    Its entry is the stored number, less a zero point if there is one, times the scale.
    """

    def __init__(
        self,
        tensor: Tensor,
        scale: Tensor | None = None,
        zero: Tensor | None = None,
        block: tuple[int, int] | None = None,
        factor: float = 1.0,
        storage: str | None = None,
    ) -> None:
        """Take the tensors as they are mapped.

        Args:
            tensor: `[d_out, d_in]`.
            scale: of one entry, of `d_out`, or one for each block of `[d_out, d_in]`; None where numbers are meant as
                they are. Bytes are powers of two (MX).
            zero: as `scale`; only with groups within rows.
            block: rows and columns of a block, where they are known; else they are found from the shapes.
            factor: by which scales are multiplied.
            storage: what it is called, if not by its dtype.

        Raises:
            ValueError: the scales' shape goes with no division of the matrix.
        """
        shape = (tensor.shape[0], tensor.shape[1])
        self._tensor, self._factor = tensor, factor
        self._scale = _on_blocks(torch.ones(1) if scale is None else scale)
        self._zero = None if zero is None else _on_blocks(zero)
        self._rows, columns = _block_of(shape, (self._scale.shape[0], self._scale.shape[1]), block)
        name = storage or str(tensor.dtype).removeprefix("torch.")
        super().__init__(shape, name, (tensor, scale, zero), of_bytes(tensor.dtype), columns)

    def codes(self, rows: Rows) -> Tensor:
        """The entries' bytes."""
        return self._tensor[rows].view(torch.uint8)

    def scales(self, rows: Rows) -> Float[Tensor, "rows groups"]:
        """The scales of the rows' blocks."""
        return as_scales(self._scale[numbers(rows) // self._rows]) * self._factor

    def zeros(self, rows: Rows) -> Float[Tensor, "rows groups"] | None:
        """The zero points of the rows' blocks."""
        return None if self._zero is None else self._zero[numbers(rows) // self._rows].float()


def _on_blocks(scale: Tensor) -> Tensor:
    """Scales as `[blocks of rows, blocks of columns]`."""
    return scale if scale.ndim == 2 else scale.reshape(-1, 1)


def _block_of(shape: tuple[int, int], scales: tuple[int, int], known: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    if scales == (1, 1):
        return shape
    by_groups = [(1, shape[1] // scales[1])] if scales[1] and shape[1] % scales[1] == 0 else []
    for rows, columns in (known or _USUAL_BLOCK, *by_groups, _USUAL_BLOCK):
        if (-(-shape[0] // rows), -(-shape[1] // columns)) == scales:
            return rows, columns
    raise ValueError(
        f"scales of shape {list(scales)} beside a matrix {list(shape)} are neither one for each row, nor for groups in "
        f"rows, nor for blocks of {list(known or _USUAL_BLOCK)} (`weight_block_size`)"
    )
