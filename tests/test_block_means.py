"""Mean Jacobians of blocks in closed form, against gradients of the same blocks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jacobian_reference import COUNTED, IDS, ONE, TOLERANCE, off, rows_of
from layerscope.errors import ModelError
from layerscope.fitting.block_means import BlockGatherer, BlockSums
from layerscope.model.block_anatomy import Anatomist
from layerscope.model.blockwise import BlockInHand
from layerscope.model.causal_lm import CausalLM
from rounding import DOUBLE
from tiny_models import BLOCKS_AT, TINY, by_family

ALL = torch.ones(len(IDS), dtype=torch.bool)
OTHERS = {
    "gptj": "attention that can be taken in hand",
    "bloom": "attention that can be taken in hand",
    "falcon": "attention that can be taken in hand",
    "mixtral": "an MLP of 2 or 3 projections",
    "qwen3_moe": "an MLP of 2 or 3 projections",
    "opt-post-norm": "an attention and an MLP whose sum it adds to the stream",
}
"""What blocks without a closed form lack."""
CLOSED = [name for name in TINY if name.partition("-")[0] not in OTHERS and name not in OTHERS]
CLOSED.remove("llama-dynamic-rope")  # reads no nine tokens
AT_ONE, AVERAGED = ("gemma2", "gemma3", "olmo2", "opt"), ("qwen3", "gpt2")
"""Between them q/k norms of both kinds and forms, softcap, windows, post-norms, parallel branches, fused projections,
partial angles, scales, biases."""
AFTER_BRANCHES = ("gemma2", "gemma3", "olmo2", "olmo3")
"""Families with norms behind their branches, which are junctions of their own."""


def each_block(model: CausalLM, ids: Tensor, visit: Callable[[BlockInHand, Anatomist, Tensor], None]) -> None:
    residuals = torch.empty(1, *ids.shape, model.d_model)
    with model.attention_in_hand() as recorder:
        anatomist = Anatomist(model.id, recorder, model.next_norms[:-1], model.second_norms)
        model.forward_blockwise(
            ids[None], residuals, lambda _: None, visit=lambda b: visit(b, anatomist, residuals[0].clone())
        )


def by_gradients(block: BlockInHand, x: Tensor, counted: slice) -> Tensor:
    """The mean over counted positions of effects summed over them, by a constant shift."""

    def shifted(shift: Tensor) -> Tensor:
        moved = torch.cat([x[:, : counted.start], x[:, counted] + shift, x[:, counted.stop :]], 1)
        return block(moved)[:, counted].sum((0, 1))

    return rows_of(shifted, x.shape[-1]) / (len(x) * (counted.stop - counted.start))


def compare(folder: Path, counted: slice, ids: Tensor) -> None:
    model = CausalLM.open(folder, device="cpu")
    eye = torch.eye(model.d_model, dtype=torch.float64)

    def visit(block: BlockInHand, anatomist: Anatomist, x: Tensor) -> None:
        gatherer = BlockGatherer(counted)
        sums = gatherer.gather(anatomist.take_apart(block, x), ALL[: len(ids)])
        assert gatherer.shape is not None
        found = sums.matrix(gatherer.shape)
        assert off(found - eye, by_gradients(block, x, counted).double() - eye) < TOLERANCE

    each_block(model, ids, visit)


@pytest.mark.parametrize("name", by_family(CLOSED, AT_ONE))
def test_at_one_position_of_one_prompt_nothing_is_averaged_and_a_blocks_jacobian_is_exact(name: str, tmp_path: Path):
    compare(TINY[name].build(tmp_path), ONE, IDS[:1])


@pytest.mark.parametrize("name", by_family([name for name in CLOSED if name not in AFTER_BRANCHES], AVERAGED))
@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_a_branchs_mean_is_that_of_its_gradients(name: str, branch: str, tmp_path: Path):
    """The other branch writes nothing: the weight of its last projection is zero, as is its bias."""
    module = TINY[name].resident()
    for block in module.get_submodule(BLOCKS_AT.get(TINY[name].family, "model.layers")):
        lasts = ("o_proj", "c_proj", "dense", "out_proj"), ("down_proj", "c_proj", "fc2", "dense_4h_to_h")
        silent = lasts[branch == "attention"]
        found = [
            part
            for path, part in block.named_modules()
            if path.rpartition(".")[2] in silent and ("attn" in path or "attention" in path) == (branch == "mlp")
        ]
        assert len(found) == 1
        for parameter in found[0].parameters():
            torch.nn.init.zeros_(parameter)
    TINY[name].build(tmp_path)
    module.save_pretrained(tmp_path)
    compare(tmp_path, COUNTED, IDS)


@pytest.mark.parametrize(
    "name", ["phi", pytest.param("cohere", marks=pytest.mark.slow), pytest.param("gpt_neox", marks=pytest.mark.slow)]
)
def test_parallel_branches_are_averaged_apart_without_any_loss(name: str, tmp_path: Path):
    compare(TINY[name].build(tmp_path), COUNTED, IDS)


def test_sums_of_two_halves_are_those_of_the_whole(tmp_path: Path):
    model = CausalLM.open(TINY["gemma2"].build(tmp_path), device="cpu")

    def visit(block: BlockInHand, anatomist: Anatomist, x: Tensor) -> None:
        gatherer = BlockGatherer(COUNTED)
        anatomy = anatomist.take_apart(block, x)
        whole, halves = gatherer.gather(anatomy, ALL), BlockSums()
        for i in range(2):
            halves.add(gatherer.gather(anatomy, torch.arange(2) == i))
        assert gatherer.shape is not None and halves.n == whole.n == 2 * 5
        assert off(halves.matrix(gatherer.shape), whole.matrix(gatherer.shape)) < TOLERANCE
        twice = BlockSums()
        twice.add(gatherer.gather(anatomy, ALL))
        twice.add(whole)
        assert off(twice.matrix(gatherer.shape), whole.matrix(gatherer.shape)) < DOUBLE

    each_block(model, IDS, visit)


@pytest.mark.parametrize("name", ["gptj", "mixtral", "opt-post-norm"])
def test_blocks_without_a_closed_form_are_refused_with_what_they_lack(name: str, tmp_path: Path):
    model = CausalLM.open(TINY[name].build(tmp_path), device="cpu")

    def visit(block: BlockInHand, anatomist: Anatomist, x: Tensor) -> None:
        anatomist.take_apart(block, x)

    with pytest.raises(ModelError, match=f"asks of every block {OTHERS[name]}.*use --method exact"):
        each_block(model, IDS, visit)
