"""Answer rows of the Jacobian lens: against whole graphs, whole exact fits and Transformers' own logits.

Tolerances are those of `jacobian_reference`. Tracked logits are float32 products of d_model terms, as are the logits
that they are held to: 1e-4 of the largest.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fit_texts import corpus_for, write_text
from jacobian_reference import TOLERANCE, jacobians, off
from layerscope import AnswerRows, fit_answer_rows, fit_jacobian, read_answer_rows, track_answers
from layerscope.analysis.answer_tracking import least_beyond, places
from layerscope.bundled import BUNDLED
from layerscope.cli.main import app
from layerscope.errors import LensError, SuiteError
from layerscope.fitting import answer_rows as fitting
from layerscope.fitting.answer_rows import JudgedAnswers, JudgedToken, against_mean, fit_rows
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.options import JacobianSettings
from layerscope.lens_record import FittedModel
from layerscope.model.blockwise import BlockCall, BlockInHand
from layerscope.model.causal_lm import CausalLM
from layerscope.model.pulled_back import pull_back
from layerscope.model.signature import model_signature
from layerscope.progress import SilentFit
from layerscope.unembedding import Unembedding
from properties import slow
from tiny_models import TINY

FEW = JacobianSettings(prompts=3, first_position=4)
TOKENS = (5, 17, 101, 250)
LAYER = 6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "my.txt")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return CausalLM.open(TINY["phi"].build(tmp_path_factory.mktemp("tiny") / "model"), device="cpu")


@pytest.fixture(scope="module")
def tiny_corpus(tiny: CausalLM, text: Path) -> Corpus:
    return corpus_for(tiny, text, 12)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM.open(BUNDLED, device="cpu")


@pytest.fixture(scope="module")
def corpus(model: CausalLM, text: Path) -> Corpus:
    return corpus_for(model, text, 12)


@pytest.fixture(scope="module")
def rows(model: CausalLM, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> AnswerRows:
    return fit_answer_rows(model, corpus, "capitals", tmp_path_factory.mktemp("lenses") / "answers", FEW)


def _answers(token_ids: tuple[int, ...] = TOKENS) -> JudgedAnswers:
    tokens = tuple(JudgedToken(i, f"t{i}", (f"t{i}",), 1) for i in token_ids)
    return JudgedAnswers("made", "0" * 64, tokens, ())


# The rows


@pytest.mark.parametrize("family", [slow("qwen3"), slow("gemma3"), "gpt2"])
def test_they_are_rows_of_whole_graphs_through_gain_and_centring(family: str, tmp_path: Path, text: Path):
    """Of an RMS norm, of one that stores its gain less one, and of a layer norm, which centres."""
    tiny = CausalLM.open(TINY[family].build(tmp_path / "model"), device="cpu")
    corpus, own = corpus_for(tiny, text, 12), TINY[family].resident()
    found = fit_rows(tiny, corpus, tmp_path / "rows", _answers(), FEW)
    norm = own.transformer.ln_f if family == "gpt2" else own.model.norm
    gain = norm.weight + 1 if family == "gemma3" else norm.weight
    head = own.lm_head.weight.detach()[list(TOKENS)].double()
    read = (head - head.mean(0)) * gain.double()
    if family == "gpt2":
        read = read - read.mean(1, keepdim=True)
        bias = head @ norm.bias.detach().double()
        wanted = [float(value) for value in bias - bias.mean()]
        assert [answer.constant for answer in found.record.answers] == pytest.approx(wanted, abs=1e-6)
    order = torch.randperm(len(corpus.fit), generator=torch.Generator().manual_seed(FEW.seed))[:3]
    matrices = jacobians(own, corpus.fit[order], slice(4, 11)).double()
    assert off(found.directions, read.detach()) < TOLERANCE
    for layer, matrix in enumerate(matrices):
        assert off(found.vectors[layer], (read @ matrix).detach()) < TOLERANCE


def test_they_are_rows_of_a_whole_exact_fit_with_its_prompts_and_tell_the_spread_of_each(
    tiny: CausalLM, tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However many prompts go back together; and the spread is that of fits to single prompts."""
    whole = fit_jacobian(tiny, tiny_corpus, tmp_path / "whole", replace(FEW, method="exact"))
    monkeypatch.setattr(fitting, "MOST_PROMPTS", 2)
    found = fit_rows(tiny, tiny_corpus, tmp_path / "rows", _answers(), FEW)
    assert found.record.prompts_sha256 == whole.record.jacobian.prompts_sha256
    order = torch.randperm(len(tiny_corpus.fit), generator=torch.Generator().manual_seed(FEW.seed))[:3]
    single = []
    for prompt in order.tolist():
        alone = replace(tiny_corpus, fit=tiny_corpus.fit[prompt : prompt + 1])
        single.append(fit_rows(tiny, alone, tmp_path / f"rows-{prompt}", _answers(), FEW).vectors.double())
    by_prompt = torch.stack(single)
    for layer in range(tiny.n_layers):
        matrix = whole.tensors[f"layers.{layer:03d}.jacobian"].double()
        assert off(found.vectors[layer], found.directions.double() @ matrix) < TOLERANCE
        told = found.record.layers[layer]
        for answer in range(len(TOKENS)):
            each = by_prompt[:, layer, answer]
            variance = float((each - each.mean(0)).square().sum()) / 2
            sigma = (variance / (float(each.mean(0).square().sum()) - variance / 3)) ** 0.5
            assert told.sigma[answer] == pytest.approx(sigma, rel=1e-4)
            assert told.standard_error[answer] == pytest.approx(sigma / 3**0.5, rel=1e-4)


def test_of_a_linear_model_they_are_products_of_its_matrices_to_the_bit():
    """Whole numbers small enough that no sum rounds, but for the mean over three positions, each of them the same."""

    class Map(nn.Module):
        def __init__(self, matrix: Tensor) -> None:
            super().__init__()
            self.matrix = matrix

        def forward(self, stream: Tensor) -> Tensor:
            return stream @ self.matrix.T

    generator = torch.Generator().manual_seed(4)
    matrices = [torch.randint(-2, 3, (6, 6), generator=generator).float() for _ in range(3)]
    head = torch.randint(-8, 9, (9, 6), generator=generator).float()
    read, constants = against_mean(Unembedding.of(head), (2, 3, 5, 7))
    assert torch.equal(read, (head - head[[2, 3, 5, 7]].mean(0))[[2, 3, 5, 7]].double())
    assert torch.equal(constants, torch.zeros(4, dtype=torch.float64))
    stream = torch.ones(1, 5, 6)
    blocks = [BlockInHand(i, Map(m), BlockCall((), {}, by_keyword=False), 0) for i, m in enumerate(matrices)]
    pulled = pull_back(blocks, [stream] * 3, read.float(), slice(1, 4), lend=lambda i: None, drop=lambda i: None)
    product = torch.eye(6)
    for layer in (2, 1, 0):
        product = product @ matrices[layer]
        assert torch.equal(pulled[layer, :, 0], read @ product.double())


# What they read


def test_tracked_logits_of_the_last_layer_are_the_models_own_up_to_the_norms_scale(model: CausalLM, rows: AnswerRows):
    ids = AutoTokenizer.from_pretrained(BUNDLED)("The capital of Italy is called", return_tensors="pt").input_ids
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    kept: list[Tensor] = []
    hook = own.model.norm.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    with torch.inference_mode():
        logits = own(ids).logits[0, -1, list(rows.token_ids)]
    hook.remove()
    final = kept[0][0, -1]
    tracked = rows.tracked(final, model.n_layers)
    assert torch.allclose(tracked, rows.directions @ final, rtol=1e-5)
    scale = torch.rsqrt(final.square().mean() + own.config.rms_norm_eps)
    wanted = logits - logits.mean()
    assert float((scale * tracked - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    with pytest.raises(LensError, match=f"layers 0 to {model.n_layers}, but {model.n_layers + 1} was asked for"):
        rows.tracked(final, model.n_layers + 1)


def test_facts_are_counted_as_transformers_reads_them(model: CausalLM, rows: AnswerRows):
    found = track_answers(model, rows, "capitals")
    pairs = {"Germany": "Berlin", "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Canada": "Ottawa"}
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    ids = [tokenizer(f" {city}", add_special_tokens=False).input_ids[0] for city in pairs.values()]
    assert rows.token_ids == tuple(ids)
    own = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    text = "Give the city name only, plain text. The capital of {} is called simply"
    tracked, logit = [], []
    for subject in pairs:
        with torch.inference_mode():
            said = own(tokenizer(text.format(subject), return_tensors="pt").input_ids, output_hidden_states=True)
            state = said.hidden_states[LAYER][0, -1]
            tracked.append(rows.vectors[LAYER] @ state)
            logit.append(own.lm_head(own.model.norm(state))[ids])
    layer = found.layers[LAYER]
    wanted = [sum(int(values.argmax()) == i for i, values in enumerate(each)) for each in (tracked, logit)]
    assert [layer.jacobian_first, layer.logit_first] == wanted
    last = found.layers[-1]
    assert (last.layer, last.jacobian_first, last.jacobian_place) == (12, last.logit_first, last.logit_place)
    assert (found.n_facts, found.n_answers, found.by_chance, found.n_most_common) == (5, 5, 1.0, 1)


def test_places_and_guesses_by_hand():
    """Of two layers, two facts and three answers: the second fact's answer ties at the first layer."""
    values = np.array([[[3.0, 1, 2], [5, 5, 4]], [[0, 1, 2], [9, 5, 4]]])
    assert places(values, np.array([0, 1])).tolist() == [[1, 2], [3, 2]]
    assert [least_beyond(2, 0.5, at_most) for at_most in (0.2, 0.25, 0.75, 1.0)] == [None, 2, 1, 0]


# Which tokens


def test_answers_that_share_their_token_have_one_row_and_say_so(model: CausalLM, corpus: Corpus, tmp_path: Path):
    facts = [("Germany", "Berlin"), ("a lake", "Berkeley"), ("a bear", "Berlin"), ("a hill", "Berkshire")]
    suite = [{"prompt": f"The name of {subject} is", "answer": answer} for subject, answer in facts]
    found = fit_answer_rows(model, corpus, suite, tmp_path / "answers", replace(FEW, prompts=1))
    counts = {answer.token.strip(): (answer.answers, answer.n_facts) for answer in found.record.answers}
    assert counts == {"Berlin": (("Berlin",), 2), "Ber": (("Berkeley", "Berkshire"), 2)}
    assert found.vectors.shape[1] == 2
    (note,) = [note for note in found.record.notes if "cannot be told apart" in note]
    assert note.startswith("These answers begin with the same token and cannot be told apart: Berkeley, Berkshire (")
    assert track_answers(model, found, suite).n_most_common == 2
    with pytest.raises(LensError, match=r"at least 2 different tokens, .* has 1 in"):
        fit_answer_rows(model, corpus, suite[::2], tmp_path / "one", FEW)
    with pytest.raises(LensError, match="none of its answers"):
        track_answers(model, found, [{"prompt": "The capital of Italy is", "answer": "Rome"}])
    with pytest.raises(SuiteError, match="no fact with an answer"):
        fit_answer_rows(model, corpus, ["A prompt without an answer"], tmp_path / "none", FEW)


# Resuming, and whose they are


def test_a_killed_fit_goes_on_behind_the_prompts_that_are_done(
    tiny: CausalLM, tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fitting, "MOST_PROMPTS", 2)
    settings, plans = replace(FEW, prompts=5), []
    whole = fit_rows(tiny, tiny_corpus, tmp_path / "whole", _answers(), settings)

    class Killed(SilentFit):
        def blocks(self, done: int, total: int) -> None:
            if done == total:  # the last rows have come back, and are not kept yet
                raise KeyboardInterrupt

    class Told(SilentFit):
        def plan(self, text: str) -> None:
            plans.append(text)

    with pytest.raises(KeyboardInterrupt):
        fit_rows(tiny, tiny_corpus, tmp_path / "rows", _answers(), settings, Killed())
    assert [path.name for path in tmp_path.glob(".rows.fit-*/rows-*")] == ["rows-000004.safetensors"]
    again = fit_rows(tiny, tiny_corpus, tmp_path / "rows", _answers(), settings, Told())
    assert "goes on behind prompt 4" in plans[0]
    assert again.record.weights_sha256 == whole.record.weights_sha256
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(LensError, match="already there"):
        fit_rows(tiny, tiny_corpus, tmp_path / "rows", _answers(), settings)


@pytest.mark.slow
def test_a_fit_ends_once_every_answer_has_settled(tiny: CausalLM, tiny_corpus: Corpus, tmp_path: Path):
    settings = replace(FEW, prompts=12, stop_from=2)
    ended, read = (
        fit_rows(tiny, tiny_corpus, tmp_path / str(at), _answers(), replace(settings, stop_at=at)).record
        for at in (0.9, 0.0001)
    )
    assert (ended.n_prompts, ended.stop_at, ended.stop_from, read.n_prompts) == (8, 0.9, 2, 12)
    assert any(note.startswith("It ended after 8 of 12 prompts") for note in ended.notes)
    assert max(ended.layers[2].standard_error) < 0.9


def _others(model: CausalLM) -> Iterator[tuple[FittedModel, str]]:
    signature = model_signature(model)
    yield (
        model_signature(model.shuffled_twin("blocks", 1)),
        "which .*as it was read|but this model has shuffled weights",
    )
    yield signature.model_copy(update={"blocks_fingerprint": "1" * 64}), "other blocks: other weights"
    yield signature.model_copy(update={"fingerprint": "1" * 64}), "another head or final norm"
    yield signature.model_copy(update={"tokenizer_sha256": "1" * 64}), "tokens of another tokenizer"
    yield signature.model_copy(update={"d_model": 95}), "n_layers 12, d_model 96"


def test_another_models_rows_are_refused_with_the_cause(model: CausalLM, rows: AnswerRows):
    rows.refuse_other(model_signature(model))
    for other, cause in _others(model):
        with pytest.raises(LensError, match=cause):
            rows.refuse_other(other)
    with pytest.raises(LensError, match="shuffled weights"):
        track_answers(model.shuffled_twin("blocks", 1), rows, "capitals")


def test_a_folder_comes_back_as_it_was_written_and_damage_is_refused(rows: AnswerRows, tmp_path: Path):
    again = read_answer_rows(rows.folder)
    assert again.record == rows.record
    assert torch.equal(again.vectors, rows.vectors) and torch.equal(again.directions, rows.directions)
    tensors = load_file(rows.folder / "answers.safetensors")
    for name in ("answers.json", "answers.safetensors"):
        (tmp_path / name).write_bytes((rows.folder / name).read_bytes())
    save_file(tensors | {"vectors": tensors["vectors"] + 1}, tmp_path / "answers.safetensors")
    with pytest.raises(LensError, match=r"its sha256 is not the one in answers\.json"):
        read_answer_rows(tmp_path)
    record = json.loads((tmp_path / "answers.json").read_text())
    (tmp_path / "answers.json").write_text(json.dumps(record | {"schema_version": "9.0"}))
    with pytest.raises(LensError, match="a newer layerscope wrote it"):
        read_answer_rows(tmp_path)
    (tmp_path / "answers.json").write_text(json.dumps(record | {"format": "layerscope-lens"}))
    with pytest.raises(LensError, match="no lens of answer rows"):
        read_answer_rows(tmp_path)


# From the command line


def _said(command: str, code: int = 0) -> str:
    """What a command prints: results, or its mistake."""
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, shlex.split(command))
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_the_command_fits_and_one_refuses_what_it_cannot(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fitted = _said(f"fit jacobian --text {text} --seq-len 24 --prompts 2 --answers capitals")
    assert fitted.splitlines()[-1] == "answer rows · lenses/reference-answers"
    assert "answers     Berlin, Paris, Rome, Tokyo, Ottawa" in fitted
    assert "no suite 'atlantis'" in _said(f"fit jacobian --text {text} --answers atlantis --name c", 2)


@pytest.mark.slow
def test_what_was_fitted_is_shown_listed_and_tracked(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    _said(f"fit jacobian --text {text} --seq-len 24 --prompts 2 --answers capitals")
    shown = _said("lens show lenses/reference-answers --model layerscope/reference")
    assert "answers     Berlin, Paris, Rome, Tokyo, Ottawa" in shown
    assert shown.splitlines()[-1] == "lenses/reference-answers · belongs to layerscope/reference"
    assert "lenses/reference-answers · answer rows, 5 tokens of suite 'capitals'" in _said("lens show")
    help_text = _said("lens track --help")
    examples = [line.strip() for line in help_text.splitlines() if line.strip().startswith("layerscope lens track")]
    assert len(examples) == 3
    table, as_json, _ = (_said(example.removeprefix("layerscope ")) for example in examples)
    found = json.loads(as_json)
    assert (found["n_facts"], found["by_chance"], len(found["layers"])) == (5, 1.0, 13)
    lines = [line.split() for line in table.splitlines()]
    for layer in found["layers"]:
        values = (layer["jacobian_first"], layer["jacobian_place"], layer["logit_first"], layer["logit_place"])
        assert [str(layer["layer"]), *(f"{value:g}" for value in values)] in lines
    words = f"fit jacobian --text {text} --seq-len 24 --answers capitals --correct 4 --name c"
    assert "leave out --correct" in _said(words, 2)
