"""Blocks: what one prompt reads like under one lens, layers by positions, as typed arrays behind one another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.record.prompt_key import PromptKey

KEYS = (*PromptKey._fields, "lens")
FLOATS = ("entropy_bits", "kl_to_final_bits", "p_top1", "p_answer")
"""Columns that travel as they are, in float32; NaN stands for an absent value."""
STEPS_PER_BIT = 1024
"""Probabilities of lists travel as round(-log2(p) * 1024) in 16 bits.

That is off by at most 0.034 per cent, so by less than half of the third decimal that is shown.
"""
_FLOOR, _ABSENT = 65_534, 65_535
"""The code of everything below 2**-63.99, and that of no value."""
_Value = TypeVar("_Value", int, str)
Key: TypeAlias = tuple[int | None, str, str, str]
"""`fact_index`, `prompt_id`, `prompt_variant`, `lens`."""


@dataclass(frozen=True)
class Vocabulary:
    """Every token that any list of a page names, once: two ids with one text are two tokens."""

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    """-1 where a file gives the text alone."""
    _frame: pl.DataFrame

    @cached_property
    def by_id(self) -> Mapping[int, Sequence[int]]:
        """Places of the tokens of each id."""
        return _by_value((id_, at) for at, id_ in enumerate(self.ids, start=1) if id_ >= 0)

    @cached_property
    def by_text(self) -> Mapping[str, Sequence[int]]:
        """Places of the tokens that are known by their text alone."""
        tokens = enumerate(zip(self.ids, self.texts, strict=True), start=1)
        return _by_value((text, at) for at, (id_, text) in tokens if id_ < 0)

    @classmethod
    def of(cls, listings: Sequence[pl.DataFrame]) -> "Vocabulary":
        """The tokens of `listed` tables, in the order in which they first come."""
        tokens = pl.concat([listing.select("id", "text") for listing in listings]).unique(maintain_order=True)
        frame = tokens.with_row_index("token", offset=1)
        return cls(tuple(tokens["text"]), tuple(tokens["id"]), frame)

    def numbered(self, listing: pl.DataFrame) -> pl.DataFrame:
        """A `listed` table with the column `token`: place in the vocabulary, counted from 1."""
        return listing.join(self._frame, on=["id", "text"], how="left", maintain_order="left")


def _by_value(pairs: Iterable[tuple[_Value, int]]) -> dict[_Value, list[int]]:
    found: dict[_Value, list[int]] = {}
    for value, at in pairs:
        found.setdefault(value, []).append(at)
    return found


@dataclass(frozen=True)
class Block:
    """One prompt under one lens."""

    positions: tuple[int, ...]
    """Positions that were decoded, ascending."""
    top_k: int
    """Entries of the longest list."""
    content: bytes
    """Little-endian, layers by positions by entries, in this order; there are n cells and k entries:
    for each of `FLOATS` n float32; n uint32 with the answer's rank, 0 where absent; n * k uint32 with tokens, 0 where
    absent; n * k uint16 with probabilities; n uint8: 0 without a row, 1 with one, 3 with one that is not finite."""


def listed(rows: pl.DataFrame, *, probabilities: bool) -> pl.DataFrame:
    """The lists of most likely tokens, entry by entry: `row`, `place` (from 0), `id` (-1 unknown), `text`, `p`.

    Args:
        rows: the run's table.
        probabilities: whether they may be shown; `p` is null where not.
    """
    lists = ("top_ids", "top_tokens", "top_probs")
    singles = dict(zip(lists, ("top1_id", "top1", "p_top1"), strict=True))
    # Tables that list nothing still name the most likely token.
    alone = pl.col("top_tokens").is_null() & pl.col("top_ids").is_null()
    whole = rows.with_row_index("row").with_columns(
        pl.when(alone & pl.col("top1").is_not_null()).then(pl.concat_list(single)).otherwise(pl.col(many)).alias(many)
        for many, single in singles.items()
    )
    whole = whole.select("row", *lists, n=pl.max_horizontal(pl.col(name).list.len() for name in lists).fill_null(0))
    long = whole.select("row", place=pl.int_ranges(0, pl.col("n"))).explode("place").drop_nulls()
    # Entry by entry, for a row's whole lists beside each of its entries would take the square of their length.
    for name in lists:
        long = long.join(_entries(whole, name), on=["row", "place"], how="left", maintain_order="left")
    # A list that is shorter than its siblings, or absent, has no entry there.
    return long.select(
        "row",
        "place",
        id=pl.col("top_ids").fill_null(-1),
        text=pl.col("top_tokens").fill_null(""),
        p=pl.col("top_probs") if probabilities else pl.lit(None, dtype=pl.Float64),
    )


def _entries(whole: pl.DataFrame, name: str) -> pl.DataFrame:
    """One list's entries, each with its `row` and its `place` there."""
    filled = whole.filter(pl.col(name).list.len() > 0)
    return filled.select("row", name, place=pl.int_ranges(0, pl.col(name).list.len())).explode(name, "place")


def blocks(
    rows: pl.DataFrame, numbered: pl.DataFrame, n_layers: int, *, probabilities: bool, ranks: bool
) -> Mapping[Key, Block]:
    """A block for each prompt and lens, in the order of the rows.

    Args:
        rows: the run's table.
        numbered: its lists, as `Vocabulary.numbered` gives them.
        n_layers: number of blocks of the model.
        probabilities: whether entropies, divergences and probabilities may be shown; they are absent where not.
        ranks: the same of ranks.
    """
    plain = rows.with_columns(pl.coalesce("p_top1", pl.col("top_probs").list.get(0, null_on_oob=True)).alias("p_top1"))
    if not probabilities:
        plain = plain.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in FLOATS)
    if not ranks:
        plain = plain.with_columns(pl.lit(None, dtype=pl.Int32).alias("answer_rank"))
    keys = plain.select(KEYS).unique(maintain_order=True)
    numbers = keys.with_row_index("block")
    block = plain.join(numbers, on=KEYS, how="left", nulls_equal=True, maintain_order="left")["block"].to_numpy()
    cells = _Cells(
        plain["layer"].to_numpy().astype(np.int64),
        plain["position"].to_numpy().astype(np.int64),
        np.stack([plain[name].to_numpy() for name in FLOATS]),
        plain["answer_rank"].fill_null(0).to_numpy(),
        plain["finite"].to_numpy(),
    )
    row = numbered["row"].to_numpy()
    entries = _Entries(
        row,
        numbered["place"].to_numpy(),
        numbered["token"].to_numpy(),
        coded(numbered["p"].cast(pl.Float64).fill_null(float("nan")).to_numpy()),
    )
    by_block, entries_by_block = _places(block, len(keys)), _places(block[row], len(keys))
    return {
        key: _block(cells, its, entries, listed_there, n_layers)
        for key, its, listed_there in zip(keys.iter_rows(), by_block, entries_by_block, strict=True)
    }


@dataclass(frozen=True)
class _Cells:
    """Columns of the rows of all blocks."""

    layer: NDArray[np.int64]
    position: NDArray[np.int64]
    floats: NDArray[np.float64]
    """As [name of `FLOATS`, row]."""
    rank: NDArray[np.int32]
    finite: NDArray[np.bool_]


@dataclass(frozen=True)
class _Entries:
    """Columns of the lists' entries of all blocks."""

    row: NDArray[np.uint32]
    place: NDArray[np.int64]
    token: NDArray[np.uint32]
    code: NDArray[np.uint16]


def _places(block: NDArray[np.uint32], n: int) -> list[NDArray[np.int64]]:
    """Where the members of each of n blocks stand, in their order."""
    order = np.argsort(block, kind="stable")
    return np.split(order, np.searchsorted(block[order], np.arange(1, n)))


def _block(
    cells: _Cells, rows: NDArray[np.int64], entries: _Entries, listed_there: NDArray[np.int64], n_layers: int
) -> Block:
    columns = np.unique(cells.position[rows])
    width, n = len(columns), (n_layers + 1) * len(columns)

    def inside(of: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (cells.layer[of] >= 0) & (cells.layer[of] <= n_layers)

    def cell(of: NDArray[np.int64]) -> NDArray[np.int64]:
        return cells.layer[of] * width + np.searchsorted(columns, cells.position[of])

    rows = rows[inside(rows)]
    at = cell(rows)
    floats = np.full((len(FLOATS), n), np.nan, "<f4")
    floats[:, at] = cells.floats[:, rows]
    ranks, state = np.zeros(n, "<u4"), np.zeros(n, "u1")
    ranks[at] = cells.rank[rows]
    state[at] = np.where(cells.finite[rows], 1, 3)
    listed_there = listed_there[inside(entries.row[listed_there].astype(np.int64))]
    places = entries.place[listed_there]
    k = int(places.max(initial=-1)) + 1
    tokens, codes = np.zeros(n * k, "<u4"), np.full(n * k, _ABSENT, "<u2")
    where = cell(entries.row[listed_there].astype(np.int64)) * k + places
    tokens[where] = entries.token[listed_there]
    codes[where] = entries.code[listed_there]
    content = b"".join(part.tobytes() for part in (floats, ranks, tokens, codes, state))
    return Block(tuple(columns.tolist()), k, content)


def coded(p: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Probabilities in 16 bits, see `STEPS_PER_BIT`; NaN becomes the code of no value."""
    known = np.nan_to_num(np.clip(p, 2.0**-80, 1.0), nan=1.0)
    codes = np.minimum(np.round(-np.log2(known) * STEPS_PER_BIT), _FLOOR)
    return np.where(np.isnan(p), _ABSENT, codes).astype("<u2")
