"""The sweep's statistics by compiled loops, which read a row once while it is in the nearest cache."""

import threading
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.compiling import loops
from layerscope.readout.vocabulary import Tile, VocabularyStatistics
from layerscope.unembedding import HeadTransform


def kernels() -> ModuleType | None:
    """The loops, or None where there is no compiler for them."""
    return loops("layerscope.kernels")


_NO_BIAS = np.empty(0, np.float32)


def load_ahead() -> None:
    """Load the loops, or compile them, in a thread of its own, while something else is computed."""
    threading.Thread(target=_load, name="kernels", daemon=True).start()


def _load() -> None:
    found = kernels()
    if found is not None:
        found.warm_up()


def required_kernels() -> ModuleType:
    """The loops.

    Raises:
        ImportError: there is no compiler for them.
    """
    found = kernels()
    if found is None:
        raise ImportError("Compiled statistics need numba; install it, or leave the choice of an engine to the sweep.")
    return found


class CompiledStatistics(VocabularyStatistics):
    """Tiles are taken in by the loops of `layerscope.kernels`, on the CPU."""

    def __init__(self, n_rows: int, k: int, threshold: Float[Tensor, " rows"], judged: Int[Tensor, " rows"]) -> None:
        """Begin with nothing seen; `k` is how many of the largest logits to keep.

        Raises:
            ImportError: there is no compiler.
        """
        super().__init__(n_rows, threshold, judged)
        self._loops = required_kernels()
        self.k = k
        self._values = np.full((n_rows, 2 * k), -np.inf, np.float32)
        self._ids = np.full((n_rows, 2 * k), -1, np.int64)
        self._filled = np.zeros(n_rows, np.int64)
        self._least = np.full(n_rows, -np.inf, np.float32)

    def take_in(
        self, linear: Float[Tensor, "rows tile"], tile: Tile, positions: slice, transform: HeadTransform
    ) -> None:
        """Take in a tile's logits before the head's transform, which are used up; see `TorchStatistics`."""
        starts, columns = tile.sparse_twins
        self._loops.count_and_keep(
            linear.numpy(),
            tile.start,
            self._threshold.numpy(),
            self._judged.numpy(),
            starts,
            columns,
            self.above.numpy(),
            self._values,
            self._ids,
            self._filled,
            self._least,
        )
        logits = transform.apply_(linear)
        self._loops.add_sums(
            logits.numpy(),
            tile.own_final[positions].numpy(),
            tile.final_shifted[positions].numpy(),
            _NO_BIAS if tile.bias is None else tile.bias.numpy(),
            self.peak.numpy(),
            self.low.numpy(),
            self.sums.numpy(),
        )

    def top(self) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
        """The largest linear logits, largest first, ties by id, and their ids; -1 where fewer were finite."""
        there = np.arange(2 * self.k) < self._filled[:, None]
        values, ids = np.where(there, self._values, -np.inf), np.where(there, self._ids, -1)
        order = np.lexsort((ids, -values), axis=-1)[:, : self.k]
        return (
            torch.from_numpy(np.take_along_axis(values, order, -1)),
            torch.from_numpy(np.take_along_axis(ids, order, -1)),
        )
