"""Fitted lenses from the command line: real fits of the bundled model, what is shown of them, what is refused.

Tolerances. A table prints three decimals, so it is half of the last of them off, and a little: 6e-4.
"""

import json
import logging
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from layerscope import CausalLM
from layerscope.analysis.curve_shapes import ranges
from layerscope.bundled import BUNDLED
from layerscope.cli.fit_session import FitRequest, fit_session
from layerscope.cli.main import app
from layerscope.fitting.checkpoint import Checkpoint
from layerscope.fitting.options import FitOptions
from layerscope.fitting.workspace import Workspace
from layerscope.lens_record import LensFolder, LensRecord
from layerscope.lenses.lens_folder import read_fitted_lens, read_record
from layerscope.model.options import OpenOptions
from layerscope.terminal.lens_tables import lens_lines, lens_list, lens_table
from properties import slow

FIT = "fit tuned --text my.txt --seq-len 32 --batch 64 --steps 10"
"""The first example of `layerscope fit tuned --help`."""
PRISM = "fit prism --text my.txt --seq-len 32"
N_LAYERS, D_MODEL = 12, 96
"""Of the bundled model."""


def write_text(folder: Path, documents: int = 30) -> None:
    draw = random.Random(0)
    places = ("Berlin", "Paris", "Rome", "Madrid", "Oslo", "Lisbon")
    things = ("river", "mountain", "city", "winter", "summer", "road", "house")
    sentences = [
        " ".join(
            f"The {draw.choice(things)} is near the {draw.choice(things)} in {draw.choice(places)}." for _ in range(4)
        )
        for _ in range(documents)
    ]
    (folder / "my.txt").write_text("\n\n".join(sentences), encoding="utf-8")


def layerscope(command: str, cwd: Path) -> Result:
    """A command in a folder, in this process: each new one would load the tensor library anew."""
    before = Path.cwd()
    os.chdir(cwd)
    try:
        return CliRunner(env={"COLUMNS": "80"}).invoke(app, shlex.split(command))
    finally:
        os.chdir(before)


@dataclass(frozen=True)
class Work:
    """A folder with a tuned and a prism lens in `lenses`, and what their fits printed."""

    folder: Path
    tuned: Result
    prism: Result

    @property
    def record(self) -> LensRecord:
        return read_record(self.folder / "lenses" / "reference-tuned")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    write_text(folder)
    done = Work(folder, layerscope(FIT, folder), layerscope(PRISM, folder))
    assert (done.tuned.exit_code, done.prism.exit_code) == (0, 0), done.tuned.output + done.prism.output
    return done


# Fitting


def test_a_fit_leaves_a_lens_named_for_model_and_kind_and_says_where(work):
    for kind, printed in (("tuned", work.tuned), ("prism", work.prism)):
        assert printed.stdout.splitlines()[-1] == f"lens folder · lenses/reference-{kind}"
        sidecar = read_fitted_lens(work.folder / "lenses" / f"reference-{kind}")
        assert (sidecar.record.kind, sidecar.record.model.id) == (kind, "layerscope/reference")
    assert {path.name for path in (work.folder / "lenses").iterdir()} == {"reference-tuned", "reference-prism"}


@pytest.mark.slow
def test_options_reach_the_fit(work, tmp_path):
    write_text(tmp_path)
    words = "--tokens 900 --seq-len 24 --batch 64 --steps 2 --rank 4 --placement normed --seed 7 --name own --out here"
    done = layerscope(f"fit tuned --text my.txt {words}", tmp_path)
    assert done.exit_code == 0, done.output
    record = read_record(tmp_path / "here" / "own")
    assert (record.tuned.rank, record.tuned.placement, record.tuned.batch, record.tuned.steps) == (4, "normed", 64, 2)
    assert (record.settings.seed, record.corpus.seq_len) == (7, 24)
    assert sum(part.n_tokens for part in record.corpus.splits.values()) == 900


def test_away_from_a_terminal_a_fit_logs_its_plan_and_a_line_for_each_layer(tmp_path, caplog):
    write_text(tmp_path)
    with caplog.at_level(logging.INFO, "layerscope"):
        done = layerscope("fit tuned --text my.txt --tokens 800 --seq-len 32 --steps 1 --rank 0", tmp_path)
    assert done.exit_code == 0, done.output
    lines = [entry.getMessage() for entry in caplog.records if entry.name == "layerscope"]
    assert lines[0] == "tokens 800 of 800"
    assert lines[1].startswith("tuned lens of layerscope/reference · rank 0 · placement raw")
    layers = [re.match(r"layer (\d+) · held-out KL [\d.]+ bits", line) for line in lines[2:-1]]
    assert [int(found[1]) for found in layers] == list(range(N_LAYERS))
    assert lines[-1] == "blocks 24 of 24"


def test_text_that_ends_before_its_budget_is_counted_as_far_as_it_goes(tmp_path, caplog):
    write_text(tmp_path)
    with caplog.at_level(logging.INFO, "layerscope"):
        layerscope(PRISM, tmp_path)
    splits = read_record(tmp_path / "lenses" / "reference-prism").corpus.splits
    read = sum(part.n_tokens for part in splits.values())
    assert f"tokens {read} of {read}" in [entry.getMessage() for entry in caplog.records]


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_ends_a_fit_in_one_line_after_bars_and_finished_layers(work, tmp_path):
    shutil.copy(work.folder / "my.txt", tmp_path)
    terminal, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    words = [sys.executable, "-m", "layerscope", *shlex.split(FIT)]
    shown, asked = b"", False
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=slave) as process:
        os.close(slave)
        while chunk := _read(terminal):
            shown += chunk
            if b"layer 1 " in shown and not asked:
                process.send_signal(signal.SIGINT)
                asked = True
        printed = process.stdout.read()
    os.close(terminal)
    assert (process.returncode, printed) == (130, b"")
    assert b"tokens" in shown and b"blocks" in shown and b"/24" in shown
    assert "the same command goes on after the layers that were kept" in shown.decode().splitlines()[-1]
    assert b"Traceback" not in shown


@pytest.mark.parametrize(
    ("kind", "words"), [("tuned", "goes on after the layers that were kept"), ("ridge", "nothing was kept")]
)
def test_an_interrupted_fit_says_what_becomes_of_its_work(kind, words, tmp_path, capsys):
    write_text(tmp_path)
    text = FitOptions(text=[str(tmp_path / "my.txt")])
    request = FitRequest(kind, None, text, 0, tmp_path / "lenses", None, OpenOptions())
    with pytest.raises(typer.Exit), fit_session(request):
        raise KeyboardInterrupt
    assert words in capsys.readouterr().err.splitlines()[-1]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_an_interrupted_fit_goes_on_and_ends_with_the_weights_of_an_uninterrupted_one(work, tmp_path, monkeypatch):
    shutil.copy(work.folder / "my.txt", tmp_path)
    kept, interrupts, keep = [], [3], Workspace.keep

    def interrupted_once(self, layer, *parts):
        if layer in interrupts:
            interrupts.remove(layer)
            raise KeyboardInterrupt
        keep(self, layer, *parts)
        kept.append(layer)

    monkeypatch.setattr(Workspace, "keep", interrupted_once)
    first = layerscope(FIT, tmp_path)
    assert (first.exit_code, first.stdout) == (130, "")
    assert first.stderr.splitlines()[-1].startswith("interrupted: the same command goes on")
    assert not (tmp_path / "lenses" / "reference-tuned").exists()
    assert layerscope(FIT, tmp_path).exit_code == 0
    assert kept == list(range(N_LAYERS))  # no layer is fitted twice
    resumed = read_record(tmp_path / "lenses" / "reference-tuned")
    assert resumed.weights_sha256 == work.record.weights_sha256
    assert [path.name for path in (tmp_path / "lenses").iterdir()] == ["reference-tuned"]


def test_an_interrupted_prism_fit_goes_on_and_says_behind_which_layer(work, tmp_path, monkeypatch, caplog):
    shutil.copy(work.folder / "my.txt", tmp_path)
    assert layerscope(f"{PRISM} --name whole", tmp_path).exit_code == 0
    interrupts, offer = [6], Checkpoint.offer

    def interrupted_once(self, gathered):
        offer(self, gathered)
        if len(gathered) - 1 in interrupts:
            interrupts.remove(6)
            raise KeyboardInterrupt

    monkeypatch.setattr("layerscope.fitting.checkpoint.SHARE", 0)
    monkeypatch.setattr(Checkpoint, "offer", interrupted_once)
    first = layerscope(PRISM, tmp_path)
    assert (first.exit_code, first.stdout) == (130, "")
    assert first.stderr.splitlines()[-1].startswith("interrupted: the same command goes on")
    assert not (tmp_path / "lenses" / "reference-prism").exists()
    with caplog.at_level(logging.INFO, "layerscope"):
        assert layerscope(PRISM, tmp_path).exit_code == 0
    assert any("goes on behind layer 6" in entry.getMessage() for entry in caplog.records)
    found, whole = (read_record(tmp_path / "lenses" / name) for name in ("reference-prism", "whole"))
    assert found.weights_sha256 == whole.weights_sha256
    assert sorted(path.name for path in (tmp_path / "lenses").iterdir()) == ["reference-prism", "whole"]


# Refusals


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("fit tuned", "No text was given"),
        ("fit tuned --text nope.txt", "There is no file 'nope.txt'"),
        ("fit tuned --text my.txt --tokens many", "'many' is no number of tokens"),
        ("fit tuned --text my.txt --rank lots", "'lots' is no rank"),
        ("fit tuned --text my.txt --rank 97", "between 0 and d_model = 96"),
        ("fit tuned --text my.txt --placement above", "choose from raw, normed"),
        ("fit tuned --text my.txt --steps 0", "--steps should be at least 1"),
        ("fit tuned --text my.txt --batch 0", "--batch should be at least 1"),
        ("fit tuned --text my.txt --seq-len 513", "at most 512 tokens"),
        ("fit tuned --text my.txt --seq-len 2", "at least 3 positions"),
        ("fit tuned --text my.txt --name a/b", "'a/b' is no name of a folder"),
        ("fit tuned --text my.txt --name .hidden", "is no name of a folder"),
        ("fit tuned --text my.txt --name ''", "'' is no name of a folder"),
        (f"fit tuned --text my.txt --name {'x' * 201}", "is no name of a folder"),
        ("fit tuned --text my.txt --name 'two\nlines'", "is no name of a folder"),
        ("fit tuned --text my.txt --name taken", "'lenses/taken' is already there"),
        ("fit tuned --text my.txt --name taken", "remove it first"),
        ("fit tuned --text my.txt --out lenses/taken", "is a lens' own folder"),
        ("fit tuned --text my.txt --out my.txt", "cannot be made or written to"),
        ("fit tuned --text my.txt --seed 9223372036854775808", "64-bit"),
        ("fit tuned --text my.txt --memory lots", "write it as 4GiB"),
        ("fit tuned --text my.txt --device tpu", "choose auto, cpu, cuda"),
        ("fit tuned ./nowhere --text my.txt", "There is no folder './nowhere'"),
        ("fit tuned --text my.txt --seq-len 512", "one sequence needs 512"),
        ("fit prism --text nope.txt", "There is no file 'nope.txt'"),
        ("fit prism --text my.txt --k 97", "between 1 and d_model = 96"),
        ("fit prism --text my.txt --k 0", "--k should be at least 1"),
        ("fit prism --text my.txt --vectors 19", "at least 20 vectors"),
        ("fit prism --text my.txt --method rotate", "choose from procrustes_to_final, by_rank"),
        ("fit prism --text my.txt --name taken", "'lenses/taken' is already there"),
        ("lens show nowhere", "no such folder"),
        ("lens show empty", "there is no fitted lens in it"),
        ("lens show lenses/taken", "should be layerscope-lens"),
        ("lens import theirs", "name it with --model"),
        ("lens import theirs --model layerscope/reference", "no such file or folder"),
    ],
)
def test_a_mistake_is_one_sentence_with_exit_code_2_before_any_text_is_read(command, says, tmp_path, monkeypatch):
    write_text(tmp_path, documents=8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lenses" / "taken").mkdir(parents=True)
    (tmp_path / "lenses" / "taken" / "lens.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    done = layerscope(command, tmp_path)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_name_a_lens_that_is_there_is_refused_before_text_is_read(work, monkeypatch):
    def read(*_, **__):
        raise AssertionError("text was read")

    monkeypatch.setattr("layerscope.fitting.corpus.read_corpus", read)
    for command in (FIT, PRISM):
        done = layerscope(command, work.folder)
        assert done.exit_code == 2, done.output
        assert "is already there; give another --out or --name" in done.stderr


def test_what_the_model_makes_impossible_is_refused_before_text_is_read(tmp_path, monkeypatch):
    def read(*_, **__):
        raise AssertionError("text was read")

    write_text(tmp_path)
    monkeypatch.setattr("layerscope.fitting.corpus.read_corpus", read)
    for words in ("fit tuned --rank 97", "fit prism --k 97", "fit tuned --seq-len 513"):
        assert layerscope(f"{words} --text my.txt", tmp_path).exit_code == 2
    assert isinstance(layerscope("fit tuned --text my.txt", tmp_path).exception, AssertionError)  # the guard works


# Showing


def test_show_prints_what_the_fit_printed(work):
    for kind, printed in (("tuned", work.tuned), ("prism", work.prism)):
        shown = layerscope(f"lens show lenses/reference-{kind}", work.folder)
        assert shown.exit_code == 0, shown.output
        assert shown.stdout == "\n".join(printed.stdout.splitlines()[:-1]) + "\n"


def test_nothing_is_wider_than_80_columns(work):
    listed = layerscope("lens show", work.folder)
    for printed in (work.tuned, work.prism, listed):
        assert max(map(len, printed.stdout.splitlines())) <= 80


def test_the_table_of_a_tuned_lens_has_the_records_held_out_numbers_by_layer(work):
    layers = work.record.tuned.layers
    table = _numbers(work.tuned.stdout)
    assert sorted(table) == list(range(N_LAYERS))
    for fit in layers:
        bits = (fit.logit_bits, fit.bias_bits, fit.closed_form_bits, fit.tuned_bits)
        assert table[fit.layer][:4] == pytest.approx(bits, abs=6e-4, rel=0.05)
    (mean,) = re.findall(r"^ *mean +(.*?) *$", work.tuned.stdout, flags=re.MULTILINE)
    tuned, logit = (sum(getattr(fit, f"{name}_bits") for fit in layers) / N_LAYERS for name in ("tuned", "logit"))
    assert [float(word) for word in (mean.split()[0], mean.split()[3])] == pytest.approx([logit, tuned], abs=6e-4)
    assert mean.split()[4] == f"{100 * (1 - tuned / logit):.0f}%"


def test_the_table_of_a_prism_lens_has_every_layer_and_a_mean_without_the_last(work):
    prism = read_record(work.folder / "lenses" / "reference-prism").prism
    table = _numbers(work.prism.stdout)
    assert sorted(table) == list(range(N_LAYERS + 1))
    for layer in range(N_LAYERS + 1):
        assert table[layer][:2] == pytest.approx((prism.logit_bits[layer], prism.held_out_bits[layer]), abs=6e-4)
    mean = re.search(r"^ *mean +(\S+) +(\S+)", work.prism.stdout, flags=re.MULTILINE)
    expected = [sum(bits[:-1]) / N_LAYERS for bits in (prism.logit_bits, prism.held_out_bits)]
    assert [float(mean[1]), float(mean[2])] == pytest.approx(expected, abs=6e-4)


def _numbers(shown: str) -> dict[int, list[float]]:
    """The table's rows by layer, as far as their words are numbers."""
    rows = {}
    for line in shown.splitlines():
        words = line.split()
        if re.match(r" *\d+ +[\d.]", line) and len(words) >= 4:
            rows[int(words[0])] = [float(word) for word in words[1:] if re.fullmatch(r"-?[\d.]+(e-?\d+)?", word)]
    return rows


def test_show_says_what_a_lens_belongs_to_and_what_it_was_fitted_on(work):
    shown = " ".join(layerscope("lens show lenses/reference-tuned", work.folder).stdout.split())
    record = work.record
    parts = record.corpus.splits
    assert f"n_layers 12, d_model 96, d_vocab 2,048); final norm and head {record.model.fingerprint[:8]}" in shown
    assert f"my.txt (30 documents, sha256 {record.corpus.sources[0].sha256[:8]})" in shown
    assert f"{parts['fit'].n_tokens:,} to fit, {parts['select'].n_tokens:,} to choose by" in shown
    assert f"weights sha256 {record.weights_sha256[:8]}" in shown
    assert all(" ".join(note.split()) in shown for note in record.notes)
    for skip in record.tuned.skip_layers:
        start = shown.index(f"{skip.blocks} blocks, from layer {skip.layer} on: perplexity ")
        assert f", {100 * (skip.perplexity_lens / skip.perplexity_model - 1):+.1f}%" in shown[start : start + 80]


def test_a_folder_of_several_is_a_list_with_held_out_means(work):
    shown = layerscope("lens show", work.folder).stdout
    rows = [line.split() for line in shown.splitlines() if line.startswith("reference-")]
    assert [row[:3] for row in rows] == [
        ["reference-prism", "prism", "layerscope/reference"],
        ["reference-tuned", "tuned", "layerscope/reference"],
    ]
    assert {row[3] for row in rows} == {CausalLM.open(BUNDLED).fingerprint[:8]}
    mean = sum(fit.tuned_bits for fit in work.record.tuned.layers) / N_LAYERS
    assert float(rows[1][5]) == pytest.approx(mean, abs=6e-4)


def test_show_says_whether_a_lens_belongs_to_a_model_and_why_not(work, tmp_path, tiny):
    own = layerscope("lens show lenses/reference-tuned --model layerscope/reference", work.folder)
    assert own.exit_code == 0, own.output
    assert own.stdout.splitlines()[-1] == "lenses/reference-tuned · belongs to layerscope/reference"
    other = layerscope(f"lens show lenses/reference-tuned --model {tiny('gpt2')}", work.folder)
    assert other.exit_code == 2
    assert "does not belong to" in other.stderr and "n_layers 12, d_model 96" in other.stderr
    assert other.stdout.startswith("tuned lens · layerscope/reference")  # it is shown all the same
    none = layerscope(f"lens show --model {tiny('gpt2')}", work.folder)
    assert none.exit_code == 2 and "None of these lenses" in none.stderr
    _finetuned(tmp_path / "finetuned")
    changed = layerscope(f"lens show lenses/reference-tuned --model {tmp_path / 'finetuned'}", work.folder)
    assert changed.exit_code == 2
    assert "another head or final norm" in changed.stderr


def _finetuned(folder: Path) -> None:
    """The bundled model with one number of its final norm changed."""
    from safetensors.torch import load_file

    folder.mkdir()
    for path in BUNDLED.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder)
    weights = load_file(BUNDLED / "model.safetensors")
    norm = weights["model.norm.weight"].clone()
    norm[0] += 1
    save_file({**weights, "model.norm.weight": norm}, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_damaged_lens_is_shown_and_then_refused(work, tmp_path):
    shutil.copytree(work.folder / "lenses" / "reference-tuned", tmp_path / "lens")
    weights = tmp_path / "lens" / "lens.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = layerscope("lens show lens", tmp_path)
    assert done.exit_code == 2
    assert done.stdout.startswith("tuned lens")
    assert "damaged" in done.stderr and len(done.stderr.splitlines()) == 1


def _shown(parts) -> str:
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


def test_layers_that_stopped_early_or_diverged_are_named(work):
    tuned = work.record.tuned
    ends = {2: "diverged", 3: "diverged", 4: "diverged", 7: "no_improvement"}
    layers = tuple(
        fit.model_copy(update={"stopped": ends.get(fit.layer, "budget"), "best_step": 0 if fit.layer == 9 else 5})
        for fit in tuned.layers
    )
    record = work.record.model_copy(update={"tuned": tuned.model_copy(update={"layers": layers})})
    shown = " ".join(_shown([lens_lines(record)]).split())
    assert "no better for a while: layer 7; diverged, the best before that kept: layers 2-4" in shown
    assert "kept as it started: layer 9" in shown
    calm = tuple(fit.model_copy(update={"stopped": "budget", "best_step": 5}) for fit in tuned.layers)
    record = work.record.model_copy(update={"tuned": tuned.model_copy(update={"layers": calm})})
    assert "no layer before its budget" in _shown([lens_lines(record)])


@pytest.mark.parametrize(
    ("layers", "said"), [([], ""), ([4], "4"), ([0, 1, 2], "0-2"), ([0, 2, 3, 9, 11, 12], "0, 2-3, 9, 11-12")]
)
def test_runs_of_layers_are_written_as_ranges(layers, said):
    assert ranges(layers) == said


def test_what_a_record_says_cannot_steer_the_terminal(work):
    model = work.record.model.model_copy(update={"id": "a\x1b[31m[bold]b"})
    record = work.record.model_copy(update={"model": model, "notes": ("note\x07 [red]", "second")})
    found = LensFolder(record, Path("x\x1b[0m[i]"))
    shown = _shown([*lens_table(record), lens_lines(record), *lens_list([found])])
    assert "\x1b" not in shown and "\x07" not in shown
    assert r"a\x1b[31m[bold]b" in shown and r"note\x07 [red]" in shown and "[i]" in shown


# Importing


def _tuned_lens_folder(folder: Path) -> dict[str, torch.Tensor]:
    """What the tuned-lens library would save for the bundled model; gives what it holds."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    named = {}
    for i in range(N_LAYERS):
        named[f"{i}.weight"] = torch.randn(D_MODEL, D_MODEL, generator=generator)
        named[f"{i}.bias"] = torch.randn(D_MODEL, generator=generator)
    config = {
        "base_model_name_or_path": "layerscope/reference",
        "d_model": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "bias": True,
        "lens_type": "linear_tuned_lens",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(named, folder / "params.safetensors")
    return named


def test_an_imported_lens_is_a_sidecar_with_its_maps_and_is_shown(tmp_path):
    theirs = _tuned_lens_folder(tmp_path / "theirs")
    done = layerscope("lens import theirs --model layerscope/reference", tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "lens folder · lenses/reference-tuned-lens"
    assert "theirs (tuned-lens)" in " ".join(done.stdout.split())
    assert "nothing was measured on held-out text" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    sidecar = read_fitted_lens(tmp_path / "lenses" / "reference-tuned-lens")
    assert torch.equal(sidecar.tensors["layers.004.full"], theirs["4.weight"].T)
    again = layerscope("lens import theirs --model layerscope/reference", tmp_path)
    assert again.exit_code == 2 and "is already there" in again.stderr
    listed = layerscope("lens show", tmp_path).stdout.splitlines()[2].split()
    assert listed[:2] == ["reference-tuned-lens", "tuned"] and listed[-2:] == ["-", "-"]


def test_a_pickle_is_opened_only_with_leave(tmp_path):
    named = _tuned_lens_folder(tmp_path / "theirs")
    (tmp_path / "theirs" / "params.safetensors").unlink()
    torch.save(named, tmp_path / "theirs" / "params.pt")
    refused = layerscope("lens import theirs --model layerscope/reference", tmp_path)
    assert refused.exit_code == 2 and "--allow-pickle" in refused.stderr
    done = layerscope("lens import theirs --model layerscope/reference --allow-pickle --name leave", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "lenses" / "leave" / "lens.json").exists()


def test_a_lens_of_another_model_is_not_imported(tmp_path, tiny):
    _tuned_lens_folder(tmp_path / "theirs")
    done = layerscope(f"lens import theirs --model {tiny('gpt2')}", tmp_path)
    assert done.exit_code == 2
    assert "12 layers with d_model 96" in done.stderr
    assert not list((tmp_path / "lenses").iterdir())


# Help


@pytest.mark.parametrize("command", ["lens show", *map(slow, ("fit", "fit tuned", "fit prism", "lens", "lens import"))])
def test_help_ends_with_three_commands_that_work_as_they_stand(command, work, tmp_path):
    shutil.copy(work.folder / "my.txt", tmp_path)
    if command.startswith("lens"):
        shutil.copytree(work.folder / "lenses", tmp_path / "lenses")
    if command == "lens import":
        _tuned_lens_folder(tmp_path / "theirs")
        shutil.copytree(BUNDLED, tmp_path / "model")
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*shlex.split(command), "--help"]).stdout
    text = shown[shown.index("Examples") :]
    words = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("layerscope ")]
    assert len(examples) == 3 and set(examples) <= set(words)  # none is wrapped, so that it can be copied
    for example in examples:
        done = layerscope(example.removeprefix("layerscope "), tmp_path)
        assert done.exit_code == 0, (example, done.output)
