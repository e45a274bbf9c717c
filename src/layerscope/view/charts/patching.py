"""Where patches say that an answer is carried: by layer at two positions, and as a map of layers and positions."""

from collections.abc import Callable, Mapping

import altair as alt
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.handover import CARRIED, Patching
from layerscope.errors import RunError
from layerscope.record.patches import PAIR, RANDOM, SAME_ANSWER, UNRELATED
from layerscope.report.sentences import patching as words
from layerscope.report.text import visible
from layerscope.view.charts.chart_spec import ChartSpec, Datum, built, data_of, y_at
from layerscope.view.charts.lines import Axes, Line, Values, hover_layer, line_layers, reference_layer
from layerscope.view.charts.rules import Named, rule_layers
from layerscope.view.charts.trajectories import HEIGHT
from layerscope.view.charts.words import course, model_name, sentences
from layerscope.view.palette import VIRIDIS, series_look

EFFECTS, MAP = "effects", "map"
PATCHING = (EFFECTS, MAP)
"""What `patching` draws, by name."""
NAMES = {
    "next": "last token",
    "subject": "subject",
    SAME_ANSWER: "same fact, other wording",
    UNRELATED: "third fact",
    RANDOM: "random step",
}
"""What each curve is called in the legend; the last three are controls at the last token."""
MEANS = (
    "Effect of writing one fact's residual into another's run: (LD patched - LD base) / (LD source - LD base), 0 where "
    "nothing comes of it, 1 where the run says what the source's says; median over pairs."
)
_ROW_HEIGHT = 12
"""Of a layer in the map, in pixels."""
_LONGEST = 9


def patching(run: AnalysedRun, metric: str) -> ChartSpec:
    """What patches say of a run.

    Args:
        run: what to draw.
        metric: a name of `PATCHING`.

    Raises:
        RunError: no such chart, nothing was patched, or not at all positions.
    """
    drawn: Mapping[str, Callable[[AnalysedRun, Patching], ChartSpec]] = {EFFECTS: _effects, MAP: _map}
    if metric not in drawn:
        raise RunError(f"There is no chart '{metric}' of patching; choose from {', '.join(PATCHING)}.")
    found = run.diagnostics.patching
    if found is None:
        raise RunError("This run was made without patching; probe again without --no-causal.")
    if found.reason is not None:
        raise RunError(f"Nothing was patched in this run: {found.reason}.")
    return drawn[metric](run, found)


def _effects(run: AnalysedRun, found: Patching) -> ChartSpec:
    curves = {"next": found.effects.next, "subject": found.effects.subject, **found.effects.controls}
    lines = [
        Line(NAMES[name], series_look(at), tuple(enumerate(curve)), name == "next")
        for at, (name, curve) in enumerate(curves.items())
        if curve
    ]
    axes = Axes(found.handover.n_layers, "effect (share)", domain=_domain([line.curve for line in lines]))
    named = _milestones(run, found)
    layers = [reference_layer(CARRIED), *rule_layers(named, axes.n_layers)]
    layers += [*line_layers(lines, axes), hover_layer(lines, axes)]
    title = "Where the answer is carried"
    told = words.sentence(found, run.record.protocol.headline_lens)
    notes = [
        f"{model_name(run)} · median over {words.facts_in_pairs(found.handover.n_facts, found.handover.n_pairs)}",
        f"Dashed line at {CARRIED:g}: above it the answer is carried, where a third fact's residual does less",
    ]
    description = sentences(
        [MEANS, *(course(line.name, line.known) for line in lines), f"{told[:1].upper()}{told[1:]}."]
    )
    rows = [
        {"model": run.record.model.id, "curve": line.series, "layer": layer, "effect": value}
        for line in lines
        for layer, value in line.curve
    ]
    table = pl.DataFrame(rows, schema={"model": pl.String, "curve": pl.String, "layer": pl.Int32, "effect": pl.Float64})
    return built("patching-effects", title, notes, description, layers, HEIGHT, table)


def _domain(curves: list[Values]) -> tuple[float, float]:
    """Zero to one, or as far as the effects go."""
    known = [value for curve in curves for _, value in curve if value is not None]
    return min(0.0, *known), max(1.0, *known)


def _milestones(run: AnalysedRun, found: Patching) -> list[Named]:
    headline = run.record.protocol.headline_lens
    lens = found.by_lens.get(headline, {}).get("on_top_for_good")
    named = [Named("handover", "carried", found.handover.layer, None)]
    if lens is not None and lens.layer is not None and run.record.ranks_stand:
        named.append(Named("on_top_for_good", f"{headline}: on top", lens.layer, None))
    return named


def _map(run: AnalysedRun, found: Patching) -> ChartSpec:
    record = run.record.measured.patching
    if record is None or record.positions != "all":
        raise RunError("Residuals were written at two positions alone; probe with --causal-positions all for a map.")
    cells = (
        run.patches.filter(pl.col("kind") == PAIR)
        .group_by("layer", "from_end")
        .agg(pl.col("effect").median(), pl.col("effect").count().alias("n_pairs"))
        .sort("from_end", "layer", descending=[True, False])
    )
    tokens = _tokens(run)
    rows: list[Datum] = [
        row | {"token": tokens.get(row["from_end"], ""), "shown": min(max(row["effect"], 0.0), 1.0)}
        for row in cells.drop_nulls("effect").iter_rows(named=True)
    ]
    x = alt.X("from_end:O", title="tokens before the last one", sort="descending", axis=alt.Axis(labelAngle=0))
    y = alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(labelOverlap=True))
    scale = alt.Scale(domain=[0, 1], range=list(VIRIDIS), interpolate="rgb")
    legend = alt.Legend(title="median effect", orient="bottom", gradientLength=200, tickCount=4)
    tips = [
        alt.Tooltip("layer:O"), alt.Tooltip("from_end:O", title="tokens before the last"), alt.Tooltip("token:N"),
        alt.Tooltip("effect:Q", format=".3~f"), alt.Tooltip("n_pairs:Q", title="pairs"),
    ]  # fmt: skip
    ground = alt.Chart(data_of(rows)).mark_rect(aria=False)
    heads = [{"from_end": place, "token": _short(tokens.get(place, ""))} for place in cells["from_end"].unique()]
    labels = alt.Chart(data_of(heads)).mark_text(angle=315, align="left", baseline="bottom", dy=-4, aria=False)
    title = "What each position carries"
    notes = [
        f"{model_name(run)} · median over {words.facts_in_pairs(found.handover.n_facts, found.handover.n_pairs)}",
        "Tokens are those of the first fact's prompt",
    ]
    description = sentences(
        [
            MEANS,
            _reached(cells),
            "Positions before the first difference are equal, and left out; of two lengths all up to the subject.",
        ]
    )
    layers = [
        ground.encode(x, y, color=alt.Color("shown:Q", scale=scale, legend=legend), tooltip=tips),
        labels.encode(x, y_at(0), alt.Text("token:N")),
    ]
    height = _ROW_HEIGHT * (found.handover.n_layers + 1)
    table = cells.with_columns(model=pl.lit(run.record.model.id))
    return built("patching-map", title, notes, description, layers, height, table)


def _tokens(run: AnalysedRun) -> dict[int, str]:
    """The primary prompt's tokens by how many stand behind them."""
    primary = run.verdict.curves.primary
    if primary is None:
        return {}
    prompt = run.record.prompt(primary)
    tokens = None if prompt is None else prompt.tokens
    return {} if tokens is None else {len(tokens) - 1 - i: token for i, token in enumerate(tokens)}


def _short(token: str) -> str:
    shown = visible(token.removeprefix(" ") or token)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _reached(cells: pl.DataFrame) -> str:
    """Where the carrier stands, layer range by position."""
    carried = cells.filter(pl.col("effect") >= CARRIED).group_by("from_end").agg(
        pl.col("layer").min().alias("first"), pl.col("layer").max().alias("last")
    ).sort("first", "from_end", descending=[False, True])  # fmt: skip
    told = [
        f"{'the last token' if at == 0 else f'{at} before it'} at layers {first} to {last}"
        for at, first, last in carried.iter_rows()
    ]
    return f"The median effect is {CARRIED:g} or more at {'; '.join(told)}." if told else "It is nowhere large."
