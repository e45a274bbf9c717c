"""The command line: words to one call each; results to stdout, progress to stderr."""

import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from layerscope.errors import LayerscopeError, RunError
from layerscope.record.published.layout import EXTENDED, GENERATION_M, HEADLINE, Dialect
from layerscope.record.published.writer import write_published
from layerscope.record.run import Run, default_folder_name
from layerscope.record.store import new_folder
from layerscope.report.tables import milestone_table, problem_lines, run_tables
from layerscope.report.verdict import run_verdict

if TYPE_CHECKING:
    from layerscope.observer import Observer

app = typer.Typer(
    name="layerscope",
    help="Where in a language model's depth an answer becomes readable, and how far that may be trusted.",
    epilog="Examples:\n\nlayerscope probe\n\nlayerscope show\n\nlayerscope models",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

NARROWEST = 72
"""Columns below which a table is not squeezed."""
DIALECTS = {"extended": EXTENDED, "generation-m": GENERATION_M}
"""Ways of writing the published format, by their names here."""

Model = Annotated[
    str | None,
    typer.Argument(
        help="Hub id, or a folder with config.json, tokenizer and *.safetensors; the bundled model if left out."
    ),
]
Recorded = Annotated[
    Path | None,
    typer.Argument(
        help="A run's folder, or a folder or output-<M>.json of published files; the newest in runs/ if left out."
    ),
]
WhichModel = Annotated[
    str | None, typer.Option("--model", help="Which model, where a folder of published files holds several.")
]


@app.callback()
def _root() -> None:
    """Keeps `layerscope probe` a command even while it has few siblings."""


@app.command(
    epilog="Examples:\n\nlayerscope probe\n\nlayerscope probe --suite capitals-20 --positions last\n\n"
    "layerscope probe --suite berlin --lens logit,raw --top-k 10 --memory 2GiB --out runs"
)
def probe(
    model: Model = None,
    suite: Annotated[str, typer.Option(help="A built-in suite, or a .toml or .jsonl file.")] = "capitals",
    lens: Annotated[
        str | None, typer.Option(help="Lenses, comma between: logit,next_norm,raw (the protocol's own by default).")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="auto (all of the first prompt, the last of others; published: all), last, all.")
    ] = "auto",
    top_k: Annotated[int, typer.Option(help="How many of the largest logits a row lists.")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, or bfloat16 (CUDA only).")] = "auto",
    memory: Annotated[
        str | None, typer.Option(help="Working memory, as 4GiB; half of what is free by default (CUDA: nine tenths).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run's own folder is made.")] = Path("runs"),
    protocol: Annotated[
        str, typer.Option(help="Definitions: standard, or published (as the published tables).")
    ] = "standard",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    bos: Annotated[str, typer.Option(help="Start prompts with BOS: auto (by family), yes or no.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of every random generator; recorded.")] = 316,
    second_forward: Annotated[
        str, typer.Option(help="A second pass to see whether it repeats: auto (where it might not), always or off.")
    ] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint; recorded.")
    ] = False,
) -> None:
    """Probe a model with a suite: print what every layer says, give a verdict, and write a run folder."""
    with _mistakes_in_one_sentence():
        parent = _usable(out)
        # Imported here, so that help and mistakes need not wait for the tensor library.
        from layerscope.model.causal_lm import BUNDLED
        from layerscope.probing import probe as run_probe

        _quieten_transformers()
        with _watching() as observer:
            run = run_probe(
                BUNDLED if model is None else model,
                suite=suite,
                lenses=lens,
                positions=positions,
                top_k=top_k,
                protocol=protocol,
                device=device,
                dtype=dtype,
                memory=memory,
                revision=revision,
                trust_remote_code=trust_remote_code,
                bos=bos,
                seed=seed,
                second_forward=second_forward,
                observer=observer,
            )
        folder = _free_name(parent / default_folder_name(run.record))
        try:
            _save(run, folder)  # before any table, whose reader may go away (`| head`)
        except RunError:
            _print(_tables_and_verdict(run))  # all that is left of it
            raise
        _print(_tables_and_verdict(run))
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"run folder · {folder}", markup=False)


@app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope show\n\nlayerscope show --lens raw --prompt 1\n\n"
    "layerscope show --milestones --lens next_norm"
)
def show(
    run: Recorded = None,
    lens: Annotated[str | None, typer.Option(help="Which lens; the headline lens by default.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Only this prompt, counted from 1, without the verdict.")] = None,
    milestones: Annotated[
        bool, typer.Option("--milestones", help="Every milestone of one prompt in place of the tables by layer.")
    ] = False,
    model: WhichModel = None,
) -> None:
    """Print the tables and the verdict of a finished run again, or its milestones."""
    with _mistakes_in_one_sentence():
        found = Run.read(_chosen(run), model=model)
        if milestones:
            _print(milestone_table(found, lens=lens, prompt=prompt))
        else:
            _print(_tables_and_verdict(found, lens=lens, prompt=prompt))
        _print(problem_lines(found))


@app.command(
    epilog="Examples (after `layerscope probe`):\n\nlayerscope export --published\n\n"
    "layerscope export --published --out tables\n\n"
    "layerscope export --published --dialect extended --out runs/tables"
)
def export(
    run: Recorded = None,
    published: Annotated[bool, typer.Option("--published", help="As files in the published format.")] = False,
    dialect: Annotated[
        str, typer.Option(help="extended (all that the run holds), or generation-m (what published files hold).")
    ] = "extended",
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; `published` in the run's folder if left out.")
    ] = None,
    model: WhichModel = None,
) -> None:
    """Write a finished run as files for other programs, into a new folder."""
    with _mistakes_in_one_sentence():
        if not published:
            raise RunError("There is one format to export a run to; ask for it with --published.")
        written_as = _dialect(dialect)
        source = _chosen(run)
        found = Run.read(source, model=model)
        folder = out or (source if source.is_dir() else source.parent) / "published"
        with new_folder(folder) as partial:
            files = write_published(found, partial, written_as)
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"published files · {folder} · {len(files)} files", markup=False)


@app.command(epilog="Examples:\n\nlayerscope models\n\nlayerscope models --help\n\nlayerscope models > families.txt")
def models() -> None:
    """List the families that are known, and by what test each is verified."""
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
        "identity check as judge."
    )


def _newest(parent: Path) -> Path:
    """The run that was written last."""
    # A folder whose name is hidden is one that a killed process left unfinished.
    runs = [record.parent for record in parent.glob("*/run.json") if not record.parent.name.startswith(".")]
    if not runs:
        raise RunError(f"There is no run in '{parent}'; give a run's folder, or make one with `layerscope probe`.")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime_ns)


def _chosen(run: Path | None) -> Path:
    return _newest(Path("runs")) if run is None else run


def _dialect(name: str) -> Dialect:
    if name not in DIALECTS:
        raise RunError(f"There is no dialect '{name}'; choose from {', '.join(DIALECTS)}.")
    return DIALECTS[name]


def _save(run: Run, folder: Path) -> None:
    """Write a new run; one by the published definitions as published files too."""
    said = run.record.protocol
    dialect = GENERATION_M if (said.name, said.headline_lens) == ("published", HEADLINE) else None
    if said.name == "published" and dialect is None:
        _warn(f"no published files are written: theirs is lens {HEADLINE}, and this run has {said.headline_lens} first")
    run.save(folder, published=dialect)


def _tables_and_verdict(run: Run, lens: str | None = None, prompt: int | None = None) -> Iterator[RenderableType]:
    """The verdict comes last, for it is what remains on the screen; not after one prompt, for it is on them all."""
    yield from run_tables(run, lens=lens, prompt=prompt)
    if prompt is None:
        yield ""
        yield from run_verdict(run)


def _print(parts: Iterable[RenderableType]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST)  # a wrapped line still has its numbers, an ellipsis has none
    for part in parts:
        console.print(part)


def _usable(out: Path) -> Path:
    """The folder for runs, refused before any work where nothing could be written to it."""
    if (out / "run.json").exists():
        raise RunError(f"'{out}' is a run's own folder; give the folder that holds runs, such as '{out.parent}'.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(
            f"The folder '{out}' cannot be made or written to ({reason}); give another with --out."
        ) from error
    return out


def _free_name(folder: Path) -> Path:
    """The name, or the next one that is not taken: what was measured must not be lost to a clash of seconds."""
    number, free = 2, folder
    while free.exists():
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free


def _warn(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {sentence}", style="yellow", markup=False)


@contextmanager
def _mistakes_in_one_sentence() -> Iterator[None]:
    try:
        yield
    except LayerscopeError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None


def _quieten_transformers() -> None:
    import transformers

    transformers.logging.set_verbosity_error()


@contextmanager
def _watching() -> Iterator["Observer"]:
    """Bars on a terminal, plain lines elsewhere; on stderr either way."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        yield LogLines()
        return
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(console, progress)


class Bars:
    """An observer that draws one bar over blocks and one over the vocabulary."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._tasks: dict[str, TaskID] = {}

    def plan(self, text: str) -> None:
        """Print it above the bars."""
        self._console.print(text, soft_wrap=True, markup=False)

    def blocks(self, done: int, total: int) -> None:
        """Move the bar over blocks."""
        self._move("blocks", done, total)

    def vocabulary(self, done: int, total: int) -> None:
        """Move the bar over the vocabulary."""
        self._move("vocabulary", done, total)

    def _move(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)


class LogLines:
    """An observer that logs a line now and then."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._log = logging.getLogger("layerscope")
        self._said = time.monotonic()

    def plan(self, text: str) -> None:
        """Log it."""
        self._log.info(text)

    def blocks(self, done: int, total: int) -> None:
        """Log progress over blocks."""
        self._say("blocks", done, total)

    def vocabulary(self, done: int, total: int) -> None:
        """Log progress over the vocabulary."""
        self._say("vocabulary", done, total)

    def _say(self, name: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._said > self.EVERY_S:
            self._said = time.monotonic()
            self._log.info("%s %d of %d", name, done, total)


def main() -> None:
    """Entry point of the `layerscope` command."""
    app()


if __name__ == "__main__":
    main()
