"""A look at a text: its numbers against Transformers' own and against a probe's, its screen, and the command.

Tolerances are `rounding.ReadoutError` for two float32 passes, whose residuals lie `of_residual` apart.
"""

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer
from typer.testing import CliRunner

import layerscope as package
from command_line import in_a_process, layerscope
from layerscope import look, probe
from layerscope.cli.main import app
from layerscope.errors import LayerscopeError, LensError, ModelError, SuiteError
from layerscope.looking import make
from layerscope.looking.difference import _js_bits, difference, difference_screen
from layerscope.looking.look import Look
from layerscope.looking.options import LookOptions
from layerscope.looking.places import places
from layerscope.looking.screen import look_as_text, look_screen
from layerscope.looking.words import course
from layerscope.model.causal_lm import CausalLM
from layerscope.probing import outputs
from layerscope.report.numbers import short_text
from layerscope.report.text import visible
from layerscope.run import Run
from properties import examples
from rounding import ReadoutError, of_residual
from tiny_models import TINY, load_resident, reference

TEXT = "The capital of Germany is called"
OTHER = "The capital of France is called"


@pytest.fixture(scope="module")
def model(tiny) -> CausalLM:
    return CausalLM.open(tiny("qwen3"), device="cpu")


@pytest.fixture(scope="module")
def looked(model: CausalLM) -> Look:
    return look(model, TEXT, answer="Berlin", track=["Paris", " is"], lenses="logit,raw", positions="all", top=7)


def error_of(look: Look, logits: torch.Tensor) -> ReadoutError:
    size = float(logits.abs().max())
    return ReadoutError(of_residual(look.model.n_layers, look.model.d_model) * size, size)


# --- The numbers


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_every_number_is_what_transformers_modules_give(family: str, tiny):
    folder = tiny(family)
    found = look(folder, TEXT, answer="Berlin", track=["Paris", " is"], positions="all", device="cpu")
    theirs, head = reference(folder, list(found.encoded.token_ids)), load_resident(folder)
    with torch.inference_mode():
        logits = head.lm_head(head.model.norm(theirs.residuals)).double()
    if (cap := getattr(head.config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    log_p, off = logits.log_softmax(-1), error_of(found, logits)
    final = log_p[-1]
    followed = [tracked for tracked in found.tracked if tracked.token is not None]
    assert len(followed) > 1
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(2)
    kl = (log_p.exp() * (log_p - final)).sum(-1) / math.log(2)
    np.testing.assert_allclose(found.entropy_bits[0], entropy, rtol=off.relative, atol=off.bits)
    np.testing.assert_allclose(found.kl_to_final_bits[0], kl, rtol=2 * off.relative, atol=2 * off.bits)
    for at in np.ndindex(*found.entropy_bits.shape[1:]):
        row, ids = log_p[at], found.top_ids[(0, *at)]
        assert row[ids].tolist() == pytest.approx(np.log(found.top_probs[(0, *at)]), abs=2 * off.log_prob)
        assert float(row[ids[-1]]) >= float(row.sort(descending=True).values[len(ids) - 1]) - 2 * off.log_prob
        for tracked in followed:
            own = row[tracked.alignment.first_id]
            assert tracked.log_prob[(0, *at)] == pytest.approx(float(own), abs=2 * off.log_prob)
            least, most = (1 + int((row > own + step).sum()) for step in (2 * off.log_prob, -2 * off.log_prob))
            assert least <= tracked.rank[(0, *at)] <= most
    assert found.identity.ok
    assert found.output.top_ids[0] == int(final[-1].argmax())


def test_a_look_has_the_numbers_of_a_probe(model: CausalLM, looked: Look):
    suite = make.suite_of([TEXT], LookOptions(answer="Berlin"))
    run = probe(model, suite=suite, lenses="logit,raw", positions="all", top_k=7)
    off = error_of(looked, looked.logits(-1))
    rows = run.rows.sort("lens", "layer", "position")
    ours = looked.grid.sort("lens", "layer", "position")
    assert ours["position"].to_list() == rows["position"].to_list()
    np.testing.assert_allclose(ours["entropy_bits"], rows["entropy_bits"], rtol=off.relative, atol=off.bits)
    np.testing.assert_allclose(ours["kl_to_final_bits"], rows["kl_to_final_bits"], rtol=off.relative, atol=off.bits)
    ranks = rows.filter(lens="logit", position=len(looked.tokens) - 1)["answer_rank"].to_list()
    assert looked.rank("Berlin")["rank"].to_list() == ranks
    (prompt,) = run.record.suite.prompts
    assert looked.output.top_probs == pytest.approx(prompt.output.top_probs, rel=off.relative)
    assert looked.tracked[0].alignment.first_id == prompt.answers[0].first_id


def test_whole_logits_and_residuals_are_those_the_numbers_are_of(looked: Look):
    for lens, layer, position in (("logit", 0, 2), ("raw", 3, 0), ("logit", -1, -1)):
        log_p = looked.logits(layer, position, lens).double().log_softmax(-1)
        off = error_of(looked, looked.logits(layer, position, lens))
        (token, p), *_ = looked.top(layer, position, lens)
        assert p == pytest.approx(float(log_p.max().exp()), rel=off.relative)
        assert token == looked.model.tokens.display([int(log_p.argmax())])[int(log_p.argmax())]
    assert torch.equal(looked.residual(2, 1), looked.residuals[2, 1])
    final = looked.model.final_norm(looked.residual(-1)[None])
    assert torch.equal(looked.logits(-1), looked.model.unembedding.logits(final)[0])


def test_several_texts_at_once_are_each_as_if_alone(model: CausalLM, looked: Look):
    options = LookOptions(answer="Berlin", track=["Paris", " is"], lenses="logit,raw", positions="all", top=7)
    first, second = make.looks(model, [TEXT, "Once"], options)
    (alone,) = make.looks(model, ["Once"], options)
    for one, other in ((first, looked), (second, alone)):
        assert one.tokens == other.tokens and one.positions == other.positions
        off = error_of(one, one.logits(-1))
        np.testing.assert_allclose(one.entropy_bits, other.entropy_bits, rtol=off.relative, atol=off.bits)
        for a, b in zip(one.tracked, other.tracked, strict=True):
            assert a.token == b.token
            np.testing.assert_allclose(a.log_prob, b.log_prob, rtol=0, atol=2 * off.log_prob)


def test_only_what_was_asked_for_is_read(model: CausalLM):
    some = look(model, TEXT, layers="0,2-", positions="1-2")
    assert some.layers == (0, *range(2, model.n_layers + 1)) and some.positions == (1, 2)
    assert some.entropy_bits.shape == (1, len(some.layers), 2)
    assert look(model, TEXT, positions="last").positions == (len(some.tokens) - 1,)
    long = look(model, " ".join("abcdefghijklm"))
    assert long.positions == tuple(range(len(long.tokens) - 8, len(long.tokens)))
    with pytest.raises(LensError, match="was not looked at; looked at were layers 0, 2-"):
        some.top(1, 1)
    with pytest.raises(LensError, match="Layers go from 0 to"):
        some.residual(99)
    with pytest.raises(LensError, match="no lens 'tuned' here; choose from logit"):
        some.top(0, 1, "tuned")
    with pytest.raises(LensError, match="'Rome' was not followed here"):
        some.rank("Rome")


def test_a_chat_is_read_as_the_template_writes_it(tmp_path: Path):
    folder = TINY["qwen3"].build(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    tokenizer.save_pretrained(folder)
    found = look(folder, "Name a city.", chat=True, system="Be short.", device="cpu")
    assert found.text == "<system>Be short.<user>Name a city.<assistant>"
    assert "chat, as the model's template writes it" in " ".join(str(found).split())
    with pytest.raises(SuiteError, match="belong to a chat"):
        look(folder, "Name a city.", system="Be short.", device="cpu")


def test_rows_that_are_not_finite_are_said_to_be(model: CausalLM, monkeypatch):
    forward = CausalLM.forward

    def broken(self: CausalLM, *args: object, **kwargs: object):
        residuals = forward(self, *args, **kwargs)
        residuals.values[:, 1] = math.nan
        return residuals

    monkeypatch.setattr(CausalLM, "forward", broken)
    found = look(model, TEXT, answer="Berlin")
    assert found.top(1) == [] and found.top(2) != []
    assert found.rank("Berlin")["rank"].to_list()[1] is None and found.rank("Berlin")["p"].to_list()[1] is None
    gone = found.grid.filter(layer=1)
    for name in ("entropy_bits", "kl_to_final_bits", "p_top", "top_token", "top_ids", "top_tokens", "top_probs"):
        assert gone[name].null_count() == len(found.positions), name
    assert "not finite" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_where_the_identity_check_fails_probabilities_are_withheld_and_ranks_stand(model: CausalLM, monkeypatch):
    sound = look(model, TEXT, answer="Berlin")
    monkeypatch.setattr(outputs, "TOLERANCE_BITS", -1.0)
    found = look(model, TEXT, answer="Berlin")
    assert not found.identity.ok
    assert np.isnan(found.top_probs).all() and np.isnan(found.entropy_bits).all()
    assert found.rank("Berlin")["rank"].to_list() == sound.rank("Berlin")["rank"].to_list()
    assert found.rank("Berlin")["p"].null_count() == len(found.layers)
    assert "identity check FAILED" in str(found)
    cells = found.to_dict()["grid"]
    assert all(cell["entropy_bits"] is None and cell["top"][0]["p"] is None for cell in cells)
    assert difference(found, sound).reason == "the identity check failed, so there is no divergence of distributions"


def test_words_that_cannot_be_followed_are_named(model: CausalLM):
    found = look(model, TEXT, track=["Berlin", "internationalisation", "\n"])
    whole, pieces = found.tracked[0], found.tracked[1]
    assert whole.token is not None and len(pieces.alignment.answer_ids) > 1
    n = len(pieces.alignment.answer_ids)
    told = f"'internationalisation' is followed through the first of its {n} pieces, {visible(pieces.token)}"
    assert told in " ".join(str(found).split())
    unfollowed = [t for t in look(model, TEXT, track=[" Rome", " Wien", "\n", "日"]).tracked if t.token is None]
    assert unfollowed
    for each in unfollowed:
        assert f"({each.alignment.reason})" in str(look(model, TEXT, track=[each.word]))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"text": ""}, SuiteError, "Text 1 is empty"),
        ({"text": "\ud800"}, SuiteError, "should be Unicode"),
        ({"top": 0}, LensError, "top should be at least 1"),
        ({"track": "a,,b"}, SuiteError, "An empty word came"),
        ({"lenses": "logit,lens"}, LensError, "lens"),
        ({"layers": "0-99"}, LayerscopeError, "The layers are counted from 0 to 4 here"),
        ({"positions": "first"}, LayerscopeError, "'first' names no tokens"),
        ({"device": "cpu"}, ModelError, "An open model has its device"),
        ({"lenses": "tuned"}, LensError, "tuned"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, object], error: type, sentence: str, model: CausalLM):
    with pytest.raises(error, match=re.escape(sentence)):
        look(model, **{"text": TEXT, **options})


# --- Layers and positions in words


@examples(100)
@given(st.integers(1, 90), st.data())
def test_places_are_those_that_were_written(n: int, data: st.DataObject):
    wanted = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    singles = ",".join(map(str, data.draw(st.permutations(sorted(wanted)))))
    assert places(singles, n, "layers") == tuple(sorted(wanted))
    first, last = min(wanted), max(wanted)
    assert places(f"{first}-{last}", n, "layers") == tuple(range(first, last + 1))
    assert places(f" {first}- , {last}", n, "layers") == tuple(range(first, n))


@pytest.mark.parametrize("words", ["", "a", "1;2", "-3", "3-1", "10", "0-10", "1,,2", "1-2-3"])
def test_other_words_are_refused(words: str):
    with pytest.raises(LayerscopeError, match=r"0 to 9|should not end before it begins"):
        places(words, 10, "layers")


# --- Two looks


def test_the_difference_is_the_divergence_of_the_two_distributions(model: CausalLM):
    a, b = (look(model, text, track="Berlin") for text in (TEXT, OTHER))
    found = difference(a, b)
    assert found.reason is None and [d.layer for d in found.layers] == list(a.layers)
    for each in found.layers:
        p, q = (side.logits(each.layer).double().softmax(-1) for side in (a, b))
        m = (p + q) / 2
        expected = float((p * (p / m).log2()).sum() + (q * (q / m).log2()).sum()) / 2
        off = error_of(a, torch.stack([a.logits(each.layer), b.logits(each.layer)]))
        assert each.js_bits == pytest.approx(expected, abs=2 * off.bits)
        assert (each.top_a, each.top_b) == (a.top(each.layer)[0][0], b.top(each.layer)[0][0])
        if found.words:
            (pair,) = each.ranks
            assert pair == tuple(s.rank("Berlin").filter(layer=each.layer)["rank"].item() for s in (a, b))
    assert found.words == ("Berlin",)
    assert all(d.js_bits == 0 for d in difference(a, a).layers)
    elsewhere = [look(model, text, track="Berlin", positions="0-1") for text in (TEXT, OTHER)]
    assert difference(*elsewhere).layers == found.layers  # at the last token, whatever places were looked at
    apart = difference(look(model, TEXT, layers="0"), look(model, TEXT, layers="1"))
    assert (apart.layers, apart.reason) == ((), "no layer was read in both")


def test_an_id_that_is_ruled_out_has_no_part_in_the_divergence():
    ruled_out = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, -math.inf]])
    other = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, 0.0]])
    p, q = other.double().softmax(-1)[1], ruled_out.double().softmax(-1)[1]
    m = (p + q) / 2
    expected = float((p * (p / m).log2()).sum() + (q[:2] * (q[:2] / m[:2]).log2()).sum()) / 2
    assert _js_bits(ruled_out, other) == [0.0, pytest.approx(expected, abs=1e-12)]
    assert _js_bits(ruled_out, torch.full((2, 3), math.nan)) == [None, None]


def test_models_of_other_depth_or_tokens_are_not_set_against_one_another(model: CausalLM, tiny, tmp_path: Path):
    a, bundled = look(model, TEXT), look(text=TEXT)
    assert bundled.model.n_layers != model.n_layers and difference(a, bundled).layers == ()
    assert "blocks, so layers are not set against one another" in difference(a, bundled).reason
    folder = TINY["qwen3"].build(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"version": "1.0", "padding": None}, indent=7))
    other = difference(a, look(folder, TEXT, device="cpu"))
    assert "different tokens" in other.reason
    assert [each.top_a for each in other.layers] == [a.top(layer)[0][0] for layer in a.layers]
    assert all(each.js_bits is None for each in other.layers)


# --- The screen


@pytest.mark.parametrize("width", [72, 80, 120, 200])
def test_a_screen_fits_its_width_and_shows_its_numbers_whole(width: int, model: CausalLM):
    words = ["Berlin", "Paris", " is", " the", "a"]
    found = look(model, TEXT, track=words, lenses="logit,next_norm", positions="all")
    lines = look_as_text(found, width).splitlines()
    assert max(map(len, lines)) <= width
    assert visible(found.output.top_tokens[0]) in lines[1]
    followed = [t for t in found.tracked if t.token is not None]
    heads = [i for i, line in enumerate(lines) if line.startswith("layer") or line.lstrip().startswith("layer ")]
    assert len(heads) == 2  # a grid for each lens
    for lens, head in enumerate(heads):
        shown = lines[head].count("rank of")
        assert 1 <= shown <= len(followed)
        for i, layer in enumerate(found.layers):
            row = lines[head + 2 + i].split()
            p, bits = found.top_probs[lens, i, -1, 0], found.entropy_bits[lens, i, -1]
            ranks = [f"{int(t.rank[lens, i, -1]):,}" for t in followed[:shown]]
            assert row[0] == str(layer)
            assert row[-shown - 2 :] == [short_text(float(p)), f"{bits:.2f}", *ranks]


def test_a_tall_model_is_shown_by_evenly_spaced_layers(looked: Look, monkeypatch):
    monkeypatch.setattr("layerscope.looking.screen.MOST_ROWS", 2)
    n = len(looked.layers)
    step = -(-n // 2)
    text = str(looked)
    assert f"one layer of {step} is shown, of {n}; --layers 0- shows all" in text
    console = Console(width=100, record=True, file=io.StringIO())
    for part in look_screen(looked, 100, every_layer=True):
        console.print(part)
    assert "is shown, of" not in console.export_text()


@examples(300)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.booleans())
def test_what_is_said_of_a_rank_s_course_is_so(ranks: list[int], every: bool):
    said = course(range(len(ranks)), ranks, every=every)
    tops = [layer for layer, rank in enumerate(ranks) if rank == 1]
    last = len(ranks) - 1
    if from_on := re.fullmatch(r"on top from layer (\d+) on", said):
        start = int(from_on[1])
        assert every and start < last and all(rank in (0, 1) for rank in ranks[start:])
        assert ranks[start] == ranks[last] == 1 and 1 not in ranks[:start]
    elif to_the_end := re.fullmatch(r"first on top at layer (\d+), to the end from (\d+)", said):
        first, start = map(int, to_the_end.groups())
        assert every and first == tops[0] < start and all(rank in (0, 1) for rank in ranks[start:])
        assert ranks[start] == ranks[last] == 1 and max(r for r in ranks[first:start]) > 1
    elif lost := re.fullmatch(
        r"first on top at layer (\d+)( of those read)?; (?:rank (\d+)|not finite) at (\d+)", said
    ):
        assert int(lost[1]) == tops[0] and int(lost[4]) == last and (lost[2] is None) == every
        assert ranks[last] == int(lost[3] or 0) and not (every and ranks[last] == 1)
    elif once := re.fullmatch(r"(?:first )?on top at layer (\d+)( of those read)?", said):
        assert tops == [last] == [int(once[1])] and (once[2] is None) == every
    elif best := re.fullmatch(
        r"best rank (\d+) at layer (\d+)( of those read)?(?:; (?:rank (\d+)|not finite) at \d+)?", said
    ):
        known = [rank for rank in ranks if rank]
        assert (
            not tops and int(best[1]) == min(known) == ranks[int(best[2])] and ranks.index(min(known)) == int(best[2])
        )
        assert int(best[2]) == last or ranks[last] == int(best[4] or 0)
    else:
        assert said == f"no finite layer{'' if every else ' of those read'}" and not any(ranks)


@pytest.mark.parametrize(
    ("lenses", "layers", "sentence"),
    [
        ("logit", None, "p is the model's at layer 4, the lens' own elsewhere"),
        ("raw", None, "p is the lens' own at every layer shown"),
        ("logit,raw", None, "p is the model's at layer 4 under logit, the lens' own elsewhere"),
        ("logit", "0-2", "p is the lens' own at every layer shown"),
    ],
)
def test_whose_probabilities_they_are_is_said(lenses: str, layers: str | None, sentence: str, model: CausalLM):
    assert sentence in " ".join(str(look(model, TEXT, lenses=lenses, layers=layers)).split())


def test_a_look_is_printed_in_a_notebook_too(looked: Look, monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "next: " in str(looked)


# --- The command


def test_the_command_prints_what_the_model_says_and_a_grid(tiny, tmp_path: Path):
    done = in_a_process("look", str(tiny("qwen3")), TEXT, "--answer", "Berlin", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].endswith(TEXT) and lines[1].startswith("next: ")
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"in \d+\.\d s", lines[-1])
    assert list(tmp_path.iterdir()) == []  # it only looks


def test_json_is_the_look_itself(tiny, tmp_path: Path):
    words = ("--answer", "Berlin", "--track", "Paris", "--positions", "all", "--device", "cpu")
    done = layerscope("look", str(tiny("qwen3")), TEXT, *words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    here = look(tiny("qwen3"), TEXT, answer="Berlin", track="Paris", positions="all", device="cpu").to_dict()
    assert found == json.loads(json.dumps(here))
    assert [token["id"] for token in found["tokens"]]
    assert {"lens", "layer", "position", "entropy_bits", "kl_to_final_bits", "top"} == set(found["grid"][0])
    assert {at["layer"] for at in found["tracked"][0]["at"]} == set(found["layers"])


def test_texts_come_from_arguments_files_and_standard_input(tiny, tmp_path: Path):
    (tmp_path / "texts.txt").write_text("One\n\nTwo words\n", encoding="utf-8")
    folder = str(tiny("qwen3"))
    done = layerscope("look", folder, "Zero", "--file", "texts.txt", "--json", cwd=tmp_path)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["Zero", "One", "Two words"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ("look", folder, "--stdin", "--json")
    piped = CliRunner().invoke(app, words, input="Three\nlines\n")
    assert json.loads(piped.stdout)["text"] == "Three\nlines"
    command = (sys.executable, "-m", "layerscope", *words)
    broken = subprocess.run(command, input=b"caf\xe9", capture_output=True, env=environment)
    assert broken.returncode == 2 and b"should be text in UTF-8" in broken.stderr
    for words, sentence in (
        ((folder,), "There is no text to look at"),
        ((folder, "--file", "none.txt"), "cannot be read"),
        ((folder, TEXT, "--layers", "99"), "The layers are counted from 0 to 4 here"),
        ((str(tmp_path / "nothing"), TEXT), "There is no folder"),
    ):
        done = layerscope("look", *words, cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_words_for_which_a_difference_has_no_room_are_named(model: CausalLM):
    words = "Paris,Rome,Madrid,Berlin"
    a, b = (look(model, text, track=words, positions="last") for text in ("The capital of Italy is", "The sky is"))
    found = difference(a, b)
    for width, left in ((80, 2), (200, 0)):
        console = Console(file=io.StringIO(), width=width, highlight=False)
        for part in difference_screen(found, width):
            console.print(part)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("no room here" in shown) == (left > 0)
        assert all(visible(word) in shown for word in found.words)


def test_another_text_or_model_is_shown_with_the_difference(tiny, tmp_path: Path):
    folder = str(tiny("qwen3"))
    done = layerscope("look", folder, TEXT, "--against", OTHER, "--track", "Berlin", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "difference at the last token, a against b" in done.stdout and "JS (bits)" in done.stdout
    assert OTHER in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    done = layerscope("look", folder, TEXT, "--against-model", folder, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert all(layer["js_bits"] == 0 for layer in found["difference"]["layers"])
    assert found["against"]["text"] == TEXT


def test_save_writes_the_run_of_a_probe(tiny, tmp_path: Path):
    done = layerscope("look", str(tiny("qwen3")), TEXT, "Once", "--answer", "Berlin", "--save", "kept", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "kept").iterdir()
    run = Run.read(folder)
    assert [prompt.text for prompt in run.record.suite.prompts] == [TEXT, "Once"]
    assert run.rows.filter(pl.col("position") == 0).height > 0
    assert (folder / "view.html").exists() and f"run folder · kept/{folder.name}" in done.stdout
    done = layerscope("look", str(tiny("qwen3")), TEXT, "--json", "--save", "more", cwd=tmp_path)
    assert json.loads(done.stdout)["text"] == TEXT and "run folder · more/" in done.stderr
    (tmp_path / "file").write_text("")
    for words, sentence in (
        (("--save", "file"), "give another with --save"),
        (("--save", f"kept/{folder.name}"), "is a run's own folder"),
        (("--against", OTHER, "--against-model", "other"), "both came; give one of them"),
        (("--against-model", "other", "--lens-dir", "kept"), "A fitted lens is of one model"),
    ):
        done = layerscope("look", str(tiny("qwen3")), TEXT, *words, cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr


def test_the_names_are_the_package_s():
    assert package.look is look and package.Look is Look


@pytest.mark.slow
@pytest.mark.parametrize(("fixture", "word"), [("smollm2", "Berlin"), ("gemma", "Berlin")])
def test_real_models_are_followed_to_their_answer(fixture: str, word: str, request: pytest.FixtureRequest):
    found = look(request.getfixturevalue(fixture), TEXT, answer=word, track="Paris")
    assert found.identity.ok
    ranks = found.rank(word)["rank"].to_list()
    assert ranks[-1] < found.rank("Paris")["rank"].to_list()[-1] and ranks[-1] <= 3 < min(ranks[: len(ranks) // 2])
