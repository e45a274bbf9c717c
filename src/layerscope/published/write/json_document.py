"""The JSON of a run in either dialect, as a value."""

from dataclasses import asdict
from functools import reduce
from operator import getitem

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.raw_comparison import SCORE_RULE
from layerscope.analysis.verdict_json import plain
from layerscope.published import members
from layerscope.published.layout import DIALECT_KEY, FLAG_COLUMNS, N_ROWS_KEY, RECORD_KEY, Dialect
from layerscope.published.write import (
    json_fitted_lenses,
    json_milestones,
    json_prompts,
    json_provenance,
    json_raw,
    json_stability,
    json_summary,
)
from layerscope.published.write.json_source import Source, Tree, gold_of, pointer

_SUMMARY = {"semantic_margin": (), "semantic_gate": (), "micro_suite": ("aggregates",), "position_window": ()}
"""Blocks of `diagnostics` that published files repeat under `summary`, or what of them."""


def tree(run: AnalysedRun, dialect: Dialect) -> Tree:
    """The members of `output-<M>.json`.

    Published files repeat several blocks. In the extended dialect each stands in one place, and elsewhere there is a
    JSON pointer to it; plain keys, and those that end in its name, are about the headline lens, and where that is
    another one than the next block's norm, keys that end in `_norm` are about that one beside it.
    """
    source = Source(run, dialect)
    document = _published(source)
    return {**_identity(source), **_one_home(source, document), **_whole(source)} if source.extended else document


def _published(source: Source) -> Tree:
    diagnostics = _diagnostics(source)
    suite = diagnostics["micro_suite"]
    return {
        "prompt": json_prompts.primary_prompt(source),
        "test_prompts": json_prompts.test_prompts(source),
        "temperature_exploration": json_prompts.temperature_exploration(source),
        "diagnostics": diagnostics,
        "final_prediction": json_prompts.final_prediction(source),
        "model_stats": json_provenance.model_stats(source),
        "raw_lens_check": json_raw.raw_lens_check(source),
        "prompts": {"facts_micro_suite": [fact["fact_key"] for fact in suite["facts"] if fact["fact_key"] is not None]},
        "provenance": {"env": json_provenance.environment(source)},
        "copy_flag_columns": list(FLAG_COLUMNS),
        "ablation_summary": source.block(members.ABLATION, source.diagnostics.ablation),
        "control_prompt": json_prompts.control_prompt(source),
        "control_summary": source.block(members.CONTROL_SUMMARY, source.diagnostics.control),
        "tuned_lens": json_fitted_lenses.tuned_lens(source, whole=True),
        "summary": {key: reduce(getitem, (key, *inside), diagnostics) for key, inside in _SUMMARY.items()},
        "micro_suite": {key: suite[key] for key in ("facts", "aggregates")},
        "measurement_guidance": json_summary.measurement_guidance(source),
        "evaluation_pack": json_summary.evaluation_pack(source),
        "gold_answer": source.known(members.GOLD_ANSWER, gold_of(source.primary_prompt)),
    }


def _one_home(source: Source, document: Tree) -> Tree:
    """The members with pointers in place of what stands elsewhere."""
    aligned = [prompt.prompt_id for prompt in json_prompts.aligned_prompts(source)]
    pack, control = document["evaluation_pack"], document["control_prompt"]
    repeated: Tree = {"micro_suite": pointer("diagnostics", "micro_suite")}
    if pack["tuned_audit"]:
        repeated["tuned_audit"] = pointer("diagnostics", "tuned_lens", "audit_summary")
    moved: Tree = {
        "tuned_lens": pointer("diagnostics", "tuned_lens"),
        "summary": {key: pointer("diagnostics", key, *inside) for key, inside in _SUMMARY.items()},
        "micro_suite": pointer("diagnostics", "micro_suite"),
        "evaluation_pack": {**pack, **repeated},
    }
    if control is not None:
        at = pointer("diagnostics", "gold_alignment_prompts", next(i for i, p in enumerate(aligned) if p != "pos"))
        moved["control_prompt"] = {**control, "gold_answer": at, "gold_alignment": at}
    if document["gold_answer"] is not None:
        moved["gold_answer"] = pointer("diagnostics", "gold_alignment_prompts", 0)
    return {**document, **moved}


def _identity(source: Source) -> Tree:
    """What reading the run back needs; it stands first, where it survives if the end of the file is lost."""
    return {
        **source.block(members.RUN_IDENTITY, source.record),
        DIALECT_KEY: source.dialect.value,
        N_ROWS_KEY: source.run.n_rows,
        RECORD_KEY: source.record.model_dump(mode="json"),
    }


def _whole(source: Source) -> Tree:
    """What published files do not hold."""
    writes = source.run.write_effects
    return {
        "milestones": json_milestones.all_milestones(source),
        "patching": plain(source.diagnostics.patching),
        "write_patching": None if writes is None else writes.model_dump(mode="json"),
        "statistics": asdict(source.diagnostics.statistics),
    }


# The block `diagnostics`


def _diagnostics(source: Source) -> Tree:
    """Everything about the primary prompt under the headline lens, unless a key says otherwise."""
    return {
        "type": "diagnostics",
        **json_provenance.settings(source),
        "unembed_bias": source.known(members.UNEMBED_BIAS, source.record.measured.unembed_bias),
        "flags": json_stability.flags(source),
        "prism_summary": json_fitted_lenses.prism_summary(source),
        "copy_soft_config": {
            "threshold": source.thresholds.copy_soft,
            "window_ks": list(source.thresholds.copy_soft_windows),
            "extra_thresholds": [],
        },
        **json_stability.temperatures(source),
        "copy_mask": json_provenance.copy_mask(source),
        **_milestones(source),
        **_survival(source),
        **_answers(source),
        **_lenses(source),
        "micro_suite": json_summary.micro_suite(source),
        "position_window": json_stability.position_window(source),
        "norm_trajectory": source.known(members.SAMPLED_TRAJECTORY, source.diagnostics.trajectory),
    }


def _milestones(source: Source) -> Tree:
    t = source.thresholds
    block: Tree = {
        **json_milestones.first_crossings(source.milestones, t),
        **json_milestones.entropy_gaps(source.curve),
        "copy_thresholds": json_milestones.copy_thresholds(source.diagnostics.copy_thresholds),
    }
    for _, curve, milestones in source.summarised_lenses():
        block |= json_milestones.surface_and_geometry(curve, milestones, t)
    return {
        **block,
        **json_milestones.cosine_milestones(source),
        "depth_fractions": json_milestones.depth_fractions(source),
        "L_semantic_margin_ok": source.layer("L_semantic_margin_ok"),
        "semantic_margin": json_milestones.semantic_margin(source),
        "semantic_gate": json_milestones.semantic_gate(source),
    }


def _survival(source: Source) -> Tree:
    return {
        "gate_stability_small_scale": json_stability.gate_stability(source),
        "raw_lens_window": json_raw.raw_lens_window(source),
        "raw_lens_full": json_raw.raw_lens_full(source),
        "normalization_provenance": json_provenance.normalization_provenance(source),
        "layer_map": json_provenance.layer_map(source),
        "numeric_health": json_provenance.numeric_health(source),
        "repeatability": json_stability.repeatability(source),
        "decoding_point": json_stability.decoding_point(source),
        "lens_consistency": json_stability.lens_consistency(source),
    }


def _answers(source: Source) -> Tree:
    primary = source.primary_prompt
    aligned = pointer("diagnostics", "gold_alignment_prompts", 0)
    return {
        "gold_alignment": aligned if source.extended and primary else json_prompts.gold_alignment(source, primary),
        "repeatability_forward": json_stability.repeatability_forward(source),
        "last_layer_consistency": json_stability.last_layer_consistency(source),
        **json_stability.temperature_percentiles(source),
        "gold_alignment_rate": source.record.suite.gold_alignment_rate,
        "gold_alignment_prompts": json_prompts.gold_alignment_prompts(source),
    }


def _lenses(source: Source) -> Tree:
    confirmation = source.diagnostics.confirmation
    block: Tree = {
        "tuned_lens": json_fitted_lenses.tuned_lens(source, whole=source.extended),
        **json_fitted_lenses.tuned_surface(source),
        **json_fitted_lenses.skip_layers(source),
        "confirmed_semantics": json_milestones.confirmed_semantics(source),
    }
    if confirmation is not None and confirmation.layer is not None:
        block["L_semantic_confirmed"] = confirmation.layer
    block["config"] = {"lens_artifact_score": source.block(members.SCORE_RULE, SCORE_RULE)}
    return {**block, "derived": json_milestones.derived_numbers(source)} if source.extended else block
