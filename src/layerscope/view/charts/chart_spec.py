"""A chart with what belongs to it: a name, words for those who do not see it, and its data as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import altair as alt
import polars as pl

from layerscope.view.charts.theme import config

SIGNIFICANT_DIGITS = 6
"""Of numbers in a chart; the table keeps all of them."""
SUBTITLE_WIDTH = 52
"""Letters of a subtitle's line, so that it fits a phone of 320 pixels."""
WIDTH = 640
"""Of the plot of a chart that stands by itself, in pixels."""
Datum: TypeAlias = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, eq=False)
class ChartSpec:
    """One chart, ready for a page, a notebook or a paper."""

    name: str
    """Fit for a file: `trajectories-entropy_bits`."""
    title: str
    description: str
    """What the chart shows, in sentences made from the data."""
    chart: alt.LayerChart
    """As wide as what it is put in, unless its `properties` are given a width."""
    table: pl.DataFrame
    """The data at full precision, one row for each value or mark; absent ones have their reason."""

    def vega_lite(self, *, width: int | None = None, dark: bool | None = None) -> dict[str, Any]:
        """The specification as a dictionary.

        Args:
            width: of the plot without its axis, in pixels; where not given, that of its container.
            dark: which of the two configurations to put in; none where not given.
        """
        chart = self.chart if width is None else self.chart.properties(width=width)
        spec: dict[str, Any] = chart.to_dict()
        return spec if dark is None else spec | {"config": config(dark)}

    def figure(self, *, width: int | None = WIDTH, dark: bool = False) -> alt.LayerChart:
        """The chart by itself, with the page's type and colours and a width of its own: for a notebook or a file.

        To lay it over another chart, start from `chart`: Altair joins none that bring a configuration.
        """
        chart = self.chart if width is None else self.chart.properties(width=width)
        figure: alt.LayerChart = chart.configure(**config(dark))
        return figure

    def svg(self, *, width: int | None = WIDTH, dark: bool = False) -> str:
        """The chart as an SVG picture, drawn without a browser; a grid has its own width where None is given."""
        import vl_convert

        return str(vl_convert.vegalite_to_svg(self.vega_lite(width=width, dark=dark)))

    def png(self, *, width: int | None = WIDTH, dark: bool = False, scale: float = 2.0) -> bytes:
        """The chart as a PNG picture, drawn without a browser."""
        import vl_convert

        return bytes(vl_convert.vegalite_to_png(self.vega_lite(width=width, dark=dark), scale=scale))


def data_of(rows: Sequence[Datum]) -> alt.InlineData:
    """Rows for a chart; equal ones are kept once in it."""
    # A tuple, because Altair copies lists and all that is in them with every layer and property of a chart.
    return alt.InlineData(values=tuple({key: _rounded(value) for key, value in row.items()} for row in rows))


def y_at(pixel: int | float) -> alt.YValue:
    """A place counted in pixels from the top of the plot; built so, Altair need not search its schema for it."""
    return alt.YValue(pixel)  # type: ignore[no-untyped-call]


def titled(text: str, lines: Sequence[str]) -> alt.TitleParams:
    """A title with smaller lines under it, broken where a phone would cut them off."""
    return alt.TitleParams(text=text, subtitle=[part for line in lines for part in _broken(line)])


def built(
    name: str,
    title: str,
    notes: Sequence[str],
    description: str,
    layers: Sequence[alt.Chart],
    height: int,
    table: pl.DataFrame,
) -> ChartSpec:
    """The layers as one chart that fills its container, with notes under its title."""
    head = titled(title, notes)
    chart = layered(layers, width="container", height=height, title=head, description=description)
    return ChartSpec(name, title, description, chart, table)


def layered(layers: Sequence[alt.Chart], **properties: Any) -> alt.LayerChart:
    """Charts on top of each other, the first at the bottom; properties are the whole chart's."""
    chart = alt.layer(*layers, **properties)
    assert isinstance(chart, alt.LayerChart)  # of plain charts it always is
    return chart


def _broken(line: str) -> list[str]:
    """At spaces alone, into as few lines as fit, of much the same length; a word longer than a line stays whole."""
    fewest = _filled(line, SUBTITLE_WIDTH)
    narrower = (_filled(line, width) for width in range(SUBTITLE_WIDTH // 2, SUBTITLE_WIDTH))
    return next((lines for lines in narrower if len(lines) == len(fewest)), fewest)


def _filled(line: str, width: int) -> list[str]:
    lines = [""]
    for word in line.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _rounded(value: str | int | float | bool | None) -> str | int | float | bool | None:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
