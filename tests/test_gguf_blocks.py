"""Blocks of llama.cpp's files give what the package gguf makes of them, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import _type_traits, dequantize

from layerscope.errors import CheckpointError
from layerscope.stored import gguf_blocks
from layerscope.stored.gguf_blocks import GgufWeight, gguf_weight, row_bytes
from layerscope.stored.weight import DenseWeight

PACKED = sorted(kind.name for kind in _type_traits if kind.name != "BF16")
HALVES = {  # where the float16 scales of a block are
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}
EXTREME = np.array(
    [0, 0x8000, 1, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF]
)


def random_blocks(name: str, n_rows: int, blocks: int) -> np.ndarray:
    """Rows of arbitrary bytes, in which the float16 scales take every kind of value."""
    rng = np.random.default_rng(list(name.encode()))
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    raw = rng.integers(0, 256, (n_rows * blocks, size), dtype=np.uint8)
    for k, at in enumerate(HALVES.get(name, [])):
        some = raw[k :: len(HALVES[name]) + 1]
        some[:, at : at + 2] = rng.choice(EXTREME, len(some)).astype("<u2").view(np.uint8).reshape(-1, 2)
    return raw.reshape(n_rows, -1)


def assert_same_bits(got: np.ndarray, due: np.ndarray) -> None:
    """The same floats, signs of zero included; NaN at the same places, whatever its payload."""
    assert got.dtype == due.dtype == np.float32
    nan = np.isnan(due)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(np.where(nan, 0, got.view(np.uint32)), np.where(nan, 0, due.view(np.uint32)))


@pytest.mark.parametrize("name", PACKED)
def test_rows_are_those_of_the_package_gguf_bit_for_bit(name: str):
    kind = GGMLQuantizationType[name]
    block = GGML_QUANT_SIZES[kind][0]
    raw = random_blocks(name, 64, 6)
    with np.errstate(all="ignore"):
        due = dequantize(raw, kind)
    weight = gguf_weight(torch.from_numpy(raw).flatten(), kind.value, (64, 6 * block))
    assert (weight.shape, weight.storage, weight.nbytes) == ((64, 6 * block), f"GGUF {name}", raw.nbytes)
    assert weight.row_bytes == row_bytes(kind.value, 6 * block) == raw.shape[1]
    assert_same_bits(weight.whole(torch.float32, torch.device("cpu")).numpy(), due)
    room = torch.empty(9, 6 * block)
    assert_same_bits(weight.rows(5, 12, room).numpy(), due[5:12])
    assert_same_bits(weight.taken(torch.tensor([7, 0, 63]), room).numpy(), due[[7, 0, 63]])
    if name in HALVES:
        assert np.isnan(due).any() and np.isinf(due).any()


@pytest.mark.parametrize("name", [*HALVES, "MXFP4"])
def test_a_compiled_loop_decodes_each_common_type(name: str):
    raw = torch.from_numpy(random_blocks(name, 2, 1))
    assert GgufWeight(raw, GGML_QUANT_SIZES[GGMLQuantizationType[name]][0], GGMLQuantizationType[name].value)._loop


def test_without_a_compiler_the_package_decodes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf_blocks, "loops", lambda name: None)
    raw = random_blocks("Q4_K", 8, 2)
    with np.errstate(all="ignore"):
        due = dequantize(raw, GGMLQuantizationType.Q4_K)
    weight = gguf_weight(torch.from_numpy(raw).flatten(), GGMLQuantizationType.Q4_K.value, (8, 512))
    assert_same_bits(weight.whole(torch.float32, torch.device("cpu")).numpy(), due)


def test_floats_are_dense_and_lie_where_their_bytes_do():
    for name, dtype in (
        ("F64", torch.float64),
        ("F32", torch.float32),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
    ):
        matrix = torch.randn(3, 5).to(dtype)
        raw = matrix.view(torch.uint8).flatten()
        weight = gguf_weight(raw, GGMLQuantizationType[name].value, (3, 5))
        assert isinstance(weight, DenseWeight) and weight.tensor.data_ptr() == raw.data_ptr()
        assert torch.equal(weight.tensor, matrix)


def test_what_cannot_be_decoded_is_named():
    with pytest.raises(CheckpointError, match="multiple of 256 numbers, these hold 100"):
        row_bytes(GGMLQuantizationType.Q4_K.value, 100)
    with pytest.raises(CheckpointError, match=r"\[2, 32\] in GGUF Q8_0 takes 68 bytes, 67 came"):
        gguf_weight(torch.zeros(67, dtype=torch.uint8), GGMLQuantizationType.Q8_0.value, (2, 32))
    with pytest.raises(CheckpointError, match="type 999"):
        row_bytes(999, 32)
    with pytest.raises(CheckpointError, match="GGUF Q8_K cannot be decoded"):
        gguf_weight(torch.zeros(292, dtype=torch.uint8), GGMLQuantizationType.Q8_K.value, (1, 256))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("folder", ["smollm2", "gemma"])
def test_the_matrices_of_real_files_are_those_of_the_package(folder: str, request: pytest.FixtureRequest):
    path: Path = request.getfixturevalue(folder) / "model.gguf"
    kinds = set()
    for tensor in GGUFReader(path).tensors:
        if len(tensor.shape) != 2:
            continue
        kinds.add(tensor.tensor_type.name)
        shape = (int(tensor.shape[1]), int(tensor.shape[0]))
        raw = torch.from_numpy(tensor.data.view(np.uint8).copy()).flatten()
        got = gguf_weight(raw, tensor.tensor_type.value, shape).whole(torch.float32, torch.device("cpu"))
        assert_same_bits(got.numpy(), dequantize(tensor.data, tensor.tensor_type).reshape(shape))
    assert len(kinds) > 1
