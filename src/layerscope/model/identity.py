"""The identity check: the last residual, decoded by us, must be the model's own distribution."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.unembedding import HeadTransform, Unembedding

TOLERANCE_BITS = 1e-6
"""Largest KL(decoded || model) that float32 rounding explains."""
TOLERANCE_BITS_BF16 = 1e-2
"""The same where the model's own head computed in bfloat16."""
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Identity:
    """Outcome of the check, and what explains a failure."""

    ok: bool
    kl_bits: float | None
    """Largest KL(decoded || model) over the prompts; None where nothing finite could be compared."""
    max_abs_logit_difference: float | None
    tolerance_bits: float
    n_prompts: int
    """How many prompts were compared."""
    fitted: HeadTransform | None = None
    """The transform that makes the decode agree, where one was needed and found."""
    fitted_bias: bool = False
    """Whether a constant by vocabulary id explains the difference."""
    note: str = ""
    """One sentence for people."""


def check_identity(
    unembedding: Unembedding,
    final_residuals: Float[Tensor, "prompts d_model"],
    model_logits: Float[Tensor, "prompts d_vocab"],
    *,
    tolerance_bits: float = TOLERANCE_BITS,
) -> Identity:
    """Decode the residual after the last block and compare with the logits that the model itself gave there.

    Args:
        unembedding: final norm, head and head transform as we understand them.
        final_residuals: residuals after the last block at each prompt's last position.
        model_logits: the model's own logits at the same positions.
        tolerance_bits: largest divergence that counts as rounding.
    """
    finite = torch.isfinite(final_residuals).all(-1) & torch.isfinite(model_logits).all(-1)
    if not bool(finite.any()):
        return Identity(False, None, None, tolerance_bits, 0, note="No prompt has a finite final residual to compare.")
    norm = unembedding.final_norm
    rows = final_residuals[finite] if norm is None else norm(final_residuals[finite])
    linear = unembedding.logits(unembedding.head_input(rows)).cpu()
    target = model_logits[finite].float().cpu()
    decoded = unembedding.transform.apply_(linear.clone())
    kl = _kl_bits(decoded, target)
    if not math.isfinite(kl):
        return Identity(False, None, None, tolerance_bits, 0, note="The last layer does not decode to finite logits.")
    difference = float((decoded - target).abs().max())
    n = int(finite.sum())
    if kl <= tolerance_bits:
        return Identity(True, kl, difference, tolerance_bits, n, note="The last layer is the model itself.")
    fitted, bias, note = _explain(linear, target, unembedding.transform, tolerance_bits)
    return Identity(False, kl, difference, tolerance_bits, n, fitted, bias, note)


def _kl_bits(p_logits: Float[Tensor, "prompts d_vocab"], q_logits: Float[Tensor, "prompts d_vocab"]) -> float:
    log_p, log_q = (z.double().log_softmax(-1) for z in (p_logits, q_logits))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).max() / _LN2
    return float(kl.clamp_min(0.0))  # keeps a NaN, which Python's max would turn into a perfect 0


def _explain(
    linear: Float[Tensor, "prompts d_vocab"],
    target: Float[Tensor, "prompts d_vocab"],
    declared: HeadTransform,
    tolerance_bits: float,
) -> tuple[HeadTransform | None, bool, str]:
    """The simplest of scale, softcap, both, and a bias by id that brings the divergence down to rounding."""
    z, y = linear.double(), target.double()
    stated = f"declared: scale {declared.scale}, softcap {declared.softcap}"
    scale = _fit_scale(z, y)
    cap = _fit_softcap(z, y, 1.0)
    both = _fit_softcap_and_scale(z, y)
    candidates: list[tuple[HeadTransform, str]] = []
    if scale > 0:
        candidates.append((HeadTransform(scale=scale), f"a logit scale of {scale:.6g}"))
    if cap:
        candidates.append((HeadTransform(softcap=cap), f"a logit softcap of {cap:.6g}"))
    if both:
        candidates.append((HeadTransform(*both), f"a logit scale of {both[0]:.6g} and a softcap of {both[1]:.6g}"))
    # Double precision on both sides: what is left after a right explanation is float32 rounding of the logits.
    allowed = max(tolerance_bits, 1e-5)
    for transform, words in candidates:
        if _kl_bits(transform.apply_(z.clone()), y) <= allowed:
            return transform, False, f"The decode lacks {words} ({stated})."
    bias = (y - declared.apply_(z.clone())).mean(0)
    if len(z) > 1 and _kl_bits(declared.apply_(z.clone()) + bias, y) <= allowed:
        return None, True, f"The decode lacks a bias by vocabulary id, up to {float(bias.abs().max()):.4g} ({stated})."
    return None, False, f"Neither scale, softcap nor bias explains the difference ({stated})."


def _fit_scale(z: Tensor, y: Tensor) -> float:
    """Least squares through the origin after taking each row's mean away, since a constant changes nothing."""
    z, y = z - z.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    return float((z * y).sum() / (z * z).sum().clamp_min(1e-300))


def _fit_softcap(z: Tensor, y: Tensor, scale: float) -> float | None:
    """The c for which c tanh(scale z / c) is nearest to y, by a search over log c that narrows round its best point."""
    low, high = torch.tensor(float(y.abs().max())).log().item(), 14.0
    if low >= high:
        return None
    for _ in range(12):
        grid = torch.linspace(low, high, 33, dtype=torch.float64)
        errors = torch.stack([((c * torch.tanh(scale * z / c) - y) ** 2).sum() for c in grid.exp()])
        best = int(errors.argmin())
        low, high = float(grid[max(0, best - 1)]), float(grid[min(32, best + 1)])
    cap = float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())
    return None if cap > 1e6 else cap  # so large a cap is none


def _fit_softcap_and_scale(z: Tensor, y: Tensor) -> tuple[float, float] | None:
    """Scale and softcap together: the inverse of the cap makes the relation linear, so only c has to be searched."""
    low, high = torch.tensor(float(y.abs().max()) * (1 + 1e-9)).log().item(), 14.0
    if low >= high:
        return None
    for _ in range(12):
        grid = torch.linspace(low, high, 33, dtype=torch.float64)[1:]
        errors = []
        for c in grid.exp():
            inverse = c * torch.atanh((y / c).clamp(-1 + 1e-12, 1 - 1e-12))
            scale = (z * inverse).sum() / (z * z).sum().clamp_min(1e-300)
            errors.append(((c * torch.tanh(scale * z / c) - y) ** 2).sum())
        best = int(torch.stack(errors).argmin())
        low, high = float(grid[best - 1]) if best else low, float(grid[min(31, best + 1)])
    cap = float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())
    inverse = cap * torch.atanh((y / cap).clamp(-1 + 1e-12, 1 - 1e-12))
    scale = float((z * inverse).sum() / (z * z).sum().clamp_min(1e-300))
    return None if cap > 1e6 or scale <= 0 else (scale, cap)
