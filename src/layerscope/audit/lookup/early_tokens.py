"""Tokens said to lead in early layers, where what is cited is the model's final output for some prompt."""

import re
from collections.abc import Iterator

from layerscope.audit.lookup.cited_lines import Cited, Reader
from layerscope.audit.parse.statement import Statement
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.sources import CsvFile, CsvRow

_EARLY = re.compile(
    r"\bearly(?:[- ]layers?)?(?:'s)? (?:top-?(?:k|\d+)|layers?)\b|\btop-?(?:k|\d+) (?:in|of) early", re.IGNORECASE
)
_QUOTED = re.compile(r"\"([^\"]{1,20})\"|(?<!\w)'([^']{1,20})'(?!\w)")
_DENIED = re.compile(r"\b(?:no|not|never|without|neither)\b", re.IGNORECASE)
_OUTPUTS = frozenset({"test_prompts", "temperature_exploration", "final_prediction"})
"""Blocks of a document that hold what the whole model says, and nothing of any layer."""
_EARLY_SHARE = 1 / 3
_LISTED = 5


def early_tokens(statement: Statement, cited: Cited, citation: str | None, reader: Reader) -> Iterator[Finding]:
    """The finding on `" the" appears in early top-k`, where it cites lists of the model's output and no row."""
    text = statement.text
    if not _EARLY.search(text) or _DENIED.search(text) or not cited.is_complete or cited.csvs or not cited.jsons:
        return
    tokens = [match[1] or match[2] for match in _QUOTED.finditer(text)]
    blocks = {entry.path[0] for file in cited.jsons for entry in file.entries}
    table = reader.table_of(statement.stems[0]) if len(statement.stems) == 1 else None
    if not tokens or not blocks or not blocks <= _OUTPUTS or table is None:
        return
    rows = _early_rows(table)
    if not rows:
        return
    why = f"what is cited is of {' and '.join(sorted(blocks))}, which is the model's output and of no layer"
    for token in tokens:
        row = next((row for row in rows if token.strip() in _listed(row)), None)
        if row is None:
            last = rows[-1]
            place = Citation(table.name, rows[0].line, last.last_line)
            reason = f"{why}; in layers 0 to {last.cells['layer']} no row lists {token!r} ({place})."
            yield Finding(statement.line, text, citation, Judgement.CONTRADICTED, reason, None, place)
        else:
            place = Citation(table.name, row.line, row.last_line, row=row.number)
            reason = f"{why}; layer {row.cells['layer']} lists {token!r} at {place}."
            yield Finding(statement.line, text, citation, Judgement.ELSEWHERE, reason, str(place), place)


def _early_rows(table: CsvFile) -> list[CsvRow]:
    rows = [row for row in table.rows if is_main(row) and row.number_in("layer") is not None]
    return [row for row in rows if (row.number_in("layer") or 0) <= len(rows) * _EARLY_SHARE]


def _listed(row: CsvRow) -> set[str]:
    return {(row.cells.get(f"top{k}") or "").strip() for k in range(1, _LISTED + 1)}


def is_main(row: CsvRow) -> bool:
    """Whether a row is of the first fact, asked as it is."""
    cells = row.cells
    return (
        cells.get("prompt_id") in (None, "pos")
        and cells.get("prompt_variant") in (None, "orig")
        and cells.get("fact_index") in (None, "0")
    )
