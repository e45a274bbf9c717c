"""GGUF files: opened alone, they give what Transformers gives that loads and decodes them whole."""

import shutil
import struct
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fit_texts import corpus_for, write_text
from gguf_files import ARCHITECTURES, SIZES, split, write_gguf
from layerscope import fit_ridge
from layerscope.errors import CheckpointError, ModelError
from layerscope.lenses.lens_folder import mismatch
from layerscope.model.causal_lm import CausalLM
from layerscope.model.gguf_header import read_header
from layerscope.model.signature import model_signature
from properties import slow

PROMPTS = ([17], [0, 45, 211, 1, 99], [0, 301, 12, 88, 1, 254, 7, 63, 0, 190, 33])


LIKE_OTHERS = ("qwen2", "gemma2", "phi3")
"""Qwen 3 but for norms, Gemma 3 but for softcaps, and one with a vocabulary so large that it takes seconds."""


def _reference(file: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    if model.config.model_type.startswith("gemma"):  # no file says by what it scales attention: its heads' width
        for layer in model.model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    return model


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [slow(name, "Q8_0") if name in LIKE_OTHERS else (name, "Q8_0") for name in ARCHITECTURES]
    + [("llama", "F16"), ("llama", "Q4_1"), ("gemma3", "F32")],
)
def test_a_file_gives_what_transformers_gives_that_loads_it_whole(architecture: str, kind: str, tmp_path: Path):
    file = write_gguf(tmp_path / "made.gguf", architecture, kind)
    theirs = _reference(file)
    found = CausalLM.open(file, device="cpu").forward(PROMPTS)
    for i, ids in enumerate(PROMPTS):
        with torch.inference_mode():
            due = theirs(torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(found.logits[i], due, atol=2e-5 * due.abs().max().item()), (architecture, kind, i)


def test_a_beginning_that_is_no_gguf_file_is_refused_by_what_it_is(tmp_path: Path):
    file = tmp_path / "model.gguf"
    for content, said in (
        (b"", "0 bytes"),
        (b"PK" + bytes(60), "should begin with the four letters GGUF"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(40), "of version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(40), "big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + bytes(40), "general.architecture"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            CausalLM.open(file, device="cpu")


def test_a_damaged_header_ends_in_a_sentence(tmp_path: Path):
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    header = read_header(tmp_path / "whole.gguf")
    end = min(tensor.start for tensor in header.tensors.values())
    random, file = Random(3), tmp_path / "damaged.gguf"
    for _ in range(300):
        damaged = bytearray(whole)
        if random.random() < 0.3:
            del damaged[random.randrange(len(whole)) :]
        for _ in range(random.choice((1, 1, 8))):
            if damaged:
                damaged[random.randrange(min(end, len(damaged)))] = random.randrange(256)
        file.write_bytes(damaged)
        with suppress(CheckpointError):  # damage inside a name or a number can leave a header whole
            read_header(file)


def test_a_header_that_promises_more_than_there_is_asks_for_no_memory(tmp_path: Path):
    file = tmp_path / "model.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    for value in (struct.pack("<IQ", 8, 2**62), struct.pack("<IIQ", 9, 12, 2**60), struct.pack("<IIQ", 9, 8, 2**61)):
        file.write_bytes(start + value + bytes(32))
        with pytest.raises(CheckpointError, match="not a whole GGUF file"):
            read_header(file)


def test_a_split_file_is_read_as_one_whichever_part_is_named(tmp_path: Path):
    whole = write_gguf(tmp_path / "whole.gguf")
    parts = split(whole, tmp_path / "made", 3)
    due = CausalLM.open(whole, device="cpu").forward(PROMPTS).logits
    for part in (parts[0], parts[2]):
        model = CausalLM.open(part, device="cpu")
        assert model.id == "made" and torch.equal(model.forward(PROMPTS).logits, due)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"one of 3 parts, but 1 of them are not beside it.*00002-of-00003"):
        CausalLM.open(parts[0], device="cpu")


def test_a_folder_with_one_gguf_model_is_that_model_and_of_two_one_has_to_be_named(tmp_path: Path):
    write_gguf(tmp_path / "one.gguf")
    assert CausalLM.open(tmp_path, device="cpu").family == "llama"
    write_gguf(tmp_path / "two.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF models \(one, two\); name the file"):
        CausalLM.open(tmp_path, device="cpu")


def test_a_file_of_the_hub_is_had_with_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = tmp_path / "models--some--model-GGUF" / "snapshots" / "abc123"
    (snapshot / "Q8").mkdir(parents=True)
    split(write_gguf(tmp_path / "whole.gguf"), snapshot / "Q8" / "model-Q8", 2)
    asked: list[tuple[str, str, str | None]] = []

    def download(repo: str, name: str, revision: str | None = None) -> str:
        asked.append((repo, name, revision))
        return str(snapshot / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = CausalLM.open("hf:some/model-GGUF/Q8/model-Q8-00001-of-00002.gguf", device="cpu", revision="main")
    assert asked == [("some/model-GGUF", f"Q8/model-Q8-{i:05}-of-00002.gguf", "main") for i in (1, 2)]
    assert (model.id, model.source.commit, model.source.revision) == ("model-Q8", "abc123", "main")


def test_the_tokenizer_is_the_files_own_whatever_lies_beside_it(tmp_path: Path, tiny):
    shutil.copytree(tiny("llama-biases"), tmp_path / "both", dirs_exist_ok=True)
    file = write_gguf(tmp_path / "both" / "model.gguf")
    tokens = CausalLM.open(file, device="cpu").tokens
    assert tokens.begins.ids == (0,) and tokens.begins.source == "tokenizer"
    assert tokens.display([266]) == {266: "<unused0>"}
    without = write_gguf(tmp_path / "without.gguf", **{"tokenizer.ggml.add_bos_token": False})
    assert CausalLM.open(without, device="cpu").tokens.begins.ids == ()


def test_factors_of_rotary_frequencies_are_llama_3s_scaling(tmp_path: Path):
    """llama.cpp stores Llama 3.1's scaling as factors, which Transformers' own reading of the file leaves out."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": SIZES["rope_theta"],
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    scaled = LlamaConfig(**{**SIZES, "rope_parameters": scaling})
    due, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, "cpu")
    plain = 1 / SIZES["rope_theta"] ** (torch.arange(0, 16, 2) / 16)
    file = write_gguf(tmp_path / "scaled.gguf", extra={"rope_freqs.weight": (plain / due).numpy()})
    model = CausalLM.open(file, device="cpu")
    theirs = _reference(write_gguf(tmp_path / "plain.gguf"))
    theirs.model.rotary_emb.inv_freq.copy_(due)
    for i, ids in enumerate(PROMPTS):
        with torch.inference_mode():
            logits = theirs(torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(model.forward(PROMPTS).logits[i], logits, atol=2e-5 * logits.abs().max().item())


def test_a_lens_is_fitted_to_a_file_and_read_for_no_other_header(tmp_path: Path):
    """Where no config.json lies beside it, or another model's: the header is what counts."""
    model = CausalLM.open(write_gguf(tmp_path / "m.gguf"), device="cpu")
    lens = fit_ridge(model, corpus_for(model, write_text(tmp_path / "text.txt")), tmp_path / "lens")
    assert mismatch(lens.record.model, model_signature(model)) == ""
    other = CausalLM.open(write_gguf(tmp_path / "other.gguf", **{"llama.rope.freq_base": 5e4}), device="cpu")
    assert "the same stored in another form or computed with other settings" in mismatch(
        lens.record.model, model_signature(other)
    )


def test_a_family_that_transformers_cannot_read_is_named(tmp_path: Path):
    file = write_gguf(tmp_path / "new.gguf", **{"general.architecture": "zamba9"})
    with pytest.raises(ModelError, match="family 'zamba9'"):
        CausalLM.open(file, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_a_published_file_reads_and_answers_as_its_conversion(name: str, request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(name)
    model, converted = CausalLM.open(folder / "model.gguf", device="cpu"), CausalLM.open(folder, device="cpu")
    for text in ("The capital of Germany is", "a  b\n\n1234 don't 你好  ", " x", "\tq é "):
        assert model.tokens._tokenizer(text)["input_ids"] == converted.tokens._tokenizer(text)["input_ids"]
    assert model.tokens._tokenizer.get_vocab() == converted.tokens._tokenizer.get_vocab()
    assert model.tokens._tokenizer.chat_template == converted.tokens._tokenizer.chat_template
    ids = [model.tokens._tokenizer("The capital of Germany is")["input_ids"]]
    theirs = _reference(folder / "model.gguf")
    with torch.inference_mode():
        due = theirs(torch.tensor(ids)).logits[0, -1]
    assert torch.allclose(model.forward(ids).logits[0], due, atol=1e-4 * due.abs().max().item())
