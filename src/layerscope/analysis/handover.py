"""From which layer on a patch at the last position carries the answer, and what that says of a lens' milestones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.analysis.onsets import LayersOverFacts
from layerscope.analysis.percentiles import median, percentile
from layerscope.record.patches import NEXT, PAIR, RANDOM, SAME_ANSWER, SUBJECT, UNRELATED
from layerscope.record.patching import PatchingRecord

CARRIED = 0.5
"""Share of the logit difference from which a position counts as carrying the answer."""
PAIRS_FOR_A_CLAIM = 20
UNSURE_BITS = 1.0
"""By how much a patched run's entropy may exceed both its parents' before its state counts as no prompt's own."""
NO_TABLE = "the table of its patches was not given"
RESAMPLES = 2000
SEED = 316
CONTROLS = (SAME_ANSWER, UNRELATED, RANDOM)


class PatchVerdict(StrEnum):
    """What patching says of a layer at which a lens has the answer."""

    CONFIRMED = "confirmed"
    READS_AHEAD = "reads ahead"
    READS_LATE = "reads late"
    REFUTED = "refuted"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Handover:
    """Where the answer is carried, over pairs."""

    layer: int | None
    """First layer from which on the median effect at `next` is at least a half; None without pairs."""
    low: int | None
    high: int | None
    """95 % interval of that layer: percentile bootstrap over pairs; None for fewer than two pairs."""
    release: int | None
    """Last layer with a median effect of at least a half at the subject; None where there is none."""
    n_pairs: int
    n_layers: int
    n_subject_pairs: int = 0
    """Pairs that were patched at the subject; fewer, for those are the nearest neighbours of equal length alone."""

    @property
    def at_the_output(self) -> bool:
        """Whether no layer before the last carries it."""
        return self.layer == self.n_layers

    @property
    def supports_a_claim(self) -> bool:
        """Whether pairs are enough; at layer 0 the last token is the subject's own, which needs no handover."""
        return bool(self.layer) and self.n_pairs >= PAIRS_FOR_A_CLAIM

    @property
    def tolerance(self) -> float:
        """Layers by which a milestone may miss it and be confirmed."""
        return max(1.0, 0.03 * self.n_layers)


@dataclass(frozen=True)
class Effects:
    """Median effects over pairs, by layer from 0 to n_layers; None where none is known."""

    next: tuple[float | None, ...]
    """The source's residual at the prompt's last token."""
    subject: tuple[float | None, ...]
    """The source's residual at the subject's last token; empty where no pair has it at one place."""
    controls: Mapping[str, tuple[float | None, ...]]
    """At the last token: the same fact in another wording, a third fact, a random step; those that were run."""


@dataclass(frozen=True)
class LayerAgainstPatches:
    """A lens' layer, the median over facts, and what patching says of it."""

    layer: float | None
    verdict: PatchVerdict


@dataclass(frozen=True)
class Patching:
    """What patching says of a run."""

    handover: Handover
    effects: Effects
    by_lens: Mapping[str, Mapping[str, LayerAgainstPatches]]
    """By lens and milestone over facts: first on top, on top for good, clearly ahead."""
    n_unsure: int
    """Patched runs at `next` from the handover on whose entropy exceeds both parents' by more than a bit."""
    n_from_handover: int
    """How many such runs there are."""
    reason: str | None
    """Why nothing is known; None where something is."""

    def verdict_of(self, lens: str) -> PatchVerdict:
        """Of the layer from which on a lens has the answer on top for good."""
        found = self.by_lens.get(lens, {}).get("on_top_for_good")
        return PatchVerdict.NOT_APPLICABLE if found is None else found.verdict


def patching(
    record: PatchingRecord, patches: pl.DataFrame, n_layers: int, by_lens: Mapping[str, LayersOverFacts]
) -> Patching:
    """Sum up patched runs, and hold lenses against them.

    Args:
        record: which facts were paired.
        patches: what came of every patch (`layerscope.record.patches`).
        n_layers: of the model.
        by_lens: every lens' layers over the answered facts.
    """
    found = handover(patches, n_layers)
    curves = {kind: _medians(_curves(patches, kind, NEXT, n_layers)) for kind in (PAIR, *CONTROLS)}
    subject = _medians(_curves(patches, PAIR, SUBJECT, n_layers))
    controls = {kind: curves[kind] for kind in CONTROLS if curves[kind]}
    against = {lens: _against(layers, found) for lens, layers in by_lens.items()}
    n_unsure, n_from = _unsure(record, patches, found)
    reason = NO_TABLE if record.pairs and not len(patches) else record.reason
    return Patching(found, Effects(curves[PAIR], subject, controls), against, n_unsure, n_from, reason)


def handover(patches: pl.DataFrame, n_layers: int) -> Handover:
    """Find the layer at which the last token takes the answer over.

    Args:
        patches: what came of every patch.
        n_layers: of the model.
    """
    at_next = _curves(patches, PAIR, NEXT, n_layers)
    layer = _first_for_good(_medians(at_next))
    low = high = None
    if layer is not None and len(at_next) > 1:
        generator = np.random.default_rng(SEED)
        drawn = generator.integers(len(at_next), size=(RESAMPLES, len(at_next)))
        found = [_first_for_good(_medians(at_next[rows])) for rows in drawn]
        known = [n_layers if first is None else first for first in found]
        low, high = (round(percentile(known, q) or 0) for q in (0.025, 0.975))
    at_subject = _curves(patches, PAIR, SUBJECT, n_layers)
    carried = [i for i, value in enumerate(_medians(at_subject)) if value is not None and value >= CARRIED]
    return Handover(layer, low, high, carried[-1] if carried else None, len(at_next), n_layers, len(at_subject))


def patch_verdict(layer: float | None, found: Handover) -> PatchVerdict:
    """What patching says of a lens' layer.

    The last layer is the output itself: a handover there says that nothing before it carries the answer, which refutes
    any earlier layer and bears out none.
    """
    if layer is None or found.layer is None:
        return PatchVerdict.NOT_APPLICABLE
    if found.at_the_output:
        return PatchVerdict.REFUTED if layer < found.n_layers else PatchVerdict.NOT_APPLICABLE
    if abs(layer - found.layer) <= found.tolerance:
        return PatchVerdict.CONFIRMED
    return PatchVerdict.READS_LATE if layer > found.layer else PatchVerdict.READS_AHEAD


def median_effects(patches: pl.DataFrame, place: str, n_layers: int) -> tuple[float | None, ...]:
    """Of the pairs' patches at a place, by layer from 0 to n_layers; nothing without pairs."""
    return _medians(_curves(patches, PAIR, place, n_layers))


def _against(layers: LayersOverFacts, found: Handover) -> dict[str, LayerAgainstPatches]:
    three = {
        "first_on_top": layers.first_on_top.summary.median,
        "on_top_for_good": layers.on_top_for_good.summary.median,
        "clearly_ahead": layers.clearly_ahead.summary.median,
    }
    return {name: LayerAgainstPatches(layer, patch_verdict(layer, found)) for name, layer in three.items()}


def _curves(patches: pl.DataFrame, kind: str, place: str, n_layers: int) -> NDArray[np.float64]:
    """Effects by pair and layer; NaN where there is none."""
    here = patches.filter(pl.col("kind") == kind, pl.col("place") == place)
    pairs = here["pair"].unique().sort()
    curves = np.full((len(pairs), n_layers + 1), np.nan)
    rows = pairs.search_sorted(here["pair"]).to_numpy()
    curves[rows, here["layer"].to_numpy()] = here["effect"].to_numpy()
    return curves


def _medians(curves: NDArray[np.float64]) -> tuple[float | None, ...]:
    """By layer, over the pairs that have a value there; nothing without pairs."""
    if not len(curves):
        return ()
    if np.isfinite(curves).all():
        return tuple(np.median(curves, axis=0).tolist())
    return tuple(median(at_layer[np.isfinite(at_layer)].tolist()) for at_layer in curves.T)


def _first_for_good(effects: Sequence[float | None]) -> int | None:
    """The first layer from which on every effect is large enough."""
    first = None
    for layer in reversed(range(len(effects))):
        value = effects[layer]
        if value is None or not value >= CARRIED:
            break
        first = layer
    return first


def _unsure(record: PatchingRecord, patches: pl.DataFrame, found: Handover) -> tuple[int, int]:
    """Of the patched runs at `next` from the handover on, those less certain than both parents, and all."""
    if found.layer is None:
        return 0, 0
    parents = {i: max(pair.entropy_base_bits, pair.entropy_source_bits) for i, pair in enumerate(record.pairs)}
    here = patches.filter(
        pl.col("kind") == PAIR,
        pl.col("place") == NEXT,
        pl.col("layer") >= found.layer,
        pl.col("layer") < found.n_layers,
    )
    limit = pl.col("pair").replace_strict(parents, return_dtype=pl.Float64) + UNSURE_BITS
    return int(here.select((pl.col("entropy_bits") > limit).sum()).item()), len(here)
