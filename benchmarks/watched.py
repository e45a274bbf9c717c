"""A child process watched from outside: its wall time and the most anonymous memory it held."""

import os
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
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(setting.threads),
        "NUMBA_NUM_THREADS": str(setting.threads),
        "HF_HUB_OFFLINE": "1",
        **(extra or {}),
    }
    samples: list[tuple[float, int]] = []
    within = True
    with setting.alone(), tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        with subprocess.Popen(
            [*map(str, words)], env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True
        ) as process:
            while process.poll() is None:
                samples.append((time.monotonic(), _anonymous_bytes(process.pid)))
                if time.monotonic() - began > limit_s:
                    within = False
                    process.kill()
                    break
                time.sleep(SAMPLE_S)
        ended = time.monotonic()
        if within and process.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(process.returncode, [*map(str, words)], stderr=said.read()[-3000:])
    return Watched(began, ended - began, tuple(samples), within)


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:  # it has just ended
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0
