"""How long a fit of a lens to a model would take here: its products, at the rate at which this machine multiplies."""

import time
from dataclasses import dataclass
from functools import cache

import torch

from layerscope.fitting.affine import FEW_HELD_OUT, FEW_SELECT, MATRICES, MOST_HELD_OUT, MOST_SELECT
from layerscope.fitting.moments import RIDGES
from layerscope.fitting.ridge import HELD_OUT, SELECT
from layerscope.fitting.sampled import IDS, worth_sampling
from layerscope.fitting.session import text_memory
from layerscope.fitting.stream import stream_bytes
from layerscope.fitting.tuned import steps_of
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.calibration import TOKENS as CALIBRATION_TOKENS

TOKENS = 100_000
"""Of a tuned fit that is spoken of."""
BATCH = 2048
LONGEST_S = 0.05
PRODUCT = 768
"""Rows, columns and inner length of the product that is timed."""
EIGH = 9.0
"""What a symmetric decomposition is worth in operations a d_model^3, at the rate of a product."""
SHARE = 0.7
"""Of that product's rate, what a fit comes to: between its products stand norms, exponentials and decompositions."""


@dataclass(frozen=True)
class _Shape:
    n_layers: int
    d_model: int
    d_vocab: int
    block_parameters: int
    """Of all blocks."""


def fit_line(model: CausalLM) -> str:
    """What a probe without a tuned or ridge lens says: what would make one, and about how long that takes."""
    shape = _shape(model)
    rate = SHARE * product_rate(model.placement.device)
    tuned = (passes(model, TOKENS) * forward_flop(shape, TOKENS) + tuned_flop(shape, TOKENS)) / rate
    ridge = passes(model, CALIBRATION_TOKENS) * forward_flop(shape, CALIBRATION_TOKENS)
    ridge = (ridge + ridge_flop(shape, CALIBRATION_TOKENS)) / rate
    about = _about(model)
    return (
        f"no tuned or ridge lens of this model was read; one would take {about} {in_words(ridge)} here with "
        f"--calibrate TEXT, or {about} {in_words(tuned)} with `layerscope fit tuned` on {TOKENS:,} tokens, to be read "
        "with --lens-dir"
    )


def _about(model: CausalLM) -> str:
    """How near the time is meant: what is not counted makes it a bound."""
    # Of parameters that are no plain linears some may rest, as most experts do.
    over = model.largest_block_bytes > 0
    # Weights that memory does not hold come from the disk; many accelerators are far slower in float64.
    under = model.checkpoint.bytes_on_disk > model.placement.memory or model.placement.device.type != "cpu"
    if over and under:
        return "very roughly"
    return "at most about" if over else "at least about" if under else "about"


@cache
def product_rate(device: torch.device) -> float:
    """Floating-point operations a second of a float32 product, the fastest that a twentieth of a second holds."""
    a = torch.ones(PRODUCT, PRODUCT, device=device)
    best, begun = 0.0, time.perf_counter()
    while not best or time.perf_counter() - begun < LONGEST_S:
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for an accelerator
        best = max(best, 2 * PRODUCT**3 / (time.perf_counter() - start))
    return best


def passes(model: CausalLM, n_tokens: int) -> int:
    """Of the text through the blocks: a second one where memory does not hold the residuals of every layer."""
    residuals = (model.n_layers + 2) * stream_bytes(n_tokens, model.d_model)
    beside = (8 * MATRICES + 4 * model.n_layers) * model.d_model**2
    return 1 if residuals + beside <= text_memory(model) else 2


def forward_flop(shape: _Shape, n_tokens: int) -> float:
    """Of the blocks, every parameter multiplied once a token."""
    return 2.0 * shape.block_parameters * n_tokens


def ridge_flop(shape: _Shape, n_tokens: int) -> float:
    """Of moments, in twice as wide numbers, regressions on them, and visits of the vocabulary to choose and measure."""
    few = worth_sampling(shape.d_vocab)
    visits = len(RIDGES) * (SELECT if few else MOST_SELECT) + 2 * (HELD_OUT if few else MOST_HELD_OUT)
    rows = min(visits, n_tokens)
    a_layer = 2 * 4.0 * n_tokens * shape.d_model**2 + 2.0 * rows * shape.d_vocab * shape.d_model
    return shape.n_layers * (a_layer + regression_flop(shape.d_model))


def regression_flop(d_model: int) -> float:
    """Of a layer's decomposition, the product into its basis, and one a penalty; all in twice as wide numbers."""
    return 2 * (EIGH + 2.0 * (1 + len(RIDGES))) * d_model**3


def tuned_flop(shape: _Shape, n_tokens: int) -> float:
    """Of a ridge lens, of all steps (rows to logits and back), and of the visits between them."""
    few = worth_sampling(shape.d_vocab)
    steps = steps_of(n_tokens, BATCH, sampled=few)
    a_step = 4.0 * BATCH * (IDS if few else shape.d_vocab) * shape.d_model
    visits = (8 * FEW_SELECT + 4 * FEW_HELD_OUT) if few else (12 * MOST_SELECT + 2 * MOST_HELD_OUT)
    between = 2.0 * min(visits, n_tokens) * shape.d_vocab * shape.d_model
    return ridge_flop(shape, n_tokens) + shape.n_layers * (1.25 * steps * a_step + between)


def in_words(seconds: float) -> str:
    """A time to two digits at most: `40 s`, `12 min`, `3 h`."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min"
    return f"{round(seconds / 3600)} h"


def _shape(model: CausalLM) -> _Shape:
    head = model.unembedding.weight.numel()
    outside = head if model.architecture.tied else head + model.n_embeddings * model.d_model
    return _Shape(model.n_layers, model.d_model, model.d_vocab, model.architecture.n_parameters - outside)
