"""Is it more than chance? How often other facts' answers are on top, and how often reassigned answers would be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations, product
from math import factorial, prod
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.curve import Curves
from layerscope.analysis.facts import fact_passes
from layerscope.analysis.statistics import SEED
from layerscope.record.parts import AlignmentRecord, PromptRecord
from layerscope.record.run_record import RunRecord

SIGNIFICANT = 0.01
"""Largest p-value, after Holm's correction over layers, that counts as more than chance; inclusive."""
FEWEST_ANSWERS = 5
"""Distinct answers below which no test is thought of."""
ASSIGNMENTS = 10_000
"""Reassignments that are drawn; where there are not more of them, each is taken once."""
ASSIGNMENTS_A_LAYER = 200
"""As many are drawn for each layer that is tested, if that is more: a p-value of 1 / (N + 1) must survive Holm."""
_CHUNK = 1_000
"""Reassignments held at a time."""
TOO_FEW, TOO_FEW_ALIKE = "too few facts for a test", "too few facts share a template for a test"
"""Why there may be no test: all facts together would not do, or they would if they were asked alike."""
Method: TypeAlias = Literal["exact", "sampled"]
_Labels: TypeAlias = NDArray[np.int32]
_Template: TypeAlias = tuple[str, str | None]
"""Name of the wording, and its words around the subject; None where it is not known what that is."""
_Pairs: TypeAlias = tuple[_Labels, _Labels]
"""Facts by place, and the answers that are on top for them, by label."""


@dataclass(frozen=True)
class LayerChance:
    """One layer."""

    layer: int
    n_on_top: int
    """Facts with their own answer on top."""
    expected: float
    """Mean of that count over all reassignments."""
    null_rate: float | None
    """Share of pairs of a prompt and another fact's answer with that answer on top; None without such pairs."""
    p: float
    """How often reassigned answers are on top at least as often; 1 where no reassignment makes a difference."""
    p_holm: float
    """The same after Holm's correction over the layers that were tested."""


@dataclass(frozen=True)
class AgainstChance:
    """The shuffled-answers null: are facts' own answers on top more often than answers dealt out at random?

    The statistic is the number of facts whose own answer's first token is the lens' most likely one. Answers are dealt
    anew among prompts of one template, so that what its words make likely (any city, the most famous one) is no
    evidence. Facts with equal answers are exchangeable, and dealing them changes nothing.
    """

    lens: str
    n_facts: int
    """Facts with a resolved answer."""
    n_answers: int
    """Distinct answers: sets of first tokens."""
    method: Method | None
    """Whether every reassignment was taken, or a sample; None where none was."""
    n_assignments: int
    n_layers_tested: int
    """Layers at which a reassignment can make a difference; Holm's correction is over these."""
    smallest_p: float | None
    """The least p-value, after Holm's correction, that the suite could have given."""
    by_layer: tuple[LayerChance, ...]
    """Layers that have rows, ascending."""
    at_milestones: Mapping[str, LayerChance | None]
    """The layers of the milestones over facts, by key."""
    above_chance: bool | None
    """Whether the answers are on top for good where they are by more than chance: at the median layer, or at any layer
    where no fact is answered. None where the suite is too small to tell."""
    reason: str | None
    """Why that cannot be told; None where it can."""

    def at(self, layer: int | None) -> LayerChance | None:
        """One layer; None where it has no rows."""
        return next((found for found in self.by_layer if found.layer == layer), None)


def against_chance(
    curves: Curves, record: RunRecord, lens: str, milestones: Mapping[str, int | None], decisive: str
) -> AgainstChance:
    """Test every layer of a lens over all facts, each in the wording that stands for it.

    Exact where there are no more than `ASSIGNMENTS` reassignments; else drawn with a fixed seed, and the assignment as
    it is counts as one of them (p = (1 + those at least as large) / (1 + drawn)). Layers at which every reassignment
    gives the same count cannot speak for or against and are left out of Holm's correction, as in Tarone's.

    Sources: Phipson & Smyth 2010, "Permutation P-values should never be zero"; Holm 1979, "A simple sequentially
    rejective multiple test procedure"; Tarone 1990, "A modified Bonferroni method for discrete data".

    Args:
        milestones: layers over facts by key, at which the test is reported.
        decisive: the one of them by which `above_chance` is judged.
    """
    deal = _Deal.of(curves, record, lens)
    pairs = deal.on_top(curves, lens)
    tested = [layer for layer, found in pairs.items() if deal.matters(found)]
    sampled = deal.n_assignments > ASSIGNMENTS
    drawn = max(ASSIGNMENTS, ASSIGNMENTS_A_LAYER * len(tested)) if sampled else deal.n_assignments
    p = _p_values(deal, {layer: pairs[layer] for layer in tested}, drawn if sampled else None)
    corrected = holm(p)
    by_layer = tuple(
        LayerChance(
            layer, deal.own(found), deal.expected(found), deal.null_rate(found), p.get(layer, 1.0),
            corrected.get(layer, 1.0),
        )
        for layer, found in pairs.items()
    )  # fmt: skip
    placed = {found.layer: found for found in by_layer}
    attainable = max(deal.smallest_p, 1 / (drawn + 1) if sampled else 0.0)
    smallest = min(1.0, attainable * max(1, len(tested))) if by_layer else None
    enough = smallest is not None and deal.n_answers >= FEWEST_ANSWERS and smallest <= SIGNIFICANT
    layer = milestones[decisive]
    judged = [placed[layer]] if layer in placed else list(by_layer) if layer is None else []
    return AgainstChance(
        lens=lens,
        n_facts=len(deal.prompts),
        n_answers=deal.n_answers,
        method=None if not by_layer else "sampled" if sampled else "exact",
        n_assignments=drawn if by_layer else 0,
        n_layers_tested=len(tested),
        smallest_p=smallest,
        by_layer=by_layer,
        at_milestones={name: None if at is None else placed.get(at) for name, at in milestones.items()},
        above_chance=any(at.p_holm <= SIGNIFICANT for at in judged) if enough and judged else None,
        reason=None if enough and judged else "that layer has no rows" if enough else deal.too_few(len(tested)),
    )


def holm(p: Mapping[int, float]) -> dict[int, float]:
    """P-values adjusted by Holm's step-down correction over all that are given."""
    adjusted, largest = {}, 0.0
    for rank, (key, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p) - rank) * value))
        adjusted[key] = largest
    return adjusted


@dataclass(frozen=True)
class _Deal:
    """Facts in groups of one template, each with its answer as a label: equal answers have equal labels."""

    prompts: tuple[PromptRecord, ...]
    labels: _Labels
    groups: tuple[_Labels, ...]
    """Places of the facts of one template."""
    by_token: tuple[Mapping[int, tuple[int, ...]], ...]
    """For each fact: labels of its group's answers that a token begins, in the form in which this fact is judged."""

    @classmethod
    def of(cls, curves: Curves, record: RunRecord, lens: str) -> "_Deal":
        known = {prompt.key: prompt for prompt in record.suite.prompts}
        asked = [known.get(prompt) for prompt in fact_passes(curves.passes) if curves.get(prompt, lens)]
        prompts = tuple(p for p in asked if p is not None and p.judge != "model_top1" and _form(p) is not None)
        forms = sorted({str(_form(prompt)) for prompt in prompts})
        answers = [tuple(_first_ids(prompt, form) for form in forms) for prompt in prompts]
        label_of = {ids: label for label, ids in enumerate(dict.fromkeys(answers))}
        labels = np.array([label_of[ids] for ids in answers], dtype=np.int32)
        places: dict[_Template, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(_template(prompt), []).append(place)
        tables: dict[tuple[_Template, str], dict[int, tuple[int, ...]]] = {}
        for template, group in places.items():
            for at, form in enumerate(forms):
                table: dict[int, tuple[int, ...]] = {}
                for ids in dict.fromkeys(answers[place] for place in group):
                    for token in ids[at]:
                        table[token] = (*table.get(token, ()), label_of[ids])
                tables[template, form] = table
        by_token = tuple(
            _with_own(tables[_template(prompt), str(_form(prompt))], prompt, int(label))
            for prompt, label in zip(prompts, labels, strict=True)
        )
        return cls(prompts, labels, tuple(np.array(group, dtype=np.int32) for group in places.values()), by_token)

    @property
    def n_answers(self) -> int:
        return len(set(self.labels.tolist()))

    @property
    def n_assignments(self) -> int:
        return prod(factorial(len(group)) for group in self.groups)

    @property
    def smallest_p(self) -> float:
        """Of the reassignments, the share that deal every fact its own answer: no other count can be rarer."""
        same = [np.unique(self.labels[group], return_counts=True)[1].tolist() for group in self.groups]
        return prod(factorial(count) for counts in same for count in counts) / self.n_assignments

    def too_few(self, n_tested: int) -> str:
        """Why there is no test: whether it would do to ask all facts alike."""
        if self.n_answers < FEWEST_ANSWERS or len(self.groups) == 1:
            return TOO_FEW
        alike = replace(self, groups=(np.concatenate(self.groups),))
        return TOO_FEW_ALIKE if alike.smallest_p * max(1, n_tested) <= SIGNIFICANT else TOO_FEW

    def on_top(self, curves: Curves, lens: str) -> dict[int, _Pairs]:
        """By layer, every pair of a fact and an answer of its group that is on top for it."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for place, prompt in enumerate(self.prompts):
            curve = curves.get(prompt.key, lens)
            for row in curve.rows if curve else ():
                facts, labels = found.setdefault(row["layer"], ([], []))
                for label in self.by_token[place].get(row["top1_id"], ()):
                    facts.append(place)
                    labels.append(label)
        return {
            layer: (np.array(facts, dtype=np.int32), np.array(labels, dtype=np.int32))
            for layer, (facts, labels) in sorted(found.items())
        }

    def own(self, found: _Pairs) -> int:
        """How many facts have their own answer on top."""
        facts, labels = found
        return int((self.labels[facts] == labels).sum())

    def expected(self, found: _Pairs) -> float:
        """The mean of that number over all reassignments."""
        facts, labels = found
        shares = np.zeros((len(self.groups), len(self.labels) + 1))  # [group, label]
        group_of = np.zeros(len(self.labels), dtype=np.int32)
        for index, group in enumerate(self.groups):
            group_of[group] = index
            np.add.at(shares[index], self.labels[group], 1 / len(group))
        return float(shares[group_of[facts], labels].sum())

    def null_rate(self, found: _Pairs) -> float | None:
        """Share of pairs of a fact and a distinct answer of others, in its group, with that one on top."""
        distinct = [len(np.unique(self.labels[group])) for group in self.groups]
        n = sum(len(group) * (k - 1) for group, k in zip(self.groups, distinct, strict=True))
        return (len(found[0]) - self.own(found)) / n if n else None

    def matters(self, found: _Pairs) -> bool:
        """Whether any reassignment gives another count: two facts of a group differ in the answers on top for them."""
        on_top: dict[int, set[int]] = {}
        for place, label in zip(*(side.tolist() for side in found), strict=True):
            on_top.setdefault(place, set()).add(label)
        for group in self.groups:
            everything = frozenset(self.labels[group].tolist())
            # All answers on top at once, or none, add the same whatever is dealt.
            kinds = {frozenset(on_top.get(place, ())) for place in group.tolist()}
            if len({frozenset() if kind == everything else kind for kind in kinds}) > 1 and len(everything) > 1:
                return True
        return False

    def assignments(self, n: int | None) -> Iterator[_Labels]:
        """Labels dealt anew, as [fact, reassignment], some at a time: n at random, or all there are."""
        if n is None:
            every = product(*(permutations(group.tolist()) for group in self.groups))
            order = np.concatenate(self.groups)
            dealt = np.array([[place for group in one for place in group] for one in every], dtype=np.int32)
            labels = np.empty((len(self.labels), len(dealt)), dtype=np.int32)
            labels[order] = self.labels[dealt].T
            yield labels
            return
        random = np.random.default_rng(SEED)
        for start in range(0, n, _CHUNK):
            labels = np.empty((len(self.labels), min(_CHUNK, n - start)), dtype=np.int32)
            for group in self.groups:
                same = np.repeat(self.labels[group][:, None], labels.shape[1], axis=1)
                labels[group] = random.permuted(same, axis=0)
            yield labels


def _p_values(deal: _Deal, pairs: Mapping[int, _Pairs], n: int | None) -> dict[int, float]:
    """By layer, the share of reassignments that are at least as large as the count as it is."""
    if not pairs:
        return {}
    as_large, total = dict.fromkeys(pairs, 0), 0
    own = {layer: deal.own(found) for layer, found in pairs.items()}
    for labels in deal.assignments(n):
        total += labels.shape[1]
        for layer, (facts, on_top) in pairs.items():
            counts = np.count_nonzero(labels[facts] == on_top[:, None], axis=0)
            as_large[layer] += int((counts >= own[layer]).sum())
    extra = 0 if n is None else 1
    return {layer: (count + extra) / (total + extra) for layer, count in as_large.items()}


def _template(prompt: PromptRecord) -> _Template:
    """What facts that are asked alike have in common: the words around the subject, where that is known."""
    known = prompt.text is not None and prompt.subject
    return prompt.prompt_variant, (prompt.text or "").replace(prompt.subject or "", "{}") if known else None


def _form(prompt: PromptRecord) -> str | None:
    """The form that a fact's answer is judged in; None where no answer is resolved."""
    return next((answer.variant for answer in prompt.answers if answer.ok), None)


def _first_ids(prompt: PromptRecord, form: str) -> frozenset[int]:
    """First tokens of all accepted answers in a form; in their own where that one is not known or cannot be used."""
    return frozenset(_first_id(answer, form) for answer in prompt.answers if answer.ok)


def _with_own(table: Mapping[int, tuple[int, ...]], prompt: PromptRecord, label: int) -> Mapping[int, tuple[int, ...]]:
    """The table as it holds for one fact, whose own answers count in the forms in which each of them is judged."""
    own = {answer.answer_ids[0] for answer in prompt.answers if answer.ok}
    if own == _first_ids(prompt, str(_form(prompt))):
        return table
    others = {token: tuple(other for other in labels if other != label) for token, labels in table.items()}
    return others | {token: (*others.get(token, ()), label) for token in own}


def _first_id(answer: AlignmentRecord, form: str) -> int:
    usable = (known for known in answer.forms if known.variant == form and not known.white_space_skipped)
    ids = next((known.answer_ids for known in usable if known.answer_ids), None)
    return (ids or answer.answer_ids)[0]
