"""Parts of sentences and cells that every section uses."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from layerscope.report.cited.claims import ABSENT, Claim
from layerscope.report.cited.document import Name, Paragraph, Part, Sentence, Table, Text, paragraph, row, sentence
from layerscope.report.synthesis.compared import Compared

Value: TypeAlias = Part | Sequence[Part] | str | bool | None
"""What a cell shows: parts, such as a claim; a word that is no number; yes or no; that there is nothing."""


def shown(claim: Claim | None) -> Part:
    """A claim, or that there is none."""
    return Text(ABSENT) if claim is None else claim


def run_table(runs: Iterable[Compared], header: str, cells: Callable[[Compared], Sequence[Value]]) -> Table:
    """A row for each run, with its name first.

    Args:
        runs: in the order of the rows.
        header: names of the further columns, with bars between.
        cells: what a run has in them.
    """
    rows = tuple(row(Name(run.name), *map(_cell, cells(run))) for run in runs)
    return Table(("model", *header.split(" | ")), rows)


def _cell(value: Value) -> Part | Sequence[Part]:
    if value is None:
        return Text(ABSENT)
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Name(value) if isinstance(value, str) else value


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


def with_values(runs: Sequence[Compared], value: str | Callable[[Compared], Claim | None]) -> list[Part]:
    """The runs' names, each with a value in brackets: of a function, or the layer of a milestone."""
    of = (lambda run: run.milestone(value)) if isinstance(value, str) else value
    return listed([[Name(run.name), Text(" ("), shown(of(run)), Text(")")] for run in runs])


def of_runs(
    template: str, runs: Sequence[Compared], value: str | Callable[[Compared], Claim | None] | None = None
) -> Sentence | None:
    """A sentence whose field is some runs, with a value of each where one is given; None where there are none."""
    if not runs:
        return None
    return sentence(template, names(runs) if value is None else with_values(runs, value))


def remarks(*sentences: Sentence | None) -> tuple[Paragraph, ...]:
    """A paragraph of the sentences that there are; nothing where there is none."""
    remark = paragraph(*sentences)
    return (remark,) if remark.sentences else ()
