"""Colours, dashes and shapes: told apart without colour vision, and legible on a light ground and on a dark one."""

from collections.abc import Sequence
from dataclasses import dataclass

LIGHT_GROUND, DARK_GROUND = "#ffffff", "#14171c"
"""What charts are drawn on; every mark's colour has a contrast of at least 3 to both."""


@dataclass(frozen=True)
class Look:
    """How a series is drawn: each part alone tells it from the others."""

    colour: str
    dash: tuple[int, ...]
    """Lengths of strokes and gaps in pixels; [1, 0] is a solid line."""
    shape: str
    """A symbol of Vega."""


SOLID = (1, 0)
# Okabe & Ito 2008, "Color Universal Design", without its yellow; orange, sky blue and reddish purple are darker here,
# for as they stand they are too pale for a white ground.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY = (
    "#0072b2", "#d55e00", "#009e73", "#c26a9c", "#b47a00", "#2e8fc4", "#7f7f7f",
)  # fmt: skip
LENSES = {
    "logit": Look(BLUE, SOLID, "circle"),
    "next_norm": Look(VERMILLION, (8, 3), "triangle-up"),
    "raw": Look(GREY, (2, 3), "square"),
    "tuned": Look(GREEN, (10, 3, 2, 3), "diamond"),
    "prism": Look(PURPLE, (5, 2, 1, 2, 1, 2), "cross"),
    "ridge": Look(ORANGE, (4, 4), "triangle-down"),
    "jacobian": Look(SKY, (12, 3), "triangle-left"),
}
SERIES = (
    Look(BLUE, SOLID, "circle"),
    Look(VERMILLION, (8, 3), "triangle-up"),
    Look(GREEN, (2, 3), "square"),
    Look(PURPLE, (10, 3, 2, 3), "diamond"),
    Look(ORANGE, (5, 2, 1, 2, 1, 2), "cross"),
    Look(SKY, (4, 4), "triangle-down"),
)
"""For series that are no lenses, and for lenses without a place of their own."""
VIRIDIS = (
    "#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26",
    "#fde725",
)  # fmt: skip
"""Eleven even steps of the scale, dark to light. Source: Smith & van der Walt 2015, for Matplotlib."""


def lens_look(lens: str, place: int) -> Look:
    """The look of a lens, the same in every chart; of one without a place of its own, by its place in the chart."""
    return LENSES.get(lens) or SERIES[place % len(SERIES)]


def series_look(place: int) -> Look:
    """The look of a series by its place in the chart."""
    return SERIES[place % len(SERIES)]


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, 0 to 1. Source: WCAG 2.2, "relative luminance"."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21. Source: WCAG 2.2, "contrast ratio"."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def shade(share: float, scale: Sequence[str] = VIRIDIS) -> str:
    """The colour at a share, 0 to 1, of the way along a scale."""
    place = min(max(share, 0.0), 1.0) * (len(scale) - 1)
    low = min(int(place), len(scale) - 2)
    ends = [[int(scale[at][i : i + 2], 16) for i in (1, 3, 5)] for at in (low, low + 1)]
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def ink(ground: str) -> str:
    """Black or white, whichever reads better on a colour: the contrast is at least 4.5."""
    return max("#000000", "#ffffff", key=lambda colour: contrast(colour, ground))
