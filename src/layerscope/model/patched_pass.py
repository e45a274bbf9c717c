"""Prompts and copies with replaced residuals on their way through a model's blocks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.architecture import reset_rope
from layerscope.model.in_step import InStep
from layerscope.model.model_input import ModelInput
from layerscope.model.module_calls import stream_of, with_written, written_by
from layerscope.model.patching import Patch, PatchTrees, first_nodes, patch_trees, why_not_patched, write_copies
from layerscope.model.streamed_module import Progress, StreamedModule
from layerscope.model.streaming import Hooks


class PatchedPass:
    """One pass: what goes in, the hooks that make the copies, and what comes out."""

    def __init__(self, token_ids: Sequence[Sequence[int]], patches: Sequence[Patch], n_layers: int) -> None:
        """Lay them out.

        Raises:
            ModelError: a patch of a layer, prompt or position that there is not.
        """
        self.patches = patches
        self.trees: PatchTrees = patch_trees(token_ids, patches, n_layers)
        self._stream: Tensor | None = None
        self._masks = dict[int, Tensor]()

    @property
    def stream(self) -> Float[Tensor, "row node d_model"]:
        """The residuals of all nodes there are so far."""
        assert self._stream is not None, "no block has run yet"
        return self._stream

    @property
    def own(self) -> Float[Tensor, "prompt d_model"]:
        """The residual of every prompt at its last token, float32; after the last block, that at the output."""
        ends = zip(self.trees.own_firsts, self.trees.lengths, strict=True)
        return self.stream[list(self.trees.own_rows), [first + n - 1 for first, n in ends]].float()

    @property
    def patched(self) -> Float[Tensor, "patch d_model"]:
        """The same of every patched run."""
        firsts = zip(self.patches, self.trees.firsts, strict=True)
        nodes = [self.trees.last_node(patch, first) for patch, first in firsts]
        return self.stream[list(self.trees.rows), nodes].float()

    def hook(
        self,
        hooks: Hooks,
        blocks: Sequence[nn.Module],
        windows: Sequence[int | None],
        head: nn.Module,
        *,
        before: Callable[[int], None],
        after: Callable[[int], None],
        is_this: Callable[[], bool] = lambda: True,
    ) -> None:
        """Run every block on the nodes that there are so far.

        Args:
            hooks: take the hooks, and take them away.
            blocks: of the model.
            windows: of every block's attention.
            head: of the model; nothing is decoded here, and it is called because the module's own forward calls it.
            before: called with a block's index before it runs.
            after: called when it has.
            is_this: whether a call of the module is this pass.
        """

        def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: hook(*args) if is_this() else None

        for i, block in enumerate(blocks):
            hooks.before(block, only_here(self._enter(i, windows[i], before)))
            hooks.after(block, only_here(self._leave(i, after)))
        hooks.before(head, only_here(lambda module, args, kwargs: ((args[0][:1, :1],), kwargs)))

    def _enter(self, i: int, window: int | None, before: Callable[[int], None]) -> Callable[..., Any]:
        width = self.trees.token_ids.shape[1]
        within = None if window is None or window >= max(self.trees.lengths) else window

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            before(i)
            if i == 0:
                self._stream = stream_of(args, kwargs).clone()
            write_copies(self.stream, self.trees, self.patches, i)
            if within is not None:
                kwargs = kwargs | {"attention_mask": self._mask_within(within, kwargs.get("attention_mask"))}
            others = None if args[1:] else first_nodes(kwargs, self.trees.widths[i], width)
            if others is None:
                return ((self.stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": self.stream})
            here = self.stream[:, : self.trees.widths[i]]
            return ((here,), others) if args else (args, others | {"hidden_states": here})

        return enter

    def _mask_within(self, window: int, whole: object) -> Float[Tensor, "row 1 node node"]:
        """The mask of a block whose tokens see no further back than this, in the place of the one that sees all.

        Raises:
            ModelError: the block is given no such mask, and so would see all.
        """
        if not isinstance(whole, Tensor) or whole.shape != self.trees.sees.shape:
            raise ModelError(f"A block with a window of {window} tokens is given no mask that could say so.")
        if window not in self._masks:
            self._masks[window] = self.trees.mask(whole.dtype, whole.device, window)
        return self._masks[window]

    def _leave(self, i: int, after: Callable[[int], None]) -> Callable[..., Any]:
        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            written = written_by(output)
            self.stream[:, : written.shape[1]] = written
            after(i)
            return with_written(output, self.stream)

        return leave


def run_patched(streamed: StreamedModule, run: PatchedPass, name: str, progress: Progress) -> None:
    """Run a pass of its own; `run` then holds what came of it.

    Raises:
        ModelError: the blocks of the model, which goes by `name`, cannot be resumed.
    """
    reason = why_not_patched(streamed.architecture)
    if reason is not None:
        raise ModelError(f"{name} cannot be run with residuals replaced: {reason}.")

    def after(i: int) -> None:
        streamed.weights.drop(i)
        progress(i + 1, streamed.n_layers)

    reset_rope(streamed.module)
    with streamed.weights.past_the_page_cache() as names, Hooks() as hooks:
        windows = streamed.architecture.windows
        run.hook(hooks, streamed.blocks, windows, streamed.head, before=streamed.weights.lend, after=after)
        with streamed.weights.reading(names, head_next=True):
            streamed.run(ModelInput.of_copies(run.trees, streamed.placement))


@contextmanager
def in_step(streamed: StreamedModule, run: PatchedPass | None) -> Iterator[InStep | None]:
    """A second forward over copies, if there is one, whose blocks run behind those of the first."""
    if run is None:
        yield None
        return
    other = InStep(lambda: streamed.run(ModelInput.of_copies(run.trees, streamed.placement)))
    with Hooks() as hooks:
        run.hook(
            hooks,
            streamed.blocks,
            streamed.architecture.windows,
            streamed.head,
            before=lambda i: None,
            after=lambda i: other.pause(),
            is_this=lambda: other.is_this,
        )
        with other:
            yield other
