"""A comparison of two runs for a console of 80 columns."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.run_diff import LensLayerDiff, RunDiff
from layerscope.report.sentences.model_diff import bits
from layerscope.report.sentences.run_diff import headline, how_to_read, in_lines, title
from layerscope.report.text import printable
from layerscope.terminal.labelled_grid import labelled_grid

COLUMNS = ("layer", "rows", "top 1", "KL\nat least", "entropy", "KL to\noutput", "ranks")
MOST_LAYERS = 14
"""Of the table without its details."""


def run_diff_table(found: RunDiff, *, details: bool = False) -> Iterator[RenderableType]:
    """What differs and where, then layer by layer.

    Args:
        found: the comparison.
        details: whether to list every layer of every lens, in place of the headline lens' that differ most.
    """
    yield Text(printable(title(found)), style="bold")
    yield Text(printable(headline(found)), style="bold")
    yield labelled_grid(in_lines(found))
    if found.columns:
        by_lens = found.by_lens()
        for lens, layers in by_lens.items():
            if details or lens == found.headline or found.headline not in by_lens:
                yield _layers(lens, layers, details)
        yield Text(how_to_read(), style="dim")


def _layers(lens: str, layers: tuple[LensLayerDiff, ...], details: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", title=lens, title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for layer in layers if details else _listed(layers):
        table.add_row(
            str(layer.layer),
            str(layer.n_rows),
            "" if layer.top1_agreement is None else f"{100 * layer.top1_agreement:.0f}%",
            *("" if value is None else bits(value) for value in _sizes(layer)),
            str(layer.n_rank_changes),
        )
    return table


def _sizes(layer: LensLayerDiff) -> tuple[float | None, ...]:
    return layer.kl_at_least_bits, layer.entropy_change_bits, layer.kl_to_final_change_bits


def _listed(layers: tuple[LensLayerDiff, ...]) -> list[LensLayerDiff]:
    """The first, the last, and those between at which the two differ most."""
    worst = sorted(layers[1:-1], key=_distance, reverse=True)
    chosen = {layer.layer for layer in (layers[0], layers[-1], *worst[: MOST_LAYERS - 2])}
    return [layer for layer in layers if layer.layer in chosen]


def _distance(layer: LensLayerDiff) -> tuple[float, float]:
    return layer.kl_at_least_bits or 0.0, layer.entropy_change_bits or 0.0
