"""What a statement cites and copies from there: values, flags set at a layer, tokens of early layers."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from layerscope.audit.lookup.cited_lines import Cited, CitedCsv, Reader, holds_in, is_main, row_citation
from layerscope.audit.lookup.value_lookup import Verdict, is_cut_off, judge, judge_uncited, mentions
from layerscope.audit.parse.statement import Statement
from layerscope.audit.parse.values import Pair, pairs_of, pairs_of_row
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.sources import CsvFile, CsvRow

NOTHING = "it states no value that could be looked up in the cited lines."


def cited_claims(statement: Statement, cited: Cited, on_line: Sequence[Cited], reader: Reader) -> Iterator[Finding]:
    """The findings on what a statement cites, and on the values that it copies.

    Args:
        statement: what is judged.
        cited: what it cites.
        on_line: what the statements of the same line cite, it among them.
        reader: looks up files.
    """
    for missing in cited.missing:
        yield Finding(
            statement.line, statement.text, missing.reference.text, Judgement.UNRESOLVABLE, f"{missing.reason}."
        )
    judged = False
    for pair, verdict in _verdicts(statement, cited, reader):
        judged = True
        if verdict.judgement is Judgement.ELSEWHERE and any(holds_in(verdict.found_at, other) for other in on_line):
            # The line cites the right place too: which citation goes with which words is not for us to say.
            verdict = replace(verdict, judgement=Judgement.UNDECIDED)
        yield _finding(statement, statement.text[pair.start : pair.end].strip(), verdict)
    for finding in (*_flags(statement, cited), *_early_tokens(statement, cited, reader)):
        judged = True
        yield finding
    if not judged and statement.references and not cited.missing:
        named = mentions(statement.text, cited, reader)
        if named is not None and not (named.judgement.is_wrong and any(holds_in(named.found_at, o) for o in on_line)):
            yield _finding(statement, statement.text, named)
        else:
            yield Finding(statement.line, statement.text, statement.citation, Judgement.UNDECIDED, NOTHING)


def _finding(statement: Statement, claim: str, verdict: Verdict) -> Finding:
    return Finding(
        statement.line, claim, statement.citation, verdict.judgement, verdict.reason, verdict.correct, verdict.found_at
    )


def _verdicts(statement: Statement, cited: Cited, reader: Reader) -> Iterator[tuple[Pair, Verdict]]:
    pairs = pairs_of(statement.text) if statement.cells is None else tuple(pairs_of_row(statement))
    if cited.jsons or cited.csvs:
        judged = [(pair, judge(pair, cited, reader, statement.text)) for pair in pairs]
        some_shown = any(verdict.judgement is Judgement.SUPPORTED for _, verdict in judged)
        for pair, verdict in judged:
            cut = verdict.judgement is Judgement.ELSEWHERE and is_cut_off(verdict, cited, others_shown=some_shown)
            yield pair, (replace(verdict, judgement=Judgement.UNDECIDED) if cut else verdict)
    elif not statement.references and len(statement.stems) == 1:
        for pair in pairs:
            uncited = judge_uncited(pair, statement.stems[0], reader)
            if uncited is not None:
                yield pair, uncited


_SET_AT = re.compile(
    r"\b(?:fires?|sets?|retains?|keeps?|holds?|shows?|has|triggers?|is set|is true|=\s?true)\b"
    r"(?P<between>[^.;]{0,40}?)\b(?:at|in|by)\s(?:layer\s?|L\s?=?\s?)(?P<layer>\d{1,3})\b(?!\s?-)",
    re.IGNORECASE,
)
_SOFT = re.compile(r"soft[- _]?copy|copy[_ ]soft", re.IGNORECASE)
_STRICT = re.compile(r"copy[_ -]collapse|strict[- ]copy|copy[_ ]strict", re.IGNORECASE)
_ANSWER = re.compile(r"is_answer", re.IGNORECASE)
_FLAG_DENIED = re.compile(r"\b(?:no|not|never|without|neither|false)\b|✗", re.IGNORECASE)


def _flags(statement: Statement, cited: Cited) -> Iterator[Finding]:
    """Findings on flags that a statement has set at a layer, where it cites rows of a next-token table singly."""
    if len(cited.csvs) == 0 or not cited.is_complete or _FLAG_DENIED.search(statement.text):
        return
    for match in _SET_AT.finditer(statement.text):
        layer, words = int(match["layer"]), match["between"]
        for table in cited.csvs:
            columns = _flag_columns(words, table.file.header)
            rows = [row for row in table.file.rows if row.number_in("layer") == layer and is_main(row)]
            if not columns or len(rows) != 1 or table.has_row_numbers or table.is_whole or "records" in table.file.name:
                continue
            yield _flag_finding(statement, match[0].strip(), table, rows[0], columns)
            break


def _flag_finding(statement: Statement, claim: str, table: CitedCsv, row: CsvRow, columns: list[str]) -> Finding:
    """Set and shown, set but not shown, or not set."""
    held = [column for column in columns if row.cells[column] == "True"]
    place = row_citation(table.file, row, (held or columns)[0])
    if not held:
        known = all(row.cells[column] == "False" for column in columns)
        judgement = Judgement.CONTRADICTED if known else Judgement.UNDECIDED
        reason = f"{' and '.join(columns)} {'is False' if known else 'has no value'} at {place}."
        return Finding(statement.line, claim, statement.citation, judgement, reason, "False" if known else None, place)
    if any(cited.number == row.number for cited in table.rows):
        return Finding(
            statement.line,
            claim,
            statement.citation,
            Judgement.SUPPORTED,
            f"{held[0]} is True at {place}.",
            None,
            place,
        )
    reason = f"{held[0]} is True at {place}; {table.reference.text} does not show that row."
    return Finding(statement.line, claim, statement.citation, Judgement.ELSEWHERE, reason, str(place), place)


def _flag_columns(words: str, header: tuple[str, ...]) -> list[str]:
    if _SOFT.search(words):
        return [column for column in header if column.startswith("copy_soft_k")]
    if _STRICT.search(words):
        return [column for column in header if column in ("copy_collapse", "copy_strict@0.95")]
    return [column for column in header if column == "is_answer"] if _ANSWER.search(words) else []


_EARLY = re.compile(
    r"\bearly(?:[- ]layers?)?(?:'s)? (?:top-?(?:k|\d+)|layers?)\b|\btop-?(?:k|\d+) (?:in|of) early", re.IGNORECASE
)
_QUOTED = re.compile(r"\"([^\"]{1,20})\"|(?<!\w)'([^']{1,20})'(?!\w)")
_TOKEN_DENIED = re.compile(r"\b(?:no|not|never|without|neither)\b", re.IGNORECASE)
_OUTPUTS = frozenset({"test_prompts", "temperature_exploration", "final_prediction"})
"""Blocks of a document that hold what the whole model says, and nothing of any layer."""
_EARLY_SHARE = 1 / 3
_LISTED = 5


def _early_tokens(statement: Statement, cited: Cited, reader: Reader) -> Iterator[Finding]:
    """The finding on `" the" appears in early top-k`, where it cites lists of the model's output and no row."""
    text = statement.text
    if not _EARLY.search(text) or _TOKEN_DENIED.search(text) or not cited.is_complete or cited.csvs or not cited.jsons:
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
            yield Finding(statement.line, text, statement.citation, Judgement.CONTRADICTED, reason, None, place)
        else:
            place = row_citation(table, row)
            reason = f"{why}; layer {row.cells['layer']} lists {token!r} at {place}."
            yield Finding(statement.line, text, statement.citation, Judgement.ELSEWHERE, reason, str(place), place)


def _early_rows(table: CsvFile) -> list[CsvRow]:
    rows = [row for row in table.rows if is_main(row) and row.number_in("layer") is not None]
    return [row for row in rows if (row.number_in("layer") or 0) <= len(rows) * _EARLY_SHARE]


def _listed(row: CsvRow) -> set[str]:
    return {(row.cells.get(f"top{k}") or "").strip() for k in range(1, _LISTED + 1)}
