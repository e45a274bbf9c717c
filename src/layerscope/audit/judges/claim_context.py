"""What a stretch of a report is about: which model's rows, under which lens, and which of them it cites."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from layerscope.analysis.curve import Curve, Row
from layerscope.analysis.curve_shapes import Points, points
from layerscope.audit.lookup.cited_lines import Cited, CitedCsv, Reader, holds_in, row_citation
from layerscope.audit.parse.read_report import Reference, Statement
from layerscope.audit.parse.vocabulary import ELSEWHERE, HEDGE, OTHER_PROMPT, Stretch, clause, plain
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.numbers import Number

_LENS_WORDS = {
    "prism": r"\bprism\b",
    "tuned": r"\btuned\b",
    "raw": r"\braw[- ](?:lens|residual)",
    "": r"\bbaseline\b|\bnorm[- ]lens\b|\bnorm\b(?! ratio)",
}
"""How texts name lenses; the empty name stands for the headline lens."""
_WORKS = re.compile(r"\(\s*(?:cf|see)\b[^()]*\)|\btuned[- ]lens\s*\(?(?:arXiv:?)?\d{4}\.\d+\)?", re.IGNORECASE)
"""Works that are referred to, whose titles name lenses."""
_FULL_STOP = re.compile(r"[.](?=\s+[A-Z])")


@dataclass(frozen=True)
class Assertion:
    """What a report asserts of a model in one place."""

    statement: Statement
    text: str
    """Plain; the part of the statement that is about this model."""
    evidence: Evidence
    alone: bool
    """Whether the statement is about this model alone."""
    same_line: str = ""
    """The plain text of all statements of the same line, which may say how numbers are meant."""
    report: str = ""
    """The plain text of the whole report."""
    cited: Cited | None = None
    """What the statement cites; None where that was not looked up."""
    nearby: tuple[Cited, ...] = ()
    """What the other statements of the line cite."""
    reader: Reader | None = None
    """Looks up files; None where the assertion cites none."""

    @cached_property
    def available(self) -> tuple[str, ...]:
        """Lenses under which the model's first prompt was read."""
        curves = self.evidence.verdict.curves
        return tuple(lens for prompt, lens in curves.by_key if prompt == self.evidence.primary)

    def clause(self, start: int, end: int) -> Stretch:
        """The clause around a place of the text."""
        return clause(self.text, start, end)

    def unhedged(self, *forms: re.Pattern[str]) -> Iterator[tuple[re.Match[str], Stretch]]:
        """Matches about the first prompt of this model alone whose clause does not hedge, each with that clause."""
        for form in forms if self.alone else ():
            for match in form.finditer(self.text):
                around = self.clause(*match.span())
                if not self.is_elsewhere(*match.span()) and not HEDGE.search(around.text):
                    yield match, around

    def is_elsewhere(self, start: int, end: int) -> bool:
        """Whether a place is, or may be, about something else than the rows of the model's first prompt."""
        return self._is_of_others or ELSEWHERE.search(self.clause(start, end).text) is not None

    @cached_property
    def _is_of_others(self) -> bool:
        return OTHER_PROMPT.search(" ".join((self.text, *self.statement.headings[-1:]))) is not None

    @cached_property
    def _named_around(self) -> tuple[str, ...]:
        return self._named(self.text) or self._named(" ".join(self.statement.headings[-1:]))

    def lenses(self, start: int, end: int) -> tuple[str, ...]:
        """The lenses that may be meant at a place: one where the clause names one, several where that is not clear.

        None where a lens is named that was not read.
        """
        named = self._named(self.clause(start, end).text)
        if not named:
            named = tuple(dict.fromkeys((*self._named_around, self.evidence.headline)))
        return named if all(lens in self.available for lens in named) else ()

    def _named(self, text: str) -> tuple[str, ...]:
        text = _WORKS.sub(" ", text)
        lenses = [lens for lens, form in _LENS_WORDS.items() if re.search(form, text, re.IGNORECASE)]
        return tuple(lens or self.evidence.headline for lens in lenses)

    def curve(self, lens: str | None = None) -> Curve | None:
        """The rows of the first prompt under a lens."""
        return self.evidence.curve(lens)

    def points(self, column: str, lens: str | None = None) -> Points:
        """A column of those rows; none where the lens was not read or the column not measured."""
        return points((row["layer"], row[column]) for row in self.rows(lens))

    def cited_layers(self, lens: str | None = None) -> list[int]:
        """Layers of the first prompt that the cited lines of a lens' table hold."""
        table = self.evidence.table(lens)
        if table is None or self.evidence.primary is None:
            return []
        spans = [span for reference in self.references if reference.file == table.name for span in reference.lines]
        places = [(row["layer"], self.place(row["layer"], lens)) for row in self.rows(lens)] if spans else []
        return [
            layer
            for layer, place in places
            if place is not None and any(first <= place.last_line and last >= place.line for first, last in spans)
        ]

    @property
    def references(self) -> tuple[Reference, ...]:
        """What the statement cites."""
        return self.statement.references

    def rows(self, lens: str | None = None) -> Sequence[Row]:
        """The rows of the first prompt under a lens; none where the lens was not read."""
        curve = self.curve(lens)
        return () if curve is None else curve.rows

    def row(self, layer: int, lens: str | None = None) -> Row | None:
        """The row of a layer."""
        curve = self.curve(lens)
        return None if curve is None else curve.at(layer)

    def place(self, layer: int | None, lens: str | None = None) -> Citation | None:
        """Where the row of a layer stands."""
        located = None if layer is None else self.evidence.row(layer, lens)
        return None if located is None else row_citation(*located)

    def table_name(self, lens: str | None = None) -> str:
        """The file of a lens' rows."""
        table = self.evidence.table(lens)
        return f"the rows of {self.evidence.stem}" if table is None else table.name

    def is_cited_on_line(self, place: Citation) -> bool:
        """Whether another statement of the line cites a place: which citation goes with which words is not sure."""
        return any(holds_in(place, cited) for cited in self.nearby)

    @property
    def cited_tables(self) -> tuple[CitedCsv, ...]:
        """The tables that the statement cites."""
        return () if self.cited is None else self.cited.csvs

    def cites_layer(self, layer: int, lens: str | None = None) -> bool:
        """Whether a cited row is of a layer, and of a lens where one is given."""
        tables = [t for t in self.cited_tables if lens is None or t.file.name == self.table_name(lens)]
        return any(layer in table.layers for table in tables)

    def cites_number(self, printed: Number) -> bool:
        """Whether a cited line of a document holds a number."""
        return self.cited is not None and any(file.leaves.printed(printed) for file in self.cited.jsons)

    def finding(
        self, claim: str, judgement: Judgement, reason: str, correct: str | None = None, at: Citation | None = None
    ) -> Finding:
        """The judgement on a claim made here."""
        return Finding(self.statement.line, claim.strip(), self.statement.citation, judgement, reason, correct, at)

    def supported(self, claim: str, reason: str, at: Citation | None = None) -> Finding:
        """The finding that the files say so."""
        return self.finding(claim, Judgement.SUPPORTED, reason, None, at)

    def supported_if_shown(self, claim: str, reason: str, shown: bool, at: Citation | None) -> Finding:
        """The finding that it holds, by whether the cited lines show it, or those of another statement of the line."""
        if shown or not self.references:
            return self.supported(claim, f"{reason}.", at)
        if self.cited is None or not self.cited.is_complete or at is None or self.is_cited_on_line(at):
            return self.undecided(claim, f"{reason}; whether the cited lines show it cannot be told.")
        return self.elsewhere(claim, f"{reason} ({at}), but {self.statement.citation} does not show it.", at)

    def contradicted(self, claim: str, reason: str, correct: str | None = None, at: Citation | None = None) -> Finding:
        """The finding that the files say otherwise."""
        return self.finding(claim, Judgement.CONTRADICTED, reason, correct, at)

    def elsewhere(self, claim: str, reason: str, at: Citation | None) -> Finding:
        """The finding that it holds, but not in the cited lines."""
        return self.finding(claim, Judgement.ELSEWHERE, reason, str(at), at)

    def undecided(self, claim: str, reason: str) -> Finding:
        """The finding that the files do not tell."""
        return self.finding(claim, Judgement.UNDECIDED, reason)


def is_about(statements: Sequence[Statement], archive: Archive) -> bool:
    """Whether a report is about these runs: it cites one of their files, or no file of any run."""
    cited = {
        r.file
        for statement in statements
        for r in statement.references
        if r.file is not None and r.file.startswith("output-")
    }
    return not cited or any("*" in file or archive.sources.has(file) for file in cited)


def subjects(
    statement: Statement, archive: Archive, same_line: str = "", report: str = "", *, several: bool = False
) -> Iterator[Assertion]:
    """The models that a statement is about, each with the part of the text that is about it.

    Of several, each has the text from where it is named to where the next one is, or the sentence ends. In a report on
    several models a sentence that neither names nor cites the one that it is taken for may be about them all.

    Args:
        statement: what is judged.
        archive: the runs.
        same_line: the text of its line.
        report: the text of the report.
        several: whether the report is on several models.
    """
    stems = [stem for stem in statement.stems if stem in archive.stems]
    text = plain(statement.text)
    if len(stems) == 1 and len(statement.stems) == 1:
        named = {stem for stem, _, _ in mentions(text, archive.stems)}
        cites = any(
            (r.file or "").startswith((f"output-{stems[0]}-", f"output-{stems[0]}.")) for r in statement.references
        )
        alone = named == set(stems) or (not named and (cites or not several))
        yield Assertion(statement, text, archive.evidence(stems[0]), alone, same_line, report)
        return
    places = mentions(text, tuple(stems))
    for place, (stem, start, _) in enumerate(places):
        following = places[place + 1][1] if place + 1 < len(places) else len(text)
        stop = _FULL_STOP.search(text, start)
        end = min(following, stop.start() if stop else len(text))
        yield Assertion(statement, text[start:end], archive.evidence(stem), False, same_line, report)


def mentions(text: str, stems: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """Where a plain text names models, in the order of the text; of names within names the longest counts."""
    anyone, forms = _forms(stems)
    if anyone.search(text) is None:
        return []
    names = [(stem, m.start(), m.end()) for stem, form in forms for m in form.finditer(text)]
    kept: list[tuple[str, int, int]] = []
    for name in sorted(names, key=lambda m: (m[1], -m[2])):
        if not kept or name[1] >= kept[-1][2]:
            kept.append(name)
    return kept


@lru_cache(maxsize=64)
def _forms(stems: tuple[str, ...]) -> tuple[re.Pattern[str], list[tuple[str, re.Pattern[str]]]]:
    """What finds any name of any model, and what finds each."""
    names = [(stem, re.escape(name)) for stem in stems for name in sorted(_names(stem))]
    forms = [(stem, re.compile(rf"(?<![\w-]){name}(?![\w-]|\.\d)", re.IGNORECASE)) for stem, name in names]
    return re.compile("|".join(name for _, name in names) or r"(?!)", re.IGNORECASE), forms


def _names(stem: str) -> set[str]:
    """A stem, the same up to its size, and that without its first word where two words remain."""
    names = {stem}
    sized = re.match(r"(.*?\d+(?:\.\d+)?b)(?![a-z])", stem, re.IGNORECASE)
    if sized:
        names.add(sized.group(1))
        rest = sized.group(1).partition("-")[2]
        if rest.count("-") >= 1 and rest[0].isalpha():
            names.add(rest)
    return names | {name.replace("-", " ") for name in names}
