"""Which norm stands between a model's blocks and its head: a walk through the model's own forward, blocks left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.model.module_calls import stream_of


class _AtTheHeadError(Exception):
    """Ends the forward; never leaves this module."""


def norm_behind(
    module: Any, blocks: str, head: nn.Module, d_model: int, device: torch.device
) -> tuple[str | None] | None:
    """The path of the norm that reads what the last block has written.

    Every block hands on what it reads, so that none of their weights is wanted.

    Args:
        module: a model whose weights outside its blocks can be read.
        blocks: path of the container of its blocks.
        head: its unembedding, which is not called.
        d_model: width of the stream.
        device: where the model computes.

    Returns:
        The path, or None in its place where no norm is; None where the forward cannot be walked through so.
    """
    norms = {
        path: part
        for path, part in module.named_modules()
        if "norm" in type(part).__name__.lower() and not path.startswith(f"{blocks}.")
    }
    container = list(module.get_submodule(blocks).children())
    for as_tuple in (False, True):  # what blocks give differs by family
        walk = _Walk(len(container), d_model, as_tuple)
        if walk.reaches_head(module, container, norms, head, device):
            return (walk.norms[0] if walk.norms else None,)
    return None


class _Walk:
    """One forward; notes what is called with the stream that the last block would have written."""

    def __init__(self, n_blocks: int, d_model: int, as_tuple: bool) -> None:
        self.norms: list[str] = []
        self._n_blocks, self._d_model, self._as_tuple = n_blocks, d_model, as_tuple
        self._written: list[Tensor] = []

    def reaches_head(
        self,
        module: Any,
        blocks: Sequence[nn.Module],
        norms: dict[str, nn.Module],
        head: nn.Module,
        device: torch.device,
    ) -> bool:
        """Whether the forward went through all blocks, a stream of one shape handed on, and came to the head."""
        with torch.inference_mode(), ExitStack() as stack:
            for block in blocks:
                stack.enter_context(stands_in(block, self._hand_on))
            stack.enter_context(stands_in(head, self._stop))
            for path, norm in norms.items():
                stack.callback(norm.register_forward_pre_hook(self._note(path)).remove)
            try:
                module(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
            except _AtTheHeadError:
                return len(self._written) == self._n_blocks
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                return False  # such a family cannot be walked through so
        return False

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        stream = stream_of(args, kwargs)
        if tuple(stream.shape) != (1, 2, self._d_model):
            raise ValueError
        self._written.append(stream.clone())
        return (self._written[-1],) if self._as_tuple else self._written[-1]

    def _note(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(norm: nn.Module, args: tuple[Any, ...]) -> None:
            if len(self._written) == self._n_blocks and args and args[0] is self._written[-1]:
                self.norms.append(path)

        return before

    def _stop(self, *args: Any, **kwargs: Any) -> None:
        raise _AtTheHeadError


@contextmanager
def stands_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a module."""
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
