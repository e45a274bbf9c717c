"""Blocks: what one prompt reads like under one lens, layers by positions, as typed arrays behind one another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
Key: TypeAlias = tuple[int | None, str, str, str]
"""`fact_index`, `prompt_id`, `prompt_variant`, `lens`."""


@dataclass(frozen=True)
class Vocabulary:
    """Every token that any list of a page names, once: two ids with one text are two tokens."""

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    """-1 where a file gives the text alone."""
    _frame: pl.DataFrame

    @classmethod
    def of(cls, listings: Sequence[pl.DataFrame]) -> "Vocabulary":
        """The tokens of `listed` tables, in the order in which they first come."""
        tokens = pl.concat([listing.select("id", "text") for listing in listings]).unique(maintain_order=True)
        frame = tokens.with_row_index("token", offset=1)
        return cls(tuple(tokens["text"]), tuple(tokens["id"]), frame)

    def numbered(self, listing: pl.DataFrame) -> pl.DataFrame:
        """A `listed` table with the column `token`: place in the vocabulary, counted from 1."""
        return listing.join(self._frame, on=["id", "text"], how="left", maintain_order="left")


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
    plain = rows.with_row_index("row").with_columns(
        pl.coalesce("p_top1", pl.col("top_probs").list.get(0, null_on_oob=True)).alias("p_top1")
    )
    if not probabilities:
        plain = plain.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in FLOATS)
    if not ranks:
        plain = plain.with_columns(pl.lit(None, dtype=pl.Int32).alias("answer_rank"))
    with_keys = numbered.join(plain.select("row", *KEYS, "layer", "position"), on="row", how="left")
    lists = with_keys.partition_by(KEYS, as_dict=True, maintain_order=True)
    parts = plain.partition_by(KEYS, as_dict=True, maintain_order=True)
    return {key: _block(part, lists.get(key), n_layers) for key, part in parts.items()}


def _block(rows: pl.DataFrame, entries: pl.DataFrame | None, n_layers: int) -> Block:
    positions = tuple(sorted(set(rows["position"].to_list())))
    rows = rows.filter(pl.col("layer").is_between(0, n_layers))
    n = (n_layers + 1) * len(positions)
    at = _cells(rows, positions)
    floats = np.full((len(FLOATS), n), np.nan, "<f4")
    for place, name in enumerate(FLOATS):
        floats[place, at] = rows[name].to_numpy()
    ranks, state = np.zeros(n, "<u4"), np.zeros(n, "u1")
    ranks[at] = rows["answer_rank"].fill_null(0).to_numpy()
    state[at] = np.where(rows["finite"].to_numpy(), 1, 3)
    k = 0
    tokens, codes = np.zeros(0, "<u4"), np.zeros(0, "<u2")
    if entries is not None:
        entries = entries.filter(pl.col("layer").is_between(0, n_layers))
        places = entries["place"].to_numpy()
        k = int(places.max(initial=-1)) + 1
        tokens, codes = np.zeros(n * k, "<u4"), np.full(n * k, _ABSENT, "<u2")
        where = _cells(entries, positions) * k + places
        tokens[where] = entries["token"].to_numpy()
        codes[where] = coded(entries["p"].cast(pl.Float64).fill_null(float("nan")).to_numpy())
    content = b"".join(part.tobytes() for part in (floats, ranks, tokens, codes, state))
    return Block(positions, k, content)


def _cells(rows: pl.DataFrame, positions: Sequence[int]) -> NDArray[np.int64]:
    """Which cell each row belongs to."""
    columns = np.searchsorted(np.asarray(positions, np.int64), rows["position"].to_numpy())
    return rows["layer"].to_numpy().astype(np.int64) * len(positions) + columns


def coded(p: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Probabilities in 16 bits, see `STEPS_PER_BIT`; NaN becomes the code of no value."""
    known = np.nan_to_num(np.clip(p, 2.0**-80, 1.0), nan=1.0)
    codes = np.minimum(np.round(-np.log2(known) * STEPS_PER_BIT), _FLOOR)
    return np.where(np.isnan(p), _ABSENT, codes).astype("<u2")
