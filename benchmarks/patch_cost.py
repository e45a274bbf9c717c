"""What patches cost: the same probe from the shell with and without them, in turn."""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from agreement import BITS_TOLERANCE, Disagreement
from machine import warm_pages
from setting import ROOT, Setting, markdown, seconds, verdict
from watched import watch

sys.path.insert(0, str(ROOT / "scripts"))

NAME, TITLE, MINUTES = "patches", "What patches cost", 4
MOST_OF_PLAIN = 1.6
"""Target: wall time of a probe with patches over that of the same probe without."""
MODEL, SUITE = "SmolLM2-135M-Instruct", "capitals-20"
PAIRS = 5


@dataclass(frozen=True)
class Probed:
    """One probe in a process of its own."""

    wall_s: float
    """From the start of the process to its end."""
    total_s: float
    """As the run's record has it: until everything was measured, without starting Python and writing files."""
    patching_s: float
    """Of that, runs with residuals replaced; zero without them."""
    peak_gb: float


@dataclass(frozen=True)
class PatchCost:
    """Pairs of probes, each one with patches and one without, which goes first taking turns."""

    with_patches: tuple[Probed, ...]
    without: tuple[Probed, ...]
    n_patched_pairs: int
    """Of facts."""
    n_patches: int
    load: tuple[float, float]
    """How many processes wanted a core in the minute before the first pair, and in that before the end."""


def measure(setting: Setting) -> PatchCost:
    """Pairs in turn; raises Disagreement where patches change a row, and then no time is told."""
    from real_models import real_model

    folder = real_model("smollm2")
    warm_pages(folder)
    n_pairs = 1 if setting.quick else max(PAIRS, setting.repeat)
    found: dict[bool, list[Probed]] = {True: [], False: []}
    n_patched, n_patches = 0, 0
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(n_pairs):
            print(f"  pair {i + 1} of {n_pairs}", file=sys.stderr, flush=True)
            runs = {}
            for patched in (False, True) if i % 2 == 0 else (True, False):
                probed, runs[patched] = _probe(folder, Path(scratch) / f"{i}-{patched}", setting, patched=patched)
                found[patched].append(probed)
            n_patched, n_patches = _compared(runs[True], runs[False])
    load = (before, os.getloadavg()[0])
    return PatchCost(tuple(found[True]), tuple(found[False]), n_patched, n_patches, load)


def _probe(folder: Path, out: Path, setting: Setting, *, patched: bool) -> tuple[Probed, Path]:
    words = ["probe", folder, "--suite", SUITE, *([] if patched else ["--no-causal"]), "--out", out]
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    seen = watch([sys.executable, "-m", "layerscope", *words], setting, extra={"PYTHONPATH": path})
    (record,) = out.rglob("run.json")
    timings = json.loads(record.read_text())["timings"]
    patching_s = timings["patching_s"] or 0.0
    return Probed(seen.wall_s, timings["total_s"], patching_s, seen.peak_gb()), record.parent


def _compared(patched: Path, plain: Path) -> tuple[int, int]:
    """Pairs and patches of the one run; both have the same rows."""
    ours, theirs = (pl.read_parquet(run / "rows.parquet") for run in (patched, plain))
    # Each process finds by itself which library multiplies faster, so they may differ by rounding.
    if len(ours) != len(theirs):
        raise Disagreement(f"a probe with patches has {len(ours)} rows, the probe without {len(theirs)}")
    for name in ("entropy_bits", "kl_to_final_bits"):
        apart = (ours[name] - theirs[name]).abs()
        if not (apart <= BITS_TOLERANCE * theirs[name].abs().clip(1.0)).all():
            raise Disagreement(f"{name} of a probe with patches is up to {apart.max()} bits from the probe without")
    patches = pl.read_parquet(patched / "patches.parquet")
    if (plain / "patches.parquet").exists() and len(pl.read_parquet(plain / "patches.parquet")):
        raise Disagreement("a probe without patches has some")
    return patches.filter(kind="pair")["pair"].n_unique(), len(patches)


def table(result: PatchCost) -> str:
    """Ratios pair by pair, then both sides."""
    walls, totals = (_ratios(result, name) for name in ("wall_s", "total_s"))
    header = ["", "wall, s", "by the record, s", "of it patches, s", "memory, GB"]
    rows = [
        [
            name,
            *(seconds(statistics.median(getattr(run, of) for run in runs)) for of in ("wall_s", "total_s")),
            seconds(statistics.median(run.patching_s for run in runs)),
            f"{max(run.peak_gb for run in runs):.2f}",
        ]
        for name, runs in (("without patches", result.without), ("**with patches**", result.with_patches))
    ]
    n = len(walls)
    pairs = "one pair" if n == 1 else f"the median of {n} pairs, which take turns in going first"
    return "\n\n".join(
        [
            f"* wall time with patches over that without: {verdict(statistics.median(walls), MOST_OF_PLAIN)}; "
            f"{_spread(walls)}\n* the same by the runs' records, which leave out starting Python and writing files: "
            f"{verdict(statistics.median(totals), MOST_OF_PLAIN)}; {_spread(totals)}",
            markdown(header, rows),
            f"`layerscope probe` of {MODEL} with suite `{SUITE}` from the shell, and the same with `--no-causal`: "
            f"{pairs}. {result.n_patched_pairs} pairs of facts at every layer and two positions, "
            f"{result.n_patches:,} rows of effects with their controls. Rows of both agree within rounding. "
            f"Processes that wanted a core: {result.load[0]:.1f} before, {result.load[1]:.1f} at the end.",
        ]
    )


def _ratios(result: PatchCost, name: str) -> list[float]:
    both = zip(result.with_patches, result.without, strict=True)
    return [float(getattr(patched, name) / getattr(plain, name)) for patched, plain in both]


def _spread(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f}"
