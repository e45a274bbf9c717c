"""Checkpoints with quantised weights, and language models inside others, opened and held to what they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from layerscope import probe
from layerscope.model.causal_lm import CausalLM
from layerscope.stored.recognise import recognise
from tiny_models import PROMPTS, tiny_tokenizer

GENERATOR = torch.Generator().manual_seed(5)
TEXT = {
    "vocab_size": 307,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 48,
    "patch_size": 14,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 16,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 4,
    "head_dim": 12,
}
WRAPPED = {
    "llava": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": CLIP},
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}},
        "vision_config": VISION,
    },
    "qwen3_5": {"text_config": {**TEXT, **LINEAR}, "vision_config": VISION},
}


def _fp8(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def _int8(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def _gptq(weight: Tensor) -> dict[str, Tensor]:
    d_out, d_in = weight.shape
    codes = torch.randint(-(2**31), 2**31 - 1, (d_in // 8, d_out), generator=GENERATOR, dtype=torch.int64)
    zeros = torch.full((1, d_out // 8), 0x77777777, dtype=torch.int32)
    return {"qweight": codes.int(), "qzeros": zeros, "scales": torch.full((1, d_out), 0.02)}


FORMS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {"fp8": _fp8, "int8": _int8, "gptq": _gptq}
NAMED = {"fp8": "float8_e4m3fn", "int8": "int8", "gptq": "GPTQ"}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_checkpoint_gives_what_its_decoded_weights_give(form: str, tiny, tmp_path: Path):
    folder, plain = tmp_path / "packed", tmp_path / "plain"
    shutil.copytree(tiny("llama-biases"), folder)
    shutil.copytree(tiny("llama-biases"), plain)
    weights = load_file(folder / "model.safetensors")
    packed, decoded = dict(weights), dict(weights)
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            continue
        made = {name.removesuffix("weight") + end: part for end, part in FORMS[form](weight.float()).items()}
        found = recognise(name, {key: (tuple(part.shape), part.dtype) for key, part in made.items()})
        assert found is not None and found.is_packed
        decoded[name] = found.made(made.__getitem__).whole(torch.float32, torch.device("cpu"))
        del packed[name]
        packed |= made
    save_file(packed, folder / "model.safetensors")
    save_file(decoded, plain / "model.safetensors")
    model, due = CausalLM.open(folder, device="cpu"), CausalLM.open(plain, device="cpu").forward(PROMPTS).logits
    found_logits = model.forward(PROMPTS).logits
    assert torch.allclose(found_logits, due, atol=2e-5 * due.abs().max().item())
    assert NAMED[form] in model.stored_dtype and model.checkpoint.notes == ()
    run = probe(model, positions="last", causal=False)
    assert run.record.model.stored_dtype == model.stored_dtype


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_language_model_inside_another_reads_text_as_the_whole_does(kind: str, tmp_path: Path):
    torch.manual_seed(3)
    whole = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **WRAPPED[kind])).eval().float()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif "A_log" not in name and "dt_bias" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = CausalLM.open(tmp_path, device="cpu")
    assert not any("vis" in name for name in model._stored)  # nothing of it is ever read
    found = model.forward(PROMPTS)
    for i, ids in enumerate(PROMPTS):
        with torch.inference_mode():
            theirs = whole(input_ids=torch.tensor([ids]), output_hidden_states=True)
        due = theirs.logits[0, -1]
        assert torch.allclose(found.logits[i], due, atol=2e-5 * due.abs().max().item())
        for layer in range(model.n_layers):
            state = theirs.hidden_states[layer][0]
            assert torch.allclose(found.values[i, layer, : len(ids)], state, atol=2e-5 * state.abs().max().item())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(whole).__name__]
