"""The tuned lens: an affine map and a temperature for each layer, fitted to say what the model will say."""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import LensError
from layerscope.lens_words import Placement
from layerscope.lenses.logit_lens import LogitLens
from layerscope.unembedding import Norm

Variant: TypeAlias = Literal["full", "rotation_only", "bias_only"]
"""All of a lens; without its temperatures; or with its linear parts held at their mean effect.

A bias that was fitted beside a map makes up for what the map does to the mean input, so without that part it would
decode an artefact of where zero lies.
"""


@dataclass(frozen=True)
class Translator:
    """One layer's map, `x -> x + x A + c` in float32, and the temperature that divides the row it leads to.

    `A` is a full matrix, a product of two thin ones, or absent. Vectors are rows, so maps multiply from the right.
    Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023, equation 8,
    with the identity taken out of the map, so that shrinking the parameters leads to the logit lens.
    """

    bias: Float[Tensor, " d_model"]
    """`c`."""
    temperature: float
    full: Float[Tensor, "d_model d_model"] | None = None
    """`A` itself,"""
    down: Float[Tensor, "d_model rank"] | None = None
    """or `U` of `A = U V^T`"""
    up: Float[Tensor, "rank d_model"] | None = None
    """and `V^T`."""
    mean: Float[Tensor, " d_model"] | None = None
    """Mean of what it was fitted to, about which `bias_only` takes the linear part away; None where nobody knows."""

    def __post_init__(self) -> None:
        """Refuse parts that make no map.

        Raises:
            LensError: shapes that do not fit, both forms of the linear part or half of one, a temperature that is not
                positive.
        """
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise LensError(f"A temperature should be a positive number, but it is {self.temperature}.")
        if (self.down is None) != (self.up is None) or (self.full is not None and self.down is not None):
            raise LensError("The linear part of a translator is `full`, or `down` with `up`, or absent.")
        d_model = len(self.bias)
        for name, wanted in _linear_shapes(d_model, self.rank).items():
            shape = tuple(getattr(self, name).shape)
            if shape != wanted:
                raise LensError(f"`{name}` of a translator should have shape {wanted}, but it has {shape}.")

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The mapped rows, not yet divided by the temperature."""
        if self.full is not None:
            return x + x @ self.full + self.bias
        if self.down is not None and self.up is not None:
            return x + (x @ self.down) @ self.up + self.bias
        return x + self.bias

    @property
    def rank(self) -> int:
        """Largest rank that the linear part can have: `d_model` for a full matrix, 0 where there is none."""
        if self.full is not None:
            return len(self.bias)
        return 0 if self.down is None else self.down.shape[1]

    @property
    def map_norm(self) -> float:
        """Frobenius norm of the linear part, in float64 and without making the matrix of a product."""
        if self.full is not None:
            return float(torch.linalg.vector_norm(self.full.detach(), dtype=torch.float64))
        if self.down is None or self.up is None:
            return 0.0
        down, up = self.down.detach().double(), self.up.detach().double()
        # ||U V^T||^2 = tr(V U^T U V^T), the sum of the products of two rank x rank matrices' entries.
        return math.sqrt(max(0.0, float(((down.T @ down) * (up @ up.T)).sum())))

    def to(self, device: torch.device | str) -> "Translator":
        """The same translator on a device."""
        moved = {name: part.to(device) for name, part in self.parts().items()}
        bias = moved.pop("bias")
        return Translator(bias, self.temperature, **moved)

    def parts(self) -> dict[str, Tensor]:
        """The tensors there are, by their names in a lens folder."""
        named = {"full": self.full, "down": self.down, "up": self.up, "bias": self.bias, "mean": self.mean}
        return {name: part for name, part in named.items() if part is not None}

    @classmethod
    def fresh(cls, d_model: int, rank: int, generator: torch.Generator) -> "Translator":
        """A translator that changes nothing yet, in float32 on the generator's device.

        A product starts with `U` random (standard deviation `1 / sqrt(d_model)`) and `V` zero: with both zero neither
        would ever receive a gradient.

        Args:
            rank: of the linear part: `d_model` for a full matrix, 0 for a bias alone.
            generator: draws `U`.

        Raises:
            LensError: a rank that is negative or above d_model.
        """
        if not 0 <= rank <= d_model:
            raise LensError(f"The rank of a translator is between 0 and d_model = {d_model}, but {rank} was asked for.")
        device = generator.device
        bias, mean = torch.zeros(d_model, device=device), torch.zeros(d_model, device=device)
        if rank == 0:
            return cls(bias, 1.0, mean=mean)
        if rank == d_model:
            return cls(bias, 1.0, full=torch.zeros(d_model, d_model, device=device), mean=mean)
        down = torch.randn(d_model, rank, generator=generator, device=device) / math.sqrt(d_model)
        return cls(bias, 1.0, down=down, up=torch.zeros(rank, d_model, device=device), mean=mean)


def _linear_shapes(d_model: int, rank: int) -> dict[str, tuple[int, int]]:
    if rank == 0:
        return {}
    return {"full": (d_model, d_model)} if rank == d_model else {"down": (d_model, rank), "up": (rank, d_model)}


def translator_shapes(d_model: int, rank: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a translator of that rank and their shapes, by name."""
    return {**_linear_shapes(d_model, rank), "bias": (d_model,)}


@dataclass(frozen=True)
class TunedLens:
    """A translator for every layer but the last, which is the model itself.

    With placement `raw` the residual is mapped and then normed; with `normed` what the final norm gives is mapped. The
    temperature divides the row, so that bias, scale and softcap of the head come after it. A ridge lens is the same
    with each layer's regression for a map and no temperature.
    """

    final_norm: Norm | None
    translators: tuple[Translator, ...]
    """Of layers 0 to n_layers - 1."""
    placement: Placement
    name: str = "tuned"
    variant: Variant = "full"

    def __call__(self, residual: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The row to unembed, float32 where a layer has a translator; after the last block, the logit lens' row."""
        normed = LogitLens(self.final_norm)
        if layer == len(self.translators):
            return normed(residual, layer)
        translate = self._translator(layer)
        if self.placement == "raw":
            row = normed(translate(residual.float()), layer)
        else:
            row = translate(normed(residual, layer).float())
        return row / translate.temperature

    def _translator(self, layer: int) -> Translator:
        """The translator as this variant has it."""
        whole = self.translators[layer]
        if self.variant == "rotation_only":
            return replace(whole, temperature=1.0)
        if self.variant == "bias_only":
            if whole.mean is None and whole.rank:
                raise LensError("What a linear part does on average is not known of a lens without its mean inputs.")
            shift = torch.zeros_like(whole.bias) if whole.mean is None else whole(whole.mean) - whole.mean
            return Translator(shift if whole.rank else whole.bias, whole.temperature)
        return whole

    @property
    def has_means(self) -> bool:
        """Whether the variant `bias_only` is defined."""
        return all(translator.mean is not None or not translator.rank for translator in self.translators)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """What each layer from 0 to n_layers divides its row by; 1 at the last."""
        if self.variant == "rotation_only":
            return (1.0,) * (len(self.translators) + 1)
        return (*(translator.temperature for translator in self.translators), 1.0)

    def source(self, layer: int) -> str:
        """The map and where it stands: `tuned (rank 256) before model.norm`; the final norm after the last block.

        A ridge lens says `ridge` in place of `tuned`.
        """
        norm = LogitLens(self.final_norm).source(layer)
        if layer == len(self.translators):
            return norm
        words = f"{self.name} ({self._words(layer)})"
        if self.final_norm is None:
            return words
        return f"{words} {'before' if self.placement == 'raw' else 'after'} {norm}"

    def _words(self, layer: int) -> str:
        translate = self.translators[layer]
        if self.variant == "bias_only":
            linear = "bias only"
        elif translate.full is not None:
            linear = "full rank"
        else:
            linear = f"rank {translate.rank}" if translate.rank else "bias only"
        return f"{linear}, no temperature" if self.variant == "rotation_only" else linear

    def to(self, device: torch.device | str) -> "TunedLens":
        """The same lens with its translators on a device; move them once, before the first call."""
        return replace(self, translators=tuple(translator.to(device) for translator in self.translators))
