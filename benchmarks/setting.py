"""How large a benchmark is to be, and the words that all tables share."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDES = Path(__file__).with_name("sides")


@dataclass(frozen=True)
class Setting:
    """What was asked for on the command line."""

    threads: int
    quick: bool = False
    """Smaller models and fewer rows: a trial of the benchmark, whose figures say little."""
    large: bool = False
    """The 72B shape and 10,000 prompts too."""
    repeat: int = 1
    """Runs of each side, in turn; tables tell the fastest."""
    peers_python: Path | None = None
    """The interpreter of the environment that holds the other libraries; None leaves these out."""
    lock: Path | None = None
    """A file that is locked while anything is timed, for others on the machine who wait for it."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock, where there is one."""
        if self.lock is None:
            yield
            return
        with self.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and the others numbers."""
    lines = [list(header), ["---", *("---:" for _ in header[1:])], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds(value: float) -> str:
    """For people: two digits that matter."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def verdict(ratio: float, target: float) -> str:
    """A ratio beside the most it should be."""
    return f"{ratio:.2f} (target {target:.2f}: {'met' if ratio <= target else 'missed'})"
