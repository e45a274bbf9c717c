"""A tuned lens' own audit: what its parts are worth layer by layer, where along the prompt it helps, how it ends."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import polars as pl

from layerscope.analysis.curve import Curve, Row
from layerscope.analysis.facts import position_grid
from layerscope.analysis.percentiles import median, quartiles
from layerscope.record.measured import LastLayerRecord, TunedVariantRecord, TunedVariantsRecord
from layerscope.record.prompt_key import PromptKey

CALIBRATION_ONLY = "tuned_for_calibration_only"
"""The hint for a tuned lens that is little more than a temperature."""
ROTATION_BITS = 0.2
"""Median gain of map and bias alone below which they are worth nothing."""
TEMPERATURE_SHARE = 0.8
"""Share of the whole median gain from which the temperature accounts for it."""
TUNED_BITS = 0.2
"""Median gain above which a tuned lens is hinted at."""
EARLY, END = 0.92, 0.96
"""Fractions of a prompt up to which, and from which on, positions are taken together; both inclusive."""
_SAME = 1e-5
"""Difference, relative or in bits, within which two last rows are one row decoded twice."""
_N = TypeVar("_N", int, float)
NO_VARIANTS = "the tuned lens was not decoded in parts"


@dataclass(frozen=True)
class Reading:
    """What one lens reads at one place."""

    kl_bits: float | None = None
    """KL(lens || model)."""
    answer_rank: int | None = None
    entropy_bits: float | None = None


@dataclass(frozen=True)
class VariantRow:
    """One layer of the primary prompt's last position under the tuned lens, whole and in parts."""

    layer: int
    baseline: Reading
    """The headline lens."""
    tuned: Reading
    rotation_only: Reading
    """The tuned lens' map and bias without its temperature."""
    temperature_only: Reading
    """The headline lens' row over the tuned lens' temperature, then unembedded as any row is."""

    @property
    def interaction_bits(self) -> float | None:
        """What the whole gains beyond the sum of its parts."""
        parts = (self.tuned, self.rotation_only, self.temperature_only)
        whole, rotation, temperature = (gain_bits(self.baseline, part) for part in parts)
        return None if whole is None or rotation is None or temperature is None else whole - (rotation + temperature)


@dataclass(frozen=True)
class PositionRow:
    """One layer and position of the primary prompt, under the headline lens and the tuned one."""

    fraction: float
    """The first of `facts.GRID` that leads to the position."""
    position: int
    layer: int
    baseline: Reading
    tuned: Reading
    """Nothing but None where there is no such row."""


@dataclass(frozen=True)
class RotationVsTemperature:
    """Gains over the headline lens in bits, over layers 1 to n_layers; positive is nearer to the model.

    Not the numbers of an attribution, which takes single layers and the headline lens' own temperature.
    """

    rotation_bits: Mapping[str, float | None]
    """Of map and bias without the temperature: `p25`, `p50`, `p75`."""
    temperature_bits: Mapping[str, float | None]
    """Of the translator's temperature alone, which divides the row: a head's bias, scale and softcap come after it."""
    interaction_bits: float | None
    """Of the whole beyond the sum of both: the median."""
    tuned_bits: float | None
    """Of the whole: the median."""
    n_layers: int
    """How many layers have the gain of the whole."""

    @property
    def calibration_only(self) -> bool | None:
        """Whether the tuned lens is little more than a temperature; None where a median is missing.

        A lens that gains nothing is no calibration either, though any temperature is most of nothing.
        """
        rotation, temperature, whole = self.rotation_bits["p50"], self.temperature_bits["p50"], self.tuned_bits
        if rotation is None or temperature is None or whole is None:
            return None
        return whole > 0 and rotation < ROTATION_BITS and temperature >= TEMPERATURE_SHARE * whole

    def hint(self, headline: str) -> str:
        """Which lens to read meaning from: `tuned`, the headline lens, or that the tuned one calibrates alone."""
        if self.calibration_only is None:
            return headline
        if self.calibration_only:
            return CALIBRATION_ONLY
        return "tuned" if self.tuned_bits is not None and self.tuned_bits > TUNED_BITS else headline


@dataclass(frozen=True)
class PositionsAudit:
    """What the tuned lens gains along the primary prompt: medians over positions and layers, in bits.

    A prompt is short, so its two parts are two contexts, the words before and the end of the question, and no lengths.
    """

    grid: tuple[float, ...]
    """Fractions that lead to the positions."""
    in_dist_le_0_92_bits: float | None
    n_in_dist: int
    """Rows with a gain."""
    ood_ge_0_96_bits: float | None
    n_ood: int

    @property
    def gap_bits(self) -> float | None:
        """The end less what is before it."""
        if self.ood_ge_0_96_bits is None or self.in_dist_le_0_92_bits is None:
            return None
        return self.ood_ge_0_96_bits - self.in_dist_le_0_92_bits


@dataclass(frozen=True)
class HeadMismatch:
    """What parts the tuned lens' last row from the model's own head, where it has no map."""

    kl_bits: float | None
    """KL(lens || model)."""
    temperature: float | None
    """The divisor of its logits that comes nearest to the head."""
    kl_after_temperature_bits: float | None
    kl_after_softcap_bits: float | None
    """After the softcap that the model declares, which no temperature can undo."""
    reason: str | None
    """Why there are no numbers; None where there are."""


@dataclass(frozen=True)
class TunedAudit:
    """The audit of one tuned lens on the primary prompt."""

    rotation_vs_temperature: RotationVsTemperature | None
    reason: str | None
    """Why there is none; None where there is one."""
    hint: str | None
    """See `RotationVsTemperature.hint`; None without one."""
    positions: PositionsAudit
    head_mismatch: HeadMismatch

    @property
    def calibration_only(self) -> bool | None:
        """Whether the tuned lens is little more than a temperature; None where it cannot be said."""
        return None if self.rotation_vs_temperature is None else self.rotation_vs_temperature.calibration_only


def tuned_audit(
    headline: Curve,
    tuned: Curve,
    variants: TunedVariantsRecord | None,
    positions: Sequence[PositionRow],
    last_layer: LastLayerRecord | None,
) -> TunedAudit:
    """Put together what was measured of a tuned lens.

    Args:
        headline: the primary prompt under the headline lens, another than the tuned one.
        tuned: the same under the tuned lens.
        variants: the same under its parts; None where they were not decoded.
        positions: the prompt along its grid of positions, as `position_rows` gives it.
        last_layer: the headline lens' last layer beside the model's output.
    """
    comparison = None if variants is None else rotation_vs_temperature(variant_rows(headline, tuned, variants))
    return TunedAudit(
        rotation_vs_temperature=comparison,
        reason=NO_VARIANTS if comparison is None else None,
        hint=None if comparison is None else comparison.hint(headline.lens),
        positions=positions_audit(positions),
        head_mismatch=head_mismatch(headline, tuned, last_layer),
    )


def gain_bits(baseline: Reading, other: Reading) -> float | None:
    """By how much the other lens is nearer to the model; None without both divergences."""
    return None if baseline.kl_bits is None or other.kl_bits is None else baseline.kl_bits - other.kl_bits


def rank_shift(baseline: Reading, other: Reading) -> int | None:
    """By how many places the answer stands higher under the other lens; None without both ranks."""
    return (
        None if baseline.answer_rank is None or other.answer_rank is None else baseline.answer_rank - other.answer_rank
    )


# The lens in parts


def variant_rows(headline: Curve, tuned: Curve, variants: TunedVariantsRecord) -> tuple[VariantRow, ...]:
    """Every layer from 1 on that the headline lens has."""
    return tuple(
        VariantRow(
            row["layer"],
            _reading(row),
            _reading(tuned.at(row["layer"])),
            _part(variants.rotation_only, row["layer"]),
            _part(variants.temperature_only, row["layer"]),
        )
        for row in headline.rows
        if row["layer"] > 0
    )


def rotation_vs_temperature(rows: Sequence[VariantRow]) -> RotationVsTemperature:
    """Quartiles and medians over layers; a layer that lacks a value is left out of what needs it."""
    whole = _known(gain_bits(row.baseline, row.tuned) for row in rows)
    return RotationVsTemperature(
        rotation_bits=quartiles(_known(gain_bits(row.baseline, row.rotation_only) for row in rows)),
        temperature_bits=quartiles(_known(gain_bits(row.baseline, row.temperature_only) for row in rows)),
        interaction_bits=median(_known(row.interaction_bits for row in rows)),
        tuned_bits=median(whole),
        n_layers=len(whole),
    )


def _part(part: TunedVariantRecord, layer: int) -> Reading:
    return Reading(_at(part.kl_to_final_bits, layer), _at(part.answer_rank, layer))


def _at(by_layer: Sequence[_N | None], layer: int) -> _N | None:
    return by_layer[layer] if layer < len(by_layer) else None


# Along the prompt


def position_rows(
    rows: pl.DataFrame, primary: PromptKey, headline: str, n_layers: int, last_index: int
) -> tuple[PositionRow, ...]:
    """The primary prompt at the places of the position window, layers 1 to n_layers, by layer and then position.

    Places without a row of the headline lens are left out, and a tuned headline lens has none beside itself.

    Args:
        headline: the lens that the tuned one is compared with.
        last_index: the prompt's last position, counted from 0.
    """
    grid = position_grid(last_index)
    seen = primary.rows_of(rows).filter(
        pl.col("position").is_in(list(grid)),
        pl.col("lens").is_in([headline, "tuned"]),
    )
    columns = ("lens", "layer", "position", "kl_to_final_bits", "answer_rank", "entropy_bits")
    placed = {(row["lens"], row["layer"], row["position"]): row for row in seen.select(columns).iter_rows(named=True)}
    places = [(layer, position) for layer in range(1, n_layers + 1) for position in grid]
    return tuple(
        PositionRow(
            grid[position],
            position,
            layer,
            _reading(placed[headline, layer, position]),
            _reading(placed.get(("tuned", layer, position)) if headline != "tuned" else None),
        )
        for layer, position in places
        if (headline, layer, position) in placed
    )


def positions_audit(rows: Sequence[PositionRow]) -> PositionsAudit:
    """Medians over the positions before the end and over those at it."""
    early = _known(gain_bits(row.baseline, row.tuned) for row in rows if row.fraction <= EARLY)
    end = _known(gain_bits(row.baseline, row.tuned) for row in rows if row.fraction >= END)
    return PositionsAudit(
        grid=tuple(dict.fromkeys(row.fraction for row in rows)),
        in_dist_le_0_92_bits=median(early),
        n_in_dist=len(early),
        ood_ge_0_96_bits=median(end),
        n_ood=len(end),
    )


# The last row


def head_mismatch(headline: Curve, tuned: Curve, last_layer: LastLayerRecord | None) -> HeadMismatch:
    """The headline lens' last layer, as far as the tuned lens' is the same row.

    It is by construction, since the last layer has no translator; a lens that was fitted elsewhere may have one.
    """
    baseline, other = headline.at(headline.n_layers), tuned.at(tuned.n_layers)
    if other is None:
        return _no_mismatch("the tuned lens has no last row")
    kl = other["kl_to_final_bits"]
    if last_layer is None:
        return _no_mismatch("the last layer was not measured", kl)
    if baseline is None or not all(_same(baseline[name], other[name]) for name in ("kl_to_final_bits", "entropy_bits")):
        return _no_mismatch("the tuned lens' last row is not the headline lens' one, which alone was searched", kl)
    refined = last_layer.kl_after_temp_refined_bits is not None
    return HeadMismatch(
        kl_bits=kl,
        temperature=last_layer.temp_est_refined if refined else last_layer.temp_est,
        kl_after_temperature_bits=(last_layer.kl_after_temp_refined_bits if refined else last_layer.kl_after_temp_bits),
        kl_after_softcap_bits=last_layer.kl_after_softcap_bits,
        reason=None,
    )


def _no_mismatch(reason: str, kl_bits: float | None = None) -> HeadMismatch:
    return HeadMismatch(kl_bits, None, None, None, reason)


def _same(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and math.isclose(a, b, rel_tol=_SAME, abs_tol=_SAME)


def _reading(row: Row | None) -> Reading:
    return Reading() if row is None else Reading(row["kl_to_final_bits"], row["answer_rank"], row["entropy_bits"])


def _known(values: Iterator[float | None]) -> list[float]:
    return [value for value in values if value is not None]
