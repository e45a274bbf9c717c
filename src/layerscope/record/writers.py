"""The table of what was written, and by what: a row for each prompt, site, layer and kind of reading."""

import polars as pl

from layerscope.errors import RunError
from layerscope.record.rows import Column

FILE = "sublayers.parquet"
_INT, _TEXT, _FLOAT = pl.Int32(), pl.String(), pl.Float64()

WRITERS_COLUMNS: tuple[Column, ...] = (
    Column("prompt_id", _TEXT, "text", "As in the rows.", nullable=False),
    Column("prompt_variant", _TEXT, "text", "As in the rows.", nullable=False),
    Column("fact_index", _INT, "count from 0", "As in the rows; null for a control."),
    Column("layer", _INT, "count from 0", "The layer that the block writes; 0 is the embedding.", nullable=False),
    Column(
        "site",
        _TEXT,
        "text",
        "`resid`: the state at the layer; `mid`: the state between the block's attention and MLP; `attn`, `mlp`: what "
        "either adds; `head`: what one head adds; `head_biases`: what biases behind the heads add, or what stands for "
        "an ablated attention; `constant`: biases of the final norm and the head, at the last layer.",
        nullable=False,
    ),
    Column("head", _INT, "count from 0", "Which head of the block; null of every other site."),
    Column(
        "kind",
        _TEXT,
        "text",
        "`dla`: share of the final logit difference, the final norm's scale held; of `resid` at layer 0 the "
        "embedding's. `step`: by how much the logit lens' logit difference changes with the write. `lens`: a state "
        "through the logit lens. `write`: a write alone through final norm and head.",
        nullable=False,
    ),
    Column("logit_difference", _FLOAT, "nats", "Share, step or difference, before any softcap."),
    Column("answer_rank", _INT, "rank from 1", "Of `write`, and of `lens` at `mid`: rank of the answer."),
    Column("p_answer", _FLOAT, "probability", "Of the same: probability of the answer."),
    Column("entropy_bits", _FLOAT, "bits", "Of the same: entropy of the distribution."),
    Column("top1_id", _INT, "token id", "Of the same: the most likely token."),
)
"""Of `sublayers.parquet`."""
SCHEMA = {column.name: column.dtype for column in WRITERS_COLUMNS}


def check_writers(frame: pl.DataFrame) -> None:
    """Whether a table is one of these.

    Raises:
        RunError: naming the column that is missing, unknown, out of order or of another type, that lacks a value it
            must have, or that holds a NaN or an infinity.
    """
    if list(frame.columns) != list(SCHEMA):
        raise RunError(f"{FILE} should have the columns {', '.join(SCHEMA)}, but has {', '.join(frame.columns)}")
    for column in WRITERS_COLUMNS:
        found = frame[column.name]
        if found.dtype != column.dtype:
            raise RunError(f"column `{column.name}` of {FILE} should be of type {column.dtype}, but is {found.dtype}")
        if not column.nullable and found.null_count():
            raise RunError(f"column `{column.name}` of {FILE} has no value in {found.null_count()} rows")
        if column.dtype == _FLOAT and not found.is_finite().all():
            raise RunError(f"column `{column.name}` of {FILE} holds NaN or infinity; an absent number is null")
