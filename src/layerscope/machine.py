"""What is measured once on a machine and kept for later runs, in the user's cache folder."""

import json
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from layerscope.cache_folder import cache_folder


def machine() -> str:
    """What was measured holds for: processor, what torch uses of it, its threads and version.

    By it a cache folder that several machines share tells them apart.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({capability}) · {torch.get_num_threads()} threads · torch {torch.__version__}"


def kept(name: str) -> dict[str, float]:
    """Numbers that were kept under a name, by machine; none where there is no such file, or something else in it."""
    file = _file(name)
    if file is None:
        return {}
    try:
        numbers = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(numbers, dict):
        return {}
    return {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}


def keep(name: str, key: str, number: float) -> None:
    """Keep a number, where there is a place; another process may be writing at the same time."""
    file = _file(name)
    if file is None:
        return
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept(name) | {key: number}, indent=1, ensure_ascii=False)
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(file)
    except OSError:  # measured again next time
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _file(name: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"{name}.json"
