"""Rows of GGML blocks as floats. (Stand-in until the compiled kernels are merged.)"""

import gguf
import numpy as np
import torch
from torch import Tensor

from layerscope.stored.weight import DenseWeight, PackedWeight, StoredWeight

_DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class GgufWeight(PackedWeight):
    """Blocks."""

    def __init__(self, packed: Tensor, n_columns: int, kind: gguf.GGMLQuantizationType) -> None:
        super().__init__(packed, n_columns, f"GGUF {kind.name}")
        self.kind = kind

    def decode(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Decode."""
        out[:] = gguf.dequantize(raw, self.kind).reshape(out.shape)


def gguf_weight(raw: Tensor, kind: gguf.GGMLQuantizationType, n_columns: int) -> StoredWeight:
    """Of bytes."""
    if kind.name in _DENSE:
        return DenseWeight(raw.view(_DENSE[kind.name]))
    return GgufWeight(raw, n_columns, kind)
