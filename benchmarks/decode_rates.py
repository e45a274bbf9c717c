"""How fast each form in which checkpoints store weights is decoded: GB of float32 a second, on one thread and on two.

    python benchmarks/decode_rates.py

Random codes; tiles of 4 MiB of floats, each decoded into the same room, as a pass over a model does; the best of
several passes over 64 MiB. The two threads share the tiles.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from layerscope.stored.bitsandbytes import BitsAndBytesWeight, QuantState
from layerscope.stored.eight_bit import EightBitWeight
from layerscope.stored.float4 import Float4Weight
from layerscope.stored.gguf_blocks import gguf_weight, row_bytes
from layerscope.stored.integers import MlxWeight, PackQuantizedWeight
from layerscope.stored.transposed import AwqWeight, GptqWeight
from layerscope.stored.weight import DenseWeight, StoredWeight
from layerscope.workers import Workers

ROWS, COLUMNS, TILE, GROUP, PASSES = 4096, 4096, 256, 128, 12
GGUF = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
SLOW = ["IQ2_XXS", "IQ3_S"]


def random_bytes(*shape: int) -> Tensor:
    """Codes."""
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def of_gguf(name: str) -> StoredWeight:
    """A matrix of one of ggml's types."""
    kind = GGMLQuantizationType[name].value
    return gguf_weight(random_bytes(ROWS * row_bytes(kind, COLUMNS)), kind, (ROWS, COLUMNS))


def of_bitsandbytes() -> StoredWeight:
    """NF4 whose scales are quantised again."""
    blocks = ROWS * COLUMNS // 64
    return BitsAndBytesWeight(
        random_bytes(ROWS * COLUMNS // 2, 1),
        random_bytes(blocks),
        torch.rand(16),
        QuantState("NF4", (ROWS, COLUMNS), 64, 256, 0.1),
        torch.rand(blocks // 256),
        torch.rand(256),
    )


def words(rows: int, n: int) -> Tensor:
    """Codes in 32-bit words."""
    return random_bytes(rows, 4 * n).view(torch.int32)


def fp8() -> Tensor:
    """A matrix of float8."""
    return random_bytes(ROWS, COLUMNS).view(torch.float8_e4m3fn)


def forms() -> dict[str, Callable[[], StoredWeight]]:
    """What makes a random matrix of each form."""
    groups = COLUMNS // GROUP
    in_order, mixed = torch.arange(COLUMNS) // GROUP, torch.randperm(COLUMNS) % groups
    made: dict[str, Callable[[], StoredWeight]] = {
        "bfloat16": lambda: DenseWeight(torch.randn(ROWS, COLUMNS).bfloat16()),
        "fp8, a scale per row": lambda: EightBitWeight(fp8(), torch.rand(ROWS, 1)),
        "fp8, blocks of 128x128": lambda: EightBitWeight(fp8(), torch.rand(ROWS // 128, COLUMNS // 128)),
        "compressed-tensors int4": lambda: PackQuantizedWeight(
            words(ROWS, COLUMNS // 8), torch.rand(ROWS, groups), COLUMNS, 4
        ),
        "compressed-tensors int4, columns ordered": lambda: PackQuantizedWeight(
            words(ROWS, COLUMNS // 8), torch.rand(ROWS, groups), COLUMNS, 4, None, mixed
        ),
        "bitsandbytes NF4, quantised twice": of_bitsandbytes,
        "bitsandbytes int8": lambda: EightBitWeight(
            random_bytes(ROWS, COLUMNS).view(torch.int8), torch.rand(ROWS), factor=1 / 127
        ),
        "GPTQ int4": lambda: GptqWeight(
            words(COLUMNS // 8, ROWS), words(groups, ROWS // 8), torch.rand(groups, ROWS), 4, GROUP, in_order
        ),
        "GPTQ int4, columns ordered": lambda: GptqWeight(
            words(COLUMNS // 8, ROWS), words(groups, ROWS // 8), torch.rand(groups, ROWS), 4, GROUP, mixed
        ),
        "AWQ int4": lambda: AwqWeight(words(COLUMNS, ROWS // 8), words(groups, ROWS // 8), torch.rand(groups, ROWS)),
        "MXFP4": lambda: Float4Weight(random_bytes(ROWS, COLUMNS // 2), random_bytes(ROWS, COLUMNS // 32), "MXFP4"),
        "NVFP4": lambda: Float4Weight(
            random_bytes(ROWS, COLUMNS // 2),
            torch.rand(ROWS, COLUMNS // 16).to(torch.float8_e4m3fn),
            "NVFP4",
            multiplied_by=torch.ones(1),
        ),
        "MLX 4-bit": lambda: MlxWeight(
            words(ROWS, COLUMNS // 8), torch.rand(ROWS, COLUMNS // 64), torch.rand(ROWS, COLUMNS // 64), 4
        ),
    }
    return made | {f"GGUF {name}": partial(of_gguf, name) for name in [*GGUF, *SLOW]}


def rate(weight: StoredWeight, n_threads: int) -> float:
    """GB of float32 a second."""

    rooms = [torch.zeros(TILE, COLUMNS) for _ in range(n_threads)]

    def decode(first: int) -> None:
        room = rooms[first]
        for start in range(first * TILE, ROWS, n_threads * TILE):
            weight.rows(start, start + TILE, room)

    with Workers(n_threads) as workers:
        best = float("inf")
        for _ in range(PASSES):
            began = time.perf_counter()
            for done in [workers.submit(decode, first) for first in range(n_threads)]:
                done.result()
            best = min(best, time.perf_counter() - began)
    return 4 * weight.numel() / best / 1e9


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("| stored as | one thread, GB/s | two threads, GB/s |\n|---|---|---|")
    for name, make in forms().items():
        weight = make()
        print(f"| {name} | {rate(weight, 1):.1f} | {rate(weight, 2):.1f} |", flush=True)


if __name__ == "__main__":
    main()
