"""Refuse vectors that are not finite before anything is made from them."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import NumericError

BLOCK_ROWS = 8192
"""Rows that are looked at together."""


def refuse_non_finite(vectors: Float[Tensor, "n d_model"], what: str) -> None:
    """Pass vectors that are all finite.

    Args:
        vectors: on any device.
        what: they are, in the plural.

    Raises:
        NumericError: one is not.
    """
    _refuse(lambda: torch.split(vectors, BLOCK_ROWS), len(vectors), what)


def refuse_non_finite_at(
    index: Int[Tensor, " n"], rows: Callable[[Tensor], Float[Tensor, "fewer d_model"]], what: str
) -> None:
    """The same of vectors at some positions, which `rows` gives a few at a time.

    Raises:
        NumericError: one is not.
    """
    _refuse(lambda: map(rows, torch.split(index, BLOCK_ROWS)), len(index), what)


def _refuse(blocks: Callable[[], Iterable[Tensor]], n: int, what: str) -> None:
    # A sum keeps every infinity and NaN, and costs one pass; only where it is not finite are vectors counted.
    if all(bool(torch.isfinite(block.sum(dtype=torch.float64))) for block in blocks()):
        return
    bad = sum(int((~block.isfinite().all(1)).sum()) for block in blocks())
    raise NumericError(
        f"All {what} should be finite, but {bad} of {n} are not; leave out the text they come from, or compute the "
        "model in a wider dtype."
    )
