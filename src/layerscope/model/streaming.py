"""A Transformers model without weights: its linears read theirs tile by tile, its embeddings row by row."""

from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from layerscope.errors import CheckpointError
from layerscope.model.tensor_files import Place, TensorFiles
from layerscope.model.tiles import Tiles
from layerscope.products import product
from layerscope.stored.weight import DenseWeight, StoredWeight


@dataclass(frozen=True)
class Stored:
    """Where one of the model's tensors comes from: a stored tensor, or several and their conversion."""

    checkpoint: TensorFiles
    names: tuple[str, ...]
    convert: Callable[[], Tensor] | None = None
    """Makes the tensor from stored ones (fused experts, shuffled weights); None where the stored tensor is the
    tensor."""

    def tensor(self) -> Tensor:
        """The tensor in its stored dtype; memory-mapped where nothing has to be converted."""
        return self.checkpoint.tensor(self.names[0]) if self.convert is None else self.convert()

    def weight(self) -> StoredWeight:
        """A matrix that gives its rows; read when they are wanted where nothing has to be converted."""
        return self.checkpoint.weight(self.names[0]) if self.convert is None else DenseWeight(self.convert())

    @property
    def place(self) -> Place | None:
        """Where it lies; None where it has to be made."""
        return self.checkpoint.place(self.names[0]) if self.convert is None else None


def map_names(model: Any, checkpoint: TensorFiles) -> dict[str, Stored]:
    """For every parameter and buffer of the model that the checkpoint holds, where it comes from.

    Follows Transformers' own conversion mapping, because the names in a checkpoint are not always those of the module
    and experts are fused on loading.

    Raises:
        CheckpointError: a parameter that the checkpoint lacks, or one of another shape.
    """
    wanted = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    stored: dict[str, Stored] = {}
    fused: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in sorted(checkpoint.names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        if target not in wanted:
            continue
        if pattern is None:
            stored[target] = Stored(checkpoint, (name,))
        else:
            fused[target].append((pattern, name))
    for target, sources in fused.items():
        stored.update(_converted(model, checkpoint, converter_of[sources[0][0]], target, sources))
    _check_complete(model, wanted, stored)
    return stored


def _converted(
    model: Any, checkpoint: TensorFiles, converter: Any, first: str, sources: list[tuple[str, str]]
) -> dict[str, Stored]:
    """The targets of one conversion. One set of sources may give several tensors (a fused qkv split in three)."""
    names = tuple(name for _, name in sources)

    def convert_all() -> dict[str, Tensor]:
        fresh = deepcopy(converter)
        for pattern, name in sources:
            # Transformers takes a callable as a tensor whose reading is put off.
            fresh.add_tensor(first, name, pattern, lambda name=name: checkpoint.tensor(name))
        made = fresh.convert(first, model=model, config=model.config)
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}

    targets = [first.replace(converter.target_patterns[0], other, 1) for other in converter.target_patterns]
    return {
        target: Stored(checkpoint, names, lambda target=target: convert_all()[target])  # type: ignore[misc]
        for target in targets
    }


def _check_complete(model: Any, wanted: dict[str, Tensor], stored: dict[str, Stored]) -> None:
    tied = model.all_tied_weights_keys
    for name, source in tied.items():
        if name not in stored and source in stored:
            stored[name] = stored[source]
        elif source not in stored and name in stored:
            stored[source] = stored[name]
    missing = [name for name, tensor in wanted.items() if name not in stored and tensor.is_meta]
    if missing:
        raise CheckpointError(
            f"The model needs {len(wanted)} tensors, but {len(missing)} of them are not in the checkpoint "
            f"(first: {missing[0]}); use the checkpoint that belongs to this config.json."
        )
    for name, source in stored.items():
        if source.convert is None:
            stored_shape, expected = source.checkpoint.shape(source.names[0]), tuple(wanted[name].shape)
            if stored_shape != expected:
                raise CheckpointError(
                    f"Tensor '{source.names[0]}' should have shape {list(expected)} by config.json, but the checkpoint "
                    f"holds {list(stored_shape)}; use the config.json that belongs to these weights."
                )


class StreamedLinear(nn.Module):
    """A linear layer whose weight stays in the file: `x W^T + b`, a tile of output features at a time."""

    def __init__(
        self,
        stored: StoredWeight,
        bias: Tensor | None,
        compute: torch.dtype,
        device: torch.device,
        tiles: Tiles,
        place: Place | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.stored, self.place = stored, place
        """The weight as it lies in the file, or on an accelerator that keeps it."""
        self._compute, self._device = compute, device
        self.bias = bias
        self._tiles = tiles

    @property
    def weight(self) -> Tensor:
        """The whole weight in the compute dtype: a copy, made for modules that read it instead of calling the layer."""
        return self.stored.whole(self._compute, self._device)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`: `[..., in_features]` to `[..., out_features]`."""
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(self._compute)
        kept = self.stored.tensor if isinstance(self.stored, DenseWeight) else None
        if kept is not None and kept.device.type != "cpu" and kept.dtype == self._compute:
            # On an accelerator that keeps the weight as it is multiplied nothing is cast, and one launch does it.
            out = product(rows, kept)
        else:
            out = torch.empty(len(rows), self.out_features, dtype=self._compute, device=x.device)
            self._tiles.multiply(rows, self.stored, out, self.place)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """A streamed linear as a function of its input alone: a weight that stays in its file has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: StreamedLinear) -> Tensor:
        ctx.linear = linear
        return linear._multiply(x).clone()  # a view may not be changed in place, as falcon changes its own

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        linear: StreamedLinear = ctx.linear
        by_input = linear._tiles.multiply_back(gradients[0], linear.stored)
        return by_input, None


class _Gather(nn.Embedding):
    """An embedding whose table stays in the file; only the rows asked for are read and cast."""

    _stored: StoredWeight

    def forward(self, input: Tensor) -> Tensor:
        return self._stored.gather(input, self.weight.dtype, input.device)


def stream_embedding(module: nn.Embedding, stored: StoredWeight) -> None:
    """Let an embedding, or a family's subclass of one, gather its rows from the file.

    The class is put *behind* the family's own in the order of methods, so a scaled or shifted embedding keeps its own
    forward and only the look-up at its end changes.
    """
    family_class = type(module)
    module._stored = stored  # type: ignore[assignment]
    module.__class__ = (
        _Gather
        if family_class is nn.Embedding
        else type(f"Streamed{family_class.__name__}", (family_class, _Gather), {})
    )


class BlockLoader:
    """Holds, for one block, the parameters that cannot be streamed by tile, for the time of its forward."""

    def __init__(
        self, block: nn.Module, prefix: str, stored: dict[str, Stored], dtype: torch.dtype, device: torch.device
    ):
        self._parameters = [
            (block.get_submodule(path), leaf, stored[f"{prefix}.{name}"], parameter)
            for name, parameter in block.named_parameters()
            for path, _, leaf in [name.rpartition(".")]
            if parameter.is_meta
        ]
        self._dtype, self._device = dtype, device
        # A fused tensor is put together from its parts, as stored, before it is cast.
        self.bytes = sum(
            p.numel() * (dtype.itemsize + (0 if stored.convert is None else 2 * 4))
            for _, _, stored, p in self._parameters
        )

    @property
    def names(self) -> list[str]:
        """What it reads of the checkpoint."""
        return [name for _, _, stored, _ in self._parameters for name in stored.names]

    def load(self) -> None:
        """Read and cast the block's own parameters."""
        for module, leaf, stored, _ in self._parameters:
            value = stored.tensor().to(self._device, self._dtype)
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    def drop(self) -> None:
        """Let go of them."""
        for module, leaf, _, meta in self._parameters:
            module._parameters[leaf] = meta


class Hooks:
    """Forward hooks that are taken away when the `with` ends."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs)` before the module's forward."""
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, output)` after it."""
        self._handles.append(module.register_forward_hook(hook))

    def __enter__(self) -> "Hooks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()


def stream_weights(
    model: nn.Module,
    stored: dict[str, Stored],
    blocks: str,
    compute: torch.dtype,
    device: torch.device,
    tiles: Tiles,
    *,
    resident: bool = False,
) -> list[BlockLoader]:
    """Give a model on the meta device its weights without loading it; one loader for each block.

    Linears are streamed, embeddings gathered, vectors (norms, biases) read at once. What is left, matrices that are no
    linears or have to be made, is read at once outside the blocks and for the time of its block's forward inside them.
    `resident` keeps the linears' weights on the device, as stored, instead of bringing each tile there.
    """
    from transformers.models.falcon.modeling_falcon import FalconLinear

    linears = (nn.Linear, FalconLinear)  # FalconLinear writes its product out; it is the same map
    for path, module in list(model.named_modules()):
        name = f"{path}.weight"
        in_blocks = name.startswith(f"{blocks}.")
        if isinstance(module, nn.Embedding) and name in stored:
            stream_embedding(module, stored[name].weight())
        elif type(module) in linears and name in stored and (stored[name].convert is None or not in_blocks):
            bias = None if module.bias is None else _read(stored[f"{path}.bias"], compute, device)
            parent, _, leaf = path.rpartition(".")
            weight = stored[name].weight()
            if resident:
                streamed = StreamedLinear(weight.to(device, compute), bias, compute, device, tiles)
            else:
                # The head's is wanted again by the sweep, and is better kept where it is mapped.
                place = stored[name].place if in_blocks else None
                streamed = StreamedLinear(weight, bias, compute, device, tiles, place)
            setattr(model.get_submodule(parent), leaf, streamed)
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        kept_for_block = parameter.ndim > 1 and name.startswith(f"{blocks}.")
        if parameter.is_meta and not isinstance(owner, nn.Embedding) and not kept_for_block:
            owner._parameters[leaf] = nn.Parameter(_read(stored[name], compute, device), requires_grad=False)
    for name, buffer in list(model.named_buffers()):
        owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        owner._buffers[leaf] = stored[name].tensor().to(device, buffer.dtype) if name in stored else buffer.to(device)
    container = model.get_submodule(blocks)
    return [
        BlockLoader(block, f"{blocks}.{i}", stored, compute, device) for i, block in enumerate(container.children())
    ]


def _read(stored: Stored, dtype: torch.dtype, device: torch.device) -> Tensor:
    return stored.tensor().to(device, dtype, copy=True)
