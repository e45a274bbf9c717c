"""What a model is opened from: config, tensors and tokenizer of a folder, or of one GGUF file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from layerscope.model.checkpoint import Checkpoint, Source, parts_of, weight_files
from layerscope.model.config import quantization_of, read_config
from layerscope.model.tensor_files import TensorFiles


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, read as far as they say what it is."""

    config: Any
    """Transformers' config."""
    checkpoint: TensorFiles
    tokenizer: Callable[[], Any] | None
    """Makes the tokenizer; None where it lies in files of its own."""


def bytes_of_weights(source: Source) -> int:
    """Size of a model's files of weights.

    Raises:
        CheckpointError: files missing, incomplete or damaged.
    """
    if source.gguf is None:
        return sum(file.stat().st_size for file in weight_files(source.folder))
    return sum(source.gguf.with_name(name).stat().st_size for name in parts_of(source.gguf.name))


def open_files(source: Source, trust_remote_code: bool) -> ModelFiles:
    """Read a model's config and map its tensors.

    Raises:
        CheckpointError: files missing, incomplete or damaged.
        ModelError: not a causal language model, or remote code without leave.
    """
    if source.gguf is None:
        config = read_config(source.folder, trust_remote_code)
        return ModelFiles(config, Checkpoint(source.folder, quantization_of(config)), None)
    # Only here, because the package behind them takes half a second to import.
    from layerscope.model.gguf_checkpoint import GgufCheckpoint
    from layerscope.model.gguf_header import read_header
    from layerscope.model.gguf_model import gguf_config, gguf_tokenizer

    header = read_header(source.gguf)
    return ModelFiles(gguf_config(header), GgufCheckpoint(header), lambda: gguf_tokenizer(header))
