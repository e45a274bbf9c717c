"""What every lens offers: a name, and `lens(residual, layer)` giving the row to unembed."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Lens(Protocol):
    """Bound once to a model's norms, then called with a residual and its layer alone."""

    @property
    def name(self) -> str:
        """The lens' name in rows and on the command line."""
        ...

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The row to unembed, for a residual after `layer` blocks (0 = embedding output, n_layers = last)."""
        ...

    def source(self, layer: int) -> str:
        """Which norm or map was applied at that layer, for the record."""
        ...


LENS_NAMES = ("logit", "next_norm", "raw")
"""Lenses that need no fitting."""
