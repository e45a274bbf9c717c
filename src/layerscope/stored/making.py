"""How a weight of each form is made of its tensors, once they are seen to go together.

Decoders trust what they are given, and compiled loops check no index; so every length, dtype and index is checked here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layerscope.errors import CheckpointError
from layerscope.stored.bitsandbytes import BitsAndBytesWeight, quant_state
from layerscope.stored.eight_bit import EightBitWeight
from layerscope.stored.float4 import Float4Weight
from layerscope.stored.integers import MlxWeight, PackQuantizedWeight
from layerscope.stored.parts import FLOAT8, FLOATS, INTEGERS, POWERS_OF_TWO, Parts, Weight, expect
from layerscope.stored.transposed import AwqWeight, GptqWeight
from layerscope.stored.weight import DenseWeight, StoredWeight

_WORDS = (torch.int32,)
_BYTES = (torch.uint8,)
_INDICES = (torch.int32, torch.int64)
_MX_GROUP, _NV_GROUP = 32, 16
"""Floats of four bits that share a scale: OCP Microscaling Formats 1.0, 5.1; NVIDIA's NVFP4."""


def plain(parts: Parts, weight: Weight) -> StoredWeight:
    """Floats as they are."""
    return DenseWeight(parts["weight"] if "weight" in parts else parts[""])


def eight_bit(parts: Parts, weight: Weight, scale: str = "weight_scale") -> StoredWeight:
    """Float8 or int8, with scales unless nothing speaks of any."""
    _see_scales(parts, weight)
    expect("weight", parts["weight"], (*FLOAT8, torch.int8), (-1, -1))
    scales, zeros = parts.get(scale), parts.get("weight_zero_point")
    if scales is not None and scales.dtype not in (*FLOATS, *POWERS_OF_TWO):
        expect(scale, scales, (*FLOATS, *POWERS_OF_TWO), tuple(scales.shape))
    if zeros is not None:
        due = () if scales is None else tuple(scales.shape)
        expect("weight_zero_point", zeros, (*INTEGERS, *FLOATS, *FLOAT8), due)
    return EightBitWeight(parts["weight"], scales, zeros, _block_size(weight))


def _see_scales(parts: Parts, weight: Weight) -> None:
    """See that what seem scales of a weight are those that are read, and that there are some if config.json says so.

    Raises:
        CheckpointError: they are not; without its scales a weight is another.
    """
    unread = [end for end in weight.scales if end not in parts]
    if unread:
        raise CheckpointError(
            f"'{weight.name}' is stored in eight bits beside '{weight.part(unread[0])}', which seems to be a scale, "
            "but is under no name that is known (`weight_scale`, `weight_scale_inv`), or is one too many; take the "
            "unquantised checkpoint, or another variant."
        )
    if len(parts) == 1 and _asks_for_float8(weight.config):
        raise CheckpointError(
            f"'{weight.name}' is stored in eight bits without `weight_scale` or `weight_scale_inv`, but config.json "
            "speaks of fp8, whose weights have scales; fetch the checkpoint again, or take the unquantised one."
        )


def _asks_for_float8(config: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` speaks of weights in float8 with scales."""
    named = [str(config.get(key, "")).lower() for key in ("quant_method", "quant_algo", "format", "fmt")]
    if config.get("weight_block_size") or any(word in name for name in named for word in ("fp8", "float8", "float-q")):
        return True
    groups = config.get("config_groups")
    weights = [
        group.get("weights") for group in (groups.values() if isinstance(groups, Mapping) else ()) if _is_object(group)
    ]
    return any(_is_object(each) and each.get("type") == "float" and each.get("num_bits") == 8 for each in weights)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _block_size(weight: Weight) -> tuple[int, int] | None:
    """Rows and columns of a block, by the config.

    Raises:
        ValueError: it says something that is no block.
    """
    block = weight.setting("weight_block_size")
    if block is None:
        return None
    is_block = (
        isinstance(block, list | tuple)
        and len(block) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in block)
    )
    if not is_block:
        raise ValueError(
            f"config.json should have two whole numbers above zero under `weight_block_size`, but has {block!r}"
        )
    return block[0], block[1]


def bitsandbytes_int8(parts: Parts, weight: Weight) -> StoredWeight:
    """Bitsandbytes' int8, by rows."""
    if "weight_format" in parts:
        expect("weight_format", parts["weight_format"], INTEGERS, (), (1,))
        if int(parts["weight_format"]) != 0:
            raise CheckpointError(
                f"'{weight.name}' is bitsandbytes int8 in a layout for one kind of GPU, not by rows: save it anew from "
                "Transformers, or take the unquantised checkpoint."
            )
    expect("weight", parts["weight"], (torch.int8,), (-1, -1))
    expect("SCB", parts["SCB"], FLOATS, (len(parts["weight"]),))
    return EightBitWeight(parts["weight"], parts["SCB"], factor=1 / 127, storage="bitsandbytes int8")


def bitsandbytes_float4(parts: Parts, weight: Weight) -> StoredWeight:
    """Bitsandbytes' NF4 and FP4."""
    packed, absmax, values = parts["weight"], parts["weight.absmax"], parts["weight.quant_map"]
    expect("quant_state", parts["weight.quant_state.bitsandbytes"], _BYTES, (-1,))
    state = quant_state(parts["weight.quant_state.bitsandbytes"])
    n_entries = state.shape[0] * state.shape[1]
    n_blocks = -(-n_entries // state.block)
    expect("weight", packed, _BYTES, (n_entries // 2, 1), (n_entries // 2,), (1, n_entries // 2))
    expect("weight.quant_map", values, FLOATS, (16,))
    nested = parts.get("weight.nested_absmax"), parts.get("weight.nested_quant_map")
    expect("weight.absmax", absmax, FLOATS if nested[0] is None else _BYTES, (n_blocks,))
    if nested[0] is not None or nested[1] is not None:
        if nested[0] is None or nested[1] is None or state.nested_block is None:
            raise ValueError("nested_absmax, nested_quant_map and quant_state's nested_blocksize belong together")
        expect("weight.nested_absmax", nested[0], FLOATS, (-(-n_blocks // state.nested_block),))
        expect("weight.nested_quant_map", nested[1], FLOATS, (256,))
    return BitsAndBytesWeight(packed, absmax, values, state, *nested)


def pack_quantized(parts: Parts, weight: Weight) -> StoredWeight:
    """compressed-tensors' `pack-quantized`."""
    packed, scale, zero, group_of = (
        parts["weight_packed"],
        parts["weight_scale"],
        parts.get("weight_zero_point"),
        parts.get("weight_g_idx"),
    )
    expect("weight_shape", parts["weight_shape"], INTEGERS, (2,))
    n_rows, n_columns = map(int, parts["weight_shape"])
    if n_rows < 1 or n_columns < 1:
        raise ValueError(f"weight_shape says [{n_rows}, {n_columns}]")
    expect("weight_packed", packed, _WORDS, (n_rows, -1))
    words = packed.shape[1]
    bits = next((b for b in (4, 8) if -(-n_columns * b // 32) == words), None)
    if bits is None:
        raise CheckpointError(
            f"'{weight.name}' holds {32 * words / n_columns:.1f} bits an entry in compressed-tensors' packed form; "
            "of 4 or 8 bits it is read: take another variant, or the unquantised checkpoint."
        )
    expect("weight_scale", scale, FLOATS, (n_rows, -1), (n_rows,), (1,), (1, 1), ())
    n_groups = 1 if scale.ndim < 2 else scale.shape[1]
    if zero is not None:
        expect("weight_zero_point", zero, _WORDS, (-(-n_rows * bits // 32), n_groups))
    if group_of is not None and bool((group_of == -1).all()):  # how it says that there is no such order
        group_of = None
    if group_of is None:
        _even_groups(n_columns, n_groups)
    else:
        _group_numbers("weight_g_idx", group_of, n_columns, n_groups)
    return PackQuantizedWeight(packed, scale, n_columns, bits, zero, group_of)


def gptq(parts: Parts, weight: Weight) -> StoredWeight:
    """GPTQ."""
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    expect("scales", scales, FLOATS, (-1, -1))
    n_groups, d_out = scales.shape
    expect("qzeros", qzeros, _WORDS, (n_groups, -1))
    zero_words = qzeros.shape[1]
    bits = 32 * zero_words // d_out
    if bits not in (4, 8) or zero_words * 32 != bits * d_out:
        raise CheckpointError(
            f"'{weight.name}' holds {32 * zero_words / d_out:g} bits an entry in GPTQ's form; of 4 or 8 bits it is "
            "read: take another variant, or the unquantised checkpoint."
        )
    expect("qweight", qweight, _WORDS, (-1, d_out))
    d_in, group_of = len(qweight) * 32 // bits, parts.get("g_idx")
    if group_of is not None:
        _group_numbers("g_idx", group_of, d_in, n_groups)
    version = weight.setting("checkpoint_format")
    if version is not None and not isinstance(version, str):
        raise ValueError(f"config.json should have a name under `checkpoint_format`, but has {version!r}")
    group = _group_size(weight, d_in, n_groups, known=group_of is not None)
    return GptqWeight(qweight, qzeros, scales, bits, group, group_of, version != "gptq_v2")


def awq(parts: Parts, weight: Weight) -> StoredWeight:
    """AWQ in its `gemm` form."""
    qweight, qzeros, scales = parts["qweight"], parts["qzeros"], parts["scales"]
    expect("scales", scales, FLOATS, (-1, -1))
    n_groups, d_out = scales.shape
    expect("qweight", qweight, _WORDS, (-1, d_out // 8))
    expect("qzeros", qzeros, _WORDS, (n_groups, d_out // 8))
    _even_groups(len(qweight), n_groups)
    return AwqWeight(qweight, qzeros, scales)


def _group_size(weight: Weight, n_columns: int, n_groups: int, *, known: bool) -> int:
    """Neighbours that share a scale: as config.json says, if the shapes bear it out, else in groups of one size.

    Raises:
        ValueError: neither tells it, and it is not known from each column's group either.
    """
    said = weight.whole_number("group_size")
    if said is not None and said > 0 and -(-n_columns // said) == n_groups:
        return said
    if not known:
        _even_groups(n_columns, n_groups)
    return -(-n_columns // n_groups)


def _even_groups(n_columns: int, n_groups: int) -> None:
    if n_columns % n_groups:
        raise ValueError(f"{n_groups} groups do not divide {n_columns} columns")


def _group_numbers(name: str, group_of: Tensor, n_columns: int, n_groups: int) -> None:
    """See that every column has a group that there is.

    Raises:
        ValueError: one has not.
    """
    expect(name, group_of, _INDICES, (n_columns,))
    least, largest = int(group_of.min()), int(group_of.max())
    if least < 0 or largest >= n_groups:
        raise ValueError(f"{name} has groups {least} to {largest}, but there are {n_groups}, counted from 0")


def nvfp4(parts: Parts, weight: Weight) -> StoredWeight:
    """NVFP4, of compressed-tensors or of ModelOpt."""
    packed_end, scale_end = ("weight_packed", "weight_global_scale")
    if packed_end not in parts:
        packed_end, scale_end = ("weight", "weight_scale_2")
    packed, own = parts[packed_end], parts[scale_end]
    expect(packed_end, packed, _BYTES, (-1, -1))
    n_groups = 2 * packed.shape[1] // _NV_GROUP
    expect("weight_scale", parts["weight_scale"], (torch.float8_e4m3fn,), (len(packed), n_groups))
    expect(scale_end, own, FLOATS, (1,), (), (1, 1))
    _even_groups(2 * packed.shape[1], n_groups)
    factor = {"divided_by": own} if packed_end == "weight_packed" else {"multiplied_by": own}
    return Float4Weight(packed, parts["weight_scale"], "NVFP4", **factor)


def mxfp4(parts: Parts, weight: Weight) -> StoredWeight:
    """MXFP4, of compressed-tensors or of gpt-oss."""
    if "weight_packed" in parts:
        packed, scale = parts["weight_packed"], parts["weight_scale"]
        expect("weight_packed", packed, _BYTES, (-1, -1))
        expect("weight_scale", scale, POWERS_OF_TWO, (len(packed), 2 * packed.shape[1] // _MX_GROUP))
        _even_groups(2 * packed.shape[1], scale.shape[1])
        return Float4Weight(packed, scale, "MXFP4")
    blocks, scales = parts["+_blocks"], parts["+_scales"]
    half = _MX_GROUP // 2
    expect("_blocks", blocks, _BYTES, (-1, -1, -1, half), (-1, -1, half))
    expect("_scales", scales, POWERS_OF_TWO, tuple(blocks.shape[:-1]))
    return Float4Weight(blocks, scales, "MXFP4")


def mlx(parts: Parts, weight: Weight) -> StoredWeight:
    """MLX's affine form."""
    packed, scales, biases = parts["weight"], parts["scales"], parts["biases"]
    expect("weight", packed, (torch.uint32,), (-1, -1))
    expect("scales", scales, FLOATS, (len(packed), -1))
    expect("biases", biases, FLOATS, tuple(scales.shape))
    n_groups = scales.shape[1]
    own = weight.setting(weight.name.removesuffix(".weight"))
    settings = own if isinstance(own, Mapping) else weight.config
    if weight.shape is not None:
        n_columns = weight.shape[1]
    else:
        group = weight.whole_number("group_size", settings)
        group = 64 if group is None else group  # MLX's own default
        if group < 1:
            raise ValueError(f"config.json should have a number above zero under `group_size`, but has {group}")
        n_columns = n_groups * group
    bits = 32 * packed.shape[1] / n_columns
    if bits not in (4, 8):
        raise CheckpointError(
            f"'{weight.name}' holds {bits:g} bits an entry in MLX's form; of 4 or 8 bits it is read: take another "
            "variant, or the unquantised checkpoint."
        )
    said = weight.whole_number("bits", settings)
    if said is not None and said != bits:
        raise ValueError(f"config.json says {said} `bits`, but with its `group_size` there are {bits:g} an entry")
    _even_groups(n_columns, n_groups)
    return MlxWeight(packed, scales, biases, int(bits))
