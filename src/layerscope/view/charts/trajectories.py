"""What each lens reads by layer: one line for each, milestones as rules, the model's own value for reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.curve import Curve
from layerscope.errors import RunError
from layerscope.record.prompt_key import PromptKey
from layerscope.view.charts.chart_spec import ChartSpec, built
from layerscope.view.charts.lines import Axes, Line, Values, hover_layer, line_layers, reference_layer
from layerscope.view.charts.metrics import Metric, Quantity, metric_of
from layerscope.view.charts.rules import Named, found_milestones, milestone_sentence, named_milestones, rule_layers
from layerscope.view.charts.words import course, listed, measured, model_name, prompt_name, sentences
from layerscope.view.palette import lens_look, series_look

HEIGHT = 300
NO_VALUE = "no value at any layer"
CAUTION = "The last layer, decoded, is not the model's own output: do not quote these probabilities."


@dataclass(frozen=True)
class _Series:
    """One quantity under one lens."""

    lens: str
    quantity: Quantity
    values: Values

    @property
    def present(self) -> bool:
        return any(value is not None for _, value in self.values)


def trajectories(
    run: AnalysedRun,
    metric: str,
    *,
    lenses: Sequence[str] | None = None,
    prompt: PromptKey | None = None,
    over: Literal["layer", "depth"] = "layer",
) -> ChartSpec:
    """One prompt at its last position, layer by layer.

    Args:
        run: what to draw.
        metric: a name of `METRICS`.
        lenses: which; where not given all that were read; of several quantities the headline lens alone.
        prompt: which prompt; the primary one where not given.
        over: layers, or the share of the depth.

    Raises:
        RunError: no such metric, lens or prompt, or none of the lenses has a value.
    """
    kind, prompt = metric_of(metric), _prompt_of(run, prompt)
    chosen = _lenses_of(run, lenses, kind)
    curves = {lens: run.verdict.curves.get(prompt, lens) for lens in chosen}
    series = [
        _Series(lens, quantity, curve_values(curve, quantity.column))
        for lens, curve in curves.items()
        for quantity in kind.quantities
    ]
    drawn, absent = [curve for curve in series if curve.present], [curve for curve in series if not curve.present]
    if not drawn:
        raise RunError(
            f"This run has no {kind.axis} of {prompt_name(run, prompt)} under {listed(chosen)}; choose another chart."
        )
    headline = run.record.protocol.headline_lens
    lines = _lines(drawn, headline)
    named = found_milestones(named_milestones(run, kind.name), run.verdict.milestones.of(headline, prompt))
    reference = _reference(run, kind, prompt)
    axes = Axes(run.record.model.n_layers, kind.axis, kind.log, kind.domain, kind.from_zero, over == "depth")
    layers = [] if reference is None else [reference_layer(reference)]
    layers += rule_layers(named, axes.n_layers, axes.scale)
    layers += [*line_layers(lines, axes), hover_layer(lines, axes)]
    caution = CAUTION if kind.probability and not run.record.probabilities_stand else None
    description = _description(run, kind, prompt, lines, named, reference, absent, caution)
    notes = _subtitle(run, kind, prompt, drawn, reference, caution)
    table = _table(run, prompt, series, named, reference)
    return built(f"trajectories-{kind.name}", kind.title, notes, description, layers, HEIGHT, table)


def curve_values(curve: Curve | None, column: str) -> Values:
    """A column by layer from the shallowest layer that the curve has to the deepest of the model; gaps are None."""
    if curve is None or not curve.rows:
        return ()
    by_layer = {row["layer"]: row[column] for row in curve.rows}
    return tuple((layer, by_layer.get(layer)) for layer in range(min(by_layer), curve.n_layers + 1))


def _prompt_of(run: AnalysedRun, requested: PromptKey | None) -> PromptKey:
    prompt = requested or run.verdict.curves.primary
    if prompt is None or prompt not in run.verdict.curves.passes:
        raise RunError(f"This run has no rows of {prompt or 'any fact'}; choose one of its prompts.")
    return prompt


def _lenses_of(run: AnalysedRun, lenses: Sequence[str] | None, kind: Metric) -> list[str]:
    """The headline lens first."""
    protocol = run.record.protocol
    if lenses is None:
        chosen = [protocol.headline_lens] if len(kind.quantities) > 1 else list(protocol.lenses)
    else:
        chosen = list(dict.fromkeys(lenses))
    unknown = [lens for lens in chosen if lens not in protocol.lenses]
    if unknown or not chosen:
        raise RunError(
            f"This run has no lens {listed(unknown or ['at all'])}; choose from {', '.join(protocol.lenses)}."
        )
    return sorted(chosen, key=lambda lens: lens != protocol.headline_lens)


def _lines(drawn: Sequence[_Series], headline: str) -> list[Line]:
    """Colour tells lenses apart, or quantities under one lens alone; with several of both, dashes tell these."""
    lenses = list(dict.fromkeys(curve.lens for curve in drawn))
    grouped = len({curve.quantity.label for curve in drawn}) > 1
    if len(lenses) == 1 and grouped:
        return [Line(curve.quantity.label, series_look(at), curve.values, at == 0) for at, curve in enumerate(drawn)]
    looks = {lens: lens_look(lens, place) for place, lens in enumerate(lenses)}
    return [
        Line(c.lens, looks[c.lens], c.values, c.lens == headline, c.quantity.label if grouped else None) for c in drawn
    ]


def _reference(run: AnalysedRun, kind: Metric, prompt: PromptKey) -> int | float | None:
    """The model's own value, or the one that agreement with it has; None where there is none or it was not recorded."""
    if kind.name in ("kl_to_final_bits", "cos_to_final"):
        return 0.0 if kind.name == "kl_to_final_bits" else 1.0
    if kind.name == "entropy_bits":
        curves = [c for c in run.verdict.curves if c.prompt == prompt]
        return next((value for curve in curves for value in curve.values("teacher_entropy_bits")), None)
    final = run.record.measured.final_prediction
    if final is None or prompt != run.verdict.curves.primary:
        return None
    return {"p_answer": final.p_answer, "answer_rank": final.answer_rank}.get(kind.name)


def _reference_words(kind: Metric, reference: int | float) -> str:
    if kind.name in ("kl_to_final_bits", "cos_to_final"):
        return f"dashed line at {measured(reference, kind.unit)}: no difference from the model's own output"
    return f"dashed line at {measured(reference, kind.unit)}: the model's own output"


def _subtitle(
    run: AnalysedRun,
    kind: Metric,
    prompt: PromptKey,
    drawn: Sequence[_Series],
    reference: int | float | None,
    caution: str | None,
) -> list[str]:
    headline, lenses = run.record.protocol.headline_lens, list(dict.fromkeys(curve.lens for curve in drawn))
    lines = [f"{model_name(run)} · {prompt_name(run, prompt)}"]
    if len(lenses) == 1:
        lines[0] += f" · lens {lenses[0]}"
    elif headline in lenses:
        lines.append(f"Thick line: headline lens {headline}")
    if reference is not None:
        words = _reference_words(kind, reference)
        lines.append(words[0].upper() + words[1:])
    return [*lines, *([] if caution is None else [caution])]


def _description(
    run: AnalysedRun, kind: Metric, prompt: PromptKey, lines: Sequence[Line], named: Sequence[Named],
    reference: int | float | None, absent: Sequence[_Series], caution: str | None,
) -> str:  # fmt: skip
    model = run.record.model
    left_out = [f"{curve.lens}{'' if len(kind.quantities) == 1 else f', {curve.quantity.label}'}" for curve in absent]
    return sentences(
        [
            kind.means,
            f"{model.id}, prompt {prompt_name(run, prompt)}, last position, layers 0 to {model.n_layers}.",
            *(course(line.name, line.known, kind.unit) for line in lines),
            milestone_sentence(named, run.record.protocol.headline_lens),
            None if reference is None else f"A {_reference_words(kind, reference)}.",
            f"Left out: {listed(left_out)}, {NO_VALUE}." if left_out else None,
            caution,
        ]
    )


def _table(
    run: AnalysedRun,
    prompt: PromptKey,
    series: Sequence[_Series],
    named: Sequence[Named],
    reference: int | float | None,
) -> pl.DataFrame:
    n_layers, headline = run.record.model.n_layers, run.record.protocol.headline_lens
    at: dict[int | float, list[str]] = {}
    for milestone in named:
        if milestone.layer is not None:
            at.setdefault(milestone.layer, []).append(milestone.milestone)
    rows = [
        {
            "model": run.record.model.id,
            "prompt": prompt_name(run, prompt),
            "lens": curve.lens,
            "quantity": curve.quantity.column,
            "layer": layer,
            "depth": layer / n_layers,
            "value": None if value is None else float(value),
            "reference": None if reference is None else float(reference),
            "milestones": ", ".join(at.get(layer, [])) if curve.lens == headline else "",
        }
        for curve in series
        for layer, value in curve.values
    ]
    return pl.DataFrame(rows, schema=_TABLE)


_TABLE = {
    "model": pl.String, "prompt": pl.String, "lens": pl.String, "quantity": pl.String, "layer": pl.Int32,
    "depth": pl.Float64, "value": pl.Float64, "reference": pl.Float64, "milestones": pl.String,
}  # fmt: skip
