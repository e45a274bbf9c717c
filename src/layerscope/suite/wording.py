"""How a fact is asked: texts or chats as they stand, or templates of either whose placeholders its fields fill."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

from layerscope.suite.question import Place, Word, came, checked_text, validated
from layerscope.suite.suite import Message

Messages: TypeAlias = tuple[Message, ...]


@dataclass(frozen=True)
class Wording:
    """How an entry is asked: prompts as they stand, or templates to fill in."""

    field: str
    """Where the texts stand: "prompt", "template" or "messages" for a lone one, else "prompts" or "templates"."""
    texts: Mapping[str, str | Messages]
    """variant -> prompt or template."""

    @property
    def is_template(self) -> bool:
        """Whether placeholders are filled in."""
        return self.field.startswith("template")

    def field_of(self, variant: str) -> str:
        """Where one variant stands."""
        return f"{self.field}.{variant}" if self.field in ("prompts", "templates") else self.field


class _MessageEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Word
    content: str


def read_messages(value: object, field: str, place: Place) -> Messages:
    """A list of {role, content}.

    Raises:
        SuiteError: it is none, or the last message is blank.
    """
    if not isinstance(value, list) or not value:
        raise place.error(field, f"expected a list of messages, each with `role` and `content`, but {came(value)}")
    entries = [validated(_MessageEntry, message, place, f"{field}[{i}]") for i, message in enumerate(value)]
    messages = tuple(Message(entry.role, entry.content) for entry in entries)
    checked_text(messages[-1].content, f"{field}[{len(messages) - 1}].content", place)
    return messages


def read_templates(templates: Mapping[str, object], field: str, place: Place) -> dict[str, str | Messages]:
    """Templates, each of which is a text or a list of messages; `field` is the name of the table that holds them."""
    return {variant: read_template(value, f"{field}.{variant}", place) for variant, value in templates.items()}


def read_template(value: object, field: str, place: Place) -> str | Messages:
    """A template: a text or a list of messages.

    Raises:
        SuiteError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return read_messages(value, field, place)
    sentence = f"expected a valid string or a list of messages, but {came(value)}"
    if field == "template":
        sentence += "; several templates go into `templates`, as variant = text"
    raise place.error(field, sentence)


def placeholders(templates: Wording, place: Place) -> set[str]:
    """Every placeholder of the templates.

    Raises:
        SuiteError: a template is empty, is ill-formed, or has none.
    """
    names = set()
    for variant, template in templates.texts.items():
        named = set()
        for field, text in _texts(template, templates.field_of(variant)):
            if isinstance(template, str):
                checked_text(text, field, place)
            named |= {name for _, name in _pieces(text, field, place) if name is not None}
        if not named:
            field = templates.field_of(variant)
            other = "`prompt`" if isinstance(template, str) else "`messages`"
            shown = template if isinstance(template, str) else template[-1].content
            raise place.error(field, f"{shown!r} would ask every fact the same; add {{subject}}, or use {other}")
        names |= named
    return names


def written(wording: Wording, variant: str, fields: Mapping[str, str], place: Place) -> str | Messages:
    """One variant of a fact with its placeholders filled, if it is a template.

    Raises:
        SuiteError: a field is missing, the result is blank, or a prompt to be taken as it stands has {subject}.
    """
    template, field = wording.texts[variant], wording.field_of(variant)
    texts = []
    for within, text in _texts(template, field):
        if wording.is_template:
            texts.append(_filled(text, within, fields, place))
        elif "{subject}" in text:
            # A prompt is taken as it stands, braces too; but this can only be a template under the wrong name.
            other = "template" if field == "messages" else field.replace("prompt", "template", 1)
            raise place.error(within, f"a prompt is not filled in, and {text!r} has {{subject}}; call it `{other}`")
        else:
            texts.append(text)
    if isinstance(template, str):
        return checked_text(texts[0], field, place)
    for message, text in zip(template, texts, strict=True):
        if text.strip() or message is template[-1]:
            checked_text(text, field, place)
    return tuple(Message(message.role, text) for message, text in zip(template, texts, strict=True))


def _texts(template: str | Messages, field: str) -> Iterator[tuple[str, str]]:
    """Each text of a prompt or chat, behind the name of the field that holds it."""
    if isinstance(template, str):
        yield field, template
    else:
        for i, message in enumerate(template):
            yield f"{field}[{i}].content", message.content


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


def _filled(template: str, field: str, fields: Mapping[str, str], place: Place) -> str:
    text = ""
    for piece, placeholder in _pieces(template, field, place):
        if placeholder is not None and placeholder not in fields:
            raise place.error(placeholder, f"it is missing, and `{field}` has {{{placeholder}}} to be filled; add it")
        text += piece if placeholder is None else piece + fields[placeholder]
    return text
