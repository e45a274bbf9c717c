"""The JSON of a run in either dialect, as a value."""

from dataclasses import asdict

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.published.layout import DIALECT_KEY, FLAG_COLUMNS, N_ROWS_KEY, RECORD_KEY, Dialect
from layerscope.published.write import json_prompts as tree_prompts
from layerscope.published.write.json_diagnostics import diagnostics
from layerscope.published.write.json_fitted_lenses import tuned_lens
from layerscope.published.write.json_milestones import all_milestones
from layerscope.published.write.json_provenance import environment, model_stats
from layerscope.published.write.json_raw import raw_lens_check
from layerscope.published.write.json_source import Source, Tree, pointer
from layerscope.published.write.json_summary import evaluation_pack, measurement_guidance

_SUMMARY = {"semantic_margin": (), "semantic_gate": (), "micro_suite": ("aggregates",), "position_window": ()}
"""Blocks of `diagnostics` that published files repeat under `summary`, or what of them."""


def tree(run: AnalysedRun, dialect: Dialect) -> Tree:
    """The members of `output-<M>.json`.

    Published files repeat several blocks. In the extended dialect each stands in one place, and elsewhere there is a
    JSON pointer to it; plain keys, and those that end in its name, are about the headline lens, and where that is
    another one than the next block's norm, keys that end in `_norm` are about that one beside it.
    """
    source = Source(run, dialect)
    members = _published(source)
    return {**_identity(source), **_one_home(source, members), **_whole(source)} if source.extended else members


def _published(source: Source) -> Tree:
    found = diagnostics(source)
    suite = found["micro_suite"]
    return {
        "prompt": tree_prompts.primary_prompt(source),
        "test_prompts": tree_prompts.test_prompts(source),
        "temperature_exploration": tree_prompts.temperature_exploration(source),
        "diagnostics": found,
        "final_prediction": tree_prompts.final_prediction(source),
        "model_stats": model_stats(source),
        "raw_lens_check": raw_lens_check(source),
        "prompts": {"facts_micro_suite": tree_prompts.fact_keys(source)},
        "provenance": {"env": environment(source)},
        "copy_flag_columns": list(FLAG_COLUMNS),
        "ablation_summary": tree_prompts.ablation_summary(source),
        "control_prompt": tree_prompts.control_prompt(source),
        "control_summary": tree_prompts.control_summary(source),
        "tuned_lens": tuned_lens(source, whole=True),
        "summary": {key: _inner(found[key], inside) for key, inside in _SUMMARY.items()},
        "micro_suite": {key: _inner(suite, (key,)) for key in ("facts", "aggregates")},
        "measurement_guidance": measurement_guidance(source),
        "evaluation_pack": evaluation_pack(source),
        "gold_answer": tree_prompts.gold_answer(source.record.prompt(source.found.primary)),
    }


def _inner(block: object, keys: tuple[str, ...]) -> object:
    for key in keys:
        assert isinstance(block, dict)  # a block of this module's own making
        block = block[key]
    return block


def _one_home(source: Source, members: Tree) -> Tree:
    """The members with pointers in place of what stands elsewhere."""
    aligned = [prompt.prompt_id for prompt in tree_prompts.aligned_prompts(source)]
    pack, control = members["evaluation_pack"], members["control_prompt"]
    assert isinstance(pack, dict)
    repeated: Tree = {"micro_suite": pointer("diagnostics", "micro_suite")}
    if pack["tuned_audit"]:
        repeated["tuned_audit"] = pointer("diagnostics", "tuned_lens", "audit_summary")
    moved: Tree = {
        "tuned_lens": pointer("diagnostics", "tuned_lens"),
        "summary": {key: pointer("diagnostics", key, *inside) for key, inside in _SUMMARY.items()},
        "micro_suite": pointer("diagnostics", "micro_suite"),
        "evaluation_pack": {**pack, **repeated},
    }
    if isinstance(control, dict):
        at = pointer("diagnostics", "gold_alignment_prompts", next(i for i, p in enumerate(aligned) if p != "pos"))
        moved["control_prompt"] = {**control, "gold_answer": at, "gold_alignment": at}
    if members["gold_answer"] is not None:
        moved["gold_answer"] = pointer("diagnostics", "gold_alignment_prompts", 0)
    return {**members, **moved}


def _identity(source: Source) -> Tree:
    """What reading the run back needs; it stands first, where it survives if the end of the file is lost."""
    record = source.record
    return {
        "schema_version": record.schema_version,
        "run_id": record.run_id,
        "code_version": record.layerscope_version,
        "created_utc": record.created_utc,
        DIALECT_KEY: source.dialect.value,
        N_ROWS_KEY: source.run.rows.height,
        RECORD_KEY: record.model_dump(mode="json"),
    }


def _whole(source: Source) -> Tree:
    """What published files do not hold."""
    return {
        "milestones": all_milestones(source),
        "statistics": asdict(source.found.statistics),
    }
