"""A suite as the model reads it: token ids, positions to decode, and how each answer may follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from layerscope.errors import SuiteError, TokenizerError
from layerscope.model.answer_forms import NO_LOGIT, Alignment, Form, by_model, by_rule, by_suite
from layerscope.model.causal_lm import CausalLM
from layerscope.probing.chats import Rendered, chat_or_text
from layerscope.readout.prompt_query import PromptQuery
from layerscope.record.parts import ChatRecord, Judge, OutputRecord
from layerscope.suite import Prompt, Suite
from layerscope.suite.suite import AnswerForm

POSITIONS = ("auto", "last", "all")
ANSWER_FORMS = ("auto", "space", "none")


@dataclass(frozen=True)
class Reading:
    """How a suite is put into a model's tokens."""

    answer_form: AnswerForm = "auto"
    """How answers follow their prompts; `auto`: as each prompt has it, or as the model itself prefers."""
    form_of_model: bool = True
    """Whether the model's preference counts where nothing else is asked for; the published rule if not."""
    system: str | None = None
    """What a system message says in front of every chat that has none; None for no such message."""
    template_options: Mapping[str, bool | int | float | str] | None = None
    """Further arguments of the chat template."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model reads it, with its answers found."""

    prompt: Prompt
    text: str
    """What was tokenised: the prompt's text, or its chat as the template writes it."""
    chat: ChatRecord | None
    token_ids: tuple[int, ...]
    n_special: int
    positions: tuple[int, ...]
    answers: tuple[Alignment, ...]
    contrast: tuple[Alignment, ...]
    subject_end: int | None
    """Position of the subject's last token; None where that is not known."""
    answer_form: AnswerForm
    output: OutputRecord | None = None
    """What the model itself says; None until it has been asked, and where that is not finite."""

    @property
    def judge(self) -> Judge:
        """What milestones are about."""
        return self.prompt.judge if self.prompt.answers else "model_top1"

    @property
    def has_aligned_answer(self) -> bool:
        """Whether any accepted answer has a token that is judged."""
        return any(answer.first_id is not None for answer in self.answers)

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


STANDARD_READING = Reading()


def encode(suite: Suite, model: CausalLM, positions: str, reading: Reading = STANDARD_READING) -> list[Encoded]:
    """Tokenise a suite, choose positions, and find the forms of each answer.

    Args:
        positions: which are decoded: `auto`, `last` or `all`.

    Raises:
        SuiteError: a choice that there is not, no prompt, one longer than the model reads, or words for chats where
            the suite has none.
        TokenizerError: a prompt gives no token, or one that the model does not embed, or a chat cannot be written.
    """
    _check(suite, positions, reading)
    primary = next((i for i, prompt in enumerate(suite.prompts) if prompt.prompt_id == "pos"), 0)
    encoded = []
    for i, prompt in enumerate(suite.prompts):
        rendered = chat_or_text(prompt, model.tokens, reading.system, reading.template_options)
        token_ids = _token_ids(rendered, model, f"Prompt {i + 1} of suite '{suite.name}'")
        n_special = model.tokens.n_special(token_ids)
        n_added = len(token_ids) - len(model.tokens.context_ids(rendered.text))
        every = positions == "all" or (positions == "auto" and i == primary)
        form = prompt.answer_form if reading.answer_form == "auto" else reading.answer_form
        subject = None if prompt.subject is None else model.tokens.last_position_of(prompt.subject, rendered.text)

        def found(answer: str, text: str = rendered.text, form: AnswerForm = form) -> Alignment:
            return _aligned(model, text, answer, form, reading.form_of_model)

        encoded.append(
            Encoded(
                prompt=prompt,
                text=rendered.text,
                chat=rendered.chat,
                token_ids=token_ids,
                n_special=n_special,
                positions=tuple(range(len(token_ids))) if every else (len(token_ids) - 1,),
                answers=tuple(map(found, prompt.answers)),
                contrast=tuple(map(found, prompt.contrast)),
                subject_end=None if subject is None else n_added + subject,
                answer_form=form,
            )
        )
    return encoded


def _check(suite: Suite, positions: str, reading: Reading) -> None:
    for word, choices, what in (
        (positions, POSITIONS, "choice of positions"),
        (reading.answer_form, ANSWER_FORMS, "form of answers"),
    ):
        if word not in choices:
            raise SuiteError(f"There is no {what} called '{word}'; choose from {', '.join(choices)}.")
    if not suite.prompts:
        raise SuiteError(f"Suite '{suite.name}' holds no prompt; give it at least one fact.")
    for_chats = [("system", reading.system), ("template_options", reading.template_options)]
    given = [name for name, value in for_chats if value is not None]
    if given and all(prompt.chat is None for prompt in suite.prompts):
        raise SuiteError(
            f"What {' and '.join(given)} say goes into chats, but suite '{suite.name}' has none; leave it out, or "
            "write the suite's prompts as messages."
        )


def _token_ids(rendered: Rendered, model: CausalLM, name: str) -> tuple[int, ...]:
    """What the model reads: of a chat just what its template writes.

    Raises:
        SuiteError: more than the model reads.
        TokenizerError: an id that it does not embed.
    """
    tokens = model.tokens
    token_ids = tokens.input_ids(rendered.text) if rendered.chat is None else tokens.context_ids(rendered.text)
    if model.n_context is not None and len(token_ids) > model.n_context:
        raise SuiteError(
            f"{name} has {len(token_ids)} tokens, but {model.id} reads at most {model.n_context}; shorten it."
        )
    if max(token_ids) >= model.n_embeddings:
        raise TokenizerError(
            f"{name} has token id {max(token_ids)}, but {model.id} embeds {model.n_embeddings} ids; use the tokenizer "
            "that belongs to these weights."
        )
    return token_ids


def _aligned(model: CausalLM, text: str, answer: str, form: AnswerForm, form_of_model: bool) -> Alignment:
    """The answer in all its forms; which is judged may change once the model has run."""
    tokens = model.tokens
    found = tokens.forms(text, answer) if form_of_model else tokens.forms_by_rule(text, answer)
    forms = [_with_logit(each, model.d_vocab) for each in found]
    return choose(answer, forms, form, form_of_model)


def choose(answer: str, forms: Sequence[Form], form: AnswerForm, form_of_model: bool) -> Alignment:
    """The form that is judged."""
    if form != "auto":
        return by_suite(answer, forms, form)
    return by_model(answer, forms) if form_of_model else by_rule(answer, forms)


def _with_logit(form: Form, d_vocab: int) -> Form:
    """The form, unusable where the head has no logit for its first id."""
    return form if form.first_id is None or form.first_id < d_vocab else replace(form, reason=NO_LOGIT)
