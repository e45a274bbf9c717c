"""Curves: the rows of one prompt under one lens at its last position, from the embedding to the last layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.analysis.curve_rows import CurveRows, Numbers, RowColumns, numbers_of
from layerscope.record.prompt_key import PromptKey

Row: TypeAlias = Mapping[str, Any]
"""Values by column name, and under `row` the row's place in the table."""
Predicate: TypeAlias = Callable[[Row], bool | None]
"""Whether something holds in a row; None where its value is absent."""

View: TypeAlias = Callable[[pl.LazyFrame], pl.LazyFrame]


def entropy_gap(row: Row) -> float | None:
    """By how much a row is less certain than the model's own output, in bits; None where that is not known."""
    lens, teacher = row["entropy_bits"], row["teacher_entropy_bits"]
    return None if lens is None or teacher is None else lens - teacher


@dataclass(frozen=True)
class Curve:
    """What a lens reads at the last position of a prompt, layer by layer."""

    prompt: PromptKey
    lens: str
    n_layers: int
    """Number of blocks of the model: the last layer's number."""
    d_vocab: int
    rows: Sequence[Row]
    """In ascending layer order; layers may be missing where a file lacks them, or a lens has no map for them."""

    def first(self, holds: Predicate) -> int | None:
        """The shallowest layer at which it holds; None where it never does."""
        return next((row["layer"] for row in self.rows if holds(row)), None)

    def first_of_two(self, holds: Predicate) -> int | None:
        """The shallowest layer at which it holds together with the next layer."""
        held = {row["layer"] for row in self.rows if holds(row)}
        return min((layer for layer in held if layer + 1 in held), default=None)

    def layers(self, holds: Predicate) -> list[int]:
        """Every layer at which it holds."""
        return [row["layer"] for row in self.rows if holds(row)]

    def at(self, layer: int | None) -> Row | None:
        """The row of a layer; None where there is none."""
        for place, of_row in enumerate(self.column("layer")):
            if of_row == layer:
                return self.rows[place]
        return None

    def value(self, column: str, layer: int | None) -> Any:
        """A value at a layer; None where either is absent."""
        row = self.at(layer)
        return None if row is None else row[column]

    def column(self, name: str) -> list[Any]:
        """The values of a column from shallow to deep, None where one is absent."""
        return self.rows.column(name) if isinstance(self.rows, CurveRows) else [row[name] for row in self.rows]

    def values(self, column: str) -> list[Any]:
        """Values that are not absent, from shallow to deep."""
        return [value for value in self.column(column) if value is not None]


@dataclass(frozen=True)
class Curves:
    """All curves of a run, in the order of its rows."""

    by_key: Mapping[tuple[PromptKey, str], Curve]
    _columns: RowColumns | None = field(default=None, compare=False, repr=False)
    """What the rows of all of them, one curve after another, are read from; None where each has rows of its own."""

    @classmethod
    def of(
        cls,
        rows: pl.DataFrame | pl.LazyFrame,
        n_layers: int,
        d_vocab: int,
        judged: View = lambda rows: rows,
        keep: object = None,
    ) -> "Curves":
        """Group the rows at last positions by prompt and lens.

        Args:
            judged: another view of the table; it keeps rows and lists as they are.
            keep: whatever has to live as long as the rows are read.
        """
        columns = RowColumns.of(rows.lazy(), judged, keep)
        by_key = {
            (PromptKey(*key[:3]), key[3]): Curve(PromptKey(*key[:3]), key[3], n_layers, d_vocab, its)
            for key, its in columns.by_curve()
        }
        return cls(by_key, columns)

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.by_key.values())

    def get(self, prompt: PromptKey | None, lens: str) -> Curve | None:
        """One prompt under one lens; None where it was not read."""
        return None if prompt is None else self.by_key.get((prompt, lens))

    @cached_property
    def passes(self) -> Sequence[PromptKey]:
        """The prompts, in the order of the rows."""
        return tuple(dict.fromkeys(prompt for prompt, _ in self.by_key))

    @cached_property
    def variants(self) -> frozenset[str]:
        """The wordings of the prompts."""
        return frozenset(prompt.prompt_variant for prompt in self.passes)

    @cached_property
    def of_prompt(self) -> Mapping[PromptKey, Sequence[Curve]]:
        """The curves of each prompt, in the order of the rows."""
        curves: dict[PromptKey, list[Curve]] = {}
        for curve in self:
            curves.setdefault(curve.prompt, []).append(curve)
        return curves

    @cached_property
    def lenses(self) -> Sequence[str]:
        """The lenses, in the order of the rows."""
        return tuple(dict.fromkeys(lens for _, lens in self.by_key))

    @cached_property
    def primary(self) -> PromptKey | None:
        """The prompt that diagnostics describe unless they say otherwise: the first fact in its first wording."""
        return next((prompt for prompt in self.passes if prompt.is_fact), None)

    @cached_property
    def fact_keys(self) -> Mapping[PromptKey, str]:
        """What each prompt's fact is called, wherever a row says it."""
        keys = {}
        for curve in self:
            known = curve.values("fact_key")
            if known:
                keys[curve.prompt] = known[-1]
        return keys

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where, in columns of all rows one curve after another, each curve ends."""
        return np.cumsum([len(curve.rows) for curve in self], dtype=np.int64)

    @cached_property
    def curve_of_row(self) -> NDArray[np.int64]:
        """For each row of such columns, the place of its curve."""
        return np.repeat(np.arange(len(self.by_key)), np.diff(self.ends, prepend=0))

    def numbers(self, column: str) -> Numbers:
        """Such a column, as numbers: NaN where a value is absent, 1 and 0 for yes and no."""
        if self._columns is not None:
            return self._columns.numbers(column)
        return numbers_of([value for curve in self for value in curve.column(column)])
