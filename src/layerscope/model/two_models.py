"""Two models of one shape run block by block beside each other: base, variant, and the variant's blocks on the base.

The base leads. Behind each of its blocks the variant, in a thread of its own, runs the same block on its own stream,
and once more on what the base's block has read: that is the error which this block alone makes, beside the error that
the variant's stream brings along. Every weight of both is read once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.architecture import batches, reset_rope
from layerscope.model.blockwise import BlockCall
from layerscope.model.in_step import InStep
from layerscope.model.model_input import Batch
from layerscope.model.module_calls import stream_of, written_by
from layerscope.model.streamed_module import StreamedModule
from layerscope.model.streaming import Hooks, StreamedLinear


@dataclass(frozen=True)
class BlocksInStep:
    """What both models have made of the same prompts behind a block, or in front of the first one."""

    layer: int
    """How many blocks have run."""
    prompts: tuple[int, ...]
    """Which of the prompts these are, in order."""
    base: Float[Tensor, "prompt position d_model"]
    """The base's stream; positions past a prompt's end are meaningless, here as below."""
    variant: Float[Tensor, "prompt position d_model"]
    """The variant's."""
    injected: Float[Tensor, "prompt position d_model"] | None
    """The variant's block applied to what the base's block has read; None at layer 0."""
    modules: Mapping[str, Float[Tensor, "prompt position d_model"]]
    """The base's block with one linear layer of the variant's, on what the base's block has read; by the linear layer's
    path in the block, and empty where that was not asked for."""


Watching: TypeAlias = Callable[[BlocksInStep], None]
"""Is told of both models' streams, layer by layer; takes what is needed, for the tensors change behind it."""


@runtime_checkable
class Sized(Protocol):
    """What two models have to have in common."""

    @property
    def n_layers(self) -> int:
        """Blocks."""

    @property
    def d_model(self) -> int:
        """Numbers in a residual."""


def check_same_shape(base: Sized, variant: Sized, names: tuple[str, str]) -> None:
    """Whether two models can be held against each other block by block.

    Raises:
        ModelError: their blocks are not as many, or not as wide.
    """
    for what, ours, theirs in (
        ("blocks", base.n_layers, variant.n_layers),
        ("numbers in a residual", base.d_model, variant.d_model),
    ):
        if ours != theirs:
            raise ModelError(
                f"{names[0]} has {ours} {what}, but {names[1]} has {theirs}; two models are held against each other "
                "block by block, so give a variant of the same shape."
            )


def run_in_step(
    base: StreamedModule,
    variant: StreamedModule,
    token_ids: Sequence[Sequence[int]],
    watching: Watching,
    progress: Callable[[int, int], None],
    *,
    modules: bool = False,
) -> tuple[Float[Tensor, " d_vocab"], Float[Tensor, " d_vocab"]]:
    """Run both over the same prompts, and give both models' own logits at the last token of the first one.

    Args:
        base: what is compared with.
        variant: what is compared; another module than the base's.
        token_ids: for each prompt what both read; lengths may differ.
        watching: is told of every layer from 0 to n_layers, for one group of prompts after the other.
        progress: called with (blocks done, blocks to do).
        modules: whether every linear layer of a block is put into the base's block alone too.
    """
    lengths = [len(ids) for ids in token_ids]
    groups = [
        [group[i] for i in part]
        for group in batches(base.architecture.rope, lengths)
        for part in batches(variant.architecture.rope, [lengths[i] for i in group])
    ]
    logits = []
    for done, group in enumerate(groups):
        batch = Batch.padded([token_ids[i] for i in group], base.placement)
        step = _Step(base, variant, tuple(group), watching, lambda i, n, k=done: progress(k * n + i, len(groups) * n))  # type: ignore[misc]
        logits.append(step.run(batch, modules=modules))
    return logits[0]


@dataclass
class _Step:
    """One batch on its way through both."""

    base: StreamedModule
    variant: StreamedModule
    prompts: tuple[int, ...]
    watching: Watching
    progress: Callable[[int, int], None]
    read: Tensor = field(init=False)
    """What the base's block reads,"""
    call: BlockCall = field(init=False)
    """what else it is given,"""
    written: Tensor = field(init=False)
    """and what it has written."""
    calls: dict[int, BlockCall] = field(default_factory=dict)
    """What the variant's running block is given beside its stream."""

    def run(self, batch: Batch, *, modules: bool) -> tuple[Tensor, Tensor]:
        """Both forwards; gives both models' logits at the last token of the first prompt."""
        row, position = batch.last[0]
        logits: dict[str, Tensor] = {}

        def last_alone(head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (args[0][row : row + 1, position : position + 1],), kwargs

        def run_variant() -> None:
            logits["variant"] = self.variant.run(batch.input)

        for streamed in (self.base, self.variant):
            reset_rope(streamed.module)
        other = InStep(run_variant)
        with (
            self.base.weights.past_the_page_cache() as names,
            self.variant.weights.past_the_page_cache(twice=True) as variant_names,
            self.variant.weights.reading(variant_names),
            self.base.weights.reading(names),
            Hooks() as hooks,
        ):
            for i, (ours, theirs) in enumerate(zip(self.base.blocks, self.variant.blocks, strict=True)):
                hooks.before(ours, self._base_enters(i))
                hooks.after(ours, self._base_leaves(i, other))
                hooks.before(theirs, self._variant_enters(i))
                hooks.after(theirs, self._variant_leaves(i, other, ours, modules))
            for streamed in (self.base, self.variant):
                hooks.before(streamed.head, last_alone)
            with other:
                base = self.base.run(batch.input)
        return base[0, 0].float(), logits["variant"][0, 0].float()

    def _base_enters(self, i: int) -> Callable[..., None]:
        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A block may add to what it is given.
            self.read, self.call = stream_of(args, kwargs).clone(), BlockCall.of(args, kwargs)
            self.base.weights.lend(i)

        return enter

    def _base_leaves(self, i: int, other: InStep) -> Callable[..., None]:
        def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.written = written_by(output)
            other.step()
            self.base.weights.drop(i)
            self.progress(i + 1, self.base.n_layers)

        return leave

    def _variant_enters(self, i: int) -> Callable[..., None]:
        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if i == 0:
                stream = stream_of(args, kwargs)
                self.watching(BlocksInStep(0, self.prompts, self.read.float(), stream.float(), None, {}))
            self.calls[i] = BlockCall.of(args, kwargs)
            self.variant.weights.lend(i)

        return enter

    def _variant_leaves(self, i: int, other: InStep, ours: nn.Module, modules: bool) -> Callable[..., None]:
        def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            stream = written_by(output)
            injected = self.calls.pop(i)(block, self.read.to(stream.dtype, copy=True))
            swapped = dict(self._swapped(ours, block)) if modules else {}
            told = BlocksInStep(i + 1, self.prompts, self.written.float(), stream.float(), injected.float(), swapped)
            self.watching(told)
            self.variant.weights.drop(i)
            other.pause()

        return leave

    def _swapped(self, ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The base's block with each of the variant's linear layers in turn."""
        linears = {path: module for path, module in theirs.named_modules() if isinstance(module, StreamedLinear)}
        for path, module in ours.named_modules():
            if path in linears:
                with _in_place_of(module, linears[path]):
                    yield path, self.call(ours, self.read.clone()).float()


@contextmanager
def _in_place_of(module: nn.Module, other: nn.Module) -> Iterator[None]:
    """Give what another module makes of the same input."""
    handle = module.register_forward_hook(lambda _, args, output: other(*args))
    try:
        yield
    finally:
        handle.remove()
