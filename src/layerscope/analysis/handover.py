"""From which layer on a patch at the last position carries the answer, and what that says of a lens' milestones."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.analysis.drawn_facts import FACTS_FOR_A_CLAIM, FactDraws, drawn_medians, interval, medians
from layerscope.analysis.onsets import LayersOverFacts
from layerscope.record.patches import NEXT, PAIR, RANDOM, SAME_ANSWER, SUBJECT, UNRELATED
from layerscope.record.patching import PatchingRecord

CARRIED = 0.5
"""Share of the logit difference from which a position counts as carrying the answer."""
CARRIED_BEYOND_THIRD = 0.5
"""The same for what a third fact's residual does not do, as a share of that at the output."""
UNSURE_BITS = 1.0
"""By how much a patched run's entropy may exceed both its parents' before its state counts as no prompt's own."""
NO_TABLE = "the table of its patches was not given"
CONTROLS = (SAME_ANSWER, UNRELATED, RANDOM)


class PatchVerdict(StrEnum):
    """What patching says of a layer at which a lens has the answer."""

    CONFIRMED = "confirmed"
    READS_AHEAD = "reads ahead"
    READS_LATE = "reads late"
    REFUTED = "refuted"
    UNDETERMINED = "undetermined"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class BeyondThird:
    """By how much a pair's own effect exceeds that of a third fact's residual along the same pair, at the last token.

    Taking the base's answer away moves the logit difference as well as bringing the source's does, and a third fact's
    residual does the one without the other.
    """

    n_pairs: int
    """Pairs with both effects."""
    n_facts: int
    """Facts that these are of, the third ones among them."""
    gap: float
    """Median of the differences at the layer from which on the answer is carried."""
    low: float | None
    high: float | None
    """95 % interval of that, facts drawn again; None under `FACTS_FOR_A_CLAIM`."""
    at_the_output: float
    """Median of the differences at the last layer."""
    is_clear: bool | None
    """Whether that interval lies above zero there and at every later layer; None where there is no interval."""


@dataclass(frozen=True)
class Handover:
    """Where the answer is carried, over pairs of facts."""

    layer: int | None
    """First layer from which on the answer is carried at `next`: see `handover`. None without pairs."""
    low: int | None
    high: int | None
    """95 % interval of that layer, facts drawn again; None under `FACTS_FOR_A_CLAIM`."""
    release: int | None
    """Last layer with a median effect of at least a half at the subject; None where there is none."""
    n_pairs: int
    n_layers: int
    n_facts: int = 0
    """Facts that those pairs are of."""
    n_subject_pairs: int = 0
    """Pairs that were patched at the subject; fewer, for every fact has one source there, the next of equal length."""
    n_subject_facts: int = 0
    effect_from: int | None = None
    """First layer from which on the median effect alone is at least a half, whatever a third fact's does."""
    beyond_third: BeyondThird | None = None
    """None where no third fact's residual was written, as with two facts, or none that could be told apart at all."""

    @property
    def at_the_output(self) -> bool:
        """Whether no layer before the last carries it."""
        return self.layer == self.n_layers

    @property
    def takes_away_only_from(self) -> int | None:
        """From where on the effect is large though the answer is not yet carried; None where the two are one layer."""
        return None if self.effect_from == self.layer else self.effect_from

    @property
    def is_unclear(self) -> bool:
        """Whether a third fact's residual may do as much."""
        moved = self.layer if self.effect_from is None else self.effect_from
        unclear = self.beyond_third is not None and self.beyond_third.is_clear is False
        return unclear and moved is not None and moved < self.n_layers

    @property
    def is_an_illustration(self) -> bool:
        """Whether facts are too few for a claim."""
        return self.n_facts < FACTS_FOR_A_CLAIM

    @property
    def supports_a_claim(self) -> bool:
        """Whether facts are enough, and a third one's residual does less.

        At layer 0 the last token is the subject's own, which needs no handover.
        """
        clear = self.beyond_third is not None and bool(self.beyond_third.is_clear)
        return bool(self.layer) and not self.is_an_illustration and clear

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
    beyond_third: tuple[float | None, ...] = ()
    """Of the differences between a pair's own effect and the third fact's; empty where there is no such control."""
    n_controls: Mapping[str, int] | None = None
    """Over how many pairs each control is."""


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


@dataclass(frozen=True)
class _Curves:
    """Of some pairs; NaN where there is no effect."""

    effects: NDArray[np.float64]
    """[pair, layer]."""
    facts: NDArray[np.int64]
    """Those that each pair's effects depend on, [pair, some]."""

    @property
    def n_facts(self) -> int:
        """How many different ones."""
        return len(np.unique(self.facts))

    @property
    def medians(self) -> tuple[float | None, ...]:
        """By layer; nothing without pairs."""
        return _or_none(medians(self.effects)) if len(self.effects) else ()


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
    controls = {kind: _curves(patches, kind, NEXT, n_layers) for kind in CONTROLS}
    effects = Effects(
        next=_curves(patches, PAIR, NEXT, n_layers).medians,
        subject=_curves(patches, PAIR, SUBJECT, n_layers).medians,
        controls={kind: curves.medians for kind, curves in controls.items() if len(curves.effects)},
        beyond_third=_beyond_third(patches, n_layers).medians,
        n_controls={kind: len(curves.effects) for kind, curves in controls.items() if len(curves.effects)},
    )
    against = {lens: _against(layers, found) for lens, layers in by_lens.items()}
    n_unsure, n_from = _unsure(record, patches, found)
    reason = NO_TABLE if record.pairs and not len(patches) else record.reason
    return Patching(found, effects, against, n_unsure, n_from, reason)


def handover(patches: pl.DataFrame, n_layers: int) -> Handover:
    """Find the layer at which the last token takes the answer over.

    It is the first from which on, at every layer, the median effect is at least `CARRIED`, and the median of what it
    exceeds a third fact's by at least `CARRIED_BEYOND_THIRD` of what that is at the output. Where a state brings the
    share a of the source's answer and takes the share b of the base's away, the effect is (a + b) / 2, and the third
    fact's b / 2: the first asks that both together be a whole, the second that a be a half. Where no third fact can be
    held against it, the effect alone decides.

    Args:
        patches: what came of every patch.
        n_layers: of the model.
    """
    at_next, third = _curves(patches, PAIR, NEXT, n_layers), _beyond_third(patches, n_layers)
    if not (len(third.effects) and medians(third.effects)[-1] > 0):
        third = _no_curves(n_layers)
    layer, effect_from = _first_carried(at_next, third), _first_carried(at_next, _no_curves(n_layers))
    low = high = None
    drawn_third = None
    if at_next.n_facts >= FACTS_FOR_A_CLAIM and layer is not None:
        draws = FactDraws(np.unique(np.concatenate([at_next.facts.ravel(), third.facts.ravel()])).tolist())
        drawn = drawn_medians(at_next.effects, draws.weights(at_next.facts))
        drawn_third = drawn_medians(third.effects, draws.weights(third.facts)) if len(third.effects) else None
        low, high = _interval(drawn, drawn_third)
    at_subject = _curves(patches, PAIR, SUBJECT, n_layers)
    carried = [i for i, value in enumerate(at_subject.medians) if value is not None and value >= CARRIED]
    return Handover(
        layer=layer,
        low=low,
        high=high,
        release=carried[-1] if carried else None,
        n_pairs=len(at_next.effects),
        n_layers=n_layers,
        n_facts=at_next.n_facts,
        n_subject_pairs=len(at_subject.effects),
        n_subject_facts=at_subject.n_facts,
        effect_from=effect_from,
        beyond_third=None if layer is None or not len(third.effects) else _gap(third, drawn_third, layer),
    )


def patch_verdict(layer: float | None, found: Handover) -> PatchVerdict:
    """What patching says of a lens' layer.

    The last layer is the output itself: a handover there says that nothing before it carries the answer, which refutes
    any earlier layer and bears out none.
    """
    if layer is None or found.layer is None:
        return PatchVerdict.NOT_APPLICABLE
    if found.is_unclear:
        return PatchVerdict.UNDETERMINED
    if found.at_the_output:
        return PatchVerdict.REFUTED if layer < found.n_layers else PatchVerdict.NOT_APPLICABLE
    if abs(layer - found.layer) <= found.tolerance:
        return PatchVerdict.CONFIRMED
    return PatchVerdict.READS_LATE if layer > found.layer else PatchVerdict.READS_AHEAD


def median_effects(patches: pl.DataFrame, place: str, n_layers: int) -> tuple[float | None, ...]:
    """Of the pairs' patches at a place, by layer from 0 to n_layers; nothing without pairs."""
    return _curves(patches, PAIR, place, n_layers).medians


def _against(layers: LayersOverFacts, found: Handover) -> dict[str, LayerAgainstPatches]:
    three = {
        "first_on_top": layers.first_on_top.summary.median,
        "on_top_for_good": layers.on_top_for_good.summary.median,
        "clearly_ahead": layers.clearly_ahead.summary.median,
    }
    return {name: LayerAgainstPatches(layer, patch_verdict(layer, found)) for name, layer in three.items()}


def _curves(patches: pl.DataFrame, kind: str, place: str, n_layers: int) -> _Curves:
    """Of the pairs with any effect at a place, in their order; those of controls are told by their pair alone."""
    here = patches.filter(pl.col("kind") == kind, pl.col("place") == place, pl.col("effect").is_not_null())
    return _of_rows(here.select("pair", "layer", "effect", "base", "source"), ("base", "source"), n_layers)


def _beyond_third(patches: pl.DataFrame, n_layers: int) -> _Curves:
    """Effects at `next` less those of third facts' residuals along the same pairs."""
    here = patches.filter(pl.col("place") == NEXT, pl.col("effect").is_not_null())
    own, third = (
        here.filter(pl.col("kind") == kind).select("pair", "layer", "effect", "base", "source")
        for kind in (PAIR, UNRELATED)
    )
    both = own.join(third.select("pair", "layer", "effect", third="source"), on=["pair", "layer"], suffix="_third")
    differences = both.with_columns(effect=pl.col("effect") - pl.col("effect_third"))
    return _of_rows(differences, ("base", "source", "third"), n_layers)


def _of_rows(rows: pl.DataFrame, facts: tuple[str, ...], n_layers: int) -> _Curves:
    """Effects by pair and layer, and the facts in some columns."""
    pairs = rows.group_by("pair").agg(pl.col(*facts).first()).sort("pair")
    effects = np.full((len(pairs), n_layers + 1), np.nan)
    effects[pairs["pair"].search_sorted(rows["pair"]).to_numpy(), rows["layer"].to_numpy()] = rows["effect"].to_numpy()
    # A random step is no fact's.
    return _Curves(effects, pairs.select(pl.col(*facts).fill_null(-1)).to_numpy().astype(np.int64))


def _no_curves(n_layers: int) -> _Curves:
    return _Curves(np.empty((0, n_layers + 1)), np.empty((0, 3), dtype=np.int64))


def _or_none(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)


def _carried(effects: NDArray[np.float64], beyond_third: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Whether each layer's medians are large enough, [..., layer]; not where one is not known."""
    if beyond_third is None:
        return effects >= CARRIED
    at_the_output = beyond_third[..., -1:]
    is_more = (beyond_third >= CARRIED_BEYOND_THIRD * at_the_output) & (at_the_output > 0)
    return (effects >= CARRIED) & is_more


def _first_carried(at_next: _Curves, third: _Curves) -> int | None:
    """The first layer from which on the answer is carried at every layer; None without one."""
    if not len(at_next.effects):
        return None
    beyond_third = medians(third.effects) if len(third.effects) else None
    first = int(_first_for_good(_carried(medians(at_next.effects), beyond_third)[None])[0])
    return first if first < at_next.effects.shape[1] else None


def _first_for_good(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first layer from which on all hold, [resample]; one more than the last where the last does not."""
    n_held: NDArray[np.int64] = np.logical_and.accumulate(holds[:, ::-1], axis=1).sum(axis=1)
    first: NDArray[np.int64] = holds.shape[1] - n_held
    return first


def _interval(drawn: NDArray[np.float64], drawn_third: NDArray[np.float64] | None) -> tuple[int, int]:
    """Of the layer, from medians of resamples; those that have no pair, or no third fact's, say nothing."""
    known = np.isfinite(drawn[:, -1])
    if drawn_third is not None:
        known &= np.isfinite(drawn_third[:, -1])
    firsts = _first_for_good(_carried(drawn[known], None if drawn_third is None else drawn_third[known]))
    low, high = np.percentile(np.minimum(firsts, drawn.shape[1] - 1), [2.5, 97.5])
    return round(low), round(high)


def _gap(third: _Curves, drawn: NDArray[np.float64] | None, layer: int) -> BeyondThird:
    """At the layer of the handover, and whether it is clear from there on."""
    middle = medians(third.effects)
    low = high = is_clear = None
    if drawn is not None and third.n_facts >= FACTS_FOR_A_CLAIM:
        lows, highs = interval(drawn[:, layer:])
        low, high, is_clear = float(lows[0]), float(highs[0]), bool((lows > 0).all())
    return BeyondThird(
        n_pairs=len(third.effects),
        n_facts=third.n_facts,
        gap=float(middle[layer]),
        low=low,
        high=high,
        at_the_output=float(middle[-1]),
        is_clear=is_clear,
    )


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
