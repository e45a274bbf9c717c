"""Blocks that say whether milestones survive another norm, lens, scale or position, and a second time."""

from collections.abc import Sequence

from layerscope.analysis.consistency import TOLERANCE_LAYERS, DecodingTarget, LensAgreement, ScaledTarget
from layerscope.analysis.percentiles import QUARTERS, depth_layer
from layerscope.published import members
from layerscope.published.members import Member
from layerscope.published.write.json_source import Source, Tree

STRATEGIES = ("post_ln2", "next_ln1")
"""The two norms of the decoding-point test: of the block that wrote last, and of the block that reads next."""
DETERMINISTIC = "deterministic_env"
"""Why there was no second forward pass: kernels were deterministic, and a second decode was equal."""


def gate_stability(source: Source) -> Tree | None:
    """Whether gates hold with logits scaled a little; None where nothing was looked at closely."""
    stability = source.diagnostics.gate_stability
    if stability is None:
        return None
    return {
        "scales": list(stability.scales),
        "per_target": {source.named(target.name): _scaled(source, target) for target in stability.targets},
        "min_both_gates_pass_frac": stability.min_both_gates_pass_frac,
    }


def _scaled(source: Source, target: ScaledTarget) -> Tree:
    # A run of two layers has no share for one gate.
    one_layer = target.name != "L_semantic_strong_run2"
    return {
        "layer": target.layer,
        **(source.block(members.SCALED_TARGET, target) if one_layer else {}),
        "both_gates_pass_frac": target.both_gates_pass_frac,
    }


def repeatability(source: Source) -> Tree:
    """Two decodes of the same residuals."""
    decodes, provenance = source.diagnostics.repeatability, source.record.provenance
    return {
        "status": decodes.status,
        **({} if decodes.reason is None else {"reason": decodes.reason}),
        "layers_checked": decodes.layers_checked,
        **rank_deviations(source),
        "deterministic_algorithms": None if provenance is None else provenance.deterministic_algorithms,
    }


def rank_deviations(source: Source) -> Tree:
    """By how much two decodes differ in the rank of the top token."""
    block = source.block(members.REPEATABILITY, source.diagnostics.repeatability)
    most = block["max_rank_dev"]
    return {**block, "max_rank_dev": None if most is None else float(most)}


def decoding_point(source: Source) -> Tree:
    """Residuals of the milestones decoded through two norms."""
    point = source.diagnostics.decoding_point
    block: Tree = {
        "arch": point.stack,
        "tested": point.tested,
        "strategies": list(STRATEGIES),
        "targets": [_target(source, members.NAMED_LAYER, target) for target in point.targets],
        "per_target": [_target(source, members.DECODING_TARGET, target) for target in point.targets],
        "gate": {"decoding_point_consistent": point.consistent},
    }
    if point.preferred_target is not None:
        block["preferred_target"] = _target(source, members.NAMED_LAYER, point.preferred_target)
    if source.extended:
        block["reason"] = point.reason
        block["onset_gap"] = None if point.onset_gap is None else source.block(members.ONSET_GAP, point.onset_gap)
    return block


def _target(source: Source, table: Sequence[Member], target: DecodingTarget) -> Tree:
    block = source.block(table, target, spearman=_spearman(source, "union"))
    return {**block, "name": source.named(target.name)}


def _spearman(source: Source, over: str) -> str:
    """Two correlations of that name are not the same one; the extended dialect says which it is."""
    return f"spearman_top50_{over}" if source.extended else "spearman_top50"


def lens_consistency(source: Source) -> Tree | None:
    """The headline lens against others at milestones; None where nothing was looked at closely."""
    consistency = source.diagnostics.lens_consistency
    if consistency is None:
        return None

    def agreement(of: LensAgreement) -> Tree:
        return source.block(members.LENS_AGREEMENT, of, spearman=_spearman(source, "ref"))

    block: Tree = {"targets": [source.named(name) for name in consistency.targets]}
    for pair in consistency.pairs:
        against: Tree = {
            "at_targets": [{"layer": at.layer, **agreement(at.agreement)} for at in pair.at_targets],
            "p50": agreement(pair.p50),
        }
        if source.extended:
            against["p50_by_name"] = agreement(pair.p50_by_name)
        block[f"{source.label}_vs_{pair.against}"] = against
    return block


def repeatability_forward(source: Source) -> Tree | None:
    """The preferred milestone in two forward passes; None without a curve."""
    passes = source.diagnostics.forward_of_two
    if passes is None:
        return None
    primary = None if passes.primary is None else source.named(passes.primary)
    return {
        "milestones": {**source.block(members.FORWARD_MILESTONES, passes), "primary": primary},
        **source.block(members.FORWARD, passes),
        "tolerance_layers": TOLERANCE_LAYERS,
        "topk_k": passes.topk_k,
    }


def last_layer_consistency(source: Source) -> Tree | None:
    """The last layer beside the model's output; None where that was not measured."""
    last = source.diagnostics.last_layer
    if last is None:
        return None
    return {
        **source.block(members.LAST_LAYER, last.measured),
        **source.block(members.LAST_LAYER_GATES, last),
        **source.block(members.LAST_LAYER_REFINED, last.measured),
    }


def temperatures(source: Source) -> Tree:
    """The temperature of each layer, or why there is none."""
    measured = source.record.measured
    fitted = measured.norm_temperature
    if fitted is None:
        reason = measured.absent.get("norm_temperature", "no temperatures were fitted")
        return {"tau_norm_per_layer_error": reason}
    return source.block(members.NORM_TEMPERATURE, fitted)


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
    window = source.diagnostics.position_window
    grid = () if window is None else window.grid
    block: Tree = {
        "grid": [place.fraction for place in grid],
        **source.block(members.POSITION_WINDOW, window),
        "n_positions": 0 if window is None else window.n_positions,
    }
    if not source.extended or window is None:
        return block
    positions = [source.block(members.GRID_POSITION, place) for place in grid]
    return {**block, "positions": positions, **source.block(members.POSITION_REASONS, window)}


def flags(source: Source) -> Tree:
    """Cautions by name; one that does not hold is absent."""
    decodes, passes = source.diagnostics.repeatability, source.diagnostics.forward_of_two
    reasons = {reason.name for reason in source.run.guidance.reasons}
    block: Tree = {}
    if decodes.status != "ok":
        block[f"repeatability_{decodes.status}"] = True if decodes.status == "unavailable" else decodes.reason or True
    if passes is not None and passes.mode == "skipped_deterministic":
        block["repeatability_forward_skipped"] = DETERMINISTIC
    block |= {_FLAGS.get(name, name): True for name in _CAUTIONS if name in reasons}
    recorded = source.record.flags.items()
    return {**block, **{name: text for name, text in recorded if source.extended or name in _PUBLISHED_FLAGS}}


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
