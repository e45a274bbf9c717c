"""What the lines that a statement cites hold: members of a JSON document, and rows of tables."""

import fnmatch
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

from layerscope.audit.parse.statement import Reference
from layerscope.errors import RunError
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.sources import CsvFile, CsvRow, Entry, JsonFile, Sources
from layerscope.report.numbers import Number

SMALL_BLOCK = 60
"""Lines of a block that a line inside it may stand for."""
_EARLIEST_DEPTH = 2
"""How deep a block lies at least that a line inside it may stand for: `diagnostics` itself is no block."""

_REMEMBERED = 4096
"""References that are looked up once, however often they are cited."""


@dataclass(frozen=True)
class Missing:
    """A reference to what is not there."""

    reference: Reference
    reason: str


class Leaves:
    """The numbers among members of a document, by their size."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        numbers = [(entry.value, at) for at, entry in enumerate(entries) if is_number(entry.value)]
        self._sorted = sorted((value, at) for value, at in numbers if value == value)  # NaN has no place in an order
        self._values = [value for value, _ in self._sorted]
        self._entries = entries

    def printed(self, number: Number) -> list[Entry]:
        """Members that a printed number stands for, in the order of the file."""
        reach = number.reach
        first = bisect_left(self._values, number.value - reach)
        last = bisect_right(self._values, number.value + reach)
        places = sorted(at for value, at in self._sorted[first:last] if number.stands_for(value))
        return [self._entries[at] for at in places]


@dataclass(frozen=True)
class CitedJson:
    """A document, and what of it is cited."""

    file: JsonFile
    reference: Reference
    entries: tuple[Entry, ...]
    is_whole: bool = False
    """No lines are given."""

    @cached_property
    def lines(self) -> frozenset[int]:
        """The lines on which what is cited begins."""
        return frozenset(entry.line for entry in self.entries)

    @cached_property
    def leaves(self) -> Leaves:
        """The numbers of what is cited."""
        return Leaves(self.entries)


@dataclass(frozen=True)
class CitedCsv:
    """A table, and the rows of it that are cited."""

    file: CsvFile
    reference: Reference
    rows: tuple[CsvRow, ...]
    is_whole: bool = False
    has_row_numbers: bool = False
    """The report counts rows and not lines, and may count from 0 or 1, with the header or without."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the rows."""
        return tuple(layer for row in self.rows if isinstance(layer := row.number_in("layer"), int))


@dataclass(frozen=True)
class Cited:
    """Everything that one statement cites."""

    jsons: tuple[CitedJson, ...]
    csvs: tuple[CitedCsv, ...]
    missing: tuple[Missing, ...]
    others: tuple[Reference, ...] = ()
    """References to files that are there and are neither."""
    is_loose: bool = False
    """One list of lines for several files: whose line is whose is not known."""

    @property
    def parts(self) -> "tuple[CitedJson | CitedCsv, ...]":
        """Documents and tables alike."""
        return (*self.jsons, *self.csvs)

    @property
    def text(self) -> str:
        """Their references in the report's own words."""
        return "; ".join(part.reference.text for part in self.parts)

    @property
    def is_complete(self) -> bool:
        """All that is cited could be read, and lines were given."""
        whole = any(part.is_whole for part in self.parts)
        return not self.missing and not self.others and not self.is_loose and not whole


class Reader:
    """Looks up what references mean in the files of one folder."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._damaged: dict[str, str] = {}
        self._read: dict[tuple[tuple[Reference, ...], tuple[str, ...]], Cited] = {}
        self._indexes: dict[str, Mapping[str, list[Entry]]] = {}
        self._leaves: dict[str, Leaves] = {}

    def read(self, references: Sequence[Reference], stems: Sequence[str]) -> Cited:
        """What the references of a statement on these models hold."""
        key = (tuple(references), tuple(stems))
        if key not in self._read:
            if len(self._read) >= _REMEMBERED:
                self._read.clear()
            self._read[key] = self._looked_up(references, stems)
        return self._read[key]

    def _looked_up(self, references: Sequence[Reference], stems: Sequence[str]) -> Cited:
        jsons, csvs, missing, others, loose = list[CitedJson](), list[CitedCsv](), list[Missing](), [], False
        for reference in references:
            names = self._names(reference, stems)
            loose = loose or len(names) > 1
            if not names:
                missing.append(Missing(reference, self._why_not(reference)))
            for name in names:
                part = self._part(name, reference)
                if isinstance(part, CitedJson):
                    jsons.append(part)
                elif isinstance(part, CitedCsv):
                    csvs.append(part)
                elif isinstance(part, Missing):
                    missing.append(part)
                else:
                    others.append(reference)
        return Cited(tuple(jsons), tuple(csvs), tuple(missing), tuple(others), loose)

    def by_key(self, file: JsonFile) -> Mapping[str, list[Entry]]:
        """The members of a document by their own name."""
        if file.name not in self._indexes:
            index: dict[str, list[Entry]] = {}
            for entry in file.entries:
                index.setdefault(entry.key.lower(), []).append(entry)
            self._indexes[file.name] = index
        return self._indexes[file.name]

    def leaves(self, file: JsonFile) -> Leaves:
        """The numbers of a document."""
        if file.name not in self._leaves:
            self._leaves[file.name] = Leaves(file.entries)
        return self._leaves[file.name]

    def json_of(self, stem: str) -> JsonFile | None:
        """A model's document; None where it cannot be read."""
        name = f"output-{stem}.json"
        part = self._part(name, Reference(name, name)) if self.sources.has(name) else None
        return part.file if isinstance(part, CitedJson) else None

    def table_of(self, stem: str) -> CsvFile | None:
        """A model's next-token table; None where it cannot be read."""
        name = f"output-{stem}-pure-next-token.csv"
        part = self._part(name, Reference(name, name)) if self.sources.has(name) else None
        return part.file if isinstance(part, CitedCsv) else None

    def _names(self, reference: Reference, stems: Sequence[str]) -> list[str]:
        file = reference.file
        if file is None:
            return []
        if self.sources.has(file):
            return [file]
        lowered = [name for name in self.sources.names if name.lower() == file.lower()]
        if lowered:
            return lowered[:1]
        if file in ("*.json", "*.csv"):
            wanted = [f"output-{s}" + (".json" if file == "*.json" else "-pure-next-token.csv") for s in stems]
            return [name for name in wanted if self.sources.has(name)] if len(stems) == 1 else []
        if not re.search(r"[*…{]|\.\.\.", file):
            return []
        patterns = [without_brace.replace("…", "*").replace("...", "*") for without_brace in _without_braces(file)]
        names = [name for name in self.sources.names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
        of_stems = [n for n in names if any(n in (f"output-{s}.json",) or n.startswith(f"output-{s}-") for s in stems)]
        exact = [n for n in of_stems or names for s in stems for p in patterns if n == p.replace("*", f"output-{s}", 1)]
        return exact or of_stems or names

    def _why_not(self, reference: Reference) -> str:
        if reference.file is None:
            return f"{reference.text}: no file is named, here or before"
        return f"{reference.file}: no such file among the {len(self.sources.names)} of {self.sources.folder.name}"

    def _part(self, name: str, reference: Reference) -> CitedJson | CitedCsv | Missing | None:
        """One file as it is cited; None for one that is neither a document nor a table."""
        if name in self._damaged:
            return Missing(reference, self._damaged[name])
        try:
            if name.endswith(".json"):
                return _in_json(self.sources.json(name), reference)
            if name.endswith(".csv"):
                return _in_csv(self.sources.csv(name), reference)
            return _beyond(name, len(self.sources.lines(name)), reference)
        except RunError as error:
            self._damaged[name] = str(error)
            return Missing(reference, str(error))


def _without_braces(name: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        return [name]
    parts = [name[: match.start()] + part.strip() + name[match.end() :] for part in match[1].split(",")[:20]]
    return [without_brace for part in parts for without_brace in _without_braces(part)][:100]


def _beyond(name: str, n_lines: int, reference: Reference) -> Missing | None:
    over = [f"{first}-{last}" for first, last in reference.lines if first > n_lines or first < 1]
    return Missing(reference, f"{name} has {n_lines} lines, none of {', '.join(over)}") if over else None


def _in_json(file: JsonFile, reference: Reference) -> CitedJson | Missing:
    beyond = _beyond(file.name, file.n_lines, reference)
    if beyond is not None:
        return beyond
    if not reference.lines:
        return CitedJson(file, reference, file.entries, is_whole=True)
    entries = {entry.pointer: entry for first, last in reference.lines for entry in _shown(file, first, last)}
    return CitedJson(file, reference, tuple(entries.values()))


def _shown(file: JsonFile, first: int, last: int) -> Iterator[Entry]:
    """What a range of lines shows: what begins there, and the block that one line or a range's last line opens."""
    inside = file.within(first, last)
    yield from inside
    for entry in inside:
        if entry.line == last and entry.is_container:
            yield from file.within(entry.line, entry.last_line)
    if first == last and inside and not inside[-1].is_container:
        block = inside[-1].parent
        if block is not None and len(block.path) >= _EARLIEST_DEPTH and block.last_line - block.line <= SMALL_BLOCK:
            yield from file.within(block.line, block.last_line)


def _in_csv(file: CsvFile, reference: Reference) -> CitedCsv | Missing:
    beyond = _beyond(file.name, file.n_lines, reference)
    if beyond is not None:
        return beyond
    if not reference.lines and not reference.rows:
        return CitedCsv(file, reference, file.rows, is_whole=True)
    rows = {row.number: row for first, last in reference.lines for row in file.within(first, last)}
    if reference.rows:
        wanted = {n - shift for a, b in reference.rows for n in range(a, min(b, a + 5000) + 1) for shift in (0, 1, 2)}
        rows |= {row.number: row for row in file.rows if row.number in wanted}
    return CitedCsv(file, reference, tuple(rows.values()), has_row_numbers=bool(reference.rows))


def holds_in(place: Citation | None, cited: Cited) -> bool:
    """Whether a place is among cited lines."""
    if place is None:
        return False
    in_json = any(file.file.name == place.file and place.line in file.lines for file in cited.jsons)
    return in_json or any(
        table.file.name == place.file and any(row.number == place.row for row in table.rows) for table in cited.csvs
    )


def is_main(row: CsvRow) -> bool:
    """Whether a row is of the first fact in its original wording."""
    cells = row.cells
    return (
        cells.get("prompt_id") in (None, "pos")
        and cells.get("prompt_variant") in (None, "orig")
        and cells.get("fact_index") in (None, "0")
    )


def row_citation(file: CsvFile, row: CsvRow, column: str | None = None) -> Citation:
    """The place of a row, or of its cell in a column."""
    return Citation(file.name, row.line, row.last_line, row=row.number, column=column)


def entry_citation(file: JsonFile, entry: Entry) -> Citation:
    """The place of a member of a document."""
    return Citation(file.name, entry.line, entry.last_line, pointer=entry.pointer)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of a document is a number; a truth is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
