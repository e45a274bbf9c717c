"""Blocks that compare the headline lens with the raw residual: at four layers, around milestones, at every layer."""

from collections.abc import Sequence

from layerscope.analysis.raw_comparison import Comparison, FullCheck
from layerscope.published import members
from layerscope.published.layout import NEXT_TOKEN, csv_name
from layerscope.published.write.json_fitted_lenses import has_raw_tables
from layerscope.published.write.json_source import Source, Tree

_CROSS, _CONSECUTIVE = "topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50"


def raw_lens_check(source: Source) -> Tree:
    """Four layers of the primary prompt."""
    check = source.diagnostics.raw_sample
    samples = () if check is None else check.samples
    return {
        "mode": "sample" if samples else "off",
        "samples": [source.block(members.RAW_SAMPLE, sample) for sample in samples],
        "summary": source.block(members.RAW_SUMMARY, check),
    }


def raw_lens_window(source: Source) -> Tree | None:
    """The layers around the primary prompt's milestones; None without a curve or the raw lens."""
    window = source.diagnostics.raw_window
    if window is None or not has_raw_tables(source):
        return None
    return {**source.block(members.RAW_WINDOW, window), "mode": "window"}


def raw_lens_full(source: Source) -> Tree | None:
    """Every layer of the primary prompt; None without a curve or the raw lens."""
    check = source.diagnostics.raw_full
    if check is None or not has_raw_tables(source):
        return None
    block: Tree = {
        **source.block(members.RAW_PREVALENCE, check.whole),
        "mode": "full",
        **source.block(members.RAW_PERCENTILES, check.whole),
        **source.block(members.RAW_FIRST, check),
        "topk_overlap": _overlap(source, check),
        "score": source.block(members.ARTEFACT_SCORE, check.whole.score),
        **source.block(members.RAW_FIRST_LATER, check),
    }
    return {**block, **_prefinal(source, check.prefinal)} if source.extended else block


def _prefinal(source: Source, layers: Comparison) -> Tree:
    """The same without the last layer."""
    return {
        "prefinal": source.block((*members.RAW_PREVALENCE, *members.RAW_PERCENTILES), layers),
        "score_prefinal": source.block(members.ARTEFACT_SCORE, layers.score),
    }


def _overlap(source: Source, check: FullCheck) -> Tree:
    overlap = check.topk_overlap
    return {
        **source.block(members.TOPK_OVERLAP, overlap),
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
