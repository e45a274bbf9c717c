"""Where a model computes, in which dtype, and within how much memory: decided and said before any work starts."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from layerscope.errors import PlacementError

_UNITS = (
    {"": 1, "B": 1}
    | {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    | {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@contextmanager
def shortage_explained(ran_out: str) -> Iterator[None]:
    """Say in a sentence that memory ran out, although the plan was within the budget.

    Raises:
        PlacementError: it did.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise PlacementError(ran_out) from error


@dataclass(frozen=True)
class Placement:
    """A device, the dtype the blocks compute in, and a memory budget in bytes."""

    device: torch.device
    dtype: torch.dtype
    memory: int

    def holds(self, weight_bytes: int) -> bool:
        """Whether an accelerator keeps these weights: half of the budget is left to what is computed with them."""
        return self.device.type != "cpu" and weight_bytes <= self.memory // 2

    @property
    def dtype_name(self) -> str:
        """`float32` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of working memory a run will hold at once, by purpose; the weights stay in their files."""

    residuals: int
    block: int
    """Parameters of one block that cannot be streamed (fused experts)."""
    activations: int
    sweep: int
    resident: int = 0
    """Weights kept on an accelerator."""

    @property
    def of_prompts(self) -> int:
        """What grows with the number of prompts."""
        return self.residuals + max(self.activations, self.sweep)

    @property
    def total(self) -> int:
        """Forward and sweep follow one another, the residuals live through both."""
        return self.resident + self.residuals + max(self.block + self.activations, self.sweep)


def place(device: str = "auto", dtype: str = "auto", memory: int | str | None = None) -> Placement:
    """Choose a device, a dtype and a budget.

    Args:
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32`, or `bfloat16` (CUDA only: on a CPU every model computes in float32).
        memory: budget in bytes or as `4GiB`; half of what a CPU's machine has free, or nine tenths of an accelerator's
            free memory, where not given.

    Raises:
        PlacementError: a device, dtype or budget that cannot be had.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise PlacementError(f"'{device}' is no device known here; choose auto, cpu, cuda or cuda:N.")
    if device != "cpu" and not torch.cuda.is_available():
        raise PlacementError(f"'{device}' was asked for, but this machine has no CUDA device; use --device cpu.")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise PlacementError(f"'{device}' was asked for, but there are {torch.cuda.device_count()} CUDA devices.")
    if dtype == "auto":
        dtype = "float32" if chosen.type == "cpu" else "bfloat16"
    if dtype not in _DTYPES:
        raise PlacementError(f"'{dtype}' is no dtype to compute in; choose auto, float32 or bfloat16.")
    if chosen.type == "cpu" and dtype != "float32":
        raise PlacementError("On a CPU every model computes in float32 (weights stay as stored); leave --dtype out.")
    if isinstance(memory, str):
        memory = parse_memory(memory)
    if memory is not None and memory <= 0:
        raise PlacementError(f"A memory budget should be above zero, but it is {memory} bytes.")
    share = 0.5 if chosen.type == "cpu" else 0.9  # an accelerator is seldom shared, and weights may stay on it
    budget = int(free_memory(chosen) * share) if memory is None else memory
    return Placement(chosen, _DTYPES[dtype], budget)


def free_memory(device: torch.device) -> int:
    """Bytes that could be had on that device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - a kernel file
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass  # not Linux: a budget that any current machine has
    return 8 << 30


def keeps_in_page_cache(weight_bytes: int) -> bool:
    """Whether weights may stay in the page cache once they were read, for the next batch, twin or probe to find there.

    They may while they take at most half of what is free (pages that can be given back count as free); a larger model
    would push everything else out of the cache and its own first blocks with it, so that nobody gains.
    """
    return weight_bytes <= free_memory(torch.device("cpu")) // 2


def parse_memory(text: str) -> int:
    """`4GiB`, `500MB` or a number of bytes, as bytes.

    Raises:
        PlacementError: text that is no amount of memory.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS:
        raise PlacementError(f"'{text}' is no amount of memory; write it as 4GiB, 500MB or a number of bytes.")
    return int(float(match[1]) * _UNITS[unit])


def format_bytes(n: int | float) -> str:
    """Bytes for people: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit in ("B", "KiB") else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def check_fits(plan: MemoryPlan, placement: Placement) -> None:
    """Refuse a plan that is over the budget.

    Raises:
        PlacementError: naming the largest part and what to change.
    """
    if plan.total <= placement.memory:
        return
    parts = {
        "residuals": plan.residuals,
        "one block's parameters": plan.block,
        "activations": plan.activations,
        "the sweep": plan.sweep,
    }
    largest = max(parts, key=lambda name: parts[name])
    raise PlacementError(
        f"This run needs at least {format_bytes(plan.total)} ({largest}: {format_bytes(parts[largest])}), but the "
        f"budget is {format_bytes(placement.memory)}; raise --memory, or shorten the longest prompt."
    )
