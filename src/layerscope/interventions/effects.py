"""Patched runs decoded: what became of both answers, and of the whole distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.unembedding import Norm, Unembedding

BITS = 1 / math.log(2)
ROWS_BYTES = 256 << 20
"""What the logits of the rows decoded at once may take, with what is made of them."""


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


def rows_at_once(unembedding: Unembedding) -> int:
    """How many rows are decoded together: logits and probabilities, their logarithms, and two arrays of that size."""
    return max(1, ROWS_BYTES // (4 * 6 * unembedding.d_vocab))


@dataclass(frozen=True)
class Comparison:
    """Patched rows beside the runs of base and source; a column for each metric, named as in the record."""

    columns: dict[str, list[float | int | None]]

    @classmethod
    def of(
        cls,
        patched: Decoded,
        own: Decoded,
        base: Int[Tensor, " row"],
        source: Int[Tensor, " row"],
        base_answers: Int[Tensor, " row"],
        source_answers: Int[Tensor, " row"],
    ) -> "Comparison":
        """Compare row by row.

        Args:
            patched: the rows.
            own: every prompt's own run.
            base: which of them is each row's base.
            source: and which its source.
            base_answers: token of each row's base's answer.
            source_answers: and of its source's.
        """
        rows = torch.arange(len(base), device=base.device)

        def difference(logits: Tensor, of: Tensor) -> Tensor:
            return logits[of, base_answers] - logits[of, source_answers]

        ours, theirs = difference(own.linear, base), difference(own.linear, source)
        expected = _dots(patched.probs, patched.log_probs)
        # Products with every prompt's distribution, of which a row wants one: quicker than a copy of it for each row.
        of_source = (patched.probs @ own.log_probs.T)[rows, source]
        of_base = (patched.log_probs @ own.probs.T)[rows, base]
        values = {
            "effect": (difference(patched.linear, rows) - ours) / (theirs - ours),
            "logit_difference": difference(patched.logits, rows),
            "p_base_answer": patched.probs[rows, base_answers],
            "p_source_answer": patched.probs[rows, source_answers],
            # Rounding may leave a little less than nothing.
            "kl_to_source_bits": ((expected - of_source) * BITS).clamp(min=0.0),
            "kl_from_base_bits": ((_dots(own.probs, own.log_probs)[base] - of_base) * BITS).clamp(min=0.0),
            "total_variation": _distances(patched.probs, own.probs, base) / 2,
            "entropy_bits": -expected * BITS,
        }
        counts = {
            "rank_base_answer": _rank(patched.linear, base_answers),
            "rank_source_answer": _rank(patched.linear, source_answers),
            "top1_id": patched.linear.argmax(-1),
        }
        # Logits of patched runs need not be finite even where both parents' are.
        whole = patched.linear.sum(-1).isfinite().tolist()
        return cls(
            {
                name: [_finite(v) if ok else None for v, ok in zip(column.tolist(), whole, strict=True)]
                for name, column in (values | counts).items()
            }
        )


def _dots(first: Float[Tensor, "row d_vocab"], second: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    products: Tensor = torch.linalg.vecdot(first, second)
    return products


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
    return 1 + (logits > own).sum(-1)


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def concatenated(parts: Sequence[Comparison]) -> Comparison:
    """Several one behind the other."""
    names = parts[0].columns
    return Comparison({name: [v for part in parts for v in part.columns[name]] for name in names})
