"""Logits of a few ids at every row, kept from the tiles of the sweep as they pass.

Another product than the sweep's would round otherwise: a token's probability would then not be the one that it has
among the most likely, and a sum over all of a prompt's tokens could be less than that over some of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class KnownLogits:
    """Linear logits of some ids at some positions, in every group."""

    def __init__(
        self,
        wanted: Sequence[Int[Tensor, "_ _"]],
        n_groups: int,
        per_block: int,
        starts: Sequence[int],
        d_vocab: int,
        device: torch.device,
    ) -> None:
        """Find out which tile brings what.

        Args:
            wanted: the ids, question by question `[position, id]`; their positions stand side by side.
            n_groups: how many groups of rows there are.
            per_block: positions are multiplied together in blocks of so many.
            starts: first ids of the tiles.
            d_vocab: size of the vocabulary.
            device: where the logits are.
        """
        self._wanted = wanted
        self._shapes = [tuple(ids.shape) for ids in wanted]
        at = torch.arange(sum(n for n, _ in self._shapes))
        own = torch.split(at, [n for n, _ in self._shapes])
        flat = [torch.stack([p[:, None].expand_as(i), i]).flatten(1) for p, i in zip(own, wanted, strict=True)]
        position, token_id = torch.cat([torch.empty(2, 0, dtype=torch.int64), *flat], dim=1)
        key = position // per_block * d_vocab + token_id
        order = torch.argsort(key, stable=True)
        self._back = torch.argsort(order)
        n_blocks = -(-max(1, len(at)) // per_block)
        edges = np.array([[block * d_vocab + start for start in (*starts, d_vocab)] for block in range(n_blocks)])
        self._edges = np.searchsorted(key[order].numpy(), edges).tolist()
        self._row = (position[order] % per_block).to(device)
        self._id = token_id[order].to(device)
        self._logits = torch.full((n_groups, len(order)), torch.nan, device=device)

    def keep(
        self, logits: Float[Tensor, "groups positions tile"], groups: slice, block: int, tile: int, start: int
    ) -> None:
        """Keep what a tile brings for some groups of a block of positions.

        Args:
            logits: of the tile whose first id is `start`.
            block: which block of positions, counted from 0.
            tile: which tile, counted from 0.
        """
        first, last = self._edges[block][tile : tile + 2]
        if first < last:
            self._logits[groups, first:last] = logits[:, self._row[first:last], self._id[first:last] - start]

    def ids_of(self, question: int) -> Int[Tensor, "positions ids"]:
        """What a question wanted."""
        return self._wanted[question]

    def by_question(self) -> list[Float[Tensor, "groups _ _"]]:
        """What was kept, `[group, position, id]` as it was wanted; on the CPU."""
        logits = self._logits.cpu()
        parts = torch.split(self._back, [n_positions * n_ids for n_positions, n_ids in self._shapes])
        return [logits[:, part].view(len(logits), *shape) for part, shape in zip(parts, self._shapes, strict=True)]
