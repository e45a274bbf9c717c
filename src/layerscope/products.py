"""The product of rows with a weight, by whichever of torch's two CPU libraries is fast on this processor."""

import time
from collections.abc import Callable
from functools import cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.machine import keep, kept, machine

Library: TypeAlias = Literal["mkl", "onednn"]

_NAME = "onednn-times-as-fast"
CLEARLY = 1.25
"""How many times as fast oneDNN has to be to be taken: a choice that hung on noise would change the last digits of a
run from one start to the next."""
_FEW = 256
_OUT, _IN, _ROWS = 512, 1024, 128
"""Sizes of the product that is timed: a tile of a weight, and a few dozen rows."""


def product(
    rows: Float[Tensor, "rows d_in"],
    weight: Float[Tensor, "d_out d_in"],
    out: Float[Tensor, "rows d_out"] | None = None,
) -> Float[Tensor, "rows d_out"]:
    """`rows @ weight.T` without a gradient, in the dtype of both.

    `out` is room for the result, which is used where the library can; what is returned holds it either way.

    In float32 on a CPU by the library that `fastest` names, which differ in the order in which they add and so in the
    last digits; elsewhere by torch's own choice.
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and fastest() == "onednn":
        return _onednn(rows, weight)
    return _torch(rows, weight) if out is None else torch.mm(rows, weight.T, out=out)


@cache
def fastest() -> Library:
    """The library for float32 products here: measured once on a machine, and kept in the user's cache folder.

    MKL, torch's own choice, multiplies with AVX2 on processors other than Intel's, whatever they have; oneDNN asks the
    processor. On an EPYC with AVX-512 that is 92 against 200 GFLOP/s a core. Where both ask, neither is clearly faster,
    and torch's choice stays.
    """
    if not _has_onednn():
        return "mkl"
    key = machine()
    times_as_fast = kept(_NAME).get(key)
    if times_as_fast is None:
        times_as_fast = _times_as_fast()
        keep(_NAME, key, times_as_fast)
    return "onednn" if times_as_fast > CLEARLY else "mkl"


def _times_as_fast() -> float:
    """How many times as fast oneDNN is."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_OUT, _IN, generator=generator)
    rows = torch.randn(_ROWS, _IN, generator=generator)
    with torch.inference_mode():
        # In turn, and each at its best: a moment in which the machine is busy with something else tells nothing.
        both = [(_seconds(_torch, rows, weight), _seconds(_onednn, rows, weight)) for _ in range(8)]
    by_torch, by_onednn = (min(times) for times in zip(*both, strict=True))
    ratio: float = by_torch / by_onednn
    return ratio


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _torch(rows: Tensor, weight: Tensor) -> Tensor:
    # With few rows MKL takes twice as long for this product as for its transpose.
    return torch.mm(weight, rows.T).T if len(rows) < _FEW else torch.mm(rows, weight.T)


def _onednn(rows: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return result


def _seconds(multiply: Callable[[Tensor, Tensor], Tensor], rows: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    multiply(rows, weight)
    return time.perf_counter() - start
