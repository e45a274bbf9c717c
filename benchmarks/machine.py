"""The machine that a benchmark ran on: its name, and the ceilings that no program on it can pass."""

import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from setting import Setting

from layerscope.products import product

READ_BUFFER = 32 << 20
"""Bytes of a plain read: large enough for the disk, small enough to be used again at once."""
MOST_READ = 4 << 30
"""Bytes of a file that are read to measure the rate."""
LIBRARIES = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Machine:
    """Processor and versions; no name of a host, no path."""

    processor: str
    capability: str
    """Of its vector units, as torch has it."""
    cores: int
    threads: int
    """That every side of every comparison used."""
    memory_gb: float
    python: str
    versions: dict[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.processor} ({self.capability}), {self.cores} cores, {self.threads} "
            f"thread{'' if self.threads == 1 else 's'}, {self.memory_gb:.0f} GB of memory; Python {self.python}, "
            f"{versions}"
        )


@dataclass(frozen=True)
class ReadRate:
    """GB (1e9 bytes) a second of plain reads by one thread from a file."""

    cold: float
    """After the kernel was asked to let its pages go."""
    warm: float
    """Directly afterwards."""


def describe(threads: int) -> Machine:
    """This machine."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    return Machine(
        processor=cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count() or 1,
        threads=threads,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        python=platform.python_version(),
        versions={name: metadata.version(name) for name in (*LIBRARIES, "numba") if name in installed},
    )


@torch.inference_mode()
def product_peak(setting: Setting, n: int = 4096, repeats: int = 5) -> float:
    """GFLOP/s of a square float32 matrix product, the best of several: the ceiling of all that multiplies.

    By whichever of torch's CPU libraries is faster here, since both are there for everybody.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    seconds = []
    with setting.alone():
        for multiply in (lambda: torch.mm(a, b, out=out), lambda: product(a, b)) * repeats:
            began = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return 2 * n**3 / min(seconds) / 1e9


def read_rate(folder: Path, setting: Setting) -> ReadRate:
    """How fast the largest weight file of a checkpoint can be read."""
    path = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    with setting.alone():
        drop_pages(path)
        return ReadRate(_rate(path), _rate(path))


def drop_pages(path: Path) -> None:
    """Ask the kernel to forget what it holds of a file, or of the weight files of a folder."""
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_pages(folder: Path) -> None:
    """Read a checkpoint once, so that the kernel holds it."""
    buffer = bytearray(READ_BUFFER)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _rate(path: Path) -> float:
    buffer, done = bytearray(READ_BUFFER), 0
    began = time.perf_counter()
    with path.open("rb", buffering=0) as opened:
        while done < MOST_READ and (n := opened.readinto(buffer)):
            done += n
    return done / (time.perf_counter() - began) / 1e9
