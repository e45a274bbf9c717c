"""A fitted lens beside one without a fit: does it reach the answer earlier, and does it come nearer to the model?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.analysis.curve import Curve
from layerscope.analysis.percentiles import QUARTER_NAMES, QUARTERS, depth_layer
from layerscope.record.measured import TunedVariantsRecord

RANKS = (10, 5, 1)
NEAR_KL_BITS = 1.0
"""Divergence from the model's own output at which a lens counts as near it; inclusive."""
HELPS_BITS, HARMS_BITS = 0.5, 0.2
"""Gain from which a lens helps; loss from which it harms."""
PREFER_ROTATION_BITS = 0.2
"""Gain beyond a temperature's, at half depth, from which a tuned lens is preferred."""
PREFER_LAYERS, PREFER_SHARE = 2, 0.05
"""How much earlier it reaches rank 5, in layers or of the depth, to be preferred; the lesser of the two, at least 1."""

Verdict: TypeAlias = Literal["helpful", "regressive", "neutral", "mixed"]


@dataclass(frozen=True)
class LayerPair:
    """The layer at which each lens gets there; None where it does not."""

    baseline: int | None
    fitted: int | None

    @property
    def delta(self) -> int | None:
        """Fitted less baseline: negative where the fitted lens is earlier."""
        return None if self.baseline is None or self.fitted is None else self.fitted - self.baseline

    @property
    def worse(self) -> bool:
        """Whether the fitted lens is later, or never gets where the baseline does."""
        return self.baseline is not None and (self.fitted is None or self.fitted > self.baseline)


@dataclass(frozen=True)
class BitsPair:
    """The divergence of each lens from the model's own output, in bits."""

    baseline: float | None
    fitted: float | None

    @property
    def delta(self) -> float | None:
        """Baseline less fitted: positive where the fitted lens is nearer to the model."""
        return None if self.baseline is None or self.fitted is None else self.baseline - self.fitted


@dataclass(frozen=True)
class FittedLensAudit:
    """One prompt under a fitted lens and under the baseline."""

    lens: str
    baseline_lens: str
    rank_milestones: Mapping[int, LayerPair]
    """First layer with the answer's rank at most 10, 5 and 1."""
    kl_bits_at_percentiles: Mapping[str, BitsPair]
    """At `p25`, `p50` and `p75` of the depth."""
    first_kl_le_1_0: LayerPair
    """First layer at most 1 bit from the model's own output."""
    verdict: Verdict | None
    """Whether the fitted lens is worth its fit; None where a value that decides is missing."""


@dataclass(frozen=True)
class AttributedGain:
    """What a tuned lens gains over the headline lens at one layer, in bits; positive is nearer to the model."""

    layer: int
    tuned_bits: float | None
    """In all."""
    temperature_bits: float | None
    """What the headline lens gains by the layer's temperature alone."""
    rotation_bits: float | None
    """What remains: of the map and the bias together."""
    bias_bits: float | None
    """Of this, what the lens has where its linear part gives every row what it gives on average over the fit's text.

    None where that was not decoded, and for a lens of which the average is not known, as an imported one.
    """
    linear_bits: float | None
    """And what it adds by telling rows apart."""


@dataclass(frozen=True)
class Attribution:
    """How much of a tuned lens' gain is more than a temperature."""

    percentiles: Mapping[str, AttributedGain]
    """At `p25`, `p50` and `p75` of the depth."""
    prefer_tuned: bool | None
    """Whether the tuned lens is to be preferred; None where neither ground for it is known."""


def fitted_lens_audit(baseline: Curve, fitted: Curve) -> FittedLensAudit:
    """Compare two curves of one prompt."""
    ranks = {rank: _first(baseline, fitted, "answer_rank", rank) for rank in RANKS}
    bits = {
        name: BitsPair(*(curve.value("kl_to_final_bits", layer) for curve in (baseline, fitted)))
        for name, layer in _quarter_layers(baseline.n_layers).items()
    }
    ranked = bool(fitted.values("answer_rank")) or not any(pair.baseline is not None for pair in ranks.values())
    return FittedLensAudit(
        lens=fitted.lens,
        baseline_lens=baseline.lens,
        rank_milestones=ranks,
        kl_bits_at_percentiles=bits,
        first_kl_le_1_0=_first(baseline, fitted, "kl_to_final_bits", NEAR_KL_BITS),
        verdict=judge(ranks, bits) if ranked else None,
    )


def judge(ranks: Mapping[int, LayerPair], bits: Mapping[str, BitsPair]) -> Verdict | None:
    """Helpful, regressive, mixed or neutral; None where a divergence is missing.

    Helpful asks for rank 1 alone; a lens that gains much and harms elsewhere is mixed, even where it loses every rank.
    """
    gains = {name: pair.delta for name, pair in bits.items()}
    known = [gain for gain in gains.values() if gain is not None]
    if len(known) < len(gains) or not known:
        return None
    early = [gain for name, gain in gains.items() if name in ("p25", "p50") and gain is not None]
    if max(early) >= HELPS_BITS and min(known) >= -HARMS_BITS and not ranks[1].worse:
        return "helpful"
    harmed = [gain <= -HARMS_BITS for gain in known]
    loses_rank = any(pair.worse for pair in ranks.values())
    if max(known) >= HELPS_BITS and (any(harmed) or loses_rank):
        return "mixed"
    if (gains["p50"] or 0.0) <= -HARMS_BITS or sum(harmed) >= 2 or loses_rank:
        return "regressive"
    return "neutral"


def attribution(headline: Curve, tuned: Curve, variants: TunedVariantsRecord | None = None) -> Attribution:
    """Split the gain of a tuned lens into a temperature's, a bias' and a linear map's, in bits of KL(lens || model).

    The temperature is the headline lens' own, which divides logits and is fitted at each layer; it may lose bits, since
    it was fitted on other text and for the divergence the other way round. The bias includes the linear map's mean
    effect, so that it does not hang on where the map's inputs have their origin.

    Args:
        variants: parts of the tuned lens on it; without them bias and linear map are not told apart.
    """
    gains = {
        name: _gain(headline, tuned, variants, layer) for name, layer in _quarter_layers(headline.n_layers).items()
    }
    at_half, rank_5 = gains["p50"].rotation_bits, _first(headline, tuned, "answer_rank", 5).delta
    needed = max(1, min(PREFER_LAYERS, round(PREFER_SHARE * headline.n_layers)))
    grounds = (
        None if at_half is None else at_half >= PREFER_ROTATION_BITS,
        None if rank_5 is None else -rank_5 >= needed,
    )
    return Attribution(gains, None if grounds == (None, None) else any(grounds))


def _quarter_layers(n_layers: int) -> dict[str, int]:
    return {name: depth_layer(q, n_layers) for name, q in zip(QUARTER_NAMES, QUARTERS, strict=True)}


def _first(baseline: Curve, fitted: Curve, column: str, bound: int | float) -> LayerPair:
    """Where each curve first comes down to the bound."""
    return LayerPair(
        *(curve.first(lambda row: row[column] is not None and row[column] <= bound) for curve in (baseline, fitted))
    )


def _gain(headline: Curve, tuned: Curve, variants: TunedVariantsRecord | None, layer: int) -> AttributedGain:
    baseline, whole = headline.value("kl_to_final_bits", layer), tuned.value("kl_to_final_bits", layer)
    total = BitsPair(baseline, whole).delta
    temperature = BitsPair(baseline, headline.value("kl_to_final_bits_norm_temp", layer)).delta
    rest = None if total is None or temperature is None else total - temperature
    linear = BitsPair(_without_map(variants, layer), whole).delta
    bias = None if rest is None or linear is None else rest - linear
    return AttributedGain(layer, total, temperature, rest, bias, linear)


def _without_map(variants: TunedVariantsRecord | None, layer: int) -> float | None:
    """The divergence of the tuned lens with its linear part replaced by its mean effect."""
    if variants is None or variants.bias_only is None:
        return None
    bits = variants.bias_only.kl_to_final_bits
    return bits[layer] if layer < len(bits) else None
