"""Damaged, foreign and half-made models: each is refused by its own class of error and one sentence with a remedy.

Where numbers inside the model are broken, the run goes on and the broken rows are marked.

Tolerances. Two float32 passes of three small blocks: 3e-5 of logits of some ten (see `rounding.of_residual`).
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    dynamic_module_utils,
)

from layerscope import Prompt, Run, Suite, probe
from layerscope.errors import (
    CheckpointError,
    LayerscopeError,
    LensError,
    ModelError,
    NumericError,
    PlacementError,
    RunError,
    SuiteError,
    TokenizerError,
)
from layerscope.model import packing
from layerscope.model.answer_forms import Form
from layerscope.model.causal_lm import CausalLM
from layerscope.record.rows import COLUMNS
from tiny_models import TINY, observe, reference, tiny_tokenizer

Weights = dict[str, torch.Tensor]
BERLIN = Prompt("pos", "orig", "The capital of Germany is called", ("Berlin",), "Germany→Berlin", 0)
ROME = Prompt("pos", "orig", "Italy, plain text", ("Rome",), "Italy→Rome", 1)
SUITE = Suite("two", "", (BERLIN, ROME))
METRICS = [column.name for column in COLUMNS][[column.name for column in COLUMNS].index("finite") + 1 :]
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A sound tiny llama that a test may damage."""
    return Path(shutil.copytree(tiny("llama-biases"), tmp_path / "llama"))


def damaged(folder: Path, change: Callable[[Weights], object]) -> Path:
    """The checkpoint after `change` of its tensors."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refused(error: type[LayerscopeError], call: Callable[[], object]) -> str:
    """The sentence with which a call is refused; it must be one line."""
    with pytest.raises(LayerscopeError) as caught:
        call()
    assert type(caught.value) is error
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def refused_model(error: type[LayerscopeError], model: str | Path, **options: Any) -> str:
    return refused(error, lambda: CausalLM.open(model, device="cpu", **options))


# --- Where a model is looked for


def test_a_folder_that_is_not_there_is_named_with_what_to_give(tmp_path: Path):
    assert refused_model(CheckpointError, tmp_path / "nothing") == (
        f"There is no folder '{tmp_path / 'nothing'}'; give a folder with config.json, a tokenizer and *.safetensors, "
        "a GGUF file, a Hub id such as Qwen/Qwen3-8B, or hf:owner/name/file.gguf."
    )


def test_a_file_in_place_of_the_folder_is_refused(folder: Path):
    file = folder / "config.json"
    assert refused_model(CheckpointError, file) == (
        f"'{file}' is no GGUF file; give one, or the folder that holds config.json and *.safetensors."
    )


def test_a_revision_for_a_folder_is_refused(folder: Path):
    assert refused_model(CheckpointError, folder, revision="main") == (
        f"A revision belongs to a Hub id, but '{folder}' is a folder; leave --revision out, or give the Hub id."
    )


def test_a_hub_id_that_cannot_be_had_offline_is_refused_with_a_remedy(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    sentence = refused_model(CheckpointError, "some-org/some-model", revision="v1")
    assert sentence.startswith(
        "'some-org/some-model' is neither a folder here nor a model that could be had from the Hub at revision 'v1' ("
    )
    assert sentence.endswith("check the name, log in with `hf auth login` if it is gated, or give a folder.")
    assert not caplog.records


@pytest.fixture
def cached(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of `some-org/tiny-llama` in a Hub cache of its own, laid out as a download leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some-org--tiny-llama"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    (repository / "snapshots" / commit).mkdir(parents=True)
    for i, file in enumerate(tiny("llama-biases").iterdir()):
        blob = Path(shutil.copy(file, repository / "blobs" / f"{i:040x}"))
        (repository / "snapshots" / commit / file.name).symlink_to(blob)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return commit


@pytest.mark.parametrize("asked", [None, "main", "the commit"])
def test_a_cached_hub_id_is_recorded_with_revision_and_commit(asked: str | None, cached: str):
    revision = cached if asked == "the commit" else asked
    model = probe("some-org/tiny-llama", suite=SUITE, positions="last", revision=revision, device="cpu").record.model
    assert (model.id, model.revision, model.commit) == ("some-org/tiny-llama", revision, cached)


def test_a_revision_that_is_not_in_the_cache_is_refused(cached: str):
    assert "at revision 'v9'" in refused_model(CheckpointError, "some-org/tiny-llama", revision="v9")


# --- Configuration and tokenizer


def test_a_folder_without_config_is_refused(folder: Path):
    (folder / "config.json").unlink()
    assert refused_model(CheckpointError, folder) == (
        "The folder 'llama' holds no config.json; give a folder with config.json, a tokenizer and *.safetensors."
    )


@pytest.mark.parametrize(
    ("content", "place"), [(b'{\n "model_type": llama}', "line 2 column 16"), (b"", "line 1 column 1")]
)
def test_a_config_that_is_no_json_is_refused_with_the_place(content: bytes, place: str, folder: Path):
    (folder / "config.json").write_bytes(content)
    sentence = refused_model(CheckpointError, folder)
    assert sentence.startswith("config.json of 'llama' should hold JSON, but it is broken (")
    assert place in sentence
    assert sentence.endswith("; fetch it again.")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "model_type"),
        ([], "model_type"),
        ({"model_type": "never-heard-of"}, "never-heard-of"),
        ({"model_type": "llama", "num_hidden_layers": "three"}, "expected int, got str (value: 'three')"),
    ],
    ids=["no type", "a list", "unknown type", "wrong type of a field"],
)
def test_a_config_that_says_no_model_is_refused_with_the_reason(content: object, reason: str, folder: Path):
    (folder / "config.json").write_text(json.dumps(content))
    sentence = refused_model(ModelError, folder)
    assert sentence.startswith("config.json of 'llama' could not be understood (")
    assert reason in sentence
    assert sentence.endswith("with the config.json that came with it.")


@pytest.mark.parametrize("damage", ["missing", "no JSON"])
def test_a_folder_whose_tokenizer_cannot_be_read_is_refused(damage: str, folder: Path):
    (folder / "tokenizer.json").unlink()
    if damage == "missing":
        (folder / "tokenizer_config.json").unlink()
    else:
        (folder / "tokenizer.json").write_text("{broken")
    sentence = refused_model(TokenizerError, folder)
    assert sentence.startswith("No tokenizer could be read from the model's folder (")
    assert sentence.endswith("; put tokenizer.json and tokenizer_config.json beside config.json.")


# --- Weights


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed, and reads the file")
def test_a_sentencepiece_file_alone_says_what_reads_it(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    assert "the packages sentencepiece and protobuf" in refused_model(TokenizerError, folder)


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(tmp_path: Path):
    folder = TINY["llama-biases"].build(tmp_path, max_shard_size="30KB")
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].unlink()
    assert refused_model(CheckpointError, folder) == (
        f"model.safetensors.index.json names {len(shards)} shards, but 1 of them are not in the folder (first: "
        f"{shards[1].name}); complete the download."
    )


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(content: str, folder: Path):
    (folder / "model.safetensors.index.json").write_text(content)
    sentence = refused_model(CheckpointError, folder)
    assert sentence.startswith("model.safetensors.index.json should hold a JSON object with a weight_map, but it does ")
    assert sentence.endswith("; fetch it again.")


@pytest.mark.parametrize("kept", [0, 100, 1000, -1], ids=["nothing", "half a header", "a header", "all but a byte"])
def test_a_truncated_file_is_refused_with_its_size(kept: int, folder: Path):
    file = folder / "model.safetensors"
    content = file.read_bytes()[:kept]
    file.write_bytes(content)
    sentence = refused_model(CheckpointError, folder)
    assert sentence.startswith(f"model.safetensors ({len(content):,} bytes) is not a whole safetensors file (")
    assert sentence.endswith("; fetch it again.")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path):
    name = "model.layers.0.mlp.up_proj.weight"
    assert refused_model(CheckpointError, damaged(folder, lambda w: w.update({name: torch.zeros(5, 48)}))) == (
        f"Tensor '{name}' should have shape [56, 48] by config.json, but the checkpoint holds [5, 48]; use the "
        "config.json that belongs to these weights."
    )


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(name: str, folder: Path):
    sentence = refused_model(CheckpointError, damaged(folder, lambda w: w.pop(name)))
    assert re.fullmatch(
        rf"The model needs \d+ tensors, but 1 of them are not in the checkpoint \(first: {re.escape(name)}\); "
        r"use the checkpoint that belongs to this config\.json\.",
        sentence,
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["int8", "uint8"])
def test_codes_without_their_scales_are_refused_with_their_dtype(dtype: torch.dtype, folder: Path):
    name = "model.layers.1.mlp.up_proj.weight"
    damaged(folder, lambda w: w.update({name: torch.ones(56, 48).to(dtype)}))
    assert refused_model(CheckpointError, folder) == (
        f"Tensor '{name}' is stored as {str(dtype).removeprefix('torch.')} [56, 48] without what would tell its form: "
        "weights are read as floats, or in fp8, NF4, GPTQ, AWQ, compressed-tensors, MXFP4, NVFP4, MLX or GGUF; take "
        "the unquantised checkpoint."
    )


def test_a_folder_without_weights_is_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    assert refused_model(CheckpointError, folder) == (
        "The folder 'llama' holds no *.safetensors; give a folder with config.json, a tokenizer and weights."
    )


@pytest.mark.slow
def test_a_pickle_is_refused_with_a_command_that_converts_it(folder: Path, tmp_path: Path):
    before = CausalLM.open(folder, device="cpu").forward([[1, 2, 3]])
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    sentence = refused_model(CheckpointError, folder)
    assert sentence.startswith(
        "The folder holds pytorch_model.bin but no *.safetensors; pickles can run code and are not read. Convert them "
        'where you trust them: python -c "'
    )
    command = re.search(r'python (-c "[^"]+") and copy the tokenizer\'s files there\.$', sentence)
    assert command is not None
    done = subprocess.run(f"{sys.executable} {command[1]}", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    converted = folder.with_name("llama-safetensors")
    tiny_tokenizer().save_pretrained(converted)
    after = CausalLM.open(converted, device="cpu").forward([[1, 2, 3]])
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-6)  # the same weights, the same kernels


# --- Models that are no causal language models, or bring code


_BERT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_an_encoder_is_refused(tmp_path: Path):
    assert refused_model(ModelError, save(BertForMaskedLM(BertConfig(**_BERT)), tmp_path)) == (
        "The checkpoint is a BertForMaskedLM, no causal language model, so there is no next token to read; give a "
        "checkpoint with a language modelling head."
    )


def test_an_encoder_with_a_causal_head_that_looks_both_ways_is_refused(tmp_path: Path):
    assert refused_model(ModelError, save(BertLMHeadModel(BertConfig(**_BERT)), tmp_path)) == (
        "This 'bert' model is an encoder, but layerscope probes decoders only; give a decoder-only model."
    )


def test_an_encoder_decoder_is_refused(tmp_path: Path):
    t5 = T5Config(vocab_size=300, d_model=32, num_layers=1, num_heads=2, d_ff=32, d_kv=16)
    assert refused_model(ModelError, save(T5ForConditionalGeneration(t5), tmp_path / "t5")) == (
        "A 't5' model is no causal language model, so there is no next token to read; give a decoder-only model."
    )
    bart = BartConfig(vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1, forced_eos_token_id=None)
    assert refused_model(ModelError, save(BartForConditionalGeneration(bart), tmp_path / "bart")) == (
        "This 'bart' model is an encoder-decoder, but layerscope probes decoders only; give a decoder-only model."
    )


@pytest.fixture
def home_made(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a type of its own, whose Python file lies in its folder and leaves a trace where it runs."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # Transformers adds its cache of modules
    (folder / "home.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class HomeConfig(LlamaConfig):\n    model_type = 'home-made'\n"
        "class HomeForCausalLM(LlamaForCausalLM):\n    config_class = HomeConfig\n"
    )
    change_config(
        folder,
        model_type="home-made",
        architectures=["HomeForCausalLM"],
        auto_map={"AutoConfig": "home.HomeConfig", "AutoModelForCausalLM": "home.HomeForCausalLM"},
    )
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_remote_code_is_refused_unless_it_is_trusted(home_made: Path, tmp_path: Path):
    assert refused_model(ModelError, home_made) == (
        "A 'llama' model brings Python code of its own, which is not run by default; read the code, then pass "
        "--trust-remote-code (trust_remote_code=True), which the run records."
    )
    assert not (tmp_path / "ran").exists()


def test_a_verified_type_with_code_of_its_own_gets_whole_prompts(home_made: Path):
    """Its code may read the mask of folded prompts otherwise than Transformers' own does."""
    opening: dict[str, Any] = {"bos": "yes", "device": "cpu"}
    change_config(home_made, model_type="llama")
    (home_made / "home.py").write_text((home_made / "home.py").read_text().replace("'home-made'", "'llama'"))
    with_code = CausalLM.open(home_made, trust_remote_code=True, **opening)
    assert with_code.family_verified
    assert with_code.architecture.folds_up_to == 0


def test_trusted_code_is_run_and_recorded(home_made: Path, tmp_path: Path, tiny, monkeypatch):
    monkeypatch.setattr(packing, "fold", lambda token_ids: None)  # prompts of verified families alone are folded
    run = probe(home_made, suite=SUITE, positions="last", trust_remote_code=True, bos="yes", device="cpu")
    assert (tmp_path / "ran").exists()
    assert run.record.model.trust_remote_code is True
    assert (run.record.model.family, run.record.model.family_verified) == ("home-made", False)
    assert "family_not_verified" in run.record.flags
    assert run.record.identity.ok
    own = probe(
        tiny("llama-biases"), suite=SUITE, positions="last", bos="yes", device="cpu"
    )  # the same computation, without code
    assert run.rows.equals(own.rows)
    assert own.record.model.trust_remote_code is False


def test_code_next_to_a_family_that_transformers_has_is_left_alone(home_made: Path, tmp_path: Path):
    change_config(home_made, model_type="llama")
    assert CausalLM.open(home_made, device="cpu").family == "llama"
    assert not (tmp_path / "ran").exists()


# --- Numbers that are not finite


def flagged(run: Run) -> set[tuple[str, int]]:
    return {(flag.lens, flag.layer) for flag in run.record.numeric_health.layers_flagged}


@pytest.mark.parametrize("value", [NAN, INF], ids=["nan", "inf"])
def test_a_block_that_is_not_finite_spoils_its_own_layer_and_those_above_alone(value: float, folder: Path, monkeypatch):
    monkeypatch.setattr(packing, "fold", lambda token_ids: None)  # the broken model's prompts are not folded either
    whole = probe(folder, suite=SUITE, positions="all", device="cpu")
    name = "model.layers.2.mlp.down_proj.weight"
    run = probe(damaged(folder, lambda w: w[name][0, 0].fill_(value)), suite=SUITE, positions="all", device="cpu")

    above = pl.col("layer") >= 3  # block 2 writes what layer 3 reads
    spoilt, kept = run.rows.filter(above), run.rows.filter(~above)
    assert not spoilt["finite"].any()
    assert spoilt.select(pl.col(METRICS).is_null().all()).row(0) == (True,) * len(METRICS)
    assert kept["finite"].all()
    # What compares with the model's own output is gone; everything else is as if nothing had happened above.
    final = [
        "teacher_entropy_bits", "kl_to_final_bits", "kl_saturated", "cos_to_final", "cos_to_final_centered",
        "kl_to_final_bits_norm_temp",
    ]  # fmt: skip
    assert kept.select(pl.col(final).is_null().all()).row(0) == (True,) * len(final)
    assert kept.drop(final).equals(whole.rows.filter(~above).drop(final))

    assert flagged(run) == {(lens, layer) for lens in ("logit", "next_norm", "raw") for layer in (3, 4)}
    health = run.record.numeric_health
    assert health.any_nan
    assert health.any_inf == (value == INF)
    assert run.record.flags["numeric_health_caution"] == "6 (lens, layer) pairs are not finite"
    assert run.record.identity.ok is False
    assert run.record.identity.kl_bits is None
    assert run.record.identity.note == "No prompt has a finite final residual to compare."


@pytest.mark.parametrize(
    ("model", "name"),
    [("llama-biases", "model.layers.1.input_layernorm.weight"), ("gpt2", "transformer.h.1.ln_1.bias")],
)
def test_a_broken_norm_of_a_block_spoils_the_lens_that_decodes_through_it_too(model: str, name: str, tmp_path: Path):
    """A bias that is not finite was once taken for a norm of an unknown kind, and the model refused."""
    broken = damaged(TINY[model].build(tmp_path), lambda w: w[name][5].fill_(NAN))
    run = probe(broken, suite=SUITE, positions="last", device="cpu")
    n = run.record.model.n_layers
    everywhere = {(lens, layer) for lens in ("logit", "next_norm", "raw") for layer in range(2, n + 1)}
    assert flagged(run) == everywhere | {("next_norm", 1)}


def test_a_broken_embedding_spoils_the_prompts_that_hold_the_token_alone(folder: Path):
    model = CausalLM.open(folder, device="cpu")
    ids = model.tokens.input_ids(BERLIN.text)
    at = 3
    assert ids.count(ids[at]) == 1
    assert ids[at] not in model.tokens.input_ids(ROME.text)
    broken = damaged(folder, lambda w: w["model.embed_tokens.weight"][ids[at]].fill_(NAN))
    run = probe(broken, suite=SUITE, positions="all", lenses=("logit",), device="cpu")

    berlin, rome = run.rows.filter(fact_index=0), run.rows.filter(fact_index=1)
    assert rome["finite"].all()
    assert rome["kl_to_final_bits"].null_count() == 0
    # Which positions of its own prompt see it is for Transformers to say: a masked NaN is a NaN to some kernels.
    theirs = reference(broken, list(ids)).residuals.isfinite().all(-1)
    assert torch.equal(torch.tensor(berlin["finite"].to_list()).view(theirs.shape), theirs)
    assert theirs[0].tolist() == [i != at for i in range(len(ids))]
    assert not theirs[1:, at:].any()
    assert run.record.identity.ok  # checked on the other prompt
    assert run.record.identity.n_prompts == 1


@pytest.mark.parametrize("padding", [0, 1])
def test_an_unused_token_with_a_broken_embedding_changes_nothing(padding: int, folder: Path):
    """Prompts were once padded with id 0, whose NaN reached the real positions of every shorter prompt."""
    whole = probe(folder, suite=SUITE, positions="all", bos="no", device="cpu")
    assert all(padding not in prompt.token_ids for prompt in whole.record.suite.prompts)
    broken = damaged(folder, lambda w: w["model.embed_tokens.weight"][padding].fill_(NAN))
    run = probe(broken, suite=SUITE, positions="all", bos="no", device="cpu")
    assert run.rows.equals(whole.rows)
    assert not run.record.numeric_health.layers_flagged


@pytest.mark.parametrize("value", [NAN, INF], ids=["nan", "inf"])
def test_a_head_whose_weight_is_not_finite_is_refused(value: float, folder: Path):
    broken = damaged(folder, lambda w: w["lm_head.weight"][5, 0].fill_(value))
    sentence = refused(NumericError, lambda: probe(broken, suite=SUITE, device="cpu"))
    assert re.fullmatch(
        r"The unembedding gives NaN or infinite logits for \d+ of \d+ finite rows, so no probability can be trusted; "
        r"check the head's weight and bias in the checkpoint\.",
        sentence,
    )


@pytest.mark.parametrize(
    ("model", "name", "part"),
    [
        ("llama-biases", "model.norm.weight", "gain of the final norm before the head (model.norm)"),
        ("gpt2", "transformer.ln_f.weight", "gain of the final norm before the head (transformer.ln_f)"),
        ("gpt2", "transformer.ln_f.bias", "bias of the final norm before the head (transformer.ln_f)"),
        ("phi", "lm_head.bias", "bias of the unembedding"),
    ],
)
def test_a_final_norm_or_head_bias_that_is_not_finite_is_refused(model: str, name: str, part: str, tmp_path: Path):
    """A broken gain once left every row of the headline lens empty without an error."""
    broken = damaged(TINY[model].build(tmp_path), lambda w: w[name][5].fill_(NAN))
    size = load_file(broken / "model.safetensors")[name].numel()
    assert refused(NumericError, lambda: probe(broken, suite=SUITE, device="cpu")) == (
        f"The {part} should be finite, but 1 of its {size} values are NaN or infinite, so no probability can be "
        "trusted; fetch the checkpoint again, or find out where it was damaged."
    )


# --- Suites that do not fit the model


def asking(*prompts: Prompt) -> Suite:
    return Suite("own", "", prompts)


def test_an_empty_prompt_is_refused(tiny):
    empty = asking(Prompt("pos", "orig", "", ("Berlin",), "Germany→Berlin", 0))
    assert refused(TokenizerError, lambda: probe(tiny("llama-biases"), suite=empty, device="cpu")) == (
        "The prompt '' gives no token; a prompt needs at least one."
    )


def test_a_suite_without_prompts_is_refused(tiny):
    assert refused(SuiteError, lambda: probe(tiny("llama-biases"), suite=asking(), device="cpu")) == (
        "Suite 'own' holds no prompt; give it at least one fact."
    )


def test_a_prompt_without_an_answer_is_measured_but_for_its_answer(tiny):
    rome = Prompt("pos", "orig", "Rome", (), "Rome", 1)
    run = probe(tiny("llama-biases"), suite=asking(rome, BERLIN), device="cpu")
    unanswered, berlin = run.record.suite.prompts
    assert (unanswered.judge, berlin.judge) == ("model_top1", "first_piece")
    assert (run.record.suite.gold_alignment_rate, "gold_alignment_partial" in run.record.flags) == (1.0, False)
    rows = run.rows.filter(fact_index=1)
    about = ["answer_id", "p_answer", "answer_rank", "is_answer", "answer_mass", "cos_to_answer", "answer_logit_gap"]
    assert all(rows[name].null_count() == len(rows) for name in about)
    assert rows["entropy_bits"].null_count() == rows["kl_to_final_bits"].null_count() == 0
    output = unanswered.output
    assert (output.answer_id, output.answer_rank, output.p_answer) == (
        None,
        None,
        None,
    )
    last = rows.filter(lens="logit", layer=run.record.model.n_layers, is_next=True)
    assert output.top_ids[0] == last["top1_id"].item()
    alone = probe(tiny("llama-biases"), suite=asking(rome), device="cpu")
    assert alone.record.suite.gold_alignment_rate is None


def test_a_prompt_longer_than_the_model_reads_is_refused(tiny):
    model = CausalLM.open(tiny("gpt2"), device="cpu")
    word = "The capital of Germany is called"
    long = asking(BERLIN, Prompt("pos", "orig", " ".join([word] * 20), ("Rome",), "Italy→Rome", 1))
    length = len(model.tokens.input_ids(long.prompts[1].text))
    assert length > 64
    assert refused(SuiteError, lambda: probe(model, suite=long)) == (
        f"Prompt 2 of suite 'own' has {length} tokens, but {model.id} reads at most 64; shorten it."
    )


def test_a_prompt_as_long_as_the_model_reads_is_read(tiny):
    model = CausalLM.open(tiny("gpt2"), device="cpu")
    text = "The capital of Germany"
    while len(model.tokens.input_ids(text)) < 64:
        text += "."
    assert len(model.tokens.input_ids(text)) == 64
    run = probe(model, suite=asking(Prompt("pos", "orig", text, ("Berlin",), "Germany→Berlin", 0)), positions="last")
    theirs = observe(TINY["gpt2"].resident(), list(model.tokens.input_ids(text))).logits[-1].log_softmax(-1)
    last = run.rows.filter(lens="logit", layer=run.record.model.n_layers)
    assert last["p_top1"].item() == pytest.approx(float(theirs.exp().max()), rel=1e-3)


@pytest.mark.parametrize(
    ("error", "options", "sentence"),
    [
        (SuiteError, {"suite": "cities"}, "expected a built-in suite (berlin, capitals, capitals-20) or a path"),
        (LensError, {"lenses": ("logit", "tunned")}, "called 'tunned'; choose from logit, next_norm, raw"),
        (LensError, {"lenses": ()}, "No lens was asked for; choose from logit, next_norm, raw"),
        (LensError, {"lenses": ("raw", "raw")}, "Each lens can be asked for once, but the list is raw, raw."),
        (LensError, {"top_k": 0}, "top_k should be at least 1, but it is 0."),
        (LensError, {"seed": 2**63}, "A seed is a 64-bit integer, but it is 9223372036854775808."),
        (RunError, {"protocol": "own"}, "There is no protocol 'own'; choose from standard, published."),
        (SuiteError, {"positions": "first"}, "called 'first'; choose from auto, last, all."),
        (PlacementError, {"device": "tpu"}, "'tpu' is no device known here; choose auto, cpu, cuda or cuda:N."),
        (PlacementError, {"dtype": "int4"}, "'int4' is no dtype to compute in; choose auto, float32 or bfloat16."),
        (TokenizerError, {"bos": "maybe"}, "'maybe' does not say whether prompts start with BOS; choose auto, yes or"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_unknown_choice_is_refused_with_the_choices(
    error: type[LayerscopeError], options: dict[str, Any], sentence: str, tiny
):
    assert sentence in refused(error, lambda: probe(tiny("llama-biases"), **options))


def test_options_that_an_open_model_cannot_take_are_refused(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    for options in ({"memory": 1}, {"device": "cuda:7"}, {"dtype": "float32"}, {"bos": "no"}, {"revision": "main"}):
        assert "give those to CausalLM.open" in refused(ModelError, lambda options=options: probe(model, **options))


def widened_tokenizer(folder: Path, word: str) -> None:
    """A tokenizer that knows one more word than the model has ids for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    missing = CausalLM.open(folder, device="cpu").d_vocab - len(tokenizer)
    tokenizer.add_tokens([f"<unused{i}>" for i in range(missing)] + [word])
    tokenizer.save_pretrained(folder)


def test_a_prompt_with_an_id_that_the_model_does_not_embed_is_refused(folder: Path):
    widened_tokenizer(folder, "Germany")
    sentence = refused(TokenizerError, lambda: probe(folder, suite=SUITE, device="cpu"))
    assert sentence == (
        "Prompt 1 of suite 'two' has token id 307, but llama embeds 307 ids; use the tokenizer that belongs to these "
        "weights."
    )


def test_an_answer_whose_first_id_has_no_logit_is_unresolved(folder: Path):
    widened_tokenizer(folder, " Rome")
    run = probe(
        folder,
        suite=asking(replace(ROME, answer_form="space"), replace(BERLIN, fact_index=0)),
        device="cpu",
        positions="last",
    )
    assert [p.answers[0].reason for p in run.record.suite.prompts] == ["no_logit_for_first_id", None]
    assert run.rows.filter(fact_key="Italy→Rome")["answer_rank"].is_null().all()
    assert run.rows.filter(fact_key="Germany→Berlin")["answer_rank"].is_not_null().all()
    # The published rule takes that form, and no other in its place.
    run = probe(folder, suite=asking(ROME), device="cpu", positions="last", protocol="published")
    (found,) = run.record.suite.prompts[0].answers
    assert (found.reason, found.chosen_by) == ("no_logit_for_first_id", None)


@pytest.mark.parametrize("change", [{"hidden_act": "foo"}, {"rope_parameters": {"rope_type": "zork"}}])
def test_a_config_of_which_no_model_can_be_built_is_refused(change: dict[str, Any], folder: Path):
    change_config(folder, **change)
    assert "config.json of 'llama' could not be understood" in refused_model(ModelError, folder)


@pytest.mark.parametrize(("accepted", "spelled"), [(("Bonn", "Paris"), False), (("Bonn", "spelled"), True)])
def test_any_accepted_answer_that_does_not_align_may_be_spelled_by_the_top_token(accepted, spelled, tiny, monkeypatch):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    nowhere = (Form("with_space", (), (), reason="context_retokenised"),)
    monkeypatch.setattr(type(model.tokens), "forms", lambda self, prompt, answer: nowhere)
    first = probe(model, suite=asking(BERLIN), positions="last").rows.filter(lens="logit", layer=0)["top1"].item()
    answers = tuple(first.strip() if answer == "spelled" else answer for answer in accepted)
    run = probe(model, suite=asking(replace(BERLIN, answers=answers)), positions="last")
    assert run.rows.filter(lens="logit", layer=0)["is_answer"].item() is spelled


def test_a_flag_left_behind_on_plain_weights_is_noted_and_does_no_harm(folder: Path):
    plain = CausalLM.open(folder, device="cpu").forward([[0, 45]]).logits
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    model = CausalLM.open(folder, device="cpu")
    assert model.checkpoint.notes == (
        "config.json asks for bitsandbytes, but no weight is quantised: its `quantization_config` is ignored.",
    )
    assert torch.allclose(model.forward([[0, 45]]).logits, plain, atol=1e-5)  # files of other lengths lie otherwise


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_what_wrapped_models_put_before_names_is_taken_off_and_noted(prefix: str, folder: Path):
    plain = CausalLM.open(folder, device="cpu").forward([[0, 45]]).logits
    weights = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    model = CausalLM.open(folder, device="cpu")
    assert model.checkpoint.notes == (f"Names of tensors held '{prefix}', which was taken off.",)
    assert torch.allclose(model.forward([[0, 45]]).logits, plain, atol=1e-5)  # files of other lengths lie otherwise


def test_what_compiling_puts_inside_names_is_noted_once(folder: Path):
    weights = load_file(folder / "model.safetensors")
    inside = {name.replace("self_attn.", "_orig_mod.self_attn."): tensor for name, tensor in weights.items()}
    save_file({f"module.{name}": tensor for name, tensor in inside.items()}, folder / "model.safetensors")
    assert CausalLM.open(folder, device="cpu").notes == (
        "Names of tensors held '_orig_mod.', which was taken off.",
        "Names of tensors held 'module.', which was taken off.",
    )


def test_two_names_in_one_file_that_are_the_same_are_both_named(folder: Path):
    weights, name = load_file(folder / "model.safetensors"), "model.norm.weight"
    save_file(weights | {f"_orig_mod.{name}": weights[name].clone()}, folder / "model.safetensors")
    sentence = refused_model(CheckpointError, folder)
    assert f"holds '{name}' and '_orig_mod.{name}'" in sentence or f"holds '_orig_mod.{name}' and '{name}'" in sentence


def test_two_sets_of_the_same_weights_are_refused(folder: Path):
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    shutil.copy(folder / "model.fp16.safetensors", folder / "model.fp32.safetensors")
    sentence = refused_model(CheckpointError, folder)
    assert "model.fp16.safetensors and model.fp32.safetensors both hold tensor" in sentence
    assert "leave one of them in the folder" in sentence


def test_bos_that_the_tokenizer_does_not_have_is_refused_if_asked_for(tiny):
    bundled = refused(TokenizerError, lambda: CausalLM.open(bos="yes"))
    assert bundled == "BOS was asked for, but the tokenizer defines none; leave --bos out."
    assert CausalLM.open(tiny("llama-biases"), bos="yes").tokens.bos_id is not None
