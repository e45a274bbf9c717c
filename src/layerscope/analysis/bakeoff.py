"""Lenses held against each other: how well each reads, how early, and whether the model uses its directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.causal_shares import CausalShare, causal_share, over
from layerscope.analysis.drawn_facts import Median
from layerscope.analysis.handover import Handover, PatchVerdict
from layerscope.analysis.percentiles import median
from layerscope.record.prompt_key import PromptKey

BANDS = 3
"""Parts into which the layers are cut that carry the answer."""


class Entrant(StrEnum):
    """How a lens comes to take part."""

    LENS = "lens"
    DERIVED = "derived"
    """Made of a fitted one; the probe was not read through it."""
    NULL = "null"
    """Made of a fitted one by shuffling what was fitted."""


class Seen(StrEnum):
    """What a lens' fit had to do with the text that it is measured on."""

    NO_FIT = "nothing was fitted"
    HELD_OUT = "held out by its fit"
    OTHER = "fitted on text of another name"
    PERHAPS = "its fit may have read it"
    UNKNOWN = "nobody says what it was fitted on"


@dataclass(frozen=True)
class TextReading:
    """One lens on held-out text."""

    bits: tuple[float | None, ...]
    """Mean KL(model || lens) by layer, 0 to n_layers; None where it is not finite."""
    top1: tuple[float, ...]
    """Share of positions with the model's own first token on top, by layer."""
    seen: Seen


@dataclass(frozen=True)
class Text:
    """What lenses are measured on beside the suite."""

    names: tuple[str, ...]
    """Of files or data sets."""
    n_positions: int
    by_lens: Mapping[str, TextReading]


@dataclass(frozen=True)
class Taker:
    """A lens that takes part."""

    lens: str
    entrant: Entrant = Entrant.LENS
    of: str | None = None
    """The fitted lens that it was made of."""


@dataclass(frozen=True)
class LensInBakeoff:
    """One lens, over the layers at which the answer is carried at the last token."""

    lens: str
    entrant: Entrant
    of: str | None
    """The fitted lens that a derived one or a null was made of."""
    text_bits: float | None
    """Mean over these layers of the mean KL(model || lens) at positions of held-out text."""
    text_top1: float | None
    """Mean over these layers of the share of those positions with the model's own first token on top."""
    text: TextReading
    """The same layer by layer."""
    kl_to_final_bits: float | None
    """Median KL(model || lens) over the answered facts and these layers; None where the probe was not read through
    it."""
    top1_agreement: float | None
    """Share of these rows whose most likely token is the model's own."""
    onset: float | None
    """On top for good: the median layer over the answered facts."""
    onset_error_layers: float | None
    """That layer less the handover: negative where the lens has the answer before it is carried there."""
    onset_verdict: PatchVerdict
    share: CausalShare | None
    """None where no pair has all of its effects."""
    by_band: tuple[CausalShare, ...]
    """The same over each of `bands` of these layers, where a pair has all effects; empty where there is one band."""
    over_shuffled: Median | None
    """The span's effect less that of the same lens with shuffled weights, pair by pair; None without one."""


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
    text: tuple[str, ...]
    """Names of the held-out text."""
    n_text_positions: int
    lenses: tuple[LensInBakeoff, ...]
    """The one whose span has most nearly the whole state's effect comes first, nulls behind all others."""


def bakeoff_of(
    run: AnalysedRun, handover: Handover, shares: pl.DataFrame, takers: Sequence[Taker], text: Text
) -> Bakeoff:
    """Sum up a run, its exchanges and a text.

    Args:
        run: read through the lenses at its prompts' last tokens, and patched.
        handover: its own, before the output.
        shares: the columns of `layerscope.record.shares.SHARE_COLUMNS`.
        takers: whose exchanges these are.
        text: what each of them is worth on it.
    """
    layers = compared_layers(handover)
    lenses = [_lens(run, handover, shares, taker, text.by_lens[taker.lens], layers) for taker in takers]
    shuffled = {taker.of: taker.lens for taker in takers if taker.entrant is Entrant.NULL}
    lenses = [
        replace(lens, over_shuffled=over(shares, lens.lens, shuffled[lens.lens], layers))
        if lens.lens in shuffled
        else lens
        for lens in lenses
    ]
    lenses.sort(key=lambda lens: (lens.entrant is Entrant.NULL, _distance(lens)))
    suite, counted = run.record.suite.name, run.diagnostics.answered.counted
    return Bakeoff(
        run.record.model.id, suite, len(counted), handover, layers, text.names, text.n_positions, tuple(lenses)
    )


def compared_layers(handover: Handover) -> tuple[int, ...]:
    """Those from the handover on, which is before the output, to the last but one."""
    assert handover.layer is not None
    return tuple(range(handover.layer, handover.n_layers))


def _distance(lens: LensInBakeoff) -> float:
    """Of the span's effect from the whole state's."""
    return float("inf") if lens.share is None else abs(lens.share.full.value - lens.share.span.value)


def _lens(
    run: AnalysedRun,
    handover: Handover,
    shares: pl.DataFrame,
    taker: Taker,
    text: TextReading,
    layers: tuple[int, ...],
) -> LensInBakeoff:
    lens, counted = taker.lens, run.diagnostics.answered.counted
    found = run.diagnostics.patching if taker.entrant is Entrant.LENS else None
    onset = None if found is None else found.by_lens[lens]["on_top_for_good"].layer
    error = None if onset is None or handover.layer is None else onset - handover.layer
    share, *of_bands = (
        causal_share(shares, lens, some, is_clear=not handover.is_unclear) for some in (layers, *bands(layers))
    )
    return LensInBakeoff(
        lens=lens,
        entrant=taker.entrant,
        of=taker.of,
        text_bits=_mean([text.bits[layer] for layer in layers]),
        text_top1=_mean([text.top1[layer] for layer in layers]),
        text=text,
        kl_to_final_bits=_divergence(run, lens, counted, layers),
        top1_agreement=_agreement(run, lens, counted, layers),
        onset=onset,
        onset_error_layers=error,
        onset_verdict=PatchVerdict.NOT_APPLICABLE if found is None else found.verdict_of(lens),
        share=share,
        by_band=tuple(of_band for of_band in of_bands if of_band is not None),
        over_shuffled=None,
    )


def bands(layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Some layers in up to `BANDS` parts of neighbours, as equal as can be, the first the largest; none of one."""
    n = min(BANDS, len(layers))
    ends = [-(-len(layers) * i // n) for i in range(n + 1)]
    return tuple(layers[start:stop] for start, stop in pairwise(ends)) if n > 1 else ()


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _divergence(run: AnalysedRun, lens: str, facts: Sequence[PromptKey], layers: tuple[int, ...]) -> float | None:
    curves = [curve for fact in facts if (curve := run.verdict.curves.get(fact, lens)) is not None]
    known = [curve.value("kl_to_final_bits", layer) for curve in curves for layer in layers]
    return median([bits for bits in known if bits is not None])


def _agreement(run: AnalysedRun, lens: str, facts: Sequence[PromptKey], layers: tuple[int, ...]) -> float | None:
    """A lens says what the model says where it has the answer on top, for these facts are answered."""
    curves = [curve for fact in facts if (curve := run.verdict.curves.get(fact, lens)) is not None]
    ranks = [rank for curve in curves for layer in layers if (rank := curve.value("answer_rank", layer)) is not None]
    return sum(rank == 1 for rank in ranks) / len(ranks) if ranks else None
