"""Divergences between distributions of two heads, row by row, in chunks of rows that memory has room for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.model.causal_lm import CausalLM
from layerscope.readout.compiled import kernels
from layerscope.readout.vocabulary import KL_FLOOR_NATS

BITS = 1 / math.log(2)
ARRAYS = 12
"""Arrays of float32 beside a row's logits, as large as they are, that divergences take without compiled loops."""
ROOM_BYTES = 384 << 20
"""What the logits that are held at once may take."""


class Heads:
    """Both models' ends over the ids that both have."""

    def __init__(self, base: CausalLM, variant: CausalLM) -> None:
        """Take both; where one has more ids, each distribution is that over the first ones, which both have."""
        self._models = (base, variant)
        self.n_ids = min(base.d_vocab, variant.d_vocab)
        """How many ids both have a logit for."""
        transformed = any(not model.unembedding.transform.is_identity for model in self._models)
        arrays = (2 if transformed else 1) + (0 if self.compiled else ARRAYS)
        row = 4 * max(base.d_vocab, variant.d_vocab) * arrays
        self.rows_at_once = max(6, min(ROOM_BYTES, base.placement.memory // 4) // row)
        """Of how many residuals memory has room for the logits."""

    @property
    def compiled(self) -> bool:
        """Whether divergences are made by compiled loops, each on one thread."""
        return kernels() is not None and all(model.placement.device.type == "cpu" for model in self._models)

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

    def pairs(self, n: int) -> Iterator[slice]:
        """So many rows of both models at a time."""
        size = self.rows_at_once // 2
        return (slice(start, min(start + size, n)) for start in range(0, n, size))

    def _read(self, which: int, rows: Float[Tensor, "row d_model"]) -> "Distributions":
        model = self._models[which]
        rows = rows.to(model.placement.device)
        unembedding, norm = model.unembedding, model.final_norm
        linear = unembedding.logits(unembedding.head_input(rows if norm is None else norm(rows)))
        transform = unembedding.transform
        logits = linear if transform.is_identity else transform.apply_(linear.clone())
        return Distributions(linear[:, : self.n_ids], logits[:, : self.n_ids])


@dataclass(frozen=True)
class Distributions:
    """Distributions of a model's head at some rows."""

    linear: Float[Tensor, "row n_ids"]
    """Logits before the head's transform, by which ids are ranked."""
    logits: Float[Tensor, "row n_ids"]
    """Behind it."""

    def __getitem__(self, rows: slice) -> "Distributions":
        """Those of some of the rows."""
        return Distributions(self.linear[rows], self.logits[rows])

    def kept(self) -> "Distributions":
        """The same in memory of its own, so that what it was taken from may go."""
        linear = self.linear.clone()
        return Distributions(
            linear, linear if self.logits.data_ptr() == self.linear.data_ptr() else self.logits.clone()
        )

    @cached_property
    def log_sum_exp(self) -> Float[Tensor, " row"]:
        """Of the logits: float64, in nats."""
        loops = _loops(self.logits)
        if loops is None:
            return self.logits.double().logsumexp(-1)
        peaks = self.logits.amax(-1).double()
        sums = torch.empty_like(peaks)
        loops.masses(self.logits.numpy(), peaks.numpy(), sums.numpy())
        return peaks + sums.log()

    @property
    def top1(self) -> Int[Tensor, " row"]:
        """The most likely id."""
        return self.linear.argmax(-1).cpu()

    def ranks(self, ids: Int[Tensor, "row id"]) -> Int[Tensor, " row"]:
        """In each row of that id of some which has the largest logit: 1 + number of larger ones."""
        best = self.linear.gather(-1, ids.to(self.linear.device)).amax(-1, keepdim=True)
        return (1 + (self.linear > best).sum(-1)).cpu()

    def log_probs_of(self, ids: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Natural logarithm of the probability of one id in each row; float64."""
        logits = self.logits.gather(-1, ids.to(self.logits.device)[:, None])[:, 0].double()
        return (logits - self.log_sum_exp).cpu()

    def kl_bits(self, other: "Distributions") -> Float[Tensor, " row"]:
        """KL(this || other); float64, log-probabilities floored as everywhere (`KL_FLOOR_NATS`)."""
        loops = _loops(self.logits)
        if loops is None:
            log_p, log_q = self._log_probs, other._log_probs
            gap = log_p.clamp_min(KL_FLOOR_NATS) - log_q.clamp_min(KL_FLOOR_NATS)
            nats = (log_p.exp() * gap).sum(-1)
        else:
            nats = torch.empty_like(self.log_sum_exp)
            logits, lse = (self.logits, other.logits), (self.log_sum_exp, other.log_sum_exp)
            loops.gaps(*(of.numpy() for of in (*logits, *lse)), KL_FLOOR_NATS, nats.numpy())
        # Rounding may leave a little less than nothing.
        return (nats * BITS).clamp(min=0.0).cpu()

    def kl_and_js_bits(self, other: "Distributions") -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """The same, and the Jensen-Shannon divergence (Lin 1991), 0 to 1; float64."""
        loops = _loops(self.logits)
        if loops is None:
            log_p, log_q = self._log_probs, other._log_probs
            mean = torch.logaddexp(log_p, log_q) - math.log(2)
            twice = (log_p.exp() * (log_p - mean)).sum(-1) + (log_q.exp() * (log_q - mean)).sum(-1)
            return self.kl_bits(other), _js_bits(twice)
        sums = torch.zeros(len(self.logits), 6, dtype=torch.float64)
        logits, lse = (self.logits, other.logits), (self.log_sum_exp, other.log_sum_exp)
        places = torch.arange(len(sums))
        loops.add_pairs(*(of.numpy() for of in (*logits, *lse)), KL_FLOOR_NATS, places.numpy(), sums.numpy())
        return (sums[:, 2] * BITS).clamp(min=0.0), _js_bits(sums[:, 4])

    @property
    def _log_probs(self) -> Float[Tensor, "row n_ids"]:
        return self.logits.double() - self.log_sum_exp[:, None]


def _js_bits(twice: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """From the sum of both divergences from the mean, in nats."""
    return (0.5 * twice * BITS).clamp(0.0, 1.0).cpu()


def _loops(logits: Tensor) -> ModuleType | None:
    """Compiled loops, where there are any for that device."""
    return kernels() if logits.device.type == "cpu" else None
