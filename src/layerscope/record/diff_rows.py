"""The table of a comparison of two models: a row for each layer and position that both were decoded at."""

from collections.abc import Mapping, Sequence

import polars as pl

from layerscope.record.rows import Column, table_of

FILE = "diff.parquet"

DIFF_COLUMNS: tuple[Column, ...] = (
    Column("text", pl.Int32(), "count from 0", "Which text: sequences first, then the suite's prompts.", False),
    Column("is_prompt", pl.Boolean(), "true or false", "Whether it is a prompt of the suite.", False),
    Column("position", pl.Int32(), "count from 0", "Position in it, BOS counted.", False),
    Column("token_id", pl.Int32(), "token id", "The token there.", False),
    Column("token", pl.String(), "text", "Its string.", False),
    Column("layer", pl.Int32(), "count from 0", "How many blocks have run.", False),
    Column("relative_change", pl.Float64(), "share", "Norm of variant less base, over the base's norm."),
    Column("cosine", pl.Float64(), "-1 to 1", "Of both residuals."),
    Column("injected", pl.Float64(), "share", "What the variant's block adds by itself; null at layer 0."),
    Column("inherited", pl.Float64(), "share", "What came with the variant's stream; null at layer 0."),
    Column("injected_kl_bits", pl.Float64(), "bits", "KL of the base's lens with and without that; null at layer 0."),
    Column("kl_bits", pl.Float64(), "bits", "KL(base || variant) of both logit lenses."),
    Column("js_bits", pl.Float64(), "bits", "Jensen-Shannon divergence of the same."),
    Column("base_to_output_bits", pl.Float64(), "bits", "KL(base's output || base's lens)."),
    Column("variant_to_output_bits", pl.Float64(), "bits", "KL(variant's output || variant's lens)."),
    Column("base_top1_id", pl.Int32(), "token id", "The base's lens' most likely token."),
    Column("variant_top1_id", pl.Int32(), "token id", "The variant's."),
    Column("base_top1", pl.String(), "text", "The string of the base's."),
    Column("variant_top1", pl.String(), "text", "Of the variant's, in the base's tokens."),
    Column(
        "base_rank",
        pl.Int32(),
        "rank from 1",
        "Of the token that follows; at a prompt's end of its answer, or the base's top token.",
    ),
    Column("variant_rank", pl.Int32(), "rank from 1", "In the variant."),
)
"""In the order in which they are stored; see `layerscope.analysis.model_diff.LayerDiff`."""


def diff_frame(columns: Mapping[str, Sequence[object] | pl.Series]) -> pl.DataFrame:
    """The table made of its columns.

    Raises:
        RunError: a column is missing or unknown, or does not hold what it should.
    """
    return table_of(FILE, DIFF_COLUMNS, columns)
