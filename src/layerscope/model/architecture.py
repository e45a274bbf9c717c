"""From a Transformers model to the parts we name: sizes, blocks, norms, head; the one place that speaks config."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.families import Family
from layerscope.model.head_transform import transform_of
from layerscope.model.stored_tensors import Stored
from layerscope.model.walked_through import norms_called
from layerscope.model.wrapped import head_of
from layerscope.unembedding import HeadTransform, Norm

_INPUT_NORMS = (
    "input_layernorm",
    "ln_1",
    "ln1",
    "ln_attn",
    "norm_1",
    "norm1",
    "attention_norm",
    "attn_norm",
    "attention_layernorm",
    "self_attn_layer_norm",
    "pre_attention_layernorm",
    "temporal_pre_norm",
    "operator_norm",
    "norm",
)
"""Names under which families that are not in the table keep the norm before their attention or mixer."""


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies that change when a prompt outgrows the length a model was trained for."""

    kind: str
    """`longrope`: one other set of frequencies past `limit`; `dynamic`: another set for every length past it."""
    limit: int


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model, in the field's names, and the paths of its parts."""

    family: str
    n_layers: int
    d_model: int
    d_vocab: int
    n_heads: int | None
    """None for models without attention heads."""
    n_parameters: int
    tied: bool
    """Whether the unembedding is the embedding's matrix."""
    blocks: str
    final_norm: str | None
    input_norms: tuple[str | None, ...]
    """For every block, the path of the norm that reads the stream; None where it is read without one."""
    second_norms: tuple[str | None, ...]
    """For every block, the path of the norm through which its MLP reads the stream; None where it has none."""
    transform: HeadTransform
    rope: Rope | None
    """None where the frequencies do not depend on the length."""
    takes_mask: bool
    """Whether attention takes masks and positions from outside; not with ALiBi, nor where nothing is known of it."""
    windows: tuple[int | None, ...]
    """For every block how many tokens up to itself a token attends to; None where to all of them."""

    @property
    def folds_up_to(self) -> int | None:
        """Longest prompt whose beginning may be shared with others' (`packing`): the shortest window ends it.

        Zero where attention takes no mask; None where there is no limit.
        """
        return min((window for window in self.windows if window is not None), default=None) if self.takes_mask else 0


def architecture_of(model: Any, family: Family, known: bool, stored: Mapping[str, Stored]) -> Architecture:
    """Read a model's sizes and find its parts; `stored` says which parameters share a tensor of the checkpoint.

    Raises:
        ModelError: no list of as many blocks as the config says, or no unembedding.
    """
    config = model.config.get_text_config()
    head = head_of(model)
    if head is None or not isinstance(head, nn.Linear):
        raise ModelError(
            f"A '{family.model_type or config.model_type}' model has no linear unembedding, so nothing can be decoded; "
            "give a causal language model."
        )
    blocks = family.blocks if known else _find_blocks(model, config)
    container = model.get_submodule(blocks)
    n_layers = int(config.num_hidden_layers) if known else len(container)
    if len(container) != n_layers:
        raise ModelError(f"The config says {n_layers} blocks, but '{blocks}' holds {len(container)}.")
    d_model = int(config.hidden_size)
    if head.in_features != d_model and family.projection is None:
        raise ModelError(
            f"The unembedding of this '{model.config.model_type}' model reads {head.in_features} features, but its "
            f"residual stream has {d_model}: what stands between them is not known, so nothing can be decoded; "
            "`layerscope models` lists the families that can be."
        )
    names = (family.input_norm or "").split("|") if known else _INPUT_NORMS
    paths = [(f"{blocks}.{i}", block) for i, block in enumerate(container)]
    return Architecture(
        family=str(model.config.model_type),
        n_layers=n_layers,
        d_model=d_model,
        d_vocab=head.out_features,
        n_heads=getattr(config, "num_attention_heads", None),
        n_parameters=_count_parameters(model, stored),
        tied=_names_of(model, model.get_input_embeddings(), stored) == _names_of(model, head, stored),
        blocks=blocks,
        final_norm=family.final_norm if known else _find_final_norm(model, blocks),
        input_norms=tuple(_norm_path(path, block, names) for path, block in paths),
        second_norms=tuple(_norm_path(path, block, (family.second_norm or "").split("|")) for path, block in paths),
        transform=transform_of(model, family, known),
        rope=_length_dependent_rope(config),
        takes_mask=known and _is_of_transformers(model) and not _has_alibi(config),
        windows=_windows(config, n_layers),
    )


def as_walked_through(architecture: Architecture, model: nn.Module, head: str, device: torch.device) -> Architecture:
    """With the norms that the model's own forward calls, where that can be seen, in place of those found by name.

    Norms in front of blocks that are of another kind are left out.

    Args:
        architecture: of the model.
        model: its weights outside its blocks can be read.
        head: path of the unembedding.
        device: where it computes.
    """
    called = norms_called(model, architecture.blocks, model.get_submodule(head), architecture.d_model, device)
    if called is not None:
        architecture = replace(architecture, final_norm=called.final_norm, input_norms=called.input_norms)
    readable = tuple(
        path if path is None or _is_readable(model.get_submodule(path), path, architecture.d_model) else None
        for path in architecture.input_norms
    )
    return replace(architecture, input_norms=readable)


def _is_readable(norm: nn.Module, path: str, d_model: int) -> bool:
    try:
        read_norm(norm, path, d_model)
    except ModelError:
        return False
    return True


def _norm_path(path: str, block: nn.Module, names: Sequence[str]) -> str | None:
    """The first of some names that the block has; some members of a family have None under it, or a list of several."""
    there = {name: getattr(block, name, None) for name in names if name}
    found = (name for name, part in there.items() if part is not None and not isinstance(part, nn.ModuleList))
    return next((f"{path}.{name}" for name in found), None)


def _names_of(model: nn.Module, part: nn.Module, stored: Mapping[str, Stored]) -> tuple[str, ...]:
    path: str = next(path for path, module in model.named_modules() if module is part)
    return stored[f"{path}.weight"].names


def _count_parameters(model: nn.Module, stored: Mapping[str, Stored]) -> int:
    """Tied parameters, which lie once in the checkpoint, count once."""
    counted = {
        (stored[name].names, name if stored[name].convert else None): parameter.numel()
        for name, parameter in model.named_parameters()
        if name in stored
    }
    return sum(counted.values())


def _length_dependent_rope(config: Any) -> Rope | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    per_type = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    for entry in per_type:
        kind = entry.get("rope_type", "default")
        if kind in ("longrope", "dynamic"):
            original = entry.get("original_max_position_embeddings")
            return Rope(kind, int(original or config.max_position_embeddings))
    return None


def _is_of_transformers(model: nn.Module) -> bool:
    """Whether its code is Transformers' own, which takes a mask as given; a checkpoint's own may read it otherwise."""
    return type(model).__module__.startswith("transformers.models.")


def _has_alibi(config: Any) -> bool:
    """Whether distances are counted along the batch, so that no position can be given."""
    return config.model_type == "bloom" or bool(getattr(config, "alibi", False))


def _windows(config: Any, n_layers: int) -> tuple[int | None, ...]:
    """Of the layers that the config names so, or of all where it names none, as Transformers has it.

    A config that switches its window off has none left once it is read, or one of 0, or no layer of that kind.
    """
    window = getattr(config, "sliding_window", None)
    if not window:
        return (None,) * n_layers
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",) * n_layers
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def batches(rope: Rope | None, lengths: Sequence[int]) -> list[list[int]]:
    """Which prompts may share a padded batch: all of them, unless their lengths call for other rotary frequencies.

    Transformers picks the frequencies by the longest prompt of a batch, so a long prompt would change a short one's.
    """

    def regime(length: int) -> int:
        if rope is None or length <= rope.limit:
            return 0
        return length if rope.kind == "dynamic" else 1

    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(regime(length), []).append(i)
    return list(groups.values())


_COUNTS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_layers", "n_layers", "n_layer")
"""Names under which configs say how many blocks there are; the first of an encoder-decoder's is its encoder's."""


def _find_blocks(model: nn.Module, config: Any) -> str:
    """Path of the shallowest list of as many modules as the config has blocks."""
    counts = [count for name in _COUNTS if isinstance(count := getattr(config, name, None), int)]
    lists = {path: len(m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    for count in dict.fromkeys(counts):
        fitting = [path for path, length in lists.items() if length == count]
        if fitting:
            shallowest: str = min(fitting, key=lambda path: path.count("."))
            return shallowest
    raise ModelError(
        f"The config of this '{config.model_type}' model says "
        + (f"{' or '.join(map(str, dict.fromkeys(counts)))} blocks" if counts else "no number of blocks")
        + f", and {type(model).__name__} has no list of as many, so its residual stream cannot be followed; "
        "`layerscope models` lists the families that can be read."
    )


def _find_final_norm(model: nn.Module, blocks: str) -> str | None:
    """The first norm that is defined after the blocks, or the last one in front of them."""
    parent, _, name_of_blocks = blocks.rpartition(".")
    children = list(model.get_submodule(parent).named_children())
    at = [name for name, _ in children].index(name_of_blocks)
    norms = [name for name, child in children if "norm" in type(child).__name__.lower()]
    behind = [name for name, child in children[at:] if "norm" in type(child).__name__.lower()]
    return f"{parent}.{behind[0] if behind else norms[-1]}".lstrip(".") if norms else None


def reset_rope(model: Any) -> None:
    """Forget the longest prompt seen so far.

    Transformers keeps the frequencies of a length-dependent rope from one call to the next, so that what was read
    before would change what is read now.
    """
    for module in model.modules():
        if hasattr(module, "original_inv_freq") and hasattr(module, "max_seq_len_cached"):
            module.inv_freq = module.original_inv_freq.clone()
            module.max_seq_len_cached = module.original_max_seq_len


@torch.no_grad()
def read_norm(module: nn.Module | None, source: str, d_model: int) -> Norm | None:
    """A norm module as plain tensors, its formula found by what the module does rather than by its name.

    Rows of ordinary and of tiny size are tried, so that a gain stored as an offset from one, a missing mean or an
    epsilon of another size shows. None for no module, or one that does nothing.

    Raises:
        ModelError: the module is neither an RMSNorm nor a LayerNorm, or not as wide as the stream.
    """
    if module is None or isinstance(module, nn.Identity):
        return None
    weight, bias = (_float32(getattr(module, name, None)) for name in ("weight", "bias"))
    width = d_model if weight is None else len(weight)
    if width != d_model:
        raise ModelError(f"The norm at {source} is {width} wide, but the residual stream has {d_model} features.")
    # In float32 on the CPU, whatever the model computes in: rounding to bfloat16 would hide a mean or an offset.
    reference = deepcopy(module).to("cpu", torch.float32)
    generator = torch.Generator().manual_seed(316)
    probe = torch.randn(4, width, generator=generator) * torch.tensor([[3.0], [1.0], [1e-2], [1e-3]]) + 0.1
    expected = reference(probe)

    def error(norm: Norm) -> float:
        candidate = replace(norm, gain=_cpu(norm.gain), bias=_cpu(norm.bias))
        return float((candidate(probe) - expected).abs().nan_to_num().max())

    candidates = [
        Norm(kind, gain, bias, eps, source)
        for kind in _KINDS
        for gain in ([None] if weight is None else [weight, weight + 1.0])
        for eps in _epsilons(module)
    ]
    best = min(candidates, key=error)
    # A norm whose own weights are broken must still be found, so that its layer can be flagged.
    if error(best) <= 1e-4 * max(1.0, float(expected.abs().nan_to_num().max())):
        return best
    raise ModelError(
        f"{type(module).__name__} at {source} is neither an RMSNorm nor a LayerNorm, so its rows cannot be "
        "decoded; `layerscope models` lists the families that can be."
    )


_KINDS: tuple[Literal["rms", "layer"], ...] = ("rms", "layer")


def _epsilons(module: nn.Module) -> list[float]:
    """The epsilon that the module declares; the usual ones, to be told apart by behaviour, where it declares none."""
    declared = [getattr(module, name) for name in ("eps", "variance_epsilon", "epsilon") if hasattr(module, name)]
    if declared and declared[0] is not None:
        return [float(declared[0])]
    return [1e-5, 1e-6, 1e-8, 1e-12, float(torch.finfo(torch.float32).eps)]


def _cpu(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.cpu()


def _float32(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().float()
