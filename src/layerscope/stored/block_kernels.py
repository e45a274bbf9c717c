"""Loops that decode the blocks of llama.cpp's files, compiled for the processor at hand.

Each takes `raw`, uint8 `[block, byte]`, and fills `out`, float32 `[block, float]`. The order of the float32 operations
is that of the package `gguf` (`gguf.quants`, after ggml-quants.c), so that no bit differs: nothing here may be
reordered, and no product fused with a sum. Layouts are those of ggml-common.h. The loops run without the interpreter's
lock. All of it is in one file, since kept code is only made anew where its own file has changed.
"""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from layerscope.compiling import Array, compiled

_compiled = compiled()


_LOW, _TWO, _SIX, _ONE = np.int32(15), np.int32(3), np.int32(63), np.int32(1)
"""Masks of four bits, of two, of six and of one."""
_FOUR, _MIDDLE, _TOP = np.int32(4), np.int32(32), np.int32(48)
"""Half the range of three bits and of six; a mask of the upper two of six."""
_MAGNITUDE, _INFINITE, _NORMAL = np.uint32(0x7FFF), np.uint32(0x7C00), np.uint32(0x0400)
_SIGN, _INFINITE_32, _REBIASED = np.uint32(0x8000), np.uint32(0x7F800000), np.uint32(112 << 23)
_SMALLEST_HALF = np.float32(2.0**-24)


@intrinsic
@no_type_check
def _float_of_bits(context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.uint32), generate


@_compiled
@no_type_check
def _half(block: Array, at: int) -> np.float32:
    """The float16 in two bytes, the lower one first."""
    bits = np.uint32(block[at]) | np.uint32(np.uint32(block[at + 1]) << np.uint32(8))
    magnitude, sign = np.uint32(bits & _MAGNITUDE), np.uint32(np.uint32(bits & _SIGN) << np.uint32(16))
    if magnitude >= _INFINITE:
        return _float_of_bits(np.uint32(sign | _INFINITE_32 | np.uint32(magnitude << np.uint32(13))))
    if magnitude >= _NORMAL:
        return _float_of_bits(np.uint32(sign | np.uint32(np.uint32(magnitude << np.uint32(13)) + _REBIASED)))
    small = np.float32(magnitude) * _SMALLEST_HALF
    return -small if sign else small


@_compiled
@no_type_check
def decode_q4_0(raw: Array, out: Array) -> None:
    """Scale; 32 codes less 8: the low halves of 16 bytes, then the high ones."""
    for b in range(raw.shape[0]):
        floats, d, codes = out[b], _half(raw[b], 0), raw[b, 2:]
        for j in range(len(codes)):
            q = np.int32(codes[j])
            floats[j] = d * np.float32(np.int32((q & _LOW) - np.int32(8)))
            floats[j + 16] = d * np.float32(np.int32((q >> np.int32(4)) - np.int32(8)))


@_compiled
@no_type_check
def decode_q4_1(raw: Array, out: Array) -> None:
    """Scale and minimum; 32 codes: the low halves of 16 bytes, then the high ones."""
    for b in range(raw.shape[0]):
        floats, d, m, codes = out[b], _half(raw[b], 0), _half(raw[b], 2), raw[b, 4:]
        for j in range(len(codes)):
            q = np.int32(codes[j])
            floats[j] = d * np.float32(np.int32(q & _LOW)) + m
            floats[j + 16] = d * np.float32(np.int32(q >> np.int32(4))) + m


@_compiled
@no_type_check
def _fifth_bits(block: Array, at: int) -> np.uint32:
    """Four bytes as one number: the highest bits of 32 codes."""
    bits = np.uint32(0)
    for j in range(4):
        bits = np.uint32(bits | np.uint32(np.uint32(block[at + j]) << np.uint32(8 * j)))
    return bits


@_compiled
@no_type_check
def _fives(codes: Array, high: np.uint32, j: int) -> tuple[np.int32, np.int32]:
    """Codes `j` and `j + 16` of five bits, from the halves of 16 bytes and a number of their highest bits."""
    q = np.int32(codes[j])
    first = np.int32(np.uint32(np.uint32(high >> np.uint32(j)) & np.uint32(1)) << np.uint32(4))
    second = np.int32(np.uint32(np.uint32(high >> np.uint32(j + 16)) & np.uint32(1)) << np.uint32(4))
    return np.int32((q & _LOW) | first), np.int32((q >> np.int32(4)) | second)


@_compiled
@no_type_check
def decode_q5_0(raw: Array, out: Array) -> None:
    """Scale, highest bits; 32 codes of five bits less 16."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d, high, codes = _half(block, 0), _fifth_bits(block, 2), block[6:]
        for j in range(16):
            first, second = _fives(codes, high, j)
            floats[j] = d * np.float32(np.int32(first - np.int32(16)))
            floats[j + 16] = d * np.float32(np.int32(second - np.int32(16)))


@_compiled
@no_type_check
def decode_q5_1(raw: Array, out: Array) -> None:
    """Scale and minimum, highest bits; 32 codes of five bits."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d, m, high, codes = _half(block, 0), _half(block, 2), _fifth_bits(block, 4), block[8:]
        for j in range(16):
            first, second = _fives(codes, high, j)
            floats[j] = d * np.float32(first) + m
            floats[j + 16] = d * np.float32(second) + m


@_compiled
@no_type_check
def decode_q8_0(raw: Array, out: Array) -> None:
    """Scale; 32 signed bytes."""
    for b in range(raw.shape[0]):
        floats, d, codes = out[b], _half(raw[b], 0), raw[b, 2:].view(np.int8)
        for j in range(len(codes)):
            floats[j] = np.float32(np.int32(codes[j])) * d


@_compiled
@no_type_check
def _scale_and_minimum_q2_k(block: Array, s: int, d: np.float32, dmin: np.float32) -> tuple[np.float32, np.float32]:
    """Scale and minimum `s` of 16, times their own scales."""
    both = np.int32(block[s])
    return d * np.float32(np.int32(both & _LOW)), dmin * np.float32(np.int32(both >> np.int32(4)))


@_compiled
@no_type_check
def decode_q2_k(raw: Array, out: Array) -> None:
    """16 scales and minima of four bits; 256 codes of two bits; the scales' scale and the minima's.

    Of 128 floats, group g of 32 takes the pair of bits g of 32 bytes; a scale is for half a group.
    """
    for b in range(raw.shape[0]):
        d, dmin = _half(raw[b], 80), _half(raw[b], 82)
        for s in range(4):
            half, at = s // 2, 16 * (s % 2)
            codes, part, first = raw[b, 16 + 32 * half + at :], out[b, 128 * half + at :], 8 * half + s % 2
            d0, m0 = _scale_and_minimum_q2_k(raw[b], first, d, dmin)
            d1, m1 = _scale_and_minimum_q2_k(raw[b], first + 2, d, dmin)
            d2, m2 = _scale_and_minimum_q2_k(raw[b], first + 4, d, dmin)
            d3, m3 = _scale_and_minimum_q2_k(raw[b], first + 6, d, dmin)
            for j in range(16):
                q = np.int32(codes[j])
                part[j] = d0 * np.float32(np.int32(q & _TWO)) - m0
                part[j + 32] = d1 * np.float32(np.int32((q >> np.int32(2)) & _TWO)) - m1
                part[j + 64] = d2 * np.float32(np.int32((q >> np.int32(4)) & _TWO)) - m2
                part[j + 96] = d3 * np.float32(np.int32(q >> np.int32(6))) - m3


@_compiled
@no_type_check
def _scale_q3_k(block: Array, s: int) -> np.float32:
    """Scale `s` of 16: its low half and its high pair, less 32."""
    low = np.int32(block[96 + s % 8]) >> np.int32(s // 8 * 4)
    high = np.int32(block[104 + s % 4]) >> np.int32(s // 4 * 2)
    return np.float32(np.int32(((low & _LOW) | ((high & _TWO) << np.int32(4))) - np.int32(32)))


@_compiled
@no_type_check
def decode_q3_k(raw: Array, out: Array) -> None:
    """Highest bits of 256 codes, their low pairs; 16 scales of six bits; the scales' scale; less 4 without a high bit.

    Of 128 floats, group g of 32 takes the pair of bits g of 32 bytes; a scale is for half a group.
    """
    for b in range(raw.shape[0]):
        d = _half(raw[b], 108)
        for s in range(4):
            half, at = s // 2, 16 * (s % 2)
            codes, tops, part = raw[b, 32 + 32 * half + at :], raw[b, at:], out[b, 128 * half + at :]
            first, top = 8 * half + s % 2, np.int32(4 * half)
            d0, d1 = d * _scale_q3_k(raw[b], first), d * _scale_q3_k(raw[b], first + 2)
            d2, d3 = d * _scale_q3_k(raw[b], first + 4), d * _scale_q3_k(raw[b], first + 6)
            for j in range(16):
                q = np.int32(codes[j])
                t = np.int32(np.int32(tops[j]) >> top)
                part[j] = d0 * np.float32(np.int32((q & _TWO) + ((t & _ONE) << np.int32(2)) - _FOUR))
                part[j + 32] = d1 * np.float32(
                    np.int32(((q >> np.int32(2)) & _TWO) + ((t << np.int32(1)) & _FOUR) - _FOUR)
                )
                part[j + 64] = d2 * np.float32(np.int32(((q >> np.int32(4)) & _TWO) + (t & _FOUR) - _FOUR))
                part[j + 96] = d3 * np.float32(np.int32((q >> np.int32(6)) + ((t >> np.int32(1)) & _FOUR) - _FOUR))


@_compiled
@no_type_check
def _scale_and_minimum(block: Array, s: int) -> tuple[np.int32, np.int32]:
    """Of eight scales and eight minima, of six bits each in twelve bytes, those of group `s`; Q4_K and Q5_K."""
    if s < 4:
        return np.int32(np.int32(block[4 + s]) & _SIX), np.int32(np.int32(block[8 + s]) & _SIX)
    low, scale, minimum = np.int32(block[8 + s]), np.int32(block[s]), np.int32(block[4 + s])
    return (
        np.int32((low & _LOW) | ((scale >> np.int32(2)) & _TOP)),
        np.int32((low >> np.int32(4)) | ((minimum >> np.int32(2)) & _TOP)),
    )


@_compiled
@no_type_check
def decode_q4_k(raw: Array, out: Array) -> None:
    """The scales' scale and the minima's; 8 scales and minima; 256 codes of four bits."""
    for b in range(raw.shape[0]):
        d, dmin = _half(raw[b], 0), _half(raw[b], 2)
        for s in range(0, 8, 2):  # the low halves of 32 bytes, then the high ones
            scale, minimum = _scale_and_minimum(raw[b], s)
            d0, m0 = d * np.float32(scale), dmin * np.float32(minimum)
            scale, minimum = _scale_and_minimum(raw[b], s + 1)
            d1, m1 = d * np.float32(scale), dmin * np.float32(minimum)
            codes, part = raw[b, 16 + 16 * s : 48 + 16 * s], out[b, 32 * s :]
            for j in range(len(codes)):
                q = np.int32(codes[j])
                part[j] = d0 * np.float32(np.int32(q & _LOW)) - m0
                part[j + 32] = d1 * np.float32(np.int32(q >> np.int32(4))) - m1


@_compiled
@no_type_check
def decode_q5_k(raw: Array, out: Array) -> None:
    """As Q4_K, with the highest bits of the codes, one of each byte for a group, between scales and codes."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d, dmin, tops = _half(block, 0), _half(block, 2), block[16:]
        for s in range(8):
            scale, minimum = _scale_and_minimum(block, s)
            dl, ml = d * np.float32(scale), dmin * np.float32(minimum)
            codes, part, shift = block[48 + 32 * (s // 2) :], floats[32 * s :], np.int32(s % 2 * 4)
            top = np.int32(s)
            for j in range(32):
                high = np.int32(((np.int32(tops[j]) >> top) & _ONE) << np.int32(4))
                part[j] = dl * np.float32(np.int32(((np.int32(codes[j]) >> shift) & _LOW) | high)) - ml


@_compiled
@no_type_check
def decode_q6_k(raw: Array, out: Array) -> None:
    """Low halves of 256 codes, their high pairs; 16 signed scales; the scales' scale; codes count less 32.

    Of 128 floats, groups of 32 take the low halves of 64 bytes, then their high ones; a scale is for half a group.
    """
    for b in range(raw.shape[0]):
        d, scales = _half(raw[b], 208), raw[b, 192:208].view(np.int8)
        for s in range(4):
            half, at = s // 2, 16 * (s % 2)
            codes, tops = raw[b, 64 * half + at :], raw[b, 128 + 32 * half + at :]
            part, first = out[b, 128 * half + at :], 8 * half + s % 2
            d0, d1 = d * np.float32(np.int32(scales[first])), d * np.float32(np.int32(scales[first + 2]))
            d2, d3 = d * np.float32(np.int32(scales[first + 4])), d * np.float32(np.int32(scales[first + 6]))
            for j in range(16):
                p, q, t = np.int32(codes[j]), np.int32(codes[j + 32]), np.int32(tops[j])
                part[j] = d0 * np.float32(np.int32(((p & _LOW) | ((t << np.int32(4)) & _TOP)) - _MIDDLE))
                part[j + 32] = d1 * np.float32(np.int32(((q & _LOW) | ((t << np.int32(2)) & _TOP)) - _MIDDLE))
                part[j + 64] = d2 * np.float32(np.int32(((p >> np.int32(4)) | (t & _TOP)) - _MIDDLE))
                part[j + 96] = d3 * np.float32(np.int32(((q >> np.int32(4)) | ((t >> np.int32(2)) & _TOP)) - _MIDDLE))


_UNEVEN = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the codes of IQ4_NL and IQ4_XS stand for."""
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""What the codes of MXFP4 stand for, twice."""


@_compiled
@no_type_check
def _by_halves(codes: Array, values: Array, d: np.float32, floats: Array) -> None:
    """32 floats from 16 bytes by a table: their low halves, then the high ones."""
    for j in range(16):
        q = np.int32(codes[j])
        floats[j] = d * values[q & _LOW]
        floats[j + 16] = d * values[q >> np.int32(4)]


@_compiled
@no_type_check
def decode_iq4_nl(raw: Array, out: Array) -> None:
    """Scale; 32 codes of an uneven table."""
    for b in range(raw.shape[0]):
        _by_halves(raw[b, 2:], _UNEVEN, _half(raw[b], 0), out[b])


@_compiled
@no_type_check
def decode_iq4_xs(raw: Array, out: Array) -> None:
    """The scales' scale; high pairs and low halves of 8 scales less 32; 256 codes of the same table."""
    for b in range(raw.shape[0]):
        d, highs = _half(raw[b], 0), np.int32(raw[b, 2]) | np.int32(np.int32(raw[b, 3]) << np.int32(8))
        for s in range(8):
            low = (np.int32(raw[b, 4 + s // 2]) >> np.int32(s % 2 * 4)) & _LOW
            scale = np.int32((low | (((highs >> np.int32(2 * s)) & _TWO) << np.int32(4))) - np.int32(32))
            _by_halves(raw[b, 8 + 16 * s :], _UNEVEN, d * np.float32(scale), out[b, 32 * s :])


@_compiled
@no_type_check
def decode_mxfp4(raw: Array, out: Array) -> None:
    """A power of two, here halved; 32 codes of floats of four bits, here doubled."""
    for b in range(raw.shape[0]):
        e = np.uint32(raw[b, 0])
        bits = (
            np.uint32(np.uint32(0x00200000) << e) if e < 2 else np.uint32(np.uint32(e - np.uint32(1)) << np.uint32(23))
        )
        _by_halves(raw[b, 1:], _E2M1_DOUBLED, _float_of_bits(bits), out[b])
