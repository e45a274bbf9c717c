"""Divergences between distributions of two heads, row by row, in chunks of rows that memory has room for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.interventions.effects import decode
from layerscope.model.causal_lm import CausalLM

BITS = 1 / math.log(2)
CHUNK_BYTES = 256 << 20
"""What the distributions that are held at once may take."""
ARRAYS = 10
"""Of a row's vocabulary that are held at once."""


class Heads:
    """Both models' ends over the ids that both have."""

    def __init__(self, base: CausalLM, variant: CausalLM) -> None:
        """Take both; where one has more ids, each distribution is that over the first ones, which both have."""
        self._models = (base, variant)
        self.n_ids = min(base.d_vocab, variant.d_vocab)
        self.memory = base.placement.memory

    @property
    def all_shared(self) -> bool:
        """Whether both have as many ids."""
        return self._models[0].d_vocab == self._models[1].d_vocab

    def base(self, rows: Float[Tensor, "row d_model"]) -> "Distributions":
        """The base's logit lens on some residuals."""
        return self._read(0, rows)

    def variant(self, rows: Float[Tensor, "row d_model"]) -> "Distributions":
        """The variant's."""
        return self._read(1, rows)

    def chunks(self, n: int) -> Iterator[slice]:
        """So many rows at a time."""
        room = min(CHUNK_BYTES, self.memory // 8) // (4 * ARRAYS * self.n_ids)
        size = max(1, room)
        return (slice(start, min(start + size, n)) for start in range(0, n, size))

    def _read(self, which: int, rows: Float[Tensor, "row d_model"]) -> "Distributions":
        model = self._models[which]
        decoded = decode(rows.to(model.placement.device), model.final_norm, model.unembedding)
        if self.all_shared:
            return Distributions(decoded.linear, decoded.log_probs, decoded.probs)
        log_probs = decoded.logits[:, : self.n_ids].log_softmax(-1)
        return Distributions(decoded.linear[:, : self.n_ids], log_probs, log_probs.exp())


@dataclass(frozen=True)
class Distributions:
    """Distributions of a model's head at some rows."""

    linear: Float[Tensor, "row n_ids"]
    """Logits before the head's transform, by which ids are ranked."""
    log_probs: Float[Tensor, "row n_ids"]
    """Natural logarithms."""
    probs: Float[Tensor, "row n_ids"]

    @property
    def top1(self) -> Int[Tensor, " row"]:
        """The most likely id."""
        return self.linear.argmax(-1).cpu()

    def ranks(self, ids: Int[Tensor, "row id"]) -> Int[Tensor, " row"]:
        """In each row of that id of some which has the largest logit: 1 + number of larger ones."""
        best = self.linear.gather(-1, ids.to(self.linear.device)).amax(-1, keepdim=True)
        return (1 + (self.linear > best).sum(-1)).cpu()

    def log_probs_of(self, ids: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Natural logarithm of the probability of one id in each row."""
        return self.log_probs.gather(-1, ids.to(self.log_probs.device)[:, None])[:, 0].cpu()

    def kl_bits(self, other: "Distributions") -> Float[Tensor, " row"]:
        """KL(this || other)."""
        # Rounding may leave a little less than nothing.
        nats = (self.probs * (self.log_probs - other.log_probs)).sum(-1)
        return (nats * BITS).clamp(min=0.0).cpu()

    def js_bits(self, other: "Distributions") -> Float[Tensor, " row"]:
        """Jensen-Shannon divergence (Lin 1991), 0 to 1."""
        mean = torch.logaddexp(self.log_probs, other.log_probs) - math.log(2)
        halves = [(one.probs * (one.log_probs - mean)).sum(-1) for one in (self, other)]
        return ((halves[0] + halves[1]) / 2 * BITS).clamp(min=0.0).cpu()
