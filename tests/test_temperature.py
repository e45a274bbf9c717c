"""Temperatures sit where theory and a dense computation put them, and where the published runs did."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerscope.errors import NumericError
from layerscope.lenses import bind_lenses
from layerscope.model.causal_lm import CausalLM
from layerscope.readout.temperature import (
    TAU_GRID,
    NormTemperatures,
    fit_norm_temperatures,
    head_log_probs,
    kl_bits,
    last_layer_temperature,
)
from layerscope.suite import load_suite
from layerscope.unembedding import HeadTransform, Unembedding
from properties import examples
from rounding import DOUBLE, PUBLISHED, SINGLE, of_readout

SEEDS = st.integers(0, 2**32 - 1)
IDENTITY = HeadTransform()
D_MODEL, D_VOCAB = 8, 61


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _head(seed: int = 0, **parts) -> Unembedding:
    return Unembedding.of(_random(seed, D_VOCAB, D_MODEL), None, **parts)


def _cross_entropy(z: Tensor, log_final: Tensor, tau: float) -> float:
    """Mean over rows of -sum p_F log softmax(z / tau), as it is written."""
    return float(-(log_final.exp() * torch.log_softmax(z / tau, -1)).sum(-1).mean())


def _fit(rows: Tensor, final_rows: Tensor, head: Unembedding, *, legacy: bool = False, **options) -> NormTemperatures:
    return fit_norm_temperatures(rows, final_rows, head, lens_transform=IDENTITY, legacy=legacy, **options)


def _tau_error(head: Unembedding, rows: Tensor, final_rows: Tensor) -> float:
    """Relative error of a temperature fitted to float32 logits.

    Where the cross-entropy's slope is zero, its curvature is the variance of the logits under the lens' distribution,
    and errors e of the logits move the slope by e times their standard deviation: tau by e over the deviation.
    """
    z = head.logits(final_rows).double()
    p = z.softmax(-1)
    deviation = ((p * z**2).sum(-1) - (p * z).sum(-1) ** 2).sqrt().min()
    return 2 * of_readout(head, rows, final_rows).logit / float(deviation) + SINGLE


# Divergence


def test_a_divergence_worked_by_hand():
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 log2 2 + 1/2 log2 2/3 = 1 - 1/2 log2 3
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl_bits(p, q).item() == pytest.approx(1 - 0.5 * math.log2(3), abs=SINGLE)  # float32 logs


@given(SEEDS)
def test_a_divergence_is_that_of_torch_where_no_probability_is_tiny(seed):
    p, q = _random(seed, 2, 3, 20).double().log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1) / math.log(2)
    torch.testing.assert_close(kl_bits(p, q), expected, rtol=DOUBLE, atol=DOUBLE)
    assert kl_bits(p, p).tolist() == [0.0] * 3


def test_what_the_reference_forbids_costs_the_floor_and_no_more():
    p, q = torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0])
    assert kl_bits(p, q).item() == pytest.approx(30 * math.log2(10), rel=DOUBLE)


def test_rounding_below_zero_is_zero_and_more_than_that_is_shown():
    q = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    assert kl_bits(q - 1e-7, q).item() == 0.0
    assert kl_bits(q - 1e-3, q).item() < -1e-4  # no distribution, and it shows


# A temperature for each layer


@given(SEEDS, st.floats(0.25, 4.0))
@examples(30)
def test_logits_that_are_a_multiple_of_the_models_have_that_multiple_as_temperature(seed, tau):
    head, final = _head(seed), _random(seed + 1, 3, D_MODEL)
    found = _fit((final * tau)[None], final, head)
    assert found.tau[0] == pytest.approx(tau, rel=_tau_error(head, final * max(1.0, tau), final))
    assert found.bound_hits == 0


@given(SEEDS, st.floats(0.01, 300.0))
@examples(60)
def test_no_temperature_near_by_or_on_the_grid_has_a_smaller_cross_entropy(seed, size):
    head, final = _head(seed), _random(seed + 1, 2, D_MODEL)
    rows = size * (_random(seed + 2, 3, 2, D_MODEL) + 0.3 * final)
    found = _fit(rows, final, head)
    log_final = head_log_probs(final, head)
    for tau, z in zip(found.tau, head.logits(rows.flatten(0, 1)).double().view(3, 2, -1), strict=True):
        least = _cross_entropy(z, log_final, tau)
        tolerance = 1e-11 * max(1.0, least)  # float64 sums of terms up to 1e4 times the mean
        for other in (*TAU_GRID, tau * 0.999, tau * 1.001):
            if 0.2 <= other <= 5.0:
                assert least <= _cross_entropy(z, log_final, other) + tolerance


@given(SEEDS)
@examples(20)
def test_inside_the_range_the_cross_entropys_slope_is_zero(seed):
    head, final = _head(seed), _random(seed + 1, 2, D_MODEL)
    rows = final + 0.5 * _random(seed + 2, 2, 2, D_MODEL)
    found = _fit(rows, final, head)
    p_final = head_log_probs(final, head).exp()
    for tau, z in zip(found.tau, head.logits(rows.flatten(0, 1)).double().view(2, 2, -1), strict=True):
        if 0.2 < tau < 5.0:
            inverse = torch.tensor(1 / tau, dtype=torch.float64, requires_grad=True)
            (-(p_final * torch.log_softmax(z * inverse, -1)).sum(-1).mean()).backward()
            assert abs(inverse.grad.item()) < 1e-10


@pytest.mark.parametrize("legacy", [True, False])
def test_a_layer_beyond_the_range_stands_on_its_bound_and_is_counted(legacy):
    head, final = _head(), _random(1, 3, D_MODEL)
    found = _fit(torch.stack([final * 20, final, final / 20, final * -1]), final, head, legacy=legacy)
    lowest = TAU_GRID[0] if legacy else 0.2
    assert found.tau == (5.0, pytest.approx(1.0, rel=_tau_error(head, final, final)), lowest, 5.0)
    assert found.bound_hits == 3


def test_the_grids_best_point_is_found_by_trying_all():
    head, final = _head(), _random(1, 2, D_MODEL)
    rows = final + _random(2, 12, 2, D_MODEL)
    log_final = head_log_probs(final, head)
    logits = head.logits(rows.flatten(0, 1)).double().view(12, 2, -1)
    expected = tuple(min(TAU_GRID, key=lambda tau: _cross_entropy(z, log_final, tau)) for z in logits)
    assert _fit(rows, final, head, legacy=True).tau == expected
    assert len(set(expected)) > 3


def test_the_grid_is_even_in_the_logarithm_with_one_in_the_middle():
    assert len(TAU_GRID) == 25
    assert TAU_GRID[12] == 1.0
    assert list(TAU_GRID) == pytest.approx([0.2 * 25 ** (i / 24) for i in range(25)], rel=SINGLE)


def test_a_layer_without_preference_keeps_temperature_one():
    found = _fit(torch.zeros(1, 2, D_MODEL), _random(1, 2, D_MODEL), _head())
    assert found == NormTemperatures((1.0,), 0)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_layer_that_is_not_finite_has_no_temperature_and_disturbs_no_other(legacy, broken):
    """An infinite row must not hide behind a softcap, which makes its logits finite again."""
    head, final = _head(transform=HeadTransform(softcap=5.0)), _random(1, 2, D_MODEL)
    rows = final + 0.3 * _random(2, 3, 2, D_MODEL)
    sound = fit_norm_temperatures(rows, final, head, lens_transform=None, legacy=legacy)
    rows[1, 0, 0] = broken
    found = fit_norm_temperatures(rows, final, head, lens_transform=None, legacy=legacy)
    assert found.tau == (sound.tau[0], None, sound.tau[2])


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tight_budget_changes_the_blocks_and_no_temperature(legacy, monkeypatch):
    head, final = _head(), _random(1, 2, D_MODEL)
    rows = final + 0.5 * _random(2, 7, 2, D_MODEL)
    whole = _fit(rows, final, head, legacy=legacy)
    sizes, logits = [], Unembedding.logits

    def counted(self, some_rows, *args):
        sizes.append(len(some_rows))
        return logits(self, some_rows, *args)

    monkeypatch.setattr(Unembedding, "logits", counted)
    found = _fit(rows, final, head, legacy=legacy, budget_bytes=3 * 2 * D_VOCAB * 4 + 5)
    assert sizes == [2, 6, 6, 2]  # the final rows, then three layers at a time
    error = 2 * _tau_error(head, rows, final)
    assert found.tau == pytest.approx(whole.tau, rel=error)
    assert _fit(rows, final, head, legacy=legacy, budget_bytes=1).tau == pytest.approx(whole.tau, rel=error)


def test_the_heads_own_transform_is_the_lens_where_none_is_given():
    head, final = _head(transform=HeadTransform(scale=0.5, softcap=2.0)), _random(1, 3, D_MODEL)
    own = fit_norm_temperatures(final[None], final, head, lens_transform=None, legacy=False)
    plain = fit_norm_temperatures(final[None], final, head, lens_transform=IDENTITY, legacy=False)
    assert own.tau[0] == pytest.approx(1.0, rel=_tau_error(head, final, final))
    assert plain.tau[0] > 1.5  # untransformed logits are larger, so they want dividing


def test_bias_and_projection_of_a_head_are_part_of_its_logits():
    head = _head(bias=_random(3, D_VOCAB), projection=_random(4, D_MODEL, 5))
    final = _random(1, 2, 5)
    rows = final + 0.3 * _random(2, 1, 2, 5)
    z, z_final = (
        x.double() @ head.projection.T.double() @ head.weight.tensor.T.double() + head.bias for x in (rows, final)
    )
    log_final = z_final.log_softmax(-1)
    torch.testing.assert_close(head_log_probs(final, head), log_final, rtol=0, atol=of_readout(head, final).log_prob)
    expected = min(TAU_GRID, key=lambda tau: _cross_entropy(z[0], log_final, tau))
    assert _fit(rows, final, head, legacy=True).tau == (expected,)


def test_the_order_of_vocabulary_ids_does_not_matter():
    final = _random(1, 2, D_MODEL)
    rows = final + 0.5 * _random(2, 4, 2, D_MODEL)
    weight, order = _random(0, D_VOCAB, D_MODEL), torch.randperm(D_VOCAB, generator=torch.Generator().manual_seed(5))
    found, permuted = (_fit(rows, final, Unembedding.of(w, None)) for w in (weight, weight[order].contiguous()))
    assert permuted.tau == pytest.approx(found.tau, rel=2 * _tau_error(Unembedding.of(weight, None), rows, final))


def test_a_model_that_is_not_finite_is_refused():
    final = _random(1, 2, D_MODEL)
    final[1, 0] = torch.nan
    with pytest.raises(NumericError, match="at 1 of 2 positions"):
        _fit(final[None], final, _head())


# The last layer


def test_the_last_layers_temperature_is_on_the_grid_where_the_truth_is():
    final = _random(1, D_VOCAB).double().log_softmax(-1)
    found = last_layer_temperature(final * 10**0.5, final)  # the grid's 19th point
    assert found.temp_est == pytest.approx(10**0.5, rel=SINGLE)  # a float32 grid
    assert found.kl_after_temp_bits < SINGLE**2 * 10  # half the squared error of the logits, which spread by 4
    assert last_layer_temperature(final, final).temp_est == 1.0
    # The divergence is a parabola about 1 that float64 cannot tell from zero within the square root of 2^-53: 1e-8.
    assert last_layer_temperature(final, final).temp_est_refined == pytest.approx(1.0, rel=1e-6)


@given(SEEDS, st.floats(0.11, 9.0))
@examples(30)
def test_refining_finds_a_temperature_between_the_grids_points(seed, temperature):
    final = (2 * _random(seed, D_VOCAB)).double().log_softmax(-1)
    found = last_layer_temperature(final * temperature, final)
    assert found.temp_est_refined == pytest.approx(temperature, rel=2e-3)  # the search stops at such a step
    assert found.temp_est == pytest.approx(temperature, rel=0.22)  # one step of the grid is a factor 1.21
    assert 0.0 <= found.kl_after_temp_refined_bits <= found.kl_after_temp_bits
    assert found.kl_after_temp_refined_bits < 2e-6


@given(SEEDS, st.floats(0.01, 100.0))
@examples(30)
def test_no_point_of_a_finer_grid_near_the_best_is_better(seed, size):
    final = _random(seed, D_VOCAB).double().log_softmax(-1)
    z = size * (_random(seed + 1, D_VOCAB).double() + final)

    def divergence(s: float) -> float:
        p = (z / s).log_softmax(-1)
        return float((p.exp() * (p.clamp_min(math.log(1e-30)) - final)).sum()) / math.log(2)

    found = last_layer_temperature(z, final)
    coarse = [10 ** (i / 12) for i in range(-12, 13)]
    # The grid is float32 there and float64 here: temperatures, and with them logits up to some 20, are off by SINGLE.
    assert found.kl_after_temp_bits == pytest.approx(min(map(divergence, coarse)), rel=1e-5, abs=1e-5)
    assert found.kl_after_temp_refined_bits <= found.kl_after_temp_bits
    assert found.kl_after_temp_refined_bits == pytest.approx(divergence(found.temp_est_refined), rel=1e-9, abs=1e-6)
    low, high = max(0.1, found.temp_est / 1.21), min(10.0, found.temp_est * 1.21)
    fine = [low * (high / low) ** (i / 200) for i in range(201)]
    assert found.kl_after_temp_refined_bits <= min(map(divergence, fine)) + 1e-5


# The published runs


@pytest.fixture(scope="module")
def tiny_qwen3(shared: Path) -> CausalLM:
    return CausalLM.open(shared / "reference" / "tiny-qwen3" / "model")


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    return shared / "reference" / "tiny-qwen3" / "published"


@pytest.fixture(scope="module")
def calibration(tiny_qwen3: CausalLM) -> tuple[Tensor, Tensor]:
    """Lens rows `[layer, prompt]` and final rows of the first fact's two prompts and the control."""
    prompts = load_suite("capitals").prompts
    ids = [tiny_qwen3.tokens.input_ids(prompt.text) for prompt in (prompts[0], prompts[1], prompts[-1])]
    residuals = tiny_qwen3.forward(ids, n_logits=1)
    (lens,) = bind_lenses(("next_norm",), final_norm=tiny_qwen3.final_norm, next_norms=tiny_qwen3.next_norms)
    at_next = residuals.select([[n - 1] for n in residuals.lengths])
    rows = torch.stack([lens(at_layer, layer) for layer, at_layer in enumerate(at_next)])
    return rows, tiny_qwen3.final_norm(residuals.last())


def test_the_grids_temperatures_are_those_published(tiny_qwen3, published, calibration):
    expected = json.loads((published / "output-tiny-qwen3.json").read_text())["diagnostics"]["tau_norm_per_layer"]
    found = _fit(*calibration, tiny_qwen3.unembedding, legacy=True)
    assert list(found.tau) == expected
    assert found.bound_hits == 0


def test_divergences_after_the_temperature_are_those_published(tiny_qwen3, published, calibration):
    rows, final_rows = calibration
    with (published / "output-tiny-qwen3-pure-next-token.csv").open(newline="", encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file, escapechar="\\") if row["fact_index"] in ("0", "")]
    tau = _fit(rows, final_rows, tiny_qwen3.unembedding, legacy=True).tau
    log_final = head_log_probs(final_rows, tiny_qwen3.unembedding)
    prompts = {("pos", "orig"): 0, ("pos", "no_filler"): 1, ("ctl", "orig"): 2}
    assert len(table) == 27
    for row in table:
        layer, i = int(row["layer"]), prompts[row["prompt_id"], row["prompt_variant"]]
        logits = tiny_qwen3.unembedding.logits(rows[layer, i : i + 1])[0].double()
        found = kl_bits(torch.log_softmax(logits / tau[layer], -1), log_final[i]).item()
        # Published from float32 logits, whose rounding leaves 1e-5 bits, and so does that of ours; all in float64 the
        # worst row is ours to 1e-7.
        assert found == pytest.approx(float(row["kl_to_final_bits_norm_temp"]), rel=PUBLISHED, abs=2e-5)


def test_the_exact_temperatures_stand_next_to_the_grids(tiny_qwen3, calibration):
    grid, exact = (_fit(*calibration, tiny_qwen3.unembedding, legacy=legacy).tau for legacy in (True, False))
    step = 25 ** (1 / 24)
    assert all(b / step <= a <= b * step for a, b in zip(exact, grid, strict=True))
    # The last layer's is 1 up to the rounding of logits of some 10 (1e-5); the grid's steps are 14 % apart.
    assert sum(a == pytest.approx(b, rel=1e-5) for a, b in zip(exact, grid, strict=True)) == 1


def test_the_last_layer_of_the_published_model_needs_no_temperature(tiny_qwen3, published, calibration):
    expected = json.loads((published / "output-tiny-qwen3.json").read_text())["diagnostics"]["last_layer_consistency"]
    rows, final_rows = calibration
    log_final = head_log_probs(final_rows[:1], tiny_qwen3.unembedding)[0]
    logits = tiny_qwen3.unembedding.logits(rows[-1, :1])[0]
    found = last_layer_temperature(logits, log_final)
    assert found.temp_est == expected["temp_est"] == 1.0
    assert found.kl_after_temp_bits == pytest.approx(expected["kl_after_temp_bits"], abs=1e-6)
    assert log_final.max().exp().item() == pytest.approx(expected["p_top1_model"], rel=PUBLISHED)
    before = kl_bits(torch.log_softmax(logits.double(), -1), log_final).item()
    assert before == pytest.approx(expected["kl_to_final_bits"], abs=1e-6)


def test_every_published_temperature_of_a_layer_is_a_point_of_the_grid(shared):
    values = set()
    for path in (shared / "reference").glob("run-*/output-*.json"):
        values |= set(json.loads(path.read_text())["diagnostics"].get("tau_norm_per_layer") or [])
    assert values == set(TAU_GRID)
