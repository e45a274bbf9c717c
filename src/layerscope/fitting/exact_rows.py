"""What exact rows of Jacobians say: how much prompts differ, and how far a chain of block means is off."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerscope.errors import LensError
from layerscope.fitting.workspace import ROWS, Workspace


@dataclass(frozen=True)
class Spread:
    """Rows averaged over prompts, and how much prompts differ from that mean; by layer, in float64."""

    n: int
    """Prompts."""
    means: Float[Tensor, "layer row d_model"]
    squares: Float[Tensor, " layer"]
    """Sum over prompts of the squared norm of all rows."""

    @classmethod
    def of(cls, rows: Float[Tensor, "layer row prompt d_model"]) -> "Spread":
        """Of rows prompt by prompt."""
        exact = rows.double()
        return cls(rows.shape[2], exact.mean(2), exact.square().sum((1, 2, 3)))

    @classmethod
    def none(cls, n_layers: int, d_model: int) -> "Spread":
        """Of all rows of no prompt."""
        means = torch.zeros(n_layers, d_model, d_model, dtype=torch.float64)
        return cls(0, means, torch.zeros(n_layers, dtype=torch.float64))

    @classmethod
    def kept(cls, workspace: Workspace) -> "Spread | None":
        """As an interrupted fit left it; None where none did.

        Raises:
            LensError: its file is damaged.
        """
        files = sorted(workspace.folder.glob(ROWS.format("*")))
        if not files:
            return None
        n = int(files[-1].stem.rpartition("-")[2])
        try:
            tensors = load_file(files[-1])
            return cls(n, tensors["means"], tensors["squares"])
        except (OSError, SafetensorError, KeyError) as error:
            raise LensError(
                f"The unfinished fit in '{workspace.folder}' is damaged after {n} prompts; delete that folder to start "
                "anew."
            ) from error

    def keep(self, workspace: Workspace) -> None:
        """Write it, under its name only when whole; what was kept before goes.

        Raises:
            LensError: there is no room for it, or the folder cannot be written to.
        """
        folder = workspace.room()
        before = list(folder.glob(ROWS.format("*")))
        try:
            save_file({"means": self.means, "squares": self.squares}, folder / "rows.partial")
            (folder / "rows.partial").replace(folder / ROWS.format(f"{self.n:06d}"))
        except (OSError, SafetensorError) as error:
            raise LensError(
                f"The rows of {self.n} prompts could not be kept in '{folder}' ({error}); make room on that disk, and "
                "the same command goes on from there."
            ) from error
        for path in before:
            path.unlink()

    def joined(self, other: "Spread") -> "Spread":
        """Of the prompts of both."""
        n = self.n + other.n
        return Spread(n, (self.n * self.means + other.n * other.means) / n, self.squares + other.squares)

    def relative(self, layer: int) -> float | None:
        """Standard deviation between prompts over the norm of their mean, both without the bias of few prompts.

        None of a single prompt, and where the mean is no larger than chance makes it.
        """
        if self.n < 2:
            return None
        of_mean = float(self.means[layer].square().sum())
        variance = (float(self.squares[layer]) - self.n * of_mean) / (self.n - 1)
        signal = of_mean - variance / self.n
        return math.sqrt(max(0.0, variance) / signal) if signal > 0 else None


@dataclass(frozen=True)
class ExactRows:
    """Exact rows, averaged over a few prompts, and a chain's of the same prompts, so that only its bias remains."""

    means: Float[Tensor, "layer row d_model"]
    chain: Float[Tensor, "layer row d_model"]

    @classmethod
    def of(
        cls, rows: Float[Tensor, "layer row prompt d_model"], chain: Float[Tensor, "layer row d_model"]
    ) -> "ExactRows":
        """From rows prompt by prompt."""
        return cls(rows.double().mean(2), chain)

    def bias(self, layer: int) -> float | None:
        """Distance of the chain's rows from the exact ones over the norm of those; None where that is zero."""
        norm = float(self.means[layer].norm())
        return float((self.chain[layer] - self.means[layer]).norm()) / norm if norm > 0 else None
