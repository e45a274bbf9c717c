"""CSV of both dialects: cells to bytes, and bytes, whole or damaged, to cells with every fault noted.

`GENERATION_M` quotes a cell that holds a comma, a quote or a line break, doubles quotes, and doubles backslashes. Line
breaks stand in quoted cells as they are, so a row may span several lines. An empty text and no value look the same.

`EXTENDED` is RFC 4180 without an escape character. In its texts a backslash is written `\\\\`, a line feed `\\n`, a
carriage return `\\r`, a tab `\\t`, and any other control character (U+0000 to U+001F, U+007F to U+009F), line separator
(U+2028) or paragraph separator (U+2029) as `\\u` with four hexadecimal digits; so one row is one line, whatever counts
as a line break. No value is an empty cell; an empty text is `""`.
"""

import codecs
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from layerscope.published.layout import EXTENDED, GENERATION_M, Dialect, Value

Cells = tuple[str | None, ...]


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file."""

    row: int | None
    """Data row, counted from 0; None where no one row is meant."""
    message: str


@dataclass(frozen=True)
class Sheet:
    """A table as text."""

    header: tuple[str, ...]
    numbers: tuple[int, ...]
    """For each of `rows`, which data row of the file it is, counted from 0; damaged rows count too."""
    rows: tuple[Cells, ...]
    """Rows with as many cells as the header; None is an empty cell."""
    lines: tuple[tuple[int, int], ...] = ()
    """For each of `rows`, its first and last line in the file, counted from 1 by line feeds."""
    faults: tuple[Fault, ...] = ()


# Writing


def serialise(header: Sequence[str], rows: Iterable[Sequence[Value]], dialect: Dialect) -> bytes:
    """The file's bytes; floats in their shortest form that is read back equal, truth values as `True` and `False`.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    lines = []
    special = _SPECIAL[dialect].search
    for row in (header, *rows):
        cells = []
        for value in row:
            if value is None:
                cells.append("")
            elif not isinstance(value, str):
                cells.append(_number(value))
            else:
                cells.append(_text(value, dialect) if special(value) or not value else value)
        lines.append(",".join(cells) + "\n")
    return "".join(lines).encode()


def _number(value: int | float | bool) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a table holds finite numbers alone, not {value}")
    return repr(value)


def _text(value: str, dialect: Dialect) -> str:
    """A text that is empty or holds something special."""
    if dialect is EXTENDED:
        text = _CONTROL.sub(_escape, value)
        return f'"{text.replace(chr(34), chr(34) * 2)}"' if text == "" or "," in text or '"' in text else text
    text = value.replace("\\", "\\\\").replace('"', '""')
    return f'"{text}"' if _NEEDS_QUOTES.search(value) else text


_NEEDS_QUOTES = re.compile(r'[,"\r\n]')
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\\\\]")
_SPECIAL = {
    GENERATION_M: re.compile(r'[,"\r\n\\]'),
    EXTENDED: re.compile('[,"\x00-\x1f\x7f-\x9f\u2028\u2029\\\\]'),
}
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_LONG = {short[1]: character for character, short in _SHORT.items()}


def _escape(match: re.Match[str]) -> str:
    return _SHORT.get(match[0], f"\\u{ord(match[0]):04x}")


# Reading


def parse(data: bytes, dialect: Dialect) -> Sheet:
    """A file's rows as far as they can be told, and what is wrong with it; nothing is raised.

    A row with too few or too many cells is left out, because a comma lost or won shifts all that follows it. Where such
    a row spans several lines, as after a stray quote, reading goes on at the first of them that is a whole row again.
    """
    text, faults = _decoded(data)
    if not text:
        return Sheet((), (), (), (), (*faults, Fault(None, "the file is empty")))
    head = _record(text, 0, dialect)
    if not head.closed or not head.ended:
        faults.append(Fault(None, "the file ends inside its header"))
    lossy = _SURROGATE.search(text) is not None
    header = tuple(cell or "" for cell in head.cells)
    if lossy and _SURROGATE.search("".join(header)):
        header = tuple(_replaced(name) for name in header)
        faults.append(Fault(None, "the header has bytes that are not UTF-8; they were replaced"))
    numbers, rows, lines = list[int](), list[Cells](), list[tuple[int, int]]()
    next_line = 1 + text.count("\n", 0, head.end)
    crlf: list[int | None] = [None] if head.crlf else []
    for number, record in enumerate(_records(text, head.end, len(header), dialect)):
        messages, cells = _judged(record, header, lossy)
        faults += [Fault(number, message) for message in messages]
        crlf += [number] if record.crlf else []
        line, next_line = next_line, next_line + text.count("\n", record.start, record.end)
        if cells is not None:
            numbers.append(number)
            rows.append(cells)
            lines.append((line, next_line - 1 if record.ended else next_line))
    if crlf:
        message = "lines end in CR LF, where LF is due; line breaks inside tokens may have been changed too"
        faults.append(Fault(crlf[0], message))
    return Sheet(header, tuple(numbers), tuple(rows), tuple(lines), tuple(faults))


def _decoded(data: bytes) -> tuple[str, list[Fault]]:
    """The text; bytes that are not UTF-8 stand in it as lone surrogates, for their row to be named later."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        message = "the file is in UTF-16, where UTF-8 is due; it was converted"
        return data.decode("utf-16", errors="replace"), [Fault(None, message)]
    text, faults = data.decode("utf-8", errors="surrogateescape"), []
    if text.startswith("\ufeff"):
        text = text[1:]
        faults.append(Fault(None, "the file begins with a byte order mark, which was left out"))
    return text, faults


@dataclass
class _Record:
    """One row as it stands in the text."""

    cells: list[str | None] = field(default_factory=list)
    start: int = 0
    end: int = 0
    """Where the next row begins."""
    closed: bool = True
    """Whether every quote that was opened is closed."""
    ended: bool = True
    """Whether a line break follows."""
    crlf: bool = False
    notes: list[str] = field(default_factory=list)


_QUOTED = {
    # Possessive, so that a quote once taken for a doubled one is never tried as a closing one.
    GENERATION_M: re.compile(r'"((?>[^"\\]+|""|\\.)*+)"', re.DOTALL),
    EXTENDED: re.compile(r'"((?>[^"\n]+|"")*+)"'),
}
_UNQUOTED = re.compile(r"[^,\n]*")


def _record(text: str, start: int, dialect: Dialect) -> _Record:
    """The row that begins at `start`."""
    line_end = text.find("\n", start)
    line = text[start:] if line_end < 0 else text[start:line_end]
    if '"' in line or "\\" in line:
        return _quoted_record(text, start, dialect)
    record = _Record(start=start, end=start + len(line) + 1, ended=line_end >= 0)
    record.crlf = record.ended and line.endswith("\r")
    record.cells = [cell or None for cell in (line[:-1] if record.crlf else line).split(",")]
    return record


def _quoted_record(text: str, start: int, dialect: Dialect) -> _Record:
    """A row with quotes or backslashes, cell by cell."""
    record, at = _Record(start=start), start
    while True:
        body, quoted = "", text.startswith('"', at)
        if quoted:
            match = _QUOTED[dialect].match(text, at)
            if match is None:
                line_end = text.find("\n", at) if dialect is EXTENDED else -1
                record.end = len(text) if line_end < 0 else line_end + 1
                record.closed, record.ended = False, line_end >= 0
                return record
            body, at = match[1], match.end()
        rest = _UNQUOTED.match(text, at)
        assert rest is not None  # it matches the empty text too
        tail, at = rest[0], rest.end()
        if text.startswith("\n", at) and tail.endswith("\r"):
            tail, record.crlf = tail[:-1], True
        plain = not quoted and '"' not in tail and "\\" not in tail
        record.cells.append(tail or None if plain else _plain(body, tail, quoted, dialect, record.notes))
        if not text.startswith(",", at):
            record.end, record.ended = at + 1, text.startswith("\n", at)
            return record
        at += 1


def _plain(body: str, tail: str, quoted: bool, dialect: Dialect, notes: list[str]) -> str:
    """A cell's text: `body` from between quotes, `tail` from outside them."""
    if quoted and tail:
        notes.append(f"a cell has text after a closing quote ({tail[:20]!r}), which was taken for its end")
    elif '"' in tail:
        notes.append(f"an unquoted cell has a quote in it ({tail[:20]!r}), which was kept")
    if dialect is EXTENDED:
        return _ESCAPE.sub(lambda match: _unescaped(match, notes), body.replace('""', '"') + tail)
    inside = _IN_QUOTES.sub(lambda match: _single(match[0], notes), body)
    return inside + _IN_CELL.sub(lambda match: _single(match[0], notes), tail)


_IN_QUOTES = re.compile(r'""|\\[\\"]|\\')
_IN_CELL = re.compile(r"\\\\|\\")
_ESCAPE = re.compile(r"\\(?:([nrt\\])|u([0-9a-f]{4}))?")


def _single(text: str, notes: list[str]) -> str:
    if text == "\\":
        notes.append("a cell has a backslash that escapes nothing, which was kept")
    return text[-1]


def _unescaped(match: re.Match[str], notes: list[str]) -> str:
    if match[1]:
        return _LONG[match[1]]
    if match[2] and not 0xD800 <= int(match[2], 16) < 0xE000:
        return chr(int(match[2], 16))
    notes.append("a cell has a backslash that escapes nothing, which was kept")
    return match[0]


def _records(text: str, at: int, width: int, dialect: Dialect) -> Iterator[_Record]:
    while at < len(text):
        record = _record(text, at, dialect)
        if not record.closed or len(record.cells) != width:
            resumed = _resumption(text, record, width, dialect)
            if resumed is not None:
                record.end, record.ended = resumed, True
        yield record
        at = record.end


def _resumption(text: str, record: _Record, width: int, dialect: Dialect) -> int | None:
    """Where inside a damaged row of several lines a whole row begins; None if nowhere."""
    at = text.find("\n", record.start, record.end - 1)
    while at >= 0:
        again = _record(text, at + 1, dialect)
        if again.closed and again.ended and len(again.cells) == width:
            return at + 1
        at = text.find("\n", at + 1, record.end - 1)
    return None


def _judged(record: _Record, header: tuple[str, ...], lossy: bool) -> tuple[list[str], Cells | None]:
    """What is wrong with a row, and its cells, None for a row that is left out; `lossy` if some bytes are not UTF-8."""
    n, due = len(record.cells), len(header)
    if not record.closed:
        where = "a quote opened in this row is never closed" if record.ended else "the file ends inside a quoted cell"
        return [f"{where}; the row was left out"], None
    if n < due and not record.ended:
        return ["the file ends inside this row; the row was left out"], None
    if n != due:
        return [f"the row has {n} cells where the header has {due}; it was left out"], None
    notes = list(record.notes)
    cells = _without_surrogates(record.cells, header, notes) if lossy else record.cells
    if not record.ended:
        message = "the file ends without a line break"
        if cells[-1] not in (None, "True", "False"):
            cells[-1] = None
            message += f", so the last cell, `{header[-1]}`, may be cut short; that cell was left out"
        notes.append(message)
    return notes, tuple(cells)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _without_surrogates(cells: list[str | None], header: tuple[str, ...], notes: list[str]) -> list[str | None]:
    """The cells with U+FFFD for bytes that are not UTF-8."""
    whole: list[str | None] = []
    for name, cell in zip(header, cells, strict=True):
        if cell is not None and _SURROGATE.search(cell):
            notes.append(f"column `{name}` has bytes that are not UTF-8; they were replaced")
            cell = _replaced(cell)
        whole.append(cell)
    return whole


def _replaced(text: str) -> str:
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
