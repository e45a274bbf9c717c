"""Flags that a statement says are set at a layer, against the rows it cites: `retains soft-copy at L3`."""

import re
from collections.abc import Iterator

from layerscope.audit.lookup.cited_lines import Cited, CitedCsv
from layerscope.audit.lookup.early_tokens import is_main
from layerscope.audit.parse.statement import Statement
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.sources import CsvRow

_SET_AT = re.compile(
    r"\b(?P<said>fires?|sets?|retains?|keeps?|holds?|shows?|has|triggers?|is set|is true|=\s?true)\b"
    r"(?P<between>[^.;]{0,40}?)\b(?:at|in|by)\s(?:layer\s?|L\s?=?\s?)(?P<layer>\d{1,3})\b(?!\s?-)",
    re.IGNORECASE,
)
_SOFT = re.compile(r"soft[- _]?copy|copy[_ ]soft", re.IGNORECASE)
_STRICT = re.compile(r"copy[_ -]collapse|strict[- ]copy|copy[_ ]strict", re.IGNORECASE)
_ANSWER = re.compile(r"is_answer", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:no|not|never|without|neither|false)\b|✗", re.IGNORECASE)


def flags_of(statement: Statement, cited: Cited, citation: str | None) -> Iterator[Finding]:
    """Findings on flags said to be set at a layer, where rows of a next-token table are cited one by one."""
    if len(cited.csvs) == 0 or not cited.is_complete or _DENIED.search(statement.text):
        return
    for match in _SET_AT.finditer(statement.text):
        layer, words = int(match["layer"]), match["between"]
        for table in cited.csvs:
            columns = _columns(words, table.file.header)
            rows = [row for row in table.file.rows if row.number_in("layer") == layer and is_main(row)]
            if not columns or len(rows) != 1 or table.has_row_numbers or table.is_whole or "records" in table.file.name:
                continue
            yield _finding(statement, citation, match[0].strip(), table, rows[0], columns)
            break


def _finding(
    statement: Statement, citation: str | None, claim: str, table: CitedCsv, row: CsvRow, columns: list[str]
) -> Finding:
    """Set and shown, set but not shown, or not set."""
    held = [column for column in columns if row.cells[column] == "True"]
    place = Citation(table.file.name, row.line, row.last_line, row=row.number, column=(held or columns)[0])
    if not held:
        known = all(row.cells[column] == "False" for column in columns)
        judgement = Judgement.CONTRADICTED if known else Judgement.UNDECIDED
        reason = f"{' and '.join(columns)} {'is False' if known else 'has no value'} at {place}."
        return Finding(statement.line, claim, citation, judgement, reason, "False" if known else None, place)
    if any(cited.number == row.number for cited in table.rows):
        return Finding(
            statement.line, claim, citation, Judgement.SUPPORTED, f"{held[0]} is True at {place}.", None, place
        )
    reason = f"{held[0]} is True at {place}; {table.reference.text} does not show that row."
    return Finding(statement.line, claim, citation, Judgement.ELSEWHERE, reason, str(place), place)


def _columns(words: str, header: tuple[str, ...]) -> list[str]:
    if _SOFT.search(words):
        return [column for column in header if column.startswith("copy_soft_k")]
    if _STRICT.search(words):
        return [column for column in header if column in ("copy_collapse", "copy_strict@0.95")]
    return [column for column in header if column == "is_answer"] if _ANSWER.search(words) else []
