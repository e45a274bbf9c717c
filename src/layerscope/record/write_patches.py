"""The table of replaced writes: a row for each attention, MLP or head whose write was put into another run."""

from collections.abc import Mapping, Sequence

import polars as pl

from layerscope.errors import RunError
from layerscope.record.patches import METRICS, NEXT, PATCH_COLUMNS, SUBJECT
from layerscope.record.rows import Column, table_of

FILE = "write_patches.parquet"
ATTN, MLP, HEAD = "attn", "mlp", "head"
SITES = (ATTN, MLP, HEAD)
WRITE_PLACES = (SUBJECT, NEXT)

_OF_PATCHES = {column.name: column for column in PATCH_COLUMNS}
_SITE = (
    "Whose write was replaced: `attn`, `mlp`: all that either adds to the stream; `head`: what one head adds, in front "
    "of the attention's output matrix."
)
_DIRECT = (
    "What the replaced write alone does to that share, read by the head as it is, with the final norm's scale and all "
    "other writes as in the base's run; at `subject` zero; null of `head`."
)

WRITE_PATCH_COLUMNS: tuple[Column, ...] = (
    Column("pair", pl.Int32(), "count from 0", "Which of the record's patched pairs.", False),
    Column("base", pl.Int32(), "count from 0", "`fact_index` of the fact that was run.", False),
    Column("source", pl.Int32(), "count from 0", "`fact_index` of the fact whose write was put in.", False),
    Column("site", pl.String(), "text", _SITE, False),
    Column("layer", pl.Int32(), "count from 1", "The layer that the block writes.", False),
    Column("head", pl.Int32(), "count from 0", "Which head of the block; null of every other site."),
    Column(
        "place", pl.String(), "text", "`subject`: the subject's last token; `next`: the prompt's last token.", False
    ),
    _OF_PATCHES["position"],
    _OF_PATCHES["from_end"],
    Column("direct", pl.Float64(), "share", _DIRECT),
    *(_OF_PATCHES[name] for name in METRICS),
)
"""In the order in which they are stored. Metrics are null where the patched run's output is not finite."""
SCHEMA = {column.name: column.dtype for column in WRITE_PATCH_COLUMNS}


def write_patches_frame(columns: Mapping[str, Sequence[object] | pl.Series]) -> pl.DataFrame:
    """The table made of its columns.

    Raises:
        RunError: a column is missing or unknown, or does not hold what it should.
    """
    frame = table_of(FILE, WRITE_PATCH_COLUMNS, columns)
    check_write_patches(frame)
    return frame


def check_write_patches(frame: pl.DataFrame) -> None:
    """Whether a table is one of these.

    Raises:
        RunError: naming the column that is missing, unknown, out of order or of another type, that lacks a value it
            must have, or that holds what it must not.
    """
    if list(frame.columns) != list(SCHEMA):
        raise RunError(f"{FILE} should have the columns {', '.join(SCHEMA)}, but has {', '.join(frame.columns)}")
    for column in WRITE_PATCH_COLUMNS:
        found = frame[column.name]
        if found.dtype != column.dtype:
            raise RunError(f"column `{column.name}` of {FILE} should be of type {column.dtype}, but is {found.dtype}")
        if not column.nullable and found.null_count():
            raise RunError(f"column `{column.name}` of {FILE} has no value in {found.null_count()} rows")
        if column.dtype == pl.Float64() and not found.drop_nulls().is_finite().all():
            raise RunError(f"column `{column.name}` of {FILE} holds NaN or infinity; an absent number is null")
    for name, known in (("site", SITES), ("place", WRITE_PLACES)):
        unknown = set(frame[name].unique()) - set(known)
        if unknown:
            raise RunError(f"column `{name}` of {FILE} should be one of {', '.join(known)}, but holds {unknown}")
