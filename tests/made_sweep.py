"""A sweep of self-made models in the published format, for what holds of any model and not of the published ones alone.

Each is the bundled model, or that one with weights changed by hand, so that the sweep holds what the published ones do:
an answer that is read early, late or never, one that is lost again, a prompt that is copied; fitted lenses and none;
five facts and one.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import layerscope
from layerscope.model.causal_lm import BUNDLED
from layerscope.published.layout import GENERATION_M

Weights = dict[str, torch.Tensor]

FITTED = ("reference",)
"""Under five lenses, asked five facts; the answer to the first is read early and stays."""
PLAIN = ("echo", "fickle", "mute")
"""Under two lenses, asked one fact. The prompt's last token leads until the answer does, late and for good; it leads
again after the answer did; neither ever leads."""
MADE = (*FITTED, *PLAIN)


def make_sweep(folder: Path) -> Path:
    """`folder` with the published files of every model of `MADE`, and nothing else."""
    models = folder.parent / f"{folder.name}-models"
    changes: dict[str, Callable[[Weights], None]] = {
        "echo": lambda weights: _say_the_last_token(weights, until=8),
        "fickle": lambda weights: _say_the_last_token(weights, until=4),
        "mute": _hold_back,
    }
    runs = {
        "reference": layerscope.probe(suite="capitals", protocol="published", positions="last", device="cpu"),
        **{name: _probe_changed(models / name, change) for name, change in changes.items()},
    }
    folder.mkdir()
    for name, run in runs.items():
        run.save(models / f"{name}-run", published=GENERATION_M)
        for path in (models / f"{name}-run" / "published").glob("output-*"):
            shutil.move(path, folder / path.name)
    return folder


def _probe_changed(folder: Path, change: Callable[[Weights], None]) -> layerscope.Run:
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("lenses"))
    weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return layerscope.probe(folder, suite="berlin", protocol="published", positions="last", device="cpu")


def _say_the_last_token(weights: Weights, until: int) -> None:
    """The head takes the embedding of the prompt's last token for that token.

    What it looks for is orthogonal to the residuals of layers deeper than `until`, so there it changes next to nothing.
    """
    model = layerscope.CausalLM.open(device="cpu")
    asked = layerscope.probe(model, suite="berlin", positions="last", lenses="logit").record.suite.prompts
    prompts = [prompt.token_ids for prompt in asked]
    deep = torch.cat([model.forward([ids]).values[0, until:, -1] for ids in prompts]).float()
    basis = torch.linalg.svd(_normed(deep) @ weights["model.norm.weight"].diag(), full_matrices=False)
    kept = basis.Vh[0.05 * basis.S[0] < basis.S]
    token = prompts[0][-1]
    seen = weights["model.layers.0.input_layernorm.weight"] * _normed(weights["model.embed_tokens.weight"][token])
    direction = seen - kept.T @ (kept @ seen)
    weights["lm_head.weight"][token] += 40 * direction / direction.dot(seen)


def _normed(residuals: torch.Tensor) -> torch.Tensor:
    return residuals / residuals.pow(2).mean(-1, keepdim=True).sqrt()


def _hold_back(weights: Weights) -> None:
    """Blocks that bring the answer write a tenth."""
    for layer in range(3, 8):
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"model.layers.{layer}.{part}.weight"] *= 0.1
