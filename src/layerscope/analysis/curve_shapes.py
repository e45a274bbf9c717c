"""The shape of a curve over layers: monotone or not and where it fails, peak and trough, crossings, largest step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

Point: TypeAlias = tuple[int, int | float]
"""A layer, and a value there."""
Points: TypeAlias = Sequence[Point]
"""In ascending layer order, each layer once; layers without a value are left out."""
Direction: TypeAlias = Literal["rises", "falls"]
Tendency: TypeAlias = Literal["constant", "rises", "falls", "never falls", "never rises", "neither"]


def points(values: Iterable[tuple[int, int | float | None]]) -> list[Point]:
    """The layers that have a value, sorted."""
    return sorted((layer, value) for layer, value in values if value is not None)


@dataclass(frozen=True)
class Step:
    """From one layer that has a value to the next that has one."""

    first: int
    last: int
    change: int | float
    """Value at the last less value at the first."""


def steps(curve: Points) -> list[Step]:
    """Every step of a curve."""
    return [Step(a, b, after - before) for (a, before), (b, after) in pairwise(curve)]


def failures(curve: Points, direction: Direction, *, strict: bool = True, slack: float = 0.0) -> list[Step]:
    """Steps that go against "rises" or "falls at every layer".

    Args:
        strict: whether a step without change fails too.
        slack: how far a step may go the wrong way and still count as none; not below 0.
    """
    sign = 1 if direction == "rises" else -1
    return [step for step in steps(curve) if sign * step.change < -slack or (strict and step.change == 0)]


def is_monotone(curve: Points, direction: Direction, *, strict: bool = True, slack: float = 0.0) -> bool | None:
    """Whether it rises, or falls, at every step; None of fewer than two points, of which neither can be said."""
    return None if len(curve) < 2 else not failures(curve, direction, strict=strict, slack=slack)


def tendency(curve: Points) -> Tendency | None:
    """What the whole of a curve does, in the strongest word that holds; None of fewer than two points."""
    changes = [step.change for step in steps(curve)]
    if not changes:
        return None
    if not any(changes):
        return "constant"
    if min(changes) >= 0:
        return "rises" if min(changes) > 0 else "never falls"
    if max(changes) <= 0:
        return "falls" if max(changes) < 0 else "never rises"
    return "neither"


def peak(curve: Points) -> Point | None:
    """The largest value, at the shallowest layer that has it; None of nothing."""
    return max(curve, key=lambda point: (point[1], -point[0]), default=None)


def trough(curve: Points) -> Point | None:
    """The smallest value, at the shallowest layer that has it; None of nothing."""
    return min(curve, key=lambda point: (point[1], point[0]), default=None)


def first_where(curve: Points, holds: Callable[[int | float], bool]) -> int | None:
    """The shallowest layer whose value does; None where none does."""
    return next((layer for layer, value in curve if holds(value)), None)


def first_at_least(curve: Points, bound: int | float) -> int | None:
    """The first layer at or above a bound."""
    return first_where(curve, lambda value: value >= bound)


def held_from(curve: Points, holds: Callable[[int | float], bool]) -> int | None:
    """The layer from which on every value does; None where the last one does not, or there is none."""
    start = None
    for layer, value in reversed(curve):
        if not holds(value):
            break
        start = layer
    return start


def stays_at_most(curve: Points, bound: int | float, start: int | None = None) -> bool | None:
    """Whether no value, from a layer on, is above a bound; None where there is no value."""
    values = [value for layer, value in curve if start is None or layer >= start]
    return all(value <= bound for value in values) if values else None


def returns(curve: Points, holds: Callable[[int | float], bool]) -> list[int]:
    """Layers at which something no longer holds that held at the layer before: where a crossing is taken back."""
    return [b for (_, before), (b, after) in pairwise(curve) if holds(before) and not holds(after)]


def largest_step(curve: Points, direction: Direction) -> Step | None:
    """The step that goes furthest up, or down, the shallowest of equals; None where none goes that way."""
    sign = 1 if direction == "rises" else -1
    largest = max(steps(curve), key=lambda step: (sign * step.change, -step.first), default=None)
    return largest if largest is not None and sign * largest.change > 0 else None


def between(curve: Points, first: int, last: int) -> list[Point]:
    """The part of a curve at layers `first` to `last`, both included."""
    return [point for point in curve if first <= point[0] <= last]


def stretches(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers in ascending order, neighbours together: `[[0, 1], [4]]`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def ranges(layers: Sequence[int]) -> str:
    """Layers in ascending order as people write them: `0, 3-5`."""
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in stretches(layers))


def listed_layers(layers: Iterable[int]) -> str:
    """Layers in words, three neighbours or more as a stretch: `0 to 14`, `0, 3, 4`; `none`."""
    spelt = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in stretches(layers)]
    return ", ".join(spelt) or "none"
