"""All facts of a suite by layer: thin lines, with their median and the band of their middle half."""

from collections.abc import Sequence
from typing import TypeAlias

import altair as alt
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.facts import fact_passes
from layerscope.analysis.milestones import Milestones, layer_of
from layerscope.analysis.percentiles import QUARTERS, median, percentile
from layerscope.errors import RunError
from layerscope.record.prompt_key import PromptKey
from layerscope.report.numbers import amount
from layerscope.view.charts.chart_spec import ChartSpec, Datum, built, data_of
from layerscope.view.charts.lines import Axes, Line, Values, hover_layer, place_of, reference_layer
from layerscope.view.charts.metrics import Metric, metric_of
from layerscope.view.charts.rules import Named, milestone_sentence, named_milestones, rule_layers
from layerscope.view.charts.theme import BAND
from layerscope.view.charts.trajectories import CAUTION, HEIGHT, curve_values
from layerscope.view.charts.words import course, measured, model_name, prompt_name, sentences
from layerscope.view.palette import Look, lens_look

MOST_LINES = 60
"""Facts drawn one by one; of more, so many at even steps. Median and band are always over all."""


Quartiles: TypeAlias = dict[int, tuple[float, float, float]]
"""Lower quartile, median and upper quartile by layer."""


def facts(run: AnalysedRun, metric: str, lens: str | None = None) -> ChartSpec:
    """Each fact once, in the wording of the first, under one lens.

    Args:
        run: what to draw.
        metric: a name of `METRICS` that is one quantity.
        lens: the headline lens where not given.

    Raises:
        RunError: no such metric or lens, a metric of several quantities, or fewer than two facts have a value.
    """
    kind, chosen = metric_of(metric), _lens_of(run, lens)
    if len(kind.quantities) > 1:
        choices = ", ".join(quantity.column for quantity in kind.quantities)
        raise RunError(f"'{metric}' is several quantities; choose one of {choices}.")
    column = kind.quantities[0].column
    passes = fact_passes(run.verdict.curves.passes)
    curves = {prompt: curve_values(run.verdict.curves.get(prompt, chosen), column) for prompt in passes}
    known = {prompt: c for prompt, c in curves.items() if any(value is not None for _, value in c)}
    if len(known) < 2:
        raise RunError(
            f"This run has {kind.axis} under {chosen} for {len(known)} of {len(passes)} facts, and a band needs two; "
            "use trajectories."
        )
    axes = Axes(run.record.model.n_layers, kind.axis, kind.log, kind.domain, kind.from_zero)
    quarters = _quarters(list(known.values()))
    named = _median_milestones(run, chosen, kind.name, passes)
    reference = _reference(run, kind, list(known))
    description = _description(run, kind, chosen, quarters, named, known, reference)
    layers = [] if reference is None else [reference_layer(reference)]
    layers += rule_layers(named, axes.n_layers)
    layers += _drawn(run, quarters, known, lens_look(chosen, 0), axes)
    title, notes = f"{kind.title}: {len(known)} facts", _subtitle(run, chosen, kind, reference)
    table = _table(run, chosen, column, curves, quarters)
    return built(f"facts-{kind.name}-{chosen}", title, notes, description, layers, HEIGHT, table)


def _lens_of(run: AnalysedRun, lens: str | None) -> str:
    chosen = lens or run.record.protocol.headline_lens
    if chosen not in run.record.protocol.lenses:
        raise RunError(f"This run has no lens '{chosen}'; choose from {', '.join(run.record.protocol.lenses)}.")
    return chosen


def _quarters(curves: Sequence[Values]) -> Quartiles:
    """Quartiles over the facts that have a value there, by layer."""
    by_layer: dict[int, list[int | float]] = {}
    for curve in curves:
        for layer, value in curve:
            if value is not None:
                by_layer.setdefault(layer, []).append(value)
    quartiles = {layer: [percentile(values, q) for q in QUARTERS] for layer, values in sorted(by_layer.items())}
    return {
        layer: (p25, p50, p75)
        for layer, (p25, p50, p75) in quartiles.items()
        if p25 is not None and p50 is not None and p75 is not None
    }


def _median_milestones(run: AnalysedRun, lens: str, metric: str, passes: Sequence[PromptKey]) -> list[Named]:
    """The middle of each milestone over the facts that have it."""
    by_pass = run.verdict.milestones.by_pass(lens)
    by_prompt: list[Milestones] = [by_pass[prompt] for prompt in passes if prompt in by_pass]
    named = []
    for name, label in named_milestones(run, metric):
        layers = [layer_of(m, name) for m in by_prompt if name in m]
        known = [layer for layer in layers if layer is not None]
        missing = len(layers) - len(known)
        text = label if not missing or not known else f"{label} ({len(known)} of {len(layers)})"
        if layers:
            named.append(Named(name, text, median(known), None if known else "no fact has it"))
    return named


def _reference(run: AnalysedRun, kind: Metric, known: Sequence[PromptKey]) -> float | None:
    """The median of the model's own entropies; no difference for a divergence or a cosine."""
    if kind.name in ("kl_to_final_bits", "cos_to_final"):
        return 0.0 if kind.name == "kl_to_final_bits" else 1.0
    if kind.name != "entropy_bits":
        return None
    curves = run.verdict.curves.of_prompt
    stated = (curves[prompt][-1].values("teacher_entropy_bits") for prompt in known)
    return median([values[0] for values in stated if values])


def _subtitle(run: AnalysedRun, lens: str, kind: Metric, reference: float | None) -> list[str]:
    lines = [f"{model_name(run)} · lens {lens}", "Thick line: median. Band: middle half of the facts."]
    if reference is not None:
        what = "median of the model's own output" if kind.name == "entropy_bits" else "no difference from it"
        lines.append(f"Dashed line at {measured(reference, kind.unit)}: {what}")
    caution = kind.probability and not run.record.probabilities_stand
    return [*lines, *([CAUTION] if caution else [])]


def _description(
    run: AnalysedRun, kind: Metric, lens: str, quarters: Quartiles, named: Sequence[Named],
    known: dict[PromptKey, Values], reference: float | None,
) -> str:  # fmt: skip
    widest = max(quarters, key=lambda layer: quarters[layer][2] - quarters[layer][0])
    low, _, high = quarters[widest]
    absent = len(fact_passes(run.verdict.curves.passes)) - len(known)
    return sentences(
        [
            kind.means,
            f"{run.record.model.id}, {len(known)} facts under {lens}, layers 0 to {run.record.model.n_layers}.",
            course("median", [(layer, p50) for layer, (_, p50, _) in quarters.items()], kind.unit),
            f"The middle half is widest at layer {widest}: {amount(low)} to {measured(high, kind.unit)}.",
            milestone_sentence(named, lens, ", medians over facts"),
            None if reference is None else f"A dashed line at {measured(reference, kind.unit)}.",
            f"{absent} facts without a value are left out." if absent else None,
            f"{MOST_LINES} of {len(known)} facts are drawn as lines of their own." if len(known) > MOST_LINES else None,
            CAUTION if kind.probability and not run.record.probabilities_stand else None,
        ]
    )


def _drawn(
    run: AnalysedRun, quarters: Quartiles,
    known: dict[PromptKey, Values], look: Look, axes: Axes,
) -> list[alt.Chart]:  # fmt: skip
    step = -(-len(known) // MOST_LINES)
    thin: list[Datum] = [
        {"x": place_of(layer, axes), "y": value, "fact": name}
        for name, curve in ((prompt_name(run, prompt), curve) for prompt, curve in list(known.items())[::step])
        for layer, value in curve
    ]
    spread: list[Datum] = [
        {"x": layer, "y": p50, "low": p25, "high": p75} for layer, (p25, p50, p75) in quarters.items()
    ]
    middle = alt.Chart(data_of(spread)).encode(axes.x())
    as_lines = [
        Line(name, look, tuple((layer, values[at]) for layer, values in quarters.items()))
        for at, name in enumerate(("25th percentile", "median", "75th percentile"))
    ]
    return [
        alt.Chart(data_of(thin))
        .mark_line(color=look.colour, strokeWidth=1, opacity=0.55, aria=False)
        .encode(axes.x(), axes.y(), alt.Detail("fact:N")),
        middle.mark_area(color=look.colour, style=BAND, aria=False).encode(axes.y("low"), alt.Y2("high:Q")),
        middle.mark_line(color=look.colour, strokeWidth=2.8, aria=False).encode(axes.y()),
        hover_layer(as_lines, axes),
    ]


def _table(
    run: AnalysedRun, lens: str, column: str, curves: dict[PromptKey, Values],
    quarters: Quartiles,
) -> pl.DataFrame:  # fmt: skip
    n_layers = run.record.model.n_layers
    rows = [
        (run.record.model.id, name, lens, column, layer, layer / n_layers,
         None if value is None else float(value), *quarters.get(layer, (None, None, None)))
        for name, curve in ((prompt_name(run, prompt), curve) for prompt, curve in curves.items())
        for layer, value in curve
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=_TABLE, orient="row")


_TABLE = {
    "model": pl.String, "prompt": pl.String, "lens": pl.String, "quantity": pl.String, "layer": pl.Int32,
    "depth": pl.Float64, "value": pl.Float64, "p25": pl.Float64, "median": pl.Float64, "p75": pl.Float64,
}  # fmt: skip
