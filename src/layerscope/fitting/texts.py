"""Text files and data sets, found by name and read document by document."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl

from layerscope.errors import CorpusError

END_OF_TEXT = "<|endoftext|>"
"""Alone on a line, this separates the documents of a `.txt` file; one without any is split at its blank lines."""
ROWS_AT_ONCE = 4096
"""Rows of a parquet file that are in memory at a time."""
_DATASET_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:@\s]+))?(?:@([^:@\s]+))?")
_HUB_ERRORS = (OSError, ValueError, RuntimeError)
"""How `datasets` says that something is absent, refused, cut off, or not to be read without running its own code."""


@dataclass(frozen=True)
class Source:
    """One file or data set that was found, and is not yet read."""

    name: str
    """File name without its folder, or a data set's id with the commit that it resolved to."""
    format: Literal["txt", "jsonl", "parquet", "datasets"]
    read: Callable[[], Iterator[str]]
    """Its documents in order, whatever they hold."""

    def documents(self) -> Iterator[str]:
        """Its documents in order without the blank ones; none is read ahead.

        Raises:
            CorpusError: something in it is no text, with its place.
        """
        return (text for text in self.read() if text.strip())


def find_sources(texts: Sequence[str | Path], field: str) -> tuple[Source, ...]:
    """Find all files and data sets before any is read.

    Args:
        texts: paths of `.txt`, `.jsonl` and `.parquet` files; what is no path may be the id of a data set on the Hub,
            `owner/name`, `owner/name:subset`, and either with `@revision`, of which the split `train` is streamed.
        field: what a document's text is called in all but `.txt` files.

    Raises:
        CorpusError: no text is given, a name is neither a file nor a data set, or a file's format is not known.
    """
    if not texts:
        raise CorpusError("No text was given; name at least one .txt, .jsonl or .parquet file.")
    return tuple(_find(text, field) for text in texts)


def _find(text: str | Path, field: str) -> Source:
    path = Path(text).expanduser()
    if not _exists(path):
        return _find_dataset(str(text), field)
    if not path.is_file():
        raise CorpusError(f"'{text}' is a folder or no regular file; name the files in it one by one.")
    match path.suffix.lower():
        case ".txt":
            return Source(path.name, "txt", partial(_read_txt, path))
        case ".jsonl":
            return Source(path.name, "jsonl", partial(_read_jsonl, path, field))
        case ".parquet":
            return Source(path.name, "parquet", partial(_read_parquet, path, field))
    raise CorpusError(f"'{text}' ends in none of .txt, .jsonl and .parquet, by which a format is told; rename it.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a file, such as a text given in place of its file
        return False


# --- Files


def _read_txt(path: Path) -> Iterator[str]:
    """Blank lines where a document begins or ends are none of its lines."""
    mark = END_OF_TEXT.encode()
    has_ends = any(mark in raw and _is_end(raw.decode("utf-8", "replace")) for raw in _raw_lines(path))
    block: list[str] = []
    for _, line in _lines(path):
        blank = not line.strip()
        if _is_end(line) or (blank and not has_ends):
            yield from _joined(block)
            block = []
        elif block or not blank:
            block.append(line)
    yield from _joined(block)


def _is_end(line: str) -> bool:
    return line.strip() == END_OF_TEXT


def _joined(lines: Sequence[str]) -> Iterator[str]:
    """The document that some lines make, if they make one."""
    n = max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)
    if n:
        yield "\n".join(lines[:n])


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = f"'{path}', line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{place}: expected one JSON object a line, but this is no JSON ({error}).") from error
        if not isinstance(entry, dict):
            raise CorpusError(f"{place}: expected a JSON object with the field '{field}', found {_kind(entry)}.")
        yield _text_of(entry, field, place)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines without their ends, numbered from 1."""
    start = 0
    for number, raw in enumerate(_raw_lines(path), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"'{path}', line {number}: byte {start + error.start} of the file (the first is 0) is "
                f"0x{raw[error.start]:02x}, which is no UTF-8 here; save the file as UTF-8."
            ) from error
        yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
        start += len(raw)


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        file = path.open("rb")  # not as text: then an error would tell a byte's place in a buffer, not in the file
    except OSError as error:
        raise CorpusError(f"'{path}' cannot be opened ({error.strerror}); check its permissions.") from error
    with file:
        yield from file


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = frame.collect_schema()
        if field not in schema:
            raise CorpusError(
                f"'{path}' has no column '{field}'; its columns are {', '.join(schema)}. Name the one that holds text."
            )
        if schema[field] != pl.String:
            raise CorpusError(f"'{path}': column '{field}' holds {schema[field]}, expected strings; name another.")
        start = 0
        while (rows := frame.select(field).slice(start, ROWS_AT_ONCE).collect()).height:
            for row, text in enumerate(rows[field], start=start + 1):
                yield _text_of({field: text}, field, f"'{path}', row {row}")
            start += rows.height
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorpusError(f"'{path}' cannot be read as parquet ({_reason(error)}); fetch or write it anew.") from error


def _text_of(entry: Mapping[str, object], field: str, place: str) -> str:
    if field not in entry:
        raise CorpusError(f"{place}: there is no field '{field}'; found {', '.join(entry) or 'an empty object'}.")
    text = entry[field]
    if not isinstance(text, str):
        raise CorpusError(f"{place}: expected a string in '{field}', found {_kind(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # only an escape in JSON can say such a thing
        raise CorpusError(
            f"{place}: '{field}' holds half of a surrogate pair at character {error.start}, which is no text; "
            "write both halves or the character itself."
        ) from error
    return text


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- Data sets


def _find_dataset(text: str, field: str) -> Source:
    named = _DATASET_ID.fullmatch(text)
    if named is None or text.lower().endswith((".txt", ".jsonl", ".parquet")):
        _no_such_file(text)
    try:
        datasets = import_module("datasets")
    except ImportError:
        _no_such_file(text)
    repository, subset, revision = named.groups()
    try:
        builder = datasets.load_dataset_builder(repository, subset, revision=revision)
        rows = builder.as_streaming_dataset(split="train")
    except (*_HUB_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise CorpusError(
            f"'{text}' is neither a file here nor a data set that could be had from the Hub ({_reason(error)}); "
            "check the name, or give owner/name, owner/name:subset or either with @revision."
        ) from error
    name = repository + (f":{subset}" if subset else "") + f"@{builder.hash}"  # of a data set on the Hub, its commit
    return Source(name, "datasets", partial(_read_rows, rows, field, name))


def _no_such_file(text: str) -> NoReturn:
    raise CorpusError(
        f"There is no file '{text}'. A data set on the Hub is named owner/name, owner/name:subset or either with "
        "@revision, and needs an extra: pip install 'layerscope[datasets]'."
    )


def _read_rows(rows: Iterable[Mapping[str, object]], field: str, name: str) -> Iterator[str]:
    try:
        for number, row in enumerate(rows, start=1):
            yield _text_of(row, field, f"'{name}', row {number}")
    except _HUB_ERRORS as error:
        raise CorpusError(f"'{name}' broke off while it was read ({_reason(error)}); try again.") from error
