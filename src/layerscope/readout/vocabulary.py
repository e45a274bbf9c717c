"""Running statistics of logits while they pass by, a tile of the vocabulary at a time.

Nothing here keeps a row of logits. Sums are float64 and relative to the running maximum (the *peak*), and the peak's
own term is left out of them, so that an entropy of 1e-30 bits keeps its digits: with `tail = sum over the others of
exp(z - peak)`, the log-sum-exp is `peak + log1p(tail)`, and a row that is sure of one token has a tiny tail instead of
a sum that rounds to one.

A divergence compares logits relative to their own peaks. The difference of two logits of size S is rounded to S times
the unit roundoff u, which for a row with logits of 10,000 is 1e-3 bits. Relative to its peak a logit that matters is
small, and exact in float32 where the peak is large: what is at least half of it is subtracted without rounding.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from layerscope.unembedding import HeadTransform

LN2 = 0.6931471805599453
KL_FLOOR_NATS = -69.07755278982137
"""ln 1e-30: log-probabilities of the reference distribution count as no lower than this."""
NEAR_NATS = 32.0
"""How far below the peak ids weigh nothing beside it: e^-32 is 1e-14."""


class TopK:
    """The `k` largest logits of every row and their ids; equal logits are ordered by id, the smaller first.

    Tiles must come in the order of their ids. Only rows whose tile maximum beats their current k-th value are looked
    at; what they find waits in a buffer behind the current best, and is sorted in when the buffer is full.
    """

    SPARE = 96
    """Places for finds that wait."""

    def __init__(self, n_rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self._width = k + self.SPARE
        self._values = torch.full((n_rows, self._width), -torch.inf, device=device)
        self._ids = torch.full((n_rows, self._width), -1, dtype=torch.int64, device=device)
        self._filled = torch.full((n_rows,), k, dtype=torch.int64, device=device)

    @property
    def values(self) -> Float[Tensor, "rows k"]:
        """Logits, largest first; complete after `merge`."""
        return self._values[:, : self.k]

    @property
    def ids(self) -> Int[Tensor, "rows k"]:
        """Their ids; -1 where fewer than k logits were finite."""
        return self._ids[:, : self.k]

    def update(self, logits: Float[Tensor, "rows tile"], start: int, tile_peak: Float[Tensor, " rows"]) -> None:
        """Take in the logits of ids `start ...`; `tile_peak` is their maximum by row."""
        rows = (tile_peak > self._values[:, self.k - 1]).nonzero().squeeze(-1)
        if rows.numel() == 0:
            return
        candidates = logits if rows.numel() == logits.shape[0] else logits[rows]
        hits, counts = self._hits(candidates, rows)
        if bool((self._filled[rows] + counts > self._width).any()):
            self.merge()  # raises the k-th values, so there is less to take in
            hits, counts = self._hits(candidates, rows)
        many = counts > self.SPARE
        if bool(many.any()):
            self._sort_in(candidates[many], rows[many], start)
            hits[many] = False
            counts = hits.sum(-1)
        which, column = hits.nonzero(as_tuple=True)
        first = self._filled[rows] - (counts.cumsum(0) - counts)
        place = torch.arange(len(which), device=which.device) + first[which]
        row = rows[which]
        self._values[row, place] = candidates[which, column]
        self._ids[row, place] = column + start
        self._filled[rows] += counts

    def _hits(
        self, candidates: Float[Tensor, "some tile"], rows: Int[Tensor, " some"]
    ) -> tuple[Bool[Tensor, "some tile"], Int[Tensor, " some"]]:
        """Which logits beat their row's k-th value, and how many in each row."""
        hits = candidates > self._values[rows, self.k - 1, None]
        return hits, hits.sum(-1)

    def _sort_in(self, logits: Float[Tensor, "some tile"], rows: Int[Tensor, " some"], start: int) -> None:
        """Rows of which a tile brings more than there are places for: as at the first tile."""
        n = logits.shape[1]
        ids = torch.arange(start, start + n, device=logits.device).expand(len(rows), n)
        values = torch.cat([self._values[rows, : self.k], logits], dim=1)
        self._values[rows, : self.k], order = (part[:, : self.k] for part in _sorted(values))
        self._ids[rows, : self.k] = torch.cat([self._ids[rows, : self.k], ids], dim=1).gather(1, order)

    def merge(self) -> None:
        """Sort in whatever waits."""
        rows = (self._filled > self.k).nonzero().squeeze(-1)
        if rows.numel() == 0:
            return
        width = int(self._filled[rows].max())
        waiting = torch.arange(width, device=rows.device) < self._filled[rows, None]
        values = self._values[rows, :width].masked_fill(~waiting, -torch.inf)
        best, order = (part[:, : self.k] for part in _sorted(values))
        self._values[rows, : self.k] = best
        self._ids[rows, : self.k] = self._ids[rows, :width].gather(1, order)
        self._filled[rows] = self.k


def _sorted(values: Float[Tensor, "rows n"]) -> tuple[Float[Tensor, "rows n"], Int[Tensor, "rows n"]]:
    """Largest first; equal values keep their order, which is that of their ids, since earlier finds are smaller."""
    descending = torch.sort(values, dim=-1, descending=True, stable=True)
    return descending.values, descending.indices


def references(running_peaks: Float[Tensor, "tiles positions"]) -> Float[Tensor, "tiles positions"]:
    """What the final logits are relative to, tile by tile: at the last tile their peak over the whole vocabulary.

    A row relative to its own running peak and the final row relative to its own are equal to the last bit where their
    logits are, and then diverge by nothing. Where the running peak is far below what it will be, the last one stands
    in its place, since the floor under the final row's probabilities would be rounded in proportion to that distance.
    """
    last = running_peaks[-1]
    return torch.where(last - running_peaks <= NEAR_NATS, running_peaks, last)


@dataclass(frozen=True)
class Tile:
    """A piece of the vocabulary, and what every row is compared with there."""

    index: int
    """Which tile, counted from 0."""
    start: int
    """Its first id."""
    weight: Float[Tensor, "tile d_head"]
    bias: Float[Tensor, " tile"] | None
    final: Float[Tensor, "positions tile"]
    """The model's own logits, transformed."""
    own_final: Float[Tensor, "positions tile"]
    """The same without bias."""
    final_shifted: Float[Tensor, "positions tile"]
    """The same less the tile's reference, and floored."""
    twins: Bool[Tensor, "answers tile"]
    """Which columns have the very same row of the head as an answer, its own column among them."""

    @cached_property
    def sparse_twins(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the columns of each answer's twins begin in the second array, and the columns."""
        answers, columns = self.twins.nonzero(as_tuple=True)
        edges = torch.arange(max(1, len(self.twins)) + 1)
        return torch.searchsorted(answers, edges).numpy(), columns.numpy()


class VocabularyStatistics:
    """What is kept of the logits of a block of rows, against the final logits of the same positions.

    Rows are `[group, position]` flattened; every group (a lens at a layer) shares the final logits `[position, ids]`.
    A tile is taken in by `TorchStatistics` here, or by compiled loops (`CompiledStatistics`).
    """

    def __init__(
        self,
        n_rows: int,
        threshold: Float[Tensor, " rows"],
        judged: Int[Tensor, " rows"],
    ) -> None:
        """Begin with nothing seen.

        Args:
            n_rows: rows of the block.
            threshold: the answer's logit, whose rank is counted; -inf where a row has no answer.
            judged: which of the sweep's answers is judged in each row; anything where it has none.
        """
        device = threshold.device
        self.peak = torch.full((n_rows,), -torch.inf, device=device)
        self.low = torch.full((n_rows,), torch.inf, device=device)
        """The smallest logit."""
        self.sums = torch.zeros(n_rows, 6, dtype=torch.float64, device=device)
        self.tail, self.tail_moment, self.difference, self.sum_z, self.sum_zz, self.sum_z_final = self.sums.unbind(-1)
        """Views of the sums. Over all ids but the peak's: of exp(z - peak), and of exp(z - peak) (z - peak), which is
        never positive. Over all ids: of exp(z - peak) ((z - peak) - (z_final - reference)), of z, of z^2 and of
        z z_final, the last three without the head's bias."""
        self.above = torch.zeros(n_rows, dtype=torch.int64, device=device)
        """How many ids have a logit above the threshold, ids with the answer's own row of the head not counted."""
        self._threshold, self._judged = threshold, judged

    def move_reference(self, by: Float[Tensor, " positions"]) -> None:
        """Let the final logits be relative to another reference from here on, which is larger by so much."""
        self.difference.view(-1, len(by)).add_(by * (1.0 + self.tail.view(-1, len(by))))

    def log_sum_exp(self) -> Float[Tensor, " rows"]:
        """Natural log of the sum of exponentials, float64."""
        return self.peak.double() + torch.log1p(self.tail)

    def entropy_bits(self) -> Float[Tensor, " rows"]:
        """Shannon entropy in bits, in [0, log2 d_vocab]."""
        return ((torch.log1p(self.tail) - self.tail_moment / (1.0 + self.tail)) / LN2).clamp_min(0.0)

    def kl_to_final_bits(self, final_tail: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """KL(row || final) in bits; rounding below zero is written as 0.

        With logits relative to their peaks log p = (z_p - peak_p) - log1p(tail_p), so KL(p || q) is the mean under p of
        the difference of shifted logits, less log1p(tail_p), plus log1p(tail_q) (Cover & Thomas, section 2.3).

        That difference, its weight and their product round by at most 7 u (|log p| + |log q|), u being 2^-24, whose
        mean under p is 7 u times entropy plus cross-entropy, whatever the size of the logits.

        Args:
            final_tail: the final row's `tail`, found over the same tiles.
        """
        nats = self.difference / (1.0 + self.tail) - torch.log1p(self.tail) + torch.log1p(final_tail)
        return (nats / LN2).clamp_min(0.0)

    def finite(self) -> Bool[Tensor, " rows"]:
        """Which rows saw nothing but finite logits."""
        return torch.isfinite(self.peak) & torch.isfinite(self.low) & torch.isfinite(self.tail)


class TorchStatistics(VocabularyStatistics):
    """Tiles are taken in by one elementwise operation after the other, on any device."""

    def __init__(self, n_rows: int, k: int, threshold: Float[Tensor, " rows"], judged: Int[Tensor, " rows"]) -> None:
        """Begin with nothing seen; `k` is how many of the largest logits to keep."""
        super().__init__(n_rows, threshold, judged)
        self._top = TopK(n_rows, k, threshold.device)

    def take_in(
        self,
        linear: Float[Tensor, "rows tile"],
        tile: Tile,
        positions: slice,
        transform: HeadTransform,
        *spare: Float[Tensor, "rows tile"],
    ) -> None:
        """Take in a tile's logits before the head's transform, which are used up.

        Args:
            linear: of the rows.
            tile: where they belong.
            positions: which of the tile's positions the rows are at.
            transform: what is done to them.
            spare: room for as many numbers, twice.
        """
        self._update_ranks(linear, tile.start, tile.twins, spare[0])
        logits = transform.apply_(linear)
        self._update_sums(logits, tile.own_final[positions], tile.final_shifted[positions], tile.bias, *spare)

    def top(self) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
        """The largest linear logits, largest first, ties by id, and their ids; -1 where fewer were finite."""
        self._top.merge()
        return self._top.values, self._top.ids

    def _update_ranks(
        self,
        linear: Float[Tensor, "rows tile"],
        start: int,
        twins: Bool[Tensor, "answers tile"],
        buffer: Float[Tensor, "rows tile"],
    ) -> None:
        """Count ranks and collect the top k; on logits before the head transform, which keeps their order.

        A softcap rounds large logits to one value; the linear ones still tell which is larger.
        """
        self._top.update(linear, start, linear.amax(-1))
        torch.gt(linear, self._threshold[:, None], out=buffer)
        if bool(twins.any()):
            # The answer's logit comes from another product than this tile's and may round differently: neither its own
            # id nor another with the same row, a tie by definition, is compared with it.
            buffer.masked_fill_(twins[self._judged], 0.0)
        self.above += buffer.sum(-1).long()

    def _update_sums(
        self,
        logits: Float[Tensor, "rows tile"],
        own_final: Float[Tensor, "positions tile"],
        final_shifted: Float[Tensor, "positions tile"],
        bias: Float[Tensor, " tile"] | None,
        shifted: Float[Tensor, "rows tile"],
        weight: Float[Tensor, "rows tile"],
    ) -> None:
        """Take in transformed logits, which are used up; cosines leave the head's bias out."""
        positions, tile = own_final.shape
        improved, peak_column = self._raise_peak(logits)
        self.low = torch.minimum(self.low, logits.amin(-1))

        own = logits if bias is None else torch.sub(logits, bias, out=weight)
        self.sum_z += own.sum(-1, dtype=torch.float64)
        self.sum_zz += torch.mul(own, own, out=shifted).sum(-1, dtype=torch.float64)
        torch.mul(own.view(-1, positions, tile), own_final, out=shifted.view(-1, positions, tile))
        self.sum_z_final += shifted.sum(-1, dtype=torch.float64)

        torch.sub(logits, self.peak[:, None], out=shifted)
        torch.exp(shifted, out=weight)
        difference = logits.view(-1, positions, tile)
        torch.sub(shifted.view(-1, positions, tile), final_shifted, out=difference)
        self.difference += logits.mul_(weight).sum(-1, dtype=torch.float64)
        self.tail_moment += shifted.mul_(weight).sum(-1, dtype=torch.float64)
        weight[improved, peak_column] = 0.0
        self.tail += weight.sum(-1, dtype=torch.float64)

    def _raise_peak(
        self, logits: Float[Tensor, "rows tile"]
    ) -> tuple[Int[Tensor, " improved"], Int[Tensor, " improved"]]:
        """Move the sums to the new running maximum; the rows whose peak lies in this tile, and its column."""
        tile_peak = logits.amax(-1)
        rises = ~(tile_peak <= self.peak)  # a NaN must reach the sums, not hide behind a comparison
        improved = rises.nonzero().squeeze(-1)
        if improved.numel() == 0:
            return improved, improved
        old = self.peak[improved]
        rise = torch.where(torch.isinf(old), 0.0, tile_peak[improved].double() - old.double())
        shrink = torch.where(torch.isinf(old), 0.0, torch.exp(-rise))
        with_old_peak = self.tail[improved] + 1.0
        self.tail_moment[improved] = shrink * (self.tail_moment[improved] - rise * with_old_peak)
        self.tail[improved] = shrink * with_old_peak
        self.difference[improved] = shrink * (self.difference[improved] - rise * with_old_peak)
        self.peak[improved] = tile_peak[improved]
        return improved, logits[improved].argmax(-1)
