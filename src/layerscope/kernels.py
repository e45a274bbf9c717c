"""Loops over tiles of logits, compiled for the processor at hand: what a sweep does beside its products.

A row of a tile stays in the nearest cache while everything is taken from it. Logits and their products are float32,
exponentials and what they weigh float64, and so are all sums. The loops
run without the interpreter's lock, so that threads share a sweep; compiled code is kept on disk where there is a place
for it. All of it is in one file, since kept code is only made anew where its own file has changed.
"""

import math
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from layerscope.compiling import Array, compiled

_REORDER = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be taken in any order. Nothing is assumed of NaN and infinities, which stay what they are."""


def _compiled(reorder: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`reorder` says that a function's sums may be taken in any order; products may be fused with sums anyway."""
    return compiled(_REORDER if reorder else {"contract"})


_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""ln 2 in two parts, of which the first has so few digits that its multiples are exact (Cody & Waite 1980)."""
_SMALLEST_EXPONENT = np.float32(-87.3)
"""Below, an exponential is less than 1.2e-38, the smallest normal number in float32, and counts as zero."""
_C5, _C4, _C3, _C2, _C1, _C0 = (
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_SIGN, _BIAS, _MANTISSA = np.int32(31), np.int32(127), np.int32(23)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LOWEST, _HIGHEST = np.int32(-(2**31)), np.int32(2**31 - 1)


@intrinsic
@no_type_check
def _float_of_bits(context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@_compiled()
@no_type_check
def exponential_32(x: np.float32) -> float:
    """exp(x) of a float32 that is not positive, off by less than 2^-24 of itself; 0 below -87.3.

    Argument reduction and polynomial of the Cephes library (Moshier 1992), `expf`.
    """
    above = max(x, _SMALLEST_EXPONENT)
    n = math.floor(above * _LOG2_E + np.float32(0.5))
    rest = above - n * _LN2_HIGH
    rest = rest - n * _LN2_LOW
    p = _C5
    p = p * rest + _C4
    p = p * rest + _C3
    p = p * rest + _C2
    p = p * rest + _C1
    p = p * rest + _C0
    mantissa = p * rest * rest + rest + np.float32(1.0)
    power = _float_of_bits(np.int32((np.int32(n) + _BIAS) << _MANTISSA))
    result: float = mantissa * power if x >= _SMALLEST_EXPONENT else 0.0
    return result


@_compiled()
@no_type_check
def _ordered(bits: np.int32) -> np.int32:
    """An integer that is ordered as the float32 with these bits, and the other way round.

    The largest of integers is found by vectors, that of floats is not, since NaN may be among them. Here a NaN is
    beyond infinity, on either side, and so is seen.
    """
    return bits ^ ((bits >> _SIGN) & _MAGNITUDE)


@_compiled()
@no_type_check
def _extremes(row: Array) -> tuple[np.int32, np.int32]:
    """The `ordered` largest and smallest of a row; beyond those of the infinities where there is a NaN."""
    bits = row.view(np.int32)
    largest, smallest = _LOWEST, _HIGHEST
    for j in range(len(bits)):
        b = _ordered(bits[j])
        largest, smallest = max(largest, b), min(smallest, b)
    return largest, smallest


@_compiled(reorder=True)
@no_type_check
def _count_above(row: Array, threshold: np.float32) -> np.int32:
    """How many numbers of a row are larger."""
    count = np.int32(0)
    for j in range(len(row)):
        count += np.int32(row[j] > threshold)
    return count


@_compiled(reorder=True)
@no_type_check
def _products(row: Array, other: Array) -> tuple[float, float, float]:
    """Sum of a row, of its squares, and of its products with another; terms float32, sums float64."""
    total, squares, shared = 0.0, 0.0, 0.0
    for j in range(len(row)):
        z = row[j]
        total += np.float64(z)
        squares += np.float64(z * z)
        shared += np.float64(z * other[j])
    return total, squares, shared


@_compiled(reorder=True)
@no_type_check
def _products_without_bias(row: Array, other: Array, bias: Array) -> tuple[float, float, float]:
    """The same of a row whose bias is taken off; `other` has none."""
    total, squares, shared = 0.0, 0.0, 0.0
    for j in range(len(row)):
        z = row[j] - bias[j]
        total += np.float64(z)
        squares += np.float64(z * z)
        shared += np.float64(z * other[j])
    return total, squares, shared


@_compiled(reorder=True)
@no_type_check
def _exponential_sums(row: Array, final: Array, peak: np.float32) -> tuple[float, float, float]:
    """With x = z - peak, the sums of e^x, of e^x x and of e^x (x - final)."""
    weight, moment, difference = 0.0, 0.0, 0.0
    for j in range(len(row)):
        x = row[j] - peak
        e = exponential_32(x)
        weight += np.float64(e)
        moment += np.float64(e * x)
        difference += np.float64(e * (x - final[j]))
    return weight, moment, difference


TAIL, MOMENT, DIFFERENCE, TOTAL, SQUARES, SHARED = range(6)
N_SUMS = 6
"""What is summed in each row; see `VocabularyStatistics` for what they mean."""
_PIECE = 64
"""Candidates for the largest logits are looked for in pieces of so many, of which most hold none."""


@_compiled()
@no_type_check
def _ahead(value: np.float32, token_id: int, other: np.float32, other_id: int) -> bool:
    """Whether a logit is better than another: larger, or equal with the smaller id."""
    return bool(value > other or (value == other and token_id < other_id))


@_compiled()
@no_type_check
def _select(values: Array, ids: Array, n: int, k: int) -> None:
    """Bring the best k of the first n entries to the front, the worst of them last (Hoare's selection, 1961)."""
    low, high, at = 0, n - 1, k - 1
    while low < high:
        value, token_id = values[at], ids[at]
        i, j = low, high
        while i <= j:
            while _ahead(values[i], ids[i], value, token_id):
                i += 1
            while _ahead(value, token_id, values[j], ids[j]):
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                ids[i], ids[j] = ids[j], ids[i]
                i += 1
                j -= 1
        if j < at:
            low = i
        if i > at:
            high = j


@_compiled()
@no_type_check
def _largest(bits: Array, start: int, stop: int) -> np.int32:
    """The `_ordered` largest of a piece of a row, of which these are the bits."""
    largest = _LOWEST
    for j in range(start, stop):
        largest = max(largest, _ordered(bits[j]))
    return largest


@_compiled()
@no_type_check
def _keep_largest(
    row: Array, start: int, values: Array, ids: Array, filled: int, threshold: np.float32
) -> tuple[int, np.float32]:
    """Keep the largest logits of a row and their ids; how many entries are filled then, and what is too small now.

    There is room for twice as many as are wanted, k. When it is full the best k are brought to the front, and from
    then on only what is larger than the k-th is taken. Of equal logits the one with the smaller id is better: tiles
    come in the order of their ids, so an equal logit that comes later is none the worse for being passed over.
    """
    bits, k = row.view(np.int32), len(values) // 2
    for first in range(0, len(row), _PIECE):
        stop = min(first + _PIECE, len(row))
        if not _float_of_bits(_ordered(_largest(bits, first, stop))) > threshold:
            continue
        for j in range(first, stop):
            if row[j] > threshold:
                values[filled], ids[filled] = row[j], start + j
                filled += 1
                if filled == len(values):
                    _select(values, ids, filled, k)
                    filled, threshold = k, values[k - 1]
    return filled, threshold


@_compiled()
@no_type_check
def _raise_peak(new: np.float32, peak: np.float32, sums: Array) -> None:
    """Make a row's sums relative to a new, larger peak; see `VocabularyStatistics`."""
    rise, shrink = 0.0, 0.0
    if not math.isinf(peak):
        rise = np.float64(new) - np.float64(peak)
        shrink = math.exp(-rise)
    with_old_peak = sums[TAIL] + 1.0
    sums[MOMENT] = shrink * (sums[MOMENT] - rise * with_old_peak)
    sums[TAIL] = shrink * with_old_peak
    sums[DIFFERENCE] = shrink * (sums[DIFFERENCE] - rise * with_old_peak)


@_compiled()
@no_type_check
def _add_exponentials(row: Array, final: Array, high: np.float32, peak: np.float32, sums: Array) -> None:
    """Take a row's part, whose largest logit is `high`, into the sums that are relative to its peak."""
    if not high > peak:
        e, em, ed = _exponential_sums(row, final, peak)
    else:
        _raise_peak(high, peak, sums)
        column = 0
        while row[column] != high:
            column += 1
        # The peak's own term is 1 and not part of the tail; it has no moment, and a difference of its own.
        e, em, ed = _exponential_sums(row[:column], final[:column], high)
        e_after, em_after, ed_after = _exponential_sums(row[column + 1 :], final[column + 1 :], high)
        e, em, ed = e + e_after, em + em_after, ed + ed_after - np.float64(final[column])
    sums[TAIL] += e
    sums[MOMENT] += em
    sums[DIFFERENCE] += ed


@_compiled()
@no_type_check
def count_and_keep(
    linear: Array,
    start: int,
    threshold: Array,
    judged: Array,
    twin_starts: Array,
    twin_columns: Array,
    above: Array,
    values: Array,
    ids: Array,
    filled: Array,
    least: Array,
) -> None:
    """Count logits above each row's threshold and keep the largest; on logits before the head's transform.

    Args:
        linear: `[row, id]`, of the ids from `start` on.
        threshold: `[row]`.
        judged: `[row]`, which answer is judged.
        twin_starts: where the columns of each answer's twins begin in `twin_columns`, and where the last ones end;
            they are not counted.
        above: `[row]`, the counts.
        values: `[row, 2 k]`, the largest so far, unordered.
        ids: of the values.
        filled: `[row]`, how many of them there are.
        least: `[row]`, what a logit must exceed to be among the largest k; -inf at first.
    """
    for r in range(linear.shape[0]):
        row = linear[r]
        filled[r], least[r] = _keep_largest(row, start, values[r], ids[r], filled[r], least[r])
        count = np.int64(_count_above(row, threshold[r]))
        for t in range(twin_starts[judged[r]], twin_starts[judged[r] + 1]):
            count -= np.int64(row[twin_columns[t]] > threshold[r])
        above[r] += count


@_compiled()
@no_type_check
def add_sums(
    logits: Array, own_final: Array, shifted_final: Array, bias: Array, peak: Array, low: Array, sums: Array
) -> None:
    """Take transformed logits into the sums of their rows.

    A row with a NaN or an infinity gets a NaN for its tail, and no sum of it means anything.

    Args:
        logits: `[row, id]`, rows being `[group, position]` flattened.
        own_final: `[position, id]`, the model's own without bias.
        shifted_final: the model's own relative to their reference, and floored.
        bias: `[id]`; empty where there is none.
        peak: `[row]`, the largest logit so far.
        low: `[row]`, the smallest.
        sums: `[row, sum]`, in the order of `TAIL` and those after it.
    """
    n_positions = own_final.shape[0]
    infinity = np.float32(np.inf)
    for r in range(logits.shape[0]):
        row, at = logits[r], r % n_positions
        largest, smallest = _extremes(row)
        high, least = _float_of_bits(_ordered(largest)), _float_of_bits(_ordered(smallest))
        if not (high < infinity and least > -infinity) or math.isnan(sums[r, TAIL]):
            sums[r, TAIL] = np.nan
            continue
        if len(bias) > 0:
            total, squares, shared = _products_without_bias(row, own_final[at], bias)
        else:
            total, squares, shared = _products(row, own_final[at])
        sums[r, TOTAL] += total
        sums[r, SQUARES] += squares
        sums[r, SHARED] += shared
        _add_exponentials(row, shifted_final[at], high, peak[r], sums[r])
        peak[r] = max(peak[r], high)
        low[r] = min(low[r], least)


_LN2_HIGH_64, _LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""ln 2 in two parts, of which the first ends in so many zeros that its multiples are exact."""
_LOG2_E_64, _LN2_64, _SQRT_2 = 1.4426950408889634, 0.6931471805599453, 1.4142135623730951
_SMALLEST_EXPONENT_64 = -708.0
"""Below, an exponential is less than 3.3e-308 and counts as zero."""
_BIAS_64, _MANTISSA_64 = np.int64(1023), np.int64(52)
_ONE_64, _FRACTION_64 = np.int64(1023 << 52), np.int64((1 << 52) - 1)
_TINY = 1e-300
"""Stands for a probability of zero under a logarithm that is multiplied by that zero."""


@intrinsic
@no_type_check
def _double_of_bits(context: Any, bits: Any) -> Any:
    """The float64 with these 64 bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic
@no_type_check
def _bits_of_double(context: Any, value: Any) -> Any:
    """The 64 bits of a float64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.IntType(64))

    return types.int64(types.float64), generate


@_compiled()
@no_type_check
def exponential_64(x: float) -> float:
    """exp(x) in float64 for x up to 700, to a few units in the last place; 0 below -708 (Taylor series to order 13)."""
    above = max(x, _SMALLEST_EXPONENT_64)
    n = math.floor(above * _LOG2_E_64 + 0.5)
    rest = above - n * _LN2_HIGH_64
    rest = rest - n * _LN2_LOW_64
    p = 1.0 / 6227020800.0
    p = p * rest + 1.0 / 479001600.0
    p = p * rest + 1.0 / 39916800.0
    p = p * rest + 1.0 / 3628800.0
    p = p * rest + 1.0 / 362880.0
    p = p * rest + 1.0 / 40320.0
    p = p * rest + 1.0 / 5040.0
    p = p * rest + 1.0 / 720.0
    p = p * rest + 1.0 / 120.0
    p = p * rest + 1.0 / 24.0
    p = p * rest + 1.0 / 6.0
    p = p * rest + 0.5
    p = p * rest * rest + rest + 1.0
    power = _double_of_bits((np.int64(np.int32(n)) + _BIAS_64) << _MANTISSA_64)
    return p * power if x >= _SMALLEST_EXPONENT_64 else 0.0


@_compiled()
@no_type_check
def logarithm_64(x: float) -> float:
    """ln(x) in float64 of a normal positive number, to a few units in the last place (series of the area tangent)."""
    bits = _bits_of_double(x)
    exponent = np.int32((bits >> _MANTISSA_64) - _BIAS_64)
    mantissa = _double_of_bits((bits & _FRACTION_64) | _ONE_64)
    large = mantissa > _SQRT_2
    mantissa = 0.5 * mantissa if large else mantissa
    exponent = exponent + np.int32(1) if large else exponent
    t = (mantissa - 1.0) / (mantissa + 1.0)
    s = t * t
    p = 1.0 / 21.0
    p = p * s + 1.0 / 19.0
    p = p * s + 1.0 / 17.0
    p = p * s + 1.0 / 15.0
    p = p * s + 1.0 / 13.0
    p = p * s + 1.0 / 11.0
    p = p * s + 1.0 / 9.0
    p = p * s + 1.0 / 7.0
    p = p * s + 1.0 / 5.0
    p = p * s + 1.0 / 3.0
    result: float = np.float64(exponent) * _LN2_64 + 2.0 * (t + t * s * p)
    return result


@_compiled(reorder=True)
@no_type_check
def _pair_sums(
    p_row: Array, q_row: Array, p_lse: float, q_lse: float, floor: float
) -> tuple[float, float, float, float, float, float]:
    """The sums of `add_pairs` over a piece of two rows."""
    mass_p, mass_q, gap_p, gap_q, gap_mean, apart = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(len(p_row)):
        log_p, log_q = np.float64(p_row[j]) - p_lse, np.float64(q_row[j]) - q_lse
        p, q = exponential_64(log_p), exponential_64(log_q)
        log_mean = logarithm_64(max(0.5 * (p + q), _TINY))
        gap = max(log_p, floor) - max(log_q, floor)
        mass_p += p
        mass_q += q
        gap_p += p * gap
        gap_q -= q * gap
        gap_mean += p * (log_p - log_mean) + q * (log_q - log_mean)
        apart += abs(p - q)
    return mass_p, mass_q, gap_p, gap_q, gap_mean, apart


@_compiled()
@no_type_check
def add_pairs(
    p_rows: Array, q_rows: Array, p_lse: Array, q_lse: Array, floor: float, places: Array, sums: Array
) -> None:
    """Take logits of two distributions into the sums that tell them apart; all but the logits float64.

    Args:
        p_rows: `[row, id]`, transformed logits.
        q_rows: the other's.
        p_lse: `[place]`, log-sum-exp.
        q_lse: the other's.
        floor: log-probabilities count as no lower in the two directed divergences.
        places: `[row]`, where a row's sums are.
        sums: `[place, sum]`: of p, of q, of p (ln p - ln q), of q (ln q - ln p), of p ln (p / m) + q ln (q / m) with m
            the mean of p and q, and of |p - q|.
    """
    for r in range(p_rows.shape[0]):
        at = places[r]
        mass_p, mass_q, gap_p, gap_q, gap_mean, apart = _pair_sums(p_rows[r], q_rows[r], p_lse[at], q_lse[at], floor)
        sums[at, 0] += mass_p
        sums[at, 1] += mass_q
        sums[at, 2] += gap_p
        sums[at, 3] += gap_q
        sums[at, 4] += gap_mean
        sums[at, 5] += apart


@_compiled(reorder=True)
@no_type_check
def _tempered_sums(row: Array, floored_log_q: Array, peak: float, sharpness: float) -> tuple[float, float]:
    """The sums of `add_tempered` over a piece of a row."""
    mass, gap = 0.0, 0.0
    for j in range(len(row)):
        log_w = (np.float64(row[j]) - peak) * sharpness
        w = exponential_64(log_w)
        mass += w
        gap += w * (log_w - floored_log_q[j])
    return mass, gap


@_compiled()
@no_type_check
def add_tempered(rows: Array, floored_log_q: Array, peak: Array, sharpness: Array, places: Array, sums: Array) -> None:
    """With w = exp((z - peak) sharpness), take logits z into the sums of w and of w (ln w - ln q).

    Args:
        rows: `[row, id]`, rows being `[layer, prompt]` flattened.
        floored_log_q: `[prompt, id]`, float64.
        peak: `[place]`.
        sharpness: `[place]`, one over the temperature.
        places: `[row]`, where a row's sums are.
        sums: `[place, sum]`.
    """
    n_prompts = floored_log_q.shape[0]
    for r in range(rows.shape[0]):
        at = places[r]
        mass, gap = _tempered_sums(rows[r], floored_log_q[r % n_prompts], peak[at], sharpness[at])
        sums[at, 0] += mass
        sums[at, 1] += gap


@_compiled(reorder=True)
@no_type_check
def _mass(row: Array, peak: float) -> float:
    """The sum of exp(z - peak)."""
    mass = 0.0
    for j in range(len(row)):
        mass += exponential_64(np.float64(row[j]) - peak)
    return mass


@_compiled()
@no_type_check
def masses(rows: Array, peaks: Array, sums: Array) -> None:
    """The sum of exp(z - peak) over each row of logits; float64.

    Args:
        rows: `[row, id]`.
        peaks: `[row]`, the largest of each.
        sums: `[row]`, is filled.
    """
    for r in range(rows.shape[0]):
        sums[r] = _mass(rows[r], peaks[r])


@_compiled(reorder=True)
@no_type_check
def _gap(p_row: Array, q_row: Array, p_lse: float, q_lse: float, floor: float) -> float:
    """The sum of p (ln p - ln q), logs floored."""
    gap = 0.0
    for j in range(len(p_row)):
        log_p, log_q = np.float64(p_row[j]) - p_lse, np.float64(q_row[j]) - q_lse
        gap += exponential_64(log_p) * (max(log_p, floor) - max(log_q, floor))
    return gap


@_compiled()
@no_type_check
def gaps(p_rows: Array, q_rows: Array, p_lse: Array, q_lse: Array, floor: float, sums: Array) -> None:
    """The sum of p (ln p - ln q) over each row of two arrays of logits; all but the logits float64.

    Args:
        p_rows: `[row, id]`, transformed logits.
        q_rows: the other's.
        p_lse: `[row]`, log-sum-exp.
        q_lse: the other's.
        floor: log-probabilities count as no lower.
        sums: `[row]`, is filled.
    """
    for r in range(p_rows.shape[0]):
        sums[r] = _gap(p_rows[r], q_rows[r], p_lse[r], q_lse[r], floor)


def warm_up() -> None:
    """Compile everything, or load what was compiled, ahead of its use."""
    logits, rows, ints = np.zeros((1, 2), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64)
    count_and_keep(
        logits,
        0,
        rows,
        ints,
        np.zeros(2, np.int64),
        ints[:0],
        ints,
        logits.copy(),
        np.zeros((1, 2), np.int64),
        ints,
        rows,
    )
    add_sums(logits, logits, logits, rows[:0], rows, rows.copy(), np.zeros((1, N_SUMS)))
    one, place, wide = np.zeros(1), np.zeros(1, np.int64), np.zeros((1, 6))
    add_pairs(logits, logits, one, one, -1.0, place, wide)
    add_tempered(logits, np.zeros((1, 2)), one, one, place, wide)
    masses(logits, one, one.copy())
    gaps(logits, logits, one, one, -1.0, one.copy())
