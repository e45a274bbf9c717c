"""The bounds of rounding hold for sums in any order, and are passed by half precision and by real mistakes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from layerscope.unembedding import Unembedding
from rounding import of_logits, of_product, of_readout, same_order, same_rank

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 300), st.floats(0.1, 100.0))
def test_a_product_summed_in_any_order_is_within_its_bound(seed: int, n: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(4, n, generator=generator) * scale, torch.randn(7, n, generator=generator)
    exact, bound = x.double() @ weight.double().T, of_product(x, weight)
    one_by_one = torch.zeros(4, 7)
    for i in torch.randperm(n, generator=generator):
        one_by_one += x[:, i, None] * weight[:, i]
    for found in (x @ weight.T, one_by_one):
        assert (found.double() - exact).abs().max() <= bound


@given(SEEDS, st.sampled_from([0.1, 1.0, 2.0]))
def test_probabilities_entropies_and_divergences_of_shaken_logits_are_within_their_bounds(
    seed: int, temperature: float
):
    generator = torch.Generator().manual_seed(seed)
    z, q = (3 * torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    error = of_logits(torch.cat([z, q]), temperature) * 1000  # so that the second order would show
    shaken = z / temperature + error.logit * (2 * torch.rand(50, generator=generator, dtype=torch.float64) - 1)
    before, after, other = ((x - x.logsumexp(-1)) for x in (z / temperature, shaken, q / temperature))
    entropies = [float(-(x.exp() * x).sum()) for x in (before, after)]
    divergences = [float((x.exp() * (x - other)).sum()) for x in (before, after)]
    assert (after - before).abs().max() <= error.log_prob
    assert ((after.exp() - before.exp()) / before.exp()).abs().max() <= error.relative
    assert abs(entropies[1] - entropies[0]) <= error.relative * entropies[0]
    assert abs(divergences[1] - divergences[0]) <= error.nats + error.relative * divergences[0]


def test_half_precision_and_a_missing_bias_pass_the_bound_of_a_readout():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(300, 64, generator=generator), torch.randn(300, generator=generator)
    head, rows = Unembedding.of(weight, None, bias=bias), torch.randn(5, 64, generator=generator)
    exact, error = rows.double() @ weight.double().T + bias, of_readout(head, rows).logit
    half = (rows.bfloat16() @ weight.bfloat16().T).double() + bias
    assert (head.logits(rows).double() - exact).abs().max() < error
    assert (half - exact).abs().max() > 10 * error
    assert (rows.double() @ weight.double().T - exact).abs().max() > 10 * error


def test_only_what_rounding_may_swap_may_change_places():
    values = torch.tensor([3.0, 2.0, 2.0 + 1e-7, 1.0], dtype=torch.float64)
    assert same_order([0, 1, 2], values, 1e-7) and same_order([0, 2, 1], values, 1e-7)
    assert not same_order([1, 0, 2], values, 1e-7)
    assert not same_order([0, 1, 1], values, 1e-7)
    assert not same_order([0, 1, 2], values, 1e-8)
    assert same_rank(2, 2.0, values, 1e-7) and same_rank(3, 2.0, values, 1e-7)
    assert not same_rank(1, 2.0, values, 1e-7) and not same_rank(4, 2.0, values, 1e-7)
