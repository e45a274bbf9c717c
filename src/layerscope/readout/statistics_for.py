"""Which class keeps the statistics of rows on a device."""

from importlib.util import find_spec

import torch

from layerscope.readout.vocabulary import VocabularyStatistics


def statistics_for(device: torch.device) -> type[VocabularyStatistics]:
    """The one whose passes are compiled for that device: Triton's kernels on CUDA where Triton is installed."""
    if device.type != "cuda" or find_spec("triton") is None:
        return VocabularyStatistics
    from layerscope.readout.triton_statistics import TritonStatistics  # only here can it be imported

    return TritonStatistics
