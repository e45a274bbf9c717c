"""Many batches through a model, block after block: every weight is read once, however much text there is."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.architecture import reset_rope
from layerscope.model.lent_weights import LentWeights
from layerscope.model.module_calls import stream_of, written_by
from layerscope.model.one_stream import one_stream
from layerscope.model.streamed_module import StreamedModule
from layerscope.model.streaming import Hooks


class _EnoughError(Exception):
    """Ends a forward whose later part is not wanted; never leaves this module."""


@dataclass(frozen=True)
class BlockCall:
    """What the model gives a block beside the residual stream: masks, rotary angles, switches."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_keyword: bool
    """Whether the residual stream itself comes by keyword."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "BlockCall":
        """Taken from a call that the model makes."""
        return cls(args[1:], {name: v for name, v in kwargs.items() if name != "hidden_states"}, not args)

    def __call__(self, block: nn.Module, stream: Tensor) -> Tensor:
        """The stream after the block."""
        if self.by_keyword:
            output = block.forward(hidden_states=stream, **self.kwargs)
        else:
            output = block.forward(stream, *self.args, **self.kwargs)
        return written_by(output)

    def same_as(self, other: "BlockCall") -> bool:
        """Whether nothing in it depends on the text."""
        return _same((self.args, self.kwargs), (other.args, other.kwargs))


@dataclass(frozen=True)
class BlockInHand:
    """A block that has its parameters, and the batch that it is about to change."""

    index: int
    """Of the block, from 0: it reads layer `index` and writes the next."""
    block: nn.Module
    call: BlockCall
    batch: int

    def __call__(self, stream: Tensor) -> Tensor:
        """The stream after the block."""
        return self.call(self.block, stream)


Visit: TypeAlias = Callable[[BlockInHand], None]


def run_blockwise(
    streamed: StreamedModule,
    token_ids: Int[Tensor, "batch sequence position"],
    residuals: Float[Tensor, "batch sequence position d_model"],
    after: Callable[[int], None],
    *,
    n_blocks: int | None = None,
    reached: int | None = None,
    visit: Visit | None = None,
) -> None:
    """Run every block on all batches before the next block, in place: `CausalLM.forward_blockwise`.

    Raises:
        ModelError: the model hands its blocks something that depends on the text, or does not read so many positions.
    """
    if streamed.n_context is not None and token_ids.shape[-1] > streamed.n_context:
        raise ModelError(
            f"The model reads {streamed.n_context} positions at most, but sequences of {token_ids.shape[-1]} came; "
            "give shorter ones."
        )
    reset_rope(streamed.module)
    blocks, token_ids = streamed.blocks, token_ids.to(streamed.placement.device)
    first, end = reached or 0, len(blocks) if n_blocks is None else n_blocks
    # What is made in inference mode can never be differentiated.
    with streamed.weights.reading(), torch.inference_mode(visit is None), torch.no_grad():
        if reached is None:
            _embed(streamed, token_ids, residuals)
            after(0)
        if first < end:
            walk = _Walk(residuals, token_ids.device, streamed.weights, after, visit, range(first, end))
            with Hooks() as hooks:
                for i, block in enumerate(blocks):
                    walk.hook(hooks, i, block)
                _forward(streamed.module, token_ids[0])


@dataclass(frozen=True)
class _Walk:
    """Takes all batches through each block while the module's own forward over the first one stands there.

    Whatever that hands a block (masks, rotary angles) is the same for every batch of its shape, so each block is called
    for the others with the same arguments.
    """

    residuals: Float[Tensor, "batch sequence position d_model"]
    """What the next block reads; may lie on another device than the model."""
    device: torch.device
    weights: LentWeights
    after: Callable[[int], None]
    visit: Visit | None
    wanted: range
    """Blocks that change the residuals. Those before run on the first batch alone, for what the module hands the later
    ones; the forward ends behind the last."""
    calls: dict[int, BlockCall] = field(default_factory=dict)
    """Of the block that is running."""

    def hook(self, hooks: Hooks, i: int, block: nn.Module) -> None:
        """Of one block."""

        def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls[i] = BlockCall.of(args, kwargs)
            self.weights.lend(i)

        def behind(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = self.calls.pop(i)
            if i in self.wanted:
                self._change(i, block, call, written_by(output))
            self.weights.drop(i)
            if i in self.wanted:
                self.after(i + 1)
            if i == self.wanted[-1]:
                raise _EnoughError

        hooks.before(block, before)
        hooks.after(block, behind)

    def _change(self, i: int, block: nn.Module, call: BlockCall, stream: Tensor) -> None:
        """The residuals from what a block reads to what it writes; `stream` is the first batch's already."""
        for batch in range(len(self.residuals)):
            if self.visit is not None:
                self.visit(BlockInHand(i, block, call, batch))
            self.residuals[batch] = (
                stream if batch == 0 else call(block, self.residuals[batch].to(self.device, stream.dtype))
            )


def _embed(streamed: StreamedModule, token_ids: Int[Tensor, "batch sequence position"], residuals: Tensor) -> None:
    """Layer 0 of every batch, into `residuals`."""
    seen: list[tuple[Tensor, BlockCall]] = []
    _, n_rows, n_positions = token_ids.shape
    family = streamed.architecture.family

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = one_stream(stream_of(args, kwargs), (n_rows, n_positions), streamed.d_model, family)
        seen.append((stream, BlockCall.of(args, kwargs)))
        raise _EnoughError

    first: BlockCall | None = None
    with Hooks() as hooks:
        hooks.before(streamed.blocks[0], before)
        for batch, ids in enumerate(token_ids):
            _forward(streamed.module, ids)
            stream, call = seen.pop()
            residuals[batch] = stream
            if first is None:
                first = call
            elif batch == 1 and not first.same_as(call):
                raise ModelError(
                    "The model hands its blocks something that depends on the text beside the residual stream, so its "
                    "blocks cannot be run one after the other over many texts, and no lens can be fitted to it."
                )
    if first is None:
        raise ModelError("There is no text to run; give at least one batch.")


def _forward(module: nn.Module, ids: Int[Tensor, "sequence position"]) -> None:
    with suppress(_EnoughError):
        module(input_ids=ids, attention_mask=None, use_cache=False)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, int | float | str | None):
        return bool(first == second)
    return True  # caches and the like: they are empty, or the stream itself would not be enough
