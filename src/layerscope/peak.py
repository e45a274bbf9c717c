"""How fast this machine multiplies float32 matrices: the ceiling that timings are told beside."""

import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

import torch

from layerscope.cache_folder import cache_folder
from layerscope.products import fastest, product

_ROWS, _OUT, _IN = 1024, 2048, 2048
_AT_LEAST_S = 0.15
"""Long enough for a processor to leave its lowest clock, and for one of several tries to be undisturbed."""


def peak_gflops(at_least: float = 0.0) -> float:
    """Billions of float32 operations a second in a large product, by torch's threads together.

    Measured once on a machine, with its torch and number of threads, and kept in the user's cache folder; measured
    again where it is found to be less than what was just reached (`at_least`), since the machine was busy then.
    """
    file, key = _file(), _key()
    kept = _read(file)
    if key in kept and kept[key] >= at_least:
        return kept[key]
    kept[key] = max(_measured(), at_least, kept.get(key, 0.0))
    _write(file, kept)
    return kept[key]


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


def _key() -> str:
    return f"{_processor()} · {torch.get_num_threads()} threads · torch {torch.__version__} · {fastest()}"


def _processor() -> str:
    """The processor's name with what it can do, by which a folder shared between machines tells them apart."""
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} ({capability})"


def _file() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "peak-gflops.json"


def _read(file: Path | None) -> dict[str, float]:
    """What was kept; nothing where there is no such file, or something else in it."""
    if file is None:
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: float(v) for k, v in kept.items() if isinstance(v, int | float)} if isinstance(kept, dict) else {}


def _write(file: Path | None, kept: dict[str, float]) -> None:
    """Keep it, where there is a place; another process may be writing at the same time."""
    if file is None:
        return
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(file)
    except OSError:  # measured again next time
        with suppress(OSError):
            new.unlink(missing_ok=True)
