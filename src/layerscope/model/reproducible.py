"""Work that repeats bit for bit: seeded generators and deterministic kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every generator and ask for deterministic kernels; afterwards the CPU's state is as it was."""
    if device.type == "cuda":  # without it CUDA's matrix products refuse to be deterministic
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    state, deterministic = torch.get_rng_state(), torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.manual_seed(seed)
    # The same flag as use_deterministic_algorithms sets, which also imports the compiler to tell it.
    torch.set_deterministic_debug_mode("error")
    memory.fill_uninitialized_memory = False  # it would write every buffer once more
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.set_deterministic_debug_mode(deterministic)
        torch.set_rng_state(state)
