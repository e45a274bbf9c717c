"""Where each of a model's tensors lies, whatever files they lie in."""

from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping

from layerscope.model.stored_tensors import Stored, completed, stored_by
from layerscope.model.tensor_files import TensorFiles


def map_names(model: Any, checkpoint: TensorFiles) -> dict[str, Stored]:
    """For every parameter and buffer of a Transformers model that the checkpoint holds, where it comes from.

    A model whose GGUF file states factors of its rotary frequencies has them applied.

    Raises:
        CheckpointError: a parameter that the checkpoint lacks, or one of another shape.
        ModelError: a GGUF file of a family whose names are not known, or with tensors that the model has no place for.
    """
    if checkpoint.format == "gguf":
        from layerscope.model.gguf_names import gguf_stored
        from layerscope.model.gguf_rope import divide_frequencies

        divide_frequencies(model, checkpoint)
        return completed(model, checkpoint, gguf_stored(model, checkpoint))
    return completed(model, checkpoint, stored_by(get_model_conversion_mapping(model), model, checkpoint))
