"""The command line as a user meets it: its exit code, and what stands on stdout and stderr."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from command_line import from_a_shell, in_a_process, layerscope
from layerscope.cli.main import app
from layerscope.published.layout import EXTENDED
from layerscope.published.write.writer import write_published
from layerscope.run import Run
from layerscope.terminal.run_tables import run_tables

COMMAND = (sys.executable, "-m", "layerscope")


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    cwd = tmp_path_factory.mktemp("work")
    return cwd, in_a_process("probe", "--suite", "berlin", "--top-k", "7", cwd=cwd)


def test_probe_prints_a_line_a_fact_and_writes_a_run_folder(probed):
    cwd, done = probed
    assert done.returncode == 0, done.stderr
    folder = min((cwd / "runs").iterdir())
    assert done.stdout.splitlines()[-1] == f"run folder · runs/{folder.name}"
    run = Run.read(folder)
    assert [p.prompt_variant for p in run.record.suite.prompts] == ["orig", "no_filler", "orig"]
    assert set(run.rows["top_ids"].list.len()) == {7}
    p_answer = run.rows.filter("is_next", lens="logit", layer=12)["p_answer"][0]
    assert re.search(rf"^1 +Germany +Berlin +yes +4 +4 +4 +{p_answer:.3f}$", done.stdout, flags=re.MULTILINE)
    assert "1 prompt in other wordings and 1 control are not shown" in done.stdout
    assert "lens logit\n" not in done.stdout.partition("verdict")[0].replace("layers under lens logit\n", "")
    assert "identity check · passed" in done.stdout


def test_the_first_rank_1_layer_of_the_rows_is_the_one_marked(probed):
    cwd, _ = probed
    run = Run.read(min((cwd / "runs").iterdir()))
    shown = layerscope("show", "--tables", cwd=cwd).stdout
    assert len(re.findall(r"^\d · .* lens logit", shown, flags=re.MULTILINE)) == 3
    marked = [int(line.split()[0]) for line in shown.splitlines() if "<- first rank 1" in line]
    rows = run.rows.filter("is_next", lens="logit", answer_rank=1)
    by_prompt = rows.group_by("fact_index", "prompt_id", "prompt_variant", maintain_order=True).min()
    assert marked == by_prompt["layer"].to_list()


def test_tables_fit_a_terminal_of_80_columns(probed):
    cwd, done = probed
    for shown in (done, layerscope("show", "--tables", "--all", cwd=cwd)):
        assert max(len(line) for line in shown.stdout.splitlines()) <= 80


def test_tables_are_printed_for_as_many_prompts_as_asked_for(probed):
    cwd, _ = probed
    titles = {
        words: len(re.findall(r"^\d · .* lens raw", layerscope("show", *words, "--lens", "raw", cwd=cwd).stdout, re.M))
        for words in ((), ("--tables",), ("--tables", "2"), ("--tables=1",), ("--tables", "1", "--all"))
    }
    assert list(titles.values()) == [0, 3, 2, 1, 3]
    refused = layerscope("show", "--tables", "0", cwd=cwd)
    assert refused.returncode == 2 and "from 1 on" in refused.stderr


def test_a_line_a_prompt_says_what_the_rows_say(probed):
    cwd, _ = probed
    run = Run.read(min((cwd / "runs").iterdir()))
    shown = layerscope("show", "--all", "--lens", "raw", cwd=cwd).stdout
    for place, prompt in enumerate(run.record.suite.prompts, start=1):
        of_prompt = run.rows.filter("is_next", prompt_id=prompt.prompt_id, prompt_variant=prompt.prompt_variant)
        raw, output = of_prompt.filter(lens="raw"), of_prompt.filter(lens="logit", layer=12).row(0, named=True)
        on_top = [row["layer"] for row in raw.iter_rows(named=True) if row["answer_rank"] == 1]
        for_good = next(layer for layer in on_top if set(range(layer, 13)) <= set(on_top))
        words = f"{prompt.prompt_variant} +{prompt.answers[0].string} +yes +{min(on_top)} +{for_good} "
        assert re.search(rf"^{place} .*{words}.* {output['p_answer']:.3f}$", shown, flags=re.MULTILINE), shown


def test_json_is_the_verdict_alone_and_quiet_the_path_alone(probed):
    cwd, _ = probed
    folder = min((cwd / "runs").iterdir())
    assert layerscope("show", str(folder), "--json", cwd=cwd).stdout == (folder / "verdict.json").read_text()
    assert layerscope("show", str(folder), "--quiet", cwd=cwd).stdout == f"{folder}\n"
    for words in ("--json --details", "--quiet --prompt 1", "--json --milestones", "--json --lens raw"):
        both = layerscope("show", *words.split(), cwd=cwd)
        assert both.returncode == 2 and "do not go together" in both.stderr
    nothing = layerscope("show", "nowhere", "--quiet", cwd=cwd)
    assert (nothing.returncode, nothing.stdout) == (2, "")


def test_a_folder_named_by_a_number_is_no_number_of_tables(probed, tmp_path):
    cwd, _ = probed
    shutil.copytree(min((cwd / "runs").iterdir()), tmp_path / "12")
    shown = layerscope("show", "--tables", "12", cwd=tmp_path)
    assert shown.returncode == 0 and len(re.findall(r"^\d · .* lens logit", shown.stdout, flags=re.MULTILINE)) == 3


def test_long_names_of_facts_keep_both_ends(tmp_path):
    name = "A country that has the long name of number {} has a capital called"
    lines = [json.dumps({"prompt": name.format(n), "answer": "Paris", "key": name.format(n)}) for n in (1, 2)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    done = layerscope("probe", "--suite", "own.jsonl", "--positions", "last", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ((), ("--all",)):
        shown = layerscope("show", *words, cwd=tmp_path).stdout
        assert "…" in shown and max(map(len, shown.splitlines())) <= 80


def test_one_prompt_is_told_with_the_identity_check(probed):
    cwd, _ = probed
    assert "identity check · passed" in layerscope("show", "--prompt", "1", cwd=cwd).stdout


def test_a_quiet_probe_prints_a_path_and_one_with_json_a_verdict(tmp_path):
    words = ("probe", "--suite", "berlin", "--positions", "last", "--lens", "logit")
    quiet = layerscope(*words, "--quiet", cwd=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (quiet.stdout, quiet.stderr) == (f"runs/{folder.name}\n", "")
    told = layerscope(*words, "--json", "--out", "others", cwd=tmp_path)
    (other,) = (tmp_path / "others").iterdir()
    assert told.stdout == (other / "verdict.json").read_text()
    assert f"run folder · others/{other.name}" in told.stderr


def test_away_from_a_terminal_progress_is_plain_lines_on_stderr(probed):
    _, done = probed
    lines = done.stderr.splitlines()
    assert re.match(
        r"layerscope/reference · 12 blocks · [\d.]+ M parameters · .* on disk \(bfloat16\) · cpu float32 · .* planned",
        lines[0],
    )
    assert lines[1:] == ["blocks 12 of 12", "vocabulary 2048 of 2048"]


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_over_blocks_and_one_over_the_vocabulary(tmp_path: Path):
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    words = [*COMMAND, "probe", "--suite", "berlin", "--positions", "last"]
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=slave) as process:
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
    os.close(master)
    assert process.returncode == 0
    assert b"blocks" in shown and b"vocabulary" in shown and b"12/12" in shown
    assert b"statistics" in shown and b"page" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_show_prints_the_same_again(probed):
    cwd, done = probed
    folder = min((cwd / "runs").iterdir())
    again = layerscope("show", str(folder), cwd=cwd)
    assert again.returncode == 0
    assert again.stdout == "\n".join(done.stdout.splitlines()[:-2]) + "\n"  # but for where page and run are


def test_the_verdict_is_what_remains_on_the_screen(probed):
    _, done = probed
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("verdict · "))
    assert "identity check · passed" in "\n".join(lines[:start])
    assert lines[start + 1].startswith("The model answers ' Berlin' (p 0.999); on top for good and clearly ahead from")
    assert lines[-1].startswith("run folder · ") and lines[-2].startswith("page · ")
    assert len(lines[start:-2]) <= 16 and re.match(r"(cautions|more| {12})", lines[-3])


def test_details_print_all_that_the_verdict_rests_on(probed):
    cwd, done = probed
    run = Run.read(min((cwd / "runs").iterdir()))
    shown = layerscope("show", "--details", cwd=cwd).stdout
    assert "Germany→Berlin in detail" in shown.splitlines() and "in detail" not in done.stdout
    assert run.guidance.details and all(one.text in " ".join(shown.split()) for one in run.guidance.details)
    assert max(map(len, shown.splitlines())) <= 80


def test_one_prompt_is_shown_without_the_verdict_on_all(probed):
    cwd, _ = probed
    assert "verdict" not in layerscope("show", "--prompt", "2", cwd=cwd).stdout


def test_show_prints_milestones_of_a_prompt_under_a_lens(probed):
    cwd, _ = probed
    run = Run.read(min((cwd / "runs").iterdir()))
    shown = layerscope("show", "--milestones", "--lens", "raw", "--prompt", "2", cwd=cwd).stdout
    rows = run.rows.filter("is_next", lens="raw", prompt_variant="no_filler", answer_rank=1)
    assert shown.splitlines()[0] == "2 · Germany→Berlin · no_filler · lens raw"
    assert re.search(rf"^first_rank_le_1 +{rows['layer'].min()} ", shown, flags=re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80
    assert "verdict" not in shown


def test_show_takes_a_lens_and_a_prompt(probed):
    cwd, _ = probed
    folder = min((cwd / "runs").iterdir())
    shown = layerscope("show", str(folder), "--lens", "raw", "--prompt", "3", cwd=cwd)
    assert re.findall(r"^\d · .*", shown.stdout, flags=re.MULTILINE)[0].startswith(
        "3 · control Paris · orig · lens raw"
    )
    for wrong in (("--lens", "nope"), ("--prompt", "4")):
        refused = layerscope("show", str(folder), *wrong, cwd=cwd)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: This run has ")


def test_show_loads_no_tensor_library(probed):
    cwd, _ = probed
    folder = min((cwd / "runs").iterdir())
    code = (
        "import sys; from layerscope.cli.main import app\n"
        f"try: app(['show', {str(folder)!r}])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_and_what_is_refused_by_its_words_alone_load_no_library_of_tensors_tables_or_charts(tmp_path):
    helps = ("", "probe", "look", "serve", "show", "export", "view", "audit", "verify", "models", "fit", "fit tuned")
    helps += ("lens import",)
    refused = ("probe --top-k many", "probe --suite there-is-none", "probe --suite none.toml", "export")
    lines = [(f"{line} --help", 0) for line in helps] + [(line, 2) for line in refused]
    heavy = {"torch", "transformers", "accelerate", "polars", "numpy", "altair", "vl_convert", "jinja2"}
    script = f"""if True:
        import sys
        from layerscope.cli.main import app
        for line, code in {lines!r}:
            try: app(line.split())
            except SystemExit as end: assert end.code == code, (line, end.code)
            assert not {heavy!r} & set(sys.modules), line
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_second_run_never_touches_the_first(probed, monkeypatch):
    cwd, _ = probed
    folder = min((cwd / "runs").iterdir())
    before = (folder / "run.json").read_bytes()
    monkeypatch.chdir(cwd)
    monkeypatch.setattr("layerscope.run_folder.default_folder_name", lambda record: folder.name)  # the same second
    done = CliRunner().invoke(app, ["probe", "--suite", "berlin", "--positions", "last"])
    assert done.exit_code == 0, done.output
    assert (folder / "run.json").read_bytes() == before
    assert Run.read(f"{folder}-2").record.positions == "last"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["./nope"], "There is no folder './nope'"),
        (["--suite", "nope"], "capitals-20"),
        (["--suite", "nope.toml"], "nope.toml"),
        (["--lens", "nope"], "choose from logit, next_norm, raw"),
        (["--lens", "raw,raw"], "once"),
        (["--positions", "first"], "choose from auto, last, all"),
        (["--protocol", "nope"], "choose from standard, published"),
        (["--device", "tpu"], "choose auto, cpu, cuda"),
        (["--dtype", "float16"], "choose auto, float32 or bfloat16"),
        (["--dtype", "bfloat16", "--device", "cpu"], "leave --dtype out"),
        (["--memory", "lots"], "write it as 4GiB"),
        (["--memory", "1MB"], "raise --memory"),
        (["--bos", "maybe"], "choose auto, yes or no"),
        (["--top-k", "0"], "at least 1"),
        (["--revision", "main"], "revision"),
        (["--second-forward", "maybe"], "choose from auto, always, off"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_remedy_and_exit_code_2(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["probe", *words])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "runs").iterdir())


def test_a_mistake_shows_no_traceback_from_the_shell(tmp_path):
    done = in_a_process("probe", "./nope", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_out_folder_that_cannot_hold_runs_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for out, says in (("file", "cannot be made"), ("run", "is a run's own folder")):
        done = CliRunner().invoke(app, ["probe", "--out", out])
        assert done.exit_code == 2
        assert says in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {}


def test_models_lists_every_family_and_by_what_test_it_is_verified(monkeypatch):
    from layerscope.model.families import FAMILIES

    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["models"]).stdout
    assert all(re.search(rf"^{family} ", shown, flags=re.MULTILINE) for family in FAMILIES)
    assert "tests/test_families.py" in shown


@pytest.mark.parametrize(
    "command",
    [["show"], *(pytest.param(words, marks=pytest.mark.slow) for words in ([], ["probe"], ["export"], ["models"]))],
)
def test_help_ends_with_three_commands_that_work_as_they_stand(command, probed, tmp_path):
    cwd, _ = probed
    shutil.copytree(cwd / "runs", tmp_path / "runs")  # examples of `show` and `export` need a run
    shown = layerscope(*command, "--help", cwd=tmp_path).stdout
    text = shown[shown.index("Examples") :]
    examples = [" ".join(block.split()) for block in text.split("\n\n") if block.strip().startswith("layerscope")]
    examples = examples or [line.strip() for line in text.splitlines() if line.strip().startswith("layerscope")]
    assert len(examples) == 3
    for example in examples:
        done = from_a_shell(example, tmp_path)
        assert done.returncode == 0, (example, done.stderr)


def test_show_without_a_folder_takes_the_newest_run(probed, tmp_path):
    cwd, _ = probed
    newest = max((cwd / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns).parent
    assert layerscope("show", cwd=cwd).stdout == layerscope("show", str(newest), cwd=cwd).stdout
    nothing = layerscope("show", cwd=tmp_path)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: There is no run in 'runs'")


@pytest.mark.slow
def test_a_reader_that_goes_away_takes_no_run_with_it(tmp_path):
    binary = Path(sys.executable).with_name("layerscope")
    words = f"{binary} probe --suite berlin --positions last | head -1"
    shown = subprocess.run(words, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.stdout.split() == ["first", "top", "for", "clearly", "p", "of"]
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(Run.read(folder).record.suite.prompts) == 3


def test_a_suite_cannot_steer_the_terminal(tmp_path):
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[[facts]]\nprompt = "The capital of Japan is"\nanswer = "Tokyo"\nkey = "red \\u001b[31m key"\n'
    )
    done = layerscope("probe", "--suite", "own.toml", cwd=tmp_path)
    assert done.returncode == 0
    assert r"1 red \x1b[31m key Tokyo" in done.stdout
    tables = layerscope("show", "--tables", cwd=tmp_path)
    assert tables.stdout.splitlines()[0] == r"1 · red \x1b[31m key · orig · lens logit"
    assert "\x1b" not in done.stdout + tables.stdout


@pytest.mark.slow
def test_a_narrow_terminal_keeps_its_numbers(probed):
    cwd, _ = probed
    folder = min((cwd / "runs").iterdir())
    shown = []
    for columns in ("40", "80"):
        environment = {**os.environ, "COLUMNS": columns}
        words = [*COMMAND, "show", "--tables", str(folder)]
        shown.append(subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout)
    narrow, wide = (re.findall(r"\d+\.\d{3}", text) for text in shown)
    assert len(wide) > 100
    assert narrow == wide


def test_tokens_that_look_like_markup_are_shown_as_they_are(probed, tmp_path):
    cwd, _ = probed
    run = Run.read(min((cwd / "runs").iterdir()))
    strange = pl.when(pl.col("layer") == 0).then(pl.lit("[/INST]")).when(pl.col("layer") == 1).then(pl.lit("[i]"))
    Run(run.rows.with_columns(strange.otherwise(pl.col("top1")).alias("top1")), run.record).save(tmp_path / "run")
    shown = layerscope("show", "run", "--tables", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("'[/INST]'") == shown.stdout.count("'[i]'") == 3


def test_the_newest_run_is_never_an_unfinished_one(probed, tmp_path):
    cwd, _ = probed
    folder = min((cwd / "runs").iterdir())
    shutil.copytree(folder, tmp_path / "runs" / "whole")
    (tmp_path / "runs" / ".whole.partial-1").mkdir()
    (tmp_path / "runs" / ".whole.partial-1" / "run.json").write_text("{")
    assert layerscope("show", cwd=tmp_path).returncode == 0


def test_a_second_forward_is_made_when_asked_for(tmp_path):
    done = layerscope("probe", "--suite", "berlin", "--positions", "last", "--second-forward", "always", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    second = Run.read(folder).record.measured.second_forward
    assert second.mode == "always" and len(second.answer_rank) == 13


# Files in the published format


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run by the published definitions."""
    cwd = tmp_path_factory.mktemp("published")
    done = layerscope("probe", "--suite", "berlin", "--protocol", "published", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


def test_a_run_by_the_published_definitions_holds_published_files(published):
    (folder,) = (published / "runs").iterdir()
    files = {path.name for path in (folder / "published").iterdir()}
    assert "output-reference.json" in files and "output-reference-pure-next-token.csv" in files
    run, read = Run.read(folder), Run.read(folder / "published")
    assert read.record.source == "published"  # generation M: what published files hold, and no more
    rows = [
        found.rows.filter("is_next", lens="next_norm").sort("prompt_id", "prompt_variant", "layer")
        for found in (run, read)
    ]
    assert rows[0]["answer_rank"].to_list() == rows[1]["answer_rank"].to_list()
    assert rows[0]["entropy_bits"].to_list() == pytest.approx(rows[1]["entropy_bits"].to_list(), rel=1e-9)  # as printed
    shown = layerscope("show", str(folder / "published" / "output-reference.json"), cwd=published)
    assert shown.returncode == 0, shown.stderr
    (title,) = re.findall(r"^verdict · .*$", shown.stdout, re.MULTILINE)
    assert title.endswith(" · lens next_norm")
    assert re.search(r"^p is +not to be reported: by this protocol any caution", shown.stdout, re.MULTILINE)


def test_without_the_published_lens_no_published_files_are_promised(tmp_path):
    words = ("probe", "--suite", "berlin", "--positions", "last", "--protocol", "published", "--lens", "logit")
    done = layerscope(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: no published files are written: theirs is lens next_norm, and this run has logit" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "published").exists()


def test_an_exported_run_is_read_back_equal_and_shown_alike(probed, tmp_path):
    cwd, _ = probed
    folder = min((cwd / "runs").iterdir())
    done = layerscope("export", str(folder), "--published", "--out", str(tmp_path / "made" / "files"), cwd=cwd)
    assert done.returncode == 0, done.stderr
    files = list((tmp_path / "made" / "files").iterdir())
    assert done.stdout == f"published files · {tmp_path / 'made' / 'files'} · {len(files)} files\n"
    assert Run.read(tmp_path / "made" / "files") == Run.read(folder)
    again = layerscope("show", str(tmp_path / "made" / "files"), cwd=cwd)
    assert again.stdout == layerscope("show", str(folder), cwd=cwd).stdout


def test_export_writes_beside_the_newest_run_and_overwrites_nothing(probed, tmp_path):
    cwd, _ = probed
    shutil.copytree(min((cwd / "runs").iterdir()), tmp_path / "runs" / "mine")
    first = layerscope("export", "--published", cwd=tmp_path)
    assert first.returncode == 0 and first.stdout.startswith("published files · runs/mine/published · ")
    before = {path.name: path.read_bytes() for path in (tmp_path / "runs" / "mine" / "published").iterdir()}
    second = layerscope("export", "--published", cwd=tmp_path)
    assert second.returncode == 2
    assert "already there" in second.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs" / "mine" / "published").iterdir()} == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["export"], "ask for it with --published"),
        (["export", "--published", "--dialect", "csv"], "choose from extended, generation-m"),
        (["export", "--published", "--dialect", "generation-m"], "extended"),
        (["export", "nowhere", "--published"], "nowhere"),
        (["show", "nowhere"], "nowhere"),
        (["show", "--milestones", "--lens", "nope"], "choose from logit, next_norm, raw"),
        (["show", "--milestones", "--prompt", "9"], "there is no prompt 9"),
    ],
)
def test_a_mistake_in_reading_or_writing_leaves_one_sentence_and_no_folder(words, says, probed, tmp_path, monkeypatch):
    cwd, _ = probed
    shutil.copytree(min((cwd / "runs").iterdir()), tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in (tmp_path / "runs" / "mine").iterdir()} == {
        "run.json",
        "rows.parquet",
        "verdict.json",
        "view.html",
    }


@pytest.mark.slow
def test_one_of_several_models_is_asked_for_by_name(probed, tmp_path):
    cwd, _ = probed
    run = Run.read(min((cwd / "runs").iterdir()))
    for name in ("house/one", "house/two"):
        model = run.record.model.model_copy(update={"id": name})
        write_published(Run(run.rows, run.record.model_copy(update={"model": model})), tmp_path, EXTENDED)
    unsaid = layerscope("show", str(tmp_path), cwd=cwd)
    assert unsaid.returncode == 2
    assert "one" in unsaid.stderr and "two" in unsaid.stderr
    shown = layerscope("show", str(tmp_path), "--model", "two", cwd=cwd)
    assert shown.returncode == 0, shown.stderr
    out = tmp_path / "again"
    made = layerscope("export", str(tmp_path), "--model", "two", "--published", "--out", str(out), cwd=cwd)
    assert made.returncode == 0, made.stderr
    assert Run.read(out).record.model.id == "house/two"


def test_problems_of_damaged_files_stand_at_the_end_of_show(probed, tmp_path):
    cwd, _ = probed
    assert layerscope("export", "--published", "--out", str(tmp_path / "files"), cwd=cwd).returncode == 0
    (tmp_path / "files" / "output-reference-records-raw.csv").unlink()
    shown = layerscope("show", str(tmp_path / "files"), cwd=cwd)
    assert shown.returncode == 0, shown.stderr
    after = shown.stdout[shown.stdout.index("verdict · ") :]
    assert "problem · output-reference-records-raw.csv" in after
    assert len(re.findall(r"^problem · ", after, flags=re.MULTILINE)) <= 10
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_how_to_see_the_other_tables_keeps_the_lens(five_lens_run: Path):
    parts = run_tables(Run.read(five_lens_run), lens="raw", most=1)
    told = " ".join(str(part) for part in parts)
    assert (
        "layerscope show RUN --prompt 2 --lens raw, or layerscope show RUN --tables --all --lens raw, where RUN is"
        in told
    )
