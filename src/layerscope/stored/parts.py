"""A weight among a checkpoint's tensors: which belong to it, and that they are what its form says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Available = Mapping[str, tuple[Sequence[int], torch.dtype]]
"""Shape and dtype of each tensor of a checkpoint, by name."""
Parts = Mapping[str, Tensor]
"""A weight's tensors by what they are: the end of their names."""
Siblings = Mapping[str, Sequence[str]]
"""For each module the ends of its tensors' names."""

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
POWERS_OF_TWO = (torch.uint8, torch.float8_e8m0fnu)
"""Of scales that are exponents (E8M0)."""
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_OF_ACTIVATIONS = re.compile(r"(in|input|out|output|act|activation|[qkv]|kv|attn|prob|softmax|bmm)_.*")
"""Names of scales that are of no weight: those of what a layer reads and gives, and of a cache of keys and values."""


@dataclass(frozen=True)
class Weight:
    """A weight that is looked for."""

    name: str
    """The parameter's, as the model knows it: `model.layers.0.mlp.up_proj.weight`."""
    available: Available
    config: Mapping[str, Any]
    """The checkpoint's `quantization_config`, or MLX's `quantization`; empty where there is none."""
    shape: tuple[int, int] | None
    """What the model expects, where that is known."""
    siblings: Siblings
    """Of all modules of the checkpoint."""

    def part(self, end: str) -> str:
        """The name of a tensor that belongs to it: `+_blocks` is appended, `weight_scale` stands beside the weight."""
        return self.name + end[1:] if end.startswith("+") else f"{self.name.removesuffix('weight')}{end}"

    def there(self, end: str) -> bool:
        """Whether a part is there."""
        return self.part(end) in self.available

    def size(self, end: str) -> tuple[int, ...]:
        """The shape of a part."""
        return tuple(self.available[self.part(end)][0])

    def dtype(self, end: str) -> torch.dtype:
        """The dtype of a part."""
        return self.available[self.part(end)][1]

    @cached_property
    def scales(self) -> tuple[str, ...]:
        """Ends of the names of what may be its scales, known or not."""
        module = self.name.removesuffix("weight").removesuffix(".")
        ends = [*self.siblings.get(module, ()), *(f"weight.{end}" for end in self.siblings.get(f"{module}.weight", ()))]
        return tuple(end for end in ends if "scale" in end.lower() and not _OF_ACTIVATIONS.fullmatch(end))

    def setting(self, key: str) -> Any:
        """What the config says of it under a key; None where it says nothing."""
        return self.config.get(key)

    def whole_number(self, key: str, settings: Mapping[str, Any] | None = None) -> int | None:
        """A number of the config; None where there is none.

        Raises:
            ValueError: it is no whole number.
        """
        value = (self.config if settings is None else settings).get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise ValueError(f"config.json should have a whole number under `{key}`, but has {value!r}")


def siblings_of(available: Available) -> dict[str, list[str]]:
    """For each module of a checkpoint the ends of its tensors' names."""
    siblings: dict[str, list[str]] = {}
    for name in available:
        module, _, end = name.rpartition(".")
        siblings.setdefault(module, []).append(end)
    return siblings


def expect(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], *shapes: Sequence[int]) -> None:
    """See that a tensor has one of some dtypes and one of some shapes, in which -1 stands for any length above zero.

    Raises:
        ValueError: it has not.
    """
    found = tuple(tensor.shape)
    fits = any(
        len(found) == len(shape) and all(n == due or (due == -1 and n > 0) for n, due in zip(found, shape, strict=True))
        for shape in shapes
    )
    if tensor.dtype not in dtypes or not fits:
        due = " or ".join(str(["any" if n == -1 else n for n in shape]).replace("'", "") for shape in shapes)
        kinds = " or ".join(_kinds(dtypes))
        raise ValueError(f"{name} should be {kinds} {due}, but is {dtype_name(tensor.dtype)} {list(found)}")


def _kinds(dtypes: Sequence[torch.dtype]) -> list[str]:
    """Names of dtypes, whole groups of them by one word."""
    groups = {"floats": FLOATS, "float8": FLOAT8, "integers": INTEGERS}
    found = [name for name, group in groups.items() if set(group) <= set(dtypes)]
    named = {dtype for name in found for dtype in groups[name]}
    return [*found, *(dtype_name(dtype) for dtype in dtypes if dtype not in named)]


def dtype_name(dtype: torch.dtype) -> str:
    """As it is written: `bfloat16`."""
    return str(dtype).removeprefix("torch.")
