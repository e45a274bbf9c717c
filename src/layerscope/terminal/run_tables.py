"""A run's tables for a terminal: a prompt layer by layer, or milestone by milestone, under one lens."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.curve import Curve
from layerscope.analysis.milestones import NOT_TO_THE_END, Milestone, Milestones
from layerscope.errors import RunError
from layerscope.record.milestone_names import CONFIRMED, ONSET, STABLE, MilestoneName, stable_twin
from layerscope.record.parts import FORM_IN_WORDS, AlignmentRecord, PromptRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.run_record import RunRecord
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.sentences.answers import shortened
from layerscope.report.sentences.guidance import identity
from layerscope.report.sentences.lines import plural
from layerscope.report.text import printable

PROBLEMS_SHOWN = 10
RANK_MILESTONES = (ONSET, MilestoneName.ONSET_RUN2, CONFIRMED, MilestoneName.CONFIRMED_ANY)


def run_tables(
    run: AnalysedRun, *, lens: str | None = None, prompt: int | None = None, most: int | None = None
) -> Iterator[RenderableType]:
    """A table for every prompt at its last position, layer by layer.

    Args:
        run: what to show.
        lens: which lens; the headline lens where not given.
        prompt: only this one, counted from 1; all where not given.
        most: no more than the first so many of them, and how to see the others; all where not given.

    Raises:
        RunError: the run has no such lens or prompt.
    """
    record = run.record
    chosen = lens_of(record, lens)
    _check_prompt(record, prompt)
    places = range(1, 1 + len(record.suite.prompts)) if prompt is None else [prompt]
    for place in places[:most] if record.ranks_stand else ():
        suite_prompt = record.suite.prompts[place - 1]
        yield _title(suite_prompt, chosen, place)
        yield _prompt_table(run, suite_prompt.key, chosen)
        yield Text(_onsets(run, suite_prompt), style="dim")
        yield ""
    if most is not None and len(places) > most and record.ranks_stand:
        yield Text(_others(len(places), most, lens))


def run_lines(run: AnalysedRun) -> Iterator[RenderableType]:
    """The identity check and the flags of the record, a line each."""
    yield identity_line(run)
    for name, reason in run.record.flags.items():
        yield Text(f"caution · {name}" + ("" if reason is True else f": {reason}"), style="yellow")


def milestone_table(
    run: AnalysedRun, *, lens: str | None = None, prompt: int | None = None
) -> Iterator[RenderableType]:
    """Every milestone of one prompt, with what was read at its layer.

    Args:
        run: what to show.
        lens: which lens; the headline lens where not given.
        prompt: which prompt, counted from 1; where not given the primary one, on which the verdict is.

    Raises:
        RunError: the run has no such lens or prompt, or no rows of that prompt under that lens.
    """
    record = run.record
    chosen = lens_of(record, lens)
    _check_prompt(record, prompt)
    passes = [each.key for each in record.suite.prompts]
    key = run.milestones.primary if prompt is None else passes[prompt - 1]
    milestones = {} if key is None else run.milestones.of(chosen, key)
    if key is None or not milestones:
        which = "fact" if prompt is None else f"prompt {prompt}"
        raise RunError(f"This run has no rows of any {which} under lens '{chosen}'; choose another with --prompt.")
    places = [place for place, each in enumerate(passes, start=1) if each == key]
    if places:
        yield _title(record.suite.prompts[places[0] - 1], chosen, places[0])
    if record.ranks_stand:
        yield _milestones(milestones, record)
    lost = [m for m in milestones.values() if m.reason == NOT_TO_THE_END]
    if lost and record.ranks_stand:
        yield Text(f"lost: {NOT_TO_THE_END}", style="dim")
    yield identity_line(run)


def problem_lines(run: AnalysedRun) -> Iterator[Text]:
    """What was missing or damaged in the files the run was read from: the first of it, and how much more there is."""
    for problem in run.problems[:PROBLEMS_SHOWN]:
        where = problem.file if problem.row is None else f"{problem.file}, row {problem.row}"
        yield Text(printable(f"problem · {where}: {problem.message}"), style="yellow")
    if len(run.problems) > PROBLEMS_SHOWN:
        yield Text(f"and {len(run.problems) - PROBLEMS_SHOWN} more", style="yellow")


def identity_line(run: AnalysedRun) -> Text:
    """Whether the last layer is the model itself, in one line."""
    check = run.record.identity
    style = "dim" if check is None else "green" if check.ok else "bold red"
    return Text(f"identity check · {identity(run.record)}", style=style)


def lens_of(record: RunRecord, lens: str | None) -> str:
    """The lens that is asked for, or the headline lens.

    Raises:
        RunError: the run has no such lens.
    """
    chosen = lens or record.protocol.headline_lens
    if chosen not in record.protocol.lenses:
        raise RunError(f"This run has no lens '{chosen}'; choose from {', '.join(record.protocol.lenses)}.")
    return chosen


def _check_prompt(record: RunRecord, prompt: int | None) -> None:
    prompts = record.suite.prompts
    if prompt is not None and not 1 <= prompt <= len(prompts):
        raise RunError(
            f"This run has {len(prompts)} {plural('prompt', len(prompts))}, so there is no prompt {prompt}; count "
            "from 1."
        )


def _milestones(milestones: Milestones, record: RunRecord) -> Table:
    """A line for each milestone and its `_stable` twin; a reason stands where there are no numbers."""
    trusted = record.probabilities_stand
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("milestone", no_wrap=True)
    for header in ("first\nlayer", "of\ndepth", "stable\nlayer"):
        table.add_column(header, justify="right", no_wrap=True)
    # Numbers and reasons share a column, for a reason is wider than any number.
    table.add_column("entropy KL final         \n (bits)   (bits) p(answer)" if trusted else "")
    for name, first in milestones.items():
        if name.endswith(STABLE):
            continue
        if trusted or _rests_on_rank(name):
            table.add_row(
                name, *_milestone_cells(first, milestones.get(stable_twin(name)), record.model.n_layers, trusted)
            )
        else:
            table.add_row(name, ABSENT, ABSENT, ABSENT, "withheld", style="dim")
    return table


def _milestone_cells(first: Milestone, stable: Milestone | None, n_layers: int, trusted: bool) -> list[str]:
    if first.layer is None:
        return [ABSENT, ABSENT, ABSENT, first.reason or ""]
    lost = stable is not None and stable.layer is None
    kept = "lost" if lost else ABSENT if stable is None else str(stable.layer)
    numbers = (short_text(first.entropy_bits), short_text(first.kl_to_final_bits), short_text(first.p_answer))
    reading = "{:>7} {:>8} {:>9}".format(*numbers) if trusted else ""
    return [str(first.layer), f"{first.layer / n_layers:.2f}", kept, reading]


def _rests_on_rank(name: str) -> bool:
    """Whether a milestone is one of the answer's rank alone, which no missing scale or softcap changes."""
    return name.startswith("first_rank_le_") or name in RANK_MILESTONES


def _title(prompt: PromptRecord, lens: str, place: int) -> Text:
    return Text(
        printable(f"{place} · {shortened(_name(prompt))} · {prompt.prompt_variant} · lens {lens}"), style="bold"
    )


def _name(prompt: PromptRecord) -> str:
    kind = "fact" if prompt.prompt_id == "pos" else "control"
    return prompt.fact_key or " ".join([kind, *(answer.string for answer in prompt.answers[:1])])


def _others(n: int, shown: int, lens: str | None) -> str:
    """That there are more tables, and how to see them under the same lens."""
    left = f"prompt {n} is" if n == shown + 1 else f"prompts {shown + 1:,} to {n:,} are"
    under = "" if lens is None else f" --lens {lens}"
    return (
        f"{left} not shown: layerscope show RUN --prompt {shown + 1}{under}, or layerscope show RUN --tables "
        f"--all{under}, where RUN is the run's folder"
    )


def _prompt_table(run: AnalysedRun, prompt: PromptKey, lens: str) -> Table:
    trusted = run.record.probabilities_stand
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right")
    if trusted:
        table.add_column("entropy\n(bits)", justify="right")
    table.add_column("top-1", no_wrap=True, max_width=20, overflow="ellipsis")
    if trusted:
        table.add_column("p", justify="right")
    table.add_column("answer\nrank", justify="right")
    if trusted:
        table.add_column("KL to final\n(bits)", justify="right")
    table.add_column("", no_wrap=True)
    curve = run.verdict.curves.get(prompt, lens)
    first = _first_rank_1(curve)
    for row in () if curve is None else curve.rows:
        probabilities = [
            short_text(row["entropy_bits"]),
            short_text(row["p_top1"]),
            short_text(row["kl_to_final_bits"]),
        ]
        rank = ABSENT if row["answer_rank"] is None else f"{row['answer_rank']:,}"
        top1 = Text(ABSENT if row["top1"] is None else repr(row["top1"]))  # as a string, `[i]` would be markup
        cells: list[str | Text] = [str(row["layer"])]
        cells += [probabilities[0], top1, probabilities[1], rank, probabilities[2]] if trusted else [top1, rank]
        marker = "<- first rank 1" if row["layer"] == first else ("not finite" if not row["finite"] else "")
        table.add_row(*cells, marker, style="bold cyan" if row["layer"] == first else None)
    return table


def _first_rank_1(curve: Curve | None) -> int | None:
    """The shallowest layer at which the answer is on top; None where it never is."""
    return None if curve is None else curve.first(lambda row: row["answer_rank"] == 1)


def _form(answer: AlignmentRecord) -> str:
    """In which form an answer was judged, where another has another rank at the output."""
    ranks = {form.variant: form.rank for form in answer.forms if form.rank is not None}
    judged = ranks.pop(answer.variant, None) if answer.variant != "unknown" else None
    if judged is None or not set(ranks.values()) - {judged}:
        return ""
    other = "without one" if answer.variant == "with_space" else "with one"
    words, rank = FORM_IN_WORDS[answer.variant], next(iter(ranks.values()))
    return f" judged {words} (rank {judged:,} at the output, {other} {rank:,})"


def _onsets(run: AnalysedRun, prompt: PromptRecord) -> str:
    """Where the answer is first on top, by lens."""
    by_lens = _first_by_lens(run, prompt.key)
    if prompt.judge == "model_top1":
        own = "" if prompt.output is None or not prompt.output.top_tokens else f", {prompt.output.top_tokens[0]!r}"
        return f"no answer given: judged by what the model itself says{own} · {by_lens}"
    gold = prompt.judged_answer
    if gold is None:
        return "no answer was recorded"
    if not gold.ok:
        return f"answer {shortened(repr(gold.string))} could not be aligned ({gold.reason}), so it has no rank"
    form = "" if prompt.judge == "whole" else _form(gold)  # ranks of forms are those of first pieces
    return f"answer {shortened(repr(gold.string))}{form}{_part(gold, prompt)} · {by_lens}"


def _part(answer: AlignmentRecord, prompt: PromptRecord) -> str:
    """What is judged of an answer of several pieces."""
    if not answer.several_pieces:
        return ""
    n = len(answer.answer_ids)
    return f", judged by all of its {n} pieces" if prompt.judge == "whole" else f", judged by its first of {n} pieces"


def _first_by_lens(run: AnalysedRun, prompt: PromptKey) -> str:
    curves = run.verdict.curves
    onsets = {lens: _first_rank_1(curves.get(prompt, lens)) for lens in run.record.protocol.lenses}
    return "first rank 1 by lens: " + " · ".join(
        f"{lens} {'none' if layer is None else layer}" for lens, layer in onsets.items()
    )
