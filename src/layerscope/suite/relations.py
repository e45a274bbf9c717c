"""One relation of LRE: Hernandez et al. 2024, "Linearity of Relation Decoding in Transformer Language Models"."""

from pydantic import BaseModel, ConfigDict

from layerscope.suite.question import DEFAULT_VARIANT, Fields, LeftOut, Place, Question, record_of_data_set, validated


class _Sample(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    subject: str
    object: str


class _Relation(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    prompt_templates: list[str] = []
    prompt_templates_zs: list[str] = []
    samples: list[_Sample]


def is_relation(fields: Fields) -> bool:
    """Whether a record is a relation of LRE, with all of its samples."""
    return "samples" in fields and bool(fields.keys() & {"prompt_templates", "prompt_templates_zs"})


def read_relation(fields: Fields, place: Place) -> list[Question | LeftOut]:
    """Each sample, asked with every template: `orig`, `template_2`, ..., and `zero_shot`, `zero_shot_2`, ...

    Raises:
        SuiteError: a missing field, a wrong type, or a template without {}.
    """
    relation = validated(_Relation, fields, place)
    templates = _templates(relation, place)
    questions = []
    for number, sample in enumerate(relation.samples, start=1):
        here = Place(place.file, ", ".join(filter(None, (place.entry, f"sample {number}"))), place.line)
        texts = {variant: template.replace("{}", sample.subject) for variant, template in templates.items()}
        questions.append(record_of_data_set(here, texts, [sample.object], subject=sample.subject))
    return questions


def _templates(relation: _Relation, place: Place) -> dict[str, str]:
    first = next(iter([*relation.prompt_templates, *relation.prompt_templates_zs]), None)
    if first is None:
        raise place.error("prompt_templates", "it is empty, and so is `prompt_templates_zs`; add a template with {}")
    named = {DEFAULT_VARIANT: first}
    for field, name in (("prompt_templates", "template"), ("prompt_templates_zs", "zero_shot")):
        for i, template in enumerate(getattr(relation, field)):
            if "{}" not in template:
                raise place.error(f"{field}[{i}]", f"expected a template with {{}}, but {template!r} came")
            if template not in named.values():
                named[name if i == 0 else f"{name}_{i + 1}"] = template
    return named
