"""A measurement's value, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Absent:
    """Stands in the place of a value that could not be measured."""

    reason: str
    """In words, as the record keeps it."""


def value_of(outcome: T | Absent) -> T | None:
    """The value; None where there is a reason instead."""
    return None if isinstance(outcome, Absent) else outcome


def reasons(outcomes: Mapping[str, object]) -> dict[str, str]:
    """For each outcome that is no value, by name, the reason."""
    return {name: outcome.reason for name, outcome in outcomes.items() if isinstance(outcome, Absent)}
