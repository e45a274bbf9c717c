"""Direct logit attribution: by how much each write of attention, MLP or head moves the answer's logit from its rival's.

The final norm's scale is held at what it is for the whole residual, so that norm and head are linear and the shares add
up to the logit difference: c_i = s * (gain * (w_answer - w_rival)) . x_i, with s the norm's inverse scale there.
Sources: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; nostalgebraist 2020, Interpreting GPT:
the logit lens, for the states between.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.model.sublayers import FLOAT32, STANDARD_DEVIATIONS, Writes
from layerscope.unembedding import Unembedding


@dataclass(frozen=True)
class AnswerDirections:
    """For every prompt the direction in front of the final norm that reads answer against rival; float64."""

    answers: Int[Tensor, " prompt"]
    rivals: Int[Tensor, " prompt"]
    directions: Float[Tensor, "prompt d_model"]
    """Times the norm's inverse scale and a residual: the logit difference, but for the constant. Nats."""
    constants: Float[Tensor, " prompt"]
    """What the norm's and the head's biases add to it."""
    rows: Float[Tensor, "prompt 2 d_model"]
    """Both rows of the unembedding, scaled, as they read what leaves the final norm: what the head's rounding grows
    with."""
    unembedding: Unembedding

    @classmethod
    def of(cls, unembedding: Unembedding, answers: Sequence[int], rivals: Sequence[int]) -> "AnswerDirections":
        """Of the model's own head; a scale multiplies everything, a softcap comes after and has no part in it."""
        norm, both = unembedding.final_norm, [torch.tensor(ids) for ids in (answers, rivals)]
        rows = [unembedding.reading_rows(ids) for ids in both]
        answer, rival = (unembedding.reading_constants(ids) for ids in both)
        difference = rows[0] - rows[1]
        directions = difference if norm is None else norm.pulled_back(difference)
        return cls(both[0], both[1], directions, answer - rival, torch.stack(rows, dim=1), unembedding)

    def of_prompts(self, rows: Sequence[int]) -> "AnswerDirections":
        """Of some of the prompts."""
        names = ("answers", "rivals", "directions", "constants", "rows")
        return replace(self, **{name: getattr(self, name)[list(rows)] for name in names})

    def inverse_scale(self, rows: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows"]:
        """Of the final norm at some residuals; one without a norm."""
        norm = self.unembedding.final_norm
        return rows.new_ones(rows.shape[:-1]) if norm is None else norm.inverse_scale(rows)[..., 0]

    def read(self, rows: Float[Tensor, "prompt some d_model"]) -> Float[Tensor, "prompt some"]:
        """The direction in some rows, without the norm's scale."""
        return torch.einsum("psd,pd->ps", rows, self.directions)

    def lens_of(self, rows: Float[Tensor, "prompt some d_model"]) -> Float[Tensor, "prompt some"]:
        """`lens` of rows as a model gives them."""
        return self.lens(_float64(rows, self))

    def lens(self, rows: Float[Tensor, "prompt some d_model"]) -> Float[Tensor, "prompt some"]:
        """The logit difference of the logit lens, each row under its own norm; before any softcap, nats."""
        return self.inverse_scale(rows) * self.read(rows) + self.constants[:, None]

    def capped(self, final: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"] | None:
        """The logit difference behind the head's softcap, nats; None where there is none."""
        head = self.unembedding
        if head.transform.softcap is None:
            return None
        rows = head.head_input(final if head.final_norm is None else head.final_norm(final))
        ids = torch.stack([self.answers, self.rivals], dim=1)
        linear = torch.stack(
            [head.linear_logits(row[None], both)[0] for row, both in zip(rows, ids, strict=True)]
        ).double()
        capped: Tensor = head.transform.apply_(linear)
        return capped[:, 0] - capped[:, 1]


@dataclass(frozen=True)
class Check:
    """A sum that has to hold."""

    error: Float[Tensor, " case"]
    bound: Float[Tensor, " case"]
    """What rounding explains."""

    @property
    def ok(self) -> bool:
        """Whether no case is beyond its bound."""
        return bool((self.error <= self.bound).all())

    def worst_case(self) -> int:
        """Which is nearest to its bound, or furthest beyond; the first is 0."""
        return int((self.error / self.bound.clamp_min(1e-300)).nan_to_num(nan=math.inf).argmax())

    def worst(self) -> tuple[float, float]:
        """Error and bound of that case."""
        i = self.worst_case()
        return float(self.error[i]), float(self.bound[i])


@dataclass(frozen=True)
class Shares:
    """Shares of the final logit difference in nats, and the lens between writes; float64."""

    embedding: Float[Tensor, " prompt"]
    constant: Float[Tensor, " prompt"]
    attention: Float[Tensor, "prompt block"]
    mlp: Float[Tensor, "prompt block"]
    heads: Float[Tensor, "prompt block head"] | None
    head_rest: Float[Tensor, "prompt block"] | None
    """What no head adds: biases behind them."""
    lens: Float[Tensor, "prompt layer"]
    """Logit difference of the logit lens at every layer; at the last one the model's own."""
    mid: Float[Tensor, "prompt block"] | None
    """The same between attention and MLP; None where there is no such state."""
    head_rounding: Float[Tensor, "prompt block"] | None

    @property
    def total(self) -> Float[Tensor, " prompt"]:
        """All of them together: the logit difference."""
        return self.embedding + self.constant + self.attention.sum(-1) + self.mlp.sum(-1)

    def steps(self) -> tuple[Float[Tensor, "prompt block"], Float[Tensor, "prompt block"]] | tuple[None, None]:
        """Changes of the lens with attention's writes and with the MLPs'; None where no state between is known."""
        if self.mid is None:
            return None, None
        return self.mid - self.lens[:, :-1], self.lens[:, 1:] - self.mid

    def of(self, rows: Sequence[int]) -> "Shares":
        """Of some of the prompts."""
        chosen: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, values in chosen.items():
            chosen[name] = None if values is None else values[list(rows)]
        return Shares(**chosen)

    @classmethod
    def together(cls, parts: Sequence["Shares"]) -> "Shares":
        """Several one behind the other; of what some part lacks, nothing."""
        columns: dict[str, Any] = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        for name, values in columns.items():
            columns[name] = None if any(v is None for v in values) else torch.cat(values)
        return cls(**columns)


def shares_of(writes: Writes, directions: AnswerDirections, *, sequential: bool) -> Shares:
    """Take the logit difference of every prompt apart.

    Args:
        writes: what was added to the stream.
        directions: answer and rival of every prompt.
        sequential: whether MLPs read what attention has written, so that there is a state between them.
    """
    # Added in float32, as blocks that compute in it do, so that an MLP that writes nothing steps nowhere.
    mid = writes.states[:, :-1] + writes.attention
    states, attention, mlp = (_float64(x, directions) for x in (writes.states, writes.attention, writes.mlp))
    scale = directions.inverse_scale(states[:, -1])[:, None]
    heads = writes.heads
    return Shares(
        embedding=(scale * directions.read(states[:, :1]))[:, 0],
        constant=directions.constants,
        attention=scale * directions.read(attention),
        mlp=scale * directions.read(mlp),
        heads=None if heads is None else scale[:, :, None] * heads.shares,
        head_rest=None if heads is None else scale * heads.rest,
        lens=directions.lens(states),
        mid=directions.lens_of(mid) if sequential else None,
        head_rounding=None if heads is None else scale * heads.rounding,
    )


def check_writes(writes: Writes, unit: float) -> Check:
    """Whether embedding and writes add up to the final residual: per prompt, relative to its largest entry.

    Args:
        writes: what was added to the stream.
        unit: unit roundoff of the blocks' arithmetic.
    """
    total = writes.states[:, 0].double() + writes.attention.double().sum(1) + writes.mlp.double().sum(1)
    final = writes.states[:, -1].double()
    size = final.abs().amax(-1)
    # The feature nearest to its own bound, for one of huge size would hide the others.
    error, bound = (total - final).abs(), _stream_rounding(writes, unit)
    at = (error / bound.clamp_min(1e-300)).argmax(-1, keepdim=True)
    return Check(error.gather(-1, at)[:, 0] / size, bound.gather(-1, at)[:, 0] / size)


def _stream_rounding(writes: Writes, unit: float) -> Float[Tensor, "prompt d_model"]:
    """Of the sums in every block, and of a multiplier before them."""
    squares = (
        writes.states[:, :-1].double().square() + writes.attention.double().square() + writes.mlp.double().square()
    )
    return STANDARD_DEVIATIONS * unit * squares.sum(1).sqrt()


def check_blocks(writes: Writes, unit: float) -> Check:
    """Whether each block's step is its attention's and its MLP's write; a case a block, relative as `check_writes`."""
    steps = (writes.states[:, 1:] - writes.states[:, :-1]).double()
    error = (steps - writes.attention.double() - writes.mlp.double()).abs()
    sizes = (writes.states[:, :-1], writes.states[:, 1:], writes.attention, writes.mlp)
    bound = STANDARD_DEVIATIONS * unit * torch.stack([x.double() for x in sizes]).norm(dim=0)
    at = (error / bound.clamp_min(1e-300)).flatten(0, 1).argmax(-1, keepdim=True)
    return Check(*(x.flatten(0, 1).gather(-1, at)[:, 0] for x in (error, bound)))


def check_total(shares: Shares, writes: Writes, directions: AnswerDirections, unit: float) -> Check | None:
    """Whether the shares add up to the logit difference of the model's own logits, where those were kept.

    A softcap is undone on the model's side, which makes its rounding larger the nearer a logit is to the cap.
    """
    n = len(writes.logits)
    if not n:
        return None
    own, rounding = _own_difference(writes, directions, unit)
    return Check((shares.total[:n] - own).abs(), rounding + _readout_rounding(writes, directions, unit)[:n])


def check_steps(shares: Shares, writes: Writes, directions: AnswerDirections, unit: float) -> Check | None:
    """Whether the lens' logit difference at the embedding and all steps after it add up to the model's own."""
    n = len(writes.logits)
    if not n:
        return None
    between = shares.lens if shares.mid is None else _interleaved(shares.lens, shares.mid)
    total = between[:, 0] + between.diff(dim=-1).sum(-1)
    own, rounding = _own_difference(writes, directions, unit)
    return Check((total[:n] - own).abs(), rounding + _readout_rounding(writes, directions, unit)[:n])


def check_heads(shares: Shares) -> Check | None:
    """Whether the heads of a block, and what is behind them, add up to its attention's share; a case a block."""
    if shares.heads is None or shares.head_rest is None or shares.head_rounding is None:
        return None
    error = (shares.heads.sum(-1) + shares.head_rest - shares.attention).abs()
    return Check(error.flatten(), shares.head_rounding.flatten())


def check_neurons(shares: Shares, writes: Writes, directions: AnswerDirections) -> Check | None:
    """The same of the neurons of those MLPs that were taken apart."""
    neurons = writes.neurons
    if neurons is None:
        return None
    scale = directions.inverse_scale(_float64(writes.states[:, -1], directions))[:, None]
    by_block = torch.split(neurons.shares, list(neurons.widths.values()), dim=1)
    total = torch.stack([block.sum(-1) for block in by_block], dim=1) + neurons.rest
    error = (scale * total - shares.mlp[:, list(neurons.widths)]).abs()
    return Check(error.flatten(), (scale * neurons.rounding).flatten())


@dataclass(frozen=True)
class NeuronMean:
    """A neuron's mean share."""

    layer: int
    """The layer that its block writes, from 1."""
    neuron: int
    """Counted from 0."""
    dla: float
    """In nats."""
    n_positive: int
    """In how many prompts it is above zero."""


@dataclass(frozen=True)
class NeuronSums:
    """Shares of neurons in nats, added up over prompts."""

    total: Float[Tensor, " neuron"]
    n_positive: Int[Tensor, " neuron"]
    n: int
    """How many prompts."""
    widths: dict[int, int]
    """How many neurons there are in each of these blocks, counted from 0."""

    @classmethod
    def of(cls, writes: Writes, directions: AnswerDirections) -> "NeuronSums | None":
        """Over the prompts of one pass; None where no neuron is known."""
        neurons = writes.neurons
        if neurons is None:
            return None
        shares = directions.inverse_scale(_float64(writes.states[:, -1], directions))[:, None] * neurons.shares
        return cls(shares.sum(0).cpu(), (shares > 0).sum(0).cpu(), len(shares), neurons.widths)

    def added_to(self, others: "NeuronSums | None") -> "NeuronSums":
        """Over more prompts."""
        if others is None:
            return self
        return NeuronSums(
            self.total + others.total, self.n_positive + others.n_positive, self.n + others.n, self.widths
        )

    def largest(self, k: int) -> list[NeuronMean]:
        """Those with the largest mean shares by size, largest first."""
        places = [(block + 1, i) for block, width in self.widths.items() for i in range(width)]
        order = self.total.abs().sort(descending=True, stable=True).indices[:k].tolist()
        means = self.total / self.n
        return [NeuronMean(places[at][0], places[at][1], float(means[at]), int(self.n_positive[at])) for at in order]


def _interleaved(lens: Float[Tensor, "prompt layer"], mid: Float[Tensor, "prompt block"]) -> Tensor:
    pairs = torch.stack([mid, lens[:, 1:]], dim=-1).flatten(1)
    return torch.cat([lens[:, :1], pairs], dim=1)


def _own_difference(writes: Writes, directions: AnswerDirections, unit: float) -> tuple[Tensor, Tensor]:
    """Of the model's own logits before a softcap, and what its head's transform may have rounded."""
    cap = directions.unembedding.transform.softcap
    n = len(writes.logits)
    ids = torch.stack([directions.answers[:n], directions.rivals[:n]], dim=1).to(writes.logits.device)
    logits = _float64(writes.logits.gather(1, ids), directions)
    rounding = 4 * unit * logits.abs()
    if cap is not None:
        inside = (logits / cap).clamp(-1 + 1e-12, 1 - 1e-12)
        rounding = (rounding + 4 * unit * cap * inside.abs()) / (1 - inside.square())
        logits = cap * torch.atanh(inside)
    return logits[:, 0] - logits[:, 1], STANDARD_DEVIATIONS * rounding.sum(-1)


def _readout_rounding(writes: Writes, directions: AnswerDirections, unit: float) -> Float[Tensor, " prompt"]:
    """What the stream's sums, the final norm and the head's two products may round, in nats."""
    final = _float64(writes.states[:, -1], directions)
    scale = directions.inverse_scale(final)
    root = math.sqrt(final.shape[-1])
    stream = (directions.directions * _stream_rounding(writes, unit).to(final.device)).norm(dim=-1)
    terms = (directions.directions * final).norm(dim=-1)
    norm = (root * FLOAT32 + 4 * unit) * ((directions.directions * final).sum(-1).abs() + terms)
    end = directions.unembedding.final_norm
    read = (final if end is None else _float64(end(writes.states[:, -1]), directions))[:, None]
    products = root * FLOAT32 * directions.rows.norm(dim=-1) * read.norm(dim=-1)
    head = (products + 2 * unit * (directions.rows * read).norm(dim=-1)).sum(-1)
    rounding: Tensor = scale * stream + STANDARD_DEVIATIONS * (scale * norm + head)
    return rounding


def _float64(values: Tensor, directions: AnswerDirections) -> Tensor:
    return values.to(directions.directions.device).double()
