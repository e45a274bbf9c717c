"""What lenses are worth at held-out positions: divergence from the model, and how often the same token is on top."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.fitting.divergence import DECODED_TOGETHER, Head
from layerscope.fitting.objective import LN2
from layerscope.fitting.session import final_rows
from layerscope.lenses.lens import Lens
from layerscope.model.causal_lm import CausalLM


@dataclass(frozen=True)
class HeldOut:
    """One lens at one layer."""

    bits: float
    """Mean KL(model || lens) in bits."""
    top1: float
    """Share of positions with the model's own first token on top."""


def measured(
    model: CausalLM,
    lenses: Sequence[Lens],
    held: Float[Tensor, "layer held d_model"],
    finals: Float[Tensor, "held d_model"],
) -> list[tuple[HeldOut, ...]]:
    """Read residuals through lenses, and hold what they say against the model.

    Args:
        model: whose head decodes.
        lenses: bound to it, on its device.
        held: residuals by layer, from 0.
        finals: those after the last block.

    Returns:
        For every layer, what each lens is worth.
    """
    head, n = Head(model.unembedding), len(finals)
    sums = torch.zeros(len(held), len(lenses), 2, dtype=torch.float64)
    for chunk in torch.split(torch.arange(n), DECODED_TOGETHER):
        rows = final_rows(model, finals[chunk])
        targets, top = head.targets(rows), head.top1(rows)
        of_all, top_of_all = targets.at(torch.arange(len(rows)).repeat(len(lenses))), top.repeat(len(lenses))
        for layer, residuals in enumerate(held):
            here = residuals[chunk].to(rows.device)
            # All lenses together, for where positions are few a visit of the vocabulary costs what its weights cost.
            decoded = torch.cat([lens(here, layer).float() for lens in lenses])
            nats = head.divergence(decoded, of_all, gradient=False).nats
            same = head.top1(decoded) == top_of_all
            sums[layer, :, 0] += nats.double().view(len(lenses), -1).sum(-1).cpu() / LN2
            sums[layer, :, 1] += same.view(len(lenses), -1).sum(-1).cpu()
    # What rounding leaves below zero is zero; what is no number is not: `max(0.0, nan)` would be 0.
    return [tuple(HeldOut(0.0 if bits < 0 else bits / n, same / n) for bits, same in layer) for layer in sums.tolist()]


def same_top(
    model: CausalLM, first: Lens, second: Lens, held: Float[Tensor, "layer held d_model"], layers: Sequence[int]
) -> list[float]:
    """At some layers the share of positions where two lenses have the same token on top.

    Args:
        model: whose head decodes.
        first: bound to it, on its device;
        second: likewise.
        held: residuals by layer, from 0.
        layers: which of them.
    """
    head, device = Head(model.unembedding), model.placement.device
    shares = []
    for layer in layers:
        n_same = 0
        for residuals in torch.split(held[layer], DECODED_TOGETHER):
            here = residuals.to(device)
            top = head.top1(torch.cat([lens(here, layer).float() for lens in (first, second)]))
            n_same += int((top[: len(here)] == top[len(here) :]).sum())
        shares.append(n_same / len(held[layer]))
    return shares
