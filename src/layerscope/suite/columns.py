"""Which fields of a record, or columns of a table, hold prompt, answer and subject: said by the user, as in
`prompt=question,answer=obj,subject=subj`, or `prompt=Q: {question} A:` for a prompt that is made of fields."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerscope.errors import SuiteError
from layerscope.suite.open_questions import answers_in
from layerscope.suite.question import (
    DEFAULT_VARIANT,
    Fields,
    LeftOut,
    Place,
    Question,
    checked_text,
    default_key,
    listed,
)

_TAKEN = ("prompt", "answer", "subject", "key")
_EXAMPLE = "prompt=question,answer=obj,subject=subj"


@dataclass(frozen=True)
class Columns:
    """Where the parts of a fact stand: a column's name, or for a prompt also a text with {column} in it."""

    prompt: str
    answer: str | None = None
    subject: str | None = None
    key: str | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """Every column that is named."""
        names = [self.prompt, self.answer, self.subject, self.key]
        return tuple(dict.fromkeys(n for name in names if name is not None for n in (_within(name) or [name])))


def columns_of(said: str | Mapping[str, str]) -> Columns:
    """What the user said of the columns.

    Raises:
        SuiteError: it cannot be understood, or says nothing of the prompt.
    """
    # A comma divides only where the next part follows: a prompt may hold others.
    parts = re.split(rf",\s*(?=(?:{'|'.join(_TAKEN)})\s*=)", said) if isinstance(said, str) else said.items()
    given: dict[str, str] = {}
    for part in parts:
        name, equals, column = part.partition("=") if isinstance(part, str) else (part[0], "=", part[1])
        name = name.strip()
        if not equals or name not in _TAKEN or not column.strip() or name in given:
            raise SuiteError(
                f"The columns should be written as {_EXAMPLE}, each of {', '.join(_TAKEN)} at most once, but "
                f"{part if isinstance(part, str) else f'{name}={column}'!r} came."
            )
        given[name] = column if name == "prompt" and _within(column) else column.strip()
    if "prompt" not in given:
        raise SuiteError(f"The columns should name the prompt's, as in {_EXAMPLE}, but {said!r} came.")
    return Columns(**given)


def read_with_columns(records: Sequence[tuple[Fields, Place]], columns: Columns) -> list[Question | LeftOut]:
    """Every record, of which only the named columns are taken. A blank answer is none.

    Raises:
        SuiteError: no record has a column, or one has no prompt or something else than texts there.
    """
    for name in columns.named:
        if records and not any(_found(fields, name) is not None for fields, _ in records):
            fields, place = records[0]
            known = listed(tuple(fields))
            raise SuiteError(f"{place.file}: there is no column `{name}`; the first record has {known}")
    return [_question(fields, place, columns) for fields, place in records]


def _question(fields: Fields, place: Place, columns: Columns) -> Question | LeftOut:
    text = columns.prompt
    for name in _within(columns.prompt):
        text = text.replace(f"{{{name}}}", _text(fields, name, place))
    if not _within(columns.prompt):
        text = _text(fields, columns.prompt, place)
    if not text.strip():
        return LeftOut(place, "its prompt is empty")
    subject = None if columns.subject is None else _text(fields, columns.subject, place).strip() or None
    found = [] if columns.answer is None else answers_in(_found(fields, columns.answer), columns.answer, place)
    answers = tuple(dict.fromkeys(answer.rstrip() for answer in found if answer.strip()))
    texts = {DEFAULT_VARIANT: checked_text(text, columns.prompt, place)}
    key = "" if columns.key is None else _text(fields, columns.key, place).strip()
    key = key or default_key(subject, texts, answers)
    return Question(place, subject, key, answers, texts, is_from_data_set=True)


def _within(text: str) -> list[str]:
    return re.findall(r"\{([^{}]+)\}", text)


def _found(fields: Fields, name: str) -> Any:
    """The field of that name, or of a name such as `doc.question` the one within; None where there is none."""
    if name in fields:
        return fields[name]
    outer, _, inner = name.partition(".")
    within = fields.get(outer)
    return _found(within, inner) if inner and isinstance(within, Mapping) else None


def _text(fields: Fields, name: str, place: Place) -> str:
    value = _found(fields, name)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return ""
    raise place.error(name, f"expected a text, but {type(value).__name__} {value!r} came")
