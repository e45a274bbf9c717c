"""Tiny GGUF files of random weights, written with the `gguf` package as llama.cpp's converter would name things."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

SIZES: dict[str, Any] = {
    "vocab_size": 307,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
}
NO_HEAD_DIM = {key: value for key, value in SIZES.items() if key != "head_dim"}
GPT2 = {"vocab_size": 307, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 1024}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "qwen2": ("qwen2", NO_HEAD_DIM),
    "qwen3": ("qwen3", SIZES | {"head_dim": 128}),
    "gemma2": ("gemma2", SIZES | {"sliding_window": 4}),
    "gemma3": ("gemma3_text", SIZES | {"sliding_window": 4}),
    "phi3": ("phi3", NO_HEAD_DIM | {"vocab_size": 32_064}),
    "starcoder2": ("starcoder2", NO_HEAD_DIM),
    "gpt2": ("gpt2", GPT2),
    "qwen2moe": ("qwen2_moe", NO_HEAD_DIM | {"num_experts": 4, "num_experts_per_tok": 2}),
}
"""By llama.cpp's name the model type and sizes of its config."""
TRANSPOSED = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
"""Of GPT-2, whose own matrices are [in, out]."""


def write_gguf(
    file: Path,
    architecture: str = "llama",
    kind: str = "F32",
    *,
    tied: bool = False,
    extra: Mapping[str, np.ndarray] | None = None,
    without: Sequence[str] = (),
    **metadata: Any,
) -> Path:
    """A model of random weights; matrices with rows of a whole number of blocks are stored as `kind`.

    `extra` adds tensors as they are, or replaces them; `metadata` does so with keys; `without` leaves tensors out.
    """
    model_type, sizes = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    writer = gguf.GGUFWriter(file, metadata.pop("general.architecture", architecture))
    for key, value in {**_config_values(architecture, config), **_tokenizer(config.vocab_size), **metadata}.items():
        _add(writer, key, value)
    generator = np.random.default_rng(7)
    for name, shape in _shapes(model, architecture, tied).items():
        values = _drawn(generator, name, shape)
        if name not in (*without, *(extra or {})):
            _add_tensor(writer, name, values, kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    _finish(writer)
    return file


def split(whole: Path, stem: Path, count: int) -> list[Path]:
    """The same tensors dealt out to several files, of which the first says all that the whole one says."""
    read = gguf.GGUFReader(whole)
    files = [stem.with_name(f"{stem.name}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    for i, file in enumerate(files):
        writer = gguf.GGUFWriter(file, "llama")
        for key, value in read.fields.items() if i == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                _add(writer, key, value.contents())
        for tensor in read.tensors[i::count]:
            writer.add_tensor(tensor.name, tensor.data)
        _finish(writer)
    return files


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(model: Any, architecture: str, tied: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by their names in the file."""
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, target in get_gguf_hf_weights_map(model, processor).items():
        if target not in wanted or (tied and name == "output.weight"):
            continue
        shape = wanted[target]
        if name.endswith("_exps"):
            name += ".weight"
            if ".ffn_gate" in name or ".ffn_up" in name:
                shape = (shape[0], shape[1] // 2, shape[2])
        if architecture == "gpt2" and name.endswith(TRANSPOSED):
            shape = shape[::-1]
        shapes[name] = shape if "gate_inp_shexp" not in name else shape[-1:]
    return shapes


def _drawn(generator: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = generator.normal(0, 0.15, shape).astype(np.float32)
    return values + 1 if "norm" in name and name.endswith("weight") else values


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    type_ = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[type_]
    if values.ndim < 2 or kind == "F32" or values.shape[-1] % block:
        writer.add_tensor(name, values)
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quantize(values, type_), raw_dtype=type_)


def _config_values(architecture: str, config: Any) -> dict[str, Any]:
    """What the header says of a config: Transformers' table, read backwards."""
    table = GGUF_CONFIG_MAPPING.get(architecture) or GGUF_CONFIG_MAPPING[config.model_type]
    values = {}
    for key, name in table.items():
        value = getattr(config, name, None) if name else None
        if name == "rope_theta":
            value = SIZES["rope_theta"]
        if value is not None and not isinstance(value, dict | list):
            values[f"{architecture}.{key}"] = value
    return values


def _tokenizer(d_vocab: int) -> dict[str, Any]:
    """Bytes, a few merges, and what fills the vocabulary up."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = ["Ġ t", "h e", "Ġt he", "i s", "a n", "i n", "e r", "o n"]
    tokens = ["<s>", "</s>", *letters, *(merge.replace(" ", "") for merge in merges)]
    tokens += [f"<unused{i}>" for i in range(d_vocab - len(tokens))]
    kinds = [3, 3, *[1] * (len(letters) + len(merges)), *[5] * (d_vocab - 2 - len(letters) - len(merges))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
