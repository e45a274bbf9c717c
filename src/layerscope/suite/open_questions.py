"""Records of a question and its answers: PopQA, and other sets with `question` and `answer`.

PopQA: Mallen et al. 2023, "When Not to Trust Language Models".
"""

import ast
import json
from typing import Any

from layerscope.suite.question import DEFAULT_VARIANT, Fields, LeftOut, Place, Question, came, record_of_data_set

_ANSWERS = ("obj", "possible_answers", "answer", "answers")
"""Fields that hold answers, the gold one first."""
_SUBJECTS = ("subj", "subject")


def is_open_question(fields: Fields) -> bool:
    """Whether a record has a question and answers to it."""
    return "question" in fields and bool(fields.keys() & set(_ANSWERS))


def read_open_question(fields: Fields, place: Place) -> list[Question | LeftOut]:
    """`question` as it stands; the answers are `obj` and `possible_answers`, or `answer` or `answers`.

    Raises:
        SuiteError: a wrong type.
    """
    question = fields["question"]
    if not isinstance(question, str):
        raise place.error("question", f"expected a text, but {came(question)}")
    answers = [answer for name in _ANSWERS if name in fields for answer in answers_in(fields[name], name, place)]
    subject = next((fields[name] for name in _SUBJECTS if isinstance(fields.get(name), str)), None)
    number = fields.get("id")
    return [record_of_data_set(place, {DEFAULT_VARIANT: question}, answers, subject=subject, number=number)]


def answers_in(value: Any, field: str, place: Place) -> list[str]:
    """Answers as a field holds them: a text or number, a list of these, or such a list written out as a text.

    Raises:
        SuiteError: it holds something else.
    """
    if isinstance(value, str):
        listed = _list_in(value)
        return [value] if listed is None else answers_in(listed, field, place)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, list) and all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in value):
        return [str(v) for v in value]
    if value is None:
        return []
    within = (
        next((name for name, inner in value.items() if isinstance(inner, str)), None)
        if isinstance(value, dict)
        else None
    )
    remedy = (
        "" if within is None else f"; take one of its fields, as in --columns prompt=question,answer={field}.{within}"
    )
    raise place.error(field, f"expected a text or a list of texts, but {came(value)}{remedy}")


def _list_in(text: str) -> list[Any] | None:
    """The list that a cell of a table holds in JSON's notation or Python's; None where it is a plain text."""
    if not text.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return None
