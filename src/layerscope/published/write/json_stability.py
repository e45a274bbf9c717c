"""Blocks that say whether milestones survive another norm, lens, scale or position, and a second time."""

from collections.abc import Sequence

from layerscope.analysis.consistency import TOLERANCE_LAYERS, DecodingTarget, LensAgreement, ScaledTarget
from layerscope.analysis.percentiles import QUARTERS, depth_layer
from layerscope.published.write.json_source import Source, Tree

STRATEGIES = ("post_ln2", "next_ln1")
"""The two norms of the decoding-point test: of the block that wrote last, and of the block that reads next."""
DETERMINISTIC = "deterministic_env"
"""Why there was no second forward pass: kernels were deterministic, and a second decode was equal."""


def gate_stability(source: Source) -> Tree | None:
    """Whether gates hold with logits scaled a little; None where nothing was looked at closely."""
    found = source.found.gate_stability
    if found is None:
        return None
    return {
        "scales": list(found.scales),
        "per_target": {source.named(target.name): _scaled(target) for target in found.targets},
        "min_both_gates_pass_frac": found.min_both_gates_pass_frac,
    }


def _scaled(found: ScaledTarget) -> Tree:
    block: Tree = {"layer": found.layer}
    if found.name != "L_semantic_strong_run2":  # a run of two layers has no share for one gate
        block["uniform_margin_pass_frac"] = found.uniform_margin_pass_frac
        block["top2_gap_pass_frac"] = found.top2_gap_pass_frac
    return {**block, "both_gates_pass_frac": found.both_gates_pass_frac}


def repeatability(source: Source) -> Tree:
    """Two decodes of the same residuals."""
    found, provenance = source.found.repeatability, source.record.provenance
    return {
        "status": found.status,
        **({} if found.reason is None else {"reason": found.reason}),
        "layers_checked": found.layers_checked,
        "max_rank_dev": None if found.max_rank_dev is None else float(found.max_rank_dev),
        "p95_rank_dev": found.p95_rank_dev,
        "top1_flip_rate": found.top1_flip_rate,
        "deterministic_algorithms": None if provenance is None else provenance.deterministic_algorithms,
    }


def decoding_point(source: Source) -> Tree:
    """Residuals of the milestones decoded through two norms."""
    found = source.found.decoding_point
    block: Tree = {
        "arch": found.stack,
        "tested": found.tested,
        "strategies": list(STRATEGIES),
        "targets": [{"name": source.named(target.name), "layer": target.layer} for target in found.targets],
        "per_target": [_decoded(source, target) for target in found.targets],
        "gate": {"decoding_point_consistent": found.consistent},
    }
    if found.preferred_target is not None:
        preferred = found.preferred_target
        block["preferred_target"] = {"name": source.named(preferred.name), "layer": preferred.layer}
    if source.extended:
        gap = found.onset_gap
        block["reason"] = found.reason
        block["onset_gap"] = (
            None if gap is None else {"logit": gap.logit, "norm": gap.next_norm, "gap_layers": gap.gap_layers}
        )
    return block


def _decoded(source: Source, found: DecodingTarget) -> Tree:
    return {
        "name": source.named(found.name),
        "layer": found.layer,
        "rank1_agree": found.rank1_agree,
        "delta_answer_rank": found.delta_answer_rank,
        "top1_token_agree": found.top1_token_agree,
        "answer_rank_post_ln2": found.answer_rank_post_ln2,
        "answer_rank_next_ln1": found.answer_rank_next_norm,
        "top1_id_post_ln2": found.top1_id_post_ln2,
        "top1_id_next_ln1": found.top1_id_next_norm,
        "p_answer_post_ln2": found.p_answer_post_ln2,
        "p_answer_next_ln1": found.p_answer_next_norm,
        "p_top1_post_ln2": found.p_top1_post_ln2,
        "p_top1_next_ln1": found.p_top1_next_norm,
        # Two correlations of that name are not the same one; the extended dialect says which it is.
        "spearman_top50_union" if source.extended else "spearman_top50": found.spearman_top50_union,
        "jaccard@10": found.jaccard_10,
        "jaccard@50": found.jaccard_50,
        "status": found.status,
    }


def lens_consistency(source: Source) -> Tree | None:
    """The headline lens against others at milestones; None where nothing was looked at closely."""
    found = source.found.lens_consistency
    if found is None:
        return None
    block: Tree = {"targets": [source.named(name) for name in found.targets]}
    for pair in found.pairs:
        at_targets: Sequence[Tree] = [{"layer": at.layer, **_agreement(source, at.agreement)} for at in pair.at_targets]
        against: Tree = {"at_targets": list(at_targets), "p50": _agreement(source, pair.p50)}
        if source.extended:
            against["p50_by_name"] = _agreement(source, pair.p50_by_name)
        block[f"{source.label}_vs_{pair.against}"] = against
    return block


def _agreement(source: Source, found: LensAgreement) -> Tree:
    return {
        "jaccard@10": found.jaccard_10,
        "jaccard@50": found.jaccard_50,
        "spearman_top50_ref" if source.extended else "spearman_top50": found.spearman_top50_ref,
    }


def repeatability_forward(source: Source) -> Tree | None:
    """The preferred milestone in two forward passes; None without a curve."""
    found = source.found.forward_of_two
    if found is None:
        return None
    return {
        "milestones": {
            "primary": None if found.primary is None else source.named(found.primary),
            "pass1": {"layer": found.pass1_layer},
            "pass2": {"layer": found.pass2_layer},
            "delta_layers": found.delta_layers,
        },
        "topk_jaccard_at_primary_layer": found.topk_jaccard_at_primary_layer,
        "gate": {"repeatability_forward_pass": found.agree},
        "enabled": found.enabled,
        "mode": found.mode,
        "tolerance_layers": TOLERANCE_LAYERS,
        "topk_k": found.topk_k,
    }


def last_layer_consistency(source: Source) -> Tree | None:
    """The last layer beside the model's own output; None where that was not measured."""
    found = source.found.last_layer
    if found is None:
        return None
    measured = found.measured
    block: Tree = {
        "kl_to_final_bits": measured.kl_to_final_bits,
        "top1_agree": measured.top1_agree,
        "p_top1_lens": measured.p_top1_lens,
        "p_top1_model": measured.p_top1_model,
        "p_answer_lens": measured.p_answer_lens,
        "answer_rank_lens": measured.answer_rank_lens,
        "temp_est": measured.temp_est,
        "kl_after_temp_bits": measured.kl_after_temp_bits,
        "cfg_transform": {"scale": measured.scale, "softcap": measured.softcap},
        "kl_after_transform_bits": {
            "scale": measured.kl_after_scale_bits,
            "softcap": measured.kl_after_softcap_bits,
            "scale_then_softcap": measured.kl_after_scale_then_softcap_bits,
        },
        "warn_high_last_layer_kl": found.warn_high_last_layer_kl,
        "gates": {
            "warn_high_last_layer_kl": found.warn_high_last_layer_kl,
            "threshold_bits": found.threshold_bits,
            "delta_kl_temp_bits": found.delta_kl_temp_bits,
        },
    }
    if source.extended:
        block["temp_est_refined"] = measured.temp_est_refined
        block["kl_after_temp_refined_bits"] = measured.kl_after_temp_refined_bits
    return block


def temperatures(source: Source) -> Tree:
    """The temperature of each layer, or why there is none."""
    measured = source.record.measured
    found = measured.norm_temperature
    if found is None:
        reason = measured.absent.get("norm_temperature", "no temperatures were fitted")
        return {"tau_norm_per_layer_error": reason}
    block: Tree = {"tau_norm_per_layer": list(found.tau_per_layer)}
    return {**block, "tau_norm_bound_hits": found.bound_hits} if source.extended else block


def temperature_percentiles(source: Source) -> Tree:
    """What is left of the divergence from the model after them, at quarters of the depth."""
    layers = {f"{q * 100:.0f}%": depth_layer(q, source.n_layers) for q in QUARTERS}
    return {
        f"kl_to_final_bits_norm_temp@{name}": {
            "layer": layer,
            "value": None if source.curve is None else source.curve.value("kl_to_final_bits_norm_temp", layer),
        }
        for name, layer in layers.items()
    }


def position_window(source: Source) -> Tree:
    """Whether the answer leads at other positions of the primary prompt."""
    found = source.found.position_window
    grid = () if found is None else found.grid
    block: Tree = {
        "grid": [place.fraction for place in grid],
        f"L_semantic_{source.label}": None if found is None else found.L_semantic,
        "rank1_frac": None if found is None else found.rank1_frac,
        "n_positions": 0 if found is None else found.n_positions,
        "rank1_frac_strong_run2": None if found is None else found.rank1_frac_strong_run2,
    }
    if source.extended and found is not None:
        block["positions"] = [
            {"pos_frac": place.fraction, "pos_index": place.position, "answer_rank": place.answer_rank}
            for place in grid
        ]
        block["rank1_frac_reason"] = found.rank1_frac_reason
        block["rank1_frac_strong_run2_reason"] = found.rank1_frac_strong_run2_reason
    return block


def norm_trajectory(source: Source) -> Tree | None:
    """How the residual stream's length grows; None without a curve."""
    found = source.found.trajectory
    if found is None:
        return None
    block: Tree = {
        "shape": found.shape,
        "slope": found.slope,
        "r2": found.r2,
        "n_spikes": found.n_spikes,
        "sampled_layers": found.sampled_layers,
    }
    if source.extended:
        block |= {"shape_trend": found.shape_trend, "n_spikes_relative": found.n_spikes_relative}
    return block


def flags(source: Source) -> Tree:
    """Cautions by name; one that does not hold is absent."""
    found, again = source.found.repeatability, source.found.forward_of_two
    reasons = {reason.name for reason in source.run.guidance.reasons}
    said: Tree = {}
    if found.status != "ok":
        said[f"repeatability_{found.status}"] = True if found.status == "unavailable" else found.reason or True
    if again is not None and again.mode == "skipped_deterministic":
        said["repeatability_forward_skipped"] = DETERMINISTIC
    said |= {_FLAGS.get(name, name): True for name in _CAUTIONS if name in reasons}
    own = source.record.flags
    return {**said, **{name: text for name, text in own.items() if source.extended or name in _PUBLISHED_FLAGS}}


_CAUTIONS = (
    "repeatability_variance_high", "repeatability_forward_disagreement", "gold_alignment_partial",
    "nondeterministic_env", "normalization_spike", "numeric_health_caution", "copy_mask_missing", "copy_mask_error",
    "layer_map_missing", "rank_only_near_uniform", "decoding_point_sensitive", "low_lens_consistency_at_semantic",
    "pos_window_low_stability",
)  # fmt: skip
"""Reasons of the guidance that are flags too."""
_FLAGS = {"nondeterministic_env": "nondeterministic"}
"""Flags whose names are other than the reasons'."""
_PUBLISHED_FLAGS = {
    "repeatability_skipped", "repeatability_unavailable", "repeatability_forward_skipped", "copy_mask_error",
    *(_FLAGS.get(name, name) for name in _CAUTIONS),
}  # fmt: skip
"""Flags that published files know."""
