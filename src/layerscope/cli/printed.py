"""What `probe` and `show` print of a run: a summary, its tables, the verdict alone as JSON, or a path."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.core

from layerscope.cli.console import print_parts, width
from layerscope.errors import RunError

if TYPE_CHECKING:  # what a command works with is imported where it works, so that no help waits for it
    import rich.console

    from layerscope.run import Run

TABLES_SHOWN = 12
"""Prompts whose tables are printed where no number is given."""


@dataclass(frozen=True)
class PrintOptions:
    """How much of a run is printed."""

    tables: int | None = None
    """Also a table by layer for each of the first N prompts; without a number behind it of the first 12."""
    details: bool = False
    """The verdict with all that it rests on."""
    quiet: bool = False
    """Only the path of the run's folder."""
    json: bool = False
    """Only the verdict, as JSON: milestones, statistics and guidance."""

    def check(self, **others_given: object) -> None:
        """Refuse what cannot be meant together.

        Args:
            others_given: further options that say what is printed, by name; those that are not given are None or False.

        Raises:
            RunError: naming the options.
        """
        alone = [name for name in ("quiet", "json") if getattr(self, name)]
        asked = {"tables": self.tables, "details": self.details, **others_given}
        others = [name for name, value in asked.items() if value is not None and value is not False]
        if len(alone) > 1 or (alone and others):
            both = " and ".join(f"--{name}" for name in (*alone, *others))
            raise RunError(f"{both} do not go together: --quiet prints a path alone, --json the verdict alone.")
        if self.tables is not None and self.tables < 1:
            raise RunError(f"--tables takes a number of prompts from 1 on, but {self.tables} came.")


class TablesMayBeBare(typer.core.TyperCommand):
    """A command whose `--tables` may stand without a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the number where none follows."""
        return super().parse_args(ctx, list(_with_number(args)))


def _with_number(args: Sequence[str]) -> Iterator[str]:
    for place, word in enumerate(args, start=1):
        yield word
        after = "".join(args[place : place + 1])
        # A run's folder may be named by a number too.
        if word == "--tables" and (not after.lstrip("-").isdecimal() or Path(after).exists()):
            yield str(TABLES_SHOWN)


def print_run(
    run: "Run", options: PrintOptions, lens: str | None = None, prompt: int | None = None, *, everything: bool = False
) -> None:
    """Print a run, or one prompt of it.

    Args:
        run: what to print.
        options: how much of it.
        lens: under which lens layers are named; the headline lens where not given.
        prompt: only the table of this one, counted from 1.
        everything: every prompt, not the first ones alone.

    Raises:
        RunError: the run has no such lens or prompt.
    """
    if options.json:
        from layerscope.analysis.verdict_json import verdict_text

        typer.echo(verdict_text(run.verdict, run.record), nl=False)
        return
    print_parts(_parts(run, options, lens, prompt, everything=everything))


def _parts(
    run: "Run", options: PrintOptions, lens: str | None, prompt: int | None, *, everything: bool
) -> "Iterator[rich.console.RenderableType]":
    """The verdict comes last, for it is what remains on the screen; not after one prompt, for it is on them all."""
    from layerscope.terminal.fact_table import fact_table
    from layerscope.terminal.run_tables import identity_line, run_lines, run_tables
    from layerscope.terminal.verdict import run_verdict

    if options.tables is not None or prompt is not None:
        yield from run_tables(run, lens=lens, prompt=prompt, most=None if everything else options.tables)
    if prompt is not None:
        yield identity_line(run)
    else:
        yield from fact_table(run, lens=lens, everything=everything, width=width())
        yield from run_lines(run)
        yield ""
        yield from run_verdict(run, details=options.details)
