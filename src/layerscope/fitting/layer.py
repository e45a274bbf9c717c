"""One translator: bias and temperature, closed form, refinement; each measured on text that nothing was chosen by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from layerscope.fitting.coordinates import Basis, Parameters
from layerscope.fitting.moments import RIDGES
from layerscope.fitting.objective import Problem
from layerscope.fitting.refine import Budget, refine
from layerscope.lens_record import LayerFit
from layerscope.lenses.tuned_lens import Translator

BIAS_SHARE, FEWEST_BIAS_STEPS = 4, 48
"""A bias and a temperature take one step where the whole translator takes four, but no fewer than these, however short
the fit: they are what a map has to beat."""
SAMPLED_BIAS_STEPS, BIAS_BATCH = 32, 512
"""The same where steps draw ids, and positions of those."""
RIDGE_SELECT = 256
"""Positions at which penalties are compared where every visit of the vocabulary is dear."""


@dataclass(frozen=True)
class Candidate:
    """A translator with its divergence on the `select` sample."""

    name: Literal["identity", "bias", "closed_form"]
    translator: Translator
    bits: float


def fit_layer(layer: int, problem: Problem, *, rank: int, budget: Budget, seed: int) -> tuple[Translator, LayerFit]:
    """Fit the translator of one layer.

    Args:
        layer: for the record, and so that each layer draws its own positions.
        problem: the layer's residuals, samples and moments.
    """
    generator = torch.Generator().manual_seed(seed + layer)
    select, held_out = problem.samples.select, problem.samples.held_out
    identity = identity_of(problem)
    logit_bits = problem.bits(identity, select)
    few = budget if rank == 0 else bias_budget(budget, sampled=problem.draws is not None)
    biased = refine(problem, identity, logit_bits, rank=0, budget=few, generator=generator)
    ridge, closed = closed_form(problem)
    starts = [Candidate("identity", identity, logit_bits), Candidate("bias", biased.translator, biased.bits)]
    best, start = biased, starts[0]
    if rank:
        starts.append(_of_rank(closed, problem, rank, generator))
        start = _nearest(starts)
        best = refine(problem, start.translator, start.bits, rank=rank, budget=budget, generator=generator)
    translator = replace(_with_rank(best.translator, rank, generator), mean=problem.regression.mean_x.float())
    return translator, LayerFit(
        layer=layer,
        ridge=ridge,
        start=start.name,
        steps=best.steps,
        best_step=best.best_step,
        stopped=best.stopped,
        map_norm=translator.map_norm,
        bias_norm=float(translator.bias.double().norm()),
        temperature=translator.temperature,
        logit_bits=problem.bits(identity, held_out),
        bias_bits=problem.bits(biased.translator, held_out),
        closed_form_bits=problem.bits(closed.translator, held_out),
        tuned_bits=problem.bits(translator, held_out),
    )


def identity_of(problem: Problem) -> Translator:
    """The translator that changes nothing."""
    return Translator(torch.zeros_like(problem.regression.mean_x, dtype=torch.float32), 1.0)


def bias_budget(budget: Budget, *, sampled: bool) -> Budget:
    """How long a bias and a temperature alone are refined; on fewer positions where steps draw ids, as they are few."""
    batch = min(BIAS_BATCH, budget.batch) if sampled else budget.batch
    fewest = SAMPLED_BIAS_STEPS if sampled else FEWEST_BIAS_STEPS
    return replace(budget, steps=max(fewest, -(-budget.steps // BIAS_SHARE)), batch=batch)


def closed_form(problem: Problem) -> tuple[float, Candidate]:
    """The ridge regression whose penalty gives the least divergence on `select`, and the penalty.

    Penalties are compared at no more than `RIDGE_SELECT` positions where the vocabulary is large.
    """
    select = problem.samples.select
    few = select.thinned(RIDGE_SELECT) if problem.large_vocabulary else select
    candidates = {}
    for penalty in RIDGES:
        matrix, bias = problem.regression.ridge(penalty)
        translator = Translator(bias.float(), 1.0, full=matrix.float())
        candidates[penalty] = Candidate("closed_form", translator, problem.bits(translator, few))
    nearest = _nearest(tuple(candidates.values()))
    penalty = next(penalty for penalty, candidate in candidates.items() if candidate is nearest)
    if few is not select:
        nearest = replace(nearest, bits=problem.bits(nearest.translator, select))
    return penalty, nearest


def _nearest(candidates: Sequence[Candidate]) -> Candidate:
    """The one of least divergence; one that is not finite only where all are."""
    return min(candidates, key=lambda candidate: (not math.isfinite(candidate.bits), candidate.bits))


def _of_rank(closed: Candidate, problem: Problem, rank: int, generator: torch.Generator) -> Candidate:
    """The closed form, or the product of that rank which is nearest to it."""
    if rank == len(closed.translator.bias):
        return closed
    basis = Basis.at(closed.translator, problem)
    product = Parameters.start(basis, closed.translator, rank, generator).translator()
    return replace(closed, translator=product, bits=problem.bits(product, problem.samples.select))


def _with_rank(translator: Translator, rank: int, generator: torch.Generator) -> Translator:
    """The same map in the form that all layers of a lens share, where a start without a linear part was kept."""
    if translator.rank == rank:
        return translator
    fresh = Translator.fresh(len(translator.bias), rank, generator).to(translator.bias.device)
    return replace(fresh, bias=translator.bias, temperature=translator.temperature)
