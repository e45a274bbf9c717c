"""A look at a glance: in a line for a console, and for a notebook what the model says next and a small grid."""

import math
from collections.abc import Iterator

from markupsafe import Markup

from layerscope.looking.look import Look
from layerscope.looking.words import abridged, course_of, footer, notes, says_next
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.sentences.answers import shortened
from layerscope.report.sentences.lines import plural
from layerscope.report.text import printable, spread, visible
from layerscope.view.notebook.small_grid import (
    MOST_LAYERS,
    MOST_POSITIONS,
    Cell,
    Column,
    SmallGrid,
    card,
    grid_html,
    line,
    quiet,
    scale_html,
    strong,
)

_MOST_WORDS = 4
"""Followed words whose ranks stand beside a grid; the sentences below it are of all."""


def look_line(look: Look) -> str:
    """Model, text, the likeliest next token, and how many layers and positions were read by which lenses."""
    if look.output is None:
        said = "nothing finite"
    else:
        said = f"next {visible(look.output.top_tokens[0])} {short_text(look.output.top_probs[0])}"
    counts = ((len(look.layers), "layer"), (len(look.positions), "position"))
    extent = " × ".join(f"{n} {plural(name, n)}" for n, name in counts)
    failed = [] if look.identity.ok else ["identity check failed"]
    text = printable(repr(shortened(look.text)))
    name = look.model.id.rsplit("/", 1)[-1]
    return " · ".join([printable(name), text, said, extent, printable(", ".join(look.lens_names)), *failed])


def look_html(look: Look) -> str:
    """What the model says next, for each lens a small grid, the words that are followed, and the identity check."""
    return card(_parts(look))


def _parts(look: Look) -> Iterator[Markup]:
    yield quiet(f"{look.model.id} · {abridged(look.text)}")
    yield strong(f"next: {says_next(look)}")
    for lens in range(len(look.lenses)):
        yield grid_html(small_grid(look, lens))
        for tracked in look.tracked:
            if tracked.token is not None:
                yield line(f"{visible(tracked.token)}: {course_of(look, tracked, lens)}")
    yield scale_html(withheld=not look.identity.ok)
    for note in notes(look):
        yield quiet(note.text)
    yield quiet(footer(look)) if look.identity.ok else strong(footer(look))


def small_grid(look: Look, lens: int) -> SmallGrid:
    """The last positions that were read under one lens, and ranks of followed words at the last of them."""
    layers = spread(len(look.layers), MOST_LAYERS)
    positions = range(max(0, len(look.positions) - MOST_POSITIONS), len(look.positions))
    some = "" if len(layers) == len(look.layers) else f"; {len(layers)} of {len(look.layers)} layers"
    followed = [tracked for tracked in look.tracked if tracked.token is not None][:_MOST_WORDS]
    probabilities = tuple(short_text(_known(float(look.top_probs[lens, layer, -1, 0]))) for layer in layers)
    ranks = [
        Column(f"rank of {visible(t.token or '')}", tuple(_rank(int(t.rank[lens, layer, -1])) for layer in layers))
        for t in followed
    ]
    return SmallGrid(
        caption=f"lens {look.lens_names[lens]}{some}",
        layers=tuple(look.layers[layer] for layer in layers),
        positions=tuple(look.positions[position] for position in positions),
        tokens=tuple(look.tokens[look.positions[position]] for position in positions),
        cells=tuple(tuple(_cell(look, lens, layer, position) for position in positions) for layer in layers),
        columns=(Column("p", probabilities), *ranks),
    )


def _cell(look: Look, *at: int) -> Cell:
    if look.top_ids[at][0] < 0:
        return Cell(None)
    return Cell(look.top_tokens[at][0], _known(float(look.top_probs[at][0])))


def _known(p: float) -> float | None:
    return None if math.isnan(p) else p


def _rank(rank: int) -> str:
    return ABSENT if rank == 0 else f"{rank:,}"
