"""On an accelerator the numbers are the CPU's, up to what the dtype rounds.

`LAYERSCOPE_TEST_DEVICE=cpu` runs the same tests on the CPU, to see that they run; `benchmarks/gpu.py` begins with them.

Tolerances. Float32 passes of twelve blocks of width 96 on two devices: `rounding.of_residual`, 7e-5 of logits below
30, 1e-3.
"""

import os
from pathlib import Path

import polars as pl
import pytest
import torch

import layerscope
from fit_texts import corpus_for, write_text
from layerscope.bundled import BUNDLED
from layerscope.fitting.tuned import TunedSettings, fit_tuned
from layerscope.model.causal_lm import CausalLM
from tiny_models import TINY

DEVICE = os.environ.get("LAYERSCOPE_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE != "cpu" and not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
COMPARED = ("entropy_bits", "kl_to_final_bits", "cos_to_final", "raw_resid_norm", "js_divergence_bits", "p_top1")
LITTLE = 96 << 20
"""Enough for a pass of the bundled model, too little for half of it to be its weights' share and the pass to fit."""


def next_rows(model=BUNDLED, **options) -> pl.DataFrame:
    run = layerscope.probe(model, **{"suite": "capitals", "positions": "last", **options})
    assert run.record.identity.ok
    return run.rows


def assert_same_numbers(here: pl.DataFrame, there: pl.DataFrame) -> None:
    for name in COMPARED:
        assert here[name].null_count() == there[name].null_count(), name
        apart = (here[name] - there[name]).abs().max()
        assert apart is None or apart < 1e-3 * max(1.0, here[name].abs().max()), name
    ranks = here["answer_rank"].is_not_null()
    assert (here["answer_rank"] == there["answer_rank"]).filter(ranks).mean() > 0.99


def test_float32_equals_the_cpu():
    assert_same_numbers(next_rows(device="cpu"), next_rows(device=DEVICE, dtype="float32"))


def test_weights_brought_by_tile_equal_resident_ones():
    resident = next_rows(device=DEVICE, dtype="float32")
    by_tile = next_rows(device=DEVICE, dtype="float32", memory=LITTLE)
    assert (resident["entropy_bits"] - by_tile["entropy_bits"]).abs().max() < 1e-4


def test_all_that_a_probe_can_measure_runs_there():
    options = {"suite": "berlin", "positions": "all", "second_forward": "always", "control": "shuffled-weights"}
    assert_same_numbers(next_rows(device="cpu", **options), next_rows(device=DEVICE, dtype="float32", **options))


@pytest.mark.parametrize("name", TINY)
def test_every_family_equals_the_cpu(name, tmp_path):
    folder = TINY[name].build(tmp_path)
    options = {"suite": [{"prompt": "The capital", "answer": "Paris"}]}  # some read eight tokens at most
    here, there = (next_rows(folder, device=device, dtype="float32", **options) for device in ("cpu", DEVICE))
    apart = (here["entropy_bits"] - there["entropy_bits"]).abs().max()
    assert apart < 1e-3


def test_a_fit_there_is_no_worse_than_the_logit_lens(tmp_path: Path):
    model = CausalLM.open(BUNDLED, device=DEVICE, dtype="float32")
    corpus = corpus_for(model, write_text(tmp_path / "text.txt"))
    fitted = fit_tuned(model, corpus, tmp_path / "tuned", TunedSettings(steps=8, batch=128))
    assert fitted.record.tuned is not None
    assert all(layer.tuned_bits <= layer.logit_bits for layer in fitted.record.tuned.layers)


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU computes in float32 alone")
def test_bfloat16_keeps_the_answers():
    assert next_rows(device=DEVICE, dtype="bfloat16").filter(layer=12, lens="logit")["is_answer"].all()
