"""Records as a file holds them, each with its place: JSON, lines of JSON, tables, lines of text."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from layerscope.errors import SuiteError
from layerscope.suite.question import Fields, Place

Placed: TypeAlias = tuple[Fields, Place]
_LARGEST_CELL = 2**31 - 1
"""A few-shot prompt in a table may well pass the library's 128 KiB."""


def text_of_file(path: Path) -> str:
    """The file as text.

    Raises:
        SuiteError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SuiteError(f"{path}: the suite cannot be read ({error.strerror}); check the path") from error
    try:
        return content.decode("utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Place(str(path), line=line).error(None, "the file is not UTF-8; save it again as UTF-8") from error


def json_document(text: str, file: str) -> Any | None:
    """The whole file as one JSON value; None where it holds several, one a line.

    Raises:
        SuiteError: it is broken.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise Place(file, line=error.lineno).error(None, f"the JSON is broken: {error}; mend it there") from error
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"{file}: the JSON is broken: {error}; mend it there") from error


def json_lines(text: str, file: str) -> Iterator[Placed]:
    """One object a line; blank lines are skipped.

    Raises:
        SuiteError: a line is broken, or no object.
    """
    # Not splitlines(): JSON allows U+2028 and its like inside a string, and they end no line here.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = Place(file, line=number)
            yield _json_object(line, place), place


def table_rows(text: str, file: str, delimiter: str) -> Iterator[Placed]:
    """The rows of a table under its header, without their empty cells, each with the line on which it begins.

    Raises:
        SuiteError: there is no header, quotes are broken, or a row has more cells than the header.
    """
    head = text.split("\n", 1)[0]
    if delimiter == "," and "," not in head:
        delimiter = max(";", "\t", key=head.count) if set(head) & {";", "\t"} else ","
    # A header written with a space behind each comma says that the space is no part of a cell.
    behind = head.split(delimiter)[1:]
    spaced = bool(behind) and all(name.startswith(" ") for name in behind)
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    header: list[str] | None = None
    while True:
        place = Place(file, line=reader.line_num + 1)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            sentence = f"the table's quotes are broken ({error}); double each quote that is meant, and quote its cell"
            raise place.error(None, sentence) from error
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [name.strip() for name in cells]
            if len(set(header)) < len(header):
                raise place.error(None, f"two columns have one name; the header is {', '.join(header)}")
            continue
        if len(cells) > len(header):
            raise place.error(None, f"expected {len(header)} cells, as the header has, but {len(cells)} came")
        yield {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()}, place
    if header is None:
        raise SuiteError(f"{file}: the table is empty; its first line should name the columns")


def _json_object(line: str, place: Place) -> dict[str, object]:
    try:
        fields = json.loads(line, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise place.error(None, f"the JSON is broken: {error}; each line must be one whole object") from error
    if not isinstance(fields, dict):
        raise place.error(
            None, f"expected an object, but {type(fields).__name__} came; write one fact, {{...}}, a line"
        )
    return fields


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields
