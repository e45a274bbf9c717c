"""Questions and controls put together as a suite: keys, controls' contrasts, and notes on what was left out."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, StringConstraints

from layerscope.errors import SuiteError
from layerscope.suite.entries import Asking
from layerscope.suite.question import Control, LeftOut, Place, Question, Word, text_of
from layerscope.suite.suite import Chat, Prompt, Suite

_NAMED = 5
"""How many places a note names."""

_BLANKS = " \t\u00a0\u3000"
"""White space that keeps the line."""


def _fit_for_a_folder(name: str) -> str:
    if re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError("the name becomes part of a folder's name, so it may have no slash and no control character")
    return name


class Heading(Asking):
    """What a file may open with: its name, and how all of its facts are asked."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[Word, AfterValidator(_fit_for_a_folder)]
    description: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    system: Annotated[str, StringConstraints(pattern=r"\S")] | None = None


def assembled(heading: Heading, records: Sequence[Question | LeftOut], controls: Sequence[Control], file: str) -> Suite:
    """The suite of a file's questions.

    Raises:
        SuiteError: nothing is left to ask, a key is there twice, or a control has no fact to be compared with.
    """
    by_key, left_out = _keyed(records)
    if not by_key:
        raise SuiteError(
            f"{file}: {_left_out(left_out, len(records))}; give a file with records that can be asked"
            if left_out
            else f"{file}: there are no facts; add at least one, as a [[facts]] table or a JSONL line"
        )
    prompts = [
        _prompt(heading, "pos", variant, text, fact, key, index)
        for index, (key, fact) in enumerate(by_key.items())
        for variant, text in fact.texts.items()
    ]
    places: dict[str, Place] = {}
    for control in controls:
        question, contrast = control.question, _contrasted(control, by_key)
        for variant, text in question.texts.items():
            if variant in places:
                sentence = f"{places[variant]} has `{variant}` already, and rows could not tell the two apart; keep one"
                raise question.place.error("variants", sentence)
            places[variant] = question.place
            prompts.append(_prompt(heading, "ctl", variant, text, question, None, None, contrast.answers))
    notes = [_left_out(left_out, len(records))] if left_out else []
    notes += _notes_on_wording(heading, [*by_key.values(), *(control.question for control in controls)])
    return Suite(heading.name, heading.description, tuple(prompts), tuple(f"suite {heading.name}: {n}" for n in notes))


def _prompt(
    heading: Heading,
    prompt_id: str,
    variant: str,
    asked: str | Chat,
    question: Question,
    key: str | None,
    index: int | None,
    contrast: tuple[str, ...] = (),
) -> Prompt:
    chat = asked if isinstance(asked, Chat) else None
    subject = None if question.subject is None else question.subject.strip()
    read = [text_of(asked)] if chat is None else [message.content for message in chat.messages]
    return Prompt(
        prompt_id,
        variant,
        text_of(asked),
        question.answers,
        key,
        index,
        contrast,
        subject=subject if subject and any(subject in text for text in read) else None,
        answer_form=question.answer_form or heading.answer_form or "auto",
        judge=question.judge or heading.judge or "first_piece",
        chat=chat,
    )


def _keyed(records: Sequence[Question | LeftOut]) -> tuple[dict[str, Question], list[LeftOut]]:
    by_key: dict[str, Question] = {}
    left_out: list[LeftOut] = []
    asked: dict[tuple[object, ...], Place] = {}
    for record in records:
        if isinstance(record, LeftOut):
            left_out.append(record)
            continue
        same = (*record.texts.items(), record.answers)
        if record.is_from_data_set and same in asked:
            left_out.append(LeftOut(record.place, "an earlier record asks the same"))
            continue
        is_another = record.is_from_data_set or (record.spare_keys and same not in asked)
        numbered = (f"{record.key} #{record.place.within_file}",) if is_another else ()
        key = next((k for k in (record.key, *record.spare_keys, *numbered) if k not in by_key), None)
        if key is None:
            key = (record.key, *record.spare_keys)[-1]
            sentence = (
                f"the fact {key!r} is already at {by_key[key].place}; take one away, give one a `key` of its own, "
                "or make them variants of one fact in `prompts`"
            )
            raise record.place.error("key", sentence)
        asked.setdefault(same, record.place)
        by_key[key] = record
    return by_key, left_out


def _left_out(left_out: Sequence[LeftOut], of: int) -> str:
    """ "2 of 40 records were left out: 2 because the answer is empty (line 3, line 9)"."""
    places: dict[str, list[str]] = {}
    for record in left_out:
        places.setdefault(record.reason, []).append(record.place.within_file)
    reasons = []
    for reason, named in places.items():
        reasons.append(f"{len(named)} because {reason} ({_some(named)})")
    were = "record was" if len(left_out) == of == 1 else "records was" if len(left_out) == 1 else "records were"
    return f"{len(left_out)} of {of} {were} left out: {'; '.join(reasons)}"


def _some(places: Sequence[str]) -> str:
    more = f", and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return f"{'; '.join(places[:_NAMED])}{more}"


def _notes_on_wording(heading: Heading, questions: Sequence[Question]) -> list[str]:
    """Cautions on prompts that are asked as they stand all the same."""
    notes = []
    texts = [(question.place, text) for question in questions for text in question.texts.values()]
    blank = [(place, text) for place, text in texts if isinstance(text, str) and text != text.rstrip(_BLANKS)]
    if blank:
        place, text = blank[0]
        ends = "prompt ends" if len(texts) == 1 else "prompts ends" if len(blank) == 1 else "prompts end"
        notes.append(
            f"{len(blank)} of {len(texts)} {ends} in a blank, first {text[-40:]!r} ({place.within_file}); asked as "
            "it stands, but most tokenizers join a space to the word behind it, so a model has seldom met one alone"
        )
    unknown = [question.place.within_file for question in questions if not question.answers]
    if 0 < len(unknown) < len(questions):
        have = "fact has" if len(unknown) == 1 else "facts have"
        notes.append(f"{len(unknown)} {have} no answer, and no answer is judged there ({_some(unknown)})")
    if not any(isinstance(text, Chat) for _, text in texts):
        unused = [
            n for n in ("system", "continue_final_message", "template_options") if getattr(heading, n) is not None
        ]
        notes += [f"`{name}` has no effect, since no prompt of the file is a chat" for name in unused]
    return notes


def _contrasted(control: Control, facts: Mapping[str, Question]) -> Question:
    """The fact whose answers a control is compared with, named by key or subject; the first fact when none is named."""
    place, wanted = control.question.place, control.contrast
    if wanted is None:
        chosen = [next(iter(facts.values()))]
    elif wanted in facts:
        chosen = [facts[wanted]]
    else:
        chosen = [fact for fact in facts.values() if fact.subject is not None and fact.subject.strip() == wanted]
    if not chosen:
        raise place.error("contrast", f"no fact has the subject or key {wanted!r}; the facts are {', '.join(facts)}")
    if len(chosen) > 1:
        keys = ", ".join(key for key, fact in facts.items() if fact in chosen)
        raise place.error("contrast", f"several facts have the subject {wanted!r}; name one by its key: {keys}")
    if not chosen[0].answers:
        raise place.error("contrast", "the contrasted fact has no answer to compare with; give it one")
    accepted = {answer.strip() for answer in chosen[0].answers}
    if shared := accepted & {answer.strip() for answer in control.question.answers}:
        sentence = f"the contrasted fact accepts {min(shared)!r} too, so there is no contrast; choose another fact"
        raise place.error("answer", sentence)
    return chosen[0]
