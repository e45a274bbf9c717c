"""Rows put aside in files are those that were put in, and a run of them is read, judged and saved like any other."""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from layerscope.analysis.verdict_json import verdict_text
from layerscope.errors import RunError
from layerscope.record.stored_rows import RowsInParts
from layerscope.run import Run


def test_a_run_whose_rows_are_in_files_is_the_same_run(five_lens_run: Path, tmp_path: Path):
    """Cut into parts that are put aside one by one: table, verdict and folder are those of the rows in memory."""
    whole = Run.read(five_lens_run)
    parts = RowsInParts(held_bytes=whole.rows.estimated_size() // 4)
    for part in whole.rows.iter_slices(100):
        parts.add(part)
    table = parts.table()
    assert isinstance(table, pl.LazyFrame)
    stored = Run(table, whole.record, keep=parts)
    assert not stored.in_memory and stored.n_rows == whole.rows.height
    assert verdict_text(stored.verdict, stored.record) == verdict_text(whole.verdict, whole.record)
    curves = zip(whole.verdict.curves, stored.verdict.curves, strict=True)
    assert all(a.column("top_tokens") == b.column("top_tokens") for a, b in curves)
    stored.save(tmp_path / "run")
    again = Run.read(tmp_path / "run")
    assert again == whole
    assert_frame_equal(stored.rows, whole.rows)


def test_rows_that_are_few_stay_in_memory_and_files_go_with_the_object(five_lens_run: Path):
    rows = Run.read(five_lens_run).rows
    few = RowsInParts()
    few.add(rows)
    table = few.table()
    assert isinstance(table, pl.DataFrame) and table.equals(rows)
    many = RowsInParts(held_bytes=0)
    many.add(rows)
    many.table()
    folder = many._folder
    assert folder is not None and folder.exists()
    del many
    assert not folder.exists()


def test_a_run_in_files_is_checked_like_one_in_memory(five_lens_run: Path, tmp_path: Path):
    run = Run.read(five_lens_run)
    broken = run.rows.with_columns(p_top1=pl.when(pl.col("layer") == 3).then(float("nan")).otherwise("p_top1"))
    broken.write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RunError, match="`p_top1` holds NaN"):
        Run(pl.scan_parquet(tmp_path / "rows.parquet"), run.record)
