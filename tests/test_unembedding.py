"""Norms against torch's own modules, the head transform against its formula, and the head in slices.

Tolerances. `assert_close` allows 1e-5 and 1.3e-6 of the value: float32 products of at most 16 terms below 5 are 5e-6
off.
"""

import math

import pytest
import torch

import layerscope.unembedding as unembedding
from layerscope.errors import ModelError
from layerscope.unembedding import HeadTransform, Norm, Unembedding

X = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
GAIN = torch.rand(16, generator=torch.Generator().manual_seed(1)) + 0.5
BIAS = torch.randn(16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("with_gain", [True, False])
def test_an_rms_norm_equals_torchs(eps, with_gain):
    theirs = torch.nn.RMSNorm(16, eps=eps, elementwise_affine=with_gain)
    if with_gain:
        theirs.weight.data = GAIN
    found = Norm("rms", GAIN if with_gain else None, None, eps, "n")(X)
    torch.testing.assert_close(found, theirs(X).detach())


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize(("with_gain", "with_bias"), [(True, True), (True, False), (False, False)])
def test_a_layer_norm_equals_torchs(eps, with_gain, with_bias):
    theirs = torch.nn.LayerNorm(16, eps=eps, elementwise_affine=with_gain, bias=with_bias)
    if with_gain:
        theirs.weight.data = GAIN
    if with_bias:
        theirs.bias.data = BIAS
    found = Norm("layer", GAIN if with_gain else None, BIAS if with_bias else None, eps, "n")(X)
    torch.testing.assert_close(found, theirs(X).detach())


def test_a_norms_epsilon_sits_inside_the_square_root():
    # A row of ones has mean square 1; with eps 3 the root is 2.
    assert torch.equal(Norm("rms", None, None, 3.0, "n")(torch.ones(1, 4)), torch.full((1, 4), 0.5))


def test_a_norm_computes_in_float32_whatever_it_is_given():
    half = X.to(torch.bfloat16)
    found = Norm("rms", GAIN, None, 1e-6, "n")(half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Norm("rms", GAIN, None, 1e-6, "n")(half.float()))


def test_a_norm_leaves_its_residual_alone():
    before = X.clone()
    Norm("layer", GAIN, BIAS, 1e-6, "n")(X)
    assert torch.equal(X, before)


def test_the_head_transform_is_the_scale_and_then_the_softcap():
    found = HeadTransform(scale=2.0, softcap=5.0).apply_(torch.tensor([[0.0, 1.0, -10.0]]))
    due = [[0.0, 5 * math.tanh(2 / 5), 5 * math.tanh(-20 / 5)]]
    torch.testing.assert_close(found, torch.tensor(due))


def test_the_head_transform_works_in_place():
    logits = torch.ones(1, 3)
    assert HeadTransform(scale=3.0).apply_(logits) is logits
    assert logits.tolist() == [[3.0, 3.0, 3.0]]


def test_a_transform_that_does_nothing_says_so_and_does_nothing():
    assert HeadTransform().is_identity and HeadTransform(scale=1.0).is_identity
    assert not HeadTransform(softcap=30.0).is_identity and not HeadTransform(scale=2.0).is_identity
    logits = torch.randn(2, 3)
    assert torch.equal(HeadTransform(scale=1.0).apply_(logits.clone()), logits)


@pytest.mark.parametrize("name", ["scale", "softcap"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_transform_that_would_turn_ranks_around_is_refused(name, value):
    with pytest.raises(ModelError, match=f"head's {name} should be a positive number, but the config says"):
        HeadTransform(**{name: value})


WEIGHT = torch.randn(10, 6, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
HEAD_BIAS = torch.randn(10, generator=torch.Generator().manual_seed(4))
ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("n_ids", [1, 3, 64, 65, 300])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
def test_logits_are_the_product_with_the_weight_however_many_tiles_it_takes(n_ids, biased, monkeypatch):
    monkeypatch.setattr(unembedding, "LOGITS_TILE_BYTES", 1)  # tiles of 64 ids, the fewest
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(n_ids, 6, generator=generator).to(torch.bfloat16)
    bias = torch.randn(n_ids, generator=generator) if biased else None
    head = Unembedding.of(weight, None, bias=bias)
    due = torch.nn.functional.linear(ROWS, weight.float(), bias)
    torch.testing.assert_close(head.logits(ROWS), due)


def test_logits_of_a_few_ids_are_those_of_all():
    head = Unembedding.of(WEIGHT, None, bias=HEAD_BIAS)
    ids = torch.tensor([9, 0, 0, 4])
    torch.testing.assert_close(head.linear_logits(ROWS, ids), head.logits(ROWS)[:, ids])


def test_a_tile_is_the_stored_rows_in_float32_in_the_buffer_that_is_given():
    head = Unembedding.of(WEIGHT, None)
    buffer = torch.full((4, 6), torch.nan)
    found = head.tile(8, 10, out=buffer)
    assert torch.equal(found, WEIGHT[8:10].float())
    assert found.data_ptr() == buffer.data_ptr()
    assert torch.equal(head.tile(8, 10), found)
    assert torch.equal(head.columns(torch.tensor([9, 8])), found.flip(0))


def test_a_projection_stands_between_residual_and_head():
    projection = torch.randn(6, 8, generator=torch.Generator().manual_seed(6))
    head = Unembedding.of(WEIGHT, None, projection=projection)
    rows = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(head.head_input(rows), torch.nn.functional.linear(rows, projection))
    assert (head.d_vocab, head.d_head) == (10, 6)
    plain = Unembedding.of(WEIGHT, None)
    assert plain.head_input(ROWS) is ROWS
