"""The tensors of a GGUF file, memory-mapped: matrices give their rows as floats, decoded when they are wanted."""

import json
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import torch

from layerscope.model.gguf_header import GgufHeader, GgufTensor
from layerscope.model.tensor_files import Place, TensorFiles, page_of
from layerscope.stored.gguf_blocks import gguf_weight
from layerscope.stored.weight import StoredWeight, bytes_of

FREQUENCY_FACTORS = "rope_freqs.weight"
"""What rotary frequencies are divided by: how llama.cpp stores Llama 3.1's scaling."""
EXCERPT_ROWS = 4
EXCERPT_BYTES = 2048
"""What tells a tensor from another: of so many rows the first bytes."""


class GgufCheckpoint(TensorFiles):
    """The tensors of a GGUF file, or of all parts of a split one, under the names that llama.cpp gives them."""

    format = "gguf"
    described_by = "header"

    def __init__(self, header: GgufHeader) -> None:
        """Map the files that a header was read from."""
        self.header = header
        self._bytes: Mapping[Path, torch.Tensor] = {file: _mapped(file) for file in header.files}
        self._mapped_at = {file: page_of(mapped.data_ptr()) for file, mapped in self._bytes.items()}
        self._places = {
            name: Place(name, tensor.file, tensor.start, tensor.stop) for name, tensor in header.tensors.items()
        }

    @property
    def files(self) -> tuple[Path, ...]:
        """The parts in their order."""
        return self.header.files

    @property
    def storage(self) -> str:
        """Types of its tensors, those with the most bytes first: `GGUF Q4_K, Q6_K, F32`."""
        return f"GGUF {', '.join(self.header.type_counts)}"

    @cached_property
    def description(self) -> str:
        """The header's values of the family's own, and the factors of rotary frequencies."""
        own = f"{self.header.architecture}."
        values = {key: value for key, value in self.header.metadata.items() if key.startswith(own)}
        factors = self.tensor(FREQUENCY_FACTORS).tolist() if FREQUENCY_FACTORS in self.header.tensors else None
        return json.dumps([self.header.architecture, values, factors], sort_keys=True)

    def bytes_kept(self, itemsize: int) -> int:
        """As if all were floats of that many bytes."""
        return itemsize * sum(prod(tensor.shape) for tensor in self.header.tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in floats."""
        return self.header.tensors[name].shape

    def weight(self, name: str) -> StoredWeight:
        """A matrix as it is stored."""
        tensor = self.header.tensors[name]
        raw = self._raw(tensor)
        return gguf_weight(raw.reshape(-1), int(tensor.type), (len(raw), tensor.shape[-1]))

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, decoded: float32 but for what is stored as 16-bit floats."""
        stored = self.weight(name)
        shape, dense = self.shape(name), getattr(stored, "tensor", None)
        if dense is not None:
            values: torch.Tensor = dense
            return values.reshape(shape)
        return stored.whole(torch.float32, torch.device("cpu")).reshape(shape)

    def matrix(self, name: str, i: int) -> torch.Tensor:
        """One matrix of a tensor with three axes; the others are not decoded."""
        _, n_rows, n_columns = self.shape(name)
        rows = torch.empty(n_rows, n_columns)
        return self.weight(name).rows(i * n_rows, (i + 1) * n_rows, rows)

    def excerpt(self, name: str) -> bytes:
        """Shape, type and the beginnings of a few rows."""
        tensor = self.header.tensors[name]
        raw = self._raw(tensor)
        few = raw[:: max(1, len(raw) // EXCERPT_ROWS), :EXCERPT_BYTES]
        return f"{tensor.shape} {tensor.type.name}".encode() + bytes_of(few)

    def _raw(self, tensor: GgufTensor) -> torch.Tensor:
        """Its bytes `[rows, row_bytes]`, all axes but the last counting as rows."""
        raw = self._bytes[tensor.file][tensor.start : tensor.stop]
        return raw.view(prod(tensor.shape[:-1]), tensor.row_bytes)


def _mapped(file: Path) -> torch.Tensor:
    """A file's bytes; read when they are wanted, and never written to."""
    mapped = np.memmap(file, dtype=np.uint8, mode="c")  # copied where somebody writes: torch knows no read-only memory
    return torch.from_numpy(mapped)
