"""A small lens grid as HTML for a notebook: no script, inline styles, every text escaped, on light and dark grounds.

A notebook's own colours are not known here: cells bring both ground and ink, and all other text takes the notebook's.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.text import printable, visible
from layerscope.view.palette import VIRIDIS, ink, shade

MOST_LAYERS, MOST_POSITIONS = 13, 6
"""What a small grid shows at most; with more it would fill the screen."""
NO_GROUND = "#8a8f98"
"""Of a cell whose probability is not known, or withheld."""
QUIET = 0.8
"""Opacity of what stands back: the contrast stays above 4.5 for text with one of 10 and more."""
_PLAIN = "padding:2px 6px;white-space:nowrap;"
_CUT = f"{_PLAIN}max-width:7em;overflow:hidden;text-overflow:ellipsis;text-align:left;"
_CELL = f"{_CUT}border:1px solid transparent;background-clip:padding-box;"
_BARE = "font-weight:normal;background:transparent;color:inherit;border:0;"
_NUMBER = f"{_BARE}{_PLAIN}text-align:right"
_ROW = "background:transparent;"  # JupyterLab stripes rows


@dataclass(frozen=True)
class Cell:
    """What one layer would say at one position."""

    token: str | None
    """Most likely token; None where there is none."""
    p: float | None = None
    """Its probability; None where it is not known, or withheld."""
    instead: str = "not finite"
    """What is said where there is no token."""


@dataclass(frozen=True)
class Column:
    """Numbers of the last position that stand beside the grid, already in print."""

    head: str
    texts: tuple[str, ...]
    """A text a layer."""


@dataclass(frozen=True)
class SmallGrid:
    """Layers by positions, as far as they fit."""

    caption: str
    layers: tuple[int, ...]
    """From shallow to deep."""
    positions: tuple[int, ...]
    tokens: tuple[str | None, ...]
    """What the model reads at each position; None where that is not known."""
    cells: tuple[tuple[Cell, ...], ...]
    """As [layer][position]."""
    columns: tuple[Column, ...] = ()


def grid_html(grid: SmallGrid) -> Markup:
    """The last layer on top, as on the page; tokens coloured by their probability, those without one grey."""
    heads = Markup("").join(
        Markup('<th scope="col" style="{}{}">{}<br>{}</th>').format(_BARE, _CUT, position, _token(token))
        for position, token in zip(grid.positions, grid.tokens, strict=True)
    )
    heads += Markup("").join(
        Markup('<th scope="col" style="{}">{}</th>').format(_NUMBER, printable(column.head)) for column in grid.columns
    )
    rows = Markup("").join(_row(grid, place) for place in reversed(range(len(grid.layers))))
    return Markup(
        '<table style="border-collapse:separate;border-spacing:0;font-size:12px;margin:4px 0;width:auto">'
        '<caption style="caption-side:top;text-align:left;color:inherit;padding:2px 6px">{}</caption>'
        '<thead style="border:0"><tr style="{}"><th scope="col" style="{}">layer</th>{}</tr></thead>'
        "<tbody>{}</tbody></table>"
    ).format(printable(grid.caption), _ROW, _NUMBER, heads, rows)


def scale_html(*, withheld: bool = False) -> Markup:
    """What the colours stand for."""
    if withheld:
        return quiet("Cells are grey, for their probabilities are withheld.")
    stops = ",".join(VIRIDIS)
    ramp = f"display:inline-block;width:80px;height:9px;background:linear-gradient(to right,{stops})"
    return Markup(
        '<div style="font-size:12px;opacity:{}">probability of the token: 0 <span style="{}"></span> 1; grey: not known'
        "</div>"
    ).format(QUIET, ramp)


def quiet(text: str) -> Markup:
    """A line that stands back."""
    return Markup('<div style="font-size:12px;opacity:{}">{}</div>').format(QUIET, printable(text))


def strong(text: str) -> Markup:
    """A line that stands out."""
    return Markup('<div style="font-weight:600">{}</div>').format(printable(text))


def line(text: str) -> Markup:
    """A line like any other."""
    return Markup("<div>{}</div>").format(printable(text))


def card(parts: Iterable[Markup]) -> str:
    """Everything a cell of a notebook shows of one value."""
    inside = Markup("").join(parts)
    return str(Markup('<div style="line-height:1.45;max-width:60em">{}</div>').format(inside))


def ground(p: float | None) -> str:
    """The colour of a cell, as on the page and in charts: bright is probable."""
    return NO_GROUND if p is None or math.isnan(p) else shade(p)


def _row(grid: SmallGrid, place: int) -> Markup:
    layer = grid.layers[place]
    cells = Markup("").join(
        _cell(cell, f"layer {layer}, position {position}")
        for cell, position in zip(grid.cells[place], grid.positions, strict=True)
    )
    cells += Markup("").join(
        Markup('<td style="{}">{}</td>').format(_NUMBER, column.texts[place]) for column in grid.columns
    )
    head = Markup('<th scope="row" style="{}">{}</th>').format(_NUMBER, layer)
    return Markup('<tr style="{}">{}{}</tr>').format(_ROW, head, cells)


def _cell(cell: Cell, where: str) -> Markup:
    token = cell.instead if cell.token is None else visible(cell.token)
    colour = ground(cell.p)
    known = "" if colour == NO_GROUND else f", p {short_text(cell.p)}"
    return Markup('<td title="{}" style="{}background-color:{};color:{}"><bdi>{}</bdi></td>').format(
        f"{where}: {token}{known}", _CELL, colour, ink(colour), token
    )


def _token(token: str | None) -> Markup:
    return Markup("<bdi>{}</bdi>").format(ABSENT if token is None else visible(token))
