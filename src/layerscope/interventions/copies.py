"""What is written into which run: every pair at its places and layers, and the controls beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from layerscope.interventions import Positions
from layerscope.interventions.pairs import Pair, PairedFact, Place
from layerscope.model.patching import Patch
from layerscope.record.patches import NEXT, PAIR, RANDOM, SAME_ANSWER, UNRELATED

SELF_LAYERS = 5
SELF = "self"
"""A run's own residual written into it; not a row of the table, for nothing may come of it."""


@dataclass(frozen=True)
class Copy:
    """A patch, and what it is of."""

    kind: str
    pair: int
    place: Place
    patch: Patch
    source: int | None
    """Place among the prompts of what was written; None where it is no prompt's residual."""


@dataclass(frozen=True)
class Prompts:
    """All that is run: the paired facts, and behind them other wordings of some."""

    facts: tuple[PairedFact, ...]
    paraphrased: tuple[int, ...]
    """Which of the facts have another wording here."""

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Prompts":
        """The facts of some pairs, each once."""
        facts = tuple({fact.fact_index: fact for pair in pairs for fact in (pair.base, pair.source)}.values())
        return cls(facts, tuple(i for i, fact in enumerate(facts) if fact.paraphrase is not None))

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        """Of every prompt."""
        others = (self.facts[i].paraphrase for i in self.paraphrased)
        return [*(fact.token_ids for fact in self.facts), *(ids for ids in others if ids is not None)]

    def row(self, fact: PairedFact) -> int:
        """Where a fact stands."""
        return next(i for i, other in enumerate(self.facts) if other.fact_index == fact.fact_index)

    def paraphrase(self, fact: PairedFact) -> int | None:
        """Where its other wording stands."""
        row = self.row(fact)
        return len(self.facts) + self.paraphrased.index(row) if row in self.paraphrased else None

    def fact_index(self, row: int) -> int:
        """Of a prompt."""
        n = len(self.facts)
        return self.facts[row if row < n else self.paraphrased[row - n]].fact_index


class Copies:
    """Every copy that is asked for, at every layer that has blocks behind it."""

    def __init__(
        self, pairs: Sequence[Pair], prompts: Prompts, n_layers: int, d_model: int, positions: Positions, seed: int
    ) -> None:
        self.pairs, self.prompts = pairs, prompts
        self.n_layers, self.d_model, self.seed = n_layers, d_model, seed
        self.positions = positions

    def all(self) -> list[Copy]:
        """The pairs', the controls', and those of a run into itself, in this order."""
        return [*self._of_pairs(), *self._same_answer(), *self._unrelated(), *self._random(), *self._selves()]

    def first_pairs(self) -> dict[int, Pair]:
        """For each fact the first pair whose base it is, by its place: a control is held against that one."""
        first: dict[int, tuple[int, Pair]] = {}
        for i, pair in enumerate(self.pairs):
            first.setdefault(pair.base.fact_index, (i, pair))
        return dict(first.values())

    def places(self, i: int) -> tuple[Place, ...]:
        """Where a pair is patched: at the subject, whose copies are long, with a fact's nearest neighbours alone."""
        pair = self.pairs[i]
        if self.positions == "all":
            return pair.every_place
        return pair.subject_and_next if pair.nearest else pair.subject_and_next[-1:]

    def _layers(
        self, kind: str, i: int, place: Place, source: int, steps: Sequence[torch.Tensor] | None = None
    ) -> Iterator[Copy]:
        base = self.prompts.row(self.pairs[i].base)
        for layer in range(self.n_layers):
            step = None if steps is None else steps[layer]
            patch = Patch(layer, base, place.position, source, place.source_position, step)
            yield Copy(kind, i, place, patch, None if steps is not None else source)

    def _of_pairs(self) -> Iterator[Copy]:
        for i, pair in enumerate(self.pairs):
            for place in self.places(i):
                yield from self._layers(PAIR, i, place, self.prompts.row(pair.source))

    def _same_answer(self) -> Iterator[Copy]:
        """The base's own fact in another wording: it has the base's answer, so the source's should not come of it."""
        for i, pair in self.first_pairs().items():
            row = self.prompts.paraphrase(pair.base)
            if row is not None and pair.base.paraphrase is not None:
                place = Place(NEXT, len(pair.base.token_ids) - 1, len(pair.base.paraphrase) - 1)
                yield from self._layers(SAME_ANSWER, i, place, row)

    def _unrelated(self) -> Iterator[Copy]:
        """A third fact, whose answer is neither's: the base's answer may go, but the source's should not come.

        The source of another pair of that base, so that its run is there already, or else any fact.
        """
        sources: dict[int, list[PairedFact]] = {}
        for pair in self.pairs:
            sources.setdefault(pair.base.fact_index, []).append(pair.source)
        for i, pair in self.first_pairs().items():
            known = {pair.base.answer_id, pair.source.answer_id}
            others = (*sources[pair.base.fact_index], *self.prompts.facts)
            third = next((fact for fact in others if fact.answer_id not in known), None)
            if third is not None:
                place = Place(NEXT, len(pair.base.token_ids) - 1, len(third.token_ids) - 1)
                yield from self._layers(UNRELATED, i, place, self.prompts.row(third))

    def _random(self) -> Iterator[Copy]:
        """A random step at the last position, as long as the one to the source there."""
        generator = torch.Generator().manual_seed(self.seed)
        for i, pair in self.first_pairs().items():
            drawn = torch.randn(self.n_layers, self.d_model, generator=generator)
            steps = list(drawn / drawn.norm(dim=1, keepdim=True))
            yield from self._layers(RANDOM, i, pair.subject_and_next[-1], self.prompts.row(pair.source), steps)

    def _selves(self) -> Iterator[Copy]:
        """The first pair's base written into itself, wherever that pair is patched, at a few layers."""
        base = self.prompts.row(self.pairs[0].base)
        layers = {round(i * (self.n_layers - 1) / (SELF_LAYERS - 1)) for i in range(SELF_LAYERS)}
        for place in self.places(0):
            copies = self._layers(SELF, 0, Place(place.name, place.position, place.position), base)
            yield from (copy for copy in copies if copy.patch.layer in layers)
