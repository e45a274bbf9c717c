"""What of two runs should be alike before their numbers are set side by side, beside protocol and facts.

A rule is compared and not its outcome: a model that begins with BOS and one that does not may both read what their own
tokenizers give, and an answer may follow a space in one and a bracket in the other by one rule.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.record.parts import BosRecord, PromptRecord
from layerscope.record.run_record import RunRecord

BearsOn: TypeAlias = Literal["layers", "facts", "numbers"]
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Condition:
    """Something that should be the same in both runs."""

    name: str
    bears_on: BearsOn
    """What does not compare where it differs: layers, counts over facts, or the last digits of numbers."""
    state: Callable[[RunRecord], str]
    """What holds of a run, in words; `NOT_RECORDED` where it does not say, as published files do not."""


def conditions_of(record: RunRecord) -> dict[str, str]:
    """What holds of a run, in words, by what it is about."""
    return {condition.name: condition.state(record) for condition in CONDITIONS}


def differences(records: Sequence[RunRecord]) -> list[dict[str, tuple[str, str]]]:
    """For each run where it differs from most others: what holds of it, and of them.

    Of what a run does not record nothing is said. Where runs are split evenly, the first given sets the measure.
    """
    found: list[dict[str, tuple[str, str]]] = [{} for _ in records]
    for condition in CONDITIONS:
        states = [condition.state(record) for record in records]
        known = Counter(state for state in states if state != NOT_RECORDED)
        for of_run, state in zip(found, states, strict=True):
            usual = known.most_common(1)[0][0] if known else state
            if state not in (usual, NOT_RECORDED):
                of_run[condition.name] = (state, usual)
    return found


def question(prompt: PromptRecord) -> str:
    """What a prompt asks, in words: of a chat its messages, which every model's template writes otherwise."""
    if prompt.chat is None:
        return prompt.text or NOT_RECORDED
    chat = prompt.chat
    said = " / ".join(f"{message.role}: {message.content}" for message in chat.messages)
    options: Mapping[str, object] = chat.template_options
    named = "".join(f", {name}={value}" for name, value in sorted(options.items()))
    return f"{said}{' (continued)' if chat.continue_final_message else ''}{named}"


def _bos(record: RunRecord) -> str:
    bos = None if record.source == "published" else record.model.bos
    return NOT_RECORDED if bos is None else _bos_words(bos)


def _bos_words(bos: BosRecord) -> str:
    if bos.rule == "tokenizer":
        begins_with_bos = bos.id is not None or bool(bos.ids)
        if bos.family_rule in ("always", "never") and begins_with_bos != (bos.family_rule == "always"):
            return f"{'with a BOS' if begins_with_bos else 'without BOS'}, unlike most models of its architecture"
        return "as the tokenizer has it"
    asked = {"option": ", as was asked for", "family": ", by the table of families"}.get(bos.source or "", "")
    return f"{'with' if bos.rule == 'always' else 'without'} BOS{asked}"


def _prompts(record: RunRecord) -> str:
    """All that was asked, by a digest, since facts of the same names may be put otherwise."""
    prompts = record.suite.prompts
    if record.source == "published" or not prompts:
        return NOT_RECORDED
    asked = "\n".join(f"{question(p)}\n{[answer.string for answer in p.answers]}" for p in prompts)
    n_chats = sum(prompt.chat is not None for prompt in prompts)
    kind = f"{n_chats} of them chats" if n_chats else "plain text"
    return f"{len(prompts)} prompts, {kind} (digest {hashlib.sha256(asked.encode()).hexdigest()[:8]})"


def _forms(record: RunRecord) -> str:
    chosen = Counter(a.chosen_by for p in record.suite.prompts for a in p.answers if a.chosen_by is not None)
    if record.source == "published" or not chosen:
        return NOT_RECORDED
    words = {
        "model": "as the model prefers",
        "rule": "after a space wherever possible",
        "suite": "as the suite or its user has it",
    }
    return ", ".join(words[who] for who in words if who in chosen)


def _dtype(record: RunRecord) -> str:
    if record.source == "published" or record.provenance is None:
        return NOT_RECORDED
    return record.provenance.dtype_compute


def _transformers(record: RunRecord) -> str:
    if record.source == "published" or record.provenance is None:
        return NOT_RECORDED
    return record.provenance.transformers or NOT_RECORDED


CONDITIONS = (
    Condition("bos", "layers", _bos),
    Condition("prompts", "facts", _prompts),
    Condition("answer_forms", "layers", _forms),
    Condition("dtypes", "numbers", _dtype),
    Condition("transformers", "numbers", _transformers),
)
"""All of them, in the order in which they are told."""
