"""Checkpoints with quantised weights, and language models inside others, opened and held to what they are."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from layerscope import probe
from layerscope.errors import CheckpointError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.checkpoint import locate
from layerscope.model.config import read_config
from layerscope.model.model_files import bytes_of_weights
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
    _assert_only_text_is_judged(tmp_path, found.logits)


def _assert_only_text_is_judged(folder: Path, logits: Tensor) -> None:
    """A weight of the vision part may be in any form; one of the text is refused by its name."""
    weights = load_file(folder / "model.safetensors")
    of_vision = next(name for name, w in weights.items() if "vis" in name and name.endswith(".weight") and w.ndim == 2)
    of_text = next(name for name in weights if "vis" not in name and name.endswith("mlp.up_proj.weight"))
    codes = {name: weights[name].to(torch.int8) for name in (of_vision, of_text)}
    save_file(weights | {of_vision: codes[of_vision]}, folder / "model.safetensors")
    assert torch.allclose(CausalLM.open(folder, device="cpu").forward(PROMPTS).logits, logits, atol=1e-5)
    save_file(weights | codes, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{of_text}' is stored as int8"):
        CausalLM.open(folder, device="cpu")
    unread = {name: tensor for name, tensor in weights.items() if name not in codes}
    unread |= {f"{name.removesuffix('weight')}W_q": tensor for name, tensor in codes.items()}
    save_file(unread, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{of_text}' is stored as HQQ, which is not read"):
        CausalLM.open(folder, device="cpu")


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (["W_q", "meta"], "is stored as HQQ, which is not read: take the unquantised"),
        (["trellis"], "is stored as EXL3"),
        (["codes", "codebooks"], "is stored as AQLM"),
        (["B", "s"], "is stored as GPTQ for Marlin"),
        (["weight:_data"], "is stored as torchao"),
        (["qweight"], "is stored as codes of GPTQ or AWQ without their scales"),
        (["qweight", "qzeros", "scales"], "is stored as GPTQ, but its tensors do not go together"),
        ([], "are not in the checkpoint (first: model.layers.1.self_attn.q_proj.weight)"),
    ],
)
def test_a_weight_in_a_form_that_is_not_read_is_refused_by_the_forms_name(ends, said: str, tiny, tmp_path: Path):
    folder, module = tmp_path / "packed", "model.layers.1.self_attn.q_proj"
    shutil.copytree(tiny("llama-biases"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights[f"{module}.weight"]
    if not ends:
        del weights[f"{module}.bias"]
    save_file(weights | {f"{module}.{end}": torch.ones(8).int() for end in ends}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        CausalLM.open(folder, device="cpu")
    assert said in str(refused.value) and module in str(refused.value)


def test_the_size_of_weights_is_that_of_their_files_whatever_their_form(tiny, tmp_path: Path):
    """Codes of MLX in groups of 32 go together with config.json's word for it alone, which nobody needs for a size."""
    folder = tmp_path / "mlx"
    shutil.copytree(tiny("qwen3"), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, w in weights.items() if name.endswith("_proj.weight") and w.shape[1] % 32 == 0)
    d_out, d_in = weights[name].shape
    module = name.removesuffix("weight")
    weights[name] = torch.zeros(d_out, d_in // 8).to(torch.uint32)
    weights |= {f"{module}{end}": torch.ones(d_out, d_in // 32) for end in ("scales", "biases")}
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"quantization": {"group_size": 32, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    assert CausalLM.open(folder, device="cpu").stored_dtype == "MLX 4-bit"
    assert bytes_of_weights(locate(folder)) == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
@pytest.mark.parametrize("value", ["fp8", 4, [1], True])
def test_a_config_whose_word_on_quantisation_is_no_object_is_refused(key: str, value: object, tiny, tmp_path: Path):
    config = json.loads((tiny("llama-biases") / "config.json").read_text())
    for said in (config | {key: value}, config | {"text_config": {key: value}}):
        (tmp_path / "config.json").write_text(json.dumps(said))
        with pytest.raises(
            CheckpointError, match=f"should have an object under `{key}`, but has {re.escape(repr(value))}"
        ):
            read_config(tmp_path, trust_remote_code=False)


RANK, ALPHA = 3, 5.0


def _save_adapter(folder: Path, weights: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir()
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "some/base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def _low_rank(weights: dict[str, Tensor], module: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    d_out, d_in = weights[f"{module}.weight"].shape
    up, down = torch.randn(d_out, RANK, generator=generator), torch.randn(RANK, d_in, generator=generator)
    return up * 0.1, down * 0.1


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "whole"])
def test_an_adapter_is_its_formula_applied_to_the_weights(kind: str, tiny, tmp_path: Path):
    """Held to a checkpoint into which the formulas of the papers were written."""
    merged = tmp_path / "merged"
    shutil.copytree(tiny("llama-biases"), merged)
    weights = {name: tensor.float() for name, tensor in load_file(merged / "model.safetensors").items()}
    generator, saved = torch.Generator().manual_seed(8), {}
    scale = ALPHA / RANK**0.5 if kind == "rslora" else ALPHA / RANK
    for name in [name for name in weights if re.search(r"(q|v|down)_proj\.weight|embed_tokens\.weight", name)]:
        if kind == "dora" and "embed_tokens" in name:
            continue  # lengths of an embedding's rows are not read
        module = name.removesuffix(".weight")
        up, down = _low_rank(weights, module, generator)
        if module.endswith("embed_tokens"):
            saved |= {
                f"base_model.model.{module}.lora_embedding_{part}": value.T.contiguous()
                for part, value in {"A": up, "B": down}.items()
            }
        else:
            saved |= {f"base_model.model.{module}.lora_A.weight": down, f"base_model.model.{module}.lora_B.weight": up}
        weights[name] = weights[name] + scale * up @ down
        if kind == "dora":
            lengths = torch.rand(len(up), generator=generator) + 0.5
            saved[f"base_model.model.{module}.lora_magnitude_vector.weight"] = lengths
            weights[name] *= (lengths / weights[name].norm(dim=1))[:, None]
    if kind == "whole":
        head = torch.randn(weights["lm_head.weight"].shape, generator=generator)
        saved["base_model.model.lm_head.weight"] = weights["lm_head.weight"] = head
    save_file(weights, merged / "model.safetensors")
    adapter = _save_adapter(tmp_path / "tuned", saved, use_rslora=kind == "rslora", use_dora=kind == "dora")
    model = CausalLM.open(tiny("llama-biases"), adapter=adapter, device="cpu")
    due = CausalLM.open(merged, device="cpu").forward(PROMPTS).logits
    assert torch.allclose(model.forward(PROMPTS).logits, due, atol=2e-5 * due.abs().max().item())
    plain = CausalLM.open(tiny("llama-biases"), device="cpu")
    assert model.id == f"{plain.id}-tuned" and model.blocks_fingerprint != plain.blocks_fingerprint
    assert model.notes[0].startswith("The adapter 'tuned', trained on some/base, was applied (sha256 ")


def test_an_adapter_given_as_the_model_is_read_with_the_model_it_names(tiny, tmp_path: Path):
    base = tiny("llama-biases")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    weights = {f"{name}A.weight": torch.ones(RANK, 48), f"{name}B.weight": torch.ones(56, RANK)}
    adapter = _save_adapter(tmp_path / "mine", weights, base_model_name_or_path=str(base))
    given = CausalLM.open(adapter, device="cpu")
    named = CausalLM.open(base, adapter=adapter, device="cpu")
    assert given.id == named.id and torch.equal(given.forward(PROMPTS).logits, named.forward(PROMPTS).logits)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"is an adapter and no model.*--adapter"):
        CausalLM.open(adapter, device="cpu")


def test_adapters_that_do_not_fit_are_refused_by_what_does_not(tiny, tmp_path: Path):
    base = tiny("llama-biases")
    name = "base_model.model.model.layers.{}.mlp.up_proj.lora_"
    for layer, d_in, said in ((99, 48, "has a module 'model.layers.99.mlp.up_proj'"), (0, 40, "[56, 40] for a matrix")):
        part = name.format(layer)
        weights = {f"{part}A.weight": torch.ones(RANK, d_in), f"{part}B.weight": torch.ones(56, RANK)}
        with pytest.raises(CheckpointError, match=re.escape(said)):
            CausalLM.open(base, adapter=_save_adapter(tmp_path / f"a{layer}", weights), device="cpu")
    with pytest.raises(CheckpointError, match="of type IA3, but LoRA"):
        CausalLM.open(base, adapter=_save_adapter(tmp_path / "ia3", weights, peft_type="IA3"), device="cpu")
    with pytest.raises(CheckpointError, match=r"holds no adapter_config\.json"):
        CausalLM.open(base, adapter=tmp_path, device="cpu")


def test_an_adapter_beside_the_weights_is_not_passed_over_in_silence(tiny, tmp_path: Path):
    folder = tmp_path / "both"
    shutil.copytree(tiny("llama-biases"), folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "was not applied; --adapter FOLDER" in CausalLM.open(folder, device="cpu").notes[0]


def test_gpt_oss_is_read_as_transformers_decodes_its_experts(tmp_path: Path):
    sizes = TEXT | {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_local_experts": 4}
    torch.manual_seed(2)
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **sizes, num_experts_per_tok=2)).eval()
    whole = whole.float()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(0.1)
    whole.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        n_experts, d_in, d_out = weights.pop(name).shape
        blocks = torch.randint(0, 256, (n_experts, d_out, d_in // 32, 16), dtype=torch.uint8, generator=GENERATOR)
        scales = torch.randint(120, 125, blocks.shape[:-1], dtype=torch.uint8, generator=GENERATOR)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        decoded = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        whole.get_parameter(name).data.copy_(decoded)
    save_file(weights, tmp_path / "model.safetensors")
    model = CausalLM.open(tmp_path, device="cpu")
    found = model.forward(PROMPTS).logits
    for i, ids in enumerate(PROMPTS):
        with torch.inference_mode():
            due = whole(input_ids=torch.tensor([ids])).logits[0, -1]
        assert torch.allclose(found[i], due, atol=2e-5 * due.abs().max().item())
    assert model.stored_dtype == "MXFP4"
