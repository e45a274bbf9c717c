"""Facts: what the milestones of many prompts say together, and how wording, control and position bear on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from layerscope.analysis.curve import Curve, Curves, Row
from layerscope.analysis.milestones import Milestones, layer_of, layers_between
from layerscope.analysis.percentiles import median
from layerscope.analysis.statistics import SEED, Summary, entropy_fraction, summarize
from layerscope.record.milestone_names import COPY_SOFT, ONSET, STABLE, MilestoneName, copy_soft
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds

GRID = (0.20, 0.40, 0.60, 0.80, 0.92, 0.96, 0.98, 1.00)
"""Fractions of a prompt's last index at which the position window looks."""
LOW_STABILITY = 0.50
"""Share of positions with rank 1 below which a semantic layer belongs to few positions alone."""
NO_FILLER = "no_filler"
"""The wording that an ablation prefers, if a fact has it."""


@dataclass(frozen=True)
class Fact:
    """The milestones of one fact under the headline lens."""

    prompt: PromptKey
    fact_key: str | None
    fact_index: int | None
    L_copy_strict: int | None
    L_copy_soft_k1: int | None
    L_semantic: int | None
    L_semantic_confirmed: int | None
    """L_semantic, where another lens has rank 1 near it."""
    L_semantic_margin_ok: int | None
    delta_hat: float | None
    """From copy, strict or else the shallowest soft one, to L_semantic, as a share of the depth; unrounded."""
    row_in_file: int | None
    """Of L_semantic: data row, from 0, in a table of the headline lens at last positions, all prompts in order."""
    row_in_pass: int | None
    """The same among this prompt's rows alone."""


@dataclass(frozen=True)
class MicroSuite:
    """Every fact once, and the middle of each milestone over them.

    Medians are over the facts that have the milestone; rounded ones have halves rounded to even.
    """

    facts: tuple[Fact, ...]
    n: int
    n_missing: int
    """Facts without L_semantic."""
    L_copy_strict: Summary
    L_copy_soft_k1: Summary
    L_semantic: Summary
    L_semantic_confirmed: Summary
    L_semantic_margin_ok: Summary
    delta_hat_median: float | None
    """Unrounded."""


@dataclass(frozen=True)
class FactStatistics:
    """Every milestone of the headline lens over facts, each asked once."""

    n: int
    """Number of facts."""
    by_milestone: Mapping[str, Summary]
    median_entropy_fraction: float | None
    """Entropy at L_semantic as a share of log2(d_vocab): the median over facts."""
    n_entropy_fractions: int
    """Facts with an entropy at L_semantic."""


@dataclass(frozen=True)
class Ablation:
    """The primary fact in another wording, the published one without the filler word."""

    variant_orig: str | None
    variant_nf: str | None
    """The other wording; None where the fact was asked in one alone."""
    L_copy_orig: int | None
    L_sem_orig: int | None
    L_copy_nf: int | None
    L_sem_nf: int | None
    delta_L_copy: int | None
    """Other wording less first, in layers: negative is earlier without the filler word."""
    delta_L_sem: int | None
    sensitive: bool | None
    """Whether L_semantic moves by a tenth of the depth or more; None where it cannot be said."""


@dataclass(frozen=True)
class ControlSummary:
    """Where on a control its own answer leads that of the fact it is compared with."""

    first_control_margin_pos: int | None
    """Says little: the sign of a margin at shallow layers is that of rounding on a near-uniform distribution."""
    max_control_margin: float | None
    first_control_strong_pos: int | None
    """First layer with a positive margin, the control's answer on top and a clear lead over the second logit."""
    max_control_top2_logit_gap: float | None
    """Largest such lead, in logits, wherever the answer is on top."""
    delta_top2_logit_ctl: float
    """What counts as a clear lead, in logits; inclusive."""
    reason: str | None
    """Why something above is absent; None where nothing is."""


@dataclass(frozen=True)
class GridPosition:
    """One place of the position window."""

    position: int
    fraction: float
    """The first of `GRID` that leads to the position."""
    answer_rank: int | None
    """At L_semantic; None where that row is absent or has no rank."""
    rank1_strong_run2: bool | None
    """Rank 1 at the strong run's first or second layer; None where it cannot be said."""


@dataclass(frozen=True)
class PositionWindow:
    """Whether the answer leads at other positions of the primary prompt too, at its semantic layer."""

    grid: tuple[GridPosition, ...]
    L_semantic: int | None
    n_positions: int
    """Positions of the grid with a rank at L_semantic."""
    rank1_frac: float | None
    """Share of the grid with rank 1 at L_semantic; None unless every position has a rank."""
    rank1_frac_reason: str | None
    """Why there is no share; None where there is one."""
    rank1_frac_strong_run2: float | None
    rank1_frac_strong_run2_reason: str | None

    @property
    def low(self) -> bool | None:
        """Whether fewer than half of the positions have rank 1; None where it cannot be said."""
        return None if self.rank1_frac is None else self.rank1_frac < LOW_STABILITY


def fact_passes(passes: Iterable[PromptKey]) -> tuple[PromptKey, ...]:
    """One prompt for each fact: in the wording of the first fact's first, or its own first where it lacks that one."""
    facts: dict[int | None, list[PromptKey]] = {}
    for prompt in passes:
        if prompt.is_fact:
            facts.setdefault(prompt.fact_index, []).append(prompt)
    first = next((prompts[0].prompt_variant for prompts in facts.values()), None)
    return tuple(next((p for p in prompts if p.prompt_variant == first), prompts[0]) for prompts in facts.values())


def micro_suite(
    curves: Curves, headline: str, milestones: Mapping[PromptKey, Milestones], confirmed: Mapping[PromptKey, int | None]
) -> MicroSuite:
    """The facts of a run one by one, and together.

    Args:
        headline: the lens that the milestones are about.
        milestones: by prompt, as `find_milestones` gives them; a prompt may be missing.
        confirmed: by prompt, L_semantic where another lens confirms it; a prompt may be missing.
    """
    starts, keys = _first_rows(curves, headline), curves.fact_keys
    facts = []
    for prompt in fact_passes(curves.passes):
        curve, its = curves.get(prompt, headline), milestones.get(prompt, {})
        onset = layer_of(its, ONSET)
        layers = curve.column("layer") if curve and onset is not None else []
        row = layers.index(onset) if onset in layers else None
        fact = Fact(
            prompt=prompt,
            fact_key=keys.get(prompt),
            fact_index=prompt.fact_index,
            L_copy_strict=layer_of(its, MilestoneName.COPY),
            L_copy_soft_k1=layer_of(its, copy_soft(1)),
            L_semantic=onset,
            L_semantic_confirmed=confirmed.get(prompt),
            L_semantic_margin_ok=layer_of(its, MilestoneName.MARGIN_OK),
            delta_hat=_delta_hat(its, curve.n_layers) if curve else None,
            row_in_file=None if row is None else starts[prompt] + row,
            row_in_pass=row,
        )
        facts.append(fact)
    names = ("L_copy_strict", "L_copy_soft_k1", "L_semantic", "L_semantic_confirmed", "L_semantic_margin_ok")
    summaries = {name: summarize([getattr(fact, name) for fact in facts]) for name in names}
    semantic = summaries["L_semantic"]
    delta_hat = median([fact.delta_hat for fact in facts if fact.delta_hat is not None])
    return MicroSuite(tuple(facts), semantic.n, semantic.n_missing, **summaries, delta_hat_median=delta_hat)


def statistics_over_facts(milestones: Mapping[PromptKey, Milestones], d_vocab: int, seed: int = SEED) -> FactStatistics:
    """Every milestone over facts; a fact whose milestones lack a name counts as one without that layer.

    Args:
        milestones: by prompt, in the order of the rows, as `find_milestones` gives them.
    """
    facts = [milestones[prompt] for prompt in fact_passes(milestones)]
    names = dict.fromkeys(name for fact in facts for name in fact)
    layers = {name: [layer_of(fact, name) for fact in facts] for name in names}
    entropies = [fact[ONSET].entropy_bits for fact in facts if ONSET in fact]
    fractions = [f for f in (entropy_fraction(bits, d_vocab) for bits in entropies) if f is not None]
    return FactStatistics(
        n=len(facts),
        by_milestone={name: summarize(values, seed) for name, values in layers.items()},
        median_entropy_fraction=median(fractions),
        n_entropy_fractions=len(fractions),
    )


def ablation(milestones: Mapping[PromptKey, Milestones], n_layers: int) -> Ablation:
    """The primary fact in its first wording and without the filler word, or in the next wording that it has.

    Args:
        milestones: by prompt, in the order of the rows, as `find_milestones` gives them.
    """
    first = next((prompt for prompt in milestones if prompt.is_fact), None)
    others = [a for a in milestones if first and a.is_fact and a.fact_index == first.fact_index and a != first]
    other = next((a for a in others if a.prompt_variant == NO_FILLER), next(iter(others), None))
    orig, nf = (_layers_of_copy_and_meaning(milestones, prompt) for prompt in (first, other))
    delta_copy, delta_sem = (layers_between(after, before) for after, before in zip(nf, orig, strict=True))
    return Ablation(
        variant_orig=first.prompt_variant if first else None,
        variant_nf=other.prompt_variant if other else None,
        L_copy_orig=orig[0],
        L_sem_orig=orig[1],
        L_copy_nf=nf[0],
        L_sem_nf=nf[1],
        delta_L_copy=delta_copy,
        delta_L_sem=delta_sem,
        sensitive=None if delta_sem is None else 10 * abs(delta_sem) >= n_layers,
    )


def control_summary(curve: Curve | None, thresholds: Thresholds) -> ControlSummary:
    """A control under the headline lens; None stands for a run without one.

    `control_top2_logit_gap` has a value exactly where the control's own answer is on top.
    """
    clear = thresholds.semantic_gap
    if curve is None:
        return ControlSummary(None, None, None, None, clear, "no control was read under this lens")

    def leads(row: Row) -> bool:
        return row["control_margin"] is not None and row["control_margin"] > 0

    def leads_clearly(row: Row) -> bool:
        gap = row["control_top2_logit_gap"]
        return leads(row) and gap is not None and gap >= clear

    first, strong = curve.first(leads), curve.first(leads_clearly)
    margins, gaps = curve.values("control_margin"), curve.values("control_top2_logit_gap")
    return ControlSummary(
        first_control_margin_pos=first,
        max_control_margin=max(margins, default=None),
        first_control_strong_pos=strong,
        max_control_top2_logit_gap=max(gaps, default=None),
        delta_top2_logit_ctl=clear,
        reason=_control_reason(curve, first, strong),
    )


def position_window(
    rows: pl.DataFrame,
    primary: PromptKey,
    headline: str,
    L_semantic: int | None,
    strong_run2: int | None,
    last_index: int,
) -> PositionWindow:
    """The answer's rank along the primary prompt at the semantic layer.

    No share is taken over a part of the grid: over the last position alone it would always be 1.

    Args:
        rows: the run's table; needs the columns that tell prompts, lenses, layers and positions, and `answer_rank`.
        L_semantic: the layer to look at.
        strong_run2: first layer of the strong run of two; a position counts there if it has rank 1 at either layer.
        last_index: the prompt's last position, counted from 0.
    """
    ranks = _ranks(rows, primary, headline)
    places = [
        GridPosition(
            position,
            fraction,
            ranks.get((position, L_semantic)),
            _rank1_at_either(ranks, position, strong_run2),
        )
        for position, fraction in position_grid(last_index).items()
    ]
    at_layer = [None if place.answer_rank is None else place.answer_rank == 1 for place in places]
    frac, reason = _share(at_layer, "semantic layer", L_semantic)
    run2_frac, run2_reason = _share([place.rank1_strong_run2 for place in places], "strong run of two", strong_run2)
    n_positions = sum(known is not None for known in at_layer)
    return PositionWindow(tuple(places), L_semantic, n_positions, frac, reason, run2_frac, run2_reason)


def position_grid(last_index: int) -> dict[int, float]:
    """The positions of `GRID` in a prompt, halves rounded to even, each with the first fraction that leads there."""
    grid: dict[int, float] = {}
    for fraction in GRID:
        grid.setdefault(round(last_index * fraction), fraction)
    return grid


def _first_rows(curves: Curves, headline: str) -> dict[PromptKey, int]:
    """Where each prompt begins in a table of the headline lens' rows at last positions."""
    starts, due = {}, 0
    for prompt in curves.passes:
        starts[prompt] = due
        curve = curves.get(prompt, headline)
        due += len(curve.rows) if curve else 0
    return starts


def _delta_hat(milestones: Milestones, n_layers: int) -> float | None:
    """From copy to meaning as a share of the depth; the copy is the strict one, or else the shallowest soft one."""
    soft = [name for name in milestones if name.startswith(COPY_SOFT) and not name.endswith(STABLE)]
    soft_layers = [layer for layer in (layer_of(milestones, name) for name in soft) if layer is not None]
    strict = layer_of(milestones, MilestoneName.COPY)
    delta = layers_between(layer_of(milestones, ONSET), min(soft_layers, default=None) if strict is None else strict)
    return None if delta is None else delta / n_layers


def _layers_of_copy_and_meaning(
    milestones: Mapping[PromptKey, Milestones], prompt: PromptKey | None
) -> tuple[int | None, int | None]:
    by_name = {} if prompt is None else milestones[prompt]
    return layer_of(by_name, MilestoneName.COPY), layer_of(by_name, ONSET)


def _control_reason(curve: Curve, first: int | None, strong: int | None) -> str | None:
    if first is not None and strong is not None:
        return None
    if not curve.values("control_margin"):
        return "no margin was recorded"
    if first is None:
        return "the margin is positive at no layer"
    if curve.values("control_top2_logit_gap"):
        return "no layer has the answer on top with a clear lead"
    on_top = curve.first(lambda row: None if row["answer_rank"] is None else row["answer_rank"] == 1)
    return "the answer is on top at no layer" if on_top is None else "its lead over the second logit was not recorded"


def _ranks(rows: pl.DataFrame, primary: PromptKey, headline: str) -> Mapping[tuple[int, int | None], int | None]:
    """The answer's rank by position and layer."""
    seen = primary.rows_of(rows).filter(lens=headline)
    return {(position, layer): rank for position, layer, rank in seen.select("position", "layer", "answer_rank").rows()}


def _rank1_at_either(
    ranks: Mapping[tuple[int, int | None], int | None], position: int, layer: int | None
) -> bool | None:
    if layer is None:
        return None
    nearby = [ranks.get((position, layer)), ranks.get((position, layer + 1))]
    return True if 1 in nearby else None if None in nearby else False


def _share(held: Sequence[bool | None], name: str, layer: int | None) -> tuple[float | None, str | None]:
    """Share of positions at which something holds, or why there is none."""
    if layer is None:
        return None, f"there is no {name}"
    unknown = sum(known is None for known in held)
    if unknown:
        return None, f"{unknown} of {len(held)} positions have no rank of the answer there"
    return sum(map(bool, held)) / len(held), None
