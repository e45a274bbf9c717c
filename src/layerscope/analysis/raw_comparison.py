"""How far the headline lens departs from the raw residual, and whether a reading of it rests on its norm alone."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from layerscope.analysis.curve import Curve, Row
from layerscope.analysis.milestones import Milestones
from layerscope.analysis.percentiles import depth_fraction, median, quartiles
from layerscope.record.milestone_names import (
    COPY_SOFT,
    COPY_STRICT,
    ONSET,
    STABLE,
    MilestoneName,
    copy_strict,
    rank_within,
)
from layerscope.record.protocol import Thresholds
from layerscope.record.rows import TOP_SET

HIGH_KL_BITS, MEDIUM_KL_BITS = 1.0, 0.5
"""Divergences from the raw lens at which the sampled risk is high or medium, and which the full check counts."""
RADIUS_LAYERS, WIDE_RADIUS_LAYERS = 4, 8
"""How far around a milestone the window check looks, by default and where the sample warns."""
NEAR_JS_BITS, NEAR_L1, NEAR_JACCARD = 0.1, 0.5, 0.5
"""From where on both lenses count as near each other."""
STABLE_LAYERS, STABLE_SHARE = 2, 0.05
"""Distance of the strictest copy layer from the loosest, in layers or of the depth, up to which both are one."""
FRAGILE_LAYERS, FRAGILE_SHARE = 6, 0.15
"""The distance from which on they are not."""

Risk: TypeAlias = Literal["low", "medium", "high"]
Stability: TypeAlias = Literal["none", "mixed", "stable", "fragile"]


@dataclass(frozen=True)
class ScoreRule:
    """The constants of the artefact scores."""

    share_kl: float = 0.6
    """Weight of the share of layers at least 1 bit away."""
    norm_only: float = 0.3
    """Added where any layer gives the answer under the headline lens alone."""
    max_kl: float = 0.1
    """Weight of the largest divergence."""
    max_kl_full_bits: float = 5.0
    """The divergence that earns that weight whole."""
    js: float = 0.10
    """Second version: weight of the median Jensen-Shannon divergence."""
    js_full_bits: float = 0.1
    l1: float = 0.05
    """Second version: weight of the median L1 distance."""
    l1_full: float = 0.5
    medium_from: float = 0.2
    """Least score of the medium tier; inclusive."""
    high_above: float = 0.5
    """Largest score of the medium tier; inclusive."""


SCORE_RULE = ScoreRule()


@dataclass(frozen=True)
class ArtefactScores:
    """How much of a reading may be the lens' own making, 0 to 1; None where nothing was compared."""

    v1: float | None
    v2: float | None
    """The first with divergences that do not saturate added; it has no tier of its own."""
    tier: Risk | None
    """What the first version amounts to."""


@dataclass(frozen=True)
class RawSample:
    """One layer under the headline lens and without a norm."""

    layer: int
    kl_norm_vs_raw_bits: float | None
    top1_agree: bool | None
    p_top1: float | None
    p_top1_raw: float | None
    p_answer: float | None
    p_answer_raw: float | None
    answer_rank: int | None
    answer_rank_raw: int | None
    is_answer: bool | None
    is_answer_raw: bool | None


@dataclass(frozen=True)
class SampleCheck:
    """Four layers, as a first impression."""

    samples: tuple[RawSample, ...]
    first_norm_only_semantic_layer: int | None
    """First of them that gives the answer under the headline lens and not without its norm."""
    max_kl_norm_vs_raw_bits: float | None
    lens_artifact_risk: Risk | None
    """None where no divergence is known and no such layer either."""


@dataclass(frozen=True)
class WindowCheck:
    """The layers around the milestones."""

    radius: int
    center_layers: tuple[int, ...]
    layers: tuple[int, ...]
    """All layers within the radius."""
    layers_checked: tuple[int, ...]
    """Those of them at which the two lenses could be compared."""
    norm_only_semantics_layers: tuple[int, ...] | None
    """Those that give the answer under the headline lens alone; None where that is known of no layer."""
    max_kl_norm_vs_raw_bits_window: float | None


@dataclass(frozen=True)
class Comparison:
    """Both lenses over a stretch of layers; None where no layer has the value."""

    n_layers: int
    """Layers with a divergence: what shares are shares of."""
    pct_layers_kl_ge_1_0: float | None
    """Share, 0 to 1, of layers at least 1 bit away from the raw lens."""
    pct_layers_kl_ge_0_5: float | None
    n_norm_only_semantics_layers: int | None
    """Layers that give the answer under the headline lens alone."""
    earliest_norm_only_semantic: int | None
    max_kl_norm_vs_raw_bits: float | None
    js_divergence_percentiles: Mapping[str, float | None]
    """In bits, over layers: `p25`, `p50`, `p75`."""
    l1_prob_diff_percentiles: Mapping[str, float | None]
    score: ArtefactScores


@dataclass(frozen=True)
class TopkOverlap:
    """Shared share of sets of the most likely ids."""

    k: int
    jaccard_raw_norm_p50: float | None
    first_jaccard_raw_norm_ge_0_5: int | None
    per_layer_raw_norm: tuple[float | None, ...]
    """Between both lenses, at layers 0 to n_layers."""
    per_layer_consecutive_norm: tuple[float | None, ...]
    """Between a layer of the headline lens and the one before."""


@dataclass(frozen=True)
class FullCheck:
    """Every layer."""

    whole: Comparison
    prefinal: Comparison
    """Without the last layer, where the headline lens is the model itself and cannot be at fault: read this one."""
    first_js_le_0_1: int | None
    """First layer with the two lenses near each other; at the embedding both are often near uniform, hence near."""
    first_l1_le_0_5: int | None
    first_js_le_0_1_after_L_semantic: int | None
    """The same from the headline onset on; None without an onset."""
    first_l1_le_0_5_after_L_semantic: int | None
    teacher_entropy_bits: float | None
    topk_overlap: TopkOverlap


@dataclass(frozen=True)
class CopyThresholds:
    """The layer of strict copying at every threshold, and how much hangs on the threshold; keys are thresholds."""

    L_copy_strict: Mapping[float, int | None]
    L_copy_strict_frac: Mapping[float, float | None]
    """Of the depth, rounded to three decimals."""
    norm_only_flags: Mapping[float, bool | None]
    """Whether the raw lens copies at no layer nearby; None without a layer, or where that cannot be told."""
    stability: Stability


def norm_only(row: Row, raw: Row | None) -> bool | None:
    """Whether the answer stands first under the headline lens and not under the raw one; None where that is open."""
    if row["answer_rank"] is None:
        return None
    if row["answer_rank"] != 1:
        return False
    return None if raw is None or raw["answer_rank"] is None else bool(raw["answer_rank"] != 1)


def sample_check(headline: Curve, raw: Curve | None) -> SampleCheck:
    """Compare at the embedding and one layer past a quarter, a half and three quarters of the depth, rounded down."""
    n = headline.n_layers
    pairs = _pairs(headline, raw, {0, n // 4 + 1, n // 2 + 1, 3 * n // 4 + 1})
    first = next((row["layer"] for row, other in pairs if norm_only(row, other)), None)
    largest = _largest_kl(pairs)
    return SampleCheck(tuple(_sample(row, other) for row, other in pairs), first, largest, _risk(first, largest))


def window_centres(milestones: Milestones) -> tuple[int, ...]:
    """The distinct layers around which the window check looks, ascending."""
    soft = [milestone.layer for name, milestone in milestones.items() if _is_soft(name) and milestone.layer is not None]
    strict = [milestone.layer for name, milestone in milestones.items() if _is_strict(name)]
    single = (ONSET, rank_within(5), "first_kl_below_1.0", MilestoneName.COPY)
    layers = [milestones[name].layer for name in single if name in milestones]
    return tuple(sorted({layer for layer in (*layers, *strict, min(soft, default=None)) if layer is not None}))


def window_check(
    headline: Curve, raw: Curve | None, centres: Sequence[int], sample: SampleCheck | None = None
) -> WindowCheck:
    """Compare around the centres, over a wider window where the sample says that the risk is high."""
    warned = sample is not None and (
        sample.lens_artifact_risk == "high" or (sample.max_kl_norm_vs_raw_bits or 0.0) >= HIGH_KL_BITS
    )
    radius = WIDE_RADIUS_LAYERS if warned else RADIUS_LAYERS
    layers = [
        layer for layer in range(headline.n_layers + 1) if any(abs(layer - centre) <= radius for centre in centres)
    ]
    pairs = _pairs(headline, raw, layers)
    alone = {row["layer"]: norm_only(row, other) for row, other in pairs}
    judged = any(only is not None for only in alone.values())
    return WindowCheck(
        radius=radius,
        center_layers=tuple(sorted(set(centres))),
        layers=tuple(layers),
        layers_checked=tuple(
            row["layer"] for row, _ in pairs if (row["kl_norm_vs_raw_bits"], alone[row["layer"]]) != (None, None)
        ),
        norm_only_semantics_layers=tuple(layer for layer, only in alone.items() if only) if judged else None,
        max_kl_norm_vs_raw_bits_window=_largest_kl(pairs),
    )


def full_check(headline: Curve, raw: Curve | None) -> FullCheck:
    """Compare at every layer, and at every layer but the last."""
    pairs = _pairs(headline, raw, range(headline.n_layers + 1))
    onset = headline.first(lambda row: bool(row["is_answer"]))
    return FullCheck(
        whole=_compare(pairs),
        prefinal=_compare([pair for pair in pairs if pair[0]["layer"] < headline.n_layers]),
        first_js_le_0_1=headline.first(_at_most("js_divergence_bits", NEAR_JS_BITS)),
        first_l1_le_0_5=headline.first(_at_most("l1_prob_diff", NEAR_L1)),
        first_js_le_0_1_after_L_semantic=_first_from(headline, onset, _at_most("js_divergence_bits", NEAR_JS_BITS)),
        first_l1_le_0_5_after_L_semantic=_first_from(headline, onset, _at_most("l1_prob_diff", NEAR_L1)),
        teacher_entropy_bits=next(iter(headline.values("teacher_entropy_bits")), None),
        topk_overlap=_overlap(headline),
    )


def artefact_scores(
    share_kl_ge_1: float | None,
    n_norm_only: int | None,
    max_kl_bits: float | None,
    js_p50: float | None = None,
    l1_p50: float | None = None,
) -> ArtefactScores:
    """Both scores of a comparison; a missing input adds nothing.

    Where no divergence is known and no layer is norm-only there is no score, for 0 would pass for a low one.

    Args:
        share_kl_ge_1: share of layers at least 1 bit away from the raw lens.
        n_norm_only: layers that give the answer under the headline lens alone.
        js_p50: median Jensen-Shannon divergence, in bits.
        l1_p50: median L1 distance, within [0, 2].
    """
    if share_kl_ge_1 is None and max_kl_bits is None and not n_norm_only:
        return ArtefactScores(None, None, None)
    rule = SCORE_RULE
    v1 = rule.share_kl * (share_kl_ge_1 or 0.0)
    v1 += rule.norm_only if n_norm_only else 0.0
    v1 += rule.max_kl * min(1.0, (max_kl_bits or 0.0) / rule.max_kl_full_bits)
    v2 = v1 + rule.js * min(1.0, max(0.0, js_p50 or 0.0) / rule.js_full_bits)
    v2 += rule.l1 * min(1.0, max(0.0, l1_p50 or 0.0) / rule.l1_full)
    tier: Risk = "low" if v1 < rule.medium_from else "medium" if v1 <= rule.high_above else "high"
    return ArtefactScores(v1, min(1.0, max(0.0, v2)), tier)


def copy_thresholds(
    headline: Curve, raw: Curve | None, milestones: Milestones, radius: int, thresholds: Thresholds
) -> CopyThresholds:
    """The sweep over thresholds of strict copying.

    Args:
        raw: the same prompt without a norm; None where it was not read.
    """
    layers = {p: milestones[copy_strict(p)].layer for p in thresholds.copy_strict}
    echoes, others = _top_tokens(headline, thresholds)
    flags: dict[float, bool | None] = {}
    for p, layer in layers.items():
        near = [] if raw is None or layer is None else [row for row in raw.rows if abs(row["layer"] - layer) <= radius]
        decoded = [row for row in near if row["p_top1"] is not None]
        shown = [_copies(row, p, thresholds, echoes, others) for row in decoded]
        flags[p] = False if any(shown) else None if None in shown or not shown else True
    return CopyThresholds(
        L_copy_strict=layers,
        L_copy_strict_frac={p: depth_fraction(layer, headline.n_layers) for p, layer in layers.items()},
        norm_only_flags=flags,
        stability=stability(layers, headline.n_layers),
    )


def stability(layers: Mapping[float, int | None], n_layers: int) -> Stability:
    """How far the layer of the strictest threshold is from that of the loosest; stable is looked for first."""
    loose, strict = layers[min(layers)], layers[max(layers)]
    if all(layer is None for layer in layers.values()):
        return "none"
    if loose is None or strict is None:
        return "mixed"
    distance = abs(strict - loose)
    if distance <= STABLE_LAYERS or distance / n_layers <= STABLE_SHARE:
        return "stable"
    return "fragile" if distance >= FRAGILE_LAYERS or distance / n_layers >= FRAGILE_SHARE else "mixed"


def _pairs(headline: Curve, raw: Curve | None, layers: Collection[int]) -> list[tuple[Row, Row]]:
    """The rows of both lenses at those layers, where both have one."""
    if raw is None:
        return []
    others = {row["layer"]: row for row in raw.rows}
    return [(row, others[row["layer"]]) for row in headline.rows if row["layer"] in layers and row["layer"] in others]


def _largest_kl(pairs: Sequence[tuple[Row, Row]]) -> float | None:
    return max((row["kl_norm_vs_raw_bits"] for row, _ in pairs if row["kl_norm_vs_raw_bits"] is not None), default=None)


def _sample(row: Row, raw: Row) -> RawSample:
    same = None if row["top1_id"] is None or raw["top1_id"] is None else row["top1_id"] == raw["top1_id"]
    return RawSample(
        layer=row["layer"],
        kl_norm_vs_raw_bits=row["kl_norm_vs_raw_bits"],
        top1_agree=same,
        **{column: row[column] for column in ("p_top1", "p_answer", "answer_rank")},
        **{f"{column}_raw": raw[column] for column in ("p_top1", "p_answer", "answer_rank")},
        is_answer=_is_answer(row),
        is_answer_raw=_is_answer(raw),
    )


def _is_answer(row: Row) -> bool | None:
    """Whether the rank is 1; by the row's own word where it has no rank."""
    is_answer: bool | None = row["is_answer"] if row["answer_rank"] is None else row["answer_rank"] == 1
    return is_answer


def _risk(first_norm_only: int | None, max_kl_bits: float | None) -> Risk | None:
    if first_norm_only is not None:
        return "high"
    if max_kl_bits is None:
        return None
    return "high" if max_kl_bits >= HIGH_KL_BITS else "medium" if max_kl_bits >= MEDIUM_KL_BITS else "low"


def _is_soft(name: str) -> bool:
    return name.startswith(COPY_SOFT) and name.removeprefix(COPY_SOFT).isdigit()


def _is_strict(name: str) -> bool:
    return name.startswith(COPY_STRICT) and not name.endswith(STABLE)


def _compare(pairs: Sequence[tuple[Row, Row]]) -> Comparison:
    kl = _known(pairs, "kl_norm_vs_raw_bits")
    alone = [(row["layer"], norm_only(row, other)) for row, other in pairs]
    alone_at = [layer for layer, only in alone if only]
    counted = len(alone_at) if any(only is not None for _, only in alone) else None
    share = _share(kl, HIGH_KL_BITS)
    js, l1 = _known(pairs, "js_divergence_bits"), _known(pairs, "l1_prob_diff")
    return Comparison(
        n_layers=len(kl),
        pct_layers_kl_ge_1_0=share,
        pct_layers_kl_ge_0_5=_share(kl, MEDIUM_KL_BITS),
        n_norm_only_semantics_layers=counted,
        earliest_norm_only_semantic=min(alone_at, default=None),
        max_kl_norm_vs_raw_bits=max(kl, default=None),
        js_divergence_percentiles=quartiles(js),
        l1_prob_diff_percentiles=quartiles(l1),
        score=artefact_scores(share, counted, max(kl, default=None), median(js), median(l1)),
    )


def _known(pairs: Sequence[tuple[Row, Row]], column: str) -> list[float]:
    return [row[column] for row, _ in pairs if row[column] is not None]


def _share(kl_bits: Sequence[float], least: float) -> float | None:
    return sum(bits >= least for bits in kl_bits) / len(kl_bits) if kl_bits else None


def _at_most(column: str, bound: float) -> Callable[[Row], bool]:
    return lambda row: row[column] is not None and row[column] <= bound


def _first_from(curve: Curve, start: int | None, holds: Callable[[Row], bool]) -> int | None:
    return None if start is None else curve.first(lambda row: row["layer"] >= start and holds(row))


def _overlap(headline: Curve) -> TopkOverlap:
    by_layer: dict[int, Any] = {row["layer"]: row for row in headline.rows}
    cross, previous = (
        tuple(by_layer.get(layer, {}).get(column) for layer in range(headline.n_layers + 1))
        for column in (f"topk_jaccard_raw_norm@{TOP_SET}", f"topk_jaccard_consecutive@{TOP_SET}")
    )
    return TopkOverlap(
        k=TOP_SET,
        jaccard_raw_norm_p50=median([share for share in cross if share is not None]),
        first_jaccard_raw_norm_ge_0_5=next(
            (layer for layer, share in enumerate(cross) if share is not None and share >= NEAR_JACCARD), None
        ),
        per_layer_raw_norm=cross,
        per_layer_consecutive_norm=previous,
    )


def _top_tokens(headline: Curve, thresholds: Thresholds) -> tuple[set[int], set[int]]:
    """Top tokens known to be content of the prompt, and those known not to be: a strict flag has told."""
    echoes: set[int] = set()
    others: set[int] = set()
    for row in headline.rows:
        for p in thresholds.copy_strict:
            flag, token_id = row[f"copy_strict@{p:g}"], row["top1_id"]
            if flag and token_id is not None:
                echoes.add(token_id)
            elif flag is False and token_id is not None and _alone(row["p_top1"], p, thresholds):
                others.add(token_id)
    return echoes, others


def _alone(p_top1: float | None, threshold: float, thresholds: Thresholds) -> bool:
    """Whether a token is above the threshold and, whatever the second one has, ahead by the margin."""
    return p_top1 is not None and p_top1 > max(threshold, (1 + thresholds.copy_margin) / 2)


def _copies(
    raw: Row, threshold: float, thresholds: Thresholds, echoes: Collection[int], others: Collection[int]
) -> bool | None:
    """Whether a raw row copies strictly; inferred from its top token where a file gives no flag for the raw lens."""
    flag: bool | None = raw[f"copy_strict@{threshold:g}"]
    if flag is not None:
        return flag
    if raw["p_top1"] <= threshold or raw["top1_id"] in others:
        return False
    return True if raw["top1_id"] in echoes and _alone(raw["p_top1"], threshold, thresholds) else None
