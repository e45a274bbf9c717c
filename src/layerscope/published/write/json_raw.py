"""Blocks that compare the headline lens with the raw residual: at four layers, around milestones, at every layer."""

from collections.abc import Mapping, Sequence

from layerscope.analysis.raw_comparison import SCORE_RULE, ArtefactScores, Comparison, FullCheck, RawSample
from layerscope.published.layout import NEXT_TOKEN, csv_name
from layerscope.published.write.json_fitted_lenses import has_raw_tables
from layerscope.published.write.json_source import Source, Tree

_CROSS, _CONSECUTIVE = "topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50"


def raw_lens_check(source: Source) -> Tree:
    """Four layers of the primary prompt."""
    found = source.found.raw_sample
    samples = () if found is None else found.samples
    return {
        "mode": "sample" if samples else "off",
        "samples": [_sample(sample, source.label) for sample in samples],
        "summary": {
            "first_norm_only_semantic_layer": None if found is None else found.first_norm_only_semantic_layer,
            "max_kl_norm_vs_raw_bits": None if found is None else found.max_kl_norm_vs_raw_bits,
            "lens_artifact_risk": None if found is None else found.lens_artifact_risk,
        },
    }


def _sample(found: RawSample, label: str) -> Tree:
    return {
        "layer": found.layer,
        "kl_norm_vs_raw_bits": found.kl_norm_vs_raw_bits,
        "top1_agree": found.top1_agree,
        f"p_top1_{label}": found.p_top1,
        "p_top1_raw": found.p_top1_raw,
        f"p_answer_{label}": found.p_answer,
        "p_answer_raw": found.p_answer_raw,
        f"answer_rank_{label}": found.answer_rank,
        "answer_rank_raw": found.answer_rank_raw,
        f"is_answer_{label}": found.is_answer,
        "is_answer_raw": found.is_answer_raw,
    }


def raw_lens_window(source: Source) -> Tree | None:
    """The layers around the primary prompt's milestones; None without a curve or the raw lens."""
    found = source.found.raw_window
    if found is None or not has_raw_tables(source):
        return None
    alone = found.norm_only_semantics_layers
    return {
        "radius": found.radius,
        "center_layers": list(found.center_layers),
        "layers_checked": list(found.layers_checked),
        "norm_only_semantics_layers": None if alone is None else list(alone),
        "max_kl_norm_vs_raw_bits_window": found.max_kl_norm_vs_raw_bits_window,
        "mode": "window",
    }


def raw_lens_full(source: Source) -> Tree | None:
    """Every layer of the primary prompt; None without a curve or the raw lens."""
    found = source.found.raw_full
    if found is None or not has_raw_tables(source):
        return None
    block: Tree = {
        **_prevalence(found.whole),
        "mode": "full",
        **_percentiles(found.whole),
        "first_js_le_0.1": found.first_js_le_0_1,
        "first_l1_le_0.5": found.first_l1_le_0_5,
        "teacher_entropy_bits": found.teacher_entropy_bits,
        "topk_overlap": _overlap(source, found),
        "score": _score(found.whole.score),
    }
    if source.extended:
        block |= {
            "first_js_le_0.1_after_L_semantic": found.first_js_le_0_1_after_L_semantic,
            "first_l1_le_0.5_after_L_semantic": found.first_l1_le_0_5_after_L_semantic,
            "prefinal": {**_prevalence(found.prefinal), **_percentiles(found.prefinal)},
            "score_prefinal": _score(found.prefinal.score),
        }
    return block


def _prevalence(found: Comparison) -> Tree:
    return {
        "pct_layers_kl_ge_1.0": found.pct_layers_kl_ge_1_0,
        "pct_layers_kl_ge_0.5": found.pct_layers_kl_ge_0_5,
        "n_norm_only_semantics_layers": found.n_norm_only_semantics_layers,
        "earliest_norm_only_semantic": found.earliest_norm_only_semantic,
        "max_kl_norm_vs_raw_bits": found.max_kl_norm_vs_raw_bits,
    }


def _percentiles(found: Comparison) -> Tree:
    percentiles: Mapping[str, Mapping[str, float | None]] = {
        "js_divergence_percentiles": found.js_divergence_percentiles,
        "l1_prob_diff_percentiles": found.l1_prob_diff_percentiles,
    }
    return {key: dict(values) for key, values in percentiles.items()}


def _overlap(source: Source, found: FullCheck) -> Tree:
    overlap = found.topk_overlap
    return {
        "K": overlap.k,
        "jaccard_raw_norm_p50": overlap.jaccard_raw_norm_p50,
        "first_jaccard_raw_norm_ge_0.5": overlap.first_jaccard_raw_norm_ge_0_5,
        "per_layer_raw_norm": _by_layer(source, overlap.per_layer_raw_norm, _CROSS),
        "per_layer_consecutive_norm": _by_layer(source, overlap.per_layer_consecutive_norm, _CONSECUTIVE),
        "cross_key": _CROSS,
        "consecutive_key": _CONSECUTIVE,
    }


def _by_layer(source: Source, values: Sequence[float | None], column: str) -> Tree:
    """One value a layer; in the extended dialect, the table and column that have them."""
    if source.extended:
        return {"file": csv_name(source.stem, NEXT_TOKEN), "column": column}
    return {str(layer): value for layer, value in enumerate(values)}


def _score(found: ArtefactScores) -> Tree:
    return {"lens_artifact_score": found.v1, "lens_artifact_score_v2": found.v2, "tier": found.tier}


def score_config() -> Tree:
    """The constants of the artefact scores."""
    rule = SCORE_RULE
    return {
        "lens_artifact_score": {
            "weights": {
                "pct_ge_1.0": rule.share_kl,
                "norm_only": rule.norm_only,
                "max_kl_scaled": rule.max_kl,
            },
            "thresholds": {"low": rule.medium_from, "high": rule.high_above},
            "v2_addends": {"js_p50": rule.js, "l1_p50": rule.l1},
        }
    }
