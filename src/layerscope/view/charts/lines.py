"""Lines over layers, drawn: axes, legend, marks, and one tooltip for each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import altair as alt

from layerscope.analysis.curve_shapes import Points, points
from layerscope.view.charts.chart_spec import Datum, data_of
from layerscope.view.charts.theme import REFERENCE
from layerscope.view.palette import GREY, Look

LEGEND_COLUMNS = 3
DEPTH_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)
THICK, THIN = 2.6, 1.7
"""Widths of lines in pixels."""
GROUP_DASHES = ((1, 0), (6, 3), (2, 2))
MARKED = 12
"""About how many points of a line bear its shape."""


Values: TypeAlias = tuple[tuple[int, int | float | None], ...]
"""A curve by layer; None where there is no value."""


@dataclass(frozen=True)
class Line:
    """One series over layers."""

    series: str
    """What its colour, dash and shape stand for, as the legend calls it."""
    look: Look
    curve: Values
    """By layer; None breaks the line."""
    strong: bool = False
    """Whether it is the one that the chart is about."""
    group: str | None = None
    """What its dash stands for instead, where lines are of several kinds."""

    @property
    def known(self) -> Points:
        """The layers that have a value."""
        return points(self.curve)

    @property
    def name(self) -> str:
        """Tells it from every other line of the chart."""
        return self.series if self.group is None else f"{self.series}, {self.group}"


@dataclass(frozen=True)
class Axes:
    """What the lines are drawn against."""

    n_layers: int
    y_title: str
    log: bool = False
    domain: tuple[float, float] | None = None
    """Of the vertical axis; None leaves it to the data."""
    from_zero: bool = True
    depth: bool = False
    """Whether the horizontal axis is the share of the depth, 0 to 1, instead of layers."""

    @property
    def scale(self) -> int:
        """What a layer is divided by to give its place."""
        return self.n_layers if self.depth else 1

    def x(self) -> alt.X:
        """The horizontal axis."""
        title = "depth (share of layers)" if self.depth else "layer"
        ticks: dict[str, Any] = {"values": list(DEPTH_TICKS)} if self.depth else {"tickMinStep": 1}
        axis = alt.Axis(grid=False, format=".1f" if self.depth else "d", labelFlush=False, **ticks)
        return alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(domain=[0, self.n_layers / self.scale], nice=False))

    def y(self, field: str = "y") -> alt.Y:
        """The vertical axis, for the values of a field."""
        if self.log:
            axis = alt.Axis(format="~s", values=[10**power for power in range(10)])
            return alt.Y(f"{field}:Q", title=self.y_title, axis=axis, scale=alt.Scale(type="log", domainMin=1))
        domain = alt.Undefined if self.domain is None else list(self.domain)
        scale = alt.Scale(domain=domain, zero=self.from_zero, nice=True)
        return alt.Y(f"{field}:Q", title=self.y_title, axis=alt.Axis(tickCount=6), scale=scale)


def line_layers(lines: Sequence[Line], axes: Axes) -> list[alt.Chart]:
    """The lines with shapes on some of their points; colour, dash and shape say the same.

    Lines have fixed colours and the shapes have the legend, for in one of both a dash would run around small symbols.
    """
    looks = {line.series: line.look for line in lines}
    marked = [datum for place, line in enumerate(lines) for datum in _marked(line, axes, place, len(lines))]
    shapes = alt.Chart(data_of(marked)).mark_point(filled=True, size=42, opacity=1, aria=False)
    colour, shape = encoded("series:N", looks, _legend())
    return [*_drawn(lines, axes), shapes.encode(axes.x(), axes.y(), color=colour, shape=shape)]


def encoded(field: str, looks: Mapping[str, Look], legend: alt.Legend) -> tuple[alt.Color, alt.Shape]:
    """A field of names as colour and shape, with one legend for both."""
    colours = alt.Scale(domain=list(looks), range=[look.colour for look in looks.values()])
    shapes = alt.Scale(domain=list(looks), range=[look.shape for look in looks.values()])
    return alt.Color(field, scale=colours, legend=legend), alt.Shape(field, scale=shapes, legend=legend)


def hover_layer(lines: Sequence[Line], axes: Axes) -> alt.Chart:
    """A rule that follows the pointer from layer to layer, and all values there as a tooltip."""
    by_layer: dict[int, dict[str, Any]] = {}
    for place, line in enumerate(lines):
        for layer, value in line.known:
            by_layer.setdefault(layer, {"x": place_of(layer, axes), "layer": layer})
            by_layer[layer][f"v{place}"] = value
    pointer = alt.selection_point(name="pointer", fields=["layer"], nearest=True, on="pointerover", empty=False)
    tips = [alt.Tooltip("layer:Q", title="layer")]
    tips += [alt.Tooltip(f"v{place}:Q", title=line.name, format=".4~g") for place, line in enumerate(lines)]
    rows = [by_layer[layer] for layer in sorted(by_layer)]
    rule = alt.Chart(data_of(rows)).mark_rule(strokeWidth=6, aria=False).add_params(pointer)
    shown = alt.OpacityValue(0, condition={"param": "pointer", "value": 0.25, "empty": False})
    chart: alt.Chart = rule.encode(axes.x(), shown, tooltip=tips)
    return chart


def reference_layer(value: int | float) -> alt.Chart:
    """A dashed line across the chart."""
    chart: alt.Chart = alt.Chart(data_of([{"y": value}])).mark_rule(style=REFERENCE, aria=False).encode(alt.Y("y:Q"))
    return chart


def place_of(layer: int, axes: Axes) -> int | float:
    """Where a layer lies on the horizontal axis."""
    return layer / axes.scale if axes.depth else layer


def _drawn(lines: Sequence[Line], axes: Axes) -> list[alt.Chart]:
    """One layer for each line; where lines have groups, the dash stands for these and has its own legend."""
    groups = list(dict.fromkeys(line.group for line in lines if line.group is not None))
    dashes = alt.Scale(domain=groups, range=[list(dash) for dash in GROUP_DASHES[: len(groups)]])
    layers = []
    for line in lines:
        dash = alt.Undefined if groups else list(line.look.dash)
        chart = alt.Chart(data_of(_line_data(line, axes))).mark_line(
            color=line.look.colour, strokeDash=dash, strokeWidth=THICK if line.strong else THIN, aria=False
        )
        by_group = {"strokeDash": alt.StrokeDash("group:N", scale=dashes, legend=_legend("stroke"))} if groups else {}
        layers.append(chart.encode(axes.x(), axes.y(), **by_group))
    return layers


def _legend(symbol: str | None = None) -> alt.Legend:
    """Below the plot, in as many lines as a phone needs."""
    kind: dict[str, Any] = {} if symbol is None else {"symbolType": symbol, "symbolStrokeColor": GREY}
    return alt.Legend(title=None, orient="bottom", columns=LEGEND_COLUMNS, labelLimit=220, **kind)


def _line_data(line: Line, axes: Axes) -> list[Datum]:
    group = {} if line.group is None else {"group": line.group}
    return [{"x": place_of(layer, axes), "y": value, "series": line.series, **group} for layer, value in line.curve]


def _marked(line: Line, axes: Axes, place: int, of: int) -> list[Datum]:
    """Every so many points, shifted from line to line so that shapes on one course do not cover each other."""
    every = max(round(len(line.curve) / MARKED), 1)
    shift = place * every // of
    kept = [point for at, point in enumerate(line.curve) if (at - shift) % every == 0 and point[1] is not None]
    return _line_data(Line(line.series, line.look, tuple(kept), group=line.group), axes)
