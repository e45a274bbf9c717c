"""Tests of verification: what a run's files state is recomputed from its rows, and whatever was changed is named."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

import layerscope
from layerscope.record.rows import NEWER
from layerscope.record.run_record import SCHEMA_VERSION
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.markdown import markdown
from layerscope.report.cited.report_files import write_report
from layerscope.report.evaluation import evaluation
from layerscope.report.verify import Verified, verify
from published_archives import archive_of


@pytest.fixture(scope="module")
def reported(five_lens_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder, with its report beside it."""
    folder = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(five_lens_run, folder)
    evidence = next(iter(Archive(folder)))
    write_report(folder / f"evaluation-{evidence.stem}.md", markdown(evaluation(evidence)), layerscope.__name__)
    return folder


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    """A copy of it, to change things in."""
    return shutil.copytree(reported, tmp_path / "run")


def verified(folder: Path) -> Verified:
    return verify(next(iter(Archive(folder))), folder)


def test_a_run_of_our_own_holds_in_every_file(run: Path) -> None:
    found = verified(run)
    assert found.differences == ()
    assert found.holds
    files = {path.name for path in (run / "published").iterdir()} - {"manifest.json"}
    assert set(found.checked) == files | {"verdict.json", "evaluation-reference.md"}
    assert all(count > 10 for count in found.checked.values())


def test_files_that_the_version_before_wrote_hold(run: Path) -> None:
    """Schema 2.1 had two keys of the record by other names, and pointers to them."""
    (run / "published" / "manifest.json").unlink()
    path = run / "published" / "output-reference.json"
    text = path.read_text()
    for now, then in {
        f'"schema_version": "{SCHEMA_VERSION}"': '"schema_version": "2.1"',
        "#/record/measured/fitted_lenses/": "#/record/measured/sidecars/",
        '"position_readout": {': '"close_up": {',
        '"fitted_lenses": [': '"sidecars": [',
    }.items():
        assert now in text
        text = text.replace(now, then)
    path.write_text(text)
    for table in (run / "published").glob("*.csv"):
        _without(table, NEWER)
    assert verified(run).differences == ()


def _without(table: Path, columns: Sequence[str]) -> None:
    """Take columns out of a table, as files of a version before have them."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    kept = [i for i, name in enumerate(rows[0]) if name not in columns]
    if len(kept) < len(rows[0]):
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([row[i] for i in kept] for row in rows)


def test_a_column_of_now_that_is_gone_is_told(run: Path) -> None:
    (path,) = (run / "published").glob("output-reference-records.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    at = rows[0].index("answer_rank_all")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(row[:at] + row[at + 1 :] for row in rows)
    (run / "published" / "manifest.json").unlink()
    assert verified(run).differences


def test_a_changed_value_of_the_json_is_named_with_its_line(run: Path) -> None:
    path = run / "published" / "output-reference.json"
    text = path.read_text()
    stated = json.loads(text)["diagnostics"]["first_rank_le_1"]
    line = next(i for i, one in enumerate(text.split("\n"), 1) if one.startswith('    "first_rank_le_1"'))
    path.write_text(text.replace(f'    "first_rank_le_1": {stated}', f'    "first_rank_le_1": {stated + 3}', 1))
    (difference,) = [d for d in verified(run).differences if d.what == "/diagnostics/first_rank_le_1"]
    assert (difference.stated, difference.derived) == (str(stated + 3), str(stated))
    assert difference.where is not None
    assert difference.where.line == line


def test_a_changed_cell_of_a_table_is_named_with_its_line(run: Path) -> None:
    path = run / "published" / "output-reference-pure-next-token-tuned.csv"
    lines = path.read_text().split("\n")
    lines[6] = lines[6].replace("True", "False", 1)
    path.write_text("\n".join(lines))
    places = [str(difference.where) for difference in verified(run).differences]
    assert "output-reference-pure-next-token-tuned.csv:7" in places
    assert all("tuned" in place or "evaluation" in place for place in places)  # the report cites that table


def test_a_changed_number_of_the_report_is_named(run: Path) -> None:
    path = run / "evaluation-reference.md"
    text = path.read_text()
    place = text.index("layer", text.index("Fingerprint"))
    number = re.search(r"\d+", text[place:])
    assert number is not None
    path.write_text(text[: place + number.start()] + "9" + text[place + number.start() :])
    (difference,) = verified(run).differences
    assert difference.where is not None
    assert difference.where.line == text[:place].count("\n") + 1


def test_a_changed_verdict_is_named(run: Path) -> None:
    path = run / "verdict.json"
    path.write_text(path.read_text().replace("true", "false", 1))
    (difference,) = verified(run).differences
    assert difference.where is not None
    assert difference.where.file == "verdict.json"


def test_a_changed_milestone_of_a_published_run_is_named(made_sweep: Path, tmp_path: Path) -> None:
    for path in made_sweep.glob("output-echo*"):
        shutil.copyfile(path, tmp_path / path.name)
    milestone = "/diagnostics/L_semantic"
    (evidence,) = Archive(tmp_path)
    assert milestone not in {d.what for d in verify(evidence, tmp_path).differences}
    path = tmp_path / "output-echo.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"L_semantic": 9', '"L_semantic": 8', 1), encoding="utf-8")
    (evidence,) = Archive(tmp_path)
    wrong = [d for d in verify(evidence, tmp_path).differences if d.known is None]
    assert (milestone, "8", "9") in {(d.what, d.stated, d.derived) for d in wrong}


def test_published_runs_differ_by_what_is_known_of_them_alone(shared: Path) -> None:
    folder = shared / "reference" / "run-20251004-1804"
    for evidence in archive_of(folder):
        found = verify(evidence, folder)
        assert found.holds, [d for d in found.differences if d.known is None]
        assert found.checked[evidence.json.name] > 1000
        # The gaps that the files leave empty: every model but those whose answer never leads by half a logit.
        empty = [d for d in found.differences if d.what == "/diagnostics/answer_margin_thresholds/gap_ge_0.5"]
        assert len(empty) == (0 if evidence.stem == "Qwen2.5-72B" else 1)
        assert all(d.stated == "null" for d in empty)
    windows = [d for e in archive_of(folder) for d in verify(e, folder).differences if d.what.endswith("/radius")]
    assert {(d.stated, d.derived) for d in windows} == {("4", "8")}
    assert len(windows) == 8


def test_somebody_elses_report_is_left_to_the_audit(run: Path) -> None:
    (run / "evaluation-reference.md").write_text("# My own words\n")
    found = verified(run)
    assert found.differences == ()
    assert any("audit" in note for note in found.notes)
