"""Rotary positions of a GGUF file, as llama.cpp takes them from its header: followed, or refused by their key.

Transformers' reading of the header leaves most of it out. Source: llama.cpp, `llama_model_base::load_hparams`
(src/llama-model.cpp), the constructor of `llama_context` (src/llama-context.cpp), `rope_yarn` (ggml-cpu/ops.cpp).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.errors import CheckpointError, ModelError
from layerscope.model.gguf_checkpoint import FREQUENCY_FACTORS
from layerscope.model.gguf_header import GgufHeader
from layerscope.model.gguf_values import not_read, real, refused, text, whole
from layerscope.model.tensor_files import TensorFiles

_BY_LENGTH = ("rope_factors_long.weight", "rope_factors_short.weight")
_BASE = 10_000.0
"""Of rotary frequencies, where the header states none."""
_WIDTH_IS_HEADS = ("llama", "mistral", "deci", "falcon")
"""Of these llama.cpp opens no file whose heads turn in part."""
_WITHOUT_EFFECT = ("dimension_sections", "scaling.finetuned")
"""Sections share out positions in a picture, which are one and the same in text."""
_READ = (
    *("dimension_count", "dimension_count_swa", "freq_base", "freq_base_swa", "scale_linear"),
    *("scaling.type", "scaling.factor", "scaling.attn_factor", "scaling.original_context_length", "scaling.alpha"),
    *(f"scaling.yarn_{name}" for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow", "log_multiplier")),
)


def enter_positions(config: Any, header: GgufHeader) -> None:
    """Enter into a Transformers config what the header says of rotary positions.

    A config without rotary positions is left as it is: llama.cpp reads none of it there either.

    Raises:
        ModelError: positions of a kind that Transformers' module cannot compute, or that are not known here.
        CheckpointError: values that make no sense.
    """
    inner = config.get_text_config()
    rope = dict(getattr(inner, "rope_parameters", None) or {})
    if not rope:
        return
    _check_known(header)
    layered = "full_attention" in rope  # layers with a sliding window have positions of their own, which nothing scales
    main = dict(rope["full_attention"] if layered else rope)
    of = f"{header.architecture}.rope"
    base = real(header, f"{of}.freq_base") or _BASE
    main["rope_theta"] = base
    _enter_width(main, inner, header)
    _enter_scaling(main, header)
    sliding_base = real(header, f"{of}.freq_base_swa")
    if not layered:
        if sliding_base not in (None, base):
            raise _not_read(header, f"{of}.freq_base_swa")
        inner.rope_parameters = main
        return
    sliding = dict(rope.get("sliding_attention") or {})
    if sliding_base is not None:
        sliding["rope_theta"] = sliding_base
    inner.rope_parameters = rope | {"full_attention": main, "sliding_attention": sliding}


def _not_read(header: GgufHeader, key: str) -> ModelError:
    return not_read(header, key, "places its tokens by rotary positions")


def _check_known(header: GgufHeader) -> None:
    """Refuse what is not known, or known to be left out below."""
    of = f"{header.architecture}.rope."
    for key in header.metadata:
        if key.startswith(of) and key.removeprefix(of) not in (*_READ, *_WITHOUT_EFFECT):
            raise _not_read(header, key)
    for name in _BY_LENGTH:
        if name in header.tensors:
            raise _not_read(header, name)
    if real(header, f"{of}scaling.alpha", zero=True):
        raise _not_read(header, f"{of}scaling.alpha")


def _enter_width(rope: dict[str, Any], config: Any, header: GgufHeader) -> None:
    """How many of a head's numbers turn: all of them where the header does not say.

    Raises:
        ModelError: part of them in a family whose module turns all.
    """
    of = header.architecture
    key = f"{of}.rope.dimension_count"
    own = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = getattr(config, "global_head_dim", None) or own
    turned = whole(header, key) or head
    if of in _WIDTH_IS_HEADS:  # Transformers takes the one for the other
        head = whole(header, f"{of}.attention.key_length") or config.hidden_size // config.num_attention_heads
    if turned % 2:
        raise refused(header, key, "an even number")
    if turned > head:
        raise refused(header, key, f"at most the width of a head ({head})")
    if "partial_rotary_factor" in rope and of not in _WIDTH_IS_HEADS:
        if int(head * rope["partial_rotary_factor"]) != turned:
            share = turned / head
            rope["partial_rotary_factor"] = share if int(head * share) == turned else math.nextafter(share, 1.0)
    elif turned != head:
        raise _not_read(header, key)
    sliding = whole(header, f"{key}_swa")
    if sliding is not None and sliding != (own if own != head else turned):
        raise _not_read(header, f"{key}_swa")


def _enter_scaling(rope: dict[str, Any], header: GgufHeader) -> None:
    """A linear or YaRN scaling of positions.

    Raises:
        ModelError: another one, or a part of it that Transformers' module does not have.
    """
    of = f"{header.architecture}.rope.scaling"
    kind = text(header, f"{of}.type") or "linear"
    stated = f"{of}.factor" if f"{of}.factor" in header.metadata else f"{header.architecture}.rope.scale_linear"
    factor = real(header, stated, zero=True) or 1.0  # as llama.cpp: 0 is no scaling
    attention = real(header, f"{of}.attn_factor") or 1.0
    if kind not in ("none", "linear", "yarn"):
        raise _not_read(header, f"{of}.type")
    extrapolated = real(header, f"{of}.yarn_ext_factor", negative=True)
    if extrapolated is not None and extrapolated >= 0 and extrapolated != float(kind == "yarn"):
        raise _not_read(header, f"{of}.yarn_ext_factor")
    if kind == "yarn":
        added = _yarn(header, of, factor, attention)
    elif attention != 1.0:
        raise _not_read(header, f"{of}.attn_factor")
    else:
        added = {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1.0 else {}
    if added and rope.get("rope_type", "default") != "default":
        raise _not_read(header, f"{of}.type")
    rope.update(added)


def _yarn(header: GgufHeader, of: str, factor: float, attention: float) -> dict[str, Any]:
    """YaRN's parameters. Attention is scaled by 1 + 0.1 ln(factor), as its paper has it, times the header's factor."""
    own = 1.0 if factor <= 1.0 else 0.1 * math.log(factor) + 1.0
    if real(header, f"{of}.yarn_log_multiplier", zero=True):
        raise _not_read(header, f"{of}.yarn_log_multiplier")
    # llama.cpp's converter writes attention's whole factor there, llama.cpp multiplies by it or leaves it out.
    whole_factor = real(header, f"{of}.yarn_attn_factor")
    if whole_factor is not None and whole_factor != 1.0 and not math.isclose(whole_factor, own, rel_tol=1e-6):
        raise _not_read(header, f"{of}.yarn_attn_factor")
    length = whole(header, f"{of}.original_context_length") or whole(header, f"{header.architecture}.context_length")
    if length is None:
        raise refused(header, f"{of}.original_context_length", "the number of tokens that the model was trained on")
    stated = {"beta_fast": real(header, f"{of}.yarn_beta_fast"), "beta_slow": real(header, f"{of}.yarn_beta_slow")}
    if factor == attention == 1.0:
        return {}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": own * attention,
        "original_max_position_embeddings": length,
        **{name: value for name, value in stated.items() if value is not None},
    }


def divide_frequencies(model: nn.Module, checkpoint: TensorFiles) -> None:
    """Divide a model's rotary frequencies by the file's factors, where it has any.

    Transformers' reading leaves them out. They are what Llama 3.1's scaling comes to (`rope_type: llama3`).

    Raises:
        CheckpointError: factors for another number of frequencies, or that are no positive numbers.
        ModelError: factors in a file of a model without frequencies that they could be of.
    """
    if FREQUENCY_FACTORS not in checkpoint.names:
        return
    factors = checkpoint.tensor(FREQUENCY_FACTORS).float()
    if not (torch.isfinite(factors).all() and (factors > 0).all()):
        raise CheckpointError(
            f"'{FREQUENCY_FACTORS}' should hold finite numbers above 0, by which rotary frequencies are divided, but "
            "holds others; convert the model anew."
        )
    buffers = _frequencies(model)
    if not buffers:
        raise ModelError(
            f"{checkpoint.files[0].name} holds '{FREQUENCY_FACTORS}', factors of rotary frequencies, but its model has "
            "none that they could be of; use the model's safetensors."
        )
    for buffer in buffers.values():
        if buffer.shape != factors.shape:
            raise CheckpointError(
                f"'{FREQUENCY_FACTORS}' should hold {buffer.numel()} factors, one for each rotary frequency, but holds "
                f"{factors.numel()}; convert the model anew."
            )
        buffer.copy_(buffer / factors.to(buffer.device))


def _frequencies(model: nn.Module) -> Mapping[str, Tensor]:
    """Rotary frequencies that all layers share."""
    named = model.named_buffers()
    return {name: value for name, value in named if name.rpartition(".")[2] in ("inv_freq", "original_inv_freq")}
