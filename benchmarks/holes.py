"""Checkpoints of large models that are holes in files: quantised forms and mixtures of experts in published layouts.

Matrices of blocks, codes and scales read as zeros and take no disk. What tells a form from another is written, and so
are norms, embedding and head, which are random: of equal logits every rank would be a tie, which costs more to count.
Of a mixture the routers are random too, so that tokens go to different experts.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from setting import ROOT
from torch import Tensor

from layerscope.bundled import BUNDLED

sys.path.insert(0, str(ROOT / "scripts"))

from make_checkpoint import SHAPES, Fill, RandomStream, Weight, model_weights, write_tokenizer

LLAMA: Mapping[str, Any] = SHAPES["llama-3-70b"]
MIXTURE: Mapping[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_window_layers": 94,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""The config of Qwen3-235B-A22B; its own special ids lie beyond the tokenizer that is put beside it."""
NF4, NESTED, GROUP = 64, 256, 128
"""Entries that share a scale in NF4, scales that share one, and entries that share one in GPTQ."""
ST = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}


@dataclass(frozen=True)
class Part:
    """A tensor of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Tensor | None = None
    """What it holds, where that matters."""
    is_random: bool = False
    """Whether it is drawn; without either it is a hole."""

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return prod(self.shape) * self.dtype.itemsize


Parts = Iterator[tuple[str, Part]]


def written(values: Tensor) -> Part:
    """A tensor whose entries matter."""
    return Part(values.dtype, tuple(values.shape), values)


def plain(weight: Weight) -> Parts:
    """Bfloat16: norms of one, a random embedding, a random head, and holes."""
    if len(weight.shape) == 1:
        yield weight.name, written(torch.ones(weight.shape).bfloat16())
    else:
        yield weight.name, Part(torch.bfloat16, weight.shape, is_random=_is_outside(weight))


def _is_outside(weight: Weight) -> bool:
    """Whether it is the embedding, the head or the last norm."""
    return ".layers." not in weight.name


def nf4(weight: Weight) -> Parts:
    """bitsandbytes' NF4, its scales quantised too; embedding, head and norms as they are."""
    if len(weight.shape) == 1 or _is_outside(weight):
        yield from plain(weight)
        return
    n, blocks = prod(weight.shape), prod(weight.shape) // NF4
    about = {"quant_type": "nf4", "blocksize": NF4, "nested_blocksize": NESTED, "nested_offset": 0.0}
    state = json.dumps({**about, "shape": list(weight.shape), "dtype": "bfloat16"}).encode()
    yield weight.name, Part(torch.uint8, (n // 2, 1))
    yield f"{weight.name}.absmax", Part(torch.uint8, (blocks,))
    yield f"{weight.name}.quant_map", Part(torch.float32, (16,))
    yield f"{weight.name}.nested_absmax", Part(torch.float32, (blocks // NESTED,))
    yield f"{weight.name}.nested_quant_map", Part(torch.float32, (256,))
    yield f"{weight.name}.quant_state.bitsandbytes__nf4", written(torch.tensor(list(state), dtype=torch.uint8))


def gptq(weight: Weight) -> Parts:
    """GPTQ of four bits in groups of neighbours; embedding, head and norms as they are."""
    if len(weight.shape) == 1 or _is_outside(weight):
        yield from plain(weight)
        return
    (d_out, d_in), name = weight.shape, weight.name.removesuffix("weight")
    yield f"{name}qweight", Part(torch.int32, (d_in // 8, d_out))
    yield f"{name}qzeros", Part(torch.int32, (d_in // GROUP, d_out // 8))
    yield f"{name}scales", Part(torch.float16, (d_in // GROUP, d_out))
    yield f"{name}g_idx", written((torch.arange(d_in) // GROUP).int())


def mixture(weight: Weight) -> Parts:
    """Bfloat16, each expert's matrices by themselves; routers are random."""
    if weight.name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        stem, n_experts = weight.name.rpartition("experts.")[0], weight.shape[0]
        d_model, d_expert = MIXTURE["hidden_size"], MIXTURE["moe_intermediate_size"]
        shapes = {"gate_proj": (d_expert, d_model), "up_proj": (d_expert, d_model), "down_proj": (d_model, d_expert)}
        for name in ("down_proj",) if weight.name.endswith("down_proj") else ("gate_proj", "up_proj"):
            for expert in range(n_experts):
                yield f"{stem}experts.{expert}.{name}.weight", Part(torch.bfloat16, shapes[name])
    elif weight.name.endswith("mlp.gate.weight"):
        yield weight.name, Part(torch.bfloat16, weight.shape, is_random=True)
    else:
        yield from plain(weight)


def write_folder(
    folder: Path, config: Mapping[str, Any], stored: Callable[[Weight], Parts], quantization: Mapping[str, Any] | None
) -> Path:
    """A checkpoint folder with a file for each block and one for the rest; returns the folder."""
    folder.mkdir(parents=True)
    files: dict[str, dict[str, Part]] = {}
    for weight in model_weights(config):
        block = weight.name.split(".layers.")[1].split(".")[0] if ".layers." in weight.name else "rest"
        files.setdefault(f"model-{block}.safetensors", {}).update(stored(weight))
    stream = RandomStream(Fill(), torch.bfloat16)
    for name, parts in files.items():
        _write_file(folder / name, parts, stream)
    index = {name: file for file, parts in files.items() for name in parts}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    said = {"quantization_config": dict(quantization)} if quantization is not None else {}
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", **said}))
    write_tokenizer(folder)
    return folder


def _write_file(path: Path, parts: Mapping[str, Part], stream: RandomStream) -> None:
    entries, begin = {}, 0
    for name, part in parts.items():
        end = begin + part.nbytes
        entries[name] = {"dtype": ST[part.dtype], "shape": part.shape, "data_offsets": [begin, end]}
        begin = end
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for part in parts.values():
            if part.values is not None:
                file.write(part.values.view(torch.uint8).numpy().data)
            elif part.is_random:
                stream.write(file, part.nbytes)
            else:
                file.seek(part.nbytes, 1)
        file.truncate(file.tell())


def write_gguf(path: Path, config: Mapping[str, Any]) -> Path:
    """A Llama whose blocks are in Q4_K; the tokenizer is the bundled model's. Returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    starts, size = {}, 0
    for weight in model_weights(config):
        kind = gguf.GGMLQuantizationType.BF16 if _is_outside(weight) else gguf.GGMLQuantizationType.Q4_K
        if len(weight.shape) == 1:
            kind = gguf.GGMLQuantizationType.F32
        floats, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = weight.elements // floats * block_bytes
        name = names.get_name(weight.name.removesuffix(".weight"))
        writer.add_tensor_info(f"{name}.weight", weight.shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
        starts[size] = weight
        size += writer.ggml_pad(nbytes, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    stream = RandomStream(Fill(), torch.bfloat16)
    with path.open("r+b") as file:
        begin = writer.ggml_pad(file.seek(0, 2), writer.data_alignment)
        for at, weight in starts.items():
            file.seek(begin + at)
            if len(weight.shape) == 1:
                file.write(np.ones(weight.shape, np.float32).data)
            elif _is_outside(weight):
                stream.write(file, 2 * weight.elements)
        file.truncate(begin + size)
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, d_vocab: int) -> None:
    """The bundled model's vocabulary and merges, and what fills the vocabulary up."""
    said = json.loads((BUNDLED / "tokenizer.json").read_text())
    tokens = sorted(said["model"]["vocab"], key=said["model"]["vocab"].__getitem__)
    tokens += [token["content"] for token in said["added_tokens"] if token["id"] >= len(tokens)]
    end = tokens.index("<|endoftext|>")
    normal, unused = gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    kinds = [gguf.TokenType.CONTROL if i == end else normal for i in range(len(tokens))]
    kinds += [unused] * (d_vocab - len(tokens))
    tokens += [f"<unused{i}>" for i in range(d_vocab - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in said["model"]["merges"]])
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(value=False)
