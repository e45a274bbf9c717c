"""Blocks about how the numbers were made: settings in words, machine, copy mask, which norm stood at which layer."""

import re

from layerscope.published import members
from layerscope.published.layout import RECORD_KEY
from layerscope.published.write.json_source import Source, Tree, gold_of, label_of, pointer
from layerscope.record.protocol import Thresholds
from layerscope.record.rows import TOP_SET

N_CTX = 2048
"""Prompt length up to which the published tool opened most models, whatever they can read; not one of ours."""
TARGET = "first unseen token (likely '{answer}')"
MARGIN_UNIT = "logit"
MIXED_PRECISION = "casting_to_fp32_before_unembed"
BIAS_IN_LAYER_NORM, NO_BIAS_IN_RMS_NORM = "active", "not_needed_rms_model"
"""Whether the norm adds a bias."""
POST_BLOCK = {
    "RMSNorm": "using_ln2_rmsnorm_for_post_block",
    "LayerNorm": "using_ln2_layernorm_for_post_block",
}
"""What published files say of the norm after a block, by its kind, though they measured through the next block's."""
LAYER_0_NORMED, UNNORMED = "using_real_ln1_on_embeddings", "no_normalization"
EXTENDED_NORMS = {
    "next_norm": ("using_next_ln1_for_post_block", LAYER_0_NORMED),
    "logit": ("using_ln_final_for_post_block", "using_ln_final_on_embeddings"),
}
"""What the extended dialect says of the norm after a block and of that of layer 0, by lens."""
ROTARY, LEARNED = "token_only_rotary_model", "additive_pos_embed_included"
"""Whether layer 0 is the token's embedding alone, or that plus its position's."""
LEARNED_POSITIONS = frozenset({"gpt2", "opt"})
"""Families that add an embedding of the position."""


def model_stats(source: Source) -> Tree:
    """Sizes of the model."""
    return {
        "type": "model_stats",
        **source.block(members.MODEL_STATS, source.record.model),
        "n_ctx": None if source.extended else N_CTX,  # what the model can read is not measured
        "architecture": source.record.measured.stack,
    }


def settings(source: Source) -> Tree:
    """How the run was made, in the format's words."""
    record = source.record
    machine, measured = record.provenance, record.measured
    prompt, gold = source.primary_prompt, gold_of(source.primary_prompt)
    computed = None if machine is None else machine.dtype_compute
    unembedded = None if machine is None else machine.dtype_unembed
    kind = measured.first_block_norm or measured.final_norm
    norms = record.lens_sources.get(source.headline, ())
    normed = bool(norms) and norms[0] != "raw"
    post_block, layer_0 = POST_BLOCK.get(kind or ""), LAYER_0_NORMED
    if source.extended:
        post_block, layer_0 = EXTENDED_NORMS.get(source.headline, (UNNORMED, UNNORMED))
    return {
        "model": record.model.id,
        "device": None if machine is None else machine.device,
        "use_norm_lens": source.headline != "raw",
        # Whether a promotion was needed, not which precision was used: published files say it so.
        "use_fp32_unembed": None if computed is None else computed != "float32" and unembedded == "float32",
        "unembed_dtype": _torch(unembedded),
        "first_block_ln1_type": measured.first_block_norm,
        "final_ln_type": measured.final_norm,
        "layernorm_bias_fix": BIAS_IN_LAYER_NORM if kind == "LayerNorm" else NO_BIAS_IN_RMS_NORM,
        "norm_alignment_fix": post_block,
        "layer0_norm_fix": layer_0 if normed else UNNORMED,
        "mixed_precision_fix": MIXED_PRECISION,
        "layer0_position_info": LEARNED if record.model.family in LEARNED_POSITIONS else ROTARY,
        "context_prompt": None if prompt is None else prompt.text,
        "target_prediction": None if gold is None else TARGET.format(answer=gold.string),
        "surface_diagnostics_config": _surface_config(source.thresholds),
        "answer_margin_unit": MARGIN_UNIT,
    }


def _surface_config(t: Thresholds) -> Tree:
    """The thresholds of surface diagnostics and semantic gates."""
    return {
        "delta": t.surface_margin,
        "gamma": t.geometry_margin,
        "K": TOP_SET,
        "tau": t.topk_prompt_mass,
        "semantic_margin": {"delta_abs": t.semantic_margin},
        "semantic_gate": {"delta_top2_logit": t.semantic_gap},
    }


def copy_mask(source: Source) -> Tree | str | None:
    """Ids that never count as an echo; the extended dialect has them as ranges, in the record."""
    mask = source.record.measured.copy_mask
    if mask is None:
        return None
    return pointer(RECORD_KEY, "measured", "copy_mask") if source.extended else source.block(members.COPY_MASK, mask)


def environment(source: Source) -> Tree | None:
    """With what the numbers were computed; None where that was not recorded."""
    machine = source.record.provenance
    if machine is None:
        return None
    cudnn = machine.cudnn_version
    return {
        **source.block(members.ENVIRONMENT, machine),
        "cudnn": int(cudnn) if cudnn is not None and cudnn.isdecimal() else cudnn,
        "dtype_compute": _torch(machine.dtype_compute),
    }


def numeric_health(source: Source) -> Tree | None:
    """Whether all numbers were finite; None where that was not recorded."""
    health = source.record.numeric_health
    if health is None:
        return None
    flags = [{**source.block(members.LAYER_FLAG, flag), "lens": label_of(flag.lens)} for flag in health.layers_flagged]
    return {**source.block(members.NUMERIC_HEALTH, health), "layers_flagged": flags}


def normalization_provenance(source: Source) -> Tree:
    """Which norm the headline lens applied at each layer, and what it did to the primary prompt's residual."""
    tested = source.diagnostics.decoding_point.tested
    return {
        "arch": source.record.measured.stack,
        "strategy": {
            "primary": _strategy(source),
            "ablation": "post_ln2_vs_next_ln1@targets" if tested else None,
        },
        "per_layer": [_norm_at(source, layer) for layer in range(source.n_layers + 1)],
    }


def _strategy(source: Source) -> str:
    if source.headline != "next_norm":
        return "ln_final" if source.headline == "logit" else source.headline
    return "post_ln2" if source.record.measured.stack == "post_norm" else "next_ln1"


def _norm_at(source: Source, layer: int) -> Tree:
    row = None if source.curve is None else source.curve.at(layer)
    name = norm_name(source, layer)
    block: Tree = {
        "layer": layer,
        "ln_source": name,
        "eps_inside_sqrt": True,
        "scale_gamma_used": None if name is None else name != "raw",
        **{key: None if row is None else row[key] for key in ("resid_norm_ratio", "delta_resid_cos", "raw_resid_norm")},
    }
    return {**block, "module": source.record.lens_sources[source.headline][layer]} if source.extended else block


def layer_map(source: Source) -> list[Tree]:
    """Which block wrote last at each layer."""
    n = source.n_layers
    places = [("blocks[0]", "pre_block"), *((f"blocks[{i}]", "post_block") for i in range(n - 1))]
    places.append(("final", "unembed_head"))
    return [
        {"layer": layer, "block": block, "stream": stream, "norm": norm_name(source, layer)}
        for layer, (block, stream) in enumerate(places)
    ]


def norm_name(source: Source, layer: int) -> str | None:
    """The headline lens' norm at a layer as `blocks[3].ln1`, `ln_final` or `raw`; None where it was not recorded.

    A model may call it anything; the last layer's is the final norm, and of the others a number in the
    name is the block's.
    """
    sources = source.record.lens_sources[source.headline]
    name = sources[layer]
    if name is None or name == "raw" or name.startswith(("blocks[", "ln_")):
        return name
    if name == sources[-1]:
        return "ln_final"
    block = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if block is None:
        return name
    return f"blocks[{block[1]}].{'ln2' if source.record.measured.stack == 'post_norm' else 'ln1'}"


def _torch(dtype: str | None) -> str | None:
    return None if dtype is None else f"torch.{dtype}"
