"""Quantised weights among a checkpoint's tensors: which there are, and of which tensors each is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerscope.errors import CheckpointError
from layerscope.stored.parts import Available, siblings_of
from layerscope.stored.recognise import Recognised, recognise
from layerscope.stored.weight import StoredWeight

_STACKED = "_blocks"
"""Ends the name of experts that lie in one tensor, each as the transpose of what its parameter is (gpt-oss)."""
_PACKED_ENDS = {".qweight": ".weight", ".weight_packed": ".weight", _STACKED: ""}
"""What ends the name of packed codes, and what ends that of the weight they are."""


@dataclass(frozen=True)
class PackedTensor:
    """A quantised weight of a checkpoint."""

    recognised: Recognised
    made: StoredWeight
    """Its matrix; of stacked experts all rows one after the other."""
    stack: tuple[int, int] | None
    """Of stacked experts their number and the rows of each."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        if self.stack is None:
            return self.made.shape
        return self.stack[0], self.made.shape[1], self.stack[1]

    def whole(self) -> Tensor:
        """The parameter in float32."""
        rows = self.made.whole(torch.float32, torch.device("cpu"))
        return rows if self.stack is None else rows.view(*self.stack, rows.shape[1]).transpose(1, 2)


@dataclass(frozen=True)
class PackedWeights:
    """What is no plain float in a checkpoint, by the names that weights would have as such."""

    read: Mapping[str, PackedTensor]
    unread: Mapping[str, CheckpointError]
    """Why one cannot be read; raised where it is wanted, since a part of a model may be read without the others."""


def packed_weights(
    available: Available, quantization: Mapping[str, Any] | None, tensor: Callable[[str], Tensor]
) -> PackedWeights:
    """Find all weights that are no plain floats.

    Args:
        available: shape and dtype of each tensor.
        quantization: what config.json says of it.
        tensor: gives one as it is mapped.
    """
    read: dict[str, PackedTensor] = {}
    unread: dict[str, CheckpointError] = {}
    siblings = siblings_of(available)
    for name, (shape, dtype) in available.items():
        weight = _weight_of(name, shape, dtype)
        if weight is None or weight in read or weight in unread:
            continue
        try:
            recognised = recognise(weight, available, quantization, siblings=siblings)
            if recognised is not None and recognised.is_packed:
                read[weight] = PackedTensor(recognised, recognised.made(tensor), _stack(name, shape))
        except CheckpointError as error:
            unread[weight] = error
    return PackedWeights(read, unread)


def _weight_of(name: str, shape: Sequence[int], dtype: torch.dtype) -> str | None:
    """The weight whose codes a tensor may be; None where it is no codes."""
    for end, plain in _PACKED_ENDS.items():
        if name.endswith(end):
            return name.removesuffix(end) + plain
    is_codes = name.endswith(".weight") and (not dtype.is_floating_point or dtype.itemsize == 1) and len(shape) > 1
    return name if is_codes else None


def _stack(name: str, shape: Sequence[int]) -> tuple[int, int] | None:
    return (shape[0], shape[1]) if name.endswith(_STACKED) and len(shape) == 4 else None
