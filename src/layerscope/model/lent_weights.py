"""A model's weights on their way from the files: read a block ahead, lent for the time of a block, let go of again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

from layerscope.model.placement import Placement, keeps_in_page_cache
from layerscope.model.reading import ReadAhead
from layerscope.model.stored_tensors import Stored
from layerscope.model.streaming import stream_weights
from layerscope.model.tensor_files import TensorFiles
from layerscope.model.tiles import Tiles
from layerscope.model.uncached import reads_uncached


class LentWeights:
    """The weights of one module, which are nowhere but in their files unless an accelerator keeps them."""

    resident: bool
    """Whether an accelerator keeps them."""

    def __init__(
        self,
        module: Any,
        stored: dict[str, Stored],
        checkpoint: TensorFiles,
        placement: Placement,
        *,
        blocks: str,
        head: str,
    ) -> None:
        """Let a module on the meta device read its weights from a checkpoint.

        Args:
            module: the model; its linears multiply by what is stored from here on.
            stored: for each parameter and buffer where it comes from.
            checkpoint: the files.
            placement: where, and in which dtype, it computes.
            blocks: path of the container of blocks.
            head: path of the unembedding.
        """
        self._stored, self._checkpoint, self._placement = stored, checkpoint, placement
        self._prefix, self._head = f"{blocks}.", head
        self.resident = placement.holds(checkpoint.bytes_kept(placement.dtype.itemsize))
        self._tiles = Tiles(placement.dtype, placement.device)
        self._loaders = stream_weights(
            module,
            stored,
            blocks,
            placement.dtype,
            placement.device,
            self._tiles,
            self._bring_in,
            resident=self.resident,
        )
        self._reader = ReadAhead(checkpoint)

    @property
    def largest_block_bytes(self) -> int:
        """Memory that the parameters of one block take while it computes, beyond what is streamed."""
        return max((loader.bytes for loader in self._loaders), default=0)

    @property
    def largest_differentiated_bytes(self) -> int:
        """The same while it is differentiated too."""
        return max((loader.bytes_with_gradients for loader in self._loaders), default=0)

    @property
    def stay_in_page_cache(self) -> bool:
        """Whether another pass finds them in memory."""
        return keeps_in_page_cache(self._checkpoint.bytes_on_disk)

    def lend(self, i: int) -> None:
        """Give a block its parameters, and begin to read the next one's."""
        self._reader.enter(i)
        self._loaders[i].load()

    def drop(self, i: int) -> None:
        """Take them back."""
        self._loaders[i].drop()
        self._reader.leave(i)
        if self._loaders[i].experts and not self.stay_in_page_cache:
            self._checkpoint.let_go(self._loaders[i].experts)

    def lend_again(self, i: int) -> None:
        """Give a block its parameters once more, in whatever order blocks are wanted; nothing is read ahead."""
        self._loaders[i].load()

    def drop_again(self, i: int) -> None:
        """Take them back."""
        self._loaders[i].drop()

    def _bring_in(self, names: Sequence[str], share: tuple[int, int]) -> None:
        """Read what is about to be used, in large pieces; where a file has been cut short that is an error, whereas to
        touch its mapped pages would end the process."""
        for piece in self._checkpoint.pieces(names, share):
            piece.bring_in()

    @contextmanager
    def reading(self, names: Mapping[int, Sequence[str]] | None = None, *, head_next: bool = False) -> Iterator[None]:
        """A pass through the blocks in their order: weights are read ahead, and let go of when it ends.

        Args:
            names: tensors that are read ahead, by block; all of a block's where not given.
            head_next: whether the unembedding is wanted behind the last block, so that its reading is not broken off.

        Raises:
            CheckpointError: a file has been cut short since it was opened.
            OSError: the disk cannot be read.
        """
        # Weights that an accelerator keeps were read when the model was opened, and are not read again.
        wanted = self._loaders_names if self.resident else self._block_names if names is None else names
        self._reader.begin(wanted, drop=not self.stay_in_page_cache)
        try:
            yield
            if head_next:
                self._reader.wait()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Stop reading, and take back what a pass that broke off has left with a block."""
        self._reader.stop()
        for loader in self._loaders:
            loader.drop()

    @contextmanager
    def past_the_page_cache(self, *, twice: bool = False) -> Iterator[Mapping[int, Sequence[str]]]:
        """A weight is wanted once in a pass, so what cannot stay in the page cache need not come there.

        Gives the names of the tensors that are still to be read ahead. Where a block runs twice in turn, its weights
        stay in the page cache in between.
        """
        on_cpu = self._placement.device.type == "cpu"
        uncached = on_cpu and not twice and reads_uncached() and not self.stay_in_page_cache
        with self._tiles.uncached() if uncached else nullcontext():
            # Of those read past it only what is read at once, not a tile at a time.
            head = {len(self._loaders): self._block_names[len(self._loaders)]}
            yield self._loaders_names | head if uncached else self._block_names

    @cached_property
    def _block_names(self) -> dict[int, list[str]]:
        """Names in the checkpoint of every block's tensors; the head's stand after the last block."""
        names: dict[int, list[str]] = {i: [] for i in range(len(self._loaders) + 1)}
        on_demand = {name for loader in self._loaders for name in loader.experts}
        for target, stored in self._stored.items():
            if target.startswith(self._prefix):
                read_ahead = [name for name in stored.names if name not in on_demand]
                names[int(target.removeprefix(self._prefix).partition(".")[0])] += read_ahead
        names[len(self._loaders)] += self._stored[f"{self._head}.weight"].names
        return names

    @property
    def _loaders_names(self) -> dict[int, list[str]]:
        return {i: loader.names for i, loader in enumerate(self._loaders)}
