"""Records of the sets that knowledge is located and edited with: known_1000, zsRE, and EasyEdit's layout of either.

known_1000: Meng et al. 2022, "Locating and Editing Factual Associations in GPT". zsRE: Levy et al. 2017, "Zero-Shot
Relation Extraction via Reading Comprehension", in the layout of Mitchell et al. 2022, "Fast Model Editing at Scale".
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from layerscope.suite.question import DEFAULT_VARIANT, Fields, LeftOut, Place, Question, record_of_data_set, validated

REPHRASED = "rephrase"
"""Variant under which the second wording of a question is asked."""


class _Known(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    subject: str
    attribute: str
    prompt: str | None = None
    template: str | None = None
    known_id: Any = None


class _Zsre(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    subject: str | None = None
    src: str
    answers: list[str]
    rephrase: str | None = None
    case_id: Any = None


class _EasyEdit(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    subject: str | None = None
    prompt: str
    ground_truth: str | list[str]
    rephrase_prompt: str | None = None
    case_id: Any = None


def is_known(fields: Fields) -> bool:
    """Whether a record is one of known_1000."""
    return "known_id" in fields or {"subject", "attribute", "prompt"} <= fields.keys()


def read_known(fields: Fields, place: Place) -> list[Question | LeftOut]:
    """`prompt`, or else `template` with {} for the subject; the answer is `attribute`.

    Raises:
        SuiteError: a missing field or a wrong type.
    """
    record = validated(_Known, fields, place)
    if record.prompt is None and record.template is None:
        raise place.error("prompt", "it is missing, and so is `template`; add one of them")
    text = record.prompt if record.prompt is not None else (record.template or "").replace("{}", record.subject)
    texts = {DEFAULT_VARIANT: text}
    return [record_of_data_set(place, texts, [record.attribute], subject=record.subject, number=record.known_id)]


def is_zsre(fields: Fields) -> bool:
    """Whether a record is one of zsRE."""
    return "src" in fields


def read_zsre(fields: Fields, place: Place) -> list[Question | LeftOut]:
    """`src` and, as a second wording, `rephrase`; the answers are the true `answers`, not the edit `alt`.

    Raises:
        SuiteError: a missing field or a wrong type.
    """
    record = validated(_Zsre, fields, place)
    texts = _wordings(record.src, record.rephrase)
    return [record_of_data_set(place, texts, record.answers, subject=record.subject, number=record.case_id)]


def is_easyedit(fields: Fields) -> bool:
    """Whether a record is in EasyEdit's layout."""
    return {"prompt", "ground_truth"} <= fields.keys()


def read_easyedit(fields: Fields, place: Place) -> list[Question | LeftOut]:
    """`prompt` and, as a second wording, `rephrase_prompt`; the answer is the true `ground_truth`, not `target_new`.

    Raises:
        SuiteError: a missing field or a wrong type.
    """
    record = validated(_EasyEdit, fields, place)
    answers = [record.ground_truth] if isinstance(record.ground_truth, str) else record.ground_truth
    texts = _wordings(record.prompt, record.rephrase_prompt)
    return [record_of_data_set(place, texts, answers, subject=record.subject, number=record.case_id)]


def _wordings(first: str, second: str | None) -> dict[str, str]:
    wordings = {DEFAULT_VARIANT: first}
    if second is not None and second.strip() and second != first:
        wordings[REPHRASED] = second
    return wordings
