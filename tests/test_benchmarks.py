"""Benchmarks tell no time of sides that disagree, count what a shape cannot do without, and draw what they kept."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from agreement import Disagreement, compare
from setting import Setting
from shapes import Shape, floor
from task import TIE, TOP_K, Readings
from watched import watch

SHAPE = (2, 3, 4)


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


@pytest.mark.parametrize("name", ["bench", "fit", "gpu", "page", "scale", "over_floor", "small_model"])
def test_a_benchmark_finds_what_it_imports(name: str):
    """Few are run by tests; a name that moved would be missed on the day on which one is wanted."""
    assert import_module(name).__doc__


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
    code = "import time; held = bytearray(200_000_000); time.sleep(60)"
    seen = watch([sys.executable, "-c", code], Setting(threads=1), limit_s=1.0)
    assert not seen.within_limit
    assert 0.15 < seen.peak_gb() < 0.4
    assert 1.0 <= seen.wall_s < 30.0
