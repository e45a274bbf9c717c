"""The statistics of a tile on a CUDA device: each row's logits stay in the cache while one program reads them.

Written in Triton, which comes with PyTorch for CUDA. What is kept, and what it means, is `TorchStatistics`'; only
the two passes over a tile's logits are others. Terms are float32 and sums float64, as there, in another order.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from layerscope.readout.vocabulary import TorchStatistics

BLOCK = 1024
"""Logits that a program reads at once."""


class TritonStatistics(TorchStatistics):
    """The same statistics, from two kernels in place of some sixteen passes."""

    def _update_ranks(
        self,
        linear: Float[Tensor, "rows tile"],
        start: int,
        twins: Bool[Tensor, "answers tile"],
        buffer: Float[Tensor, "rows tile"],
    ) -> None:
        """As `TorchStatistics` does it; the buffer is left alone."""
        n_rows, width = linear.shape
        tile_peak = torch.empty_like(self.peak)
        _count[(n_rows,)](
            linear,
            linear.stride(0),
            width,
            self._threshold,
            self._judged,
            twins.view(torch.uint8) if len(twins) else linear,
            self.above,
            tile_peak,
            HAS_TWINS=len(twins) > 0,
            BLOCK=BLOCK,
        )
        self._top.update(linear, start, tile_peak)

    def _update_sums(
        self,
        logits: Float[Tensor, "rows tile"],
        own_final: Float[Tensor, "positions tile"],
        final_shifted: Float[Tensor, "positions tile"],
        bias: Float[Tensor, " tile"] | None,
        shifted: Float[Tensor, "rows tile"],
        weight: Float[Tensor, "rows tile"],
    ) -> None:
        """As `TorchStatistics` does it; logits and the two buffers are left alone."""
        n_rows, width = logits.shape
        _add_up[(n_rows,)](
            logits,
            logits.stride(0),
            own_final,
            own_final.stride(0),
            final_shifted,
            final_shifted.stride(0),
            logits if bias is None else bias,
            width,
            len(own_final),
            self.peak,
            self.low,
            self.sums,
            HAS_BIAS=bias is not None,
            N_SUMS=self.sums.shape[1],
            BLOCK=BLOCK,
        )


@triton.jit
@no_type_check  # kernels are another language
def _exp(x):
    """`exp` of float32 at or below zero, to two units in the last place; 0 below -87.

    The hardware's own is an approximation whose error grows with the argument. Source: Cephes, `expf`.
    """
    n = tl.floor(x * 1.44269504088896341 + 0.5)
    r = x - n * 0.693359375 + n * 2.12194440e-4
    p = 1.9875691500e-4
    p = p * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    y = p * r * r + r + 1.0
    power = ((tl.maximum(n, -126.0).to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -87.0, 0.0, y * power) + (x - x)  # so that NaN and infinity give NaN


@triton.jit
@no_type_check  # kernels are another language
def _count(
    logits,
    stride,
    width,
    threshold,
    judged,
    twins,
    above,
    tile_peak,
    HAS_TWINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: how many logits are above its threshold, and the largest of them; NaN if there is one."""
    row = tl.program_id(0)
    limit = tl.load(threshold + row)
    lane = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], dtype=tl.int32)
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    broken = tl.zeros([BLOCK], dtype=tl.int32)
    answer = tl.load(judged + row)
    for start in range(0, width, BLOCK):
        at = start + lane
        inside = at < width
        z = tl.load(logits + row * stride + at, mask=inside, other=float("-inf"))
        larger = (z > limit) & inside
        if HAS_TWINS:
            larger = larger & (tl.load(twins + answer * width + at, mask=inside, other=1) == 0)
        count += larger.to(tl.int32)
        broken += (z != z).to(tl.int32)
        best = tl.maximum(best, z)
    peak = tl.where(tl.sum(broken, 0) > 0, float("nan"), tl.max(best, 0))
    tl.store(tile_peak + row, peak)
    tl.store(above + row, tl.load(above + row) + tl.sum(count, 0))


@triton.jit
@no_type_check  # kernels are another language
def _add_up(
    logits,
    stride,
    final,
    final_stride,
    shifted,
    shifted_stride,
    bias,
    width,
    positions,
    peak,
    low,
    sums,
    HAS_BIAS: tl.constexpr,
    N_SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: first its extremes and the sums of its logits, then those of their exponentials."""
    row = tl.program_id(0)
    position = row % positions
    # In the order of `VocabularyStatistics.sums`.
    tail, tail_moment, difference = sums + row * N_SUMS, sums + row * N_SUMS + 1, sums + row * N_SUMS + 2
    sum_z, sum_zz, sum_z_final = sums + row * N_SUMS + 3, sums + row * N_SUMS + 4, sums + row * N_SUMS + 5
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    place = tl.zeros([BLOCK], dtype=tl.int32)
    least = tl.full([BLOCK], float("inf"), dtype=tl.float32)
    broken = tl.zeros([BLOCK], dtype=tl.int32)
    total = tl.zeros([BLOCK], dtype=tl.float64)
    squares = tl.zeros([BLOCK], dtype=tl.float64)
    shared = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, width, BLOCK):
        at = start + lane
        inside = at < width
        z = tl.load(logits + row * stride + at, mask=inside, other=float("-inf"))
        f = tl.load(final + position * final_stride + at, mask=inside, other=0.0)
        broken += (z != z).to(tl.int32)
        place = tl.where(z > best, at, place)
        best = tl.maximum(best, z)
        least = tl.minimum(least, tl.where(inside, z, float("inf")))
        own = tl.where(inside, z, 0.0)
        if HAS_BIAS:
            own = own - tl.load(bias + at, mask=inside, other=0.0)
        total += own.to(tl.float64)
        squares += (own * own).to(tl.float64)
        shared += (own * f).to(tl.float64)
    tl.store(sum_z, tl.load(sum_z) + tl.sum(total, 0))
    tl.store(sum_zz, tl.load(sum_zz) + tl.sum(squares, 0))
    tl.store(sum_z_final, tl.load(sum_z_final) + tl.sum(shared, 0))
    any_broken = tl.sum(broken, 0) > 0
    smallest = tl.where(any_broken, float("nan"), tl.min(least, 0))
    before = tl.load(low + row)
    # The comparison is false where either is NaN, which then stays.
    tl.store(low + row, tl.where((smallest >= before) | (before != before), before, smallest))

    largest = tl.max(best, 0)
    column = tl.min(tl.where(best == largest, place, width), 0)
    largest = tl.where(any_broken, float("nan"), largest)
    old = tl.load(peak + row)
    rises = (largest <= old) == 0  # a NaN must reach the sums, not hide behind a comparison
    new = tl.where(rises, largest, old)
    first = (old == float("-inf")) | (old == float("inf"))
    rise = tl.where(first, 0.0, new.to(tl.float64) - old.to(tl.float64))
    shrink = tl.where(first, 0.0, tl.exp(-rise))
    t, m, d = tl.load(tail), tl.load(tail_moment), tl.load(difference)
    m = tl.where(rises, shrink * (m - rise * (t + 1.0)), m)
    d = tl.where(rises, shrink * (d - rise * (t + 1.0)), d)
    t = tl.where(rises, shrink * (t + 1.0), t)

    weights = tl.zeros([BLOCK], dtype=tl.float64)
    moments = tl.zeros([BLOCK], dtype=tl.float64)
    gaps = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, width, BLOCK):
        at = start + lane
        inside = at < width
        x = tl.load(logits + row * stride + at, mask=inside, other=0.0) - new
        q = tl.load(shifted + position * shifted_stride + at, mask=inside, other=0.0)
        w = _exp(x)
        gaps += tl.where(inside, w * (x - q), 0.0).to(tl.float64)
        moments += tl.where(inside, w * x, 0.0).to(tl.float64)
        own_term = rises & (at == column)
        weights += tl.where(inside & (own_term == 0), w, 0.0).to(tl.float64)
    tl.store(peak + row, new)
    tl.store(tail, t + tl.sum(weights, 0))
    tl.store(tail_moment, m + tl.sum(moments, 0))
    tl.store(difference, d + tl.sum(gaps, 0))
