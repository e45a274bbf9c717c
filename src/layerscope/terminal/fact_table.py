"""A run's facts in a line each: what the model says, and the three layers of its answer under one lens."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.facts import fact_passes
from layerscope.analysis.onsets import CLEARLY_AHEAD, FIRST_ON_TOP, ON_TOP_FOR_GOOD, LayersOfPrompt, layers_of_prompt
from layerscope.analysis.outputs import Output
from layerscope.record.prompt_key import PromptKey
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.sentences.answers import shortened, token
from layerscope.report.sentences.lines import plural
from layerscope.report.sentences.verdict import NONE
from layerscope.report.text import printable
from layerscope.terminal.run_tables import lens_of

FACTS_SHOWN = 40
"""Facts with a line, unless all are asked for: more would push the verdict's beginning off the screen unread."""
_TOKEN, _REST = 14, 60
"""Columns of the terminal that a token may take, and all but the name with tokens as long as that."""


def fact_table(
    run: AnalysedRun, *, lens: str | None = None, everything: bool = False, width: int = 80
) -> Iterator[RenderableType]:
    """A line for each fact, in the wording that stands for it.

    Probabilities are the model's own at the output; they and what rests on them are left out where the identity check
    withholds them.

    Args:
        run: what to show.
        lens: under which lens the layers are; the headline lens where not given.
        everything: whether every prompt has a line, controls and all wordings included.
        width: of the terminal, in columns.

    Raises:
        RunError: the run has no such lens.
    """
    chosen = lens_of(run.record, lens)
    if not run.record.ranks_stand:
        return  # no layer may be named, and the verdict says so
    facts = fact_passes(run.verdict.curves.passes)
    shown: Sequence[PromptKey] = run.verdict.curves.passes if everything else facts[:FACTS_SHOWN]
    if shown:
        yield _table(run, chosen, shown, everything=everything, width=width)
        yield Text(f"layers under lens {printable(chosen)}", style="dim")
    left = _left_out(run, facts, shown)
    if left:
        yield Text(f"{left} not shown: layerscope show RUN --all, where RUN is the run's folder", style="dim")


def _table(run: AnalysedRun, lens: str, shown: Sequence[PromptKey], *, everything: bool, width: int) -> Table:
    room = max(20, width - _REST - (_TOKEN if everything else 0))
    trusted = run.record.probabilities_stand
    number = {prompt.key: place for place, prompt in enumerate(run.record.suite.prompts, start=1)}
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("prompt" if everything else "fact", no_wrap=True, max_width=room, overflow="ellipsis")
    if everything:
        table.add_column("wording", no_wrap=True, max_width=_TOKEN, overflow="ellipsis")
    table.add_column("answer", no_wrap=True, max_width=_TOKEN, overflow="ellipsis")
    table.add_column("answered", no_wrap=True, max_width=_TOKEN, overflow="ellipsis")
    for header in ("first\non top", "top for\ngood", *(["clearly\nahead"] if trusted else [])):
        table.add_column(header, justify="right", no_wrap=True)
    if trusted:
        table.add_column("p of\nanswer", justify="right", no_wrap=True)
    for prompt in shown:
        output = run.diagnostics.outputs[prompt]
        layers = layers_of_prompt(run.milestones.of(lens, prompt))
        names = [
            shortened(_name(run, prompt, output), room),
            *([printable(prompt.prompt_variant)] if everything else []),
        ]
        cells = [*names, "" if output.answer is None else printable(output.answer), _answered(output)]
        cells += _layers(layers, trusted=trusted)
        if trusted:
            cells.append(ABSENT if output.p_answer is None else short_text(output.p_answer))
        place = number.get(prompt)
        table.add_row(ABSENT if place is None else str(place), *map(Text, cells))
    return table


def _name(run: AnalysedRun, prompt: PromptKey, output: Output) -> str:
    """The fact without its answer, which has a column of its own."""
    recorded = run.record.prompt(prompt)
    key = output.fact_key or (None if recorded is None else recorded.fact_key)
    if key is None:
        return "fact" if prompt.is_fact else "control"
    return printable(key.removesuffix(f"→{output.answer}"))


def _answered(output: Output) -> str:
    """Whether it is answered, or what the model says instead."""
    if output.judge == "model_top1":
        return token(output.top_token)
    if output.answered is None:
        return "not known"
    return "yes" if output.answered else f"no: {token(output.top_token)}"


def _layers(layers: LayersOfPrompt, *, trusted: bool) -> list[str]:
    named = [(FIRST_ON_TOP, layers.first_on_top), (ON_TOP_FOR_GOOD, layers.on_top_for_good)]
    named += [(CLEARLY_AHEAD, layers.clearly_ahead)] if trusted else []
    unknown = layers.undetermined
    return [str(layer) if layer is not None else ABSENT if name in unknown else NONE for name, layer in named]


def _left_out(run: AnalysedRun, facts: Sequence[PromptKey], shown: Sequence[PromptKey]) -> str:
    """How many facts, wordings and controls have no line: `20 prompts in other wordings and 1 control are`."""
    there, standing = set(shown), set(facts)
    kinds = Counter(
        "control" if not prompt.is_fact else "fact" if prompt in standing else "prompt"
        for prompt in run.verdict.curves.passes
        if prompt not in there
    )
    told = [f"{kinds['fact']:,} more {plural('fact', kinds['fact'])}"] if kinds["fact"] else []
    told += [f"{kinds['prompt']:,} {plural('prompt', kinds['prompt'])} in other wordings"] if kinds["prompt"] else []
    told += [f"{kinds['control']:,} {plural('control', kinds['control'])}"] if kinds["control"] else []
    listed = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    return f"{listed} {'is' if kinds.total() == 1 else 'are'}" if told else ""
