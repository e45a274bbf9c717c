"""Rows of `experts.parquet` from what one pass gave."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl
import torch
from torch import Tensor

from layerscope.model.routing import Choices, Mixture, Routing
from layerscope.probing.encode import Encoded
from layerscope.record.routing import MixtureRecord, RoutingRecord, routing_frame


@dataclass
class RoutingSoFar:
    """The choices of the batches that have gone through."""

    mixtures: dict[Mixture, int] = field(default_factory=dict)
    """To how many of its experts each of them sends a token."""
    tables: list[pl.DataFrame] = field(default_factory=list)

    def add(self, prompts: Sequence[Encoded], routing: Routing | None) -> None:
        """Those of some prompts, which were the first of a pass."""
        if routing is None or not routing.by_mixture:
            return
        self.mixtures |= {mixture: choices.experts.shape[-1] for mixture, choices in routing.by_mixture.items()}
        self.tables.append(routing_table(prompts, routing))

    @property
    def record(self) -> RoutingRecord | None:
        """What the run's record says of it; None where no token was seen to be sent anywhere."""
        told = [
            MixtureRecord(layer=one.layer, module=one.module, n_experts=one.n_experts, n_chosen=n)
            for one, n in self.mixtures.items()
        ]
        return RoutingRecord(mixtures=tuple(told)) if told else None

    @property
    def table(self) -> pl.DataFrame | None:
        """All rows; None likewise."""
        return pl.concat(self.tables) if self.tables else None


def routing_table(prompts: Sequence[Encoded], routing: Routing) -> pl.DataFrame:
    """The choices at the positions that are decoded, prompt by prompt, position by position, layer by layer."""
    keys = [(i, position) for i, prompt in enumerate(prompts) for position in prompt.positions]
    by_mixture = [_of_mixture(mixture, choices, keys) for mixture, choices in routing.by_mixture.items()]
    n = len(by_mixture)
    rows = [row for of_place in zip(*by_mixture, strict=True) for row in of_place]
    asked = [prompts[i].prompt for i, _ in keys for _ in range(n)]
    return routing_frame(
        {
            "fact_key": pl.Series([prompt.fact_key for prompt in asked], dtype=pl.String),
            "fact_index": pl.Series([prompt.fact_index for prompt in asked], dtype=pl.Int32),
            "prompt_id": [prompt.prompt_id for prompt in asked],
            "prompt_variant": [prompt.prompt_variant for prompt in asked],
            "position": [position for _, position in keys for _ in range(n)],
            "is_next": [position == len(prompts[i].token_ids) - 1 for i, position in keys for _ in range(n)],
            "layer": [mixture.layer for mixture, _, _ in rows],
            "module": [mixture.module for mixture, _, _ in rows],
            "experts": [experts for _, experts, _ in rows],
            "weights": [weights for _, _, weights in rows],
        }
    )


def _of_mixture(
    mixture: Mixture, choices: Choices, keys: Sequence[tuple[int, int]]
) -> Iterator[tuple[Mixture, list[int], list[float]]]:
    """What one mixture chose at each place, the largest weight first."""
    places = torch.tensor(keys)
    weights: Tensor = choices.weights[places[:, 0], places[:, 1]]
    order = weights.argsort(dim=-1, descending=True, stable=True)
    experts = choices.experts[places[:, 0], places[:, 1]].gather(1, order)
    for own, own_weights in zip(experts.tolist(), weights.gather(1, order).tolist(), strict=True):
        yield mixture, own, own_weights
