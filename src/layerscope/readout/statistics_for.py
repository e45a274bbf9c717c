"""Which class keeps the statistics of rows on a device."""

from importlib.util import find_spec

import torch

from layerscope.readout.compiled import CompiledStatistics
from layerscope.readout.vocabulary import TorchStatistics


def statistics_for(device: torch.device, engine: str) -> type[TorchStatistics] | type[CompiledStatistics]:
    """Compiled loops for that engine; else torch's passes, or Triton's kernels on CUDA where it is installed."""
    if engine == "compiled":
        return CompiledStatistics
    if device.type != "cuda" or find_spec("triton") is None:
        return TorchStatistics
    from layerscope.readout.triton_statistics import TritonStatistics  # only here can it be imported

    return TritonStatistics
