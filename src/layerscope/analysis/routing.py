"""Which experts the prompts' last tokens are sent to, over a suite's facts."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class ExpertUse:
    """An expert in one layer, over some facts."""

    expert: int
    n: int
    """In how many of the prompts the last token is sent to it."""
    mean_weight: float
    """Over these."""


@dataclass(frozen=True)
class ExpertsAtNext:
    """The experts of one mixture that the last tokens of some prompts are sent to, most often used first."""

    layer: int
    module: str
    n_prompts: int
    used: tuple[ExpertUse, ...]


def experts_at_next(table: pl.DataFrame, layer: int, variant: str) -> tuple[ExpertsAtNext, ...]:
    """Those of a block's mixtures, over the facts in one wording.

    Args:
        table: the choices of a run, the columns of `layerscope.record.routing.ROUTING_COLUMNS`.
        layer: the layer that the block writes.
        variant: the wording.
    """
    at_next = table.filter(
        pl.col("is_next"),
        pl.col("fact_index").is_not_null(),
        pl.col("layer") == layer,
        pl.col("prompt_variant") == variant,
    )
    found = []
    for (module,), rows in at_next.group_by("module", maintain_order=True):
        uses = (
            rows.explode("experts", "weights")
            .group_by("experts")
            .agg(pl.len().alias("n"), pl.col("weights").mean())
            .sort("n", "weights", "experts", descending=[True, True, False])
        )
        used = tuple(ExpertUse(int(e), int(n), float(w)) for e, n, w in uses.select("experts", "n", "weights").rows())
        found.append(ExpertsAtNext(layer, str(module), len(rows), used))
    return tuple(found)
