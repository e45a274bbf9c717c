"""What the model itself says after each prompt, and which form of each answer it prefers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.model.answer_forms import Alignment, Form
from layerscope.model.causal_lm import CausalLM
from layerscope.model.identity import TOLERANCE_BITS, TOLERANCE_BITS_BF16, Identity, check_identity
from layerscope.model.residuals import Residuals
from layerscope.probing.encode import Encoded, choose
from layerscope.probing.memory_plan import IDENTITY_PROMPTS
from layerscope.readout.head import entropy_bits
from layerscope.record.parts import OutputRecord
from layerscope.unembedding import HeadTransform

LISTED = 5
"""How many of the model's most likely tokens are recorded."""
ROWS_AT_ONCE = IDENTITY_PROMPTS
"""Prompts whose whole logits are held at once; the plan leaves room for as many."""


@dataclass(frozen=True)
class _Output:
    """The model's own distribution at one position."""

    order: Float[Tensor, " d_vocab"]
    """What ids are ranked by: logits before the head's transform, which can round two of them to one value."""
    logits: Float[Tensor, " d_vocab"]
    """float64, the head's transform included."""
    source: Literal["decoded", "model"]

    @property
    def is_finite(self) -> bool:
        return bool(self.order.isfinite().all() and self.logits.isfinite().all())

    def rank(self, token_id: int) -> int:
        """1 + number of ids with a larger logit; ties share the best rank, as in the rows."""
        return 1 + int((self.order > self.order[token_id]).sum())


def identity_of(model: CausalLM, residuals: Residuals) -> Identity:
    """Whether the last layer of a pass is the model's own output, where its logits were kept."""
    exact = model.placement.dtype == torch.float32
    return check_identity(
        model.unembedding,
        residuals.last()[: len(residuals.logits)],
        residuals.logits,
        tolerance_bits=TOLERANCE_BITS if exact else TOLERANCE_BITS_BF16,
    )


def with_outputs(
    encoded: Sequence[Encoded], residuals: Residuals, model: CausalLM, *, final_is_model: bool, form_of_model: bool
) -> list[Encoded]:
    """Prompts with what the model says after them, each answer in the form that is judged.

    Args:
        encoded: the prompts of one pass, in the order in which they went through it.
        residuals: what that pass left.
        final_is_model: whether the last residual, decoded, is the model's own output. Where not, the logits that the
            model's own code gave are taken for the prompts for which they were kept.
        form_of_model: whether the model's preference decides between forms that nobody has chosen from.
    """
    unembedding, norm = model.unembedding, model.final_norm
    last = residuals.last()[: len(encoded)]
    done: list[Encoded] = []
    for start in range(0, len(encoded), ROWS_AT_ONCE):
        rows = last[start : start + ROWS_AT_ONCE]
        linear = unembedding.logits(unembedding.head_input(rows if norm is None else norm(rows)))
        for i, order in enumerate(linear, start=start):
            if not final_is_model and i < len(residuals.logits):
                output = _Output(residuals.logits[i], residuals.logits[i].double(), "model")
            else:
                output = _decoded(order, unembedding.transform)
            done.append(_with_output(encoded[i], output if output.is_finite else None, model, form_of_model))
    return done


def _decoded(order: Float[Tensor, " d_vocab"], transform: HeadTransform) -> _Output:
    return _Output(order, transform.apply_(order.double()), "decoded")


def _with_output(prompt: Encoded, output: _Output | None, model: CausalLM, form_of_model: bool) -> Encoded:
    if output is None:
        return prompt

    def chosen(answer: Alignment) -> Alignment:
        forms = [_placed(form, output) for form in answer.forms]
        return choose(answer.string, forms, prompt.answer_form, form_of_model)

    answers = tuple(map(chosen, prompt.answers))
    told = replace(prompt, answers=answers, contrast=tuple(map(chosen, prompt.contrast)))
    strings = model.tokens.display(_top_ids(output.order))
    return replace(told, output=_record(output, told.query.answer_ids, strings))


def _placed(form: Form, output: _Output) -> Form:
    """The form with its first id's logit and rank."""
    token_id = form.first_id
    if token_id is None:
        return form
    return replace(form, logit=float(output.logits[token_id]), rank=output.rank(token_id))


def _record(output: _Output, answer_ids: Sequence[int], strings: Mapping[int, str]) -> OutputRecord:
    shifted = output.logits - output.logits.max()
    entropy, log_sum_exp = entropy_bits(shifted)

    def probability(token_id: int) -> float:
        return min(1.0, float((shifted[token_id] - log_sum_exp).exp()))

    top_ids = _top_ids(output.order)
    answer = max(sorted(set(answer_ids)), key=lambda token_id: float(output.order[token_id]), default=None)
    return OutputRecord(
        source=output.source,
        entropy_bits=entropy,
        top_ids=tuple(top_ids),
        top_tokens=tuple(strings[token_id] for token_id in top_ids),
        top_probs=tuple(map(probability, top_ids)),
        answer_id=answer,
        answer_rank=None if answer is None else output.rank(answer),
        p_answer=None if answer is None else probability(answer),
    )


def _top_ids(order: Float[Tensor, " d_vocab"]) -> list[int]:
    """Ids of the largest logits, largest first, the smaller id first among equals."""
    least = torch.topk(order, min(LISTED, len(order))).values[-1]
    ids = (order >= least).nonzero().squeeze(-1)  # more than asked for where several equal the last
    by_size = torch.sort(order[ids], descending=True, stable=True).indices
    top: list[int] = ids[by_size[:LISTED]].tolist()
    return top
