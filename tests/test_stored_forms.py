"""Each quantised form of safetensors checkpoints is recognised by its tensors, and read as its packing says.

References go entry by entry through what was packed; where compressed-tensors and bitsandbytes are installed, tensors
that they write are read too.
"""

import json
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from layerscope.errors import CheckpointError
from layerscope.stored import codes
from layerscope.stored.recognise import recognise, unused_flag
from layerscope.stored.weight import DenseWeight, StoredWeight

CPU = torch.device("cpu")
D_OUT, D_IN = 24, 128
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@pytest.fixture(autouse=True, params=["compiled", "by torch"])
def loops_or_none(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by torch":
        monkeypatch.setattr(codes, "loops", lambda name: None)


def read(tensors: Mapping[str, Tensor], config: dict | None = None, name: str = "m.weight", **more) -> StoredWeight:
    available = {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
    found = recognise(name, available, config, **more)
    assert found is not None and found.names <= set(tensors)
    return found.made(tensors.__getitem__)


def assert_reads(weight: StoredWeight, due: Tensor, storage: str) -> None:
    """All of it, a part, and single rows, in float32; and rounded from there."""
    assert weight.storage == storage and weight.shape == tuple(due.shape)
    torch.testing.assert_close(weight.whole(torch.float32, CPU), due, rtol=0, atol=0)
    room = torch.full((9, due.shape[1]), torch.nan)
    torch.testing.assert_close(weight.rows(3, 10, room), due[3:10], rtol=0, atol=0)
    ids = torch.tensor([5, 0, 17])
    torch.testing.assert_close(weight.taken(ids, room), due[ids], rtol=0, atol=0)
    half = torch.empty(9, due.shape[1], dtype=torch.bfloat16)
    torch.testing.assert_close(weight.rows(3, 10, half), due[3:10].bfloat16(), rtol=0, atol=0)
    assert weight.raw_rows(slice(0, 2)) != weight.raw_rows(slice(2, 4))
    assert weight.to(CPU, torch.float32) is weight


def drawn(bits: int, *shape: int) -> Tensor:
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(sum(shape) + bits))


def random_scales(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7)).half() + 0.1


def words(q: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Integers of the last axis in 32-bit words, the first in the lowest bits unless an order is given."""
    each = 32 // bits
    out = torch.zeros(*q.shape[:-1], q.shape[-1] // each, dtype=torch.int64)
    for i in range(each):
        out |= q[..., (order[i] if order else i) :: each].long() << (bits * i)
    return torch.where(out >= 1 << 31, out - (1 << 32), out).int()


def spread(scale: Tensor, n: int) -> Tensor:
    return scale.float().repeat_interleave(n // scale.shape[-1], -1)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("kind", ["none", "matrix", "row", "block", "inverse"])
def test_float8(dtype: torch.dtype, kind: str):
    d_out, d_in = 160, 200  # no whole number of blocks
    weight = torch.randn(d_out, d_in).to(dtype)
    tensors, due, config = {"m.weight": weight}, weight.float(), None
    if kind == "matrix":
        tensors["m.weight_scale"] = torch.tensor(0.3)
        due = due * tensors["m.weight_scale"]
    elif kind == "row":
        tensors["m.weight_scale"] = random_scales(d_out, 1)
        due = due * tensors["m.weight_scale"].float()
    elif kind in ("block", "inverse"):
        side = 128 if kind == "inverse" else 50
        name = "m.weight_scale_inv" if kind == "inverse" else "m.weight_scale"
        tensors[name] = torch.rand(-(-d_out // side), -(-d_in // side))
        config = None if kind == "inverse" else {"weight_block_size": [50, 50]}
        full = tensors[name].repeat_interleave(side, 0).repeat_interleave(side, 1)
        due = due * full[:d_out, :d_in]
    assert_reads(read(tensors, config), due, str(dtype).removeprefix("torch."))


def test_float8_with_scales_that_are_powers_of_two():
    weight, powers = torch.randn(D_OUT, D_IN).to(torch.float8_e4m3fn), drawn(3, D_OUT, D_IN // 32) + 124
    due = weight.float() * spread(torch.exp2(powers.float() - 127), D_IN)
    assert_reads(read({"m.weight": weight, "m.weight_scale": powers.to(torch.uint8)}), due, "float8_e4m3fn")


def test_integers_of_eight_bits_with_scales_and_zero_points():
    q, scale, zero = drawn(8, D_OUT, D_IN) - 128, random_scales(D_OUT, 4), drawn(4, D_OUT, 4)
    tensors = {"m.weight": q.to(torch.int8), "m.weight_scale": scale, "m.weight_zero_point": zero.to(torch.int8)}
    assert_reads(read(tensors), (q - spread(zero, D_IN)) * spread(scale, D_IN), "int8")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["symmetric", "zero points", "ordered", "row"])
def test_packed_integers_of_compressed_tensors(bits: int, kind: str):
    n_groups = 1 if kind == "row" else 4
    q, scale = drawn(bits, D_OUT, D_IN), random_scales(D_OUT, n_groups).bfloat16()
    tensors = {
        "m.weight_packed": words(q, bits),
        "m.weight_scale": scale,
        "m.weight_shape": torch.tensor([D_OUT, D_IN]),
    }
    zero = torch.full((D_OUT, n_groups), 1 << (bits - 1))
    if kind != "symmetric":
        zero = drawn(bits, D_OUT, n_groups)
        tensors["m.weight_zero_point"] = words(zero.T, bits).T
    full_zero, full_scale = spread(zero, D_IN), spread(scale, D_IN)
    if kind == "ordered":
        groups = torch.arange(D_IN) * 7 % 4
        tensors["m.weight_g_idx"] = groups.int()
        full_zero, full_scale = zero[:, groups], scale.float()[:, groups]
    assert_reads(read(tensors), (q - full_zero) * full_scale, f"compressed-tensors int{bits}")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq(bits: int, version: str, ordered: bool):
    q, zero, scale = drawn(bits, D_IN, D_OUT), drawn(bits, 4, D_OUT), random_scales(4, D_OUT)
    groups = torch.arange(D_IN) * 5 % 4 if ordered else torch.arange(D_IN) // (D_IN // 4)
    stored_zero = (zero - int(version == "gptq")) % (1 << bits)
    tensors = {
        "m.qweight": words(q.T, bits).T.contiguous(),
        "m.qzeros": words(stored_zero, bits),
        "m.scales": scale,
        "m.g_idx": groups.int(),
    }
    due = ((q - zero[groups]) * scale.float()[groups]).T
    assert_reads(read(tensors, {"checkpoint_format": version}), due, f"GPTQ int{bits}")


def test_awq():
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs lies in each half byte of a word, from the lowest on
    q, zero, scale = drawn(4, D_IN, D_OUT), drawn(4, 4, D_OUT), random_scales(4, D_OUT)
    tensors = {"m.qweight": words(q, 4, order), "m.qzeros": words(zero, 4, order), "m.scales": scale}
    groups = torch.arange(D_IN) // (D_IN // 4)
    assert_reads(read(tensors), ((q - zero[groups]) * scale.float()[groups]).T, "AWQ int4")


def float4(q: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in bytes, the first in the low half, and what they stand for."""
    signed = torch.tensor(E2M1 + [-x for x in E2M1])
    return (q[..., ::2] | (q[..., 1::2] << 4)).to(torch.uint8), signed[q]


def test_mxfp4_as_gpt_oss_has_it():
    q, powers = drawn(4, 3, 8, D_IN), drawn(4, 3, 8, 4) + 120
    packed, values = float4(q)
    due = (values * spread(torch.exp2(powers.float() - 127), D_IN)).reshape(24, D_IN)
    tensors = {"e.gate_up_proj_blocks": packed.view(3, 8, 4, 16), "e.gate_up_proj_scales": powers.to(torch.uint8)}
    assert_reads(read(tensors, name="e.gate_up_proj"), due, "MXFP4")
    flat = {"m.weight_packed": packed.view(24, -1), "m.weight_scale": powers.to(torch.uint8).view(24, -1)}
    assert_reads(read(flat), due, "MXFP4")


def test_nvfp4_with_its_own_scale_either_way_round():
    packed, values = float4(drawn(4, D_OUT, D_IN))
    scale, whole = random_scales(D_OUT, 8).to(torch.float8_e4m3fn), torch.tensor([4.0])
    due = values * spread(scale, D_IN) * 4
    assert_reads(read({"m.weight": packed, "m.weight_scale": scale, "m.weight_scale_2": whole}), due, "NVFP4")
    other = {"m.weight_packed": packed, "m.weight_scale": scale, "m.weight_global_scale": 1 / whole}
    assert_reads(read(other), due, "NVFP4")


@pytest.mark.parametrize("bits", [4, 8])
def test_mlx(bits: int):
    q, scale, bias = drawn(bits, D_OUT, D_IN), random_scales(D_OUT, 2), -random_scales(D_OUT, 2)
    tensors = {"m.weight": words(q, bits).view(torch.uint32), "m.scales": scale, "m.biases": bias}
    due = q * spread(scale, D_IN) + spread(bias, D_IN)
    assert_reads(read(tensors, {"group_size": 64, "bits": bits}), due, f"MLX {bits}-bit")
    assert_reads(read(tensors, shape=(D_OUT, D_IN)), due, f"MLX {bits}-bit")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("d_in", [128, 96])
def test_bitsandbytes_of_four_bits(nested: bool, d_in: int):
    q, values = drawn(4, D_OUT * d_in), torch.linspace(-1, 1, 16)
    n_blocks = D_OUT * d_in // 64
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [D_OUT, d_in]}
    tensors = {
        "m.weight": ((q[::2] << 4) | q[1::2]).to(torch.uint8)[:, None],
        "m.weight.absmax": random_scales(n_blocks).float(),
        "m.weight.quant_map": values,
    }
    absmax = tensors["m.weight.absmax"]
    if nested:
        state |= {"nested_blocksize": 16, "nested_offset": 0.25, "nested_dtype": "float32"}
        code, table, largest = drawn(8, n_blocks), torch.linspace(0, 1, 256), torch.rand(-(-n_blocks // 16))
        absmax = table[code] * largest[torch.arange(n_blocks) // 16] + 0.25
        tensors["m.weight.absmax"] = code.to(torch.uint8)
        tensors |= {"m.weight.nested_absmax": largest, "m.weight.nested_quant_map": table}
    tensors["m.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    due = (values[q] * absmax.repeat_interleave(64)).view(D_OUT, d_in)
    assert_reads(read(tensors), due, "bitsandbytes NF4")


def test_bitsandbytes_of_eight_bits():
    q, largest = (drawn(8, D_OUT, D_IN) - 128).to(torch.int8), torch.rand(D_OUT)
    weight = read({"m.weight": q, "m.SCB": largest, "m.weight_format": torch.tensor(0, dtype=torch.uint8)})
    assert_reads(weight, q.float() * (largest * (1 / 127))[:, None], "bitsandbytes int8")
    with pytest.raises(CheckpointError, match="layout for one kind of GPU"):
        read({"m.weight": q, "m.SCB": largest, "m.weight_format": torch.tensor(2, dtype=torch.uint8)})


def test_plain_floats_are_floats_whatever_the_config_says():
    tensors = {"m.weight": torch.randn(4, 4).bfloat16()}
    found = recognise("m.weight", {"m.weight": ((4, 4), torch.bfloat16)}, {"quant_method": "gptq"})
    assert found is not None and isinstance(found.made(tensors.__getitem__), DenseWeight)
    assert "asks for gptq, but no weight is quantised" in (unused_flag({"quant_method": "gptq"}, [found]) or "")
    assert unused_flag(None, [found]) is None
    packed = recognise("m.weight", {"m.weight": ((4, 4), torch.float8_e5m2)})
    assert packed is not None and unused_flag({"quant_method": "fp8"}, [found, packed]) is None
    assert recognise("other.weight", {"m.weight": ((4, 4), torch.bfloat16)}) is None


@pytest.mark.parametrize(
    ("name", "ends", "config"),
    [
        ("EXL2", ["q_weight", "q_scale", "q_groups"], None),
        ("EXL3", ["trellis", "suh", "svh"], None),
        ("AQLM", ["codes", "codebooks", "scales"], None),
        ("VPTQ", ["indices", "centroids.weight"], None),
        ("SpQR", ["dense_weights", "row_offsets", "col_vals"], None),
        ("HQQ", ["W_q", "meta"], None),
        ("torchao", ["weight:_data"], None),
        ("torchao", ["_weight_qdata"], None),
        ("HQQ", [], {"quant_method": "hqq"}),
        ("Quanto", ["weight._data", "weight._scale"], None),
        ("BitNet", ["weight", "weight_scale"], {"quant_method": "bitnet"}),
        ("HIGGS", ["weight", "scales"], {"quant_method": "higgs"}),
        ("MLX's floats of four bits", ["weight", "scales"], None),
        ("a packing of GPTQ or AWQ for one kind of kernel", ["qweight", "qzeros", "scales"], None),
        ("a sparse form of compressed-tensors", ["weight_packed", "meta"], None),
        ("GPTQ for Marlin", ["B", "s"], None),
    ],
)
def test_forms_that_are_not_read_are_refused_by_their_names(name: str, ends: list[str], config: dict | None):
    with pytest.raises(CheckpointError, match=f"'m.weight' is stored as {name}, .*take the unquantised"):
        recognise("m.weight", {f"m.{end}": ((8, 8 + i), torch.int32) for i, end in enumerate(ends)}, config)


def test_bytes_that_nothing_explains_and_tensors_that_do_not_go_together_are_refused():
    with pytest.raises(CheckpointError, match=r"stored as int32 \[8, 8\] without what would tell its form"):
        recognise("m.weight", {"m.weight": ((8, 8), torch.int32)})
    with pytest.raises(CheckpointError, match=r"Scales of shape \[3, 1\] beside a matrix \[8, 8\]"):
        read({"m.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn), "m.weight_scale": torch.ones(3, 1)})
    with pytest.raises(CheckpointError, match="3 bits an entry in GPTQ"):
        read(
            {"m.qweight": torch.zeros(3, 32).int(), "m.qzeros": torch.zeros(1, 3).int(), "m.scales": torch.ones(1, 32)}
        )


# ---- beside the libraries that write these forms


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_compressed_tensors_packs_is_what_it_unpacks(bits: int, symmetric: bool):
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor as Packed

    arguments = library.quantization.QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy="group", group_size=32
    )
    scheme = library.quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    zero = torch.zeros(D_OUT, 4) if symmetric else drawn(bits, D_OUT, 4) - (1 << (bits - 1))
    state = {"weight": torch.randn(D_OUT, D_IN), "weight_scale": torch.rand(D_OUT, 4) + 0.1}
    state["weight_zero_point"] = zero.to(torch.int8)
    packed = Packed.compress(state, scheme)
    weight = read({f"m.{end}": tensor for end, tensor in packed.items()})
    assert_reads(weight, Packed.decompress(packed, scheme)["weight"], f"compressed-tensors int{bits}")


@pytest.mark.slow
def test_what_compressed_tensors_makes_nvfp4_is_what_it_unpacks():
    library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor as Packed

    arguments = library.quantization.QuantizationArgs(
        num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16
    )
    scheme = library.quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    scale = (torch.rand(D_OUT, D_IN // 16) + 0.1).to(torch.float8_e4m3fn).float()
    state = {"weight": torch.randn(D_OUT, D_IN), "weight_scale": scale, "weight_global_scale": torch.tensor([2.0])}
    packed = Packed.compress(state, scheme)
    due = Packed.decompress(dict(packed), scheme)["weight"]
    assert_reads(read({f"m.{end}": tensor for end, tensor in packed.items()}), due.float(), "NVFP4")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_what_bitsandbytes_packs_is_what_it_unpacks(kind: str, nested: bool):
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    packed, state = functional.quantize_4bit(
        torch.randn(D_OUT, D_IN), quant_type=kind, compress_statistics=nested, blocksize=64
    )
    tensors = {"m.weight": packed} | {f"m.weight.{end}": t for end, t in state.as_dict(packed=True).items()}
    weight = read(tensors)
    assert weight.storage == f"bitsandbytes {kind.upper()}"
    due = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(weight.whole(torch.float32, CPU), due, rtol=2e-7, atol=1e-7)


@pytest.mark.slow
def test_what_transformers_makes_of_mxfp4_is_read():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    packed, _ = float4(drawn(4, 3, 8, D_IN))
    blocks, scales = packed.view(3, 8, 4, 16), (drawn(4, 3, 8, 4) + 120).to(torch.uint8)
    due = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)  # [expert, in, out]
    weight = read({"e.down_proj_blocks": blocks, "e.down_proj_scales": scales}, name="e.down_proj")
    assert_reads(weight, due.transpose(1, 2).reshape(24, D_IN), "MXFP4")
