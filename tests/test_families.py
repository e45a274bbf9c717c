"""Every verified family, special features on: a streamed, batched pass equals Transformers, prompt by prompt."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from layerscope.model.architecture import Architecture
from layerscope.model.causal_lm import CausalLM
from layerscope.model.residuals import Residuals
from properties import slow
from rounding import of_residual
from tiny_models import D_VOCAB, OF_EVERY_KIND, PROMPTS, TINY, Reference, load_resident, observe, reference

TOLERANCE = of_residual(n_blocks=4, d_model=64)
"""Largest difference, in units of the largest reference value (of 1, where that is smaller). A head adds one product to
those of the blocks, and its logits are at most a few times as large as its rows."""


@dataclass(frozen=True)
class Pair:
    """What layerscope computed for all of PROMPTS at once, and what Transformers did for each alone."""

    opened: Architecture
    ours: Residuals
    theirs: list[Reference]


@pytest.fixture(scope="module", params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(name: str, tiny) -> Pair:
    return compare(tiny(name))


def compare(folder: Path) -> Pair:
    model = CausalLM.open(folder, device="cpu")
    return Pair(model.architecture, model.forward(PROMPTS), [reference(folder, prompt) for prompt in PROMPTS])


def assert_residuals_equal(pair: Pair) -> None:
    for prompt, theirs in enumerate(pair.theirs):
        ours = pair.ours.values[prompt, :, : len(PROMPTS[prompt])]
        assert ours.shape == theirs.residuals.shape
        for layer, (actual, expected) in enumerate(zip(ours, theirs.residuals, strict=True)):
            assert_close(actual, expected, f"residual of prompt {prompt} after {layer} blocks")


def assert_logits_equal(pair: Pair) -> None:
    for prompt, theirs in enumerate(pair.theirs):
        assert_close(pair.ours.logits[prompt], theirs.logits[-1], f"logits of prompt {prompt}")


def at_real_positions(forward: Residuals) -> torch.Tensor:
    """Its residuals without those of the padding, which mean nothing."""
    return torch.cat([forward.values[i, :, :length].flatten() for i, length in enumerate(forward.lengths)])


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    atol = TOLERANCE * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")


def test_residuals_equal_transformers_at_every_layer_and_position(pair: Pair):
    assert_residuals_equal(pair)


def test_logits_at_the_last_token_equal_transformers(pair: Pair):
    assert_logits_equal(pair)


def test_a_pass_gives_float32_residuals_and_the_lengths_of_the_prompts(pair: Pair):
    ours = pair.ours
    assert ours.lengths == tuple(len(prompt) for prompt in PROMPTS)
    assert ours.values.dtype == ours.logits.dtype == torch.float32
    assert pair.ours.logits.shape == (len(PROMPTS), D_VOCAB)


def test_an_opened_model_says_its_family_and_sizes_and_counts_a_tied_head_once(pair: Pair, name: str, tiny):
    opened, resident = pair.opened, load_resident(tiny(name))
    config = resident.config
    assert (opened.family, opened.n_layers) == (TINY[name].family, config.num_hidden_layers)
    assert (opened.d_model, opened.d_vocab, opened.n_heads) == (config.hidden_size, D_VOCAB, config.num_attention_heads)
    assert opened.tied == (resident.get_output_embeddings().weight is resident.get_input_embeddings().weight)
    assert opened.n_parameters == resident.num_parameters()


FORMS = {"bf16": (torch.bfloat16, OF_EVERY_KIND), "fp16": (torch.float16, {"gpt2", "gemma2", "qwen3_moe"})}
"""Forms to store weights in, and models that every run stores in them: what is read of a form asks for no family."""


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        (name, stored) if name in in_short else slow(name, stored)
        for name in TINY
        for stored, in_short in FORMS.values()
    ],
    ids=[f"{name}-{form}" for name in TINY for form in FORMS],
)
def test_weights_stored_in_half_precision_are_computed_with_in_float32(name: str, stored: torch.dtype, tmp_path: Path):
    pair = compare(TINY[name].build(tmp_path, dtype=stored))
    assert_residuals_equal(pair)
    assert_logits_equal(pair)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "gemma2", "bloom", "falcon", "mixtral", "qwen3_moe"])
def test_a_checkpoint_in_shards_equals_one_in_a_single_file(name: str, tiny, tmp_path: Path):
    sharded = TINY[name].build(tmp_path, max_shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    in_shards = CausalLM.open(sharded, device="cpu").forward(PROMPTS)
    in_one = CausalLM.open(tiny(name), device="cpu").forward(PROMPTS)
    # Not bit for bit: a weight that starts at another offset in its file may be multiplied in another order.
    assert_close(at_real_positions(in_shards), at_real_positions(in_one), "residuals")
    assert_close(in_shards.logits, in_one.logits, "logits")


@pytest.mark.parametrize("name", ["llama-tied", "qwen2-tied"])
def test_a_tied_head_is_read_from_the_embedding(name: str, tiny):
    folder = tiny(name)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (not a mapping)
    assert_logits_equal(compare(folder))


def test_a_pass_repeats_bit_for_bit(tiny):
    model = CausalLM.open(tiny("gemma2"), device="cpu")
    first, second = model.forward(PROMPTS), model.forward(PROMPTS)
    assert torch.equal(at_real_positions(first), at_real_positions(second))
    assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("name", ["llama-dynamic-rope", "phi3-longrope-switching", "bloom", "gpt2"])
def test_the_order_and_company_of_prompts_change_nothing(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    together, reverse = model.forward(PROMPTS), model.forward(PROMPTS[::-1])
    for prompt, token_ids in enumerate(PROMPTS):
        alone = model.forward([token_ids])
        assert_close(together.logits[prompt], alone.logits[0], f"prompt {prompt} together and alone")
        assert_close(reverse.logits[-1 - prompt], alone.logits[0], f"prompt {prompt} in reverse order and alone")


@pytest.mark.parametrize("name", ["llama-dynamic-rope", "phi3-longrope-switching"])
def test_a_longer_prompt_read_before_leaves_no_trace(name: str, tiny):
    """Transformers' dynamic rotary frequencies stay those of the longest prompt so far; a fresh model is the truth."""
    longest = PROMPTS[-1]
    shorter = longest[:9]  # itself beyond the original length
    model = CausalLM.open(tiny(name), device="cpu")
    model.forward([longest])
    expected = observe(TINY[name].resident(), shorter).logits[-1]
    assert_close(model.forward([shorter]).logits[0], expected, "a shorter prompt after a longer one")
    assert_close(model.forward([longest, shorter]).logits[1], expected, "a shorter prompt beside a longer one")
