"""For a machine with a GPU, in under eight minutes: are the numbers the CPU's, and how near are its ceilings?

First `tests/test_gpu.py` and the Triton kernels' tests. Then the device's ceilings, measured here: copies from pinned
memory and within the device, products in float32 and bfloat16. Then two probes beside them: the 8B shape with its
weights on the device, the 72B shape with its weights brought block by block.

    python benchmarks/gpu.py                     # on CUDA
    python benchmarks/gpu.py --out gpu.json      # the figures as JSON too
    python benchmarks/gpu.py --device cpu        # the same code at a tiny size, to see that it runs
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from setting import ROOT, markdown, seconds
from shapes import Shape

import layerscope

PROMPTS, TOKENS, LENSES = 3, 16, 3
"""Of the suite `berlin`, roughly sixteen tokens each, and of a probe's own lenses."""
COPY_BYTES = {"cuda": 1 << 30, "cpu": 64 << 20}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
TESTS = ["tests/test_gpu.py", "tests/test_triton_statistics.py"]


@dataclass(frozen=True)
class Ceilings:
    """What the device can do at most, best of five."""

    name: str
    to_device_gb_s: float
    """From pinned memory."""
    within_gb_s: float
    """Read and written, counted once each."""
    float32_gflops: float
    bfloat16_gflops: float


@dataclass(frozen=True)
class Probed:
    """One probe of one shape, after a first one that warmed it up."""

    shape: str
    resident: bool
    dtype: str
    forward_s: float
    sweep_s: float
    wall_s: float
    weight_gb: float
    sweep_gflop: float
    peak_gb: float
    """Of the device's memory."""


def waited(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of five."""
    times = []
    for _ in range(6):
        waited(device)
        began = time.perf_counter()
        work()
        waited(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


@torch.inference_mode()
def ceilings(device: torch.device) -> Ceilings:
    """Measured with plain PyTorch."""
    n_bytes, n = COPY_BYTES[device.type], PRODUCT_SIZE[device.type]
    host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there, other = (torch.empty(n_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b, out = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
        products[dtype] = 2 * n**3 / best_s(partial(torch.mm, a, b, out=out), device) / 1e9
    return Ceilings(
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        to_device_gb_s=n_bytes / best_s(lambda: there.copy_(host, non_blocking=True), device) / 1e9,
        within_gb_s=2 * n_bytes / best_s(lambda: other.copy_(there), device) / 1e9,
        float32_gflops=products[torch.float32],
        bfloat16_gflops=products[torch.bfloat16],
    )


def probed(shape: Shape, device: torch.device, memory: int | None) -> Probed:
    """The second of two probes: the first one's kernels and pages are not charged."""
    folder = shape.prepare()
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        model = layerscope.CausalLM.open(folder, device=str(device), memory=memory)
        run = layerscope.probe(model, suite="berlin", positions="last")
        wall = time.perf_counter() - began
        identity, timings = run.record.identity, run.record.timings
        if identity is None or timings is None or not identity.ok:
            raise ValueError(f"{shape.title}: the last layer's decode is not the model's own output; nothing is told")
        resident, dtype = model.resident, model.placement.dtype_name
        del model
    counted = shape.arithmetic()
    return Probed(
        shape=shape.title,
        resident=resident,
        dtype=dtype,
        forward_s=timings.forward_s,
        sweep_s=timings.sweep_s,
        wall_s=wall,
        weight_gb=counted.bytes_read / 1e9,
        sweep_gflop=counted.sweep_flop(LENSES * counted.depths * PROMPTS) / 1e9,
        peak_gb=torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0,
    )


def table(found: Ceilings, probes: list[Probed]) -> str:
    """Ceilings in a sentence, then each probe's share of them."""
    rows = []
    for probe in probes:
        rate = probe.weight_gb / probe.forward_s
        ceiling = found.within_gb_s / 2 if probe.resident else found.to_device_gb_s
        product = probe.sweep_gflop / probe.sweep_s / found.float32_gflops
        rows.append(
            [
                f"{probe.shape}, {'resident' if probe.resident else 'streamed'}, {probe.dtype}",
                *(seconds(value) for value in (probe.wall_s, probe.forward_s, probe.sweep_s)),
                f"{rate:.1f}",
                f"{rate / ceiling:.0%}",
                f"{product:.0%}",
                f"{probe.peak_gb:.1f}",
            ]
        )
    header = ["", "wall, s", "forward", "to numbers", "weights, GB/s", "share of copy", "share of product", "peak GB"]
    return (
        f"{found.name}: {found.to_device_gb_s:.1f} GB/s from pinned memory, {found.within_gb_s:.0f} GB/s within, "
        f"{found.float32_gflops:,.0f} GFLOP/s in float32, {found.bfloat16_gflops:,.0f} in bfloat16.\n\n"
        f"{markdown(header, rows)}\n\n"
        "Suite `berlin`, last positions, three lenses; the second of two probes. The share of copy is of reading "
        "within the device for resident weights, of copies from pinned memory for streamed ones; the share of product "
        "is of all that follows the forward, in which the suite's rows are few."
    )


def test(device: torch.device) -> int:
    """Whether the numbers are the CPU's; pytest's exit code."""
    environment = {**os.environ, "LAYERSCOPE_TEST_DEVICE": device.type}
    words = ["-q", "-m", "gpu or not gpu", "-o", "addopts=--import-mode=importlib", *TESTS]
    return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Test, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--skip-tests", action="store_true", help="measure alone")
    parser.add_argument("--out", type=Path, help="write the figures as JSON too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    began = time.perf_counter()
    failed = 0 if arguments.skip_tests else test(device)
    print(f"tests: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    found = ceilings(device)
    if device.type == "cuda":
        cases = [(Shape("qwen3-8b", sparse=True), None), (Shape("qwen2.5-72b", sparse=True), 40 << 30)]
    else:
        tiny = Shape("qwen3-0.6b", blocks=2, sparse=True)
        cases = [(tiny, None), (tiny, 2 << 30)]
    probes = [probed(shape, device, memory) for shape, memory in cases]
    print(table(found, probes))
    if arguments.out is not None:
        text = json.dumps({"ceilings": asdict(found), "probes": [asdict(probe) for probe in probes]}, indent=1)
        arguments.out.write_text(text + "\n")
    print(f"{time.perf_counter() - began:.0f} s in all", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
