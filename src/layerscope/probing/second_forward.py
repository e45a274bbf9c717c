"""The primary prompt sent through the model once more, to see whether its numbers repeat."""

from collections.abc import Callable

import torch

from layerscope.lenses import Lens
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.encode import Encoded
from layerscope.readout.position_readout import DecodingView, by_layer, read_view
from layerscope.record.measured import RepeatabilityRecord, SecondForwardRecord
from layerscope.unembedding import HeadTransform


def second_forward(
    model: CausalLM,
    primary: Encoded,
    headline: Lens,
    lens_transform: HeadTransform | None,
    mode: str,
    repeatability: RepeatabilityRecord,
    progress: Callable[[int, int], None],
) -> SecondForwardRecord:
    """Send the primary prompt through the model once more, alone, and read it under the headline lens.

    Args:
        lens_transform: what is done to its logits; the head's own transform where None.
        mode: `always`, `off`, or `auto`: not where kernels are deterministic and a second decode of the first pass
            agreed with the first to the rank.
        repeatability: how that second decode went.
        progress: called with (blocks done, blocks to do).
    """
    if mode == "off":
        return SecondForwardRecord(mode="off")
    if mode == "auto" and torch.are_deterministic_algorithms_enabled() and not any(repeatability.rank_dev):
        return SecondForwardRecord(mode="skipped_deterministic")
    residuals = model.forward([primary.token_ids], n_logits=0, progress=progress)
    readings = read_view(
        residuals.values[0, :, -1], DecodingView(headline), primary.query.answer_ids, model.unembedding, lens_transform
    )
    return SecondForwardRecord(
        mode="always" if mode == "always" else "auto",
        answer_rank=by_layer(readings, "answer_rank"),
        p_answer=by_layer(readings, "p_answer"),
        answer_logit_gap=tuple(r.gap if r is not None and r.answer_rank == 1 else None for r in readings),
        top_ids=tuple(() if r is None else tuple(r.top_ids[:10].tolist()) for r in readings),
    )
