"""The exact divergence of a lens from its model over the whole vocabulary, and its gradient, tile by tile.

Where the head has no softcap, KL(model || lens) needs the model's own distribution `p` only through its entropy and
its mean unembedding `sum_v p_v W_v`: the cross term `sum_v p_v z_v` is linear in the lens' row. Both are found once,
so a step visits the vocabulary with the lens' rows alone. Exponentials are taken relative to that cross term, which
`log sum_v exp(z_v)` exceeds by KL plus entropy: their sum is never below one, and overflows only where the lens is
tens of nats off. Rows of which that is true, and the model itself, are visited with a running maximum, sum and weighted
sum of `W` (online softmax; Milakov & Gimelshein 2018, and Rabe & Staats 2021 for the weighted sum). With a softcap the
model's logits are computed again beside the lens'.

A head of some ids alone stands for the whole vocabulary in a step of a large one: each drawn id counts as often as ids
of its probability to be drawn are left out, on the model's side as on the lens' (`Head.of_ids`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.products import product
from layerscope.stored.weight import DenseWeight
from layerscope.unembedding import Unembedding

DECODED_TOGETHER = 4096
"""Rows that visit the vocabulary together where no gradient is wanted."""
TILE_BYTES = 4 << 20
"""Logits of a tile: few enough to stay in the cache between their product and their exponentials."""
WEIGHT_TILE_BYTES = 32 << 20
"""Its weight, however few rows there are."""
TRUSTED_TOTALS = 0.5, 1e30
"""Sums of exponentials about the cross term that are kept. In theory none is below one, so one that is has lost its
digits; above, products with the weight might overflow."""


@dataclass(frozen=True)
class Targets:
    """What the model itself says at some positions, as far as a divergence from it asks."""

    rows: Float[Tensor, "n d_head"] | None
    """What the head multiplies there; kept with a softcap only."""
    mean_unembedding: Float[Tensor, "n d_head"]
    """`sum_v p_v W_v`."""
    mean_bias: Float[Tensor, " n"]
    """`sum_v p_v b_v`; zero without a bias."""
    mean_offset: Float[Tensor, " n"]
    """The same of the offsets of a head of some ids; zero of the whole vocabulary."""
    log_sum_exp: Float[Tensor, " n"]
    """Of the model's logits, head transform included."""
    entropy: Float[Tensor, " n"]
    """Of the model's distribution, in nats."""

    def at(self, index: Tensor) -> "Targets":
        """The targets of some positions."""
        return Targets(
            None if self.rows is None else self.rows[index],
            self.mean_unembedding[index],
            self.mean_bias[index],
            self.mean_offset[index],
            self.log_sum_exp[index],
            self.entropy[index],
        )

    @classmethod
    def joined(cls, parts: Sequence["Targets"]) -> "Targets":
        """Targets of several stretches, one after the other."""
        rows = [part.rows for part in parts if part.rows is not None]
        return cls(
            torch.cat(rows) if rows else None,
            torch.cat([part.mean_unembedding for part in parts]),
            torch.cat([part.mean_bias for part in parts]),
            torch.cat([part.mean_offset for part in parts]),
            torch.cat([part.log_sum_exp for part in parts]),
            torch.cat([part.entropy for part in parts]),
        )


@dataclass(frozen=True)
class Divergence:
    """KL(model || lens) of some rows, in nats, and its gradient by the row."""

    nats: Float[Tensor, " n"]
    gradient: Float[Tensor, "n d_model"] | None


class Head:
    """The model's head as a fit needs it: many visits of the same vocabulary with a few thousand rows each."""

    def __init__(self, unembedding: Unembedding, offset: Float[Tensor, " d_vocab"] | None = None) -> None:
        """Take a head.

        Args:
            unembedding: of all ids, or of some.
            offset: is added to each id's logit after the head transform; see `of_ids`.
        """
        self.unembedding, self.offset = unembedding, offset
        self.scale = unembedding.transform.scale or 1.0
        self.softcap = unembedding.transform.softcap

    def of_ids(self, ids: Int[Tensor, " some"], inclusion: Float[Tensor, " some"]) -> "Head":
        """This head over some ids, which stand for all.

        With `-log inclusion` added to its logits, the sum of exponentials over the drawn ids has the sum over all of
        them as its expectation (Horvitz & Thompson 1952), and so have both distributions' numerators; as the model's
        and the lens' see the same ids, the gradient vanishes exactly where they agree.

        Args:
            ids: that were drawn, each once.
            inclusion: the probability that it is among them.
        """
        whole = self.unembedding
        some = replace(
            whole, weight=DenseWeight(whole.columns(ids)), bias=None if whole.bias is None else whole.bias[ids]
        )
        return Head(some, -inclusion.log())

    def mean_probabilities(self, final_rows: Float[Tensor, "n d_model"]) -> Float[Tensor, " d_vocab"]:
        """The model's probability of every id, as a mean over rows."""
        rows = self.unembedding.head_input(final_rows.float())
        log_sum_exp = self._sums(rows, with_mean=False).log_sum_exp[:, None]
        tiles = self._tiles(len(rows))
        return torch.cat([(self._logits(rows, tile) - log_sum_exp).exp_().mean(0) for tile in tiles])

    def targets(self, final_rows: Float[Tensor, "n d_model"]) -> Targets:
        """What the model says, from the rows that its own head multiplies (after the final norm)."""
        rows = self.unembedding.head_input(final_rows.float())
        sums = self._sums(rows, with_mean=True)
        return Targets(
            rows=None if self.softcap is None else rows,
            mean_unembedding=sums.mean_unembedding,
            mean_bias=sums.mean_bias,
            mean_offset=sums.mean_offset,
            log_sum_exp=sums.log_sum_exp,
            entropy=sums.log_sum_exp - sums.mean_logit,
        )

    def divergence(
        self, lens_rows: Float[Tensor, "n d_model"], targets: Targets, *, gradient: bool = True
    ) -> Divergence:
        """KL(model || lens) where a lens unembeds `lens_rows`, through the model's own head and head transform."""
        rows = self.unembedding.head_input(lens_rows)
        if self.softcap is not None and targets.rows is not None:
            nats, by_head_row = self._capped(rows, targets.rows, targets, self.softcap, gradient)
        else:
            cross = self.scale * ((rows * targets.mean_unembedding).sum(-1) + targets.mean_bias) + targets.mean_offset
            excess, mean = self._about(rows, cross, with_mean=gradient)
            nats = excess - targets.entropy
            by_head_row = self.scale * (mean - targets.mean_unembedding) if gradient else None
        projection = self.unembedding.projection
        if by_head_row is not None and projection is not None:
            by_head_row = by_head_row @ projection
        return Divergence(nats, by_head_row)

    def log_probs(self, lens_rows: Float[Tensor, "n d_model"], token_ids: Tensor) -> Float[Tensor, " n"]:
        """Natural logarithm of the probability that each row gives one token."""
        rows = self.unembedding.head_input(lens_rows)
        log_sum_exp = self._sums(rows, with_mean=False).log_sum_exp
        columns = self.unembedding.columns(token_ids)
        logits = (rows * columns).sum(-1)
        if self.unembedding.bias is not None:
            logits = logits + self.unembedding.bias[token_ids.to(self.unembedding.bias.device)]
        return self.unembedding.transform.apply_(logits) - log_sum_exp

    def top1(self, lens_rows: Float[Tensor, "n d_model"]) -> Int[Tensor, " n"]:
        """The id of the largest logit of each row; the first of several."""
        rows = self.unembedding.head_input(lens_rows)
        best = rows.new_full((len(rows),), -torch.inf)
        top, start = torch.zeros(len(rows), dtype=torch.long, device=rows.device), 0
        for tile in self._tiles(len(rows)):
            value, at = tile.shifted_(self._logits(rows, tile)).max(-1)
            top = torch.where(value > best, at + start, top)
            best, start = torch.maximum(best, value), start + len(tile.weight)
        return top

    def _tiles(self, n: int) -> Iterator["_Tile"]:
        """A tile of ids at a time."""
        head = self.unembedding
        width = min(TILE_BYTES // (4 * max(1, n)), WEIGHT_TILE_BYTES // (4 * head.d_head))
        width = min(head.d_vocab, max(256, width))
        buffer = torch.empty(width, head.d_head, device=head.device)
        for start in range(0, head.d_vocab, width):
            stop = min(start + width, head.d_vocab)
            yield _Tile(
                head.tile(start, stop, out=buffer),
                None if head.bias is None else head.bias[start:stop],
                None if self.offset is None else self.offset[start:stop],
            )

    def _about(
        self, rows: Float[Tensor, "n d_head"], cross: Float[Tensor, " n"], *, with_mean: bool
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "_ d_head"]]:
        """How far `log sum_v exp(z_v)` is above the cross term, and the mean unembedding where asked for."""
        total, weighted = self._plain_sums(rows, cross[:, None], with_mean=with_mean)
        excess, mean = total.log()[:, 0], weighted.div_(total) if with_mean else weighted
        least, most = TRUSTED_TOTALS
        lost = ~((total > least) & (total < most))[:, 0]
        if bool(lost.any()):  # NaN among them, which stays what it is
            sums = self._sums(rows[lost], with_mean=with_mean)
            excess[lost] = sums.log_sum_exp - cross[lost]
            if with_mean:
                mean[lost] = sums.mean_unembedding
        return excess, mean

    def _plain_sums(
        self, rows: Float[Tensor, "n d_head"], reference: Float[Tensor, "n 1"], *, with_mean: bool
    ) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "_ d_head"]]:
        """`sum_v exp(z_v - reference)` and the same of `W` where asked for: three passes over a tile, no maximum."""
        total = torch.zeros_like(reference)
        weighted = torch.zeros_like(rows) if with_mean else rows[:0]
        for tile in self._tiles(len(rows)):
            exponentials = tile.shifted_(self._logits(rows, tile)).sub_(reference).exp_()
            total += exponentials.sum(-1, keepdim=True)
            if with_mean:
                weighted.add_(product(exponentials, tile.weight.T))
        return total, weighted

    def _logits(self, rows: Float[Tensor, "n d_head"], tile: "_Tile") -> Float[Tensor, "n tile"]:
        """Of one tile, head transform included; the offset is not."""
        logits = product(rows, tile.weight)
        if tile.bias is not None:
            logits += tile.bias
        return self.unembedding.transform.apply_(logits)

    def _sums(self, rows: Float[Tensor, "n d_head"], *, with_mean: bool) -> "_Sums":
        """One visit that no row can overflow: the normaliser, and what is expected under the softmax if asked for."""
        n = len(rows)
        peak = rows.new_full((n, 1), -torch.inf)
        total = rows.new_zeros(n, 1)
        weighted = torch.zeros_like(rows) if with_mean else rows[:0]
        bias_sum, offset_sum, logit_sum = (rows.new_zeros(n, 1) for _ in range(3))
        for tile in self._tiles(n):
            logits = tile.shifted_(self._logits(rows, tile))
            before, peak = peak, torch.maximum(peak, logits.amax(-1, keepdim=True))
            shrink = torch.exp(before - peak)
            if with_mean:
                kept = logits.clone()
            exponentials = logits.sub_(peak).exp_()
            total.mul_(shrink).add_(exponentials.sum(-1, keepdim=True))
            if with_mean:
                weighted.mul_(shrink).add_(product(exponentials, tile.weight.T))
                logit_sum.mul_(shrink).add_((exponentials * kept).sum(-1, keepdim=True))
                for sums, by_id in ((bias_sum, tile.bias), (offset_sum, tile.offset)):
                    if by_id is not None:
                        sums.mul_(shrink).add_((exponentials @ by_id)[:, None])
        log_sum_exp = (peak + total.log())[:, 0]
        mean = weighted / total if with_mean else weighted
        by_row = (sums[:, 0] for sums in (bias_sum / total, offset_sum / total, logit_sum / total))
        return _Sums(log_sum_exp, mean, *by_row)

    def _capped(
        self,
        rows: Float[Tensor, "n d_head"],
        model_rows: Float[Tensor, "n d_head"],
        targets: Targets,
        cap: float,
        gradient: bool,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d_head"] | None]:
        """The same with a softcap, whose slope `1 - (z / cap)^2` stands in every term of the gradient."""
        n = len(rows)
        peak, total = rows.new_full((n, 1), -torch.inf), rows.new_zeros(n, 1)
        cross = rows.new_zeros(n, 1)
        by_lens, by_model = (torch.zeros_like(rows) if gradient else rows[:0] for _ in range(2))
        for tile in self._tiles(n):
            logits = self._logits(rows, tile)
            slope = 1 - (logits / cap).square_() if gradient else None
            tile.shifted_(logits)
            p = tile.shifted_(self._logits(model_rows, tile)).sub_(targets.log_sum_exp[:, None]).exp_()
            cross += (p * logits).sum(-1, keepdim=True)
            before, peak = peak, torch.maximum(peak, logits.amax(-1, keepdim=True))
            shrink = torch.exp(before - peak)
            exponentials = torch.exp(logits - peak)
            total.mul_(shrink).add_(exponentials.sum(-1, keepdim=True))
            if slope is not None:
                by_lens.mul_(shrink).addmm_(exponentials.mul_(slope), tile.weight)
                by_model.addmm_(p.mul_(slope), tile.weight)
        nats = (peak + total.log() - cross)[:, 0] - targets.entropy
        return nats, self.scale * (by_lens / total - by_model) if gradient else None


@dataclass(frozen=True)
class _Tile:
    """Some ids: their weight in float32, and what is added to their logits before and after the head transform."""

    weight: Tensor
    bias: Tensor | None
    offset: Tensor | None

    def shifted_(self, logits: Tensor) -> Tensor:
        """Logits with the offset, in place."""
        return logits if self.offset is None else logits.add_(self.offset)


@dataclass(frozen=True)
class _Sums:
    log_sum_exp: Tensor
    mean_unembedding: Tensor
    mean_bias: Tensor
    mean_offset: Tensor
    mean_logit: Tensor
