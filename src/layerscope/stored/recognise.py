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
from layerscope.stored import making
from layerscope.stored.parts import (
    FLOAT8,
    FLOATS,
    POWERS_OF_TWO,
    Available,
    Parts,
    Siblings,
    Weight,
    dtype_name,
    siblings_of,
)
from layerscope.stored.weight import StoredWeight

_READABLE = "fp8, NF4, GPTQ, AWQ, compressed-tensors, MXFP4, NVFP4, MLX or GGUF"


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
        except ValueError as error:
            raise CheckpointError(
                f"'{self.weight.name}' is stored as {self.storage.name}, but its tensors do not go together or with "
                f"config.json: {error}. The checkpoint is damaged, or its config.json is another's; fetch it again."
            ) from error


def recognise(
    name: str,
    available: Available,
    config: Mapping[str, Any] | None = None,
    shape: tuple[int, int] | None = None,
    siblings: Siblings | None = None,
) -> Recognised | None:
    """How a matrix is stored, or None where a checkpoint has nothing of that name.

    Args:
        name: the parameter's, with the prefixes that the checkpoint uses: `model.layers.0.mlp.up_proj.weight`.
        available: all tensors of the checkpoint.
        config: `quantization_config` of its config.json, or MLX's `quantization`.
        shape: what the model expects; only MLX without a config cannot do without.
        siblings: what `siblings_of` says of the checkpoint, where many weights are asked for.

    Raises:
        CheckpointError: it is stored in a form that is not read; the message names that.
    """
    weight = Weight(name, available, config or {}, shape, siblings_of(available) if siblings is None else siblings)
    for storage in STORAGES:
        if all(weight.there(end) for end in storage.parts) and storage.fits(weight):
            found = [*storage.parts, *(end for end in storage.others if weight.there(end))]
            return Recognised(weight, storage, {end: weight.part(end) for end in found})
    for refused in REFUSED:
        refused.check(weight)
    if name in available:
        raise CheckpointError(
            f"Tensor '{name}' is stored as {dtype_name(available[name][1])} {list(available[name][0])} without what "
            f"would tell its form: weights are read as floats, or in {_READABLE}; take the unquantised checkpoint."
        )
    return None


def unused_flag(config: Mapping[str, Any] | None, found: Sequence[Recognised]) -> str | None:
    """What to say where a config asks for quantised weights and none is quantised; None otherwise."""
    if not config or any(each.storage.name != _PLAIN for each in found):
        return None
    method = config.get("quant_method") or "quantised weights"
    return f"config.json asks for {method}, but no weight is quantised: its `quantization_config` is ignored."


# ---- what must hold besides that the tensors are there


def _has(end: str, *dtypes: torch.dtype) -> Callable[[Weight], bool]:
    """Whether a tensor is a matrix of one of some dtypes."""
    return lambda weight: weight.dtype(end) in dtypes


def _all_of(*conditions: Callable[[Weight], bool]) -> Callable[[Weight], bool]:
    return lambda weight: all(condition(weight) for condition in conditions)


def _outputs_in_words(weight: Weight) -> bool:
    """Whether a word of `qweight` holds eight outputs, as AWQ's do, and not as many inputs of one."""
    return weight.size("qweight")[-1:] == tuple(n // 8 for n in weight.size("scales")[-1:])


def _inputs_in_words(weight: Weight) -> bool:
    """Whether its last axis is that of the outputs, as GPTQ's is; what has no second axis is refused as GPTQ."""
    sizes = weight.size("qweight"), weight.size("scales")
    return sizes[0][-1:] == sizes[1][-1:] or min(map(len, sizes)) < 2


def _bitsandbytes(kind: str) -> Storage:
    """The row of one table of four bits, which the name of a tensor says."""
    return Storage(
        f"bitsandbytes {kind.upper()}",
        ("weight", "weight.absmax", "weight.quant_map", f"weight.quant_state.bitsandbytes__{kind}"),
        making.bitsandbytes_float4,
        _has("weight", torch.uint8),
        ("weight.nested_absmax", "weight.nested_quant_map"),
    )


_PLAIN = "floats"
STORAGES = (
    Storage(_PLAIN, ("weight",), making.plain, _has("weight", *FLOATS)),
    Storage("floats", ("",), making.plain, _has("", *FLOATS)),
    Storage(
        "fp8 with `weight_scale_inv`",
        ("weight", "weight_scale_inv"),
        partial(making.eight_bit, scale="weight_scale_inv"),
        _has("weight", *FLOAT8),
    ),
    Storage("fp8", ("weight",), making.eight_bit, _has("weight", *FLOAT8), ("weight_scale", "weight_zero_point")),
    Storage(
        "bitsandbytes int8", ("weight", "SCB"), making.bitsandbytes_int8, _has("weight", torch.int8), ("weight_format",)
    ),
    Storage(
        "compressed-tensors int8",
        ("weight", "weight_scale"),
        making.eight_bit,
        _has("weight", torch.int8),
        ("weight_zero_point",),
    ),
    Storage(
        "compressed-tensors int4 and int8",
        ("weight_packed", "weight_scale", "weight_shape"),
        making.pack_quantized,
        _has("weight_packed", torch.int32),
        ("weight_zero_point", "weight_g_idx"),
    ),
    _bitsandbytes("nf4"),
    _bitsandbytes("fp4"),
    Storage("GPTQ", ("qweight", "qzeros", "scales"), making.gptq, _inputs_in_words, ("g_idx",)),
    Storage("AWQ", ("qweight", "qzeros", "scales"), making.awq, _outputs_in_words),
    Storage("NVFP4", ("weight_packed", "weight_scale", "weight_global_scale"), making.nvfp4),
    Storage("NVFP4", ("weight", "weight_scale", "weight_scale_2"), making.nvfp4, _has("weight", torch.uint8)),
    Storage(
        "MXFP4",
        ("weight_packed", "weight_scale"),
        making.mxfp4,
        _all_of(_has("weight_packed", torch.uint8), _has("weight_scale", *POWERS_OF_TWO)),
    ),
    Storage("MXFP4", ("+_blocks", "+_scales"), making.mxfp4),
    Storage("MLX", ("weight", "scales", "biases"), making.mlx, _has("weight", torch.uint32)),
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
    Refused(
        "packed codes of compressed-tensors without what would tell their form (`weight_global_scale` of NVFP4, scales "
        "of MXFP4 that are bytes, `weight_shape` of integers)",
        ("weight_packed", "weight_scale"),
    ),
    Refused("BitNet", methods=("bitnet",)),
    Refused("HIGGS", methods=("higgs",)),
    Refused("Quanto", ("weight._data",), ("quanto",)),
    Refused("MLX's floats of four bits", ("weight", "scales")),
    Refused("codes of GPTQ or AWQ without their scales", ("qweight",)),
)
