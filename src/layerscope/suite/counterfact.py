"""One CounterFact record, as published or flattened, made into a `Question`.

As published (Meng et al. 2022, "Locating and Editing Factual Associations in GPT"): `requested_rewrite` with a `prompt`
that has {} for the `subject`, and `target_true.str`. Flattened: `target_true` beside `subject`, and the wording in
`prompt`, in `relation_prefix` and `relation_suffix`, or in `relation` with {}.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from layerscope.suite.question import DEFAULT_VARIANT, Answer, Fields, Place, Question, Word, checked_text, validated


def _target_text(target: object) -> object:
    return target["str"] if isinstance(target, dict) and "str" in target else target


class _Record(BaseModel):
    """What is asked; whatever else a record carries (false target, paraphrases, neighbours) is left out."""

    model_config = ConfigDict(extra="ignore", strict=True)
    subject: str = Field(pattern=r"\S")
    target_true: Annotated[Answer, BeforeValidator(_target_text)]
    prompt: str | None = None
    relation_prefix: str | None = None
    relation_suffix: str | None = None
    relation: str | None = None
    key: Word | None = None
    case_id: Any = None
    relation_id: Any = None


def is_counterfact(fields: Fields) -> bool:
    """Whether a record is meant as one of CounterFact, right or wrong."""
    if fields.keys() & {"requested_rewrite", "target_true"}:
        return True
    # A line with a template of its own may well use {relation} as a placeholder.
    return bool(fields.keys() & {"relation", "relation_prefix"}) and not fields.keys() & {"template", "templates"}


def read_counterfact(fields: Fields, place: Place) -> list[Question]:
    """The question of one record, keyed "subject→answer"; its spare key adds `case_id`, or else `relation_id`.

    Raises:
        SuiteError: a missing or empty subject, answer or wording, or a wrong type.
    """
    within = ""
    if "requested_rewrite" in fields:
        rewrite, within = fields["requested_rewrite"], "requested_rewrite"
        if not isinstance(rewrite, dict):
            raise place.error(within, f"expected an object, but {type(rewrite).__name__} {rewrite!r} came")
        fields = rewrite | {name: fields[name] for name in ("case_id", "key") if name in fields}
    record = validated(_Record, fields, place, within)
    field, text = _wording(record, place)
    key = record.key or f"{record.subject.strip()}→{record.target_true.strip()}"
    apart = record.case_id if record.case_id is not None else record.relation_id
    spare_keys = () if apart is None or record.key is not None else (f"{key} #{apart}",)
    texts = {DEFAULT_VARIANT: checked_text(text, field, place)}
    return [Question(place, record.subject, key, (record.target_true,), texts, spare_keys)]


def _wording(record: _Record, place: Place) -> tuple[str, str]:
    """The field that gave the prompt, and the prompt.

    Braces are replaced plainly, since a published template never doubles those it means. A flattened subject may bring
    the space before it: prefix and suffix count on that, a template has its own.
    """
    subject = record.subject.strip()
    if record.prompt is not None:
        return "prompt", record.prompt.replace("{}", subject)
    if record.relation_prefix is not None:
        return "relation_prefix", record.relation_prefix + record.subject + (record.relation_suffix or "")
    if record.relation is None:
        raise place.error("prompt", "there is no `prompt`, `relation_prefix` or `relation` to ask with; add one")
    if "{}" not in record.relation:
        raise place.error("relation", f"expected a template with {{}} for the subject, but {record.relation!r} came")
    return "relation", record.relation.replace("{}", subject)
