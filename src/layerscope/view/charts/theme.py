"""What a page decides about its charts: type, ground, and the colours of everything that is no data."""

from dataclasses import dataclass
from typing import Any

from layerscope.view.palette import DARK_GROUND, LIGHT_GROUND

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
MILESTONE, REFERENCE, BAND, ROW_NAME, QUIET = "milestone", "reference", "band", "row-name", "quiet"
"""Styles that marks name and a page's own configuration may set."""


@dataclass(frozen=True)
class _Tones:
    ground: str
    text: str
    dim: str
    """Axes, subtitles, rules; a contrast of at least 4.5 to the ground, for some of it is text."""
    grid: str


_LIGHT = _Tones(LIGHT_GROUND, "#1a1d21", "#5b626b", "#e7e9ec")
_DARK = _Tones(DARK_GROUND, "#e9ebee", "#a3abb5", "#2a2f37")


def config(dark: bool) -> dict[str, Any]:
    """A Vega-Lite configuration for a light or a dark page; give it to vega-embed, or to a chart's `vega_lite`."""
    tones = _DARK if dark else _LIGHT
    return {
        "background": tones.ground,
        "font": FONT,
        "padding": 8,
        "view": {"stroke": None},
        "title": {
            "color": tones.text, "subtitleColor": tones.dim, "fontSize": 15, "fontWeight": 600, "subtitleFontSize": 12,
            "subtitleLineHeight": 16, "anchor": "start", "frame": "bounds", "offset": 10, "subtitlePadding": 5,
        },
        "axis": {
            "labelColor": tones.dim, "titleColor": tones.text, "gridColor": tones.grid, "domainColor": tones.dim,
            "tickColor": tones.dim, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500,
            "titlePadding": 8,
        },
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": {
            "labelColor": tones.text, "titleColor": tones.dim, "labelFontSize": 12, "titleFontSize": 12,
            "symbolStrokeWidth": 2, "symbolSize": 110, "titleFontWeight": 500, "columnPadding": 14,
        },
        "text": {"color": tones.text, "fontSize": 11},
        "rule": {"color": tones.dim},
        "style": {
            MILESTONE: {"color": tones.text, "stroke": None, "fontSize": 11, "fontWeight": 500},
            f"{MILESTONE}-rule": {"color": tones.dim, "strokeWidth": 1, "opacity": 0.8},
            REFERENCE: {"color": tones.text, "strokeWidth": 1.2, "strokeDash": [6, 4], "opacity": 0.75},
            BAND: {"opacity": 0.28},
            ROW_NAME: {"color": tones.text, "fontSize": 12, "fontWeight": 500},
            QUIET: {"color": tones.dim, "fontSize": 11},
        },
    }  # fmt: skip
