"""What attention and MLP of every block add to the stream at one position of each prompt, caught where it is added."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.block_parts import Sublayers
from layerscope.model.module_calls import written_by
from layerscope.model.streaming import Hooks, StreamedLinear
from layerscope.stored.weight import DenseWeight
from layerscope.unembedding import Norm

FLOAT32 = 2.0**-24
"""Unit roundoff."""
STANDARD_DEVIATIONS = 10
"""How many of them a sum may miss by. In the model of independent roundings (Higham and Mary 2019, A New Approach to
Probabilistic Rounding Error Analysis) eight are passed once in 10^13 times; bounds for the worst case, which grow with
n and not with its root, would let faults of a tenth of a logit pass."""
WEIGHT_TILE_BYTES = 8 << 20
"""A piece of an output matrix in float32."""


@dataclass(frozen=True)
class HeadShares:
    """A direction read in what each head adds, any norm behind the heads held at its scale."""

    shares: Float[Tensor, "prompt block head"]
    rest: Float[Tensor, "prompt block"]
    """The same of what no head adds: the output matrix' bias, and the norm's."""
    rounding: Float[Tensor, "prompt block"]
    """By how much heads and rest may miss what attention adds."""


@dataclass(frozen=True)
class NeuronShares:
    """The same of each neuron of MLPs whose last matrix is known, block by block side by side."""

    shares: Float[Tensor, "prompt neuron"]
    rest: Float[Tensor, "prompt some"]
    """Of what no neuron adds, by block."""
    rounding: Float[Tensor, "prompt some"]
    widths: dict[int, int]
    """How many neurons there are in each of these blocks, counted from 0."""


@dataclass(frozen=True)
class Writes:
    """A stream and what was added to it; float32."""

    states: Float[Tensor, "prompt layer d_model"]
    """Layer 0 is the embedding."""
    attention: Float[Tensor, "prompt block d_model"]
    mlp: Float[Tensor, "prompt block d_model"]
    logits: Float[Tensor, "some d_vocab"]
    """The model's own of the first prompts, head transform included."""
    heads: HeadShares | None
    """None where heads cannot be told apart."""
    neurons: NeuronShares | None = None
    """None where they were not asked for, or no block has any that are known."""

    def of(self, rows: Sequence[int]) -> "Writes":
        """Of some of the prompts, in ascending order."""
        own, heads, neurons = list(rows), self.heads, self.neurons
        return Writes(
            self.states[own],
            self.attention[own],
            self.mlp[own],
            self.logits[[row for row in own if row < len(self.logits)]],
            None if heads is None else HeadShares(heads.shares[own], heads.rest[own], heads.rounding[own]),
            None
            if neurons is None
            else NeuronShares(neurons.shares[own], neurons.rest[own], neurons.rounding[own], neurons.widths),
        )

    @classmethod
    def in_order(cls, parts: Sequence[tuple[Sequence[int], "Writes"]]) -> "Writes":
        """Several passes put together, each with the places of its prompts among all."""
        places = torch.tensor([place for group, _ in parts for place in group])
        order = places.argsort()
        with_logits = torch.tensor([place for group, part in parts for place in group[: len(part.logits)]])
        heads = [part.heads for _, part in parts if part.heads is not None]
        neurons = [part.neurons for _, part in parts if part.neurons is not None]

        def whole(values: Sequence[Tensor], by: Tensor = order) -> Tensor:
            return torch.cat(list(values))[by]

        return cls(
            whole([part.states for _, part in parts]),
            whole([part.attention for _, part in parts]),
            whole([part.mlp for _, part in parts]),
            whole([part.logits for _, part in parts], with_logits.argsort()),
            None
            if len(heads) < len(parts)
            else HeadShares(
                whole([h.shares for h in heads]), whole([h.rest for h in heads]), whole([h.rounding for h in heads])
            ),
            None
            if len(neurons) < len(parts)
            else NeuronShares(
                whole([n.shares for n in neurons]),
                whole([n.rest for n in neurons]),
                whole([n.rounding for n in neurons]),
                neurons[0].widths,
            ),
        )


class WriteHooks:
    """Catches the writes of one pass."""

    def __init__(
        self,
        blocks: Sequence[Sublayers],
        post_norms: Sequence[tuple[Norm | None, Norm | None]],
        n_heads: int | None,
        directions: Float[Tensor, "prompt d_model"],
        pick: Callable[[Tensor], Tensor],
        unit: float,
        replaced: Collection[int] = (),
        without_neurons: Collection[int] | None = None,
    ) -> None:
        """Prepare for a pass.

        Args:
            blocks: the modules of every block.
            post_norms: for every block the norms between its heads and the sum, and between its neurons and the sum.
            n_heads: heads of a block; None where heads are not wanted.
            directions: what is read in every head's write, float64.
            pick: takes what a module returns for all tokens to one row a prompt.
            unit: unit roundoff of the blocks' arithmetic.
            replaced: blocks, counted from 0, whose attention is put out of action as a whole: what stands for it is no
                head's.
            without_neurons: blocks, counted from 0, whose neurons are not wanted; None where none at all are.
        """
        self._replaced, self._without_neurons = replaced, without_neurons
        self._blocks, self._post_norms, self._n_heads = blocks, post_norms, n_heads
        self._directions, self._pick, self._unit = directions, pick, unit
        self.attention: dict[int, Tensor] = {}
        self.mlp: dict[int, Tensor] = {}
        self.heads: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.neurons: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def head_shares(self) -> HeadShares | None:
        """Of all blocks; None where some block's heads were not told apart."""
        if len(self.heads) < len(self._blocks):
            return None
        columns = zip(*(self.heads[i] for i in range(len(self._blocks))), strict=True)
        return HeadShares(*(torch.stack(column, dim=1) for column in columns))

    @property
    def neuron_shares(self) -> NeuronShares | None:
        """Of the blocks that have any."""
        if not self.neurons:
            return None
        found = [self.neurons[i] for i in sorted(self.neurons)]
        widths = {i: self.neurons[i][0].shape[1] for i in sorted(self.neurons)}
        shares, rest, rounding = zip(*found, strict=True)
        return NeuronShares(torch.cat(shares, dim=1), torch.stack(rest, dim=1), torch.stack(rounding, dim=1), widths)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The hooks; what they caught is complete once the `with` ends.

        Raises:
            ModelError: a module of which no output was seen.
        """
        with Hooks() as hooks:
            for i, block in enumerate(self._blocks):
                hooks.after(block.attention, self._keep(self.attention, i, block.multiplier))
                hooks.after(block.mlp, self._keep(self.mlp, i, block.multiplier))
                if i in self._replaced:
                    hooks.after(block.attention, self._keep_what_stands_for_heads(i))
                elif self._n_heads is not None and block.projection is not None:
                    hooks.after(
                        block.projection, self._keep_split(self.heads, i, self._post_norms[i][0], self._n_heads)
                    )
                wanted = self._without_neurons is not None and i not in self._without_neurons
                if wanted and block.down is not None:
                    hooks.after(block.down, self._keep_split(self.neurons, i, self._post_norms[i][1], None))
            yield
        for part, caught in (("attention", self.attention), ("MLP", self.mlp)):
            unseen = [i + 1 for i in range(len(self._blocks)) if i not in caught]
            if unseen:
                raise ModelError(
                    f"The {part} of the block of layer {unseen[0]} was not called as a module, so what it adds to the "
                    "stream was not seen, and there are no shares."
                )

    def _keep(self, caught: dict[int, Tensor], i: int, multiplier: float) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            rows = self._pick(written_by(output)).float()
            caught[i] = rows if multiplier == 1.0 else rows * multiplier

        return after

    def _keep_split(
        self, caught: dict[int, tuple[Tensor, Tensor, Tensor]], i: int, norm: Norm | None, n_parts: int | None
    ) -> Callable[..., None]:
        """What a matrix writes, split by which of so many equal stretches of its input it comes from; None: each."""

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            device = self._directions.device
            read, written = (self._pick(value).to(device).double() for value in (args[0], output))
            if n_parts is not None and read.shape[-1] % n_parts:
                return
            directions = self._directions * self._blocks[i].multiplier
            rest = directions.new_zeros(len(directions))
            if norm is not None:
                if norm.bias is not None:
                    rest = directions @ norm.bias.to(directions)
                directions = norm.pulled_back(directions) * norm.inverse_scale(written)
            bias = getattr(module, "bias", None)
            if bias is not None:
                rest = rest + directions @ bias.to(directions)
            back, row_norms = _through(module, directions)
            shares = (back * read).view(len(read), n_parts or read.shape[-1], -1).sum(-1)
            caught[i] = (shares, rest, self._rounding(directions, row_norms, read, written))

        return after

    def _keep_what_stands_for_heads(self, i: int) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._n_heads is None:
                return
            written = self._pick(written_by(output)).to(self._directions.device)
            terms = self._blocks[i].multiplier * self._directions * written.double()
            none = terms.new_zeros(len(terms), self._n_heads)
            self.heads[i] = (none, terms.sum(-1), STANDARD_DEVIATIONS * 4 * self._unit * terms.norm(dim=-1))

        return after

    def _rounding(self, directions: Tensor, row_norms: Tensor, read: Tensor, written: Tensor) -> Tensor:
        """What the model's own product, its bias and a norm behind it may round: `STANDARD_DEVIATIONS`.

        The error of a dot product of n terms has at most the standard deviation sqrt(n) u |x| |w|, roundings being
        independent; those of different features are so too.
        """
        n = read.shape[-1] + written.shape[-1]
        product = math.sqrt(n) * FLOAT32 * (directions * row_norms).norm(dim=-1) * read.norm(dim=-1)
        rest = (4 * self._unit + math.sqrt(n) * FLOAT32) * (directions * written).norm(dim=-1)
        rounding: Tensor = STANDARD_DEVIATIONS * (product + rest)
        return rounding


def _through(module: nn.Module, directions: Float[Tensor, "prompt d_out"]) -> tuple[Tensor, Tensor]:
    """Directions behind a matrix as directions in front of it, and the lengths of the matrix' rows; float64.

    The matrix is read as stored, a tile at a time: a linear's `[out, in]`, or GPT-2's `[in, out]`.
    """
    if isinstance(module, StreamedLinear):
        weight = module.stored
    else:
        own: Tensor = module.weight  # type: ignore[assignment]
        weight = DenseWeight(own.T if type(module).__name__ == "Conv1D" else own)
    rows = max(64, WEIGHT_TILE_BYTES // (4 * weight.shape[1]))
    room = torch.empty(min(rows, len(weight)), weight.shape[1], device=directions.device)
    back = directions.new_zeros(len(directions), weight.shape[1])
    lengths = directions.new_empty(len(weight))
    for start in range(0, len(weight), rows):
        tile = weight.rows(start, min(start + rows, len(weight)), room).double()
        back += directions[:, start : start + rows] @ tile
        lengths[start : start + rows] = tile.norm(dim=-1)
    return back, lengths
