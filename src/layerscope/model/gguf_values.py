"""Values of a GGUF file's header: of the right type and in a range that makes sense, or refused by their key."""

import math
import re
from collections.abc import Iterable

from transformers.integrations import GGUF_CONFIG_MAPPING

from layerscope.errors import CheckpointError, ModelError
from layerscope.model.gguf_header import GgufHeader

_LARGEST = (1 << 31) - 1
_LENGTHS = ("block_count", "context_length", "sliding_window", "attention.sliding_window", "full_attention_interval")
_SIZES = (
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "shortconv.l_cache",
    "ssm.conv_kernel",
    "ssm.state_size",
    "ssm.group_count",
    "ssm.time_step_rank",
    "ssm.inner_size",
)
_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.dimension_count_swa")
_COUNTS = ("nextn_predict_layers", "expert_gating_func")
"""These may be none."""
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_BY_BLOCK = {"lfm2": ("attention.head_count_kv",)}
"""By family the sizes that its files state for each block."""
_BLOCK = re.compile(r"blk\.(\d+)\.")


def refused(header: GgufHeader, key: str, expected: str) -> CheckpointError:
    """What to raise for a value that is not what it should be."""
    shown = repr(header.metadata[key]) if key in header.metadata else "nothing"
    return CheckpointError(
        f"The header of {header.files[0].name} should state '{key}' as {expected}, but states "
        f"{shown if len(shown) <= 60 else shown[:57] + '...'}; convert the model anew."
    )


def not_read(header: GgufHeader, key: str, what: str) -> ModelError:
    """What to raise for a value that would change what the model computes and cannot be followed."""
    value = f" = {header.metadata[key]}" if key in header.metadata else ""
    return ModelError(
        f"{header.files[0].name} {what} ({key}{value}) in a way that is not read from GGUF files here, and without it "
        "every number would be of another model; use the model's safetensors."
    )


def whole(header: GgufHeader, key: str, least: int = 1, most: int = _LARGEST) -> int | None:
    """A whole number of a header; None where it states none.

    Raises:
        CheckpointError: anything else, or one out of range.
    """
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise refused(header, key, f"a whole number from {least:,} to {most:,}")
    return value


def real(header: GgufHeader, key: str, *, zero: bool = False, negative: bool = False) -> float | None:
    """A finite number of a header, above zero unless said otherwise; None where it states none.

    Raises:
        CheckpointError: anything else.
    """
    value = header.metadata.get(key)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (value > 0 or (zero and value == 0) or negative):
        raise refused(header, key, f"a finite number{'' if negative else ' of at least 0' if zero else ' above 0'}")
    return float(value)


def text(header: GgufHeader, key: str) -> str | None:
    """A text of a header; None where it states none.

    Raises:
        CheckpointError: anything else.
    """
    value = header.metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise refused(header, key, "a text")
    return value


def check_sizes(header: GgufHeader) -> None:
    """Refuse sizes that no model can have, before one is built of them.

    Raises:
        CheckpointError: a size of another type, out of range, or against another size or the tensors.
    """
    of = header.architecture
    # No model has a size that none of its tensors has, and one that had would take memory when it is built.
    longest = max((size for tensor in header.tensors.values() for size in tensor.shape), default=1)
    for name in _read_of(of, _LENGTHS):
        whole(header, f"{of}.{name}")
    for name in _read_of(of, (*_SIZES, *_WIDTHS)):
        _size(header, f"{of}.{name}", longest, name in _BY_BLOCK.get(of, ()))
    for name in _read_of(of, _COUNTS):
        whole(header, f"{of}.{name}", least=0)
    for name in _read_of(of, _EPSILONS):
        if isinstance(header.metadata.get(f"{of}.{name}", 0.0), int):
            raise refused(header, f"{of}.{name}", "a number with a fraction")
        real(header, f"{of}.{name}", zero=True)
    text(header, "general.name")
    _texts(header, "tokenizer.ggml.tokens")
    _check_shape(header)


def check_vocabulary(header: GgufHeader) -> None:
    """Refuse values of a vocabulary that no tokenizer can have, before one is made of them.

    Raises:
        CheckpointError: one of another type, or an id of a special token that is not in the vocabulary.
    """
    n_tokens = len(_texts(header, "tokenizer.ggml.tokens") or [])
    if n_tokens == 0:
        raise refused(header, "tokenizer.ggml.tokens", "a list of texts")
    for name in ("ggml.model", "ggml.pre", "chat_template"):
        text(header, f"tokenizer.{name}")
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if not isinstance(header.metadata.get(key := f"tokenizer.ggml.{name}", False), bool):
            raise refused(header, key, "true or false")
    for name in ("bos", "eos", "unknown", "padding"):
        whole(header, f"tokenizer.ggml.{name}_token_id", least=0, most=n_tokens - 1)
    merges = _texts(header, "tokenizer.ggml.merges") or []
    if not all(" " in merge for merge in merges):
        raise refused(header, "tokenizer.ggml.merges", "pairs of tokens, a space between the two")
    for name, kinds in (("scores", (int, float)), ("token_type", (int,))):
        values = header.metadata.get(key := f"tokenizer.ggml.{name}", [0] * n_tokens)
        if not isinstance(values, list) or len(values) != n_tokens or not isinstance(values[0], kinds):
            raise refused(header, key, f"a list of {n_tokens:,} numbers, one for each token")


def _texts(header: GgufHeader, key: str) -> list[str] | None:
    value = header.metadata.get(key)
    if value is not None and not (isinstance(value, list) and (not value or isinstance(value[0], str))):
        raise refused(header, key, "a list of texts")
    return value


def _read_of(architecture: str, names: Iterable[str]) -> Iterable[str]:
    """Those that the family's config is made of."""
    table = GGUF_CONFIG_MAPPING.get(architecture)
    always = ("attention.key_length", "rope.dimension_count", "rope.dimension_count_swa")
    return [name for name in names if table is None or name in table or name in always]


def _size(header: GgufHeader, key: str, longest: int, by_block: bool) -> None:
    value = header.metadata.get(key)
    if not by_block:
        if (whole(header, key) or 0) > longest:
            raise refused(header, key, f"at most the longest axis of the file's tensors ({longest:,})")
        return
    entries = value if isinstance(value, list) else []
    if not any(entries) or not all(type(entry) is int and 0 <= entry <= longest for entry in entries):
        raise refused(header, key, "a list of whole numbers, one for each block and not all 0")


def _shapes(header: GgufHeader) -> Iterable[tuple[str, tuple[int, ...]]]:
    return ((name, tensor.shape) for name, tensor in header.tensors.items())


def _check_shape(header: GgufHeader) -> None:
    """Hold what the header says of blocks and widths to its tensors, and heads to widths."""
    of, tensors = header.architecture, header.tensors
    n_blocks = len({match[1] for name in tensors if (match := _BLOCK.match(name))})
    if (header.metadata.get(f"{of}.block_count") or 0) > n_blocks:
        raise refused(header, f"{of}.block_count", f"the number of blocks that the file holds ({n_blocks})")
    width = header.metadata.get(f"{of}.embedding_length")
    embedding = tensors.get("token_embd.weight")
    if width is not None and embedding is not None and embedding.shape[-1] != width:
        raise refused(header, f"{of}.embedding_length", f"the width of 'token_embd.weight' ({embedding.shape[-1]})")
    heads, pairs = (header.metadata.get(f"{of}.attention.head_count{end}") for end in ("", "_kv"))
    if not isinstance(heads, int) or heads < 1:  # a family without heads says that it has none
        return
    if width is not None and f"{of}.attention.key_length" not in header.metadata and width % heads:
        raise refused(header, f"{of}.attention.head_count", f"a number that divides the width of the stream ({width})")
    rows = max((shape[0] for name, shape in _shapes(header) if ".attn_q" in name), default=_LARGEST)
    for key in (f"{of}.attention.key_length", f"{of}.rope.dimension_count"):
        if heads * (header.metadata.get(key) or 0) > rows:
            raise refused(header, key, f"a width of which {heads} heads fit into the {rows} rows of queries")
    positions = tensors.get("position_embd.weight")
    if positions is not None and (header.metadata.get(f"{of}.context_length") or 0) > positions.shape[0]:
        raise refused(
            header, f"{of}.context_length", f"the number of positions that have a vector ({positions.shape[0]})"
        )
    experts, used = (header.metadata.get(f"{of}.expert_{end}") for end in ("count", "used_count"))
    if isinstance(experts, int) and isinstance(used, int) and used > experts:
        raise refused(header, f"{of}.expert_used_count", f"at most the number of experts ({experts})")
    if isinstance(pairs, int) and pairs > 0 and heads % pairs:
        raise refused(header, f"{of}.attention.head_count_kv", f"a number that divides the number of heads ({heads})")
