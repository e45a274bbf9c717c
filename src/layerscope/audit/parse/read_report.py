"""A Markdown report as statements, each with its line and what it cites."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from layerscope.audit.parse.citations import Group, fence_reference, find_groups
from layerscope.audit.parse.naming import Models
from layerscope.audit.parse.statement import Reference, Statement
from layerscope.audit.parse.vocabulary import plain_marks, unescaped

__all__ = ["Reference", "Statement", "read_report"]

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
_BOLD_LINE = re.compile(r"\*\*([^*]{1,200})\*\*:?$")
_NUMBERED = re.compile(r"\d{1,2}\.\s+([A-Z][^.!?:;]{1,70})$")
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})(.*)$")
_ALIGNMENT = re.compile(r"\s*\|?\s*:?-{1,}:?\s*(?:\|\s*:?-{1,}:?\s*)*\|?\s*$")
_SENTENCE_END = re.compile(r"[.!?][\"')\]*`]*\s+(?=[\"'(\[*`>]*[^\W\d_a-z])")
_ABBREVIATED = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|approx|Fig|Sec|conf|resp|no|al|etc|incl|max|min|avg|ca|n\.a)|\b[A-Z])$"
)
_LINE_OF = re.compile(r"lines? (?:of|in)\s+`?([^`|]+?)`?\s*$", re.IGNORECASE)
_GOES_ON = re.compile(r"\s{0,3}(?:[a-z0-9≈≤≥(\[`]|[-+]?\d)")
_LONGEST_TOGETHER = 20_000
_LONGEST_PIECE = 12_000


@dataclass(frozen=True)
class _Stretch:
    """A line of a report, or several that belong together, with what it is."""

    line: int
    raw: str
    headings: tuple[str, ...]
    cells: tuple[str, ...] | None = None
    header: tuple[str, ...] | None = None
    fenced: Reference | None = None


def read_report(text: str | bytes, stems: Sequence[str] = ()) -> tuple[Statement, ...]:
    """The statements of a report, in the order of its lines.

    Args:
        text: the report; bytes that are no UTF-8 are read with replacement marks.
        stems: the models that it may be about, as the files name them.
    """
    models = Models(tuple(stems))
    statements: list[Statement] = []
    last_file: str | None = None
    for stretch in _stretches(_decoded(text).split("\n")):
        added = _statements(stretch, last_file)
        statements += added
        last_file = _last_file(added) or last_file
    report_stem = _report_stem(statements, models)
    statements = [_about(statement, models) for statement in statements]
    by_line: dict[int, set[str]] = {}
    for statement in statements:
        by_line.setdefault(statement.line, set()).update(statement.stems)
    return tuple(
        statement if statement.stems else replace(statement, stems=_only(by_line[statement.line], report_stem))
        for statement in statements
    )


def _last_file(statements: Sequence[Statement]) -> str | None:
    """The last file that statements cite by its own name."""
    files = [r.file for statement in statements for r in statement.references if r.file and not r.file.startswith("*")]
    return files[-1] if files else None


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return text.decode("utf-16", errors="replace")
    return text.decode("utf-8-sig", errors="replace")


def _report_stem(statements: Sequence[Statement], models: Models) -> str | None:
    """The model that most citations are of, where it is nearly all; else the one that the title names."""
    cited = Counter(stem for statement in statements for stem in _cited_stems(statement, models))
    if cited:
        stem, often = cited.most_common(1)[0]
        return stem if often >= 0.8 * cited.total() else None
    named = models.named_in(statements[0].headings[0] if statements and statements[0].headings else "")
    return named[0] if len(named) == 1 else (models.stems[0] if len(models.stems) == 1 else None)


def _only(on_line: set[str], report_stem: str | None) -> tuple[str, ...]:
    """The model of a statement that names and cites none: the only one of its line, else the report's own."""
    return tuple(on_line) if len(on_line) == 1 else ((report_stem,) if report_stem and not on_line else ())


def _about(statement: Statement, models: Models) -> Statement:
    named = models.named_in(statement.text)
    return replace(statement, stems=named or tuple(dict.fromkeys(_cited_stems(statement, models))))


def _cited_stems(statement: Statement, models: Models) -> list[str]:
    stems = (models.of_file(reference.file) for reference in statement.references if reference.file)
    return [stem for stem in stems if stem]


def _stretches(lines: Sequence[str]) -> Iterator[_Stretch]:
    headings: list[tuple[int, str]] = []
    header: tuple[str, ...] | None = None
    at = 0
    while at < len(lines):
        raw = lines[at].rstrip("\r")
        number, texts = at + 1, tuple(text for _, text in headings)
        fence = _FENCE.match(raw)
        if fence:
            at, content = _fenced(lines, at, fence[1])
            reference = fence_reference(fence[2])
            if reference is not None:
                yield _Stretch(number, content, texts, fenced=reference)
            continue
        at += 1
        title = _title(raw)
        if title is not None:
            level, text = title
            headings = [*((lv, t) for lv, t in headings if lv < level), (level, text)]
            yield _Stretch(number, raw, tuple(t for _, t in headings))
        elif raw.count("|") >= 2 and raw.lstrip().startswith("|") and len(raw) < _LONGEST_TOGETHER:
            if _ALIGNMENT.fullmatch(raw):
                continue
            cells = _cells(raw)
            if at < len(lines) and _ALIGNMENT.fullmatch(lines[at].rstrip("\r")) and "|" in lines[at]:
                header = cells
            else:
                yield _Stretch(number, raw, texts, cells, header)
            continue
        elif raw.strip():
            joined = [raw]
            while at < len(lines) and len(raw) < _LONGEST_TOGETHER and _belongs(joined[-1], lines[at]):
                joined.append(lines[at].rstrip("\r"))
                at += 1
            yield _Stretch(number, " ".join(joined), texts)
        header = None


def _fenced(lines: Sequence[str], at: int, mark: str) -> tuple[int, str]:
    """Past a code fence, and what it holds; one that is never closed ends with the first line."""
    for end in range(at + 1, min(len(lines), at + 2000)):
        if lines[end].strip().startswith(mark) and not lines[end].strip().strip(mark[0]):
            return end + 1, "\n".join(lines[at + 1 : end])
    return at + 1, ""


def _title(raw: str) -> tuple[int, str] | None:
    text = raw.strip()
    if match := _HEADING.match(text):
        return len(match[1]), plain_marks(unescaped(match[2]))
    if match := _BOLD_LINE.match(text):
        return 2, plain_marks(match[1])
    if raw[:1].isdigit() and (match := _NUMBERED.match(text)):
        return 2, plain_marks(match[1])
    return None


def _cells(raw: str) -> tuple[str, ...]:
    """The cells of a table row; an escaped bar, or one in a code span, divides nothing."""
    text = raw.strip().removeprefix("|")
    parts, start, fence, at = list[str](), 0, 0, 0
    while at < len(text):
        mark = text[at]
        if mark == "\\" and fence == 0 and at + 1 < len(text):
            at += 2
            continue
        if mark == "`":
            run = len(text) - len(text[at:].lstrip("`")) - at if at < len(text) - 1 and text[at + 1] == "`" else 1
            if fence == 0 and "`" * run in text[at + run :]:
                fence = run
            elif fence == run:
                fence = 0
            at += run
            continue
        if mark == "|" and (fence == 0 or text[at - 1] != "\\"):
            parts.append(text[start:at])
            start, fence = at + 1, 0
        at += 1
    if text[start:].strip():
        parts.append(text[start:])
    return tuple(unescaped(part.strip()) for part in parts)


def _belongs(above: str, below: str) -> bool:
    """Whether a line goes on with the one above: that one ends in the middle of a sentence."""
    above, below = above.rstrip(), below.rstrip("\r")
    ends = above.endswith((".", "!", "?", ":", "]", ")", "|", "✓", "✗"))
    if not above or not below.strip() or len(above) < 40 or ends:
        return bool(above) and re.match(r"\s*[\[(`]+[\w./-]{0,200}\.(?:json|csv)\b", below) is not None
    return _GOES_ON.match(below) is not None and not re.match(r"\s*(?:\d+[.)]|[-*+])\s", below)


def _statements(stretch: _Stretch, last_file: str | None) -> list[Statement]:
    if stretch.fenced is not None:
        text = plain_marks(stretch.raw)
        return [Statement(stretch.line, text, stretch.raw, (stretch.fenced,), stretch.headings)]
    if stretch.cells is not None:
        return [_row_statement(stretch, stretch.cells, last_file)]
    statements: list[Statement] = []
    for raw in _pieces(unescaped(stretch.raw)):
        added = _statements_of(stretch, raw, last_file)
        last_file = _last_file(added) or last_file
        statements += added
    return statements


def _pieces(raw: str) -> Iterator[str]:
    """A line in pieces that can be read in a moment; a published report's lines are one piece."""
    while len(raw) > _LONGEST_PIECE:
        cut = max(raw.rfind(" ", 0, _LONGEST_PIECE), _LONGEST_PIECE // 2)
        yield raw[:cut]
        raw = raw[cut:]
    yield raw


def _statements_of(stretch: _Stretch, raw: str, last_file: str | None) -> list[Statement]:
    line = plain_marks(raw)
    groups = find_groups(line, last_file)
    statements: list[Statement] = []
    for start, end in _clauses(line, groups):
        inside = [group for group in groups if start <= group.start and group.end <= end]
        text, references = _without(line, start, end, inside), tuple(r for group in inside for r in group.references)
        moved = tuple(replace(r, start=r.start - start, end=r.end - start) for r in references)
        if text.strip(" .,;:-*") or moved:
            statements.append(Statement(stretch.line, text, raw[start:end], moved, stretch.headings))
    return statements


def _row_statement(stretch: _Stretch, cells: tuple[str, ...], last_file: str | None) -> Statement:
    header = stretch.header
    named = None if header is None else _LINE_OF.search(header[-1])
    if named is not None and header is not None and len(cells) == len(header):
        groups = find_groups(f"{plain_marks(named[1])}:{plain_marks(cells[-1]).strip('`')}")
        cells = cells[:-1]
    else:
        groups = find_groups(plain_marks(cells[-1]), last_file) if cells else ()
        groups = groups or tuple(group for cell in cells for group in find_groups(plain_marks(cell)))
    references = tuple(r for group in groups for r in group.references)
    text = plain_marks(" | ".join(cells))
    return Statement(stretch.line, text, stretch.raw, references, stretch.headings, cells=cells, header=header)


def _clauses(line: str, groups: Sequence[Group]) -> Iterator[tuple[int, int]]:
    """Where a statement begins and ends: at the end of a sentence, or of what it cites."""
    marks = sorted({*_sentence_ends(line, groups), *(_past(line, g.end) for g in groups), len(line)})
    start = 0
    for mark in marks:
        if mark > start:
            yield start, mark
            start = mark


def _past(line: str, end: int) -> int:
    """A citation's end with the marks that close the sentence after it."""
    match = re.match(r"[\s\"'*`)\]]*[.;,]?\s*", line[end : end + 12])
    return end + (match.end() if match else 0)


def _sentence_ends(line: str, groups: Sequence[Group]) -> Iterator[int]:
    quotes = [match.start() for match in re.finditer('"', line)]
    balanced, opened, at_group = len(quotes) % 2 == 0, 0, 0
    for match in _SENTENCE_END.finditer(line):
        while opened < len(quotes) and quotes[opened] < match.start():
            opened += 1
        while at_group < len(groups) and groups[at_group].end <= match.start():
            at_group += 1
        in_group = at_group < len(groups) and groups[at_group].start < match.end()
        in_quotes = balanced and opened % 2 == 1
        if not in_group and not in_quotes and not _ABBREVIATED.search(line[max(0, match.start() - 8) : match.start()]):
            yield match.end()


def _without(line: str, start: int, end: int, groups: Sequence[Group]) -> str:
    parts, at = list[str](), start
    for cut_start, cut_end in (cut for group in groups for cut in group.cuts):
        parts.append(line[at:cut_start])
        at = max(at, cut_end)
    parts.append(line[at:end])
    return " ".join(part.strip() for part in parts if part.strip()).strip()
