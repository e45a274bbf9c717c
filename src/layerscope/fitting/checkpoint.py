"""How far one pass over the blocks has come, in files, so that a killed fit goes on near where it was."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerscope.fitting.workspace import REACHED, Workspace, damaged, not_kept
from layerscope.model.placement import format_bytes

SHARE = 20
"""A pass spends about one part in so many of its time on files, whatever disk and model."""
Gathered: TypeAlias = dict[str, Tensor]
"""What a fit took from the stream at one layer, by name."""


class Checkpoint:
    """The residual stream at the layer reached, and what was gathered from it at every layer until then."""

    def __init__(
        self,
        workspace: Workspace,
        residuals: Float[Tensor, "batch sequence position d_model"],
        n_layers: int,
        n_gathered: int,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            workspace: whose folder takes the files.
            residuals: the stream, float32 on the CPU, which a pass changes in place.
            n_layers: the layer at which the pass ends.
            n_gathered: vectors that will be gathered in all.
        """
        self._workspace, self._residuals, self._n_layers = workspace, residuals, n_layers
        self._n_kept = 0
        """Layers whose gathered tensors are in files."""
        folder = workspace.room()
        ours = sum(path.stat().st_size for path in folder.iterdir())
        self._free = shutil.disk_usage(folder).free + ours
        # The stream lies there twice for a moment: the older one goes once the newer is whole.
        self._needed = 2 * residuals.nbytes + residuals.element_size() * residuals.shape[-1] * n_gathered
        self._since, self._took = time.monotonic(), 0.0

    @property
    def shortage(self) -> str:
        """A line that ends a plan where the disk has no room to keep anything; empty where it has."""
        if self._needed <= self._free:
            return ""
        return (
            f"\nnothing is kept on the way: an interrupted fit starts anew, for to go on would take "
            f"{format_bytes(self._needed)} beside the lens, and {format_bytes(self._free)} are free"
        )

    def restore(self) -> list[Gathered]:
        """Fill the stream as an earlier pass left it, and give what it gathered at each layer, that one included.

        Returns:
            Nothing where no pass was kept; then the stream is as it was.

        Raises:
            LensError: the files are damaged.
        """
        files = sorted(self._workspace.folder.glob(REACHED.format("*")))
        if not files:
            return []
        layer = int(files[-1].stem.rpartition("-")[2])
        try:
            gathered = [load_file(self._gathered(i)) for i in range(layer + 1)]
            whole = self._read(files[-1])
        except (OSError, SafetensorError) as error:
            raise damaged(self._workspace.folder, layer) from error
        if not whole:
            raise damaged(self._workspace.folder, layer)
        self._n_kept = layer + 1
        return gathered

    def offer(self, gathered: Sequence[Gathered]) -> None:
        """Keep the stream where there is room, and enough time has passed since it was kept or the pass is at its end.

        Args:
            gathered: of every layer until the one that the stream has reached.

        Raises:
            LensError: there is no room, or the folder cannot be written to; what was kept before is still there.
        """
        layer, begun = len(gathered) - 1, time.monotonic()
        if self._needed > self._free or (layer < self._n_layers and begun - self._since < SHARE * self._took):
            return
        try:
            self._write(layer, gathered)
        except (OSError, SafetensorError) as error:
            raise not_kept(self._workspace.folder, layer, error) from error
        self._since = time.monotonic()
        self._took = self._since - begun

    def _gathered(self, layer: int) -> Path:
        return self._workspace.folder / f"gathered-{layer:03d}.safetensors"

    def _write(self, layer: int, gathered: Sequence[Gathered]) -> None:
        folder = self._workspace.room()
        for i in range(self._n_kept, layer + 1):
            save_file(gathered[i], self._gathered(i))
            with self._gathered(i).open("rb") as file:
                os.fsync(file.fileno())
        partial = folder / "reached.partial"
        with partial.open("wb") as file:
            for batch in self._residuals:  # a tensor as one piece would be copied once more in memory
                file.write(_bytes_of(batch))
            file.flush()
            os.fsync(file.fileno())
        before = list(folder.glob(REACHED.format("*")))
        partial.replace(folder / REACHED.format(f"{layer:03d}"))
        for path in before:
            path.unlink()
        self._n_kept = layer + 1

    def _read(self, path: Path) -> bool:
        """Fill the stream from a file; whether the file has its size."""
        if path.stat().st_size != self._residuals.numel() * self._residuals.element_size():
            return False
        with path.open("rb") as file:
            return all(file.readinto(_bytes_of(batch)) == batch.nbytes for batch in self._residuals)


def _bytes_of(batch: Tensor) -> memoryview:
    return batch.numpy().data.cast("B")
