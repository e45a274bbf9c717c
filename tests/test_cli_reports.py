"""The commands on what people look at, as a user meets them."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import Result
from typer.testing import CliRunner

from command_line import from_a_shell
from layerscope.cli.main import app
from layerscope.published.write.writer import write_published
from layerscope.report.cited.report_files import is_untouched
from layerscope.run import Run
from properties import slow


@pytest.fixture(scope="module")
def published(five_lens_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files of that run."""
    folder = tmp_path_factory.mktemp("files") / "published"
    folder.mkdir()
    write_published(Run.read(five_lens_run), folder)
    return folder


@pytest.fixture
def work(five_lens_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with one run under `runs` that has no published files yet."""
    shutil.copytree(five_lens_run, tmp_path / "runs" / "one", ignore=shutil.ignore_patterns("published"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def ready(work: Path, published: Path) -> Path:
    """The same folder, where the run has them."""
    shutil.copytree(published, work / "runs" / "one" / "published")
    return work


def layerscope(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("command", ["report", *map(slow, ("brief", "view", "compare", "audit", "verify"))])
def test_help_ends_with_three_commands_that_work_as_they_stand(command: str, ready: Path) -> None:
    if command == "audit":
        assert layerscope("report", "--out", "reports").exit_code == 0
    text = layerscope(command, "--help").stdout
    lines = [line.strip() for line in text[text.index("Examples") :].splitlines()]
    examples = [line for line in lines if line.startswith("layerscope ")]
    assert len(examples) == 3
    for example in examples:
        done = from_a_shell(example, ready)
        assert done.returncode == 0, (example, done.stderr)


def test_a_report_is_written_beside_the_run_and_passes_its_audit(work: Path) -> None:
    done = layerscope("report")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "published files · runs/one/published",
        "report · runs/one/evaluation-reference.md",
    ]
    text = (work / "runs/one/evaluation-reference.md").read_text()
    assert is_untouched(text)
    audited = layerscope("audit", "runs/one/evaluation-reference.md")
    assert audited.exit_code == 0, audited.output
    assert "0 contradicted" not in audited.stdout
    assert "supported" in audited.stdout.splitlines()[-1]


@pytest.mark.slow
def test_an_audit_of_a_changed_report_exits_with_1_and_names_line_and_right_value(ready: Path) -> None:
    layerscope("report", "--out", "reports")
    path = ready / "reports/evaluation-reference.md"
    text = path.read_text()
    place = text.index("ahead from layer ") + len("ahead from layer ")
    path.write_text(text[:place] + "9" + text[place + 1 :])
    line = text[:place].count("\n") + 1
    done = layerscope("audit", "reports/evaluation-reference.md")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0].split()[:2] == [str(line), "contradicted"]
    assert all(len(row) <= 80 for row in done.stdout.splitlines())
    found = json.loads(layerscope("audit", "reports/evaluation-reference.md", "--format", "json").stdout)
    (wrong,) = [finding for finding in found["findings"] if finding["judgement"] == "contradicted"]
    assert wrong["line"] == line
    assert f"ahead from layer {text[place]}" in wrong["correct"]
    old = layerscope("audit", "reports/evaluation-reference.md", "--form", "json")
    assert json.loads(old.stdout) == found
    assert old.stderr.startswith("warning: --form is now called --format")
    remarks = layerscope("audit", "reports/evaluation-reference.md", "--format", "markdown", "--out", "remarks.md")
    assert remarks.exit_code == 1
    assert f"> **contradicted**, line {line}" in (ready / "remarks.md").read_text()


def test_a_report_that_somebody_changed_is_kept(ready: Path) -> None:
    layerscope("report")
    path = ready / "runs/one/evaluation-reference.md"
    path.write_text(path.read_text() + "\nMy remark.\n")
    done = layerscope("report")
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert path.read_text().endswith("\nMy remark.\n")
    assert layerscope("report", "--force").exit_code == 0
    assert is_untouched(path.read_text())


def test_a_comparison_is_a_new_folder_with_report_and_table(work: Path) -> None:
    shutil.copytree(work / "runs/one", work / "runs/two")
    done = layerscope("compare", "runs/one", "runs/two", "--out", "both")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (work / "both").iterdir()) == [
        "comparison.csv",
        "comparison.parquet",
        "evaluation-cross-models.md",
        "published",
    ]
    assert sorted(path.name for path in (work / "both/published").iterdir()) == ["one", "two"]
    cited = re.search(r"`?(output-[\w.-]+?\.json):\d+", (work / "both/evaluation-cross-models.md").read_text())
    assert (work / "both/published/one" / cited[1]).exists()
    assert pl.read_parquet(work / "both/comparison.parquet").height in (1, 2)
    again = layerscope("compare", "runs/one", "--out", "both")
    assert again.exit_code == 2
    assert "both is already there" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", ["runs/one", "theirs", "theirs/output-reference.json"])
def test_what_was_only_to_be_read_is_left_as_it_is(work: Path, source: str) -> None:
    assert layerscope("export", "--published", "--out", "theirs").exit_code == 0
    (work / "note.md").write_text("# Of layerscope/reference\n\nIt has 12 layers.\n")
    before = contents(work / "runs", work / "theirs")
    pages = [] if source == "runs/one" else [("view", source, "--no-open"), ("report", source), ("brief", source)]
    for words in (("verify", source), ("audit", "note.md", "--run", source), ("compare", source), *pages):
        done = layerscope(*words)
        assert done.exit_code == 0, (words, done.output)
    assert layerscope("view", "runs/one", source, "--no-open").stdout == "page · view.html\n"
    for words in (("report", source, "--out", "mine"), ("brief", source, "--out", "mine")):
        assert layerscope(*words).exit_code == 0
    assert contents(work / "runs", work / "theirs") == before


def test_a_run_that_was_only_to_be_read_is_left_as_it_is(work: Path) -> None:
    before = contents(work / "runs")
    for words in (("compare", "runs/one", "--out", "both"), ("brief", "runs/one", "--out", "mine")):
        assert layerscope(*words).exit_code == 0
    assert contents(work / "runs") == before


@pytest.mark.slow
def test_a_report_that_is_written_elsewhere_has_what_it_cites_beside_it(work: Path) -> None:
    for _ in range(2):
        done = layerscope("report", "--out", "mine", "--force")
        assert "published files · mine/published/one" in done.stdout.splitlines()
    (cited,) = (work / "mine/published").iterdir()
    assert layerscope("audit", "mine/evaluation-reference.md", "--run", str(cited)).exit_code == 0
    (cited / "output-reference.json").write_text("{}")  # of another run, say: neither lost nor taken for this one's
    assert "mine/published/one-2" in layerscope("report", "--out", "mine", "--force").stdout
    assert (cited / "output-reference.json").read_text() == "{}"


def test_a_source_that_is_named_by_dots_has_a_name(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "runs/one/below").mkdir()
    monkeypatch.chdir(work / "runs/one/below")
    assert layerscope("report", "..", "--out", "../../../mine").exit_code == 0
    assert [path.name for path in (work / "mine/published").iterdir()] == ["one"]


def contents(*folders: Path) -> dict[Path, tuple[bytes, int]]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_verify_exits_with_1_when_a_file_says_otherwise(ready: Path) -> None:
    layerscope("report")
    assert layerscope("verify").exit_code == 0
    path = ready / "runs/one/published/output-reference.json"
    path.write_text(path.read_text().replace('"first_rank_le_10": 4', '"first_rank_le_10": 7', 1))
    done = layerscope("verify")
    assert done.exit_code == 1
    assert "/diagnostics/first_rank_le_10" in done.stdout.replace("\n", "").replace(" ", "")


def test_a_brief_is_two_files(ready: Path) -> None:
    assert layerscope("brief", "--out", "briefs").exit_code == 0
    assert json.loads((ready / "briefs/brief-reference.json").read_text())["facts"]
    assert is_untouched((ready / "briefs/brief-reference.md").read_text())


def test_a_page_is_one_file_beside_the_run(work: Path) -> None:
    done = layerscope("view", "--no-open")
    assert done.stdout == "page · runs/one/view.html\n"
    assert (work / "runs/one/view.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report", "nowhere"], "nowhere"),
        (["report", "--model", "gpt-9"], "gpt-9"),
        (["audit", "nothing.md"], "nothing.md"),
        (["audit", "note.md", "--format", "pdf"], "no format 'pdf'"),
        (["audit", "note.md", "--run", "nowhere"], "nowhere"),
        (["audit", "note.md", "--format", "json", "--out", "note.md"], "is the report itself"),
        (["compare", "nowhere"], "nowhere"),
        (["view", "nowhere"], "nowhere"),
        (["view", "--out", "note.md", "--no-open"], "note.md is already there"),
        (["brief", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_loses_nothing(work: Path, words: list[str], says: str) -> None:
    (work / "note.md").write_text("# Mine\n")
    done = layerscope(*words)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.output
    assert (work / "note.md").read_text() == "# Mine\n"
