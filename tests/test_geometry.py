"""Cosines, norm ratios and overlaps against textbook definitions.

Tolerances. Cosines of float32 rows of few entries, in float64 sums: each row's rounding is SINGLE of its size.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerscope.readout.geometry import geometry, jaccard, norm_ratio, row_residual_cosine
from layerscope.unembedding import Unembedding
from rounding import DOUBLE, SINGLE

HEAD = Unembedding.of(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), None)
ROWS = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a.double(), b.double(), dim=-1).item()


def test_the_answers_cosine_is_that_of_the_row_and_the_answers_vector():
    answer = torch.tensor([[3, 3, 4, -1], [5, 3, 4, -1], [3, 3, 3, -1]])
    found = geometry(ROWS, answer, torch.tensor([], dtype=torch.int64), torch.zeros(4, 0, dtype=torch.bool), HEAD)
    for g in range(3):
        for p in range(3):
            due = _cosine(ROWS[g, p], HEAD.weight.tensor[answer[g, p]])
            assert found.cos_to_answer[g, p].item() == pytest.approx(due, abs=SINGLE)
    assert found.cos_to_answer[:, 3].isnan().all()
    assert found.cos_to_prompt_max.isnan().all()


def test_the_prompts_cosine_is_the_largest_to_a_token_read_so_far():
    ids = torch.tensor([7, 8, 9])
    seen = torch.tensor([[False, False, False], [True, False, False], [True, True, False], [True, True, True]])
    found = geometry(ROWS, torch.full((3, 4), -1), ids, seen, HEAD).cos_to_prompt_max
    assert found[:, 0].isnan().all()
    for g in range(3):
        for p in range(1, 4):
            due = max(_cosine(ROWS[g, p], HEAD.weight.tensor[i]) for i in ids[seen[p]])
            assert found[g, p].item() == pytest.approx(due, abs=SINGLE)


def test_a_projection_before_the_head_is_part_of_the_row():
    projection = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    head = Unembedding.of(HEAD.weight.tensor, None, projection=projection)
    rows = ROWS[..., :5].contiguous()
    found = geometry(rows, torch.full((3, 4), 2), torch.tensor([7]), torch.ones(4, 1, dtype=torch.bool), head)
    projected = rows[1, 1] @ projection.T
    assert found.cos_to_answer[1, 1].item() == pytest.approx(_cosine(projected, HEAD.weight.tensor[2]), abs=SINGLE)
    assert found.cos_to_prompt_max[1, 1].item() == pytest.approx(_cosine(projected, HEAD.weight.tensor[7]), abs=SINGLE)


def test_a_row_of_zeros_has_cosine_zero_and_ratio_zero():
    zero = torch.zeros(1, 1, 6)
    found = geometry(zero, torch.tensor([[3]]), torch.tensor([7]), torch.ones(1, 1, dtype=torch.bool), HEAD)
    assert found.cos_to_answer.item() == found.cos_to_prompt_max.item() == 0.0
    assert norm_ratio(zero, zero).item() == row_residual_cosine(zero, zero).item() == 0.0


def test_the_norm_ratio_is_length_over_length():
    # 3-4-5 over 6-8-10.
    assert norm_ratio(torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])).item() == pytest.approx(0.5, rel=DOUBLE)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), st.floats(0.015625, 64.0, width=32))
def test_a_row_along_its_residual_has_a_cosine_of_one_at_most(values, scale):
    residual = torch.tensor(values)
    for sign in (1, -1):
        found = row_residual_cosine(residual * scale * sign, residual).item()
        assert -1.0 <= found <= 1.0
        if residual.norm() > 0.1:  # a far shorter one feels the 1e-12 that keeps a zero from dividing
            assert found == pytest.approx(sign, abs=SINGLE)


def test_the_cosine_of_row_and_residual_is_the_textbooks():
    found = row_residual_cosine(ROWS[0], ROWS[1])
    np.testing.assert_allclose(found, torch.cosine_similarity(ROWS[0].double(), ROWS[1].double(), dim=-1), atol=DOUBLE)


@given(st.integers(1, 12), st.data())
def test_jaccard_is_the_shared_share_of_two_sets(k, data):
    sets = st.lists(st.integers(0, 20), min_size=k, max_size=k, unique=True)
    a, b = data.draw(sets), data.draw(sets)
    due = len(set(a) & set(b)) / len(set(a) | set(b))
    assert jaccard(torch.tensor([a]), torch.tensor([b])).item() == pytest.approx(due, rel=DOUBLE)
