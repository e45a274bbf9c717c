"""A comparison of two models as one page: what differs, its charts, both grids, and tables of layers and facts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from layerscope.analysis.model_diff import FactDiff, LayerDiff, ModelDiff
from layerscope.report.cited.report_files import write_whole
from layerscope.report.numbers import ABSENT
from layerscope.report.sentences.model_diff import bits, headline, how_to_read, in_lines, share, title
from layerscope.report.text import printable
from layerscope.view.charts.model_diff import diff_charts, diff_grids
from layerscope.view.page.document import ADVICE, check_ours
from layerscope.view.page.figures import Cell
from layerscope.view.page.single import single_page
from layerscope.view.page.words import Column

LAYERS = (
    Column("layer", "How many blocks have run."),
    Column("change", "Norm of variant less base, over the base's."),
    Column("injected", "What the variant's block adds to that by itself."),
    Column("inherited", "What came with the variant's stream."),
    Column("lens KL", "KL(base || variant) of both logit lenses, in bits."),
    Column("lens JS", "Jensen-Shannon divergence of the same, in bits."),
    Column("injected KL", "What the injected error alone makes of the base's lens, in bits."),
    Column("base to output", "KL of the base's lens from its own output, in bits."),
    Column("variant to output", "KL of the variant's lens from its own output, in bits."),
    Column("top\N{NO-BREAK SPACE}1", "Share of positions with the same token on top of both lenses."),
)
FACTS = (
    Column("prompt", "What both read."),
    Column("answer", "The token by which it is judged."),
    Column("base", "The base's most likely token."),
    Column("variant", "The variant's."),
    Column("KL", "KL(base || variant) at the output, in bits."),
    Column("rank", "Of the answer, in the base and in the variant."),
    Column("on top from", "The layer from which on it is on top of the logit lens for good, in both."),
)


def diff_html(found: ModelDiff, rows: pl.DataFrame) -> str:
    """The page; `rows` is the comparison's table."""
    return single_page(
        "diff.html.j2",
        f"{printable(found.variant.id.rsplit('/', 1)[-1])} against its base · layerscope",
        list(diff_charts(found)),
        list(diff_grids(found, rows)),
        heading=printable(title(found)),
        headline=printable(headline(found)),
        lines=[(line.label, printable(line.text)) for line in in_lines(found)],
        layers=[_layer(layer) for layer in found.layers],
        layer_columns=LAYERS,
        facts=[] if found.suite is None else [_fact(fact) for fact in found.suite.prompts],
        fact_columns=FACTS,
        hint=how_to_read(found),
    )


def write_diff_page(found: ModelDiff, rows: pl.DataFrame, path: str | Path) -> Path:
    """Write the page, whole or not at all; a page that layerscope wrote before is replaced.

    Returns:
        The file.

    Raises:
        RunError: something else is at the path, or the place cannot be written to.
    """
    target = Path(path)
    check_ours(target)
    write_whole(target, diff_html(found, rows).encode("utf-8"), ADVICE)
    return target


def _layer(layer: LayerDiff) -> Sequence[Cell]:
    shares = (layer.relative_change, layer.injected, layer.inherited)
    divergences = (
        *(layer.kl_bits, layer.js_bits, layer.injected_kl_bits),
        *(layer.base_to_output_bits, layer.variant_to_output_bits),
    )
    return (
        Cell(str(layer.layer), str(layer.layer)),
        *(_number(value, share) for value in shares),
        *(_number(value, bits) for value in divergences),
        Cell(f"{layer.top1_agreement:.0%}", f"{layer.top1_agreement:.6g}"),
    )


def _number(value: float | None, written: Callable[[float], str]) -> Cell:
    if value is None:
        return Cell(ABSENT)
    return Cell(written(value), f"{value:.6g}")


def _fact(fact: FactDiff) -> Sequence[Cell]:
    ranks, onsets = (fact.base_rank, fact.variant_rank), (fact.base_onset, fact.variant_onset)
    return (
        Cell(printable(fact.prompt)),
        Cell(ABSENT if fact.answer is None else printable(repr(fact.answer))),
        Cell(printable(repr(fact.base_top1))),
        Cell(printable(repr(fact.variant_top1))),
        _number(fact.kl_bits, bits),
        Cell(_pair(ranks), str(fact.variant_rank or "")),
        Cell(_pair(onsets), str("" if fact.variant_onset is None else fact.variant_onset)),
    )


def _pair(of: tuple[int | None, int | None]) -> str:
    if of[0] == of[1]:
        return ABSENT if of[0] is None else str(of[0])
    return " → ".join(ABSENT if one is None else str(one) for one in of)
