"""The prompts of a run whose numbers are not on its page: a line for each, and where the numbers are."""

from collections.abc import Mapping
from dataclasses import dataclass

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.onsets import layers_of_prompt
from layerscope.published.layout import json_name, stem_of
from layerscope.record.prompt_key import PromptKey
from layerscope.report.numbers import ABSENT
from layerscope.report.sentences.lines import plural
from layerscope.report.text import printable
from layerscope.view.page.payload import in_full, kinds
from layerscope.view.page.words import Column

COLUMNS = (
    Column("prompt", "What it asks."),
    Column("number", "Its place in the suite, for `layerscope show RUN --prompt`."),
    Column("answered", "Whether its answer is the model's most likely token."),
    Column("answer's rank", "At the model's output."),
    Column("first on top", "The first layer at which the answer has rank 1."),
    Column("on top for good", "From this layer on it has rank 1 at every layer."),
    Column("clearly ahead", "From this layer on it leads by a margin."),
)


@dataclass(frozen=True)
class OtherPrompts:
    """What the page says of them."""

    note: str
    """Which are in full, and how to see the others layer by layer."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def other_prompts(run: AnalysedRun) -> OtherPrompts | None:
    """The prompts that are not in full, in the order of the rows; None where there are none.

    Layers and ranks are of the headline lens, and withheld where nothing decoded is the model's.
    """
    passes, shown = run.verdict.curves.passes, set(in_full(run))
    if len(shown) == len(passes):
        return None
    number = {prompt.key: place for place, prompt in enumerate(run.record.suite.prompts, start=1)}
    others = [prompt for prompt in passes if prompt not in shown]
    note = (
        f"The grid has {_extent(kinds(shown), kinds(passes))}; the other {len(others):,} "
        f"{'prompt has a line' if len(others) == 1 else 'prompts have a line each'} below, under lens "
        f"{run.diagnostics.headline}. "
        f"{_elsewhere(run)}"
    )
    return OtherPrompts(note, COLUMNS, tuple(_line(run, prompt, number.get(prompt)) for prompt in others))


def _extent(shown: Mapping[str, int], everything: Mapping[str, int]) -> str:
    """Which facts and controls are in full: `the first 200 facts and the 3 controls`."""
    told = [f"the {'' if n == everything[kind] else 'first '}{n:,} {plural(kind, n)}" for kind, n in shown.items()]
    return " and ".join(told)


def _elsewhere(run: AnalysedRun) -> str:
    """Where the numbers of the others are, and how to see them."""
    show = "For any of them layer by layer: layerscope show RUN --prompt NUMBER, where RUN is"
    if run.record.source == "published":
        file = json_name(stem_of(run.record.model.id))
        return (
            f"{show} {printable(file)} with its path. All numbers of all prompts are in that file and those beside it."
        )
    return (
        f"{show} the run's folder. Every number of all prompts is in its rows.parquet, and in the files of layerscope "
        "export RUN --published."
    )


def _line(run: AnalysedRun, prompt: PromptKey, number: int | None) -> tuple[str, ...]:
    from layerscope.view.charts.words import prompt_name

    output = run.diagnostics.outputs[prompt]
    layers = layers_of_prompt(run.milestones.of(prompt=prompt))
    trusted, ranked = run.record.probabilities_stand, run.record.ranks_stand
    answered = {None: ABSENT, True: "yes", False: "no"}[output.answered]
    cells = (
        output.answer_rank if ranked else None,
        layers.first_on_top if ranked else None,
        layers.on_top_for_good if ranked else None,
        layers.clearly_ahead if trusted else None,
    )
    return (
        printable(prompt_name(run, prompt)),
        ABSENT if number is None else str(number),
        answered if ranked else ABSENT,
        *(ABSENT if cell is None else f"{cell:,}" for cell in cells),
    )
