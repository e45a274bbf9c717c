"""A look on a terminal: what the model says next, a grid of layers and tokens, and the words that are followed."""

import io
import math
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.looking.look import Look, Tracked
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.text import printable

MOST_ROWS = 40
"""Layers that are shown, unless they were asked for: more would not fit a screen."""
_CELL, _LAST = 10, 12
"""Widths of a token in the grid, and of those in the last column."""
_LAYER, _NUMBERS, _RANK = 6, 16, 10
"""Widths of what stands beside them: the layer; probability and entropy; a rank."""
_BARS = "▁▂▃▄▅▆▇█"
_SHADES = ((0.5, "bold green"), (0.2, "green"), (0.05, ""), (0.0, "dim"))
"""Styles of a token by its probability, from the least that each takes on."""
_MOST_OF_TEXT = 200
MODEL_AT_THE_END = ("logit", "next_norm", "tuned", "ridge")
"""Lenses that are the model itself behind the last block."""


def look_screen(look: Look, width: int, *, every_layer: bool = False) -> Iterator[RenderableType]:
    """The parts of a screen, from top to bottom.

    Args:
        width: columns that there are.
        every_layer: a row for each layer that was read, however many.
    """
    yield Text(f"{look.model.id} · {_abridged(look.text)}", style="bold")
    yield Text(f"next: {_next(look)}")
    layers = _shown_layers(look, every_layer)
    for lens in range(len(look.lenses)):
        yield ""
        yield _grid(look, lens, layers, width)
        if len(layers) < len(look.layers):
            yield Text(every_so_many(layers[1] - layers[0], len(look.layers)), style="dim")
        for tracked in look.tracked:
            if tracked.token is not None:
                yield _line_of_ranks(look, tracked, lens, width)
    for tracked in look.tracked:
        yield from _notes(tracked)
    yield Text(_footer(look), style="dim" if look.identity.ok else "bold red")


def every_so_many(step: int, n: int) -> str:
    """What is said where layers are left out."""
    return f"one layer of {step} is shown, of {n}; --layers 0- shows all"


def visible(token: str) -> str:
    """A token whose white space and control characters can be seen."""
    return printable(token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"))


def look_as_text(look: Look, width: int = 100) -> str:
    """The same without colours."""
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, color_system=None, force_jupyter=False)
    for part in look_screen(look, width):
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _abridged(text: str) -> str:
    shown = printable(text.replace("\n", "↵").replace("\t", "⇥"))
    return shown if len(shown) <= _MOST_OF_TEXT else f"…{shown[-_MOST_OF_TEXT:]}"


def _next(look: Look) -> str:
    if look.output is None:
        return "nothing finite: the model's logits after this text are NaN or infinite"
    pairs = zip(look.output.top_tokens, look.output.top_probs, strict=True)
    return " · ".join(f"{visible(token)} {short_text(p)}" for token, p in pairs)


def _shown_layers(look: Look, every_layer: bool) -> list[int]:
    """Indices of layers: evenly spaced, the last one among them."""
    n = len(look.layers)
    step = 1 if every_layer else -(-n // MOST_ROWS)
    return list(range((n - 1) % step, n, step))


def _grid(look: Look, lens: int, layers: Sequence[int], width: int) -> Table:
    """A row a layer: the token that each place would be followed by, and more of the last place."""
    name = look.lens_names[lens]
    beside = max(_LAYER, len(name) + 1) + _LAST + 1 + _NUMBERS
    most = max(1, (width - beside) // (2 * _RANK))  # leaves as much room to other places
    followed = [t for t in look.tracked if t.token is not None][:most]
    n = (width - beside - _RANK * len(followed)) // (_CELL + 1)
    n = max(0, min(len(look.positions) - 1, n))
    columns = range(len(look.positions) - 1 - n, len(look.positions) - 1)
    last = len(look.positions) - 1
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(f"layer\n{name}", justify="right", no_wrap=True, width=max(_LAYER, len(name) + 1) - 1)
    for column in columns:
        head = visible(look.tokens[look.positions[column]])
        table.add_column(f"{look.positions[column]}\n{head}", no_wrap=True, width=_CELL, overflow="ellipsis")
    head = visible(look.tokens[look.positions[last]])
    table.add_column(f"{look.positions[last]}\n{head}", no_wrap=True, width=_LAST, overflow="ellipsis")
    table.add_column("\np", justify="right", no_wrap=True, width=8)
    table.add_column("\nbits", justify="right", no_wrap=True, width=6)
    for tracked in followed:
        table.add_column(f"rank of\n{visible(tracked.token or '')}", justify="right", no_wrap=True, width=_RANK - 1)
    for layer in layers:
        cells = [_cell(look, lens, layer, column) for column in (*columns, last)]
        numbers = (look.top_probs[lens, layer, last, 0], look.entropy_bits[lens, layer, last])
        ranks = [_rank(int(t.rank[lens, layer, last])) for t in followed]
        p, bits = (None if math.isnan(value) else float(value) for value in numbers)
        table.add_row(str(look.layers[layer]), *cells, short_text(p), ABSENT if bits is None else f"{bits:.2f}", *ranks)
    return table


def _cell(look: Look, *at: int) -> Text:
    if look.top_ids[at][0] < 0:
        return Text("not finite", style="dim")
    p = look.top_probs[at][0]
    style = "" if math.isnan(p) else next(style for least, style in _SHADES if p >= least)
    return Text(visible(look.top_tokens[at][0]), style=style)


def _rank(rank: int) -> Text:
    return Text(ABSENT if rank == 0 else f"{rank:,}", style="bold" if rank == 1 else "")


def _line_of_ranks(look: Look, tracked: Tracked, lens: int, width: int) -> Text:
    """A word's rank at the last place that was read, layer by layer: the higher the bar, the nearer to the top."""
    ranks = [int(rank) for rank in tracked.rank[lens, :, -1]]
    every = len(look.layers) > look.model.n_layers
    words = f"  {course(look.layers, ranks, every=every)}"
    if look.positions[-1] != len(look.tokens) - 1:
        words += f", at place {look.positions[-1]}"
    name = f"{visible(tracked.token or '')}  "
    room = max(8, width - len(name) - len(words))
    per_bar = -(-len(ranks) // room)
    grouped = [ranks[i : i + per_bar] for i in range(0, len(ranks), per_bar)]
    line = "".join(_bar([rank for rank in group if rank], look.model.d_vocab) for group in grouped)
    return Text(name + line + words)


def _bar(ranks: Sequence[int], d_vocab: int) -> str:
    """The best of a few ranks, on a logarithmic scale."""
    if not ranks:
        return " "
    if min(ranks) == 1:
        return _BARS[-1]  # the highest is for the top alone
    height = 1 - math.log(min(ranks)) / math.log(max(2, d_vocab))
    return _BARS[min(len(_BARS) - 2, int(height * (len(_BARS) - 1)))]


def course(layers: Sequence[int], ranks: Sequence[int], *, every: bool) -> str:
    """How a rank goes through layers, in words.

    Args:
        layers: which were read.
        ranks: there; 0 of a row that is not finite.
        every: whether these are all of the model's layers.
    """
    known = {layer: rank for layer, rank in zip(layers, ranks, strict=True) if rank}
    some = "" if every else " of those read"
    if not known:
        return f"no finite layer{some}"
    best, last = min(known.values()), layers[-1]
    first = next(layer for layer, rank in known.items() if rank == best)
    if best > 1:
        at_last = "" if first == last else f"; {_said(known, last)} at {last}"
        return f"best rank {best:,} at layer {first}{some}{at_last}"
    at_first = f"on top at layer {first}" if every and first == last else f"first on top at layer {first}{some}"
    if last not in known or known[last] > 1:
        return f"{at_first}; {_said(known, last)} at {last}"
    start = next(n for n in known if all(rank == 1 for at, rank in known.items() if at >= n))
    if first == last:
        return at_first
    if not every:
        return f"{at_first}; rank 1 at {last}"
    return f"on top from layer {first} on" if start == first else f"{at_first}, to the end from {start}"


def _said(known: dict[int, int], layer: int) -> str:
    return f"rank {known[layer]:,}" if layer in known else "not finite"


def _notes(tracked: Tracked) -> Iterator[Text]:
    """What has to be known of a word that is followed by less than itself, or not at all."""
    found = tracked.alignment
    if tracked.token is None:
        yield Text(f"'{printable(tracked.word)}' cannot be followed after this text ({found.reason})", style="yellow")
    elif found.several_pieces:
        piece = f"the first of its {len(found.answer_ids)} pieces, {visible(tracked.token)}"
        yield Text(f"'{printable(tracked.word)}' is followed through {piece}", style="dim")


def _footer(look: Look) -> str:
    check = look.identity
    if check.ok:
        checked = f"identity check passed (KL {check.kl_bits:.1e} bits){_whose_p(look)}"
    else:
        kl = "not finite" if check.kl_bits is None else f"{check.kl_bits:.3g} bits"
        checked = f"identity check FAILED (KL {kl}): {check.note} Probabilities of layers are withheld."
    if look.encoded.chat is not None:
        return f"{checked} · chat, as the model's template writes it"
    return f"{checked} · {look.model.tokens.begins.note}"


def _whose_p(look: Look) -> str:
    """Of which rows the probabilities are the model's own."""
    n = look.model.n_layers
    names = [name for name in look.lens_names if name in MODEL_AT_THE_END]
    if n not in look.layers or not names:
        return ": p is the lens' own at every layer shown"
    under = "" if len(names) == len(look.lens_names) else f" under {', '.join(names)}"
    return f": p is the model's at layer {n}{under}, the lens' own elsewhere"
