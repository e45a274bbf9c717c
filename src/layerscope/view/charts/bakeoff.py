"""A bake-off, drawn: what each lens' directions carry, with intervals, and how far each lens is from the model."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import altair as alt
import polars as pl

from layerscope.analysis.bakeoff import Bakeoff, Entrant, LensInBakeoff
from layerscope.analysis.causal_shares import CausalShare
from layerscope.analysis.drawn_facts import Median
from layerscope.report.sentences.bakeoff import lens_words
from layerscope.report.sentences.patching import facts_in_pairs
from layerscope.report.text import printable
from layerscope.view.charts.chart_spec import ChartSpec, Datum, built, data_of
from layerscope.view.charts.lines import Axes, Line, Values, hover_layer, line_layers
from layerscope.view.charts.theme import REFERENCE
from layerscope.view.charts.words import course, sentences
from layerscope.view.palette import BLUE, VERMILLION, lens_look

HEIGHT = 260
ROW = 34
"""Height of a lens in the chart of shares, in pixels."""
PARTS = {"span": (BLUE, "circle"), "rest": (VERMILLION, "square")}
"""What is written into the base's run: along the lens' directions alone, or all but that."""
FAR = 1.25
"""How much further than every other curve the raw lens' may go before it is cut off."""
FAR_AT_FIRST = 3.0
"""The same for what lenses say of the embedding, against all that comes later."""


def bakeoff_charts(found: Bakeoff) -> Iterator[ChartSpec]:
    """Effects over all layers from the handover on, over each band of them, and the divergence on text by layer."""
    yield _shares(found, found.layers, [(lens, lens.share) for lens in found.lenses])
    for band in dict.fromkeys(share.layers for lens in found.lenses for share in lens.by_band):
        of_band = [
            (lens, next((share for share in lens.by_band if share.layers == band), None)) for lens in found.lenses
        ]
        yield _shares(found, band, of_band)
    yield _on_text(found)


# What the model uses


def _shares(
    found: Bakeoff, layers: Sequence[int], lenses: Sequence[tuple[LensInBakeoff, CausalShare | None]]
) -> ChartSpec:
    """Medians with their intervals, two marks a lens."""
    rows = [
        _mark(lens_words(lens), part, effect)
        for lens, share in lenses
        if share is not None
        for part, effect in (("span", share.span), ("rest", share.complement))
    ]
    known = [share for _, share in lenses if share is not None]
    full = known[0].full if known else None
    where = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
    notes = [_name(found)]
    if known:
        bars = "no interval" if known[0].is_an_illustration else "bars: 95 % interval"
        notes = [f"{notes[0]} · {facts_in_pairs(known[0].n_facts, known[0].n_pairs)}", f"Medians over pairs, {bars}"]
    if full is not None:
        notes.append(f"Dashed line at {full.value:.2f}: the whole state's effect")
    layers_of_chart = _dots(rows, [lens_words(lens) for lens, _ in lenses])
    if full is not None:
        line: list[Datum] = [{"x": full.value}]
        layers_of_chart.insert(0, alt.Chart(data_of(line)).mark_rule(style=REFERENCE, aria=False).encode(alt.X("x:Q")))
    height = ROW * max(1, len(lenses))
    description = sentences(
        [
            "Effect of writing one fact's state into another's run along a lens' directions alone (span), and of all "
            "but that (rest): 0 where nothing comes of it, 1 where the run says what the source's says.",
            *(_mark_words(row) for row in rows),
        ]
    )
    title = f"Effects by lens, {where}"
    name = f"bakeoff-shares-{layers[0]}-{layers[-1]}"
    return built(name, title, notes, description, layers_of_chart, height, _table(found, lenses))


def _mark(lens: str, part: str, effect: Median) -> dict[str, str | float]:
    """Without ends where there is no interval."""
    mark: dict[str, str | float] = {"lens": lens, "part": part, "x": effect.value}
    return mark if effect.low is None or effect.high is None else mark | {"low": effect.low, "high": effect.high}


def _mark_words(row: Mapping[str, str | float]) -> str:
    ends = f" [{row['low']:z.2f}, {row['high']:z.2f}]" if "low" in row else ""
    return f"{row['lens']}, {row['part']}: {row['x']:z.2f}{ends}."


def _dots(rows: Sequence[Datum], lenses: Sequence[str]) -> list[alt.Chart]:
    axis = alt.Axis(grid=False, labelLimit=130, ticks=False, domain=False)
    y = alt.Y("lens:N", title=None, sort=list(lenses), axis=axis, scale=alt.Scale(domain=list(lenses)))
    beside = alt.YOffset("part:N", sort=list(PARTS))
    looks = alt.Scale(domain=list(PARTS), range=[colour for colour, _ in PARTS.values()])
    shapes = alt.Scale(domain=list(PARTS), range=[shape for _, shape in PARTS.values()])
    legend = alt.Legend(title=None, orient="bottom")
    colour = alt.Color("part:N", scale=looks, legend=legend)
    x = partial(alt.X, title="effect (share)", axis=alt.Axis(tickCount=6))
    has_ends = [row for row in rows if "low" in row]
    tips = [alt.Tooltip("lens:N"), alt.Tooltip("part:N"), alt.Tooltip("x:Q", title="median", format=".3f")]
    if has_ends:
        tips += [alt.Tooltip("low:Q", title="from", format=".3f"), alt.Tooltip("high:Q", title="to", format=".3f")]
    bars = (
        alt.Chart(data_of(has_ends))
        .mark_rule(strokeWidth=2.4, aria=False)
        .encode(x("low:Q"), y, x2="high:Q", yOffset=beside, color=colour, tooltip=tips)
    )
    dots = (
        alt.Chart(data_of(rows))
        .mark_point(filled=True, size=64, opacity=1, aria=False)
        .encode(
            x("x:Q"),
            y,
            yOffset=beside,
            color=colour,
            shape=alt.Shape("part:N", scale=shapes, legend=legend),
            tooltip=tips,
        )
    )
    return [bars, dots] if has_ends else [dots]


def _table(found: Bakeoff, lenses: Sequence[tuple[LensInBakeoff, CausalShare | None]]) -> pl.DataFrame:
    names = {"model": pl.String, "lens": pl.String, "part": pl.String, "n_facts": pl.Int32, "n_pairs": pl.Int32}
    schema = {**names, "median": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    rows = []
    for lens, share in lenses:
        if share is None:
            continue
        effects = {
            "full": share.full, "span": share.span, "rest": share.complement, "random": share.random,
            "others": share.others, "gain": share.gain, "loss": share.loss,
        }  # fmt: skip
        rows += [
            {"model": found.model, "lens": lens.lens, "part": part, "n_facts": share.n_facts, "n_pairs": share.n_pairs,
             "median": effect.value, "low": effect.low, "high": effect.high}
            for part, effect in effects.items()
            if effect is not None
        ]  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


# How well it reads


def _on_text(found: Bakeoff) -> ChartSpec:
    """Nulls are left out, and what lies far above all others is cut off; the table has everything."""
    drawn = [lens for lens in found.lenses if lens.entrant is not Entrant.NULL]
    ceiling = _ceiling(drawn)
    cut = [lens_words(lens) for lens in drawn if any(bits is not None and bits > ceiling for bits in lens.text.bits)]
    lines = [
        Line(lens_words(lens), lens_look(lens.lens, place), _below(lens, ceiling)) for place, lens in enumerate(drawn)
    ]
    lines = [line for line in lines if line.known]
    axes = Axes(found.handover.n_layers, "KL(model || lens) (bits)")
    notes = [f"{_name(found)} · mean over {found.n_text_positions} positions of {', '.join(found.text)}"]
    if cut:
        notes.append(f"Cut off above {ceiling:.1f} bits: {'; '.join(cut)}")
    description = sentences(
        ["Divergence of each lens from the model's own output on held-out text, by layer."]
        + [course(line.name, line.known, " bits") for line in lines]
    )
    rows = [
        {"model": found.model, "lens": lens.lens, "layer": layer, "kl_bits": bits, "top1": top1}
        for lens in found.lenses
        for layer, (bits, top1) in enumerate(zip(lens.text.bits, lens.text.top1, strict=True))
    ]
    schema = {"model": pl.String, "lens": pl.String, "layer": pl.Int32, "kl_bits": pl.Float64, "top1": pl.Float64}
    layers = [*line_layers(lines, axes), hover_layer(lines, axes)]
    title = "Distance from the model on text"
    return built("bakeoff-text", title, notes, description, layers, HEIGHT, pl.DataFrame(rows, schema=schema))


def _ceiling(lenses: Sequence[LensInBakeoff]) -> float:
    """Of the vertical axis: what lenses other than raw reach, and a little more; the embedding alone, where some lens
    is far off, does not set it."""
    others = [lens.text.bits for lens in lenses if lens.lens != "raw"]
    first = max((bits[0] for bits in others if bits[0] is not None), default=0.0)
    later = max((value for bits in others for value in bits[1:] if value is not None), default=0.0)
    highest = later if 0 < FAR_AT_FIRST * later < first else max(first, later)
    return FAR * highest if highest else float("inf")


def _below(lens: LensInBakeoff, ceiling: float) -> Values:
    return tuple((layer, None if bits is None or bits > ceiling else bits) for layer, bits in enumerate(lens.text.bits))


def _name(found: Bakeoff) -> str:
    return printable(found.model.rsplit("/", 1)[-1])
