"""The commands on what people look at: view, report, compare, brief, audit, verify."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerscope.cli.console import print_line, print_parts
from layerscope.cli.evidence import archive_for, archive_in, folder_of, home, newest, read_only, readable
from layerscope.cli.options import RunSource, command
from layerscope.errors import RunError

if TYPE_CHECKING:  # what a command works with is imported where it works, so that no help waits for it
    import rich.console

    import layerscope.analysis.analysed_run
    import layerscope.report.verify

CROSS_MODELS = "evaluation-cross-models.md"
FORMATS = ("table", "json", "markdown")
report_app = typer.Typer()
OnlyModel = Annotated[
    str | None, typer.Option("--model", help="Only this model of a folder of published files.", show_default="all")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder to write into.", show_default="the run's own; for published files, here")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that somebody wrote or changed.")]


@report_app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope view\n\nlayerscope view --no-open\n\n"
    "layerscope view runs/* --bundle pages --no-open"
)
@command()
def view(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Runs' folders, or folders or output-<M>.json of published files.", show_default="the newest in runs/"
        ),
    ] = None,
    model: OnlyModel = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write.", show_default="view.html in the run's folder; for several or published files, here"
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder to fill with a page for each run and an index, for any web host.")
    ] = None,
    opened: Annotated[bool, typer.Option("--open/--no-open", help="Open it, where there is a browser.")] = True,
) -> None:
    """Write a visual report: one page in a single file that needs no network; several runs stand side by side."""
    if bundle is not None and out is not None:
        raise RunError("--out names one page and --bundle a folder of pages; give one of them.")
    sources = runs or [newest()]
    shown = [run for source in sources for run in _runs(source, model)]
    if bundle is not None:
        from layerscope.view.page.bundle import write_bundle

        path = write_bundle(shown, bundle)
    else:
        from layerscope.view.page.view import write_view

        folder = home(sources[0]) if len(sources) == 1 else Path()
        path = write_view(shown, out or folder / "view.html")
    print_line(f"page · {path}")
    if opened and has_browser():
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


def _runs(source: Path, model: str | None) -> "list[layerscope.analysis.analysed_run.AnalysedRun]":
    """A run of our own, or those of a folder of published files."""
    from layerscope.report.cited.sources import Sources
    from layerscope.run_folder import read_run

    if model is not None or not source.is_dir() or (source / "run.json").exists():
        return [read_run(source, model=model)]
    stems = Sources(source).stems
    return [read_run(source, model=stem) for stem in stems] if stems else [read_run(source)]


def has_browser() -> bool:
    """Whether a window can be opened here: not over a connection without a display, nor in a pipe."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))


@report_app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope report\n\nlayerscope report --out reports\n\n"
    "layerscope report --out reports --force"
)
@command()
def report(run: RunSource = None, model: OnlyModel = None, out: Out = None, force: Force = False) -> None:
    """Write the evaluation of a run, or of what `diff` found: every number with the file and line that shows it."""
    from layerscope.report.cited.markdown import markdown
    from layerscope.report.cited.report_files import write_report
    from layerscope.report.evaluation import evaluation

    source = run or newest()
    if (compared := _diff_file(source)) is not None:
        _report_on_diff(compared, out, force)
        return
    for evidence in readable(archive_for(source, out), model):
        path = (out or home(source)) / f"evaluation-{evidence.stem}.md"
        write_report(path, markdown(evaluation(evidence)), _version(), force=force)
        print_line(f"report · {path}")


def _diff_file(source: Path) -> Path | None:
    """The JSON of a comparison, where a source is such a folder."""
    from layerscope.analysis.diff_files import diff_file

    return diff_file(source)


def _report_on_diff(compared: Path, out: Path | None, force: bool) -> None:
    from layerscope.report.cited.markdown import markdown
    from layerscope.report.cited.report_files import write_report
    from layerscope.report.diffs import NAME, diff_report

    path = (out or compared.parent) / NAME
    write_report(path, markdown(diff_report(compared)), _version(), force=force)
    print_line(f"report · {path}")


@report_app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope compare runs/*\n\n"
    "layerscope compare runs/* --out comparisons/capitals\n\nlayerscope compare runs/* --out comparisons/again"
)
@command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Runs' folders, or folders of published files.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("comparison"),
) -> None:
    """Compare runs: a report across models, and a table of them as CSV and Parquet."""
    from layerscope.audit.audit_report import wrong_claims_of_reports
    from layerscope.record.store import new_folder
    from layerscope.report.cited.markdown import markdown
    from layerscope.report.cited.report_files import signed
    from layerscope.report.synthesis import synthesis
    from layerscope.report.synthesis.comparison_table import comparison_files, comparison_table

    with new_folder(out) as folder:
        archives = [archive_in(path, folder / "published") for path in runs]
        evidences = [evidence for archive in archives for evidence in readable(archive)]
        text = markdown(synthesis(evidences, wrong_claims_of_reports(archives)))
        (folder / CROSS_MODELS).write_text(signed(text, _version()), encoding="utf-8")
        for name, content in comparison_files(comparison_table(evidences)).items():
            (folder / name).write_bytes(content)
    for path in sorted(out.iterdir()):
        print_line(f"comparison · {path}")


@report_app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope brief\n\nlayerscope brief --out briefs\n\n"
    "layerscope brief --out briefs --force"
)
@command()
def brief(run: RunSource = None, model: OnlyModel = None, out: Out = None, force: Force = False) -> None:
    """Write what is needed to write about a run: facts with sources, rules, structure; as Markdown and JSON."""
    from layerscope.report.brief import brief as brief_of
    from layerscope.report.cited.report_files import write_new, write_report

    source = run or newest()
    for evidence in readable(archive_for(source, out), model):
        made = brief_of(evidence)
        folder = out or home(source)
        path, data = folder / f"brief-{evidence.stem}.md", folder / f"brief-{evidence.stem}.json"
        write_report(path, made.text, _version(), force=force)
        write_new(data, made.data.encode(), force=force)
        print_line(f"brief · {path}")
        print_line(f"brief · {data}")


@report_app.command(
    epilog="Examples (after `layerscope report --out reports`):\n\nlayerscope audit reports/evaluation-reference.md"
    "\n\nlayerscope audit reports/evaluation-reference.md --all\n\n"
    "layerscope audit reports/evaluation-reference.md --format json"
)
@command(formerly={"form": "format"})
def audit(
    report: Annotated[Path, typer.Argument(help="A report in Markdown, whoever wrote it.")],
    run: Annotated[
        list[Path] | None,
        typer.Option("--run", help="The run it is about; repeatable.", show_default="the newest in runs/"),
    ] = None,
    format: Annotated[str, typer.Option(help="table, json, or markdown (the report with remarks in it).")] = "table",
    everything: Annotated[bool, typer.Option("--all", help="Also list what is supported or undecided.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
    force: Force = False,
) -> None:
    """Check every source and number of a report against a run; exit code 1 when something is wrong."""
    if format not in FORMATS:
        raise RunError(f"There is no format '{format}'; choose from {', '.join(FORMATS)}.")
    if format == "table" and out is not None:
        raise RunError("A table goes to the terminal; to write a file choose --format json or markdown.")
    from layerscope.audit.audit_report import audit_report, read_report_file
    from layerscope.audit.output import annotated, audit_json, needs_mending
    from layerscope.terminal.audit_lines import audit_lines

    text = read_report_file(report)
    with read_only(run or [newest()]) as archives:
        result = audit_report(text, archives)
    if format == "table":
        print_parts(audit_lines(report.name, result, everything=everything))
    else:
        made = audit_json(report.name, result) if format == "json" else annotated(_decoded(text), result)
        _put(made, out, report, force)
    raise typer.Exit(1 if needs_mending(result) else 0)


@report_app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope verify\n\nlayerscope verify runs/*\n\n"
    "layerscope verify --help"
)
@command()
def verify(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs' folders, or folders of published files.", show_default="the newest in runs/"),
    ] = None,
    model: OnlyModel = None,
) -> None:
    """Recompute from its rows what a run's, or a diff's, files and reports state; exit code 1 when a file differs."""
    from layerscope.report.verify import verify as verify_run

    holds = True
    given = runs or [newest()]
    for compared in filter(None, map(_diff_file, given)):
        from layerscope.report.diffs.check import verify_diff

        verified = verify_diff(compared)
        print_parts(_verification(verified))
        holds &= verified.holds
    sources = [source for source in given if _diff_file(source) is None]
    with read_only(sources) as archives:
        for source, archive in zip(sources, archives, strict=True):
            for evidence in readable(archive, model):
                verified = verify_run(evidence, folder_of(source))
                print_parts(_verification(verified))
                holds &= verified.holds
    raise typer.Exit(0 if holds else 1)


def _verification(verified: "layerscope.report.verify.Verified") -> "Iterator[rich.console.RenderableType]":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, show_edge=False)
    for name in ("stated", "recomputed", "what, and where"):
        table.add_column(name, overflow="fold")
    for difference in verified.differences:
        place = Text(difference.what)
        place.append("" if difference.where is None else f"\n{difference.where}", style="dim")
        place.append("" if difference.known is None else f"\nknown: {difference.known}", style="dim")
        style = "red" if difference.known is None else "yellow"
        table.add_row(Text(difference.stated, style=style), Text(difference.derived), place)
    if verified.differences:
        yield table
    for note in verified.notes:
        yield Text(f"not checked · {note}", style="dim")
    values = sum(verified.checked.values())
    unknown = sum(difference.known is None for difference in verified.differences)
    known = len(verified.differences) - unknown
    outcome = "all hold"
    if verified.differences:
        outcome = f"{unknown + known} differ" + (f", {known} of them as known of published files" if known else "")
    yield Text(f"verify · {verified.model} · {values} values and lines of {len(verified.checked)} files: {outcome}")


def _version() -> str:
    from importlib.metadata import version

    return version("layerscope")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", errors="replace")


def _put(text: str, out: Path | None, report: Path, force: bool) -> None:
    from layerscope.report.cited.report_files import write_new

    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists() and out.samefile(report):
        raise RunError(f"{out} is the report itself; give another name for what the audit writes.")
    write_new(out, text.encode(), force=force)
    print_line(f"audit · {out}")
