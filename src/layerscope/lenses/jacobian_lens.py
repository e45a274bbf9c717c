"""The Jacobian lens: what a residual does, on average and to first order, to the model's output from here on."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.lenses.logit_lens import LogitLens
from layerscope.unembedding import Norm


@dataclass(frozen=True)
class JacobianLens:
    """`J_l h`, then the final norm with that row's own statistics; the last layer is the model itself.

    `J_l` is the mean over positions and prompts of the change of the last block's output, summed over this and all
    later counted positions, with the residual at layer l. The size of `J_l h` therefore says nothing, and the norm
    takes it away. A lens for what a state disposes the model to say somewhere later, not a calibrated read-out of the
    next token. Source: Gurnee et al., "Verbalizable Representations Form a Global Workspace in Language Models", 2026.
    """

    final_norm: Norm | None
    jacobians: tuple[Float[Tensor, "d_model d_model"] | None, ...]
    """Of layers 0 to n_layers - 1, acting on columns, float32; None where a lens fitted elsewhere has none, which is
    read as by the logit lens."""
    name: str = "jacobian"

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The row to unembed, float32 where a layer has a matrix; after the last block, the logit lens' row."""
        normed, matrix = LogitLens(self.final_norm), self._matrix(layer)
        return normed(residual if matrix is None else residual.float() @ matrix.T, layer)

    def source(self, layer: int) -> str:
        """The map and the norm behind it: `jacobian before model.norm`; the norm alone where there is no map."""
        norm = LogitLens(self.final_norm).source(layer)
        if self._matrix(layer) is None:
            return norm
        return "jacobian" if self.final_norm is None else f"jacobian before {norm}"

    def to(self, device: torch.device | str) -> "JacobianLens":
        """The same lens with its matrices on a device; move them once, before the first call."""
        return replace(self, jacobians=tuple(None if m is None else m.to(device) for m in self.jacobians))

    def _matrix(self, layer: int) -> Tensor | None:
        return None if layer == len(self.jacobians) else self.jacobians[layer]
