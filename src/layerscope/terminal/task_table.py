"""Scores of lenses on their own tasks, for a console of 80 columns."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.pass_at import PassAt
from layerscope.analysis.task_scores import BASELINE, LensTasks, TaskScore, sides
from layerscope.report.text import printable

_READ_AT = {
    "before_target": "read in front of the target",
    "last_newline": "read at the last line break",
    "last_token": "read at the last token",
}
NULL = "_shuffled"


def task_tables(found: LensTasks) -> Iterator[RenderableType]:
    """A table a task, what its columns mean, and in which tasks a lens is ahead of the logit lens."""
    yield Text(printable(f"a lens' own tasks · {found.model}"), style="bold")
    for task in found.tasks:
        yield Text()
        yield Text(printable(_about(task)))
        yield _table(task)
    k = max(score.k for task in found.tasks for score in task.scores)
    yield Text(_explained(k), style="dim")
    lenses = dict.fromkeys(one.lens for task in found.tasks for one in task.over_logit)
    for lens in lenses:
        if not lens.endswith(NULL):
            yield Text(printable(_told(found.tasks, lens, k)))


def _about(task: TaskScore) -> str:
    told = f"{task.task} · {task.n_scored} of {task.n_items} items · {_READ_AT[task.read_at]}"
    if task.skipped:
        told += f" · {len(task.skipped)} of {task.n_words} words are no token"
    return told


def _table(task: TaskScore) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("lens", no_wrap=True, vertical="bottom")
    ks = sorted({score.k for score in task.scores})
    gain = f"gain less\nthat of {BASELINE}"
    headers = (*(f"pass\n@{k}" for k in ks), "others", gain, "band\nrank", "of\nothers", "output")
    for header in headers:
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for lens in dict.fromkeys(score.lens for score in task.scores):
        of = {score.k: score for score in task.scores if score.lens == lens}
        table.add_row(Text(printable(lens)), *_cells(task, [of[k] for k in ks]))
    return table


def _cells(task: TaskScore, scores: Sequence[PassAt]) -> list[str]:
    last = scores[-1]
    beside = next((one for one in task.over_logit if (one.lens, one.k) == (last.lens, last.k)), None)
    less = "" if beside is None else f"{beside.difference:+z.2f} [{beside.interval[0]:z.2f}, {beside.interval[1]:z.2f}]"
    ranks = (f"{rank:.0f}" for rank in (last.band_rank, last.others_band_rank))
    return [*(f"{score.passed:.2f}" for score in scores), f"{last.others:.2f}", less, *ranks, f"{last.at_output:.2f}"]


def _explained(k: int) -> str:
    return (
        "\npass@k: share of an item's words among the first k at any layer from 1 to the last but one, mean over items"
        f"\nothers: the same of other items' words, k = {k} · gain: pass@{k} less others; beside the {BASELINE} lens' "
        "with 95 % over items"
        "\nband rank: a word's median rank over the middle half of the layers, median over items; of others: of other "
        f"items' words\noutput: pass@{k} at the model's own output · {NULL.removeprefix('_')}: the lens with its "
        "weights in random order\n"
    )


def _told(tasks: Sequence[TaskScore], lens: str, k: int) -> str:
    more, less, neither = sides(tasks, lens, k)
    told = [
        f"{words} in {', '.join(names)}"
        for words, names in (("more", more), ("less", less), ("not told apart", neither))
        if names
    ]
    return f"{lens} gains over other words, k = {k}, beside {BASELINE}: {'; '.join(told)}"
