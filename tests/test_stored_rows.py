"""Rows put aside in files are those that were put in, and a run of them is read, judged and saved like any other."""

import gc
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from layerscope import run_folder
from layerscope.analysis.verdict_json import verdict_text
from layerscope.errors import RunError
from layerscope.record.stored_rows import RowsInParts
from layerscope.run import Run
from layerscope.view.page.payload import payload


@contextmanager
def _no_file_above(n_bytes: int) -> Iterator[None]:
    """As on a disk without room for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _read_as_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(run_folder, "LARGE_BYTES", 0)
    run = Run.read(folder)
    assert not run.in_memory
    return run


def test_a_run_whose_rows_are_in_files_is_the_same_run(five_lens_run: Path, tmp_path: Path):
    """Cut into parts that are put aside one by one: table, verdict and folder are those of the rows in memory."""
    whole = Run.read(five_lens_run)
    parts = RowsInParts(held_bytes=whole.rows.estimated_size() // 4)
    for part in whole.rows.iter_slices(100):
        parts.add(part)
    table = parts.table()
    assert isinstance(table, pl.LazyFrame)
    stored = Run(table, whole.record, keep=parts, patches=whole.patches)
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


def test_a_verdict_outlives_the_run_whose_rows_it_reads(five_lens_run: Path):
    whole = Run.read(five_lens_run)
    parts = RowsInParts(held_bytes=0)
    parts.add(whole.rows)
    verdict = Run(parts.table(), whole.record, keep=parts).verdict
    del parts
    gc.collect()
    for mine, theirs in zip(verdict.curves, whole.verdict.curves, strict=True):
        assert mine.column("top_tokens") == theirs.column("top_tokens")


def test_rows_that_cannot_be_put_aside_stay_in_memory(
    five_lens_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where there is no folder, and where the disk is full after the first part: no row is lost."""
    rows = Run.read(five_lens_run).rows
    told: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    nowhere = RowsInParts(held_bytes=0, warn=told.append)
    for part in rows.iter_slices(500):
        nowhere.add(part)
    table = nowhere.table()
    assert isinstance(table, pl.DataFrame) and table.equals(rows)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full = RowsInParts(held_bytes=0, warn=told.append)
    full.add(rows[:500])
    with _no_file_above(1000):
        full.add(rows[500:1000])
    full.add(rows[1000:])
    rest = full.table()
    assert isinstance(rest, pl.LazyFrame) and rest.collect().equals(rows)
    assert len(told) == 2 and all("rows stay in memory" in line for line in told)


def test_a_full_disk_is_named_when_rows_in_files_are_saved(
    five_lens_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = _read_as_large(five_lens_run, monkeypatch)
    with _no_file_above(100_000), pytest.raises(RunError, match="make room on that disk"):
        run.save(tmp_path / "run")
    assert (five_lens_run / "rows.parquet").stat().st_size > 100_000 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["removed", "cut short"])
def test_a_file_that_changes_while_a_run_is_open_is_said_to_have(
    change: str, five_lens_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("run.json", "rows.parquet", "patches.parquet"):
        (tmp_path / name).write_bytes((five_lens_run / name).read_bytes())
    opened = [_read_as_large(tmp_path, monkeypatch) for _ in range(2)]
    opened[1].verdict  # noqa: B018
    file = tmp_path / "rows.parquet"
    if change == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:1000])
    said = "changed or removed after the run was opened"
    for read in (lambda: opened[0].verdict, lambda: opened[0].rows, lambda: payload([opened[1]])):
        with pytest.raises(RunError, match=said):
            read()
    with pytest.raises(RunError, match=said):
        opened[1].save(tmp_path / "copy")


def test_runs_that_are_equal_by_value_have_no_hash(five_lens_run: Path):
    with pytest.raises(TypeError, match="unhashable"):
        hash(Run.read(five_lens_run))
