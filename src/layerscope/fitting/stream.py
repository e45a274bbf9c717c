"""A corpus in the residual stream of a model, one layer at a time, in memory or in a file."""

import errno
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import NO_ROOM, PlacementError
from layerscope.fitting.corpus import PARTS, Corpus
from layerscope.lens_record import SplitName
from layerscope.model.blockwise import Visit
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import format_bytes

BATCH_TOKENS = 2048
"""Tokens that go through a block together."""
CHUNK = 8192
"""Rows that are copied or summed at once."""
_NOT_OFFERED = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
"""How a filesystem says that it cannot take room ahead."""


class Stream:
    """Where every position of a corpus lies in one flat axis, and the residual stream there at the layer reached."""

    def __init__(self, model: CausalLM, corpus: Corpus, folder: Path | None) -> None:
        """Lay the parts of a corpus one after another.

        Args:
            corpus: its packed sequences, all of one length.
            folder: where the stream is kept in a file; in memory where not given.

        Raises:
            PlacementError: the disk has no room for it.
        """
        self.model, self._folder = model, folder
        parts: dict[SplitName, Tensor] = {name: getattr(corpus, name) for name in PARTS}
        sequences = torch.cat(list(parts.values()))
        self.n_sequences, self.seq_len = sequences.shape
        self._first = dict(zip(parts, torch.tensor([0, *map(len, parts.values())]).cumsum(0).tolist(), strict=False))
        self._count = {name: len(part) for name, part in parts.items()}
        self.per_batch = max(1, min(BATCH_TOKENS // self.seq_len, self.n_sequences))
        self.n_batches = -(-self.n_sequences // self.per_batch)
        missing = self.n_batches * self.per_batch - self.n_sequences
        # Batches have one shape; the last is filled up with sequences that nothing reads afterwards.
        filled = torch.cat([sequences, sequences[:1].expand(missing, -1)])
        self.token_ids: Int[Tensor, "batch sequence position"] = filled.view(self.n_batches, self.per_batch, -1)
        self._flat_ids = filled.reshape(-1)
        self.residuals = self.allocate("residuals")
        self._kept: deque[Tensor] = deque()

    @property
    def bytes(self) -> int:
        """Of one layer's residuals."""
        return stream_bytes(self.token_ids.numel(), self.model.d_model)

    def allocate(self, name: str) -> Float[Tensor, "batch sequence position d_model"]:
        """Room for one layer's residuals.

        Raises:
            PlacementError: the disk has no room for it.
        """
        shape = (*self.token_ids.shape, self.model.d_model)
        if self._folder is None:
            return torch.empty(shape)
        return mapped(self._folder / f"{name}.f32", shape)

    def visit(
        self,
        after: Callable[[int], None],
        n_blocks: int | None = None,
        *,
        keep: bool = False,
        reached: int | None = None,
        visit: Visit | None = None,
    ) -> None:
        """Run the model, calling `after` with every layer that the residuals have reached.

        Args:
            keep: hold every layer but the last in memory until `visit_again`.
            reached: the layer that the residuals hold already, where they do; those behind it follow.
            visit: called with every block and batch while the residuals hold what the block reads.
        """

        def arrived(layer: int) -> None:
            if keep and layer < self.model.n_layers:
                self._kept.append(self.residuals.clone())
            after(layer)

        self.model.forward_blockwise(
            self.token_ids, self.residuals, arrived, n_blocks=n_blocks, reached=reached, visit=visit
        )

    def visit_again(self, after: Callable[[int], None]) -> None:
        """Every layer but the last once more: as it was kept, which gives its room back, or by running the model."""
        if not self._kept:
            self.visit(after, n_blocks=self.model.n_layers - 1)
            return
        for layer in range(len(self._kept)):
            self.residuals = self._kept.popleft()
            after(layer)

    def rows(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The residual stream at some flat positions."""
        return self.residuals.view(-1, self.model.d_model)[index]

    def positions(self, part: SplitName, first_position: int) -> Int[Tensor, " n"]:
        """Flat positions of a part, from the given one on; without the last of a sequence, which nothing follows."""
        start = self._first[part] * self.seq_len
        flat = torch.arange(start, start + self._count[part] * self.seq_len).view(-1, self.seq_len)
        return flat[:, first_position:-1].reshape(-1)

    def following(self, index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The tokens after some flat positions."""
        return self._flat_ids[index + 1]


def stream_bytes(n_tokens: int, d_model: int) -> int:
    """Bytes of the residual stream of so many positions at one layer."""
    return 4 * n_tokens * d_model


def mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor that lies in a file, whose room is taken at once where the system can do that.

    Raises:
        PlacementError: the disk has no room for it, or the file cannot be made.
    """
    size = 4 * int(torch.Size(shape).numel())
    try:
        with path.open("wb") as file:
            _take_room(file.fileno(), size)
    except OSError as error:
        path.unlink(missing_ok=True)
        why = "there is no room for it" if error.errno in NO_ROOM else "the file cannot be made"
        raise PlacementError(
            f"A buffer of {format_bytes(size)} should go to '{path.parent}', but {why} ({error.strerror}); give fewer "
            "--tokens, more --memory, or another --out."
        ) from error
    return torch.from_file(str(path), shared=True, size=size // 4, dtype=torch.float32).view(shape)


def _take_room(file: int, size: int) -> None:
    """Give an open file its size and, where system and filesystem can (macOS cannot), its room on the disk."""
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(file, 0, size)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
        else:
            return
    os.ftruncate(file, size)
