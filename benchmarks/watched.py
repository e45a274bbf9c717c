"""A child process watched from outside: its wall time and the most memory it held."""

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from setting import Setting

SAMPLE_S = 0.05
"""Between two looks at the memory."""


@dataclass(frozen=True)
class Watched:
    """What a child process cost."""

    began: float
    """Reading of the machine's monotonic clock just before it was started."""
    wall_s: float
    """Until it had ended, or was ended at the limit."""
    samples: tuple[tuple[float, int], ...]
    """Moments, and bytes of anonymous resident memory; pages of mapped files are not counted, since the kernel drops
    them when another needs the room."""
    resident_gb: float
    """Largest resident memory in 1e9 bytes, as the kernel keeps it; pages of mapped files are counted here."""
    within_limit: bool

    def peak_gb(self, until: float = float("inf")) -> float:
        """Largest anonymous memory up to a moment, in 1e9 bytes."""
        return max((size for moment, size in self.samples if moment <= until), default=0) / 1e9


def watch(
    words: Sequence[str | Path], setting: Setting, *, limit_s: float = 3600, extra: Mapping[str, str] | None = None
) -> Watched:
    """Run a command to its end, or to the limit, without its output.

    Raises:
        subprocess.CalledProcessError: it failed; its own message is among what is raised.
    """
    environment = environment_of(setting, extra)
    samples: list[tuple[float, int]] = []
    resident = 0
    within = True
    with setting.alone(), tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        with subprocess.Popen(
            [*map(str, words)], env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True
        ) as process:
            while True:
                anonymous, most = _memory_bytes(process.pid)
                samples.append((time.monotonic(), anonymous))
                resident = max(resident, most)
                if _has_ended(process, SAMPLE_S):
                    break
                if time.monotonic() - began > limit_s:
                    within = False
                    process.kill()
                    break
        ended = time.monotonic()
        if within and process.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(process.returncode, [*map(str, words)], stderr=said.read()[-3000:])
    return Watched(began, ended - began, tuple(samples), resident / 1e9, within)


def environment_of(setting: Setting, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every child process of a comparison finds: as many threads as the others, and no network."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(setting.threads),
        "NUMBA_NUM_THREADS": str(setting.threads),
        "HF_HUB_OFFLINE": "1",
        **(extra or {}),
    }


def _has_ended(process: subprocess.Popen[str], wait_s: float) -> bool:
    """Whether it ends within this time; told at once when it does, so that short runs are timed to the millisecond."""
    handle = os.pidfd_open(process.pid)
    try:
        return bool(select.select([handle], [], [], wait_s)[0])
    finally:
        os.close(handle)


def _memory_bytes(pid: int) -> tuple[int, int]:
    """Anonymous resident memory now, and the most resident memory so far; 0 of a process that has ended."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {words[0]: int(words[1]) * 1024 for words in lines if words and words[0] in {"RssAnon:", "VmHWM:"}}
    return found.get("RssAnon:", 0), found.get("VmHWM:", 0)
