"""Tests of folders as evidence, and of files that are no evidence."""

import json
import shutil
from pathlib import Path

import pytest

from layerscope.errors import RunError
from layerscope.report.cited.archive import Archive


@pytest.fixture
def two(made_sweep: Path, tmp_path: Path) -> Path:
    """A folder of two models' published files and one model that failed."""
    for stem in ("echo", "mute"):
        for path in made_sweep.glob(f"output-{stem}*"):
            shutil.copyfile(path, tmp_path / path.name)
    failed = {"status": "failed", "reason": "no memory", "error_type": "MemoryError", "stage": "forward"}
    (tmp_path / "output-Llama-X.json").write_text(json.dumps(failed))
    return tmp_path


def test_a_model_that_failed_is_left_out_with_its_reason(two: Path) -> None:
    found, reasons = Archive(two).readable()
    assert {evidence.stem for evidence in found} == {"echo", "mute"}
    (reason,) = reasons
    assert "no memory" in reason


def test_one_models_json_is_that_model_alone(two: Path) -> None:
    assert Archive(two / "output-echo.json").stems == ("echo",)
    with pytest.raises(RunError, match="no model"):
        Archive(two / "output-echo.json").evidence("mute")


@pytest.mark.parametrize("name", ["nowhere", "output-Typo.json", "output-echo.json/deeper"])
def test_a_path_that_is_not_there_is_refused(two: Path, name: str) -> None:
    with pytest.raises(RunError, match="no such"):
        Archive(two / name)


def test_a_folder_in_which_nothing_can_be_read_is_refused_with_every_reason(two: Path) -> None:
    for path in two.glob("output-*.json"):
        path.write_text('{"status": "skipped", "reason": "asked to"}')
    with pytest.raises(RunError, match="asked to"):
        Archive(two).readable()
