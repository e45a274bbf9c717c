"""A bake-off for a console of 80 columns."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.bakeoff import Bakeoff, LensInBakeoff
from layerscope.report.sentences.bakeoff import about, how_read, how_used, lens_words
from layerscope.report.text import printable

_READ = ("text\nKL bits", "text\ntop 1", "prompts\nKL bits", "prompts\ntop 1", "on top\nless handover")
_USED = ("span", "rest", "random", "others", "over\nshuffled", "directions")


def bakeoff_table(found: Bakeoff) -> Iterator[RenderableType]:
    """What it is about, a line a lens on how it reads, and a line a lens on what the model uses."""
    yield Text(printable(f"bake-off · {found.suite} · {found.model}"), style="bold")
    yield Text(about(found))
    yield _table(_READ, [(lens, _reading(lens)) for lens in found.lenses])
    yield Text(printable(how_read(found)), style="dim")
    yield _table(_USED, [(lens, _use(lens)) for lens in found.lenses])
    yield Text(f"{how_used(found)} Medians over pairs; intervals: --json, --page.", style="dim")


def _table(headers: Sequence[str], rows: Sequence[tuple[LensInBakeoff, list[str]]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("lens", no_wrap=True, vertical="bottom")
    for header in headers:
        table.add_column(header, justify="left" if header == "directions" else "right", vertical="bottom")
    for lens, cells in rows:
        table.add_row(printable(lens_words(lens)), *cells)
    return table


def _reading(lens: LensInBakeoff) -> list[str]:
    probed = lens.kl_to_final_bits is not None or lens.top1_agreement is not None
    error = ("none" if probed else "") if lens.onset_error_layers is None else f"{lens.onset_error_layers:+g}"
    return [
        *(_bits(lens.text_bits), _share(lens.text_top1)),
        *(_bits(lens.kl_to_final_bits), _share(lens.top1_agreement)),
        error,
    ]


def _use(lens: LensInBakeoff) -> list[str]:
    share = lens.share
    if share is None:
        return ["", "", "", "", "", "not known"]
    effects = (share.span, share.complement, share.random, share.others, lens.over_shuffled)
    return [*("" if effect is None else f"{effect.value:.2f}" for effect in effects), str(share.verdict)]


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"
