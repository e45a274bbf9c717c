"""What one attention, MLP or head adds in one run put in the place of what it adds in another.

A copy of tokens, as in `layerscope.model.patching`, has its base's own residuals when the block begins. While that
block runs, the output of the part at the first token of the copy becomes that of the same part in the source's run;
everything behind it is computed anew.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerscope.errors import ModelError
from layerscope.model.ablation import width_read
from layerscope.model.block_parts import Sublayers
from layerscope.model.module_calls import with_written, written_by
from layerscope.model.patched_pass import PatchedPass
from layerscope.model.patching import Patch
from layerscope.model.streaming import Hooks

WriteSite: TypeAlias = Literal["attn", "mlp", "head"]


@dataclass(frozen=True)
class WritePatch:
    """One write to be replaced, and by that of which run."""

    layer: int
    """The layer that the block writes, 1 to n_layers."""
    site: WriteSite
    base: int
    """The prompt that is run."""
    position: int
    """Where the write is replaced, counted from 0."""
    source: int
    """The prompt that the write comes from."""
    source_position: int
    head: int | None = None
    """Which head, counted from 0, where the site is one. It is replaced in front of the attention's output matrix, so a
    norm behind that sees the mixture of heads that results."""

    def __post_init__(self) -> None:
        """Refuse a head without a number, and a number without a head.

        Raises:
            ModelError: saying which.
        """
        if (self.site == "head") != (self.head is not None):
            raise ModelError(f"A patch of a head names which one, and no other does, but head {self.head} came.")


class WritePatchedPass(PatchedPass):
    """One pass over prompts and copies, a write of each of which is replaced."""

    def __init__(
        self,
        token_ids: Sequence[Sequence[int]],
        patches: Sequence[WritePatch],
        blocks: Sequence[Sublayers],
        n_heads: int | None,
        d_model: int,
    ) -> None:
        """Lay them out.

        Args:
            token_ids: of every prompt.
            patches: what is replaced.
            blocks: the modules of every block.
            n_heads: of a block; None where it is not known.
            d_model: width of the stream.

        Raises:
            ModelError: a patch of a layer, head, prompt or position that there is not.
        """
        outside = next((patch.layer for patch in patches if not 1 <= patch.layer <= len(blocks)), None)
        if outside is not None:
            raise ModelError(
                f"There is no block of layer {outside}: blocks are counted by the layer that they write, 1 to "
                f"{len(blocks)}."
            )
        states = [Patch(p.layer - 1, p.base, p.position, p.source, p.source_position) for p in patches]
        super().__init__(token_ids, states, len(blocks))
        # The copies begin as what their bases are; sources are known by now to be there.
        self.patches = [replace(state, source=state.base, source_position=state.position) for state in states]
        self._writes, self._blocks = list(patches), blocks
        self._head_sizes = {p.layer: _head_size(blocks[p.layer - 1], p, n_heads) for p in patches if p.site == "head"}
        self.steps = torch.full((len(patches), d_model), torch.nan)
        """For every patch by how much its write became another, as it is added to the stream, float32, on the CPU; NaN
        of a head's, which goes through the output matrix first."""

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
        """As a pass with replaced residuals; and replace what the parts return, or what an output matrix reads."""
        super().hook(hooks, blocks, windows, head, before=before, after=after, is_this=is_this)
        by_part: dict[tuple[int, WriteSite], list[int]] = {}
        for i, patch in enumerate(self._writes):
            by_part.setdefault((patch.layer, patch.site), []).append(i)
        for (layer, site), chosen in by_part.items():
            block = self._blocks[layer - 1]
            if site == "head":
                assert block.projection is not None, "heads were told apart when the pass was laid out"
                hooks.before(block.projection, self._reads(chosen, self._head_sizes[layer], is_this))
            else:
                part = block.attention if site == "attn" else block.mlp
                hooks.after(part, self._returns(chosen, block.multiplier, is_this))

    def _returns(self, chosen: Sequence[int], multiplier: float, is_this: Callable[[], bool]) -> Callable[..., Any]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not is_this():
                return None
            written = written_by(output)
            by_row = self._by_row(written)
            for i, (row, node), place in self._places(chosen):
                step = by_row[place] - by_row[row, node]
                self.steps[i] = (step.float() * multiplier).cpu()
                by_row[row, node] = by_row[place]
            put = by_row.view(written.shape)
            return with_written(output, put)

        return after

    def _reads(self, chosen: Sequence[int], size: int, is_this: Callable[[], bool]) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not is_this():
                return None
            by_row = self._by_row(args[0])
            for i, (row, node), place in self._places(chosen):
                head = self._writes[i].head or 0
                features = slice(head * size, (head + 1) * size)
                by_row[row, node, features] = by_row[place][features]
            return (by_row.view(args[0].shape), *args[1:]), kwargs

        return before

    def _by_row(self, values: Tensor) -> Float[Tensor, "row some features"]:
        """A copy by row and node: some modules are called with all tokens of a batch in one row."""
        return values.reshape(len(self.trees.token_ids), -1, values.shape[-1]).clone()

    def _places(self, chosen: Sequence[int]) -> Iterable[tuple[int, tuple[int, int], tuple[int, int]]]:
        """Which patch, where its copy's first token is, and where the source's is; both as row and node."""
        for i in chosen:
            patch = self._writes[i]
            copy = (self.trees.rows[i], self.trees.firsts[i])
            first = self.trees.own_firsts[patch.source]
            yield i, copy, (self.trees.own_rows[patch.source], first + patch.source_position)


def _head_size(block: Sublayers, patch: WritePatch, n_heads: int | None) -> int:
    """Features of a head, as the output matrix of its attention reads them.

    Raises:
        ModelError: heads cannot be told apart, or there are not so many.
    """
    width = width_read(block.projection)
    if n_heads is None or width is None or width % n_heads:
        raise ModelError(f"The heads of layer {patch.layer} cannot be told apart in this model; patch its attn.")
    if patch.head is None or not 0 <= patch.head < n_heads:
        raise ModelError(f"Layer {patch.layer} has no head {patch.head}: it has {n_heads}, counted from 0.")
    return width // n_heads
