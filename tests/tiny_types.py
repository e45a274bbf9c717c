"""A tiny config of any type that Transformers knows: its own default, with every size that is known cut down.

Nothing here names a type but `SPECIAL`, which has what the rules would get wrong. Nothing here knows layerscope.
"""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from tiny_models import D_VOCAB

_SIZES: dict[int, str] = {
    D_VOCAB: "vocab_size text_vocab_size unpadded_vocab_size vocab_size_per_layer_input",
    64: "hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim attention_hidden_size out_hidden_size "
    "projection_dim projector_hidden_size encoder_hidden_size text_hidden_size vision_output_dim output_dim "
    "adapter_out_dim patch_embed_hidden_size hidden_dim image_text_hidden_size hidden_size_global moe_hidden_size "
    "vision_hidden_size projection_intermediate_size router_hidden_size hidden_size_per_layer_input dim_model "
    "encoder_d_model output_channels dim dim_ff",
    4: "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads index_n_heads linear_num_heads "
    "linear_num_value_heads resampler_n_heads num_sliding_attention_heads num_local_experts n_routed_experts "
    "num_experts moe_num_experts sliding_window local_window_size sliding_window_size attention_window_size "
    "index_topk",
    2: "num_key_value_heads num_kv_heads linear_num_key_heads swa_num_key_value_heads mamba_n_groups n_groups "
    "mamba_ngroups num_experts_per_tok moe_topk moe_k num_experts_per_token top_k_experts moe_top_k "
    "num_selected_experts max_window_layers kv_n_heads",
    16: "head_dim d_kv kv_channels qk_nope_head_dim qk_rope_head_dim v_head_dim swa_head_dim linear_key_head_dim "
    "linear_value_head_dim linear_head_dim index_head_dim mamba_d_head mamba_head_dim resampler_head_dim "
    "global_head_dim swa_v_head_dim laurel_rank q_lora_rank kv_lora_rank",
    32: "qk_head_dim attention_head_dim base_channels latent_channels num_query_tokens num_embeddings "
    "mm_tokens_per_image image_seq_length hc_lowrank downsample_hidden_size codebook_size max_img_size",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff ffn_hidden_size n_inner intermediate_size_mlp "
    "shared_expert_intermediate_size dense_intermediate_size shared_intermediate_size mlp_dim share_expert_dim "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    24: "moe_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size",
    1: "depth encoder_layers num_encoder_layers resampler_depth n_group topk_group n_shared_experts "
    "moe_num_shared_experts num_shared_experts first_k_dense_replace num_expert_group",
    8: "mamba_n_heads mamba_num_heads state_size ssm_state_size mamba_d_state chunk_size mamba_chunk_size rotary_dim",
    256: "max_position_embeddings n_positions max_seq_len max_target_positions max_source_positions n_ctx "
    "context_length original_max_position_embeddings model_max_length num_position_embeddings",
    28: "image_size",
    14: "patch_size",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
"""What a size becomes, by its name; each divides, or is divided by, what goes with it."""
_LAYERS = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "layers",
    "num_blocks",
]
_FILLED = ("num_key_value_heads", "head_dim")
"""Sizes that a default may leave open, and some classes cannot do without."""
_TEXT = ("text", "decoder", "thinker", "language", "llm", "lm")
"""What names of nested configs begin with that describe language models."""
_GEMMA_SHARING = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cpmant": {"prompt_length": 2, "prompt_types": 2, "segment_types": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "gemma3n_text": _GEMMA_SHARING | {"activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]},
    "gemma4_assistant": {"from": {"text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0}}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"num_layers": 3},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 16]},
    "xmod": {"default_language": "en_XX"},
}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The smallest useful config of a type.

    Raises:
        Exception: whatever the type's own class raises of its default, or of what became of it.
    """
    cls = CONFIG_MAPPING[model_type]
    special = SPECIAL.get(model_type, {})
    # Some defaults are refused by their own class, or lack what it needs.
    default = cls(**special.get("from", {}))
    values = _merged(_tiny(default, is_text=True), {key: value for key, value in special.items() if key != "from"})
    return cls(**_merged(values, changes))


def _tiny(config: PreTrainedConfig, *, is_text: bool) -> dict[str, Any]:
    """Arguments of a config's class."""
    said = config.to_dict()
    values = _chosen_layers(said, config, is_text=is_text)
    for key, value in said.items():
        nested = getattr(config, key, None) if isinstance(value, dict) else None
        if isinstance(nested, PreTrainedConfig):
            inner = is_text and key.startswith(_TEXT)
            values[key] = {**_tiny(nested, is_text=inner), "model_type": nested.model_type}
        elif key in values:
            continue
        elif key in SIZES and (_is_size(value) or (value is None and key in _FILLED)):
            values[key] = SIZES[key]
        elif key.endswith(("token_id", "token_index")):
            values |= _known_id(key, value)
        elif key == "rope_parameters" and "mrope_section" in (value or {}):
            values[key] = value | {"mrope_section": _sections(value)}
    if said.get("kv_lora_rank") is not None and "num_attention_heads" in values:
        values["num_key_value_heads"] = values["num_attention_heads"]  # latent attention has no groups
    return values


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _known_id(key: str, value: Any) -> dict[str, Any]:
    """Ids beyond the tiny vocabulary become its last one, which no tokenizer emits."""
    if isinstance(value, list):
        return {key: [D_VOCAB - 1]} if any(id >= D_VOCAB for id in value) else {}
    return {key: D_VOCAB - 1} if isinstance(value, int) and value >= D_VOCAB else {}


def _sections(rope: Mapping[str, Any]) -> list[int]:
    """Rotary pairs of a head for time, height and width."""
    half = int(SIZES["head_dim"] * rope.get("partial_rotary_factor", 1.0)) // 2
    return [half - 2 * (half // 3), half // 3, half // 3]


def _chosen_layers(said: Mapping[str, Any], config: PreTrainedConfig, *, is_text: bool) -> dict[str, Any]:
    """The number of layers, and what is said of each of them: one of every kind, and no fewer than three of text."""
    names = [name for name in _LAYERS if _is_size(said.get(name))]
    n = said[names[0]] if names else getattr(config, "num_hidden_layers", None)
    if not _is_size(n):
        return {}
    lists = {
        key: value
        for key, value in said.items()
        if isinstance(value, list) and len(value) == n and not isinstance(value[0], list | dict)
    }
    kinds = [tuple(value[i] for value in lists.values() if len(set(value)) < 7) for i in range(n)]
    chosen = sorted({kinds.index(kind) for kind in kinds})[:6] if is_text else [0]
    for i in range(n):
        if len(chosen) < 3 and is_text and i not in chosen:
            chosen.append(i)
    chosen.sort()
    return {name: len(chosen) for name in names} | {key: [value[i] for i in chosen] for key, value in lists.items()}


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes over values, nested ones into each other."""
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, change) if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return merged
