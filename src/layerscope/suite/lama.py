"""Clozes of LAMA (Petroni et al. 2019, "Language Models as Knowledge Bases?"), asked as far as the gap.

A line has `sub_label` and `obj_label`, and a `template` with [X] for the subject and [Y] for the gap. The lines of
T-REx have no template: those stand in `relations.jsonl`, beside the file or one folder above it. Lines without either
are asked with one of their `masked_sentences`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from layerscope.suite.question import DEFAULT_VARIANT, Fields, LeftOut, Place, Question, record_of_data_set, validated

RELATIONS = "relations.jsonl"
_MASK = "[MASK]"


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    obj_label: str
    sub_label: str | None = None
    obj_aliases: list[str] = []
    template: str | None = None
    masked_sentences: list[str] = []
    masked_sentence: str | None = None
    predicate_id: str | None = None
    uuid: Any = None
    id: Any = None


def is_lama(fields: Fields) -> bool:
    """Whether a record is one of LAMA."""
    return "obj_label" in fields


def read_lama(fields: Fields, place: Place) -> list[Question | LeftOut]:
    """The cloze up to its gap; left out where more than punctuation follows the gap, or nothing comes before it.

    Raises:
        SuiteError: a missing field, a wrong type, or no cloze to be had.
    """
    record = validated(_Record, fields, place)
    clozes = _clozes(record, place)
    texts = [text for text in map(_before_gap, clozes) if text is not None]
    if not texts:
        return [LeftOut(place, "its gap does not end the sentence")]
    number = record.uuid if record.uuid is not None else record.id
    answers = [record.obj_label, *record.obj_aliases]
    subject = record.sub_label if record.sub_label and record.sub_label.strip() else None
    return [record_of_data_set(place, {DEFAULT_VARIANT: texts[0]}, answers, subject=subject, number=number)]


def _clozes(record: _Record, place: Place) -> list[str]:
    """Sentences with [MASK] for the gap: the template's alone, or else those that the record brings."""
    template = record.template
    if template is None and record.predicate_id is not None:
        template = _templates_beside(place.file).get(record.predicate_id)
    if template is not None:
        if "[Y]" not in template:
            raise place.error("template", f"expected [X] for the subject and [Y] for the gap, but {template!r} came")
        return [template.replace("[Y]", _MASK).replace("[X]", record.sub_label or "")]
    sentences = record.masked_sentences or ([record.masked_sentence] if record.masked_sentence else [])
    if not sentences:
        raise place.error(
            "template", f"it is missing; put the {RELATIONS} of the same download beside the file, or add a template"
        )
    return sentences


def _before_gap(cloze: str) -> str | None:
    """What stands before the only gap, without the space that belongs to the answer; None where it cannot be asked."""
    before, gap, after = cloze.partition(_MASK)
    if not gap or not before.strip() or any(c.isalnum() for c in after):
        return None
    return before.rstrip()


def _templates_beside(file: str) -> dict[str, str]:
    folder = Path(file).parent
    for path in (folder / RELATIONS, folder.parent / RELATIONS):
        if Path(file).is_file() and path.is_file():
            return _templates(path, path.stat().st_mtime_ns)
    return {}


@cache
def _templates(path: Path, _changed_ns: int) -> dict[str, str]:
    """relation -> template of a file that was last changed at some time."""
    templates = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                relation = json.loads(line)
                templates[str(relation["relation"])] = str(relation["template"])
            except (ValueError, TypeError, KeyError) as error:
                sentence = 'expected {"relation": "P19", "template": "[X] was born in [Y] ."}'
                raise Place(str(path), line=number).error(None, f"{sentence}, but {line[:80]!r} came") from error
    return templates
