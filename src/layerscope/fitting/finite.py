"""Refuse vectors that are not finite before anything is made from them."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
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
    # A sum keeps every infinity and NaN, and costs one pass; only where it is not finite are vectors counted.
    if all(bool(torch.isfinite(block.sum(dtype=torch.float64))) for block in _blocks(vectors)):
        return
    bad = sum(int((~block.isfinite().all(1)).sum()) for block in _blocks(vectors))
    raise NumericError(
        f"All {what} should be finite, but {bad} of {len(vectors)} are not; leave out the text they come from, or "
        "compute the model in a wider dtype."
    )


def _blocks(vectors: Float[Tensor, "n d_model"]) -> Iterator[Float[Tensor, "fewer d_model"]]:
    return iter(torch.split(vectors, BLOCK_ROWS)) if len(vectors) else iter(())
