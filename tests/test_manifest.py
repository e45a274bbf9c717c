"""An exported folder is held against its manifest when it is read."""

import json
from pathlib import Path

import pytest

from layerscope import Run, probe
from layerscope.errors import RunError
from layerscope.published.layout import EXTENDED


@pytest.fixture(scope="module")
def run() -> Run:
    return probe(suite="berlin", positions="last", device="cpu")


@pytest.fixture
def saved(run: Run, tmp_path: Path) -> Path:
    run.save(tmp_path / "run", published=EXTENDED)
    return tmp_path / "run"


def test_a_whole_export_has_no_problem_and_equals_the_run(run: Run, saved: Path):
    assert Run.read(saved / "published") == run == Run.read(saved)
    assert Run.read(saved / "published").problems == ()


def test_a_file_that_is_gone_is_named_even_if_nothing_was_read_from_it(run: Run, saved: Path):
    (saved / "published" / "output-reference-milestones.csv").unlink()
    found = Run.read(saved / "published")
    (problem,) = found.problems
    assert problem.file == "output-reference-milestones.csv" and "manifest.json names it" in problem.message
    assert found.rows.equals(run.rows)


def test_a_file_that_was_changed_is_named(run: Run, saved: Path):
    table = saved / "published" / "output-reference-artifact-audit.csv"
    table.write_bytes(table.read_bytes().replace(b"_summary", b"_Summary"))
    (problem,) = Run.read(saved / "published").problems
    assert problem.file == table.name and "changed, cut, or comes from another run" in problem.message


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"files": [{"name": "a"}]}', '{"files": 1}'])
def test_a_manifest_that_is_none_is_a_problem_and_no_obstacle(run: Run, saved: Path, text: str):
    (saved / "published" / "manifest.json").write_text(text)
    found = Run.read(saved / "published")
    assert [problem.file for problem in found.problems] == ["manifest.json"] and found.rows.equals(run.rows)


def test_a_manifest_leads_out_of_its_folder_to_nothing(saved: Path):
    """A name with a path in it is looked for in the folder alone."""
    name = "output-reference-records-x.csv"
    (saved / name).write_bytes((saved / "published" / "output-reference.json").read_bytes())
    _name(saved, f"../{name}", "../run.json", "..", "", "a\0")
    (problem,) = Run.read(saved / "published").problems
    assert problem.file == name and "missing" in problem.message


def test_files_of_a_model_whose_name_is_longer_are_not_this_models(saved: Path):
    _name(saved, "output-reference-Base.json", "output-reference-Base-records.csv", "output-reference-records.txt")
    assert Run.read(saved / "published").problems == ()


def test_half_a_character_in_a_name_is_told_of_in_text_that_can_be_written(saved: Path):
    _name(saved, "output-reference-records-\ud800.csv")
    (problem,) = Run.read(saved / "published").problems
    assert problem.file == "output-reference-records-?.csv" and "missing" in problem.message


def _name(saved: Path, *names: str) -> None:
    """Have the manifest name other files too."""
    path = saved / "published" / "manifest.json"
    said = json.loads(path.read_text())
    said["files"] += [{**said["files"][0], "name": name} for name in names]
    path.write_text(json.dumps(said))


def test_a_run_s_own_folder_holds_one_model(saved: Path):
    with pytest.raises(RunError, match="leave the model out"):
        Run.read(saved, model="reference")
