"""Which tensor of a GGUF file each parameter of a Transformers model is, and what llama.cpp did to it.

Transformers keeps that knowledge in two places: tables of conversions for newer families, and for the others a map of
names with a processor each. Both are followed, so that what comes out is what Transformers would load.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.gguf import get_gguf_conversion_mapping, is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from layerscope.errors import ModelError
from layerscope.model.gguf_checkpoint import GgufCheckpoint
from layerscope.model.gguf_model import tensor_names_kept
from layerscope.model.stored_tensors import Stored, stored_by
from layerscope.model.tensor_files import TensorFiles

ROWS_REORDERED = (".attn_q.", ".attn_k.")
"""Of these, processors change nothing but the order of rows: llama.cpp pairs rotary halves in another way."""


def gguf_stored(model: Any, checkpoint: TensorFiles) -> dict[str, Stored]:
    """For every parameter of a Transformers model that the file holds, where it comes from.

    Raises:
        ModelError: the installed `gguf` package has no names for the model's type.
    """
    assert isinstance(checkpoint, GgufCheckpoint)
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
    targets: dict[str, list[str]] = {}
    for name in checkpoint.names:
        target = names.get(name) or names.get(name.removesuffix(".weight"))  # fused experts have no ending
        if target is not None:
            targets.setdefault(target, []).append(name)
    wanted = model.state_dict()
    return {
        target: _stored(checkpoint, processor, target, tuple(sources), names)
        for target, sources in targets.items()
        if target in wanted
    }


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
    if len(sources) == 1 and len(shape) == 2:
        if _changes_nothing(processor, name, shape):
            return Stored(checkpoint, sources)
        if any(part in name for part in ROWS_REORDERED):
            order = _processed(processor, np.arange(shape[0])[:, None], name)[:, 0]
            return Stored(checkpoint, sources, order=torch.from_numpy(np.ascontiguousarray(order)))
    return Stored(checkpoint, sources, _converting(checkpoint, processor, target, sources, names))


def _changes_nothing(processor: Any, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a processor hands a matrix on as it is: told by one that costs no memory."""
    given = np.broadcast_to(np.float32(1.0), shape)
    plain = type(processor).process is TensorProcessor.process
    return plain or (not any(part in name for part in ROWS_REORDERED) and _processed(processor, given, name) is given)


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
