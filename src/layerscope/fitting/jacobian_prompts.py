"""The prompts that Jacobians are averaged over: which are drawn, which of their positions count, what rows may take."""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from layerscope.errors import LensError
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.options import JacobianSettings
from layerscope.model.causal_lm import CausalLM

POSITIONS_RULE = (
    "mean over prompts, and over counted source positions, of the effects on the last block's output, summed over "
    "counted target positions"
)
ROWS_BYTES = 1 << 30
"""What exact rows on their way back may take, even where there is room for more."""
ROW_COPIES = 12
"""Of a row's cotangents while they pass a block, roughly: its own, and those of wider features on the way."""
FEWEST_PROMPTS = 8
"""Fewer say too little about how much prompts differ for a fit to stop by it."""


@dataclass(frozen=True)
class JacobianPrompts:
    """Sequences drawn from a text."""

    token_ids: Int[Tensor, "prompt position"]
    counted: slice
    """Positions that are counted, as sources and as targets."""

    @classmethod
    def drawn(cls, corpus: Corpus, settings: JacobianSettings, generator: torch.Generator) -> "JacobianPrompts":
        """So many as are asked for, or all, in random order: the first of them are as random as the rest.

        Raises:
            LensError: sequences too short to have a position that counts.
        """
        seq_len = corpus.fit.shape[1]
        if settings.first_position > seq_len - 2:
            raise LensError(
                f"Sequences of {seq_len} positions have none to count from position {settings.first_position} on, the "
                "last being left out; give a larger --seq-len, or a smaller --first-position."
            )
        order = torch.randperm(len(corpus.fit), generator=generator)[: settings.prompts]
        return cls(corpus.fit[order], slice(settings.first_position, seq_len - 1))

    def sha256(self, n: int) -> str:
        """Over the token ids of the first so many."""
        return hashlib.sha256(self.token_ids[:n].numpy().astype("<i8").tobytes()).hexdigest()

    def bytes_of_row(self, d_model: int) -> int:
        """What a row of one prompt takes while it passes a block."""
        return 4 * d_model * self.token_ids.shape[1] * ROW_COPIES


def refuse_coarse(model: CausalLM) -> None:
    """Refuse blocks that compute in less than float32.

    Raises:
        LensError: they do.
    """
    if model.placement.dtype != torch.float32:
        raise LensError(
            f"A Jacobian lens is fitted in float32, but the blocks compute in {model.placement.dtype_name}, whose "
            "rounding is larger than what a chain is held to; give --dtype float32."
        )


def rows_memory(memory: int) -> int:
    """Bytes of so many that rows on their way back may take."""
    return min(ROWS_BYTES, memory // 4)
