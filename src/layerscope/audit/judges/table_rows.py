"""Per-layer tables of a report against the rows: each cell at the precision in which it is printed."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from layerscope.audit.judges.claim_context import Assertion, is_about, subjects
from layerscope.audit.parse.read_report import Statement
from layerscope.audit.parse.vocabulary import column_of, plain, token_meant
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding
from layerscope.report.numbers import ENDS, NUMBER, Number

_COLUMNS = {
    "layer": r"l|layers?|layer index|depth \(layer\)|block",
    "entropy_bits": r"entropy(?:[_ ]bits)?|h",
    "top1": r"(?:next )?top-?1(?: token| tok| \(token\))?|token|top token|argmax|top-?1 prediction",
    "p_top1": r"p_?top-?1|top-?1 prob(?:ability)?|p\(top-?1\)|p1|top-?1 p|prob1",
    "p_top5": r"p_?top-?5",
    "p_answer": r"p_?answer|answer prob(?:ability)?|p\(answer\)|p_?gold",
    "answer_rank": r"(?:answer[_ ]|gold[_ ])?rank",
    "is_answer": r"is[_ ]answer",
    "kl_to_final_bits": r"kl(?:[_ ]to[_ ]final)?(?:[_ ]bits)?",
    "cos_to_final": r"cos(?:ine)?(?:[_ ]to[_ ]final)?",
    "rest_mass": r"rest[_ ]?mass",
    "copy_collapse": r"copy[_ ]?collapse",
    "echo_mass_prompt": r"echo[_ ]mass(?:[_ ]prompt)?",
    "answer_mass": r"answer[_ ]mass",
}
"""What tables of reports call our columns."""
_UNITS = re.compile(
    r"\((?:in )?(?:bits?|nats?|next|norm(?:[- ]lens)?|pos/orig|id|text|prob\w*|baseline)\)|,?\s*bits$", re.I
)
_LISTED = re.compile(
    rf"^[\s>*-]*L(?:ayer)? ?(?P<layer>\d+)\s*[-:,|]+\s*entropy\s*[=:~]?\s*(?P<entropy>{NUMBER})\s*"
    r"(?:bits)?\s*[,;|]\s*"
    r"top-?1(?: token)?\s*[=:]?\s*(?P<token>\S.*?)\s*$",
    re.IGNORECASE,
)
_NUMBER = re.compile(rf"(?:~\s*)?{NUMBER}(?:\s?%)?{ENDS}")
_NOTHING = frozenset({"", "-", "--", "n/a", "n.a.", "na", "null", "none", "..."})
_BEGINS_NUMBER = re.compile(r"[~=\s]*[-+]?\.?\d")
_QUOTES = "'\"`"
ENOUGH = 0.5
"""Share of its rows that a lens must fit for a table to be taken as its."""


@dataclass(frozen=True)
class _Row:
    """One row of a table: what it says of a layer."""

    assertion: Assertion
    layer: int
    cells: Mapping[str, str]
    """Printed values by our column."""


def judge_tables(statements: Sequence[Statement], archive: Archive) -> list[Finding]:
    """Judge every row of the per-layer tables of a report, and of lists of layers with entropy and first token.

    A row is supported where each cell that we know is what the lens' row has, at the printed precision. The lens is
    the one that fits most rows of the table; one that fits none in half its rows is of something else, and left out.

    Args:
        statements: of one report, those of tables with their cells.
        archive: the runs it is about.

    Raises:
        RunError: a model's files are there but cannot be read as a run.
    """
    tables: dict[tuple[object, ...], list[_Row]] = {}
    for statement in statements if is_about(statements, archive) else ():
        row = _row(statement, archive)
        if row is not None:
            key = (row.assertion.evidence.stem, statement.header, statement.headings, tuple(row.cells))
            tables.setdefault(key, []).append(row)
    findings = [finding for rows in tables.values() for finding in _judge(rows)]
    return sorted(findings, key=lambda finding: finding.line)


def _row(statement: Statement, archive: Archive) -> _Row | None:
    """A statement as a row on one layer; None where it is none."""
    assertion = next(subjects(statement, archive), None) if len(statement.stems) == 1 else None
    if assertion is None:
        return None
    cells = _cells(statement) if statement.cells is not None else _listed(statement)
    layer = None if cells is None else re.fullmatch(r"[L\s]*(?:layer )?(\d+)", _bare(cells.get("layer", "")), re.I)
    if cells is None or layer is None or len(cells) < 2:
        return None
    return _Row(assertion, int(layer[1]), {name: text for name, text in cells.items() if name != "layer"})


def _listed(statement: Statement) -> dict[str, str] | None:
    match = _LISTED.match(plain(statement.text).strip().strip("*"))
    if match is None:
        return None
    return {"layer": match["layer"], "entropy_bits": match["entropy"], "top1": match["token"]}


def _cells(statement: Statement) -> dict[str, str] | None:
    """Cells by our column; of a row that a bar within a token has cut, the pieces of the token put together again."""
    if statement.header is None or statement.cells is None:
        return None
    names = [_column(header) for header in statement.header]
    cells = list(statement.cells)
    surplus = len(cells) - len(names)
    if surplus > 0 and "top1" in names:
        at = names.index("top1")
        cells[at : at + surplus + 1] = ["|".join(cells[at : at + surplus + 1])]
    if "layer" not in names:
        return None
    return {name: cell for name, cell in zip(names, cells, strict=False) if name is not None}


def _column(header: str) -> str | None:
    return column_of(_UNITS.sub("", plain(header).strip().lower()), _COLUMNS)


@dataclass(frozen=True)
class _Fit:
    """How a row of a table fits a lens' row."""

    right: int
    """How many cells have what the lens' row has."""
    wrong: tuple[str, ...]
    """What the lens' row has otherwise."""
    unread: tuple[str, ...]
    """Cells with a number that cannot be read."""
    is_far: bool
    """Whether more is wrong than last digits."""

    @property
    def is_near(self) -> bool:
        """Whether it may well be a row of the lens."""
        return not self.is_far and (self.right > 0 or len(self.wrong) > 0)

    @property
    def holds(self) -> bool:
        return self.right > 0 and not self.wrong and not self.unread


def _judge(rows: Sequence[_Row]) -> Iterator[Finding]:
    assertion = rows[0].assertion
    order = list(dict.fromkeys((assertion.evidence.headline, *assertion.available)))
    fits = {lens: [_fit(row, lens) for row in rows] for lens in order}

    def agreement(lens: str) -> tuple[int, int]:
        known = [fit for fit in fits[lens] if fit is not None]
        return sum(fit.is_near for fit in known), sum(fit.holds for fit in known)

    # A lens that was not measured in a column cannot be meant where another one was.
    measured = {lens: _measured(rows, lens) for lens in order}
    order = [lens for lens in order if measured[lens] == max(measured.values())]
    best = max(order, key=lambda lens: (*agreement(lens), -order.index(lens)))
    if agreement(best)[0] < ENOUGH * len(rows):
        return
    for row, fit in zip(rows, fits[best], strict=True):
        yield _finding(row, fit, best)


def _measured(rows: Sequence[_Row], lens: str) -> int:
    """In how many columns of printed numbers a lens' rows have values."""
    compared = ((row.assertion.row(row.layer, lens), row.cells) for row in rows)
    names = {
        name
        for values, cells in compared
        if values is not None
        for name, text in cells.items()
        if name != "top1" and _printed(text) is not None and values[name] is not None
    }
    return len(names)


def _finding(row: _Row, fit: _Fit | None, lens: str) -> Finding:
    assertion = row.assertion
    at, text, name = assertion.place(row.layer, lens), plain(assertion.statement.text), assertion.table_name(lens)
    if fit is None:
        return assertion.undecided(text, f"{name} has no row of layer {row.layer}.")
    if fit.wrong:
        truth = "; ".join(fit.wrong)
        return assertion.contradicted(text, f"{name} has at layer {row.layer}: {truth}.", truth, at)
    if not fit.holds:
        unclear = f"it is not clear what is meant by {', '.join(fit.unread)}" if fit.unread else "it states no value"
        return assertion.undecided(text, f"{unclear}.")
    return assertion.supported(text, f"so it is in {name}, layer {row.layer}.", at)


def _fit(row: _Row, lens: str) -> _Fit | None:
    """How a row fits; None where the lens has none of its layer."""
    values = row.assertion.row(row.layer, lens)
    if values is None:
        return None
    right, wrong, unread, far = 0, list[str](), list[str](), False
    for name, text in row.cells.items():
        value, printed, bare = values[name], _printed(text), _bare(text)
        if name != "top1" and printed is None and _BEGINS_NUMBER.match(bare):
            unread.append(text)
        if value is None or (name != "top1" and bare.lower() in _NOTHING):
            continue
        if name == "top1" or isinstance(value, bool):
            same, is_near = _same_text(name, text, value), False
        elif printed is not None:
            same, is_near = printed.stands_for(value), printed.is_near(value)
        else:
            continue
        right += same
        wrong += [] if same else [f"{name} {value!r}"]
        far = far or not (same or is_near)
    return _Fit(right, tuple(wrong), tuple(unread), far)


def _same_text(name: str, text: str, value: object) -> bool:
    """Whether a cell shows a token or a truth; one that shows nothing contradicts none."""
    if name == "top1":
        return same_token(text, str(value))
    words = {"true": True, "yes": True, "\u2713": True, "1": True, "false": False, "no": False, "\u2717": False}
    return not isinstance(value, bool) or words.get(_bare(text).lower(), value) == value


def _printed(text: str) -> Number | None:
    """The number that a cell begins with; None of one that holds none, or a bound."""
    match = _NUMBER.match(_bare(text).lstrip("= "))
    return None if match is None else Number.parse(match.group())


def _bare(text: str) -> str:
    return plain(text).replace("*", "").strip()


def same_token(text: str, token: str) -> bool:
    """Whether a cell shows a token: in quotes or not, escaped or not, with or without the spaces around it."""
    return bool(_forms(text) & _forms(token)) or _is_unprintable(text, token)


def _forms(text: str) -> set[str]:
    """A text as it may be meant, without what Markdown and printing do to tokens."""
    normal, meant = _normal(text), _normal(token_meant(text))
    forms = {normal, normal.replace("\\", ""), meant, meant.replace("&#124;", "|")}
    forms |= {form.strip().strip("*").strip() for form in forms}
    for _ in range(2):  # a report may quote a token that is in quotes
        forms |= {form.strip() for form in forms}
        forms |= {form[1:-1] for form in forms if len(form) >= 2 and form[0] in _QUOTES and form[-1] == form[0]}
    return {" ".join(form.split()) for form in forms} | ({""} if not normal.strip() else set())


def _normal(text: str) -> str:
    return plain(unicodedata.normalize("NFKC", text.replace("\u2423", " ").replace("\u00b7", " ")))


def _is_unprintable(text: str, token: str) -> bool:
    """Whether both stand for a piece of a letter, or for nothing that can be seen."""
    shown = plain(text).strip().strip("*").strip(_QUOTES + " ")
    meant = token.strip()
    if "\ufffd" in shown or "\ufffd" in meant:
        return shown.replace("\ufffd", "") == meant.replace("\ufffd", "") or not shown or not meant
    return not meant and shown.lower() in {"", "\\n", "\\t", "newline", "space", "<newline>", "\u21b5", "\u23ce"}
