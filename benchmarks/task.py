"""What every side of a comparison is given, and what it leaves; plain JSON and NumPy, for any environment."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOP_K = 20
"""Most probable ids that are listed of every row."""
TIE = 1e-4
"""Logits nearer than this are a tie that float32 may break either way."""


@dataclass(frozen=True)
class Task:
    """Prompts of one length for one checkpoint, at every layer and, as a rule, every position."""

    checkpoint: str
    suite: str
    """The same prompts as a file of facts."""
    token_ids: tuple[tuple[int, ...], ...]
    """[prompt, position]."""
    answer_ids: tuple[int, ...]
    """The first id of each prompt's answer."""
    threads: int
    last_only: bool = False
    """Whether only the last position is decoded."""

    def write(self, path: Path) -> None:
        """Leave the task in a file."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> "Task":
        """The task that `write` left."""
        found = json.loads(path.read_text())
        found["token_ids"] = tuple(map(tuple, found["token_ids"]))
        return Task(**{**found, "answer_ids": tuple(found["answer_ids"])})


@dataclass(frozen=True)
class Readings:
    """What a side read, `[prompt, layer, position]` throughout; None where it does not give that number."""

    entropy_bits: NDArray[np.float64]
    kl_to_final_bits: NDArray[np.float64] | None = None
    answer_rank: NDArray[np.int64] | None = None
    """1 = first; 0 where no rank was given."""
    top_ids: NDArray[np.int64] | None = None
    """[prompt, layer, position, place], most probable first."""
    top_logits: NDArray[np.float64] | None = None
    """Of `top_ids`; of the side that the others are compared with."""
    near_answer: NDArray[np.int64] | None = None
    """How many other logits lie within `TIE` of the answer's; of that side likewise."""


@dataclass(frozen=True)
class Spent:
    """Moments and seconds that a side noted of itself."""

    finished: float
    """Reading of the machine's monotonic clock, which all processes share, when the last number was there."""
    forward_s: float
    sweep_s: float
    """Seconds from residuals to numbers."""
    uncharged_s: float = 0.0
    """Spent on what the comparison needs and the task does not ask for, or on looking for the best setting."""
    notes: dict[str, int | float | str] = field(default_factory=dict)
    """Settings that were found best, versions."""


class Watch:
    """Seconds that are added up by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` to a stage."""
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def spent(self, **notes: int | float | str) -> Spent:
        """Everything so far; now is when it finished."""
        uncharged = self.seconds.get("uncharged", 0.0)
        sweep = self.seconds["sweep"] - self.seconds.get("uncharged in sweep", 0.0)
        return Spent(
            finished=time.monotonic(),
            forward_s=self.seconds["forward"],
            sweep_s=sweep,
            uncharged_s=uncharged + self.seconds.get("uncharged in sweep", 0.0),
            notes=notes,
        )


def leave(out: Path, spent: Spent, readings: Readings | None) -> None:
    """Write what a side found: `out` with the readings beside it."""
    if readings is not None:
        leave_readings(out, readings)
    out.write_text(json.dumps(asdict(spent)))


def found(out: Path) -> tuple[Spent, Readings | None]:
    """What `leave` wrote."""
    spent = Spent(**json.loads(out.read_text()))
    return spent, readings_beside(out) if out.with_suffix(".npz").exists() else None


def leave_readings(out: Path, readings: Readings) -> None:
    """Write readings alone, beside `out`."""
    arrays = {name: value for name, value in vars(readings).items() if value is not None}
    with out.with_suffix(".npz").open("wb") as file:
        np.savez(file, **arrays)


def readings_beside(out: Path) -> Readings:
    """What `leave_readings` wrote."""
    with np.load(out.with_suffix(".npz")) as arrays:
        return Readings(**dict(arrays))


def bits(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural units as bits."""
    return nats / math.log(2)
