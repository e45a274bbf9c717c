"""The end of a model as plain tensors: final norm, unembedding, head transform; a slice of the vocabulary at a time."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import ModelError
from layerscope.products import product
from layerscope.stored.weight import DenseWeight, StoredWeight

LOGITS_TILE_BYTES = 8 << 20
"""A piece of the weight in float32, small enough to stay in the cache between its cast and its product."""


@dataclass(frozen=True)
class Norm:
    """A normalisation of the residual stream, computed in float32 whatever the model's own dtype.

    Formulas as in Zhang & Sennrich 2019 (RMSNorm, equation 4) and Ba et al. 2016 (LayerNorm, equation 4), with the
    epsilon inside the square root.
    """

    kind: Literal["rms", "layer"]
    gain: Float[Tensor, " d_model"] | None
    """What multiplies the normalised residual; families that store the offset from one have it added already."""
    bias: Float[Tensor, " d_model"] | None
    eps: float
    source: str
    """Where the norm sits in the model, for people: `blocks[3].input_layernorm`."""

    def __call__(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The normalised residual, same shape, float32."""
        x = residual.float()
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        if self.gain is not None:
            x = x * self.gain
        return x if self.bias is None else x + self.bias

    def inverse_scale(self, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """What a residual, centred by a layer norm, is multiplied by before the gain; in the dtype given."""
        x = residual - residual.mean(-1, keepdim=True) if self.kind == "layer" else residual
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def pulled_back(self, direction: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The direction g in front of the norm for which `inverse_scale * (g . x)` is `direction . norm(x)`.

        But for `direction . bias`. Both are linear in x where the scale is held: the frozen norm of direct logit
        attribution (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits, "handling layer
        normalization").
        """
        g = direction if self.gain is None else direction * self.gain.to(direction)
        return g - g.mean(-1, keepdim=True) if self.kind == "layer" else g


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to its logits after the unembedding: `softcap * tanh(scale * z / softcap)`.

    Both parts are increasing functions, so they change probabilities and never a rank.
    """

    scale: float | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would turn ranks around.

        Raises:
            ModelError: a scale or softcap that is not positive.
        """
        for name in ("scale", "softcap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ModelError(f"The head's {name} should be a positive number, but the config says {value}.")

    @property
    def is_identity(self) -> bool:
        """Whether logits pass unchanged."""
        return self.scale in (None, 1.0) and self.softcap is None

    def apply_(self, logits: Float[Tensor, "*rows d_vocab"]) -> Float[Tensor, "*rows d_vocab"]:
        """Transform `logits` in place and return them."""
        if self.scale is not None and self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


@dataclass(frozen=True)
class Unembedding:
    """The map from a normalised residual to logits: `W_U`, its bias, and the transform the model applies after it.

    The weight stays as stored (memory-mapped, any float dtype) and is cast to float32 a slice at a time, so holding an
    `Unembedding` costs no memory.
    """

    weight: StoredWeight
    """The head's weight, one row a vocabulary id (`W_U` transposed)."""
    final_norm: Norm | None
    bias: Float[Tensor, " d_vocab"] | None = None
    transform: HeadTransform = field(default_factory=HeadTransform)
    projection: Float[Tensor, "d_head d_model"] | None = None
    """A linear map between final norm and head where a model has one (the 350M OPT); None elsewhere."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(
        cls, weight: Float[Tensor, "d_vocab d_head"], final_norm: Norm | None = None, **options: Any
    ) -> "Unembedding":
        """Of a plain matrix; `options` are the other fields."""
        return cls(DenseWeight(weight), final_norm, **options)

    @property
    def d_vocab(self) -> int:
        """How many logits the head gives, padding ids included."""
        return self.weight.shape[0]

    @property
    def d_head(self) -> int:
        """Width of a row that the head multiplies; `d_model` but for models with a projection before the head."""
        return self.weight.shape[1]

    def head_input(self, rows: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_head"]:
        """What the head multiplies: the row itself, or its projection where the model has one."""
        return rows if self.projection is None else rows @ self.projection.T

    def tile(
        self, start: int, stop: int, out: Float[Tensor, "tile d_head"] | None = None
    ) -> Float[Tensor, "ids d_head"]:
        """Rows `start..stop` of the weight in float32, in `out` where a buffer is given."""
        if out is None:
            out = torch.empty(stop - start, self.d_head, device=self.device)
        return self.weight.rows(start, stop, out)

    def columns(self, token_ids: Int[Tensor, " ids"]) -> Float[Tensor, "ids d_head"]:
        """The weight's rows of a few ids, in float32."""
        return self.weight.gather(token_ids, torch.float32, self.device)

    def reading_rows(self, token_ids: Int[Tensor, " ids"]) -> Float[Tensor, "ids d_model"]:
        """By what logits of a few ids read a vector that leaves the final norm, but for `reading_constants`; float64.

        Rows of the weight, behind the projection where there is one, times the head's scale; a softcap has no part in
        it.
        """
        device = float64_device(self.device)
        rows = (self.transform.scale or 1.0) * self.columns(token_ids).to(device).double()
        return rows if self.projection is None else rows @ self.projection.to(device).double()

    def reading_constants(self, token_ids: Int[Tensor, " ids"]) -> Float[Tensor, " ids"]:
        """What the biases of the final norm and of the head add to those logits; float64, in nats."""
        device = float64_device(self.device)
        constants = torch.zeros(len(token_ids), dtype=torch.float64, device=device)
        if self.bias is not None:
            bias = self.bias.to(device).double()
            constants += (self.transform.scale or 1.0) * bias[token_ids.to(device)]
        if self.final_norm is not None and self.final_norm.bias is not None:
            constants += self.reading_rows(token_ids) @ self.final_norm.bias.to(device).double()
        return constants

    def linear_logits(
        self, rows: Float[Tensor, "rows d_head"], token_ids: Int[Tensor, " ids"]
    ) -> Float[Tensor, "rows ids"]:
        """Logits of a few ids before the head transform, bias included."""
        logits = rows @ self.columns(token_ids).T
        return logits if self.bias is None else logits + self.bias[token_ids.to(self.bias.device)]

    def logits(self, rows: Float[Tensor, "rows d_head"]) -> Float[Tensor, "rows d_vocab"]:
        """All logits of a few rows before the head transform, bias included; for checks, not for a sweep."""
        width = max(64, LOGITS_TILE_BYTES // (4 * self.d_head))
        buffer = torch.empty(min(width, self.d_vocab), self.d_head, device=self.device)
        logits = rows.new_empty(len(rows), self.d_vocab, dtype=torch.float32)
        for start in range(0, self.d_vocab, width):
            stop = min(start + width, self.d_vocab)
            logits[:, start:stop] = product(rows.float(), self.tile(start, stop, out=buffer))
        return logits if self.bias is None else logits.add_(self.bias)


def float64_device(device: torch.device) -> torch.device:
    """Where float64 of a device is computed: on it, but for Apple's, which has none."""
    return torch.device("cpu") if device.type == "mps" else device
