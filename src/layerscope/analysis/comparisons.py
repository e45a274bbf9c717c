"""Two wordings over all facts, and controls against the facts that they are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal, TypeAlias

from layerscope.analysis.facts import NO_FILLER
from layerscope.analysis.milestones import Milestones
from layerscope.analysis.onsets import FEWEST, layers_of_prompt
from layerscope.analysis.outputs import Output
from layerscope.analysis.percentiles import median
from layerscope.analysis.statistics import Summary, summarize
from layerscope.record.parts import PromptRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord

FLIPS_P = 0.05
"""P-value up to which answers count as flipped by the wording."""
SHIFT_LAYERS, SHIFT_SHARE = 2, 0.05
"""Median shift from which, in layers, or beyond which, as a share of the depth, layers count as moved."""
SHIFT_NATS = 1.0
"""Median change of the answer's log-probability beyond which the output counts as changed."""
Criterion: TypeAlias = Literal["answers", "layers", "log_prob"]


@dataclass(frozen=True)
class PairedAnswers:
    """The same facts asked twice: in which of both they are answered. Only those count whose outcome is known twice."""

    n: int
    n_first: int
    """Answered in the first."""
    n_second: int
    only_first: tuple[str, ...]
    """Keys of the facts answered in the first and not in the second."""
    only_second: tuple[str, ...]
    mcnemar_p: float | None
    """Exact, two-sided: how often chance would part the facts that differ at least so unevenly; 1 where none differs,
    None of no facts."""


@dataclass(frozen=True)
class WordingEffect:
    """Every fact in the primary fact's first wording and in another one, without the filler word where there is one."""

    first: str | None
    """The wordings; None where no fact is asked, or in one alone."""
    second: str | None
    answers: PairedAnswers
    shift_layers: Summary
    """Of on-top-for-good, second less first, over facts answered in both: negative is earlier in the second."""
    median_shift_depth: float | None
    """The median of these as a share of the depth."""
    median_shift_nats: float | None
    """Of the answer's log-probability at the output, second less first, over all facts with both."""
    n_nats: int
    """How many these are."""
    decided_by: tuple[Criterion, ...]
    """What makes it sensitive: answers flip, on-top-for-good moves, or the answer's probability changes."""
    judged: tuple[Criterion, ...]
    """What could be looked at: layers need a fact that is answered in both."""
    reason: str | None
    """Why nothing was compared; None where something was."""

    @property
    def sensitive(self) -> bool | None:
        """Whether the wording matters by any criterion; None where nothing was compared."""
        return bool(self.decided_by) if self.judged else None


@dataclass(frozen=True)
class ControlAnswer:
    """One control: the same question about another subject, whose answer must differ from the fact's."""

    prompt: PromptKey
    answer: str | None
    """Its own."""
    contrast: str | None
    """The answer of the fact that it is compared with."""
    contrast_fact: str | None
    """Key of that fact; None where no fact of the run has that answer."""
    output: Output
    says_contrast: bool | None
    """Whether the model gives the fact's answer to the control's question."""
    fact_answered: bool | None
    """Whether that fact is answered, in the control's wording."""


@dataclass(frozen=True)
class ControlAnswers:
    """All controls of a run together."""

    controls: tuple[ControlAnswer, ...]
    n: int
    n_answered: int
    """Controls whose own answer the model gives."""
    n_says_contrast: int
    """Controls to which it gives the fact's answer."""
    answers: PairedAnswers
    """Facts against their controls."""
    reason: str | None
    """Why there is nothing; None where there is."""


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of two counts of discordant pairs, which are equally likely if nothing differs.

    Twice the lesser tail of a binomial distribution with probability 1/2, at most 1.
    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages".
    """
    n, least = only_first + only_second, min(only_first, only_second)
    tail: int = sum(comb(n, k) for k in range(least + 1))
    p: float = 2 * tail / 2**n
    return min(1.0, p)


def wording_effect(
    outputs: Mapping[PromptKey, Output], milestones: Mapping[PromptKey, Milestones], n_layers: int
) -> WordingEffect:
    """Compare two wordings over all facts that were asked in both.

    Args:
        outputs: of every prompt, in the order of the rows.
        milestones: by prompt, of the headline lens.
    """
    first, second = _wordings(list(outputs))
    pairs = [
        (output, outputs[other])
        for prompt, output in outputs.items()
        if prompt.is_fact
        and prompt.prompt_variant == first
        and (other := prompt._replace(prompt_variant=second or "")) in outputs
    ]
    answers = paired_answers(pairs)
    both = [(a, b) for a, b in pairs if a.answered and b.answered]
    onsets = [
        tuple(layers_of_prompt(milestones.get(output.prompt, {})).on_top_for_good for output in pair) for pair in both
    ]
    shifts = [b - a for a, b in onsets if a is not None and b is not None]
    nats = [
        b.log_prob_nats - a.log_prob_nats
        for a, b in pairs
        if a.answer is not None and a.log_prob_nats is not None and b.log_prob_nats is not None
    ]
    moved, changed = median(shifts), median(nats)
    found: dict[Criterion, bool | None] = {
        "answers": None if answers.mcnemar_p is None else answers.mcnemar_p <= FLIPS_P,
        "layers": None if moved is None else abs(moved) >= SHIFT_LAYERS or abs(moved) > SHIFT_SHARE * n_layers,
        "log_prob": None if changed is None else abs(changed) > SHIFT_NATS,
    }
    return WordingEffect(
        first=first,
        second=second,
        answers=answers,
        shift_layers=summarize(shifts, fewest=FEWEST, points=False),
        median_shift_depth=None if moved is None else moved / n_layers,
        median_shift_nats=changed,
        n_nats=len(nats),
        decided_by=tuple(name for name, holds in found.items() if holds),
        judged=tuple(name for name, holds in found.items() if holds is not None),
        reason=None if pairs else "no fact was asked in two wordings",
    )


def control_answers(outputs: Mapping[PromptKey, Output], record: RunRecord) -> ControlAnswers:
    """Set every control beside the fact that it is compared with, in the control's wording."""
    controls = tuple(
        _control(output, known, outputs)
        for prompt, output in outputs.items()
        if not prompt.is_fact and (known := record.prompt(prompt)) is not None
    )
    facts = [_fact_of(control, outputs) for control in controls]
    pairs = [(fact, control.output) for fact, control in zip(facts, controls, strict=True) if fact is not None]
    return ControlAnswers(
        controls=controls,
        n=len(controls),
        n_answered=sum(control.output.answered is True for control in controls),
        n_says_contrast=sum(control.says_contrast is True for control in controls),
        answers=paired_answers(pairs),
        reason=None if controls else "the suite has no control",
    )


def paired_answers(pairs: Sequence[tuple[Output, Output]]) -> PairedAnswers:
    """Count pairs by where they are answered."""
    known = [(a, b) for a, b in pairs if a.answered is not None and b.answered is not None]
    only_first = tuple(str(a.fact_key) for a, b in known if a.answered and not b.answered)
    only_second = tuple(str(a.fact_key) for a, b in known if b.answered and not a.answered)
    return PairedAnswers(
        n=len(known),
        n_first=sum(a.answered is True for a, _ in known),
        n_second=sum(b.answered is True for _, b in known),
        only_first=only_first,
        only_second=only_second,
        mcnemar_p=mcnemar_p(len(only_first), len(only_second)) if known else None,
    )


def _wordings(prompts: Sequence[PromptKey]) -> tuple[str | None, str | None]:
    """The first wording of the first fact, and the one without the filler word, or else its next one."""
    first = next((prompt for prompt in prompts if prompt.is_fact), None)
    if first is None:
        return None, None
    others = [p.prompt_variant for p in prompts if p.is_fact and p.fact_index == first.fact_index and p != first]
    return first.prompt_variant, NO_FILLER if NO_FILLER in others else next(iter(others), None)


def _control(output: Output, known: PromptRecord, outputs: Mapping[PromptKey, Output]) -> ControlAnswer:
    contrast = known.contrast[0] if known.contrast else None
    ids = {answer.first_id for answer in known.contrast if answer.first_id is not None}
    wanted = None if contrast is None else contrast.string
    same = [
        fact
        for fact in outputs.values()
        if fact.prompt.is_fact
        and fact.prompt.prompt_variant == output.prompt.prompt_variant
        and wanted is not None
        and fact.answer == wanted
    ]
    fact = same[0] if len(same) == 1 else None
    return ControlAnswer(
        prompt=output.prompt,
        answer=output.answer,
        contrast=wanted,
        contrast_fact=None if fact is None else fact.fact_key,
        output=output,
        says_contrast=None if not ids or output.top_id is None else output.top_id in ids,
        fact_answered=None if fact is None else fact.answered,
    )


def _fact_of(control: ControlAnswer, outputs: Mapping[PromptKey, Output]) -> Output | None:
    if control.contrast_fact is None:
        return None
    return next(
        fact
        for fact in outputs.values()
        if fact.fact_key == control.contrast_fact and fact.prompt.prompt_variant == control.prompt.prompt_variant
    )
