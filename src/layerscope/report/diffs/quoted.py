"""Claims from a comparison's JSON, and the parts that reports on models and on runs have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

from layerscope.analysis.model_diff import FactDiff, SuiteDiff
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import Block, Row, Section, Sentence, Table, Token, paragraph, row, sentence
from layerscope.report.cited.sources import Entry, JsonFile, pointer

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Quoted:
    """One comparison's file, and what it is about."""

    subject: str
    document: JsonFile

    def claim(self, unit: Unit, *path: str | int, reason: str | None = None) -> Claim:
        """What the file states at a path; absent, with a reason, where that is null."""
        entry = self.document.at(*path)
        if entry is None:
            raise KeyError(f"{self.document.name} has nothing at {path}")
        name = next(key for key in reversed(path) if isinstance(key, str))
        value = entry.value
        if unit is not Unit.TEXT and isinstance(value, int) and not isinstance(value, bool) and unit in _REALS:
            value = float(value)
        absent = None if value is not None else reason or "the file has none"
        return Claim(
            subject=self.subject, name=name, value=value, unit=unit, citations=(self._place(entry),), reason=absent
        )

    def count(self, n: int, *path: str | int, how: str = "count of its items") -> Claim:
        """A count of what a list holds, with the list's lines."""
        entry = self.document.by_pointer[pointer(*path)]
        name = str(path[-1])
        return Claim(
            subject=self.subject, name=name, value=n, unit=Unit.COUNT, citations=(self._place(entry),), derived=how
        )

    def token(self, *path: str | int) -> Token:
        """A text that may hold anything, with its place."""
        claim = self.claim(Unit.TOKEN, *path)
        return Token(str(claim.value), (claim,))

    def _place(self, entry: Entry) -> Citation:
        return Citation(self.document.name, entry.line, entry.last_line, pointer=entry.pointer)


_REALS = {Unit.BITS, Unit.PROBABILITY, Unit.SHARE, Unit.COSINE, Unit.LOGIT}


def facts_section(quoted: Quoted, suite: SuiteDiff | None, why_not: str) -> Section:
    """Which answers both have, and which flip.

    Args:
        quoted: the comparison.
        suite: its prompts; None where none were asked.
        why_not: the sentence for that case.
    """
    if suite is None:
        return Section("Facts", (paragraph(sentence(why_not)),))
    if not suite.judged:
        told = sentence("No prompt of {} has an answer that is judged.", quoted.claim(Unit.TEXT, "suite", "name"))
        return Section("Facts", (paragraph(told),))
    blocks: list[Block] = [paragraph(_answered(quoted, suite), _flips(quoted, suite), _onsets(quoted, suite))]
    flipped = [i for i, fact in enumerate(suite.prompts) if fact.flips]
    if flipped:
        rows = [_fact_row(quoted, suite.prompts[i], i) for i in flipped]
        blocks.append(Table(("prompt", "answer", "", "rank in base", "rank in variant"), tuple(rows)))
    return Section("Facts", tuple(blocks))


def _answered(quoted: Quoted, suite: SuiteDiff) -> Sentence:
    return sentence(
        "Of {} prompts of {} whose answer is judged the base has it on top of its output in {}, the variant in {}.",
        quoted.count(len(suite.judged), "suite", "judged"),
        quoted.claim(Unit.TEXT, "suite", "name"),
        quoted.claim(Unit.COUNT, "suite", "n_answered_by_base"),
        quoted.claim(Unit.COUNT, "suite", "n_answered_by_variant"),
    )


def _flips(quoted: Quoted, suite: SuiteDiff) -> Sentence:
    counts = [quoted.claim(Unit.COUNT, "suite", name) for name in ("n_lost", "n_won")]
    if not (suite.n_lost or suite.n_won):
        return sentence("None is answered by one of the two alone: {} are lost and {} won.", *counts)
    return sentence(
        "The base alone answers {}, the variant alone {}; over facts, each in the first wording that has an answer, "
        "the exact two-sided p-value of that (McNemar) is {}.",
        *counts,
        quoted.claim(Unit.NUMBER, "suite", "mcnemar_p"),
    )


def _onsets(quoted: Quoted, suite: SuiteDiff) -> Sentence | None:
    shifts = suite.onset_shifts
    if not shifts:
        return None
    later, earlier = (
        quoted.count(
            sum(sign * shift > 0 for shift in shifts), "suite", "onset_shifts", how=f"count of its items {word} zero"
        )
        for sign, word in ((1, "above"), (-1, "below"))
    )
    return sentence(
        "Of the {} answers that come to stay on top of both logit lenses, {} do so at a later layer in the variant and "
        "{} at an earlier one.",
        quoted.count(len(shifts), "suite", "onset_shifts"),
        later,
        earlier,
    )


def _fact_row(quoted: Quoted, fact: FactDiff, i: int) -> Row:
    at: Path = ("suite", "prompts", i)
    which = "lost" if fact.base_rank == 1 else "won"
    ranks = [quoted.claim(Unit.RANK, *at, name) for name in ("base_rank", "variant_rank")]
    return row(quoted.token(*at, "asked"), quoted.token(*at, "answer"), which, *ranks)


def notes_section(quoted: Quoted, notes: Sequence[str]) -> tuple[Section, ...]:
    """What the comparison says of itself; none where it says nothing."""
    if not notes:
        return ()
    told = tuple(sentence("{}", quoted.claim(Unit.TEXT, "notes", i)) for i in range(len(notes)))
    return (Section("Notes of the comparison", (paragraph(*told),)),)
