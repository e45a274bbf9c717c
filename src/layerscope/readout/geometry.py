"""Cosines and norm ratios in residual space: where a decoded row points, and what the norm did to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerscope.unembedding import Unembedding

TINY = 1e-12


@dataclass(frozen=True)
class Geometry:
    """Numbers of one prompt's rows, `[group, position]`, float64."""

    cos_to_answer: Float[Tensor, "groups positions"]
    """Cosine of the decoded row and the answer's unembedding column; nan where there is no answer."""
    cos_to_prompt_max: Float[Tensor, "groups positions"]
    """Largest cosine to the column of a prompt token read so far; nan where there is none."""


def geometry(
    rows: Float[Tensor, "groups positions d_model"],
    answer_id: Int[Tensor, "groups positions"],
    prompt_ids: Int[Tensor, " ids"],
    seen: Bool[Tensor, "positions ids"],
    unembedding: Unembedding,
) -> Geometry:
    """Directions of one prompt's decoded rows.

    Args:
        answer_id: the answer judged in each row, -1 where there is none.
        prompt_ids: distinct content ids of the prompt.
        seen: whether an id stands at or before a position.
    """
    head_rows = unembedding.head_input(rows)
    nan = torch.full(rows.shape[:2], torch.nan, dtype=torch.float64)
    to_answer, to_prompt = nan.clone(), nan.clone()
    for token_id in torch.unique(answer_id[answer_id >= 0]).tolist():
        cosine = _cosines(head_rows, torch.tensor([token_id]), unembedding)[..., 0]
        to_answer = torch.where(answer_id == token_id, cosine, to_answer)
    if len(prompt_ids):
        cosine = _cosines(head_rows, prompt_ids, unembedding)
        cosine = cosine.masked_fill(~seen, -torch.inf).amax(-1)
        to_prompt = torch.where(seen.any(-1), cosine, to_prompt)
    return Geometry(to_answer, to_prompt)


def _cosines(
    rows: Float[Tensor, "groups positions d_head"], token_ids: Int[Tensor, " ids"], unembedding: Unembedding
) -> Float[Tensor, "groups positions ids"]:
    columns = unembedding.columns(token_ids)
    lengths_of_columns = torch.linalg.vector_norm(columns.double(), dim=-1)
    # Group by group: in float64 all rows of a long prompt would be twice what the sweep holds.
    return torch.stack([_group_cosines(group, columns, lengths_of_columns) for group in rows])


def _group_cosines(
    rows: Float[Tensor, "positions d_head"], columns: Float[Tensor, "ids d_head"], column_lengths: Float[Tensor, " ids"]
) -> Float[Tensor, "positions ids"]:
    product = (rows @ columns.T).double()
    lengths = torch.linalg.vector_norm(rows.double(), dim=-1, keepdim=True) * column_lengths
    cosines: Tensor = product / (lengths + TINY)
    return cosines.cpu()


def norm_ratio(
    rows: Float[Tensor, "*rows d_model"], residuals: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows"]:
    """Length of the decoded row over length of the residual."""
    residual_lengths, row_lengths = (torch.linalg.vector_norm(x.double(), dim=-1) for x in (residuals, rows))
    ratio: Tensor = row_lengths / (residual_lengths + TINY)
    return ratio.cpu()


def row_residual_cosine(
    rows: Float[Tensor, "*rows d_model"], residuals: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows"]:
    """Cosine of decoded row and residual, in [-1, 1]."""
    a, b = rows.double(), residuals.double()
    lengths = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    cosine: Tensor = (a * b).sum(-1) / (lengths + TINY)
    return cosine.clamp(-1.0, 1.0).cpu()


def jaccard(a: Int[Tensor, "*rows k"], b: Int[Tensor, "*rows k"]) -> Float[Tensor, "*rows"]:
    """Shared share of two sets of distinct ids, |a and b| / |a or b|."""
    shared = (a[..., :, None] == b[..., None, :]).any(-1).sum(-1).double()
    return shared / (a.shape[-1] + b.shape[-1] - shared)
