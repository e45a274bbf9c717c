"""A run's tables for a terminal: one a prompt, layer by layer, under one lens."""

from collections.abc import Iterator
from statistics import median

import polars as pl
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.errors import RunError
from layerscope.record.run import PromptRecord, Run

ABSENT = "-"


def run_tables(run: Run, *, lens: str | None = None, prompt: int | None = None) -> Iterator[RenderableType]:
    """The identity check and a table for every prompt at its last position.

    Args:
        run: what to show.
        lens: which lens; the headline lens where not given.
        prompt: only this one, counted from 1; all where not given.

    Raises:
        RunError: the run has no such lens or prompt.
    """
    record = run.record
    chosen = lens or record.protocol.headline_lens
    if chosen not in record.protocol.lenses:
        raise RunError(f"This run has no lens '{chosen}'; choose from {', '.join(record.protocol.lenses)}.")
    prompts = record.suite.prompts
    if prompt is not None and not 1 <= prompt <= len(prompts):
        raise RunError(f"This run has {len(prompts)} prompts, so there is no prompt {prompt}; count from 1.")
    next_rows = run.rows.filter("is_next")
    for number, asked in enumerate(prompts, start=1):
        if prompt in (None, number) and _ranks_stand(run):
            yield _title(asked, chosen, number)
            yield _prompt_table(run, _rows_of(next_rows, asked), chosen)
            yield Text(_onsets(_rows_of(next_rows, asked), asked, record.protocol.lenses), style="dim")
            yield ""
    if prompt is None and _ranks_stand(run):
        yield _summary(next_rows.filter(pl.col("lens") == chosen, pl.col("prompt_id") == "pos"))
    yield identity_line(run)
    for name, reason in record.flags.items():
        yield Text(f"caution · {name}" + ("" if reason is True else f": {reason}"), style="yellow")


def identity_line(run: Run) -> Text:
    """Whether the last layer is the model itself, in one line."""
    identity = run.record.identity
    if identity.ok:
        kl = f"{identity.kl_bits:.1e}"
        return Text(
            f"identity check · passed · KL {kl} bits over {identity.n_prompts} prompts "
            f"(tolerance {identity.tolerance_bits:.0e})",
            style="green",
        )
    kl = "not finite" if identity.kl_bits is None else f"{identity.kl_bits:.3g} bits"
    if identity.kl_bits is None:
        left = "Probabilities are withheld."
    else:
        left = (
            "Probabilities are withheld; ranks stand."
            if _ranks_stand(run)
            else "Neither probabilities nor ranks stand."
        )
    return Text(f"identity check · FAILED · KL {kl} · {identity.note} {left}", style="bold red")


def _ranks_stand(run: Run) -> bool:
    """A missing scale or softcap changes no order, anything else may; with nothing finite, nothing was compared."""
    identity = run.record.identity
    explained = identity.fitted_scale is not None or identity.fitted_softcap is not None
    return identity.ok or explained or identity.kl_bits is None


def _summary(rows: pl.DataFrame) -> Text:
    """All facts in one line: how many are answered in the end, and from which layer on."""
    last = rows.filter(pl.col("layer") == pl.col("layer").max())
    on_top = rows.filter(pl.col("answer_rank") == 1)
    first = on_top.group_by("fact_index", "prompt_variant").agg(pl.col("layer").min())["layer"]
    layers = sorted(first.to_list())
    onset = f"median {median(layers):g}, {layers[0]} to {layers[-1]}" if layers else "never"
    return Text(
        f"{last['is_answer'].sum()} of {len(last)} prompts answered at the last layer · first rank 1: {onset}",
        style="bold",
    )


def _rows_of(rows: pl.DataFrame, prompt: PromptRecord) -> pl.DataFrame:
    return rows.filter(
        pl.col("fact_index").eq_missing(prompt.fact_index)
        & (pl.col("prompt_id") == prompt.prompt_id)
        & (pl.col("prompt_variant") == prompt.prompt_variant)
    )


def _title(prompt: PromptRecord, lens: str, number: int) -> Text:
    name = prompt.fact_key or f"control {prompt.answers[0].string}"
    return Text(_printable(f"{number} · {name} · {prompt.prompt_variant} · lens {lens}"), style="bold")


def _printable(text: str) -> str:
    """Control characters written out, so that a suite cannot steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _prompt_table(run: Run, rows: pl.DataFrame, lens: str) -> Table:
    trusted = run.record.identity.ok
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
    own = rows.filter(pl.col("lens") == lens).sort("layer")
    first = _first_rank_1(own)
    for row in own.iter_rows(named=True):
        probabilities = [_number(row["entropy_bits"]), _number(row["p_top1"]), _number(row["kl_to_final_bits"])]
        rank = ABSENT if row["answer_rank"] is None else f"{row['answer_rank']:,}"
        top1 = Text(ABSENT if row["top1"] is None else repr(row["top1"]))  # as a string, `[i]` would be markup
        cells: list[str | Text] = [str(row["layer"])]
        cells += [probabilities[0], top1, probabilities[1], rank, probabilities[2]] if trusted else [top1, rank]
        marker = "<- first rank 1" if row["layer"] == first else ("not finite" if not row["finite"] else "")
        table.add_row(*cells, marker, style="bold cyan" if row["layer"] == first else None)
    return table


def _first_rank_1(rows: pl.DataFrame) -> int | None:
    """The shallowest layer at which the answer is on top; None where it never is."""
    found = rows.filter(pl.col("answer_rank") == 1)["layer"].min()
    return None if found is None else int(str(found))


def _onsets(rows: pl.DataFrame, prompt: PromptRecord, lenses: tuple[str, ...]) -> str:
    """Where the answer is first on top, by lens."""
    gold = prompt.answers[0]
    if not any(answer.ok for answer in prompt.answers):
        return f"answer {gold.string!r} could not be aligned ({gold.reason}), so it has no rank"
    caution = f", judged by its first of {len(gold.answer_ids)} pieces" if gold.several_pieces else ""
    onsets = {lens: _first_rank_1(rows.filter(pl.col("lens") == lens)) for lens in lenses}
    said = " · ".join(f"{lens} {'never' if layer is None else layer}" for lens, layer in onsets.items())
    return f"answer {gold.string!r}{caution} · first rank 1 by lens: {said}"


def _number(value: float | None) -> str:
    """Three decimals, or two significant digits where these would be lost."""
    if value is None:
        return ABSENT
    return f"{value:.3f}" if value == 0 or value >= 0.001 else f"{value:.1e}"
