"""A block taken apart while it runs: attention and MLP, each with its norms and its first and last projections.

Found by what happens, not by names: which projection reads what, which of them feed attention, and whether the parts
put together again give what the block gave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layerscope.errors import ModelError
from layerscope.model.architecture import read_norm
from layerscope.model.attention_in_hand import AttentionInHand, AttentionRecorder
from layerscope.model.blockwise import BlockInHand
from layerscope.model.streaming import Hooks, StreamedLinear
from layerscope.unembedding import Norm

BranchName: TypeAlias = Literal["attention", "mlp"]
AGREES = 1e-4
"""How far parts put together again may lie off, relative to the norm of what they should give: float32 rounding over a
few sums, with room for large cancellations."""


@dataclass(frozen=True)
class Projection:
    """A linear map inside a block, and what it gave, from which on gradients are followed."""

    module: nn.Module
    read: Float[Tensor, "*rows d_in"]
    gave: Float[Tensor, "*rows d_out"]
    """Requires a gradient, and depends on nothing;"""
    handed: Float[Tensor, "*rows d_out"]
    """the same as what reads it was handed it, which may change it in place."""

    @property
    def matrix(self) -> Float[Tensor, "d_out d_in"]:
        """Its weight, acting on columns, in float32."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return (weight.T if isinstance(self.module, Conv1D) else weight).detach().float()

    def __call__(self, row: Float[Tensor, " d_in"]) -> Float[Tensor, " d_out"]:
        """What it makes of one row, its bias included."""
        with torch.no_grad():
            given: Tensor = self.module.forward(row[None])
            return given[0]


@dataclass(frozen=True)
class NormCall:
    """What a norm read and gave, with their graphs."""

    module: nn.Module
    read: Tensor
    gave: Tensor


@dataclass(frozen=True)
class Branch:
    """One branch: `scale * post(last(inner(first(norm(stream)))))` is added to the residual stream."""

    name: BranchName
    stream: Float[Tensor, "sequence position d_model"]
    """What it reads."""
    norm: Norm | None
    """Through which it reads it."""
    first: tuple[Projection, ...]
    last: Projection
    """Whose `read`, what the branch makes of its first projections, has its graph back to what those gave."""
    post: Norm | None
    """Applied to what `last` gave, before it is added."""
    scale: float


@dataclass(frozen=True)
class BlockAnatomy:
    """Both branches of a block."""

    attention: Branch
    mlp: Branch
    parallel: bool
    """Whether the MLP reads what the attention reads, and not what it has written."""
    attended: AttentionInHand
    norms: tuple[NormCall, ...]
    """Of every norm that ran, in their order."""


@dataclass
class _Seen:
    """What was noticed while a block ran."""

    projections: list[Projection] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    first_after_attention: int | None = None


class Anatomist:
    """Takes the blocks of one model apart."""

    def __init__(
        self,
        model_id: str,
        recorder: AttentionRecorder,
        input_norms: tuple[Norm | None, ...],
        second_norms: tuple[Norm | None, ...],
    ) -> None:
        """For a model whose attention is written out.

        Args:
            model_id: for messages.
            recorder: of the attention.
            input_norms: for every block the norm through which its attention reads the stream.
            second_norms: for every block the norm through which its MLP reads it, where it has one of its own.
        """
        self._id, self._recorder = model_id, recorder
        self._input_norms, self._second_norms = input_norms, second_norms

    def take_apart(self, block: BlockInHand, stream: Float[Tensor, "sequence position d_model"]) -> BlockAnatomy:
        """Run a block on sequences, with gradients from its projections on.

        Raises:
            ModelError: the block is not made of one attention and one MLP as they are known here; what is missing.
        """
        seen = self._run(block, stream)
        output = seen[1]
        return self._parts(block.index, stream, seen[0], output)

    def _run(self, block: BlockInHand, stream: Tensor) -> tuple[_Seen, Tensor]:
        seen = _Seen()
        self._recorder.calls.clear()
        self._recorder.keeping = True

        def projected(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            gave = output.detach().clone().requires_grad_()
            if seen.first_after_attention is None and self._recorder.calls:
                seen.first_after_attention = len(seen.projections)
            handed = gave.clone()
            seen.projections.append(Projection(module, args[0], gave, handed))
            return handed

        def normed(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.norms.append(NormCall(module, args[0], output))

        try:
            with Hooks() as hooks, torch.enable_grad():
                for module in block.block.modules():
                    if isinstance(module, StreamedLinear | nn.Linear | Conv1D):
                        hooks.after(module, projected)
                    elif "norm" in type(module).__name__.lower():
                        hooks.after(module, normed)
                return seen, block(stream)
        finally:
            self._recorder.keeping = False

    def _parts(self, index: int, stream: Tensor, seen: _Seen, output: Tensor) -> BlockAnatomy:
        at = seen.first_after_attention
        if len(self._recorder.calls) != 1 or at is None:
            raise self._refusal(index, f"attention that can be taken in hand (it has {len(self._recorder.calls)})")
        attended = self._recorder.calls[0]
        inside = {id(module) for module in attended.module.modules()}
        of_attention = [p for p in seen.projections if id(p.module) in inside]
        of_mlp = [p for p in seen.projections if id(p.module) not in inside]
        if len(of_attention) not in (2, 4) or seen.projections[at] is not of_attention[-1]:
            raise self._refusal(index, f"attention of 2 or 4 projections (it has {len(of_attention)})")
        if len(of_mlp) not in (2, 3):
            raise self._refusal(index, f"an MLP of 2 or 3 projections (it has {len(of_mlp)})")
        return self._judged(index, stream, seen, output, attended, of_attention, of_mlp)

    def _judged(
        self,
        index: int,
        stream: Tensor,
        seen: _Seen,
        output: Tensor,
        attended: AttentionInHand,
        of_attention: list[Projection],
        of_mlp: list[Projection],
    ) -> BlockAnatomy:
        """Norms, order and scales, each held to what the block did."""
        norm_a, norm_m = self._input_norms[index], self._second_norms[index]
        written = self._post(seen, of_attention[-1]), self._post(seen, of_mlp[-1])
        posted = tuple(
            _posted(p[-1].gave, post).reshape(stream.shape)
            for p, post in zip((of_attention, of_mlp), written, strict=True)
        )
        parallel = not depends(of_mlp[0].read, of_attention[-1].gave)
        if parallel:
            scales = _fit(output - stream, posted)
            reads_m, norm_m = stream, norm_a if norm_m is None else norm_m
        else:
            reads_m = self._between(seen, of_mlp[0].read, norm_m).reshape(stream.shape)
            scales = (*_fit(reads_m - stream, posted[:1]), *_fit(output - reads_m, posted[1:]))
        attention = Branch(
            "attention", stream, norm_a, tuple(of_attention[:-1]), of_attention[-1], written[0], scales[0]
        )
        mlp = Branch("mlp", reads_m.detach(), norm_m, tuple(of_mlp[:-1]), of_mlp[-1], written[1], scales[1])
        for branch in (attention, mlp):
            read = branch.stream if branch.norm is None else branch.norm(branch.stream)
            if any(_off(p.read, read) > AGREES for p in branch.first):
                raise self._refusal(index, f"one norm through which all of its {branch.name} reads the stream")
        whole = stream + scales[0] * posted[0] + scales[1] * posted[1]
        if _off(whole, output) > AGREES:
            raise self._refusal(index, "an attention and an MLP whose sum it adds to the stream")
        return BlockAnatomy(attention, mlp, parallel, attended, tuple(seen.norms))

    def _post(self, seen: _Seen, last: Projection) -> Norm | None:
        """The norm that reads what a branch's last projection gave."""
        found = [call.module for call in seen.norms if call.read is last.handed]
        return read_norm(found[0], "behind a branch", last.gave.shape[-1]) if found else None

    def _between(self, seen: _Seen, read: Tensor, norm: Norm | None) -> Tensor:
        """The stream between attention and MLP."""
        if norm is None:
            return read.detach()
        return next((call.read.detach() for call in seen.norms if call.gave is read), read.detach())

    def _refusal(self, index: int, wanted: str) -> ModelError:
        return ModelError(
            f"The chain of closed forms asks of every block {wanted}, which block {index} of {self._id} has not; "
            "use --method exact."
        )


def _posted(gave: Tensor, post: Norm | None) -> Tensor:
    return gave.detach() if post is None else post(gave.detach())


def gradients(of: Tensor, by: Sequence[Tensor], cotangent: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """Of the sum of a tensor's numbers, or of their product with a cotangent; None by what it does not depend on."""
    if not of.requires_grad:
        return (None,) * len(by)
    cotangent = torch.ones_like(of) if cotangent is None else cotangent
    return torch.autograd.grad(of, list(by), cotangent, retain_graph=True, allow_unused=True)


def depends(tensor: Tensor, on: Tensor) -> bool:
    """Whether one is made from the other, or is it."""
    return tensor is on or gradients(tensor, [on])[0] is not None


def _fit(wanted: Tensor, parts: tuple[Tensor, ...]) -> tuple[float, ...]:
    """Factors by which parts add up to something, by least squares; whether they do is judged where all is known.

    A part that is zero throughout has a factor of one.
    """
    columns = torch.stack([part.detach().double().flatten() for part in parts], 1)
    there = columns.abs().amax(0) > 0
    scales = torch.ones(len(parts), dtype=torch.float64, device=columns.device)
    some, right = columns[:, there], wanted.detach().double().flatten()
    scales[there] = torch.linalg.solve(some.T @ some, some.T @ right)
    return tuple(1.0 if abs(scale - 1) < AGREES else scale for scale in scales.tolist())


def _off(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().reshape(wanted.shape), wanted.detach()
    return float((found - wanted).norm() / wanted.norm())
