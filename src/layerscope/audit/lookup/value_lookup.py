"""Whether the lines that a statement cites hold a value that it claims, and where it stands if they do not."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from layerscope.audit.lookup.cited_lines import (
    SMALL_BLOCK,
    Cited,
    CitedCsv,
    CitedJson,
    Reader,
    entry_citation,
    is_main,
    is_number,
    row_citation,
)
from layerscope.audit.lookup.key_matching import (
    NameSimilarity,
    entry_similarity,
    last_name,
    name_similarity,
    shares_words,
)
from layerscope.audit.lookup.value_matching import SHORTEST_TEXT, cell_holds, entry_holds, may_mean, near, same_kind
from layerscope.audit.parse.values import FINAL, PROBABILITY, UNNAMED, Claimed, Pair
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.findings import Judgement
from layerscope.report.cited.sources import CsvFile, CsvRow, Entry, JsonFile, Scalar
from layerscope.report.numbers import Number

DISTINCTIVE_DIGITS = 3
"""A number with as many digits is hardly met by chance."""
DIGITS_ALONE = 5
"""A number with as many digits tells where it is from without a name."""
CUT_LINES = 2
"""A range of lines that ends as much too early is a range cut short, and no wrong one."""
CUT_BLOCK_LINES = 10
"""The same where the range holds the beginning of the value's block."""
_NAME = re.compile(r"(?<![\w.@])[A-Za-z][A-Za-z0-9]*_\w*[A-Za-z0-9](?![\w@]|\.\d)")
_MOST_NAMES = 4
_SHORTEST_NAME = 4
_TOP = 20


@dataclass(frozen=True)
class Verdict:
    """The judgement on a claimed value."""

    judgement: Judgement
    reason: str
    correct: str | None = None
    found_at: Citation | None = None


@dataclass(frozen=True)
class _Place:
    """Where a value was met."""

    citation: Citation
    name: str
    value: Scalar
    name_similarity: NameSimilarity

    @property
    def text(self) -> str:
        shown = json.dumps(self.value) if self.value is None or isinstance(self.value, bool) else self.value
        return f"{self.name} is {shown} at {self.citation}"


def judge(pair: Pair, cited: Cited, reader: Reader, text: str = "") -> Verdict:
    """Judge a value that a statement of some text claims and gives lines for.

    It is wrong only where the name is one that the cited file has, the cited lines show no such value under any name,
    and the value stands elsewhere under the name, or the name has other values only.
    """
    shown = _shown(pair, cited)
    if shown is not None:
        return Verdict(Judgement.SUPPORTED, f"{shown.text}.", found_at=shown.citation)
    if not cited.is_complete or pair.is_derived or not _is_distinctive_name(pair):
        return Verdict(Judgement.UNDECIDED, "the cited lines do not show it, and it may follow from others.")
    if _shows_nearly(pair, cited):
        return Verdict(Judgement.UNDECIDED, "the cited lines show a value that is nearly this.")
    elsewhere = list(_elsewhere(pair, cited, reader))
    if elsewhere:
        place = min(elsewhere, key=lambda candidate: _distance(candidate, cited, text))
        reason = f"{place.text}; {cited.text} does not show it."
        return Verdict(Judgement.ELSEWHERE, reason, str(place.citation), place.citation)
    return _otherwise(pair, cited, reader)


def is_cut_off(verdict: Verdict, cited: Cited, *, others_shown: bool) -> bool:
    """Whether a range of cited lines only ends too early: it opens the value's block, or all but reaches the value.

    Args:
        verdict: that the value stands elsewhere.
        cited: what the statement cites.
        others_shown: whether the cited lines show other values of the statement.
    """
    place = verdict.found_at
    for file in cited.jsons:
        if place is None or place.pointer is None or file.file.name != place.file:
            continue
        entry = file.file.by_pointer[place.pointer]
        for first, last in file.reference.lines:
            near = first - CUT_LINES <= place.line <= last + CUT_LINES
            opens = entry.parent is not None and len(entry.parent.path) >= 1 and first <= entry.parent.line <= last
            if first < last and ((near and others_shown) or (opens and place.line <= last + CUT_BLOCK_LINES)):
                return True
    return False


def _distance(place: _Place, cited: Cited, text: str) -> tuple[bool, int]:
    """How far a place is from what the statement means: blocks that it names come first, then near lines."""
    at = place.citation
    named = at.pointer is not None and any(part in text for part in at.pointer.split("/")[:-1] if "_" in part)
    lines = [n for part in cited.parts if part.file.name == at.file for span in part.reference.lines for n in span]
    return not named, min((abs(at.line - line) for line in lines), default=0)


def judge_uncited(pair: Pair, stem: str, reader: Reader) -> Verdict | None:
    """Judge a value that a statement gives no lines for; None where it has no name that the model's document has."""
    file = reader.json_of(stem)
    if file is None or pair.is_derived or not pair.is_named or not _is_distinctive_name(pair):
        return None
    entries = [e for e in reader.by_key(file).get(last_name(pair.key).lower(), []) if _of_layer(pair, e, file)]
    for entry in entries:
        if entry_holds(pair.value, entry, file):
            place = _json_place(file, entry, NameSimilarity.SAME)
            return Verdict(Judgement.SUPPORTED, f"{place.text}.", found_at=place.citation)
    return None


def mentions(text: str, cited: Cited, reader: Reader) -> Verdict | None:
    """Judge a statement that names members of a document and gives no value: does what it cites hold one of them?

    None where it names none that the cited document has.
    """
    names = list(dict.fromkeys(name.lower() for name in _NAME.findall(text)))
    if len(cited.jsons) == 0 or cited.csvs or not cited.is_complete or not 0 < len(names) <= _MOST_NAMES:
        return None
    known: list[_Place] = []
    for file in cited.jsons:
        for entry in file.entries:
            value = entry.value.lower() if isinstance(entry.value, str) else ""
            named = next((name for name in names if name in entry.pointer.lower().split("/") or name in value), None)
            if named is not None:
                place = _json_place(file.file, entry, NameSimilarity.SAME)
                return Verdict(Judgement.SUPPORTED, f"{named} stands at {place.citation}.", found_at=place.citation)
        for name in names:
            known += [
                _json_place(file.file, entry, NameSimilarity.SAME) for entry in reader.by_key(file.file).get(name, [])
            ]
    if not known or any(_shares_words_with_cited(name, cited) or _stands_in_cited_block(name, cited) for name in names):
        return None
    place = min(known, key=lambda candidate: _distance(candidate, cited, text))
    reason = f"{place.name} stands at {place.citation}; {cited.text} does not show it."
    return Verdict(Judgement.ELSEWHERE, reason, str(place.citation), place.citation)


def _shares_words_with_cited(name: str, cited: Cited) -> bool:
    return any(
        shares_words(name, part) is not NameSimilarity.NONE or name_similarity(name, part) is not NameSimilarity.NONE
        for file in cited.jsons
        for entry in file.entries
        for part in entry.path
    )


def _stands_in_cited_block(name: str, cited: Cited) -> bool:
    """Whether the block of a cited member has a name as a value: a reason among those for what is cited."""
    for file in cited.jsons:
        blocks = {block.pointer: block for entry in file.entries if (block := entry.parent) is not None}
        small = [block for block in blocks.values() if block.last_line - block.line <= SMALL_BLOCK]
        if any(entry.value == name for block in small for entry in file.file.within(block.line, block.last_line)):
            return True
    return False


def _is_distinctive_name(pair: Pair) -> bool:
    name = last_name(pair.key)
    return pair.key in (PROBABILITY, UNNAMED) or "_" in name or len(name) >= _SHORTEST_NAME


def _is_distinctive(value: Claimed) -> bool:
    """Whether a value is hardly met by chance under another name."""
    if isinstance(value, Number):
        return value.digits >= DISTINCTIVE_DIGITS
    if isinstance(value, tuple):
        return len(value) >= 2
    return isinstance(value, str) and len(value) >= SHORTEST_TEXT and value.lower() != "none"


def _shown(pair: Pair, cited: Cited) -> _Place | None:
    """Where the cited lines show the value, best under its own name."""
    places = [*_in_jsons(pair, cited), *_in_csvs(pair, cited)]
    return max(places, key=lambda place: place.name_similarity, default=None)


def _in_jsons(pair: Pair, cited: Cited) -> Iterator[_Place]:
    for file in cited.jsons:
        for entry in _holding(pair.value, file):
            similarity = _probability_similarity(entry) if pair.key == PROBABILITY else _entry_similarity(pair, entry)
            if similarity is NameSimilarity.NONE and (pair.value is None or isinstance(pair.value, bool)):
                similarity = shares_words(pair.key, entry.key)
            if similarity is not NameSimilarity.NONE or _is_distinctive(pair.value):
                yield _json_place(file.file, entry, similarity)


def _holding(value: Claimed, file: CitedJson) -> list[Entry]:
    """Cited members that hold a value."""
    if isinstance(value, Number):
        return file.leaves.printed(value)
    entries: Iterable[Entry] = file.entries
    number = next((item for item in value if isinstance(item, Number)), None) if isinstance(value, tuple) else None
    if number is not None:
        # A list that holds the value lies around each of its numbers.
        around = {block.pointer for leaf in file.leaves.printed(number) for block in _blocks_around(leaf)}
        entries = (entry for entry in entries if entry.is_container and entry.pointer in around)
    return [entry for entry in entries if entry_holds(value, entry, file.file)]


def _blocks_around(entry: Entry) -> Iterator[Entry]:
    block = entry.parent
    while block is not None:
        yield block
        block = block.parent


def _in_csvs(pair: Pair, cited: Cited) -> Iterator[_Place]:
    for table in cited.csvs:
        for row in table.rows:
            for column in row.cells:
                if not cell_holds(pair.value, row, column):
                    continue
                similarity = _column_similarity(pair, column)
                if similarity is not NameSimilarity.NONE or _is_distinctive(pair.value):
                    yield _csv_place(table.file, row, column, similarity)
            if _is_milestone(pair, row):
                yield _csv_place(table.file, row, "layer", NameSimilarity.PART)


def _is_milestone(pair: Pair, row: CsvRow) -> bool:
    """A row of a milestone's layer shows the milestone, though it does not name it."""
    value = pair.value
    return isinstance(value, Number) and value.is_whole and row.number_in("layer") == value.value and "_" in pair.key


def _column_similarity(pair: Pair, column: str) -> NameSimilarity:
    if pair.key == UNNAMED:
        return NameSimilarity.NONE
    if pair.key == PROBABILITY:
        return NameSimilarity.PART if column.startswith(("p_", "prob", "answer_mass")) else NameSimilarity.NONE
    return name_similarity(pair.key, column)


def _entry_similarity(pair: Pair, entry: Entry) -> NameSimilarity:
    return NameSimilarity.NONE if pair.key == UNNAMED else entry_similarity(pair.key, entry)


def _probability_similarity(entry: Entry) -> NameSimilarity:
    is_listed = "topk" in entry.path
    return NameSimilarity.PART if is_listed or entry.key.startswith(("p_", "answer_mass")) else NameSimilarity.NONE


def _shows_nearly(pair: Pair, cited: Cited) -> bool:
    """Whether a cited number is this one but for its sign, or as a percentage, or roughly."""
    value = pair.value
    if not isinstance(value, Number) or (value.is_whole and value.digits < DISTINCTIVE_DIGITS):
        return False
    values = [entry.value for file in cited.jsons for entry in file.entries]
    cells = [row.number_in(column) for table in cited.csvs for row in table.rows for column in row.cells]
    return any(is_number(number) and may_mean(value, number) for number in (*values, *cells))


def _elsewhere(pair: Pair, cited: Cited, reader: Reader) -> Iterator[_Place]:
    """Where else in the cited files the value stands under its name, the likeliest place first."""
    for file in cited.jsons:
        yield from _elsewhere_in_json(pair, file.file, reader)
    for table in cited.csvs:
        yield from _elsewhere_in_csv(pair, table)


def _elsewhere_in_json(pair: Pair, file: JsonFile, reader: Reader) -> Iterator[_Place]:
    if pair.key == PROBABILITY:
        yield from _token_places(pair, file, reader)
        return
    if pair.key == UNNAMED:
        yield from _only_places(pair, file, reader)
        return
    entries = reader.by_key(file).get(last_name(pair.key).lower(), [])
    entries = entries or [entry for entry in file.entries if entry_similarity(pair.key, entry) is NameSimilarity.SAME]
    held = [entry for entry in entries if _of_layer(pair, entry, file) and entry_holds(pair.value, entry, file)]
    is_number_or_list = _is_distinctive(pair.value) and not isinstance(pair.value, str)
    if "_" in last_name(pair.key) or len(entries) == 1 or is_number_or_list:
        yield from (_json_place(file, entry, NameSimilarity.SAME) for entry in held)
    if not entries and _is_distinctive(pair.value):
        similar = [entry for entry in file.entries if entry_similarity(pair.key, entry) is NameSimilarity.PART]
        partly = [entry for entry in similar if _of_layer(pair, entry, file) and entry_holds(pair.value, entry, file)]
        yield from (_json_place(file, entry, NameSimilarity.PART) for entry in partly)


def _token_places(pair: Pair, file: JsonFile, reader: Reader) -> Iterator[_Place]:
    """Lists of tokens in which the token has the probability."""
    if not isinstance(pair.value, Number) or not _is_distinctive(pair.value) or pair.token is None:
        return
    for entry in reader.leaves(file).printed(pair.value):
        if entry.key == "1" and entry.parent is not None:
            token = file.by_pointer.get(f"{entry.parent.pointer}/0")
            if token is not None and isinstance(token.value, str) and token.value.strip() == pair.token.strip():
                yield _json_place(file, entry, NameSimilarity.SAME)


def _only_places(pair: Pair, file: JsonFile, reader: Reader) -> Iterator[_Place]:
    """Where a number without a name stands, if its digits are too many for chance and the file has it once."""
    if not isinstance(pair.value, Number) or pair.value.digits < DIGITS_ALONE:
        return
    held = reader.leaves(file).printed(pair.value)
    if len({entry.value for entry in held}) == 1:
        yield from (_json_place(file, entry, NameSimilarity.PART) for entry in held)


def _of_layer(pair: Pair, entry: Entry, file: JsonFile) -> bool:
    """Whether a member is of the layer that the claim is about, where both are about one."""
    sibling = None if entry.parent is None else file.by_pointer.get(f"{entry.parent.pointer}/layer")
    if sibling is None or not isinstance(pair.layer, int):
        return True
    return sibling.value == pair.layer


def _elsewhere_in_csv(pair: Pair, table: CitedCsv) -> Iterator[_Place]:
    """Rows of the main prompt at the layer that the claim is about, where no cited row is of that layer."""
    columns = [c for c in table.file.header if _column_similarity(pair, c) is NameSimilarity.SAME]
    layer = _last_layer(table.file) if pair.layer == FINAL else pair.layer
    if len(columns) != 1 or not isinstance(layer, int) or layer in table.layers or table.has_row_numbers:
        return
    if "pos" in table.file.header and "records" in table.file.name:
        return
    for row in table.file.rows:
        if row.number_in("layer") == layer and is_main(row) and cell_holds(pair.value, row, columns[0]):
            yield _csv_place(table.file, row, columns[0], NameSimilarity.SAME)


def _last_layer(file: CsvFile) -> int | None:
    return max((n for row in file.rows if isinstance(n := row.number_in("layer"), int)), default=None)


def _otherwise(pair: Pair, cited: Cited, reader: Reader) -> Verdict:
    """The verdict on a value that stands nowhere under its name: wrong where the cited lines give the name another."""
    unclear = Verdict(Judgement.UNDECIDED, "the cited lines do not show it, nor does the file under this name.")
    if not isinstance(pair.value, Number | bool) or not pair.is_named:
        return unclear
    places = list(_named_in_cited(pair, cited))
    if len({place.name for place in places}) != 1 or _stands_anywhere(pair, cited, reader):
        return unclear
    values = {place.value for place in places}
    if len(values) != 1 or not same_kind(pair.value, next(iter(values))):
        return unclear
    place = places[0]
    if isinstance(pair.value, Number) and isinstance(place.value, int | float) and pair.value.is_about(place.value):
        return unclear
    return Verdict(Judgement.CONTRADICTED, f"{place.text}.", correct=str(place.value), found_at=place.citation)


def _named_in_cited(pair: Pair, cited: Cited) -> Iterator[_Place]:
    for file in cited.jsons:
        for entry in file.entries:
            is_named = not entry.is_container and name_similarity(pair.key, entry.key) is NameSimilarity.SAME
            if is_named and _of_layer(pair, entry, file.file):
                yield _json_place(file.file, entry, NameSimilarity.SAME)
    for table in cited.csvs:
        layer = _last_layer(table.file) if pair.layer == FINAL else pair.layer
        for row in table.rows:
            for column in table.file.header:
                if name_similarity(pair.key, column) is NameSimilarity.SAME and row.number_in("layer") == layer:
                    cell = row.cells[column]
                    value: Scalar = {"True": True, "False": False}.get(cell or "", row.number_in(column))
                    yield _Place(row_citation(table.file, row, column), column, value, NameSimilarity.SAME)


def _stands_anywhere(pair: Pair, cited: Cited, reader: Reader) -> bool:
    """Whether any file of the model gives the value to a name like this one."""
    stems = {file.file.name.removeprefix("output-").removesuffix(".json") for file in cited.jsons}
    stems |= {table.file.name.removeprefix("output-").split("-pure-next-token")[0] for table in cited.csvs}
    jsons = [file.file for file in cited.jsons] + [f for s in stems if (f := reader.json_of(s)) is not None]
    entries = (entry for file in jsons for entry in file.entries)
    if any(entry_similarity(pair.key, e) is not NameSimilarity.NONE and near(pair.value, e.value) for e in entries):
        return True
    tables = [table.file for table in cited.csvs] + [t for s in stems if (t := reader.table_of(s)) is not None]
    return any(
        cell_holds(pair.value, row, column)
        for table in tables
        for column in table.header
        if name_similarity(pair.key, column) is not NameSimilarity.NONE
        for row in table.rows
    )


def _json_place(file: JsonFile, entry: Entry, similarity: NameSimilarity) -> _Place:
    return _Place(entry_citation(file, entry), entry.pointer.removeprefix("/"), _value_of(entry, file), similarity)


def _value_of(entry: Entry, file: JsonFile) -> Scalar:
    if not entry.is_container:
        return entry.value
    items = [child.value for child in file.children(entry)][:_TOP]
    return "[" + ", ".join("null" if item is None else str(item) for item in items) + "]"


def _csv_place(file: CsvFile, row: CsvRow, column: str, similarity: NameSimilarity) -> _Place:
    return _Place(row_citation(file, row, column), column, row.cells.get(column), similarity)
