"""Sample logs of lm-evaluation-harness (`--log_samples`): the prompt as the task wrote it, and the right continuation.

A line holds `arguments`, one for each request to the model, either as {"gen_args_0": {"arg_0": context, "arg_1":
continuation}, ...} or as [[context, continuation], ...]; of a generation the second is a dict of settings. The context
of a chat endpoint is its messages as JSON. `target` is the answer, or which of the continuations is right.
"""

import json
from typing import Any

from layerscope.suite.question import DEFAULT_VARIANT, Fields, LeftOut, Place, Question, came, record_of_data_set
from layerscope.suite.suite import Chat, Message

_SHORT = 40
"""Characters up to which an answer is part of a fact's name."""


def is_harness_sample(fields: Fields) -> bool:
    """Whether a record is a line of a sample log."""
    return {"doc", "arguments"} <= fields.keys()


def read_harness_sample(fields: Fields, place: Place) -> list[Question | LeftOut]:
    """The context, and of several continuations the right one, as they were joined there.

    Raises:
        SuiteError: `arguments` of another shape.
    """
    requests, target = _requests(fields["arguments"], place), fields.get("target")
    context, continuation = requests[0]
    if any(other != context for other, _ in requests):
        return [LeftOut(place, "its choices stand in the context, not behind it")]
    if continuation is None and target in (None, "", context):
        return [LeftOut(place, "it asks for the likelihood of a whole text, not for an answer")]
    continuations = [c for _, c in requests if isinstance(c, str)]
    if continuations:
        right = _right(continuations, target, fields["doc"])
        if right is None:
            return [LeftOut(place, "its `target` is none of its continuations")]
        answers = [right]
    else:
        answers = [str(t) for t in (target if isinstance(target, list) else [target]) if t is not None]
    asked: str | Chat | None = _chat(context)
    if asked is None:
        # The harness gives white space at a context's end to the continuation before it tokenizes the two.
        asked = context.rstrip()
        answers = [context[len(asked) :] + answer for answer in answers]
    number = fields.get("doc_id")
    # A context of many shots names nothing in a table, and nor does a worked solution.
    about = place.within_file if number is None else f"doc {number}"
    answer = answers[0].strip() if answers else ""
    key = f"{about}→{answer}" if len(answer) <= _SHORT else about
    return [record_of_data_set(place, {DEFAULT_VARIANT: asked}, answers, key=key)]


def _requests(arguments: Any, place: Place) -> list[tuple[str, Any]]:
    """(context, continuation, settings of a generation, or None) of each request."""
    listed = list(arguments.values()) if isinstance(arguments, dict) else arguments
    pairs = []
    for request in listed if isinstance(listed, list) else []:
        parts = list(request.values()) if isinstance(request, dict) else request
        match parts:
            case [str(context), *rest] | [[str(context)], *rest]:
                pairs.append((context, rest[0] if rest else None))
    if not pairs or len(pairs) < len(listed):
        sentence = 'expected requests such as {"gen_args_0": {"arg_0": context, "arg_1": continuation}}'
        raise place.error("arguments", f"{sentence}, but {came(arguments)}")
    return pairs


def _chat(context: str) -> Chat | None:
    """The messages of a context that was sent to a chat endpoint, as JSON; None for a text."""
    if not context.startswith("[{"):
        return None
    try:
        said = json.loads(context)
    except (ValueError, RecursionError):
        return None
    messages = [
        Message(role, content)
        for message in said
        if isinstance(role := message.get("role"), str) and isinstance(content := message.get("content"), str)
    ]
    if not messages or len(messages) < len(said):
        return None
    return Chat(tuple(messages), continue_final_message=messages[-1].role == "assistant")


def _right(continuations: list[str], target: Any, doc: Any) -> str | None:
    """The continuation that `target` names, by its place or by its words; one alone is the answer itself."""
    choices = doc.get("choices") if isinstance(doc, dict) else None
    index = int(target) if str(target).isdecimal() and not isinstance(target, bool) else None
    by_words = [c for c in continuations if c.strip() == str(target).strip()]
    if by_words:
        return by_words[0]
    if index is not None and len(continuations) > 1:
        return continuations[index] if index < len(continuations) else None
    if index is not None and isinstance(choices, list) and index < len(choices):
        # A log may keep the request for one choice alone; its lead is that of all.
        lead = continuations[0][: len(continuations[0]) - len(continuations[0].lstrip())]
        return f"{lead}{choices[index]}"
    return None
