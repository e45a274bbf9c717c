"""Prompts that are chats, written out by the model's own template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from layerscope.errors import SuiteError
from layerscope.model.tokens import Tokens
from layerscope.record.parts import ChatRecord, MessageRecord
from layerscope.suite import Prompt

SYSTEM_ROLES = ("system", "developer")
"""Roles in which a chat is told what goes before it."""
TemplateValue: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Rendered:
    """A prompt's text, and the messages that it was made of."""

    text: str
    chat: ChatRecord | None
    """None for plain text."""


def chat_or_text(
    prompt: Prompt, tokens: Tokens, system: str | None, options: Mapping[str, TemplateValue] | None
) -> Rendered:
    """A prompt as text.

    Args:
        system: what a system message says in front of the chat, if it has none of its own.
        options: arguments of the template beside the chat's own, before which they go.

    Raises:
        TokenizerError: the tokenizer has no template, or its template refuses the messages.
    """
    chat = prompt.chat
    if chat is None:
        return Rendered(prompt.text, None)
    messages = tuple(MessageRecord(role=message.role, content=message.content) for message in chat.messages)
    if system is not None and all(message.role not in SYSTEM_ROLES for message in messages):
        messages = (MessageRecord(role="system", content=system), *messages)
    record = ChatRecord(
        messages=messages,
        continue_final_message=chat.continue_final_message,
        template_options={**dict(chat.template_options), **(options or {})},
    )
    text = tokens.render(
        [message.model_dump() for message in messages],
        continued=record.continue_final_message,
        options=record.template_options,
    )
    return Rendered(text, record)


def template_options(
    given: Mapping[str, TemplateValue] | Sequence[str] | None,
) -> Mapping[str, TemplateValue] | None:
    """Options of the template, each as `enable_thinking=false`, or by name; None where none are given.

    Raises:
        SuiteError: one without a name and a value, or whose value is no truth value, number or text.
    """
    if not given:
        return None
    if isinstance(given, Mapping):
        return dict(given)
    return dict(map(_option, given))


def _option(words: str) -> tuple[str, TemplateValue]:
    name, equals, word = words.partition("=")
    if not name.isidentifier() or not equals:
        raise SuiteError(f"'{words}' is no option of a chat template; write name=value, such as enable_thinking=false.")
    try:
        value = json.loads(word)
    except ValueError:
        return name, word  # a text need not stand in quotes
    if not isinstance(value, bool | int | float | str):
        raise SuiteError(
            f"The template's option '{name}' should be true, false, a number or a text, but {word!r} came; write a "
            "text in quotes to take it as it is."
        )
    return name, value
