"""Loops that turn bytes into floats by a table and scale them group by group, compiled for the processor at hand.

A table gives for each byte the bits of one float32, or of two side by side, so that the same loop reads codes of eight
bits and of four: `bits` is then the memory of `floats`, seen as integers of 32 bits or of 64. Operations are float32
and exactly those that are written. The loops run without the interpreter's lock. All of it is in one file, since kept
code is only made anew where its own file has changed.
"""

from typing import no_type_check

import numpy as np

from layerscope.compiling import Array, compiled

_compiled = compiled()

_AT_ONCE = 16
"""Rows whose words are turned together: their 32-bit words are a cache line."""
_LOW, _FOUR = np.uint32(15), np.uint32(4)
"""A mask of four bits; their number."""


@_compiled
@no_type_check
def look_up(codes: Array, table: Array, bits: Array) -> None:
    """`bits[g, j] = table[codes[g, j]]`, an integer of 32 bits or of 64 for each byte."""
    for g in range(codes.shape[0]):
        some, places = codes[g], bits[g]
        for j in range(len(some)):
            places[j] = table[some[j]]


@_compiled
@no_type_check
def centred(codes: Array, table: Array, bits: Array, floats: Array, scale: Array, zero: Array) -> None:
    """Rows of `floats`, whose bits are `bits`: `(looked up - zero[g]) scale[g]`."""
    for g in range(codes.shape[0]):
        some, places = codes[g], bits[g]
        for j in range(len(some)):
            places[j] = table[some[j]]
        group, s, z = floats[g], scale[g], zero[g]
        for j in range(len(group)):
            group[j] = (group[j] - z) * s


@_compiled
@no_type_check
def scaled(codes: Array, table: Array, bits: Array, floats: Array, scale: Array, bias: Array) -> None:
    """Rows of `floats`, whose bits are `bits`: `looked up scale[g] + bias[g]`."""
    for g in range(codes.shape[0]):
        some, places = codes[g], bits[g]
        for j in range(len(some)):
            places[j] = table[some[j]]
        group, s, b = floats[g], scale[g], bias[g]
        for j in range(len(group)):
            group[j] = group[j] * s + b


@_compiled
@no_type_check
def by_column(floats: Array, scale: Array, zero: Array, group_of: Array) -> None:
    """In place, `(floats[r, j] - zero[r, g]) scale[r, g]` with g the group of column j."""
    for r in range(floats.shape[0]):
        row, s, z = floats[r], scale[r], zero[r]
        for j in range(len(group_of)):
            g = group_of[j]
            row[j] = (row[j] - z[g]) * s[g]


# ---- from packed words to floats at once


@_compiled
@no_type_check
def _in_groups(codes: Array, table: Array, bits: Array, floats: Array, scale: Array, zero: Array, group: int) -> None:
    """A row: `(looked up - zero[g]) scale[g]`, g being that of `group` neighbours; the last one may be short."""
    for j in range(len(bits)):
        bits[j] = table[codes[j]]
    for g in range(len(scale)):
        some, s, z = floats[g * group : (g + 1) * group], scale[g], zero[g]
        for j in range(len(some)):
            some[j] = (some[j] - z) * s


@_compiled
@no_type_check
def _in_order(codes: Array, values: Array, floats: Array, scale: Array, zero: Array, first: Array, made: Array) -> None:
    """A row of codes of four bits, the low half of a byte first: `(values[code] - zero[g]) scale[g]`.

    What the 16 codes stand for in each group is computed before, into `made`, where a column's group begins at `first`.
    Places are unsigned, since one that may be negative costs a comparison each time.
    """
    for g in range(len(scale)):
        s, z = scale[g], zero[g]
        for k in range(16):
            made[np.uint32(16 * g + k)] = (values[k] - z) * s
    for j in range(len(floats) // 2):
        both = np.uint32(codes[j])
        floats[2 * j] = made[first[2 * j] + np.uint32(both & _LOW)]
        floats[2 * j + 1] = made[first[2 * j + 1] + np.uint32(both >> _FOUR)]
    if len(floats) % 2:
        last = len(floats) - 1
        floats[last] = made[first[last] + np.uint32(np.uint32(codes[last // 2]) & _LOW)]


@_compiled
@no_type_check
def in_order(codes: Array, values: Array, floats: Array, scale: Array, zero: Array, first: Array) -> None:
    """Rows of codes of four bits: `(values[code] - zero[r, g]) scale[r, g]`, g the group that begins at `first`."""
    made = np.empty(16 * scale.shape[1], np.float32)
    for r in range(codes.shape[0]):
        _in_order(codes[r], values, floats[r], scale[r], zero[r], first, made)


@_compiled
@no_type_check
def _turn(words: Array, rows: Array, turned: Array) -> None:
    """`turned[k, i] = words[i, rows[k]]`; of neighbours, as many as are turned at once, in half the time."""
    first, n = rows[0], len(rows)
    together = n == _AT_ONCE
    for k in range(n):
        together &= rows[k] == first + k
    for i in range(words.shape[0]):
        if together:
            some = words[i, first : first + _AT_ONCE]
            for k in range(_AT_ONCE):
                turned[k, i] = some[k]
        else:
            some = words[i]
            for k in range(n):
                turned[k, i] = some[rows[k]]


@_compiled
@no_type_check
def of_words_along_inputs(
    words: Array,
    zeros: Array,
    scale: Array,
    rows: Array,
    zero_bits: Array,
    table: Array,
    bits: Array,
    floats: Array,
    group: int,
    values: Array,
    first: Array,
) -> None:
    """GPTQ's `[words, d_out]`: some rows, as `_in_groups` or, where there is a `first`, as `_in_order`.

    `zeros` are bytes `[groups, bytes]` with zero points of `zero_bits[0]` bits, the lowest first, to which
    `zero_bits[1]` is added; `scale` is that of the rows, `[groups, rows]`.
    """
    n_groups, width, more = scale.shape[0], zero_bits[0], zero_bits[1]
    largest = (np.int64(1) << width) - np.int64(1)
    turned = np.empty((_AT_ONCE, words.shape[0] + 16), np.int32)  # rows of another length than a power of two
    codes = turned.view(np.uint8)
    s, z = np.empty((_AT_ONCE, n_groups), np.float32), np.empty((_AT_ONCE, n_groups), np.float32)
    made = np.empty(16 * n_groups, np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        n = min(_AT_ONCE, len(rows) - start)
        _turn(words, rows[start : start + n], turned)
        for g in range(n_groups):
            for k in range(n):
                at = rows[start + k] * width
                z[k, g] = np.float32(((np.int64(zeros[g, at >> 3]) >> (at & 7)) + more) & largest)
                s[k, g] = scale[g, start + k]
        for k in range(n):
            if len(first):
                _in_order(codes[k], values, floats[start + k], s[k], z[k], first, made)
            else:
                _in_groups(codes[k], table, bits[start + k], floats[start + k], s[k], z[k], group)


@_compiled
@no_type_check
def of_words_along_outputs(
    words: Array, zeros: Array, scale: Array, rows: Array, shift: Array, floats: Array, group: int
) -> None:
    """AWQ's `[d_in, words]`: some rows as `(code - zero[g]) scale[g]`, g being that of `group` neighbours.

    The code of the i-th of a word's eight outputs begins at bit `shift[i]`, and so does its zero point, in
    `[groups, words]`; `scale` is that of the rows, `[groups, rows]`. The words of 64 outputs are turned together.
    """
    turned, last = np.empty((8, group), np.int32), words.shape[1] - 1
    for g in range(scale.shape[0]):
        there = np.int64(-1)
        for r in range(len(rows)):
            row = rows[r]
            if row >> 6 != there:
                there = row >> 6
                for j in range(group):
                    some = words[g * group + j]
                    for k in range(8):
                        turned[k, j] = some[min(8 * there + k, last)]
            some, s, begins = turned[(row >> 3) & 7], scale[g, r], shift[row & 7]
            z = np.float32(np.uint32(zeros[g, row >> 3] >> begins) & _LOW)
            out = floats[r, g * group : (g + 1) * group]
            for j in range(group):
                out[j] = (np.float32(np.int32(np.int32(some[j] >> begins) & np.int32(15))) - z) * s


@_compiled
@no_type_check
def in_blocks(
    codes: Array,
    table: Array,
    bits: Array,
    floats: Array,
    rows: Array,
    block: int,
    absmax: Array,
    coded: Array,
    values: Array,
    largest: Array,
    nested_block: int,
    offset: np.float32,
) -> None:
    """Rows of a matrix whose blocks go on from row to row: `looked up absmax[b]`, b being the block of an entry.

    Where `absmax` is empty, it is `values[coded[b]] largest[b // nested_block] + offset`.
    """
    for r in range(codes.shape[0]):
        some, places, row = codes[r], bits[r], floats[r]
        for j in range(len(places)):
            places[j] = table[some[j]]
        begins = rows[r] * len(row)
        b, start = begins // block, 0
        while start < len(row):
            s = absmax[b] if len(absmax) else values[coded[b]] * largest[b // nested_block] + offset
            b += 1
            stop = min(b * block - begins, len(row))
            entries = row[start:stop]
            for j in range(len(entries)):
                entries[j] *= s
            start = stop


@_compiled
@no_type_check
def scaled_by_codes(
    codes: Array, table: Array, bits: Array, floats: Array, scale: Array, scale_of: Array, group: int
) -> None:
    """Rows of `floats`: `looked up scale_of[scale[r, g]]`, g being that of `group` neighbours."""
    for r in range(codes.shape[0]):
        some, places, row, coded = codes[r], bits[r], floats[r], scale[r]
        for j in range(len(places)):
            places[j] = table[some[j]]
        for g in range(len(coded)):
            entries, s = row[g * group : (g + 1) * group], scale_of[coded[g]]
            for j in range(len(entries)):
                entries[j] *= s
