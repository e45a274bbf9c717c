"""The block `diagnostics`, in the order of published files."""

from layerscope.published.write import json_fitted_lenses as tree_lenses
from layerscope.published.write import json_milestones as tree_milestones
from layerscope.published.write import json_prompts as tree_prompts
from layerscope.published.write import json_provenance as tree_provenance
from layerscope.published.write import json_raw as tree_raw
from layerscope.published.write import json_stability as stability
from layerscope.published.write import json_tuned_audit as tree_tuned
from layerscope.published.write.json_source import Source, Tree, pointer
from layerscope.published.write.json_summary import micro_suite


def diagnostics(source: Source) -> Tree:
    """Everything about the primary prompt under the headline lens, unless a key says otherwise."""
    return {
        "type": "diagnostics",
        **tree_provenance.settings(source),
        "unembed_bias": tree_provenance.unembed_bias(source),
        "flags": stability.flags(source),
        "prism_summary": tree_lenses.prism_summary(source),
        "copy_soft_config": {
            "threshold": source.thresholds.copy_soft,
            "window_ks": list(source.thresholds.copy_soft_windows),
            "extra_thresholds": [],
        },
        **stability.temperatures(source),
        "copy_mask": tree_provenance.copy_mask(source),
        **_milestones(source),
        **_survival(source),
        **_answers(source),
        **_lenses(source),
        "micro_suite": micro_suite(source),
        "position_window": stability.position_window(source),
        "norm_trajectory": stability.norm_trajectory(source),
    }


def _milestones(source: Source) -> Tree:
    t = source.thresholds
    block: Tree = {
        **tree_milestones.first_crossings(source.own, t),
        **tree_milestones.entropy_gap(source.curve),
        "copy_thresholds": tree_milestones.copy_thresholds(source.found.copy_thresholds),
    }
    for _, curve, own in source.summarised_lenses():
        block |= tree_milestones.surface_and_geometry(curve, own, t)
    block |= tree_milestones.cosine_milestones(source)
    block["depth_fractions"] = tree_milestones.depth_fractions(source)
    block["L_semantic_margin_ok"] = source.layer("L_semantic_margin_ok")
    block["semantic_margin"] = tree_milestones.semantic_margin(source)
    block["semantic_gate"] = tree_milestones.semantic_gate(source)
    return block


def _survival(source: Source) -> Tree:
    return {
        "gate_stability_small_scale": stability.gate_stability(source),
        "raw_lens_window": tree_raw.raw_lens_window(source),
        "raw_lens_full": tree_raw.raw_lens_full(source),
        "normalization_provenance": tree_provenance.normalization_provenance(source),
        "layer_map": tree_provenance.layer_map(source),
        "numeric_health": tree_provenance.numeric_health(source),
        "repeatability": stability.repeatability(source),
        "decoding_point": stability.decoding_point(source),
        "lens_consistency": stability.lens_consistency(source),
    }


def _answers(source: Source) -> Tree:
    primary = source.record.prompt(source.found.primary)
    aligned = pointer("diagnostics", "gold_alignment_prompts", 0)
    return {
        "gold_alignment": aligned if source.extended and primary else tree_prompts.gold_alignment(primary),
        "repeatability_forward": stability.repeatability_forward(source),
        "last_layer_consistency": stability.last_layer_consistency(source),
        **stability.temperature_percentiles(source),
        "gold_alignment_rate": source.record.suite.gold_alignment_rate,
        "gold_alignment_prompts": tree_prompts.gold_alignment_prompts(source),
    }


def _lenses(source: Source) -> Tree:
    found = source.found.confirmation
    block: Tree = {
        "tuned_lens": tree_lenses.tuned_lens(source, whole=source.extended),
        **tree_lenses.tuned_surface(source),
        **tree_tuned.skip_layers(source),
        "confirmed_semantics": tree_milestones.confirmed_semantics(source),
    }
    if found is not None and found.layer is not None:
        block["L_semantic_confirmed"] = found.layer
    block["config"] = tree_raw.score_config()
    return {**block, "derived": tree_milestones.derived_numbers(source)} if source.extended else block
