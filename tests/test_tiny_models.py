"""The tiny models are worth comparing with: they save and load, and every feature they switch on changes the logits."""

import copy
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.falcon import modeling_falcon

from rounding import of_residual
from tiny_models import D_VOCAB, PROMPTS, TINY, TinyModel, observe, reference, tiny_tokenizer

LONGEST = PROMPTS[-1]
TOLERANCE = of_residual(n_blocks=4, d_model=64)
"""Of two float32 passes of any tiny model, in units of the largest value."""
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 100.0}

EVERY = pytest.mark.parametrize("model", TINY.values(), ids=TINY.keys())


@EVERY
def test_a_saved_model_computes_what_the_one_in_memory_does(model: TinyModel, tiny):
    saved, in_memory = reference(tiny(model.name), LONGEST), observe(model.resident(), LONGEST)
    # Not bit for bit: a matrix product may sum in another order when a mapped weight starts off a 64-byte boundary.
    for found, expected in ((saved.residuals, in_memory.residuals), (saved.logits, in_memory.logits)):
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    assert saved.logits.shape == (len(LONGEST), D_VOCAB)


@EVERY
def test_hooked_blocks_agree_with_the_hidden_states_that_transformers_returns(model: TinyModel):
    resident = model.resident()
    residuals = observe(resident, LONGEST).residuals
    with torch.inference_mode():
        returned = resident(input_ids=torch.tensor([LONGEST]), use_cache=False, output_hidden_states=True).hidden_states
    assert len(returned) == len(residuals)
    for layer, hidden in enumerate(returned[:-1]):  # the last of them is already normed
        assert torch.equal(hidden[0], residuals[layer])


@EVERY
def test_no_parameter_is_left_at_its_initial_constant(model: TinyModel):
    constant = [name for name, value in model.resident().named_parameters() if value.std() < 0.1]
    assert constant == []


@EVERY
def test_the_tokenizer_in_the_folder_encodes_like_the_one_that_was_saved(model: TinyModel, tiny):
    text = "The capital of Germany is called Berlin, naïvely."
    loaded = AutoTokenizer.from_pretrained(tiny(model.name))
    ids = loaded(text, add_special_tokens=False).input_ids
    assert ids == tiny_tokenizer()(text, add_special_tokens=False).input_ids
    assert loaded.decode(ids) == text
    assert loaded.bos_token_id == 0
    assert len(loaded) <= D_VOCAB


FEATURES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {"use_sliding_window": False}),
    ("qwen2-tied", {"tie_word_embeddings": False}),
    ("llama-tied", {"tie_word_embeddings": False}),
    ("llama-rope3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("llama-linear-rope", {"rope_parameters": DEFAULT_ROPE}),
    ("llama-yarn", {"rope_parameters": DEFAULT_ROPE}),
    ("llama-biases", {"attention_bias": False}),
    ("llama-biases", {"mlp_bias": False}),
    ("mistral", {"sliding_window": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"query_pre_attn_scalar": 16}),
    ("gemma2", {"sliding_window": 64}),
    ("gemma3", {"sliding_window": 64}),
    ("gemma3", {"rope_parameters": {"sliding_attention": DEFAULT_ROPE, "full_attention": DEFAULT_ROPE}}),
    ("gptj", {"rotary_dim": 12}),
    ("gpt_neox", {"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 1.0}}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("olmo3", {"sliding_window": 64}),
    ("phi", {"partial_rotary_factor": 1.0}),
    ("phi", {"qk_layernorm": False}),
    ("phi3", {"sliding_window": None}),
    ("phi3-longrope", {"rope_parameters": DEFAULT_ROPE | {"partial_rotary_factor": 0.75}}),
    ("cohere", {"logit_scale": 1.0}),
    ("cohere", {"use_qk_norm": False}),
    ("granite", {"embedding_multiplier": 1.0}),
    ("granite", {"residual_multiplier": 1.0}),
    ("granite", {"attention_multiplier": 1.0}),
    ("granite", {"logits_scaling": 1.0}),
    ("starcoder2", {"sliding_window": None}),
    ("starcoder2", {"use_bias": False}),
    ("stablelm", {"partial_rotary_factor": 1.0}),
    ("stablelm", {"use_qkv_bias": False}),
    ("stablelm-parallel", {"qk_layernorm": False}),
    ("falcon-alibi", {"alibi": False}),
    ("mixtral", {"sliding_window": None}),
    ("mixtral", {"num_experts_per_tok": 1}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"mlp_only_layers": []}),
]


@pytest.mark.parametrize(("name", "changes"), FEATURES, ids=[f"{name}-without-{next(iter(c))}" for name, c in FEATURES])
def test_a_feature_switched_off_changes_the_logits(name: str, changes: dict[str, Any]):
    with_it = observe(TINY[name].resident(), LONGEST).logits
    without = observe(TINY[name].resident(**changes), LONGEST).logits
    assert (with_it - without).abs().max() > 0.01


@pytest.mark.parametrize("name", ["phi3-longrope-switching", "llama-dynamic-rope"])
def test_some_ropes_change_beyond_the_original_length(name: str):
    """So the same tokens mean something else when three more follow them: no prompt may set the length of another."""
    model = TINY[name].resident()
    alone, beside = observe(model, LONGEST[:8]), observe(model, LONGEST)
    assert (alone.logits - beside.logits[:8]).abs().max() > 0.01


def test_falcon_alibi_is_added_once(monkeypatch):
    """Guards the choice of attention in `tiny_models`: eager adds the bias twice, so half of it there is all of it."""
    right = TINY["falcon-alibi"].resident()
    eager = AutoModelForCausalLM.from_config(copy.deepcopy(right.config), attn_implementation="eager").eval()
    eager.load_state_dict(right.state_dict())
    expected = observe(right, LONGEST).logits
    assert (observe(eager, LONGEST).logits - expected).abs().max() > 0.01

    whole = modeling_falcon.build_alibi_tensor
    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", lambda *args, **kwargs: whole(*args, **kwargs) / 2)
    found = observe(eager, LONGEST).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama-tied", "qwen2-tied", "gemma2", "gpt2", "cohere", "bloom", "falcon-multiquery"])
def test_a_tied_head_is_absent_from_the_file(name: str, tiny):
    with safe_open(tiny(name) / "model.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if "lm_head" in key]  # noqa: SIM118 (not a mapping)


def test_experts_are_stored_one_by_one(tiny):
    """As released checkpoints have them, though Transformers fuses them in memory."""
    with safe_open(tiny("mixtral") / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in names
    assert not [name for name in names if "gate_up_proj" in name]
