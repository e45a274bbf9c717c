"""A bake-off as one page: its table, charts with intervals, and how they are to be read."""

from collections.abc import Callable
from pathlib import Path

from layerscope.analysis.bakeoff import Bakeoff, LensInBakeoff
from layerscope.analysis.drawn_facts import Median
from layerscope.report.cited.report_files import write_whole
from layerscope.report.numbers import ABSENT
from layerscope.report.sentences.bakeoff import (
    NO_ONSET,
    NOT_KNOWN,
    about,
    how_read,
    how_used,
    lacks_onset,
    lens_words,
    spread,
)
from layerscope.report.text import printable
from layerscope.view.page.document import ADVICE, check_ours
from layerscope.view.page.figures import Cell
from layerscope.view.page.single import single_page
from layerscope.view.page.words import Column

_EFFECTS: dict[str, Callable[[LensInBakeoff], Median | None]] = {
    "span": lambda lens: None if lens.share is None else lens.share.span,
    "rest": lambda lens: None if lens.share is None else lens.share.complement,
    "random": lambda lens: None if lens.share is None else lens.share.random,
    "others": lambda lens: None if lens.share is None else lens.share.others,
    "gain": lambda lens: None if lens.share is None else lens.share.gain,
    "loss": lambda lens: None if lens.share is None else lens.share.loss,
    "over shuffled": lambda lens: lens.over_shuffled,
}
COLUMNS = (
    Column("lens", "What is read through; what was made of a fitted lens says so."),
    Column("directions", "The verdict on whether the model uses them."),
    Column("text KL", "Mean KL(model || lens) in bits on held-out text, over these layers."),
    Column("text top\N{NO-BREAK SPACE}1", "Share of its positions with the model's own first token on top."),
    Column("prompts KL", "Median KL(model || lens) in bits at the prompts' last tokens."),
    Column("prompts top\N{NO-BREAK SPACE}1", "How often the lens says there what the model says."),
    Column("on top less handover", "Layers from the handover to where the answer is on top for good."),
    Column("span", "Effect of the source's state along the lens' directions alone."),
    Column("rest", "Effect of all but that."),
    Column("random", "Effect of a random step as long as the span's."),
    Column("others", "Effect along two other answers' directions."),
    Column("gain", "Span less random, pair by pair."),
    Column("loss", "The whole state less the rest, pair by pair."),
    Column("over shuffled", "The span's effect less that of the lens with shuffled weights."),
)


def bakeoff_html(found: Bakeoff) -> str:
    """The page."""
    from layerscope.view.charts.bakeoff import bakeoff_charts

    rows = [_cells(lens) for lens in found.lenses]
    shown = [i for i in range(len(COLUMNS)) if any(row[i].text != ABSENT for row in rows)]
    return single_page(
        "bakeoff.html.j2",
        f"bake-off of {printable(found.model.rsplit('/', 1)[-1])} · layerscope",
        list(bakeoff_charts(found)),
        model=printable(found.model),
        suite=printable(found.suite),
        about=about(found).removesuffix(":").replace(" %", "\N{NO-BREAK SPACE}%") + ".",
        columns=[COLUMNS[i] for i in shown],
        rows=[[row[i] for i in shown] for row in rows],
        hints=(printable(how_read(found)), how_used(found), spread(found)),
    )


def write_bakeoff_page(found: Bakeoff, path: str | Path) -> Path:
    """Write the page, whole or not at all; a page that layerscope wrote before is replaced.

    Returns:
        The file.

    Raises:
        RunError: something else is at the path, or the place cannot be written to.
    """
    target = Path(path)
    check_ours(target)
    write_whole(target, bakeoff_html(found).encode("utf-8"), ADVICE)
    return target


def _cells(lens: LensInBakeoff) -> tuple[Cell, ...]:
    return (
        Cell(printable(lens_words(lens))),
        _verdict(lens),
        _number(lens.text_bits, ".3g"),
        _number(lens.text_top1, ".0%"),
        _number(lens.kl_to_final_bits, ".3g"),
        _number(lens.top1_agreement, ".0%"),
        Cell(NO_ONSET) if lacks_onset(lens) else _number(lens.onset_error_layers, "+g"),
        *(_effect(of(lens)) for of in _EFFECTS.values()),
    )


def _verdict(lens: LensInBakeoff) -> Cell:
    words = NOT_KNOWN if lens.share is None else str(lens.share.verdict)
    return Cell(words, words)


def _number(value: float | None, form: str) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:{form}}", f"{value:.6g}")


def _effect(effect: Median | None) -> Cell:
    if effect is None:
        return Cell(ABSENT)
    ends = "" if effect.low is None else f"\n[{effect.low:z.2f}, {effect.high:z.2f}]"
    return Cell(f"{effect.value:z.2f}{ends}", f"{effect.value:.6g}")
