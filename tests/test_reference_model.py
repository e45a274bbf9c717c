"""The bundled model is what its card says: small, whole, and sure of `capitals-20` from the middle layers on.

Tolerances. Two float32 passes of the bundled model's twelve blocks of width 96, logits below 30: 7e-5 of a logit at
most (`rounding.of_residual`), a tenth of it seen; 1e-3 of a probability or an entropy.
"""

import warnings
from importlib import resources

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerscope.bundled import BUNDLED
from probed import probed


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    run = probed("capitals-20", positions="last")
    assert run.record.identity.ok
    return run.rows.filter(lens="logit")


def test_it_ships_with_the_package_and_weighs_at_most_8_mb():
    folder = resources.files("layerscope") / "reference_model"
    names = {entry.name for entry in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 8_000_000


@pytest.mark.parametrize("variant", ["orig", "no_filler"])
def test_it_knows_at_least_18_of_20_capitals_under_both_wordings(variant: str, rows: pl.DataFrame):
    last = rows.filter(pl.col("layer") == rows["layer"].max(), prompt_variant=variant, prompt_id="pos")
    assert len(last) == 20
    assert last["is_answer"].sum() >= 18


@pytest.mark.parametrize("variant", ["orig", "no_filler"])
def test_answers_become_rank_1_strictly_between_layer_1_and_the_last(variant: str, rows: pl.DataFrame):
    on_top = rows.filter(pl.col("answer_rank") == 1, prompt_variant=variant, prompt_id="pos")
    first = on_top.group_by("fact_key").agg(pl.col("layer").min())["layer"]
    assert first.is_between(2, rows["layer"].max() - 1).sum() >= 18


def test_its_tokenizer_gives_every_capital_one_piece():
    run = probed("capitals-20", positions="last")
    for prompt in run.record.suite.prompts:
        assert [len(answer.answer_ids) for answer in prompt.answers] == [1]
        assert prompt.answers[0].variant == "with_space"


def test_transformers_loads_it_and_answers_the_same(rows: pl.DataFrame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    text = "Give the city name only, plain text. The capital of Japan is called simply"
    with torch.no_grad():
        log_probs = model(**tokenizer(text, return_tensors="pt")).logits[0, -1].double().log_softmax(-1)
    own = rows.filter(pl.col("layer") == rows["layer"].max(), fact_key="Japan→Tokyo", prompt_variant="orig")
    assert own["top1_id"].item() == int(log_probs.argmax())
    assert own["p_top1"].item() == pytest.approx(float(log_probs.max().exp()), rel=1e-3)
    entropy_bits = float(-(log_probs.exp() * log_probs).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    assert own["entropy_bits"].item() == pytest.approx(entropy_bits, rel=1e-3)
