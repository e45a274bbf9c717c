"""From which layer on a patch at the last position carries the answer, and what that says of a lens' milestone."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from layerscope.analysis.percentiles import median, percentile
from layerscope.record.patching import PatchedPairRecord, PatchingRecord

CARRIED = 0.5
"""Share of the logit difference from which a position counts as carrying the answer."""
PAIRS_FOR_A_CLAIM = 20
RESAMPLES = 2000
SEED = 316


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

    @property
    def at_the_output(self) -> bool:
        """Whether no layer before the last carries it."""
        return self.layer == self.n_layers

    @property
    def tolerance(self) -> float:
        """Layers by which a milestone may miss it and be confirmed."""
        return max(1.0, 0.03 * self.n_layers)


def handover(record: PatchingRecord, n_layers: int) -> Handover:
    """Find it.

    Args:
        record: the patched pairs.
        n_layers: of the model.
    """
    at_next = _effects(record.pairs, "next")
    at_subject = _effects(record.pairs, "subject")
    layer = _first_for_good(_medians(at_next))
    low = high = None
    if layer is not None and len(at_next) > 1:
        generator = np.random.default_rng(SEED)
        drawn = generator.integers(len(at_next), size=(RESAMPLES, len(at_next)))
        values = np.array([[np.nan if v is None else v for v in curve] for curve in at_next])
        found = [_first_for_good(list(np.nanmedian(values[rows], axis=0))) for rows in drawn]
        known = [n_layers if first is None else first for first in found]
        low, high = (round(percentile(known, q) or 0) for q in (0.025, 0.975))
    carried = [i for i, value in enumerate(_medians(at_subject)) if value is not None and value >= CARRIED]
    return Handover(layer, low, high, carried[-1] if carried else None, len(record.pairs), n_layers)


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


def median_effects(record: PatchingRecord, position: str) -> list[float | None]:
    """Over pairs, by layer from 0 to n_layers; empty without pairs."""
    return _medians(_effects(record.pairs, position))


def _effects(pairs: Sequence[PatchedPairRecord], position: str) -> list[tuple[float | None, ...]]:
    return [curve.effect for pair in pairs for curve in pair.curves if curve.position == position]


def _medians(curves: Sequence[Sequence[float | None]]) -> list[float | None]:
    """By layer, over the pairs that have a value there."""
    return [median([v for v in at_layer if v is not None]) for at_layer in zip(*curves, strict=True)]


def _first_for_good(effects: Sequence[float | None]) -> int | None:
    """The first layer from which on every effect is large enough."""
    first = None
    for layer in reversed(range(len(effects))):
        value = effects[layer]
        if value is None or not value >= CARRIED:
            break
        first = layer
    return first
