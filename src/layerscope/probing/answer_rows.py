"""Answer rows of a suite: which tokens it asks about, their fit, and how they read the suite's own facts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.analysis.answer_tracking import TrackedAnswers, tracked_layers
from layerscope.errors import LensError, ModelError, SuiteError
from layerscope.fitting.answer_rows import JudgedAnswers, JudgedToken, fit_rows
from layerscope.fitting.corpus import Corpus
from layerscope.fitting.options import JacobianSettings
from layerscope.lenses.answer_rows import AnswerRows
from layerscope.lenses.logit_lens import LogitLens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.signature import model_signature
from layerscope.probing.encode import Encoded, encode
from layerscope.probing.memory_plan import IDENTITY_PROMPTS
from layerscope.probing.outputs import identity_of, with_outputs
from layerscope.progress import FitObserver
from layerscope.suite import Suite, SuiteSource, load_suite

STATES = 4
"""The residuals of one pass take at most one part in so many of the model's memory."""


@dataclass(frozen=True)
class _Fact:
    """A fact in the first of its wordings, as the model reads it."""

    prompt: Encoded
    states: Float[Tensor, "layer d_model"]
    """At its last token."""

    @property
    def name(self) -> str:
        return self.prompt.prompt.fact_key or self.prompt.prompt.text

    @property
    def token_id(self) -> int | None:
        """The judged token of its first accepted answer."""
        return self.prompt.query.gold_id


def fit_answer_rows(
    model: CausalLM,
    corpus: Corpus,
    suite: SuiteSource,
    out: Path,
    settings: JacobianSettings | None = None,
    *,
    observer: FitObserver | None = None,
) -> AnswerRows:
    """Compute the rows of the Jacobian lens that a suite's answers ask for, exactly, and write them into a folder.

    The answers are those of every fact in the first of its wordings, each by the token that a probe would judge: the
    first one of its first accepted answer, after a space or without one as the model prefers there.

    Args:
        model: the model.
        corpus: text whose `fit` part gives prompts.
        suite: a built-in suite's name, a file of facts, or a suite.
        out: folder of the rows, which must not be there yet; an interrupted fit goes on.
        settings: `prompts`, `first_position`, `stop_at`, `stop_from` and `seed`; the rest has no part in it.
        observer: is told how it goes.

    Raises:
        LayerscopeError: whatever cannot be had, each by its own class (see `layerscope.errors`).
        SuiteError: a suite without facts that have answers.
        LensError: answers that all begin with one token; numbers that cannot be; too little text.
    """
    asked = load_suite(suite)
    facts = list(_facts(model, asked))
    return fit_rows(model, corpus, out, _judged(model, asked, facts), settings or JacobianSettings(), observer)


def track_answers(model: CausalLM, rows: AnswerRows, suite: SuiteSource) -> TrackedAnswers:
    """By layer, in how many facts the own answer has the largest tracked logit, beside the logit lens' of the same.

    Args:
        model: the model that the rows were computed from.
        rows: of a suite with the same answers; its wordings may be others.
        suite: whose facts are read, each in the first of its wordings, at the last token.

    Raises:
        LayerscopeError: whatever cannot be had, each by its own class (see `layerscope.errors`).
        LensError: the rows belong to another model, or know none of the suite's answers.
    """
    rows.refuse_other(model_signature(model))
    asked, place = load_suite(suite), {token_id: i for i, token_id in enumerate(rows.token_ids)}
    facts = list(_facts(model, asked))
    known = [fact for fact in facts if fact.token_id in place]
    if not known:
        raise LensError(
            f"{rows.folder}: none of its answers, which are those of suite '{rows.record.suite}', is one of suite "
            f"'{asked.name}'; give the suite that it was fitted for, or fit rows for this one."
        )
    own = torch.tensor([place[fact.token_id] for fact in known if fact.token_id is not None])
    states = torch.stack([fact.states for fact in known], dim=1)  # [layer, fact, d_model]
    with torch.inference_mode():
        jacobian = torch.stack([rows.tracked(state, layer).cpu() for layer, state in enumerate(states)])
        logit = torch.stack([_logit_lens(model, state, layer, rows.token_ids) for layer, state in enumerate(states)])
    return TrackedAnswers(
        model=model.id,
        suite=asked.name,
        n_facts=len(known),
        n_answers=len(rows.token_ids),
        n_most_common=int(torch.bincount(own).max()),
        left_out=tuple(fact.name for fact in facts if fact.token_id not in place),
        layers=tracked_layers(jacobian.numpy(), logit.numpy(), own.numpy()),
    )


def _logit_lens(
    model: CausalLM, states: Float[Tensor, "fact d_model"], layer: int, token_ids: Sequence[int]
) -> Float[Tensor, "fact answer"]:
    """Logits of some tokens by the logit lens, before what the head does to them, which keeps their order."""
    row = LogitLens(model.final_norm)(states.to(model.placement.device), layer).float()
    return model.unembedding.linear_logits(model.unembedding.head_input(row), torch.tensor(list(token_ids))).cpu()


def _facts(model: CausalLM, suite: Suite) -> Iterator[_Fact]:
    """Every fact with an answer, in the first of its wordings, once the model has read it.

    Raises:
        SuiteError: there is none.
        ModelError: what the head makes of the last residual is not the model's own output.
    """
    first: dict[int | None, int] = {}
    for i, prompt in enumerate(suite.prompts):
        if prompt.prompt_id == "pos" and prompt.answers:
            first.setdefault(prompt.fact_index, i)
    if not first:
        raise SuiteError(f"Suite '{suite.name}' has no fact with an answer; give one that has.")
    prompts = encode(
        Suite(suite.name, suite.description, tuple(suite.prompts[i] for i in first.values())), model, "last"
    )
    for some in _together(model, prompts):
        with torch.inference_mode():
            residuals = model.forward([prompt.token_ids for prompt in some], n_logits=IDENTITY_PROMPTS)
            identity = identity_of(model, residuals)
            if not identity.ok:
                raise ModelError(
                    f"The last residual of {model.id}, decoded, is not the model's own output ({identity.note}), so no "
                    "direction in front of its final norm reads an answer."
                )
            told = with_outputs(some, residuals, model, final_is_model=True, form_of_model=True)
        for i, read in enumerate(told):
            yield _Fact(read, residuals.of_prompt(i)[:, -1].clone())


def _together(model: CausalLM, prompts: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Prompts whose residuals the memory holds at once."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    a_prompt = 4 * (model.n_layers + 1) * longest * model.d_model
    some = max(1, model.placement.memory // STATES // a_prompt)
    return (list(prompts[start : start + some]) for start in range(0, len(prompts), some))


def _judged(model: CausalLM, suite: Suite, facts: Sequence[_Fact]) -> JudgedAnswers:
    """The tokens that stand for the answers, each once, in the order of the facts."""
    by_token: dict[int, list[_Fact]] = {}
    for fact in facts:
        if fact.token_id is not None:
            by_token.setdefault(fact.token_id, []).append(fact)
    strings = model.tokens.display(by_token)
    tokens = tuple(
        JudgedToken(
            token_id=token_id,
            token=strings[token_id],
            answers=tuple(dict.fromkeys(fact.prompt.answers[0].string for fact in of_token)),
            n_facts=len(of_token),
        )
        for token_id, of_token in by_token.items()
    )
    left_out = tuple(fact.name for fact in facts if fact.token_id is None)
    return JudgedAnswers(suite.name, suite.sha256, tokens, left_out)
