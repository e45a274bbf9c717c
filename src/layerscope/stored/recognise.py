"""How a checkpoint stores a weight, by one table: from its tensors' names, shapes and dtypes first, then its config.

What a config says (`quantization_config`) only settles what the tensors leave open, so that a flag left behind on plain
weights does no harm, and packed weights without a flag are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layerscope.errors import CheckpointError
from layerscope.stored.bitsandbytes import BitsAndBytesWeight
from layerscope.stored.eight_bit import EightBitWeight
from layerscope.stored.float4 import Float4Weight
from layerscope.stored.integers import MlxWeight, PackQuantizedWeight
from layerscope.stored.transposed import AwqWeight, GptqWeight
from layerscope.stored.weight import DenseWeight, StoredWeight

Available = Mapping[str, tuple[Sequence[int], torch.dtype]]
"""Shape and dtype of each tensor of a checkpoint, by name."""
Parts = Mapping[str, Tensor]
"""A weight's tensors by what they are: the end of their names."""

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_READABLE = "fp8, NF4, GPTQ, AWQ, compressed-tensors, MXFP4, NVFP4, MLX or GGUF"


@dataclass(frozen=True)
class Weight:
    """A weight of which the table is asked."""

    name: str
    """The parameter's, as the model knows it: `model.layers.0.mlp.up_proj.weight`."""
    available: Available
    config: Mapping[str, Any]
    """The checkpoint's `quantization_config`, or MLX's `quantization`; empty where there is none."""
    shape: tuple[int, int] | None
    """What the model expects, where that is known."""

    def part(self, end: str) -> str:
        """The name of a tensor that belongs to it: `+_blocks` is appended, `weight_scale` stands beside the weight."""
        return self.name + end[1:] if end.startswith("+") else f"{self.name.removesuffix('weight')}{end}"

    def there(self, end: str) -> bool:
        """Whether a part is there."""
        return self.part(end) in self.available

    def size(self, end: str) -> tuple[int, ...]:
        """The shape of a part."""
        return tuple(self.available[self.part(end)][0])

    def dtype(self, end: str) -> torch.dtype:
        """The dtype of a part."""
        return self.available[self.part(end)][1]


@dataclass(frozen=True)
class Storage:
    """A row of the table."""

    name: str
    parts: tuple[str, ...]
    """Tensors that must be there, the first of which is the weight itself."""
    make: Callable[[Parts, Weight], StoredWeight]
    fits: Callable[[Weight], bool] = lambda weight: True
    """What else must hold."""
    others: tuple[str, ...] = ()
    """Tensors that may be there."""


@dataclass(frozen=True)
class Recognised:
    """How a weight is stored."""

    weight: Weight
    storage: Storage
    parts: Mapping[str, str]
    """The names of its tensors, by what they are."""

    @property
    def is_packed(self) -> bool:
        """Whether it is anything but plain floats."""
        return self.storage.name != _PLAIN

    @property
    def names(self) -> frozenset[str]:
        """All tensors that belong to it."""
        return frozenset(self.parts.values())

    def made(self, tensor: Callable[[str], Tensor]) -> StoredWeight:
        """The weight itself, from tensors as they are mapped.

        Raises:
            CheckpointError: they do not go together.
        """
        tensors = {end.split("__")[0]: tensor(name) for end, name in self.parts.items()}
        try:
            return self.storage.make(tensors, self.weight)
        except (KeyError, RuntimeError, ValueError, ZeroDivisionError) as error:
            shapes = ", ".join(f"{name} {list(self.weight.available[name][0])}" for name in self.parts.values())
            raise CheckpointError(
                f"The tensors of a weight stored as {self.storage.name} do not go together ({shapes}; {error}): the "
                "checkpoint is damaged, or its config.json is another's; fetch it again."
            ) from error


def recognise(
    name: str,
    available: Available,
    config: Mapping[str, Any] | None = None,
    shape: tuple[int, int] | None = None,
) -> Recognised | None:
    """How a matrix is stored, or None where a checkpoint has nothing of that name.

    Args:
        name: the parameter's, with the prefixes that the checkpoint uses: `model.layers.0.mlp.up_proj.weight`.
        available: all tensors of the checkpoint.
        config: `quantization_config` of its config.json, or MLX's `quantization`.
        shape: what the model expects; only MLX without a config cannot do without.

    Raises:
        CheckpointError: it is stored in a form that is not read; the message names that.
    """
    weight = Weight(name, available, config or {}, shape)
    for storage in STORAGES:
        if all(weight.there(end) for end in storage.parts) and storage.fits(weight):
            found = [*storage.parts, *(end for end in storage.others if weight.there(end))]
            return Recognised(weight, storage, {end: weight.part(end) for end in found})
    for refused in REFUSED:
        refused.check(weight)
    if name in available:
        raise CheckpointError(
            f"Tensor '{name}' is stored as {_dtype_name(available[name][1])} {list(available[name][0])} without what "
            f"would tell its form: weights are read as floats, or in {_READABLE}; take the unquantised checkpoint."
        )
    return None


def unused_flag(config: Mapping[str, Any] | None, found: Sequence[Recognised]) -> str | None:
    """What to say where a config asks for quantised weights and none is quantised; None otherwise."""
    if not config or any(each.storage.name != _PLAIN for each in found):
        return None
    method = config.get("quant_method") or "quantised weights"
    return f"config.json asks for {method}, but no weight is quantised: its `quantization_config` is ignored."


# ---- how each is made of its tensors


def _plain(parts: Parts, weight: Weight) -> StoredWeight:
    return DenseWeight(parts["weight"] if "weight" in parts else parts[""])


def _eight_bit(parts: Parts, weight: Weight, scale: str = "weight_scale") -> StoredWeight:
    block = weight.config.get("weight_block_size")
    return EightBitWeight(
        parts["weight"], parts.get(scale), parts.get("weight_zero_point"), None if not block else (block[0], block[1])
    )


def _bitsandbytes_int8(parts: Parts, weight: Weight) -> StoredWeight:
    if "weight_format" in parts and int(parts["weight_format"]) != 0:
        raise CheckpointError(
            f"'{weight.name}' is bitsandbytes int8 in a layout for one kind of GPU, not by rows: save it anew from "
            "Transformers, or take the unquantised checkpoint."
        )
    return EightBitWeight(parts["weight"], parts["SCB"], factor=1 / 127, storage="bitsandbytes int8")


def _bitsandbytes_float4(parts: Parts, weight: Weight) -> StoredWeight:
    return BitsAndBytesWeight(
        parts["weight"],
        parts["weight.absmax"],
        parts["weight.quant_map"],
        parts["weight.quant_state.bitsandbytes"],
        parts.get("weight.nested_absmax"),
        parts.get("weight.nested_quant_map"),
    )


def _pack_quantized(parts: Parts, weight: Weight) -> StoredWeight:
    n_columns, words = int(parts["weight_shape"][1]), parts["weight_packed"].shape[1]
    bits = next((b for b in range(1, 9) if -(-n_columns * b // 32) == words and b in (4, 8)), None)
    if bits is None:
        raise CheckpointError(
            f"'{weight.name}' holds {32 * words / n_columns:.1f} bits an entry in compressed-tensors' packed form; "
            "of 4 or 8 bits it is read: take another variant, or the unquantised checkpoint."
        )
    return PackQuantizedWeight(
        parts["weight_packed"],
        parts["weight_scale"],
        n_columns,
        bits,
        parts.get("weight_zero_point"),
        parts.get("weight_g_idx"),
    )


def _gptq(parts: Parts, weight: Weight) -> StoredWeight:
    d_out, zero_words = parts["scales"].shape[1], parts["qzeros"].shape[1]
    bits = 32 * zero_words // d_out
    if bits not in (4, 8) or zero_words * 32 != bits * d_out:
        raise CheckpointError(
            f"'{weight.name}' holds {32 * zero_words / d_out:g} bits an entry in GPTQ's form; of 4 or 8 bits it is "
            "read: take another variant, or the unquantised checkpoint."
        )
    first = weight.config.get("checkpoint_format") != "gptq_v2"
    return GptqWeight(parts["qweight"], parts["qzeros"], parts["scales"], bits, parts.get("g_idx"), first)


def _awq(parts: Parts, weight: Weight) -> StoredWeight:
    return AwqWeight(parts["qweight"], parts["qzeros"], parts["scales"])


def _nvfp4(parts: Parts, weight: Weight) -> StoredWeight:
    if "weight_packed" in parts:
        return Float4Weight(
            parts["weight_packed"], parts["weight_scale"], "NVFP4", divided_by=parts["weight_global_scale"]
        )
    return Float4Weight(parts["weight"], parts["weight_scale"], "NVFP4", multiplied_by=parts["weight_scale_2"])


def _mxfp4(parts: Parts, weight: Weight) -> StoredWeight:
    if "weight_packed" in parts:
        return Float4Weight(parts["weight_packed"], parts["weight_scale"], "MXFP4")
    return Float4Weight(parts["+_blocks"], parts["+_scales"], "MXFP4")


def _mlx(parts: Parts, weight: Weight) -> StoredWeight:
    (_, words), (_, groups) = weight.size("weight"), weight.size("scales")
    if weight.shape is not None:
        bits = 32 * words / weight.shape[1]
    else:
        own = weight.config.get(weight.name.removesuffix(".weight"))
        settings = own if isinstance(own, Mapping) else weight.config
        bits = 32 * words / (groups * settings.get("group_size", 64))
    if bits not in (4, 8):
        raise CheckpointError(
            f"'{weight.name}' holds {bits:g} bits an entry in MLX's form; of 4 or 8 bits it is read: take another "
            "variant, or the unquantised checkpoint."
        )
    return MlxWeight(parts["weight"], parts["scales"], parts["biases"], int(bits))


# ---- what must hold besides that the tensors are there


def _has(end: str, *dtypes: torch.dtype) -> Callable[[Weight], bool]:
    """Whether a tensor is a matrix of one of some dtypes."""
    return lambda weight: weight.dtype(end) in dtypes


def _outputs_in_words(weight: Weight) -> bool:
    """Whether a word of `qweight` holds eight outputs, as AWQ's do, and not as many inputs of one."""
    return weight.size("qweight")[1] * 8 == weight.size("scales")[1]


def _inputs_in_words(weight: Weight) -> bool:
    return weight.size("qweight")[1] == weight.size("scales")[1]


def _bitsandbytes(kind: str) -> Storage:
    """The row of one table of four bits, which the name of a tensor says."""
    return Storage(
        f"bitsandbytes {kind.upper()}",
        ("weight", "weight.absmax", "weight.quant_map", f"weight.quant_state.bitsandbytes__{kind}"),
        _bitsandbytes_float4,
        _has("weight", torch.uint8),
        ("weight.nested_absmax", "weight.nested_quant_map"),
    )


_PLAIN = "floats"
STORAGES = (
    Storage(_PLAIN, ("weight",), _plain, _has("weight", *_FLOATS)),
    Storage("floats", ("",), _plain, _has("", *_FLOATS)),
    Storage(
        "fp8 with `weight_scale_inv`",
        ("weight", "weight_scale_inv"),
        partial(_eight_bit, scale="weight_scale_inv"),
        _has("weight", *_FLOAT8),
    ),
    Storage("fp8", ("weight",), _eight_bit, _has("weight", *_FLOAT8), ("weight_scale", "weight_zero_point")),
    Storage("bitsandbytes int8", ("weight", "SCB"), _bitsandbytes_int8, _has("weight", torch.int8), ("weight_format",)),
    Storage(
        "compressed-tensors int8",
        ("weight", "weight_scale"),
        _eight_bit,
        _has("weight", torch.int8),
        ("weight_zero_point",),
    ),
    Storage(
        "compressed-tensors int4 and int8",
        ("weight_packed", "weight_scale", "weight_shape"),
        _pack_quantized,
        _has("weight_packed", torch.int32),
        ("weight_zero_point", "weight_g_idx"),
    ),
    _bitsandbytes("nf4"),
    _bitsandbytes("fp4"),
    Storage("GPTQ", ("qweight", "qzeros", "scales"), _gptq, _inputs_in_words, ("g_idx",)),
    Storage("AWQ", ("qweight", "qzeros", "scales"), _awq, _outputs_in_words),
    Storage("NVFP4", ("weight_packed", "weight_scale", "weight_global_scale"), _nvfp4),
    Storage("NVFP4", ("weight", "weight_scale", "weight_scale_2"), _nvfp4, _has("weight", torch.uint8)),
    Storage("MXFP4", ("weight_packed", "weight_scale"), _mxfp4, _has("weight_packed", torch.uint8)),
    Storage("MXFP4", ("+_blocks", "+_scales"), _mxfp4),
    Storage("MLX", ("weight", "scales", "biases"), _mlx, _has("weight", torch.uint32)),
)
"""Every form in which a weight is read; the first that fits counts."""


@dataclass(frozen=True)
class Refused:
    """A form that is known and not read."""

    name: str
    parts: tuple[str, ...] = ()
    """Tensors that tell it; the ends of their names."""
    methods: tuple[str, ...] = ()
    """What `quant_method` says, for a form whose tensors do not tell it."""

    def check(self, weight: Weight) -> None:
        """See that a weight is not stored so.

        Raises:
            CheckpointError: it is.
        """
        by_tensors = bool(self.parts) and all(weight.there(end) for end in self.parts)
        method = str(weight.config.get("quant_method", "")).lower()
        if by_tensors or method in self.methods:  # plain floats have been recognised before
            raise CheckpointError(
                f"'{weight.name}' is stored as {self.name}, which is not read: take the unquantised checkpoint, or a "
                f"variant in {_READABLE}."
            )


REFUSED = (
    Refused("EXL3", ("trellis",), ("exl3",)),
    Refused("EXL2", ("q_weight", "q_scale"), ("exl2",)),
    Refused("AQLM", ("codes", "codebooks"), ("aqlm",)),
    Refused("VPTQ", ("centroids.weight",), ("vptq",)),
    Refused("VPTQ", ("indices", "centroids"), ("vptq",)),
    Refused("SpQR", ("dense_weights", "row_offsets"), ("spqr",)),
    Refused("HQQ", ("W_q",), ("hqq",)),
    Refused("torchao", ("weight:_data",), ("torchao",)),
    Refused("torchao", ("weight:qdata",)),
    Refused("torchao", ("_weight_qdata",)),
    Refused("a packing of GPTQ or AWQ for one kind of kernel", ("qweight", "scales")),
    Refused("GPTQ for Marlin", ("B", "s")),
    Refused("a sparse form of compressed-tensors", ("weight_packed", "meta")),
    Refused("a sparse form of compressed-tensors", ("weight.compressed", "weight.bitmask")),
    Refused("BitNet", methods=("bitnet",)),
    Refused("HIGGS", methods=("higgs",)),
    Refused("Quanto", ("weight._data",), ("quanto",)),
    Refused("MLX's floats of four bits", ("weight", "scales")),
    Refused("codes of GPTQ or AWQ without their scales", ("qweight",)),
)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
