"""Reports on comparisons: what they cite, what is recomputed of them, and what a damaged folder comes to."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import layerscope
from layerscope import Run
from layerscope.analysis.diff_files import diff_file, read_diff
from layerscope.analysis.verdict_json import json_text
from layerscope.cli.main import app
from layerscope.errors import RunError
from layerscope.report.cited.claims import Unit
from layerscope.report.cited.markdown import markdown
from layerscope.report.diffs import NAME, diff_report
from layerscope.report.diffs.check import verify_diff
from probed import probed
from test_diff import damaged


@pytest.fixture(scope="module")
def of_models(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two tiny models, one of them with a damaged block."""
    folder = tmp_path_factory.mktemp("compared")
    found = layerscope.diff(
        tiny("qwen3"), damaged(tiny("qwen3"), folder / "variant"), modules=True, suite="capitals", limit=2
    )
    found.save(folder / "diff")
    return folder / "diff"


@pytest.fixture(scope="module")
def of_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two runs, in one of which entropies and ranks were changed."""
    base = probed("capitals")
    worse = base.rows.with_columns(
        pl.col("entropy_bits") + 0.25,
        pl.when(pl.col("layer") == pl.col("layer").max())
        .then(2)
        .otherwise("answer_rank")
        .cast(pl.Int32)
        .alias("answer_rank"),
    )
    variant = Run(worse, base.record, patches=base.patches)
    folder = tmp_path_factory.mktemp("compared-runs") / "diff"
    layerscope.diff_runs(base, variant).save(folder)
    return folder


@pytest.fixture(params=["of_models", "of_runs"])
def compared(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_a_comparison_is_read_back_as_it_was_written(compared: Path):
    path = diff_file(compared)
    assert path is not None
    assert json_text(read_diff(path)) == path.read_text(encoding="utf-8")


def test_every_figure_is_what_the_file_has_at_the_line_that_is_cited(compared: Path):
    path = diff_file(compared)
    lines = path.read_text(encoding="utf-8").split("\n")
    content = json.loads(path.read_text(encoding="utf-8"))
    claims = diff_report(path).claims
    assert len(claims) > 60
    for claim in claims:
        assert claim.citations
        if claim.derived is not None:
            continue
        (place,) = claim.citations
        value = content
        for key in place.pointer.split("/")[1:]:
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert value == claim.value
        line = lines[place.line - 1].strip().rstrip(",")
        key, _, stated = line.rpartition(": ") if line.startswith('"') and '": ' in line else ("", "", line)
        assert not key or key.strip('"') == place.pointer.rsplit("/", 1)[1]
        assert claim.unit in (Unit.TEXT, Unit.TOKEN) or json.loads(stated) == claim.value
        assert claim.value is not None or claim.reason


def test_counts_that_are_ours_follow_from_what_they_cite(of_runs: Path):
    content = json.loads((of_runs / "run-diff.json").read_text(encoding="utf-8"))
    derived = {claim.name: claim.value for claim in diff_report(of_runs / "run-diff.json").claims if claim.derived}
    assert derived["milestones"] == len(content["milestones"]) > 0
    assert derived["judged"] == len(content["suite"]["judged"])


def test_the_report_names_the_block_that_was_damaged_first(of_models: Path):
    content = json.loads((of_models / "diff.json").read_text(encoding="utf-8"))
    worst = max(content["layers"][1:], key=lambda layer: layer["injected"])
    text = markdown(diff_report(of_models / "diff.json"))
    table = text.partition("## Which blocks make the difference")[2].partition("\n\n")[2]
    first = next(line for line in table.split("\n") if re.match(r"\| \d", line))
    assert first.split("|")[1].strip() == str(worst["layer"])


def test_the_commands_write_the_report_and_verify_it(compared: Path, tmp_path: Path):
    run = CliRunner().invoke
    written = run(app, ["report", str(compared), "--out", str(tmp_path)])
    assert written.exit_code == 0, written.output
    for name in (path.name for path in compared.iterdir()):
        (tmp_path / name).write_bytes((compared / name).read_bytes())
    held = run(app, ["verify", str(tmp_path)])
    assert held.exit_code == 0 and "all hold" in held.output, held.output
    again = run(app, ["report", str(tmp_path)])
    assert again.exit_code == 0, again.output
    text = (tmp_path / NAME).read_text(encoding="utf-8")
    (tmp_path / NAME).write_text(text.replace("## Facts", "## Fakes"), encoding="utf-8")
    changed = run(app, ["verify", str(tmp_path)])
    assert changed.exit_code == 1 and "Fakes" in changed.output
    kept = run(app, ["report", str(tmp_path)])
    assert kept.exit_code == 2 and "somebody wrote or changed it" in " ".join(kept.output.split())


@pytest.mark.parametrize(
    ("member", "value"),
    [(("layers", 1, "injected"), 0.5), (("suite", "prompts", 0, "base_rank"), 77), (("suite", "n_lost"), 9)],
)
def test_a_figure_that_was_changed_is_found(
    member: tuple[str | int, ...], value: float, of_models: Path, tmp_path: Path
):
    content = json.loads((of_models / "diff.json").read_text(encoding="utf-8"))
    *path, last = member
    place = content
    for key in path:
        place = place[key]
    place[last] = value
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (tmp_path / "diff.json").write_text(text, encoding="utf-8")
    (tmp_path / "diff.parquet").write_bytes((of_models / "diff.parquet").read_bytes())
    found = verify_diff(tmp_path / "diff.json")
    assert not found.holds
    assert any(f"{value}" in difference.stated for difference in found.differences)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ("{}", "Field required"), ('{"layers": 3}', "compare again"), ("[1]", "compare again")],
)
def test_what_is_no_comparison_is_refused_with_what_is_wrong(text: str, said: str, tmp_path: Path):
    (tmp_path / "diff.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=said):
        diff_report(tmp_path / "diff.json")


def test_rows_that_are_not_there_are_named(of_models: Path, tmp_path: Path):
    (tmp_path / "diff.json").write_bytes((of_models / "diff.json").read_bytes())
    with pytest.raises(RunError, match=r"diff\.parquet"):
        verify_diff(tmp_path / "diff.json")
    pl.DataFrame({"layer": [0]}).write_parquet(tmp_path / "diff.parquet")
    with pytest.raises(RunError, match="should have the columns"):
        verify_diff(tmp_path / "diff.json")
