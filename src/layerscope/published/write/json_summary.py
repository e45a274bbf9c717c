"""Blocks that gather others: facts beside each other, guidance, and the pack that evaluations start from."""

from layerscope.analysis.facts import Fact, published_micro_suite
from layerscope.analysis.guidance import published_guidance
from layerscope.analysis.percentiles import depth_fraction
from layerscope.published.layout import (
    NEXT_TOKEN,
    POSITIONS_TUNED_AUDIT,
    RAWLENS,
    TUNED_VARIANTS,
    csv_name,
)
from layerscope.published.write.json_fitted_lenses import TUNED, has_raw_tables, has_variants, is_read
from layerscope.published.write.json_source import Source, Tree, label_of
from layerscope.published.write.json_tuned_audit import audit_summary
from layerscope.record.milestone_names import ONSET

FRACTION_DIGITS = 4
"""Of the pack, where `depth_fractions` has three."""
CONTROL_NOTE = "control is {control}; other positives do not add new controls"
_PACK_FACT = (
    "fact_key", "fact_index", "L_copy_strict", "L_semantic_norm", "L_semantic_confirmed", "L_semantic_margin_ok_norm",
    "delta_hat",
)  # fmt: skip
_PACK_AGGREGATES = ("L_semantic_confirmed_median", "delta_hat_median", "n_missing", "n")


def micro_suite(source: Source) -> Tree:
    """Every fact once, and the middle of each milestone over them."""
    found = source.found.micro_suite
    whole = published_micro_suite(found)
    facts, aggregates = whole["facts"], {**whole["aggregates"], "notes": _control_note(source)}
    # Published files before there were several facts name none.
    rows: Tree = {fact.fact_key: fact.row_in_file for fact in found.facts if fact.fact_key is not None}
    if not source.extended:
        return {"facts": facts, "aggregates": aggregates, "citations": {"fact_rows": rows}}
    return {
        "facts": [_extended_fact(source, *pair) for pair in zip(facts, found.facts, strict=True)],
        "aggregates": _relabelled(aggregates, source.label),
        "medians_unrounded": {
            "L_copy_strict": found.L_copy_strict.median,
            "L_copy_soft_k1": found.L_copy_soft_k1.median,
            f"L_semantic_{source.label}": found.L_semantic.median,
            "L_semantic_confirmed": found.L_semantic_confirmed.median,
            f"L_semantic_margin_ok_{source.label}": found.L_semantic_margin_ok.median,
            "delta_hat": found.delta_hat_median,
        },
        "citations": {"file": csv_name(source.stem, NEXT_TOKEN), "fact_rows": rows},
    }


def _extended_fact(source: Source, tree: Tree, fact: Fact) -> Tree:
    """A fact with its row under names that say what it is counted in."""
    plain = {key: value for key, value in tree.items() if key != "row_index"}
    return {
        **_relabelled(plain, source.label),
        "row_in_pass": fact.row_in_pass,
        "row_in_file": fact.row_in_file,
    }


def _relabelled(tree: Tree, label: str) -> Tree:
    """The block with the headline lens' own name in its keys."""
    return {key.replace("_norm", f"_{label}"): value for key, value in tree.items()}


def _control_note(source: Source) -> str | None:
    """Which control there is, by the key of the fact that is asked in its words; None without one."""
    control = source.control
    if control is None:
        return None
    same = [prompt.fact_key for prompt in source.record.suite.prompts if prompt.text == control.text]
    key = next((key for key in same if key is not None), None)
    return CONTROL_NOTE.format(control=key or control.text or "of another fact")


def measurement_guidance(source: Source) -> Tree:
    """How the numbers may be quoted; the extended dialect gives the weight of each reason, and what is not known."""
    found = source.run.guidance
    block = published_guidance(found)
    if not source.extended:
        return block
    if found.preferred_semantics_lens_hint is not None:
        block["preferred_semantics_lens_hint"] = label_of(found.preferred_semantics_lens_hint)
    return {
        **block,
        "reasons": [reason.name for reason in found.reasons],
        "preferred_lens_for_reporting": label_of(found.preferred_lens),
        "severity": {reason.name: reason.severity for reason in found.reasons},
        "text": {reason.name: reason.text for reason in found.reasons},
        "undetermined": list(found.undetermined),
    }


def evaluation_pack(source: Source) -> Tree:
    """What evaluations start from; nothing here is computed anew."""
    guidance = measurement_guidance(source)
    return {
        "model": source.stem,
        "n_layers": source.n_layers,
        "preferred_lens_for_reporting": guidance["preferred_lens_for_reporting"],
        "use_confirmed_semantics": guidance["use_confirmed_semantics"],
        "milestones": _pack_milestones(source),
        "artifact": _pack_artifact(source),
        "repeatability": _pack_repeatability(source),
        "alignment": _pack_alignment(source),
        "norm_trajectory": _pack_trajectory(source),
        "entropy": _pack_entropy(source),
        "tuned_audit": audit_summary(source) or {},
        "citations": {"layers": _cited_layers(source), "files": _cited_files(source)},
        "micro_suite": _pack_micro_suite(source),
    }


def _pack_milestones(source: Source) -> Tree:
    found = source.found.confirmation
    facts, k = source.found.micro_suite.facts, softest_copy(source)
    delta_hat = next((fact.delta_hat for fact in facts if fact.prompt == source.found.primary), None)
    return {
        "L_copy_strict": source.layer("L_copy"),
        "L_copy_soft": {"k": k, "layer": None if k is None else source.layer(f"L_copy_soft_k{k}")},
        f"L_semantic_{source.label}": source.layer(ONSET),
        "L_semantic_confirmed": {
            "layer": None if found is None else found.layer,
            "source": "none" if found is None else found.source,
        },
        "depth_fractions": {
            "copy_strict_frac": depth_fraction(source.layer("L_copy"), source.n_layers, FRACTION_DIGITS),
            "semantic_frac": depth_fraction(source.layer(ONSET), source.n_layers, FRACTION_DIGITS),
            "delta_hat": None if delta_hat is None else round(delta_hat, FRACTION_DIGITS),
        },
    }


def softest_copy(source: Source) -> int | None:
    """The window whose soft copy comes first, the shorter of two; None where none ever copies."""
    layers = {k: source.layer(f"L_copy_soft_k{k}") for k in source.thresholds.copy_soft_windows}
    return min((k for k, layer in layers.items() if layer is not None), key=lambda k: (layers[k], k), default=None)


def _pack_artifact(source: Source) -> Tree:
    found = source.found.raw_full
    if found is None:
        return {}
    whole, overlap = found.whole, found.topk_overlap
    return {
        "lens_artifact_score": whole.score.v1,
        "lens_artifact_score_v2": whole.score.v2,
        "js_divergence_p50": whole.js_divergence_percentiles["p50"],
        "l1_prob_diff_p50": whole.l1_prob_diff_percentiles["p50"],
        "first_js_le_0.1": found.first_js_le_0_1,
        "first_l1_le_0.5": found.first_l1_le_0_5,
        "jaccard_raw_norm_p50": overlap.jaccard_raw_norm_p50,
        "first_jaccard_raw_norm_ge_0.5": overlap.first_jaccard_raw_norm_ge_0_5,
        "pct_layers_kl_ge_1.0": whole.pct_layers_kl_ge_1_0,
        "n_norm_only_semantics_layers": whole.n_norm_only_semantics_layers,
        "earliest_norm_only_semantic": whole.earliest_norm_only_semantic,
        "risk_tier": whole.score.tier,
    }


def _pack_repeatability(source: Source) -> Tree:
    found = source.found.repeatability
    return {
        "max_rank_dev": None if found.max_rank_dev is None else float(found.max_rank_dev),
        "p95_rank_dev": found.p95_rank_dev,
        "top1_flip_rate": found.top1_flip_rate,
        "flag": "high_variance" if found.high_variance else found.status,
    }


def _pack_alignment(source: Source) -> Tree:
    prompt = source.record.prompt(source.found.primary)
    gold = None if prompt is None else next(iter(prompt.answers), None)
    return {
        "gold_alignment_rate": source.record.suite.gold_alignment_rate,
        "variant": None if gold is None else gold.variant,
    }


def _pack_trajectory(source: Source) -> Tree:
    found = source.found.trajectory
    if found is None:
        return {}
    return {"shape": found.shape, "slope": found.slope, "r2": found.r2, "n_spikes": found.n_spikes}


def _pack_entropy(source: Source) -> Tree:
    found = source.found.entropy_gap
    percentiles = {} if found is None else found.percentiles
    return {f"entropy_gap_bits_{name}": percentiles.get(name) for name in ("p25", "p50", "p75")}


def _cited_layers(source: Source) -> Tree:
    """The row of each milestone among the primary prompt's rows; the extended dialect adds that in the whole file."""
    k = softest_copy(source)
    found = source.found.confirmation
    layers = {
        "L_copy_strict": source.layer("L_copy"),
        "L_copy_soft": None if k is None else source.layer(f"L_copy_soft_k{k}"),
        f"L_semantic_{source.label}": source.layer(ONSET),
        "L_semantic_confirmed": None if found is None else found.layer,
    }
    rows = {name: row_in_pass(source, layer) for name, layer in layers.items()}
    if not source.extended:
        return {f"{name}_row": row for name, row in rows.items()}
    start = rows_before(source)
    return {
        name: {
            "file": csv_name(source.stem, NEXT_TOKEN),
            "row_in_pass": row,
            "row_in_file": None if row is None else start + row,
        }
        for name, row in rows.items()
    }


def row_in_pass(source: Source, layer: int | None) -> int | None:
    """The place of a layer among the primary prompt's rows under the headline lens, counted from 0."""
    rows = () if source.curve is None else source.curve.rows
    return next((place for place, row in enumerate(rows) if row["layer"] == layer), None)


def rows_before(source: Source) -> int:
    """How many rows stand before the primary prompt's in the table of the headline lens at last positions."""
    before = 0
    curves = source.run.verdict.curves
    for asked in curves.passes:
        if asked == source.found.primary:
            break
        curve = curves.get(asked, source.headline)
        before += len(curve.rows) if curve else 0
    return before


def _cited_files(source: Source) -> Tree:
    tuned = is_read(source, TUNED)
    return {
        "pure_csv": csv_name(source.stem, NEXT_TOKEN),
        "tuned_pure_csv": csv_name(source.stem, NEXT_TOKEN, TUNED) if tuned else None,
        "rawlens_full_csv": csv_name(source.stem, RAWLENS) if has_raw_tables(source) else None,
        "tuned_variants_csv": csv_name(source.stem, TUNED_VARIANTS) if has_variants(source) else None,
        "positions_audit_csv": csv_name(source.stem, POSITIONS_TUNED_AUDIT) if tuned or source.extended else None,
    }


def _pack_micro_suite(source: Source) -> Tree:
    """Less of the block `micro_suite`; only generation M has it here."""
    whole = published_micro_suite(source.found.micro_suite)
    return {
        "facts": [{key: fact[key] for key in _PACK_FACT} for fact in whole["facts"]],
        "aggregates": {key: whole["aggregates"][key] for key in _PACK_AGGREGATES},
        "citations": micro_suite(source)["citations"],
    }
