"""Products with weights that stay in their files: a tile is read, cast, multiplied, and forgotten."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.model.tensor_files import Place
from layerscope.model.uncached import Room, UncachedFiles
from layerscope.products import product
from layerscope.stored.codes import CodedWeight
from layerscope.stored.weight import StoredWeight
from layerscope.workers import Workers

TILE_BYTES = 4 << 20
"""Size of a float32 tile of a weight: small enough to stay in the cache between the cast and the product."""
_ALL_TILES = 64 << 20
"""And of the tiles of all threads together, as stored and cast, where there are many threads."""
_READING = 2
"""Threads beyond the processor's, where tiles are read from the disk: some wait for it while the others compute."""


class TileBuffer:
    """One thread's memory for a tile in the compute dtype."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._memory = torch.empty(0, dtype=dtype, device=device)

    def room(self, n_rows: int, n_columns: int) -> Tensor:
        """Memory for that many rows; what was there is gone."""
        size = n_rows * n_columns
        if size > self._memory.numel():
            with torch.inference_mode(False):  # a tensor made in inference mode could not be filled outside of it
                self._memory = torch.empty(size, dtype=self._dtype, device=self._device)
        return self._memory[:size].view(n_rows, n_columns)

    def rows(self, stored: StoredWeight, tile: slice) -> Tensor:
        """A tile of a weight in the compute dtype; valid until the next call."""
        return stored.rows(tile.start, tile.stop, self.room(tile.stop - tile.start, stored.shape[1]))


@dataclass(frozen=True)
class _Uncached:
    """Threads that read by themselves, each into its own room, and the files that they read from."""

    workers: Workers
    files: UncachedFiles
    rooms: tuple[tuple[Room, TileBuffer], ...]


class Tiles:
    """Multiplies by weights as they are stored, a tile at a time; all linears of a model share it."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._buffer = TileBuffer(dtype, device)
        self._uncached: _Uncached | None = None

    @contextmanager
    def uncached(self) -> Iterator[None]:
        """Until the end of the `with` tiles are read past the page cache, by several threads, for products on a CPU.

        Each thread reads a tile, casts it, multiplies, and takes the next. So they wait for one another once a weight,
        and not twice a tile: one that waits for the disk holds up no other. Codes that lie apart from their scales are
        read as they are mapped, and decoded by the same threads.
        """
        n = torch.get_num_threads() + _READING
        rooms = tuple((Room(), TileBuffer(self._dtype, self._device)) for _ in range(n))
        files = UncachedFiles()
        try:
            with Workers(n) as workers:
                self._uncached = _Uncached(workers, files, rooms)
                yield
        finally:
            self._uncached = None
            files.close()

    def multiply_back(
        self, gradients: Float[Tensor, "*rows d_out"], stored: StoredWeight
    ) -> Float[Tensor, "*rows d_in"]:
        """Gradients of rows, from those of their products with a weight as it is stored.

        Nothing is written in place, so that a whole batch of gradients may be pulled back at once (`torch.vmap`).
        """
        parts = (gradients[..., tile] @ self._buffer.rows(stored, tile) for tile in _tiles(stored, TILE_BYTES))
        return sum(parts, start=next(parts))

    def multiply(
        self,
        rows: Float[Tensor, "rows d_in"],
        stored: StoredWeight,
        out: Float[Tensor, "rows d_out"],
        place: Place | None = None,
    ) -> None:
        """Fill `out` with rows times the transpose of a weight as it is stored.

        `place` is where that weight lies; one without is read as it is mapped.

        Raises:
            CheckpointError: a file has been cut short since it was opened.
            OSError: the disk cannot be read.
        """
        by = self._uncached
        if by is not None and place is not None and stored.row_bytes is not None:
            _multiply_uncached(by, rows, stored, out, place)
            return
        if by is not None and isinstance(stored, CodedWeight):
            _share_tiles(by, rows, stored, out, lambda tile, room, buffer: buffer.rows(stored, tile))
            return
        for tile in _tiles(stored, TILE_BYTES):
            out[:, tile] = product(rows, self._buffer.rows(stored, tile))


def _tiles(stored: StoredWeight, tile_bytes: int, at_least: int = 1) -> Iterator[slice]:
    """Rows of a weight that are taken at once: of about that size in float32, and not fewer parts than asked for."""
    n = len(stored)
    width = min(max(1, tile_bytes // (4 * stored.shape[1])), -(-n // at_least))
    return (slice(start, min(start + width, n)) for start in range(0, n, width))


def _multiply_uncached(by: _Uncached, rows: Tensor, stored: StoredWeight, out: Tensor, place: Place) -> None:
    row_bytes = stored.row_bytes
    assert row_bytes is not None

    def read(tile: slice, room: Room, buffer: TileBuffer) -> Tensor:
        raw = by.files.rows(place, row_bytes, tile.start, tile.stop, room)
        return stored.decoded(raw, buffer.room(len(raw), stored.shape[1]))

    _share_tiles(by, rows, stored, out, read)


def _share_tiles(
    by: _Uncached,
    rows: Tensor,
    stored: StoredWeight,
    out: Tensor,
    read: Callable[[slice, Room, TileBuffer], Tensor],
) -> None:
    """Each thread reads a tile, multiplies by it, and takes the next."""
    # A list, and an iterator over it: threads may ask that at the same time, a generator not.
    tiles = iter([*_tiles(stored, min(TILE_BYTES, _ALL_TILES // (2 * by.workers.n)), by.workers.n)])

    def run(room: Room, buffer: TileBuffer) -> None:
        for tile in tiles:
            out[:, tile] = product(rows, read(tile, room, buffer))

    for work in [by.workers.submit(run, *room) for room in by.rooms]:
        work.result()
