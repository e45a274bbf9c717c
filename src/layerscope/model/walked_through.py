"""Which norms read the stream, in front of blocks and behind the last: a walk through a model's own forward.

No block is run, so that none of their weights is read: each is entered as far as the first module that it calls.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.model.module_calls import stream_of

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
"""What a forward raises that is given less than it looks for."""


class _EnoughError(Exception):
    """Ends a forward whose later part is not wanted; never leaves this module."""


@dataclass(frozen=True)
class NormsCalled:
    """Paths of the norms that read the stream as it is; None where it is read, or decoded, without one."""

    input_norms: tuple[str | None, ...]
    """For every block; of the first module that it calls."""
    final_norm: str | None


def norms_called(module: Any, blocks: str, head: nn.Module, d_model: int, device: torch.device) -> NormsCalled | None:
    """The norms that a model's own forward calls with its stream.

    Args:
        module: a model whose weights outside its blocks can be read.
        blocks: path of the container of its blocks.
        head: its unembedding, which is not called.
        d_model: width of the stream.
        device: where the model computes.

    Returns:
        None where the forward cannot be walked through.
    """
    for as_tuple in (False, True):  # what blocks give differs by family
        walk = _Walk(blocks, d_model, as_tuple)
        if walk.reaches_head(module, head, device):
            final_norm = walk.behind[0] if walk.behind else None
            return NormsCalled(tuple(walk.in_front), final_norm)
    return None


@dataclass
class _Walk:
    """One forward, in which every block hands on what it reads."""

    blocks: str
    d_model: int
    as_tuple: bool
    in_front: list[str | None] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    stream: Tensor | None = None
    """What the last block entered hands on."""

    def reaches_head(self, module: Any, head: nn.Module, device: torch.device) -> bool:
        """Whether the forward went through all blocks, a stream of one shape handed on, and came to the head."""
        blocks = list(module.get_submodule(self.blocks).named_children())
        norms = {path: part for path, part in module.named_modules() if _is_norm(part)}
        with torch.inference_mode(), ExitStack() as stack:
            for name, block in blocks:
                stack.enter_context(stands_in(block, self._entered(block, f"{self.blocks}.{name}")))
            stack.enter_context(stands_in(head, _stop))
            for path, norm in norms.items():
                if not path.startswith(f"{self.blocks}."):
                    stack.callback(norm.register_forward_pre_hook(self._note(path, len(blocks))).remove)
            try:
                module(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
            except _EnoughError:
                return len(self.in_front) == len(blocks)
            except FAILURES:
                return False
        return False

    def _entered(self, block: nn.Module, path: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream = stream_of(args, kwargs)
            if tuple(stream.shape) != (1, 2, self.d_model):
                raise ValueError
            self.in_front.append(_first_norm(block, path, stream, args, kwargs))
            self.stream = stream.clone()
            return (self.stream,) if self.as_tuple else self.stream

        return forward

    def _note(self, path: str, n_blocks: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(norm: nn.Module, args: tuple[Any, ...]) -> None:
            if len(self.in_front) == n_blocks and args and args[0] is self.stream:
                self.behind.append(path)

        return before


def _first_norm(block: nn.Module, path: str, stream: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """The norm in a block that is called before any other of its modules, and with the stream; None where none is."""
    found: list[str] = []

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(part: nn.Module, given: tuple[Any, ...]) -> None:
            if _is_norm(part) and given and given[0].shape == stream.shape and torch.equal(given[0], stream):
                found.append(name)
            raise _EnoughError

        return hook

    with ExitStack() as stack:
        for name, part in block.named_modules():
            if part is not block:
                stack.callback(part.register_forward_pre_hook(before(f"{path}.{name}")).remove)
        try:
            type(block).forward(block, *args, **kwargs)
        except (_EnoughError, *FAILURES):
            pass  # the block is run no further, or not as far as a module
    return found[0] if found else None


def _is_norm(module: nn.Module) -> bool:
    # Some families have the word in the names of all their classes; a norm has no parts.
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _stop(*args: Any, **kwargs: Any) -> None:
    raise _EnoughError


@contextmanager
def stands_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a module."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
