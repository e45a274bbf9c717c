"""Matrices of llama.cpp's files (GGUF): blocks of low-precision codes with their scales, decoded row by row."""

from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from layerscope.compiling import loops
from layerscope.errors import CheckpointError
from layerscope.stored.weight import DenseWeight, PackedWeight, StoredWeight

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COMPILED = (
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
)
"""Types that have a loop in `block_kernels`; the package `gguf` decodes the others, some twenty times slower."""


def type_name(ggml_type: int) -> str:
    """What a tensor's type is called: `Q4_K` for 12.

    Raises:
        CheckpointError: the number stands for no type that is known.
    """
    try:
        return str(_constants().GGMLQuantizationType(ggml_type).name)
    except ValueError:
        raise CheckpointError(
            f"A tensor of type {ggml_type} was found, which the package gguf does not know; a newer gguf may."
        ) from None


def row_bytes(ggml_type: int, n_columns: int) -> int:
    """Bytes that a row takes.

    Raises:
        CheckpointError: rows of that length are no whole number of blocks, or the type is not known.
    """
    name = type_name(ggml_type)
    block_floats, block_bytes = _constants().GGML_QUANT_SIZES[_constants().GGMLQuantizationType(ggml_type)]
    if n_columns % block_floats:
        raise CheckpointError(
            f"Rows in GGUF {name} hold a multiple of {block_floats} numbers, these hold {n_columns}: "
            "the file is damaged; fetch it again."
        )
    return int(n_columns // block_floats * block_bytes)


def gguf_weight(raw: UInt8[Tensor, " bytes"], ggml_type: int, shape: tuple[int, int]) -> StoredWeight:
    """A matrix of a file, which goes on lying where its bytes do.

    Args:
        raw: all of its bytes, as they are mapped.
        ggml_type: the number of its type.
        shape: rows and columns, in the order of torch, which is the reverse of the file's.

    Raises:
        CheckpointError: the type is unknown or cannot be decoded, or bytes and shape do not go together.
    """
    d_out, d_in = shape
    name, width = type_name(ggml_type), row_bytes(ggml_type, d_in)
    if len(raw) != d_out * width:
        raise CheckpointError(
            f"A matrix [{d_out}, {d_in}] in GGUF {name} takes {d_out * width} bytes, {len(raw)} came: "
            "the file is damaged; fetch it again."
        )
    if name in _FLOATS:
        return DenseWeight(raw.view(_FLOATS[name]).view(d_out, d_in))
    return GgufWeight(raw.view(d_out, width), d_in, ggml_type)


class GgufWeight(PackedWeight):
    """A matrix in one of the block types of ggml, decoded to what `gguf.quants.dequantize` gives, bit for bit."""

    def __init__(self, packed: UInt8[Tensor, "d_out row_bytes"], n_columns: int, ggml_type: int) -> None:
        """Take the bytes as they are mapped.

        Raises:
            CheckpointError: the type is not known, or nothing decodes it.
        """
        name = type_name(ggml_type)
        super().__init__(packed, n_columns, f"GGUF {name}")
        self._type = _constants().GGMLQuantizationType(ggml_type)
        self._block_floats, self._block_bytes = _constants().GGML_QUANT_SIZES[self._type]
        compiled = loops("layerscope.stored.block_kernels") if name in _COMPILED else None
        self._loop = getattr(compiled, f"decode_{name.lower()}") if compiled is not None else None
        if self._loop is None and self._type not in _quants()._type_traits:
            raise CheckpointError(
                f"Weights in GGUF {name} cannot be decoded: neither layerscope nor the package gguf has a decoder; "
                "take a file in another type, or a newer gguf."
            )

    def decode(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Fill `out`, float32 `[rows, d_in]`, from uint8 `[rows, row_bytes]`; both C-contiguous."""
        if self._loop is not None:
            self._loop(raw.reshape(-1, self._block_bytes), out.reshape(-1, self._block_floats))
            return
        with np.errstate(all="ignore"):  # scales may be infinite
            out[:] = _quants().dequantize(raw, self._type)


def _constants() -> ModuleType:
    """The package's tables; loaded when the first file needs them, since the package takes half a second."""
    return import_module("gguf.constants")


def _quants() -> ModuleType:
    """The package's decoders."""
    return import_module("gguf.quants")
