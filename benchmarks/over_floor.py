"""Time over the floor: the forward at several lengths against what its bytes and its arithmetic cannot do without."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from capitals import task_of
from machine import product_peak, read_rate, warm_pages
from setting import SIDES, Setting, markdown, seconds
from shapes import Shape, floor
from task import found
from watched import watch

NAME, TITLE, MINUTES = "floor", "Time over the floor", 3
MOST_OVER_FLOOR = 1.25


@dataclass(frozen=True)
class Forward:
    """One prompt through one model, in a fresh process, its weights in the page cache."""

    model: str
    tokens: int
    seconds: float
    reading_s: float
    """That the bytes of all weights take at the rate of plain reads."""
    computing_s: float
    """That the arithmetic takes at the peak of float32 products."""

    @property
    def floor_s(self) -> float:
        """The larger of the two."""
        return max(self.reading_s, self.computing_s)


@dataclass(frozen=True)
class OverFloor:
    """Forwards of several shapes and lengths, and the ceilings they are held against."""

    forwards: tuple[Forward, ...]
    peak_gflops: float
    warm_gb_s: float
    cold_gb_s: float


def _cases(quick: bool) -> list[tuple[Shape, list[int]]]:
    if quick:
        return [(Shape("qwen3-1.7b", blocks=2), [16, 100])]
    return [
        (Shape("qwen3-1.7b"), [16, 200, 2000]),
        (Shape("qwen3-8b", sparse=True), [16, 200]),
        (Shape("qwen3-8b", blocks=4, sparse=True), [2000]),
    ]


def measure(setting: Setting) -> OverFloor:
    """Each forward once."""
    peak = product_peak(setting)
    forwards: list[Forward] = []
    rates = []
    for shape, lengths in _cases(setting.quick):
        checkpoint = shape.prepare()
        rates.append(read_rate(checkpoint, setting))
        warm_pages(checkpoint)
        counted = shape.arithmetic()
        for tokens in lengths:
            print(f"  {shape.title}, {tokens} tokens", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                task = task_of(checkpoint, folder, prompts=1, n_tokens=tokens, threads=setting.threads)
                task.write(folder / "task.json")
                words = [sys.executable, SIDES / "layerscope_forward.py", folder / "task.json", folder / "out.json"]
                watch(words, setting)
                spent, _ = found(folder / "out.json")
            peak = max(peak, product_peak(setting))
            # One row goes through the head: its weight is read, and the product is lost in the blocks'.
            least = floor(counted.bytes_read, counted.forward_flop([tokens]), rates[-1].warm, peak)
            forwards.append(Forward(shape.title, tokens, spent.forward_s, least.reading_s, least.computing_s))
    return OverFloor(tuple(forwards), peak, max(rate.warm for rate in rates), min(rate.cold for rate in rates))


def table(result: OverFloor) -> str:
    """One line a forward."""
    header = ["model", "tokens", "forward, s", "reading alone", "arithmetic alone", "time / floor"]
    rows = [
        [
            f.model,
            f"{f.tokens:,}",
            *map(seconds, (f.seconds, f.reading_s, f.computing_s)),
            f"{f.seconds / f.floor_s:.2f}",
        ]
        for f in result.forwards
    ]
    met = sum(f.seconds <= MOST_OVER_FLOOR * f.floor_s for f in result.forwards)
    return "\n\n".join(
        [
            f"* at most {MOST_OVER_FLOOR} times the floor: {met} of {len(result.forwards)}",
            markdown(header, rows),
            f"The forward of one prompt, weights in the page cache, everything in float32. The floor is the larger of "
            f"two: bytes of blocks and head at the rate of plain reads by one thread ({result.warm_gb_s:.1f} GB/s from "
            f"the page cache; {result.cold_gb_s:.1f} after the kernel was asked to drop the pages), and the blocks' "
            f"arithmetic at the peak of float32 products ({result.peak_gflops:.0f} GFLOP/s), both in the same run. "
            f"Sparse models have holes for weights, which no disk has to bring: one that takes more than half of the "
            f"free memory is read past the page cache, and a real one's disk would add its time. The last residual "
            f"gave the model's own logits each time.",
        ]
    )
