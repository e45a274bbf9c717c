"""What each statistic costs: where a probe's time goes, function by function, and what each further measure adds."""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from capitals import task_of
from machine import product_peak, warm_pages
from setting import SIDES, Setting, markdown, seconds
from shapes import Shape
from task import found
from watched import watch

NAME, TITLE, MINUTES = "statistics", "What each statistic costs", 3
LEAST_SHARE = 0.01
"""Functions below this share of the time are added up in one line."""
BASE = {"lenses": ["logit"], "positions": "last", "answer_form": "space", "second_forward": "off"}
FURTHER: dict[str, dict[str, object]] = {
    "logit lens, last positions": {},
    "… three lenses": {"lenses": ["logit", "next_norm", "raw"]},
    "… all positions": {"positions": "all"},
    "… top 100 in place of 20": {"top_k": 100},
    "… a second forward": {"second_forward": "always"},
    "… a twin with shuffled weights": {"control": "shuffled-weights"},
    "everything but the twin": {
        "lenses": ["logit", "next_norm", "raw"],
        "positions": "all",
        "second_forward": "always",
    },
}


@dataclass(frozen=True)
class Variant:
    """A probe with one measure more than the first."""

    name: str
    forward_s: float
    sweep_s: float
    total_s: float
    """From opening to the last number."""


@dataclass(frozen=True)
class Statistics:
    """One model and suite, with ever other options."""

    model: str
    prompts: int
    tokens: int
    variants: tuple[Variant, ...]
    by_function: dict[str, float]
    """Seconds of the last variant, innermost function of ours."""
    products_s: float
    """That the last variant's products take at the peak."""
    peak_gflops: float


def measure(setting: Setting) -> Statistics:
    """Each variant once, in a fresh process."""
    shape = Shape("qwen3-0.6b", blocks=2 if setting.quick else None)
    prompts, tokens = (3, 16) if setting.quick else (12, 16)
    checkpoint = shape.prepare()
    warm_pages(checkpoint)
    variants, by_function = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        task = task_of(checkpoint, folder, prompts=prompts, n_tokens=tokens, threads=setting.threads)
        task.write(folder / "task.json")
        for name, options in list(FURTHER.items())[:: len(FURTHER) - 1 if setting.quick else 1]:
            print(f"  {name}", file=sys.stderr, flush=True)
            words = [sys.executable, SIDES / "layerscope_sampled.py", folder / "task.json", folder / "out.json"]
            watch([*words, json.dumps({**BASE, **options})], setting)
            spent, _ = found(folder / "out.json")
            by_function = {key: float(value) for key, value in spent.notes.items() if key != "start_s"}
            total = spent.forward_s + spent.sweep_s + float(spent.notes["start_s"])
            variants.append(Variant(name, spent.forward_s, spent.sweep_s, total))
    counted, peak = shape.arithmetic(), product_peak(setting)
    flop = counted.sweep_flop(3 * counted.depths * prompts * tokens) + counted.forward_flop([tokens] * prompts)
    return Statistics(shape.title, prompts, tokens, tuple(variants), by_function, flop / peak / 1e9, peak)


def table(result: Statistics) -> str:
    """Variants against the first, then the functions of the last."""
    base = result.variants[0]
    rows = [
        [v.name, seconds(v.forward_s), seconds(v.sweep_s), seconds(v.total_s), f"{v.total_s / base.total_s:.2f}"]
        for v in result.variants
    ]
    header = ["", "forward, s", "to numbers, s", "probe, s", "times the first"]
    total = sum(result.by_function.values())
    ordered = sorted(result.by_function.items(), key=lambda item: -item[1])
    large = [(name, s) for name, s in ordered if s >= LEAST_SHARE * total]
    small = total - sum(s for _, s in large)
    lines = [[f"`{name}`", seconds(s), f"{s / total:.0%}"] for name, s in large]
    lines.append(["all others", seconds(small), f"{small / total:.0%}"])
    return "\n\n".join(
        [
            markdown(header, rows),
            f"Qwen3 shape {result.model}, {result.prompts} prompts of {result.tokens} tokens, each line a fresh "
            f"process; a line with … is the first with that one change. A twin is a whole second model.",
            f"Where the last line's {seconds(total)} s go, by the innermost function of layerscope that is running "
            f"(looked at every 4 ms); its products alone would take {seconds(result.products_s)} s at the peak of "
            f"{result.peak_gflops:.0f} GFLOP/s:",
            markdown(["", "s", "share"], lines),
        ]
    )
