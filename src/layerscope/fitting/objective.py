"""What a translator is fitted to: the divergence of the model from the lens, and its gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.fitting.divergence import DECODED_TOGETHER, Head, Targets
from layerscope.fitting.moments import Regression
from layerscope.fitting.sampled import Draws, worth_sampling
from layerscope.lens_words import Placement
from layerscope.lenses.tuned_lens import Translator
from layerscope.unembedding import Norm

LN2 = math.log(2.0)


@dataclass(frozen=True)
class Positions:
    """Some positions of the text."""

    index: Int[Tensor, " n"]
    """Into the flat axis of all positions."""
    gold: Int[Tensor, " n"]
    """The token that follows in the text."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Sample(Positions):
    """Positions whose targets over the whole vocabulary are known."""

    targets: Targets

    def thinned(self, most: int) -> "Sample":
        """So many of the positions, evenly spaced; all of them where there are no more."""
        if len(self) <= most:
            return self
        some = torch.linspace(0, len(self) - 1, most).long()
        on_device = some.to(self.gold.device)
        return Sample(self.index[some], self.gold[on_device], self.targets.at(on_device))


@dataclass(frozen=True)
class Samples:
    """Positions to fit to, to choose by, to measure on."""

    fit: Positions
    """A `Sample` where refinement visits the whole vocabulary."""
    select: Sample
    held_out: Sample


@dataclass(frozen=True)
class Gradients:
    """Of a mean divergence."""

    nats: float
    by_output: Float[Tensor, "n d_model"]
    """By each translated row, not divided by their number."""
    by_log_temperature: float


class Objective:
    """KL(model || lens) of a translator at one layer."""

    def __init__(self, head: Head, norm: Norm | None, placement: Placement) -> None:
        self.head, self.norm, self.placement = head, norm, placement

    def inputs(self, residuals: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """What a translator reads: the residual itself, or its norm."""
        x = residuals.to(self.head.unembedding.device, torch.float32)
        return x if self.placement == "raw" or self.norm is None else self.norm(x)

    def row(self, output: Float[Tensor, "n d_model"], temperature: float) -> Float[Tensor, "n d_model"]:
        """What is unembedded."""
        normed = output if self.placement == "normed" or self.norm is None else self.norm(output)
        return normed / temperature

    def gradients(self, output: Float[Tensor, "n d_model"], log_temperature: float, targets: Targets) -> Gradients:
        """The divergence of translated rows, and how it changes with them and with the temperature."""
        temperature = math.exp(log_temperature)
        row = self.row(output, temperature)
        divergence = self.head.divergence(row, targets)
        if divergence.gradient is None:
            raise AssertionError("a gradient was asked for")
        by_temperature = -float((divergence.gradient * row).sum(-1).mean())
        return Gradients(
            float(divergence.nats.mean()), self._back(output, divergence.gradient / temperature), by_temperature
        )

    def over(self, head: Head) -> "Objective":
        """The same over a head of other ids."""
        return Objective(head, self.norm, self.placement)

    def text_gradients(
        self, output: Float[Tensor, "n d_model"], targets: Targets, columns: Float[Tensor, "n d_head"]
    ) -> Float[Tensor, "n d_model"]:
        """Gradients of the log-loss of the tokens that follow in the text.

        Their second moment, the empirical Fisher matrix (Martens 2020, section 11), stands for the curvature of the
        divergence. It only scales steps, so the slope of a softcap is left out of the token's own part.

        Args:
            columns: the unembedding's, of the tokens that follow.
        """
        divergence = self.head.divergence(self.row(output, 1.0), targets)
        if divergence.gradient is None:
            raise AssertionError("a gradient was asked for")
        rest = self.head.scale * (targets.mean_unembedding - columns)
        projection = self.head.unembedding.projection
        return self._back(output, divergence.gradient + (rest if projection is None else rest @ projection))

    def _back(
        self, output: Float[Tensor, "n d_model"], gradient: Float[Tensor, "n d_model"]
    ) -> Float[Tensor, "n d_model"]:
        """A gradient by the normed row as one by the row before the norm."""
        if self.placement == "normed" or self.norm is None:
            return gradient
        return norm_gradient(self.norm, output, gradient)


@dataclass(frozen=True)
class Batch:
    """Some of the positions that are fitted to, and what the model says there."""

    objective: Objective
    chosen: Int[Tensor, " n"]
    """Places among them."""
    targets: Targets


@dataclass(frozen=True)
class Problem:
    """One layer that a translator is wanted for."""

    objective: Objective
    rows_at: Callable[[Int[Tensor, " n"]], Float[Tensor, "n d_model"]]
    """The layer's residuals at some flat positions."""
    samples: Samples
    regression: Regression
    """Of the final residual less the layer's own, on the layer's own."""
    draws: Draws | None = None
    """Ids and positions of every step; None where each visits the whole vocabulary."""

    @property
    def large_vocabulary(self) -> bool:
        """Whether steps on drawn ids pay."""
        return worth_sampling(self.objective.head.unembedding.d_vocab)

    def inputs(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """What a translator reads at some flat positions."""
        return self.objective.inputs(self.rows_at(index))

    def batch(self, step: int, size: int, generator: torch.Generator) -> Batch:
        """What one step descends on: its own draw, or positions drawn with replacement and the whole vocabulary.

        Args:
            step: counted from 1.
            size: positions, at most.
            generator: draws positions where there is no draw; on the CPU.
        """
        fit = self.samples.fit
        if self.draws is not None:
            draw = self.draws.at(step, size)
            return Batch(self.objective.over(draw.head), draw.chosen, draw.targets)
        chosen = torch.randint(len(fit), (min(size, len(fit)),), generator=generator).sort().values
        return self._whole(chosen)

    def _whole(self, chosen: Int[Tensor, " n"]) -> Batch:
        fit = self.samples.fit
        if not isinstance(fit, Sample):
            raise AssertionError("positions without targets are fitted to through draws alone")
        return Batch(self.objective, chosen, fit.targets.at(chosen.to(fit.targets.entropy.device)))

    def text_gradients(self, lens: Translator, n: int) -> Float[Tensor, "n d_model"]:
        """Gradients by a lens' output of the log-loss of the text, at about so many positions to fit to."""
        fit = self.samples.fit
        if self.draws is None:
            batches = [self._whole(torch.linspace(0, len(fit) - 1, min(n, len(fit))).long())]
        else:
            draws = [self.draws.at(step) for step in range(1, 1 + max(1, n // self.draws.batch))]
            batches = [Batch(self.objective.over(draw.head), draw.chosen, draw.targets) for draw in draws]
        unembedding = self.objective.head.unembedding
        return torch.cat(
            [
                batch.objective.text_gradients(
                    lens(self.inputs(fit.index[batch.chosen])),
                    batch.targets,
                    unembedding.columns(fit.gold[batch.chosen]),
                )
                for batch in batches
            ]
        )

    def bits(self, lens: Translator, sample: Sample) -> float:
        """Mean KL(model || lens) over a sample, in bits; NaN or infinite where the lens is."""
        total = 0.0
        for start in range(0, len(sample), DECODED_TOGETHER):
            part = slice(start, start + DECODED_TOGETHER)
            x = self.inputs(sample.index[part])
            targets = sample.targets.at(torch.arange(start, start + len(x), device=x.device))
            row = self.objective.row(lens(x), lens.temperature)
            total += float(self.objective.head.divergence(row, targets, gradient=False).nats.double().sum())
        return total / (len(sample) * LN2)


def norm_gradient(
    norm: Norm, x: Float[Tensor, "n d_model"], gradient: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_model"]:
    """The gradient by what a norm reads, from the gradient by what it gives.

    With `n = (x - m) r`, `r = (mean (x - m)^2 + eps)^(-1/2)` and `s` the gradient by `n`, it is
    `r (s - n mean(s n))`, less its mean for a norm that takes the mean `m` away (`m = 0` for one that does not).
    """
    centred = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps)
    normed = centred * scale
    slope = gradient if norm.gain is None else gradient * norm.gain
    result = scale * (slope - normed * (slope * normed).mean(-1, keepdim=True))
    return result - result.mean(-1, keepdim=True) if norm.kind == "layer" else result
