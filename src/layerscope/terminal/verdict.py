"""A run's verdict laid out for a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.diagnostics import Verdict
from layerscope.record.run_record import RunRecord
from layerscope.report.sentences.guidance import reporting
from layerscope.report.sentences.lines import LINE, LabelledLine, Weight
from layerscope.report.sentences.verdict import VerdictText
from layerscope.report.text import printable

LABEL_WIDTH = 11
"""With a space and `LINE` characters of text, 80 columns."""
_HEADER_WIDTH = 12
STYLES: dict[Weight, str] = {"aside": "dim", "free": "green", "main": "bold", "advise": "yellow", "block": "red"}
"""An addition, for nothing is said by colour alone."""


def run_verdict(run: AnalysedRun) -> Iterator[RenderableType]:
    """The verdict on a run, for a console of 80 columns; wider ones are not filled."""
    return verdict_of(run.verdict, run.record)


def verdict_of(verdict: Verdict, record: RunRecord) -> Iterator[RenderableType]:
    """The same of a verdict and of the record that it is on."""
    text = VerdictText(verdict, record)
    yield Text(text.title(), style="bold")
    yield Text(text.headline(), style="bold")
    if text.names_layers:
        yield _grid(text.strength())
        yield _lens_table(text)
        yield _grid(text.circumstances())
    yield _grid(reporting(verdict.guidance, verdict.diagnostics.headline, ranked=text.ranked))


def _grid(lines: Sequence[LabelledLine]) -> Table:
    """Labels to the left, texts wrapped beside them."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=LABEL_WIDTH, no_wrap=True)
    grid.add_column(max_width=LINE)
    for line in lines:
        style = STYLES.get(line.weight, "")
        grid.add_row(Text(line.label, style=style or "dim"), Text(line.text, style=style))
    return grid


def _lens_table(text: VerdictText) -> Table:
    """Where each lens gets there, the headline lens in bold."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("lens", min_width=LABEL_WIDTH - 1, no_wrap=True, vertical="bottom")
    for header in text.columns:
        table.add_column(_in_two(header), justify="right", vertical="bottom", no_wrap=True)
    for lens in text.record.protocol.lenses:
        style = "bold" if lens == text.diagnostics.headline else None
        table.add_row(Text(printable(lens)), *text.cells(lens), style=style)
    return table


def _in_two(header: str) -> str:
    """A long header broken at the space nearest to its middle."""
    spaces = [at for at, character in enumerate(header) if character == " "]
    if len(header) <= _HEADER_WIDTH or not spaces:
        return header
    middle = min(spaces, key=lambda at: abs(at - len(header) / 2))
    return f"{header[:middle]}\n{header[middle + 1 :]}"
