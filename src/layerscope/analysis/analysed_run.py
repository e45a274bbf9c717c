"""A run as a value: rows and record, and the verdict that follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from layerscope.analysis.diagnostics import AllMilestones, Diagnostics, Verdict, judge
from layerscope.analysis.guidance import Guidance
from layerscope.analysis.judged_view import judged_rows
from layerscope.record.parts import ProblemRecord
from layerscope.record.rows import check_rows
from layerscope.record.run_record import RunRecord


@dataclass(frozen=True, eq=False)
class AnalysedRun:
    """What a run found, and how."""

    rows: pl.DataFrame
    """The columns of `layerscope.record.COLUMNS`; made by `rows_frame`."""
    record: RunRecord
    """Everything that is not a row."""

    def __post_init__(self) -> None:
        """Refuse a table that is not a run's.

        Raises:
            RunError: naming the column.
        """
        check_rows(self.rows)

    def __eq__(self, other: object) -> bool:
        """Equal rows in the same order, absent values being equal to each other, and equal records."""
        if not isinstance(other, AnalysedRun):
            return NotImplemented
        return self.record == other.record and self.rows.equals(other.rows, null_equal=True)

    @property
    def scan(self) -> pl.LazyFrame:
        """The rows, to be read as far as they are asked for."""
        return self.rows.lazy()

    @cached_property
    def judged_rows(self) -> pl.DataFrame:
        """The rows with the columns of an answer as each prompt is judged: what milestones rest on."""
        return judged_rows(self.rows, self.record)

    @property
    def judged_scan(self) -> pl.LazyFrame:
        """The same, to be read as far as they are asked for."""
        return judged_rows(self.scan, self.record)

    @property
    def schema(self) -> Mapping[str, Any]:
        """The types of the columns."""
        return self.scan.collect_schema()

    @cached_property
    def verdict(self) -> Verdict:
        """Milestones, diagnostics and guidance, found in rows and record when first asked for."""
        return judge(self.scan, self.record)

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
