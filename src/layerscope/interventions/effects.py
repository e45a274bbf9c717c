"""Patched runs decoded: what became of both answers, and of the whole distribution."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.unembedding import Norm, Unembedding

BITS = 1 / math.log(2)
ROWS_BYTES = 256 << 20
"""What the logits of the rows decoded at once may take, with what is made of them; each time all of the unembedding is
read, and widened where it is stored in half precision."""


@dataclass(frozen=True)
class Decoded:
    """Distributions of the model's head at some rows."""

    linear: Float[Tensor, "row d_vocab"]
    """Logits before the head's transform."""
    logits: Float[Tensor, "row d_vocab"]
    """With it."""
    log_probs: Float[Tensor, "row d_vocab"]
    """Natural logarithms."""
    probs: Float[Tensor, "row d_vocab"]

    @property
    def entropy_bits(self) -> Float[Tensor, " row"]:
        """Of every row."""
        return -_dots(self.probs, self.log_probs) * BITS

    def __getitem__(self, rows: Int[Tensor, " some"] | slice) -> "Decoded":
        """Some of the rows."""
        return Decoded(self.linear[rows], self.logits[rows], self.log_probs[rows], self.probs[rows])


def decode(rows: Float[Tensor, "row d_model"], norm: Norm | None, unembedding: Unembedding) -> Decoded:
    """Final residuals as distributions of the model's own head."""
    linear = unembedding.logits(unembedding.head_input(rows if norm is None else norm(rows)))
    logits = linear if unembedding.transform.is_identity else unembedding.transform.apply_(linear.clone())
    log_probs = logits.log_softmax(-1)
    return Decoded(linear, logits, log_probs, log_probs.exp())


def rows_at_once(unembedding: Unembedding, memory: int) -> int:
    """How many rows are decoded together: logits and probabilities, their logarithms, and two arrays of that size.

    Args:
        unembedding: of the model.
        memory: what there is in bytes, of which an eighth is taken at most.
    """
    return max(1, min(ROWS_BYTES, memory // 8) // (4 * 6 * unembedding.d_vocab))


@dataclass(frozen=True)
class Asked:
    """Of which prompts' runs a patched row is a mixture, and which two answers it is judged by."""

    base: Int[Tensor, " row"]
    """Which prompt is each row's base."""
    source: Int[Tensor, " row"]
    """And which its source."""
    base_answers: Int[Tensor, " row"]
    """Token of each row's base's answer."""
    source_answers: Int[Tensor, " row"]

    def __getitem__(self, rows: slice) -> "Asked":
        """Some of the rows."""
        return Asked(self.base[rows], self.source[rows], self.base_answers[rows], self.source_answers[rows])

    def difference(self, logits: Float[Tensor, "some d_vocab"], of: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Logit of the base's answer less the source's, for each row in the row of `logits` that `of` names."""
        return logits[of, self.base_answers] - logits[of, self.source_answers]


def compared(patched: Decoded, own: Decoded, asked: Asked) -> dict[str, Tensor]:
    """Every metric of patched rows, by its column of the table; NaN, or 0 for a rank or token, where not finite.

    Args:
        patched: the rows.
        own: every prompt's own run.
        asked: what each row is of.
    """
    rows = torch.arange(len(asked.base), device=asked.base.device)
    ours, theirs = asked.difference(own.linear, asked.base), asked.difference(own.linear, asked.source)
    negative_entropy = _dots(patched.probs, patched.log_probs)
    # Products with every prompt's distribution, of which a row wants one: quicker than a copy of it for each row.
    of_source = (patched.probs @ own.log_probs.T)[rows, asked.source]
    of_base = (patched.log_probs @ own.probs.T)[rows, asked.base]
    found = {
        "effect": (asked.difference(patched.linear, rows) - ours) / (theirs - ours),
        "logit_difference": asked.difference(patched.logits, rows),
        "p_base_answer": patched.probs[rows, asked.base_answers],
        "p_source_answer": patched.probs[rows, asked.source_answers],
        "rank_base_answer": _rank(patched.linear, asked.base_answers),
        "rank_source_answer": _rank(patched.linear, asked.source_answers),
        # Rounding may leave a little less than nothing.
        "kl_to_source_bits": ((negative_entropy - of_source) * BITS).clamp(min=0.0),
        "kl_from_base_bits": ((_dots(own.probs, own.log_probs)[asked.base] - of_base) * BITS).clamp(min=0.0),
        "total_variation": _distances(patched.probs, own.probs, asked.base) / 2,
        "entropy_bits": (-negative_entropy * BITS).clamp(min=0.0),
        "top1_id": patched.linear.argmax(-1),
    }
    # Logits of patched runs need not be finite even where both parents' are.
    whole = patched.linear.sum(-1).isfinite()
    absent = {True: math.nan, False: 0}
    return {name: torch.where(whole, values, absent[values.is_floating_point()]) for name, values in found.items()}


def _dots(first: Float[Tensor, "row d_vocab"], second: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    return (first * second).sum(-1)


def _distances(
    rows: Float[Tensor, "row d_vocab"], own: Float[Tensor, "prompt d_vocab"], base: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Sum of absolute differences from each row's base."""
    found = rows.new_empty(len(rows))
    for prompt in sorted(set(base.tolist())):
        here = (base == prompt).nonzero()[:, 0]
        found[here] = torch.cdist(rows[here], own[prompt][None], p=1.0)[:, 0]
    return found


def _rank(logits: Float[Tensor, "row d_vocab"], ids: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """1 + number of ids with a larger logit; ties share the best rank."""
    own = logits.gather(-1, ids[:, None])
    # Ones and zeros as floats, of which fewer than 2^24 are summed exactly: ten times quicker than booleans.
    larger = torch.gt(logits, own, out=torch.empty_like(logits)).sum(-1)
    return 1 + larger.long()
