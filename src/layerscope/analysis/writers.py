"""Which attention, MLP and head wrote the answer, and whether what they wrote there is what patching finds used."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerscope.record.sublayers import SublayersRecord, WordingWritersRecord

ATTENTION, MLP = "attention", "MLP"


@dataclass(frozen=True)
class Writer:
    """One part and its mean share."""

    part: str
    """`attention`, `MLP`, or the number of a head, counted from 0."""
    layer: int
    """The layer that its block writes, from 1."""
    share: float
    """Of the answer's logit less its rival's, in nats."""
    n_positive: int
    """In how many prompts it is above zero."""


def writers(wording: WordingWritersRecord) -> list[Writer]:
    """Attention and MLP of every block, the largest share first."""
    found = [
        Writer(part, layer, share, n or 0)
        for part, of in ((ATTENTION, wording.attention), (MLP, wording.mlp))
        for layer, (share, n) in enumerate(zip(of.dla, of.n_positive, strict=True))
        if share is not None
    ]
    return sorted(found, key=lambda writer: -writer.share)


def heads(wording: WordingWritersRecord) -> list[Writer]:
    """Every head, the largest share first; none where heads are not told apart."""
    if wording.heads is None:
        return []
    found = [
        Writer(str(head), layer, share, n)
        for layer, (shares, counts) in enumerate(zip(wording.heads.dla, wording.heads.n_positive, strict=True))
        for head, (share, n) in enumerate(zip(shares, counts, strict=True))
    ]
    return sorted(found, key=lambda writer: -writer.share)


def n_answered(found: SublayersRecord, wording: WordingWritersRecord) -> int:
    """In how many prompts of a wording the answer is ahead of every other token."""
    return sum(
        prompt.logit_difference > 0
        for prompt in found.prompts
        if (prompt.prompt_id, prompt.prompt_variant) == (wording.prompt_id, wording.prompt_variant)
    )


def against_patching(shares: Sequence[float], effects: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation, over layers, of blocks' shares with what they bring in by patching.

    What block l brings in is the median effect of patching the last token's state at layer l less that at layer l - 1:
    like shares, these add up, to one.

    Args:
        shares: attention's and MLP's together of every block, from layer 1 on.
        effects: median effects of patches at the last token, by layer from 0 to n_layers.

    Returns:
        None where an effect is not known, or where nothing differs.
    """
    if len(effects) != len(shares) + 1 or any(effect is None for effect in effects):
        return None
    return spearman(np.array(shares), np.diff(np.array(effects, dtype=np.float64)))


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Pearson's correlation of the ranks, equal values having their mean rank; None where all of one are equal.

    Source: Spearman 1904, The Proof and Measurement of Association between Two Things.
    """
    a, b = (ranks - ranks.mean() for ranks in map(_ranks, (first, second)))
    size = float(np.sqrt((a @ a) * (b @ b)))
    return None if size == 0.0 else float(np.clip(a @ b / size, -1.0, 1.0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means = last - (counts - 1) / 2
    ranks: NDArray[np.float64] = means[inverse]
    return ranks
