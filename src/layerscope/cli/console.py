"""What all commands share: progress and mistakes on stderr, tables on stdout, a folder that can be written to."""

import logging
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from layerscope.errors import LayerscopeError, RunError

NARROWEST = 72
"""Columns below which a table is not squeezed."""


def width() -> int:
    """Columns that results may take; a wrapped line still has its numbers, an ellipsis has none."""
    return max(Console().width, NARROWEST)


def print_parts(parts: Iterable[RenderableType]) -> None:
    """Results, one after another, to stdout."""
    console = Console(highlight=False)
    console.width = width()
    for part in parts:
        console.print(part)


def print_line(line: str, *, err: bool = False) -> None:
    """One line to stdout, or to stderr, never wrapped: it may be a path that someone copies."""
    Console(stderr=err, highlight=False, soft_wrap=True).print(line, markup=False)


def warn(sentence: str) -> None:
    """A caution to stderr; the work goes on."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {sentence}", style="yellow", markup=False)


@contextmanager
def mistakes_in_one_sentence() -> Iterator[None]:
    """An error of ours ends the command with its sentence and exit code 2, without a traceback."""
    try:
        yield
    except LayerscopeError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(2) from None


def folder_for_runs(out: Path, option: str = "--out") -> Path:
    """The folder for runs, refused before any work where nothing could be written to it.

    Raises:
        RunError: it is a run's own, or cannot be made or written to.
    """
    if (out / "run.json").exists():
        raise RunError(f"'{out}' is a run's own folder; give the folder that holds runs, such as '{out.parent}'.")
    return usable_folder(out, option)


def usable_folder(out: Path, option: str = "--out") -> Path:
    """A folder for results, made if it has to be; refused before any work where nothing could be written to it.

    Args:
        out: the folder.
        option: by which it was given.

    Raises:
        RunError: it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(
            f"The folder '{out}' cannot be made or written to ({reason}); give another with {option}."
        ) from error
    return out


def free_name(folder: Path) -> Path:
    """The name, or the next one that is not taken: what was measured must not be lost to a clash of seconds."""
    number, free = 2, folder
    while free.exists():
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free


def quieten_transformers() -> None:
    """Its advice is not for the users of a command."""
    import transformers

    transformers.logging.set_verbosity_error()


class _Observer(ABC):
    """An observer of a probe or a fit for which all kinds of work are alike."""

    @abstractmethod
    def _move(self, name: str, done: int, total: int) -> None:
        """So much of one kind of work is done."""

    def tokens(self, done: int, total: int) -> None:
        """Tokens of text that are read."""
        self._move("tokens", done, total)

    def blocks(self, done: int, total: int) -> None:
        """Blocks of the model that have run."""
        self._move("blocks", done, total)

    def vocabulary(self, done: int, total: int) -> None:
        """Ids of the vocabulary that have been swept."""
        self._move("vocabulary", done, total)

    def patches(self, done: int, total: int) -> None:
        """Blocks that have run on residuals written into other runs."""
        self._move("patches", done, total)


class Bars(_Observer):
    """An observer of a probe or a fit that draws one bar for each kind of work.

    What comes when the vocabulary is swept has no bar of its own, and is named.
    """

    def __init__(self, console: Console, progress: Progress, afterwards: str | None) -> None:
        self._console, self._progress, self._afterwards = console, progress, afterwards
        self._tasks: dict[str, TaskID] = {}

    def plan(self, text: str) -> None:
        """Print it above the bars."""
        self._console.print(text, soft_wrap=True, markup=False)

    def layer(self, layer: int, summary: str) -> None:
        """Print it above the bars."""
        self._console.print(f"layer {layer} · {summary}", soft_wrap=True, markup=False)

    def _move(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        if name == "vocabulary" and self._afterwards is not None:
            self._swept(self._afterwards, done == total)

    def _swept(self, name: str, at_last: bool) -> None:
        if at_last and name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None)
        elif name in self._tasks:  # another model is swept, such as a twin with shuffled weights
            self._progress.update(self._tasks[name], visible=at_last)


class LogLines(_Observer):
    """An observer of a probe or a fit that logs a line now and then."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._log = logging.getLogger("layerscope")
        self._last = time.monotonic()

    def plan(self, text: str) -> None:
        """Log it."""
        self._log.info(text)

    def layer(self, layer: int, summary: str) -> None:
        """Log it."""
        self._log.info("layer %d · %s", layer, summary)

    def _move(self, name: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._last > self.EVERY_S:
            self._last = time.monotonic()
            self._log.info("%s %d of %d", name, done, total)


@contextmanager
def watching(afterwards: str | None = None) -> Iterator[Bars | LogLines]:
    """Bars on a terminal, plain lines elsewhere; on stderr either way.

    Args:
        afterwards: what is done when the vocabulary is swept, in a word.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        yield LogLines()
        return
    with _progress(console, MofNCompleteColumn()) as progress:
        yield Bars(console, progress, afterwards)


@contextmanager
def working(name: str) -> Iterator[None]:
    """Say on a terminal's stderr what is being done where no numbers tell it, and for how long."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield
        return
    with _progress(console) as progress:
        progress.add_task(name, total=None)
        yield


def _progress(console: Console, *counts: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description:>10}"), BarColumn(), *counts, TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)
