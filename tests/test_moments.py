"""Moments of two streams and the regressions solved from them.

Tolerances. Sums and solutions are float64's. A ridge of condition below 1e5 keeps 1e-16 x 1e5 x some hundred terms:
1e-9.
"""

import numpy as np
import pytest
import torch

from layerscope.errors import NumericError
from layerscope.fitting.moments import DAMPING, Moments

N, D = 400, 7


def pairs(offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, D, generator=generator) @ torch.randn(D, D, generator=generator) + offset
    y = x @ torch.randn(D, D, generator=generator) + 3.0 + 0.1 * torch.randn(N, D, generator=generator)
    return x, y


def regression(x: torch.Tensor, y: torch.Tensor, chunk: int = 90):
    moments = Moments(D, torch.device("cpu"))
    for start in range(0, len(x), chunk):
        moments.update(x[start : start + chunk], y[start : start + chunk])
    return moments.regression()


def test_without_a_penalty_it_is_ordinary_least_squares():
    x, y = pairs()
    matrix, bias = regression(x, y).ridge(0.0)
    design = np.hstack([x.double().numpy(), np.ones((N, 1))])
    expected, *_ = np.linalg.lstsq(design, y.double().numpy(), rcond=None)
    np.testing.assert_allclose(matrix.numpy(), expected[:-1], atol=1e-9)
    np.testing.assert_allclose(bias.numpy(), expected[-1], atol=1e-9)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 5.0])
def test_a_penalty_is_that_of_the_normal_equations(penalty: float):
    x, y = (part.double().numpy() for part in pairs())
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    covariance = centred_x.T @ centred_x / N
    unit = np.sort(np.linalg.eigvalsh(covariance))[(D - 1) // 2]
    expected = np.linalg.solve(covariance + penalty * unit * np.eye(D), centred_x.T @ centred_y / N)
    found = regression(*pairs())
    matrix, bias = found.ridge(penalty)
    assert found.unit == pytest.approx(unit, rel=1e-9)
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(bias.numpy(), y.mean(0) - x.mean(0) @ expected, atol=1e-8)


def test_a_large_common_offset_costs_no_digits():
    plain, far = regression(*pairs()), regression(*pairs(offset=4096.0))
    torch.testing.assert_close(far.values, plain.values, rtol=1e-3, atol=0)  # the inputs themselves lose float32 digits
    x, y = pairs(offset=4096.0)
    matrix, bias = far.ridge(1e-6)
    assert ((x.double() @ matrix + bias) - y).abs().mean() < 0.2


@pytest.mark.parametrize("chunk", [1, 7, N])
def test_portions_do_not_matter(chunk: int):
    whole, cut = regression(*pairs()), regression(*pairs(), chunk=chunk)
    for one, other in zip(whole.ridge(0.01), cut.ridge(0.01), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_whitened_inputs_have_unit_variance_but_for_the_damping():
    x, y = pairs()
    found = regression(x, y)
    into, back = found.whitening()
    white = (x.double() - found.mean_x) @ into
    covariance = white.T @ white / N
    expected = found.values / (found.values + DAMPING * found.unit)
    torch.testing.assert_close(covariance, torch.diag(expected), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(into @ back, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-9)


def test_one_huge_direction_moves_neither_penalty_nor_damping():
    x, y = pairs()
    huge = x.clone()
    huge[:, 0] += 1e4 * torch.randn(N, generator=torch.Generator().manual_seed(1))
    assert regression(huge, y).unit < 10 * regression(x, y).unit


def test_fewer_pairs_than_features_still_give_a_map():
    x, y = pairs()
    matrix, bias = regression(x[:3], y[:3]).ridge(1e-6)
    assert bool(torch.isfinite(matrix).all() and torch.isfinite(bias).all())


def test_what_is_not_finite_is_refused_with_its_count():
    x, y = pairs()
    x[3, 1], y[5, 0] = torch.nan, torch.inf
    with pytest.raises(NumericError, match="2 of 400 positions"):
        Moments(D, torch.device("cpu")).update(x, y)


def test_no_pair_gives_no_regression():
    with pytest.raises(NumericError, match="none came"):
        Moments(D, torch.device("cpu")).regression()
