"""Claims for a report's sentences: found in rows where they can be, the file's where it alone has them, else absent."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from layerscope.analysis.confirmation import NO_OTHER_LENS
from layerscope.analysis.curve import Curve
from layerscope.analysis.curve_shapes import Point, points
from layerscope.analysis.diagnostics import Diagnostics, protocol_in_force
from layerscope.analysis.guidance import Guidance
from layerscope.analysis.milestones import NEVER_SEEN, NOT_MEASURED, Milestone
from layerscope.analysis.quotability import Status
from layerscope.published.layout import RAWLENS, RECORDS, csv_name
from layerscope.record.milestone_names import stable_twin
from layerscope.record.parts import PromptRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds
from layerscope.record.run_record import RunRecord
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Citation, Claim, Unit, Value
from layerscope.report.cited.document import Basis, Name, Sentence, sentence
from layerscope.report.cited.evidence import Evidence, agree
from layerscope.report.cited.sources import CsvFile, Entry

D = "diagnostics"
"""The object of the JSON that has most figures."""
Path: TypeAlias = tuple[str | int, ...]
"""Where the JSON may have something."""
UNKNOWN = frozenset({NOT_MEASURED, NEVER_SEEN, NO_OTHER_LENS})
"""Reasons for a missing layer that are no finding: some rows or values that would tell are not there."""
UNITS: dict[str, Unit] = {
    "layer": Unit.LAYER,
    "position": Unit.COUNT,
    "top1": Unit.TOKEN,
    "answer_rank": Unit.RANK,
    "answer_logit_gap": Unit.LOGIT,
    "resid_norm_ratio": Unit.NUMBER,
    **dict.fromkeys(("entropy_bits", "kl_to_final_bits", "kl_norm_vs_raw_bits"), Unit.BITS),
    **dict.fromkeys(("cos_to_final", "cos_to_final_centered", "cos_to_answer"), Unit.COSINE),
    **dict.fromkeys(("cos_to_prompt_max", "delta_resid_cos"), Unit.COSINE),
    **dict.fromkeys(("p_top1", "p_answer", "rest_mass", "answer_mass", "echo_mass_prompt"), Unit.PROBABILITY),
    "topk_prompt_mass@50": Unit.PROBABILITY,
}
"""What the columns are in that sentences and tables quote."""
PLACES = frozenset({"layer", "position"})
"""Columns that say where a row is, and nothing that was measured there."""
UNREAD, UNCITED = "the run has no rows of the prompt under this lens", "no file holds its rows"


class Place:
    """Figures that the JSON keeps under one key by their own names, and the record that holds our values of them."""

    def __init__(self, quotes: "Quotes", path: Path, record: object, **about: Any) -> None:
        self._quotes, self._path, self._record, self._about = quotes, path, record, about

    def figure(self, name: str, unit: Unit, *inner: str | int, value: Any = ..., **about: Any) -> Claim:
        """A figure as `Quotes.figure` finds it.

        Args:
            name: of the claim; of the record's attribute, where no value is given; and of the key.
            unit: what it is in.
            inner: path of the key, where it has another name.
            value: ours, where the record does not hold it under that name.
            about: basis, how and reason, where they are not those of the place.
        """
        if value is ...:
            value = None if self._record is None else getattr(self._record, name)
        return self._quotes.figure(name, value, unit, (*self._path, *(inner or (name,))), **(self._about | about))

    def stated(self, name: str, unit: Unit, *inner: str | int) -> Claim:
        """What the JSON states there."""
        return self._quotes.stated(name, unit, (*self._path, *(inner or (name,))))


class Quotes:
    """What a report on one run may quote, each with the places that show it."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.diagnostics: Diagnostics = evidence.verdict.diagnostics
        self.guidance: Guidance = evidence.verdict.guidance
        self.record: RunRecord = evidence.record
        self.headline = evidence.headline
        self.thresholds: Thresholds = protocol_in_force(evidence.record).thresholds
        self.n_layers, self.d_vocab = self.record.model.n_layers, self.record.model.d_vocab
        self.label = "norm" if self.headline == "next_norm" else self.headline
        """What keys of the JSON call the headline lens."""
        self.stand, self.ranked = self.record.probabilities_stand, self.record.ranks_stand
        self.quotable = self.stand and not self.guidance.suppress_abs_probs
        """Whether probabilities and entropies of lens rows may be drawn on in sentences."""
        self.protocol = self.record.protocol.name
        self.by_status = self.quotable and self.protocol != "published"
        """Whether the status of a layer says what its probabilities are; else they are marked all or none."""
        self.otherwise_stated: dict[Path, tuple[Claim, Claim]] = {}
        """Figures that were asked for, ours and the file's, where these differ."""

    @cached_property
    def curve(self) -> Curve | None:
        """The primary prompt under the headline lens."""
        return self.evidence.curve()

    @cached_property
    def prompt(self) -> PromptRecord | None:
        """The primary prompt."""
        return self.record.prompt(self.evidence.primary)

    @property
    def answer(self) -> str | None:
        """The answer in words."""
        return self.prompt.answers[0].string if self.prompt and self.prompt.answers else None

    # Claims

    def absent(self, name: str, unit: Unit, reason: str, *, lens: str | None = None) -> Claim:
        """A figure that there is not."""
        return self.evidence.claim(name, None, unit, lens=lens, reason=reason)

    def stated(self, name: str, unit: Unit, *paths: Path, reason: str = "the files do not state it") -> Claim:
        """What the JSON states at the first of several paths; absent where it states nothing."""
        claim = self.evidence.first_stated(*paths, unit=unit, name=name)
        return self.absent(name, unit, reason) if claim is None else claim

    def cell(
        self, column: str, layer: int | None, *, lens: str | None = None, prompt: PromptKey | None = None
    ) -> Claim:
        """A value of a row; absent where there is none, or where its layer is withheld."""
        if column not in PLACES and self.status(layer, lens) == "withheld":
            return self.absent(column, UNITS[column], "the layer is withheld", lens=lens)
        claim = self.evidence.cell(column, layer, UNITS[column], lens=lens, prompt=prompt)
        return claim or self.absent(column, UNITS[column], "the rows have no value there", lens=lens)

    def cells(self, column: str, layers: Iterable[int | None], *, lens: str | None = None) -> list[Claim]:
        """The same of several layers."""
        return [self.cell(column, layer, lens=lens) for layer in layers]

    def figure(
        self,
        name: str,
        value: Value,
        unit: Unit,
        *paths: Path,
        basis: Sequence[Claim | Citation] = (),
        how: str = "computed from rows",
        reason: str | None = None,
        lens: str | None = None,
    ) -> Claim:
        """A figure of ours; it cites the JSON where that states the same, else what it follows from.

        Where nothing could be found in the rows the file's own statement stands for it. Where the file states something
        else, both are kept for the end of the report.

        Args:
            name: by which the files know it.
            value: as found; None where it could not be.
            unit: what it is in.
            paths: where the JSON may have it.
            basis: what it follows from; all rows of the primary prompt where not given.
            how: how it follows.
            reason: why there is no value.
            lens: the headline lens where not given.
        """
        entry = self._entry(paths)
        if entry is not None and (value is None or agree(entry.value, value)):
            if value is not None or entry.value is not None:
                return self.stated(name, unit, entry.path)
            return self.evidence.claim(name, None, unit, [self.evidence.cite(entry)], lens=lens, reason=reason)
        if value is None:
            return self.absent(name, unit, reason or "it could not be found", lens=lens)
        ours = self.evidence.derived(
            name, value, unit, basis or self.rows(), how, lens=lens or self.headline, reason=reason
        )
        if entry is not None:
            self.otherwise_stated[entry.path] = ours, self.stated(name, unit, entry.path)
        return ours

    def under(self, *path: str | int, of: object = None, **about: Any) -> Place:
        """Figures that the JSON keeps under one key; `about` is their basis, how and reason."""
        return Place(self, path, of, **about)

    def otherwise(self, name: str, value: Value, unit: Unit, *paths: Path) -> Claim | None:
        """What the JSON states where it differs from what was found; None where it agrees or says nothing."""
        entry = self._entry(paths)
        if entry is None or value is None or agree(entry.value, value):
            return None
        return self.stated(name, unit, entry.path)

    def _entry(self, paths: Sequence[Path]) -> Entry | None:
        entries = (self.evidence.entry(*path) for path in paths)
        return next((entry for entry in entries if entry is not None and not entry.is_container), None)

    def status(self, layer: int | None, lens: str | None = None) -> Status | None:
        """What the probabilities of a layer are; None where no status is told."""
        if not self.by_status:
            return None
        return self.diagnostics.quotability.status(lens or self.headline, layer)

    def milestone(self, name: str, *, lens: str | None = None, prompt: PromptKey | None = None) -> Claim:
        """The layer of a milestone; absent where the prompt was not read through that lens."""
        claim = self.evidence.milestone(name, lens=lens, prompt=prompt)
        if claim is None:
            milestone = self.evidence.verdict.milestones.of(lens, prompt).get(name)
            why = UNREAD if milestone is None else milestone.reason or UNCITED
            return self.absent(name, Unit.LAYER, why, lens=lens)
        return claim

    def stable(self, name: str) -> Claim:
        """From which layer on a milestone holds for good."""
        return self.milestone(stable_twin(name))

    def summary(self, name: str, lens: str | None = None) -> Milestone | None:
        """A milestone of the primary prompt with what was read at its layer."""
        return self.evidence.verdict.milestones.of(lens).get(name)

    def layer_of(self, name: str) -> int | None:
        """Its layer."""
        milestone = self.summary(name)
        return None if milestone is None else milestone.layer

    # Curves

    def points(self, column: str, lens: str | None = None) -> list[Point]:
        """A column of the primary prompt, layer by layer."""
        curve = self.evidence.curve(lens)
        return [] if curve is None else points((row["layer"], row[column]) for row in curve.rows)

    def rows(self, lens: str | None = None, prompt: PromptKey | None = None) -> tuple[Citation, ...]:
        """The lines of all rows of a prompt."""
        return self.evidence.whole_pass(lens, prompt)

    def shape(self, name: str, value: Value, how: str, *, lens: str | None = None, unit: Unit = Unit.TRUTH) -> Claim:
        """Something about a whole curve."""
        return self.evidence.derived(name, value, unit, self.rows(lens), how, lens=lens or self.headline)

    def raw_cell(self, column: str, layer: int | None) -> Claim:
        """A value of the table that holds headline and raw lens side by side."""
        curve, table, unit = self.curve, self.side_table(csv_name(self.evidence.stem, RAWLENS)), UNITS[column]
        value = None if curve is None or layer is None else curve.value(column, layer)
        prompt = self.evidence.primary
        if value is None or table is None or prompt is None:
            return self.absent(column, unit, "no table holds raw and headline lens side by side")
        rows = table.select(prompt_id=prompt.prompt_id, prompt_variant=prompt.prompt_variant, layer=layer)
        if not rows:
            return self.absent(column, unit, "that table has no such row")
        return self.evidence.claim(column, value, unit, [table.cite(rows[0], column)], layer=layer, lens=self.headline)

    def side_table(self, name: str) -> CsvFile | None:
        """A further table of the run; None where the folder lacks it."""
        sources = self.evidence.sources
        return sources.csv(name) if sources.has(name) else None

    def records(self) -> CsvFile | None:
        """The table of records under the headline lens: every position."""
        return self.side_table(csv_name(self.evidence.stem, RECORDS))

    # Words

    def mark(self, header: str) -> str:
        """A column's header, marked where its figures are not to be quoted."""
        return header if self.quotable else header + doc.MARK

    def caption(self, template: str, *values: doc.Filling, marked: bool = True, **named: doc.Filling) -> Sentence:
        """A caption; it explains the mark where columns have it."""
        explained = f" Columns with{doc.MARK} are not to be quoted." if marked and not self.quotable else ""
        return sentence(template + explained, *values, **named)


def not_measured(claim: Claim) -> bool:
    """Whether a milestone has no layer because nothing was there that could tell; a layer not seen counts as none."""
    return claim.value is None and (claim.reason in UNKNOWN - {NEVER_SEEN} or claim.reason in (UNREAD, UNCITED))


def at_layer(claim: Claim) -> tuple[doc.Part, ...]:
    """`at layer 31`; `at no layer` where there is none, and else that this is not known."""
    if claim.value is not None:
        return (doc.Text("at layer "), claim)
    words = "at no layer"
    if not_measured(claim):
        words = "at no known layer (not measured)"
    elif claim.reason == NEVER_SEEN:
        words = "at no layer that has a value (some have none)"
    return (doc.Text(words), Basis((claim,)))


def layer_cell(claim: Claim) -> tuple[doc.Part, ...]:
    """A milestone in a table: its layer, `n.a.` where there is none, and else that this was not measured."""
    if not_measured(claim):
        return (doc.Text("not measured"), Basis((claim,)))
    return (doc.Text("not known"), Basis((claim,))) if claim.value is None and claim.reason == NEVER_SEEN else (claim,)


def token(text: str, *behind: Claim) -> doc.Token:
    """A piece of text that is shown as it is, with the claims that show it."""
    return doc.Token(text, behind)


def names(listed: Sequence[str]) -> list[doc.Part]:
    """Names in a row, with commas."""
    parts: list[doc.Part] = []
    for place, name in enumerate(listed):
        parts += ([doc.Text(", ")] if place else []) + [Name(name)]
    return parts


def table(header: Sequence[str], rows: Sequence[doc.Row], caption: Sentence | None = None) -> doc.Table:
    """A table."""
    return doc.Table(tuple(header), tuple(rows), caption)
