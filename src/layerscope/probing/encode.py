"""A suite as the model reads it: token ids, positions to decode, and where each answer begins."""

from dataclasses import dataclass

from layerscope.errors import SuiteError, TokenizerError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.tokens import Alignment
from layerscope.readout.prompt_query import PromptQuery
from layerscope.suite import Prompt, Suite

POSITIONS = ("auto", "last", "all")


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model reads it, with its answers found."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    n_special: int
    positions: tuple[int, ...]
    answers: tuple[Alignment, ...]
    contrast: tuple[Alignment, ...]

    @property
    def query(self) -> PromptQuery:
        """What the readout needs to know of it."""
        return PromptQuery(
            token_ids=self.token_ids,
            n_special=self.n_special,
            positions=self.positions,
            answer_ids=tuple(a.first_id for a in self.answers if a.first_id is not None),
            gold_id=self.answers[0].first_id if self.answers else None,
            contrast_id=self.contrast[0].first_id if self.contrast else None,
            is_control=self.prompt.prompt_id == "ctl",
            of_model=not self.prompt.answers,
        )


def encode(suite: Suite, model: CausalLM, positions: str) -> list[Encoded]:
    """Tokenise a suite, choose positions, and find where each answer begins.

    Raises:
        SuiteError: `positions` is none of the choices, there is no prompt, or one without an answer or longer than the
            model reads.
        TokenizerError: a prompt gives no token, or one that the model does not embed.
    """
    if positions not in POSITIONS:
        raise SuiteError(f"There is no choice of positions called '{positions}'; choose from {', '.join(POSITIONS)}.")
    if not suite.prompts:
        raise SuiteError(f"Suite '{suite.name}' holds no prompt; give it at least one fact.")
    primary = next((i for i, prompt in enumerate(suite.prompts) if prompt.prompt_id == "pos"), 0)
    encoded = []
    for i, prompt in enumerate(suite.prompts):
        if not prompt.answers:
            raise SuiteError(f"Prompt {i + 1} of suite '{suite.name}' has no answer; give it at least one.")
        token_ids = model.tokens.input_ids(prompt.text)
        if model.n_context is not None and len(token_ids) > model.n_context:
            raise SuiteError(
                f"Prompt {i + 1} of suite '{suite.name}' has {len(token_ids)} tokens, but {model.id} reads at most "
                f"{model.n_context}; shorten it."
            )
        if max(token_ids) >= model.n_embeddings:
            raise TokenizerError(
                f"Prompt {i + 1} has token id {max(token_ids)}, but {model.id} embeds {model.n_embeddings} ids; use "
                "the tokenizer that belongs to these weights."
            )
        every = positions == "all" or (positions == "auto" and i == primary)
        encoded.append(
            Encoded(
                prompt=prompt,
                token_ids=token_ids,
                n_special=0 if model.tokens.bos_id is None else 1,
                positions=tuple(range(len(token_ids))) if every else (len(token_ids) - 1,),
                answers=tuple(_align(model, prompt.text, answer) for answer in prompt.answers),
                contrast=tuple(_align(model, prompt.text, answer) for answer in prompt.contrast),
            )
        )
    return encoded


def _align(model: CausalLM, text: str, answer: str) -> Alignment:
    """Where the answer begins; unresolved where its first id has no logit."""
    alignment = model.tokens.align(text, answer)
    if alignment.first_id is None or alignment.first_id < model.d_vocab:
        return alignment
    return Alignment(answer, "unresolved", "unknown", (), (), "no_logit_for_first_id")
