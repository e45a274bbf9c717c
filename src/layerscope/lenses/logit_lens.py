"""The three lenses that need no fitting: `logit`, `next_norm` and `raw`."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from layerscope.unembedding import Norm


@dataclass(frozen=True)
class LogitLens:
    """The model's final norm at every depth, so that the last layer is the model itself.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """

    final_norm: Norm | None
    name: str = "logit"

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The residual after the final norm; the layer does not matter."""
        return residual if self.final_norm is None else self.final_norm(residual)

    def source(self, layer: int) -> str:
        """The final norm at every layer."""
        return "raw" if self.final_norm is None else self.final_norm.source


@dataclass(frozen=True)
class NextNormLens:
    """The norm through which the next block reads the stream; the final norm after the last block.

    Where the next block reads the stream without a norm (post-norm stacks) the residual is decoded as it is, and
    `source` says `raw`.
    """

    next_norms: tuple[Norm | None, ...]
    """For each layer 0..n_layers the norm that reads it, None where there is none."""
    name: str = "next_norm"

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The residual as the next reader sees it."""
        norm = self.next_norms[layer]
        return residual if norm is None else norm(residual)

    def source(self, layer: int) -> str:
        """The norm of the next block, or `raw`."""
        norm = self.next_norms[layer]
        return "raw" if norm is None else norm.source


@dataclass(frozen=True)
class RawLens:
    """The residual itself: the control that shows what a norm adds to a reading."""

    name: str = "raw"

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The residual, unchanged."""
        return residual

    def source(self, layer: int) -> str:
        """Always `raw`."""
        return "raw"
