"""Second moments of a layer's inputs and targets, gathered in float64, and the ridge regression they give."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import NumericError

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried, as shares of the median eigenvalue of the inputs' covariance."""
DAMPING = 1e-4
"""What is added to eigenvalues before a direction is whitened, on the same scale."""
FLOOR = 1e-12
"""The same as a share of the largest eigenvalue, for covariances whose median is rounding."""


class Moments:
    """Sums over pairs of an input and a target, taken about the first chunk's means so that few digits are lost."""

    def __init__(self, d_model: int, device: torch.device) -> None:
        self.count = 0
        wide = {"dtype": torch.float64, "device": device}
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums = torch.zeros(2, d_model, **wide)  # type: ignore[call-overload]
        self._xx = torch.zeros(d_model, d_model, **wide)  # type: ignore[call-overload]
        self._xy = torch.zeros(d_model, d_model, **wide)  # type: ignore[call-overload]

    def update(self, inputs: Float[Tensor, "n d_model"], targets: Float[Tensor, "n d_model"]) -> None:
        """Add pairs.

        Raises:
            NumericError: a value that is not finite.
        """
        x, y = inputs.double(), targets.double()
        if not bool(torch.isfinite(x.sum() + y.sum())):  # one pass, which keeps every infinity and NaN
            broken = int((~(torch.isfinite(x) & torch.isfinite(y)).all(-1)).sum())
            raise NumericError(
                f"The residual stream should be finite, but it is not at {broken} of {len(x)} positions; no lens can "
                "be fitted to it."
            )
        if self._shift is None:
            self._shift = (x.mean(0), y.mean(0))
        x, y = x - self._shift[0], y - self._shift[1]
        self.count += len(x)
        self._sums[0] += x.sum(0)
        self._sums[1] += y.sum(0)
        self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)

    def regression(self) -> "Regression":
        """What the moments say once all pairs are in.

        Raises:
            NumericError: no pair came.
        """
        if self._shift is None:
            raise NumericError("A regression needs at least one pair of an input and a target, but none came.")
        mean_x, mean_y = self._sums / self.count
        covariance = self._xx / self.count - torch.outer(mean_x, mean_x)
        cross = self._xy / self.count - torch.outer(mean_x, mean_y)
        values, vectors = torch.linalg.eigh(covariance)
        return Regression(
            self._shift[0] + mean_x, self._shift[1] + mean_y, values.clamp_min(0.0), vectors, vectors.T @ cross
        )


@dataclass(frozen=True)
class Regression:
    """Least squares of the targets on the inputs, in the eigenbasis of the inputs' covariance; all float64."""

    mean_x: Float[Tensor, " d_model"]
    mean_y: Float[Tensor, " d_model"]
    values: Float[Tensor, " d_model"]
    """Eigenvalues, ascending."""
    vectors: Float[Tensor, "d_model d_model"]
    """Eigenvectors, one a column."""
    rotated_cross: Float[Tensor, "d_model d_model"]
    """Covariance of inputs and targets, its rows in the eigenbasis."""

    @cached_property
    def unit(self) -> float:
        """The median eigenvalue: one huge direction, as real models have, does not move it."""
        return max(float(self.values.median()), FLOOR * float(self.values[-1]))

    def ridge(self, penalty: float) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"]]:
        """Map and bias minimising the squared error plus `penalty * unit * |A|^2` (Hoerl & Kennard 1970)."""
        scaled = self.rotated_cross / (self.values + max(penalty * self.unit, 1e-300))[:, None]
        matrix = self.vectors @ scaled
        return matrix, self.mean_y - self.mean_x @ matrix

    def whitening(self) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model d_model"]]:
        """A map that gives centred inputs unit variance in every direction but damped ones, and its inverse."""
        return damped_whitening(self.values, self.vectors, DAMPING * self.unit)


def damped_whitening(
    values: Float[Tensor, " d_model"], vectors: Float[Tensor, "d_model d_model"], damping: float
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model d_model"]]:
    """`Q (e + damping)^(-1/2)` of an eigendecomposition, and its inverse."""
    scale = (values.clamp_min(0.0) + damping + 1e-300).sqrt()
    return vectors / scale, (vectors * scale).T
