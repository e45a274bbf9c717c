"""How far a variant of a model is from its base: at the output, at every layer, for every fact; and where from."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, sqrt
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.comparisons import mcnemar_p

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """One of the two models."""

    id: str
    storage: str
    """What its weights are stored as."""
    fingerprint: str
    """sha256 over its final norm and unembedding,"""
    blocks_fingerprint: str
    """and over a part of every tensor of its blocks."""
    adapter: str | None
    """What was applied to its weights as they were read."""


@dataclass(frozen=True)
class OutputDiff:
    """What both say at every position of some text, and which of them has the token that follows."""

    n_positions: int
    kl_mean_bits: float
    """KL(base || variant), in bits: mean over positions,"""
    kl_median_bits: float
    kl_p99_bits: float
    kl_max_bits: float
    kl_mean_standard_error: float
    """of that mean, in bits; positions are taken as independent, here as below."""
    js_mean_bits: float
    top1_agreement: float
    """Share of positions at which both have the same token on top."""
    base_perplexity: float | None
    """Of the tokens that follow; None where it is larger than a float holds, here as below."""
    variant_perplexity: float | None
    perplexity_ratio: float | None
    """The variant's perplexity over the base's."""
    perplexity_ratio_standard_error: float | None
    """By the delta method from the differences of both models' log-probabilities at the same position."""
    n_right_in_base_only: int
    """Positions at which the base alone has the token that follows on top."""
    n_right_in_variant_only: int
    mcnemar_p: float
    """Of these two counts: exact, two-sided."""


@dataclass(frozen=True)
class LayerDiff:
    """Both streams at one layer: of residuals medians over positions, of lenses means."""

    layer: int
    relative_change: float
    """Norm of the difference of both residuals over that of the base's."""
    cosine: float
    """Of both residuals."""
    injected: float | None
    """What this layer's block adds to that by itself: the variant's block applied to the base's residual, less what the
    base's block makes of it, over the latter's norm; None at layer 0."""
    inherited: float | None
    """What came with the variant's stream: the variant's residual less its block's output on the base's residual, over
    the norm of the base's."""
    injected_kl_bits: float | None
    """KL between the base's residual and that with the injected error alone, both through the base's logit lens: mean
    over positions."""
    kl_bits: float
    """KL(base || variant) of both models' own logit lens: the mean over positions."""
    js_bits: float
    """Jensen-Shannon divergence of the same: the mean over positions."""
    base_to_output_bits: float
    """KL(base's output || base's lens), the mean over positions;"""
    variant_to_output_bits: float
    """and of the variant's lens from the variant's output."""
    top1_agreement: float
    """Share of positions at which both lenses have the same token on top."""


@dataclass(frozen=True)
class ModuleDiff:
    """One linear layer of the variant in the base's block."""

    layer: int
    module: str
    """Its path in the block."""
    injected: float
    """Norm of what it changes in the block's output, over the output's own: the median over positions."""


@dataclass(frozen=True)
class FactDiff:
    """One prompt of the suite at its last token."""

    prompt: str
    fact: int | None
    """Which fact of the suite it asks for; several wordings ask for one."""
    kl_bits: float | None
    """KL(base || variant) at the output; None between two runs, which keep no whole distributions."""
    base_top1: str
    variant_top1: str
    answer: str | None
    """The token by which its answer is judged, of several accepted ones the base's best; None where none aligns."""
    base_rank: int | None
    """Of the best of its accepted answers at the output."""
    variant_rank: int | None
    base_onset: int | None
    """The layer from which on an accepted answer is on top of the base's logit lens for good; None where none is at the
    output."""
    variant_onset: int | None

    @property
    def flips(self) -> bool:
        """Whether one of the two alone answers."""
        return self.answer is not None and (self.base_rank == 1) != (self.variant_rank == 1)


@dataclass(frozen=True)
class SuiteDiff:
    """A suite through both."""

    name: str
    prompts: tuple[FactDiff, ...]

    @property
    def judged(self) -> tuple[FactDiff, ...]:
        """Prompts that have an answer."""
        return tuple(fact for fact in self.prompts if fact.answer is not None)

    @property
    def once(self) -> tuple[FactDiff, ...]:
        """Of those, every fact in the first wording that has an answer: wordings of one fact are not independent."""
        first: dict[object, FactDiff] = {}
        for i, fact in enumerate(self.judged):
            first.setdefault((i, "alone") if fact.fact is None else fact.fact, fact)
        return tuple(first.values())

    @property
    def n_answered_by_base(self) -> int:
        """Prompts whose answer the base has on top."""
        return sum(fact.base_rank == 1 for fact in self.prompts)

    @property
    def n_answered_by_variant(self) -> int:
        """The same of the variant."""
        return sum(fact.variant_rank == 1 for fact in self.prompts)

    @property
    def n_lost(self) -> int:
        """Prompts that the base alone answers."""
        return sum(fact.flips and fact.base_rank == 1 for fact in self.prompts)

    @property
    def n_won(self) -> int:
        """Prompts that the variant alone answers."""
        return sum(fact.flips and fact.variant_rank == 1 for fact in self.prompts)

    @property
    def mcnemar_p(self) -> float:
        """Exact and two-sided, of how many facts are lost and won, each in its first wording."""
        flips = [fact.base_rank == 1 for fact in self.once if fact.flips]
        return mcnemar_p(sum(flips), len(flips) - sum(flips))

    @property
    def kl_mean_bits(self) -> float | None:
        """KL(base || variant) at the prompts' last tokens; None where it is not known."""
        known = [fact.kl_bits for fact in self.prompts if fact.kl_bits is not None]
        return fmean(known) if len(known) == len(self.prompts) else None

    @property
    def onset_shifts(self) -> tuple[int, ...]:
        """By how many layers the variant's onset is later, of every prompt that both answer."""
        both = ((fact.base_onset, fact.variant_onset) for fact in self.prompts)
        return tuple(theirs - ours for ours, theirs in both if ours is not None and theirs is not None)


@dataclass(frozen=True)
class NoiseFloor:
    """The base against itself, its sequences alone in place of beside others: what rounding makes of nothing."""

    n_positions: int
    kl_mean_bits: float
    kl_max_bits: float
    relative_change: float
    """Largest median over positions, of all layers."""


@dataclass(frozen=True)
class ModelDiff:
    """A variant held against its base."""

    layerscope_version: str
    created_utc: str
    """When the comparison was made: ISO 8601, in UTC."""
    base: Compared
    variant: Compared
    text: tuple[str, ...]
    """Names of the files or data sets that were read; `passages of layerscope` where none were given."""
    output: OutputDiff
    layers: tuple[LayerDiff, ...]
    """From 0 to n_layers."""
    n_rows: int
    """Positions that the layers' figures are over."""
    modules: tuple[ModuleDiff, ...]
    """The largest first; empty where they were not asked for."""
    suite: SuiteDiff | None
    """None where no suite was asked."""
    noise: NoiseFloor | None
    """None where it was left out."""
    notes: tuple[str, ...]
    """What is to be known of the comparison, in sentences."""

    @property
    def is_identical(self) -> bool:
        """Whether nothing differs at any position that was looked at."""
        return self.output.kl_max_bits == 0.0 and all(layer.relative_change == 0.0 for layer in self.layers)

    @property
    def worst_blocks(self) -> tuple[LayerDiff, ...]:
        """Layers whose block injects most, the largest first."""
        return tuple(sorted(self.layers[1:], key=lambda layer: -(layer.injected or 0.0)))


def output_diff(
    kl_bits: Numbers,
    js_bits: Numbers,
    log_probs: tuple[Numbers, Numbers],
    top1: tuple[NDArray[np.int64], NDArray[np.int64]],
    following: NDArray[np.int64],
) -> OutputDiff:
    """Figures over positions.

    The perplexity's ratio and its error are those of llama.cpp's `--kl-divergence`: ln of the ratio is the mean
    difference of log-probabilities, and its standard error theirs over the square root of their number.

    Args:
        kl_bits: at every position.
        js_bits: likewise.
        log_probs: natural logarithms of the probability of the token that follows: the base's and the variant's.
        top1: each one's most likely token.
        following: the token that follows.
    """
    n = len(kl_bits)
    differences = log_probs[0] - log_probs[1]
    ratio, error = _exp(float(differences.mean())), _standard_error(differences)
    right = [of == following for of in top1]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    return OutputDiff(
        n_positions=n,
        kl_mean_bits=float(kl_bits.mean()),
        kl_median_bits=float(np.median(kl_bits)),
        kl_p99_bits=float(np.quantile(kl_bits, 0.99)),
        kl_max_bits=float(kl_bits.max()),
        kl_mean_standard_error=_standard_error(kl_bits),
        js_mean_bits=float(js_bits.mean()),
        top1_agreement=float((top1[0] == top1[1]).mean()),
        base_perplexity=_exp(-float(log_probs[0].mean())),
        variant_perplexity=_exp(-float(log_probs[1].mean())),
        perplexity_ratio=ratio,
        perplexity_ratio_standard_error=None if ratio is None or not isfinite(ratio * error) else ratio * error,
        n_right_in_base_only=only[0],
        n_right_in_variant_only=only[1],
        mcnemar_p=mcnemar_p(*only),
    )


def onset_for_good(ranks: Sequence[int]) -> int | None:
    """The layer from which on a rank is 1 up to the last; None where it is not 1 there."""
    lower = [layer for layer, rank in enumerate(ranks) if rank != 1]
    onset = lower[-1] + 1 if lower else 0
    return onset if onset < len(ranks) else None


def _exp(nats: float) -> float | None:
    try:
        return exp(nats)
    except OverflowError:  # of a model that gives what follows no chance at all
        return None


def _standard_error(values: Numbers) -> float:
    """Of the mean of independent values; zero of a single one."""
    return 0.0 if len(values) < 2 else float(values.std(ddof=1)) / sqrt(len(values))
