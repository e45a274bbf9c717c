"""Temperatures: the one number that best turns a lens' logits into the model's own distribution, layer by layer."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import NumericError
from layerscope.readout.vocabulary import KL_FLOOR_NATS, LN2
from layerscope.unembedding import HeadTransform, Unembedding

TAU_LOWEST, TAU_HIGHEST = 0.2, 5.0
"""Range in which the temperature of a layer is looked for."""
GRID_POINTS = 25
"""Points of either grid, evenly spaced in the temperature's logarithm."""
BYTES_PER_LOGIT = 4
"""What one logit of a block takes."""
BYTES_PER_FITTED_LOGIT = 32
"""What one logit of the layer that is being fitted takes: itself in float64, and what is made of it."""
KL_ROUNDING_BITS = 1e-6
"""Divergences less than this below zero are rounding."""
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
MOST_STEPS = 120
"""Halving the range as often would end beyond float64's digits."""


@dataclass(frozen=True)
class NormTemperatures:
    """The temperature of every layer."""

    tau: tuple[float | None, ...]
    """What the layer's logits are divided by; None where a row of the layer is not finite."""
    bound_hits: int
    """How many layers stand on a bound of the range, which then decided rather than the data."""


@dataclass(frozen=True)
class LastLayerTemperature:
    """Which temperature brings the last layer closest to the model's own distribution, and how close."""

    temp_est: float
    """The best point of the grid."""
    kl_after_temp_bits: float
    temp_est_refined: float
    """The best point between the grid's neighbours of `temp_est`."""
    kl_after_temp_refined_bits: float
    """Never above `kl_after_temp_bits`."""


def kl_bits(log_p: Float[Tensor, "*rows d_vocab"], log_q: Float[Tensor, "*rows d_vocab"]) -> Float[Tensor, "*rows"]:
    """KL(p || q) in bits, float64, of whole distributions given as natural-log probabilities.

    Log-probabilities count as no lower than ln 1e-30, on either side, which bounds the result by log2(1e30) = 99.66.
    Less than 1e-6 below zero is rounding and is given as 0. Not symmetric.
    Source: Cover & Thomas, Elements of Information Theory, section 2.3.
    """
    log_p, log_q = log_p.double(), log_q.double()
    difference = log_p.clamp_min(KL_FLOOR_NATS) - log_q.clamp_min(KL_FLOOR_NATS)
    bits: Tensor = (log_p.exp() * difference).sum(-1) / LN2
    return torch.where((bits < 0) & (bits > -KL_ROUNDING_BITS), 0.0, bits)


def head_logits(final_rows: Float[Tensor, "rows d_model"], unembedding: Unembedding) -> Float[Tensor, "rows d_vocab"]:
    """The model's own logits at a few positions before the head's transform, float32.

    Args:
        final_rows: what the model's own head multiplies, after the final norm.

    Raises:
        NumericError: logits that are not finite.
    """
    logits = unembedding.logits(unembedding.head_input(final_rows))
    broken = int((~logits.isfinite().all(-1)).sum())
    if broken:
        raise NumericError(
            f"The model's own logits should be finite, but hold NaN or infinities at {broken} of {len(logits)} "
            "positions, so nothing can be compared with them; check the checkpoint's head and final norm."
        )
    return logits


def head_log_probs(
    final_rows: Float[Tensor, "rows d_model"], unembedding: Unembedding
) -> Float[Tensor, "rows d_vocab"]:
    """The model's own natural-log probabilities at a few positions, float64, the head's transform included.

    Raises:
        NumericError: logits that are not finite.
    """
    return torch.log_softmax(unembedding.transform.apply_(head_logits(final_rows, unembedding).double()), -1)


def fit_norm_temperatures(
    rows: Float[Tensor, "layers rows d_model"],
    final_rows: Float[Tensor, "rows d_model"],
    unembedding: Unembedding,
    *,
    lens_transform: HeadTransform | None,
    legacy: bool,
    budget_bytes: int = 256 << 20,
) -> NormTemperatures:
    """The temperature of each layer that minimises the mean cross-entropy from the model's own distribution.

    Over rows, `-sum_v p_F log softmax(z / tau)`; temperature scaling as in Guo et al. 2017, section 4.2, with the
    model's distribution in the labels' place.

    Args:
        rows: what a lens gives at every layer for the calibration positions.
        final_rows: what the model's own head multiplies at the same positions.
        unembedding: the model's head, swept once for each block of layers.
        lens_transform: what is done to the lens' logits; the head's own transform where None.
        legacy: the best of 25 points evenly spaced in log tau, as published runs have it; the exact minimiser
            otherwise.
        budget_bytes: memory for logits; as many layers share a sweep of the head as it holds, one at least.

    Raises:
        NumericError: the model's own distribution is not finite.
    """
    log_final = head_log_probs(final_rows, unembedding)
    p_final = log_final.exp_()
    transform = unembedding.transform if lens_transform is None else lens_transform
    fit = _best_of_grid if legacy else _minimiser
    tau: list[float | None] = []
    for block in _blocks(rows, unembedding.d_vocab, budget_bytes):
        head_rows = unembedding.head_input(block)
        for linear in unembedding.logits(head_rows.flatten(0, 1)).view(*block.shape[:2], -1):
            if not bool(linear.isfinite().all()):  # before a softcap, which makes infinities finite
                tau.append(None)
                continue
            logits = transform.apply_(linear.double())
            logits -= logits.amax(-1, keepdim=True)
            # Layer by layer: each takes as many steps as it needs, and only one is held in float64.
            tau += fit(logits[None], (p_final * logits).sum(-1).mean()[None])
    bounds = (TAU_GRID[0], TAU_GRID[-1]) if legacy else (TAU_LOWEST, TAU_HIGHEST)
    return NormTemperatures(tuple(tau), sum(value in bounds for value in tau))


def _blocks(
    rows: Float[Tensor, "layers rows d_model"], d_vocab: int, budget_bytes: int
) -> Iterator[Float[Tensor, "some rows d_model"]]:
    per_block = max(1, budget_bytes // (rows.shape[1] * d_vocab * BYTES_PER_LOGIT))
    for first in range(0, len(rows), per_block):
        yield rows[first : first + per_block]


def _tau_grid() -> tuple[float, ...]:
    """The published grid, in float32 as the published values are: its rounding shows in their seventh digit."""
    grid = torch.logspace(math.log10(TAU_LOWEST), math.log10(TAU_HIGHEST), GRID_POINTS, dtype=torch.float32)
    return tuple(grid.tolist())


TAU_GRID = _tau_grid()


def _best_of_grid(logits: Float[Tensor, "layers rows d_vocab"], pull: Float[Tensor, " layers"]) -> list[float]:
    """The grid's first best point for every layer; `pull` is the logits' mean under the model's distribution."""
    losses = [(torch.logsumexp(logits / tau, -1).mean(-1) - pull / tau).tolist() for tau in TAU_GRID]
    return [TAU_GRID[column.index(min(column))] for column in map(list, zip(*losses, strict=True))]


def _minimiser(logits: Float[Tensor, "layers rows d_vocab"], pull: Float[Tensor, " layers"]) -> list[float]:
    """The cross-entropy's minimum in the range, to float64's digits.

    In beta = 1 / tau it is convex: its slope is E_beta[z] - E_final[z], and the slope's own slope Var_beta[z]. So the
    root of the slope is bracketed, and Newton's step taken where it stays inside and at least halves the step before.
    """
    low = torch.full_like(pull, 1.0 / TAU_HIGHEST)
    high = torch.full_like(pull, 1.0 / TAU_LOWEST)
    below = _slope(logits, pull, low)[0] > 0
    above = _slope(logits, pull, high)[0] < 0
    if bool((below | above).all()):
        return [TAU_HIGHEST if hot else TAU_LOWEST for hot in below.tolist()]
    beta, last_step = torch.ones_like(pull), high - low
    for _ in range(MOST_STEPS):
        slope, curvature = _slope(logits, pull, beta)
        low, high = torch.where(slope <= 0, beta, low), torch.where(slope >= 0, beta, high)
        newton = beta - slope / curvature
        good = (newton >= low) & (newton <= high) & ((newton - beta).abs() <= 0.5 * last_step)
        moved = torch.where(good, newton, 0.5 * (low + high))
        last_step = (moved - beta).abs()
        beta = moved
        if bool((below | above | (last_step <= 1e-12 * beta)).all()):
            break
    tau = torch.where(below, TAU_HIGHEST, torch.where(above, TAU_LOWEST, 1.0 / beta))
    return [float(value) for value in tau.tolist()]


def _slope(
    logits: Float[Tensor, "layers rows d_vocab"], pull: Float[Tensor, " layers"], beta: Float[Tensor, " layers"]
) -> tuple[Float[Tensor, " layers"], Float[Tensor, " layers"]]:
    """First and second derivative of the mean cross-entropy by beta."""
    p = torch.softmax(logits * beta[:, None, None], -1)
    mean = (p * logits).sum(-1, keepdim=True)
    variance = p.mul_((logits - mean).square_()).sum(-1)
    return mean.mean((1, 2)) - pull, variance.mean(-1)


def last_layer_temperature(
    logits: Float[Tensor, " d_vocab"], final_log_probs: Float[Tensor, " d_vocab"]
) -> LastLayerTemperature:
    """The temperature s that minimises KL(softmax(z / s) || p_F), in bits.

    First on 25 points evenly spaced in log s from 0.1 to 10, of which the middle one is 1; then between the best
    point's neighbours by golden section (Kiefer 1953).

    Args:
        logits: the lens' at the last layer, after whatever transform the lens has.
        final_log_probs: the model's own, as `head_log_probs` gives them.
    """
    z, target = logits.double(), final_log_probs.double()

    def divergence(temperature: float) -> float:
        return float(kl_bits(torch.log_softmax(z / temperature, -1), target))

    half = GRID_POINTS // 2
    grid = torch.tensor([10.0 ** (i / half) for i in range(-half, half + 1)]).tolist()  # float32, as published values
    losses = [divergence(s) for s in grid]
    best = losses.index(min(losses))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    refined = math.exp(_golden_section(lambda log_s: divergence(math.exp(log_s)), math.log(low), math.log(high)))
    at_refined = divergence(refined)
    if at_refined >= losses[best]:
        refined, at_refined = grid[best], losses[best]
    return LastLayerTemperature(grid[best], losses[best], refined, at_refined)


def _golden_section(loss: Callable[[float], float], low: float, high: float, tolerance: float = 1e-8) -> float:
    """Where a function with one valley between `low` and `high` is lowest."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = loss(right)
    return 0.5 * (low + high)
