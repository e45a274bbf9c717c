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
from layerscope.peak import peak_gflops
from layerscope.probing.calibration import TOKENS as CALIBRATION_TOKENS

TOKENS = 100_000
"""Of a tuned fit that is spoken of."""
BATCH = 2048
LONGEST_S = 0.05
PRODUCT = 768
"""Rows, columns and inner length of the product that is timed."""
EIGH = 9.0
"""What a symmetric decomposition is worth in operations of a product, in units of d_model^3."""
SHARE = 0.65
"""Of these rates, what a fit comes to: between its products stand norms, attention and exponentials. Calibrating on
20,000 tokens, SmolLM2-135M came to 0.68 and Gemma-3-270M to 0.61, on two cores."""


@dataclass(frozen=True)
class Shape:
    """What a fit is counted by."""

    n_layers: int
    d_model: int
    d_vocab: int
    block_parameters: int
    """Of all blocks."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of products."""

    single: float
    """In float32."""
    double: float = 0.0
    """In float64."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.single + other.single, self.double + other.double)

    def seconds(self, device: torch.device) -> float:
        """How long they take here, with what stands between them."""
        single, double = (product_rate(device, kind) for kind in (torch.float32, torch.float64))
        return (self.single / single + self.double / double) / SHARE


def fit_line(model: CausalLM) -> str:
    """What a probe without a tuned or ridge lens says: what would make one, and about how long that takes."""
    shape, device = _shape(model), model.placement.device
    ridge = forward_work(model, CALIBRATION_TOKENS) + ridge_work(shape, CALIBRATION_TOKENS)
    tuned = forward_work(model, TOKENS) + tuned_work(shape, TOKENS)
    about = _about(model)
    return (
        f"no tuned or ridge lens of this model was read; one would take {about} {in_words(ridge.seconds(device))} here "
        f"with --calibrate TEXT, or {about} {in_words(tuned.seconds(device))} with `layerscope fit tuned` on "
        f"{TOKENS:,} tokens, to be read with --lens-dir"
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
def product_rate(device: torch.device, kind: torch.dtype) -> float:
    """Floating-point operations a second of a product.

    In float32 on a CPU as it was measured once on this machine (`peak_gflops`); else the fastest that a twentieth of a
    second holds.
    """
    if device.type == "cpu" and kind == torch.float32:
        return 1e9 * peak_gflops()
    a = torch.ones(PRODUCT, PRODUCT, device=device, dtype=kind)
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


def forward_work(model: CausalLM, n_tokens: int) -> Work:
    """Of the blocks, every parameter multiplied once a token in every pass of the text."""
    return Work(passes(model, n_tokens) * 2.0 * _shape(model).block_parameters * n_tokens)


def ridge_work(shape: Shape, n_tokens: int) -> Work:
    """Of moments, regressions on them, and visits of the vocabulary to choose and measure."""
    few = worth_sampling(shape.d_vocab)
    visits = len(RIDGES) * (SELECT if few else MOST_SELECT) + 2 * (HELD_OUT if few else MOST_HELD_OUT)
    rows = min(visits, n_tokens)
    moments = 4.0 * n_tokens * shape.d_model**2
    return Work(
        shape.n_layers * 2.0 * rows * shape.d_vocab * shape.d_model,
        shape.n_layers * (moments + regression_work(shape.d_model).double),
    )


def regression_work(d_model: int) -> Work:
    """Of a layer's decomposition, the product into its basis, and one a penalty."""
    return Work(0.0, (EIGH + 2.0 * (1 + len(RIDGES))) * d_model**3)


def tuned_work(shape: Shape, n_tokens: int) -> Work:
    """Of a ridge lens, of all steps (rows to logits and back), and of the visits between them."""
    few = worth_sampling(shape.d_vocab)
    steps = steps_of(n_tokens, BATCH, sampled=few)
    a_step = 4.0 * BATCH * (IDS if few else shape.d_vocab) * shape.d_model
    visits = (8 * FEW_SELECT + 4 * FEW_HELD_OUT) if few else (12 * MOST_SELECT + 2 * MOST_HELD_OUT)
    between = 2.0 * min(visits, n_tokens) * shape.d_vocab * shape.d_model
    return ridge_work(shape, n_tokens) + Work(shape.n_layers * (1.25 * steps * a_step + between))


def in_words(seconds: float) -> str:
    """A time to two digits at most: `40 s`, `12 min`, `3 h`."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min"
    return f"{round(seconds / 3600)} h"


def _shape(model: CausalLM) -> Shape:
    head = model.unembedding.weight.numel()
    outside = head if model.architecture.tied else head + model.n_embeddings * model.d_model
    return Shape(model.n_layers, model.d_model, model.d_vocab, model.architecture.n_parameters - outside)
