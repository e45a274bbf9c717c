"""The directions in which a lens reads two answers, and the part of a step that lies in their span."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.interventions import Directions
from layerscope.lenses.lens import Lens
from layerscope.unembedding import Unembedding

NEARLY_PARALLEL = 0.95
"""Cosine from which two directions are one: the plane through them would hang on the little in which they differ."""


@dataclass(frozen=True)
class Spans:
    """For each row the span of the directions of its two answers."""

    basis: Float[Tensor, "row 2 d_model"]
    """Orthonormal, float32; the second vector is zero where the span has one dimension."""
    rank: Int[Tensor, " row"]
    """Its dimension: 2, or 1 where the difference alone was asked for or both directions are nearly parallel."""
    cosine: Float[Tensor, " row"]
    """Of the angle between both directions."""

    def part(self, steps: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Of each step what lies in its span: `U U^T step`; in float64 and back."""
        basis = self.basis.double()
        inside = torch.einsum("rkd,rd->rk", basis, steps.double())
        return torch.einsum("rkd,rk->rd", basis, inside).to(steps.dtype)


def answer_directions(
    lens: Lens,
    layer: int,
    residuals: Float[Tensor, "row d_model"],
    answers: Int[Tensor, "row answer"],
    unembedding: Unembedding,
) -> Float[Tensor, "row answer d_model"]:
    """Gradients of a lens' logits of some answers by the residual that it reads, norms and maps included.

    Of logits before the head's transform, which multiplies all gradients of an answer by one positive number and turns
    none of them.

    Args:
        lens: bound to the model outside inference mode.
        layer: which one the residuals are of.
        residuals: one a row.
        answers: token ids.
        unembedding: of the model.
    """
    with torch.inference_mode(False), torch.enable_grad():
        read = residuals.clone().requires_grad_()
        columns = unembedding.columns(answers.flatten()).reshape(*answers.shape, -1)
        logits = (unembedding.head_input(lens(read, layer)).float()[:, None] * columns).sum(-1)
        # A lens reads each row by itself, so that the gradient of the sum over rows is every row's own.
        found = [torch.autograd.grad(logits[:, i].sum(), read, retain_graph=True)[0] for i in range(answers.shape[1])]
    return torch.stack(found, 1)


def spans(directions: Float[Tensor, "row 2 d_model"], of: Directions = "both") -> Spans:
    """Orthonormal bases of the spans of two directions a row.

    Args:
        directions: of the base's answer and of the source's.
        of: both, or their difference alone.
    """
    both = directions.double()
    unit = both / both.norm(dim=-1, keepdim=True)
    cosine = (unit[:, 0] * unit[:, 1]).sum(-1)
    second = unit[:, 1] - cosine[:, None] * unit[:, 0]
    plane = torch.stack([unit[:, 0], second / second.norm(dim=-1, keepdim=True)], 1)
    difference = both[:, 0] - both[:, 1]
    line = torch.stack([difference / difference.norm(dim=-1, keepdim=True), torch.zeros_like(difference)], 1)
    is_line = cosine.abs() > NEARLY_PARALLEL if of == "both" else torch.ones_like(cosine, dtype=torch.bool)
    basis = torch.where(is_line[:, None, None], line, plane)
    return Spans(basis.float(), torch.where(is_line, 1, 2), cosine.float())


def random_spans(like: Spans, generator: torch.Generator) -> Spans:
    """Spans of random directions, of the same dimensions; their cosines say nothing and are zero.

    Normal vectors, orthonormalised, are uniform among all subspaces of their dimension. As many numbers are drawn
    whatever the dimension, so that lenses share their random subspaces as far as their dimensions are equal.

    Args:
        like: whose number, dimensions and place are taken.
        generator: on the CPU.
    """
    n, _, d_model = like.basis.shape
    drawn = torch.randn(n, 2, d_model, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(drawn.mT).Q.mT.float().to(like.basis.device)
    basis[:, 1] *= (like.rank == 2)[:, None]
    return Spans(basis, like.rank, torch.zeros_like(like.cosine))
