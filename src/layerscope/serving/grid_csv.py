"""A look's grid as CSV: a line for each lens, layer and position."""

import json

import numpy as np
import polars as pl

from layerscope.looking.look import Look


def grid_csv(look: Look) -> bytes:
    """The columns of `Look.grid`, lists as JSON, and for each word that is followed its rank and probability.

    What is not known is empty.
    """
    frame = look.grid
    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]
    texts = {name: [None if row is None else _as_text(row.to_list()) for row in frame[name]] for name in lists}
    words = {}
    for tracked in look.tracked:
        if tracked.token is not None:
            words[f"rank of {tracked.word}"] = pl.Series(tracked.rank.ravel()).replace(0, None)
            words[f"p of {tracked.word}"] = pl.Series(np.exp(tracked.log_prob.ravel())).fill_nan(None)
    columns = [pl.Series(name, values, dtype=pl.String) for name, values in texts.items()]
    columns += [values.alias(name) for name, values in words.items()]
    return frame.with_columns(columns).write_csv().encode()


def _as_text(values: list[object]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False)
