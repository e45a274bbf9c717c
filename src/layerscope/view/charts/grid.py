"""The lens grid as a picture: layers by positions, the most likely token in each cell, a value as its colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2, log10
from types import MappingProxyType
from typing import Any

import altair as alt
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.errors import RunError
from layerscope.record.prompt_key import PromptKey
from layerscope.report.numbers import amount
from layerscope.report.text import visible
from layerscope.view.charts.chart_spec import ChartSpec, Datum, data_of, layered, titled, y_at
from layerscope.view.charts.theme import QUIET
from layerscope.view.charts.words import model_name, prompt_name, sentences
from layerscope.view.palette import VIRIDIS, ink, shade

CELL_WIDTH, CELL_HEIGHT = 60, 20
"""In pixels."""
LONGEST = 12
"""Letters of a token in a cell; the tooltip has all."""
NO_GROUND = "#8a8f98"
"""Of a cell without a value."""


@dataclass(frozen=True)
class Shade:
    """What a cell's colour stands for."""

    column: str
    """Of the cells, which has the value,"""
    legend: str
    """and what it is called."""
    bright_is_low: bool
    """Whether the bright end of the scale is the small one: bright is always certain, or near the answer."""
    log: bool = False


_SHADES: Mapping[str, Shade] = MappingProxyType(
    {
        "entropy": Shade("entropy_bits", "entropy (bits)", True),
        "probability": Shade("p_top1", "probability of the token", False),
        "rank": Shade("answer_rank", "rank of the answer (log)", True, log=True),
        "kl": Shade("kl_to_final_bits", "KL to final (bits)", True),
    }
)


def grid(
    run: AnalysedRun,
    lens: str | None = None,
    colour: str = "entropy",
    *,
    prompt: PromptKey | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> ChartSpec:
    """One prompt under one lens, the last layer on top; tokens are bold where the answer has rank 1.

    Args:
        run: what to draw.
        lens: the headline lens where not given.
        colour: what it stands for: `entropy`, `probability`, `rank` or `kl`.
        prompt: which prompt; the primary one where not given.
        layers: which; all where not given.
        positions: which; all that were decoded where not given.

    Raises:
        RunError: no such lens, prompt or colour, or nothing was read there, or no cell has a value for the colour.
    """
    if colour not in _SHADES:
        raise RunError(f"Cells have no colour '{colour}'; choose from {', '.join(_SHADES)}.")
    chosen, kind = lens or run.record.protocol.headline_lens, _SHADES[colour]
    prompt = prompt or run.verdict.curves.primary
    if prompt is None:
        raise RunError("This run has no rows of any fact, so there is no grid.")
    cells = _cells(run, chosen, prompt, layers, positions)
    if cells.is_empty():
        raise RunError(f"This run has no rows of {prompt_name(run, prompt)} under lens '{chosen}' there.")
    if cells[kind.column].null_count() == len(cells):
        raise RunError(f"This run has no `{kind.column}` in these cells; choose another colour.")
    ends = _ends(run, kind, cells)
    title_text = f"Lens grid: {chosen}"
    caution = run.record.probabilities_stand or colour == "rank"
    notes = [f"{model_name(run)} · {prompt_name(run, prompt)}", "Bold: the answer has rank 1 there"]
    notes += [] if caution else ["The last layer, decoded, is not the model's own output."]
    description = _description(run, chosen, prompt, kind, cells)
    chart = cells_chart(cells, kind, ends, title=titled(title_text, notes), description=description)
    return ChartSpec(f"grid-{chosen}-{colour}", title_text, description, chart, cells.drop("answer_led"))


def _cells(
    run: AnalysedRun, lens: str, prompt: PromptKey, layers: Sequence[int] | None, positions: Sequence[int] | None
) -> pl.DataFrame:
    cells = prompt.rows_of(run.judged_rows).filter(lens=lens)
    cells = cells if layers is None else cells.filter(pl.col("layer").is_in(list(layers)))
    cells = cells if positions is None else cells.filter(pl.col("position").is_in(list(positions)))
    columns = ["layer", "position", "token", "top1", "p_top1", "entropy_bits", "kl_to_final_bits", "answer_rank"]
    led = (pl.col("answer_rank") == 1).fill_null(False).alias("answer_led")
    return cells.select("lens", *columns, led).sort("position", "layer")


def _ends(run: AnalysedRun, kind: Shade, cells: pl.DataFrame) -> tuple[float, float]:
    """What the two ends of the scale stand for; those of entropies, ranks and probabilities are the vocabulary's."""
    d_vocab = run.record.model.d_vocab
    if kind.column == "kl_to_final_bits":
        highest = cells[kind.column].max()
        return 0.0, max(float(str(highest)), 1e-6)
    return {"entropy_bits": (0.0, log2(d_vocab)), "p_top1": (0.0, 1.0), "answer_rank": (1.0, float(d_vocab))}[
        kind.column
    ]


def _ground(kind: Shade, value: int | float | None, ends: tuple[float, float]) -> str:
    """The colour of a cell, as the scale of the chart makes it."""
    if value is None:
        return NO_GROUND
    low, high = ends
    share = log10(value / low) / log10(high / low) if kind.log else (value - low) / (high - low)
    return shade(1 - share if kind.bright_is_low else share)


def cells_chart(cells: pl.DataFrame, kind: Shade, ends: tuple[float, float], **properties: Any) -> alt.LayerChart:
    """Cells as a picture, the last layer on top.

    Args:
        cells: columns `layer`, `position`, `token`, `top1`, `answer_led` (whether the cell is bold) and the shade's.
        kind: what colours stand for.
        ends: the values at both ends of the scale.
        properties: title and description.
    """
    rows = [_datum(row, kind, ends) for row in cells.iter_rows(named=True)]
    heads: list[Datum] = [
        {"position": position, "token": _short(token)}
        for position, token in cells.select("position", "token").unique(maintain_order=True).iter_rows()
    ]
    x = alt.X("position:O", title="position", axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    y = alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(domain=False, ticks=False))
    # Dark at the left and bright at the right of every legend, whichever end is the small one.
    far_to_near = ends[::-1] if kind.bright_is_low else ends
    steps = [_at(place / (len(VIRIDIS) - 1), far_to_near, kind.log) for place in range(len(VIRIDIS))]
    scale = alt.Scale(type="log" if kind.log else "linear", domain=steps, range=list(VIRIDIS), interpolate="rgb")
    legend = alt.Legend(title=kind.legend, orient="bottom", gradientLength=200, format="~s" if kind.log else ".3~g",
                        tickCount=4)  # fmt: skip
    tips = [
        alt.Tooltip("layer:O"), alt.Tooltip("position:O"), alt.Tooltip("top:N", title="top token"),
        alt.Tooltip("value:Q", title=kind.legend, format=".4~g"),
    ]  # fmt: skip
    ground = alt.Chart(data_of(rows)).mark_rect(stroke=None, aria=False)
    leading, others = ([row for row in rows if row["led"] is led] for led in (True, False))
    limit = CELL_WIDTH - 6
    plain = alt.Chart(data_of(others)).mark_text(fontSize=10, limit=limit, aria=False)
    bold = alt.Chart(data_of(leading)).mark_text(fontSize=10, limit=limit, aria=False, fontWeight="bold")
    layers = [
        ground.encode(x, y, color=alt.Color("value:Q", scale=scale, legend=legend), tooltip=tips),
        plain.encode(x, y, alt.Text("text:N"), color=alt.Color("ink:N", scale=None), tooltip=tips),
        bold.encode(x, y, alt.Text("text:N"), color=alt.Color("ink:N", scale=None), tooltip=tips),
        alt.Chart(data_of(heads)).mark_text(style=QUIET, baseline="bottom", limit=CELL_WIDTH - 4, aria=False)
        .encode(x, y_at(-5), alt.Text("token:N")),
    ]  # fmt: skip
    chart: alt.LayerChart = layered(layers).resolve_scale(color="independent")  # ink is no value on the scale
    sized: alt.LayerChart = chart.properties(width=alt.Step(CELL_WIDTH), height=alt.Step(CELL_HEIGHT), **properties)
    return sized


def _datum(row: Mapping[str, Any], kind: Shade, ends: tuple[float, float]) -> Datum:
    value = row[kind.column]
    return {
        "layer": row["layer"],
        "position": row["position"],
        "value": value,
        "top": "n.a." if row["top1"] is None else visible(row["top1"]),
        "text": _short(row["top1"]),
        "ink": ink(_ground(kind, value, ends)),
        "led": row["answer_led"],
    }


def _short(token: str | None) -> str:
    shown = "" if token is None else visible(token.removeprefix(" ") or token)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _at(share: float, ends: tuple[float, float], log: bool) -> float:
    low, high = ends
    return float(low * (high / low) ** share) if log else low + (high - low) * share


def _description(run: AnalysedRun, lens: str, prompt: PromptKey, kind: Shade, cells: pl.DataFrame) -> str:
    known = cells.drop_nulls(kind.column)
    positions, layers = cells["position"].unique().sort(), cells["layer"].unique().sort()
    low, high = (_number(edge) for edge in (known[kind.column].min(), known[kind.column].max()))
    return sentences(
        [
            f"Most likely token of each cell under {lens}, {run.record.model.id}, prompt {prompt_name(run, prompt)}:",
            f"{len(positions)} positions, {len(layers)} layers from {layers[0]} to {layers[-1]}.",
            f"Colour is {kind.legend}, {amount(low)} to {amount(high)}{_only(known, kind.column)}.",
            f"{len(cells) - len(known)} cells have no value." if len(known) < len(cells) else None,
            _led(cells),
        ]
    )


def _led(cells: pl.DataFrame) -> str:
    """Where the answer has rank 1."""
    led = cells.filter("answer_led").sort("layer", "position")
    if led.is_empty():
        return "The answer has rank 1 in no cell."
    layer, position = led.select("layer", "position").row(0)
    many = f"{len(led)} cells, first at" if len(led) > 1 else "one cell,"
    return f"The answer has rank 1 in {many} layer {layer}, position {position}."


def _only(known: pl.DataFrame, column: str) -> str:
    """Where the smallest and the largest value stand, each only if it is in one cell."""
    places = ""
    for word, edge in (("lowest", known[column].min()), ("highest", known[column].max())):
        cells = known.filter(known[column] == edge)
        if len(cells) == 1:
            layer, position = cells.select("layer", "position").row(0)
            places += f"; {word} at layer {layer}, position {position}"
    return places


def _number(value: object) -> int | float:
    assert isinstance(value, int | float)
    return value
