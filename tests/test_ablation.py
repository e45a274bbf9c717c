"""Parts put out of action: what Transformers computes with the part's weights at zero, or its mean in its place."""

from collections.abc import Container, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from command_line import layerscope
from layerscope import Prompt, Suite, probe
from layerscope.errors import LensError, ModelError
from layerscope.model.ablation import Ablation, Part
from layerscope.model.causal_lm import CausalLM
from layerscope.published.layout import EXTENDED
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import markdown
from layerscope.report.evaluation import evaluation
from layerscope.report.sentences.guidance import identity
from layerscope.report.sentences.verdict import VerdictText
from layerscope.run import Run
from properties import slow
from rounding import of_residual
from tiny_models import BLOCKS_AT, TINY, observe

PROMPTS = [[0, 301, 12, 88], [0, 55, 12, 88, 7, 21, 3], [0, 9, 5]]
TOLERANCE = of_residual(n_blocks=4, d_model=64)
SUITE = Suite("one", "", (Prompt("pos", "orig", "The capital of Germany is called", ("Berlin",), "Germany→Berlin", 0),))
OUTPUTS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", "fc2"),
}
"""A family's two output matrices; every other one's are these."""
USUAL = ("self_attn.o_proj", "mlp.down_proj")
NAMES = ["gemma2", "gpt2", "gpt_neox", "cohere", "granite", "falcon", "opt-projected", "bloom"]
LAYER = 2


def matrices(model: PreTrainedModel) -> tuple[Any, Any]:
    """Output matrices of attention and MLP of one block."""
    blocks: Any = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))
    attention, mlp = OUTPUTS.get(model.config.model_type, USUAL)
    return blocks[LAYER - 1].get_submodule(attention), blocks[LAYER - 1].get_submodule(mlp)


def by_input(matrix: Any) -> torch.Tensor:
    """The weight as `[in, out]`."""
    weight: torch.Tensor = matrix.weight
    return weight if type(matrix).__name__ == "Conv1D" else weight.T


def silenced(name: str, part: str) -> PreTrainedModel:
    """The model with weights of a part at zero, so that it writes nothing."""
    model = TINY[name].resident()
    attention, mlp = matrices(model)
    with torch.no_grad():
        if part in ("attn", "mlp"):
            matrix = attention if part == "attn" else mlp
            matrix.weight.zero_()
            if matrix.bias is not None:
                matrix.bias.zero_()
        elif part == "head":
            size = by_input(attention).shape[0] // model.config.num_attention_heads
            by_input(attention)[size : 2 * size] = 0.0
        else:
            by_input(mlp)[[3, 17]] = 0.0
    return model


WORDS = {"attn": "block:2.attn", "mlp": "block:2.mlp", "head": "head:2.1", "neurons": "neurons:2:17,3"}


def parts_of_each(parts: Iterable[str], in_short: Container[tuple[str, str]]) -> pytest.MarkDecorator:
    """Every part of every family, all that are not `in_short` left to where all is tested."""
    every = [(name, part) for name in NAMES for part in parts]
    return pytest.mark.parametrize(("name", "part"), [both if both in in_short else slow(*both) for both in every])


# A head is a part of what attention's matrix reads, and neurons of what the MLP's last one does.
@parts_of_each(WORDS, {*product(NAMES, ["head", "neurons"]), *product(["gemma2", "gpt_neox"], ["attn", "mlp"])})
def test_a_part_at_zero_is_one_whose_weights_are(name: str, part: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    ours = model.ablated(Ablation.of([WORDS[part]], "zero")).forward(PROMPTS)
    resident = silenced(name, part)
    untouched = model.forward(PROMPTS)
    for i, token_ids in enumerate(PROMPTS):
        expected = observe(resident, token_ids)
        size = expected.residuals.abs().max()
        assert (ours.of_prompt(i) - expected.residuals).abs().max() <= TOLERANCE * size
        assert (ours.logits[i] - expected.logits[-1]).abs().max() <= 50 * TOLERANCE
        # It does something, behind its block and there alone, and the model that it was made from is as it was.
        assert torch.equal(ours.of_prompt(i)[:LAYER], untouched.of_prompt(i)[:LAYER])
        assert (ours.of_prompt(i)[-1] - untouched.of_prompt(i)[-1]).abs().max() > 100 * TOLERANCE * size


@parts_of_each(["attn", "head", "neurons"], {*product(["gemma2", "gpt2"], WORDS), ("gpt_neox", "head")})
def test_a_part_at_its_mean_is_the_same_whatever_is_read(name: str, part: str, tiny):
    """The mean is over all tokens of all prompts, here of what Transformers' own matrix reads and gives."""
    if part == "attn" and name == "gemma2":
        matrix_of = lambda model: model.model.layers[LAYER - 1].post_attention_layernorm  # noqa: E731
    else:
        matrix_of = lambda model: matrices(model)[part == "neurons"]  # noqa: E731
    resident = TINY[name].resident()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = matrix_of(resident).register_forward_hook(
        lambda _, args, output: seen.append(
            (args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1]))
        )
    )
    for token_ids in PROMPTS:
        observe(resident, token_ids)
    handle.remove()
    reads, gives = (torch.cat(values).double().mean(0).float() for values in zip(*seen, strict=True))

    def put(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        read, n = args[0].clone(), resident.config.num_attention_heads
        places = slice(len(reads) // n, 2 * len(reads) // n) if part == "head" else [3, 17]
        read[..., places] = reads[places]
        return (read,)

    if part == "attn":
        matrix_of(resident).register_forward_hook(lambda _, args, output: gives.expand_as(output).clone())
    else:
        matrix_of(resident).register_forward_pre_hook(put)
    model = CausalLM.open(tiny(name), device="cpu")
    ours = model.ablated(Ablation.of([WORDS[part]], "mean"), PROMPTS).forward(PROMPTS)
    for i, token_ids in enumerate(PROMPTS):
        expected = observe(resident, token_ids).residuals
        assert (ours.of_prompt(i) - expected).abs().max() <= 2 * TOLERANCE * expected.abs().max()


def test_an_ablated_model_is_another_one(tiny):
    model = CausalLM.open(tiny("qwen3"), device="cpu")
    twin = model.ablated(Ablation.of(["head:2.1", "block:3.mlp"], "zero"))
    assert twin.id == f"{model.id}-without-head-2.1+mlp-3"
    assert twin.fingerprint == model.fingerprint  # its head is the model's
    assert twin.blocks_fingerprint != model.blocks_fingerprint  # so that no lens that was fitted to it is read through
    assert model.ablated(Ablation.of(["block:1.attn"], "mean"), PROMPTS).id == f"{model.id}-with-mean-attn-1"
    many = [f"head:{layer}.{head}" for layer in (1, 2) for head in range(4)]
    assert "without-8-parts-" in model.ablated(Ablation.of(many, "zero")).id
    with pytest.raises(ModelError, match="ablated already"):
        twin.ablated(Ablation.of(["block:1.attn"], "zero"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["12.attn"], "names no part that can be ablated; write block:12.attn"),
        (["block:2.heads"], "names no part"),
        (["head:2"], "names no part"),
        (["neurons:2:"], "names no part"),
        (["block:0.attn"], "no block of layer 0: blocks are counted by the layer that they write, 1 to 4"),
        (["block:5.mlp"], "no block of layer 5"),
        (["head:2.4"], "Layer 2 has no head 4: it has 4, counted from 0"),
        (["neurons:2:3,56"], "Layer 2 has no neuron 56: it has 56, counted from 0"),
        (["block:2.mlp", "block:2.mlp"], "'block:2.mlp' is to be ablated twice"),
    ],
)
def test_a_part_that_is_not_there_is_refused_and_what_there_is_named(words: list[str], told: str, tiny):
    with pytest.raises(ModelError, match=told.replace(".", r"\.")):
        probe(tiny("llama-tied"), suite=SUITE, ablate=words)


def test_neurons_of_experts_are_refused(tiny):
    with pytest.raises(ModelError, match="no one matrix that reads its neurons"):
        probe(tiny("mixtral"), suite=SUITE, ablate=["neurons:1:0"])
    with pytest.raises(ModelError, match="with zero or with its mean, but 'nothing' came"):
        probe(tiny("mixtral"), suite=SUITE, ablate=["block:1.mlp"], ablate_with="nothing")
    with pytest.raises(ModelError, match="puts a norm behind the sum"):
        probe(tiny("opt-post-norm"), suite=SUITE, ablate=["block:1.mlp"])


@pytest.fixture(scope="module")
def ablated() -> Run:
    return probe(
        suite="capitals", ablate=["head:5.2", "block:4.attn"], ablate_with="mean", sublayers=True, positions="last"
    )


def test_a_run_says_that_its_model_is_ablated_wherever_it_is_named(ablated: Run, tmp_path: Path):
    record = ablated.record
    assert record.model.id == "layerscope/reference-with-mean-head-5.2+attn-4"
    assert record.model.ablation is not None
    assert record.model.ablation.base_id == "layerscope/reference"
    assert record.model.ablation.words == "head 5.2 and attention 4 set to the mean over the prompts"
    assert "not of layerscope/reference" in str(record.flags["model_ablated"])
    assert record.identity is not None and record.identity.ok
    assert "the ablated model, whose own output it was compared with" in record.identity.note
    assert identity(record).endswith("of the ablated model, against its own output")
    text = VerdictText(ablated.verdict, record)
    assert text.headline().startswith("Ablated, head 5.2 and attention 4 set to the mean over the prompts. ")
    assert "with-mean-head-5.2" in text.title()
    assert {lens.status for lens in record.measured.fitted_lenses} <= {"refused", "missing", "off"}
    ablated.save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == ablated


def test_shares_of_an_ablated_model_add_up(ablated: Run):
    found = ablated.record.measured.sublayers
    assert found is not None and found.adds_up
    wording = found.of_wording("pos", "orig")
    assert wording is not None and wording.heads is not None
    assert set(wording.heads.dla[4]) == {0.0}  # what stands for its attention is no head's
    assert wording.heads.biases[4] == pytest.approx(wording.attention.dla[4], abs=1e-6)


def test_a_fitted_lens_of_the_model_is_none_of_the_ablated_one():
    with pytest.raises(LensError, match=r"reference-without-head-5\.2") as refusal:
        probe(suite="capitals", lenses="tuned", ablate=["head:5.2"])
    cause = "of layerscope/reference as it is, but this model has parts put out of action (without-head-5.2)"
    assert cause in str(refusal.value) and "fine-tuned" not in str(refusal.value)
    assert "`layerscope fit" not in str(refusal.value)  # which would fit another of the whole model


def test_an_ablated_run_is_compared_and_shown_as_any_other(ablated: Run, tmp_path: Path):
    whole = probe(suite="capitals", positions="last", lenses="logit")
    whole.save(tmp_path / "whole")
    ablated.save(tmp_path / "ablated")
    shown = layerscope("show", "ablated", cwd=tmp_path)
    assert "Ablated, head 5.2 and attention 4" in " ".join(shown.stdout.split())
    compared = layerscope("compare", "whole", "ablated", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    (report,) = (tmp_path / "comparison").glob("*.md")
    text = report.read_text(encoding="utf-8")
    assert "| reference-with-mean-head-5.2+attn-4 | ablated |" in text
    assert "ablated is `layerscope/reference` with head 5.2 and attention 4 set to the mean" in text
    verified = layerscope("verify", "ablated", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    page = layerscope("view", "ablated", "--out", "page.html", "--no-open", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    assert "Ablated, head 5.2 and attention 4" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_evaluation_says_first_that_the_model_is_ablated(ablated: Run, tmp_path: Path):
    ablated.save(tmp_path / "ablated", published=EXTENDED)
    text = markdown(evaluation(Evidence.of(tmp_path / "ablated")))
    overview = text.split("## Overview", 1)[1].strip()
    assert overview.startswith("This is the model with head 5.2 and attention 4 set to the mean over the prompts")


def test_an_option_that_would_do_nothing_is_refused():
    with pytest.raises(ModelError, match="Nothing is ablated"):
        probe(suite="berlin", ablate_with="mean")
    with pytest.raises(ModelError, match="nothing is to be patched"):
        probe(suite="berlin", causal=False, causal_positions="all")


def test_a_name_spells_out_three_neurons_at_most():
    assert Part.of("neurons:7:9,1,1,4").name == "neurons-7-1-4-9"
    assert Part.of("neurons:7:1,2,3,4,5").name == "neurons-7-1-2-3-and-2-more"
