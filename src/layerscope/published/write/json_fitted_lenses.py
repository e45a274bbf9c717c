"""Blocks about fitted lenses: whether there are any, where their curves cross, and whether they are worth their fit."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from layerscope.analysis import raw_comparison
from layerscope.analysis.acceptance import REGRESSION_BLOCKS
from layerscope.analysis.curve import Curve
from layerscope.analysis.fitted_lens_audit import Attribution, BitsPair, FittedLensAudit, LayerPair
from layerscope.analysis.milestones import Milestones
from layerscope.analysis.percentiles import percentile
from layerscope.analysis.tuned_audit import CALIBRATION_ONLY, RotationVsTemperature
from layerscope.lens_record import CorpusRecord
from layerscope.published import members
from layerscope.published.layout import FIT_TIME, LENS_STATUSES
from layerscope.published.write.json_milestones import (
    copy_thresholds,
    cosines,
    entropy_gaps,
    first_crossings,
    surface_and_geometry,
)
from layerscope.published.write.json_source import Source, Tree, label_of, pointer
from layerscope.record.by_layer import ByLayer
from layerscope.record.measured import FittedLensRecord, TunedFitRecord

PRISM, TUNED = "prism", "tuned"


def is_read(source: Source, lens: str) -> bool:
    """Whether the run was looked through a lens."""
    return lens in source.record.protocol.lenses


def has_raw_tables(source: Source) -> bool:
    """Whether there are tables that compare the headline lens with the raw one."""
    return is_read(source, "raw") and source.headline != "raw"


def has_variants(source: Source) -> bool:
    """Whether there is a table of the parts of the tuned lens."""
    return source.diagnostics.tuned_audit is not None and source.record.measured.tuned_variants is not None


def lens_folder_of(source: Source, kind: str) -> FittedLensRecord | None:
    """What the record says of a fitted lens; None where it says nothing, as before there were any."""
    return next((lens for lens in source.record.measured.fitted_lenses if lens.kind == kind), None)


def prism_summary(source: Source) -> Tree:
    """The shared decoder, which never decides a milestone."""
    lens, audit = lens_folder_of(source, PRISM), source.diagnostics.fitted_lenses.get(PRISM)
    read, fit = is_read(source, PRISM), None if lens is None else lens.prism
    path = _path(source, PRISM)
    block: Tree = {
        "mode": _mode(lens),
        "artifact_path": path,
        "present": read or (lens is not None and lens.status in ("loaded", "refused")),
        "compatible": read,
        "k": None if fit is None else fit.k,
        "layers": [int(name) if name.isdecimal() else name for name in fit.layers] if fit and fit.layers else None,
        "error": None if read else _why_not(lens) or f"Missing prism artifacts in {path}",
    }
    return block if audit is None else {**block, "metrics": _metrics(source, audit)}


def tuned_lens(source: Source, *, whole: bool) -> Tree:
    """The affine lens of each layer; `whole` for the fuller one of its two places."""
    lens = lens_folder_of(source, TUNED)
    block: Tree = {"mode": _mode(lens), "path": _path(source, TUNED)}
    if not is_read(source, TUNED):
        reason = _why_not(lens)
        status = LENS_STATUSES["missing" if lens is None or lens.status == "loaded" else lens.status]
        block = {"status": status, **block}
        gives_reason = reason is not None and (status == "error" or source.extended)
        return {**block, "error": reason} if gives_reason else block
    block = {"status": "loaded", **block, "summaries": _summaries(source)}
    return {**block, **_more_of_tuned(source, lens)} if whole else block


def _more_of_tuned(source: Source, lens: FittedLensRecord | None) -> Tree:
    block: Tree = {}
    audit, attribution = source.diagnostics.fitted_lenses.get(TUNED), source.diagnostics.attribution
    if lens is not None:
        at = source.record.measured.fitted_lenses.index(lens)
        here = pointer("record", "measured", "fitted_lenses", at)
        block["provenance"] = here if source.extended else _provenance(source, lens)
    if audit is not None:
        block["summary"] = {"metrics": _metrics(source, audit)}
    if attribution is not None:
        block["attribution"] = _attribution(source, attribution)
    if lens is not None and lens.tuned is not None:
        block["provenance_snapshot"] = _provenance_snapshot(lens, lens.tuned)
    summary = audit_summary(source)
    return block if summary is None else {**block, "audit_summary": summary}


def _mode(lens: FittedLensRecord | None) -> str:
    """How the lens was chosen: fitted lenses are used where they are, unless the run was to do without."""
    return "off" if lens is not None and lens.status == "off" else "auto"


def _path(source: Source, kind: str) -> str | None:
    """The folder's name; where the record is silent, where published files would have looked."""
    lens = lens_folder_of(source, kind)
    return f"{_FOLDERS[kind]}/{source.stem}" if lens is None else lens.path


_FOLDERS = {PRISM: "prisms", TUNED: "tuned_lenses"}


def _why_not(lens: FittedLensRecord | None) -> str | None:
    """Why a lens was not read through."""
    return None if lens is None else lens.reason or "the run has no rows of it"


def tuned_surface(source: Source) -> Tree:
    """Where the primary prompt's tuned curve outweighs the prompt and lies nearer than it; empty without one."""
    curve = source.curve_of(TUNED)
    if curve is None:
        return {}
    return surface_and_geometry(curve, source.run.milestones.of(TUNED), source.thresholds)


def _summaries(source: Source) -> list[Tree] | Tree:
    """One summary for each prompt that was read, in the order of the rows; the extended dialect names the prompts."""
    curves = source.run.verdict.curves
    summaries = {
        str(prompt): _summary(source, curve, milestones)
        for prompt, milestones in source.run.milestones.by_pass(TUNED).items()
        if (curve := curves.get(prompt, TUNED)) is not None
    }
    return summaries if source.extended else list(summaries.values())


def _summary(source: Source, curve: Curve, milestones: Milestones) -> Tree:
    t = source.thresholds
    sweep = raw_comparison.copy_thresholds(curve, None, milestones, raw_comparison.RADIUS_LAYERS, t)
    return {
        **first_crossings(milestones, t),
        **entropy_gaps(curve),
        "copy_thresholds": copy_thresholds(sweep),
        **surface_and_geometry(curve, milestones, t),
        "cos_milestones": {TUNED: cosines(milestones, t)},
    }


def _metrics(source: Source, audit: FittedLensAudit) -> Tree:
    """Both lenses side by side, with their differences under opposite signs: see `LayerPair` and `BitsPair`."""
    block: Tree = {
        "rank_milestones": _side_by_side(audit.lens, {f"le_{rank}": p for rank, p in audit.rank_milestones.items()}),
        "kl_bits_at_percentiles": _side_by_side(audit.lens, audit.kl_bits_at_percentiles),
        "first_kl_le_1.0": source.block(members.AUDITED_LAYERS, audit.first_kl_le_1_0, lens=audit.lens),
    }
    return {**block, "verdict": audit.verdict} if source.extended else block


def _side_by_side(lens: str, pairs: Mapping[str, LayerPair] | Mapping[str, BitsPair]) -> Tree:
    return {
        "baseline": {name: pair.baseline for name, pair in pairs.items()},
        lens: {name: pair.fitted for name, pair in pairs.items()},
        "delta": {name: pair.delta for name, pair in pairs.items()},
    }


# The audit of the tuned lens, and where its gain comes from


def audit_summary(source: Source) -> Tree | None:
    """The audit of the primary prompt; None without a tuned lens."""
    audit = source.diagnostics.tuned_audit
    if audit is None:
        return None
    block: Tree = {
        "rotation_vs_temperature": _rotation_vs_temperature(source, audit.rotation_vs_temperature),
        "positional": source.block(members.POSITIONS_AUDIT, audit.positions),
        "head_mismatch": source.block(members.HEAD_MISMATCH, audit.head_mismatch),
        "tuned_is_calibration_only": audit.calibration_only,
        "preferred_semantics_lens_hint": None if audit.hint is None else _hint(source, audit.hint),
    }
    if source.extended:
        block["reason"] = audit.reason
        block["acceptance"] = None if source.diagnostics.acceptance is None else asdict(source.diagnostics.acceptance)
    return block


def _hint(source: Source, hint: str) -> str:
    """Published files call the headline lens `norm`."""
    if hint in ("tuned", CALIBRATION_ONLY):
        return hint
    return label_of(hint) if source.extended else "norm"


def _rotation_vs_temperature(source: Source, gains: RotationVsTemperature | None) -> Tree | None:
    if gains is None:
        return None
    return {
        **{f"delta_kl_rot_{name}": bits for name, bits in gains.rotation_bits.items()},
        **{f"delta_kl_temp_{name}": bits for name, bits in gains.temperature_bits.items()},
        **source.block(members.ROTATION_GAIN, gains),
    }


def _attribution(source: Source, attribution: Attribution) -> Tree:
    """The gain at quarters of the depth by where it comes from."""
    gains = attribution.percentiles.items()
    return {
        "percentiles": {name: source.block(members.ATTRIBUTED_GAIN, gain) for name, gain in gains},
        "prefer_tuned": attribution.prefer_tuned,
    }


def skip_layers(source: Source) -> Tree:
    """Relative growth of perplexity with the last blocks skipped; the keys that there is something to say for."""
    cost = source.diagnostics.skip_layers
    if cost is None:
        # Published files deny a regression where there is no tuned lens to test.
        return {"tuned_lens_regression": None if source.extended else False}
    block: Tree = {}
    if cost.skipped:
        losses = {skipped.measured.blocks: skipped.relative_loss for skipped in cost.skipped}
        block["skip_layers_sanity"] = {f"m={blocks}": loss for blocks, loss in sorted(losses.items())}
        if cost.regression:
            block["tuned_lens_skip_warning"] = losses[REGRESSION_BLOCKS]
    elif source.extended:
        block["skip_layers_sanity_error"] = cost.reason
    return {**block, "tuned_lens_regression": cost.regression}


# What it was fitted on


def _provenance(source: Source, lens: FittedLensRecord) -> Tree:
    """What the lens' record says, as far as published files have a place for it."""
    created = lens.created_utc
    return {
        "model_id": lens.fitted_to,
        "clean_model_name": source.stem,
        "tl_version": None if created is None else datetime.fromisoformat(created).strftime(FIT_TIME),
        "model_commit": None,
        "tokenizer_commit": None,
        "translator": None if lens.tuned is None else _translator(source, lens.tuned),
        "training": _training(source, lens),
    }


def _provenance_snapshot(lens: FittedLensRecord, fit: TunedFitRecord) -> Tree:
    """The same in short."""
    corpus = lens.corpus
    known = [tau for tau in fit.temperatures[1:] if tau is not None]
    stats: Tree = {"min": min(known, default=None)}
    stats |= {f"p{q}": percentile(known, q / 100) for q in (25, 50, 75)}
    stats["max"] = max(known, default=None)
    first = fit.first_position
    return {
        "dataset_id": None if corpus is None else _names(corpus),
        "dataset_revision": None,
        "content_hash": None if corpus is None else corpus.sha256,
        "train_pos_window": None if corpus is None or first is None else [first / corpus.seq_len, 1.0],
        "sampled_layers_count": None,
        "sampled_positions_count": None,
        "rank": fit.rank,
        "preconditioner": {"whiten": False, "orthogonal_rotation": False},
        "temperatures_stats": stats,
        "final_layer_identity": True,
        "fit_total_tokens_est": _fitted_tokens(lens),
        "optimizer": None,
        "schedule": None,
    }


def _translator(source: Source, fit: TunedFitRecord) -> Tree:
    return {
        "num_layers": source.n_layers,
        "d_model": source.record.model.d_model,
        "rank": fit.rank,
        "final_identity": True,
        "has_preconditioner": False,
        "use_temperature": True,
        "temperatures": _from_layer_1(fit.temperatures, source.n_layers),
        "uv_norms": _from_layer_1(fit.map_norms, source.n_layers),
    }


def _from_layer_1(by_layer: ByLayer, n_layers: int) -> list[float | None] | None:
    """As many values as the format has, which counts no embedding; None where none are recorded."""
    return [*by_layer[1:], *[None] * (n_layers + 1 - len(by_layer))] if by_layer else None


def _training(source: Source, lens: FittedLensRecord) -> Tree | None:
    settings, corpus = lens.settings, lens.corpus
    if settings is None and corpus is None:
        return None
    dataset = None
    if corpus is not None:
        dataset = {"repo_id": _names(corpus), **source.block(members.TRAINING_TEXT, corpus)}
    return {
        **source.block(members.TRAINING_SEED, settings),
        "tokens_seen": _fitted_tokens(lens),
        "dataset": dataset,
        **source.block(members.TRAINING_DEVICE, settings),
    }


def _names(corpus: CorpusRecord) -> str:
    return ", ".join(text.name for text in corpus.sources)


def _fitted_tokens(lens: FittedLensRecord) -> int | None:
    split = None if lens.corpus is None else lens.corpus.splits.get("fit")
    return None if split is None else split.n_tokens
