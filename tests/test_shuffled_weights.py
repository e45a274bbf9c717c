"""The twin with shuffled weights: the same entries elsewhere, vectors kept, and a control that finds what is there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from layerscope import CausalLM, Suite, load_suite, probe
from layerscope.bundled import BUNDLED
from layerscope.errors import ModelError
from layerscope.model.shuffled_weights import permuted
from properties import slow
from rounding import of_residual
from tiny_models import PROMPTS, observe

ENDS = ("embed", "wte", "wpe", "lm_head")
"""What stands in the names of matrices outside the blocks."""


def tensors(model: CausalLM) -> dict[str, torch.Tensor]:
    return {name: source.tensor() for name, source in model._stored.items()}


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", slow("mistral"), slow("qwen3_moe"), slow("falcon")])
@pytest.mark.parametrize("scope", ["blocks", "all"])
def test_every_matrix_of_the_scope_has_its_entries_elsewhere_and_all_else_is_kept(name: str, scope: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    plain, shuffled = tensors(model), tensors(model.shuffled_twin(scope, 3))
    assert plain.keys() == shuffled.keys()
    matrices = {n for n, p in AutoModelForCausalLM.from_pretrained(tiny(name)).named_parameters() if p.ndim > 1}
    for key, before in plain.items():
        after = shuffled[key]
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert torch.equal(after.flatten().sort().values, before.flatten().sort().values)
        within = scope == "all" or not any(end in key for end in ENDS)
        assert torch.equal(after, before) == (not (before.ndim > 1 and within)), key
    assert matrices <= plain.keys()


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", slow("mistral"), slow("qwen3_moe"), slow("falcon")])
@pytest.mark.parametrize("scope", ["blocks", "all"])
def test_the_twin_computes_what_transformers_does_with_its_weights(name: str, scope: str, tiny):
    twin = CausalLM.open(tiny(name), device="cpu").shuffled_twin(scope, 3)
    resident = AutoModelForCausalLM.from_pretrained(tiny(name), dtype=torch.float32).eval()
    resident.load_state_dict(tensors(twin), strict=False)
    prompt = PROMPTS[-1]
    expected, found = observe(resident, prompt), twin.forward([prompt])
    tolerance = of_residual(twin.n_layers, twin.d_model)
    for ours, theirs in ((found.values[0], expected.residuals), (found.logits[0], expected.logits[-1])):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def test_seed_and_matrix_decide_the_order(tiny):
    model = CausalLM.open(tiny("mistral"), device="cpu")
    first, again, other = (tensors(model.shuffled_twin("blocks", seed)) for seed in (3, 3, 4))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])
    entries = torch.arange(10_000, dtype=torch.float32).reshape(100, 100)
    orders = [permuted(entries, np.random.default_rng(seed)) for seed in range(20)]
    # Entries that stay in place are Poisson distributed with mean 1; of 20 orders together more than 50 have p < 1e-8.
    assert 0 < sum(int((order == entries).sum()) for order in orders) < 50
    # Rows are not moved as wholes: neighbours of a row come from anywhere.
    assert len({int(entry) // 100 for entry in orders[0][0]}) > 50


def test_a_tied_embedding_is_shuffled_once_and_held_once(tiny):
    twin = CausalLM.open(tiny("llama-tied"), device="cpu").shuffled_twin("all", 3)
    embedding = twin._module.get_input_embeddings()._table.stored
    assert embedding.tensor.data_ptr() == twin.unembedding.weight.tensor.data_ptr()


def test_a_twin_says_that_it_is_one(tiny):
    model = CausalLM.open(tiny("mistral"), device="cpu")
    blocks, everything = model.shuffled_twin("blocks", 3), model.shuffled_twin("all", 3)
    assert blocks.id == "mistral-shuffled-blocks-3"
    assert blocks.fingerprint == model.fingerprint != everything.fingerprint
    assert len({model.blocks_fingerprint, blocks.blocks_fingerprint, everything.blocks_fingerprint}) == 3
    with pytest.raises(ModelError, match="blocks, all"):
        model.shuffled_twin("heads", 3)


def said_by(twin: CausalLM, text: str) -> tuple[str, list[bool]]:
    """What the twin itself says after a text, by Transformers' own modules; at which layers its final norm and head
    have it on top."""
    resident = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    resident.load_state_dict(tensors(twin), strict=False)
    with torch.inference_mode():
        observed = observe(resident, list(twin.tokens.input_ids(text)))
        tops = resident.lm_head(resident.model.norm(observed.residuals[:, -1])).argmax(-1)
    said = int(tops[-1])
    return twin.tokens.display([said])[said], [bool(top == said) for top in tops]


@pytest.mark.parametrize("scope", ["blocks", "all"])
def test_the_control_finds_an_answer_that_the_twin_gives_and_none_that_it_does_not(scope: str):
    """The one answer that a twin cannot miss is what it says itself."""
    prompts = load_suite("capitals").prompts[:4]
    twin = CausalLM.open(device="cpu").shuffled_twin(scope, 5)
    word, on_top = said_by(twin, prompts[0].text)
    suite = Suite("made", "", (replace(prompts[0], answers=(word.strip(),)), *prompts[1:]))
    record = probe(suite=suite, control=f"shuffled-weights:{scope}", seed=5, lenses="logit").record
    found = record.measured.shuffled_weights
    assert (found.scope, found.seed, found.lens, found.identity_ok) == (scope, 5, "logit", True)
    assert (found.n_asked, found.n_answered) == (4, 1)
    first = found.prompts[0]
    assert first.answered
    assert first.first == on_top.index(True)
    assert first.stable == max((i for i, top in enumerate(on_top) if not top), default=-1) + 1
    assert [prompt.answered for prompt in found.prompts[1:]] == [False] * 3
    assert found.on_top["orig"] == tuple(map(int, on_top))
    assert record.timings.control_s > 0


def test_without_the_control_there_is_no_twin_and_other_words_are_refused():
    assert probe(suite="capitals", lenses="logit", positions="last").record.measured.shuffled_weights is None
    with pytest.raises(ModelError, match="shuffled-weights:all"):
        probe(control="shuffled")
