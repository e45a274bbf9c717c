"""What the model itself says, in sentences: of one prompt, over facts, and which facts are found and lost again."""

from collections.abc import Sequence

from layerscope.analysis.outputs import AnsweredFacts, FoundAndLost, Output, Stretch
from layerscope.report.numbers import short_text
from layerscope.report.sentences.lines import LINE, plural
from layerscope.report.text import printable

MOST_OF_A_NAME = 60
"""Characters of a token, an answer or a fact that are quoted."""


def token(text: str | None) -> str:
    """A token or an answer as it is quoted, its space told; of a long one, as much as a line holds."""
    return "another token" if text is None else shortened(printable(repr(text)))


def shortened(name: str, most: int = MOST_OF_A_NAME) -> str:
    """A name, in the middle of which something is left out where it is long; both its ends stay."""
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def of_prompt(output: Output) -> str:
    """What the model says at the end of a prompt, and where the answer stands there."""
    rank = "" if output.answer_rank is None else f"{output.answer_rank:,}"
    return template_of_prompt(output).format(
        top=token(output.top_token),
        p_top=_p(output.p_top),
        answer=token(output.answer_text),
        rank=rank,
        p_answer=_p(output.p_answer),
    )


def template_of_prompt(output: Output) -> str:
    """The same with fields: top, p_top, answer, rank, p_answer; a probability brings its own brackets."""
    if output.judge == "model_top1":
        return "The model says {top}{p_top}; no answer was given to judge it by"
    if output.source is None:
        return "What the model itself says is not known"
    if output.answer_rank is None:
        return "The model says {top}{p_top}; the rank of {answer} is not known"
    if output.judge == "whole":
        return _template_of_whole(output)
    piece = by_piece(output)
    if output.answered:
        return f"The model answers {{answer}}{piece}{{p_answer}}"
    return f"The model says {{top}}{{p_top}}; {{answer}}{piece}{',' if piece else ''} has rank {{rank}}{{p_answer}}"


def _template_of_whole(output: Output) -> str:
    """Of a prompt that is judged by whole answers; several of them share rank and probability."""
    if output.answered and output.of_several:
        return "The model says {top}{p_top} and goes on to a whole answer, {answer} or another accepted one{p_answer}"
    if output.answered:
        return "The model says {top}{p_top} and goes on to the whole answer {answer}{p_answer}"
    if output.of_several:
        return (
            "The model says {top}{p_top}; every whole answer, {answer} or another, has a piece of rank {rank} or worse"
        )
    return "The model says {top}{p_top}; the whole answer {answer}{p_answer} has a piece of rank {rank}"


def by_piece(output: Output) -> str:
    """What stands behind an answer of which the first piece alone is judged; empty of others."""
    return ", judged by its first piece" if output.by_first_piece else ""


def over_facts(facts: AnsweredFacts) -> str:
    """How many facts are answered, and how many cannot be."""
    return template_over_facts(facts).format(**counts(facts))


def counts(facts: AnsweredFacts) -> dict[str, int]:
    """What fills the fields of templates over facts."""
    return {
        "n": facts.n,
        "asked": facts.n - facts.n_without_answer,
        "answered": facts.n_answered,
        "pieces": facts.n_by_first_piece,
        "unknown": facts.n_unknown,
        "without": facts.n_without_answer,
        "lost": len(facts.found_and_lost),
        "never": len(facts.never_on_top),
    }


def template_over_facts(facts: AnsweredFacts) -> str:
    """How many facts are answered, with fields that `counts` names."""
    asked = facts.n - facts.n_without_answer
    if asked == 0:
        return f"{{n}} {plural('prompt', facts.n)} without an answer"
    told = f"{{answered}} of {{asked}} {plural('fact', asked)} answered"
    if facts.n_by_first_piece:
        told += " ({pieces} by the first piece alone)"
    if facts.n_unknown:
        told += " ({unknown} of unknown rank)"
    if facts.n_without_answer:
        told += f", {{without}} {plural('prompt', facts.n_without_answer)} without an answer"
    return told


NONE_FOR_GOOD = "{lost} on top at some layer and lost again, {never} on top at no {known}layer"
"""Of facts of which none is answered; fields as in `counts`, and `known ` where a layer was not measured."""


def lost_again(fact: FoundAndLost) -> str:
    """The layers at which an answer is on top before it is lost."""
    return f"passes through rank 1 at {layer_ranges(fact.stretches)} and loses it"


def all_lost(facts: AnsweredFacts) -> str:
    """Facts that are on top at some layer and not at the output: as many by name as a line holds."""
    lost = facts.found_and_lost
    if not lost:
        return ""
    opening = f"{len(lost)} {plural('fact', len(lost))} {'passes' if len(lost) == 1 else 'pass'} through rank 1 and "
    opening += "loses it: " if len(lost) == 1 else "lose it: "
    named = [printable(f"{fact.fact_key} (at {_ranges(fact.stretches)})") for fact in lost]
    for shown in range(len(named), 0, -1):
        more = f" and {len(named) - shown} more" if shown < len(named) else ""
        line = opening + ", ".join(named[:shown]) + more
        if len(line) <= 2 * LINE:
            return line
    return opening.rstrip(": ")


def layer_ranges(stretches: Sequence[Stretch]) -> str:
    """`layers 14 to 17 and 20`."""
    alone = len(stretches) == 1 and stretches[0][0] == stretches[0][1]
    return f"{'layer' if alone else 'layers'} {_ranges(stretches)}"


def _ranges(stretches: Sequence[Stretch]) -> str:
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in stretches]
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]


def _p(p: int | float | None) -> str:
    return "" if p is None else f" (p {short_text(p)})"
