"""One run as evidence: what was found, as claims that name the places in its published files which hold it."""

import math
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.curve import Curve
from layerscope.analysis.diagnostics import Verdict
from layerscope.analysis.milestones import Milestone
from layerscope.errors import RunError
from layerscope.published import layout
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord
from layerscope.report.cited.claims import Citation, Claim, Unit, Value
from layerscope.report.cited.sources import CsvFile, CsvRow, Entry, JsonFile, Sources
from layerscope.run_folder import read_run

SAME, EXACT = 1e-6, 1e-9
"""Relative differences up to which two numbers are one that was found twice, or one that was written twice."""
_PLACES = (
    ("first_kl_below_.*|first_rank_le_.*|L_copy(?:_H)?|L_semantic(?:_margin_ok|_confirmed)?", "{name}"),
    ("L_copy_soft_k(.*)", "L_copy_soft/{0}"),
    ("L_copy_strict@(.*)", "copy_thresholds/L_copy_strict/{0}"),
    ("gap_ge_.*", "answer_margin_thresholds/{name}"),
    ("L_semantic_(?:strong_)?run2|L_semantic_strong", "semantic_gate/{name}"),
    ("L_semantic_confirmed", "confirmed_semantics/{name}"),
    ("L_semantic_top2_ok", "semantic_gate/{name}_{lens}"),
    ("L_semantic_margin_ok", "semantic_margin/{name}_{lens}"),
    ("L_surface_to_meaning|L_geom|L_topk_decay", "{name}_{lens}"),
    ("cos_ge_(.*)", "cos_milestones/{lens}/ge_{0}"),
    ("cos_centered_ge_(.*)", "cos_milestones_centered/{lens}/ge_{0}"),
)
"""Where `diagnostics` may have a milestone, by preference; places without `{lens}` are the headline lens' own."""


class Evidence:
    """The run of one model, with the files that a report on it cites."""

    def __init__(self, run: AnalysedRun, sources: Sources, stem: str) -> None:
        """Take a run and its files; `Evidence.of` finds both."""
        self.run, self.sources, self.stem = run, sources, stem
        self._whole: dict[tuple[PromptKey, str], tuple[Citation, ...]] = {}
        self._by_place: dict[str, dict[tuple[str, str, int | None, int], CsvRow]] = {}

    @classmethod
    def of(cls, path: str | Path, model: str | None = None) -> "Evidence":
        """The evidence in a folder of published files, or in a run's own folder that has `published` inside.

        Args:
            path: the folder; or the `output-<M>.json` of one model in it.
            model: which model, where the folder holds several.

        Raises:
            RunError: it cannot be read as a run, or has no published files to cite.
        """
        folder = Path(path)
        run = read_run(folder, model=model)
        sources = Sources(folder if folder.is_dir() else folder.parent)
        stem = layout.stem_of(run.record.model.id)
        if not sources.has(layout.json_name(stem)):
            raise RunError(
                f"{folder}: a report cites {layout.json_name(stem)} and its tables by line, and they are not there; "
                "write them with `layerscope export --published`."
            )
        return cls(run, sources, stem)

    @property
    def record(self) -> RunRecord:
        """Everything of the run that is not a row."""
        return self.run.record

    @property
    def verdict(self) -> Verdict:
        """What the rows amount to; it is found in them, not copied from the files."""
        return self.run.verdict

    @property
    def headline(self) -> str:
        """The lens that is meant where none is named."""
        return self.verdict.milestones.headline

    @property
    def primary(self) -> PromptKey | None:
        """The prompt that is meant where none is named."""
        return self.verdict.curves.primary

    def curve(self, lens: str | None = None, prompt: PromptKey | None = None) -> Curve | None:
        """The rows of one prompt under one lens; of the primary prompt and the headline lens where not given."""
        return self.verdict.curves.get(prompt or self.primary, lens or self.headline)

    @cached_property
    def json(self) -> JsonFile:
        """The model's JSON."""
        return self.sources.json(layout.json_name(self.stem))

    def entry(self, *path: str | int) -> Entry | None:
        """A member of the JSON; one that points to another place of the file is followed there."""
        entry: Entry | None = self.json.at(*path)
        rest: tuple[str | int, ...] = ()
        for cut in range(len(path), 0, -1):
            target = self.json.at(*path[:cut])
            if target is not None and isinstance(target.value, str) and target.value.startswith("#/"):
                entry, rest = self.json.by_pointer.get(target.value[1:]), path[cut:]
                break
        return entry if not rest or entry is None else self.json.at(*entry.path, *rest)

    def cite(self, entry: Entry) -> Citation:
        """The place of a member of the JSON."""
        return Citation(self.json.name, entry.line, entry.last_line, pointer=entry.pointer)

    def claim(self, name: str, value: Value, unit: Unit, citations: Sequence[Citation] = (), **about: object) -> Claim:
        """A claim on this model; `about` are its further fields."""
        return Claim(
            subject=self.stem,
            name=name,
            value=value,
            unit=unit,
            citations=tuple(citations),
            **about,  # type: ignore[arg-type]  # fields of Claim, checked by the tests
        )

    def stated(
        self, *path: str | int, unit: Unit, name: str | None = None, lens: str | None = None, layer: int | None = None
    ) -> Claim | None:
        """What the JSON states at a path, as it stands there; None where it has no such member."""
        entry = self.entry(*path)
        if entry is None or entry.is_container:
            return None
        value = entry.value
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        reason = "the file has no value there" if value is None else None
        return self.claim(name or entry.key, value, unit, [self.cite(entry)], lens=lens, layer=layer, reason=reason)

    def first_stated(self, *paths: Sequence[str | int], unit: Unit, name: str | None = None) -> Claim | None:
        """What stands at the first of several paths that is there: keys were renamed over the years."""
        claims = (self.stated(*path, unit=unit, name=name) for path in paths)
        return next((claim for claim in claims if claim is not None), None)

    def table(self, lens: str | None = None) -> CsvFile | None:
        """The next-token table of a lens; None where the folder lacks it."""
        name = layout.csv_name(self.stem, layout.NEXT_TOKEN, None if lens in (None, self.headline) else lens)
        return self.sources.csv(name) if self.sources.has(name) else None

    def row(
        self, layer: int, lens: str | None = None, prompt: PromptKey | None = None
    ) -> tuple[CsvFile, CsvRow] | None:
        """The row of a next-token table that holds one layer of one prompt; None where there is none."""
        lens, prompt, table = lens or self.headline, prompt or self.primary, self.table(lens)
        if table is None or prompt is None:
            return None
        row = self._rows_of(lens).get((prompt.prompt_id, prompt.prompt_variant, prompt.fact_index, layer))
        return None if row is None else (table, row)

    def cell(
        self, column: str, layer: int | None, unit: Unit, *, lens: str | None = None, prompt: PromptKey | None = None
    ) -> Claim | None:
        """A value of our rows with the cell that holds it; None where there is no such row, or no value in it.

        Args:
            column: by our name; see `layerscope.record.COLUMNS`.
            layer: which layer.
            unit: what the value is in.
            lens: the headline lens where not given.
            prompt: the primary prompt where not given.
        """
        lens, prompt = lens or self.headline, prompt or self.primary
        curve = self.curve(lens, prompt)
        value = None if curve is None or layer is None else curve.value(column, layer)
        where = None if value is None or layer is None else self.row(layer, lens, prompt)
        if where is None or layer is None or prompt is None:
            return None
        how = None
        if not _shows(*where, column, value):
            # Tables that list more tokens than this one leave less mass over: theirs is the value of our rows.
            records = self._record_of(layer, lens, prompt)
            if records is not None and _shows(*records, column, value):
                where = records
            else:
                how = "found in the tables together"
        table, row = where
        place = table.cite(row, _published_column(column, table))
        about = {"derived": how, "lens": lens, "prompt": prompt.short_label, "layer": layer}
        return self.claim(column, value, unit, [place], **about)

    def _record_of(self, layer: int, lens: str, prompt: PromptKey) -> tuple[CsvFile, CsvRow] | None:
        """The row of the table of records, which holds every position, for the last one of a prompt."""
        name = layout.csv_name(self.stem, layout.RECORDS, None if lens == self.headline else lens)
        curve = self.curve(lens, prompt)
        if curve is None or not self.sources.has(name):
            return None
        table = self.sources.csv(name)
        rows = table.select(**prompt._asdict(), layer=layer, pos=curve.value("position", layer))
        return (table, rows[0]) if rows else None

    def derived(
        self, name: str, value: Value, unit: Unit, basis: Sequence[Claim | Citation], how: str, **about: object
    ) -> Claim:
        """A value that follows from others; it cites the places of them all."""
        citations = [c for behind in basis for c in (behind.citations if isinstance(behind, Claim) else (behind,))]
        return self.claim(name, value, unit, list(dict.fromkeys(citations)), derived=how, **about)

    def milestone(self, name: str, *, lens: str | None = None, prompt: PromptKey | None = None) -> Claim | None:
        """The layer of a milestone as found in the rows; None where the prompt was not read through that lens.

        It cites the JSON where that states the same layer, else the row of the layer; and where there is no layer all
        rows of the prompt, which show that there is none.
        """
        lens, prompt = lens or self.headline, prompt or self.primary
        milestone = self.verdict.milestones.of(lens, prompt).get(name)
        if milestone is None or prompt is None:
            return None
        stated = self._stated_milestone(name, lens) if prompt == self.primary else None
        same = stated is not None and stated.value == milestone.layer
        citations = (self.cite(stated),) if same and stated is not None else self._rows_behind(milestone)
        if not citations:
            return None
        layer, how = milestone.layer, None if same else "found in the rows"
        about = {"lens": lens, "prompt": prompt.short_label, "layer": layer, "derived": how, "reason": milestone.reason}
        return self.claim(name, layer, Unit.LAYER, citations, **about)

    def otherwise(self, name: str, lens: str | None = None) -> Claim | None:
        """What the JSON states of a milestone where the rows say another layer; None where both agree."""
        lens = lens or self.headline
        milestone, entry = self.verdict.milestones.of(lens).get(name), self._stated_milestone(name, lens)
        if milestone is None or entry is None or entry.value == milestone.layer:
            return None
        return self.claim(name, entry.value, Unit.LAYER, [self.cite(entry)], lens=lens)

    def _rows_behind(self, milestone: Milestone) -> tuple[Citation, ...]:
        if milestone.layer is not None:
            row = self.row(milestone.layer, milestone.lens, milestone.prompt)
            return () if row is None else (row[0].cite(row[1]),)
        return self.whole_pass(milestone.lens, milestone.prompt)

    def whole_pass(self, lens: str | None = None, prompt: PromptKey | None = None) -> tuple[Citation, ...]:
        """The lines of a table that hold all layers of one prompt; none where it has none."""
        lens, prompt = lens or self.headline, prompt or self.primary
        if prompt is None:
            return ()
        if (prompt, lens) not in self._whole:
            self._whole[prompt, lens] = self._span(lens, prompt)
        return self._whole[prompt, lens]

    def raw_rows(self) -> tuple[Citation, ...]:
        """All rows that compare the headline lens with the raw one on the primary prompt.

        Those of the table that holds both side by side, else of the raw lens' own; none without either.
        """
        file, prompt = layout.csv_name(self.stem, layout.RAWLENS), self.primary
        if prompt is None or not self.sources.has(file):
            return self.whole_pass("raw")
        table = self.sources.csv(file)
        rows = table.select(**prompt._asdict())
        return (table.span(rows),) if rows else self.whole_pass("raw")

    def _span(self, lens: str, prompt: PromptKey) -> tuple[Citation, ...]:
        table = self.table(lens)
        if table is None:
            return ()
        curve = self.curve(lens, prompt)
        layers = [] if curve is None else [row["layer"] for row in curve.rows]
        rows = [where[1] for layer in layers if (where := self.row(layer, lens, prompt)) is not None]
        return (table.span(rows),) if rows else ()

    def _stated_milestone(self, name: str, lens: str) -> Entry | None:
        """Where the JSON has a milestone of the primary prompt."""
        label = "norm" if lens == "next_norm" else lens
        paths = _places(name, label, headline=lens == self.headline)
        if lens == "tuned" and lens != self.headline:
            passes = self.entry("tuned_lens", "summaries")
            first = None if passes is None else next(iter(self.json.children(passes)), None)
            if first is not None and (primary := self.primary) is not None and first.key.startswith(primary.prompt_id):
                paths = [(*first.path, *path[1:]) for path in _places(name, "tuned", headline=True)]
        return next((entry for path in paths if (entry := self.entry(*path)) is not None), None)

    def _rows_of(self, lens: str) -> dict[tuple[str, str, int | None, int], CsvRow]:
        if lens not in self._by_place:
            table = self.table(lens)
            rows: dict[tuple[str, str, int | None, int], CsvRow] = {}
            for row in () if table is None else table.rows:
                layer, fact = row.number_in("layer"), row.number_in("fact_index")
                prompt, variant = row.cells.get("prompt_id") or "pos", row.cells.get("prompt_variant") or "orig"
                if fact is None and prompt == "pos":
                    fact = 0
                if isinstance(layer, int) and not isinstance(fact, float):
                    rows.setdefault((prompt, variant, fact, layer), row)
            self._by_place[lens] = rows
        return self._by_place[lens]


def agree(stated: Value, value: Value, within: float = SAME) -> bool:
    """Whether a file's figure is ours; floats differ in their last digits, and truth is no number."""
    if isinstance(stated, bool) or isinstance(value, bool) or stated is None or value is None:
        return stated is value
    if isinstance(stated, int | float) and isinstance(value, int | float):
        return math.isclose(stated, value, rel_tol=within, abs_tol=within / 1000)
    return stated == value


def _places(name: str, label: str, *, headline: bool) -> list[tuple[str, ...]]:
    """Paths at which the JSON may have a milestone, in the order of preference."""
    matches = [(re.fullmatch(pattern, name), place) for pattern, place in _PLACES]
    places = [
        place.format(*match.groups(), name=name, lens=label)
        for match, place in matches
        if match is not None and (headline or "{lens}" in place)
    ]
    return [("diagnostics", *place.split("/")) for place in places]


def _shows(table: CsvFile, row: CsvRow, name: str, value: Value) -> bool:
    """Whether a row holds a number; of what is no number, or in no column of its own, it is taken for granted."""
    column = _published_column(name, table)
    if column is None or isinstance(value, bool) or not isinstance(value, int | float):
        return True
    number = row.number_in(column)
    return number is not None and agree(number, value, EXACT)


def _published_column(column: str, table: CsvFile) -> str | None:
    """What a table calls one of our columns; None where it has it not."""
    return next((name for name in _names().get(column, ()) if name in table.header), None)


@cache
def _names() -> dict[str, list[str]]:
    """What next-token tables may call our columns, by our names."""
    names: dict[str, list[str]] = {}
    for dialect in (layout.GENERATION_M, layout.EXTENDED):
        for known in layout.columns_of(layout.NEXT_TOKEN, dialect):
            if known.ours is not None and known.part in (None, 0):
                names.setdefault(known.ours, []).append(known.name)
    return names
