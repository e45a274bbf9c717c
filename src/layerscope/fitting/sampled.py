"""A sample of the vocabulary in place of the whole, drawn anew for every step and shared by all layers.

The importance sampling of large softmax layers (Bengio & Senecal 2008), with a proposal made for a divergence: half the
model's mean probability over the text, so that what the model says is hardly ever left out, and half uniform, so that
what a lens says wrongly is found as well.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.fitting.divergence import DECODED_TOGETHER, Head, Targets

IDS = 4096
"""Ids that a step draws, with replacement."""
WORTH_SAMPLING = 4
"""The whole vocabulary is visited where it has no more than so many times the drawn ids: a step then costs less than
that many times as much, and the sample's noise is not worth it."""
PROPOSAL_ROWS = 2048
"""Positions whose mean distribution half of the ids are drawn from."""
KEPT_BYTES = 2 << 30
"""What the model's output on the drawn ids may take; steps beyond that compute it again at every layer. No budget
decides it, and either way gives the same numbers."""


@dataclass(frozen=True)
class Draw:
    """Positions and ids of one step, and what the model says there on those ids."""

    head: Head
    chosen: Int[Tensor, " batch"]
    """Places in the part that is fitted to."""
    targets: Targets


@dataclass(frozen=True)
class _Kept:
    chosen: Tensor
    ids: Tensor
    targets: Targets


class Draws:
    """The draws of a fit by step: the same at every layer, so that the model's side is computed once."""

    def __init__(
        self,
        head: Head,
        final_rows: Callable[[Int[Tensor, " n"]], Float[Tensor, "n d_model"]],
        n_fit: int,
        *,
        batch: int,
        seed: int,
        ids: int | None = None,
    ) -> None:
        """Find the proposal.

        Args:
            head: over the whole vocabulary.
            final_rows: what the model's own head multiplies at some places of the part that is fitted to.
            n_fit: how many places there are.
            batch: positions of a step.
            seed: of all draws; each step has its own generator, so that any may be drawn first.
            ids: how many are drawn; repeated ones count once. `IDS` where not given.
        """
        self._head, self._final_rows, self._n_fit = head, final_rows, n_fit
        self.batch, self._seed = min(batch, n_fit), seed
        self.ids = IDS if ids is None else ids
        some = torch.linspace(0, n_fit - 1, min(PROPOSAL_ROWS, n_fit)).long()
        mean = head.mean_probabilities(final_rows(some)).cpu()
        self.proposal = 0.5 * mean / mean.sum() + 0.5 / len(mean)
        self._kept: dict[int, _Kept] = {}

    def at(self, step: int, size: int | None = None) -> Draw:
        """The draw of a step; of its positions the first `size` where given."""
        kept = self._kept.get(step) or self._drawn(step)
        chosen, targets = kept.chosen, kept.targets
        if size is not None and size < len(chosen):
            chosen, targets = chosen[:size], targets.at(torch.arange(size, device=targets.entropy.device))
        return Draw(self._head.of_ids(kept.ids, self._inclusion(kept.ids)), chosen, targets)

    def _drawn(self, step: int) -> _Kept:
        # Hashed, so that any two 64-bit seeds differ at every step and the generator can take it.
        mixed = hashlib.sha256(f"{self._seed} {step}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
        chosen = torch.randint(self._n_fit, (self.batch,), generator=generator)
        ids = torch.unique(torch.multinomial(self.proposal, self.ids, replacement=True, generator=generator))
        head = self._head.of_ids(ids, self._inclusion(ids))
        parts = [head.targets(self._final_rows(some)) for some in torch.split(chosen, DECODED_TOGETHER)]
        drawn = _Kept(chosen, ids, Targets.joined(parts))
        size = drawn.targets.mean_unembedding.nbytes * (1 if drawn.targets.rows is None else 2)
        if (len(self._kept) + 1) * size <= KEPT_BYTES:
            self._kept[step] = drawn
        return drawn

    def _inclusion(self, ids: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """The probability that an id is among those of a step: one less that every draw misses it."""
        missed = self.ids * torch.log1p(-self.proposal[ids].double())
        return (-torch.expm1(missed)).float().to(self._head.unembedding.device)


def worth_sampling(d_vocab: int) -> bool:
    """Whether a step on drawn ids is so much cheaper than one on all that it pays."""
    return d_vocab > WORTH_SAMPLING * IDS
