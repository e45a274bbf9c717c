"""A run at a glance: in a line for a console, and for a notebook its headline and a small grid."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import polars as pl
from markupsafe import Markup

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.curve import Row
from layerscope.record.prompt_key import PromptKey
from layerscope.record.stored_rows import collected
from layerscope.report.sentences import answers
from layerscope.report.sentences.guidance import identity
from layerscope.report.sentences.lines import plural
from layerscope.report.sentences.verdict import VerdictText
from layerscope.report.text import printable, spread
from layerscope.view.notebook.small_grid import (
    MOST_LAYERS,
    MOST_POSITIONS,
    Cell,
    SmallGrid,
    card,
    grid_html,
    line,
    quiet,
    scale_html,
    strong,
)
from layerscope.view.page.words import VerdictWords, verdict_words

PAGE = "view.html"
"""The page in a run's folder."""
_SHOW = "The whole page: run.show()"


def run_line(run: AnalysedRun) -> str:
    """Model, suite, facts, how many are answered, and the layer of the headline."""
    record, verdict = run.record, VerdictText(run.verdict, run.record)
    parts = [record.model.id.rsplit("/", 1)[-1], record.suite.name, *_facts(verdict)]
    return printable(" · ".join([*parts, _layer(verdict)]))


def _facts(verdict: VerdictText) -> Iterator[str]:
    facts = verdict.diagnostics.answered
    if not facts.n:
        yield "no fact"
    elif verdict.ranked:
        yield answers.over_facts(facts)
    else:
        yield f"{facts.n} {plural('fact', facts.n)}"


def _layer(verdict: VerdictText) -> str:
    if not verdict.ranked:
        return "identity check failed, no layer stands"
    layer = verdict.layer()
    if layer is None:
        return "no headline layer"
    median = " (median)" if verdict.over_facts else ""
    return f"on top for good from layer {layer:g} of {verdict.n_layers}{median} under {verdict.diagnostics.headline}"


def run_html(run: AnalysedRun, folder: Path | None) -> str:
    """Headline, what stands against it, a small grid of the first fact's first prompt, and where the page is.

    Args:
        folder: the run's own, if it has one.
    """
    return card(_parts(run, folder))


def _parts(run: AnalysedRun, folder: Path | None) -> Iterator[Markup]:
    words = verdict_words(run)
    yield strong(VerdictText(run.verdict, run.record).headline())
    n = len(run.verdict.curves.passes)
    yield quiet(f"{words.model} · suite {words.suite} · {n:,} {plural('prompt', n)} · {words.n_layers} blocks")
    check = run.record.identity
    if check is not None and not check.ok:
        yield line(f"Identity check: {identity(run.record)}")
    cautions = VerdictText(run.verdict, run.record).cautions()
    if cautions:
        yield line(f"For caution: {'; '.join(cautions)}.")
    yield from _grid(run, words)
    yield _page(folder)


def _grid(run: AnalysedRun, words: VerdictWords) -> Iterator[Markup]:
    curves = run.verdict.curves
    prompt = curves.primary or next(iter(curves.passes), None)
    if prompt is None:
        yield quiet("The run has no rows.")
        return
    grid = small_grid(run, prompt, words.lens)
    if grid is None:
        yield quiet(f"{_name(run, prompt)} was not read under lens {words.lens}.")
        return
    yield grid_html(grid)
    stand = run.record.probabilities_stand
    yield scale_html(withheld=not stand)
    if stand and words.suppressed:
        yield quiet("The guidance on this run stands against quoting its probabilities.")
    elif words.quotable:
        yield quiet(words.quotable)


def small_grid(run: AnalysedRun, prompt: PromptKey, lens: str) -> SmallGrid | None:
    """The last positions of a prompt under a lens, layers evenly spaced; None where there are no rows."""
    p_top = pl.coalesce("p_top1", pl.col("top_probs").list.get(0, null_on_oob=True))
    its = prompt.rows_of(run.judged_scan).filter(lens=lens)
    rows = collected(its.select("layer", "position", "token", "top1", p_top.alias("p"), "finite"))
    if rows.is_empty():
        return None
    every = rows["layer"].unique().sort().to_list()
    layers = [every[place] for place in spread(len(every), MOST_LAYERS)]
    positions = rows["position"].unique().sort().to_list()[-MOST_POSITIONS:]
    some = "" if len(layers) == len(every) else f"; {len(layers)} of {len(every)} layers"
    tokens = dict(rows.select("position", "token").drop_nulls().iter_rows())
    cells = {(row["layer"], row["position"]): _cell(row, run) for row in rows.iter_rows(named=True)}
    absent = Cell(None, instead="not read")
    return SmallGrid(
        caption=f"{_name(run, prompt)}, lens {lens}{some}",
        layers=tuple(layers),
        positions=tuple(positions),
        tokens=tuple(tokens.get(position) for position in positions),
        cells=tuple(tuple(cells.get((layer, position), absent) for position in positions) for layer in layers),
    )


def _cell(row: Row, run: AnalysedRun) -> Cell:
    if not row["finite"]:
        return Cell(None)
    p = row["p"] if run.record.probabilities_stand else None
    return Cell(row["top1"], p, instead="not known")


def _name(run: AnalysedRun, prompt: PromptKey) -> str:
    """A prompt for people: its fact, or that it is a control; and its text."""
    record = run.record.prompt(prompt)
    fact = run.verdict.curves.fact_keys.get(prompt) or (None if record is None else record.fact_key)
    kind = (fact or "first fact") if prompt.is_fact else "control"
    text = None if record is None else record.text
    return kind if text is None else f"{kind}: “{answers.shortened(text)}”"


def _page(folder: Path | None) -> Markup:
    """How to see the page; a link to it where it lies in the run's folder."""
    if folder is None or not (folder / PAGE).is_file():
        return quiet(_SHOW)
    link = Markup('<a href="{}" target="_blank" rel="noopener" style="color:inherit;text-decoration:underline">{}</a>')
    named = link.format(_relative(folder / PAGE), printable(f"{folder.name}/{PAGE}"))
    return Markup('<div style="font-size:12px">{}, or {}</div>').format(_SHOW, named)


def _relative(file: Path) -> str:
    """A link from the working folder, which is the notebook's as a rule; it names no more than has to be named."""
    try:
        return quote(Path(os.path.relpath(file)).as_posix())
    except ValueError:  # on another drive
        return file.as_uri()
