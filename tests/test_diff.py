"""Two models side by side: what plain Transformers computes with both held whole, and figures worked out by hand."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import layerscope
from gguf_files import write_gguf
from layerscope import DiffResult
from layerscope.analysis.diff_limits import exceeded, parse_limits
from layerscope.analysis.model_diff import FactDiff, SuiteDiff, onset_for_good, output_diff
from layerscope.cli.main import app
from layerscope.errors import CorpusError, LayerscopeError, ModelError, PlacementError, RunError
from layerscope.model.causal_lm import CausalLM
from layerscope.report.sentences.model_diff import facts, headline, in_lines
from layerscope.view.charts.model_diff import diff_charts, diff_grids
from layerscope.view.page.diff_page import diff_html
from properties import slow
from rounding import DOUBLE, FLOAT32, ReadoutError, of_residual
from tiny_models import BLOCKS_AT, load_resident

TOLERANCE = of_residual(n_blocks=4, d_model=64)
RELATIVE = 4 * math.sqrt(64) * TOLERANCE
"""Of a residual's or error's norm over the base's: all 64 entries of two residuals that are at most as far apart as the
base is large, and of the norm that is divided by."""
DAMAGED, N_LAYERS = 3, 4
"""The layer whose block's MLP is changed, from 1."""
MATRIX = "mlp.down_proj"
FAMILIES = ("qwen3", "gemma2", "gpt_neox", "qwen3_moe")
MATRICES = {"gpt_neox": "mlp.dense_4h_to_h", "qwen3_moe": "self_attn.o_proj"}


def damaged(folder: Path, into: Path, matrix: str = MATRIX, layer: int = DAMAGED) -> Path:
    """A copy of which the first half of one matrix's rows is half as large again, which no norm behind it undoes."""
    shutil.copytree(folder, into)
    file = next(into.glob("*.safetensors"))
    weights = load_file(file)
    (name,) = [name for name in weights if f".{layer - 1}.{matrix}.weight" in name]
    weights[name][: len(weights[name]) // 2] *= 1.5
    save_file(weights, file, {"format": "pt"})
    return into


@pytest.fixture(scope="module")
def planted(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, DiffResult]:
    folder = tmp_path_factory.mktemp("diff")
    base = tiny("qwen3")
    variant = damaged(base, folder / "variant")
    return base, variant, layerscope.diff(base, variant, modules=True, suite="capitals", limit=2)


def streams_of(model: Any, ids: list[int]) -> torch.Tensor:
    """The stream in front of the first block and behind every one: [layer, position, d_model]."""
    seen: list[torch.Tensor] = []
    blocks = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))

    def keep(_: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0].float())

    def last(_: Any, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).reshape(1, len(ids), -1)[0].float())

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(last))
    with torch.inference_mode():
        model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def block_on(model: Any, layer: int, ids: list[int], stream: torch.Tensor) -> torch.Tensor:
    """What one block of a model makes of another model's stream, at its place in the model's own forward."""
    block = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))[layer - 1]
    out: list[torch.Tensor] = []

    def replace(_: Any, args: Any, kwargs: Any) -> Any:
        given = stream[None].to(torch.float32)
        return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

    def keep(_: Any, args: Any, output: Any) -> None:
        out.append((output[0] if isinstance(output, tuple) else output).reshape(1, len(ids), -1)[0])

    handles = [block.register_forward_pre_hook(replace, with_kwargs=True), block.register_forward_hook(keep)]
    with torch.inference_mode():
        model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return out[0]


def log_probs(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1).numpy()


def of_output(model: Any, rows: torch.Tensor) -> ReadoutError:
    """How far two implementations' logits may lie apart, of residuals whose entries have errors of either sign.

    `of_residual` is ten standard deviations of an entry, so that times the norm of a head's row are ten of a logit.
    """
    weight = model.get_output_embeddings().weight.detach().double()
    normed = model.model.norm(rows).detach().double()
    logit = 2 * TOLERANCE * float(normed.abs().max()) * float(weight.norm(dim=-1).max())
    return ReadoutError(logit, float((normed @ weight.T).abs().max()))


# What is measured


@pytest.mark.parametrize("name", [FAMILIES[0], *map(slow, FAMILIES[1:])])
def test_errors_of_blocks_are_those_of_transformers_own_blocks(name: str, tiny, tmp_path: Path):
    base = tiny(name)
    variant = damaged(base, tmp_path / "variant", MATRICES.get(name, MATRIX), 2)
    found = layerscope.diff(base, variant, suite=None, noise_floor=False)
    ours, theirs = load_resident(base), load_resident(variant)
    table = found.rows
    for text, ids in enumerate(read_sequences_of(base)):
        own, other = streams_of(ours, ids), streams_of(theirs, ids)
        for layer in range(1, len(own)):
            rows = table.filter(text=text, layer=layer)
            at = rows["position"].to_list()
            injected = block_on(theirs, layer, ids, own[layer - 1])
            norm = own[layer][at].norm(dim=-1)
            expected = {
                "relative_change": (other[layer] - own[layer])[at].norm(dim=-1) / norm,
                "injected": (injected - own[layer])[at].norm(dim=-1) / norm,
                "inherited": (other[layer] - injected)[at].norm(dim=-1) / norm,
            }
            for column, values in expected.items():
                assert rows[column].to_numpy() == pytest.approx(values.numpy(), abs=RELATIVE), (column, layer)
    by_layer = found.summary.layers
    assert by_layer[1].relative_change == 0 and by_layer[1].injected == 0
    assert by_layer[2].injected is not None and by_layer[2].injected > 1e-3 and by_layer[2].inherited == 0
    assert all(layer.injected == 0 for layer in by_layer[3:])
    assert all(layer.inherited == layer.relative_change for layer in by_layer[3:])


def read_sequences_of(folder: Path) -> list[list[int]]:
    """The passages in the model's own tokens."""
    from layerscope.fitting.held_out_text import own_passages

    return own_passages(CausalLM.open(folder, device="cpu"), 512).tolist()


def test_figures_at_the_output_are_those_of_whole_distributions(planted: tuple[Path, Path, DiffResult]):
    """KL, Jensen-Shannon, perplexities and agreement, in float64 from Transformers' own logits."""
    base, variant, found = planted
    models = [load_resident(folder) for folder in (base, variant)]
    kl, js, nll, top, apart, errors = [], [], [], [], [], []
    for ids in read_sequences_of(base):
        p, q = (log_probs(model, ids)[1:-1] for model in models)
        mean = np.logaddexp(p, q) - math.log(2)
        kl.append((np.exp(p) * (p - q)).sum(-1))
        js.append(((np.exp(p) * (p - mean)).sum(-1) + (np.exp(q) * (q - mean)).sum(-1)) / 2)
        apart.append(abs(np.exp(p) - np.exp(q)).sum(-1) / 2)
        errors += [of_output(model, streams_of(model, ids)[-1]) for model in models]
        following = np.array(ids[2:])
        nll.append(np.stack([-of[np.arange(len(of)), following] for of in (p, q)]))
        top.append(np.stack([p.argmax(-1), q.argmax(-1), following]))
    bits, (ours, theirs), tops = np.concatenate(kl) / math.log(2), np.concatenate(nll, 1), np.concatenate(top, 1)
    out = found.summary.output
    assert out.n_positions == len(bits)
    error = max(errors, key=lambda error: error.logit)
    # As in `ReadoutError.nats`, with the total variation that there is in place of the largest.
    moved = error.logit * (2 * bits * math.log(2) + 6 * np.concatenate(apart)) + 4 * FLOAT32 * error.size
    moved = moved / math.log(2)
    assert moved.mean() < 0.02 * bits.mean(), "a bound that could not fail would say nothing"
    assert out.kl_mean_bits == pytest.approx(bits.mean(), abs=moved.mean())
    assert out.kl_median_bits == pytest.approx(np.median(bits), abs=moved.max())
    assert out.kl_p99_bits == pytest.approx(np.quantile(bits, 0.99), abs=moved.max())
    assert out.kl_max_bits == pytest.approx(bits.max(), abs=moved.max())
    assert out.js_mean_bits == pytest.approx(np.concatenate(js).mean() / math.log(2), abs=moved.mean())
    factor = math.expm1(error.log_prob)
    assert out.base_perplexity == pytest.approx(math.exp(ours.mean()), rel=factor)
    assert out.variant_perplexity == pytest.approx(math.exp(theirs.mean()), rel=factor)
    assert out.perplexity_ratio == pytest.approx(math.exp((theirs - ours).mean()), rel=2 * factor)
    # A sample's standard deviation moves by no more than its points do, root of n over n - 1 times.
    ratio, root = math.exp((theirs - ours).mean()), math.sqrt(len(ours))
    due = (theirs - ours).std(ddof=1) / root * ratio
    shifted = 2 * error.log_prob * 1.01 / root * ratio + 2 * factor * due
    assert out.perplexity_ratio_standard_error == pytest.approx(due, abs=shifted)
    assert out.top1_agreement == pytest.approx((tops[0] == tops[1]).mean(), abs=2 / len(bits))


def test_the_one_linear_layer_that_differs_is_named_with_its_blocks_whole_error(planted):
    _, _, found = planted
    first, *others = found.summary.modules
    assert (first.layer, first.module) == (DAMAGED, MATRIX)
    assert first.injected == pytest.approx(found.summary.layers[DAMAGED].injected, rel=1e-4)
    assert len(others) == 7 * N_LAYERS - 1 and all(one.injected == 0 for one in others)
    worst = found.summary.worst_blocks[0]
    assert worst.layer == DAMAGED
    lines = {line.label: line.text for line in in_lines(found.summary)}
    assert lines["blocks"].startswith(f"1 of {N_LAYERS} inject an error; the largest, over the residual's norm: 3 (")
    assert lines["modules"].startswith(f"alone in the base's block, the most: 3 {MATRIX} ")


def test_a_model_against_itself_differs_in_nothing(tiny):
    found = layerscope.diff(tiny("qwen3"), tiny("qwen3"), suite="capitals", limit=1, modules=True)
    assert found.summary.is_identical
    assert headline(found.summary).startswith("Nothing differs, at ")
    assert all(one.injected == 0 for one in found.summary.modules)
    assert found.summary.suite is not None and not any(fact.flips for fact in found.summary.suite.prompts)
    assert found.summary.output.perplexity_ratio == 1.0
    lenses = [layer.base_to_output_bits for layer in found.summary.layers]
    assert lenses[-1] == 0 < lenses[0]


def test_a_suite_is_asked_in_the_bases_tokens(planted):
    base, _, found = planted
    run = layerscope.probe(base, suite="capitals", limit=2, lenses="logit", causal=False)
    suite = found.summary.suite
    asked = [prompt for prompt in run.record.suite.prompts if prompt.prompt_id != "ctl"]
    assert suite is not None and len(suite.prompts) == len(asked) == len(run.record.suite.prompts) - 1
    at_end = run.judged_rows.filter(lens="logit")
    for fact, prompt in zip(suite.prompts, asked, strict=True):
        assert prompt.output is not None
        assert fact.base_rank == prompt.output.answer_rank
        rows = at_end.filter(
            prompt_id=prompt.prompt_id, prompt_variant=prompt.prompt_variant, position=len(prompt.token_ids or ()) - 1
        )
        rows = rows.filter(rows["fact_index"].eq_missing(prompt.fact_index)).sort("layer")
        if fact.answer is not None:
            assert fact.base_onset == onset_for_good(rows["answer_rank"].to_list())


def test_a_low_rank_change_is_found_in_its_layer_and_is_what_merging_it_makes(tiny, tmp_path: Path):
    base, merged = tiny("qwen3"), tmp_path / "merged"
    shutil.copytree(base, merged)
    (file,) = merged.glob("*.safetensors")
    weights, name = load_file(file), "model.layers.1.self_attn.v_proj"
    generator = torch.Generator().manual_seed(3)
    d_out, d_in = weights[f"{name}.weight"].shape
    up, down = torch.randn(d_out, 2, generator=generator), torch.randn(2, d_in, generator=generator)
    weights[f"{name}.weight"] += 2.0 * up @ down
    save_file(weights, file, {"format": "pt"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4.0, "base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    lora = {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    save_file(lora, adapter / "adapter_model.safetensors")

    found = layerscope.diff(base, adapter=adapter, suite=None, noise_floor=False, modules=True).summary
    due = layerscope.diff(base, merged, suite=None, noise_floor=False, modules=True).summary
    assert found.variant.adapter == "adapter" and due.variant.adapter is None
    assert [layer.layer for layer in found.layers[1:] if layer.injected] == [2]
    assert (found.modules[0].layer, found.modules[0].module) == (2, "self_attn.v_proj")
    assert found.modules[1].injected == 0.0
    for ours, theirs in zip(found.layers, due.layers, strict=True):
        assert ours.relative_change == pytest.approx(theirs.relative_change, abs=RELATIVE)
    assert found.output.kl_mean_bits == pytest.approx(due.output.kl_mean_bits, rel=1e-3)


def of_gguf(file: Path) -> Any:
    """Transformers' own module with the file's weights as floats."""
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def test_fewer_bits_are_further_away_by_what_transformers_makes_of_the_same_files(tmp_path: Path):
    files = {kind: write_gguf(tmp_path / f"{kind}.gguf", "llama", kind) for kind in ("F32", "Q8_0", "Q4_0")}
    models = {kind: of_gguf(file) for kind, file in files.items()}
    kl = {}
    for kind in ("Q8_0", "Q4_0"):
        found = layerscope.diff(files["F32"], files[kind], suite=None, noise_floor=False)
        assert all(layer.injected for layer in found.summary.layers[1:])
        due = []
        for ids in read_sequences_of(files["F32"]):
            p, q = (log_probs(models[of], ids)[1:-1] for of in ("F32", kind))
            due.append((np.exp(p) * (p - q)).sum(-1) / math.log(2))
        kl[kind] = found.summary.output.kl_mean_bits
        assert kl[kind] == pytest.approx(np.concatenate(due).mean(), rel=0.01)
    assert 0 < 20 * kl["Q8_0"] < kl["Q4_0"]


def test_a_quantised_file_is_its_own_dequantisation(tmp_path: Path):
    file = write_gguf(tmp_path / "packed.gguf", "llama", "Q4_1")
    folder = tmp_path / "floats"
    model = of_gguf(file)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name).save_pretrained(folder)
    found = layerscope.diff(folder, file, suite=None, noise_floor=False).summary
    assert found.is_identical
    assert (found.base.storage, found.variant.storage) == ("float32", "GGUF Q4_1, F32")


def test_the_best_of_several_accepted_answers_is_ranked_in_each_model(planted):
    base, variant, _ = planted
    text, answers = "The capital of Germany is called", ("a", "b", "c", "d", "e", "f", "g", "h")
    ids = CausalLM.open(base, device="cpu").tokens
    found = layerscope.diff(
        base, variant, suite=[{"prompt": text, "answers": list(answers)}], noise_floor=False
    ).summary.suite
    assert found is not None
    run = layerscope.probe(base, suite=[{"prompt": text, "answers": list(answers)}], lenses="logit", causal=False)
    (asked,) = run.record.suite.prompts
    judged = [answer.first_id for answer in asked.answers]
    ends = [log_probs(load_resident(folder), list(ids.input_ids(text)))[-1] for folder in (base, variant)]
    due = [1 + int((end > max(end[token] for token in judged)).sum()) for end in ends]
    assert [found.prompts[0].base_rank, found.prompts[0].variant_rank] == due
    alone = [1 + int((ends[1] > ends[1][token]).sum()) for token in judged]
    assert len(set(alone)) > 1, "or any of them would do"


def test_an_answer_may_have_the_id_zero(planted):
    """The id is looked for as the answer's token, not as whether there is one."""
    base, variant, _ = planted
    word = CausalLM.open(base, device="cpu").tokens.display([0])[0]
    found = layerscope.diff(
        base, variant, suite=[{"prompt": "The capital", "answer": word, "answer_form": "none"}], noise_floor=False
    ).summary.suite
    assert found is not None
    assert found.prompts[0].answer == word and found.prompts[0].base_rank is not None


def test_less_memory_means_more_passes_and_the_same_figures(planted, monkeypatch):
    base, variant, found = planted
    monkeypatch.setattr("layerscope.diffing.streams.ROOM_SHARE", 1 << 40)  # room for one text at a time
    parted = layerscope.diff(base, variant, suite="capitals", limit=2)
    assert parted.rows.select("text", "position", "layer").equals(found.rows.select("text", "position", "layer"))
    change = (parted.rows["relative_change"] - found.rows["relative_change"]).abs().max()
    assert change <= RELATIVE
    assert parted.summary.output.kl_mean_bits == pytest.approx(found.summary.output.kl_mean_bits, rel=1e-3)


def test_compiled_divergences_are_those_of_whole_arrays_in_double(planted, monkeypatch):
    """Both in float64, over the same logits, of some 300 ids: sums of so many terms (`DOUBLE`)."""
    base, variant, found = planted
    monkeypatch.setattr("layerscope.diffing.divergences.kernels", lambda: None)
    plain = layerscope.diff(base, variant, suite="capitals", limit=2, noise_floor=False)
    for column in ("kl_bits", "js_bits", "injected_kl_bits", "base_to_output_bits", "variant_to_output_bits"):
        ours, theirs = found.rows[column].drop_nulls().to_numpy(), plain.rows[column].drop_nulls().to_numpy()
        assert ours == pytest.approx(theirs, rel=DOUBLE, abs=100 * DOUBLE), column
    assert found.summary.output.kl_mean_bits == pytest.approx(plain.summary.output.kl_mean_bits, abs=100 * DOUBLE)


# Numbers from numbers


def test_perplexities_and_flips_are_worked_out_as_stated():
    """Four positions: log-probabilities differ by 0.1, 0.3, -0.1 and 0.1."""
    ours = np.log(np.array([0.5, 0.25, 0.5, 0.25]))
    theirs = ours - np.array([0.1, 0.3, -0.1, 0.1])
    found = output_diff(
        np.array([0.0, 1.0, 2.0, 5.0]),
        np.zeros(4),
        (ours, theirs),
        (np.array([7, 8, 9, 1]), np.array([7, 8, 3, 2])),
        np.array([7, 1, 9, 1]),
    )
    assert found.base_perplexity == pytest.approx((0.5 * 0.25 * 0.5 * 0.25) ** (-1 / 4))
    assert found.perplexity_ratio == pytest.approx(math.exp(0.1))
    # Variance of the four differences: (0 + 0.04 + 0.04 + 0) / 3.
    assert found.perplexity_ratio_standard_error == pytest.approx(math.exp(0.1) * math.sqrt(0.08 / 3 / 4))
    assert (found.kl_mean_bits, found.kl_median_bits, found.kl_max_bits) == (2.0, 1.5, 5.0)
    assert found.kl_mean_standard_error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert found.top1_agreement == 0.5
    assert (found.n_right_in_base_only, found.n_right_in_variant_only, found.mcnemar_p) == (2, 0, 0.5)


def test_a_model_that_gives_no_chance_to_what_follows_has_no_perplexity():
    zeros = np.zeros(2, dtype=np.int64)
    found = output_diff(np.ones(2), np.ones(2), (np.full(2, -1.0), np.full(2, -1e4)), (zeros, zeros), zeros)
    assert found.base_perplexity == pytest.approx(math.e)
    assert (found.variant_perplexity, found.perplexity_ratio, found.perplexity_ratio_standard_error) == (None,) * 3


def test_an_onset_is_where_the_answer_stays_on_top():
    assert onset_for_good([5, 1, 2, 1, 1]) == 3
    assert onset_for_good([1, 1]) == 0
    assert onset_for_good([1, 1, 2]) is None


def test_limits_are_read_and_kept_or_not(planted):
    _, _, found = planted
    limits = parse_limits("kl_mean=0.0, perplexity_ratio=1e9,injected=1e-6")
    assert [limit.measure for limit in exceeded(found.summary, limits)] == ["kl_mean", "injected"]
    for text, words in (
        ("kl=1", "no limit on 'kl'; choose from kl_mean"),
        ("kl_mean=x", "should be a number of at least 0, but is 'x'"),
        ("kl_mean=-1", "should be a number of at least 0"),
        ("kl_mean=nan", "should be a number of at least 0"),
        ("kl_mean=1,kl_mean=2", "given twice"),
    ):
        with pytest.raises(RunError, match=words):
            parse_limits(text)


# What is refused


def test_text_that_memory_has_no_room_for_is_refused_before_the_work(planted):
    base, variant, _ = planted
    with pytest.raises(PlacementError, match=r"A text of \d+ tokens takes .* but each of them has 50 KiB"):
        layerscope.diff(base, variant, suite=None, memory="100KiB")


def test_ids_that_only_one_of_the_two_has_are_refused_or_not_judged(tiny, planted, tmp_path: Path):
    base, _, _ = planted
    fewer = tmp_path / "fewer"
    shutil.copytree(base, fewer)
    (file,) = fewer.glob("*.safetensors")
    weights, config = load_file(file), json.loads((fewer / "config.json").read_text())
    n = config["vocab_size"] // 2
    weights = {name: value[:n] if len(value) == config["vocab_size"] else value for name, value in weights.items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, file, {"format": "pt"})
    (fewer / "config.json").write_text(json.dumps(config | {"vocab_size": n}))
    with pytest.raises(ModelError, match=f"gives token id .* embeds {n} ids"):
        layerscope.diff(base, fewer, suite=None)


def test_text_without_a_logit_in_one_of_the_two_is_refused_and_answers_are_not_judged(planted, monkeypatch):
    """Where more ids are embedded than the head has logits for, as in padded tables."""
    base, variant, found = planted
    asked = found.summary.suite.prompts[0]
    models = [CausalLM.open(folder, device="cpu") for folder in (base, variant)]
    top = max(models[0].tokens.input_ids(asked.prompt))
    monkeypatch.setattr(models[1], "d_vocab", top)
    with pytest.raises(ModelError, match=rf"has {top} logits and so no probability"):
        layerscope.diff(*models, suite="capitals", limit=1)


def test_what_cannot_be_compared_is_refused_in_a_sentence(tiny, tmp_path: Path):
    qwen = tiny("qwen3")
    opened = CausalLM.open(qwen, device="cpu")
    text = tmp_path / "few.txt"
    text.write_text("a", encoding="utf-8")
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[LayerscopeError], str]] = [
        ((qwen, tiny("gpt2")), {}, ModelError, r"has 4 blocks, but .* has \d|numbers in a residual"),
        ((qwen,), {}, ModelError, "Name the variant too"),
        ((opened, opened), {}, ModelError, "one open model; open it twice"),
        ((qwen, qwen), {"tokens": "5k"}, CorpusError, "tokens say how a text is read, but none was given"),
        ((qwen, qwen), {"text": [str(text)]}, CorpusError, "give more text"),
    ]
    for models, options, error, words in cases:
        with pytest.raises(error, match=words):
            layerscope.diff(*models, **options)


# What people see


def test_the_command_prints_saves_and_fails_above_a_limit(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, variant = tiny("qwen3"), damaged(tiny("qwen3"), tmp_path / "variant")
    words = ["diff", str(base), str(variant), "--suite", "none", "--no-noise-floor", "--details", "--page", "d.html"]
    done = CliRunner().invoke(app, [*words, "--fail-above", "kl_mean=0"])
    assert done.exit_code == 1, done.output
    assert "above its limit · kl_mean is " in done.output and "diff · diffs/" in done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("diff · "))
    assert "page · d.html" in done.output and "<title>variant against its base" in Path("d.html").read_text()
    (folder,) = (tmp_path / "diffs").iterdir()
    kept = json.loads((folder / "diff.json").read_text(encoding="utf-8"))
    assert kept["layers"][DAMAGED]["inherited"] == 0.0 < kept["layers"][DAMAGED]["injected"]
    assert {file.name for file in folder.iterdir()} == {"diff.json", "diff.parquet"}
    missing = CliRunner().invoke(app, [*words, "--fail-above", "flips=0.1"])
    assert missing.exit_code == 2 and "no prompt with an answer was asked" in missing.output
    assert len(list((tmp_path / "diffs").iterdir())) == 1, "it is refused before the work"


def test_charts_draw_what_the_summary_and_the_rows_say(planted):
    _, _, found = planted
    errors, lenses = diff_charts(found.summary)
    assert errors.table["injected"].to_list() == [layer.injected for layer in found.summary.layers]
    assert lenses.table["kl_bits"].to_list() == [layer.kl_bits for layer in found.summary.layers]
    grids = list(diff_grids(found.summary, found.rows))
    ends = found.rows.filter("is_prompt").filter(pl.col("text") == pl.col("text").min())
    assert ends["position"].n_unique() > 1, "a grid has positions"
    for side, grid in zip(("base", "variant"), grids, strict=True):
        cells = grid.table.join(ends, on=["layer", "position"], suffix="_row")
        assert cells.height == ends.height and cells["top1"].to_list() == cells[f"{side}_top1"].to_list()
        assert (cells["differs"] == (cells["base_top1_id"] != cells["variant_top1_id"])).all()
        assert grid.png(width=None, scale=0.2).startswith(b"\x89PNG")
    html = diff_html(found.summary, found.rows)
    assert html.count("<figure") == 4 and html.count('<th scope="row">') == len(found.summary.layers) + 4


def test_facts_are_told_with_their_flips_and_shifts():
    number = count()

    def fact(ranks: tuple[int, int], onsets: tuple[int | None, int | None]) -> FactDiff:
        return FactDiff("p", next(number), 0.5, "a", "b", "a", *ranks, *onsets)

    suite = SuiteDiff("some", (fact((1, 1), (3, 5)), fact((1, 2), (3, None)), fact((4, 1), (None, 2))))
    assert facts(suite) == (
        "of 3 prompts of some the base answers 2, the variant 2: 1 lost, 1 won (McNemar p 1); KL 0.5 bits in the mean; "
        "on top for good 2 layers later (median over 1 that both answer; +2 to +2)"
    )
    # In a second wording of the first fact, which is lost too, the flip is counted, but gives no other fact's evidence.
    again = replace(suite.prompts[1], fact=0)
    assert (worded := SuiteDiff("some", (again, *suite.prompts[:2]))).n_lost == 2 and worded.mcnemar_p == 0.5
    assert "2 lost, 0 won (McNemar p 0.5 over 2 facts in the first wording)" in facts(worded)
    unjudged = replace(suite.prompts[0], answer=None, base_rank=None, variant_rank=None)
    assert facts(SuiteDiff("some", (unjudged,))).startswith("no prompt of some has an answer that is judged")
