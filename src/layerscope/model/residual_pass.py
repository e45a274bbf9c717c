"""Passes that keep the residual stream around every block, and the model's own logits at the prompts' last tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerscope.model.architecture import batches, reset_rope
from layerscope.model.in_step import InStep
from layerscope.model.model_input import Batch
from layerscope.model.module_calls import stream_of, written_by
from layerscope.model.one_stream import Witness, handed_on, one_stream
from layerscope.model.packing import folding_of
from layerscope.model.patched_pass import PatchedPass, in_step
from layerscope.model.residuals import Residuals
from layerscope.model.routing import Routing, RoutingOfPass, mixtures_in
from layerscope.model.streamed_module import Progress, StreamedModule
from layerscope.model.streaming import Hooks


def forward_residuals(
    streamed: StreamedModule,
    token_ids: Sequence[Sequence[int]],
    n_logits: int | None,
    progress: Progress,
    riding: PatchedPass | None,
) -> Residuals:
    """Run all prompts together: `CausalLM.forward`."""
    lengths = tuple(len(ids) for ids in token_ids)
    device = streamed.placement.device
    residuals = torch.zeros(len(lengths), streamed.n_layers + 1, max(lengths), streamed.d_model, device=device)
    n_logits = len(lengths) if n_logits is None else min(n_logits, len(lengths))
    logits = torch.empty(n_logits, streamed.architecture.d_vocab, device=device)
    groups = batches(streamed.architecture.rope, lengths)
    routing = Routing(len(lengths), max(lengths))
    for done, group in enumerate(groups):
        wanted = [row for row, i in enumerate(group) if i < n_logits]
        alone = len(groups) == 1  # as a rule: then there is nothing to put together
        width = max(lengths[i] for i in group)
        kept = residuals if alone else residuals.new_zeros(len(group), *residuals.shape[1:])[:, :, :width]
        group_logits = _forward_group(
            streamed,
            [token_ids[i] for i in group],
            kept,
            wanted or [0],  # the head needs at least one row
            lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
            riding if done == 0 else None,
            (routing, group),
        )
        if not alone:
            residuals[group, :, :width] = kept
        for row_logits, row in zip(group_logits, wanted, strict=False):
            logits[group[row]] = row_logits
    return Residuals(residuals, lengths, logits, routing)


def _forward_group(
    streamed: StreamedModule,
    token_ids: Sequence[Sequence[int]],
    kept: Float[Tensor, "prompt layer position d_model"],
    wanted: Sequence[int],
    progress: Progress,
    riding: PatchedPass | None,
    routing: tuple[Routing, Sequence[int]],
) -> Float[Tensor, "some d_vocab"]:
    """One pass; fills `kept`, and returns the logits at the last token of the prompts `wanted`."""
    folding = folding_of(token_ids, streamed.architecture)
    if folding is not None:
        batch = Batch.folded(folding, streamed.placement)
        told = RoutingOfPass(*routing, batch)
        logits = run_pass(streamed, batch, kept, wanted, progress, riding, routing=told)
        riding = None  # it has been where it wanted to go
        if kept.isfinite().all():
            return logits
        # Within a tree one prompt's NaN is every prompt's: zero times NaN is NaN. Alone it is its own.
    witness = None if streamed.family_verified else Witness.of(token_ids)
    rows = token_ids if witness is None else [*token_ids, witness.token_ids]
    batch = Batch.padded(rows, streamed.placement)
    told = RoutingOfPass(*routing, batch)
    return run_pass(streamed, batch, kept, wanted, progress, riding, witness, told)


def run_pass(
    streamed: StreamedModule,
    batch: Batch,
    kept: Float[Tensor, "prompt layer position d_model"],
    wanted: Sequence[int],
    progress: Progress,
    riding: PatchedPass | None = None,
    witness: Witness | None = None,
    routing: RoutingOfPass | None = None,
) -> Float[Tensor, "some d_vocab"]:
    """Run one batch through the model.

    Args:
        streamed: the model.
        batch: what it reads.
        kept: filled with the stream before the first block and behind every one, as the batch unfolds it.
        wanted: the prompts whose logits at their last token are returned; at least one.
        progress: called after every block.
        riding: copies whose blocks run behind these.
        witness: the batch's last row, which is not kept.
        routing: keeps which experts its tokens were sent to.

    Raises:
        ModelError: what its blocks hand on is no residual stream, or not a causal one.
    """
    reset_rope(streamed.module)
    with (
        streamed.weights.past_the_page_cache(twice=riding is not None) as names,
        in_step(streamed, riding) as other,
        _watched(streamed, batch, kept, wanted, progress, names, other, witness, routing),
    ):
        return streamed.run(batch.input)[:, 0].float()


@contextmanager
def _watched(
    streamed: StreamedModule,
    batch: Batch,
    kept: Tensor,
    wanted: Sequence[int],
    progress: Progress,
    names: Mapping[int, Sequence[str]],
    other: InStep | None,
    witness: Witness | None,
    routing: RoutingOfPass | None,
) -> Iterator[None]:
    """Hooks that keep the residual around every block, lend a block its parameters, and read the next one's."""

    family, verified = streamed.architecture.family, streamed.family_verified
    n_rows, n_positions = batch.input.token_ids.shape
    written: list[Tensor] = []

    def keep(layer: int, stream: object) -> None:
        stream = one_stream(stream, (n_rows, n_positions), streamed.d_model, family)
        kept[:, layer] = batch.unfold(stream)[: len(kept)]
        if witness is not None:
            witness.check(stream, family)
        if not verified:
            written[:] = [stream]

    def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: None if other is not None and other.is_this else hook(*args)

    def enter(i: int) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = stream_of(args, kwargs)
            if i == 0:
                keep(0, stream)
            elif not verified:
                handed_on(stream, written[0], i, family)
            streamed.weights.lend(i)

        return before

    def leave(i: int) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            keep(i + 1, written_by(output))
            if other is not None:
                other.step()
            streamed.weights.drop(i)
            progress(i + 1, streamed.n_layers)

        return after

    with Hooks() as hooks:
        for i, block in enumerate(streamed.blocks):
            hooks.before(block, only_here(enter(i)))
            hooks.after(block, only_here(leave(i)))
            if routing is not None:
                for mixture, module in mixtures_in(block, i + 1):
                    hooks.before(module, only_here(routing.hook(mixture)))
        rows, positions = (list(places) for places in zip(*(batch.last[prompt] for prompt in wanted), strict=True))
        # The model's own logits are wanted at a prompt's last token alone; whatever it does to them comes after.
        hooks.before(
            streamed.head, only_here(lambda module, args, kwargs: ((args[0][rows, positions][:, None],), kwargs))
        )
        with streamed.weights.reading(names, head_next=True):
            yield
