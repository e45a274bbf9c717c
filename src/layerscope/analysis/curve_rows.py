"""The rows at last positions, curve by curve, read a column at a time and only as far as they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.record.stored_rows import collected

Numbers: TypeAlias = NDArray[np.float64]
"""Values of a column as float64; NaN where one is absent, 1 and 0 for yes and no."""
Key: TypeAlias = tuple[int | None, str, str, str]
"""`fact_index`, `prompt_id`, `prompt_variant`, `lens`."""
_KEY = ("fact_index", "prompt_id", "prompt_variant", "lens")
_AT_ONCE = (
    "position", "is_next", "finite", "entropy_bits", "teacher_entropy_bits", "kl_to_final_bits", "top1_id", "p_top1",
    "p_answer", "answer_rank", "is_answer", "answer_logit_gap",
)  # fmt: skip
"""Read together with the keys: every verdict needs them."""
_WINDOW = 1 << 13
"""Rows of which a column's values are at hand at once: curves are mostly asked for one after another."""


class RowColumns:
    """Columns of a table's rows at last positions, one curve after another and each from shallow to deep."""

    def __init__(
        self,
        table: pl.LazyFrame,
        at_next: pl.LazyFrame,
        known: pl.DataFrame,
        order: pl.Series | None,
        keep: object = None,
    ) -> None:
        self._table, self._at_next, self._order, self._keep = table, at_next, order, keep
        self._known = {series.name: series for series in known}
        self._numbers: dict[str, Numbers] = {}
        self._windows: dict[str, tuple[int, list[Any]]] = {}
        self.schema: Mapping[str, pl.DataType] = at_next.collect_schema()
        """All that a row has, its place in the table under `row` first."""

    @classmethod
    def of(
        cls, table: pl.LazyFrame, judged: Callable[[pl.LazyFrame], pl.LazyFrame], keep: object = None
    ) -> "RowColumns":
        """From the whole table of a run; `judged` may change its columns, but no rows and no lists.

        `keep` is whatever has to live as long as the table is read.
        """
        at_next = judged(table.with_row_index("row").filter("is_next"))
        names = at_next.collect_schema()
        known = collected(at_next.select("row", *_KEY, "layer", *(name for name in _AT_ONCE if name in names)))
        if _in_order(known):
            return cls(table, at_next, known, None, keep)
        begins = pl.col("row").min().over(_KEY)
        order = known.with_row_index("place").sort(begins, "layer", "row")["place"]
        return cls(table, at_next, known[order], order, keep)

    def by_curve(self) -> Iterator[tuple[Key, "CurveRows"]]:
        """The rows of each curve, in the order in which the table comes to them."""
        keys = pl.DataFrame([self._known[name] for name in _KEY])
        starts = _starts(keys)
        stops = np.append(starts, len(keys))[1:]
        for key, start, stop in zip(keys[starts].iter_rows(), starts.tolist(), stops.tolist(), strict=True):
            yield key, CurveRows(self, start, stop)

    def numbers(self, name: str) -> Numbers:
        """A column as numbers, kept."""
        if name not in self._numbers:
            self._numbers[name] = self._series(name).cast(pl.Float64).to_numpy()
        return self._numbers[name]

    def values(self, name: str, start: int, stop: int) -> list[Any]:
        """The values of a column from one row up to another, None where one is absent."""
        if name not in self._known and isinstance(self.schema[name], pl.List):
            # Lists are most of a table, so no more of them is read than is near.
            rows = self._known["row"][start:stop]
            low, high = int(str(rows.min())), int(str(rows.max())) + 1
            begins, near = self._window(
                name, low, high, lambda at, n: collected(self._table.slice(at, n).select(name)).to_series()
            )
            return [near[row - begins] for row in rows]
        series = self._series(name)
        begins, near = self._window(name, start, stop, series.slice)
        return near[start - begins : stop - begins]

    def _window(self, name: str, start: int, stop: int, read: Callable[[int, int], pl.Series]) -> tuple[int, list[Any]]:
        """Values from a row that is not after the first to one that is not before the last: curves are neighbours."""
        begins, near = self._windows.get(name, (0, []))
        if start < begins or stop > begins + len(near):
            begins, near = start, read(start, max(stop - start, _WINDOW)).to_list()
            self._windows[name] = begins, near
        return begins, near

    def _series(self, name: str) -> pl.Series:
        if name not in self._known:
            series = collected(self._at_next.select(name)).to_series()
            self._known[name] = series if self._order is None else series[self._order]
        return self._known[name]


class CurveRows(Sequence[Mapping[str, Any]]):
    """The rows of one curve."""

    __slots__ = ("_columns", "_start", "_stop")

    def __init__(self, columns: RowColumns, start: int, stop: int) -> None:
        self._columns, self._start, self._stop = columns, start, stop

    def column(self, name: str) -> list[Any]:
        """The values of a column from shallow to deep, None where one is absent.

        Raises:
            KeyError: there is no such column.
        """
        return self._columns.values(name, self._start, self._stop)

    @property
    def names(self) -> Iterable[str]:
        """All that a row has, its place in the table under `row`."""
        return self._columns.schema

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        """A row, or some of them."""
        if isinstance(place, slice):
            return tuple(self)[place]
        return _Row(self._columns, (self._start, self._stop), {}, range(len(self))[place])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The rows; a column that one of them is asked for is read for all."""
        read: dict[str, list[Any]] = {}
        span = self._start, self._stop
        return (_Row(self._columns, span, read, place) for place in range(len(self)))

    def __len__(self) -> int:
        return self._stop - self._start

    def __eq__(self, other: object) -> bool:
        """Whether equal rows stand in the same order."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class _Row(Mapping[str, Any]):
    """One row, whose values are looked up where they are asked for."""

    __slots__ = ("_columns", "_place", "_read", "_span")

    def __init__(self, columns: RowColumns, span: tuple[int, int], read: dict[str, list[Any]], place: int) -> None:
        self._columns, self._span, self._read, self._place = columns, span, read, place

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = self._columns.values(name, *self._span)
        return self._read[name][self._place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.schema)

    def __len__(self) -> int:
        return sum(1 for _ in self._columns.schema)


def numbers_of(values: Sequence[Any]) -> Numbers:
    """Values as numbers, see `Numbers`."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _starts(keys: pl.DataFrame) -> NDArray[np.int64]:
    """Rows whose key is another than that of the row before."""
    changed = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in keys.columns)
    at = keys.select((changed | (pl.int_range(pl.len()) == 0)).arg_true()).to_series()
    return at.cast(pl.Int64).to_numpy()


def _in_order(known: pl.DataFrame) -> bool:
    """Whether the rows of each curve stand together, from shallow to deep."""
    keys = known.select(_KEY)
    starts = _starts(keys)
    if keys[starts].is_duplicated().any():
        return False
    descends = np.diff(known["layer"].to_numpy()) < 0
    descends[starts[1:] - 1] = False
    return not descends.any()
