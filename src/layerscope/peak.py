"""How fast this machine multiplies float32 matrices: the ceiling that timings are told beside."""

import time

import torch

from layerscope.machine import keep, kept, machine
from layerscope.products import fastest, product

_ROWS, _OUT, _IN = 1024, 2048, 2048
_AT_LEAST_S = 0.15
"""Long enough for a processor to leave its lowest clock, and for one of several tries to be undisturbed."""
_NAME = "peak-gflops"


def peak_gflops(at_least: float = 0.0) -> float:
    """Billions of float32 operations a second in a large product, by torch's threads together.

    Measured once on a machine, with its torch and number of threads, and kept in the user's cache folder; measured
    again where it is found to be less than what was just reached (`at_least`), since the machine was busy then. What
    was reached stands where that is more still.
    """
    key = f"{machine()} · {fastest()}"
    before = kept(_NAME).get(key, 0.0)
    if before and before >= at_least:
        return before
    found = max(_measured(), at_least, before)
    keep(_NAME, key, found)
    return found


def _measured() -> float:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(_ROWS, _IN, generator=generator), torch.randn(_OUT, _IN, generator=generator)
    best, begun = float("inf"), time.perf_counter()
    with torch.inference_mode():
        while best == float("inf") or time.perf_counter() - begun < _AT_LEAST_S:
            start = time.perf_counter()
            product(rows, weight)
            best = min(best, time.perf_counter() - start)
    return 2 * _ROWS * _OUT * _IN / best / 1e9
