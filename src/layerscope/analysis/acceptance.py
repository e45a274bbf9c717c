"""Whether a tuned lens may stand for the headline lens: four criteria, and what skipping the last blocks costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layerscope.analysis.curve import Curve, Curves
from layerscope.analysis.facts import fact_passes
from layerscope.analysis.fitted_lens_audit import FittedLensAudit, LayerPair, fitted_lens_audit
from layerscope.analysis.percentiles import QUARTERS, depth_layer, median
from layerscope.analysis.tuned_audit import HeadMismatch
from layerscope.record.measured import FittedLensRecord, HeldOutRecord, SkipLayersRecord

GAIN_BITS = {"p25": 0.2, "p50": 0.3, "p75": 0.3}
"""Least median gain over the headline lens at a quarter, a half and three quarters of the depth.

One threshold for divergences of either direction, see `Direction`.
"""
GAIN_SHARE = 0.3
"""Protocol `standard`: least share of the logit lens' divergence that the tuned lens removes at those depths."""
LEFT_BITS = 0.1
"""Divergence of the logit lens up to which there is nothing worth removing."""
EARLIER_LAYERS = {10: 4, 5: 2}
"""By how many layers ranks of 10 and of 5 should come earlier."""
EARLIER_SHARE = 0.6
"""On at least this share of prompts."""
LAST_LAYER_BITS = 0.05
"""Most that a temperature may leave of the last row's divergence from the model."""
LOSS_BITS = 0.1
"""Most that a percentile may lose."""
REGRESSION = 0.20
"""Relative growth of perplexity with two blocks skipped beyond which a lens loses what those blocks do."""
REGRESSION_BLOCKS = 2

Text: TypeAlias = Literal["suite", "held_out"]
Direction: TypeAlias = Literal["lens_to_model", "model_to_lens"]
"""Of a divergence: KL(lens || model), weighed by the lens' probabilities, or KL(model || lens), by the model's.

A run's rows hold the first; a lens is fitted to the second, so held-out text is measured by that one.
"""
_DIRECTION: Mapping[Text, Direction] = {"suite": "lens_to_model", "held_out": "model_to_lens"}


@dataclass(frozen=True)
class Criterion:
    """One thing that is asked of a tuned lens."""

    name: Literal["A", "B", "C", "D"]
    """A: gain, B: earlier ranks, C: last layer, D: no loss."""
    on: Text
    """The suite's facts, or the text that was held out of its fit."""
    value: Mapping[str, float | None]
    threshold: Mapping[str, float]
    """Under the same keys: the least value that passes; for C the largest."""
    direction: Direction | None
    """Of the divergences in `value`; None where these are none."""
    n: int | None
    """Facts or positions that it rests on; None where that was not recorded."""
    passed: bool | None
    """None where a value that decides is missing."""


@dataclass(frozen=True)
class Acceptance:
    """Every criterion, on every text."""

    criteria: tuple[Criterion, ...]

    @property
    def accepted(self) -> bool | None:
        """Whether all of them pass; None where none fails and one is not known."""
        return _all([criterion.passed for criterion in self.criteria])


@dataclass(frozen=True)
class SkippedBlocks:
    """The last blocks left out, and the layer before them decoded by the tuned lens."""

    measured: SkipLayersRecord

    @property
    def relative_loss(self) -> float:
        """By what share the perplexity grows; negative where the lens predicts better than the model."""
        return self.measured.perplexity_lens / self.measured.perplexity_model - 1


@dataclass(frozen=True)
class SkippingCost:
    """What is lost with the last blocks skipped, on text held out of the fit."""

    skipped: tuple[SkippedBlocks, ...]
    reason: str | None
    """Why nothing was measured; None where something was."""

    @property
    def regression(self) -> bool | None:
        """Whether two blocks skipped cost more than a fifth of the perplexity; None where they were not skipped."""
        loss = next((s.relative_loss for s in self.skipped if s.measured.blocks == REGRESSION_BLOCKS), None)
        return None if loss is None else loss > REGRESSION


def skip_layers(lens: FittedLensRecord | None) -> SkippingCost:
    """What the record of a tuned lens says of it."""
    fit = None if lens is None else lens.tuned
    skipped = tuple(SkippedBlocks(record) for record in (() if fit is None else fit.skip_layers))
    return SkippingCost(skipped, None if skipped else "the tuned lens' own record has no perplexities")


def acceptance(
    curves: Curves,
    headline: str,
    n_layers: int,
    mismatch: HeadMismatch,
    held_out: HeldOutRecord | None,
    relative: bool = False,
) -> Acceptance:
    """Judge the tuned lens by every fact of the suite, once each, and by held-out text.

    The suite is judged by KL(lens || model), held-out text by KL(model || lens), both with the same thresholds.

    Args:
        curves: the run's curves; those of the lens `tuned` are judged.
        headline: the lens that they are compared with on the suite, another one; on held-out text it is the logit lens.
        mismatch: the last row of the primary prompt.
        held_out: of the lens' record; None where it has none.
        relative: whether the gain is asked for as a share of what can be gained, on held-out text alone, as protocol
            `standard` does; if not, in bits, on both texts.
    """
    pairs = [
        (baseline, tuned)
        for prompt in fact_passes(curves.passes)
        if (baseline := curves.get(prompt, headline)) is not None and (tuned := curves.get(prompt, "tuned")) is not None
    ]
    medians, n = _median_gains([fitted_lens_audit(*pair) for pair in pairs])
    other = _held_out_gains(held_out, n_layers)
    n_other = None if held_out is None else held_out.n_positions
    kept = (
        _earlier_ranks(pairs),
        _last_layer(mismatch.kl_after_temperature_bits),
        _no_loss(medians, "suite", n),
    )
    no_loss = _no_loss(other, "held_out", n_other)
    if relative:
        return Acceptance((*kept, no_loss, _relative_gain(held_out, n_layers, n_other)))
    return Acceptance((_gain(medians, "suite", n), *kept, _gain(other, "held_out", n_other), no_loss))


def _median_gains(audits: Sequence[FittedLensAudit]) -> tuple[dict[str, float | None], int]:
    """Over facts, at quarters of the depth, of KL(lens || model); and how many facts have any."""
    gains = {
        name: [gain for audit in audits if (gain := audit.kl_bits_at_percentiles[name].delta) is not None]
        for name in GAIN_BITS
    }
    return {name: median(bits) for name, bits in gains.items()}, max(len(bits) for bits in gains.values())


def _held_out_gains(held_out: HeldOutRecord | None, n_layers: int) -> dict[str, float | None]:
    """Logit lens less fitted lens, in the same places, of KL(model || lens)."""
    both = _held_out(held_out, n_layers)
    return {name: None if pair is None else pair[0] - pair[1] for name, pair in both.items()}


def _held_out(held_out: HeldOutRecord | None, n_layers: int) -> dict[str, tuple[float, float] | None]:
    """Divergence of the logit lens and of the fitted lens at quarters of the depth; None without both."""
    pairs: dict[str, tuple[float, float] | None] = {}
    for q in QUARTERS:
        layer = depth_layer(q, n_layers)
        curves = () if held_out is None else (held_out.logit_bits, held_out.lens_bits)
        at_layer = [by_layer[layer] if layer < len(by_layer) else None for by_layer in curves]
        known = [bits for bits in at_layer if bits is not None]
        pairs[f"p{round(100 * q)}"] = (known[0], known[1]) if len(known) == 2 else None
    return pairs


def _gain(gains: Mapping[str, float | None], on: Text, n: int | None) -> Criterion:
    passed = _all([_at_least(gains[p], least) for p, least in GAIN_BITS.items()])
    return Criterion("A", on, gains, GAIN_BITS, _DIRECTION[on], n, passed)


def _relative_gain(held_out: HeldOutRecord | None, n_layers: int, n: int | None) -> Criterion:
    """Share of the logit lens' divergence that is removed, where there is enough of it; open where there nowhere is."""
    both = _held_out(held_out, n_layers)
    shares: dict[str, float | None] = {
        name: None if pair is None else (pair[0] - pair[1]) / pair[0]
        for name, pair in both.items()
        if pair is None or pair[0] > LEFT_BITS
    }
    least = dict.fromkeys(shares, GAIN_SHARE)
    passed = _all([_at_least(share, GAIN_SHARE) for share in shares.values()]) if shares else None
    return Criterion("A", "held_out", shares, least, _DIRECTION["held_out"], n, passed)


def _no_loss(gains: Mapping[str, float | None], on: Text, n: int | None) -> Criterion:
    least = dict.fromkeys(gains, -LOSS_BITS)
    passed = _all([_at_least(gain, -LOSS_BITS) for gain in gains.values()])
    return Criterion("D", on, gains, least, _DIRECTION[on], n, passed)


def _earlier_ranks(pairs: Sequence[tuple[Curve, Curve]]) -> Criterion:
    """Over facts whose answer has ranks; where either lens never gets there, nothing is early."""
    ranked = [pair for pair in pairs if all(curve.values("answer_rank") for curve in pair)]
    earlier = [_is_earlier(fitted_lens_audit(*pair).rank_milestones) for pair in ranked]
    share = sum(earlier) / len(earlier) if earlier else None
    passed = _at_least(share, EARLIER_SHARE)
    return Criterion("B", "suite", {"share": share}, {"share": EARLIER_SHARE}, None, len(earlier), passed)


def _is_earlier(ranks: Mapping[int, LayerPair]) -> bool:
    deltas = {rank: ranks[rank].delta for rank in EARLIER_LAYERS}
    return all(delta is not None and -delta >= EARLIER_LAYERS[rank] for rank, delta in deltas.items())


def _last_layer(kl_bits: float | None) -> Criterion:
    passed = None if kl_bits is None else kl_bits <= LAST_LAYER_BITS
    return Criterion("C", "suite", {"kl_bits": kl_bits}, {"kl_bits": LAST_LAYER_BITS}, _DIRECTION["suite"], 1, passed)


def _at_least(value: float | None, least: float) -> bool | None:
    return None if value is None else value >= least


def _all(passed: Sequence[bool | None]) -> bool | None:
    """False where any is; else None where any is."""
    return False if False in passed else None if None in passed else True
