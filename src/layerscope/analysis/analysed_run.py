"""A run as a value: rows and record, and the verdict that follows from them."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import polars as pl

from layerscope.analysis.diagnostics import AllMilestones, Diagnostics, Verdict, judge
from layerscope.analysis.guidance import Guidance
from layerscope.analysis.judged_view import judged_rows
from layerscope.analysis.write_effects import found_again
from layerscope.errors import RunError
from layerscope.record.parts import ProblemRecord
from layerscope.record.patches import check_patches, no_patches
from layerscope.record.routing import check_routing
from layerscope.record.rows import check_rows
from layerscope.record.run_record import RunRecord
from layerscope.record.stored_rows import collected
from layerscope.record.write_patches import check_write_patches
from layerscope.record.write_patching import WritePatchingRecord
from layerscope.record.writers import check_writers


class AnalysedRun:
    """What a run found, and how."""

    def __init__(
        self,
        rows: pl.DataFrame | pl.LazyFrame,
        record: RunRecord,
        keep: object = None,
        patches: pl.DataFrame | None = None,
        writers: pl.DataFrame | None = None,
        write_patches: pl.DataFrame | None = None,
        experts: pl.DataFrame | None = None,
    ) -> None:
        """Take a table of a run and its record.

        Args:
            rows: the columns of `layerscope.record.COLUMNS`; made by `rows_frame`, or read as far as it is asked for.
            record: everything that is not a row.
            keep: whatever has to live as long as the rows are read.
            patches: what came of every patch, the columns of `layerscope.record.patches.PATCH_COLUMNS`; without them
                nothing is said of patching.
            writers: the columns of `layerscope.record.writers`, where attention and MLPs were asked about.
            write_patches: the columns of `layerscope.record.write_patches`, where writes were put into other runs.
            experts: the columns of `layerscope.record.routing`, where tokens were sent to experts.

        Raises:
            RunError: a table is not a run's; naming the column.
        """
        check_rows(rows)
        self.patches = no_patches() if patches is None else patches
        """A row for every residual that was written into a run; empty where nothing was patched."""
        check_patches(self.patches)
        if writers is not None:
            check_writers(writers)
        self.writers = writers
        """What attention, MLPs and heads add to the answers' leads, prompt by prompt; None where that was not asked."""
        if write_patches is not None:
            check_write_patches(write_patches)
        self.write_patches = write_patches
        """What became of every write that was put into another run; None where none was."""
        if experts is not None:
            check_routing(experts)
        self.experts = experts
        """Which experts every decoded token was sent to, layer by layer; None where no block was seen to choose."""
        self.record = record
        """Everything that is not a row."""
        self._table, self._keep = rows, keep

    @cached_property
    def rows(self) -> pl.DataFrame:
        """The columns of `layerscope.record.COLUMNS`; all of them are read into memory here, if they are not yet."""
        return collected(self._table) if isinstance(self._table, pl.LazyFrame) else self._table

    @property
    def in_memory(self) -> bool:
        """Whether the rows are; if not, they are read from files as far as they are asked for."""
        return isinstance(self._table, pl.DataFrame)

    @property
    def has_pairs(self) -> bool:
        """Whether any facts were patched into one another."""
        return n_pairs(self.record) > 0

    @property
    def write_effects(self) -> WritePatchingRecord | None:
        """What single writes do in other runs, by the run's own tables as far as they are at hand; None without any."""
        sublayers = self.record.measured.sublayers
        found = None if sublayers is None else sublayers.write_patching
        if found is None or self.write_patches is None or self.write_patches.is_empty():
            return found
        return found_again(found, self.write_patches, self.writers)

    @cached_property
    def n_rows(self) -> int:
        """How many rows there are."""
        return int(collected(self.scan.select(pl.len())).item())

    def __repr__(self) -> str:
        rows = self._table if isinstance(self._table, pl.DataFrame) else "not in memory"
        return f"{type(self).__name__}(rows={rows!r}, record={self.record!r})"

    def __eq__(self, other: object) -> bool:
        """Equal rows in the same order, absent values being equal to each other, and equal records."""
        if not isinstance(other, AnalysedRun):
            return NotImplemented
        tables = (
            (self.rows, other.rows),
            (self.patches, other.patches),
            (_or_empty(self.writers), _or_empty(other.writers)),
            (_or_empty(self.write_patches), _or_empty(other.write_patches)),
            (_or_empty(self.experts), _or_empty(other.experts)),
        )
        return self.record == other.record and all(ours.equals(theirs, null_equal=True) for ours, theirs in tables)

    __hash__ = None  # type: ignore[assignment]

    @property
    def scan(self) -> pl.LazyFrame:
        """The rows, to be read as far as they are asked for, and while this run lives: its files may go with it."""
        return self._table.lazy()

    @cached_property
    def judged_rows(self) -> pl.DataFrame:
        """The rows with the columns of an answer as each prompt is judged: what milestones rest on."""
        return judged_rows(self.rows, self.record)

    @property
    def judged_scan(self) -> pl.LazyFrame:
        """The same, to be read as `scan` is."""
        return judged_rows(self.scan, self.record)

    @property
    def schema(self) -> Mapping[str, Any]:
        """The types of the columns."""
        return self.scan.collect_schema()

    @cached_property
    def verdict(self) -> Verdict:
        """Milestones, diagnostics and guidance, found in rows and record when first asked for."""
        return judge(self.scan, self.record, self._keep, self.patches)

    @property
    def milestones(self) -> AllMilestones:
        """The layers at which something first holds, of every prompt under every lens."""
        return self.verdict.milestones

    @property
    def diagnostics(self) -> Diagnostics:
        """How strong, how stable and how well confirmed these are."""
        return self.verdict.diagnostics

    @property
    def guidance(self) -> Guidance:
        """How far the run's numbers may be trusted, with reasons."""
        return self.verdict.guidance

    @property
    def problems(self) -> tuple[ProblemRecord, ...]:
        """What was missing or damaged in the files it was read from."""
        return self.record.problems


def n_pairs(record: RunRecord) -> int:
    """How many pairs were patched."""
    return 0 if record.measured.patching is None else len(record.measured.patching.pairs)


def n_write_patches(record: RunRecord) -> int:
    """How many runs with one write replaced the record speaks of."""
    found = record.measured.sublayers
    return 0 if found is None or found.write_patching is None else found.write_patching.n_patches


def check_pairs(patches: pl.DataFrame, record: RunRecord) -> None:
    """Whether the patches are of the record's pairs; a run may have been made without its patches.

    Raises:
        RunError: they are not.
    """
    paired, found = n_pairs(record), patches["pair"].n_unique()
    if found not in (0, paired):
        raise RunError(
            f"the record has {paired} patched pairs, but the table of patches is of {found}; take run.json and "
            "patches.parquet from one run"
        )


def _or_empty(table: pl.DataFrame | None) -> pl.DataFrame:
    return pl.DataFrame() if table is None else table
