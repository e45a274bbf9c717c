"""The identity check passes where our decode is the model's own head, and names what is lacking where it is not."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerscope import CausalLM, Prompt, Suite, probe
from layerscope.model import families
from layerscope.model.families import Family
from layerscope.model.identity import TOLERANCE_BITS, Identity, check_identity
from layerscope.stored.weight import DenseWeight
from layerscope.unembedding import HeadTransform, Unembedding
from tiny_models import PROMPTS, TINY, TinyModel, by_family, reference

GEMMA2 = TINY["gemma2"]
CAPPED_AT_30 = TinyModel("gemma2-30", "gemma2", GEMMA2.config | {"final_logit_softcapping": 30.0})


def checked(model: CausalLM, **changes: object) -> Identity:
    """The check on a real pass, after `changes` of what we know of the head."""
    forward = model.forward(PROMPTS)
    last = torch.stack([forward.values[i, -1, n - 1] for i, n in enumerate(forward.lengths)])
    return check_identity(replace(model.unembedding, **changes), last, forward.logits)


@cache
def loud_gemma2(folder: Path) -> CausalLM:
    """A gemma2 with a softcap of 30 and a final gain that brings logits near it, as in the released models."""
    CAPPED_AT_30.build(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 24.0  # Gemma multiplies by 1 + gain
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return CausalLM.open(folder, device="cpu")


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return loud_gemma2(tmp_path_factory.mktemp("loud"))


@pytest.mark.parametrize("name", by_family())
def test_the_last_residual_decodes_to_the_model_s_own_distribution(name: str, tiny):
    found = checked(CausalLM.open(tiny(name), device="cpu"))
    assert found.ok
    assert found.kl_bits is not None
    assert 0 <= found.kl_bits <= TOLERANCE_BITS == 1e-6
    assert found.max_abs_logit_difference is not None
    # Two products of one residual: 64 terms, logits below 30, 2^-24 each.
    assert found.max_abs_logit_difference < 2e-4
    assert found.n_prompts == len(PROMPTS)
    assert (found.fitted, found.fitted_bias, found.note) == (None, False, "The last layer is the model itself.")


def test_the_loud_gemma2_needs_its_softcap(loud: CausalLM):
    """Guards the tests below: its logits must come near the cap for a missing cap to show."""
    theirs = reference(loud.source.folder, PROMPTS[2]).logits[-1]
    assert 15 < theirs.abs().max() < 30
    assert checked(loud).ok


def test_a_missing_softcap_is_found_to_three_digits(loud: CausalLM):
    found = checked(loud, transform=HeadTransform())
    assert not found.ok
    assert found.kl_bits is not None
    assert found.kl_bits > 0.01
    assert found.fitted is not None
    assert found.fitted.scale is None
    assert found.fitted.softcap == pytest.approx(30.0, rel=5e-4)
    assert found.note == (
        f"The decode lacks a logit softcap of {found.fitted.softcap:.6g} (declared: scale None, softcap None)."
    )


def test_a_softcap_of_the_wrong_size_is_found_too(loud: CausalLM):
    found = checked(loud, transform=HeadTransform(softcap=50.0))
    assert not found.ok
    assert found.fitted is not None
    assert found.fitted.softcap == pytest.approx(30.0, rel=5e-4)
    assert "(declared: scale None, softcap 50.0)" in found.note


@pytest.mark.parametrize(("name", "scale"), [("cohere", 0.25), ("granite", 1 / 2.5)])
def test_a_missing_logit_scale_is_found_to_three_digits(name: str, scale: float, tiny):
    found = checked(CausalLM.open(tiny(name), device="cpu"), transform=HeadTransform())
    assert not found.ok
    assert found.kl_bits is not None
    assert found.kl_bits > 0.01
    assert found.fitted is not None
    assert found.fitted.softcap is None
    assert found.fitted.scale == pytest.approx(scale, rel=5e-4)
    assert found.note.startswith(f"The decode lacks a logit scale of {found.fitted.scale:.6g} (declared: ")


def test_scale_and_softcap_are_found_together(loud: CausalLM):
    """With the head's weight known only up to a factor of 4, a scale of 1/4 is lacking beside the softcap."""
    found = checked(loud, transform=HeadTransform(), weight=DenseWeight(4.0 * loud.unembedding.weight.tensor))
    assert not found.ok
    assert found.fitted is not None
    assert found.fitted.scale == pytest.approx(0.25, rel=5e-4)
    assert found.fitted.softcap == pytest.approx(30.0, rel=5e-4)


@pytest.mark.parametrize("name", ["gptj", "phi"])
def test_a_missing_head_bias_is_found_from_several_prompts(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    assert model.unembedding.bias is not None
    found = checked(model, bias=None)
    assert not found.ok
    assert found.fitted is None
    assert found.fitted_bias
    size = float((model.unembedding.bias.abs()).max())
    assert found.note.startswith(f"The decode lacks a bias by vocabulary id, up to {size:.4g}"[:-1])


def test_a_bias_cannot_be_told_from_one_prompt(tiny):
    model = CausalLM.open(tiny("gptj"), device="cpu")
    forward = model.forward(PROMPTS[1:2])
    found = check_identity(replace(model.unembedding, bias=None), forward.values[:, -1, -1], forward.logits)
    assert not found.ok
    assert not found.fitted_bias


def test_another_head_is_explained_by_nothing(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    found = checked(model, weight=DenseWeight(model.unembedding.weight.tensor.flip(0)))
    assert not found.ok
    assert (found.fitted, found.fitted_bias) == (None, False)
    assert found.note.startswith("Neither scale, softcap nor bias explains the difference (declared: ")


def test_a_missing_norm_fails_the_check(tiny):
    assert not checked(CausalLM.open(tiny("llama-biases"), device="cpu"), final_norm=None).ok


def test_a_decode_that_is_not_finite_is_not_taken_for_a_perfect_one(tiny):
    """A divergence that is NaN was once rounded up to 0 bits."""
    unembedding: Unembedding = CausalLM.open(tiny("llama-biases"), device="cpu").unembedding
    found = checked(
        CausalLM.open(tiny("llama-biases"), device="cpu"),
        weight=DenseWeight(unembedding.weight.tensor.clone().fill_(float("nan"))),
    )
    assert (found.ok, found.kl_bits, found.max_abs_logit_difference, found.n_prompts) == (False, None, None, 0)
    assert found.note == "The last layer does not decode to finite logits."


def test_a_model_without_finite_output_is_not_compared(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    forward = model.forward(PROMPTS[:1])
    found = check_identity(model.unembedding, forward.values[:, -1, -1], forward.logits * float("nan"))
    assert (found.ok, found.kl_bits, found.n_prompts) == (False, None, 0)
    assert found.note == "No prompt has a finite final residual to compare."


def test_a_run_whose_family_table_forgets_the_softcap_says_so(loud: CausalLM, monkeypatch: pytest.MonkeyPatch):
    suite = Suite(
        "two",
        "",
        (
            Prompt("pos", "orig", "The capital of Germany is called", ("Berlin",), "Germany→Berlin", 0),
            Prompt("pos", "orig", "The capital of Italy is called", ("Rome",), "Italy→Rome", 1),
        ),
    )
    right = probe(loud, suite=suite).record
    assert right.identity.ok
    assert "identity_failed" not in right.flags
    assert right.model.head_transform.softcap == 30.0

    monkeypatch.setitem(families.FAMILIES, "gemma2", Family("gemma2", bos="always"))
    record = probe(loud.source.folder, suite=suite, device="cpu").record
    assert record.model.head_transform.softcap is None
    identity = record.identity
    assert identity.ok is False
    assert identity.kl_bits is not None
    assert identity.kl_bits > identity.tolerance_bits == TOLERANCE_BITS
    assert identity.fitted_scale is None
    assert identity.fitted_softcap == pytest.approx(30.0, rel=5e-4)
    assert identity.explanation == identity.note == record.flags["identity_failed"]
    assert identity.note.startswith("The decode lacks a logit softcap of 30")


def test_a_run_that_fails_the_check_claims_no_distance_to_the_model(loud: CausalLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(families.FAMILIES, "gemma2", Family("gemma2", bos="always"))
    run = probe(loud.source.folder, suite="berlin", device="cpu", positions="last")
    assert run.record.identity.ok is False
    against_the_model = (
        "kl_to_final_bits",
        "kl_saturated",
        "teacher_entropy_bits",
        "cos_to_final",
        "cos_to_final_centered",
    )
    for name in against_the_model:
        assert run.rows[name].is_null().all(), name
    for name in ("entropy_bits", "top1_id", "cos_to_prompt_max"):
        assert run.rows[name].is_not_null().all(), name
