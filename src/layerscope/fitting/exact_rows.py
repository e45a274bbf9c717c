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
    squares: Float[Tensor, "layer row"]
    """Sum over prompts of the squared norm of every row."""

    @classmethod
    def of(cls, rows: Float[Tensor, "layer row prompt d_model"]) -> "Spread":
        """Of rows prompt by prompt."""
        exact = rows.double()
        return cls(rows.shape[2], exact.mean(2), exact.square().sum((2, 3)))

    @classmethod
    def none(cls, n_layers: int, n_rows: int, d_model: int) -> "Spread":
        """Of so many rows of no prompt."""
        means = torch.zeros(n_layers, n_rows, d_model, dtype=torch.float64)
        return cls(0, means, torch.zeros(n_layers, n_rows, dtype=torch.float64))

    def joined(self, other: "Spread") -> "Spread":
        """Of the prompts of both."""
        n = self.n + other.n
        return Spread(n, (self.n * self.means + other.n * other.means) / n, self.squares + other.squares)

    def relative(self, layer: int, row: int | None = None) -> float | None:
        """Standard deviation between prompts over the norm of their mean, both without the bias of few prompts.

        Of all rows of a layer together, or of one. None of a single prompt, and where the mean is no larger than chance
        makes it.
        """
        if self.n < 2:
            return None
        rows = slice(None) if row is None else row
        of_mean = float(self.means[layer, rows].square().sum())
        variance = (float(self.squares[layer, rows].sum()) - self.n * of_mean) / (self.n - 1)
        signal = of_mean - variance / self.n
        return math.sqrt(max(0.0, variance) / signal) if signal > 0 else None

    def standard_error(self, layer: int, row: int | None = None) -> float | None:
        """That relative spread over the root of the number of prompts: how far the mean itself is off."""
        relative = self.relative(layer, row)
        return None if relative is None else relative / math.sqrt(self.n)


@dataclass(frozen=True)
class Halves:
    """The same of every other prompt, from the first and from the second on, so that halves grow side by side."""

    first: Spread
    second: Spread

    @property
    def n(self) -> int:
        """Prompts of both."""
        return self.first.n + self.second.n

    @property
    def whole(self) -> Spread:
        """All prompts together."""
        return self.first.joined(self.second)

    @classmethod
    def none(cls, n_layers: int, n_rows: int, d_model: int) -> "Halves":
        """Of no prompt."""
        return cls(Spread.none(n_layers, n_rows, d_model), Spread.none(n_layers, n_rows, d_model))

    def with_prompts(self, rows: Float[Tensor, "layer row prompt d_model"]) -> "Halves":
        """With further prompts, which go to the halves in turn."""
        halves = [self.first, self.second]
        for turn in range(2):
            some = rows[:, :, turn::2]
            if some.shape[2]:
                which = (self.n + turn) % 2
                halves[which] = halves[which].joined(Spread.of(some))
        return Halves(*halves)

    @classmethod
    def kept(cls, workspace: Workspace) -> "Halves | None":
        """As an interrupted fit left them; None where none did.

        Raises:
            LensError: its file is damaged.
        """
        files = sorted(workspace.folder.glob(ROWS.format("*")))
        if not files:
            return None
        n = int(files[-1].stem.rpartition("-")[2])
        try:
            tensors = load_file(files[-1])
            halves = (Spread((n + 1 - i) // 2, tensors[f"means.{i}"], tensors[f"row_squares.{i}"]) for i in range(2))
            return cls(*halves)
        except (OSError, SafetensorError, KeyError) as error:
            raise LensError(
                f"The unfinished fit in '{workspace.folder}' is damaged after {n} prompts; delete that folder to start "
                "anew."
            ) from error

    def keep(self, workspace: Workspace) -> None:
        """Write them, under their name only when whole; what was kept before goes.

        Raises:
            LensError: there is no room for them, or the folder cannot be written to.
        """
        folder = workspace.room()
        before = list(folder.glob(ROWS.format("*")))
        tensors: dict[str, Tensor] = {}
        for i, half in enumerate((self.first, self.second)):
            tensors |= {f"means.{i}": half.means, f"row_squares.{i}": half.squares}
        try:
            save_file(tensors, folder / "rows.partial")
            (folder / "rows.partial").replace(folder / ROWS.format(f"{self.n:06d}"))
        except (OSError, SafetensorError) as error:
            raise LensError(
                f"The rows of {self.n} prompts could not be kept in '{folder}' ({error}); make room on that disk, and "
                "the same command goes on from there."
            ) from error
        for path in before:
            path.unlink()


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


def relative_difference_and_cosine(
    first: Float[Tensor, "row d_model"], second: Float[Tensor, "row d_model"]
) -> tuple[float | None, float | None]:
    """How two estimates of one matrix compare, in float64.

    Returns:
        Their distance over the norm of their mean, and the cosine of their entries. Independent halves of a sample are
        apart by twice the standard error of the whole. None where a norm is zero.
    """
    a, b = first.double(), second.double()
    of_mean, norms = float((a + b).norm()) / 2, float(a.norm() * b.norm())
    difference = float((a - b).norm()) / of_mean if of_mean > 0 else None
    return difference, float((a * b).sum()) / norms if norms > 0 else None
