"""What both sides of `fit.py` are measured by: held-out KL in bits at every layer. Needs no part of layerscope."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

MEASURED_ROWS = 16
"""Rows that go through model and lens at once."""


def load_model(folder: Path) -> PreTrainedModel:
    """The model in float32, without gradients."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


@torch.inference_mode()
def held_out_bits(
    model: PreTrainedModel, rows: Tensor, decoders: Mapping[str, Callable[[Tensor, int], Tensor]], first_position: int
) -> dict[str, dict[int, float]]:
    """Lens -> layer -> mean KL(model || lens) in bits over all rows and all positions from `first_position` on.

    A decoder takes the residual [row, position, d_model] at a layer 0..n_layers-1 and gives logits in float32; log-
    softmax and sums are in float64.
    """
    n_layers = model.config.num_hidden_layers
    sums = {name: [0.0] * n_layers for name in decoders}
    for batch in rows.split(MEASURED_ROWS):
        output = model(batch, output_hidden_states=True)
        log_p = output.logits[:, first_position:].double().log_softmax(-1)
        p = log_p.exp()
        for layer, state in enumerate(output.hidden_states[:-1]):
            for name, decode in decoders.items():
                log_q = decode(state[:, first_position:], layer).double().log_softmax(-1)
                sums[name][layer] += float((p * (log_p - log_q)).sum())
    count = len(rows) * (rows.shape[1] - first_position) * math.log(2)
    return {name: {layer: total / count for layer, total in enumerate(layers)} for name, layers in sums.items()}
