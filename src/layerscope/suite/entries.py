"""One fact or control as a suite file writes it, made into a `Question` whose prompts are written out, or a SuiteError.

An entry has a `prompt`, `prompts`, `template`, `templates` or `messages` of its own, or is asked with the templates of
its file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from layerscope.suite.question import (
    DEFAULT_VARIANT,
    Answer,
    Control,
    Fields,
    Place,
    Question,
    Word,
    default_key,
    listed,
    validated,
)
from layerscope.suite.suite import AnswerForm, Chat, Judge, Message
from layerscope.suite.wording import (
    Messages,
    Wording,
    placeholders,
    read_messages,
    read_template,
    read_templates,
    written,
)

TemplateOption: TypeAlias = bool | int | float | str
WORDINGS = ("prompt", "prompts", "template", "templates", "messages")
"""Fields that say how a fact is asked."""


class Asking(BaseModel):
    """How facts are asked and judged: on a fact, or at the top of a file for all that do not say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    answer_form: AnswerForm | None = None
    judge: Judge | None = None
    continue_final_message: bool | None = None
    template_options: dict[Word, TemplateOption] | None = None


@dataclass(frozen=True)
class FileSettings:
    """What a file says for all of its facts."""

    templates: Mapping[str, str | Messages] = field(default_factory=dict)
    asking: Asking = field(default_factory=Asking)
    system: str | None = None
    """A message in front of every chat that has none."""


class Entry(Asking):
    """A fact: further fields are allowed here, because a template may name them."""

    model_config = ConfigDict(extra="allow", strict=True)
    subject: str | None = Field(default=None, pattern=r"\S")
    answer: Answer | None = None
    answers: list[Answer] | None = Field(default=None, min_length=1)
    key: Word | None = None
    variant: Word | None = None
    prompt: str | None = None
    prompts: dict[Word, str] | None = Field(default=None, min_length=1)
    template: Any = None
    templates: dict[Word, Any] | None = Field(default=None, min_length=1)
    messages: Any = None


class _ControlEntry(Entry):
    variants: list[Word] | None = Field(default=None, min_length=1)
    contrast: Word | None = None


def check_templates(templates: Mapping[str, str | Messages], place: Place) -> None:
    """Refuse, with SuiteError, templates of a file that are empty, ill-formed, or the same for every fact."""
    placeholders(Wording("templates", templates), place)


def read_fact(fields: Fields, settings: FileSettings, place: Place) -> Question:
    """The question of one `[[facts]]` table or JSONL line.

    Raises:
        SuiteError: an unknown field, a wrong type, an empty answer or prompt, a placeholder that no field fills.
    """
    return _question(validated(Entry, fields, place), settings, place)


def read_control(fields: Fields, settings: FileSettings, place: Place) -> Control:
    """One `[[controls]]` table, with the variants it asks for (default: the first); raises like `read_fact`."""
    entry = validated(_ControlEntry, fields, place)
    question = _question(entry, settings, place)
    if not question.answers:
        raise place.error("answer", "it is missing; a control's answer is compared with that of a fact, so add it")
    wanted = entry.variants or [next(iter(question.texts))]
    for variant in wanted:
        if variant not in question.texts:
            choices = listed(question.texts)
            raise place.error("variants", f"there is no variant `{variant}`; the templates here are {choices}")
    texts = {variant: question.texts[variant] for variant in wanted}
    return Control(replace(question, texts=texts), entry.contrast)


def _question(entry: Entry, settings: FileSettings, place: Place) -> Question:
    wording = _wording(entry, settings.templates, place)
    fields = _placeholder_fields(entry, placeholders(wording, place) if wording.is_template else set(), place)
    answers = _answers(entry, place)
    if not wording.texts:
        raise place.error("prompt", "it is missing, and there is no template to make one from; add one of the two")
    texts = {v: _asked(written(wording, v, fields, place), entry, settings, place) for v in wording.texts}
    if not any(isinstance(text, Chat) for text in texts.values()):
        for name in ("continue_final_message", "template_options"):
            if getattr(entry, name) is not None:
                raise place.error(name, "it is about a chat, and this fact has a text to continue; use `messages`")
    return Question(
        place,
        entry.subject,
        entry.key or default_key(entry.subject, texts, answers),
        answers,
        texts,
        answer_form=entry.answer_form,
        judge=entry.judge,
    )


def _wording(entry: Entry, templates: Mapping[str, str | Messages], place: Place) -> Wording:
    """The entry's own wording, else the file's templates, which may be none."""
    given = [name for name in WORDINGS if getattr(entry, name) is not None]
    if len(given) > 1:
        raise place.error(given[1], f"`{given[0]}` is there too, and only one of them can be asked; keep one")
    if entry.variant is not None and given not in (["prompt"], ["template"], ["messages"]):
        raise place.error(
            "variant", "it names a lone `prompt`, `template` or `messages`; there is none, so leave it out"
        )
    if not given:
        return Wording("templates", templates)
    variant = entry.variant or DEFAULT_VARIANT
    match given[0]:
        case "messages":
            return Wording("messages", {variant: read_messages(entry.messages, "messages", place)})
        case "template":
            return Wording("template", {variant: read_template(entry.template, "template", place)})
        case "templates":
            return Wording("templates", read_templates(entry.templates or {}, "templates", place))
        case "prompt":
            return Wording("prompt", {variant: entry.prompt or ""})
    return Wording("prompts", entry.prompts or {})


def _asked(text: str | Messages, entry: Entry, settings: FileSettings, place: Place) -> str | Chat:
    """A text as it is; messages as a chat, with what entry and file say of it."""
    if isinstance(text, str):
        return text
    said = entry.continue_final_message
    continues = bool(settings.asking.continue_final_message if said is None else said)
    if text[-1].role == "assistant" and not continues:
        sentence = (
            "the last message is the assistant's own; set continue_final_message = true to have it continued, or move "
            "what it says into `answer`"
        )
        raise place.error("messages", sentence)
    if settings.system is not None and not any(message.role in ("system", "developer") for message in text):
        text = (Message("system", settings.system), *text)
    options = entry.template_options if entry.template_options is not None else settings.asking.template_options
    return Chat(text, continues, tuple(sorted((options or {}).items())))


def _placeholder_fields(entry: Entry, names: set[str], place: Place) -> dict[str, str]:
    """What may fill a placeholder: the subject, and each further field that some template names."""
    fields = {} if entry.subject is None else {"subject": entry.subject}
    for name, value in (entry.model_extra or {}).items():
        if name not in names:
            known = listed(type(entry).model_fields)
            raise place.error(
                name,
                f"it is unknown, and no template here has {{{name}}}; the fields are {known} (to take some fields of "
                "a record alone: --columns prompt=...,answer=...)",
            )
        if not isinstance(value, str) or not value.strip():
            raise place.error(name, f"expected a text for the placeholder {{{name}}}, but {value!r} came")
        fields[name] = value
    return fields


def _answers(entry: Entry, place: Place) -> tuple[str, ...]:
    """The accepted answers; none where the file does not know what a model should say."""
    if entry.answer is not None and entry.answers is not None:
        raise place.error("answer", "`answers` is there too; put every accepted answer into `answers`, the best first")
    if entry.answer is not None:
        return (entry.answer,)
    return tuple(dict.fromkeys(entry.answers or ()))
