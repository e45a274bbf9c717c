"""Crossings: of many curves at once, where a condition first holds, from where it holds for good, and where not."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from layerscope.analysis.conditions import UNKNOWN, YES, Condition
from layerscope.analysis.curve import Curves

Layers: TypeAlias = NDArray[np.int32]
"""A layer of each curve, or `NOWHERE`."""
NOWHERE = np.iinfo(np.int32).min
_NO_ROW = -2
"""Beside yes, no and unknown: a layer that a curve lacks."""


@dataclass(frozen=True)
class Grid:
    """Where the rows of curves stand, as [curve, layer]."""

    curves: Curves
    curve: NDArray[np.int64]
    """Of each row."""
    column: NDArray[np.int64]
    """Of each row."""
    layers: NDArray[np.int64]
    """Of each column, ascending: 0 to n_layers, whatever else rows have, and one behind each, so that columns side by
    side are layers side by side however far apart others lie."""
    n_layers: int

    @classmethod
    def of(cls, curves: Curves, n_layers: int) -> "Grid":
        """Columns for all layers that the model has or a row names."""
        of_row = curves.numbers("layer").astype(np.int64)
        named = np.union1d(np.arange(n_layers + 1), of_row)
        layers = np.union1d(named, named[:-1] + 1)
        return cls(curves, curves.curve_of_row, np.searchsorted(layers, of_row), layers, n_layers)

    def crossings(self, condition: Condition) -> "Crossings":
        """Ask every row."""
        held = np.full((len(self.curves.by_key), len(self.layers)), _NO_ROW, dtype=np.int8)
        held[self.curve, self.column] = condition.over(self.curves.numbers)
        return Crossings(held, self.layers, self.n_layers)


@dataclass(frozen=True)
class Crossings:
    """What one condition came to."""

    held: NDArray[np.int8]
    """As [curve, layer]: yes, no, unknown, or no row."""
    layers: NDArray[np.int64]
    """Of each column, as the grid has them."""
    n_layers: int

    @property
    def embedding(self) -> int:
        """The column of layer 0."""
        return int(np.searchsorted(self.layers, 0))

    def first(self) -> Layers:
        """The shallowest layer at which it holds."""
        return self._first_of(self.held == YES)

    def first_of_two(self) -> Layers:
        """The shallowest layer at which it holds together with the next layer."""
        holds = self.held == YES
        return self._first_of(holds[:, :-1] & holds[:, 1:])

    def stable(self) -> Layers:
        """The shallowest layer from which it holds at every layer to the last; a missing layer or value ends it."""
        last = self.embedding + self.n_layers
        ends = self.held[:, last::-1] != YES
        run = np.where(ends.any(axis=1), ends.argmax(axis=1), ends.shape[1])
        deeper = (self.held[:, last + 1 :] != _NO_ROW).any(axis=1)
        return np.where((run == 0) | deeper, NOWHERE, self.n_layers + 1 - run).astype(np.int32)

    def measured(self) -> NDArray[np.bool_]:
        """Whether it is known at any layer."""
        return np.asarray((self.held > UNKNOWN).any(axis=1))

    def complete(self) -> NDArray[np.bool_]:
        """Whether it is known at every layer but the embedding, and there too unless that has no row.

        A fitted lens has no map for the embedding, which is no gap.
        """
        due = self.held[:, self.embedding + 1 : self.embedding + self.n_layers + 1] > UNKNOWN
        return np.asarray(due.all(axis=1) & ~(self.held == UNKNOWN).any(axis=1))

    def _first_of(self, holds: NDArray[np.bool_]) -> Layers:
        if not holds.shape[1]:
            return np.full(len(holds), NOWHERE, dtype=np.int32)
        return np.where(holds.any(axis=1), self.layers[holds.argmax(axis=1)], NOWHERE).astype(np.int32)
