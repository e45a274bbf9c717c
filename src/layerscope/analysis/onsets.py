"""Three layers in words: first on top, on top for good, clearly ahead for good; of one prompt and over facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerscope.analysis.curve import Curves
from layerscope.analysis.milestones import NEVER_SEEN, NOT_MEASURED, Milestones, layer_of
from layerscope.analysis.percentiles import median
from layerscope.analysis.statistics import Summary, summarize
from layerscope.record.milestone_names import ONSET, STRONG, rank_within, stable_twin
from layerscope.record.prompt_key import PromptKey

FIRST_ON_TOP, ON_TOP_FOR_GOOD, CLEARLY_AHEAD = str(ONSET), stable_twin(ONSET), stable_twin(STRONG)
"""The milestones that the three layers are."""
FEWEST = 6
"""Facts from which there is an interval: of fewer, not even the least and the largest value enclose the median of as
many facts of the same kind in 95 of 100 cases (they do in 1 - 2^(1 - n))."""
BLIND_BITS = 5.0
"""Median divergence from the model above which a lens is far from it."""
BEFORE_LAYERS = 5
"""How many layers before the onset are looked at."""


@dataclass(frozen=True)
class LayersOfPrompt:
    """The three layers of one prompt under one lens; None where it never comes to that, or where that is not known."""

    first_on_top: int | None
    """The answer has rank 1 (`L_semantic`)."""
    on_top_for_good: int | None
    """From here to the output it keeps rank 1 (`L_semantic_stable`); None where it has lost it at the output."""
    clearly_ahead: int | None
    """From here on the strong gate holds at every layer (`L_semantic_strong_stable`)."""
    undetermined: tuple[str, ...] = ()
    """Keys of those that have no layer and may have one: values are missing, or the lens did not read the prompt."""


@dataclass(frozen=True)
class LayerOverFacts:
    """One of the three layers over facts."""

    milestone: str
    """Its key."""
    summary: Summary
    """Over `n` facts; those that lack the layer are `n_missing`. Its interval is None where it would be a point."""
    n_undetermined: int
    """How many of those that lack it may have it, for values are missing."""
    median_depth: float | None
    """The median as a share of the depth, unrounded."""
    least: int | None
    most: int | None
    """The range over facts."""
    all_equal: bool
    """Whether all facts that have the layer have the same, and there are two or more."""


@dataclass(frozen=True)
class LayersOverFacts:
    """The three layers over the facts that are answered, each in the wording that stands for it."""

    n: int
    """Number of these facts."""
    first_on_top: LayerOverFacts
    on_top_for_good: LayerOverFacts
    clearly_ahead: LayerOverFacts

    def medians(self) -> dict[str, int | None]:
        """Each median as a layer, by key."""
        three = (self.first_on_top, self.on_top_for_good, self.clearly_ahead)
        return {layer.milestone: layer.summary.median_rounded for layer in three}


@dataclass(frozen=True)
class Blindness:
    """How far the headline lens is from the model just before its onset: the answer may be carried there unseen."""

    lens: str
    onset: int | None
    """On top for good: the median over facts, as a layer."""
    first_layer: int | None
    last_layer: int | None
    """The layers looked at: the five before the onset, or as many as there are."""
    median_kl_bits: float | None
    """KL(lens || model) over these layers and the answered facts."""
    n_facts: int
    """Facts with a divergence there."""
    threshold_bits: float
    reason: str | None
    """Why nothing can be said; None where something can."""

    @property
    def blind(self) -> bool | None:
        """Whether the median exceeds the threshold."""
        return None if self.median_kl_bits is None else self.median_kl_bits > self.threshold_bits


def layers_of_prompt(milestones: Milestones) -> LayersOfPrompt:
    """The three layers among the milestones of one prompt."""
    by_rank = {FIRST_ON_TOP: rank_within(1), ON_TOP_FOR_GOOD: stable_twin(rank_within(1))}
    layers, undetermined = list[int | None](), []
    for name in (FIRST_ON_TOP, ON_TOP_FOR_GOOD, CLEARLY_AHEAD):
        known = layer_of(milestones, name)
        if known is not None:
            layers.append(known)
            continue
        found = milestones.get(name)
        if found is not None and found.reason == NOT_MEASURED:  # a table may hold ranks alone
            found = milestones.get(by_rank.get(name, name))
        layers.append(None if found is None else found.layer)
        if found is None or found.reason in (NOT_MEASURED, NEVER_SEEN):
            undetermined.append(name)
    first, stable, ahead = layers
    if stable is None and ON_TOP_FOR_GOOD not in undetermined:  # so it cannot be clearly ahead at the output
        undetermined = []
    return LayersOfPrompt(first, stable, ahead, tuple(undetermined))


def layers_over_facts(
    facts: Sequence[PromptKey], milestones: Mapping[PromptKey, Milestones], n_layers: int
) -> LayersOverFacts:
    """Sum up the three layers over facts.

    Args:
        facts: the answered ones, each once.
        milestones: by prompt, of the headline lens.
    """
    found = [layers_of_prompt(milestones.get(prompt, {})) for prompt in facts]
    return LayersOverFacts(
        len(facts),
        _over(FIRST_ON_TOP, [layers.first_on_top for layers in found], found, n_layers),
        _over(ON_TOP_FOR_GOOD, [layers.on_top_for_good for layers in found], found, n_layers),
        _over(CLEARLY_AHEAD, [layers.clearly_ahead for layers in found], found, n_layers),
    )


def blindness(curves: Curves, lens: str, facts: Sequence[PromptKey], onset: int | None) -> Blindness:
    """Take the median divergence of the lens over the layers before the onset.

    Args:
        facts: the answered ones, each once.
        onset: the layer of the headline; None where no fact has one.
    """
    if onset is None or onset == 0:
        why = "no fact is on top for good" if onset is None else "there is no layer before the onset"
        return Blindness(lens, onset, None, None, None, 0, BLIND_BITS, why)
    first, last = max(0, onset - BEFORE_LAYERS), onset - 1
    by_fact = [
        [row["kl_to_final_bits"] for row in curve.rows if first <= row["layer"] <= last]
        for prompt in facts
        if (curve := curves.get(prompt, lens)) is not None
    ]
    known = [[bits for bits in values if bits is not None] for values in by_fact]
    middle = median([bits for values in known for bits in values])
    why_not = None if middle is not None else "no divergence from the model was recorded there"
    return Blindness(lens, onset, first, last, middle, sum(map(bool, known)), BLIND_BITS, why_not)


def _over(name: str, layers: Sequence[int | None], found: Sequence[LayersOfPrompt], n_layers: int) -> LayerOverFacts:
    known = [layer for layer in layers if layer is not None]
    summary = summarize(layers, fewest=FEWEST, points=False)
    depth = None if summary.median is None else summary.median / n_layers
    equal = len(known) > 1 and len(set(known)) == 1
    n_open = sum(name in of_prompt.undetermined for of_prompt in found)
    return LayerOverFacts(name, summary, n_open, depth, min(known, default=None), max(known, default=None), equal)
