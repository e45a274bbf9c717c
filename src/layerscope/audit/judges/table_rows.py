"""Per-layer tables of a report against the rows: each cell at the precision in which it is printed."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from layerscope.audit.judges.claim_context import ModelStatement, is_about, subjects
from layerscope.audit.parse.plain_text import token_meant
from layerscope.audit.parse.read_report import Statement
from layerscope.audit.parse.vocabulary import agrees, plain
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding, Judgement

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
    r"^[\s>*-]*L(?:ayer)? ?(?P<layer>\d+)\s*[-:,|]+\s*entropy\s*[=:~]?\s*(?P<entropy>\d+(?:\.\d+)?)\s*"
    r"(?:bits)?\s*[,;|]\s*"
    r"top-?1(?: token)?\s*[=:]?\s*(?P<token>\S.*?)\s*$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\d|\d)(?:\.\d+)?(?:e[+-]?\d+)?", re.IGNORECASE)
_NOTHING = frozenset({"", "-", "--", "n/a", "n.a.", "na", "null", "none", "..."})
_QUOTES = "'\"`"
ENOUGH = 0.5
"""Share of its rows that a lens must fit for a table to be taken as its."""


@dataclass(frozen=True)
class _Row:
    """One row of a table: what it says of a layer."""

    said: ModelStatement
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
            key = (row.said.evidence.stem, statement.header, statement.headings, tuple(row.cells))
            tables.setdefault(key, []).append(row)
    found = [finding for rows in tables.values() for finding in _judge(rows)]
    return sorted(found, key=lambda finding: finding.line)


def _row(statement: Statement, archive: Archive) -> _Row | None:
    """A statement as a row on one layer; None where it is none."""
    said = next(subjects(statement, archive), None) if len(statement.stems) == 1 else None
    if said is None:
        return None
    cells = _cells(statement) if statement.cells is not None else _listed(statement)
    layer = None if cells is None else re.fullmatch(r"[L\s]*(?:layer )?(\d+)", _bare(cells.get("layer", "")), re.I)
    if cells is None or layer is None or len(cells) < 2:
        return None
    return _Row(said, int(layer[1]), {name: text for name, text in cells.items() if name != "layer"})


def _listed(statement: Statement) -> dict[str, str] | None:
    found = _LISTED.match(plain(statement.text).strip().strip("*"))
    if found is None:
        return None
    return {"layer": found["layer"], "entropy_bits": found["entropy"], "top1": found["token"]}


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
    text = _UNITS.sub("", plain(header).strip().lower()).strip()
    return next((name for name, form in _COLUMNS.items() if re.fullmatch(form, text)), None)


def _judge(rows: Sequence[_Row]) -> Iterator[Finding]:
    said = rows[0].said
    order = [said.evidence.headline, *(lens for lens in said.available if lens != said.evidence.headline)]
    wrong = {lens: [_differences(row, lens) for row in rows] for lens in order}
    best = max(order, key=lambda lens: (sum(found == [] for found in wrong[lens]), -order.index(lens)))
    if sum(found == [] for found in wrong[best]) < ENOUGH * len(rows):
        return
    for row, found in zip(rows, wrong[best], strict=True):
        at, text = row.said.place(row.layer, best), plain(row.said.statement.text)
        name = row.said.table_name(best)
        if found is None:
            yield row.said.finding(text, Judgement.UNDECIDED, f"{name} has no row of layer {row.layer}.")
        elif not found:
            yield row.said.finding(text, Judgement.SUPPORTED, f"so it is in {name}, layer {row.layer}.", found_at=at)
        else:
            truth = "; ".join(found)
            yield row.said.finding(
                text, Judgement.CONTRADICTED, f"{name} has at layer {row.layer}: {truth}.", correct=truth, found_at=at
            )


def _differences(row: _Row, lens: str) -> list[str] | None:
    """What a lens' row has otherwise; None where there is no such row."""
    values = row.said.row(row.layer, lens)
    if values is None:
        return None
    return [
        f"{name} {values[name]!r}"
        for name, text in row.cells.items()
        if values[name] is not None and not _same(name, text, values[name])
    ]


def _same(name: str, text: str, value: object) -> bool:
    """Whether a cell prints a value; one that prints nothing contradicts none."""
    bare = _bare(text)
    if name == "top1":
        return same_token(text, str(value))
    if bare.lower() in _NOTHING:
        return True
    if isinstance(value, bool):
        words = {"true": True, "yes": True, "\u2713": True, "1": True, "false": False, "no": False, "\u2717": False}
        return words.get(bare.lower(), value) == value
    number = _NUMBER.match(bare.lstrip("~<>= "))
    if number is None or not isinstance(value, int | float):
        return True
    return bare[:1] in "<>" or agrees(value, number.group())


def _bare(text: str) -> str:
    return plain(text).replace("*", "").strip()


def same_token(text: str, token: str) -> bool:
    """Whether a cell shows a token: in quotes or not, escaped or not, with or without the spaces around it."""
    return bool(_forms(text) & _forms(token)) or _is_unprintable(text, token)


def _forms(text: str) -> set[str]:
    """A text as it may be meant, without what Markdown and printing do to tokens."""
    normal, meant = _normal(text), _normal(token_meant(text))
    found = {normal, normal.replace("\\", ""), meant, meant.replace("&#124;", "|")}
    found |= {form.strip().strip("*").strip() for form in found}
    found |= {form[1:-1] for form in found if len(form) >= 2 and form[0] in _QUOTES and form[-1] == form[0]}
    found |= {form.strip() for form in found}
    found |= {form[1:-1] for form in found if len(form) >= 2 and form[0] in _QUOTES and form[-1] == form[0]}
    return {" ".join(form.split()) for form in found} | ({""} if not normal.strip() else set())


def _normal(text: str) -> str:
    return plain(unicodedata.normalize("NFKC", text.replace("\u2423", " ").replace("\u00b7", " ")))


def _is_unprintable(text: str, token: str) -> bool:
    """Whether both stand for a piece of a letter, or for nothing that can be seen."""
    shown = plain(text).strip().strip("*").strip(_QUOTES + " ")
    meant = token.strip()
    if "\ufffd" in shown or "\ufffd" in meant:
        return shown.replace("\ufffd", "") == meant.replace("\ufffd", "") or not shown or not meant
    return not meant and shown.lower() in {"", "\\n", "\\t", "newline", "space", "<newline>", "\u21b5", "\u23ce"}
