"""Facts of one template as each other's counterfactuals: which are paired, and how their positions match."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layerscope.record.patches import NEXT, OTHER, SUBJECT

ENOUGH_PAIRS = 38
"""Pairs are drawn until there are so many, or no more: twice the facts of a suite of about twenty."""

MORE_THAN_ENOUGH = "there are more facts than are needed"


@dataclass(frozen=True)
class PairedFact:
    """A fact that may be paired, as the model reads it."""

    fact_index: int
    token_ids: tuple[int, ...]
    template: str
    """The prompt with a gap where its subject stands."""
    subject_end: int
    """Position of the subject's last token."""
    answer_id: int
    """The first token of its answer, which is on top at the output."""
    paraphrase: tuple[int, ...] | None = None
    """The same fact in another wording, which the model answers alike; None where there is none."""


@dataclass(frozen=True)
class Place:
    """Where a residual is written, and where it comes from."""

    name: str
    """One of `layerscope.record.patches.PLACES`."""
    position: int
    """Of the base's tokens."""
    source_position: int


@dataclass(frozen=True)
class Pair:
    """A base and the source whose residuals are written into it."""

    base: PairedFact
    source: PairedFact
    nearest: bool = True
    """Whether the source is the next among the facts of their template, in order of their length."""

    @property
    def alignment(self) -> Literal["position", "from_the_right"]:
        """How their positions match."""
        same = len(self.base.token_ids) == len(self.source.token_ids)
        return "position" if same and self.base.subject_end == self.source.subject_end else "from_the_right"

    @property
    def subject_and_next(self) -> tuple[Place, ...]:
        """The subject's last token, where both stand at one place, and the prompt's last token."""
        ends = (len(self.base.token_ids) - 1, len(self.source.token_ids) - 1)
        last = Place(NEXT, *ends)
        if self.alignment == "position" and self.base.subject_end < ends[0]:
            return (Place(SUBJECT, self.base.subject_end, self.source.subject_end), last)
        return (last,)

    @property
    def every_place(self) -> tuple[Place, ...]:
        """Every position from the first at which both differ, the last one in any case.

        Where prompts are aligned from the right, those behind both subjects.
        """
        base, source = self.base.token_ids, self.source.token_ids
        shift = len(source) - len(base)
        if self.alignment == "position":
            first = next(i for i, (ours, theirs) in enumerate(zip(base, source, strict=True)) if ours != theirs)
        else:
            first = min(max(self.base.subject_end, self.source.subject_end - shift) + 1, len(base) - 1)
        named = {place.position: place.name for place in self.subject_and_next}
        return tuple(Place(named.get(i, OTHER), i, i + shift) for i in range(first, len(base)))


def pairs_of(facts: Sequence[PairedFact], *, enough: int = ENOUGH_PAIRS) -> tuple[list[Pair], Counter[str]]:
    """Pair facts of one template, each with its neighbours in a ring, both ways.

    Facts stand in the order of their number of tokens, so that most neighbours have equally many. Wider rings are
    added until there are enough pairs. Two facts whose answers begin with the same token are no pair.

    Returns:
        The pairs, and how many facts or pairs were left out, by reason.
    """
    left_out: Counter[str] = Counter()
    pairs: list[Pair] = []
    templates = Counter(fact.template for fact in facts)
    rings = []
    room = enough
    for template, n in templates.items():
        if n == 1 or room < 2:
            left_out["no other fact of its template is answered" if n == 1 else MORE_THAN_ENOUGH] += n
            continue
        ring = [fact for fact in facts if fact.template == template]
        if n > room:  # every so many, for every fact is patched with two others at least
            left_out[MORE_THAN_ENOUGH] += n - room
            ring = [ring[i * n // room] for i in range(room)]
        room -= len(ring)
        rings.append(sorted(ring, key=lambda fact: (len(fact.token_ids), fact.subject_end, fact.fact_index)))
    for step in range(1, max(map(len, rings), default=1)):
        if len(pairs) >= enough:
            break
        for ring in rings:
            # A ring of n facts has steps up to n / 2; the other half are the same pairs the other way round.
            if step > len(ring) // 2:
                continue
            for i, (base, source) in enumerate(_around(ring, step)):
                if base.answer_id == source.answer_id:
                    left_out["both answers begin with the same token"] += 1
                else:
                    pairs.append(Pair(base, source, nearest=step == 1 and i < len(ring)))
    return pairs, left_out


def _around(ring: Sequence[PairedFact], step: int) -> list[tuple[PairedFact, PairedFact]]:
    """Every fact with the one so many places on, and the other way round; each ordered pair once."""
    n = len(ring)
    ways = [(i, (i + step) % n) for i in range(n)]
    both = dict.fromkeys([*ways, *((j, i) for i, j in ways)])
    return [(ring[i], ring[j]) for i, j in both]
