"""Bars of attention and of the MLP of every block, side by side."""

from collections.abc import Sequence

import altair as alt

from layerscope.analysis.writers import ATTENTION, MLP
from layerscope.view.charts.chart_spec import Datum, data_of
from layerscope.view.palette import BLUE, VERMILLION

HEIGHT = 220
PARTS = (ATTENTION, MLP)
_COLOURS = (BLUE, VERMILLION)
"""By place as well: attention stands to the left."""


def part_bars(rows: Sequence[Datum], value: str, title: str, more: Sequence[alt.Tooltip]) -> alt.Chart:
    """One bar for each part of each block.

    Args:
        rows: with `layer`, `part` and the value.
        value: the field that is drawn.
        title: what it is, with its unit.
        more: further fields of a bar's own words.
    """
    ordered = sorted(rows, key=lambda row: (row["layer"], PARTS.index(row["part"])))
    legend = alt.Legend(title=None, orient="bottom")
    bars: alt.Chart = (
        alt.Chart(data_of(ordered))
        .mark_bar(aria=False)
        .encode(
            alt.X("layer:O", title="layer that the block writes", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            alt.Y(f"{value}:Q", title=title, axis=alt.Axis(tickCount=6)),
            xOffset=alt.XOffset("part:N", sort=list(PARTS)),
            color=alt.Color("part:N", scale=alt.Scale(domain=list(PARTS), range=list(_COLOURS)), legend=legend),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("part:N", title="part"),
                alt.Tooltip(f"{value}:Q", title=title, format="+.3f"),
                *more,
            ],
        )
    )
    return bars
