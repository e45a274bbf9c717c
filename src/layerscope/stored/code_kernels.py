"""Loops that turn bytes into floats by a table and scale them group by group, compiled for the processor at hand.

A table gives for each byte the bits of one float32, or of two side by side, so that the same loop reads codes of eight
bits and of four. Operations are float32 and exactly those that are written. The loops run without the interpreter's
lock. All of it is in one file, since kept code is only made anew where its own file has changed.
"""

from typing import no_type_check

import numpy as np

from layerscope.compiling import Array, compiled

_compiled = compiled()


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


@_compiled
@no_type_check
def half_bytes(words: Array, place: Array, shift: Array, codes: Array) -> None:
    """`codes[r, j]`, four bits of the 32 in `words[place[r], j]`, from `shift[r]` on."""
    for r in range(codes.shape[0]):
        some, row, s = words[place[r]], codes[r], shift[r]
        for j in range(len(row)):
            row[j] = np.uint8(np.uint32(some[j] >> s) & np.uint32(15))
