"""Logits of patched runs, held against TransformerLens and nnsight: two libraries with hooks of their own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layerscope.bundled import BUNDLED
from layerscope.model.causal_lm import CausalLM
from layerscope.model.patching import Patch
from peers import needs_peers, told_by

PROMPTS = [[0, 45, 211, 1, 99], [0, 45, 12, 1, 99], [0, 7, 254, 63]]
SPOTS = [(0, 1, 2, 2), (1, 0, 4, 4), (0, 2, 2, 3), (2, 1, 1, 2)]
"""Base and source, position in each: one token, NEXT, two lengths, and positions that differ."""


@pytest.mark.slow
@needs_peers
@pytest.mark.parametrize("library", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("name", ["llama-rope3", "gpt2", "gpt_neox", "bundled"])
def test_logits_of_patched_runs_are_those_of_other_libraries(name: str, library: str, tiny, tmp_path: Path):
    folder = BUNDLED if name == "bundled" else tiny(name)
    model = CausalLM.open(folder, device="cpu")
    layers = sorted({0, 1, model.n_layers // 2, model.n_layers - 1})
    patches = [Patch(layer, base, at, source, there) for layer in layers for base, source, at, there in SPOTS]
    last, patched = model.forward_patched(PROMPTS, patches)
    moved = (patched - last[[p.base for p in patches]]).norm(dim=-1)
    assert all(float(far) > 1e-3 for far, p in zip(moved, patches, strict=True) if p.layer > 0)  # else all agree idly
    head = model.unembedding
    rows = patched if model.final_norm is None else model.final_norm(patched)
    ours = head.transform.apply_(head.logits(head.head_input(rows)))

    asked = json.dumps([(p.layer, p.base, p.position, p.source, p.source_position) for p in patches])
    path = [model.architecture.blocks] if library == "nnsight" else []
    told_by(f"{library}_patches.py", folder, *path, json.dumps(PROMPTS), asked, tmp_path / "logits")
    theirs = load_file(tmp_path / "logits")["logits"]

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
