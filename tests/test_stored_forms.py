"""Each quantised form of safetensors checkpoints is recognised by its tensors, and read as its packing says.

References go entry by entry through what was packed; where compressed-tensors and bitsandbytes are installed, tensors
that they write are read too.
"""

import json
import re
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerscope.errors import CheckpointError
from layerscope.stored import codes
from layerscope.stored.recognise import recognise, unused_flag
from layerscope.stored.weight import DenseWeight, StoredWeight
from properties import examples

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
    with pytest.raises(
        CheckpointError, match=r"'m.weight' is stored as fp8.*scales of shape \[3, 1\] beside a matrix \[8, 8\]"
    ):
        read({"m.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn), "m.weight_scale": torch.ones(3, 1)})
    with pytest.raises(CheckpointError, match="3 bits an entry in GPTQ"):
        read(
            {"m.qweight": torch.zeros(3, 32).int(), "m.qzeros": torch.zeros(1, 3).int(), "m.scales": torch.ones(1, 32)}
        )


SCALES = ("scale", "scales", "weight_scales", "scale_weight", "weight_scale_2", "scale_inv", "weight.scale")


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("known", [True, False])
def test_float8_beside_a_scale_under_another_name_is_refused(name: str, known: bool):
    """Read without it, or with another, every entry would be off by a factor."""
    tensors = {"m.weight": torch.randn(8, 8).to(torch.float8_e4m3fn), f"m.{name}": torch.tensor(0.1)}
    if known:
        tensors["m.weight_scale"] = torch.tensor(0.3)
    with pytest.raises(CheckpointError, match=f"'m.weight' .*beside 'm.{name}', which seems to be a scale"):
        read(tensors)


@pytest.mark.parametrize("name", ["input_scale", "k_scale", "activation_scale", "output_scale"])
def test_scales_of_activations_are_no_scales_of_weights(name: str):
    weight = torch.randn(D_OUT, D_IN).to(torch.float8_e4m3fn)
    tensors = {"m.weight": weight, "m.weight_scale": torch.tensor(0.5), f"m.{name}": torch.tensor(9.0)}
    assert_reads(read(tensors), weight.float() * 0.5, "float8_e4m3fn")


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"type": "float", "num_bits": 8}}}},
    ],
)
def test_float8_without_scales_is_refused_where_the_config_speaks_of_scaled_float8(config: dict):
    weight = {"m.weight": torch.randn(8, 8).to(torch.float8_e4m3fn)}
    with pytest.raises(CheckpointError, match=r"'m.weight' is stored in eight bits without .* speaks of fp8"):
        read(weight, config)
    read(weight, {"quant_method": "compressed-tensors", "config_groups": {"0": {"weights": {"num_bits": 4}}}})


def test_a_group_that_does_not_divide_the_columns_is_taken_from_the_config():
    """48 columns in groups of 20 are 20, 20 and 8; three groups of 16 would have as many scales."""
    q, zero, scale = drawn(4, 48, D_OUT), drawn(4, 3, D_OUT), random_scales(3, D_OUT)
    packed = {"m.qweight": words(q.T, 4).T.contiguous(), "m.qzeros": words((zero - 1) & 15, 4), "m.scales": scale}
    for group in (20, 16):
        due = torch.stack([(q[j] - zero[j // group]) * scale[j // group].float() for j in range(48)], 1)
        assert_reads(read(packed, {"group_size": group}), due, "GPTQ int4")
    assert torch.equal(read(packed).whole(torch.float32, CPU), due)  # unless it says otherwise they are of one size
    five = packed | {"m.qzeros": words(drawn(4, 5, D_OUT), 4), "m.scales": random_scales(5, D_OUT)}
    with pytest.raises(CheckpointError, match="5 groups do not divide 48 columns"):
        read(five)


def gptq(**other: Tensor) -> dict[str, Tensor]:
    tensors = {"qweight": torch.zeros(6, 16).int(), "qzeros": torch.zeros(3, 2).int(), "scales": torch.ones(3, 16)}
    return {f"m.{end}": tensor for end, tensor in (tensors | other).items()}


def awq(**other: Tensor) -> dict[str, Tensor]:
    return gptq(qweight=torch.zeros(48, 2).int()) | {f"m.{end}": tensor for end, tensor in other.items()}


def packed(**other: Tensor) -> dict[str, Tensor]:
    own = {"packed": torch.zeros(16, 6).int(), "scale": torch.ones(16, 3), "shape": torch.tensor([16, 48])}
    return {f"m.weight_{end}": tensor for end, tensor in (own | other).items()}


def mx(**other: Tensor) -> dict[str, Tensor]:
    own = {"packed": torch.zeros(8, 32, dtype=torch.uint8), "scale": torch.full((8, 2), 127, dtype=torch.uint8)}
    return {f"m.weight_{end}": tensor for end, tensor in (own | other).items()}


def nv(**other: Tensor) -> dict[str, Tensor]:
    return mx(**{"scale": torch.ones(8, 4).to(torch.float8_e4m3fn), "global_scale": torch.ones(1)} | other)


def mlx(**other: Tensor) -> dict[str, Tensor]:
    own = {"weight": torch.zeros(8, 16).to(torch.uint32), "scales": torch.ones(8, 2), "biases": torch.ones(8, 2)}
    return {f"m.{end}": tensor for end, tensor in (own | other).items()}


def nf4(state: object = None, **other: Tensor) -> dict[str, Tensor]:
    said = {"quant_type": "nf4", "shape": [8, 64], "blocksize": 64} if state is None else state
    about = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    own = {"absmax": torch.ones(8), "quant_map": torch.linspace(-1, 1, 16), "quant_state.bitsandbytes__nf4": about}
    weight = {"m.weight": torch.zeros(256, 1, dtype=torch.uint8)}
    return weight | {f"m.weight.{end}": tensor for end, tensor in (own | other).items()}


def eight(dtype: torch.dtype = torch.int8, **other: Tensor) -> dict[str, Tensor]:
    return {
        f"m.{end}": t
        for end, t in ({"weight": torch.zeros(8, 48).to(dtype), "weight_scale": torch.ones(8, 1)} | other).items()
    }


def test_what_the_damaged_ones_are_made_of_is_read():
    for tensors in (gptq(), awq(), packed(), mx(), nv(), mlx(), nf4(), eight()):
        assert read(tensors).whole(torch.float32, CPU).isfinite().all()


FLAT = torch.ones(3)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (gptq(g_idx=torch.full((48,), 99)), "g_idx has groups 99 to 99, but there are 3"),
        (gptq(g_idx=torch.full((48,), -1)), "g_idx has groups -1 to -1"),
        (gptq(g_idx=torch.zeros(3).int()), "g_idx should be int32 or int64 [48], but is int32 [3]"),
        (gptq(g_idx=torch.zeros(48)), "g_idx should be int32 or int64 [48], but is float32"),
        (gptq(qweight=torch.zeros(6, 16)), "qweight should be int32"),
        (gptq(qzeros=torch.zeros(1, 2).int()), "qzeros should be int32 [3, any], but is int32 [1, 2]"),
        (gptq(scales=FLAT), "scales should be floats [any, any], but is float32 [3]"),
        (gptq(scales=torch.ones(0, 16), qzeros=torch.zeros(0, 2).int()), "scales should be"),
        (awq(qzeros=torch.zeros(2, 2).int()), "qzeros should be int32 [3, 2]"),
        (awq(qweight=torch.zeros(50, 2).int()), "3 groups do not divide 50 columns"),
        (packed(shape=torch.tensor([5])), "weight_shape should be integers [2]"),
        (packed(shape=torch.tensor([16, 0])), "weight_shape says [16, 0]"),
        (packed(shape=torch.tensor([16, torch.nan])), "weight_shape should be integers [2], but is float32"),
        (packed(scale=torch.ones(13, 3)), "weight_scale should be floats [16, any]"),
        (packed(scale=torch.ones(16, 7)), "7 groups do not divide 48 columns"),
        (packed(zero_point=torch.zeros(1, 1).int()), "weight_zero_point should be int32 [2, 3]"),
        (packed(g_idx=torch.full((48,), 3)), "weight_g_idx has groups 3 to 3"),
        (mx(scale=torch.full((7, 2), 127, dtype=torch.uint8)), "weight_scale should be uint8 or float8_e8m0fnu [8, 2]"),
        (mx(scale=torch.full((8, 5), 127, dtype=torch.uint8)), "[8, 2], but is uint8 [8, 5]"),
        (mx(scale=torch.ones(8, 2)), "packed codes of compressed-tensors without what would tell their form"),
        (mx(scale=torch.ones(8, 4).to(torch.float8_e4m3fn)), "(`weight_global_scale` of NVFP4"),
        (nv(global_scale=torch.ones(2)), "weight_global_scale should be floats [1]"),
        (nv(scale=torch.ones(8, 2).to(torch.float8_e4m3fn)), "weight_scale should be float8_e4m3fn [8, 4]"),
        (mlx(scales=FLAT), "scales should be floats [8, any]"),
        (mlx(biases=torch.ones(7, 2)), "biases should be floats [8, 2]"),
        (nf4(absmax=torch.ones(2)), "weight.absmax should be floats [8]"),
        (nf4(absmax=torch.ones(8, dtype=torch.uint8)), "weight.absmax should be floats [8], but is uint8"),
        (nf4(quant_map=FLAT), "weight.quant_map should be floats [16]"),
        (nf4([]), "quant_state should be a JSON object"),
        (nf4({"quant_type": "nf4", "shape": 5, "blocksize": 64}), "the `shape` of a matrix"),
        (nf4({"quant_type": "nf4", "shape": [8, 64], "blocksize": 0}), "above zero under `blocksize`, but has 0"),
        (eight(weight_zero_point=torch.zeros(3, 1).to(torch.int8)), "weight_zero_point should be"),
        (eight(weight_scale=torch.ones(8, 7)), "scales of shape [8, 7] beside a matrix [8, 48]"),
        (eight(torch.float8_e4m3fn, weight_scale=torch.ones(8).int()), "weight_scale should be floats or uint8"),
    ],
)
def test_tensors_that_do_not_go_together_are_refused_before_a_row_is_read(tensors: dict[str, Tensor], said: str):
    """Compiled loops check no index: what came of these was memory beside the tensor, or a traceback."""
    with pytest.raises(CheckpointError, match=f"'m.weight'.*{re.escape(said)}"):
        read(tensors)


TENSORS = {
    "gptq": gptq(),
    "fp8": eight(torch.float8_e4m3fn),
    "mlx": mlx(),
    "nf4": nf4(),
    "packed": packed(),
    "mx": mx(),
}
SETTINGS = [
    "quant_method",
    "weight_block_size",
    "group_size",
    "bits",
    "checkpoint_format",
    "config_groups",
    "quant_algo",
]
SETTING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.sampled_from(["fp8", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "weights", "m"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(sorted(TENSORS)), st.dictionaries(st.sampled_from([*SETTINGS, "m"]), SETTING, min_size=1))
@examples(120)
def test_any_config_is_read_or_refused_with_a_sentence(form: str, config: dict):
    try:
        weight = read(TENSORS[form], config)
    except CheckpointError as error:
        assert "m.weight" in str(error) and str(error).endswith(".")
    else:
        assert weight.whole(torch.float32, CPU).shape == weight.shape


def test_what_rows_of_codes_are_scaled_by_tells_them_from_others():
    for tensors, end in ((gptq(), "scales"), (gptq(), "qzeros"), (mlx(), "biases"), (eight(), "weight_scale")):
        other = tensors | {f"m.{end}": tensors[f"m.{end}"] + 1}
        assert read(tensors).raw_rows(slice(0, 4, 2)) != read(other).raw_rows(slice(0, 4, 2))


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
