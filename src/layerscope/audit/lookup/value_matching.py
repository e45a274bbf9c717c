"""Whether a value that a report claims is what a member, a list or a cell of the files holds."""

from collections.abc import Sequence

from layerscope.audit.lookup.cited_lines import is_number
from layerscope.audit.parse.values import Claimed, Item
from layerscope.report.cited.sources import CsvRow, Entry, JsonFile, Scalar
from layerscope.report.numbers import Number

SHORTEST_TEXT = 4
"""Letters of a text from which on a part of it counts as the whole."""


def entry_holds(value: Claimed, entry: Entry, file: JsonFile) -> bool:
    """Whether a member has a value; a container, whether its items are those claimed."""
    if entry.is_container:
        if value is not None and not isinstance(value, tuple):
            return False
        inside = [
            child for child in file.within(entry.line, entry.last_line) if child.pointer.startswith(entry.pointer)
        ]
        leaves = [child.value for child in inside if not child.is_container]
        if value is None:
            return bool(leaves) and all(leaf is None for leaf in leaves)
        direct = [child.value for child in file.children(entry)]
        return _list_holds(value, direct) or (len(leaves) <= 4 * len(value) and _list_holds(value, leaves))
    return not isinstance(value, tuple) and _holds(value, entry.value)


def _list_holds(value: tuple[Item, ...], leaves: Sequence[Scalar]) -> bool:
    """Whether each item claimed is in a list that is about as long."""
    if len(leaves) < len(value):
        return False
    return all(any(_holds(item, leaf) for leaf in leaves) for item in value)


def _holds(value: Number | bool | str | None, actual: Scalar) -> bool:
    if isinstance(value, Number):
        return is_number(actual) and value.stands_for(actual)
    if isinstance(value, bool):
        return actual is value
    if value is None:
        return actual is None or (isinstance(actual, str) and actual.lower() in ("none", "null", "n/a"))
    if actual is None:
        return value.lower() == "null"
    return isinstance(actual, str) and _same_text(value, actual)


def _same_text(claimed: str, actual: str) -> bool:
    claimed, actual = _bare(claimed), _bare(actual)
    if claimed == actual or len(claimed) < SHORTEST_TEXT:
        return claimed == actual
    return bool(actual) and (claimed in actual or (len(actual) >= SHORTEST_TEXT and actual in claimed))


def _bare(text: str) -> str:
    return "".join(mark for mark in text.lower() if mark.isalnum() or mark in '+-_()"?.')


def cell_holds(value: Claimed, row: CsvRow, column: str) -> bool:
    """Whether a cell has a value."""
    cell = row.cells[column]
    if isinstance(value, tuple):
        return False
    if value is None or cell is None:
        return value is None and cell is None
    if isinstance(value, bool):
        return cell.lower() == str(value).lower()
    if isinstance(value, Number):
        number = row.number_in(column)
        return number is not None and value.stands_for(number)
    return _same_text(value, cell)


def near(value: Claimed, actual: Scalar) -> bool:
    """Whether a member's value is the one claimed, or a number that may be meant by it."""
    if isinstance(value, Number):
        return is_number(actual) and may_mean(value, actual)
    return not isinstance(value, tuple) and _holds(value, actual)


def may_mean(value: Number, actual: int | float) -> bool:
    """Whether a number is this one but for its sign, or as a percentage, or roughly."""
    return any(value.stands_for(variant) or value.may_mean(variant) for variant in (actual, -actual, 100 * actual))


def same_kind(value: Number | bool, actual: Scalar) -> bool:
    """Whether both could be the same measurement: a layer is no share of one, and null is no number."""
    if isinstance(value, bool) or isinstance(actual, bool):
        return isinstance(value, bool) and isinstance(actual, bool)
    if not isinstance(actual, int | float):
        return False
    return value.is_whole or not isinstance(actual, int)
