"""The prism lens: which way it turns, and what it divides by.

Tolerances. Float32 products of three to six terms: 6 x 2^-24 of sizes below 30 is 1e-5; single numbers keep SINGLE
(1e-6).
"""

import math

import pytest
import torch

from layerscope.errors import LensError
from layerscope.lenses import LogitLens, PrismLens, RawLens
from layerscope.unembedding import Norm, Unembedding

TURN = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""A quarter turn: it sends the column (1, 0, 0) to (0, 1, 0), and its transpose sends it to (0, -1, 0)."""


def _prism(rotation: torch.Tensor, mean=None, variance=None, eps: float = 0.0, stream=None) -> PrismLens:
    d = len(rotation)
    mean = torch.zeros(d) if mean is None else mean
    variance = torch.ones(d) if variance is None else variance
    return PrismLens(stream or RawLens(), mean, variance, eps, rotation)


def test_a_row_is_turned_as_the_rotation_turns_a_column():
    lens = _prism(TURN)
    assert lens(torch.tensor([[1.0, 0.0, 0.0]]), 0).tolist() == [[0.0, 1.0, 0.0]]
    assert lens(torch.tensor([[0.0, 1.0, 0.0]]), 5).tolist() == [[-1.0, 0.0, 0.0]]


def test_planted_logits_come_back_when_the_stream_was_turned_away_by_a_known_rotation():
    """Residuals are made so that only the right orientation gives the head what it was built for."""
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    head = Unembedding.of(torch.randn(20, 8, generator=generator), None)
    wanted = torch.randn(5, 8, generator=generator)
    mean, variance = torch.randn(8, generator=generator), torch.rand(8, generator=generator) + 0.5
    # Q w(g) = wanted, hence w(g) = Q^-1 wanted by solving, and g = w(g) sqrt(var + eps) + mean.
    white = torch.linalg.solve(rotation, wanted.T).T
    stream = white * (variance + 1e-8).sqrt() + mean
    found = head.logits(_prism(rotation, mean, variance, 1e-8)(stream, 3))
    assert torch.allclose(found, wanted @ head.weight.tensor.T, atol=1e-4)
    transposed = head.logits(_prism(rotation.T.contiguous(), mean, variance, 1e-8)(stream, 3))
    assert not torch.allclose(transposed, wanted @ head.weight.tensor.T, atol=0.1)


def test_features_are_standardised_one_by_one_with_eps_under_the_root():
    mean, variance = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 0.25, 0.0])
    lens = _prism(torch.eye(3), mean, variance, 0.01)
    row = lens(torch.tensor([[3.0, 0.0, 0.6]]), 0)[0].tolist()
    assert row == pytest.approx([2 / math.sqrt(4.01), 2 / math.sqrt(0.26), 0.1 / math.sqrt(0.01)], rel=1e-5)


def test_what_is_standardised_are_the_rows_of_its_stream():
    norm = Norm("rms", None, None, 0.0, "model.norm")
    lens = _prism(TURN, stream=LogitLens(norm))
    residual = torch.tensor([[3.0, 4.0, 0.0]])
    scale = math.sqrt(25 / 3)
    assert lens(residual, 1)[0].tolist() == pytest.approx([-4 / scale, 3 / scale, 0.0], rel=1e-5)
    assert lens.source(1) == "prism after model.norm"
    assert _prism(TURN).source(0) == "prism after raw"


def test_it_has_one_map_for_all_layers_the_last_among_them():
    lens, residual = _prism(TURN), torch.tensor([[1.0, 2.0, 3.0]])
    assert all(torch.equal(lens(residual, layer), lens(residual, 0)) for layer in range(1, 7))


def test_moving_a_prism_moves_its_tensors():
    moved = _prism(TURN, eps=1e-8).to("cpu")
    assert torch.equal(moved(torch.ones(1, 3), 0), _prism(TURN, eps=1e-8)(torch.ones(1, 3), 0))
    assert (moved.eps, moved.name) == (1e-8, "prism")


@pytest.mark.parametrize("least", [-1.0, 0.0, math.nan])
def test_a_variance_that_cannot_be_divided_by_is_refused(least: float):
    with pytest.raises(LensError, match="should be positive, but one is not"):
        _prism(TURN, variance=torch.tensor([1.0, 1.0, least]))
