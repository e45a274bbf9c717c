"""A run's verdict laid out for a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.diagnostics import Verdict
from layerscope.record.run_record import RunRecord
from layerscope.report.sentences import experts
from layerscope.report.sentences.guidance import reporting
from layerscope.report.sentences.lines import LINE, LabelledLine, plural, under_one_label
from layerscope.report.sentences.verdict import P_IS, VerdictText
from layerscope.report.text import printable
from layerscope.terminal.labelled_grid import LABEL_WIDTH, labelled_grid

MOST_LINES = 16
"""Of a verdict without its details."""
_LEFT_OUT_FIRST = ("lenses", "lost", "first fact", "control", "twin", "writers", P_IS, "wording", "chance")
"""Labels of what has to wait for the details where lines are short."""
WIDTH = 80
_HEADER_WIDTH = 9


def run_verdict(run: AnalysedRun, *, details: bool = False) -> Iterator[RenderableType]:
    """The verdict on a run, for a console of 80 columns; wider ones are not filled.

    Args:
        details: whether to say all there is, rather than what `MOST_LINES` lines hold.
    """
    yield from verdict_of(run.verdict, run.record, details=details)
    routing, primary = run.record.measured.routing, run.diagnostics.primary
    if details and routing is not None and run.experts is not None and primary is not None:
        onset = run.diagnostics.layers_over_facts.on_top_for_good.summary.median_rounded
        yield labelled_grid(experts.in_detail(routing, run.experts, onset, primary.prompt_variant))


def verdict_of(verdict: Verdict, record: RunRecord, *, details: bool = False) -> Iterator[RenderableType]:
    """The same of a verdict and of the record that it is on."""
    text = VerdictText(verdict, record)
    yield Text(text.title(), style="bold", overflow="ellipsis", no_wrap=True)
    headline = _wrapped(text.headline(), WIDTH)
    yield Text("\n".join(headline), style="bold")
    if text.names_layers:
        summary = text.summary(whole=details)
        yield labelled_grid(summary if details else _in_short(text, summary, MOST_LINES - 1 - len(headline)))
        if details:
            yield _of_first_fact(text)
            yield labelled_grid(text.strength())
            yield _lens_table(text)
            yield labelled_grid(text.circumstances())
            if written := text.writers():
                yield Text("what wrote the answer", style="bold")
                yield labelled_grid(written)
    if details or not text.names_layers:
        yield labelled_grid(reporting(verdict.guidance, verdict.diagnostics.headline, ranked=text.ranked))


def _of_first_fact(text: VerdictText) -> Text:
    """What the lines below it are about."""
    fact = "the prompt" if text.prompt is None else text.prompt.fact_key or "the prompt"
    return Text(printable(f"{fact} in detail"), style="bold")


def _in_short(text: VerdictText, summary: Sequence[LabelledLine], room: int) -> list[LabelledLine]:
    """What bears on the headline, and as many cautions as lines are left for; what is left out is told last."""
    cautions = text.cautions()
    lines, left_out = list(summary), list[str]()
    for label in _LEFT_OUT_FIRST:
        if _height(lines) + (1 if cautions else 1 + bool(left_out)) <= room:
            break
        left_out += dict.fromkeys(line.label for line in lines if line.label == label)
        lines = [line for line in lines if line.label != label]
    if not cautions:
        unknown = len(text.guidance.undetermined)
        rest = f" ({unknown} could not be judged: --details)" if unknown else ""
        lines.append(LabelledLine("cautions", f"none{rest}", "free"))
        return [*lines, *([LabelledLine("more", f"{', '.join(left_out)}: --details")] if left_out else [])]
    free = room - _height(lines)
    shown = cautions if len(cautions) + bool(left_out) <= free else cautions[: max(0, free - 1)]
    hidden = len(cautions) - len(shown)
    more = [f"{hidden} {'more ' if shown else ''}{plural('caution', hidden)}"] if hidden else []
    rest_of_it = [f"{', '.join([*left_out, *more])}: --details"] if left_out or more else []
    return [*lines, *under_one_label("cautions", [*shown, *rest_of_it], "advise")]


def _height(lines: Sequence[LabelledLine]) -> int:
    """How many lines of the terminal they take."""
    return sum(len(_wrapped(line.text, LINE)) for line in lines)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines as wide as the terminal shows them, where a character may take two columns."""
    return [line.plain.rstrip() for line in Text(text).wrap(Console(width=width), width)]


def _lens_table(text: VerdictText) -> Table:
    """Where each lens gets there, the headline lens in bold."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("lens", min_width=LABEL_WIDTH - 1, no_wrap=True, vertical="bottom")
    for header in text.columns:
        table.add_column(_in_two(header), justify="right", vertical="bottom", no_wrap=True)
    for lens in text.record.protocol.lenses:
        style = "bold" if lens == text.diagnostics.headline else None
        table.add_row(Text(printable(lens)), *text.cells(lens), style=style)
    return table


def _in_two(header: str) -> str:
    """A long header broken at the space nearest to its middle."""
    spaces = [at for at, character in enumerate(header) if character == " "]
    if len(header) <= _HEADER_WIDTH or not spaces:
        return header
    middle = min(spaces, key=lambda at: abs(at - len(header) / 2))
    return f"{header[:middle]}\n{header[middle + 1 :]}"
