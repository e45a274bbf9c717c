"""Refinement on planted problems, whose best translator is known beforehand.

Tolerances. Gradients are float32 sums over 64 rows and 48 ids of terms that partly cancel: n u = 1e-5, ten to a
hundred times where they do. A fit ends where its loss no longer falls in float32, so what it recovers is near the
square root of that: 1e-3, and 1e-2 for a temperature that the loss hardly feels.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from layerscope.fitting.coordinates import Basis, Parameters
from layerscope.fitting.divergence import Head
from layerscope.fitting.layer import fit_layer
from layerscope.fitting.moments import Moments, Regression
from layerscope.fitting.objective import Objective, Positions, Problem, Sample, Samples, norm_gradient
from layerscope.fitting.refine import Budget, refine
from layerscope.fitting.sampled import Draws
from layerscope.lenses.tuned_lens import Translator
from layerscope.unembedding import HeadTransform, Norm, Unembedding
from properties import slow

N, D, D_VOCAB = 6000, 10, 60
GAIN = torch.linspace(0.5, 1.5, D)
RMS = Norm("rms", GAIN, None, 1e-6, "norm")
LAYER = Norm("layer", GAIN, torch.linspace(-0.3, 0.3, D), 1e-5, "norm")


class Planted:
    """Inputs, and a model whose output is exactly what one translator of them gives."""

    def __init__(self, norm: Norm, *, temperature: float = 1.6, softcap: float | None = None) -> None:
        generator = torch.Generator().manual_seed(11)
        self.x = torch.randn(N, D, generator=generator) * torch.linspace(0.3, 3.0, D) + 0.5
        rotation, _ = torch.linalg.qr(torch.randn(D, D, generator=generator))
        self.map, self.bias, self.temperature = 1.7 * rotation, torch.randn(D, generator=generator), temperature
        weight = torch.randn(D_VOCAB, D, generator=generator)
        self.head = Head(Unembedding.of(weight, norm, transform=HeadTransform(softcap=softcap)))
        self.objective = Objective(self.head, norm, "raw")
        self.final = self.x @ self.map + self.bias
        self.norm = norm

    def rows_at(self, index: Tensor) -> Tensor:
        return self.x[index]

    def sample(self, index: Tensor) -> Sample:
        targets = self.head.targets(self.norm(self.final[index]) / self.temperature)
        gold = torch.randint(D_VOCAB, (len(index),), generator=torch.Generator().manual_seed(1))
        return Sample(index, gold, targets)

    def positions(self, n: int) -> Positions:
        return Positions(torch.arange(n), torch.randint(D_VOCAB, (n,), generator=torch.Generator().manual_seed(1)))

    def samples(self) -> Samples:
        index = torch.arange(N)
        return Samples(self.sample(index[:4500]), self.sample(index[4500:5200]), self.sample(index[5200:]))

    def problem(self) -> Problem:
        return Problem(self.objective, self.rows_at, self.samples(), self.regression())

    def regression(self, targets: Tensor | None = None) -> Regression:
        moments = Moments(D, torch.device("cpu"))
        moments.update(self.x[:4500], (self.final if targets is None else targets)[:4500] - self.x[:4500])
        return moments.regression()


def identity() -> Translator:
    return Translator(torch.zeros(D), 1.0)


def same_direction(found: Tensor, expected: Tensor) -> float:
    """Largest difference after both are scaled to norm one: the norm that follows takes a common factor away."""
    return float((found / found.norm() - expected / expected.norm()).abs().max())


@pytest.mark.parametrize("norm", [RMS, LAYER], ids=["rms", "layer"])
@pytest.mark.parametrize("rank", [D, 4, 0])
def test_gradients_of_every_number_are_those_of_autograd(norm: Norm, rank: int):
    planted = Planted(norm)
    sample = planted.sample(torch.arange(300))
    generator = torch.Generator().manual_seed(4)
    start = Translator(0.1 * torch.randn(D, generator=generator), 1.3)
    basis = Basis.at(start, planted.problem())
    own = Parameters.start(basis, start, rank, generator)
    for tensor in own.tensors().values():
        tensor += 0.2 * torch.randn(tensor.shape, generator=generator)

    x = planted.x[:300]
    white = own.white(x)
    found = planted.objective.gradients(own.output(x, white), own.log_temperature, sample.targets)
    gradients = own.gradients(white, found.by_output)

    leaves = {name: tensor.clone().double().requires_grad_() for name, tensor in own.tensors().items()}
    log_temperature = torch.tensor(own.log_temperature, dtype=torch.float64, requires_grad=True)
    into, out, mean = (part.float().double() for part in (basis.inputs, basis.outputs, basis.mean))
    moved = leaves["bias"].expand(300, -1)
    if "whole" in leaves:
        moved = moved + (x.double() - mean) @ into @ leaves["whole"]
    if "down" in leaves:
        moved = moved + (x.double() - mean) @ into @ leaves["down"] @ leaves["up"]
    y = x.double() + moved @ out.T
    centred = y - y.mean(-1, keepdim=True) if norm.kind == "layer" else y
    normed = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * GAIN.double()
    if norm.bias is not None:
        normed = normed + norm.bias.double()
    weight = planted.head.unembedding.weight.tensor.double()
    log_q = (normed / log_temperature.exp() @ weight.T).log_softmax(-1)
    log_p = (norm(planted.final[:300]) / planted.temperature).double() @ weight.T
    log_p = log_p.log_softmax(-1)
    loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    loss.backward()

    assert found.nats == pytest.approx(loss.item(), rel=1e-4)
    assert log_temperature.grad is not None
    assert found.by_log_temperature == pytest.approx(log_temperature.grad.item(), rel=1e-3, abs=1e-6)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(gradients[name].double(), leaf.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", [RMS, LAYER], ids=["rms", "layer"])
def test_the_norm_is_differentiated_as_autograd_does(norm: Norm):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, D, generator=generator, requires_grad=True)
    slope = torch.randn(50, D, generator=generator)
    (expected,) = torch.autograd.grad((norm(x) * slope).sum(), x)
    torch.testing.assert_close(norm_gradient(norm, x.detach(), slope), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [D, 4, 0])
def test_whitened_coordinates_say_the_same_translator(rank: int):
    planted = Planted(RMS)
    generator = torch.Generator().manual_seed(6)
    start = Translator.fresh(D, rank, generator)
    for part in start.parts().values():
        part += torch.randn(part.shape, generator=generator)
    basis = Basis.at(start, planted.problem())
    own = Parameters.start(basis, start, rank, generator)
    x = planted.x[:40]
    torch.testing.assert_close(own.output(x, own.white(x)), start(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(own.translator()(x), start(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("norm", [RMS, slow(LAYER)], ids=["rms", "layer"])
def test_a_planted_rotation_bias_and_temperature_are_recovered(norm: Norm):
    planted = Planted(norm)
    translator, fit = fit_layer(
        2,
        planted.problem(),
        rank=D,
        budget=Budget(300, 1500),
        seed=0,
    )
    assert translator.full is not None
    found, expected = torch.eye(D) + translator.full, planted.map
    if norm.kind == "layer":  # which takes the mean away, so that nothing can be known of it
        found, expected = (part - part.mean(-1, keepdim=True) for part in (found, expected))
    assert same_direction(found, expected) < 1e-3
    assert translator.temperature == pytest.approx(planted.temperature, rel=1e-3)
    assert fit.tuned_bits < 1e-5
    assert fit.logit_bits > 1.0
    assert fit.start == "closed_form"


def test_refinement_alone_comes_near_a_planted_map_that_the_regression_never_saw():
    planted = Planted(RMS)
    samples = planted.samples()
    useless = planted.regression(torch.randn(N, D, generator=torch.Generator().manual_seed(9)))
    bits = planted.problem().bits(identity(), samples.select)
    found = refine(
        replace(planted.problem(), regression=useless),
        identity(),
        bits,
        rank=D,
        budget=Budget(300, 1500),
        generator=torch.Generator().manual_seed(0),
    )
    assert found.translator.full is not None
    assert found.bits < bits / 500
    assert same_direction(torch.eye(D) + found.translator.full, planted.map) < 2e-2


def test_with_a_softcap_the_planted_map_is_found_through_it():
    planted = Planted(RMS, softcap=5.0)
    translator, fit = fit_layer(
        0,
        planted.problem(),
        rank=D,
        budget=Budget(300, 1500),
        seed=0,
    )
    assert translator.temperature == pytest.approx(planted.temperature, rel=2e-3)
    assert fit.tuned_bits < 1e-4


@pytest.mark.parametrize("rank", [1, 3])
def test_a_product_leaves_zero_within_fifty_steps(rank: int):
    planted = Planted(RMS)
    samples = planted.samples()
    bits = planted.problem().bits(identity(), samples.select)
    found = refine(
        planted.problem(),
        identity(),
        bits,
        rank=rank,
        budget=Budget(50, 500),
        generator=torch.Generator().manual_seed(0),
    )
    assert found.translator.rank == rank
    assert found.translator.map_norm > 0.1
    assert found.bits < bits


def test_more_rank_is_never_worse_and_a_bias_alone_is_worst():
    planted = Planted(RMS)
    bits = []
    for rank in (0, 3, D):
        _, fit = fit_layer(
            1,
            planted.problem(),
            rank=rank,
            budget=Budget(100, 1000),
            seed=0,
        )
        bits.append(fit.tuned_bits)
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 10 * bits[-1]


def test_a_step_that_is_too_long_ends_the_fit_with_what_was_best(monkeypatch):
    monkeypatch.setattr("layerscope.fitting.refine.HIGHEST_RATE", math.inf)
    planted = Planted(RMS)
    samples = planted.samples()
    bits = planted.problem().bits(identity(), samples.select)
    found = refine(
        planted.problem(),
        identity(),
        bits,
        rank=D,
        budget=Budget(200, 500, rate=math.inf),
        generator=torch.Generator().manual_seed(0),
    )
    assert found.stopped == "diverged"
    assert found.bits <= bits
    kept = planted.problem().bits(found.translator, samples.select)
    assert kept == pytest.approx(found.bits, rel=1e-4)


def test_where_nothing_can_be_gained_the_start_is_kept():
    planted = Planted(RMS, temperature=1.0)
    planted.final = planted.x.clone()
    samples = planted.samples()
    found = refine(
        replace(planted.problem(), regression=planted.regression(planted.x.clone())),
        identity(),
        planted.problem().bits(identity(), samples.select),
        rank=D,
        budget=Budget(300, 500),
        generator=torch.Generator().manual_seed(0),
    )
    assert abs(found.bits) < 1e-5
    assert math.isclose(found.translator.temperature, 1.0, rel_tol=1e-2)


def test_on_drawn_ids_a_planted_map_is_found_and_kept_where_it_is_the_start():
    """At the planted map both distributions agree on whichever ids are drawn, so no step leaves it."""
    planted = Planted(RMS)

    def final_rows(chosen: Tensor) -> Tensor:
        return planted.norm(planted.final[chosen]) / planted.temperature

    draws = Draws(planted.head, final_rows, 4500, batch=256, seed=1, ids=40)
    problem = replace(planted.problem(), draws=draws, samples=replace(planted.samples(), fit=planted.positions(4500)))
    exact = Translator(planted.bias, planted.temperature, full=planted.map - torch.eye(D))
    generator = torch.Generator().manual_seed(0)
    refined = refine(problem, exact, 0.5, rank=D, budget=Budget(30, 256), generator=generator)
    assert refined.bits < 1e-3
    _, fit = fit_layer(3, problem, rank=D, budget=Budget(300, 256), seed=0)
    assert fit.tuned_bits < 0.3 * min(fit.closed_form_bits, fit.bias_bits)
