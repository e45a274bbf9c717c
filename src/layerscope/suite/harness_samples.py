"""Sample logs of lm-evaluation-harness (`--log_samples`): the prompt as the task wrote it, and the right continuation.

A line holds `arguments`, one for each request to the model, either as {"gen_args_0": {"arg_0": context, "arg_1":
continuation}, ...} or as [[context, continuation], ...]; of a generation the second is a dict of settings. `target` is
the answer, or which of the continuations is right.
"""

from dataclasses import replace
from typing import Any

from layerscope.suite.question import DEFAULT_VARIANT, Fields, LeftOut, Place, Question, came, record_of_data_set

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
    requests = _requests(fields["arguments"], place)
    contexts = {context for context, _ in requests}
    if len(contexts) > 1:
        return [LeftOut(place, "its choices stand in the context, not behind it")]
    continuations = [continuation for _, continuation in requests if isinstance(continuation, str)]
    if requests[0][1] is None:
        return [LeftOut(place, "it asks for the likelihood of a whole text, not for an answer")]
    if continuations:
        answer = _right(continuations, fields.get("target"), fields["doc"])
        if answer is None:
            return [LeftOut(place, "its `target` is none of its continuations")]
        answers = [answer]
    else:
        target = fields.get("target")
        answers = [str(t) for t in (target if isinstance(target, list) else [target]) if t is not None]
    context = contexts.pop()
    text = context.rstrip()
    # The harness gives white space at a context's end to the continuation before it tokenizes the two.
    answers = [context[len(text) :] + answer for answer in answers]
    number = fields.get("doc_id")
    about = place.within_file if number is None else f"doc {number}"
    question = record_of_data_set(place, {DEFAULT_VARIANT: text}, answers, number=number)
    if isinstance(question, LeftOut):
        return [question]
    # A context of many shots names nothing in a table, and nor does a worked solution.
    answer = question.answers[0].strip()
    return [replace(question, key=f"{about}→{answer}" if len(answer) <= _SHORT else about)]


def _requests(arguments: Any, place: Place) -> list[tuple[str, Any]]:
    """(context, continuation, settings of a generation, or None) of each request."""
    listed = list(arguments.values()) if isinstance(arguments, dict) else arguments
    pairs = []
    for request in listed if isinstance(listed, list) else []:
        parts = list(request.values()) if isinstance(request, dict) else request
        if isinstance(parts, list) and parts and isinstance(parts[0], str):
            pairs.append((parts[0], parts[1] if len(parts) > 1 else None))
    if not pairs or len(pairs) < len(listed):
        sentence = 'expected requests such as {"gen_args_0": {"arg_0": context, "arg_1": continuation}}'
        raise place.error("arguments", f"{sentence}, but {came(arguments)}")
    return pairs


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
