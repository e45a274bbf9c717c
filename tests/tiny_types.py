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
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SLIDING_ROPE = {"full_attention": _ROPE, "sliding_attention": _ROPE}
_IN_THREE = {"rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}}
"""Rotary pairs for time, height and width, where the default leaves them to the code, for wider heads than ours."""
_SHARED_CACHES = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
_DRAFTER = {"num_kv_shared_layers": 30, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
_DRAFTER_TEXT = {"num_kv_shared_layers": 4, "num_hidden_layers": 4, "layer_types": _SHARED_CACHES["layer_types"]}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_DOTS_TEXT = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 32,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
    "head_dim": 32,
}
_ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 128,
    "num_key_value_heads": 4,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "chameleon": {"vocabulary_map": {"<image>": D_VOCAB - 1}, "vq_config": {"channel_multiplier": [1]}},
    "cohere_compass": {"text_config": {"rope_parameters": _SLIDING_ROPE}},
    "cohere_compass_text": {"rope_parameters": _SLIDING_ROPE},
    "cpmant": {"prompt_length": 2},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2": {
        "text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse", "sparse"], "n_group": 1}
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64},
        "audio_config": {"adapter_input_size": 64},
        "text_config": _DOTS_TEXT,
    },
    "dots3_note_text": _DOTS_TEXT,
    "emu3": {"vocabulary_map": {"<image>": D_VOCAB - 1, "<|extra_200|>": 5}, "vq_config": {"channel_multiplier": [1]}},
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [24, 24],
            "rope_parameters": _ROPE | {"mrope_section": [3, 3, 2]},
        }
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "florence2": {
        "vision_config": {
            "embed_dim": [16, 32, 64, 64],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "depths": [1, 1, 1, 1],
        }
    },
    "gemma3n_text": _SHARED_CACHES | {"activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]},
    "gemma4_assistant": {
        "from": {"text_config": _DRAFTER | {"model_type": "gemma4_text"}},
        "text_config": _DRAFTER | _DRAFTER_TEXT,
    },
    "gemma4_unified_assistant": {"text_config": _DRAFTER_TEXT},
    "glm46v": {"text_config": _IN_THREE},
    "glm4v": {"text_config": _IN_THREE},
    "glm4v_moe": {
        "text_config": {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}}
    },
    "glm5_next": {"text_config": {"index_kpool": 2}},
    "glm_ocr": {"text_config": _IN_THREE},
    "glmga": {"text_config": _IN_THREE},
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1]},
    "hunyuan_vl": {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2, 2]}}},
    "janus": {"vq_config": {"channel_multiplier": [1]}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"num_layers": 3},
    "mamba2": {"num_heads": 8},
    "mistral4": {"head_dim": 32},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1, 2], "head_dim": 32}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [0]}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl": {"text_config": _IN_THREE},
    "qwen2_5_omni_thinker": {"text_config": _IN_THREE},
    "qwen2_5_vl": {"text_config": _IN_THREE},
    "qwen2_vl": {"text_config": _IN_THREE},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 16]},
    "step3p7": {"text_config": {"sliding_window": 4}},
    "unlimited_ocr": {"text_config": {"num_key_value_heads": 4}},
    "xlm": {"emb_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA | {"mamba_headdim": 16, "attention_head_dim": 32, "hybrid_layer_ids": [1, 3]},
    "zaya": {"num_experts_per_tok": 1},
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
