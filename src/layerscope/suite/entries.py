"""One fact or control as a suite file writes it, made into a `Question` whose prompts are written out, or a SuiteError.

An entry has a `prompt`, `prompts`, `template` or `templates` of its own, or is asked with the templates of its file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from layerscope.errors import SuiteError

DEFAULT_VARIANT = "orig"
"""What a lone prompt or template is called when its entry does not say."""

Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""A text that is never blank; space around it means nothing."""

_REMEDIES = {
    "answer": "several answers go into `answers`",
    "answers": "a single answer goes into `answer`",
    "prompt": "several prompts go into `prompts`, as variant = text",
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
        parts = [self.file, None if self.line is None else f"line {self.line}", self.entry]
        return ", ".join(part for part in parts if part)

    def error(self, field: str | None, sentence: str) -> SuiteError:
        """An error that opens with file, line and, where one is to blame, the field."""
        return SuiteError(f"{self}: {sentence}" if field is None else f"{self}, field `{field}`: {sentence}")


@dataclass(frozen=True)
class Question:
    """One fact, or the fact of one control, with its prompts written out."""

    place: Place
    subject: str | None
    key: str
    spare_key: str | None
    """What a CounterFact record is called when an earlier one has its `key`; None for any other entry."""
    answers: tuple[str, ...]
    texts: Mapping[str, str]
    """variant -> prompt text, in the order of the file."""


@dataclass(frozen=True)
class Control:
    """A question beside the facts, and the subject or key of the fact that it is contrasted with."""

    question: Question
    contrast: str | None


class _Entry(BaseModel):
    """A fact: further fields are allowed here, because a template may name them."""

    model_config = ConfigDict(extra="allow", strict=True)
    subject: str | None = Field(default=None, pattern=r"\S")
    answer: Word | None = None
    answers: list[Word] | None = Field(default=None, min_length=1)
    key: Word | None = None
    variant: Word | None = None
    prompt: str | None = None
    prompts: dict[Word, str] | None = Field(default=None, min_length=1)
    template: str | None = None
    templates: dict[Word, str] | None = Field(default=None, min_length=1)


class _ControlEntry(_Entry):
    variants: list[Word] | None = Field(default=None, min_length=1)
    contrast: Word | None = None


@dataclass(frozen=True)
class _Wording:
    """How an entry is asked: prompts as they stand, or templates to fill in."""

    field: str
    """Where the texts stand: "prompt" or "template" for a lone one, "prompts" or "templates" for several."""
    texts: Mapping[str, str]
    """variant -> prompt or template."""

    @property
    def is_template(self) -> bool:
        return self.field.startswith("template")

    def field_of(self, variant: str) -> str:
        return f"{self.field}.{variant}" if self.field.endswith("s") else self.field


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
            sentence = f"it is unknown; the fields here are {_listed(model.model_fields)}"
        case "string_too_short" | "too_short" | "string_pattern_mismatch":
            sentence = "it is empty; write a text there"
        case _:
            expected = first["msg"].removeprefix("Value error, ")
            sentence = f"{expected}, but {type(first['input']).__name__} {first['input']!r} came"
            if name in _REMEDIES:
                sentence += f"; {_REMEDIES[name]}"
    raise place.error(field, sentence)


def check_templates(templates: Mapping[str, str], place: Place) -> None:
    """Refuse, with SuiteError, templates of a file that are empty, ill-formed, or the same for every fact."""
    _placeholders(_Wording("templates", templates), place)


def read_fact(fields: Mapping[str, object], templates: Mapping[str, str], place: Place) -> Question:
    """The question of one `[[facts]]` table or JSONL line; `templates` are the file's, for an entry without its own.

    Raises SuiteError for an unknown field, a wrong type, a missing or empty answer, a placeholder that no field fills,
    and a prompt that is empty or ends in white space.
    """
    return _question(validated(_Entry, fields, place), templates, place)


def read_control(fields: Mapping[str, object], templates: Mapping[str, str], place: Place) -> Control:
    """One `[[controls]]` table, with the variants it asks for (default: the first); raises like `read_fact`."""
    entry = validated(_ControlEntry, fields, place)
    question = _question(entry, templates, place)
    wanted = entry.variants or [next(iter(question.texts))]
    for variant in wanted:
        if variant not in question.texts:
            choices = _listed(question.texts)
            raise place.error("variants", f"there is no variant `{variant}`; the templates here are {choices}")
    texts = {variant: question.texts[variant] for variant in wanted}
    return Control(Question(place, question.subject, question.key, None, question.answers, texts), entry.contrast)


def _question(entry: _Entry, templates: Mapping[str, str], place: Place) -> Question:
    wording = _wording(entry, templates, place)
    fields = _placeholder_fields(entry, _placeholders(wording, place) if wording.is_template else set(), place)
    answers = _answers(entry, place)
    if not wording.texts:
        raise place.error("prompt", "it is missing, and there is no template to make one from; add one of the two")
    write = _filled if wording.is_template else _literal
    texts = {}
    for variant, text in wording.texts.items():
        field = wording.field_of(variant)
        texts[variant] = checked_text(write(text, field, fields, place), field, place)
    subject = entry.subject.strip() if entry.subject is not None else next(iter(texts.values()))
    return Question(place, entry.subject, entry.key or f"{subject}→{answers[0]}", None, answers, texts)


def _wording(entry: _Entry, templates: Mapping[str, str], place: Place) -> _Wording:
    """The entry's own wording, else the file's templates, which may be none."""
    given = [field for field in ("prompt", "prompts", "template", "templates") if getattr(entry, field) is not None]
    if len(given) > 1:
        raise place.error(given[1], f"`{given[0]}` is there too, and only one of them can be asked; keep one")
    if entry.variant is not None and given not in (["prompt"], ["template"]):
        raise place.error("variant", "it names a lone `prompt` or `template`, and there is none; leave it out")
    if not given:
        return _Wording("templates", templates)
    texts = getattr(entry, given[0])
    return _Wording(given[0], {entry.variant or DEFAULT_VARIANT: texts} if isinstance(texts, str) else texts)


def _placeholder_fields(entry: _Entry, placeholders: set[str], place: Place) -> dict[str, str]:
    """What may fill a placeholder: the subject, and each further field that some template names."""
    fields = {} if entry.subject is None else {"subject": entry.subject}
    for name, value in (entry.model_extra or {}).items():
        if name not in placeholders:
            known = _listed(type(entry).model_fields)
            raise place.error(name, f"it is unknown, and no template here has {{{name}}}; the fields are {known}")
        if not isinstance(value, str) or not value.strip():
            raise place.error(name, f"expected a text for the placeholder {{{name}}}, but {value!r} came")
        fields[name] = value
    return fields


def _answers(entry: _Entry, place: Place) -> tuple[str, ...]:
    if entry.answer is not None and entry.answers is not None:
        raise place.error("answer", "`answers` is there too; put every accepted answer into `answers`, the best first")
    if entry.answer is not None:
        return (entry.answer,)
    if entry.answers is None:
        raise place.error("answer", 'it is missing; add the expected continuation, as answer = "Berlin"')
    return tuple(dict.fromkeys(entry.answers))


def _pieces(template: str, field: str, place: Place) -> list[tuple[str, str | None]]:
    """The template as (text, placeholder behind it or None); `{}` stands for the subject."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise place.error(field, f"{error} in {template!r}; write {{{{ or }}}} for a brace that is meant") from error
    for _, placeholder, spec, conversion in parsed:
        if spec or conversion:
            raise place.error(field, f"{{{placeholder}}} in {template!r} has a format; a placeholder is a name alone")
    return [(text, "subject" if placeholder == "" else placeholder) for text, placeholder, _, _ in parsed]


def _placeholders(templates: _Wording, place: Place) -> set[str]:
    """Every placeholder of the templates, each of which must have one."""
    placeholders = set()
    for variant, template in templates.texts.items():
        field = templates.field_of(variant)
        checked_text(template, field, place)
        named = {placeholder for _, placeholder in _pieces(template, field, place) if placeholder is not None}
        if not named:
            raise place.error(field, f"{template!r} would ask every fact the same; add {{subject}}, or use `prompt`")
        placeholders |= named
    return placeholders


def _filled(template: str, field: str, fields: Mapping[str, str], place: Place) -> str:
    text = ""
    for piece, placeholder in _pieces(template, field, place):
        if placeholder is not None and placeholder not in fields:
            raise place.error(placeholder, f"it is missing, and `{field}` has {{{placeholder}}} to be filled; add it")
        text += piece if placeholder is None else piece + fields[placeholder]
    return text


def _literal(text: str, field: str, fields: Mapping[str, str], place: Place) -> str:
    """A prompt is taken as it stands, braces too; but `{subject}` can only be a template under the wrong name."""
    if "{subject}" in text:
        other = field.replace("prompt", "template", 1)
        raise place.error(field, f"a prompt is not filled in, and {text!r} has {{subject}}; call it `{other}`")
    return text


def checked_text(text: str, field: str, place: Place) -> str:
    """The prompt as it is, or a SuiteError when no answer could follow it."""
    if not text.strip():
        raise place.error(field, "the prompt is empty; write what the model shall continue")
    if text != text.rstrip():
        sentence = (
            f"the prompt {text!r} ends in white space, so an answer such as ' Berlin', which brings its own space, "
            "would not align with the tokens; remove it"
        )
        raise place.error(field, sentence)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise place.error(field, f"{text!r} holds half of a character ({error.reason}); write it whole") from error
    return text


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in names)
