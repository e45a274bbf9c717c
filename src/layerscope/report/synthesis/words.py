"""Parts of sentences and cells that every section uses."""

from collections.abc import Callable, Iterable, Sequence

from layerscope.report.cited.claims import ABSENT, Claim
from layerscope.report.cited.document import Name, Paragraph, Part, Sentence, Text, paragraph, sentence
from layerscope.report.synthesis.compared import Compared


def shown(claim: Claim | None) -> Part:
    """A claim, or that there is none."""
    return Text(ABSENT) if claim is None else claim


def word(value: str | bool | None) -> Part:
    """A word that is no number: a tier, a milestone's name, yes or no."""
    if value is None:
        return Text(ABSENT)
    return Text("yes" if value else "no") if isinstance(value, bool) else Name(value)


def listed(items: Sequence[Sequence[Part] | Part]) -> list[Part]:
    """Items with commas between, and an `and` before the last."""
    parts: list[Part] = []
    for place, item in enumerate(items):
        if place:
            parts.append(Text(" and " if place == len(items) - 1 else ", "))
        parts += [item] if isinstance(item, Part) else item
    return parts


def names(runs: Iterable[Compared]) -> list[Part]:
    """The runs' names."""
    return listed([Name(run.name) for run in runs])


def with_values(runs: Sequence[Compared], value: Callable[[Compared], Claim | None]) -> list[Part]:
    """The runs' names, each with a value in brackets."""
    return listed([[Name(run.name), Text(" ("), shown(value(run)), Text(")")] for run in runs])


def of_runs(
    template: str, runs: Sequence[Compared], value: Callable[[Compared], Claim | None] | None = None
) -> Sentence | None:
    """A sentence whose field is some runs, by name and with a value where one is given; None where there are none."""
    if not runs:
        return None
    return sentence(template, names(runs) if value is None else with_values(runs, value))


def remarks(*sentences: Sentence | None) -> tuple[Paragraph, ...]:
    """A paragraph of the sentences that there are; nothing where there is none."""
    remark = paragraph(*sentences)
    return (remark,) if remark.sentences else ()
