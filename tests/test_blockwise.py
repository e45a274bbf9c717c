"""A pass block by block over many texts equals the passes of each text alone."""

import pytest
import torch

from layerscope.errors import ModelError
from layerscope.model.causal_lm import CausalLM
from rounding import of_residual
from tiny_models import D_VOCAB, by_family, reference

TOLERANCE = of_residual(n_blocks=4, d_model=64)
EVERY = pytest.mark.parametrize("name", by_family())


def layers_of(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """The stream at every layer, `[layer, batch, sequence, position, d_model]`, kept while the blocks run."""
    residuals = torch.full((*ids.shape, model.d_model), torch.nan)
    seen: list[torch.Tensor] = []
    order: list[int] = []

    def after(layer: int) -> None:
        order.append(layer)
        seen.append(residuals.clone())

    model.forward_blockwise(ids, residuals, after)
    assert order == list(range(model.n_layers + 1))
    return torch.stack(seen)


@EVERY
def test_every_layer_of_every_batch_is_what_transformers_computes_for_that_text_alone(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    width = min(9, model.n_context or 9)
    ids = torch.randint(D_VOCAB, (3, 2, width), generator=torch.Generator().manual_seed(5))
    ids[..., 0] = 0
    found = layers_of(model, ids)
    for batch in range(3):
        for sequence in range(2):
            expected = reference(tiny(name), ids[batch, sequence].tolist()).residuals
            own = found[:, batch, sequence]
            assert (own - expected).abs().max() <= TOLERANCE * expected.abs().max()


@EVERY
def test_a_pass_goes_on_at_the_layer_reached_as_if_it_had_never_stopped(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    width = min(9, model.n_context or 9)
    ids = torch.randint(D_VOCAB, (3, 2, width), generator=torch.Generator().manual_seed(5))
    whole = layers_of(model, ids)
    for reached in {0, 1, model.n_layers - 1, model.n_layers}:
        residuals, seen = whole[reached].clone(), {}
        model.forward_blockwise(
            ids, residuals, lambda layer, seen=seen, now=residuals: seen.update({layer: now.clone()}), reached=reached
        )
        assert list(seen) == list(range(reached + 1, model.n_layers + 1))
        assert all(torch.equal(stream, whole[layer]) for layer, stream in seen.items())


def test_one_batch_is_enough(tiny):
    ids = torch.randint(D_VOCAB, (1, 2, 5), generator=torch.Generator().manual_seed(1))
    found = layers_of(CausalLM.open(tiny("llama-rope3"), device="cpu"), ids)
    expected = reference(tiny("llama-rope3"), ids[0, 1].tolist()).residuals
    torch.testing.assert_close(found[:, 0, 1], expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_a_model_that_hands_its_blocks_something_of_the_text_is_refused(tiny):
    model = CausalLM.open(tiny("llama-rope3"), device="cpu")
    block = model._module.model.layers[0]

    def colour(module, args, kwargs):
        return args, {**kwargs, "per_text": args[0].mean()}

    block.register_forward_pre_hook(colour, with_kwargs=True, prepend=True)
    ids = torch.randint(D_VOCAB, (2, 1, 5), generator=torch.Generator().manual_seed(1))
    with pytest.raises(ModelError, match="depends on the text"):
        layers_of(model, ids)


def test_a_pass_that_is_broken_off_leaves_the_model_fit_for_the_next(tiny):
    model = CausalLM.open(tiny("mixtral"), device="cpu")
    ids = torch.randint(D_VOCAB, (2, 1, 5), generator=torch.Generator().manual_seed(1))
    residuals = torch.zeros(*ids.shape, model.d_model)

    def stop(layer: int) -> None:
        if layer == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.forward_blockwise(ids, residuals, stop)
    again = layers_of(model, ids)
    assert torch.equal(again, layers_of(model, ids))
