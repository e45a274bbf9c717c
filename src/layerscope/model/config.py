"""A checkpoint's config, and the empty module it describes; refused where it is no causal language model."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from layerscope.errors import CheckpointError, ModelError
from layerscope.model.wrapped import classes, is_wrapped, keep_language_model


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The model's config.

    Raises:
        CheckpointError: no readable config.json.
        ModelError: an encoder, an encoder-decoder, remote code without leave.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"The folder '{folder.name}' holds no config.json; give a folder with config.json, a tokenizer and "
            "*.safetensors."
        )
    try:
        said = json.loads((folder / "config.json").read_bytes())
    except ValueError as error:  # Transformers would say less of where it is broken
        raise CheckpointError(
            f"config.json of '{folder.name}' should hold JSON, but it is broken ({error}); fetch it again."
        ) from error
    _check_quantization(said, folder)
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _config_error(folder, error) from error
    wants_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    wrapped = is_wrapped(config)
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or wrapped
    if not known and not (wants_code and trust_remote_code):
        if wants_code:
            raise _remote_code(config.model_type)
        raise ModelError(
            f"A '{config.model_type}' model is no causal language model, so there is no next token to read; give a "
            "decoder-only model."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"This '{config.model_type}' model is an encoder-decoder, but layerscope probes decoders only; give a "
            "decoder-only model."
        )
    saved_from = set(config.architectures or ())
    readable = classes(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | classes(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    if saved_from and not saved_from & readable and not wants_code:
        raise ModelError(
            f"The checkpoint is a {', '.join(sorted(saved_from))}, no causal language model, so there is no next token "
            "to read; give a checkpoint with a language modelling head."
        )
    if config.model_type in _ENCODERS and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"This '{config.model_type}' model is an encoder, but layerscope probes decoders only; give a decoder-only "
            "model."
        )
    return config


_QUANTIZATION = ("quantization_config", "quantization")


def _check_quantization(said: object, folder: Path) -> None:
    """See that what a config says of how weights are quantised is an object, wherever it says it.

    Raises:
        CheckpointError: it is not.
    """
    whole = said if isinstance(said, Mapping) else {}
    for holder in (whole, *(value for key, value in whole.items() if key == "text_config")):
        for key in _QUANTIZATION if isinstance(holder, Mapping) else ():
            value = holder.get(key)
            if value is not None and not isinstance(value, Mapping):
                raise CheckpointError(
                    f"config.json of '{folder.name}' should have an object under `{key}`, but has {value!r}; take the "
                    "config.json that belongs to these weights."
                )


def quantization_of(config: Any) -> dict[str, Any] | None:
    """What a config says of how weights are quantised; MLX has a word of its own for it. None where it says nothing."""
    for holder in (config, config.get_text_config()):
        for key in _QUANTIZATION:
            said = getattr(holder, key, None)
            if said:
                return dict(said) if isinstance(said, Mapping) else dict(said.to_dict())
    return None


def build_empty(
    config: Any, folder: Path, dtype: torch.dtype, trust_remote_code: bool, gguf: Path | None = None
) -> Any:
    """Transformers' own module for that config, its parameters on the meta device and its buffers real.

    Args:
        config: Transformers' config.
        folder: where it was read from.
        dtype: of the parameters.
        trust_remote_code: whether the model's own code may be run.
        gguf: the file whose header it was made of; None of a config.json.

    Raises:
        ModelError: Transformers cannot build what the config says.
    """
    try:
        with _without_weights(), _NothingDrawn():
            built_by = AutoModelForImageTextToText if is_wrapped(config) else AutoModelForCausalLM
            module = built_by.from_config(
                config,
                dtype=dtype,
                # Only the plain implementation caps attention scores; elsewhere Transformers' choice is the reference.
                attn_implementation="eager" if getattr(config, "attn_logit_softcapping", None) else None,
                trust_remote_code=trust_remote_code,
            )
    except ImportError as error:
        raise ModelError(
            f"A '{config.model_type}' model needs a package that is not installed ({_in_one_line(error)}); install it, "
            "and open the model again."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError, *_WRONG_SIZES) as error:
        raise _config_error(folder, error, gguf) from error
    if is_wrapped(config):
        keep_language_model(module)
    return module.eval()


@contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters go to the meta device as modules take them; buffers, in which rotary frequencies lie, stay real."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            empty = type(parameter)(parameter.to("meta"), requires_grad=parameter.requires_grad)
            vars(empty).update(vars(parameter))
            module._parameters[name] = empty

    nn.Module.register_parameter = register_empty  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


_WRONG_SIZES = (ZeroDivisionError, OverflowError, IndexError, RuntimeError, AssertionError)
"""What modules raise of sizes that go wrong, or that do not go together."""


class _NothingDrawn(TorchFunctionMode):
    """No random numbers for tensors without memory: drawing none takes torch longer than to build the model."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        # By name, for Transformers puts functions of its own in the place of torch's.
        if getattr(func, "__name__", "") in _DRAWING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


_DRAWING = frozenset(
    ["normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"]
)
"""What fills a tensor, its first argument, with random numbers."""

_ENCODERS = frozenset(
    {"bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"}
    | {"reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"}
    | {"xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Types that Transformers also offers as causal models but whose attention looks both ways unless they are decoders."""


def _remote_code(model_type: str) -> ModelError:
    return ModelError(
        f"A '{model_type}' model brings Python code of its own, which is not run by default; read the code, then pass "
        "--trust-remote-code (trust_remote_code=True), which the run records."
    )


def _in_one_line(error: Exception) -> str:
    """The first paragraph of what an error says, without the list of all classes that Transformers has."""
    said = str(error).strip().partition("\n\n")[0].partition("\nModel type should be one of")[0]
    return " ".join(said.split()).rstrip(".") or type(error).__name__


def _config_error(folder: Path, error: Exception, gguf: Path | None = None) -> Exception:
    text = str(error)
    if "trust_remote_code" in text:
        return _remote_code(folder.name)
    reason = _in_one_line(error)
    where = f"config.json of '{folder.name}'" if gguf is None else f"The header of {gguf.name}"
    own = "config.json that came with it" if gguf is None else "header that belongs to its tensors"
    return ModelError(
        f"{where} could not be understood ({reason}); give a model that the installed Transformers "
        f"({transformers.__version__}) knows, with the {own}."
    )
