"""Streamed weights: equal to resident ones, never copied whole into memory, and nothing left behind after a pass."""

import errno
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig

from layerscope.errors import CheckpointError
from layerscope.model import lent_weights, tiles
from layerscope.model import tensor_files as tensor_files_module
from layerscope.model.causal_lm import CausalLM
from layerscope.model.checkpoint import Checkpoint
from layerscope.model.streaming import StreamedLinear
from layerscope.model.tensor_files import Piece, Place
from layerscope.model.tiles import Tiles
from layerscope.model.uncached import Room, UncachedFiles, reads_uncached
from layerscope.stored.weight import DenseWeight
from properties import examples, slow
from rounding import SINGLE, of_product, of_residual
from tiny_models import PROMPTS, by_family, tiny_tokenizer

CPU = torch.device("cpu")
STORED = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@examples(80)
@given(
    st.integers(1, 67),
    st.integers(1, 67),
    st.lists(st.integers(1, 5), max_size=2),
    st.sampled_from(STORED),
    st.booleans(),
    st.sampled_from([4, 64, 1000, 4 << 20]),
    st.integers(0, 2**32 - 1),
)
def test_a_streamed_linear_equals_a_resident_one(
    n_in: int, n_out: int, batch: list[int], dtype: torch.dtype, with_bias: bool, tile_bytes: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    stored = torch.randn(n_out, n_in, generator=generator).to(dtype)
    resident = nn.Linear(n_in, n_out, bias=with_bias)
    with torch.no_grad():
        resident.weight.copy_(stored)
    bias = resident.bias.detach().clone() if with_bias else None
    x = torch.randn(*batch, n_in, generator=generator)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(tiles, "TILE_BYTES", tile_bytes)  # from less than a row to all rows at once
        streamed = StreamedLinear(DenseWeight(stored), bias, torch.float32, CPU, Tiles(torch.float32, CPU))
        found, expected = streamed(x), resident(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * of_product(x, resident.weight.detach()) + SINGLE)
    assert torch.equal(streamed.weight, resident.weight)
    assert (streamed.in_features, streamed.out_features) == (n_in, n_out)


def test_linears_of_several_widths_share_one_buffer():
    shared = Tiles(torch.float32, CPU)
    wide, narrow = torch.randn(7, 5).bfloat16(), torch.randn(3, 2).half()
    layers = [StreamedLinear(DenseWeight(stored), None, torch.float32, CPU, shared) for stored in (wide, narrow)]
    for _ in range(2):
        for layer, stored in zip(layers, (wide, narrow), strict=True):
            x = torch.randn(4, stored.shape[1])
            torch.testing.assert_close(layer(x), x @ stored.float().T, rtol=0, atol=2 * of_product(x, stored))


def test_a_stored_tensor_shares_its_memory_with_the_file(tiny):
    checkpoint = Checkpoint(tiny("llama-biases"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert checkpoint.tensor(name).data_ptr() == checkpoint.tensor(name).data_ptr()


_MEASURE = """
import json, sys
import torch
torch.set_num_threads(1)
from layerscope.model.causal_lm import CausalLM

def anonymous():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

CausalLM.open(device="cpu").forward([[1, 2, 3]])  # the libraries' own buffers come with the first pass
before = anonymous()
model = CausalLM.open(sys.argv[1], device="cpu")
opened, seen = anonymous(), []
model.forward([list(range(16))], progress=lambda done, total: seen.append(anonymous()))
after = anonymous()
copied = model.checkpoint.tensor("lm_head.weight").clone()
print(json.dumps({"opened": opened - before, "during": max(seen) - before, "after": after - before,
                  "copied": anonymous() - after, "one": copied.numel() * copied.element_size()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory is anonymous")
def test_weights_never_become_anonymous_memory(tmp_path: Path):
    """The one tensor that is copied in the end shows that the measurement would see a loaded model."""
    folder = large_checkpoint(tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 190e6
    done = subprocess.run([sys.executable, "-c", _MEASURE, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert max(grown["opened"], grown["during"], grown["after"]) < size / 8
    assert grown["copied"] > 0.9 * grown["one"] > 15e6


def large_checkpoint(folder: Path) -> Path:
    """A llama of 200 MB in bfloat16 whose weights are all alike, since only their size matters."""
    width, inner, n_layers, d_vocab = 1024, 4096, 5, 8192
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        vocab_size=d_vocab,
        architectures=["LlamaForCausalLM"],
    )
    shapes = {"model.embed_tokens.weight": (d_vocab, width), "lm_head.weight": (d_vocab, width)}
    shapes["model.norm.weight"] = (width,)
    for i in range(n_layers):
        block = f"model.layers.{i}"
        shapes |= {f"{block}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{block}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{block}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    weights = {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()}
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save_pretrained(folder)
    return folder


def assert_same_pass(model: CausalLM, found: torch.Tensor, expected: torch.Tensor):
    """Of two passes of which each takes its own tiles and threads, so that sums are in another order."""
    atol = of_residual(model.n_layers, model.d_model) * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# --- What a pass leaves behind


def hooks_of(model: CausalLM) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model._module.modules())


def on_meta(model: CausalLM) -> list[str]:
    blocks = model.architecture.blocks
    return [name for name, p in model._module.get_submodule(blocks).named_parameters() if p.is_meta]


@pytest.mark.parametrize("name", ["llama-biases", "gemma2", "gpt2", "mixtral"])
def test_hooks_are_gone_after_a_pass(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    before = hooks_of(model)
    during: list[int] = []
    model.forward(PROMPTS, progress=lambda done, total: during.append(hooks_of(model)))
    assert all(n > before for n in during)
    assert hooks_of(model) == before


def test_hooks_are_gone_after_a_pass_that_was_broken_off(tiny):
    model = CausalLM.open(tiny("mixtral"), device="cpu")
    before, parameters = hooks_of(model), on_meta(model)
    whole = model.forward(PROMPTS).logits

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.forward(PROMPTS, progress=stop)
    assert hooks_of(model) == before
    inside = model._module.model.layers[1].mlp.experts.register_forward_hook(lambda *of_forward: stop(2, 2))
    with pytest.raises(KeyboardInterrupt):  # in the middle of a block that holds its parameters
        model.forward(PROMPTS)
    inside.remove()
    assert on_meta(model) == parameters
    assert torch.equal(model.forward(PROMPTS).logits, whole)


@pytest.mark.parametrize(("name", "part"), [("gpt2", "mlp.c_fc.weight")])
def test_matrices_that_are_no_linears_are_held_for_their_block_s_forward_alone(name: str, part: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    waiting = on_meta(model)
    assert f"0.{part}" in waiting
    assert (
        model.largest_block_bytes
        >= model._module.get_submodule(model.architecture.blocks)[0].get_parameter(part).numel()
        * torch.float32.itemsize
    )
    held: list[list[str]] = []
    container = model._module.get_submodule(model.architecture.blocks)
    handles = [
        block.get_submodule("mlp").register_forward_pre_hook(
            lambda module, args: held.append(sorted(set(waiting) - set(on_meta(model))))
        )
        for block in container
    ]
    model.forward(PROMPTS)
    for handle in handles:
        handle.remove()
    assert on_meta(model) == waiting
    assert held == [[n for n in sorted(waiting) if n.startswith(f"{i}.")] for i in range(model.n_layers)]


def test_a_llama_holds_no_matrix_at_all(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    assert model.largest_block_bytes == 0
    matrices = [name for name, p in model._module.named_parameters() if p.ndim > 1 and not p.is_meta]
    assert matrices == []


# --- Reading ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "layerscope-reader"]


@pytest.mark.parametrize("name", by_family())
def test_every_block_s_tensors_are_read_before_it_computes(name: str, tiny, monkeypatch):
    read: list[str] = []
    bring_in = Piece.bring_in

    def noted(piece: Piece) -> None:
        bring_in(piece)
        read.append(piece.name)

    monkeypatch.setattr(Piece, "bring_in", noted)
    model = CausalLM.open(tiny(name), device="cpu")
    numbers = {stored: re.search(r"\.(\d+)\.", stored) for stored in model.checkpoint.names}
    of_block = [
        {stored for stored, number in numbers.items() if number and int(number[1]) == i} for i in range(model.n_layers)
    ]
    # Which experts are wanted is known in the block alone.
    on_demand = {stored for loader in model._streamed.weights._loaders for stored in loader.experts}
    of_block = [names - on_demand for names in of_block]
    at_hand: list[set[str]] = []
    container = model._module.get_submodule(model.architecture.blocks)
    handles = [
        block.register_forward_pre_hook(lambda *of_forward: at_hand.append(set(read)), with_kwargs=True)
        for block in container
    ]
    whole = model.forward(PROMPTS[:1]).values
    for handle in handles:
        handle.remove()
    # Its own hooks come after those above: a block's tensors are at hand when the one behind it begins, at the latest.
    assert all(of_block[i] <= at_hand[i + 1] for i in range(model.n_layers - 1))
    assert set(read) >= set().union(*of_block)
    assert len(read) == len(set(read))
    assert len(set(read) - on_demand) == sum(map(len, of_block)) + 1  # the unembedding, under whatever name
    assert readers() == []
    with pytest.MonkeyPatch.context() as patch:  # an older kernel, or none of Linux's
        patch.setattr(tensor_files_module, "_madvise", lambda: None)
        assert torch.equal(model.forward(PROMPTS[:1]).values, whole)


@pytest.mark.parametrize("advice", ["known", *map(slow, ("unknown", "none"))])
def test_a_file_cut_short_is_refused_by_name(advice: str, tiny, tmp_path: Path, monkeypatch):
    """Touching the mapped pages instead would end the process."""
    known = tensor_files_module._madvise()
    if advice != "known" or known is None:
        refuse = None if advice == "none" else lambda *of_madvise: errno.EINVAL
        monkeypatch.setattr(tensor_files_module, "_madvise", lambda: refuse)
    folder = shutil.copytree(large_checkpoint(tmp_path / "whole"), tmp_path / "cut")
    model = CausalLM.open(folder, device="cpu")
    start = model.checkpoint._places["model.layers.3.mlp.up_proj.weight"].start
    os.truncate(folder / "model.safetensors", start // mmap.PAGESIZE * mmap.PAGESIZE)
    done: list[int] = []
    with pytest.raises(CheckpointError, match=r"model\.safetensors should hold tensor 'model\.layers\.[34]"):
        model.forward([[1, 2, 3]], progress=lambda i, n: done.append(i))
    assert done[-1] <= 3
    assert readers() == []


def test_a_pass_that_breaks_off_leaves_no_thread_and_no_open_file(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    descriptors = Path("/proc/self/fd")
    open_files = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            model.forward(PROMPTS, progress=stop)
        assert readers() == []
    if open_files:
        assert len(list(descriptors.iterdir())) == open_files


def test_copies_of_tensors_are_read_ahead_and_never_emptied(tiny, monkeypatch):
    """Were tensors read in place of mapped, forgetting pages by their address would leave zeros."""
    usual = Checkpoint(tiny("qwen3"))
    assert all(piece.address is not None for piece in usual.pieces(usual.names))
    monkeypatch.setattr(mmap, "PAGESIZE", 2 * max(usual._mapped_at.values()))  # no address is a multiple of that
    copied = Checkpoint(tiny("qwen3"))
    pieces = list(copied.pieces(copied.names))
    assert pieces and all(piece.address is None for piece in pieces)
    before = {name: copied.tensor(name).clone() for name in copied.names}
    for piece in pieces:
        piece.bring_in()
    copied.let_go(copied.names)
    assert all(copied.tensor(name).equal(kept) for name, kept in before.items())


@pytest.mark.parametrize("uncached", [True, False])
def test_what_leaves_the_page_cache_can_be_read_again(uncached: bool, tiny, monkeypatch):
    monkeypatch.setattr(lent_weights, "reads_uncached", lambda: uncached and reads_uncached())
    model = CausalLM.open(tiny("mixtral"), device="cpu")
    kept = model.forward(PROMPTS).values
    gone: list[str] = []
    let_go = Checkpoint.let_go

    def noted(checkpoint: Checkpoint, names: Iterable[str]) -> None:
        gone.extend(names)
        let_go(checkpoint, names)

    monkeypatch.setattr(Checkpoint, "let_go", noted)
    assert torch.equal(model.forward(PROMPTS).values, kept)
    assert gone == []  # it is small: another pass finds it in memory
    monkeypatch.setattr(lent_weights, "keeps_in_page_cache", lambda weight_bytes: False)
    for _ in range(2):
        assert_same_pass(model, model.forward(PROMPTS).values, kept)
    past = {m.place.name for m in model._module.modules() if isinstance(m, StreamedLinear) and m.place is not None}
    through = {name for name in model.checkpoint.names if re.search(r"\.layers\.", name)}
    assert past and past < through
    if uncached and reads_uncached():  # vectors were read when the model was opened
        through = {name for name in through - past if len(model.checkpoint.shape(name)) > 1}
    assert sorted(gone) == sorted([*through, *through])


# --- Reading past the page cache

NEEDS_ADVICE = pytest.mark.skipif(not reads_uncached(), reason="this system keeps what it reads")
REFUSALS = ["none", "open", "read"]
"""Whether a filesystem takes direct reads, and when it says that it does not."""


def refuse_direct_reads(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some filesystems do; the flag is Linux's."""
    usual_open, usual_read = os.open, os.preadv
    direct: set[int] = set()

    def opened(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT and when == "open":
            raise OSError(errno.EINVAL, "no")
        descriptor = usual_open(path, flags, *rest)
        (direct.add if flags & os.O_DIRECT else direct.discard)(descriptor)
        return descriptor

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if descriptor in direct and when == "read":
            raise OSError(errno.EINVAL, "no")
        return usual_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", read)


@NEEDS_ADVICE
@pytest.mark.parametrize("refused", REFUSALS)
def test_rows_read_past_the_page_cache_are_those_in_the_file(refused: str, tmp_path: Path, monkeypatch):
    refuse_direct_reads(refused, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "odd": torch.randn(3, 5, generator=generator).bfloat16(),  # so that the next one begins at no page, nor ends
        "matrix": torch.randn(801, 67, generator=generator).bfloat16(),
        "single": torch.randn(7, 1031, generator=generator),
        "half": torch.randn(1, 4099, generator=generator).half(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint, files, room = Checkpoint(tmp_path), UncachedFiles(), Room()
    for name, tensor in tensors.items():
        n = len(tensor)
        for start, stop in {(0, n), (0, 1), (n - 1, n), (n // 3, n // 2 + 1)}:
            stored = checkpoint.weight(name)
            raw = files.rows(checkpoint.place(name), stored.row_bytes, start, stop, room)
            rows = stored.decoded(raw, torch.empty(0, tensor.shape[1], dtype=tensor.dtype))
            assert rows.dtype == tensor.dtype and torch.equal(rows, tensor[start:stop])
    assert [file.direct for file in files._files.values()] == [refused == "none"]
    files.close()


@NEEDS_ADVICE
@pytest.mark.parametrize("name", by_family())
def test_a_model_that_is_not_kept_is_read_past_the_page_cache(name: str, tiny, monkeypatch):
    """It gives the same, and what is read so is not read ahead besides."""
    model = CausalLM.open(tiny(name), device="cpu")
    kept = model.forward(PROMPTS[:2])
    monkeypatch.setattr(lent_weights, "keeps_in_page_cache", lambda weight_bytes: False)
    ahead: list[str] = []
    past: set[str] = set()
    bring_in, rows = Piece.bring_in, UncachedFiles.rows

    def brought_in(piece: Piece) -> None:
        ahead.append(piece.name)
        bring_in(piece)

    def read(files: UncachedFiles, place: Place, *rest: object) -> torch.Tensor:
        past.add(place.name)
        return rows(files, place, *rest)

    monkeypatch.setattr(Piece, "bring_in", brought_in)
    monkeypatch.setattr(UncachedFiles, "rows", read)
    not_kept = model.forward(PROMPTS[:2])
    assert_same_pass(model, not_kept.values, kept.values)
    assert_same_pass(model, not_kept.logits, kept.logits)
    streamed = {m.place.name for m in model._module.modules() if isinstance(m, StreamedLinear) and m.place is not None}
    assert past <= streamed  # a router may leave experts out
    assert not past & set(ahead)
    matrices = {stored for stored in model.checkpoint.names if ".0." in stored and "proj" in stored}
    assert past or not matrices & streamed


@NEEDS_ADVICE
@pytest.mark.parametrize("refused", ["none", *map(slow, ("open", "read"))])
def test_a_model_read_past_the_page_cache_leaves_nothing_open_and_says_what_is_cut_short(
    refused: str, tmp_path: Path, monkeypatch
):
    refuse_direct_reads(refused, monkeypatch)
    monkeypatch.setattr(lent_weights, "keeps_in_page_cache", lambda weight_bytes: False)
    folder = large_checkpoint(tmp_path)
    model = CausalLM.open(folder, device="cpu")
    descriptors = Path("/proc/self/fd")
    open_files = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    whole = model.forward([[1, 2, 3]])
    start = model.checkpoint.place("model.layers.3.mlp.up_proj.weight").start
    os.truncate(folder / "model.safetensors", start + 5 * 2 * 1024 + 1)  # in the middle of a row
    done: list[int] = []
    with pytest.raises(CheckpointError, match=r"model\.safetensors should hold tensor 'model\.layers\.[34]"):
        model.forward([[1, 2, 3]], progress=lambda i, n: done.append(i))
    assert done[-1] <= 4 and len(whole.logits) == 1
    assert readers() == [] and not any("layerscope-worker" in thread.name for thread in threading.enumerate())
    if open_files:
        assert len(list(descriptors.iterdir())) == open_files
