"""The lenses that need no fitting: which norm each applies at which layer."""

import pytest
import torch

from layerscope.errors import LensError
from layerscope.lenses import LENS_NAMES, bind_lenses
from layerscope.unembedding import Norm

RESIDUAL = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def _norm(number: float, source: str) -> Norm:
    return Norm("rms", torch.full((8,), number), None, 1e-6, source)


FINAL = _norm(9.0, "ln_final")
NEXT = (_norm(1.0, "blocks[0].ln1"), None, FINAL)


def _bind(*names: str, final_norm: Norm | None = FINAL):
    return bind_lenses(names, final_norm=final_norm, next_norms=NEXT)


def test_the_logit_lens_applies_the_final_norm_at_every_layer():
    (lens,) = _bind("logit")
    for layer in range(3):
        assert torch.equal(lens(RESIDUAL, layer), FINAL(RESIDUAL))
        assert lens.source(layer) == "ln_final"


def test_a_model_without_a_final_norm_is_decoded_as_it_is():
    (lens,) = _bind("logit", final_norm=None)
    assert lens(RESIDUAL, 2) is RESIDUAL
    assert lens.source(2) == "raw"


def test_the_next_norm_lens_applies_the_norm_of_the_next_reader():
    (lens,) = _bind("next_norm")
    assert torch.equal(lens(RESIDUAL, 0), NEXT[0](RESIDUAL))
    assert not torch.allclose(lens(RESIDUAL, 0), FINAL(RESIDUAL))
    assert [lens.source(layer) for layer in range(3)] == ["blocks[0].ln1", "raw", "ln_final"]


def test_the_next_norm_lens_leaves_a_residual_that_is_read_without_a_norm():
    (lens,) = _bind("next_norm")
    assert lens(RESIDUAL, 1) is RESIDUAL


def test_after_the_last_block_next_norm_and_logit_are_one_lens():
    logit, next_norm = _bind("logit", "next_norm")
    assert torch.equal(logit(RESIDUAL, 2), next_norm(RESIDUAL, 2))


def test_the_raw_lens_gives_the_residual_itself():
    (lens,) = _bind("raw")
    assert all(lens(RESIDUAL, layer) is RESIDUAL and lens.source(layer) == "raw" for layer in range(3))


def test_lenses_come_in_the_order_asked_for():
    assert [lens.name for lens in _bind("raw", "logit", "next_norm")] == ["raw", "logit", "next_norm"]
    assert [lens.name for lens in _bind(*LENS_NAMES)] == ["logit", "next_norm", "raw"]


def test_an_unknown_lens_is_refused_with_the_choices():
    with pytest.raises(
        LensError, match=r"no lens called 'norm'; choose from logit, .*, tuned, prism, ridge, jacobian\."
    ):
        _bind("logit", "norm")


def test_a_lens_asked_for_twice_and_no_lens_at_all_are_refused():
    with pytest.raises(LensError, match=r"once, but the list is raw, raw\."):
        _bind("raw", "raw")
    with pytest.raises(
        LensError, match=r"No lens was asked for; choose from logit, .*, tuned, prism, ridge, jacobian\."
    ):
        _bind()
