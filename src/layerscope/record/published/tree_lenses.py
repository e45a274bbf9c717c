"""Blocks about fitted lenses: whether there are any, where their curves cross, and whether they are worth their fit."""

from layerscope.record import raw_audit
from layerscope.record.curve import Curve
from layerscope.record.milestones import Milestones
from layerscope.record.published.tree_milestones import (
    copy_thresholds,
    cosines,
    entropy_gap,
    first_crossings,
    surface_and_geometry,
)
from layerscope.record.published.tree_source import Source, Tree
from layerscope.record.sidecar_audit import Attribution, SidecarAudit

PRISM, TUNED = "prism", "tuned"
MODE = "auto"
"""Fitted lenses are used where they are."""


def is_read(source: Source, lens: str) -> bool:
    """Whether the run was looked through a lens."""
    return lens in source.record.protocol.lenses


def has_raw_tables(source: Source) -> bool:
    """Whether there are tables that hold the headline lens against the raw one."""
    return is_read(source, "raw") and source.headline != "raw"


def prism_summary(source: Source) -> Tree:
    """The shared decoder, which never decides a milestone."""
    path = f"prisms/{source.stem}"
    audit = source.found.sidecars.get(PRISM)
    read = is_read(source, PRISM)
    block: Tree = {
        "mode": MODE,
        "artifact_path": path,
        "present": read,
        "compatible": read,
        "k": None,
        "layers": None,
        "error": None if read else f"Missing prism artifacts in {path}",
    }
    return block if audit is None else {**block, "metrics": _metrics(audit, source.extended)}


def tuned_lens(source: Source, *, whole: bool) -> Tree:
    """The affine lens of each layer; `whole` for the fuller one of its two places."""
    path = f"tuned_lenses/{source.stem}"
    if not is_read(source, TUNED):
        return {"status": "missing", "mode": MODE, "path": path}
    block: Tree = {"status": "loaded", "mode": MODE, "path": path, "summaries": _summaries(source)}
    audit, attribution = source.found.sidecars.get(TUNED), source.found.attribution
    if whole:
        if audit is not None:
            block["summary"] = {"metrics": _metrics(audit, source.extended)}
        if attribution is not None:
            block["attribution"] = _attribution(attribution)
    return block


def tuned_surface(source: Source) -> Tree:
    """Where the primary prompt's tuned curve outweighs the prompt and lies nearer than it; empty without one."""
    curve = source.curve_of(TUNED)
    if curve is None:
        return {}
    return surface_and_geometry(curve, source.run.milestones.of(TUNED), source.thresholds)


def _summaries(source: Source) -> list[Tree]:
    """One summary for each prompt that was read, in the order of the rows."""
    curves, found = source.run.verdict.curves, source.run.milestones.by_pass(TUNED)
    return [
        _summary(source, curve, own) for asked, own in found.items() if (curve := curves.get(asked, TUNED)) is not None
    ]


def _summary(source: Source, curve: Curve, own: Milestones) -> Tree:
    t = source.thresholds
    radius = raw_audit.RADIUS_LAYERS
    return {
        **first_crossings(own, t),
        **entropy_gap(curve),
        "copy_thresholds": copy_thresholds(raw_audit.copy_thresholds(curve, None, own, radius, t)),
        **surface_and_geometry(curve, own, t),
        "cos_milestones": {TUNED: cosines(own, t)},
    }


def _metrics(found: SidecarAudit, extended: bool) -> Tree:
    """Both lenses side by side, with their differences under opposite signs: see `LayerPair` and `BitsPair`."""
    ranks, bits, near = found.rank_milestones, found.kl_bits_at_percentiles, found.first_kl_le_1_0
    block: Tree = {
        "rank_milestones": {
            "baseline": {f"le_{rank}": pair.baseline for rank, pair in ranks.items()},
            found.lens: {f"le_{rank}": pair.sidecar for rank, pair in ranks.items()},
            "delta": {f"le_{rank}": pair.delta for rank, pair in ranks.items()},
        },
        "kl_bits_at_percentiles": {
            "baseline": {name: pair.baseline for name, pair in bits.items()},
            found.lens: {name: pair.sidecar for name, pair in bits.items()},
            "delta": {name: pair.delta for name, pair in bits.items()},
        },
        "first_kl_le_1.0": {"baseline": near.baseline, found.lens: near.sidecar, "delta": near.delta},
    }
    return {**block, "verdict": found.verdict} if extended else block


def _attribution(found: Attribution) -> Tree:
    return {
        "percentiles": {
            name: {
                "ΔKL_tuned": gain.tuned_bits,
                "ΔKL_temp": gain.temperature_bits,
                "ΔKL_rot": gain.rotation_bits,
            }
            for name, gain in found.percentiles.items()
        },
        "prefer_tuned": found.prefer_tuned,
    }
