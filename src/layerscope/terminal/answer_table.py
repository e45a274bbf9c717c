"""Answer rows for a terminal: how much prompts differ by layer, and how they read a suite's facts."""

from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.answer_tracking import GUESSED, TrackedAnswers
from layerscope.lens_record import AnswerRowsRecord
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.sentences.lines import LabelledLine, under_one_label
from layerscope.report.text import printable
from layerscope.terminal.labelled_grid import labelled_grid
from layerscope.terminal.lens_tables import corpus_lines, fits_line, left_out, made_line

HASH_SHOWN = 8
"""Digits of a hash that tell one folder from another."""


def answer_rows_table(record: AnswerRowsRecord) -> Iterator[RenderableType]:
    """How much prompts differ at every layer."""
    n = len(record.answers)
    yield Text(printable(f"answer rows · {record.model.id} · {n} tokens of suite '{record.suite}'"), style="bold")
    yield Text(f"over {n} answers: median and largest", style="dim")
    table = _table("layer", "sigma", "largest", "error", "largest")
    for layer in record.layers:
        table.add_row(str(layer.layer), *_middle_and_largest(layer.sigma), *_middle_and_largest(layer.standard_error))
    yield table
    yield Text(
        "sigma: relative spread between prompts · error: of the mean over them\n"
        "both of one answer's row against the mean over the answers",
        style="dim",
    )


def answer_lines(record: AnswerRowsRecord) -> Table:
    """What the rows are, what they belong to, what they were fitted on, and what a reader has to know."""
    prompts = f"{record.n_prompts:,} of {record.seq_len:,} positions{left_out(record.first_position)}"
    lines = [
        LabelledLine("fits", fits_line(record.model)),
        LabelledLine("answers", ", ".join(answer.token.strip() or repr(answer.token) for answer in record.answers)),
        LabelledLine("prompts", prompts),
        *corpus_lines(record.corpus),
        LabelledLine("made", made_line(record.created_utc, record.settings)),
        LabelledLine("weights", f"sha256 {record.weights_sha256[:HASH_SHOWN]}"),
        *under_one_label("note", record.notes, "advise"),
    ]
    return labelled_grid(lines)


def tracked_table(found: TrackedAnswers, record: AnswerRowsRecord) -> Iterator[RenderableType]:
    """By layer, in how many facts the own answer comes first, through the rows and through the logit lens."""
    yield Text(printable(f"tracked answers · {found.model} · suite '{found.suite}'"), style="bold")
    yield Text(
        f"facts, of {found.n_facts}, whose own answer comes first among {found.n_answers} answers' tokens, and the "
        "median of its place",
        style="dim",
    )
    table = _table("layer", "jacobian\nfirst", "place", "logit\nfirst", "place")
    for layer in found.layers:
        places = (f"{place:g}" for place in (layer.jacobian_place, layer.logit_place))
        jacobian, logit = places
        table.add_row(str(layer.layer), str(layer.jacobian_first), jacobian, str(layer.logit_first), logit)
    yield table
    yield Text("\n".join(map(printable, _explained(found, record))), style="dim")


def _explained(found: TrackedAnswers, record: AnswerRowsRecord) -> Iterator[str]:
    prompts = "one prompt" if record.n_prompts == 1 else f"{record.n_prompts} prompts"
    yield f"jacobian: tracked logits, by the mean of exact rows over {prompts}"
    yield "logit: the logit lens, held to the same answers; both are the model's own output at the last layer"
    least = found.more_than_guesses
    reached = (
        "no count of so few facts is beyond them"
        if least is None
        else f"{least} or more at any layer in at most {GUESSED:.0%} of cases"
    )
    yield f"guesses among the answers: {found.by_chance:.3g} of {found.n_facts} by chance; {reached}"
    if found.n_most_common > 1:
        yield f"one and the same answer to all facts: {found.n_most_common} of {found.n_facts}"
    if found.left_out:
        yield f"left out, for their answers are none of these tokens: {', '.join(found.left_out)}"


def _middle_and_largest(values: Sequence[float | None]) -> tuple[str, str]:
    """Of all answers; absent where one is not to be told."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return (ABSENT, ABSENT)
    return short_text(median(known)), short_text(max(known))


def _table(*headers: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table
