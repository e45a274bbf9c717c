"""Residuals of one run written into another: what Transformers computes with a hook that replaces the row."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from layerscope.errors import ModelError
from layerscope.model import patching
from layerscope.model.causal_lm import CausalLM
from layerscope.model.in_step import InStep
from layerscope.model.patched_pass import PatchedPass
from layerscope.model.patching import Patch, PatchTrees, patch_trees
from rounding import of_residual
from tiny_models import BLOCKS_AT, WINDOW, by_family, load_resident, reference

TOLERANCE = of_residual(n_blocks=4, d_model=64)
PROMPTS = [[0, 301, 12, 88], [0, 55, 12, 88], [0, 9, 5]]
UNRESUMED = {"bloom", "falcon-alibi", "llama-dynamic-rope", "phi3-longrope", "phi3-longrope-switching"}
IN_SHORT = {"llama-biases", "gemma3", "gpt2", "gpt_neox", "olmo2", "phi3-longrope", "qwen3_moe", "bloom"}
"""Post-norms, windows, parallel blocks, experts, learned positions, and what cannot be resumed; the others are slow."""
EVERY = pytest.mark.parametrize("name", by_family(in_short=IN_SHORT))


def every_patch(n_layers: int) -> list[Patch]:
    """Two pairs, both ways, at every layer and at two positions, in no order of layers."""
    pairs = [(0, 1, 1, 1), (1, 0, 1, 1), (0, 1, 3, 3), (0, 2, 3, 2), (2, 0, 2, 3), (2, 1, 0, 3)]
    layers = [*range(n_layers)][::-1]
    return [Patch(layer, base, at, source, there) for layer in layers for base, source, at, there in pairs]


@pytest.fixture(autouse=True, params=[patching.ROW_NODES, 5], ids=["", "several-rows"])
def _rows_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "ROW_NODES", request.param)


@EVERY
def test_a_patched_run_is_what_transformers_computes_with_the_row_replaced(name: str, tiny):
    model = CausalLM.open(tiny(name), device="cpu")
    patches = every_patch(model.n_layers)
    if name in UNRESUMED:
        with pytest.raises(ModelError, match="residuals replaced"):
            model.forward_patched(PROMPTS, patches)
        return
    last, patched = model.forward_patched(PROMPTS, patches)
    references = [reference(tiny(name), ids).residuals for ids in PROMPTS]
    for row, expected in zip(last, references, strict=True):
        assert (row - expected[-1, -1]).abs().max() <= TOLERANCE * expected.abs().max()
    for row, patch in zip(patched, patches, strict=True):
        written = references[patch.source][patch.layer, patch.source_position]
        expected = with_row(tiny(name), PROMPTS[patch.base], patch.layer, patch.position, written)
        assert (row - expected).abs().max() <= TOLERANCE * max(expected.abs().max(), written.abs().max())


@EVERY
def test_copies_that_ride_along_with_other_prompts_are_those_of_a_pass_of_their_own(name: str, tiny):
    if name in UNRESUMED:
        pytest.skip("its blocks cannot be resumed")
    model = CausalLM.open(tiny(name), device="cpu")
    patches = every_patch(model.n_layers)
    last, patched = model.forward_patched(PROMPTS, patches)
    others = [[0, 7, 12], [0, 7, 12, 88, 5, 301]]
    alone = model.forward(others)
    riding = PatchedPass(PROMPTS, patches, model.n_layers)
    beside = model.forward(others, riding=riding)
    largest = max(float(alone.values.abs().max()), float(patched.abs().max()))
    assert (beside.values - alone.values).abs().max() <= TOLERANCE * largest
    assert (beside.logits - alone.logits).abs().max() <= TOLERANCE * largest
    assert (riding.own - last).abs().max() <= TOLERANCE * largest
    assert (riding.patched - patched).abs().max() <= TOLERANCE * largest


def test_where_copies_that_ride_along_fail_the_pass_fails_with_their_error(tiny, monkeypatch):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    riding = PatchedPass(PROMPTS, every_patch(model.n_layers), model.n_layers)
    monkeypatch.setattr("layerscope.model.patched_pass.write_copies", _fail_at_layer_2)
    with pytest.raises(ModelError, match="layer 2"):
        model.forward(PROMPTS, riding=riding)
    monkeypatch.undo()
    assert model.forward(PROMPTS).values.isfinite().all()


def test_where_a_pass_fails_the_copies_that_ride_along_come_to_an_end(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    riding = PatchedPass(PROMPTS, every_patch(model.n_layers), model.n_layers)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        model.forward(PROMPTS, riding=riding, progress=stop)
    assert threading.active_count() == before
    assert model.forward(PROMPTS).values.isfinite().all()


@pytest.mark.parametrize(("pauses", "steps"), [(3, 2), (2, 4)])
def test_two_forwards_of_different_lengths_end_in_an_error_and_not_in_waiting(pauses: int, steps: int):
    other = InStep(lambda: [other.pause() for _ in range(pauses)])
    with pytest.raises(RuntimeError, match="as many"), other:
        for _ in range(steps):
            other.step()


def _fail_at_layer_2(stream: torch.Tensor, trees: PatchTrees, patches: list[Patch], layer: int) -> None:
    if layer == 2:
        raise ModelError("layer 2")


def with_row(folder: Path, token_ids: list[int], layer: int, position: int, row: torch.Tensor) -> torch.Tensor:
    """The last residual at the last position, by Transformers, with a row replaced that block `layer` reads."""
    model = load_resident(folder)
    blocks: Any = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))
    out: list[torch.Tensor] = []

    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream = (args[0] if args else kwargs["hidden_states"]).clone()
        stream[0, position] = row.to(stream)
        return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream})

    def after(_: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        out.append((output[0] if isinstance(output, tuple) else output)[0, -1].float())

    handles = [
        blocks[layer].register_forward_pre_hook(before, with_kwargs=True),
        blocks[-1].register_forward_hook(after),
    ]
    try:
        with torch.inference_mode():
            model(torch.tensor([token_ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return out[0]


def test_blocks_run_on_the_copies_made_so_far_and_no_others(tiny, monkeypatch):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    patches = every_patch(model.n_layers)
    seen: list[int] = []
    blocks = model._module.get_submodule(model.architecture.blocks)
    forward = type(blocks[0]).forward

    def counted(self, hidden_states, *args, **kwargs):
        seen.append(hidden_states.shape[1])
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(type(blocks[0]), "forward", counted)
    _, grown = model.forward_patched(PROMPTS, patches)
    assert tuple(seen) == patch_trees(PROMPTS, patches, model.n_layers).widths
    assert sorted(seen) == seen
    assert len(set(seen)) == model.n_layers
    monkeypatch.setattr("layerscope.model.patched_pass.first_nodes", lambda *args: None)
    _, whole = model.forward_patched(PROMPTS, patches)
    assert (grown - whole).abs().max() <= 2 * TOLERANCE * whole.abs().max()


def test_copies_are_laid_out_so_that_a_token_sees_its_own_run_alone():
    patches = [Patch(1, 0, 2, 1, 2), Patch(0, 0, 1, 1, 1), Patch(0, 1, 3, 0, 3)]
    trees = patch_trees([[7, 8, 9, 10], [7, 1, 9, 10]], patches, 2)
    assert trees.widths == (4 + 3, 4 + 3 + 2)
    for patch, row, first in zip(patches, trees.rows, trees.firsts, strict=True):
        for i in range(4 - patch.position):
            seen = set(trees.sees[row, 0, first + i].nonzero()[:, 0].tolist())
            assert seen == {*range(patch.position), *range(first, first + i + 1)}
    assert trees.sees.any(-1).all()


def test_a_step_in_a_direction_is_as_long_as_the_one_to_the_source(tiny):
    model = CausalLM.open(tiny("llama-biases"), device="cpu")
    whole = model.forward(PROMPTS)
    step = whole.of_prompt(1)[2, 3] - whole.of_prompt(0)[2, 3]
    patches = [Patch(2, 0, 3, 1, 3, direction=step / step.norm()), Patch(2, 0, 3, 1, 3)]
    _, patched = model.forward_patched(PROMPTS, patches)
    assert (patched[0] - patched[1]).abs().max() <= 2 * TOLERANCE * patched.abs().max()


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (Patch(9, 0, 1, 1, 1), "at a layer from 0 to"),
        (Patch(0, 0, 4, 1, 1), "position 4 of prompt 0, which has 4 tokens"),
        (Patch(0, 0, -1, 1, 1), "position -1 of prompt 0"),
        (Patch(0, 0, 1, 2, 3), "position 3 of prompt 2, which has 3 tokens"),
        (Patch(0, 5, 1, 1, 1), "prompt 5, but there are 3"),
    ],
)
def test_a_patch_that_cannot_be_is_refused(patch: Patch, words: str, tiny):
    with pytest.raises(ModelError, match=words):
        CausalLM.open(tiny("llama-biases"), device="cpu").forward_patched(PROMPTS, [patch])


# Windows

LONG = [[0, 301, 12, 88, 1, 254, 7, 63, 5, 190, 33], [0, 301, 55, 88, 1, 254, 7, 63, 5, 190, 33], [0, 9, 5, 77, 42, 8]]
"""Longer than two windows, and a shorter one beside them."""
ALTERNATING = {"qwen2", "gemma2", "gemma3", "olmo3"}
WINDOWED = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in {"mistral", "gemma2", "gemma3"} else pytest.mark.slow)
        for name in ("mistral", "mixtral", "phi3", "starcoder2", *sorted(ALTERNATING))
    ],
)


@WINDOWED
def test_copies_of_prompts_longer_than_a_window_are_whole_runs_under_it(name: str, tiny):
    """Far from the end, near it, and where windows hand nothing on to it any more."""
    model = CausalLM.open(tiny(name), device="cpu")
    assert (None in model.architecture.windows) == (name in ALTERNATING)
    pairs = [(0, 1, 2, 2), (1, 0, 2, 2), (0, 1, 6, 6), (0, 2, 7, 2), (0, 1, 10, 10), (2, 0, 1, 9), (2, 0, 5, 10)]
    patches = [Patch(layer, b, at, s, there) for layer in range(model.n_layers) for b, s, at, there in pairs]
    riding = PatchedPass(LONG, patches, model.n_layers)
    model.forward([[0, 7, 12]], riding=riding)
    last, patched = model.forward_patched(LONG, patches)
    references = [reference(tiny(name), ids).residuals for ids in LONG]
    for row, ridden, expected in zip(last, riding.own, references, strict=True):
        assert (row - expected[-1, -1]).abs().max() <= TOLERANCE * expected.abs().max()
        assert (ridden - row).abs().max() <= 2 * TOLERANCE * expected.abs().max()
    moved, reached = 0, 0
    for row, ridden, patch in zip(patched, riding.patched, patches, strict=True):
        written = references[patch.source][patch.layer, patch.source_position]
        expected = with_row(tiny(name), LONG[patch.base], patch.layer, patch.position, written)
        bound = TOLERANCE * max(expected.abs().max(), written.abs().max())
        assert (row - expected).abs().max() <= bound
        assert (ridden - row).abs().max() <= 2 * bound
        own = references[patch.base]
        differs = not written.equal(own[patch.layer, patch.position])  # at layer 0 one token is like another
        # A window hands a token's state on to so many tokens behind it, block by block.
        ahead = model.architecture.windows[patch.layer :]
        reach = sum(len(LONG[0]) if window is None else window - 1 for window in ahead)
        reaches = differs and reach >= len(LONG[patch.base]) - 1 - patch.position
        moves = bool((expected - own[-1, -1]).abs().max() > bound)
        assert reaches or not moves
        moved, reached = moved + moves, reached + reaches
    assert reached - 2 <= moved <= reached < len(patches)


@EVERY
def test_a_token_sees_as_far_in_every_block_as_transformers_own_mask_lets_it(name: str, tiny):
    windows = CausalLM.open(tiny(name), device="cpu").architecture.windows
    model = load_resident(tiny(name))
    blocks: Any = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))
    masks = list[Any]()
    for block in blocks:
        block.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
        )
    with torch.inference_mode():
        model(torch.tensor([LONG[0]]), use_cache=False)
    for window, mask in zip(windows, masks, strict=True):
        seen = len(LONG[0]) if mask is None else int((mask if mask.dtype == torch.bool else mask >= 0).sum(-1).max())
        assert seen == (len(LONG[0]) if window is None else window)


def test_a_block_with_a_window_that_is_given_no_mask_is_refused(tiny):
    riding = PatchedPass(LONG, [Patch(0, 0, 1, 1, 1)], 4)
    with pytest.raises(ModelError, match=f"window of {WINDOW} tokens is given no mask"):
        riding._mask_within(WINDOW, None)
