"""What stands between a projection and the heads that it feeds: norms, rotary angles, a scale; token by token.

Followed by gradients whatever it is. Where it is rotary angles, alone or behind a norm of each head, sums over tokens
are products of matrices, which is much faster, and are taken only where they agree with the gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import ModelError
from layerscope.model.architecture import read_norm
from layerscope.model.block_anatomy import AGREES, NormCall, depends
from layerscope.unembedding import Norm

PULLED_NUMBERS = 1 << 25
"""Of cotangents that are pulled back together: 128 MiB."""


class HeadPath:
    """From what one projection gave to the rows of the heads, `[sequence, head, position, d_head]`."""

    coords: Int[Tensor, "head d_own"]
    """For every head those features of the projection that it depends on."""
    is_apart: bool
    """Whether no two heads share any."""

    def __init__(
        self,
        gave: Tensor,
        rows: Float[Tensor, "sequence head position d_head"],
        norms: Sequence[NormCall],
        like: "HeadPath | None" = None,
    ) -> None:
        """Find out what it is.

        Args:
            gave: what the projection gave, `[sequence, position, d_out]`, from which on `rows` have their graph.
            rows: of the heads.
            norms: calls of norms inside the attention, among which its own may be.
            like: the same path for other sequences of this length, which spares finding out most of it.
        """
        self.gave, self.rows = gave, rows
        coords, is_apart = self._coordinates() if like is None else (like.coords, like.is_apart)
        self.coords, self.is_apart = coords, is_apart
        self._rotary: _Rotary | None = None
        self._norm: _HeadNorm | None = None
        if self.is_apart and (like is None or like._rotary is not None):
            own = next((call for call in norms if depends(call.read, gave) and depends(rows, call.gave)), None)
            self._norm = None if own is None else _head_norm(own, rows)
            if own is None or self._norm is not None:
                behind = None if own is None else own.gave
                self._rotary = _rotary(self, behind) if like is None else like._rotary
            if self._rotary is not None and not self._agrees():
                self._rotary = self._norm = None

    def pull(self, cotangents: Float[Tensor, "*batch sequence head position d_head"]) -> Tensor:
        """Cotangents of the heads' rows, back to the features that each depends on: `[..., position, d_own]`."""
        if self.is_apart:
            return self._own(self._back(cotangents))
        parts = []
        for head in range(self.rows.shape[1]):
            alone = torch.zeros_like(cotangents)
            alone[..., head, :, :] = cotangents[..., head, :, :]
            parts.append(self._back(alone))
        return torch.stack(parts, -3)

    def push(
        self, tangents: Float[Tensor, "sequence position d_out"]
    ) -> Float[Tensor, "sequence head position d_head"]:
        """How the heads' rows change with the projection, to first order."""
        with torch.enable_grad():
            dummy = torch.zeros_like(self.rows, requires_grad=True)
            (back,) = torch.autograd.grad(self.rows, self.gave, dummy, create_graph=True)
            (pushed,) = torch.autograd.grad(back, dummy, tangents, retain_graph=True)
        return pushed

    def pull_sum(
        self,
        weights: Float[Tensor, "sequence head position other"],
        vectors: Float[Tensor, "sequence head other d_head"],
    ) -> Float[Tensor, "sequence head other d_own"]:
        """For every other token s: `sum_t weights[t, s] * pull_t(vectors[s])`, t over the path's own positions."""
        if self._rotary is None:
            return self._pull_sum_by_gradients(weights, vectors)
        if self._norm is None:
            return self._rotary.pull_sum(weights, vectors)
        return self._norm.pull_sum(self._rotary, weights, vectors, self.rows.detach())

    def _pull_sum_by_gradients(self, weights: Tensor, vectors: Tensor) -> Tensor:
        n_other = weights.shape[-1]
        step = max(1, PULLED_NUMBERS // self.rows.numel())
        parts = []
        for start in range(0, n_other, step):
            some = slice(start, min(start + step, n_other))
            by_other = weights[..., some].movedim(-1, 0)[..., None]  # [other, sequence, head, position, 1]
            cotangents = by_other * vectors[..., some, :].movedim(-2, 0)[..., None, :]
            parts.append(self.pull(cotangents).sum(-2))  # [other, sequence, head, d_own]
        return torch.cat(parts).movedim(0, 2)

    def _back(self, cotangents: Tensor) -> Tensor:
        """To all features of the projection."""
        if cotangents.ndim == self.rows.ndim:
            return _gradient(self.rows, self.gave, cotangents)
        flat = cotangents.reshape(-1, *self.rows.shape)
        pulled: Tensor = torch.func.vmap(lambda one: _gradient(self.rows, self.gave, one))(flat)
        return pulled.view(*cotangents.shape[: -self.rows.ndim], *self.gave.shape)

    def _own(self, by_feature: Tensor) -> Tensor:
        """`[..., position, d_out]` to `[..., head, position, d_own]`."""
        return by_feature[..., self.coords].movedim(-2, -3)

    def _coordinates(self) -> tuple[Int[Tensor, "head d_own"], bool]:
        """For every head the features it depends on, and whether no two heads share any."""
        n_heads, d_out = self.rows.shape[1], self.gave.shape[-1]
        generator = torch.Generator().manual_seed(0)
        by_head = []
        for head in range(n_heads):
            marks = torch.zeros_like(self.rows)
            marks[:, head] = torch.randn(self.rows[:, head].shape, generator=generator).to(self.rows)
            by_head.append((self._back(marks) != 0).flatten(0, 1).any(0))
        depends = torch.stack(by_head)  # [head, d_out]
        counts = depends.sum(1)
        if int(depends.sum(0).max()) > 1 or int(counts.min()) != int(counts.max()):
            return torch.arange(d_out, device=depends.device).expand(n_heads, -1), False
        return depends.nonzero()[:, 1].view(n_heads, -1), True

    def _agrees(self) -> bool:
        """Whether the fast sums are those of the gradients, for random weights and vectors."""
        generator = torch.Generator().manual_seed(1)
        shape = (*self.rows.shape[:3], 2)
        weights = torch.randn(shape, generator=generator).to(self.rows)
        vectors = torch.randn(*shape[:2], 2, self.rows.shape[-1], generator=generator).to(self.rows)
        wanted = self._pull_sum_by_gradients(weights, vectors)
        return bool((self.pull_sum(weights, vectors) - wanted).norm() <= AGREES * wanted.norm())


def selection(gave: Tensor, rows: Float[Tensor, "sequence head position d_head"]) -> Int[Tensor, "head d_head"]:
    """Which feature of a projection every feature of every head is, where heads are nothing but its features.

    Raises:
        ModelError: something is done to them on the way.
    """
    _, n_heads, _, d_head = rows.shape
    numbers = torch.arange(1, n_heads * d_head + 1, device=rows.device, dtype=rows.dtype).view(n_heads, 1, d_head)
    by_feature = _gradient(rows, gave, numbers.expand(rows.shape).contiguous())[0]
    found = by_feature[0].round().long()
    order = torch.zeros(n_heads * d_head, dtype=torch.long, device=rows.device)
    order[found[found > 0] - 1] = (found > 0).nonzero()[:, 0]
    coords = order.view(n_heads, d_head)
    if not torch.equal(gave.detach()[..., coords].movedim(-2, -3), rows.detach()):
        raise ModelError(
            "The chain of closed forms takes what attention sums up as its projection gives it, but this model changes "
            "it on the way; use --method exact."
        )
    return coords


@dataclass(frozen=True)
class _Rotary:
    """Every feature that a head's rows are made of goes into two features of a row at most, by factors of the token."""

    first: Int[Tensor, " d_own"]
    second: Int[Tensor, " d_own"]
    by_first: Float[Tensor, "position d_own"]
    by_second: Float[Tensor, "position d_own"]

    def pull_sum(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """As `HeadPath.pull_sum`."""
        across = weights.transpose(-1, -2)
        return vectors[..., self.first] * (across @ self.by_first) + vectors[..., self.second] * (
            across @ self.by_second
        )


@dataclass(frozen=True)
class _HeadNorm:
    """A norm of each head's own features, without a bias."""

    norm: Norm
    standard: Float[Tensor, "sequence head position d_own"]
    """What it read, standardised."""
    inverse: Float[Tensor, "sequence head position"]
    """One over its root mean square."""

    def pull_sum(self, rotary: _Rotary, weights: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
        """As `HeadPath.pull_sum`: the norm's derivative is its gain over its size, less what lies along its output."""
        scaled = weights * self.inverse[..., None]
        straight = rotary.pull_sum(scaled, vectors)
        if self.norm.gain is not None:
            straight = straight * self.norm.gain
        if self.norm.kind == "layer":
            straight = straight - straight.mean(-1, keepdim=True)
        along = scaled * (rows @ vectors.transpose(-1, -2)) / self.standard.shape[-1]
        return straight - along.transpose(-1, -2) @ self.standard


def _head_norm(call: NormCall, rows: Tensor) -> _HeadNorm | None:
    """The norm as numbers; None where it is none of each head's own features, or has a bias."""
    n_heads, n_positions, d_head = rows.shape[1:]
    read = call.read
    if read.shape[1:] == (n_positions, n_heads, d_head):
        read = read.transpose(1, 2)
    if read.shape != rows.shape:
        return None
    try:
        norm = read_norm(call.module, "inside attention", d_head)
    except ModelError:  # gains that differ by head, say: gradients follow those
        return None
    if norm is None or norm.bias is not None:
        return None
    x = read.detach()
    x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    inverse = torch.rsqrt(x.square().mean(-1) + norm.eps)
    return _HeadNorm(norm, x * inverse[..., None], inverse)


def _rotary(path: HeadPath, behind_norm: Tensor | None) -> _Rotary | None:
    """The pattern and factors by which a head's rows are made; None where there are no such.

    Every head of every sequence is asked for another feature, so that few questions answer for all.
    """
    rows = path.rows
    n_sequences, n_heads, _, d_head = rows.shape
    own = []
    for start in range(0, d_head, n_sequences * n_heads):
        asked = torch.arange(start, min(start + n_sequences * n_heads, d_head), device=rows.device)
        sequence, head = (asked - start) // n_heads, (asked - start) % n_heads
        cotangent = torch.zeros_like(rows)
        cotangent[sequence, head, :, asked] = 1.0
        if behind_norm is None:
            pulled = path.pull(cotangent)
        else:
            pulled = _gradient(rows, behind_norm, cotangent)
            pulled = pulled if pulled.shape == rows.shape else pulled.transpose(1, 2)
        own.append(pulled[sequence, head])
    return _pattern(torch.cat(own))


def _pattern(own: Float[Tensor, "d_head position d_own"]) -> _Rotary | None:
    """From what every feature of a row is made of."""
    reached = (own != 0).any(1)  # [d_head, d_own]
    if int(reached.sum(0).max()) > 2:
        return None
    first = reached.float().argmax(0)
    rest = reached.clone()
    rest[first, torch.arange(rest.shape[1])] = False
    second = rest.float().argmax(0)
    columns = torch.arange(rest.shape[1])
    by_second = torch.where(rest.any(0), own[second, :, columns].T, 0.0)
    return _Rotary(first, second, own[first, :, columns].T.contiguous(), by_second.contiguous())


def _gradient(of: Tensor, by: Tensor, cotangent: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(of, by, cotangent, retain_graph=True)
    return gradient
