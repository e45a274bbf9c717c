"""Refinement of one translator by the divergence itself: Adam in whitened coordinates, stopped on text held back."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from layerscope.fitting.coordinates import Basis, Parameters
from layerscope.fitting.objective import LN2, Batch, Problem
from layerscope.lenses.tuned_lens import Translator

BETAS = (0.9, 0.98)
ADAM_EPSILON = 1e-8
WARM_UP_STEPS = 10
HIGHEST_RATE = 0.05
"""Of a bias alone, which can bridge little of the divergence and has few numbers to do it with."""
TEMPERATURE_SHARE, HIGHEST_TEMPERATURE_RATE = 0.1, 0.02
"""Of the way that the divergence leaves to go, what the temperature's logarithm may take: it is one number, which every
position feels."""
EVALUATE_EVERY = 25
PATIENCE = 4
"""Evaluations without improvement after which a fit stops."""
DIVERGED_BITS = 1.0
"""A divergence this much above the start's doubled means that the fit runs away."""
Stop = Literal["budget", "no_improvement", "diverged"]


@dataclass(frozen=True)
class Budget:
    """How long a translator is refined."""

    steps: int
    batch: int
    """Positions a step."""
    rate: float = 0.5
    """Length of the first steps, as a share of the way that the divergence leaves to go (see `_first_rates`)."""


@dataclass(frozen=True)
class Refined:
    """What refinement came to."""

    translator: Translator
    """The best on the `select` sample; the start, where nothing was better."""
    bits: float
    """Its divergence there."""
    steps: int
    best_step: int
    stopped: Stop


def refine(
    problem: Problem, start: Translator, start_bits: float, *, rank: int, budget: Budget, generator: torch.Generator
) -> Refined:
    """Refine a translator by the divergence of the model's own distribution from the lens'.

    Args:
        problem: the layer; steps draw from its `fit` sample, its `select` sample decides when to stop and which step
            is kept.
        start: where to begin; its linear part is absent or has the rank asked for.
        start_bits: its divergence on `select`.
        generator: draws positions, and a product's first factor; on the CPU.
    """
    parameters = Parameters.start(Basis.at(start, problem), start, rank, generator)
    best = Refined(start, start_bits, 0, 0, "budget")
    adam = _Adam(parameters, _first_rates(budget, start_bits, parameters, drawn_ids=problem.draws is not None))
    misses = 0
    for step in range(1, budget.steps + 1):
        batch = problem.batch(step, budget.batch, generator)
        nats = _step(problem, parameters, adam, _schedule(step, budget.steps), batch)
        if _runs_away(nats / LN2, start_bits):
            return _ended(best, step, "diverged")
        if step % EVALUATE_EVERY and step < budget.steps:
            continue
        translator = parameters.translator()
        bits = problem.bits(translator, problem.samples.select)
        if _runs_away(bits, start_bits):
            return _ended(best, step, "diverged")
        if bits < best.bits:
            best, misses = Refined(translator, bits, step, step, "budget"), 0
            continue
        misses += 1
        if misses >= PATIENCE:
            return _ended(best, step, "no_improvement")
    return _ended(best, budget.steps, "budget")


def _step(problem: Problem, parameters: Parameters, adam: "_Adam", size: float, batch: Batch) -> float:
    """One step; the divergence before it, in nats. None is taken on NaN."""
    x = problem.inputs(problem.samples.fit.index[batch.chosen])
    white = parameters.white(x)
    gradients = batch.objective.gradients(parameters.output(x, white), parameters.log_temperature, batch.targets)
    if math.isfinite(gradients.nats):
        adam.step(parameters.gradients(white, gradients.by_output), gradients.by_log_temperature, size)
    return gradients.nats


def _ended(best: Refined, steps: int, stopped: Stop) -> Refined:
    return Refined(best.translator, best.bits, steps, best.best_step, stopped)


def _runs_away(bits: float, start_bits: float) -> bool:
    return not math.isfinite(bits) or bits > 2 * start_bits + DIVERGED_BITS


def _first_rates(budget: Budget, start_bits: float, parameters: Parameters, *, drawn_ids: bool) -> tuple[float, float]:
    """How far Adam moves each number, and the temperature's logarithm, at first.

    In whitened coordinates the divergence is about half the squared distance to where it vanishes, so `sqrt(2 KL / n)`
    for each of `n` numbers would bridge it, and steps longer than that would only add noise. Where ids are drawn, which
    is where models are wide, noise is most of a step: Adam makes every number's step equally long, the part of it that
    the batch's positions speak for is about `sqrt(batch / n)` of that, and a step is held to twice this part.
    """
    n = sum(tensor.numel() for tensor in parameters.tensors().values())
    way = budget.rate * math.sqrt(2 * max(start_bits, 0.0) * LN2)
    told = min(1.0, 2 * math.sqrt(budget.batch / n)) if drawn_ids else 1.0
    return min(HIGHEST_RATE, told * way / math.sqrt(n)), min(HIGHEST_TEMPERATURE_RATE, TEMPERATURE_SHARE * way)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    return min(1.0, step / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


class _Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) on the tensors and the temperature of a translator."""

    def __init__(self, parameters: Parameters, rates: tuple[float, float]) -> None:
        """Take what is moved, and how far each number and the temperature's logarithm move at first."""
        self._parameters = parameters
        self._rate, self._temperature_rate = rates
        self._first = {name: torch.zeros_like(tensor) for name, tensor in parameters.tensors().items()}
        self._second = {name: torch.zeros_like(tensor) for name, tensor in parameters.tensors().items()}
        self._temperature = [0.0, 0.0]
        self._steps = 0

    def step(self, gradients: dict[str, Tensor], by_log_temperature: float, size: float) -> None:
        """Move everything once, in place; `size` is the schedule's share of the first rates."""
        self._steps += 1
        keep, keep_square = BETAS
        unbias, unbias_square = 1 - keep**self._steps, 1 - keep_square**self._steps
        for name, tensor in self._parameters.tensors().items():
            first, second, gradient = self._first[name], self._second[name], gradients[name]
            first.mul_(keep).add_(gradient, alpha=1 - keep)
            second.mul_(keep_square).addcmul_(gradient, gradient, value=1 - keep_square)
            spread = (second / unbias_square).sqrt_().add_(ADAM_EPSILON)
            tensor.addcdiv_(first, spread, value=-size * self._rate / unbias)
        m, v = self._temperature
        m = keep * m + (1 - keep) * by_log_temperature
        v = keep_square * v + (1 - keep_square) * by_log_temperature**2
        self._temperature = [m, v]
        temperature_spread = math.sqrt(v / unbias_square) + ADAM_EPSILON
        self._parameters.log_temperature -= size * self._temperature_rate * (m / unbias) / temperature_spread
