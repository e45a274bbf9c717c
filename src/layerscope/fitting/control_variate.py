"""A chain made unbiased: a few exact rows of every prompt, drawn at random, correct what the chain has of them.

With `B` the chain's matrix of a layer, `J_p` the exact one of prompt p, and `S_p` the selection of k out of d rows,

    J = B + mean over p of (d / k) S_p (J_p - B)

has the mean of the `J_p` as its expectation, whatever `B` is. Of P prompts its squared error, relative to the squared
norm of the true mean, is `((d / k) (sigma^2 + beta^2) - beta^2) / P`, sigma being the relative spread between prompts
and beta the relative bias of `B`: rows in which a chain is nearly right cost little noise. `B` is a control variate;
with `B = 0` these would be random rows alone.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.fitting.exact_rows import Spread


@dataclass(frozen=True)
class ControlVariate:
    """A base, and which of its rows are computed exactly on which prompt."""

    base: list[Float[Tensor, "d_model d_model"]]
    """By layer, from 0."""
    features: Int[Tensor, "prompt row"]
    """Distinct output features of every prompt."""

    @classmethod
    def drawn(
        cls, base: list[Float[Tensor, "d_model d_model"]], n_prompts: int, n_rows: int, seed: int
    ) -> "ControlVariate":
        """With so many rows drawn for each of so many prompts."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(len(base[0]), generator=generator)[:n_rows] for _ in range(n_prompts)]
        return cls(base, torch.stack(drawn).sort(1).values)

    def rows(self, first: int, n: int) -> Float[Tensor, "row prompt d_model"]:
        """The directions that are to be pulled back for some prompts, each having its own."""
        return torch.eye(len(self.base[0]))[self.features[first : first + n]].transpose(0, 1)

    def correction(
        self, prompt: int, exact: Float[Tensor, "layer row d_model"]
    ) -> Float[Tensor, "layer d_model 1 d_model"]:
        """`(d / k) S_p (J_p - B)` of one prompt, in float64."""
        features, d_model = self.features[prompt], len(self.base[0])
        of_base = torch.stack([matrix[features] for matrix in self.base]).double()
        scattered = torch.zeros(len(self.base), d_model, 1, d_model, dtype=torch.float64)
        scattered[:, features, 0] = (exact - of_base) * (d_model / len(features))
        return scattered

    def corrected(self, corrections: Spread) -> list[Float[Tensor, "d_model d_model"]]:
        """The estimate, in float32."""
        return [(matrix + mean).float() for matrix, mean in zip(self.base, corrections.means, strict=True)]

    def error(self, corrections: Spread, layer: int) -> float | None:
        """Standard error of the estimate over the norm of what it estimates: that of prompts and of drawn rows.

        By how much the corrections of prompts differ, so that neither sigma nor beta need be known. The square of the
        estimate's norm is relieved of the noise in it; 1 where that leaves less than the noise. None of one prompt.
        """
        n = corrections.n
        if n < 2:
            return None
        of_mean = float(corrections.means[layer].square().sum())
        noise = max(0.0, (float(corrections.squares[layer].sum()) - n * of_mean) / (n - 1) / n)
        signal = float((self.base[layer] + corrections.means[layer]).square().sum()) - noise
        return 0.0 if noise == 0 else math.sqrt(noise / max(signal, noise))
