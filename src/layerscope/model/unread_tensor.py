"""Stands where a module looks for a parameter that stays in its file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class UnreadTensor(ABC):
    """Has the shape, dtype and device of a tensor; its methods and torch's functions have the whole, read for them."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        """Of what is read, as the module computes with it."""
        self.shape, self.dtype, self.device = shape, dtype, device

    @abstractmethod
    def whole(self) -> Tensor:
        """All of it."""

    def __getitem__(self, index: Any) -> Tensor:
        """What the whole has there."""
        return self.whole()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of protocols, such as copying, that a tensor would answer with itself
            raise AttributeError(name)
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Any of torch's functions, on the whole."""
        return function(*map(_tensor, args), **{name: _tensor(value) for name, value in (kwargs or {}).items()})


def _tensor(value: Any) -> Any:
    if isinstance(value, UnreadTensor):
        return value.whole()
    return [_tensor(one) for one in value] if isinstance(value, list) else value
