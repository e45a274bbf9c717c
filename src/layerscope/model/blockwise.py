"""Many batches through a model, block after block: every weight is read once, however much text there is."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerscope.errors import ModelError
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
        after: Tensor = output[0] if isinstance(output, tuple) else output
        return after

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


def stream_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among a block's arguments."""
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def run_blockwise(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    token_ids: Int[Tensor, "batch sequence position"],
    residuals: Float[Tensor, "batch sequence position d_model"],
    *,
    lend: Callable[[int], None],
    drop: Callable[[int], None],
    after: Callable[[int], None],
    n_blocks: int | None = None,
    reached: int | None = None,
    visit: Visit | None = None,
) -> None:
    """Run every block on all batches before the next block, in place.

    The module's own forward over the first batch leads: whatever it hands a block (masks, rotary angles) is the same
    for every batch of that shape, so each block is called for the others with the same arguments.

    Args:
        module: the model; its forward is used as it is.
        blocks: its blocks.
        token_ids: batches of equal shape, without padding.
        residuals: filled with the stream, layer after layer, in float32; may lie on another device than the model.
        lend: called before block i, to give it its parameters.
        drop: called after block i, to take them back.
        after: called with the layer that `residuals` now holds, 0 to the number of blocks.
        n_blocks: how many blocks to run; all of them where not given.
        reached: the layer that `residuals` hold already, where they do. Blocks before it run on the first batch alone,
            for what the model hands the later ones, and `after` is not called for them.
        visit: called with every block and batch while `residuals` still hold what the block reads.

    Raises:
        ModelError: the model hands its blocks something that depends on the text.
    """
    device = token_ids.device
    if reached is None:
        _embed(module, blocks[0], token_ids, residuals)
        after(0)
    start, last = reached or 0, (len(blocks) if n_blocks is None else n_blocks) - 1
    if last < start:
        return
    calls: dict[int, BlockCall] = {}

    def enter(i: int) -> Callable[..., None]:
        def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[i] = BlockCall.of(args, kwargs)
            lend(i)

        return before

    def leave(i: int) -> Callable[..., None]:
        def behind(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = calls.pop(i)
            if i < start:
                drop(i)
                return
            stream = output[0] if isinstance(output, tuple) else output
            if visit is not None:
                visit(BlockInHand(i, block, call, 0))
            residuals[0] = stream
            for batch in range(1, len(token_ids)):
                if visit is not None:
                    visit(BlockInHand(i, block, call, batch))
                residuals[batch] = call(block, residuals[batch].to(device, stream.dtype))
            drop(i)
            after(i + 1)
            if i == last:
                raise _EnoughError

        return behind

    with Hooks() as hooks:
        for i, block in enumerate(blocks):
            hooks.before(block, enter(i))
            hooks.after(block, leave(i))
        _forward(module, token_ids[0])


def _embed(
    module: nn.Module, block: nn.Module, token_ids: Int[Tensor, "batch sequence position"], residuals: Tensor
) -> None:
    """Layer 0 of every batch, into `residuals`."""
    seen: list[tuple[Tensor, BlockCall]] = []

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((stream_of(args, kwargs), BlockCall.of(args, kwargs)))
        raise _EnoughError

    first: BlockCall | None = None
    with Hooks() as hooks:
        hooks.before(block, before)
        for batch, ids in enumerate(token_ids):
            _forward(module, ids)
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
