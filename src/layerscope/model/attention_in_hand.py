"""Attention written out while a model's blocks are differentiated: queries, keys, values and weights in hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from layerscope.errors import ModelError

_PLAIN = "eager"
"""Transformers' name for attention by plain products; masks are made whole for it alone."""
_OF_NO_ACCOUNT = frozenset({"position_ids", "cache_position", "position_embeddings", "cu_seq_lens_q", "cu_seq_lens_k"})
"""Tensors that attention is told and that change nothing once queries, keys and mask are made."""


@dataclass(frozen=True)
class AttentionInHand:
    """One call of attention: what it multiplied, after norms and rotary angles, and the weights that came of it."""

    module: nn.Module
    query: Float[Tensor, "sequence head position d_head"]
    key: Float[Tensor, "sequence kv_head position d_head"]
    value: Float[Tensor, "sequence kv_head position d_value"]
    weights: Float[Tensor, "sequence head position position"]
    """`A[t, s]`: of target t on source s; rows add up to one."""
    slope: Float[Tensor, "sequence head position position"]
    """By how much the score of t on s, before softmax and mask, grows with `q_t . k_s`: the scaling, less where a
    softcap bends it."""


class AttentionRecorder:
    """Takes the place of a model's attention, and keeps what it was called with while it is asked to."""

    def __init__(self) -> None:
        self.keeping = False
        self.calls: list[AttentionInHand] = []

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attention as Transformers' own plain functions have it; dropout, which no one asks for here, left out.

        Raises:
            ModelError: it is told something that would change the result.
        """
        odd = [name for name, value in others.items() if isinstance(value, Tensor) and name not in _OF_NO_ACCOUNT]
        if odd or attention_mask is None:
            what = f"with `{odd[0]}`" if odd else "without a causal mask"
            raise ModelError(f"{type(module).__name__} attends {what}, which cannot be differentiated here.")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores + attention_mask, -1, dtype=torch.float32).to(query.dtype)
        output = (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous()
        if self.keeping:
            with torch.no_grad():
                slope = torch.full_like(scores, scaling) if softcap is None else scaling * (1 - (scores / softcap) ** 2)
            self.calls.append(AttentionInHand(module, query, key, value, weights.detach(), slope))
        return output, weights


@contextmanager
def attention_in_hand(module: Any) -> Iterator[AttentionRecorder]:
    """Until the end of the `with` a Transformers model attends by plain products, which can be differentiated."""
    recorder = AttentionRecorder()
    config = module.config.get_text_config()
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[_PLAIN] = recorder.attend  # a family's own plain function is taken where none is listed
    config._attn_implementation = _PLAIN
    try:
        yield recorder
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[_PLAIN]
