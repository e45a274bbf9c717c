"""Which experts tokens are sent to: as Transformers' own modules are called; in runs and their folders."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from layerscope import Prompt, Run, Suite, probe
from layerscope.analysis.routing import experts_at_next
from layerscope.errors import RunError
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.memory_plan import Batch, plan_memory
from layerscope.record.routing import MixtureRecord, RoutingRecord, routing_frame
from layerscope.report.sentences.experts import in_detail
from tiny_models import PROMPTS, load_resident

MIXTURES = ("mixtral", "qwen3_moe")


def theirs(folder: Path, token_ids: list[int]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By module: numbers and weights that Transformers' resident model hands to its experts, `[position, slot]`."""
    model, seen = load_resident(folder), {}
    for path, module in model.named_modules():
        if hasattr(module, "is_concatenated"):
            module.register_forward_pre_hook(lambda _, args, path=path: seen.update({path: (args[1], args[2])}))
    with torch.inference_mode():
        model(torch.tensor([token_ids]))
    return seen


@pytest.mark.parametrize("name", MIXTURES)
def test_the_choices_are_transformers_own(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    routing = model.forward(PROMPTS).routing
    for i, prompt in enumerate(PROMPTS):
        expected = theirs(tiny(name), prompt)
        assert len(routing.by_mixture) == len(expected) > 0
        for mixture, choices in routing.by_mixture.items():
            (path,) = (path for path in expected if path.endswith(f"layers.{mixture.layer - 1}.{mixture.module}"))
            experts, weights = expected[path]
            assert torch.equal(choices.experts[i, : len(prompt)].long(), experts)
            torch.testing.assert_close(choices.weights[i, : len(prompt)], weights.float(), rtol=1e-4, atol=1e-6)
            assert mixture.n_experts > int(experts.max())


def test_prompts_that_share_their_beginning_have_the_choices_that_they_have_alone(tiny):
    model = CausalLM.open(tiny("qwen3_moe"), device="cpu")
    prompts = [[*range(5, 25), end] for end in range(30, 38)]
    assert model.folding(prompts) is not None
    together = model.forward(prompts).routing
    for i, prompt in enumerate(prompts):
        alone = model.forward([prompt]).routing
        for mixture, choices in alone.by_mixture.items():
            assert torch.equal(together.by_mixture[mixture].experts[i], choices.experts[0])


FACTS = (("Germany", "Berlin"), ("France", "Paris"), ("Italy", "Rome"))
SUITE = Suite(
    "three",
    "",
    tuple(
        Prompt("pos", "orig", f"The capital of {asked} is called", (answer,), f"{asked}→{answer}", i)
        for i, (asked, answer) in enumerate(FACTS)
    ),
)


@pytest.fixture(scope="module")
def run(tiny) -> Run:
    return probe(tiny("qwen3_moe"), suite=SUITE, positions="all", lenses="logit", device="cpu")


def test_a_run_has_a_row_for_each_of_its_positions_and_mixtures(run: Run):
    places = run.rows.filter(lens="logit", layer=0).select("fact_index", "position", "is_next")
    mixtures = run.record.measured.routing.mixtures
    table = run.experts
    assert table.height == len(places) * len(mixtures)
    for one in mixtures:
        own = table.filter(layer=one.layer, module=one.module)
        assert own.select("fact_index", "position", "is_next").equals(places)
        assert own["experts"].list.len().unique().to_list() == [one.n_chosen]
        assert own["experts"].explode().is_between(0, one.n_experts - 1).all()
    assert (table["weights"].list.eval(pl.element().sort(descending=True)) == table["weights"]).all()


def test_a_run_in_parts_has_the_same_choices(run: Run, tiny, monkeypatch):
    """Part by part, as where memory is short."""
    whole = plan_memory

    def one_by_one(*args: object, **kwargs: object) -> list[Batch]:
        (part,) = whole(*args, **kwargs)
        return [replace(part, prompts=slice(i, i + 1)) for i in range(len(SUITE.prompts))]

    monkeypatch.setattr("layerscope.probing.probe.plan_memory", one_by_one)
    parts = probe(tiny("qwen3_moe"), suite=SUITE, positions="all", lenses="logit", device="cpu")
    keys = ["fact_index", "position", "layer", "module", "experts"]
    assert parts.experts.select(keys).equals(run.experts.select(keys))
    assert parts.record.measured.routing == run.record.measured.routing


def test_it_is_written_and_read_back_equal(run: Run, tmp_path: Path):
    run.save(tmp_path / "run")
    assert Run.read(tmp_path / "run") == run
    run.experts.filter(pl.col("layer") > 1).write_parquet(tmp_path / "run" / "experts.parquet")
    with pytest.raises(RunError, match="not those whose experts the record names"):
        Run.read(tmp_path / "run")
    run.experts.drop("weights").write_parquet(tmp_path / "run" / "experts.parquet")
    with pytest.raises(RunError, match="should have the columns"):
        Run.read(tmp_path / "run")
    (tmp_path / "run" / "experts.parquet").unlink()
    with pytest.raises(RunError, match=r"experts\.parquet"):
        Run.read(tmp_path / "run")


def test_a_dense_model_has_none(tiny):
    found = probe(tiny("qwen3"), suite=SUITE, positions="last", lenses="logit", device="cpu")
    assert found.experts is None
    assert found.record.measured.routing is None


def chosen(rows: list[tuple[int, int, list[int], list[float]]]) -> pl.DataFrame:
    """A table of `(fact, layer, experts, weights)`, each at a prompt's last token."""
    facts, layers, experts, weights = (list(column) for column in zip(*rows, strict=True))
    n = len(rows)
    return routing_frame(
        {
            "fact_key": [f"fact {i}" for i in facts],
            "fact_index": facts,
            "prompt_id": ["pos"] * n,
            "prompt_variant": ["orig"] * n,
            "position": [4] * n,
            "is_next": [True] * n,
            "layer": layers,
            "module": ["mlp.experts"] * n,
            "experts": experts,
            "weights": weights,
        }
    )


def test_experts_are_counted_over_prompts():
    table = chosen([(0, 3, [7, 1], [0.75, 0.25]), (1, 3, [1, 2], [0.5, 0.5]), (0, 4, [5, 6], [0.5, 0.5])])
    (found,) = experts_at_next(table, 3, "orig")
    assert found.n_prompts == 2
    assert [(use.expert, use.n, use.mean_weight) for use in found.used] == [(1, 2, 0.375), (7, 1, 0.75), (2, 1, 0.5)]
    assert experts_at_next(table, 3, "other") == ()


def test_the_lines_name_the_experts_where_the_answer_comes_on_top():
    table = chosen([(0, 3, [7, 1], [0.75, 0.25]), (1, 3, [1, 2], [0.5, 0.5])])
    record = RoutingRecord(mixtures=(MixtureRecord(layer=3, module="mlp.experts", n_experts=8, n_chosen=2),))
    sizes, used = in_detail(record, table, 3, "orig")
    assert sizes.text == "each token is sent to 2 of 8, in 1 block"
    assert "of 2 prompts' last tokens, to expert 1 (2; 0.38), 7 (1; 0.75), 2 (1; 0.50)" in used.text
    assert "no experts are chosen in the block that writes layer 2" in in_detail(record, table, 2, "orig")[1].text
    assert len(in_detail(record, table, None, "orig")) == 1
