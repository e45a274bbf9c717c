"""Experts that stay in their files: of a stack of matrices only those are read to which a token was routed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from layerscope.model.stored_tensors import Stored
from layerscope.model.unread_tensor import UnreadTensor

BringIn: TypeAlias = Callable[[Sequence[str], tuple[int, int]], None]


class ExpertStack(UnreadTensor):
    """Stands where a module has a parameter `[expert, row, column]`, and reads one expert when it is taken."""

    def __init__(
        self,
        stored: Stored,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        bring_in: BringIn,
    ) -> None:
        """Of a stored stack.

        Args:
            stored: gives its matrices one by one.
            shape: of the parameter.
            dtype: in which the module computes,
            device: and where.
            bring_in: is called with the names of stored tensors that are about to be read, and which of how many equal
                parts of each.
        """
        super().__init__(shape, dtype, device)
        self.stored, self._bring_in = stored, bring_in

    def __getitem__(self, expert: Any) -> Tensor:
        """One expert's matrix, or what the whole stack has there."""
        if isinstance(expert, Tensor) and expert.ndim == 0 and not expert.is_floating_point():
            expert = int(expert)
        if not isinstance(expert, int):
            return self.whole()[expert]
        i = range(self.shape[0])[expert]
        own = self.stored.names_of(i)
        if own is None:
            self._bring_in(self.stored.names, (i, self.shape[0]))
        else:
            self._bring_in(own, (0, 1))
        return self.stored.matrix(i).to(self.device, self.dtype)

    def whole(self) -> Tensor:
        """The stack."""
        self._bring_in(self.stored.names, (0, 1))
        return self.stored.tensor().to(self.device, self.dtype)


def stacks_in(
    block: nn.Module, prefix: str, stored: Mapping[str, Stored]
) -> dict[str, tuple[nn.Module, str, nn.Parameter]]:
    """The parameters of a block that are stacks of experts whose matrices can be read one by one, with their
    modules and names there.

    Args:
        block: a block on the meta device.
        prefix: of its parameters' names.
        stored: where each parameter comes from.
    """
    found = {}
    for path, module in block.named_modules():
        if not _takes_one_by_one(module):
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{path}.{leaf}"
            if parameter.ndim == 3 and parameter.is_meta and name in stored and stored[name].gives_matrices:
                found[name] = (module, leaf, parameter)
    return found


def put_stack(module: nn.Module, leaf: str, stack: ExpertStack) -> None:
    """Let a module find a stack where it looks for its parameter, whose place on the meta device is kept."""
    module.__dict__[leaf] = stack
    # One expert after the other; Transformers' other ways multiply all of them at once.
    module.config._experts_implementation = "eager"  # type: ignore[union-attr]


def _takes_one_by_one(module: nn.Module) -> bool:
    """Whether its own forward loops over experts: such are the classes that Transformers lets others stand in for."""
    return hasattr(type(module).forward, "__wrapped__") and hasattr(module, "is_concatenated")
