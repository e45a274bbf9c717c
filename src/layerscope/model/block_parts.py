"""What a block adds to the stream, and by which of its modules: a table of families, and a guess for the rest.

A path is of a module whose output is what is added, but for a multiplier: the norm behind an attention or MLP where a
family has one, the output matrix itself where a module returns the sum. `tests/test_sublayers.py` holds every entry
against Transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from layerscope.errors import ModelError

Order: TypeAlias = Literal["sequential", "parallel"]


@dataclass(frozen=True)
class BlockParts:
    """Paths inside a block of one family; several names are tried in order."""

    attention: str = "self_attn"
    """What attention adds."""
    mlp: str = "mlp"
    """What the MLP adds."""
    projection: str = "self_attn.o_proj"
    """The attention's output matrix, which reads the heads side by side."""
    down: str | None = "mlp.down_proj"
    """The MLP's last matrix, which reads the neurons; None where there is none of its own."""
    parallel: str | None = None
    """Config fields any of which makes attention and MLP read the same state; `always`, or None: never."""
    no_sum: str | None = None
    """A config field under which a norm stands behind the sum; with `not` in front, without which."""


_POST_NORMED = BlockParts(attention="post_attention_layernorm", mlp="post_feedforward_layernorm")
_PLAIN = BlockParts()
PARTS = {
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "gemma2": _POST_NORMED,
    "gemma3_text": _POST_NORMED,
    "gpt2": BlockParts("attn", "mlp", "attn.c_proj", "mlp.c_proj"),
    "gptj": BlockParts("attn", "mlp", "attn.out_proj", "mlp.fc_out", parallel="always"),
    "gpt_neox": BlockParts(
        "attention", "mlp", "attention.dense", "mlp.dense_4h_to_h", parallel="use_parallel_residual"
    ),
    "olmo2": _POST_NORMED,
    "olmo3": _POST_NORMED,
    "phi": BlockParts(projection="self_attn.dense", down="mlp.fc2", parallel="always"),
    "phi3": _PLAIN,
    "cohere": BlockParts(parallel="always"),
    "granite": _PLAIN,
    "starcoder2": BlockParts(down="mlp.c_proj"),
    "stablelm": BlockParts(parallel="use_parallel_residual"),
    "falcon": BlockParts(
        "self_attention",
        "mlp",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        parallel="new_decoder_architecture|parallel_attn",
    ),
    "opt": BlockParts("self_attn", "fc2", "self_attn.out_proj", "fc2", no_sum="not do_layer_norm_before"),
    # Its attention and MLP return the stream with what they add to it.
    "bloom": BlockParts(
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        no_sum="apply_residual_connection_post_layernorm",
    ),
    "mixtral": BlockParts(down=None),
    "qwen3_moe": _PLAIN,  # its experts have no such matrix, a dense layer among them has
}
"""By `model_type`."""

_ATTENTIONS = ("self_attn", "attention", "attn", "self_attention")
_MLPS = ("mlp", "feed_forward", "block_sparse_moe", "moe")
_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_DOWNS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")


@dataclass(frozen=True)
class Sublayers:
    """The modules of one block."""

    attention: nn.Module
    """Its output, times `multiplier`, is what attention adds."""
    mlp: nn.Module
    projection: nn.Module | None
    """Reads the heads side by side; None where no such matrix is known."""
    post_norm: str | None
    """Path in the block of a norm between `projection` and the sum; None where there is none."""
    mlp_norm: str | None
    """The same of a norm between `down` and the sum."""
    down: nn.Module | None
    """Reads the neurons; None where no such matrix is known (experts)."""
    multiplier: float
    """Both writes are multiplied by it before they are added."""


def order_of(model_type: str, config: Any) -> Order | None:
    """Whether the MLP reads the state that attention has written to; None of a family that is not in the table."""
    parts = PARTS.get(model_type)
    if parts is None:
        return None
    names = (parts.parallel or "").split("|")
    parallel = parts.parallel == "always" or any(name and getattr(config, name, False) for name in names)
    return "parallel" if parallel else "sequential"


def sublayers_of(block: nn.Module, layer: int, model_type: str, config: Any) -> Sublayers:
    """The modules of a block.

    Args:
        block: the block.
        layer: the layer that it writes, 1 to n_layers; for the error alone.
        model_type: of the config.
        config: the language model's own.

    Raises:
        ModelError: a part that is not there under a known name, or a stream that is no sum of what was added to it.
    """
    parts = PARTS.get(model_type)
    if parts is None:
        parts = _guessed(block, layer, model_type)
    elif parts.no_sum is not None:
        flag = parts.no_sum.removeprefix("not ")
        if bool(getattr(config, flag, False)) is (flag == parts.no_sum):
            raise ModelError(
                f"A '{model_type}' model with {flag} = {getattr(config, flag)} puts a norm behind the sum in its "
                "blocks, so its last residual is no sum of what attention and MLPs added, and there are no shares."
            )
    projection = _module(block, parts.projection)
    normed = parts.attention == "post_attention_layernorm"
    return Sublayers(
        attention=_needed(block, parts.attention, "attention", layer, model_type),
        mlp=_needed(block, parts.mlp, "MLP", layer, model_type),
        projection=projection,
        post_norm=parts.attention if normed else None,
        mlp_norm=parts.mlp if normed else None,
        down=None if parts.down is None else _module(block, parts.down),
        multiplier=float(getattr(block, "residual_multiplier", 1.0)),
    )


def _guessed(block: nn.Module, layer: int, model_type: str) -> BlockParts:
    """By the usual names; that what is found adds up to each block's step is checked in every run."""
    attention = _first(block, _ATTENTIONS, "attention", layer, model_type)
    mlp = _first(block, _MLPS, "MLP", layer, model_type)
    projection = next((n for n in _PROJECTIONS if _module(block, f"{attention}.{n}") is not None), None)
    down = next((n for n in _DOWNS if _module(block, f"{mlp}.{n}") is not None), None)
    post_normed = _module(block, "post_feedforward_layernorm") is not None
    return BlockParts(
        attention=_POST_NORMED.attention if post_normed else attention,
        mlp=_POST_NORMED.mlp if post_normed else mlp,
        projection=f"{attention}.{projection}",
        down=None if down is None else f"{mlp}.{down}",
    )


def _first(block: nn.Module, names: Sequence[str], part: str, layer: int, model_type: str) -> str:
    found = next((name for name in names if _module(block, name) is not None), None)
    if found is None:
        raise _missing(part, " or ".join(names), block, layer, model_type)
    return found


def _needed(block: nn.Module, path: str, part: str, layer: int, model_type: str) -> nn.Module:
    module = _module(block, path)
    if module is None:
        raise _missing(part, path, block, layer, model_type)
    return module


def _missing(part: str, expected: str, block: nn.Module, layer: int, model_type: str) -> ModelError:
    there = ", ".join(name for name, _ in block.named_children())
    return ModelError(
        f"The block of layer {layer} of this '{model_type}' model should have its {part} under {expected}, but it has "
        f"{there or 'no parts'}; what it adds to the stream cannot be told."
    )


def _module(block: nn.Module, path: str) -> nn.Module | None:
    module: Any = block
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None
