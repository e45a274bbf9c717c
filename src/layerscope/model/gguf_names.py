"""Which tensor of a GGUF file each parameter of a Transformers model is, and what llama.cpp did to it.

Transformers keeps that knowledge in two places: tables of conversions for newer families, and for the others a map of
names with a processor each. Both are followed, so that what comes out is what Transformers would load.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.gguf import get_gguf_conversion_mapping, is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from layerscope.errors import CheckpointError, ModelError
from layerscope.model.gguf_checkpoint import FREQUENCY_FACTORS, GgufCheckpoint
from layerscope.model.gguf_model import tensor_names_kept
from layerscope.model.gguf_values import whole
from layerscope.model.stored_tensors import StackConversion, Stored, stored_by
from layerscope.model.tensor_files import TensorFiles

ROWS_REORDERED = (".attn_q.", ".attn_k.")
"""Of these, processors change nothing but the order of rows: llama.cpp pairs rotary halves in another way."""

_PICTURES = ("v.", "mm.")
"""How names begin of what a model of pictures and text has for pictures, where it lies in the same file."""


def gguf_stored(model: Any, checkpoint: TensorFiles) -> dict[str, Stored]:
    """For every parameter of a Transformers model that the file holds, where it comes from.

    Raises:
        ModelError: the installed `gguf` package has no names for the model's type, or the file holds tensors that the
            model has no place for.
        CheckpointError: part of what makes a parameter is missing.
    """
    assert isinstance(checkpoint, GgufCheckpoint)
    stored = _stored_by_name(model, checkpoint)
    _refuse_unused(model, checkpoint, {name for source in stored.values() for name in source.names})
    return stored


def _stored_by_name(model: Any, checkpoint: GgufCheckpoint) -> dict[str, Stored]:
    architecture = checkpoint.header.architecture
    if is_gguf_arch_supported(architecture):
        return stored_by(get_gguf_conversion_mapping(architecture, model.config), model, checkpoint)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=_sizes(model.config))
    try:
        with tensor_names_kept():
            names = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError as error:
        raise ModelError(
            f"The installed `gguf` package has no names for the tensors of a '{model.config.model_type}' model; update "
            "it (pip install -U gguf), or use the model's safetensors."
        ) from error
    wanted = model.state_dict()
    targets: dict[str, list[str]] = {}
    for name in checkpoint.names:
        target = names.get(name) or names.get(name.removesuffix(".weight"))  # fused experts have no ending
        if target in wanted:
            targets.setdefault(target, []).append(name)
    _refuse_halves(targets, names)
    return {
        target: _stored(checkpoint, processor, target, tuple(sources), names) for target, sources in targets.items()
    }


def _refuse_halves(targets: Mapping[str, list[str]], names: Mapping[str, str]) -> None:
    """Refuse a parameter of which the file holds one part and not the other: fused experts.

    Raises:
        CheckpointError: there is one.
    """
    needed: dict[str, list[str]] = {}
    for name, target in names.items():
        needed.setdefault(target, []).append(name)
    for target, sources in targets.items():
        there = {name.removesuffix(".weight") for name in sources}
        missing = [name for name in needed[target] if name.removesuffix(".weight") not in there]
        if missing:
            raise CheckpointError(
                f"'{target}' is made of {len(needed[target])} tensors, but '{missing[0]}' is not in the file beside "
                f"'{sources[0]}'; convert the model anew."
            )


def _refuse_unused(model: Any, checkpoint: GgufCheckpoint, used: set[str]) -> None:
    """Refuse tensors without a place in the model, as llama.cpp does: without them it computes another function.

    Raises:
        ModelError: there are some.
    """
    header = checkpoint.header
    n_ahead = whole(header, f"{header.architecture}.nextn_predict_layers", least=0) or 0
    first = int(model.config.get_text_config().num_hidden_layers)
    ahead = tuple(f"blk.{i}." for i in range(first, first + n_ahead))
    aside = (FREQUENCY_FACTORS, *_PICTURES, *ahead)
    unused = [name for name in checkpoint.names if name not in used and not name.startswith(aside)]
    if unused:
        raise ModelError(
            f"Of the {len(checkpoint.names)} tensors in {header.files[0].name} Transformers' "
            f"'{model.config.model_type}' model has no place for {len(unused)} (first: '{unused[0]}'), and without "
            "them every number would be of another model; use the model's safetensors."
        )


def _sizes(config: Any) -> dict[str, Any]:
    """What processors ask for, under the names that the config has for it."""
    return {name: getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")} | {
        **config.to_dict()
    }


def _stored(
    checkpoint: GgufCheckpoint, processor: Any, target: str, sources: tuple[str, ...], names: Mapping[str, str]
) -> Stored:
    name = sources[0]
    shape = checkpoint.shape(name)
    convert = _converting(checkpoint, processor, target, sources, names)
    if len(sources) > 1:
        fused = _fused(checkpoint, sources)
        one = partial(_side_by_side, checkpoint, sources)
        return Stored(checkpoint, sources, StackConversion(convert, one, None), made=fused)
    # Told by a tensor that costs no memory. Without a processor's own hand in it, it would be handed on as it is.
    given = np.broadcast_to(np.float32(1.0), shape)
    plain = type(processor).process is TensorProcessor.process
    reordered = len(shape) == 2 and not plain and any(part in name for part in ROWS_REORDERED)
    try:
        made = given if plain or reordered else _processed(processor, given, name)
        if reordered:
            order = _processed(processor, np.arange(shape[0])[:, None], name)[:, 0]
            return Stored(checkpoint, sources, order=torch.from_numpy(np.ascontiguousarray(order)))
    except ValueError as error:  # numpy's, of a shape that does not go into another
        raise CheckpointError(
            f"Tensor '{name}' has shape {list(shape)}, which does not go into heads as the file's header has them "
            f"({error}); use the header that belongs to these weights."
        ) from error
    if made is given and len(shape) in (2, 3):
        return Stored(checkpoint, sources)
    return Stored(checkpoint, sources, convert, made=made.shape)


def _side_by_side(checkpoint: GgufCheckpoint, sources: tuple[str, ...], i: int) -> torch.Tensor:
    """One expert's matrices, one above the other."""
    return torch.cat([checkpoint.matrix(name, i) for name in sources])


def _fused(checkpoint: GgufCheckpoint, sources: tuple[str, ...]) -> tuple[int, ...]:
    """Shape of experts' matrices `[expert, row, column]` that are stored apart, one above the other.

    Raises:
        CheckpointError: they differ in shape.
    """
    first, *others = (checkpoint.shape(name) for name in sources)
    for name, shape in zip(sources[1:], others, strict=True):
        if shape != first or len(shape) != 3:
            raise CheckpointError(
                f"'{sources[0]}' and '{name}' should be experts' matrices of one shape, but are {list(first)} and "
                f"{list(shape)}; convert the model anew."
            )
    return first[0], len(sources) * first[1], first[2]


def _processed(processor: Any, values: np.ndarray, name: str) -> np.ndarray:
    result = processor.process(weights=values, name=name, tensor_key_mapping={}, parsed_parameters={"tensors": {}})
    processed: np.ndarray = result.weights
    return processed


def _converting(
    checkpoint: GgufCheckpoint, processor: Any, target: str, sources: tuple[str, ...], names: Mapping[str, str]
) -> Callable[[], Tensor]:
    """What makes a tensor of one or several of the file's, as Transformers does when it loads the whole file."""

    def convert() -> Tensor:
        parsed: dict[str, dict[str, Tensor]] = {"tensors": {}}
        for name in sources:
            values = checkpoint.tensor(name).float().numpy()
            made = processor.process(weights=values, name=name, tensor_key_mapping=names, parsed_parameters=parsed)
            if made.name is not None:
                parsed["tensors"][target] = torch.from_numpy(np.ascontiguousarray(made.weights))
        return parsed["tensors"][target]

    return convert
