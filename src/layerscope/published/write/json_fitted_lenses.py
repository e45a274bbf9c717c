"""Blocks about fitted lenses: whether there are any, where their curves cross, and whether they are worth their fit."""

from layerscope.analysis import raw_comparison as raw_audit
from layerscope.analysis.curve import Curve
from layerscope.analysis.fitted_lens_audit import FittedLensAudit
from layerscope.analysis.milestones import Milestones
from layerscope.published.write import json_tuned_audit as tree_tuned
from layerscope.published.write.json_milestones import (
    copy_thresholds,
    cosines,
    entropy_gap,
    first_crossings,
    surface_and_geometry,
)
from layerscope.published.write.json_source import Source, Tree, pointer
from layerscope.record.measured import FittedLensRecord

PRISM, TUNED = "prism", "tuned"


def is_read(source: Source, lens: str) -> bool:
    """Whether the run was looked through a lens."""
    return lens in source.record.protocol.lenses


def has_raw_tables(source: Source) -> bool:
    """Whether there are tables that hold the headline lens against the raw one."""
    return is_read(source, "raw") and source.headline != "raw"


def has_variants(source: Source) -> bool:
    """Whether there is a table of the parts of the tuned lens."""
    return source.found.tuned_audit is not None and source.record.measured.tuned_variants is not None


def lens_folder_of(source: Source, kind: str) -> FittedLensRecord | None:
    """What the record says of a fitted lens; None where it says nothing, as before there were any."""
    return next((found for found in source.record.measured.fitted_lenses if found.kind == kind), None)


def prism_summary(source: Source) -> Tree:
    """The shared decoder, which never decides a milestone."""
    sidecar, audit = lens_folder_of(source, PRISM), source.found.sidecars.get(PRISM)
    read, fit = is_read(source, PRISM), None if sidecar is None else sidecar.prism
    path = _path(source, PRISM)
    block: Tree = {
        "mode": _mode(sidecar),
        "artifact_path": path,
        "present": read or (sidecar is not None and sidecar.status in ("loaded", "refused")),
        "compatible": read,
        "k": None if fit is None else fit.k,
        "layers": [int(name) if name.isdecimal() else name for name in fit.layers] if fit and fit.layers else None,
        "error": None if read else _why_not(sidecar) or f"Missing prism artifacts in {path}",
    }
    return block if audit is None else {**block, "metrics": _metrics(audit, source.extended)}


def tuned_lens(source: Source, *, whole: bool) -> Tree:
    """The affine lens of each layer; `whole` for the fuller one of its two places."""
    sidecar = lens_folder_of(source, TUNED)
    block: Tree = {"mode": _mode(sidecar), "path": _path(source, TUNED)}
    if not is_read(source, TUNED):
        reason = _why_not(sidecar)
        status = _STATUS["missing" if sidecar is None or sidecar.status == "loaded" else sidecar.status]
        block = {"status": status, **block}
        told = reason is not None and (status == "error" or source.extended)
        return {**block, "error": reason} if told else block
    block = {"status": "loaded", **block, "summaries": _summaries(source)}
    return {**block, **_more_of_tuned(source, sidecar)} if whole else block


_STATUS = {"missing": "missing", "refused": "error", "off": "disabled"}
"""What published files call a lens that was not read through."""


def _more_of_tuned(source: Source, sidecar: FittedLensRecord | None) -> Tree:
    block: Tree = {}
    audit, attribution = source.found.sidecars.get(TUNED), source.found.attribution
    if sidecar is not None:
        at = source.record.measured.fitted_lenses.index(sidecar)
        here = pointer("record", "measured", "fitted_lenses", at)
        block["provenance"] = here if source.extended else tree_tuned.provenance(source, sidecar)
    if audit is not None:
        block["summary"] = {"metrics": _metrics(audit, source.extended)}
    if attribution is not None:
        block["attribution"] = tree_tuned.attribution(attribution, source.extended)
    snapshot = None if sidecar is None else tree_tuned.provenance_snapshot(sidecar)
    if snapshot is not None:
        block["provenance_snapshot"] = snapshot
    summary = tree_tuned.audit_summary(source)
    return block if summary is None else {**block, "audit_summary": summary}


def _mode(sidecar: FittedLensRecord | None) -> str:
    """How the lens was chosen: fitted lenses are used where they are, unless they were not asked for."""
    return "off" if sidecar is not None and sidecar.status == "off" else "auto"


def _path(source: Source, kind: str) -> str | None:
    """The folder's name; where the record is silent, where published files would have looked."""
    sidecar = lens_folder_of(source, kind)
    return f"{_FOLDERS[kind]}/{source.stem}" if sidecar is None else sidecar.path


_FOLDERS = {PRISM: "prisms", TUNED: "tuned_lenses"}


def _why_not(sidecar: FittedLensRecord | None) -> str | None:
    """Why a lens was not read through."""
    if sidecar is None:
        return None
    return sidecar.reason or "the run has no rows of it"


def tuned_surface(source: Source) -> Tree:
    """Where the primary prompt's tuned curve outweighs the prompt and lies nearer than it; empty without one."""
    curve = source.curve_of(TUNED)
    if curve is None:
        return {}
    return surface_and_geometry(curve, source.run.milestones.of(TUNED), source.thresholds)


def _summaries(source: Source) -> list[Tree] | Tree:
    """One summary for each prompt that was read, in the order of the rows; the extended dialect names the prompts."""
    curves, found = source.run.verdict.curves, source.run.milestones.by_pass(TUNED)
    summaries = {
        str(asked): _summary(source, curve, own)
        for asked, own in found.items()
        if (curve := curves.get(asked, TUNED)) is not None
    }
    return dict(summaries) if source.extended else list(summaries.values())


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


def _metrics(found: FittedLensAudit, extended: bool) -> Tree:
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
