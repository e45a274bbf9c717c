"""From measured columns to the table of a run: prompts joined, strings beside ids."""

from collections.abc import Sequence

import polars as pl

from layerscope.model.causal_lm import CausalLM
from layerscope.probing.encode import Encoded
from layerscope.record.rows import rows_frame

OF_EACH_LAYER = ("tuned", "ridge", "jacobian")
"""Fitted lenses with a map of each layer's own."""


def row_table(
    measured: pl.DataFrame, encoded: Sequence[Encoded], model: CausalLM, first: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The table of a run, or of a batch of its prompts, strings beside ids; and what numeric health is judged by.

    Args:
        measured: columns as the readout gives them; `prompt` counts within `encoded`.
        first: place in the suite of the first of the prompts; what health is judged by names them by their places.

    Lenses with a map of each layer's own have no rows at layer 0: nothing has read the prompt there, and the map is a
    table of bigrams.
    """
    measured = measured.filter(~(pl.col("lens").is_in(OF_EACH_LAYER) & (pl.col("layer") == 0)))
    prompts = pl.DataFrame(
        {
            "prompt": pl.Series(range(len(encoded)), dtype=measured.schema["prompt"]),
            "fact_key": pl.Series([e.prompt.fact_key for e in encoded], dtype=pl.String),
            "fact_index": pl.Series([e.prompt.fact_index for e in encoded], dtype=pl.Int32),
            "prompt_id": [e.prompt.prompt_id for e in encoded],
            "prompt_variant": [e.prompt.prompt_variant for e in encoded],
            "accepted": pl.Series([list(e.prompt.answers) for e in encoded], dtype=pl.List(pl.String)),
        }
    )
    ids = measured.select(
        pl.concat([pl.col("top_ids").explode(), pl.col("token_id"), pl.col("top1_id")]).unique().drop_nulls()
    )
    strings = model.tokens.display(ids.to_series().to_list())
    old, new = list(strings), list(strings.values())

    def text(column: pl.Expr) -> pl.Expr:
        return column.cast(pl.Int64).replace_strict(old, new, default=None, return_dtype=pl.String)

    table = measured.join(prompts, on="prompt", maintain_order="left").with_columns(
        text(pl.col("token_id")).alias("token"),
        text(pl.col("top1_id")).alias("top1"),
        pl.col("top_ids").list.eval(text(pl.element())).alias("top_tokens"),
    )
    # An answer that could not be aligned has no id; whether the top token spells it can still be said.
    spelled = pl.col("top1").str.strip_chars().is_in(pl.col("accepted"))
    answered = pl.when(pl.col("accepted").list.len() > 0)  # elsewhere there is nothing to spell
    table = table.with_columns(answered.then(pl.coalesce("is_answer", spelled)).alias("is_answer"))
    health = table.select(
        pl.col("prompt") + first, "lens", "layer", "is_next", "any_nan", "any_inf", "max_abs_logit", "min_prob"
    )
    columns = table.drop("prompt", "accepted", "any_nan", "any_inf", "max_abs_logit", "min_prob")
    return rows_frame({name: columns[name] for name in columns.columns}), health
