"""A small real model from the shell: a whole probe against a naive script of the logit lens alone."""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from agreement import BITS_TOLERANCE, Disagreement
from setting import ROOT, SIDES, Setting, markdown, seconds, verdict
from task import found
from watched import watch

from layerscope.suite import load_suite

sys.path.insert(0, str(ROOT / "scripts"))

NAME, TITLE, MINUTES = "small", "A small model, from the shell", 1
MOST_OF_NAIVE = 0.8
"""Target: wall time of a whole probe over the naive script's."""
MODEL, SUITE, LENSES = "SmolLM2-135M-Instruct", "capitals-20", "logit,next_norm,raw"


@dataclass(frozen=True)
class Timed:
    """Of one side, its fastest run."""

    wall_s: float
    """From the start of the process to its end."""
    peak_gb: float
    stages: dict[str, float]
    """Seconds that the side noted of itself."""


@dataclass(frozen=True)
class SmallModel:
    """Both sides, and how far apart their numbers are."""

    prompts: int
    naive: Timed
    ours: Timed
    entropy_bits: float
    """Largest difference."""
    kl_bits: float
    repeat: int


def measure(setting: Setting) -> SmallModel:
    """Both sides in turn; raises Disagreement, and then no time is told."""
    from real_models import real_model

    folder = real_model("smollm2")
    repeat = setting.repeat if setting.quick else max(3, setting.repeat)
    naive: list[Timed] = []
    ours: list[Timed] = []
    apart = (0.0, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(repeat):
            print(f"  run {i + 1} of {repeat}", file=sys.stderr, flush=True)
            here = Path(scratch) / str(i)
            here.mkdir()
            naive.append(_naive(folder, here, setting))
            ours.append(_ours(folder, here, setting))
            apart = _compared(here)
    best = [min(runs, key=lambda run: run.wall_s) for runs in (naive, ours)]
    return SmallModel(len(_facts()), *best, *apart, repeat)


def _facts() -> list[tuple[str, str]]:
    """Prompts and answers of the suite, without its control."""
    return [(p.text, p.answers[0]) for p in load_suite(SUITE).prompts if p.prompt_id == "pos"]


def _naive(folder: Path, here: Path, setting: Setting) -> Timed:
    prompts, answers = zip(*_facts(), strict=True)
    task = {"checkpoint": str(folder), "prompts": prompts, "answers": answers, "threads": setting.threads}
    (here / "task.json").write_text(json.dumps(task))
    out = here / "naive.json"
    seen = watch([sys.executable, SIDES / "naive_logit_lens.py", here / "task.json", out], setting)
    spent, _ = found(out)
    stages = {"forward": spent.forward_s, "to numbers": spent.sweep_s}
    return Timed(seen.wall_s, seen.peak_gb(), stages)


def _ours(folder: Path, here: Path, setting: Setting) -> Timed:
    words = ["probe", folder, "--suite", SUITE, "--positions", "last", "--lens", LENSES, "--out", here / "runs"]
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    seen = watch([sys.executable, "-m", "layerscope", *words], setting, extra={"PYTHONPATH": path})
    timings = json.loads((_run_folder(here) / "run.json").read_text())["timings"]
    stages = {"forward": timings["forward_s"], "to numbers": timings["sweep_s"], "opening": timings["start_s"]}
    return Timed(seen.wall_s, seen.peak_gb(), stages)


def _run_folder(here: Path) -> Path:
    (folder,) = (path.parent for path in (here / "runs").rglob("run.json"))
    return folder


def _compared(here: Path) -> tuple[float, float]:
    _, readings = found(here / "naive.json")
    if readings is None or readings.kl_to_final_bits is None:
        raise ValueError("expected readings of the naive script, found none")
    rows = pl.read_parquet(_run_folder(here) / "rows.parquet").filter(lens="logit", prompt_id="pos", is_next=True)
    largest = []
    for name, reference in (
        ("entropy_bits", readings.entropy_bits[..., 0]),
        ("kl_to_final_bits", readings.kl_to_final_bits[..., 0]),
    ):
        mine = rows[name].to_numpy().reshape(reference.shape)
        apart = np.abs(mine - reference)
        if not (apart <= BITS_TOLERANCE * np.maximum(1.0, np.abs(reference))).all():
            raise Disagreement(f"{name} is off by up to {apart.max()} bits between the naive script and the probe")
        largest.append(float(apart.max()))
    return largest[0], largest[1]


def table(result: SmallModel) -> str:
    """Ratio, then both sides."""
    rows = []
    for name, side in (("naive script, logit lens alone", result.naive), ("**layerscope probe**", result.ours)):
        other = side.wall_s - side.stages["forward"] - side.stages["to numbers"]
        times = (side.wall_s, other, side.stages["forward"], side.stages["to numbers"])
        rows.append([name, *map(seconds, times), f"{side.peak_gb:.2f}"])
    header = ["", "wall, s", "start, opening, writing", "forward", "to numbers", "memory, GB"]
    ratio = verdict(result.ours.wall_s / result.naive.wall_s, MOST_OF_NAIVE)
    return "\n\n".join(
        [
            f"* wall time over the naive script's: {ratio}",
            markdown(header, rows),
            f"{MODEL}, suite `{SUITE}` ({result.prompts} prompts of facts), last positions. The naive script loads in "
            f"float32, runs one padded batch and prints entropy, rank and KL of every layer; `layerscope probe` reads "
            f"three lenses, runs the suite's control too, and writes its run folder, verdict and page. The fastest of "
            f"{result.repeat} runs each, from the start of the process to its end. Agreement: entropy within "
            f"{result.entropy_bits:.0e} bits, KL within {result.kl_bits:.0e}.",
        ]
    )
