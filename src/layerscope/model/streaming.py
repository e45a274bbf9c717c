"""A Transformers model without weights: its linears read theirs tile by tile, its embeddings row by row."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from layerscope.model.experts import BringIn, ExpertStack, put_stack, stacks_in
from layerscope.model.stored_tensors import Stored
from layerscope.model.tensor_files import Place
from layerscope.model.tiles import Tiles
from layerscope.model.unread_tensor import UnreadTensor
from layerscope.products import product
from layerscope.stored.weight import DenseWeight, StoredWeight


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


class _Table(UnreadTensor):
    """What an embedding that stays in its file shows of itself: some families ask where it lies, or take a row."""

    def __init__(self, stored: StoredWeight, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(torch.Size(stored.shape), dtype, device)
        self.stored = stored

    def __getitem__(self, index: Any) -> Tensor:
        """A row by its number, or what the whole table has there."""
        if isinstance(index, int):
            row = range(self.shape[0])[index]
            return self.stored.gather(torch.tensor([row]), self.dtype, self.device)[0]
        return super().__getitem__(index)

    def whole(self) -> Tensor:
        """All rows."""
        return self.stored.whole(self.dtype, self.device)


class _Gather(nn.Embedding):
    """An embedding whose table stays in the file; only the rows asked for are read and cast."""

    _table: _Table

    @property
    def weight(self) -> Any:  # type: ignore[override]
        """The table."""
        return self._table

    def forward(self, input: Tensor) -> Tensor:
        return self._table.stored.gather(input, self._table.dtype, input.device)


def stream_embedding(module: nn.Embedding, stored: StoredWeight, dtype: torch.dtype, device: torch.device) -> None:
    """Let an embedding, or a family's subclass of one, gather its rows from the file.

    The class is put *behind* the family's own in the order of methods, so a scaled or shifted embedding keeps its own
    forward and only the look-up at its end changes.
    """
    family_class = type(module)
    # A module says that it is on the device of its first parameter, and that should be no place on the meta device.
    del module._parameters["weight"]
    module._table = _Table(stored, dtype, device)  # type: ignore[assignment]
    module.__class__ = (
        _Gather
        if family_class is nn.Embedding
        else type(f"Streamed{family_class.__name__}", (family_class, _Gather), {})
    )


class BlockLoader:
    """Holds, for one block, the parameters that cannot be streamed by tile, for the time of its forward."""

    def __init__(
        self,
        block: nn.Module,
        prefix: str,
        stored: dict[str, Stored],
        dtype: torch.dtype,
        device: torch.device,
        bring_in: BringIn,
    ):
        stacks = stacks_in(block, prefix, stored)
        for name, (module, leaf, parameter) in stacks.items():
            put_stack(module, leaf, ExpertStack(stored[name], parameter.shape, dtype, device, bring_in))
        self._parameters = [
            (block.get_submodule(path), leaf, stored[f"{prefix}.{name}"], parameter)
            for name, parameter in block.named_parameters()
            for path, _, leaf in [name.rpartition(".")]
            if parameter.is_meta and f"{prefix}.{name}" not in stacks
        ]
        self.experts = [name for target in stacks for name in stored[target].names]
        """Tensors of the checkpoint of which it reads no more than it needs."""
        self._dtype, self._device = dtype, device
        # A fused tensor is put together from its parts, as stored, before it is cast.
        self.bytes = sum(
            p.numel() * (dtype.itemsize + (0 if stored.convert is None else 2 * 4))
            for _, _, stored, p in self._parameters
        )
        # Of experts two matrices at a time, with the floats that a quantised one is decoded to.
        largest = max((parameter[0].numel() for _, _, parameter in stacks.values()), default=0)
        self.bytes += 2 * largest * (dtype.itemsize + 2 * 4)
        self.bytes_with_gradients = self.bytes + dtype.itemsize * sum(
            parameter.numel() for _, _, parameter in stacks.values()
        )
        """Where the block is differentiated, which keeps every expert that was used."""

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
    bring_in: BringIn,
    *,
    resident: bool = False,
) -> list[BlockLoader]:
    """Give a model on the meta device its weights without loading it; one loader for each block.

    Linears are streamed, embeddings gathered, vectors (norms, biases) read at once. What is left, matrices that are no
    linears or have to be made, is read at once outside the blocks and for the time of its block's forward inside them.
    Of experts those are read to which tokens are routed, and `bring_in` is called with their names before.
    `resident` keeps the linears' weights on the device, as stored, instead of bringing each tile there.
    """
    from transformers.models.falcon.modeling_falcon import FalconLinear

    linears = (nn.Linear, FalconLinear)  # FalconLinear writes its product out; it is the same map
    for path, module in list(model.named_modules()):
        name = f"{path}.weight"
        in_blocks = name.startswith(f"{blocks}.")
        if isinstance(module, nn.Embedding) and name in stored:
            stream_embedding(module, stored[name].weight(), compute, device)
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
        owner._buffers[leaf] = stored[name].buffer(buffer.dtype).to(device) if name in stored else buffer.to(device)
    container = model.get_submodule(blocks)
    return [
        BlockLoader(block, f"{blocks}.{i}", stored, compute, device, bring_in)
        for i, block in enumerate(container.children())
    ]


def _read(stored: Stored, dtype: torch.dtype, device: torch.device) -> Tensor:
    return stored.tensor().to(device, dtype, copy=True)
