"""What two models say at every position of some text, and what rounding alone makes of one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from layerscope.analysis.model_diff import NoiseFloor, OutputDiff, output_diff
from layerscope.diffing.divergences import Heads
from layerscope.diffing.inputs import FROM
from layerscope.diffing.streams import Part, Streams
from layerscope.model.causal_lm import CausalLM

NOISE_SEQUENCES = 2
"""How many of the sequences the base reads once more, each alone."""
Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class OutputRows:
    """Measures of every position at the output."""

    kl_bits: Numbers
    js_bits: Numbers
    base_log_prob: Numbers
    """Natural logarithm of the probability of the token that follows,"""
    variant_log_prob: Numbers
    """and in the variant."""
    base_top1_id: Ids
    variant_top1_id: Ids
    following_id: Ids

    def summary(self) -> OutputDiff:
        """Over all positions."""
        return output_diff(
            self.kl_bits,
            self.js_bits,
            (self.base_log_prob, self.variant_log_prob),
            (self.base_top1_id, self.variant_top1_id),
            self.following_id,
        )

    @classmethod
    def joined(cls, parts: Sequence["OutputRows"]) -> "OutputRows":
        """The positions of several parts, in their order."""
        return cls(**{one.name: np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)})


def output_rows(streams: Streams, heads: Heads) -> OutputRows:
    """Measures at every measured position of these sequences."""
    return OutputRows.joined([_of(streams, heads, chunk) for chunk in heads.pairs(len(streams.following))])


def _of(streams: Streams, heads: Heads, chunk: slice) -> OutputRows:
    base, variant = heads.base(streams.base_final[chunk]), heads.variant(streams.variant_final[chunk])
    following = streams.following[chunk]
    kl, js = base.kl_and_js_bits(variant)
    return OutputRows(
        kl_bits=kl.numpy(),
        js_bits=js.numpy(),
        base_log_prob=base.log_probs_of(following).numpy(),
        variant_log_prob=variant.log_probs_of(following).numpy(),
        base_top1_id=base.top1.numpy(),
        variant_top1_id=variant.top1.numpy(),
        following_id=following.numpy(),
    )


@dataclass(frozen=True)
class Noise:
    """The base at some positions against itself in another batch."""

    kl_bits: Numbers
    relative_change: NDArray[np.float64]
    """By layer and position: [layer, position]."""

    @classmethod
    def floor(cls, parts: Sequence["Noise"]) -> NoiseFloor:
        """Over all positions of some sequences."""
        kl = np.concatenate([part.kl_bits for part in parts])
        change = np.concatenate([part.relative_change for part in parts], axis=1)
        largest = float(np.median(change, axis=1).max()) if change.size else 0.0
        return NoiseFloor(len(kl), float(kl.mean()), float(kl.max()), largest)


def noise_of(base: CausalLM, streams: Streams, heads: Heads) -> list[Noise]:
    """The base once more over the first sequences of all, if these are here: each alone, or twice if it was alone."""
    part = streams.part
    copies = 1 if len(part.texts) > 1 else 2
    wanted = [text for text in part.sequences if text < NOISE_SEQUENCES]
    return [_noise_at(base, streams, heads, part, text, copies) for text in wanted]


def _noise_at(base: CausalLM, streams: Streams, heads: Heads, part: Part, text: int, copies: int) -> Noise:
    ids = part.found.sequences[text].tolist()
    n, i = len(ids) - 1 - FROM, text - part.texts.start
    again = base.forward([ids] * copies, n_logits=0).of_prompt(0).cpu()
    final = again[-1, FROM : FROM + n]
    beside = streams.base_final[i * n : (i + 1) * n]
    kl = [heads.base(beside[chunk]).kl_bits(heads.base(final[chunk])) for chunk in heads.pairs(n)]
    looked_at = [(k, part.found.rows[row].position) for k, row in enumerate(part.rows)]
    at = [(k, position) for k, position in looked_at if part.found.rows[part.rows[k]].text == text]
    rows, positions = [k for k, _ in at], [position for _, position in at]
    kept = streams.base[:, rows]
    change = (again[:, positions] - kept).norm(dim=-1) / kept.norm(dim=-1)
    return Noise(torch.cat(kl).numpy(), change.double().numpy())
