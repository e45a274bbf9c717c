"""Benchmarks tell no time of sides that disagree, count what a shape cannot do without, and draw what they kept."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from layerscope.model.causal_lm import CausalLM

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import holes
import large
import make_checkpoint
from agreement import Disagreement, compare
from patch_cost import PatchCost, Probed, _compared, table
from setting import Setting
from shapes import Shape, floor
from task import TIE, TOP_K, Readings
from tops import P_TOLERANCE, Tops, compare_tops, tops_of_interpkit, tops_of_look
from watched import watch

SHAPE = (2, 3, 4)


def test_the_cost_of_patches_is_told_pair_by_pair_and_never_of_rows_that_differ(tmp_path: Path):
    plain = tuple(Probed(10.0, 8.0, 0.0, 0.5) for _ in range(3))
    patched = tuple(Probed(wall, 8.0 + wall - 10, wall - 10, 0.6) for wall in (13.0, 17.0, 12.0))
    drawn = table(PatchCost(patched, plain, 40, 5000, (0.1, 1.9)))
    assert "over that without: 1.30 (target 1.60: met); 1.20 to 1.70" in drawn
    assert "writing files: 1.38 (target 1.60: met); 1.25 to 1.88" in drawn
    for name, bits in (("patched", 1.0), ("plain", 1.001)):
        (tmp_path / name).mkdir()
        rows = pl.DataFrame({"entropy_bits": [2.0], "kl_to_final_bits": [bits]})
        rows.write_parquet(tmp_path / name / "rows.parquet")
    with pytest.raises(Disagreement, match="kl_to_final_bits"):
        _compared(tmp_path / "patched", tmp_path / "plain")


def readings(**changes) -> Readings:
    generator = np.random.default_rng(0)
    top_ids = np.tile(np.arange(TOP_K + 1), (*SHAPE, 1))
    parts = {
        "entropy_bits": generator.uniform(0, 10, SHAPE),
        "kl_to_final_bits": generator.uniform(0, 10, SHAPE),
        "answer_rank": generator.integers(1, 100, SHAPE),
        "top_ids": top_ids,
        "top_logits": -np.tile(np.arange(TOP_K + 1.0), (*SHAPE, 1)),
        "near_answer": np.zeros(SHAPE, dtype=np.int64),
    }
    return Readings(**{**parts, **changes})


@pytest.mark.parametrize(
    "name",
    [
        "bench",
        "fit",
        "gpu",
        "page",
        "scale",
        "over_floor",
        "small_model",
        "look",
        "patch_cost",
        "large",
        "decode_rates",
    ],
)
def test_a_benchmark_finds_what_it_imports(name: str):
    """Few are run by tests; a name that moved would be missed on the day on which one is wanted."""
    assert import_module(name).__doc__


TINY = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2304,
    "bos_token_id": None,
    "eos_token_id": None,
}
STORED_AS = {
    "bfloat16": "bfloat16",
    "NF4": "bitsandbytes NF4",
    "GPTQ": "GPTQ int4",
    "Q4_K": "GGUF BF16, Q4_K, F32",
    "mixture": "bfloat16",
}


@pytest.mark.parametrize("name", list(large.FORMS))
def test_a_checkpoint_of_holes_is_read_in_its_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make_checkpoint, "PERIOD", 10_007)
    monkeypatch.setattr(holes, "LLAMA", {**holes.LLAMA, **TINY})
    experts = {"head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    monkeypatch.setattr(holes, "MIXTURE", {**holes.MIXTURE, **TINY, **experts})
    model = CausalLM.open(str(large.FORMS[name](tmp_path / name)), device="cpu")
    stream = model.forward([[5, 6, 7]]).of_prompt(0)
    assert model.stored_dtype == STORED_AS[name]
    assert len(stream) == 3 and stream[0].norm() > 0
    assert torch.equal(stream[0], stream[2])  # blocks of zeros add nothing to what is embedded


def test_a_side_agrees_with_itself():
    found = compare(readings(), readings())
    assert (found.rows, found.ranks_equal, found.tops_equal) == (24, 24, 24)
    assert found.entropy_bits == found.kl_bits == 0.0


@pytest.mark.parametrize("name", ["entropy_bits", "kl_to_final_bits", "answer_rank", "top_ids"])
def test_a_side_that_reads_another_number_is_refused(name):
    wrong = getattr(readings(), name).copy()
    wrong[1, 2, 3] += 1
    with pytest.raises(Disagreement, match=name):
        compare(readings(), readings(**{name: wrong}))


def test_a_nan_is_refused():
    wrong = readings().entropy_bits.copy()
    wrong[0, 0, 0] = np.nan
    with pytest.raises(Disagreement, match="entropy_bits"):
        compare(readings(), readings(entropy_bits=wrong))


def test_a_tie_may_be_broken_either_way():
    reference = readings(near_answer=np.full(SHAPE, 1))
    reference.top_logits[..., 1] = reference.top_logits[..., 0] - TIE / 2
    swapped = readings().top_ids.copy()
    swapped[..., [0, 1]] = swapped[..., [1, 0]]
    found = compare(reference, readings(answer_rank=readings().answer_rank + 1, top_ids=swapped))
    assert found.ranks_equal == found.tops_equal == 0


def tops(probs: list[list[float]] | None = None) -> Tops:
    """Two layers at one position, or other probabilities there."""
    tokens = np.array([[[" a", " b"]], [[" c", " d"]]], dtype=object)
    return Tops(tokens, np.array(probs or [[0.6, 0.3], [0.9, 0.05]])[:, None])


def test_a_list_of_fewer_layers_is_held_against_the_last_ones():
    found = compare_tops(tops(), Tops(tops().tokens[1:], tops().probs[1:]))
    assert (found.rows, found.equal, found.p, found.p_last_layer) == (1, 1, 0.0, 0.0)


def test_another_token_on_top_is_refused_unless_it_is_a_tie():
    swapped = Tops(tops().tokens[..., ::-1], tops().probs)
    with pytest.raises(Disagreement, match=r"the token on top .* ' a' and ' b'"):
        compare_tops(tops(), swapped)
    tied = tops([[0.45, 0.45 - P_TOLERANCE / 2], [0.4, 0.4]])
    assert compare_tops(tied, Tops(swapped.tokens, tied.probs)).equal == 0


@pytest.mark.parametrize(("layer", "place", "what"), [(0, 0, "on top"), (1, 1, "of the last layer"), (1, 0, "on top")])
def test_another_probability_is_refused(layer: int, place: int, what: str):
    wrong = tops()
    wrong.probs[layer, 0, place] += 2 * P_TOLERANCE
    with pytest.raises(Disagreement, match=f"probability {what}"):
        compare_tops(tops(), wrong)
    wrong.probs[layer, 0, place] = np.nan
    with pytest.raises(Disagreement, match=f"probability {what}"):
        compare_tops(tops(), wrong)


def test_lists_are_read_from_what_both_commands_print():
    """Layer by layer, as they come; one of them begins behind the first block."""
    cells = [{"top": [{"token": " a", "p": 0.6}, {"token": " b", "p": 0.3}]}]
    cells += [{"top": [{"token": " c", "p": 0.9}, {"token": " d", "p": 0.05}]}]
    last = {"top5_tokens": [" c", " d"], "top5_probs": [0.9, 0.05]}
    ours = tops_of_look({"layers": [0, 1], "grid": cells})
    theirs = tops_of_interpkit({"results": [{"positions": [last]}]})
    assert compare_tops(tops(), ours).equal == 2
    assert compare_tops(ours, theirs).equal == 1


def test_arithmetic_is_that_of_the_published_model():
    """Qwen3-1.7B's card: 1.7 B parameters, 1.4 B of them not in the embedding."""
    counted = Shape("qwen3-1.7b").arithmetic()
    assert counted.parameters == pytest.approx(1.72e9, rel=0.01)
    assert counted.in_blocks == pytest.approx(1.4e9, rel=0.02)
    assert counted.in_head == 2048 * 151_936
    assert counted.forward_flop([1]) == pytest.approx(2 * counted.in_blocks, rel=0.001)
    # Scores and their mean: 2 FLOP each for every head's width, over all pairs of a token and one not after it.
    pairs = 100 * 101 / 2
    assert counted.forward_flop([100]) - 100 * 2 * counted.in_blocks == pytest.approx(4 * 28 * 16 * 128 * pairs)


def test_the_floor_is_the_larger_of_reading_and_computing():
    assert floor(4e9, 1e11, gb_per_s=4.0, gflops=50.0).seconds == 2.0
    assert floor(4e9, 1e11, gb_per_s=1.0, gflops=50.0).seconds == 4.0


def test_a_child_is_watched_and_ended_at_the_limit():
    code = "import time; held = bytearray(60_000_000); time.sleep(60)"  # few enough to be there well within the limit
    seen = watch([sys.executable, "-c", code], Setting(threads=1), limit_s=1.5)
    assert not seen.within_limit
    assert 0.06 < seen.peak_gb() < 0.25
    assert seen.peak_gb() <= seen.resident_gb < 0.35
    assert 1.5 <= seen.wall_s < 30.0


def test_a_short_child_is_timed_to_its_end():
    """Not to the next look at its memory."""
    runs = (
        watch(["sleep", "0.11"], Setting(threads=1)).wall_s for _ in range(20)
    )  # on a busy machine few come through
    assert any(0.11 <= wall_s < 0.145 for wall_s in runs)
