"""The model's own predictions and the checks of its head's transform, against dense formulas and published values."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerscope.errors import NumericError
from layerscope.model.causal_lm import CausalLM
from layerscope.readout.head import HeadPrediction, head_predictions, transform_checks
from layerscope.readout.temperature import head_log_probs
from layerscope.unembedding import HeadTransform, Unembedding
from properties import examples
from rounding import DOUBLE, PUBLISHED, SINGLE, of_readout, same_order, same_rank

SEEDS = st.integers(0, 2**32 - 1)
D_MODEL, D_VOCAB = 8, 61
NEARLY_ONE_HOT = 0.99
"""Top probability from which a published entropy, made in float32, keeps about four digits."""


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _direct(logits: list[float]) -> Unembedding:
    """A head that gives these logits for the row (1,)."""
    return Unembedding.of(torch.tensor(logits)[:, None], None)


def head_prediction(row, head, k, temperature=1.0, answer_ids=()) -> HeadPrediction:
    return head_predictions(row[None], head, k, (temperature,), answer_ids)[0]


ONE = torch.ones(1)


@given(SEEDS, st.sampled_from([0.1, 0.5, 1.0, 2.0]), st.integers(1, 70))
@examples(40)
def test_a_prediction_is_the_softmax_of_the_transformed_logits_over_the_temperature(seed, temperature, k):
    head = Unembedding.of(
        _random(seed, D_VOCAB, D_MODEL), None, bias=_random(seed + 1, D_VOCAB), transform=HeadTransform(0.7, 6.0)
    )
    row = _random(seed + 2, D_MODEL)
    z = 6 * torch.tanh(0.7 * (head.weight.tensor.double() @ row.double() + head.bias.double()) / 6) / temperature
    p = torch.softmax(z, -1)
    found = head_prediction(row, head, k, temperature, (3, 17))
    error = of_readout(head, row, temperature=temperature)
    assert found.entropy_bits == pytest.approx(
        float(-torch.special.xlogy(p, p).sum()) / math.log(2), rel=error.relative
    )
    assert same_order(found.top_ids, z, error.logit)
    assert list(found.top_probs) == pytest.approx(p[list(found.top_ids)].tolist(), rel=error.relative)
    assert found.p_answer == pytest.approx(max(p[3], p[17]).item(), rel=error.relative)
    assert same_rank(found.answer_rank, max(z[3], z[17]).item(), z, error.logit)


def test_an_even_choice_has_as_many_bits_and_goes_by_id():
    found = head_prediction(ONE, _direct([1.0, 2.0, 2.0, 2.0, 2.0, -500.0]), 3)
    four = head_prediction(ONE, _direct([2.0] * 4), 3)
    assert four.entropy_bits == pytest.approx(2.0, rel=DOUBLE)
    assert (four.top_ids, four.top_probs) == ((0, 1, 2), pytest.approx((0.25,) * 3))
    assert (four.answer_rank, four.p_answer) == (None, None)
    assert found.top_ids == (1, 2, 3)


def test_an_entropy_far_below_the_resolution_of_one_keeps_its_digits():
    # Two ids 100 apart: with e = exp(-100) it is e (1 + 100) nats to first order.
    found = head_prediction(ONE, _direct([0.0, -100.0]), 1)
    assert found.entropy_bits == pytest.approx(math.exp(-100) * 101 / math.log(2), rel=DOUBLE)


def test_a_softcap_that_rounds_logits_to_one_value_does_not_change_their_order():
    head = Unembedding.of(torch.tensor([[900.0], [1000.0], [800.0]]), None, transform=HeadTransform(softcap=1.0))
    found = head_prediction(ONE, head, 3, 1.0, (0,))
    assert found.top_ids == (1, 0, 2)
    assert found.answer_rank == 2
    assert found.top_probs == pytest.approx((1 / 3,) * 3)


def test_a_temperature_changes_probabilities_and_no_rank():
    head, row = Unembedding.of(_random(0, D_VOCAB, D_MODEL), None), _random(1, D_MODEL)
    cold, hot = (head_prediction(row, head, 5, temperature, (9,)) for temperature in (0.5, 2.0))
    assert (cold.top_ids, cold.answer_rank) == (hot.top_ids, hot.answer_rank)
    assert cold.top_probs[0] > hot.top_probs[0]
    assert cold.entropy_bits < hot.entropy_bits


def test_several_rows_are_read_from_one_sweep_each_at_its_temperature(monkeypatch):
    head, rows = Unembedding.of(_random(0, D_VOCAB, D_MODEL), None), _random(1, 3, D_MODEL)
    alone = [head_prediction(row, head, 4, temperature) for row, temperature in zip(rows, (1.0, 0.1, 2.0), strict=True)]
    sweeps, logits = [], Unembedding.logits

    def counted(self, some_rows, *args):
        sweeps.append(len(some_rows))
        return logits(self, some_rows, *args)

    monkeypatch.setattr(Unembedding, "logits", counted)
    together = head_predictions(rows, head, 4, (1.0, 0.1, 2.0))
    assert sweeps == [3]
    for row, temperature, one, other in zip(rows, (1.0, 0.1, 2.0), alone, together, strict=True):
        error = of_readout(head, row, temperature=temperature) * 2  # both are float32
        assert one.top_ids == other.top_ids
        assert one.top_probs == pytest.approx(other.top_probs, rel=error.relative)
        assert one.entropy_bits == pytest.approx(other.entropy_bits, rel=error.relative)
    with pytest.raises(ValueError, match="shorter"):
        head_predictions(rows, head, 4, (1.0, 2.0))


def test_a_row_that_is_not_finite_is_refused():
    with pytest.raises(NumericError, match="at 1 of 1 positions"):
        head_prediction(torch.full((D_MODEL,), torch.nan), Unembedding.of(_random(0, D_VOCAB, D_MODEL), None), 3)


# The head's transform


def _kl_bits(z: Tensor, log_q: Tensor) -> float:
    log_p = z.double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum()) / math.log(2)


@pytest.mark.parametrize(("scale", "softcap"), [(None, 4.0), (0.25, None), (0.25, 4.0)])
def test_the_transform_that_the_model_has_brings_the_last_row_to_it(scale, softcap):
    head = Unembedding.of(_random(0, D_VOCAB, D_MODEL) * 4, None, transform=HeadTransform(scale, softcap))
    row = _random(1, 1, D_MODEL)
    log_final, z = head_log_probs(row, head)[0], head.logits(row)[0]
    found = transform_checks(z, log_final, head.transform)
    whole = (
        found.kl_after_scale_then_softcap_bits
        if scale and softcap
        else found.kl_after_scale_bits
        if scale
        else found.kl_after_softcap_bits
    )
    assert whole == pytest.approx(0.0, abs=DOUBLE)  # the same float32 logits, transformed in float64 here and there
    assert _kl_bits(z, log_final) > 0.1  # without it they are far apart
    if scale and softcap:
        # Logits are given; one side scales and caps them in float32, which rounds each by `SINGLE` of its size.
        error = SINGLE * float(z.abs().max())
        capped = softcap * torch.tanh(z / softcap)
        assert found.kl_after_scale_bits == pytest.approx(_kl_bits(z * scale, log_final), rel=error, abs=6 * error)
        assert found.kl_after_softcap_bits == pytest.approx(_kl_bits(capped, log_final), rel=error, abs=6 * error)
        assert min(found.kl_after_scale_bits, found.kl_after_softcap_bits) > 1e-4
    else:
        assert found.kl_after_scale_then_softcap_bits is None
        assert (found.kl_after_scale_bits is None, found.kl_after_softcap_bits is None) == (
            scale is None,
            softcap is None,
        )


def test_checks_leave_the_logits_as_they_are():
    z = _random(0, D_VOCAB).double()
    before = z.clone()
    transform_checks(z, z.log_softmax(-1), HeadTransform(0.5, 3.0))
    assert torch.equal(z, before)


def test_a_head_without_transform_has_nothing_to_check():
    z = _random(0, D_VOCAB)
    found = transform_checks(z, z.log_softmax(-1), HeadTransform())
    assert (found.kl_after_scale_bits, found.kl_after_softcap_bits, found.kl_after_scale_then_softcap_bits) == (
        None,
        None,
        None,
    )


# The published model


@pytest.fixture(scope="module")
def tiny_qwen3(shared: Path) -> CausalLM:
    return CausalLM.open(shared / "reference" / "tiny-qwen3" / "model")


@pytest.fixture(scope="module")
def published(shared: Path) -> dict:
    return json.loads((shared / "reference/tiny-qwen3/published/output-tiny-qwen3.json").read_text())


def _final_rows(model: CausalLM, prompts: list[str]) -> Tensor:
    residuals = model.forward([model.tokens.input_ids(prompt) for prompt in prompts], n_logits=1)
    return model.final_norm(residuals.last())


def _agree(found: HeadPrediction, block: dict, model: CausalLM) -> None:
    texts = model.tokens.display(found.top_ids)
    assert [texts[token_id] for token_id in found.top_ids] == [token for token, _ in block["topk"]]
    # Two float32 passes of a model of eight blocks and width 128 lie up to 1e-5 of a logit of ten apart: 1e-4. The
    # published probabilities are floored at 1e-12, and their entropy of a sure row is a sum of such floors.
    assert found.top_probs == pytest.approx([p for _, p in block["topk"]], rel=PUBLISHED, abs=1e-6)
    blur = 2e-5 if found.top_probs[0] > NEARLY_ONE_HOT else 1e-6
    assert found.entropy_bits == pytest.approx(block["entropy"], rel=1e-4, abs=blur)


def test_every_published_test_prompt_is_ours(tiny_qwen3, published):
    blocks = published["test_prompts"]
    rows = _final_rows(tiny_qwen3, [block["prompt"] for block in blocks])
    found = head_predictions(rows, tiny_qwen3.unembedding, 10)
    assert len(blocks) == 14
    for prediction, block in zip(found, blocks, strict=True):
        _agree(prediction, block, tiny_qwen3)


def test_the_published_final_prediction_is_ours(tiny_qwen3, published):
    row = _final_rows(tiny_qwen3, [published["prompt"]["context_prompt"]])[0]
    answer = published["gold_answer"]["first_id"]
    found = head_prediction(row, tiny_qwen3.unembedding, 20, 1.0, (answer,))
    _agree(found, published["final_prediction"], tiny_qwen3)
    assert (found.answer_rank, found.p_answer) == (1, found.top_probs[0])


def test_the_published_temperature_exploration_is_ours(tiny_qwen3, published):
    row = _final_rows(tiny_qwen3, [published["prompt"]["context_prompt"]])[0]
    cold, hot = published["temperature_exploration"]
    assert (cold["temperature"], hot["temperature"]) == (0.1, 2.0)
    _agree(head_prediction(row, tiny_qwen3.unembedding, 15, 2.0), hot, tiny_qwen3)
    found = head_prediction(row, tiny_qwen3.unembedding, 15, 0.1)
    # At a tenth the published probabilities are float32's smallest, of which none is left below the third.
    _agree(found, cold, tiny_qwen3)
    assert found.entropy_bits == pytest.approx(cold["entropy"], rel=0.05)
    assert found.top_probs[1] == pytest.approx(cold["topk"][1][1], rel=0.05)
