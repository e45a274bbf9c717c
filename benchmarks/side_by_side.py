"""One task in several programs: the same numbers of every prompt, layer and position, and what each side took."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agreement import Agreement, compare
from capitals import task_of
from machine import product_peak, read_rate, warm_pages
from setting import SIDES, Setting, markdown, seconds, verdict
from shapes import Shape, floor
from task import TIE, TOP_K, Readings, found
from watched import watch

NAME, TITLE, MINUTES = "peers", "One probe, side by side", 6
MOST_OF_FASTEST, MOST_OVER_FLOOR, MOST_MEMORY = 0.60, 1.25, 0.10
"""Targets: wall time over the fastest peer's, wall time over the floor, memory over the smallest peer's."""
REFERENCE, OURS = "plain_loop", "layerscope_probe"
TITLES = {
    REFERENCE: "plain Transformers loop",
    "transformer_lens_lens": "TransformerLens `logit_lens`",
    "nnterp_lens": "nnterp on nnsight",
    "disk_offload": "the loop, accelerate disk offload",
    OURS: "**layerscope**",
}
ELSEWHERE = ("transformer_lens_lens", "nnterp_lens")
"""Sides that want the environment of the other libraries."""


@dataclass(frozen=True)
class Side:
    """What one side cost in its fastest run, and how far its numbers are from the plain loop's."""

    name: str
    """A key of `TITLES`."""
    wall_s: float
    """From the start of the interpreter to the last number, what only the comparison needs taken off."""
    forward_s: float
    sweep_s: float
    """From residuals to numbers."""
    peak_gb: float
    """Largest anonymous memory, in 1e9 bytes."""
    agreement: Agreement
    notes: dict[str, int | float | str]


@dataclass(frozen=True)
class SideBySide:
    """All sides on one task, one after the other on one machine."""

    model: str
    prompts: int
    tokens: int
    """Of each prompt."""
    rows: int
    """Of prompt, layer and position."""
    sides: tuple[Side, ...]
    sweep_gflop: float
    """That every side has to multiply from residuals to numbers."""
    peak_gflops: float
    floor_s: float
    """Of the whole task: weights read once, or its arithmetic, whichever takes longer."""
    repeat: int


def measure(setting: Setting) -> SideBySide:
    """Every side in a fresh process; raises Disagreement, and then no time is known to anyone."""
    shape = Shape("qwen3-1.7b", blocks=2 if setting.quick else None)
    prompts, tokens = (3, 16) if setting.quick else (12, 16)
    checkpoint = shape.prepare()
    warm_pages(checkpoint)
    peak, rate = product_peak(setting), read_rate(checkpoint, setting)
    names = [name for name in TITLES if setting.peers_python is not None or name not in ELSEWHERE]
    best: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        task = task_of(checkpoint, folder, prompts=prompts, n_tokens=tokens, threads=setting.threads)
        task.write(folder / "task.json")
        for _ in range(setting.repeat):
            reference: Readings | None = None
            for name in names:
                side, readings = _run(name, folder, setting, reference)
                reference = reference or readings
                if name not in best or side.wall_s < best[name].wall_s:
                    best[name] = side
        peak = max(peak, product_peak(setting))
    counted = shape.arithmetic()
    rows = counted.depths * prompts * tokens
    sweep, forward = counted.sweep_flop(rows), counted.forward_flop([tokens] * prompts)
    least = floor(counted.bytes_read, sweep + forward, rate.warm, peak)
    sides = tuple(best.values())
    return SideBySide(shape.title, prompts, tokens, rows, sides, sweep / 1e9, peak, least.seconds, setting.repeat)


def _run(name: str, folder: Path, setting: Setting, reference: Readings | None) -> tuple[Side, Readings]:
    """One side; the first one is compared with itself."""
    python = setting.peers_python if name in ELSEWHERE and setting.peers_python else sys.executable
    out = folder / f"{name}.json"
    print(f"  {name}", file=sys.stderr, flush=True)
    seen = watch([python, SIDES / f"{name}.py", folder / "task.json", out], setting)
    spent, readings = found(out)
    if readings is None:
        raise ValueError(f"expected readings of the side {name}, found none")
    agreement = compare(reference or readings, readings)
    wall = spent.finished - seen.began - spent.uncharged_s
    peak = seen.peak_gb(spent.finished)
    return Side(name, wall, spent.forward_s, spent.sweep_s, peak, agreement, spent.notes), readings


def table(result: SideBySide) -> str:
    """Ratios first, then what each side took, then what the values agreed to."""
    header = ["", "wall, s", "start and load", "forward", "to numbers", "share of peak", "memory, GB", "wall / ours"]
    ours = next(side for side in result.sides if side.name == OURS)
    rows = []
    for side in result.sides:
        start = side.wall_s - side.forward_s - side.sweep_s
        share = result.sweep_gflop / side.sweep_s / result.peak_gflops
        times = [seconds(value) for value in (side.wall_s, start, side.forward_s, side.sweep_s)]
        rows.append(
            [TITLES[side.name], *times, f"{share:.0%}", f"{side.peak_gb:.2f}", f"{side.wall_s / ours.wall_s:.2f}"]
        )
    return "\n\n".join([*_ratios(result, ours), markdown(header, rows), _task(result), _agreed(result)])


def _ratios(result: SideBySide, ours: Side) -> list[str]:
    peers = [side for side in result.sides if side.name != OURS]
    fastest = min(peers, key=lambda side: side.wall_s)
    smallest = min(peers, key=lambda side: side.peak_gb)
    lines = [
        f"wall time over the fastest peer's ({TITLES[fastest.name]}): "
        f"{verdict(ours.wall_s / fastest.wall_s, MOST_OF_FASTEST)}",
        f"wall time over the floor of {seconds(result.floor_s)} s: "
        f"{verdict(ours.wall_s / result.floor_s, MOST_OVER_FLOOR)}",
        f"anonymous memory over the smallest peer's ({TITLES[smallest.name]}): "
        f"{verdict(ours.peak_gb / smallest.peak_gb, MOST_MEMORY)}",
    ]
    return ["\n".join(f"* {line}" for line in lines)]


def _task(result: SideBySide) -> str:
    chunks = [side.notes["chunk"] for side in result.sides if "chunk" in side.notes]
    lens = (
        f" TransformerLens' call, at the chunk size found fastest ({chunks[0]} rows), gives entropy and rank alone."
        if chunks
        else ""
    )
    return (
        f"Task: Qwen3 shape {result.model}, random weights in bfloat16, all computed in float32; {result.prompts} "
        f"prompts of {result.tokens} tokens, {result.rows:,} rows of (prompt, layer, position), each with the logit "
        f"lens's entropy, KL to the final layer, rank of the answer and top {TOP_K}. layerscope gives all its other "
        f"columns besides.{lens} Each side in a fresh process with its weights in the page cache; "
        f"{'one run' if result.repeat == 1 else f'the fastest of {result.repeat} runs'}. Peak: "
        f"{result.peak_gflops:.0f} GFLOP/s, the best 4096 x 4096 float32 product before and after. Memory: the most "
        f"anonymous memory seen; pages of mapped files are not counted."
    )


def _agreed(result: SideBySide) -> str:
    parts = []
    for side in result.sides:
        if side.name == REFERENCE:
            continue
        found = side.agreement
        words = [f"entropy within {found.entropy_bits:.0e} bits"]
        if found.kl_bits is not None:
            words.append(f"KL within {found.kl_bits:.0e}")
        if found.ranks is not None:
            words.append(f"{found.ranks_equal:,} of {found.ranks:,} ranks equal")
        if found.tops_equal is not None:
            words.append(f"top {TOP_K} the same in {found.tops_equal:,} rows")
        parts.append(f"{TITLES[side.name]}: {', '.join(words)}")
    return (
        "Agreement with the plain loop, checked before any time was told: "
        + "; ".join(parts)
        + f". What is not equal is off by no more than there are logits within {TIE:.0e} of one another."
    )
