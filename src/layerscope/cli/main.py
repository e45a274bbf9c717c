"""The command line: words to one call each; results to stdout, progress to stderr."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerscope.cli.bakeoff import bakeoff
from layerscope.cli.console import (
    folder_for_runs,
    free_name,
    print_line,
    print_parts,
    quieten_transformers,
    warn,
    watching,
    working,
)
from layerscope.cli.diff import diff
from layerscope.cli.evidence import home, newest
from layerscope.cli.lenses import fit_app, lens_app
from layerscope.cli.look import look
from layerscope.cli.options import Model, RunSource, command
from layerscope.cli.printed import PrintOptions, TablesMayBeBare, print_run
from layerscope.cli.reports import report_app
from layerscope.cli.serve import serve
from layerscope.errors import RunError
from layerscope.model.lean_imports import collection_paused, lean_imports
from layerscope.probing.options import RENAMED, ProbeOptions
from layerscope.progress import Observer, Silent

if TYPE_CHECKING:  # what a command works with is imported where it works, so that no help waits for it
    import layerscope.published.layout
    import layerscope.run

app = typer.Typer(
    name="layerscope",
    help="What a language model answers, from which depth on it can be decoded, and how far to trust that.",
    epilog="Examples:\n\nlayerscope probe\n\nlayerscope show\n\nlayerscope models",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(
    epilog='Examples:\n\nlayerscope look MODEL "The capital of Germany is" --answer Berlin\n\n'
    'layerscope look MODEL "The capital of Germany is" --against "The capital of France is" --track Berlin,Paris\n\n'
    'layerscope look MODEL "Name a city." --chat --json'
)(look)
app.command(
    epilog="Examples:\n\nlayerscope bakeoff\n\nlayerscope bakeoff MODEL --suite capitals-20 --lens-dir lenses\n\n"
    "layerscope bakeoff MODEL --lens raw,logit --page bakeoff.html"
)(bakeoff)
app.command(
    epilog="Examples:\n\nlayerscope diff MODEL model-Q4_K_M.gguf\n\n"
    "layerscope diff MODEL FINE-TUNED --suite facts.toml --page diff.html\n\n"
    "layerscope diff MODEL --adapter lora --modules --details\n\n"
    "layerscope diff MODEL QUANTISED --fail-above kl_mean=0.05,flips=0.02"
)(diff)
app.command(
    epilog="Examples:\n\nlayerscope serve MODEL\n\nlayerscope serve MODEL OTHER --lens-dir lenses\n\n"
    "layerscope serve --port 8421 --no-open"
)(serve)
app.add_typer(fit_app, name="fit")
app.add_typer(lens_app, name="lens")


ModelInFolder = Annotated[
    str | None, typer.Option("--model", help="Which model, where a folder of published files holds several.")
]


@app.callback()
def _root() -> None:
    """Keeps `layerscope probe` a command even while it has few siblings."""


@app.command(
    cls=TablesMayBeBare,
    epilog="Examples:\n\nlayerscope probe\n\nlayerscope probe --suite capitals-20 --positions last\n\n"
    "layerscope probe --suite berlin --lens logit,raw --top-k 10 --memory 2GiB --out runs",
)
@command(
    last="device dtype memory out protocol revision adapter bos seed second_forward trust_remote_code",
    spelled={"lenses": "--lens", "template_options": "--template-option"},
    formerly=RENAMED,
)
def probe(
    *,
    model: Model = None,
    options: ProbeOptions,
    out: Annotated[Path, typer.Option(help="Folder in which to make the run's own folder.")] = Path("runs"),
    printed: PrintOptions,
) -> None:
    """Probe a model with a suite: print facts and verdict, and write a run folder with its page."""
    printed.check()
    parent = folder_for_runs(out)
    options = options.with_suite_read()
    # Imported here, so that help and mistakes, those in a suite too, need not wait for the tensor library.
    with collection_paused():
        from layerscope.bundled import BUNDLED
        from layerscope.probing.probe import probe as run_probe
        from layerscope.run_folder import default_folder_name

        quieten_transformers()
    observing = nullcontext(Silent()) if printed.quiet else watching("statistics")
    with observing as observer:
        run = run_probe(BUNDLED if model is None else model, observer=_PageAhead(observer), **vars(options))
        run.verdict  # noqa: B018  # found here, while its name stands on the screen
    folder = free_name(parent / default_folder_name(run.record))
    try:
        _save(run, folder)  # before any table, whose reader may go away (`| head`)
    except RunError:
        print_run(run, replace(printed, quiet=False))  # all that is left of it
        raise
    if not printed.quiet:
        print_run(run, printed)
    _finish(run, folder, printed)


def _finish(run: "layerscope.run.Run", folder: Path, printed: PrintOptions) -> None:
    """Draw the page, and say where everything is; on stderr where stdout is the verdict's alone."""
    from layerscope.view.page.view import write_view

    lines = [f"run folder · {folder}"]
    try:
        with nullcontext() if printed.quiet else working("page"):
            lines.insert(0, f"page · {write_view([run], folder / 'view.html')}")
    except RunError as error:  # the run itself is safe
        warn(str(error))
    for line in [str(folder)] if printed.quiet else lines:
        print_line(line, err=printed.json)


@app.command(
    cls=TablesMayBeBare,
    epilog="Examples (after `layerscope probe`):\n\nlayerscope show\n\nlayerscope show --lens raw --prompt 1\n\n"
    "layerscope show --milestones --lens next_norm",
)
@command()
def show(
    run: RunSource = None,
    *,
    lens: Annotated[str | None, typer.Option(help="Lens to show.", show_default="the headline lens")] = None,
    prompt: Annotated[
        int | None, typer.Option(help="Only this prompt's table by layer, counted from 1, without the verdict.")
    ] = None,
    milestones: Annotated[
        bool, typer.Option("--milestones", help="Every milestone of one prompt, and nothing else.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Every prompt, not the first facts alone; with --tables, every table.")
    ] = False,
    printed: PrintOptions,
    model: ModelInFolder = None,
) -> None:
    """Print facts and verdict of a finished run, its tables by layer, or its milestones."""
    if milestones and (printed.tables is not None or printed.details or everything):
        raise RunError("--milestones prints those of one prompt alone; leave --tables, --details and --all out.")
    printed.check(lens=lens, prompt=prompt, milestones=milestones, all=everything)
    from layerscope.run import Run
    from layerscope.terminal.run_tables import milestone_table, problem_lines

    source = run or newest()
    finished = Run.read(source, model=model)
    if printed.quiet:
        print_line(str(source))
        return
    if milestones:
        print_parts(milestone_table(finished, lens=lens, prompt=prompt))
    else:
        print_run(finished, printed, lens, prompt, everything=everything)
    if not printed.json:
        print_parts(problem_lines(finished))


@app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope export --published\n\n"
    "layerscope export --published --out tables\n\n"
    "layerscope export --published --dialect extended --out runs/tables"
)
@command()
def export(
    run: RunSource = None,
    published: Annotated[bool, typer.Option("--published", help="As files in the published format.")] = False,
    dialect: Annotated[
        str, typer.Option(help="extended (all that the run holds), or generation-m (what published files hold).")
    ] = "extended",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to make.", show_default="published in the run's folder; for published files, here"),
    ] = None,
    model: ModelInFolder = None,
) -> None:
    """Write a finished run as files for other programs, into a new folder."""
    if not published:
        raise RunError("There is one format to export a run to; ask for it with --published.")
    written_as = _dialect(dialect)
    from layerscope.published.write.writer import write_published
    from layerscope.record.store import new_folder
    from layerscope.run import Run

    source = run or newest()
    finished = Run.read(source, model=model)
    folder = out or home(source) / "published"
    with new_folder(folder) as partial:
        files = write_published(finished, partial, written_as)
    print_line(f"published files · {folder} · {len(files)} files")


app.registered_commands += report_app.registered_commands


@app.command(epilog="Examples:\n\nlayerscope models\n\nlayerscope models --help\n\nlayerscope models > families.txt")
def models() -> None:
    """List the families that are known, and by what test each is verified."""
    from rich.console import Console
    from rich.table import Table

    from layerscope.model.families import FAMILIES, VERIFIED_BY

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("family", "BOS", "head", "published models"):
        table.add_column(name, overflow="fold")
    for family in FAMILIES.values():
        head = [f"x {family.scale}" if family.scale else "", f"/ {family.divisor}" if family.divisor else ""]
        head += ["softcap" if family.softcap else ""]
        table.add_row(family.model_type, family.bos, " ".join(filter(None, head)), family.published)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\nEach is verified by {VERIFIED_BY}: residuals and logits equal Transformers' own on small random models "
        "with every special feature of the family switched on. Any other causal language model is tried, with the "
        "identity check as judge; docs/models.md lists what becomes of every type that Transformers knows."
    )


def _dialect(name: str) -> "layerscope.published.layout.Dialect":
    from layerscope.published.layout import EXTENDED, GENERATION_M

    dialects = {"extended": EXTENDED, "generation-m": GENERATION_M}
    if name not in dialects:
        raise RunError(f"There is no dialect '{name}'; choose from {', '.join(dialects)}.")
    return dialects[name]


class _PageAhead(Observer):
    """Hands on what it is told, and loads what the page is drawn with while the model runs and Python is idle."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._begun = False

    def plan(self, text: str) -> None:
        self._observer.plan(text)

    def blocks(self, done: int, total: int) -> None:
        if not self._begun:
            self._begun = True
            threading.Thread(target=import_module, args=("layerscope.view.charts.chart_spec",), daemon=True).start()
        self._observer.blocks(done, total)

    def vocabulary(self, done: int, total: int) -> None:
        self._observer.vocabulary(done, total)


def _save(run: "layerscope.run.Run", folder: Path) -> None:
    """Write a new run; one by the published definitions as published files too."""
    from layerscope.published.layout import GENERATION_M, HEADLINE

    protocol = run.record.protocol
    first, published = protocol.headline_lens, protocol.name == "published"
    if published and first != HEADLINE:
        warn(f"no published files are written: theirs is lens {HEADLINE}, and this run has {first} first")
    run.save(folder, published=GENERATION_M if published and first == HEADLINE else None)


def main() -> None:
    """Entry point of the `layerscope` command."""
    lean_imports()  # this process is ours alone
    app()


if __name__ == "__main__":
    main()
