"""Lenses held against each other: how well each reads, how early, and whether the model uses its directions."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.causal_shares import CausalShare, causal_share
from layerscope.analysis.handover import Handover, PatchVerdict
from layerscope.analysis.percentiles import median
from layerscope.record.prompt_key import PromptKey


@dataclass(frozen=True)
class LensInBakeoff:
    """One lens, over the layers at which the answer is carried at the last token."""

    lens: str
    kl_to_final_bits: float | None
    """Median KL(lens || model) over the answered facts and these layers."""
    top1_agreement: float | None
    """Share of these rows whose most likely token is the model's own."""
    onset: float | None
    """On top for good: the median layer over the answered facts."""
    onset_error_layers: float | None
    """That layer less the handover: negative where the lens has the answer before it is carried there."""
    onset_verdict: PatchVerdict
    share: CausalShare | None
    """None where no pair has all of its effects."""


@dataclass(frozen=True)
class Bakeoff:
    """What came of it."""

    model: str
    suite: str
    n_facts: int
    """Answered facts, on whose prompts the lenses were read."""
    handover: Handover
    layers: tuple[int, ...]
    """From the handover to the last but one: at the last every lens but the raw one is the model."""
    lenses: tuple[LensInBakeoff, ...]
    """The one whose span has most nearly the whole state's effect comes first."""


def bakeoff_of(run: AnalysedRun, handover: Handover, shares: pl.DataFrame) -> Bakeoff:
    """Sum up a run and its exchanges.

    Args:
        run: read through the lenses at its prompts' last tokens, and patched.
        handover: its own, before the output.
        shares: the columns of `layerscope.record.shares.SHARE_COLUMNS`.
    """
    assert handover.layer is not None
    layers = tuple(range(handover.layer, handover.n_layers))
    lenses = [_lens(run, handover, shares, lens, layers) for lens in run.record.protocol.lenses]
    lenses.sort(key=_distance)
    suite, counted = run.record.suite.name, run.diagnostics.answered.counted
    return Bakeoff(run.record.model.id, suite, len(counted), handover, layers, tuple(lenses))


def _distance(lens: LensInBakeoff) -> float:
    """Of the span's effect from the whole state's."""
    return float("inf") if lens.share is None else abs(lens.share.full.value - lens.share.span.value)


def _lens(
    run: AnalysedRun, handover: Handover, shares: pl.DataFrame, lens: str, layers: tuple[int, ...]
) -> LensInBakeoff:
    counted = run.diagnostics.answered.counted
    found = run.diagnostics.patching
    onset = None if found is None else found.by_lens[lens]["on_top_for_good"].layer
    error = None if onset is None or handover.layer is None else onset - handover.layer
    return LensInBakeoff(
        lens=lens,
        kl_to_final_bits=_divergence(run, lens, counted, layers),
        top1_agreement=_agreement(run, lens, counted, layers),
        onset=onset,
        onset_error_layers=error,
        onset_verdict=PatchVerdict.NOT_APPLICABLE if found is None else found.verdict_of(lens),
        share=causal_share(shares, lens, layers),
    )


def _divergence(run: AnalysedRun, lens: str, facts: Sequence[PromptKey], layers: tuple[int, ...]) -> float | None:
    curves = [curve for fact in facts if (curve := run.verdict.curves.get(fact, lens)) is not None]
    known = [curve.value("kl_to_final_bits", layer) for curve in curves for layer in layers]
    return median([bits for bits in known if bits is not None])


def _agreement(run: AnalysedRun, lens: str, facts: Sequence[PromptKey], layers: tuple[int, ...]) -> float | None:
    """A lens says what the model says where it has the answer on top, for these facts are answered."""
    curves = [curve for fact in facts if (curve := run.verdict.curves.get(fact, lens)) is not None]
    ranks = [rank for curve in curves for layer in layers if (rank := curve.value("answer_rank", layer)) is not None]
    return sum(rank == 1 for rank in ranks) / len(ranks) if ranks else None
