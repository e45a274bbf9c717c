"""Which experts of a mixture tokens were sent to: a table with a row for each position and mixture, and the record."""

from collections.abc import Mapping, Sequence

import polars as pl
from pydantic import Field

from layerscope.errors import RunError
from layerscope.lens_record import Positive, RecordModel
from layerscope.record.rows import Column, table_of

FILE = "experts.parquet"

ROUTING_COLUMNS: tuple[Column, ...] = (
    Column("fact_key", pl.String(), "text", "As in the rows; null for a control."),
    Column("fact_index", pl.Int32(), "count from 0", "As in the rows; null for a control."),
    Column("prompt_id", pl.String(), "text", "As in the rows.", False),
    Column("prompt_variant", pl.String(), "text", "As in the rows.", False),
    Column("position", pl.Int32(), "count from 0", "As in the rows, which are of the same positions.", False),
    Column("is_next", pl.Boolean(), "yes or no", "As in the rows: the last position.", False),
    Column("layer", pl.Int32(), "count from 1", "The layer that the block writes.", False),
    Column("module", pl.String(), "text", "Which experts of the block: their path in it.", False),
    Column(
        "experts", pl.List(pl.Int32()), "count from 0", "Those that the token was sent to, largest weight first.", False
    ),
    Column(
        "weights",
        pl.List(pl.Float64()),
        "factor",
        "By which the model multiplies what each of them gives; it may do that with what they are given instead.",
        False,
    ),
)
"""In the order in which they are stored."""
SCHEMA = {column.name: column.dtype for column in ROUTING_COLUMNS}


class MixtureRecord(RecordModel):
    """Experts of one block."""

    layer: Positive = Field(description="The layer that the block writes.")
    module: str = Field(description="Their path in the block.")
    n_experts: Positive = Field(description="How many there are.")
    n_chosen: Positive = Field(description="To how many of them each token is sent.")


class RoutingRecord(RecordModel):
    """Blocks that send tokens to experts; `experts.parquet` has every choice."""

    mixtures: tuple[MixtureRecord, ...] = Field(min_length=1, description="By layer.")


def routing_frame(columns: Mapping[str, Sequence[object] | pl.Series]) -> pl.DataFrame:
    """The table made of its columns.

    Raises:
        RunError: a column is missing or unknown, or does not hold what it should.
    """
    frame = table_of(FILE, ROUTING_COLUMNS, columns)
    check_routing(frame)
    return frame


def check_routing(frame: pl.DataFrame) -> None:
    """Whether a table is one of these.

    Raises:
        RunError: naming the column that is missing, unknown, out of order or of another type, or that lacks a value; or
            experts and weights differ in number.
    """
    if list(frame.columns) != list(SCHEMA):
        raise RunError(f"{FILE} should have the columns {', '.join(SCHEMA)}, but has {', '.join(frame.columns)}")
    for column in ROUTING_COLUMNS:
        found = frame[column.name]
        if found.dtype != column.dtype:
            raise RunError(f"column `{column.name}` of {FILE} should be of type {column.dtype}, but is {found.dtype}")
        if not column.nullable and found.null_count():
            raise RunError(f"column `{column.name}` of {FILE} has no value in {found.null_count()} rows")
    uneven = int((frame["experts"].list.len() != frame["weights"].list.len()).sum())
    if uneven:
        raise RunError(f"{FILE} has as many weights as experts in every row, but not in {uneven}")
