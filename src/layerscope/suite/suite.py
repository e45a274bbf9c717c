"""What is asked of a model: facts in all their variants, controls, accepted answers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from layerscope.errors import SuiteError

AnswerForm: TypeAlias = Literal["auto", "space", "none"]
"""How an answer follows its prompt: as the model itself prefers, after a space, or without one."""
Judge: TypeAlias = Literal["first_piece", "whole"]
"""What is judged of an answer of several tokens."""


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """Messages that the model's own chat template makes a prompt of."""

    messages: tuple[Message, ...]
    continue_final_message: bool = False
    """Whether the model continues the last message, rather than answering it."""
    template_options: tuple[tuple[str, bool | int | float | str], ...] = ()
    """Further arguments of the template, such as ("enable_thinking", False), sorted by name."""


@dataclass(frozen=True)
class Prompt:
    """One text for the model to continue, and what it should say, if that is known."""

    prompt_id: str
    """"pos" for a fact, "ctl" for a control."""
    prompt_variant: str
    """Name of the template it was made from: "orig", "no_filler", ..."""
    text: str
    """What the model continues; of a chat the last message, which says what it is about until it is rendered."""
    answers: tuple[str, ...]
    """Accepted answers, the first of them the gold one; none where it is not known what the model should say. One that
    begins with white space is taken as it is written."""
    fact_key: str | None
    """"Germany→Berlin"; None for a control."""
    fact_index: int | None
    """Counted from 0 in the order of the file; None for a control."""
    contrast: tuple[str, ...] = ()
    """Of a control: accepted answers of the fact that it is contrasted with. Empty for a fact."""
    subject: str | None = None
    """What the fact is about, as it stands in the text; None where that is not known."""
    answer_form: AnswerForm = "auto"
    judge: Judge = "first_piece"
    chat: Chat | None = None
    """Where the prompt is a chat; None for plain text."""

    @property
    def asked(self) -> dict[str, object]:
        """What is asked, for the suite's digest: fields that a prompt leaves at their default are left out."""
        core = ("prompt_id", "prompt_variant", "text", "answers", "fact_key", "fact_index", "contrast")
        values = asdict(self)
        others = {f.name for f in fields(self)} - {*core, "subject"}  # a subject changes nothing that is asked
        defaults = {f.name: f.default for f in fields(self)}
        return {n: values[n] for n in (*core, *sorted(n for n in others if getattr(self, n) != defaults[n]))}


@dataclass(frozen=True)
class Suite:
    """Prompts in the order in which a model is asked: each fact with all its variants, then the controls.

    No two prompts agree in (fact_index, prompt_id, prompt_variant), since rows are told apart by these three alone;
    SuiteError otherwise.
    """

    name: str
    description: str
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What was noticed while it was read, each in a sentence of its own; no part of what is asked."""

    def __post_init__(self) -> None:
        seen = set()
        for prompt in self.prompts:
            identity = (prompt.fact_index, prompt.prompt_id, prompt.prompt_variant)
            if identity in seen:
                raise SuiteError(
                    f"suite {self.name!r}: two prompts have (fact_index, prompt_id, prompt_variant) = {identity}, "
                    "so their rows could not be told apart; name one variant otherwise"
                )
            seen.add(identity)

    @property
    def sha256(self) -> str:
        """Hex digest of what is asked: equal for equal prompts, whatever the suite is called and how it was written.

        Over the prompts as JSON in UTF-8 with sorted keys, no spaces and no escapes beyond those JSON demands.
        """
        prompts = [prompt.asked for prompt in self.prompts]
        canonical = json.dumps(prompts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def facts(self) -> tuple[str, ...]:
        """Distinct fact keys in order."""
        return tuple(dict.fromkeys(prompt.fact_key for prompt in self.prompts if prompt.fact_key is not None))


SuiteSource: TypeAlias = str | Path | Suite | Sequence[str | Mapping[str, Any]]
"""A built-in suite's name, a file, a suite, or facts: prompts without answers, or records as a file would hold them."""
