"""Coordinates in which every step of a translator's numbers means equally much, and a translator in them.

A step in the numbers of `x -> x + x A + c` changes the divergence as much as inputs and outputs vary in its direction.
So they are `B` in `A = T_x B T_g^T`, where `T_x` whitens the inputs (by the second moments that the closed form rests
on) and `T_g` the gradients by the output: the two Kronecker factors of K-FAC (Martens & Grosse 2015), in whose
eigenbasis Adam moves as in SOAP (Vyas et al. 2024).
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.fitting.moments import Regression, damped_whitening
from layerscope.fitting.objective import Problem
from layerscope.lenses.tuned_lens import Translator

BASIS_ROWS = 8192
"""Positions whose gradients make the coordinates of the outputs."""
GRADIENT_DAMPING = 1e-3
"""Added to the eigenvalues of the gradients' second moment, as a share of their mean: a sample knows little of the
directions in which it hardly varies, and steps along them must not be long."""


@dataclass(frozen=True)
class Basis:
    """Coordinates in which a step of equal length means equally much."""

    mean: Float[Tensor, " d_model"]
    inputs: Float[Tensor, "d_model d_model"]
    """`T_x`, from inputs to whitened ones,"""
    inputs_back: Float[Tensor, "d_model d_model"]
    """and its inverse."""
    outputs: Float[Tensor, "d_model d_model"]
    """`T_g`, from gradients by the output to whitened ones,"""
    outputs_back: Float[Tensor, "d_model d_model"]
    """and its inverse."""

    @classmethod
    def at(cls, start: Translator, problem: Problem) -> "Basis":
        """From the inputs' moments and the gradients at a translator."""
        return cls.of(problem.regression, problem.text_gradients(start, BASIS_ROWS))

    @classmethod
    def of(cls, regression: Regression, gradients: Float[Tensor, "n d_model"]) -> "Basis":
        """From the inputs' moments and a sample of gradients."""
        into, back = regression.whitening()
        moment = gradients.double().T @ gradients.double() / len(gradients)
        values, vectors = torch.linalg.eigh(moment)
        out, out_back = damped_whitening(values, vectors, GRADIENT_DAMPING * float(values.mean()))
        return cls(regression.mean_x, into, back, out, out_back)


@dataclass
class Parameters:
    """A translator in whitened coordinates: `y = x + ((x - mean) T_x B + c) T_g^T`, `B` whole, `P R`, or absent."""

    basis: Basis
    bias: Float[Tensor, " d_model"]
    whole: Float[Tensor, "d_model d_model"] | None = None
    down: Float[Tensor, "d_model rank"] | None = None
    up: Float[Tensor, "rank d_model"] | None = None
    log_temperature: float = 0.0
    _to_white: Tensor = field(init=False)
    _from_white: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Keep the two maps of every step in float32."""
        self._to_white = self.basis.inputs.float()
        self._from_white = self.basis.outputs.T.float().contiguous()
        self._mean = self.basis.mean.float()

    @classmethod
    def start(cls, basis: Basis, translator: Translator, rank: int, generator: torch.Generator) -> "Parameters":
        """At a translator; where that has a whole matrix and a product is asked for, at its nearest product.

        Nearest in the whitened coordinates (Eckart & Young 1936). Where there is no matrix, `P` is random and `R` zero,
        so that the product is zero and its gradient is not.

        Args:
            translator: with a whole matrix, a product of that rank, or a bias alone.
            rank: of the linear part: `d_model` for a whole matrix.
            generator: draws `P`; on the CPU.
        """
        d_model = len(translator.bias)
        at_mean = translator(basis.mean.float()[None])[0].double() - basis.mean
        parameters = cls(
            basis, (at_mean @ basis.outputs_back.T).float(), log_temperature=math.log(translator.temperature)
        )
        if translator.full is not None and rank:
            matrix = basis.inputs_back @ translator.full.double() @ basis.outputs_back.T
            if rank == d_model:
                parameters.whole = matrix.float()
            else:
                parameters.down, parameters.up = _nearest_product(matrix, rank)
        elif translator.down is not None and translator.up is not None and rank:
            parameters.down = (basis.inputs_back @ translator.down.double()).float()
            parameters.up = (translator.up.double() @ basis.outputs_back.T).float()
        elif rank == d_model:
            parameters.whole = torch.zeros_like(basis.inputs, dtype=torch.float32)
        elif rank:
            parameters.down, parameters.up = _random_and_zero(d_model, rank, generator, at_mean.device)
        return parameters

    def tensors(self) -> dict[str, Tensor]:
        """What Adam moves."""
        named = {"bias": self.bias, "whole": self.whole, "down": self.down, "up": self.up}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def white(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Inputs in whitened coordinates."""
        return (x - self._mean) @ self._to_white

    def output(self, x: Float[Tensor, "n d_model"], white: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """The translated rows."""
        if self.whole is not None:
            moved = white @ self.whole + self.bias
        elif self.down is not None and self.up is not None:
            moved = (white @ self.down) @ self.up + self.bias
        else:
            moved = self.bias.expand_as(x)
        return x + moved @ self._from_white

    def gradients(self, white: Float[Tensor, "n d_model"], by_output: Float[Tensor, "n d_model"]) -> dict[str, Tensor]:
        """Means over positions, for every tensor that Adam moves."""
        slope = by_output @ self._from_white.T / len(by_output)
        gradients = {"bias": slope.sum(0)}
        if self.whole is not None:
            gradients["whole"] = white.T @ slope
        if self.down is not None and self.up is not None:
            gradients["down"] = white.T @ (slope @ self.up.T)
            gradients["up"] = (white @ self.down).T @ slope
        return gradients

    def translator(self) -> Translator:
        """In plain coordinates, float32."""
        basis, temperature = self.basis, math.exp(self.log_temperature)
        bias = self.bias.double() @ basis.outputs.T
        if self.whole is not None:
            matrix = basis.inputs @ self.whole.double() @ basis.outputs.T
            return Translator((bias - basis.mean @ matrix).float(), temperature, full=matrix.float())
        if self.down is not None and self.up is not None:
            down, up = basis.inputs @ self.down.double(), self.up.double() @ basis.outputs.T
            return Translator((bias - (basis.mean @ down) @ up).float(), temperature, down=down.float(), up=up.float())
        return Translator(bias.float(), temperature)


def _nearest_product(matrix: Float[Tensor, "d_model d_model"], rank: int) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float(), (root[:, None] * right[:rank]).float()


def _random_and_zero(
    d_model: int, rank: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    down = torch.randn(d_model, rank, generator=generator) / math.sqrt(d_model)
    return down.to(device), torch.zeros(rank, d_model, device=device)
