"""What the model itself says at a few positions, and whether its head's transform explains a lens' distance from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.readout.temperature import head_logits, kl_bits
from layerscope.readout.vocabulary import LN2
from layerscope.unembedding import HeadTransform, Unembedding


@dataclass(frozen=True)
class HeadPrediction:
    """The model's own distribution at one position, at one temperature."""

    entropy_bits: float
    top_ids: tuple[int, ...]
    """Largest logit first, ties by id."""
    top_probs: tuple[float, ...]
    answer_rank: int | None
    """1 + number of ids with a larger logit than the best accepted answer; None where none was asked about."""
    p_answer: float | None
    """Probability of that answer."""


@dataclass(frozen=True)
class TransformChecks:
    """KL to the model's own distribution in bits, once a part of the head's transform is applied to a lens' logits.

    None where the model has no such part.
    """

    kl_after_scale_bits: float | None
    kl_after_softcap_bits: float | None
    kl_after_scale_then_softcap_bits: float | None


def head_predictions(
    final_rows: Float[Tensor, "rows d_model"],
    unembedding: Unembedding,
    k: int,
    temperatures: Sequence[int | float] | None = None,
    answer_ids: tuple[int, ...] = (),
) -> tuple[HeadPrediction, ...]:
    """What the model predicts at several positions, from one sweep of the unembedding.

    Args:
        final_rows: what the model's own head multiplies, after the final norm.
        k: how many of the most likely ids are listed.
        temperatures: what the logits are divided by, after the head's transform, one for each row; 1 by default.
        answer_ids: accepted answers; the one with the largest logit is judged in each row.

    Raises:
        NumericError: logits that are not finite.
    """
    linear = head_logits(final_rows, unembedding)
    divisors = [1.0] * len(linear) if temperatures is None else temperatures
    return tuple(
        _prediction(row, unembedding.transform, k, temperature, answer_ids)
        for row, temperature in zip(linear, divisors, strict=True)
    )


def _prediction(
    linear: Float[Tensor, " d_vocab"],
    transform: HeadTransform,
    k: int,
    temperature: int | float,
    answer_ids: tuple[int, ...],
) -> HeadPrediction:
    logits = transform.apply_(linear.double()).div_(temperature)
    # Order comes from the logits before the transform: a softcap rounds large ones to one value.
    ids = torch.sort(linear, descending=True, stable=True).indices[:k]
    shifted = logits - logits.max()
    entropy, log_sum_exp = entropy_bits(shifted)
    rank, p_answer = None, None
    if answer_ids:
        answer = max(sorted(set(answer_ids)), key=lambda token_id: float(linear[token_id]))
        rank = 1 + int((linear > linear[answer]).sum())
        p_answer = float((shifted[answer] - log_sum_exp).exp())
    probs = (shifted[ids] - log_sum_exp).exp()
    return HeadPrediction(entropy, tuple(ids.tolist()), tuple(probs.tolist()), rank, p_answer)


def entropy_bits(shifted: Float[Tensor, " d_vocab"]) -> tuple[float, Float[Tensor, ""]]:
    """Entropy in bits and log-sum-exp of logits whose largest is 0.

    The largest's own term is left out of the sums, so that an entropy far below float64's resolution of 1 keeps its
    digits.
    """
    weight = shifted.exp()
    weight[shifted.argmax()] = 0.0
    tail = weight.sum()
    moment = weight.mul_(shifted).sum()
    log_sum_exp = torch.log1p(tail)
    return max(0.0, float((log_sum_exp - moment / (1.0 + tail)) / LN2)), log_sum_exp


def transform_checks(
    logits: Float[Tensor, " d_vocab"], final_log_probs: Float[Tensor, " d_vocab"], transform: HeadTransform
) -> TransformChecks:
    """How far a lens' last row stays from the model, with the head's scale, its softcap, and both in that order.

    Args:
        logits: the lens' at the last layer, before any transform.
        final_log_probs: the model's own natural-log probabilities.
    """
    scale, softcap = transform.scale, transform.softcap

    def bits(partial: HeadTransform) -> float:
        changed = partial.apply_(logits.to(torch.float64, copy=True))
        return float(kl_bits(torch.log_softmax(changed, -1), final_log_probs))

    return TransformChecks(
        kl_after_scale_bits=None if scale is None else bits(HeadTransform(scale=scale)),
        kl_after_softcap_bits=None if softcap is None else bits(HeadTransform(softcap=softcap)),
        kl_after_scale_then_softcap_bits=None if scale is None or softcap is None else bits(transform),
    )
