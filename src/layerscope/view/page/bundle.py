"""Many runs as a folder of pages with an index, which any static host can serve."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.errors import RunError
from layerscope.report.cited.report_files import write_whole
from layerscope.report.sentences.guidance import identity
from layerscope.report.sentences.verdict import VerdictText
from layerscope.report.text import printable
from layerscope.view.page.document import (
    ADVICE,
    MARKER,
    asset,
    check_ours,
    environment,
    package_version,
    policy,
    script_of,
)
from layerscope.view.page.payload import labels
from layerscope.view.page.view import write_view
from layerscope.view.page.words import Column

INDEX = "index.html"
TOGETHER = "side-by-side.html"
MOST_TOGETHER = 12
"""Runs up to which there is also one page with all of them."""
SCRIPTS = ("dom", "colour", "sorting", "theme", "index")
COLUMNS = (
    Column("model", "The model that was probed; its page."),
    Column("suite", "What was asked."),
    Column("layers", "How many blocks the model has."),
    Column("answered", "Facts whose answer is the model's most likely token."),
    Column(
        "on top for good", "From this layer on the answer has rank 1, under the headline lens; the median over facts."
    ),
    Column("lens", "The headline lens."),
    Column("identity", "Whether the last layer, decoded, is the model's own output."),
    Column("measured", "When."),
    Column("in words", "The verdict's first sentence."),
)


@dataclass(frozen=True)
class IndexCell:
    """A cell of the index."""

    text: str
    sort: str
    """What it is sorted by; empty where it has no value."""
    title: str = ""


@dataclass(frozen=True)
class IndexLine:
    """One run of the index."""

    name: str
    """The model's; suite and time have columns of their own."""
    label: str
    """Tells the run from all others."""
    file: str
    """Of its page, beside the index."""
    cells: tuple[IndexCell, ...]
    words: str


def write_bundle(runs: Sequence[AnalysedRun], folder: str | Path) -> Path:
    """Write a page for each run, one of all of them where they are few, and an index that leads to them.

    Pages that layerscope wrote before are replaced; no other file of the folder is touched.

    Args:
        runs: of any origin.
        folder: made where it is missing.

    Returns:
        The index.

    Raises:
        RunError: there is no run, something else has a page's name, or the place cannot be written to.
    """
    if not runs:
        raise RunError("A bundle holds at least one run, and none was given.")
    place, names = Path(folder), labels(runs)
    index, pages = place / INDEX, _file_names(names)
    together = TOGETHER if 1 < len(runs) <= MOST_TOGETHER else ""
    for name in (INDEX, *pages, *([together] if together else [])):
        check_ours(place / name)
    lines = [_line(run, label, name) for run, label, name in zip(runs, names, pages, strict=True)]
    with tempfile.TemporaryDirectory(prefix="layerscope-") as made:  # all are drawn before any is replaced
        for run, name in zip(runs, pages, strict=True):
            write_view([run], Path(made) / name)
        if together:
            write_view(runs, Path(made) / together)
        (Path(made) / INDEX).write_text(_index_html(lines, together), encoding="utf-8")
        for name in (*pages, *([together] if together else []), INDEX):
            write_whole(place / name, (Path(made) / name).read_bytes(), ADVICE)
    return index


def _file_names(names: Sequence[str]) -> list[str]:
    """A file for each run, told apart whatever the labels are made of."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        taken = {INDEX.casefold(), TOGETHER, *(each.casefold() for each in found)}
        candidates = (f"{plain}{f'-{n}' if n > 1 else ''}.html" for n in range(1, len(names) + 3))
        found.append(next(each for each in candidates if each.casefold() not in taken))
    return found


def _line(run: AnalysedRun, label: str, file: str) -> IndexLine:
    record, verdict = run.record, VerdictText(run.verdict, run.record)
    facts, layer, check = run.diagnostics.answered, verdict.layer(), record.identity
    n_known = facts.n - facts.n_without_answer - facts.n_unknown
    known = verdict.ranked and n_known > 0
    passed = "none" if check is None else "passed" if check.ok else "failed"
    created = record.created_utc or ""
    cells = (
        IndexCell(record.suite.name, record.suite.name),
        IndexCell(str(record.model.n_layers), str(record.model.n_layers)),
        IndexCell(
            f"{facts.n_answered} of {n_known}" if known else "–", f"{facts.n_answered / n_known}" if known else ""
        ),
        IndexCell("–" if layer is None else f"{layer:g}", "" if layer is None else f"{layer:g}"),
        IndexCell(run.diagnostics.headline, run.diagnostics.headline),
        IndexCell(passed, passed, identity(record)),
        IndexCell(created.replace("T", " ").replace("Z", " UTC") or "–", created),
    )
    name = printable(record.model.id.rsplit("/", 1)[-1])
    return IndexLine(name, label, file, cells, verdict.statement())


def _index_html(lines: Sequence[IndexLine], together: str) -> str:
    script, style = script_of(SCRIPTS), asset("page.css")
    return (
        environment()
        .get_template("bundle.html.j2")
        .render(
            marker=Markup(MARKER),
            policy=policy(script, style=style),
            title=f"{len(lines)} runs · layerscope",
            style=Markup(style),
            script=Markup(script),
            columns=COLUMNS,
            lines=lines,
            together=together,
            version=package_version(),
        )
    )
