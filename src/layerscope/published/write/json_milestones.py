"""Blocks of milestones: where a curve copies, has the answer on top and nears the model's output, and how clearly."""

from collections.abc import Iterable

from layerscope.analysis.curve import Curve, entropy_gap
from layerscope.analysis.milestones import (
    Gates,
    Milestones,
    copies_early,
    entropy_drop_bits,
    layer_of,
    layers_between,
    rest_mass_peak,
)
from layerscope.analysis.percentiles import depth_fraction, quartiles
from layerscope.analysis.raw_comparison import CopyThresholds
from layerscope.published import members
from layerscope.published.write.json_source import Source, Tree, label_of
from layerscope.record.milestone_names import ONSET, MilestoneName, copy_soft
from layerscope.record.protocol import Thresholds

COPY_WINDOW_K = 1
"""Consecutive layers that the strict copy rule looks at."""
COPY_MATCH_LEVEL = "id_subsequence"
"""Copies are recognised by token ids, not by texts."""


def first_crossings(milestones: Milestones, t: Thresholds) -> Tree:
    """Where one curve copies, has the answer on top, and nears the model's output."""
    copy, semantic = layer_of(milestones, MilestoneName.COPY), layer_of(milestones, ONSET)
    soft = {k: layer_of(milestones, copy_soft(k)) for k in t.copy_soft_windows}
    deltas = {k: layers_between(semantic, layer) for k, layer in soft.items()}
    windows = list(t.copy_soft_windows)
    near = [f"first_kl_below_{bits:.1f}" for bits in sorted(t.kl_to_final_bits)]
    ranks = [f"first_rank_le_{rank}" for rank in sorted(t.answer_rank)]
    return {
        "L_copy": copy,
        "L_copy_H": layer_of(milestones, "L_copy_H"),
        "L_semantic": semantic,
        "delta_layers": layers_between(semantic, copy),
        "copy_thresh": t.copy_collapse,
        "copy_window_k": COPY_WINDOW_K,
        "copy_match_level": COPY_MATCH_LEVEL,
        **_layers(milestones, near + ranks),
        "copy_soft_threshold": t.copy_soft,
        "copy_soft_window_ks": windows,
        "L_copy_soft": {str(k): layer for k, layer in soft.items()},
        "delta_layers_soft": {str(k): delta for k, delta in deltas.items()},
        "copy_detector": {
            "strict": {"thresh": t.copy_collapse, "k": COPY_WINDOW_K, "L_copy_strict": copy},
            "soft": {
                "thresh": t.copy_soft,
                "window_ks": windows,
                "L_copy_soft": {f"k{k}": layer for k, layer in soft.items()},
            },
            "deltas": {
                "Δ_sem_minus_copy_strict": layers_between(semantic, copy),
                "Δ_sem_minus_copy_soft": {f"k{k}": delta for k, delta in deltas.items()},
            },
        },
        "answer_margin_thresholds": _layers(milestones, [f"gap_ge_{gap:.1f}" for gap in t.answer_gap]),
    }


def _layers(milestones: Milestones, names: Iterable[str]) -> Tree:
    return {name: layer_of(milestones, name) for name in names}


def entropy_gaps(curve: Curve | None) -> Tree:
    """By how much a curve's rows are less certain than the model's output."""
    rows = () if curve is None else curve.rows
    gaps = [gap for row in rows if (gap := entropy_gap(row)) is not None]
    return {"entropy_gap_bits_percentiles": quartiles(gaps), "entropy_gap_samples": len(gaps)}


def copy_thresholds(sweep: CopyThresholds | None) -> Tree | None:
    """The sweep over thresholds of strict copying; None without a curve."""
    if sweep is None:
        return None
    by_threshold = ("L_copy_strict", "L_copy_strict_frac", "norm_only_flags")
    return {
        "tau_list": list(sweep.L_copy_strict),
        **{key: {f"{p:g}": value for p, value in getattr(sweep, key).items()} for key in by_threshold},
        "stability": sweep.stability,
    }


def surface_and_geometry(curve: Curve, milestones: Milestones, t: Thresholds) -> Tree:
    """Where the answer outweighs the prompt and lies nearer than it, and where the echo is gone; keys name the lens."""
    label = label_of(curve.lens)
    names = ("L_surface_to_meaning", "L_geom", "L_topk_decay")
    surface, geometry, decay = (layer_of(milestones, name) for name in names)
    return {
        f"L_surface_to_meaning_{label}": surface,
        f"answer_mass_at_L_surface_{label}": curve.value("answer_mass", surface),
        f"echo_mass_at_L_surface_{label}": curve.value("echo_mass_prompt", surface),
        f"L_geom_{label}": geometry,
        f"cos_to_answer_at_L_geom_{label}": curve.value("cos_to_answer", geometry),
        f"cos_to_prompt_max_at_L_geom_{label}": curve.value("cos_to_prompt_max", geometry),
        f"L_topk_decay_{label}": decay,
        f"topk_prompt_mass_at_L_{label}": curve.value("topk_prompt_mass@50", decay),
        f"topk_prompt_tau_{label}": t.topk_prompt_mass,
        f"surface_delta_{label}": t.surface_margin,
        f"geom_gamma_{label}": t.geometry_margin,
    }


def cosines(milestones: Milestones, t: Thresholds, centred: bool = False) -> Tree:
    """Where the logits first point the way of the model's milestones."""
    prefix = "cos_centered_" if centred else "cos_"
    return {f"ge_{c:g}": layer_of(milestones, f"{prefix}ge_{c:g}") for c in t.cos_to_final}


def cosine_milestones(source: Source) -> Tree:
    """The same by lens; a plain cosine can be high from the start, so the extended dialect gives its least value."""
    t, lenses = source.thresholds, list(source.summarised_lenses())
    block: Tree = {"cos_milestones": {label: cosines(milestones, t) for label, _, milestones in lenses}}
    if source.extended:
        block["cos_milestones_centered"] = {label: cosines(milestones, t, True) for label, _, milestones in lenses}
        block["cos_to_final_min"] = {
            label: min(curve.values("cos_to_final"), default=None) for label, curve, _ in lenses
        }
    return block


def depth_fractions(source: Source) -> Tree:
    """Milestones of the headline lens as shares of the depth."""
    names = {
        "L_semantic_frac": ONSET,
        "first_rank_le_5_frac": "first_rank_le_5",
        "L_copy_strict_frac": "L_copy",
        **{f"L_copy_soft_k{k}_frac": f"L_copy_soft_k{k}" for k in source.thresholds.copy_soft_windows},
        "L_semantic_run2_frac": "L_semantic_run2",
        "L_semantic_strong_frac": "L_semantic_strong",
        "L_semantic_strong_run2_frac": "L_semantic_strong_run2",
    }
    return {key: depth_fraction(source.layer(name), source.n_layers) for key, name in names.items()}


def semantic_margin(source: Source) -> Tree:
    """Whether the answer is more than the most probable of many equals."""
    t = source.thresholds
    block: Tree = {"delta_abs": t.semantic_margin, "p_uniform": 1 / source.record.model.d_vocab}
    for label, curve, milestones in source.summarised_lenses():
        onset = layer_of(milestones, ONSET)
        row = curve.at(onset)
        gates = Gates(curve.d_vocab, t)
        block[f"L_semantic_margin_ok_{label}"] = layer_of(milestones, "L_semantic_margin_ok")
        block[f"margin_ok_at_L_semantic_{label}"] = None if row is None else gates.margin_ok(row)
        block[f"p_answer_at_L_semantic_{label}"] = curve.value("p_answer", onset)
    confirmation = source.diagnostics.confirmation
    confirmed = None if confirmation is None else confirmation.layer
    if confirmed is not None:
        same = confirmed == source.layer("L_semantic_margin_ok")
        block[f"L_semantic_confirmed_margin_ok_{source.label}"] = confirmed if same else None
    return block


def semantic_gate(source: Source) -> Tree:
    """Whether it leads clearly, and in two layers in a row."""
    t = source.thresholds
    block: Tree = {"delta_abs": t.semantic_margin, "delta_top2_logit": t.semantic_gap}
    for label, curve, milestones in source.summarised_lenses():
        layer = layer_of(milestones, "L_semantic_top2_ok")
        block[f"L_semantic_top2_ok_{label}"] = layer
        block[f"L_semantic_top2_ok_{label}_frac"] = depth_fraction(layer, source.n_layers)
        block[f"gap_at_L_semantic_{label}"] = curve.value("answer_logit_gap", layer_of(milestones, ONSET))
    runs = ("L_semantic_run2", "L_semantic_strong", "L_semantic_strong_run2")
    block |= _layers(source.milestones, runs)
    block["run2_overlaps_confirmed_window"] = _run2_overlaps(source)
    return block


def _run2_overlaps(source: Source) -> bool | None:
    """Whether the first run of two meets the layers at which the onset may be confirmed; None without either."""
    confirmation, run2 = source.diagnostics.confirmation, source.layer("L_semantic_run2")
    if confirmation is None or confirmation.layer is None or run2 is None:
        return None
    return any(abs(layer - confirmation.layer) <= confirmation.window_layers for layer in (run2, run2 + 1))


def confirmed_semantics(source: Source) -> Tree | None:
    """Whether another lens has the answer on top near the onset; None without a curve."""
    confirmation = source.diagnostics.confirmation
    if confirmation is None:
        return None
    onsets = {f"{ONSET}_{label}": layer_of(milestones, ONSET) for label, _, milestones in source.summarised_lenses()}
    return {**onsets, **source.block(members.CONFIRMATION, confirmation)}


def derived_numbers(source: Source) -> Tree:
    """What reports would otherwise take from rows; of the extended dialect alone."""
    curve, milestones = source.curve, source.milestones
    peak = None if curve is None or ONSET not in milestones else rest_mass_peak(curve, milestones)
    preferred = source.diagnostics.semantic
    return {
        "preferred_milestone": None if preferred is None else source.block(members.NAMED_LAYER, preferred),
        "delta_H_bits": entropy_drop_bits(milestones) if milestones else None,
        "rest_mass_max_after_L_semantic": None if peak is None else {"layer": peak[0], "value": peak[1]},
        "copies_early": None if curve is None else copies_early(curve, source.thresholds),
    }


def all_milestones(source: Source) -> Tree:
    """Every milestone of the primary prompt under every lens; of the extended dialect alone."""
    milestones = source.run.milestones
    return {
        lens: {name: source.block(members.MILESTONE, milestone) for name, milestone in milestones.of(lens).items()}
        for prompt, lens in milestones.by_curve
        if prompt == source.diagnostics.primary
    }
