"""What the model itself says at the end of every prompt, and which facts it answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.analysis.curve import Curve, Curves, Row
from layerscope.analysis.curve_shapes import stretches
from layerscope.analysis.facts import fact_passes
from layerscope.record.measured import PredictionRecord
from layerscope.record.parts import AlignmentRecord, Judge, OutputRecord, PromptRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord

MODEL_AT_LAST = ("logit", "next_norm", "tuned")
"""Lenses whose last layer is the model's own output, in the order in which it is taken from them."""
SAME_BITS = 1e-6
"""Divergence up to which the last layer is the model, in bits."""
Source: TypeAlias = Literal["model", "last_layer"]
"""Where it was read: the model's own head, or the last layer under a lens that is the model there."""
_Said: TypeAlias = OutputRecord | PredictionRecord | None
Stretch: TypeAlias = tuple[int, int]
"""First and last of neighbouring layers."""


@dataclass(frozen=True)
class Output:
    """What the model says at the end of one prompt, and where the judged answer stands there."""

    prompt: PromptKey
    fact_key: str | None
    """Which fact; None of a control."""
    judge: Judge
    """What the prompt is judged by: `first_piece` or `whole` of its answer, or `model_top1`, what the model says."""
    top_id: int | None
    top_token: str | None
    """The most likely token, with the space that it begins with."""
    p_top: float | None
    answer: str | None
    """The judged answer as the suite has it; None where the prompt has none."""
    answer_text: str | None
    """How it would be read after the prompt: with its space where it is judged with one."""
    by_first_piece: bool
    """Whether that answer has several pieces and the first alone is judged, which other words may share."""
    of_several: bool
    """Whether several accepted answers are judged as one: whole, they share rank and probability."""
    answer_rank: int | None
    """Of what is judged, from 1."""
    p_answer: float | None
    """Of what is judged."""
    log_prob_nats: float | None
    """The natural logarithm of that."""
    source: Source | None
    """Where all this was read; None where it is not known."""

    @property
    def answered(self) -> bool | None:
        """Whether the judged answer is on top; None without an answer, or where its rank is not known."""
        if self.judge == "model_top1" or self.answer_rank is None:
            return None
        return self.answer_rank == 1

    @property
    def on_top(self) -> bool:
        """Whether what is judged is known to be on top, be it an answer or the model's own word."""
        return self.answer_rank == 1


@dataclass(frozen=True)
class FoundAndLost:
    """A fact that is not answered, though its answer is on top at some layer."""

    prompt: PromptKey
    fact_key: str | None
    stretches: tuple[Stretch, ...]
    """Layers at which it is on top, neighbours together."""
    output: Output
    """What the model says instead."""


@dataclass(frozen=True)
class AnsweredFacts:
    """Facts once each, in the wording that stands for them: answered, found and lost, or never on top."""

    n: int
    """Number of facts."""
    n_answered: int
    n_by_first_piece: int
    """Of these, facts whose answer has several pieces, of which the first alone is judged."""
    n_without_answer: int
    """Facts that are judged by what the model itself says."""
    n_unknown: int
    """Facts with an answer whose rank at the output is not known: unresolved, or not recorded."""
    counted: tuple[PromptKey, ...]
    """Facts that layers are summed up over: answered, or without an answer of their own."""
    found_and_lost: tuple[FoundAndLost, ...]
    """Under the headline lens."""
    never_on_top: tuple[PromptKey, ...]
    """Neither answered nor on top at any layer under the headline lens."""
    n_prompts: int
    """Facts in all their wordings."""
    n_prompts_answered: int
    n_prompts_by_variant: Mapping[str, tuple[int, int]]
    """For each wording: how many facts are answered in it, and of how many."""


def outputs(curves: Curves, record: RunRecord, headline: str) -> dict[PromptKey, Output]:
    """What the model says at the end of every prompt, in the order of the rows.

    The record of the model's own head counts; where it has none, and the last layer is not known to be another thing
    than the model, the rows of the last layer do.

    Args:
        curves: in the judged view.
        headline: the lens that the last layer is read by, if it is the model there.
    """
    lenses = [lens for lens in (headline, *MODEL_AT_LAST) if lens in MODEL_AT_LAST]
    recorded = {prompt.key: prompt for prompt in record.suite.prompts}
    found = {}
    for prompt in curves.passes:
        curve = next((c for lens in lenses if (c := curves.get(prompt, lens)) is not None), None)
        last = curve.at(curve.n_layers) if curve is not None and record.probabilities_stand else None
        known = recorded.get(prompt)
        said: _Said = None if known is None else _told(known.output, record)
        if said is None and prompt == curves.primary:
            said = record.measured.final_prediction
        found[prompt] = _output(prompt, known, said, last)
    return found


def answered_facts(outputs: Mapping[PromptKey, Output], curves: Curves, headline: str) -> AnsweredFacts:
    """Count facts, each once, by what becomes of their answer.

    Args:
        outputs: of every prompt, in the order of the rows.
        curves: in the judged view.
        headline: the lens under which layers are looked at.
    """
    facts = [outputs[prompt] for prompt in fact_passes(outputs)]
    lost, never = [], []
    for fact in facts:
        if fact.answered is not False:
            continue
        on_top = _layers_on_top(curves.get(fact.prompt, headline))
        if on_top:
            lost.append(FoundAndLost(fact.prompt, fact.fact_key, on_top, fact))
        else:
            never.append(fact.prompt)
    asked = [output for output in outputs.values() if output.prompt.is_fact]
    return AnsweredFacts(
        n=len(facts),
        n_answered=sum(fact.answered is True for fact in facts),
        n_by_first_piece=sum(fact.answered is True and fact.by_first_piece for fact in facts),
        n_without_answer=sum(fact.judge == "model_top1" for fact in facts),
        n_unknown=sum(fact.judge != "model_top1" and fact.answered is None for fact in facts),
        counted=tuple(fact.prompt for fact in facts if fact.on_top),
        found_and_lost=tuple(lost),
        never_on_top=tuple(never),
        n_prompts=len(asked),
        n_prompts_answered=sum(output.answered is True for output in asked),
        n_prompts_by_variant=_by_variant(asked),
    )


def _told(said: OutputRecord | None, record: RunRecord) -> OutputRecord | None:
    """As much of a recorded output as is the model's own.

    What was decoded by us is that where the identity check holds. Where it fails for want of a scale or softcap the
    order of tokens is still the model's, and else nothing is.
    """
    if said is None or said.source != "decoded" or record.probabilities_stand:
        return said
    doubtful = {"entropy_bits": None, "top_probs": (), "p_answer": None}
    return said.model_copy(update=doubtful) if record.ranks_stand else None


def _output(prompt: PromptKey, known: PromptRecord | None, said: _Said, last: Row | None) -> Output:
    judge: Judge = "first_piece" if known is None else known.judge
    top_id, top_token, p_top = _top(said, last)
    stated = said.answer_id if isinstance(said, OutputRecord) else None
    found = _answer(known, stated if stated is not None or last is None else last["answer_id"])
    text = None if found is None else (" " if found.variant == "with_space" else "") + found.string
    rank, p = _judged(judge, said, last, found, text)
    log_prob = None if last is None or judge != "whole" else last["answer_log_prob_nats_all"]
    if log_prob is None and p is not None and p > 0:
        log_prob = math.log(p)
    there = (top_id, top_token, rank) != (None,) * 3
    return Output(
        prompt=prompt,
        fact_key=known.fact_key if known is not None else last["fact_key"] if last is not None else None,
        judge=judge,
        top_id=top_id,
        top_token=top_token,
        p_top=p_top,
        answer=None if found is None else found.string,
        answer_text=top_token if judge == "model_top1" else text,
        by_first_piece=judge == "first_piece" and found is not None and len(found.answer_ids) > 1,
        of_several=judge == "whole" and known is not None and len({a.answer_ids for a in known.answers if a.ok}) > 1,
        answer_rank=rank,
        p_answer=p,
        log_prob_nats=log_prob,
        source=("last_layer" if said is None else "model") if there else None,
    )


def _top(said: _Said, last: Row | None) -> tuple[int | None, str | None, float | None]:
    if said is not None and said.top_tokens:
        return next(iter(said.top_ids or ()), None), said.top_tokens[0], next(iter(said.top_probs), None)
    return (None, None, None) if last is None else (last["top1_id"], last["top1"], last["p_top1"])


def _judged(
    judge: Judge, said: _Said, last: Row | None, answer: AlignmentRecord | None, text: str | None
) -> tuple[int | None, float | None]:
    """Rank and probability of what is judged; the record of the head knows of first pieces alone.

    Where that record has no rank of the answer, its list may still have the probability; that of the last layer stands
    for it only where the layer is the model.
    """
    if judge == "model_top1" and said is not None and said.top_tokens:
        return 1, next(iter(said.top_probs), None)
    if judge == "first_piece" and said is not None and said.answer_rank is not None:
        return said.answer_rank, said.p_answer
    if last is None:
        return None, None
    bits = last["kl_to_final_bits"]
    if judge != "first_piece" or bits is None or bits <= SAME_BITS:
        return last["answer_rank"], last["p_answer"]
    return last["answer_rank"], _listed(said, answer, text)


def _listed(said: _Said, answer: AlignmentRecord | None, text: str | None) -> float | None:
    """The probability of an answer among the tokens that the model's own head lists; None where it does not."""
    if said is None:
        return None
    first = None if answer is None else answer.first_id
    by_id = dict(zip(said.top_ids or (), said.top_probs, strict=False))
    by_text = dict(zip(said.top_tokens, said.top_probs, strict=False))
    return by_id[first] if first in by_id else by_text.get(text or "")


def _answer(known: PromptRecord | None, answer_id: int | None) -> AlignmentRecord | None:
    """The accepted answer that is judged, the gold one where it cannot be told."""
    if known is None or not known.answers:
        return None
    judged = (answer for answer in known.answers if answer_id is not None and answer.first_id == answer_id)
    return next(judged, known.answers[0])


def _layers_on_top(curve: Curve | None) -> tuple[Stretch, ...]:
    layers = [] if curve is None else curve.layers(lambda row: bool(row["is_answer"]))
    return tuple((run[0], run[-1]) for run in stretches(layers))


def _by_variant(asked: Sequence[Output]) -> dict[str, tuple[int, int]]:
    by_variant: dict[str, tuple[int, int]] = {}
    for output in asked:
        answered, n = by_variant.get(output.prompt.prompt_variant, (0, 0))
        by_variant[output.prompt.prompt_variant] = (answered + (output.answered is True), n + 1)
    return by_variant
