"""Labelled lines for a console of 80 columns: verdicts, fitted lenses, answer rows and comparisons."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from layerscope.report.sentences.lines import LINE, LabelledLine, Weight
from layerscope.report.text import printable

LABEL_WIDTH = 11
"""With a space and `LINE` characters of text, 80 columns."""
_STYLES: dict[Weight, str] = {"aside": "dim", "free": "green", "main": "bold", "advise": "yellow", "block": "red"}
"""An addition, for nothing is said by colour alone."""


def labelled_grid(lines: Sequence[LabelledLine]) -> Table:
    """Labels to the left, texts wrapped beside them; what stands in a text may come from other programs' files."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=LABEL_WIDTH, no_wrap=True)
    grid.add_column(max_width=LINE, overflow="fold")
    for line in lines:
        style = _STYLES.get(line.weight, "")
        grid.add_row(Text(line.label, style=style or "dim"), Text(printable(line.text), style=style))
    return grid
