"""Two models of one shape, drawn: errors by layer, what lenses make of them, and a grid of each at one prompt."""

from collections.abc import Iterator

import polars as pl

from layerscope.analysis.model_diff import ModelDiff
from layerscope.report.sentences.model_diff import title
from layerscope.report.text import printable
from layerscope.view.charts.chart_spec import ChartSpec, built, titled
from layerscope.view.charts.grid import Shade, cells_chart
from layerscope.view.charts.lines import Axes, Line, Values, hover_layer, line_layers
from layerscope.view.charts.words import course, sentences
from layerscope.view.palette import series_look

HEIGHT = 260
ERRORS = {"change": "relative_change", "injected": "injected", "inherited": "inherited"}
BITS = {"both lenses": "kl_bits", "injected error alone": "injected_kl_bits"}
_APART = Shade("kl_bits", "KL(base || variant) (bits)", bright_is_low=True)


def diff_charts(found: ModelDiff) -> Iterator[ChartSpec]:
    """Errors by layer, and divergences by layer."""
    yield _by_layer(found, "errors", "Where residuals part", ERRORS, "over the norm of the base's residual", "")
    yield _by_layer(found, "lenses", "What the logit lens makes of it", BITS, "KL (bits)", " bits")


def diff_grids(found: ModelDiff, rows: pl.DataFrame) -> Iterator[ChartSpec]:
    """Both models' logit lenses at the first prompt; nothing where none was asked.

    Args:
        found: the comparison.
        rows: its table, with the columns of `layerscope.record.diff_rows.DIFF_COLUMNS`.
    """
    prompts = rows.filter("is_prompt")
    if not prompts.is_empty():
        first = prompts.filter(pl.col("text") == prompts["text"].min())
        for side in ("base", "variant"):
            yield _grid(found, first, side)


def _by_layer(found: ModelDiff, name: str, heading: str, what: dict[str, str], y_title: str, unit: str) -> ChartSpec:
    curves: dict[str, Values] = {
        series: tuple((layer.layer, getattr(layer, measure)) for layer in found.layers)
        for series, measure in what.items()
    }
    lines = [Line(series, series_look(place), curve) for place, (series, curve) in enumerate(curves.items())]
    axes = Axes(len(found.layers) - 1, y_title)
    means = "medians" if what is ERRORS else "means"
    notes = [printable(title(found)), f"{means.capitalize()} over {found.n_rows} positions of text"]
    description = sentences(
        [f"{heading}, by layer: {means} over positions, {y_title}."]
        + [course(line.name, line.known, unit) for line in lines if line.known]
    )
    table = pl.DataFrame(
        {"layer": [layer.layer for layer in found.layers]}
        | {measure: [getattr(layer, measure) for layer in found.layers] for measure in what.values()},
        schema={"layer": pl.Int32} | dict.fromkeys(what.values(), pl.Float64),
    )
    layers = [*line_layers(lines, axes), hover_layer(lines, axes)]
    return built(f"diff-{name}", heading, notes, description, layers, HEIGHT, table)


def _grid(found: ModelDiff, rows: pl.DataFrame, side: str) -> ChartSpec:
    """One model's most likely tokens at a prompt; the colour, the same in both grids, is how far the two lenses are
    apart."""
    own, other = f"{side}_top1", f"{'variant' if side == 'base' else 'base'}_top1"
    cells = rows.select(
        "layer",
        "position",
        "token",
        "kl_bits",
        pl.col(own).alias("top1"),
        (pl.col(f"{own}_id") != pl.col(f"{other}_id")).alias("answer_led"),
    ).sort("position", "layer")
    model = found.base if side == "base" else found.variant
    heading = f"Logit lens of the {side}"
    highest = float(str(cells["kl_bits"].max()))
    n_apart, n = int(cells["answer_led"].sum()), len(cells)
    notes = [printable(model.id), "Bold: the two have different tokens on top"]
    description = sentences(
        [
            f"Most likely token of each layer and position under the logit lens of {printable(model.id)}.",
            f"In {n_apart} of {n} cells the two models have different tokens on top; the largest KL between them is "
            f"{highest:.3g} bits.",
        ]
    )
    chart = cells_chart(cells, _APART, (0.0, max(highest, 1e-6)), title=titled(heading, notes), description=description)
    table = cells.rename({"answer_led": "differs"})
    return ChartSpec(f"diff-grid-{side}", heading, description, chart, table)
