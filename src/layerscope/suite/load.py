"""A suite from wherever its facts stand: a built-in name, a file of any known shape, or a list in Python."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field

from layerscope.errors import SuiteError
from layerscope.suite.assemble import Heading, assembled
from layerscope.suite.columns import Columns, columns_of, read_with_columns
from layerscope.suite.entries import WORDINGS, Entry, FileSettings, check_templates, read_control, read_fact
from layerscope.suite.open_questions import answers_in
from layerscope.suite.question import (
    DEFAULT_VARIANT,
    Fields,
    LeftOut,
    Place,
    Question,
    Word,
    checked_text,
    listed,
    validated,
)
from layerscope.suite.records import Placed, json_document, json_lines, table_rows, text_of_file
from layerscope.suite.sampling import some_facts
from layerscope.suite.shapes import known_shapes, shape_of
from layerscope.suite.suite import Suite, SuiteSource
from layerscope.suite.wording import read_templates

_Table: TypeAlias = dict[str, object]


class _SuiteTables(Heading):
    templates: dict[Word, Any] = Field(default_factory=dict)
    facts: list[_Table] = Field(default_factory=list)
    controls: list[_Table] = Field(default_factory=list)


def builtin_suites() -> tuple[str, ...]:
    """Names of the suites that ship with the package, sorted."""
    return tuple(sorted(_builtin_files()))


def load_suite(
    source: SuiteSource,
    *,
    columns: str | Mapping[str, str] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 316,
) -> Suite:
    """The built-in suite of that name, or the suite in that file or list.

    Args:
        source: a name, a path, a list of prompts or of records, or a suite.
        columns: which fields of each record are prompt, answer, subject and key: "prompt=question,answer=obj", or a
            mapping; a prompt may be made of several, "prompt=Q: {question} A:".
        limit: take the first facts only, so many of them.
        sample: take so many facts, drawn with `seed`.
        seed: which sample.

    Raises:
        SuiteError: with file, line, field and remedy, for a name that is neither, a file that cannot be read, and
            anything in it that could not be asked as it stands.
    """
    suite = _loaded(source, None if columns is None else columns_of(columns))
    return some_facts(suite, limit=limit, sample=sample, seed=seed)


def _loaded(source: SuiteSource, columns: Columns | None) -> Suite:
    if isinstance(source, Suite):
        return source
    if not isinstance(source, str | Path):
        return _from_values(list(source), "the list of facts", Heading(name="prompts"), columns)
    name, path = str(source), Path(source)
    suffix = path.suffix.lower()
    if columns is not None and suffix in (".toml", ".txt", ""):
        raise SuiteError(
            f"Columns can be named of a table or of JSON records, but {name!r} is neither; leave them out."
        )
    if name in (built_in := _builtin_files()):
        return _from_toml(built_in[name].read_text(encoding="utf-8"), f"{name}.toml", name)
    if path.is_dir():
        raise SuiteError(f"{path}: expected a file of facts, but this is a folder; {_files_in(path)}")
    if suffix not in _READERS:
        choices = ", ".join(sorted(built_in))
        raise SuiteError(
            f"no suite {name!r}: expected a built-in suite ({choices}) or a path; a path must end in "
            f"{', '.join(list(_READERS)[:-1])} or {list(_READERS)[-1]}"
        )
    return _READERS[suffix](text_of_file(path), str(path), path.stem, columns)


def _builtin_files() -> dict[str, Traversable]:
    shipped = resources.files("layerscope.suite").joinpath("builtin").iterdir()
    return {file.name.removesuffix(".toml"): file for file in shipped if file.name.endswith(".toml")}


def _files_in(folder: Path) -> str:
    found = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in _READERS)
    if not found:
        return f"it holds no file that ends in {', '.join(_READERS)}"
    more = f", and {len(found) - 8} more" if len(found) > 8 else ""
    return f"name one of those in it: {', '.join(found[:8])}{more}"


def _from_toml(text: str, file: str, stem: str) -> Suite:
    try:
        fields = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"{file}: the TOML is broken: {error}; mend the syntax there") from error
    return _from_tables({"name": stem, **fields}, text, file)


def _from_tables(fields: Fields, text: str, file: str) -> Suite:
    tables = validated(_SuiteTables, fields, Place(file))
    place = Place(file, line=_header_lines(text, r"\[templates\]", 1)[0])
    settings = FileSettings(read_templates(tables.templates, "templates", place), tables, tables.system)
    check_templates(settings.templates, place)
    facts = [read_fact(table, settings, place) for table, place in _placed(tables.facts, "fact", text, file)]
    controls = [
        read_control(table, settings, place) for table, place in _placed(tables.controls, "control", text, file)
    ]
    return assembled(tables, facts, controls, file)


def _placed(tables: Sequence[_Table], kind: str, text: str, file: str) -> list[tuple[_Table, Place]]:
    lines = _header_lines(text, rf"\[\[[ \t]*{kind}s[ \t]*\]\]", len(tables))
    places = [Place(file, f"{kind} {number}", line) for number, line in enumerate(lines, start=1)]
    return list(zip(tables, places, strict=True))


def _header_lines(text: str, header: str, count: int) -> Sequence[int | None]:
    """The line of each of `count` table headers.

    tomllib keeps no lines, so the headers are looked for in the text. When there are not as many as tables (inline
    tables, a header inside a string) no line is claimed.
    """
    lines = [text.count("\n", 0, match.start()) + 1 for match in re.finditer(rf"^[ \t]*{header}", text, re.MULTILINE)]
    return lines if len(lines) == count else [None] * count


def _headed(stem: str, file: str) -> Heading:
    """The heading of a file that has none."""
    return validated(Heading, {"name": stem}, Place(file))


def _from_json(text: str, file: str, stem: str, columns: Columns | None) -> Suite:
    """An array of records, a single record, or a suite's tables; lines of JSON, if that is what the file holds."""
    document = json_document(text, file)
    heading = _headed(stem, file)
    if isinstance(document, list):
        return _from_values(document, file, heading, columns)
    if isinstance(document, dict):
        if "facts" in document and columns is None:
            return _from_tables({"name": stem, **document}, "", file)
        return _from_values([document], file, heading, columns)
    if document is None and text.strip() != "null":
        return _from_jsonl(text, file, stem, columns)
    raise SuiteError(f"{file}: expected an array of facts or one object, but {type(document).__name__} came")


def _from_jsonl(text: str, file: str, stem: str, columns: Columns | None) -> Suite:
    if text.lstrip().startswith("["):
        document = json_document(text, file) if text.rstrip().endswith("]") else None
        if isinstance(document, list) and document and all(isinstance(record, dict) for record in document):
            return _from_values(document, file, _headed(stem, file), columns)
    records = list(json_lines(text, file))
    heading = _headed(stem, file)
    if records and records[0][0] and records[0][0].keys() <= Heading.model_fields.keys():
        heading = validated(Heading, {"name": stem, **records[0][0]}, records[0][1])
        records = records[1:]
    return _from_records(records, heading, file, columns)


def _from_csv(text: str, file: str, stem: str, columns: Columns | None) -> Suite:
    return _from_table(text, file, stem, columns, ",")


def _from_tsv(text: str, file: str, stem: str, columns: Columns | None) -> Suite:
    return _from_table(text, file, stem, columns, "\t")


def _from_table(text: str, file: str, stem: str, columns: Columns | None, delimiter: str) -> Suite:
    rows = list(table_rows(text, file, delimiter))
    if columns is None:
        rows = [(_fact_of_row(row, place), place) for row, place in rows]
    return _from_records(rows, _headed(stem, file), file, columns)


def _fact_of_row(row: Fields, place: Place) -> Fields:
    """The columns that a fact has fields for, since a table has others too; the whole row where it is of a data set."""
    if not row.keys() & {"prompt", "template"} or shape_of(row) is not None:
        return row
    named = {name for name in row if f"{{{name}}}" in str(row.get("template", ""))}
    fields = {name: value for name, value in row.items() if name in named or name in Entry.model_fields}
    if "answers" in fields:
        fields["answers"] = answers_in(fields["answers"], "answers", place)
    return fields


def _from_txt(text: str, file: str, stem: str, columns: Columns | None) -> Suite:
    lines = [(line.removesuffix("\r"), Place(file, line=number)) for number, line in enumerate(text.split("\n"), 1)]
    prompts = [_prompt_alone(line, place) for line, place in lines if line.strip()]
    return assembled(_headed(stem, file), prompts, [], file)


def _prompt_alone(text: str, place: Place) -> Question:
    return Question(
        place, None, text, (), {DEFAULT_VARIANT: checked_text(text, "prompt", place)}, is_from_data_set=True
    )


def _from_values(values: Sequence[object], file: str, heading: Heading, columns: Columns | None) -> Suite:
    """Records without a line, counted from 1; or texts, each of which is a prompt."""
    places = [Place(file, f"record {number}") for number in range(1, len(values) + 1)]
    if values and all(isinstance(value, str) for value in values):
        if columns is not None:
            raise SuiteError(f"{file}: columns can be named of records, but texts came; leave the columns out")
        prompts = [_prompt_alone(str(value), place) for value, place in zip(values, places, strict=True)]
        return assembled(heading, prompts, [], file)
    records: list[Placed] = []
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, Mapping):
            raise place.error(None, f"expected an object, but {type(value).__name__} came")
        records.append((dict(value), place))
    return _from_records(records, heading, file, columns)


def _from_records(records: Sequence[Placed], heading: Heading, file: str, columns: Columns | None) -> Suite:
    if columns is not None:
        return assembled(heading, read_with_columns(records, columns), [], file)
    settings = FileSettings(asking=heading, system=heading.system)
    questions = [question for fields, place in records for question in _questions(fields, settings, place)]
    return assembled(heading, questions, [], file)


def _questions(fields: Fields, settings: FileSettings, place: Place) -> Sequence[Question | LeftOut]:
    shape = shape_of(fields)
    if shape is not None:
        return shape.read(fields, place)
    known = {*Heading.model_fields, *Entry.model_fields}
    if not fields.keys() & set(WORDINGS) and not fields.keys() <= known:
        raise place.error(
            None,
            f"no known shape of facts has the fields {listed(tuple(fields))}; name those to take, as in --columns "
            "prompt=question,answer=obj,subject=subj, or write facts with `prompt` and `answer`. Known are "
            + known_shapes(),
        )
    return [read_fact(fields, settings, place)]


_READERS: dict[str, Callable[[str, str, str, Columns | None], Suite]] = {
    ".toml": lambda text, file, stem, _: _from_toml(text, file, stem),
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".ndjson": _from_jsonl,
    ".csv": _from_csv,
    ".tsv": _from_tsv,
    ".txt": _from_txt,
}
