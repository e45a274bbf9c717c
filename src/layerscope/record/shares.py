"""The table of exchanges along lenses' directions: a row for each pair, layer, lens and part that was written."""

from collections.abc import Mapping, Sequence

import polars as pl

from layerscope.errors import RunError
from layerscope.record.rows import Column, table_of

FULL, SPAN, COMPLEMENT, RANDOM, OTHERS = "full", "span", "complement", "random", "others"
KINDS = (FULL, SPAN, COMPLEMENT, RANDOM, OTHERS)
FILE = "shares.parquet"

_KIND = (
    "What was written at the base's last token: `full`: the source's residual; `span`: its part along the lens' "
    "directions of both answers; `complement`: all but that; `random`: a step as long as the span's in a random "
    "subspace of equal dimension; `others`: as `span`, with the directions of two other answers."
)

SHARE_COLUMNS: tuple[Column, ...] = (
    Column("lens", pl.String(), "text", "Whose directions; null: none (`full`)."),
    Column("kind", pl.String(), "text", _KIND, False),
    Column("layer", pl.Int32(), "count from 0", "How many blocks had written.", False),
    Column("pair", pl.Int32(), "count from 0", "Which pair.", False),
    Column("base", pl.Int32(), "count from 0", "`fact_index` of the fact that was run.", False),
    Column("source", pl.Int32(), "count from 0", "`fact_index` of the fact that the step leads to.", False),
    Column("effect", pl.Float64(), "share", "(LD_patched - LD_base) / (LD_source - LD_base), before any softcap."),
    Column("step_share", pl.Float64(), "ratio", "Length of what was added, by that of the whole step to the source."),
    Column("rank", pl.Int32(), "dimensions", "Of the span: 2, or 1 where one direction alone was taken."),
    Column("cosine", pl.Float64(), "-1 to 1", "Between the directions of both answers."),
)
"""In the order in which they are stored. An effect is null where the patched run's output is not finite."""


def shares_frame(columns: Mapping[str, Sequence[object] | pl.Series]) -> pl.DataFrame:
    """The table made of its columns.

    Raises:
        RunError: a column is missing or unknown, or does not hold what it should.
    """
    frame = table_of("shares", SHARE_COLUMNS, columns)
    for column in SHARE_COLUMNS:
        if not column.nullable and frame[column.name].null_count():
            raise RunError(f"column `{column.name}` of shares has no value in {frame[column.name].null_count()} rows")
    unknown = set(frame["kind"].unique()) - set(KINDS)
    if unknown:
        raise RunError(f"column `kind` of shares should be one of {', '.join(KINDS)}, but holds {unknown}")
    return frame
