"""GGUF files that are not what they should be: each ends in one sentence, none in numbers of another model."""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from gguf_files import split, write_gguf
from layerscope.errors import CheckpointError, LayerscopeError, ModelError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.checkpoint import locate
from layerscope.model.config import build_empty
from layerscope.model.gguf_header import GgufHeader, read_header
from layerscope.model.gguf_model import gguf_config, gguf_tokenizer

PROMPTS = ([17], [0, 45, 211, 1, 99])


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.5, shape).astype(np.float32)


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "output_norm.bias", "blk.3.attn_q.weight", "v_of_mine"]
)
def test_a_tensor_without_a_place_in_the_model_is_refused_by_its_name(name: str, tmp_path: Path):
    """As llama.cpp refuses it ("wrong number of tensors"): without it, the file would be another model."""
    file = write_gguf(tmp_path / "m.gguf", extra={name: _floats(64)})
    with pytest.raises(ModelError, match=rf"Of the 31 tensors .* has no place for 1 \(first: '{name}'\)"):
        CausalLM.open(file, device="cpu")


def test_what_is_there_for_pictures_is_left_aside(tmp_path: Path):
    parts = {"v.blk.0.attn_q.weight": _floats(8, 8), "mm.0.weight": _floats(8, 8)}
    due = CausalLM.open(write_gguf(tmp_path / "plain.gguf"), device="cpu").forward(PROMPTS).logits
    found = CausalLM.open(write_gguf(tmp_path / "with.gguf", extra=parts), device="cpu").forward(PROMPTS).logits
    assert torch.equal(found, due)


def test_biases_of_attention_are_followed(tmp_path: Path):
    """llama.cpp's converter reorders rows of q and k, biases included: from halves side by side to pairs."""
    sizes = {"q": 64, "k": 32, "v": 32, "o": 64}
    biases = {name: [_floats(size) * (1 + layer) for layer in range(3)] for name, size in sizes.items()}
    extra = {}
    for layer in range(3):
        for name, n_heads in (("q", 4), ("k", 2)):
            halves = biases[name][layer].reshape(n_heads, 2, -1)
            extra[f"blk.{layer}.attn_{name}.bias"] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)
        extra[f"blk.{layer}.attn_v.bias"] = biases["v"][layer]
        extra[f"blk.{layer}.attn_output.bias"] = biases["o"][layer]
    plain = write_gguf(tmp_path / "plain.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=plain.name, dtype=torch.float32).eval()
    for layer, block in enumerate(theirs.model.layers):
        for name, values in biases.items():
            getattr(block.self_attn, f"{name}_proj").bias = nn.Parameter(torch.from_numpy(values[layer]))
    found = CausalLM.open(write_gguf(tmp_path / "with.gguf", extra=extra), device="cpu").forward(PROMPTS).logits
    for i, ids in enumerate(PROMPTS):
        with torch.inference_mode():
            due = theirs(torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(found[i], due, atol=2e-5 * due.abs().max().item())


@pytest.mark.parametrize("gone", ["ffn_up_exps", "ffn_gate_exps"])
def test_one_half_of_fused_experts_is_not_read_as_if_the_other_were_zeros(gone: str, tmp_path: Path):
    name = f"blk.1.{gone}.weight"
    with pytest.raises(CheckpointError, match=rf"is made of 2 tensors, but 'blk.1.{gone}' is not in the file"):
        CausalLM.open(write_gguf(tmp_path / "m.gguf", "qwen2moe", without=(name,)), device="cpu")
    file = write_gguf(tmp_path / "n.gguf", "qwen2moe", extra={name: _floats(4, 8, 64)})
    with pytest.raises(CheckpointError, match=r"experts' matrices of one shape, but are .*\[4, 8, 64\]"):
        CausalLM.open(file, device="cpu")


@pytest.mark.parametrize(
    ("architecture", "name", "shape", "due"),
    [
        ("gemma3", "blk.2.ffn_norm.weight", (5,), [64]),
        ("llama", "blk.2.ffn_norm.weight", (64, 64), [64]),
        ("llama", "blk.2.attn_q.weight", (48, 64), [64, 64]),
        ("gpt2", "blk.2.attn_output.weight", (64, 32), [64, 64]),
        ("qwen2moe", "blk.2.ffn_down_exps.weight", (4, 8, 64), [4, 64, 1408]),
    ],
)
def test_a_tensor_of_another_shape_is_refused_though_it_is_converted(
    architecture: str, name: str, shape: tuple[int, ...], due: list[int], tmp_path: Path
):
    file = write_gguf(tmp_path / "m.gguf", architecture, extra={name: _floats(*shape)})
    with pytest.raises(CheckpointError) as refusal:
        CausalLM.open(file, device="cpu")
    assert f"'{name}' should have shape {due} by the file's header, but " in str(refusal.value)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path):
    file = write_gguf(tmp_path / "m.gguf", extra={"blk.9.attn_q.weight": _floats(64, 64)})
    file.write_bytes(file.read_bytes().replace(b"blk.9.attn_q.weight", b"blk.0.attn_q.weight"))
    with pytest.raises(CheckpointError, match=r"m.gguf should hold .* 'blk.0.attn_q.weight' is there twice"):
        read_header(file)
    parts = split(write_gguf(tmp_path / "whole.gguf"), tmp_path / "made", 2)
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"made-00001-of-00002.gguf and made-00002-of-00002.gguf should hold"):
        read_header(parts[0])


def test_parts_are_as_many_as_their_names_and_the_header_say(tmp_path: Path):
    file = write_gguf(tmp_path / "m-00005-of-00002.gguf")
    with pytest.raises(CheckpointError, match="one of 2 parts by its name, but is number 5"):
        read_header(file)
    for name in ("m-00001-of-00000.gguf", "hf:a/b/m-00001-of-00000.gguf"):
        with pytest.raises(CheckpointError, match="one of 0 parts by its name, but is number 1"):
            read_header(file.rename(tmp_path / name)) if ":" not in name else locate(name)
    renamed = write_gguf(tmp_path / "renamed.gguf", **{"split.count": 3})
    with pytest.raises(CheckpointError, match=r"one of 3 parts \(split.count\), but by its name there is 1"):
        read_header(renamed)
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "gone.gguf")
    with pytest.raises(CheckpointError, match=r"There is no file 'nowhere.gguf'"):
        read_header(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize("alignment", [True, 1, 0, "x", 12])
def test_an_alignment_at_which_no_number_can_be_read_is_refused(alignment: Any, tmp_path: Path):
    file = write_gguf(tmp_path / "m.gguf", **{"general.alignment": alignment})
    with pytest.raises(CheckpointError, match=r"'general.alignment' as a multiple of 8, but states"):
        read_header(file)


def test_what_counts_as_a_model_in_a_folder(tmp_path: Path):
    """Whatever the case of its ending; neither what projects pictures nor a folder."""
    whole = write_gguf(tmp_path / "M-00001-of-00001.GGUF")
    (tmp_path / "model-mmproj-f16.gguf").write_bytes(b"")
    (tmp_path / "folder.gguf").mkdir()
    assert locate(tmp_path).gguf == whole
    assert CausalLM.open(tmp_path, device="cpu").family == "llama"
    with pytest.raises(CheckpointError, match=r"belongs to a Hub id, but .* is a file"):
        locate(whole, revision="main")


@pytest.mark.parametrize("path", ["a/b/../../x.gguf", "a/../x.gguf", "../b/x.gguf", "a/b//x.gguf", "a/b/./x.gguf"])
def test_a_path_on_the_hub_leads_nowhere_else(path: str):
    with pytest.raises(CheckpointError, match="There is no folder"):
        locate(f"hf:{path}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tokens", ["a", "b"], "a list of 2 numbers, one for each token"),
        ("tokens", [], "a list of texts"),
        ("bos_token_id", 99_999, "a whole number from 0 to 306"),
        ("bos_token_id", "x", "a whole number from 0 to 306"),
        ("merges", ["x"], "pairs of tokens"),
        ("add_bos_token", 1, "true or false"),
        ("model", 3, "a text"),
    ],
)
def test_a_vocabulary_that_no_tokenizer_can_have_is_refused_by_its_key(
    key: str, value: Any, said: str, header: GgufHeader
):
    with pytest.raises(CheckpointError, match=rf"'tokenizer\.ggml\.\w+' as {said}.*, but states"):
        gguf_tokenizer(replace(header, metadata={**header.metadata, f"tokenizer.ggml.{key}": value}))


def test_a_tokenizer_that_cannot_be_made_is_sought_in_the_header_alone(tmp_path: Path):
    file = write_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.merges": ["qq zz"]})
    with pytest.raises(LayerscopeError) as refusal:
        CausalLM.open(file, device="cpu")
    assert str(refusal.value).startswith("No tokenizer could be read from the file's header (")
    assert "tokenizer.json" not in str(refusal.value)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return read_header(write_gguf(tmp_path_factory.mktemp("header") / "m.gguf"))


def _other_values(random: Random, value: Any) -> list[Any]:
    """Some of another type, or out of range."""
    odd = ("x", "", True, 0, -1, -3.5, 0.0, math.nan, math.inf, 2**31 - 1, 2**63, [], [1, 2], ["x"], 1e30, 7)
    return [*random.sample(odd, 3), value + random.choice((-1, 1, 2))]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "qwen2moe"])
def test_every_value_of_a_header_opens_or_ends_in_a_sentence(architecture: str, tmp_path: Path):
    """Every key that is read, with values of other types and out of range: nothing else is raised, no memory asked."""
    random, whole = Random(11), read_header(write_gguf(tmp_path / "m.gguf", architecture))
    rope = ("type", "factor", "attn_factor", "original_context_length", "yarn_beta_fast", "yarn_ext_factor", "alpha")
    asked = {f"{architecture}.rope.scaling.{name}": 1.0 for name in rope}
    asked |= {f"{architecture}.rope.{name}": 16 for name in ("scale_linear", "dimension_count", "freq_base_swa")}
    asked |= {f"{architecture}.{name}_softcapping": 30.0 for name in ("attn_logit", "final_logit")}
    asked |= {f"{architecture}.attention.sliding_window_pattern": 6, f"{architecture}.attention.key_length": 16}
    own = {key: value for key, value in whole.metadata.items() if key.startswith(f"{architecture}.")}
    yarn = {f"{architecture}.rope.scaling.type": "yarn", f"{architecture}.rope.scaling.factor": 2.0}
    for key, value in (own | asked).items():
        for other in _other_values(random, value):
            stated = {**whole.metadata, **(yarn if "scaling" in key else {}), key: other}
            with suppress(CheckpointError, ModelError):
                build_empty(
                    gguf_config(replace(whole, metadata=stated)), tmp_path, torch.float32, False, whole.files[0]
                )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("context_length", "x", "a whole number from 1 to 2,147,483,647, but states 'x'"),
        ("context_length", True, "a whole number .*, but states True"),
        ("attention.head_count", 0, "a whole number .*, but states 0"),
        ("attention.head_count", 5, r"a number that divides the width of the stream \(64\), but states 5"),
        ("attention.head_count_kv", 3, r"a number that divides the number of heads \(4\), but states 3"),
        ("attention.layer_norm_rms_epsilon", 0, "a number with a fraction, but states 0"),
        ("block_count", 2_000_000_000, r"the number of blocks that the file holds \(3\), but states 2000000000"),
        ("embedding_length", 128, r"the width of 'token_embd.weight' \(64\), but states 128"),
        ("vocab_size", 308, r"at most the longest axis of the file's tensors \(307\), but states 308"),
        ("rope.dimension_count", 32, "a width of which 4 heads fit into the 64 rows of queries, but states 32"),
        ("rope.dimension_count", 0, "a whole number from 1 to 2,147,483,647, but states 0"),
        ("rope.scaling.factor", math.nan, "a finite number of at least 0, but states nan"),
        ("rope.scaling.factor", -2.0, "a finite number of at least 0, but states -2.0"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_what_was_expected(
    key: str, value: Any, said: str, header: GgufHeader
):
    with pytest.raises(CheckpointError, match=rf"header of m.gguf should state 'llama\.{key}' as {said}; convert the"):
        gguf_config(replace(header, metadata={**header.metadata, f"llama.{key}": value}))


@pytest.mark.parametrize(
    ("architecture", "n_blocks", "scalar"), [("gemma2", 46, 32), ("gemma3", 62, 32), ("gemma3", 3, 16)]
)
def test_gemma_scales_attention_by_its_size(architecture: str, n_blocks: int, scalar: int, tmp_path: Path):
    """No header has it: llama.cpp takes a head's width, but of the largest size the stream's width for each head."""
    whole = read_header(write_gguf(tmp_path / "m.gguf", architecture))
    blocks = {f"blk.{i}.attn_q.weight": whole.tensors["blk.0.attn_q.weight"] for i in range(n_blocks)}
    stated = {f"{architecture}.block_count": n_blocks, f"{architecture}.attention.head_count": 2}
    other = replace(whole, metadata={**whole.metadata, **stated}, tensors={**whole.tensors, **blocks})
    assert gguf_config(other).query_pre_attn_scalar == scalar


def test_softcaps_of_the_header_are_followed_or_refused(tmp_path: Path, header: GgufHeader):
    whole = read_header(write_gguf(tmp_path / "m.gguf", "gemma2"))
    config = gguf_config(replace(whole, metadata={**whole.metadata, "gemma2.final_logit_softcapping": 7.0}))
    assert config.final_logit_softcapping == 7.0
    with pytest.raises(ModelError, match=r"caps logits \(llama.final_logit_softcapping = 7.0\)"):
        gguf_config(replace(header, metadata={**header.metadata, "llama.final_logit_softcapping": 7.0}))
