"""A GGUF file's own config and tokenizer, as Transformers understands its header."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import get_gguf_config, is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from layerscope.errors import CheckpointError, ModelError
from layerscope.model.gguf_header import GgufHeader
from layerscope.model.gguf_rope import enter_positions
from layerscope.model.gguf_values import check_sizes, check_vocabulary, not_read, real, whole

_INT, _FLOAT, _BOOL, _TEXT, _LIST = 5, 6, 7, 8, 9
"""Types of GGUF values."""
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Blocks of the size that scales attention by the stream's width for each head, and not by a head's own."""
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_package_lent = threading.RLock()


def gguf_config(header: GgufHeader) -> Any:
    """The Transformers config that a file's header describes.

    Raises:
        ModelError: a family that Transformers cannot read from GGUF, or rotary positions that would be left out.
        CheckpointError: a header that lacks what the family needs, or says what no model can have.
    """
    check_sizes(header)
    architecture = header.architecture
    try:
        values = _config_values(header)
        if values["model_type"] not in CONFIG_MAPPING:
            raise ValueError(f"no model type '{values['model_type']}'")
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
    try:
        config = AutoConfig.for_model(**values)
    except (ValueError, TypeError, ZeroDivisionError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"The header of {header.files[0].name} should describe a '{architecture}' model, but Transformers refuses "
            f"what it says ({reason}); convert the model anew."
        ) from error
    _enter_attention(config, header)
    enter_positions(config, header)
    return config


def _enter_attention(config: Any, header: GgufHeader) -> None:
    """Enter what Transformers' tables leave out of how a model attends: softcaps, Gemma's scale, its windows.

    Source: llama.cpp, `llama_model_gemma2::load_arch_hparams` and `llama_model_gemma3::load_arch_hparams`.

    Raises:
        ModelError: something that Transformers' module does not have.
    """
    of, inner = header.architecture, config.get_text_config()
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        cap = real(header, f"{of}.{name}", zero=True)
        if cap and not hasattr(inner, name):
            raise not_read(header, f"{of}.{name}", "caps logits")
        if cap is not None and hasattr(inner, name):
            setattr(inner, name, cap or None)
    if of in _LARGEST_GEMMA:  # no header says so, and Transformers has one number for all sizes
        per_head = inner.hidden_size // inner.num_attention_heads
        largest = inner.num_hidden_layers == _LARGEST_GEMMA[of]
        inner.query_pre_attn_scalar = per_head if largest else inner.head_dim
    _check_windows(inner, header)


def _check_windows(config: Any, header: GgufHeader) -> None:
    """Hold what the header says of which layers have a sliding window to the config, whose pattern is its class'."""
    key = f"{header.architecture}.attention.sliding_window_pattern"
    pattern, kinds = header.metadata.get(key), getattr(config, "layer_types", None) or []
    slides = [kind == "sliding_attention" for kind in kinds]
    if pattern is None or not any(slides):
        return
    if not isinstance(pattern, list):  # of so many layers the last sees everything
        every = whole(header, key) or 1
        pattern = [(layer + 1) % every != 0 for layer in range(len(kinds))]
    if [bool(entry) for entry in pattern] != slides:
        raise not_read(header, key, "has windows of attention")


def _config_values(header: GgufHeader) -> dict[str, Any]:
    """What Transformers' tables make of a header, and what they leave out of it."""
    of, metadata = header.architecture, header.metadata
    if is_gguf_arch_supported(of):
        # As its own reader, which knows a split file's first part alone, gives them: lists of texts by their length.
        plain = {key: len(value) if _is_texts(value) else value for key, value in metadata.items()}
        values: dict[str, Any] = get_gguf_config(plain, tuple(header.tensors))
    else:
        with _header_at_hand(header):
            values = load_gguf_checkpoint(str(header.files[0]), return_tensors=False)["config"]
    width = whole(header, f"{of}.attention.key_length")
    if "head_dim" not in values and width is not None:  # which some of Transformers' tables leave out
        values["head_dim"] = width
    if values["model_type"] == "llama" and all(f"blk.0.{name}.bias" in header.tensors for name in _ATTENTION):
        values["attention_bias"] = True
    length = whole(header, f"{of}.context_length")
    if values["model_type"] == "gpt2" and length is not None:  # under a name that its config no longer has
        values["n_positions"] = length
    return values


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def gguf_tokenizer(header: GgufHeader) -> Any:
    """The tokenizer that a file's header describes, by Transformers' conversion.

    Raises:
        CheckpointError: values of a vocabulary that make no sense.
        ValueError, KeyError, TypeError, AttributeError, OSError: it cannot be made.
    """
    check_vocabulary(header)
    try:
        with TemporaryDirectory() as alone, _header_at_hand(header):
            # In a folder of its own: Transformers would take a tokenizer.json beside the file in the header's place.
            link = Path(alone) / "model.gguf"
            link.symlink_to(header.files[0].resolve())
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=link.name)
    except Exception as error:
        if type(error) is not Exception:  # the package tokenizers has no class of errors of its own
            raise
        raise ValueError(str(error)) from error
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
