"""Conditions: what is asked of rows, of many at once column by column, or of a single one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.curve import Row
from layerscope.analysis.curve_rows import Numbers

Held: TypeAlias = NDArray[np.int8]
"""For each row `YES`, `NO`, or `UNKNOWN` where a value that decides is absent."""
YES, NO, UNKNOWN = 1, 0, -1
Columns: TypeAlias = Callable[[str], Numbers]
"""The values of a column, NaN where one is absent; yes and no are 1 and 0."""
Compare: TypeAlias = Callable[[Numbers, int | float], NDArray[np.bool_]]


@dataclass(frozen=True)
class Condition:
    """Something that holds in a row or does not, or is not known there."""

    over: Callable[[Columns], Held]
    """Asked of whole columns."""

    def __call__(self, row: Row) -> bool | None:
        """Asked of one row; None where that is not known."""
        held = int(self.over(lambda name: np.array([np.nan if row[name] is None else row[name]], np.float64))[0])
        return None if held == UNKNOWN else held == YES


def true(column: str) -> Condition:
    """A column says yes."""
    return Condition(lambda of: _held(of(column) != 0, of(column)))


def compared(column: str, compare: Compare, bound: int | float) -> Condition:
    """A column compares with a bound."""
    return Condition(lambda of: _held(compare(of(column), bound), of(column)))


def leads(column: str, other: str, margin: int | float) -> Condition:
    """A column is another one and a margin, or more."""
    return Condition(lambda of: _held(of(column) >= of(other) + margin, of(column), of(other)))


def leads_by(gap: float) -> Condition:
    """The answer has rank 1 and a lead over the second logit of at least so much.

    Not known where the lead of a rank 1 is not.
    """

    def over(of: Columns) -> Held:
        rank, lead = of("answer_rank"), of("answer_logit_gap")
        return np.where(rank > 1, np.int8(NO), _held(lead >= gap, rank, lead))

    return Condition(over)


def margin_over_uniform(margin: float, uniform: float) -> Condition:
    """The answer has rank 1 and a probability that much above the uniform one; no where its rank alone is absent."""

    def over(of: Columns) -> Held:
        p = of("p_answer")
        return _held((of("answer_rank") == 1) & (p - uniform >= margin), p)

    return Condition(over)


def both(one: Condition, other: Condition) -> Condition:
    """Both hold; no where either does not, whatever is known of the other."""
    return Condition(lambda of: np.minimum(*_no_first(one.over(of), other.over(of))))


def _no_first(a: Held, b: Held) -> tuple[Held, Held]:
    """The same, with no in place of what does not matter beside a no."""
    no = (a == NO) | (b == NO)
    return np.where(no, np.int8(NO), a), np.where(no, np.int8(NO), b)


def _held(holds: NDArray[np.bool_], *needed: Numbers) -> Held:
    absent = np.isnan(needed[0])
    for values in needed[1:]:
        absent = absent | np.isnan(values)
    return np.where(absent, np.int8(UNKNOWN), holds.astype(np.int8))
