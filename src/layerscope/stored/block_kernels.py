"""Loops that decode the blocks of llama.cpp's files, compiled for the processor at hand.

Each takes `raw`, uint8 `[block, byte]`, and fills `out`, float32 `[block, float]`. The order of the float32 operations
is that of the package `gguf` (`gguf.quants`, after ggml-quants.c), so that no bit differs: nothing here may be
reordered, and no product fused with a sum. Layouts are those of ggml-common.h. The loops run without the interpreter's
lock. All of it is in one file, since kept code is only made anew where its own file has changed.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Array = Any
"""A NumPy array; the compiler knows its type, and no other checker of types has a say in what it compiles."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called, with float32 operations exactly as they are written."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        result: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written, neither beside the code nor at the user's: compile each time
        result = numba.njit(**options)(function)
    return result


_LOW, _TWO, _SIX, _ONE = np.int32(15), np.int32(3), np.int32(63), np.int32(1)
"""Masks of four bits, of two, of six and of one."""
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
        block, floats = raw[b], out[b]
        d = _half(block, 0)
        for j in range(16):
            q = np.int32(block[2 + j])
            floats[j] = d * np.float32(np.int32((q & _LOW) - np.int32(8)))
            floats[j + 16] = d * np.float32(np.int32((q >> np.int32(4)) - np.int32(8)))


@_compiled
@no_type_check
def decode_q4_1(raw: Array, out: Array) -> None:
    """Scale and minimum; 32 codes: the low halves of 16 bytes, then the high ones."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d, m = _half(block, 0), _half(block, 2)
        for j in range(16):
            q = np.int32(block[4 + j])
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
        block, floats = raw[b], out[b]
        d = _half(block, 0)
        codes = block[2:].view(np.int8)
        for j in range(32):
            floats[j] = np.float32(np.int32(codes[j])) * d


@_compiled
@no_type_check
def decode_q2_k(raw: Array, out: Array) -> None:
    """16 scales and minima of four bits; 256 codes of two bits; the scales' scale and the minima's."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d, dmin = _half(block, 80), _half(block, 82)
        for s in range(16):  # 16 floats each: half s % 2 of a group of 32 bytes, whose pair of bits is s // 2 % 4
            scale = np.int32(block[s])
            dl, ml = d * np.float32(np.int32(scale & _LOW)), dmin * np.float32(np.int32(scale >> np.int32(4)))
            codes, part, shift = block[16 + 32 * (s // 8) + 16 * (s % 2) :], floats[16 * s :], np.int32(s // 2 % 4 * 2)
            for j in range(16):
                part[j] = dl * np.float32(np.int32((np.int32(codes[j]) >> shift) & _TWO)) - ml


@_compiled
@no_type_check
def decode_q3_k(raw: Array, out: Array) -> None:
    """Highest bits of 256 codes, their low pairs; 16 scales of six bits less 32; the scales' scale."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d = _half(block, 108)
        for s in range(16):
            low = np.int32(block[96 + s % 8]) >> np.int32(s // 8 * 4)
            high = np.int32(block[104 + s % 4]) >> np.int32(s // 4 * 2)
            dl = d * np.float32(np.int32(((low & _LOW) | ((high & _TWO) << np.int32(4))) - np.int32(32)))
            codes, part, shift = block[32 + 32 * (s // 8) + 16 * (s % 2) :], floats[16 * s :], np.int32(s // 2 % 4 * 2)
            tops, top = block[16 * (s % 2) :], np.int32(s // 2)
            for j in range(16):
                without = np.int32(((np.int32(tops[j]) >> top) & _ONE) ^ _ONE)
                q = np.int32((np.int32(codes[j]) >> shift) & _TWO) - np.int32(without << np.int32(2))
                part[j] = dl * np.float32(np.int32(q))


@_compiled
@no_type_check
def _scale_and_minimum(block: Array, s: int) -> tuple[np.int32, np.int32]:
    """Of eight scales and eight minima, of six bits each in twelve bytes, those of group `s`; Q4_K and Q5_K."""
    if s < 4:
        return np.int32(np.int32(block[4 + s]) & _SIX), np.int32(np.int32(block[8 + s]) & _SIX)
    low, scale, minimum = np.int32(block[8 + s]), np.int32(block[s]), np.int32(block[4 + s])
    top = np.int32(48)
    return (
        np.int32((low & _LOW) | ((scale >> np.int32(2)) & top)),
        np.int32((low >> np.int32(4)) | ((minimum >> np.int32(2)) & top)),
    )


@_compiled
@no_type_check
def decode_q4_k(raw: Array, out: Array) -> None:
    """The scales' scale and the minima's; 8 scales and minima; 256 codes of four bits."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d, dmin = _half(block, 0), _half(block, 2)
        for s in range(8):  # 32 floats each: the low or the high halves of 32 bytes
            scale, minimum = _scale_and_minimum(block, s)
            dl, ml = d * np.float32(scale), dmin * np.float32(minimum)
            codes, part, shift = block[16 + 32 * (s // 2) :], floats[32 * s :], np.int32(s % 2 * 4)
            for j in range(32):
                part[j] = dl * np.float32(np.int32((np.int32(codes[j]) >> shift) & _LOW)) - ml


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
    """Low halves of 256 codes, their high pairs; 16 signed scales; the scales' scale; codes count less 32."""
    for b in range(raw.shape[0]):
        block, floats = raw[b], out[b]
        d, scales = _half(block, 208), block[192:208].view(np.int8)
        for s in range(16):
            # 16 floats each. Of 128 floats, groups of 32 take low halves of 64 bytes, then their high ones.
            dl = d * np.float32(np.int32(scales[s]))
            half, group, at = s // 8, s // 2 % 4, 16 * (s % 2)
            codes, shift = block[64 * half + 32 * (group % 2) + at :], np.int32(group // 2 * 4)
            tops, top = block[128 + 32 * half + at :], np.int32(group * 2)
            part = floats[16 * s :]
            for j in range(16):
                high = np.int32(((np.int32(tops[j]) >> top) & _TWO) << np.int32(4))
                q = np.int32(((np.int32(codes[j]) >> shift) & _LOW) | high)
                part[j] = dl * np.float32(np.int32(q - np.int32(32)))


def interpreted() -> bool:
    """Whether the compiler was told to compile nothing (`NUMBA_DISABLE_JIT`), and the loops would take hours."""
    return bool(numba.config.DISABLE_JIT)
