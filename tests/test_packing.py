"""Prompts folded into trees: the model reads what they begin with once, and computes what it does for each alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerscope.model import packing
from layerscope.model.causal_lm import CausalLM
from layerscope.model.packing import fold, packed
from layerscope.stored.weight import DenseWeight
from properties import examples
from rounding import of_residual
from tiny_models import PROMPTS, WINDOW, by_family, reference

TOLERANCE = of_residual(n_blocks=4, d_model=64)
FAMILY = [[0, 301, 12, 88], [0, 301, 12], [0, 301, 55, 1], [7, 2], [0, 301, 12, 88], [0, 9, 5]]
"""No longer than a sliding window; one is another's beginning, one comes twice, one shares nothing."""
UNFOLDED = {"bloom", "falcon-alibi", "llama-dynamic-rope", "phi3-longrope", "phi3-longrope-switching"}
"""ALiBi counts along the batch, and a rotary period that follows the length must see one prompt's."""
EVERY = pytest.mark.parametrize("name", by_family())


@examples(100)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12),
    st.sampled_from([1, 12, 256]),
)
def test_a_token_sees_what_stands_before_it_in_its_own_prompt_and_nothing_else(prompts: list[list[int]], limit: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PACK_TOKENS", limit)
        patch.setattr(packing, "WORTH", float("inf"))
        folding = fold(prompts)
    assert folding is not None
    trees = packed(folding)
    longest = max(map(len, prompts))
    assert trees.token_ids.shape == (len(folding.trees), folding.width)
    assert folding.width <= (limit if longest <= limit else longest + limit)
    for i, prompt in enumerate(prompts):
        tree, nodes = trees.tree[i], trees.nodes[i]
        assert trees.token_ids[tree, nodes[: len(prompt)]].tolist() == prompt
        assert trees.positions[tree, nodes[: len(prompt)]].tolist() == list(range(len(prompt)))
        assert (nodes[len(prompt) :] == nodes[len(prompt) - 1]).all()
        for position in range(len(prompt)):
            seen = trees.sees[tree, 0, nodes[position]].nonzero()[:, 0].tolist()
            assert seen == nodes[: position + 1].tolist()
    assert trees.sees.any(-1).all()  # a row that sees nothing would be NaN
    beginnings = {tuple(prompt[: n + 1]) for prompt in prompts for n in range(len(prompt))}
    if len(folding.trees) == 1:
        assert folding.n_tokens == len(beginnings)


def test_prompts_that_share_nothing_and_are_of_one_length_stay_a_batch():
    assert fold([[1, 2, 3], [4, 5, 6]]) is None
    assert fold([[1, 2, 3]]) is None


@EVERY
def test_folded_prompts_get_what_transformers_computes_for_each_alone(name: str, tiny):
    assert max(map(len, FAMILY)) <= WINDOW
    model = CausalLM.open(tiny(name), device="cpu")
    assert (model.folding(FAMILY) is None) == (name in UNFOLDED)
    assert_as_transformers(model, FAMILY, name, tiny)


@EVERY
def test_padded_prompts_do_so_too(name: str, tiny, monkeypatch):
    monkeypatch.setattr(packing, "fold", lambda token_ids: None)
    assert_as_transformers(CausalLM.open(tiny(name), device="cpu"), PROMPTS, name, tiny)


def assert_as_transformers(model: CausalLM, prompts, name: str, tiny) -> None:
    found = model.forward(prompts)
    for i, ids in enumerate(prompts):
        expected = reference(tiny(name), list(ids))
        own = found.values[i, :, : len(ids)]
        assert (own - expected.residuals).abs().max() <= TOLERANCE * expected.residuals.abs().max()
        assert (found.logits[i] - expected.logits[-1]).abs().max() <= TOLERANCE * expected.logits.abs().max()


@pytest.mark.parametrize("name", ["mistral", "gemma3", "phi3"])
def test_prompts_beyond_a_sliding_window_are_not_folded(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    long = [[*range(WINDOW), 5], [*range(WINDOW), 6]]
    assert model.folding(long) is None
    assert model.folding([ids[1:] for ids in long]) is not None


def test_what_is_not_finite_in_one_prompt_stays_in_it(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    whole = model.forward(FAMILY)
    table = model._module.model.embed_tokens._table.stored.tensor.clone()
    table[55] = torch.nan
    model._module.model.embed_tokens._table.stored = DenseWeight(table)
    found = model.forward(FAMILY)
    for i, ids in enumerate(FAMILY):
        own, before = found.values[i, :, : len(ids)], whole.values[i, :, : len(ids)]
        assert bool(found.logits[i].isnan().any()) == (55 in ids)
        if 55 in ids:
            assert own[-1, ids.index(55) :].isnan().all()
        else:
            assert (own - before).abs().max() <= TOLERANCE * before.abs().max()


def test_memory_is_planned_for_what_the_model_reads(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    alike = [[*range(20), i] for i in range(20, 28)]
    apart = [[*range(i, i + 21)] for i in range(8)]
    heads = model.n_heads or 0
    assert model.activation_numbers(alike) == 28 * (model.widest_activation + heads * 28 + 28)
    assert model.activation_numbers(apart) == 8 * 21 * (model.widest_activation + heads * 21)
