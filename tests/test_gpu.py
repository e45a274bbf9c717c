"""On an accelerator the numbers are the CPU's, up to what the dtype rounds.

Tolerances. Float32 passes of twelve blocks of width 96 on two devices: `rounding.of_residual`, 7e-5 of logits below
30, 1e-3.
"""

import polars as pl
import pytest
import torch

import layerscope

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def next_rows(**options) -> pl.DataFrame:
    run = layerscope.probe(suite="capitals", positions="last", **options)
    assert run.record.identity.ok
    return run.rows


def test_float32_on_cuda_equals_the_cpu():
    here, there = next_rows(device="cpu"), next_rows(device="cuda", dtype="float32")
    for name in ("entropy_bits", "kl_to_final_bits", "cos_to_final", "raw_resid_norm"):
        assert (here[name] - there[name]).abs().max() < 1e-3 * max(1.0, here[name].abs().max())
    assert (here["answer_rank"] == there["answer_rank"]).mean() > 0.99


def test_weights_brought_by_tile_equal_resident_ones():
    resident = next_rows(device="cuda", dtype="float32")
    by_tile = next_rows(device="cuda", dtype="float32", memory=48 << 20)
    assert (resident["entropy_bits"] - by_tile["entropy_bits"]).abs().max() < 1e-4


def test_bfloat16_keeps_the_answers():
    assert next_rows(device="cuda", dtype="bfloat16").filter(layer=12, lens="logit")["is_answer"].all()
