"""A comparison of two models for a console of 80 columns."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.model_diff import LayerDiff, ModelDiff
from layerscope.report.sentences.model_diff import bits, headline, how_to_read, in_lines, share, title
from layerscope.report.text import printable
from layerscope.terminal.labelled_grid import labelled_grid

COLUMNS = (
    *("layer", "change", "injected", "inherited", "lens\nKL"),
    *("base to\noutput", "variant to\noutput", "top 1"),
)
MOST_LAYERS = 14
"""Of the table without its details."""


def diff_table(found: ModelDiff, *, details: bool = False) -> Iterator[RenderableType]:
    """What differs and by how much, then layer by layer.

    Args:
        found: the comparison.
        details: whether to list every layer, in place of those that inject most.
    """
    yield Text(printable(title(found)), style="bold")
    yield Text(headline(found), style="bold")
    yield labelled_grid(in_lines(found))
    if not found.is_identical:
        yield _layers(found, details)
        yield Text(how_to_read(found), style="dim")


def _layers(found: ModelDiff, details: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in COLUMNS:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for layer in _listed(found, details):
        table.add_row(
            str(layer.layer),
            share(layer.relative_change),
            share(layer.injected),
            share(layer.inherited),
            bits(layer.kl_bits),
            bits(layer.base_to_output_bits),
            bits(layer.variant_to_output_bits),
            f"{100 * layer.top1_agreement:.0f}%",
        )
    return table


def _listed(found: ModelDiff, details: bool) -> list[LayerDiff]:
    """The embedding, the last layer, and those between that inject most."""
    if details or len(found.layers) <= MOST_LAYERS:
        return list(found.layers)
    ends = {0, len(found.layers) - 1}
    worst = [layer.layer for layer in found.worst_blocks if layer.layer not in ends]
    chosen = ends | set(worst[: MOST_LAYERS - len(ends)])
    return [layer for layer in found.layers if layer.layer in chosen]
