"""Confirmed semantics: whether another lens gives the answer near the layer at which the headline lens first does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from layerscope.analysis.curve import Curve, Row

WINDOW_LAYERS = 2
"""How far from the onset, up or down, a lens may corroborate it."""
NO_ONSET = "the headline lens never has the answer on top"
NO_OTHER_LENS = "neither a raw nor a tuned lens was read"
NO_HIT = f"no other lens has the answer on top within {WINDOW_LAYERS} layers of the onset"


@dataclass(frozen=True)
class Hit:
    """A layer near the onset at which another lens ranks the answer first."""

    lens: str
    layer: int
    trivial: bool
    """Whether the headline lens computes the very same there, so that the hit says nothing new."""


@dataclass(frozen=True)
class Confirmation:
    """The headline onset of one prompt, and what other lenses say about it."""

    window_layers: int
    onset: int | None
    """First layer of the headline lens with the answer on top (`L_semantic`)."""
    onset_raw: int | None
    onset_tuned: int | None
    layer: int | None
    """The headline onset, if another lens confirms it; never that lens' own layer (`L_semantic_confirmed`)."""
    source: Literal["both", "raw", "tuned", "none"]
    """Which lens confirms it."""
    reason: str | None
    """Why it is not confirmed; None where it is."""
    hits: tuple[Hit, ...]
    """Every layer that confirms it, raw before tuned, from shallow to deep."""
    nontrivial: bool | None
    """Whether any of the hits is more than the headline lens once again; None where there is none."""
    layer_any: int | None
    """First layer with the answer on top that another lens confirms, the onset or not (`L_semantic_confirmed_any`)."""
    layer_any_nontrivial: int | None
    """The same, counting only hits that are not trivial."""


def confirm(
    headline: Curve, raw: Curve | None, tuned: Curve | None, sources: Mapping[str, Sequence[str | None]]
) -> Confirmation:
    """Look for the answer under other lenses around the headline onset.

    Trivial hits count for `layer` and `source`, as in published tables; `nontrivial` then says what they are worth.
    Some are so by construction: the last layer of a tuned lens has no map and is the headline lens, and the raw lens is
    the headline lens at a layer where that applies no norm.

    Args:
        headline: the lens whose onset is asked about.
        raw: the same prompt without a norm; None where it was not read.
        tuned: the same under a tuned lens; None where there is none.
        sources: for each lens, the norm or map it applied at each layer; `raw` where none.
    """
    others = {name: curve for name, curve in (("raw", raw), ("tuned", tuned)) if curve is not None}
    onset = headline.first(_is_answer)
    all_hits = _hits(others, headline, sources)
    hits = _near(all_hits, onset)
    trusted = [hit for hit in all_hits if not hit.trivial]
    return Confirmation(
        window_layers=WINDOW_LAYERS,
        onset=onset,
        onset_raw=None if raw is None else raw.first(_rank_1),
        onset_tuned=None if tuned is None else tuned.first(_rank_1),
        layer=onset if hits else None,
        source=_source({hit.lens for hit in hits}),
        reason=None if hits else NO_ONSET if onset is None else NO_HIT if others else NO_OTHER_LENS,
        hits=hits,
        nontrivial=not all(hit.trivial for hit in hits) if hits else None,
        layer_any=headline.first(lambda row: bool(row["is_answer"] and _near(all_hits, row["layer"]))),
        layer_any_nontrivial=headline.first(lambda row: bool(row["is_answer"] and _near(trusted, row["layer"]))),
    )


def _is_answer(row: Row) -> bool | None:
    is_answer: bool | None = row["is_answer"]
    return is_answer


def _rank_1(row: Row) -> bool:
    return bool(row["answer_rank"] == 1)


def _hits(others: Mapping[str, Curve], headline: Curve, sources: Mapping[str, Sequence[str | None]]) -> tuple[Hit, ...]:
    """Wherever another lens ranks the answer first."""
    unnormed = [layer for layer, source in enumerate(sources.get(headline.lens, ())) if source == "raw"]
    same = {"raw": unnormed, "tuned": [headline.n_layers]}
    return tuple(
        Hit(name, layer, layer in same[name]) for name, curve in others.items() for layer in curve.layers(_rank_1)
    )


def _near(hits: Sequence[Hit], layer: int | None) -> tuple[Hit, ...]:
    """Those within the window around a layer."""
    return () if layer is None else tuple(hit for hit in hits if abs(hit.layer - layer) <= WINDOW_LAYERS)


def _source(lenses: set[str]) -> Literal["both", "raw", "tuned", "none"]:
    if len(lenses) == 2:
        return "both"
    return "raw" if "raw" in lenses else "tuned" if "tuned" in lenses else "none"
