"""Every block's mean Jacobian over several choices of prompts, while the text passes that block once."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.fitting.block_means import BlockGatherer, BlockSums
from layerscope.fitting.checkpoint import Gathered
from layerscope.fitting.stream import Stream
from layerscope.model.block_anatomy import Anatomist
from layerscope.model.blockwise import BlockInHand


class ChainSums:
    """The sums of the block that the text is passing, and the matrices that they give, by name of a choice."""

    anatomist: Anatomist
    """Takes blocks apart; to be set before the first."""

    def __init__(self, counted: slice, chosen: Mapping[str, slice], stream: Stream) -> None:
        """Begin.

        Args:
            counted: positions that are counted, as sources and as targets.
            chosen: by name which prompts are averaged; they may overlap. Together they are all that is gathered.
            stream: holds the prompts as its first sequences.
        """
        self._counted, self._chosen, self._stream = counted, chosen, stream
        edges = sorted({edge for part in chosen.values() for edge in (part.start, part.stop)})
        self._cells = [slice(*ends) for ends in pairwise(edges)]
        """Prompts between which no choice makes a difference, so that nothing is gathered twice."""
        self._begin()

    def _begin(self) -> None:
        self._gatherer = BlockGatherer(self._counted)
        self._sums = [BlockSums() for _ in self._cells]

    def visit(self, block: BlockInHand) -> None:
        """Gather what a batch says of a block."""
        first = block.batch * self._stream.per_batch
        place = torch.arange(first, first + self._stream.per_batch)
        here = [(place >= cell.start) & (place < cell.stop) for cell in self._cells]
        if not any(bool(some.any()) for some in here):
            return
        device = self._stream.model.placement.device
        stream = self._stream.residuals[block.batch].to(device, copy=True)
        anatomy = self.anatomist.take_apart(block, stream)
        for some, sums in zip(here, self._sums, strict=True):
            if bool(some.any()):
                sums.add(self._gatherer.gather(anatomy, some.to(device)))

    def matrices(self) -> Gathered:
        """The block's mean Jacobian by name of a choice, float32 on the CPU; the next block's sums begin."""
        shape, found = self._gatherer.shape, Gathered()
        if shape is None:
            raise AssertionError("a block was passed without any prompt")
        for name, part in self._chosen.items():
            together = BlockSums()
            for cell, sums in zip(self._cells, self._sums, strict=True):
                if part.start <= cell.start and cell.stop <= part.stop:
                    together.add(sums)
            found[name] = together.matrix(shape).float().cpu()
        self._begin()
        return found


def products(blocks: list[Float[Tensor, "d_model d_model"]]) -> list[Float[Tensor, "d_model d_model"]]:
    """From every block's mean Jacobian those of layers 0 to n_layers - 1 to the last block's output, in float32.

    The list is emptied on the way, so that no matrix is held twice.
    """
    found: list[Tensor] = []
    product = torch.eye(len(blocks[0]), dtype=torch.float64)
    while blocks:
        product = product @ blocks.pop().double()
        found.append(product.float())
    return found[::-1]


def rows_of_chain(
    blocks: list[Float[Tensor, "d_model d_model"]], rows: Float[Tensor, "row d_model"]
) -> Float[Tensor, "layer row d_model"]:
    """Some rows of the same, in float64."""
    found, product = [], rows.double()
    for block in reversed(blocks):
        product = product @ block.double()
        found.append(product)
    return torch.stack(found[::-1])
