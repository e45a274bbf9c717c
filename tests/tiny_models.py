"""Tiny random models of every verified family, special features on, and what Transformers itself computes for them.

Nothing here knows layerscope: `reference` is the independent implementation that the package is held to.
"""

import functools
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from properties import slow

D_VOCAB = 307  # above the tokenizer's 300 ids, and no multiple of 16: the last tile of any sweep is ragged
WINDOW = 4  # of every sliding attention
BLOCKS_AT = {
    "bloom": "transformer.h",
    "falcon": "transformer.h",
    "gpt2": "transformer.h",
    "gptj": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}
"""Where the blocks of a family hang; every other family keeps them at `model.layers`."""

PROMPTS: tuple[list[int], ...] = (
    [17],
    [0, 45, 211, 1, 99],
    [0, 301, 12, 88, 1, 254, 7, 63, 0, 190, 33],
)
"""One token, a few, and more than two windows. Ids 0 and 1 (BOS, and OPT's pad) stand inside on purpose: no id may be
taken for padding; id 301 is one that the tokenizer never emits."""

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_FALCON: dict[str, Any] = {
    "hidden_size": 48,
    "ffn_hidden_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_OPT: dict[str, Any] = {
    "hidden_size": 48,
    "ffn_dim": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.75,
    "factor": 4.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
}


@dataclass(frozen=True)
class TinyModel:
    """A model small enough to build in a test, and the config that switches its family's features on."""

    name: str
    """Key in `TINY`: the family, or the family and a variant."""
    family: str
    """`model_type` of Transformers."""
    config: dict[str, Any] = field(repr=False)
    """Arguments of the family's config class."""

    def resident(self, **changes: Any) -> PreTrainedModel:
        """The float32 model in memory; `changes` replace config values and leave every remaining weight as it was."""
        named = {"vocab_size": D_VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        config = AutoConfig.for_model(self.family, **{**named, **self.config, **changes})
        with torch.random.fork_rng():
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=_attention(config)
            )
        randomise(model)
        return model.eval()

    def build(self, folder: Path, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB") -> Path:
        """Write the checkpoint (safetensors, stored as `dtype`) and its tokenizer into `folder`."""
        self.resident().to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        tiny_tokenizer().save_pretrained(folder)
        return folder


_EVERY = (
    TinyModel(
        "qwen2", "qwen2", _LLAMA_LIKE | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
    ),
    TinyModel("qwen2-tied", "qwen2", _LLAMA_LIKE | {"tie_word_embeddings": True}),
    TinyModel("qwen3", "qwen3", _LLAMA_LIKE | {"head_dim": 16, "attention_bias": True}),
    TinyModel(
        "llama-rope3",
        "llama",
        _LLAMA_LIKE
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,  # one wavelength is kept, one is blended, the rest are scaled
            }
        },
    ),
    TinyModel("llama-biases", "llama", _LLAMA_LIKE | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    TinyModel(
        "llama-linear-rope",
        "llama",
        _LLAMA_LIKE | {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
    TinyModel(
        "llama-yarn",
        "llama",
        _LLAMA_LIKE
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    TinyModel(
        # As with longrope below: beyond 8 positions the frequencies follow the length of what is read.
        "llama-dynamic-rope",
        "llama",
        _LLAMA_LIKE
        | {
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
        },
    ),
    TinyModel("llama-tied", "llama", _LLAMA_LIKE | {"tie_word_embeddings": True}),
    TinyModel("mistral", "mistral", _LLAMA_LIKE | {"head_dim": 16, "sliding_window": WINDOW}),
    TinyModel(
        "gemma2",
        "gemma2",
        _LLAMA_LIKE
        | {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0,
        },
    ),
    TinyModel(
        "gemma3",
        "gemma3_text",
        _LLAMA_LIKE
        | {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
            },
        },
    ),
    TinyModel("gpt2", "gpt2", {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 72, "n_positions": 64}),
    TinyModel(
        "gptj",
        "gptj",
        {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 72, "n_positions": 64, "rotary_dim": 4},
    ),
    TinyModel(
        "gpt_neox",
        "gpt_neox",
        {
            "hidden_size": 64,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        },
    ),
    TinyModel(
        "gpt_neox-sequential",
        "gpt_neox",
        {
            "hidden_size": 64,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "use_parallel_residual": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
        },
    ),
    TinyModel("olmo2", "olmo2", _LLAMA_LIKE),
    TinyModel("olmo3", "olmo3", _LLAMA_LIKE | {"sliding_window": WINDOW}),
    TinyModel(
        "phi",
        "phi",
        _LLAMA_LIKE | {"hidden_size": 64, "num_hidden_layers": 3, "partial_rotary_factor": 0.5, "qk_layernorm": True},
    ),
    TinyModel("phi3", "phi3", _LLAMA_LIKE | {"sliding_window": WINDOW}),
    TinyModel(
        "phi3-longrope",
        "phi3",
        _LLAMA_LIKE
        | {
            "hidden_size": 64,
            "original_max_position_embeddings": 64,
            "rope_parameters": _LONGROPE | {"original_max_position_embeddings": 64},
        },
    ),
    TinyModel(
        # The longest of PROMPTS is beyond the original length, the others are not: each prompt must get the factors
        # of its own length, not those of the longest prompt beside it.
        "phi3-longrope-switching",
        "phi3",
        _LLAMA_LIKE
        | {
            "hidden_size": 64,
            "original_max_position_embeddings": 8,
            "rope_parameters": _LONGROPE | {"original_max_position_embeddings": 8},
        },
    ),
    TinyModel("cohere", "cohere", _LLAMA_LIKE | {"logit_scale": 0.25, "use_qk_norm": True}),
    TinyModel(
        "granite",
        "granite",
        _LLAMA_LIKE
        | {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.5,
            "tie_word_embeddings": True,
        },
    ),
    TinyModel("starcoder2", "starcoder2", _LLAMA_LIKE | {"sliding_window": WINDOW, "use_bias": True}),
    TinyModel("stablelm", "stablelm", _LLAMA_LIKE | {"hidden_size": 64, "use_qkv_bias": True}),
    TinyModel(
        "stablelm-parallel",
        "stablelm",
        _LLAMA_LIKE | {"hidden_size": 64, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    TinyModel(
        "falcon",
        "falcon",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    TinyModel("falcon-multiquery", "falcon", _FALCON | {"multi_query": True, "parallel_attn": True}),
    TinyModel(
        "falcon-alibi",
        "falcon",
        _FALCON | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    TinyModel("opt", "opt", _OPT),
    TinyModel("opt-projected", "opt", _OPT | {"word_embed_proj_dim": 32}),
    TinyModel("opt-post-norm", "opt", _OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    TinyModel("bloom", "bloom", {"hidden_size": 48, "n_layer": 3, "n_head": 6}),
    TinyModel(
        "mixtral",
        "mixtral",
        _LLAMA_LIKE
        | {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    TinyModel(
        "qwen3_moe",
        "qwen3_moe",
        _LLAMA_LIKE
        | {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "moe_intermediate_size": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
)
TINY: dict[str, TinyModel] = {tiny.name: tiny for tiny in _EVERY}

OF_EVERY_KIND = {
    "qwen2-tied": "RMS norms before attention and MLP, rotary positions, the embedding for a head",
    "gemma2": "norms before and behind, windows in every second block, softcaps of attention and logits",
    "olmo2": "norms behind attention and MLP alone, and of queries and keys",
    "gpt2": "layer norms, learned positions, matrices stored the other way round",
    "gpt_neox": "parallel attention and MLP with a norm each, queries, keys and values in one matrix, rotary in part",
    "cohere": "parallel attention and MLP behind one norm, scaled logits",
    "granite": "multipliers of embedding, residuals, attention and logits",
    "bloom": "positions by ALiBi, a norm of the embedding",
    "phi3-longrope-switching": "rotary frequencies that follow the length of what is read",
    "opt-projected": "an embedding narrower than the stream",
    "opt-post-norm": "norms behind each sum, and no last one",
    "qwen3_moe": "experts, and among them a block without",
}
"""Models that between them have every kind of block, norm, position, head and storage there is in `TINY`, and what each
of them is there for. Every run tries these; the others, built of the same parts, are marked `slow` (`by_family`).

Whether each listed family computes what Transformers does is asked of all in every run
(`test_families.test_residuals_equal_transformers_at_every_layer_and_position`).
"""


def by_family(names: Iterable[str] = TINY, in_short: Container[str] = OF_EVERY_KIND) -> list[Any]:
    """Values for `parametrize`: the names, all that are not `in_short` left to where all is tested."""
    return [name if name in in_short else slow(name) for name in names]


def randomise(model: PreTrainedModel) -> None:
    """Give every parameter random values that its name alone decides, so that no gain stays 1 and no bias stays 0."""
    centre_of_gain = 0.0 if model.config.model_type.startswith("gemma") else 1.0  # Gemma multiplies by 1 + gain
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # the head of a tied pair
                continue
            seen.add(id(parameter))
            generator = torch.Generator().manual_seed(zlib.crc32(f"{module_name}.{name}".encode()))
            values = 0.2 * torch.randn(parameter.shape, generator=generator)
            with torch.no_grad():
                parameter.copy_(values + centre_of_gain if is_norm and name == "weight" else values)


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 ids, `<s>` (id 0) as its beginning of sequence; it adds no `<s>` by itself."""
    capitals = {"Germany": "Berlin", "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid"}
    sentences = [f"Give the city name only, plain text. The capital of {a} is called {b}." for a, b in capitals.items()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Reference:
    """What Transformers' own resident model computes for one prompt, in float32."""

    residuals: torch.Tensor
    """[layer, position, d_model]: the input of block 0, then the output of every block, the last one not yet normed."""
    logits: torch.Tensor
    """[position, d_vocab]"""


def reference(folder: Path, token_ids: list[int]) -> Reference:
    """Run the checkpoint in `folder` resident, unpadded and without a cache, its weights cast to float32."""
    return observe(load_resident(folder), token_ids)


@functools.lru_cache(maxsize=2)
def load_resident(folder: Path) -> PreTrainedModel:
    """The checkpoint in `folder`, resident, its weights cast to float32."""
    attention = _attention(AutoConfig.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model.eval()


def _attention(config: PreTrainedConfig) -> str:
    """Eager, except where Falcon has ALiBi: its eager attention (Transformers 5.23) adds the bias a second time.

    Halving the slopes there gives what "sdpa" gives, to float32 rounding.
    """
    return "sdpa" if getattr(config, "alibi", False) else "eager"


def observe(model: PreTrainedModel, token_ids: list[int]) -> Reference:
    """One prompt through a resident model, its blocks hooked."""
    residuals: list[torch.Tensor] = []
    blocks = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))

    def before_first(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        residuals.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    def after_each(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        residuals.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    handles = [blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)]
    handles += [block.register_forward_hook(after_each) for block in blocks]
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return Reference(torch.stack(residuals), logits)
