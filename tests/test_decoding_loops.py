"""Loops that decode from what is stored at once give the same bits as torch's operations one after the other."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerscope.model.tiles import Tiles
from layerscope.stored import codes
from layerscope.stored.bitsandbytes import BitsAndBytesWeight, QuantState
from layerscope.stored.codes import CodedWeight
from layerscope.stored.float4 import Float4Weight
from layerscope.stored.integers import PackQuantizedWeight
from layerscope.stored.transposed import AwqWeight, GptqWeight
from properties import examples


class Drawn:
    """Random tensors of a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator)

    def bytes(self, *shape: int) -> Tensor:
        return self.integers(256, *shape).to(torch.uint8)

    def words(self, rows: int, n: int) -> Tensor:
        return self.bytes(rows, 4 * n).view(torch.int32)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype)


Draw = Callable[[st.SearchStrategy], Any]
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


def gptq(draw: Draw) -> GptqWeight:
    bits, tens = draw(st.sampled_from([4, 8])), Drawn(draw(st.integers(0, 99)))
    d_out, words, group = 8 * draw(st.integers(1, 6)), draw(st.integers(1, 20)), draw(st.integers(1, 40))
    d_in = words * 32 // bits
    groups = -(-d_in // group)
    ordered = tens.integers(groups, d_in) if bits == 4 and draw(st.booleans()) else None
    zeros, scales = tens.words(groups, d_out * bits // 32), tens.floats(groups, d_out, dtype=draw(DTYPES))
    return GptqWeight(tens.words(words, d_out), zeros, scales, bits, group, ordered, draw(st.booleans()))


def awq(draw: Draw) -> AwqWeight:
    tens, words, groups = Drawn(draw(st.integers(0, 99))), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    d_in = groups * draw(st.integers(1, 40))
    scales = tens.floats(groups, 8 * words, dtype=draw(DTYPES))
    return AwqWeight(tens.words(d_in, words), tens.words(groups, words), scales)


def pack_quantized(draw: Draw) -> PackQuantizedWeight:
    tens, d_out, d_in = Drawn(draw(st.integers(0, 99))), draw(st.integers(1, 20)), draw(st.integers(1, 90))
    groups = draw(st.integers(1, 5))
    zero = tens.words(-(-d_out // 8), groups) if draw(st.booleans()) else None
    scale = tens.floats(d_out, groups, dtype=draw(DTYPES))
    ordered = tens.integers(groups, d_in).int()
    return PackQuantizedWeight(tens.words(d_out, -(-d_in // 8)), scale, d_in, 4, zero, ordered)


def bitsandbytes(draw: Draw) -> BitsAndBytesWeight:
    tens, d_out, d_in = Drawn(draw(st.integers(0, 99))), draw(st.integers(1, 20)), 2 * draw(st.integers(1, 80))
    block, nested_block = draw(st.integers(1, 70)), draw(st.integers(1, 9))
    blocks = -(-d_out * d_in // block)
    packed, values = tens.bytes(d_out * d_in // 2, 1), tens.floats(16)
    if draw(st.booleans()):
        state = QuantState("NF4", (d_out, d_in), block, nested_block, draw(st.floats(-1, 1, width=32)))
        nested = tens.floats(-(-blocks // nested_block)), tens.floats(256)
        return BitsAndBytesWeight(packed, tens.bytes(blocks), values, state, *nested)
    state = QuantState("FP4", (d_out, d_in), block, None, 0.0)
    return BitsAndBytesWeight(packed, tens.floats(blocks), values, state)


def float4(draw: Draw) -> Float4Weight:
    tens, d_out, groups = Drawn(draw(st.integers(0, 99))), draw(st.integers(1, 20)), draw(st.integers(1, 9))
    group, own = draw(st.sampled_from([2, 16, 32])), tens.floats(1)
    packed = tens.bytes(d_out, groups * group // 2)
    if draw(st.booleans()):
        return Float4Weight(packed, tens.bytes(d_out, groups), "MXFP4")
    scale = tens.bytes(d_out, groups).view(torch.float8_e4m3fn)
    kinds = [{}, {"multiplied_by": own}, {"divided_by": own}]
    return Float4Weight(packed, scale, "NVFP4", **draw(st.sampled_from(kinds)))


@pytest.mark.parametrize("form", [gptq, awq, pack_quantized, bitsandbytes, float4])
@given(st.data())
@examples(60)
def test_loops_give_the_bits_that_torch_gives(form: Callable[[Draw], CodedWeight], data: st.DataObject):
    weight = form(data.draw)
    some = st.integers(0, len(weight) - 1)
    start, last = sorted(data.draw(st.tuples(some, some)))
    ids = torch.tensor(data.draw(st.lists(some, min_size=1, max_size=40)))
    for rows in slice(start, last + 1), ids:
        due, found = (torch.full((len(ids) + len(weight), weight.shape[1]), torch.nan) for _ in range(2))
        with pytest.MonkeyPatch.context() as without:
            without.setattr(codes, "loops", lambda name: None)
            read(weight, rows, due)
        with pytest.MonkeyPatch.context() as alone:  # what is not decoded at once is decoded by nothing
            alone.setattr(CodedWeight, "_by_table", None)
            read(weight, rows, found)
        same = torch.equal(due.view(torch.int32), found.view(torch.int32))
        assert same or torch.equal(due.nan_to_num(nan=9.0), found.nan_to_num(nan=9.0))


def read(weight: CodedWeight, rows: slice | Tensor, room: Tensor) -> None:
    weight.rows(rows.start, rows.stop, room) if isinstance(rows, slice) else weight.taken(rows, room)


def test_threads_that_share_tiles_of_codes_give_the_product():
    tens, d_out, d_in = Drawn(0), 600, 4096  # of several tiles
    weight = GptqWeight(
        tens.words(d_in // 8, d_out), tens.words(32, d_out // 8), tens.floats(32, d_out).half(), 4, 128, None
    )
    rows, tiles = tens.floats(5, d_in), Tiles(torch.float32, torch.device("cpu"))
    due = rows.double() @ weight.whole(torch.float32, torch.device("cpu")).double().T
    threads = []

    def noted(start: int, stop: int, out: Tensor) -> Tensor:
        threads.append(threading.current_thread().name)
        return GptqWeight.rows(weight, start, stop, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight, "rows", noted)
        for shared in False, True:
            found = torch.full((5, d_out), torch.nan)
            with tiles.uncached() if shared else nullcontext():
                tiles.multiply(rows, weight, found)
            torch.testing.assert_close(found.double(), due, rtol=1e-4, atol=1e-2)
            by_workers = [name.startswith("layerscope-worker") for name in threads]
            assert len(threads) > 1 and all(by_workers) == any(by_workers) == shared
            threads.clear()
