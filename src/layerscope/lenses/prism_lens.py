"""The prism lens: one standardisation and one rotation for all layers, a control against what each layer's map adds."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lenses.lens import Lens


@dataclass(frozen=True)
class PrismLens:
    """`w(g) Q^T` for a row `g` of another lens, with `w(g) = (g - mean) / sqrt(variance + eps)` feature by feature.

    In column vectors, as `Q` is named, that is `Q w(g)`. Layer n_layers is mapped like every other, so its row is not
    the model's own.
    """

    stream: Lens
    """The lens whose rows are standardised: the logit lens, unless a fit says otherwise."""
    mean: Float[Tensor, " d_model"]
    variance: Float[Tensor, " d_model"]
    eps: float
    rotation: Float[Tensor, "d_model d_model"]
    """Orthogonal, float32."""
    name: str = "prism"

    def __post_init__(self) -> None:
        """Refuse what cannot be divided by.

        Raises:
            LensError: a variance that is negative, or zero where eps is zero too.
        """
        if not bool((self.variance + self.eps > 0).all()):
            raise LensError("A variance with its eps should be positive, but one is not.")

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The standardised and rotated row, float32."""
        white = (self.stream(residual, layer).float() - self.mean) * torch.rsqrt(self.variance + self.eps)
        return white @ self.rotation.T

    def source(self, layer: int) -> str:
        """What the rotation follows: `prism after model.norm`."""
        return f"prism after {self.stream.source(layer)}"

    def to(self, device: torch.device | str) -> "PrismLens":
        """The same lens with its tensors on a device; move them once, before the first call."""
        parts = {name: getattr(self, name).to(device) for name in ("mean", "variance", "rotation")}
        return replace(self, **parts)
