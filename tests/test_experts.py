"""Stacks of experts: what is read of them, and that one of them alone is what the whole stack has there."""

import mmap
import os
import shutil
from pathlib import Path

import pytest
import torch

from gguf_files import write_gguf
from layerscope.errors import CheckpointError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.experts import ExpertStack
from layerscope.model.stored_tensors import Stored
from tiny_models import PROMPTS, load_resident

MIXTURES = ("mixtral", "qwen3_moe")


def stacks_of(model: CausalLM) -> list[ExpertStack]:
    modules = model._module.modules()
    return [value for module in modules for value in vars(module).values() if isinstance(value, ExpertStack)]


@pytest.mark.parametrize("name", MIXTURES)
def test_only_experts_are_read_that_a_token_is_sent_to(name: str, tiny, monkeypatch):
    """By Transformers' own router, whose choices its experts are given."""
    chosen: list[set[int]] = []
    reference = load_resident(tiny(name))
    for module in reference.modules():
        if hasattr(module, "is_concatenated"):
            module.register_forward_pre_hook(lambda _, args: chosen.append(set(args[1].flatten().tolist())))
    with torch.inference_mode():
        reference(torch.tensor([PROMPTS[0]]))
    read: dict[tuple[str, ...], set[int]] = {}
    matrix = Stored.matrix

    def noted(stored: Stored, i: int) -> torch.Tensor:
        read.setdefault(stored.names, set()).add(i)
        return matrix(stored, i)

    monkeypatch.setattr(Stored, "matrix", noted)
    monkeypatch.setattr(ExpertStack, "whole", None)
    model = CausalLM.open(tiny(name), device="cpu")
    model.forward([PROMPTS[0]])
    assert len(chosen) * 2 == len(read), "two stacks in every block that has experts"
    n_experts = stacks_of(model)[0].shape[0]
    assert any(len(experts) < n_experts for experts in chosen), "a router that left out none would show nothing"
    for i, experts in enumerate(read.values()):
        assert experts == chosen[i // 2]


@pytest.mark.parametrize("source", [*MIXTURES, "qwen2moe-Q8_0", "qwen2moe-F32"])
def test_one_expert_is_what_the_stack_has_there(source: str, tiny, tmp_path: Path):
    architecture, _, kind = source.partition("-")
    made = write_gguf(tmp_path / "made.gguf", architecture, kind) if kind else tiny(source)
    stacks = stacks_of(CausalLM.open(made, device="cpu"))
    assert stacks
    for stack in stacks:
        whole = stack.stored.tensor().float()
        assert whole.shape == stack.shape
        for i in range(len(whole)):
            assert torch.equal(stack[i], whole[i])


def test_whatever_else_is_done_with_a_stack_is_done_with_all_of_it(tiny):
    stack = stacks_of(CausalLM.open(tiny("mixtral"), device="cpu"))[0]
    whole = stack.stored.tensor().float()
    n, _, width = whole.shape
    rows = torch.arange(n * 2 * width, dtype=torch.float32).reshape(n, 2, width)
    assert torch.equal(torch.bmm(rows, stack.transpose(1, 2)), torch.bmm(rows, whole.transpose(1, 2)))
    assert torch.equal(torch.einsum("erc,enc->enr", stack, rows), torch.einsum("erc,enc->enr", whole, rows))
    assert torch.equal(torch.cat([stack, stack]), torch.cat([whole, whole]))
    assert torch.equal(stack[1:], whole[1:]) and torch.equal(stack[torch.tensor([1, 0])], whole[[1, 0]])
    assert (stack.ndim, stack.shape, stack.dtype) == (3, whole.shape, torch.float32)
    with pytest.raises(IndexError):
        stack[n]


def test_a_stack_counts_as_two_of_its_experts(tiny):
    model = CausalLM.open(tiny("qwen3_moe"), device="cpu")
    one = max(stack.shape[1] * stack.shape[2] for stack in stacks_of(model))
    router = model._module.model.layers[0].mlp.gate.weight
    assert model.largest_block_bytes == 2 * one * (4 + 2 * 4) + 4 * router.numel()


def test_the_shares_of_a_tensor_are_its_bytes(tiny):
    checkpoint = CausalLM.open(tiny("mixtral"), device="cpu").checkpoint
    name = max(checkpoint.names, key=lambda name: checkpoint._places[name].stop - checkpoint._places[name].start)
    (whole,) = checkpoint.pieces([name])
    for of in (1, 2, 4):
        parts = [piece for i in range(of) for piece in checkpoint.pieces([name], (i, of))]
        assert len(parts) == of and sum(part.size for part in parts) == whole.size
        assert [part.start for part in parts] == [whole.start + i * whole.size // of for i in range(of)]
        assert all(part.start - part.address == whole.start - whole.address for part in parts)  # type: ignore[operator]


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_of_a_file_cut_short_are_refused(stacked: bool, tiny, tmp_path: Path):
    """Touching the mapped pages instead would end the process."""
    if stacked:
        file = made = write_gguf(tmp_path / "cut.gguf", "qwen2moe")
    else:
        made = shutil.copytree(tiny("mixtral"), tmp_path / "cut")
        (file,) = made.glob("*.safetensors")
    model = CausalLM.open(made, device="cpu")
    names = [name for stack in stacks_of(model) for name in stack.stored.names]
    first = min(model.checkpoint._places[name].start for name in names)
    os.truncate(file, first // mmap.PAGESIZE * mmap.PAGESIZE)
    with pytest.raises(CheckpointError, match="should hold tensor"):
        model.forward([PROMPTS[0]])
