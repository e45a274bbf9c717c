"""How time and memory grow: with parameters, prompts, length and vocabulary, each a probe from the shell."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capitals import many_facts, task_of
from machine import drop_pages, product_peak, read_rate, warm_pages
from setting import ROOT, Setting, markdown, seconds
from shapes import Shape, floor
from watched import watch

NAME, TITLE, MINUTES = "scale", "How it grows", 6
LIMIT_S = 240
"""A probe that takes longer is ended, and of prompts larger numbers are not tried."""
PROMPTS_LIMIT_S = 120
LARGE_LIMIT_S = 1200
"""Where the 72B shape and 10,000 prompts were asked for."""
BERLIN_PROMPTS = 3
BERLIN_TOKENS = 48
LENSES = 3


@dataclass(frozen=True)
class Probe:
    """One `layerscope probe` from the shell, page and all."""

    label: str
    wall_s: float
    forward_s: float | None
    sweep_s: float | None
    peak_gb: float
    floor_s: float | None
    """Of reading and arithmetic; None where neither is worth counting."""
    within_limit: bool


@dataclass(frozen=True)
class Growth:
    """Probes that differ in one thing."""

    what: str
    how: str
    """Model, suite and options, for people."""
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class Scale:
    """All four."""

    growths: tuple[Growth, ...]
    peak_gflops: float


def measure(setting: Setting) -> Scale:
    """Each probe once."""
    peak = product_peak(setting)
    growths = (_parameters(setting, peak), _prompts(setting), _length(setting, peak), _vocabulary(setting, peak))
    return Scale(growths, peak)


def _parameters(setting: Setting, peak: float) -> Growth:
    shapes = [Shape("qwen3-0.6b"), Shape("qwen3-1.7b"), Shape("qwen3-8b", sparse=True)]
    if setting.quick:
        shapes = [Shape("qwen3-0.6b", blocks=2)]
    if setting.large:
        shapes.append(Shape("qwen2.5-72b", sparse=True))
    probes = []
    for shape in shapes:
        checkpoint = shape.prepare()
        rate, counted = read_rate(checkpoint, setting), shape.arithmetic()
        held = counted.bytes_read < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.75
        if held:
            warm_pages(checkpoint)
        flop = counted.forward_flop([16] * BERLIN_PROMPTS)
        flop += counted.sweep_flop(LENSES * counted.depths * BERLIN_PROMPTS)
        least = floor(counted.bytes_read, flop, rate.warm if held else rate.cold, peak)
        label = f"{shape.title}{'' if held else ', read from the file'}"
        words = [checkpoint, "--suite", "berlin", "--positions", "last", "--memory", "2GiB"]
        limit = LIMIT_S if held else LARGE_LIMIT_S
        probes.append(_probe(label, words, setting, limit, least.seconds))
        if not held:
            drop_pages(checkpoint)
    how = (
        f"suite `berlin` ({BERLIN_PROMPTS} prompts, {BERLIN_TOKENS} tokens), last positions, three lenses, "
        "`--memory 2GiB`"
    )
    return Growth("parameters", how, tuple(probes))


def _prompts(setting: Setting) -> Growth:
    probes: list[Probe] = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in (1, 10) if setting.quick else (1, 10, 100, 1_000, *([10_000] if setting.large else [])):
            if probes and not probes[-1].within_limit:
                break
            suite = many_facts(Path(scratch) / f"{n}.jsonl", n)
            words = ["--suite", suite, "--memory", "2GiB"]
            limit = LARGE_LIMIT_S if setting.large else PROMPTS_LIMIT_S
            probes.append(_probe(f"{n:,}", words, setting, limit, None))
    return Growth("prompts", "bundled model, its lenses, `--memory 2GiB`", tuple(probes))


def _length(setting: Setting, peak: float) -> Growth:
    shape = Shape("qwen3-0.6b", blocks=2 if setting.quick else None)
    checkpoint, counted = shape.prepare(), shape.arithmetic()
    rate = read_rate(checkpoint, setting)
    probes: list[Probe] = []
    with tempfile.TemporaryDirectory() as scratch:
        for tokens in (16, 100) if setting.quick else (16, 250, 1_000, 4_000):
            task = task_of(checkpoint, Path(scratch), prompts=1, n_tokens=tokens, threads=setting.threads)
            flop = counted.forward_flop([tokens]) + counted.sweep_flop(LENSES * counted.depths)
            least = floor(counted.bytes_read, flop, rate.warm, peak)
            words = [checkpoint, "--suite", task.suite, "--positions", "last"]
            probes.append(_probe(f"{tokens:,}", words, setting, LIMIT_S, least.seconds))
    return Growth("tokens of one prompt", f"Qwen3 shape {shape.title}, last position, three lenses", tuple(probes))


def _vocabulary(setting: Setting, peak: float) -> Growth:
    probes: list[Probe] = []
    tokens, prompts = 16, 3 if setting.quick else 12
    with tempfile.TemporaryDirectory() as scratch:
        for d_vocab in (8_192, 32_768) if setting.quick else (8_192, 32_768, 131_072, 262_144):
            shape = Shape("qwen3-0.6b", blocks=4, vocabulary=d_vocab)
            checkpoint, counted = shape.prepare(), shape.arithmetic()
            rate = read_rate(checkpoint, setting)
            task = task_of(checkpoint, Path(scratch), prompts=prompts, n_tokens=tokens, threads=setting.threads)
            flop = counted.forward_flop([tokens] * prompts)
            flop += counted.sweep_flop(LENSES * counted.depths * prompts * tokens)
            least = floor(counted.bytes_read, flop, rate.warm, peak)
            words = [checkpoint, "--suite", task.suite, "--positions", "all"]
            probes.append(_probe(f"{d_vocab:,}", words, setting, LIMIT_S, least.seconds))
    how = f"Qwen3 shape 0.6B cut to 4 blocks, {prompts} prompts of {tokens} tokens, all positions, three lenses"
    return Growth("vocabulary", how, tuple(probes))


def _probe(label: str, words: Sequence[str | Path], setting: Setting, limit_s: float, floor_s: float | None) -> Probe:
    """From the shell: the whole command, with the run folder it writes."""
    print(f"  {label}", file=sys.stderr, flush=True)
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "layerscope", "probe", *words, "--out", out]
        seen = watch(command, setting, limit_s=limit_s, extra={"PYTHONPATH": path})
        if not seen.within_limit:
            return Probe(label, seen.wall_s, None, None, seen.peak_gb(), floor_s, within_limit=False)
        (record,) = Path(out).rglob("run.json")
        found = json.loads(record.read_text())
    if not found["identity"]["ok"]:
        raise ValueError(f"{label}: the last layer's decode is not the model's own output, so no time is told")
    timings = found["timings"]
    return Probe(
        label, seen.wall_s, timings["forward_s"], timings["sweep_s"], seen.peak_gb(), floor_s, within_limit=True
    )


def table(result: Scale) -> str:
    """One table a growth."""
    parts = []
    for growth in result.growths:
        with_floor = any(probe.floor_s is not None for probe in growth.probes)
        header = [growth.what, "wall, s", "forward", "to numbers", "memory, GB"]
        header += ["floor, s", "time / floor"] if with_floor else ["s / prompt"]
        rows = []
        for probe in growth.probes:
            times = [f"{seconds(probe.wall_s)}" if probe.within_limit else f"over {seconds(probe.wall_s)}, ended"]
            times += ["–" if s is None else seconds(s) for s in (probe.forward_s, probe.sweep_s)]
            row = [probe.label, *times, f"{probe.peak_gb:.2f}"]
            if with_floor and probe.floor_s is not None:
                row += [seconds(probe.floor_s), f"{probe.wall_s / probe.floor_s:.1f}"]
            elif not with_floor:
                row += [f"{probe.wall_s / int(probe.label.replace(',', '')):.3f}"]
            rows.append(row)
        parts += [f"### {growth.what.capitalize()}", f"{growth.how}.", markdown(header, rows)]
    parts.append(
        f"Each line is `layerscope probe` from the shell, once: start, page and all. The floor is the larger of "
        f"reading blocks and head once and of the arithmetic at {result.peak_gflops:.0f} GFLOP/s. Where the last "
        f"residual did not give the model's own logits, nothing would be told. Sparse models have holes for weights, "
        f"which no disk has to bring."
    )
    return "\n\n".join(parts)
