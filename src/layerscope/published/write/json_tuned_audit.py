"""Blocks about a tuned lens alone: its own audit, where its gain comes from, and what it was fitted on."""

from dataclasses import asdict
from datetime import datetime

from layerscope.analysis.acceptance import REGRESSION_BLOCKS
from layerscope.analysis.fitted_lens_audit import AttributedGain, Attribution
from layerscope.analysis.percentiles import percentile
from layerscope.analysis.tuned_audit import CALIBRATION_ONLY, HeadMismatch, PositionsAudit, RotationVsTemperature
from layerscope.published.write.json_source import Source, Tree, label_of
from layerscope.record.measured import ByLayer, FittedLensRecord, TunedFitRecord

STAMP = "%Y%m%dT%H%MZ"
"""How published files write the time of a fit."""


def audit_summary(source: Source) -> Tree | None:
    """The audit of the primary prompt; None without a tuned lens."""
    found = source.found.tuned_audit
    if found is None:
        return None
    hint = found.hint
    block: Tree = {
        "rotation_vs_temperature": _rotation_vs_temperature(found.rotation_vs_temperature),
        "positional": _positional(found.positions),
        "head_mismatch": _head_mismatch(found.head_mismatch, source.extended),
        "tuned_is_calibration_only": found.calibration_only,
        "preferred_semantics_lens_hint": None if hint is None else _hint(source, hint),
    }
    if source.extended:
        block["reason"] = found.reason
        block["acceptance"] = None if source.found.acceptance is None else asdict(source.found.acceptance)
    return block


def _hint(source: Source, hint: str) -> str:
    """Published files call the headline lens `norm`."""
    if hint in ("tuned", CALIBRATION_ONLY):
        return hint
    return label_of(hint) if source.extended else "norm"


def _rotation_vs_temperature(found: RotationVsTemperature | None) -> Tree | None:
    if found is None:
        return None
    return {
        **{f"delta_kl_rot_{name}": bits for name, bits in found.rotation_bits.items()},
        **{f"delta_kl_temp_{name}": bits for name, bits in found.temperature_bits.items()},
        "delta_kl_interaction_p50": found.interaction_bits,
        "delta_kl_tuned_p50": found.tuned_bits,
    }


def _positional(found: PositionsAudit) -> Tree:
    return {
        "pos_grid": list(found.grid),
        "pos_in_dist_le_0.92": found.in_dist_le_0_92_bits,
        "pos_ood_ge_0.96": found.ood_ge_0_96_bits,
        "pos_ood_gap": found.gap_bits,
    }


def _head_mismatch(found: HeadMismatch, extended: bool) -> Tree:
    block: Tree = {
        "kl_bits_tuned_final": found.kl_bits,
        "kl_bits_tuned_final_after_tau_star": found.kl_after_temperature_bits,
        "tau_star_modelcal": found.temperature,
    }
    more: Tree = {"kl_bits_tuned_final_after_softcap": found.kl_after_softcap_bits, "reason": found.reason}
    return {**block, **more} if extended else block


def attribution(found: Attribution, extended: bool) -> Tree:
    """The gain at quarters of the depth by where it comes from."""
    return {
        "percentiles": {name: _gain(gain, extended) for name, gain in found.percentiles.items()},
        "prefer_tuned": found.prefer_tuned,
    }


def _gain(found: AttributedGain, extended: bool) -> Tree:
    block: Tree = {
        "ΔKL_tuned": found.tuned_bits,
        "ΔKL_temp": found.temperature_bits,
        "ΔKL_rot": found.rotation_bits,
    }
    return {**block, "ΔKL_bias": found.bias_bits, "ΔKL_linear": found.linear_bits} if extended else block


def skip_layers(source: Source) -> Tree:
    """Relative growth of perplexity with the last blocks skipped; the keys that there is something to say for."""
    found = source.found.skip_layers
    if found is None:
        # Published files deny a regression where there is no tuned lens to test.
        return {"tuned_lens_regression": None if source.extended else False}
    block: Tree = {}
    if found.skipped:
        losses = {one.measured.blocks: one.relative_loss for one in found.skipped}
        block["skip_layers_sanity"] = {f"m={blocks}": loss for blocks, loss in sorted(losses.items())}
        if found.regression:
            block["tuned_lens_skip_warning"] = losses[REGRESSION_BLOCKS]
    elif source.extended:
        block["skip_layers_sanity_error"] = found.reason
    return {**block, "tuned_lens_regression": found.regression}


# What it was fitted on


def provenance(source: Source, sidecar: FittedLensRecord) -> Tree:
    """What its own record says, as far as published files have a place for it."""
    fit, created = sidecar.tuned, sidecar.created_utc
    return {
        "model_id": sidecar.fitted_to,
        "clean_model_name": source.stem,
        "tl_version": None if created is None else datetime.fromisoformat(created).strftime(STAMP),
        "model_commit": None,
        "tokenizer_commit": None,
        "translator": None if fit is None else _translator(source, fit),
        "training": _training(sidecar),
    }


def provenance_snapshot(sidecar: FittedLensRecord) -> Tree | None:
    """The same in short; None for a lens of which no fit is recorded."""
    fit, corpus = sidecar.tuned, sidecar.corpus
    if fit is None:
        return None
    known = [tau for tau in fit.temperatures[1:] if tau is not None]
    stats: Tree = {"min": min(known, default=None)}
    stats |= {f"p{q}": percentile(known, q / 100) for q in (25, 50, 75)}
    stats["max"] = max(known, default=None)
    first = fit.first_position
    return {
        "dataset_id": None if corpus is None else ", ".join(text.name for text in corpus.sources),
        "dataset_revision": None,
        "content_hash": None if corpus is None else corpus.sha256,
        "train_pos_window": None if corpus is None or first is None else [first / corpus.seq_len, 1.0],
        "sampled_layers_count": None,
        "sampled_positions_count": None,
        "rank": fit.rank,
        "preconditioner": {"whiten": False, "orthogonal_rotation": False},
        "temperatures_stats": stats,
        "final_layer_identity": True,
        "fit_total_tokens_est": _fitted_tokens(sidecar),
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


def _training(sidecar: FittedLensRecord) -> Tree | None:
    settings, corpus = sidecar.settings, sidecar.corpus
    if settings is None and corpus is None:
        return None
    dataset: Tree | None = None
    if corpus is not None:
        dataset = {
            "repo_id": ", ".join(text.name for text in corpus.sources),
            "seq_len": corpus.seq_len,
            "content_hash": corpus.sha256,
            "samples_streamed": corpus.n_documents,
        }
    return {
        "seed": None if settings is None else settings.seed,
        "tokens_seen": _fitted_tokens(sidecar),
        "dataset": dataset,
        "device": None if settings is None else settings.device,
        "dtype": None if settings is None else settings.dtype,
    }


def _fitted_tokens(sidecar: FittedLensRecord) -> int | None:
    split = None if sidecar.corpus is None else sidecar.corpus.splits.get("fit")
    return None if split is None else split.n_tokens
