"""A bake-off for a console of 80 columns."""

from collections.abc import Iterator, Sequence

from rich.console import JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.bakeoff import Bakeoff, LensInBakeoff
from layerscope.report.sentences.bakeoff import (
    NO_ONSET,
    NOT_KNOWN,
    about,
    has_intervals,
    how_read,
    how_used,
    lacks_onset,
    lens_words,
    spread,
)
from layerscope.report.text import printable

_READ = ("text\nKL bits", "text\ntop 1", "prompts\nKL bits", "prompts\ntop 1", "on top\nless handover")
_WHERE_INTERVALS = " They are in --json and --page."
_USED = ("span", "rest", "random", "others", "over\nshuffled", "directions")


def bakeoff_table(found: Bakeoff) -> Iterator[RenderableType]:
    """What it is about, a line a lens on how it reads, and a line a lens on what the model uses."""
    yield Text(printable(f"bake-off · {found.suite} · {found.model}"), style="bold")
    yield Text(about(found))
    yield _table(_READ, [(lens, _reading(lens)) for lens in found.lenses])
    yield Text(printable(how_read(found)), style="dim")
    yield _table(_USED, [(lens, _use(lens)) for lens in found.lenses])
    yield Text(f"{how_used(found)} {spread(found)}{_WHERE_INTERVALS if has_intervals(found) else ''}", style="dim")


def _table(headers: Sequence[str], rows: Sequence[tuple[LensInBakeoff, list[str]]]) -> Table:
    """A line a lens; what no lens has gets no column."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("lens", no_wrap=True, vertical="bottom")
    shown = [i for i in range(len(headers)) if any(cells[i] for _, cells in rows)]
    for header in (headers[i] for i in shown):
        justify: JustifyMethod = "left" if header == "directions" else "right"
        table.add_column(header, justify=justify, vertical="bottom", no_wrap=True)
    for lens, cells in rows:
        table.add_row(printable(lens_words(lens)), *(cells[i] for i in shown))
    return table


def _reading(lens: LensInBakeoff) -> list[str]:
    error = "" if lens.onset_error_layers is None else f"{lens.onset_error_layers:+g}"
    return [
        *(_bits(lens.text_bits), _share(lens.text_top1)),
        *(_bits(lens.kl_to_final_bits), _share(lens.top1_agreement)),
        NO_ONSET if lacks_onset(lens) else error,
    ]


def _use(lens: LensInBakeoff) -> list[str]:
    share = lens.share
    if share is None:
        return ["", "", "", "", "", NOT_KNOWN]
    effects = (share.span, share.complement, share.random, share.others, lens.over_shuffled)
    return [*("" if effect is None else f"{effect.value:z.2f}" for effect in effects), str(share.verdict)]


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 9.95 else f"{value:#.2g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"
