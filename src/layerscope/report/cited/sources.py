"""The files of a published run as evidence: every value by pointer or row, and by the physical line it stands on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from pathlib import Path
from typing import TypeAlias

from layerscope.errors import RunError
from layerscope.published.dialect import parse
from layerscope.published.layout import DIALECT_KEY, EXTENDED, GENERATION_M, Dialect, is_file_of
from layerscope.report.cited.claims import Citation

Scalar: TypeAlias = str | int | float | bool | None

LARGEST_BYTES = 512 << 20
"""A file above this is not read as evidence."""


@dataclass(frozen=True)
class Entry:
    """A member of a JSON document, or an item of one of its lists."""

    pointer: str
    """RFC 6901: `/diagnostics/first_rank_le_1`."""
    line: int
    """Where its key stands, or the item begins; counted from 1."""
    last_line: int
    value: Scalar
    """None for an object or list too."""
    is_container: bool
    parent: "Entry | None" = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        """The last part of the pointer: a name, or an item's number."""
        return self.pointer.rsplit("/", 1)[-1].replace("~1", "/").replace("~0", "~")

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the pointer."""
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in self.pointer.split("/")[1:])


@dataclass(frozen=True)
class JsonFile:
    """One JSON document. Of a damaged one, the members before the damage."""

    name: str
    entries: tuple[Entry, ...]
    """In the order of the file."""
    n_lines: int
    damage: str | None = None

    @cached_property
    def by_pointer(self) -> Mapping[str, Entry]:
        """Every entry by its pointer; of a key given twice the last, which is the one that readers see."""
        return {entry.pointer: entry for entry in self.entries}

    @cached_property
    def _by_line(self) -> Mapping[int, list[Entry]]:
        by_line: dict[int, list[Entry]] = {}
        for entry in self.entries:
            by_line.setdefault(entry.line, []).append(entry)
        return by_line

    def at(self, *path: str | int) -> Entry | None:
        """The entry at a path of keys and item numbers; None where there is none."""
        return self.by_pointer.get(pointer(*path))

    def within(self, first: int, last: int) -> list[Entry]:
        """Entries that begin on lines `first` to `last`."""
        return [
            entry for line in range(max(1, first), min(last, self.n_lines) + 1) for entry in self._by_line.get(line, ())
        ]

    def under(self, entry: Entry) -> Iterator[Entry]:
        """All that a container holds, at any depth."""
        inside = entry.pointer + "/"
        return (inner for inner in self.entries if inner.pointer.startswith(inside))

    def children(self, entry: Entry) -> list[Entry]:
        """What a container holds directly."""
        return self._children.get(entry.pointer, [])

    @cached_property
    def _children(self) -> Mapping[str, list[Entry]]:
        children: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if entry.parent is not None:
                children.setdefault(entry.parent.pointer, []).append(entry)
        return children


@dataclass(frozen=True)
class CsvRow:
    """A data row of a table."""

    number: int
    """Counted from 0, without the header."""
    line: int
    """Its first physical line, counted from 1; the header is line 1."""
    last_line: int
    cells: Mapping[str, str | None]
    """Texts by column; None is an empty cell."""

    def number_in(self, column: str) -> int | float | None:
        """A cell as a number; None where it is empty, absent or none."""
        text = self.cells.get(column)
        if text is None or not _CELL.fullmatch(text):
            return None
        return _number_of(text)


_WHOLE = re.compile(r"[+-]?\d+")
_CELL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class CsvFile:
    """One table."""

    name: str
    header: tuple[str, ...]
    rows: tuple[CsvRow, ...]
    n_lines: int

    @cached_property
    def _by_line(self) -> Mapping[int, CsvRow]:
        return {line: row for row in self.rows for line in range(row.line, row.last_line + 1)}

    def within(self, first: int, last: int) -> list[CsvRow]:
        """Rows that have a line among these."""
        entries = [
            self._by_line[line] for line in range(max(1, first), min(last, self.n_lines) + 1) if line in self._by_line
        ]
        return list({row.number: row for row in entries}.values())

    def cite(self, row: CsvRow, column: str | None = None) -> Citation:
        """The place of a row, or of one of its cells."""
        return Citation(self.name, row.line, row.last_line, row=row.number, column=column)

    def span(self, rows: Sequence[CsvRow]) -> Citation:
        """The stretch of lines that holds rows."""
        first, last = min(row.line for row in rows), max(row.last_line for row in rows)
        return Citation(self.name, first, last, row=rows[0].number)

    def select(self, **cells: str | int | None) -> list[CsvRow]:
        """Rows whose cells are these, as text; a column that the table lacks matches anything."""
        wanted = {name: None if value is None else str(value) for name, value in cells.items() if name in self.header}
        return [row for row in self.rows if all(row.cells[name] == value for name, value in wanted.items())]


class Sources:
    """The files of one folder in the published format, each read when first asked for."""

    def __init__(self, folder: Path) -> None:
        """Take a folder of published files, or a run's own folder with its `published` inside.

        Raises:
            RunError: there is no such folder.
        """
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder; give the folder that holds output-<model>.json and its tables.")
        inner = folder / "published"
        holds_json = any(folder.glob("output-*.json"))
        self.folder = inner if not holds_json and inner.is_dir() else folder
        self._jsons: dict[str, JsonFile] = {}
        self._tables: dict[str, CsvFile] = {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every file in the folder."""
        return tuple(sorted(path.name for path in self.folder.iterdir() if path.is_file()))

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """The models whose JSON lies in the folder: `Qwen3-8B` of `output-Qwen3-8B.json`."""
        return tuple(
            name.removeprefix("output-").removesuffix(".json")
            for name in self.names
            if name.startswith("output-") and name.endswith(".json")
        )

    def has(self, name: str) -> bool:
        """Whether the folder has a file of that name."""
        return name in self.names

    def json(self, name: str) -> JsonFile:
        """A document.

        Raises:
            RunError: there is no such file, or it cannot be read.
        """
        if name not in self._jsons:
            self._jsons[name] = read_json(name, self._bytes(name))
        return self._jsons[name]

    def csv(self, name: str) -> CsvFile:
        """A table, in the dialect that the folder's JSON names.

        Raises:
            RunError: there is no such file, or it cannot be read.
        """
        if name not in self._tables:
            self._tables[name] = read_csv(name, self._bytes(name), self._dialect(name))
        return self._tables[name]

    def lines(self, name: str) -> list[str]:
        """A file's physical lines.

        Raises:
            RunError: there is no such file, or it cannot be read.
        """
        return self._bytes(name).decode("utf-8", errors="replace").split("\n")

    def _dialect(self, table: str) -> Dialect:
        stem = next((stem for stem in self.stems if is_file_of(stem, table)), None)
        return GENERATION_M if stem is None else dialect_of(self.json(f"output-{stem}.json"))

    def _bytes(self, name: str) -> bytes:
        path = self.folder / name
        if name not in self.names:
            raise RunError(f"{path}: no such file among the {len(self.names)} of this run.")
        try:
            size = path.stat().st_size
            if size > LARGEST_BYTES:
                raise RunError(f"{path}: {size} bytes, above the {LARGEST_BYTES} that are read as evidence.")
            return path.read_bytes()
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}).") from error


def dialect_of(document: JsonFile) -> Dialect:
    """The dialect that a document names for itself and its tables."""
    stated = document.at(DIALECT_KEY)
    return EXTENDED if stated is not None and stated.value == EXTENDED.value else GENERATION_M


def pointer(*path: str | int) -> str:
    """RFC 6901 of a path."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def read_csv(name: str, data: bytes, dialect: Dialect) -> CsvFile:
    """A table with the physical lines of its rows; damaged rows are left out, as when a run is read."""
    sheet = parse(data, dialect)
    rows = tuple(
        CsvRow(number, lines[0], lines[1], dict(zip(sheet.header, cells, strict=True)))
        for number, lines, cells in zip(sheet.numbers, sheet.lines, sheet.rows, strict=True)
    )
    return CsvFile(name, sheet.header, rows, data.count(b"\n") + (not data.endswith(b"\n")))


def read_json(name: str, data: bytes) -> JsonFile:
    """A document with the line of every member; one that is damaged as far as it is whole."""
    text = data.decode("utf-8-sig", errors="replace")
    scanner = _Scanner(text)
    damage = scanner.run()
    return JsonFile(name, tuple(scanner.entries), text.count("\n") + (not text.endswith("\n")), damage)


_TOKEN = re.compile(
    r"[ \t\r\n]*(?:([{}\[\],:])|(\")|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(true|false|null|NaN|-?Infinity)|$)"
)
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None}


@dataclass
class _Open:
    """A container that is not closed yet."""

    at: int
    """Its place among the entries; -1 is the document itself."""
    pointer: str
    is_list: bool
    n_items: int = 0
    key: tuple[str, int] | None = None
    """The name that waits for its value, and its line."""


class _Scanner:
    """Walks a document once, without recursion, so that depth is no matter."""

    def __init__(self, text: str) -> None:
        self.text, self.entries = text, list[Entry]()
        self._stack: list[_Open] = []
        self._line, self._counted = 1, 0

    def run(self) -> str | None:
        """What is wrong with the text; None for a whole document."""
        at, damage = 0, None
        while damage is None:
            token = _TOKEN.match(self.text, at)
            if token is None:
                damage = f"line {self._line_of(at)}: this is no JSON"
                break
            at = token.end()
            mark, quote, number, word = token.groups()
            if mark is None and quote is None and number is None and word is None:
                damage = f"line {self._line_of(at)}: the document ends too early" if self._stack else None
                break
            start = at - 1 if mark or quote else at - len(number or word)
            if quote:
                try:
                    string, at = scanstring(self.text, at, False)
                except ValueError:
                    damage = f"line {self._line_of(start)}: a text that is never closed"
                    break
                self._string(string, start)
            elif mark in ("{", "["):
                self._open(mark == "[", start)
            elif mark in ("}", "]"):
                damage = self._close(start)
            elif number is not None:
                self._value(_number_of(number), start)
            elif word is not None:
                self._value(_WORDS.get(word), start)
        self._close_all(len(self.text))
        return damage

    def _line_of(self, at: int) -> int:
        """Asked for places in ascending order, but for a step back now and then."""
        if at < self._counted:
            return 1 + self.text.count("\n", 0, at)
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def _string(self, string: str, start: int) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and not top.is_list and top.key is None:
            top.key = (string, self._line_of(start))
        else:
            self._value(string, start)

    def _place(self, start: int) -> tuple[str, int, Entry | None]:
        """Pointer, line and container of the value that begins here."""
        top = self._stack[-1]
        parent = None if top.at < 0 else self.entries[top.at]
        if top.is_list:
            top.n_items += 1
            return f"{top.pointer}/{top.n_items - 1}", self._line_of(start), parent
        key, line = top.key or ("", self._line_of(start))
        top.key = None
        return top.pointer + pointer(key), line, parent

    def _value(self, value: Scalar, start: int) -> None:
        if not self._stack:
            return  # a document that is one bare value holds nothing to cite
        where, line, parent = self._place(start)
        self.entries.append(Entry(where, line, self._line_of(start), value, False, parent))

    def _open(self, is_list: bool, start: int) -> None:
        if not self._stack:
            self._stack.append(_Open(-1, "", is_list))
            return
        where, line, parent = self._place(start)
        self.entries.append(Entry(where, line, line, None, True, parent))
        self._stack.append(_Open(len(self.entries) - 1, where, is_list))

    def _close(self, at: int) -> str | None:
        if not self._stack:
            return f"line {self._line_of(at)}: a bracket that closes nothing"
        top = self._stack.pop()
        if top.at >= 0:
            # In place, since what the container holds names it as its parent.
            object.__setattr__(self.entries[top.at], "last_line", self._line_of(at))
        return None

    def _close_all(self, at: int) -> None:
        while self._stack:
            self._close(at)


def _number_of(text: str) -> int | float | None:
    if not _WHOLE.fullmatch(text):
        return float(text)
    return int(text) if len(text) <= 4000 else None
