"""Ranks of words at every layer through lenses: what searches for words are scored by."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from layerscope.lenses.derived import shuffled
from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.lens import Lens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import TunedLens
from layerscope.model.causal_lm import CausalLM

ROWS = 64
"""Rows decoded over the whole vocabulary at once."""
PASS_BYTES = 1 << 30
"""What the residuals of one pass may take."""


def with_nulls(lenses: Sequence[Lens], seed: int) -> list[Lens]:
    """Behind every fitted lens the same with its weights shuffled."""
    found: list[Lens] = []
    for lens in lenses:
        found.append(lens)
        if isinstance(lens, TunedLens | JacobianLens | PrismLens):
            found.append(shuffled(lens, seed))
    return found


def last_states(model: CausalLM, token_ids: Sequence[Sequence[int]]) -> Float[Tensor, "item layer_0_on d_model"]:
    """The states of the last token of every prompt, in as many passes as keep what they hold small."""
    longest = max(map(len, token_ids))
    of_one = 4 * (model.n_layers + 1) * longest * model.d_model
    step, parts = max(1, min(PASS_BYTES, model.placement.memory // 4) // of_one), list[Tensor]()
    for start in range(0, len(token_ids), step):
        some = token_ids[start : start + step]
        residuals = model.forward(some, n_logits=1)
        parts += [residuals.of_prompt(i)[:, -1].clone() for i in range(len(some))]
    return torch.stack(parts)


def ranks_of(
    model: CausalLM, lens: Lens, states: Float[Tensor, "item layer_0_on d_model"], words: Sequence[Sequence[int]]
) -> NDArray[np.int64]:
    """`[item, word, layer]`, layers 1 to n_layers: 1 and the ids with a larger logit than a word's best form.

    What a head does to its logits leaves their order, so ranks are taken before it.
    """
    n_items, n_layers = len(states), model.n_layers
    ranks = torch.empty(n_items, len(words), n_layers, dtype=torch.int64)
    for layer in range(1, n_layers + 1):
        for some in torch.split(torch.arange(n_items), ROWS):
            rows = model.unembedding.head_input(lens(states[some, layer].to(model.placement.device), layer).float())
            logits = model.unembedding.logits(rows)
            best = torch.stack([logits[:, list(ids)].amax(1) for ids in words], dim=1)
            ranks[some, :, layer - 1] = 1 + _above(logits, best).cpu()
    return ranks.numpy()


def _above(logits: Float[Tensor, "row d_vocab"], best: Float[Tensor, "row word"]) -> Int[Tensor, "row word"]:
    """How many logits are larger than each of some values: every logit is told between which of these it lies."""
    ordered, order = best.sort(dim=1)
    below = torch.searchsorted(ordered, logits)  # how many of the values a logit is larger than
    counts = torch.zeros(len(best), best.shape[1] + 1, dtype=torch.int64, device=logits.device)
    counts.scatter_add_(1, below, torch.ones_like(below))
    larger = counts.flip(1).cumsum(1).flip(1)[:, 1:]
    return torch.empty_like(larger).scatter_(1, order, larger)
