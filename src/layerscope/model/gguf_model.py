"""A GGUF file's own config and tokenizer, as Transformers understands its header; and its rotary frequencies."""

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import get_gguf_config, is_gguf_arch_supported, read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from layerscope.errors import CheckpointError, ModelError
from layerscope.model.gguf_header import GgufHeader
from layerscope.model.tensor_files import TensorFiles

FREQUENCY_FACTORS = "rope_freqs.weight"
"""What rotary frequencies are divided by: how llama.cpp stores Llama 3.1's scaling."""
_BY_LENGTH = ("rope_factors_long.weight", "rope_factors_short.weight")
_INT, _FLOAT, _BOOL, _TEXT, _LIST = 5, 6, 7, 8, 9
"""Types of GGUF values."""
_package_lent = threading.RLock()


def gguf_config(header: GgufHeader) -> Any:
    """The Transformers config that a file's header describes.

    Raises:
        ModelError: a family that Transformers cannot read from GGUF, or a scaling of rotary frequencies that would be
            left out.
        CheckpointError: a header that lacks what the family needs.
    """
    architecture = header.architecture
    try:
        if is_gguf_arch_supported(architecture):
            metadata, names = read_gguf_metadata(str(header.files[0]))
            values = get_gguf_config(metadata, names)
        else:
            with _header_at_hand(header):
                values = load_gguf_checkpoint(str(header.files[0]), return_tensors=False)["config"]
        width = header.metadata.get(f"{architecture}.attention.key_length")
        if "head_dim" not in values and isinstance(width, int):  # which some of Transformers' tables leave out
            values["head_dim"] = width
        config = AutoConfig.for_model(**values)
    except ValueError as error:
        raise ModelError(
            f"{header.files[0].name} holds a model of llama.cpp's family '{architecture}', which the installed "
            f"Transformers does not read from GGUF ({error}); use the model's safetensors."
        ) from error
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"The header of {header.files[0].name} lacks something that a '{architecture}' model needs ({error!r}); "
            "convert the model anew."
        ) from error
    _scale_rope(config, header)
    return config


def _scale_rope(config: Any, header: GgufHeader) -> None:
    """Enter a linear or YaRN scaling of positions, which the header states and Transformers' reading leaves out.

    Raises:
        ModelError: a scaling that is not known here.
    """
    of = f"{header.architecture}.rope.scaling"
    kind = header.metadata.get(f"{of}.type", "none")
    factor = header.metadata.get(f"{of}.factor", header.metadata.get(f"{header.architecture}.rope.scale_linear", 1.0))
    missing = [name for name in _BY_LENGTH if name in header.tensors]
    if missing or kind not in ("none", "linear", "yarn"):
        what = missing[0] if missing else f"{of}.type = {kind}"
        raise ModelError(
            f"{header.files[0].name} scales its rotary positions ({what}) in a way that is not read from GGUF files "
            "here, and without it every number would be of another model; use the model's safetensors."
        )
    if kind == "none" or factor == 1.0:
        return
    added: dict[str, Any] = {"rope_type": kind, "factor": float(factor)}
    length = header.metadata.get(f"{of}.original_context_length")
    if kind == "yarn" and length is not None:
        added["original_max_position_embeddings"] = int(length)
    text = config.get_text_config()
    rope = dict(getattr(text, "rope_parameters", None) or {})
    if "full_attention" in rope:  # layers with a sliding window have frequencies of their own, which nothing scales
        rope["full_attention"] = _scaled(rope["full_attention"], added)
    else:
        rope = _scaled(rope, added)
    text.rope_parameters = rope


def _scaled(rope: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of rotary positions with a scaling, unless they have one already."""
    return {**rope, **added} if rope.get("rope_type", "default") == "default" else dict(rope)


def divide_frequencies(model: nn.Module, checkpoint: TensorFiles) -> None:
    """Divide a model's rotary frequencies by the file's factors, where it has any.

    Transformers' reading leaves them out. They are what Llama 3.1's scaling comes to (`rope_type: llama3`).

    Raises:
        CheckpointError: factors for another number of frequencies.
    """
    if FREQUENCY_FACTORS not in checkpoint.names:
        return
    factors: Tensor = checkpoint.tensor(FREQUENCY_FACTORS).float()
    for name, buffer in list(model.named_buffers()):
        if name.rpartition(".")[2] not in ("inv_freq", "original_inv_freq"):
            continue
        if buffer.shape != factors.shape:
            raise CheckpointError(
                f"'{FREQUENCY_FACTORS}' should hold {buffer.numel()} factors, one for each rotary frequency, but holds "
                f"{factors.numel()}; convert the model anew."
            )
        buffer.copy_(buffer / factors.to(buffer.device))


def gguf_tokenizer(header: GgufHeader) -> Any:
    """The tokenizer that a file's header describes, by Transformers' conversion.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OSError: it cannot be made.
    """
    with TemporaryDirectory() as alone, _header_at_hand(header):
        # In a folder of its own: Transformers would take a tokenizer.json beside the file in the place of the header.
        link = Path(alone) / "model.gguf"
        link.symlink_to(header.files[0].resolve())
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=link.name)
    for name in ("name_or_path", "gguf_file", "is_local", "local_files_only"):  # nothing of that folder
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.name_or_path = ""
    if header.metadata.get("tokenizer.ggml.pre") == "smollm":
        _split_digits(tokenizer, bool(header.metadata.get("tokenizer.ggml.add_space_prefix")))
    return tokenizer


def _split_digits(tokenizer: Any, prefix_space: bool) -> None:
    """GPT-2's split, but every digit stands alone: llama.cpp's `smollm`, which Transformers takes for GPT-2's."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)]
    )


@dataclass(frozen=True)
class _Field:
    """A value as the `gguf` package's reader gives it."""

    parts: list[Any]
    types: list[int]

    @property
    def data(self) -> range:
        return range(len(self.parts))

    @classmethod
    def of(cls, value: Any) -> "_Field":
        values = value if isinstance(value, list) else [value]
        kinds = ((bool, _BOOL), (int, _INT), (float, _FLOAT), (str, _TEXT))
        kind = next(kind for of, kind in kinds if isinstance(values[0] if values else 0, of))
        if not isinstance(value, list):
            return cls([value.encode() if kind == _TEXT else [value]], [kind])
        if kind == _TEXT:  # a vocabulary, of which only the number is asked for
            return cls([[0]] * len(values), [_LIST, _INT])
        return cls([[entry] for entry in values], [_LIST, kind])


class _Tensor:
    """A tensor's name, which is all that is asked of it."""

    def __init__(self, name: str) -> None:
        self.name = name


@contextmanager
def _header_at_hand(header: GgufHeader) -> Iterator[None]:
    """Until the end of the `with` Transformers is given this header where it would read the file once more.

    The `gguf` package's own reader takes seconds for a large vocabulary, and would be called twice.
    """

    class Reader:
        fields = _fields(header)
        tensors = tuple(_Tensor(name) for name in header.tensors)

        def __init__(self, path: object) -> None:
            pass

    with _gguf_with(GGUFReader=Reader):
        yield


@contextmanager
def _gguf_with(**names: Any) -> Iterator[None]:
    """Until the end of the `with` these names of the `gguf` package are others."""
    with _package_lent:
        own = {name: getattr(gguf, name) for name in names}
        try:
            for name, value in names.items():
                setattr(gguf, name, value)
            yield
        finally:
            for name, value in own.items():
                setattr(gguf, name, value)


@contextmanager
def tensor_names_kept() -> Iterator[None]:
    """Until the end of the `with` a family's table of names is made once, not once for every module of a model."""
    with _gguf_with(get_tensor_name_map=functools.cache(gguf.get_tensor_name_map)):
        yield


def _fields(header: GgufHeader) -> dict[str, _Field]:
    """The header's values for a config. The vocabulary counts alone, by a key of the family's own."""
    values = {key: value for key, value in header.metadata.items() if not key.startswith("tokenizer.")}
    tokens = header.metadata.get("tokenizer.ggml.tokens", [])
    size = f"{header.architecture}.vocab_size"
    if size not in values and "vocab_size" in GGUF_CONFIG_MAPPING.get(header.architecture, {}):
        values[size] = len(tokens)
    elif size not in values:
        values["tokenizer.ggml.tokens"] = tokens
    return {key: _Field.of(value) for key, value in values.items()}
