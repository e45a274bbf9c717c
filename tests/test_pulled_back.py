"""Exact rows of Jacobians: against models whose Jacobians are known by hand, and whole graphs of every family."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from jacobian_reference import COUNTED, IDS, TOLERANCE, jacobians, off
from layerscope.errors import ModelError
from layerscope.model.blockwise import BlockCall, BlockInHand
from layerscope.model.causal_lm import CausalLM
from layerscope.model.pulled_back import pull_back
from rounding import SINGLE
from tiny_models import TINY, by_family

D = 6
COMMON = ("gemma3", "gpt2", "mixtral")
"""Families that between them have every kind of block; the others wait for the slow tests."""
REFUSED = "falcon-alibi", "llama-dynamic-rope"
"""One attends otherwise where its attention is written out; the other reads no nine tokens."""


class Copying(nn.Module):
    """Adds to every position a map of the one before it."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, stream: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(stream[:, :1]), stream[:, :-1]], 1)
        return stream + before @ self.matrix.T


class Map(Copying):
    """Maps every position by itself."""

    def forward(self, stream: Tensor) -> Tensor:
        return stream @ self.matrix.T


def _matrices(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return list(torch.randn(n, D, D, generator=generator))


def _pulled(modules: list[nn.Module], counted: slice, n_positions: int = 9) -> Tensor:
    """`[layer, row, sequence, d_model]` for every row."""
    call = BlockCall((), {}, by_keyword=False)
    stream = torch.randn(2, n_positions, D, generator=torch.Generator().manual_seed(3))
    inputs = []
    for module in modules:
        inputs.append(stream)
        stream = module(stream)
    blocks = [BlockInHand(i, module, call, 0) for i, module in enumerate(modules)]
    return pull_back(blocks, inputs, torch.eye(D), counted, lend=lambda i: None, drop=lambda i: None)


@pytest.mark.parametrize("counted", [slice(0, 8), slice(3, 8), slice(7, 8)])
def test_of_a_linear_model_they_are_products_of_its_matrices_whatever_is_counted(counted: slice):
    matrices = _matrices(3)
    pulled = _pulled([Map(matrix) for matrix in matrices], counted)
    product = torch.eye(D, dtype=torch.float64)
    for layer in (2, 1, 0):
        product = product @ matrices[layer].double()
        for sequence in range(2):
            assert off(pulled[layer, :, sequence], product) < 3 * D * SINGLE


@pytest.mark.parametrize("counted", [slice(0, 8), slice(3, 8), slice(7, 8)])
def test_what_copies_the_token_before_reaches_all_but_one_of_the_counted_positions(counted: slice):
    """Effects are summed over targets: from every counted position but the last, W reaches one more that counts."""
    (matrix,) = _matrices(1)
    n = counted.stop - counted.start
    wanted = torch.eye(D) + matrix * (n - 1) / n
    pulled = _pulled([Copying(matrix)], counted)
    assert off(pulled[0, :, 0], wanted) < D * SINGLE


def test_two_copies_reach_two_positions_on():
    first, second = _matrices(2)
    pulled = _pulled([Copying(first), Copying(second)], slice(2, 8))
    n = 6
    wanted = torch.eye(D) + (first + second) * (n - 1) / n + second @ first * (n - 2) / n
    assert off(pulled[0, :, 0], wanted) < 4 * D * SINGLE


@pytest.mark.parametrize("name", by_family((name for name in TINY if name not in REFUSED), COMMON))
def test_they_are_those_of_the_whole_graph(name: str, tmp_path: Path):
    model = CausalLM.open(TINY[name].build(tmp_path), device="cpu")
    wanted = jacobians(TINY[name].resident(), IDS, COUNTED)
    pulled = model.pull_back(IDS, torch.eye(model.d_model), COUNTED, rows_at_once=20)
    assert off(pulled.mean(2), wanted) < TOLERANCE
    for layer, matrix in enumerate(wanted):
        assert off(pulled[layer].mean(1), matrix) < TOLERANCE


def test_grouping_rows_changes_nothing_but_rounding(tmp_path: Path):
    model = CausalLM.open(TINY["qwen3"].build(tmp_path), device="cpu")
    rows = torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(4))
    together = model.pull_back(IDS, rows, COUNTED, rows_at_once=5)
    alone = torch.cat([model.pull_back(IDS[[i]], rows, COUNTED, rows_at_once=1) for i in range(2)], 2)
    assert off(alone, together) < TOLERANCE


def test_a_model_in_inference_mode_before_can_be_differentiated_after(tmp_path: Path):
    model = CausalLM.open(TINY["llama-tied"].build(tmp_path), device="cpu")
    model.forward([[3, 4, 5]])
    with torch.inference_mode():
        pulled = model.pull_back(IDS, torch.eye(model.d_model)[:2], COUNTED, rows_at_once=2)
    before = model.forward([[3, 4, 5]]).logits
    assert pulled.isfinite().all()
    assert torch.equal(before, CausalLM.open(model.source.folder, device="cpu").forward([[3, 4, 5]]).logits)


def test_attention_that_is_another_where_it_is_written_out_is_refused(tmp_path: Path):
    model = CausalLM.open(TINY["falcon-alibi"].build(tmp_path), device="cpu")
    with pytest.raises(ModelError, match=r"this 'falcon' model ends in residuals that are .*% off its own"):
        model.pull_back(IDS, torch.eye(model.d_model)[:1], COUNTED, rows_at_once=1)
