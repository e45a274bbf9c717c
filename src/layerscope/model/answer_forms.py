"""How an answer may follow its prompt, after a space or without one, and which of these forms is judged.

A form is usable when its ids begin with exactly the prompt's own and go on, and when its first piece tells something.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

FormName: TypeAlias = Literal["with_space", "no_space", "as_written"]
ChosenBy: TypeAlias = Literal["model", "suite", "rule"]

RETOKENISED = "context_retokenised"
NOTHING_ADDED = "no_variant_extended_context"
WHITE_SPACE = "white_space_first"
NO_LOGIT = "no_logit_for_first_id"
_TELLING = (WHITE_SPACE, NO_LOGIT, RETOKENISED, NOTHING_ADDED)
"""Where forms fail for different reasons, the first of these is said of the answer."""


@dataclass(frozen=True)
class Form:
    """An answer in one of its forms."""

    variant: FormName
    answer_ids: tuple[int, ...]
    """Its ids behind the prompt's; none where the prompt would be tokenised otherwise."""
    pieces: tuple[str, ...]
    """Token strings of at most the first four ids."""
    apart: bool = False
    """Whether it was tokenised apart from the prompt."""
    white_space_skipped: bool = False
    """Whether its first piece is white space, which any word could follow."""
    reason: str | None = None
    """Why it cannot be judged at the prompt's last position: one of the names above."""
    logit: float | None = None
    """Of its first id at the model's output; None until the model has run, and where that is not finite."""
    rank: int | None = None
    """Rank of that id there; 1 = first."""

    @property
    def first_id(self) -> int | None:
        """The id that stands for the answer in this form; None where the form cannot be judged."""
        return self.answer_ids[0] if self.reason is None else None


@dataclass(frozen=True)
class Alignment:
    """Where an answer begins: its ids after a prompt in the form that is judged, or why there are none."""

    string: str
    status: Literal["ok", "unresolved"]
    variant: FormName | Literal["unknown"]
    answer_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    """Token strings of at most the first four ids."""
    reason: str | None
    chosen_by: ChosenBy | None
    """Who chose the form; None where none could be."""
    forms: tuple[Form, ...]
    """All that were looked at."""

    @property
    def first_id(self) -> int | None:
        """The id that stands for the answer; None where it could not be aligned."""
        return self.answer_ids[0] if self.answer_ids else None

    @property
    def several_pieces(self) -> bool:
        """Whether only the first piece of a longer answer is judged, which other words may share."""
        return len(self.answer_ids) > 1

    @property
    def other_form(self) -> Form | None:
        """The form that could have been judged and was not."""
        return next((form for form in self.forms if form.first_id is not None and form.variant != self.variant), None)

    @property
    def judged_form(self) -> Form | None:
        """The form that is judged."""
        return next((form for form in self.forms if form.variant == self.variant), None)


def by_rule(string: str, forms: Sequence[Form]) -> Alignment:
    """The first form whose ids extend the prompt's: after a space wherever that can be, as in the published tables.

    That form or none: the head's having no logit for its first id makes no other form the answer.
    """
    first = next((form for form in forms if form.answer_ids), None)
    return _aligned(string, None if first is None or first.reason == NO_LOGIT else first, "rule", forms)


def by_suite(string: str, forms: Sequence[Form], wanted: Literal["space", "none"]) -> Alignment:
    """The form that the suite or its user wants; an answer that is written with its white space keeps it."""
    variants = ("with_space" if wanted == "space" else "no_space", "as_written")
    usable = [form for form in forms if form.first_id is not None and form.variant in variants]
    return _aligned(string, usable[0] if usable else None, "suite", forms)


def by_model(string: str, forms: Sequence[Form]) -> Alignment:
    """The usable form whose first id has the larger logit at the model's output.

    Before the model has run, and where its output is not finite, the first usable form by rule.
    """
    usable = [form for form in forms if form.first_id is not None]
    if not usable:
        return _aligned(string, None, "rule", forms)
    if usable[0].variant == "as_written":
        return _aligned(string, usable[0], "suite", forms)
    if any(form.logit is None for form in usable):
        return _aligned(string, usable[0], "rule", forms)
    return _aligned(string, max(usable, key=_logit), "model", forms)


def _logit(form: Form) -> float:
    return -float("inf") if form.logit is None else form.logit


def _aligned(string: str, form: Form | None, chosen_by: ChosenBy, forms: Sequence[Form]) -> Alignment:
    if form is not None:
        return Alignment(string, "ok", form.variant, form.answer_ids, form.pieces, None, chosen_by, tuple(forms))
    reasons = {form.reason for form in forms}
    reason = next((reason for reason in _TELLING if reason in reasons), NOTHING_ADDED)
    return Alignment(string, "unresolved", "unknown", (), (), reason, None, tuple(forms))
