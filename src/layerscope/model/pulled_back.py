"""Rows of a model's Jacobians, exactly: cotangents pulled back through one block after the other, last block first."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import ModelError
from layerscope.model.attention_in_hand import attention_in_hand
from layerscope.model.blockwise import BlockInHand, run_blockwise
from layerscope.model.streamed_module import Progress, StreamedModule

WRITTEN_OUT = 1e-3, 5e-2
"""How far, relative to its norm, the last residual may lie off where attention is written out: rounding over many
blocks in float32, and in a coarser dtype."""


def pull_back_through(
    streamed: StreamedModule,
    token_ids: Int[Tensor, "sequence position"],
    rows: Float[Tensor, "row d_model"],
    counted: slice,
    *,
    rows_at_once: int,
    progress: Progress,
) -> Float[Tensor, "layer row sequence d_model"]:
    """Pull rows back through a whole model, so many at once: `CausalLM.pull_back`."""
    blocks: list[BlockInHand] = []
    inputs: list[Tensor] = []
    device, weights = streamed.placement.device, streamed.weights
    with torch.inference_mode(False):
        shape = (1, *token_ids.shape, streamed.d_model)
        residuals, own = (torch.empty(shape, device=device) for _ in range(2))
    run_blockwise(streamed, token_ids[None], own, lambda layer: None)

    def visit(block: BlockInHand) -> None:
        blocks.append(block)
        inputs.append(residuals[0].clone())

    with torch.inference_mode(False), torch.no_grad(), attention_in_hand(streamed.module):
        run_blockwise(streamed, token_ids[None], residuals, lambda layer: None, visit=visit)
        _check_written_out(streamed, residuals, own)
        parts = []
        try:
            for some in torch.split(rows.clone(), rows_at_once):
                lend, drop = weights.lend_again, weights.drop_again
                parts.append(pull_back(blocks, inputs, some.to(device), counted, lend=lend, drop=drop))
                progress(sum(part.shape[1] for part in parts), len(rows))
        finally:
            weights.let_go()
    return torch.cat(parts, 1)


def _check_written_out(streamed: StreamedModule, residuals: Tensor, own: Tensor) -> None:
    """Some families' plain attention is not the one that they use.

    Raises:
        ModelError: the residuals after the last block are others than the model's own.
    """
    difference = float((residuals - own).norm() / own.norm())
    if not difference <= WRITTEN_OUT[streamed.placement.dtype != torch.float32]:
        raise ModelError(
            f"With its attention written out, as differentiating it asks for, this '{streamed.architecture.family}' "
            f"model ends in residuals that are {difference:.1%} off its own, so no Jacobian of it can be had."
        )


def pull_back(
    blocks: Sequence[BlockInHand],
    inputs: Sequence[Float[Tensor, "sequence position d_model"]],
    rows: Float[Tensor, "row d_model"],
    counted: slice,
    *,
    lend: Callable[[int], None],
    drop: Callable[[int], None],
) -> Float[Tensor, "layer row sequence d_model"]:
    """Pull rows back from the last block's output to what every block reads.

    What flows to positions before the counted ones never comes back, because attention is causal; it is dropped after
    every block.

    Args:
        blocks: every block with what the model hands it for sequences of this shape.
        inputs: what every block reads.
        rows: `u`; each starts as the cotangent of every counted position of the last block's output.
        counted: the positions that are counted, as targets and as sources.
        lend: called before a block, to give it its parameters.
        drop: called after it.

    Returns:
        For layers 0 to n_layers - 1 the mean over counted positions t of `sum_{t' >= t} d (u . h_n[t']) / d h_l[t]`,
        for every row and sequence, in float64.
    """
    n_rows, (n_sequences, n_positions, d_model) = len(rows), inputs[0].shape
    cotangents = inputs[0].new_zeros(n_rows, n_sequences, n_positions, d_model)
    cotangents[:, :, counted] = rows.to(cotangents)[:, None, None]
    pulled = torch.empty(len(blocks), n_rows, n_sequences, d_model, dtype=torch.float64)
    for block, stream in zip(reversed(blocks), reversed(inputs), strict=True):
        lend(block.index)
        cotangents = _through(block, stream, cotangents)
        drop(block.index)
        cotangents[:, :, : counted.start] = 0
        pulled[block.index] = cotangents[:, :, counted].double().mean(2)
    return pulled


def _through(
    block: BlockInHand,
    stream: Float[Tensor, "sequence position d_model"],
    cotangents: Float[Tensor, "row sequence position d_model"],
) -> Float[Tensor, "row sequence position d_model"]:
    """One forward, and all rows back at once; one after the other through experts, whose product knows no more."""
    with torch.enable_grad():
        x = stream.clone().requires_grad_()
        y = block(x)

    def back(cotangent: Tensor) -> Tensor:
        (by_input,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
        return by_input

    if any(parameter.ndim > 2 for parameter in block.block.parameters()):
        return torch.stack([back(cotangent) for cotangent in cotangents.to(y.dtype)]).to(stream.dtype)
    pulled: Tensor = torch.func.vmap(back)(cotangents.to(y.dtype))
    return pulled.to(stream.dtype)
