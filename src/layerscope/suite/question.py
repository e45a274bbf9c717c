"""A fact on its way from a file into a suite, where in the file it stands, and how its fields are checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, StringConstraints, ValidationError

from layerscope.errors import SuiteError
from layerscope.suite.suite import AnswerForm, Chat, Judge

DEFAULT_VARIANT = "orig"
"""What a lone prompt or template is called when its entry does not say."""

Fields: TypeAlias = Mapping[str, Any]
"""A record as JSON, TOML or a row of a table gives it."""

Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""A text that is never blank; space around it means nothing."""

Answer = Annotated[str, StringConstraints(pattern=r"\S"), AfterValidator(str.rstrip)]
"""An accepted answer, never blank: white space before it is taken as written, behind it it means nothing."""

_REMEDIES = {
    "answer": "several answers go into `answers`",
    "answers": "a single answer goes into `answer`",
    "prompt": "several prompts go into `prompts`, as variant = text, and a chat into `messages`",
    "prompts": "a single prompt goes into `prompt`",
    "template": "several templates go into `templates`, as variant = text",
    "templates": "a single template goes into `template`",
    "facts": "each fact is a table of its own, headed [[facts]]",
    "controls": "each control is a table of its own, headed [[controls]]",
}


@dataclass(frozen=True)
class Place:
    """Where an entry stands, so that an error can say it."""

    file: str
    entry: str | None = None
    """What a person would call the entry, as "fact 2"; None for a line, which needs no other name."""
    line: int | None = None
    """Counted from 1; None where the file's syntax does not give it away."""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.file, self.within_file) if part)

    @property
    def within_file(self) -> str:
        """The place without the file: "line 7, fact 2"."""
        return ", ".join(part for part in (None if self.line is None else f"line {self.line}", self.entry) if part)

    def error(self, field: str | None, sentence: str) -> SuiteError:
        """An error that opens with file, line and, where one is to blame, the field."""
        return SuiteError(f"{self}: {sentence}" if field is None else f"{self}, field `{field}`: {sentence}")


@dataclass(frozen=True)
class Question:
    """One fact, or the fact of one control, with its prompts written out."""

    place: Place
    subject: str | None
    key: str
    answers: tuple[str, ...]
    texts: Mapping[str, str | Chat]
    """variant -> prompt, in the order of the file."""
    spare_keys: tuple[str, ...] = ()
    """What a record of a data set is called, in this order and before its place, when an earlier one has its `key`."""
    answer_form: AnswerForm | None = None
    judge: Judge | None = None
    """Of these two, None where the file decides."""
    is_from_data_set: bool = False
    """Whether an equal record before it makes it one too many, rather than a mistake of whoever wrote the file."""


@dataclass(frozen=True)
class LeftOut:
    """A record that is as it should be, but cannot be asked of a model that reads from left to right."""

    place: Place
    reason: str
    """Follows "because"."""


@dataclass(frozen=True)
class Control:
    """A question beside the facts, and the subject or key of the fact that it is contrasted with."""

    question: Question
    contrast: str | None


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], fields: object, place: Place, within: str = "") -> _Model:
    """`fields` as `model`, or a SuiteError about the first field that does not fit; `within` names their parent."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    field = ".".join(part for part in (within, name) if part) or None
    match first["type"]:
        case "missing":
            sentence = "it is missing; add it"
        case "extra_forbidden":
            sentence = f"it is unknown; the fields here are {listed(model.model_fields)}"
        case "string_too_short" | "too_short" | "string_pattern_mismatch":
            sentence = "it is empty; write a text there, or leave the field out if it need not be there"
        case _:
            sentence = f"{first['msg'].removeprefix('Value error, ')}, but {came(first['input'])}"
            if name in _REMEDIES:
                sentence += f"; {_REMEDIES[name]}"
    raise place.error(field, sentence)


def came(value: object) -> str:
    """The end of a sentence on a value of the wrong type, such as "int 3 came"."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 200 else text[:200] + ' ...'} came"


def checked_text(text: str, field: str, place: Place) -> str:
    """The prompt as it is, white space at its end too.

    Raises:
        SuiteError: it is blank, or no text.
    """
    if not text.strip():
        raise place.error(field, "the prompt is empty; write what the model shall continue")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise place.error(field, f"{text!r} holds half of a character ({error.reason}); write it whole") from error
    return text


def text_of(asked: str | Chat) -> str:
    """A prompt's text; of a chat its last message."""
    return asked.messages[-1].content if isinstance(asked, Chat) else asked


def _question_of(asked: str | Chat) -> str:
    """A prompt's text; of a chat what the user said last, which a message to be continued only begins to answer."""
    said = (
        [m.content for m in asked.messages if m.role == "user" and m.content.strip()] if isinstance(asked, Chat) else []
    )
    return said[-1] if said else text_of(asked)


def default_key(subject: str | None, texts: Mapping[str, str | Chat], answers: Sequence[str]) -> str:
    """ "Germany→Berlin": the subject, or else what the first prompt asks, and the first answer, if there is one."""
    about = _question_of(next(iter(texts.values()))) if subject is None else subject.strip()
    return f"{about}→{answers[0].strip()}" if answers else about


def record_of_data_set(
    place: Place,
    texts: Mapping[str, str | Chat],
    answers: Sequence[str],
    *,
    subject: str | None = None,
    number: object = None,
    key: str | None = None,
) -> Question | LeftOut:
    """One record of a published data set, told apart from others of its `key` by its `number`, if it has one.

    One whose prompt or answer is blank is left out: whoever uses a published file did not write it.
    """
    accepted = tuple(dict.fromkeys(answer.rstrip() for answer in answers if answer.strip()))
    if not accepted:
        return LeftOut(place, "its answer is empty")
    if not all(text_of(asked).strip() for asked in texts.values()):
        return LeftOut(place, "its prompt is empty")
    for variant, asked in texts.items():
        checked_text(text_of(asked), variant, place)
    key = key or default_key(subject, texts, accepted)
    spare_keys = () if number is None else (f"{key} #{number}",)
    return Question(place, subject, key, accepted, texts, spare_keys, is_from_data_set=True)


def listed(names: Mapping[str, object] | Sequence[str]) -> str:
    """Names of fields, as an error lists them."""
    return ", ".join(f"`{name}`" for name in names)
