"""A stored matrix with a low-rank change on top: LoRA (Hu et al. 2021), and DoRA, which also sets rows' lengths."""

import struct

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.stored.weight import DenseWeight, StoredWeight, bytes_of


class LowRankWeight(StoredWeight):
    """`W + scale * B A`, a few rows at a time; with `lengths` each row is stretched to that length.

    Sources: Hu et al. 2021, LoRA, equation 3; Liu et al. 2024, DoRA, equation 5, whose norm is over the inputs of each
    output, as PEFT takes it.
    """

    def __init__(
        self,
        stored: StoredWeight,
        up: Float[Tensor, "d_out rank"],
        down: Float[Tensor, "rank d_in"],
        scale: float,
        lengths: Float[Tensor, " d_out"] | None = None,
    ) -> None:
        """Take a matrix and its change: `up` is LoRA's B, `down` its A.

        Raises:
            ValueError: shapes that do not go together.
        """
        if (len(up), down.shape[1]) != stored.shape or up.shape[1] != len(down):
            raise ValueError(f"a change by {list(up.shape)} and {list(down.shape)} of a matrix {list(stored.shape)}")
        if lengths is not None and lengths.shape != (len(up),):
            raise ValueError(f"lengths of shape {list(lengths.shape)} for {len(up)} rows")
        self._stored, self._up, self._down = stored, up.float(), down.float()
        self._scale, self._lengths = scale, None if lengths is None else lengths.float()
        self.shape, self.storage = stored.shape, stored.storage
        self.nbytes = stored.nbytes + 4 * (up.numel() + down.numel())

    def rows(self, start: int, stop: int, out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Made in float32, and cast from there."""
        room = torch.empty(stop - start, self.shape[1])
        return self._changed(self._stored.rows(start, stop, room), slice(start, stop), out)

    def taken(self, ids: Int[Tensor, " rows"], out: Float[Tensor, "room d_in"]) -> Float[Tensor, "rows d_in"]:
        """Made in float32, and cast from there."""
        return self._changed(self._stored.taken(ids, torch.empty(len(ids), self.shape[1])), ids, out)

    def _changed(self, rows: Tensor, which: slice | Tensor, out: Tensor) -> Tensor:
        changed = torch.addmm(rows, self._up[which], self._down, alpha=self._scale)
        if self._lengths is not None:
            changed *= (self._lengths[which] / changed.norm(dim=1))[:, None]
        return out[: len(changed)].copy_(changed)

    def raw_rows(self, rows: slice, columns: int | None = None) -> bytes:
        """Those of the matrix, and of the change."""
        lengths = b"" if self._lengths is None else bytes_of(self._lengths[rows])
        change = struct.pack("<d", self._scale) + bytes_of(self._up[rows]) + bytes_of(self._down)
        return self._stored.raw_rows(rows, columns) + change + lengths

    def to(self, device: torch.device, dtype: torch.dtype) -> StoredWeight:
        """Itself on a CPU; elsewhere put together."""
        return self if device.type == "cpu" else DenseWeight(self.whole(dtype, device))
