"""Rows of `sublayers.parquet` from what one pass gave."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from layerscope.probing.encode import Encoded
from layerscope.readout.decode import Readout
from layerscope.readout.direct_attribution import Shares
from layerscope.record.writers import SCHEMA

_PLACE = "place"
_OF_PROMPT = ("prompt_id", "prompt_variant", "fact_index")


def writers_table(
    prompts: Sequence[Encoded],
    shares: Shares,
    alone: Mapping[str, Tensor],
    readouts: Mapping[str, Readout],
) -> pl.DataFrame:
    """The rows of some prompts, prompt by prompt and layer by layer.

    Args:
        prompts: the prompts.
        shares: their logit differences taken apart.
        alone: of `attn` and `mlp` the logit difference of each write under its own norm, `[prompt, block]`.
        readouts: of `attn`, `mlp` and, where there is such a state, `mid`: the whole distributions, by block.
    """
    n = shares.attention.shape[1]
    blocks = np.arange(1, n + 1)
    parts = [
        _rows("resid", "lens", shares.lens, np.arange(n + 1)),
        _rows("resid", "dla", shares.embedding[:, None], np.array([0])),
        _rows("constant", "dla", shares.constant[:, None], np.array([n])),
        _rows("attn", "dla", shares.attention, blocks),
        _rows("mlp", "dla", shares.mlp, blocks),
        *(_rows(site, "write", alone[site], blocks, readouts[site]) for site in alone),
    ]
    attention_steps, mlp_steps = shares.steps()
    if shares.mid is not None and attention_steps is not None and mlp_steps is not None:
        parts += [
            _rows("mid", "lens", shares.mid, blocks, readouts["mid"]),
            _rows("attn", "step", attention_steps, blocks),
            _rows("mlp", "step", mlp_steps, blocks),
        ]
    if shares.heads is not None and shares.head_rest is not None:
        parts.append(_rows("head_biases", "dla", shares.head_rest, blocks))
        parts += [_rows("head", "dla", shares.heads[:, :, h], blocks, head=h) for h in range(shares.heads.shape[2])]
    keys = pl.DataFrame(
        {
            _PLACE: np.arange(len(prompts)),
            "prompt_id": [e.prompt.prompt_id for e in prompts],
            "prompt_variant": [e.prompt.prompt_variant for e in prompts],
            "fact_index": [e.prompt.fact_index for e in prompts],
        }
    )
    table = pl.concat(parts).join(keys.cast({_PLACE: pl.Int32}), on=_PLACE, maintain_order="left")
    return table.sort(_PLACE, "layer", maintain_order=True).select(
        pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()
    )


def _rows(
    site: str,
    kind: str,
    values: Tensor,
    layers: NDArray[np.int64],
    readout: Readout | None = None,
    head: int | None = None,
) -> pl.DataFrame:
    """One site: `[prompt, layer]` as rows; what is not finite is null."""
    n_prompts, n_layers = values.shape
    numbers = pl.Series("logit_difference", values.cpu().numpy().ravel())
    columns: dict[str, pl.Series] = {
        _PLACE: pl.Series(np.repeat(np.arange(n_prompts), n_layers)),
        "layer": pl.Series(np.tile(layers, n_prompts)),
        "logit_difference": numbers.set(numbers.is_finite().not_(), None),
    }
    if readout is not None:
        columns |= _read(readout)
    frame = pl.DataFrame(columns).with_columns(site=pl.lit(site), kind=pl.lit(kind), head=pl.lit(head))
    own = {_PLACE: pl.Int32(), **{name: SCHEMA[name] for name in SCHEMA if name not in _OF_PROMPT}}
    given = set(frame.columns)
    return frame.select(
        (pl.col(name) if name in given else pl.lit(None)).cast(dtype).alias(name) for name, dtype in own.items()
    )


def _read(readout: Readout) -> dict[str, pl.Series]:
    """Its distributions as columns; null where a logit is not finite."""
    whole = pl.Series(readout.finite.T.ravel())
    columns = {
        "answer_rank": readout.answer_rank,
        "p_answer": np.exp(readout.answer_log_prob).clip(max=1.0),
        "entropy_bits": readout.entropy_bits,
        "top1_id": readout.top_ids[:, :, 0],
    }
    return {name: pl.Series(values.T.ravel()).set(whole.not_(), None) for name, values in columns.items()}
