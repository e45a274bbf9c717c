"""`layerscope look`: any prompt, no suite."""

import json
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from layerscope.cli.console import NARROWEST, folder_for_runs, free_name, print_line, quieten_transformers, watching
from layerscope.cli.options import command
from layerscope.cli.reports import has_browser
from layerscope.errors import LensError, SuiteError
from layerscope.looking.options import LookOptions
from layerscope.model.lean_imports import collection_paused

if TYPE_CHECKING:  # what the command works with is imported where it works, so that no help waits for it
    from layerscope.looking.look import Look
    from layerscope.model.causal_lm import CausalLM

Texts = Annotated[
    list[str] | None, typer.Argument(metavar="[TEXT]...", help="What the model continues; several, one after another.")
]


@command(
    last="device dtype memory revision adapter bos trust_remote_code",
    spelled={"lenses": "--lens", "template_options": "--template-option"},
)
def look(
    model: Annotated[str, typer.Argument(help="Hub id, GGUF file, or a folder with config.json and *.safetensors.")],
    texts: Texts = None,
    *,
    options: LookOptions,
    file: Annotated[Path | None, typer.Option(help="A file, each line of which is a text.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Take all of standard input as one text.")] = False,
    against: Annotated[str | None, typer.Option(help="Another text, shown after each with the difference.")] = None,
    against_model: Annotated[str | None, typer.Option(help="Another model, shown with the difference.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it all as JSON, an object a line.")] = False,
    save: Annotated[Path | None, typer.Option(help="Probe the texts too, and write the run into this folder.")] = None,
    show_page: Annotated[bool, typer.Option("--open", help="Probe the texts too, and open their page.")] = False,
) -> None:
    """Show what a model says after a text, and what each of its layers would say there."""
    began = time.perf_counter()
    if against is not None and against_model is not None:
        raise SuiteError("A look is set against another text or another model, but both came; give one of them.")
    if against_model is not None and options.lens_dir is not None:
        raise LensError("A fitted lens is of one model; leave --lens-dir out where two models are looked at.")
    given = _texts(texts or [], file, stdin)
    if save is not None:
        folder_for_runs(save, "--save")
    with collection_paused():
        from layerscope.probing.opening import opened

        quieten_transformers()
    first = opened(model, options)
    second = None if against_model is None else opened(against_model, replace(options, revision=None))
    for one, other in _looks(first, second, given, against, options):
        _print(one, other, as_json, every_layer=options.layers is not None)
    if not as_json:
        print_line(f"in {time.perf_counter() - began:.1f} s")
    if save is not None or show_page:
        _probe(first, given, options, save, show_page, quiet=as_json)


def _looks(
    first: "CausalLM", second: "CausalLM | None", given: Sequence[str], against: str | None, options: LookOptions
) -> "Iterator[tuple[Look, Look | None]]":
    """Each look and what it is set against, part by part as the memory allows."""
    from layerscope.looking.make import LookPlan, looks

    plan = LookPlan(first, given, options)
    other: Look | None = None
    if against is not None:
        with watching() as observer:
            (other,) = looks(first, [against], options, observer)
    for part in plan.parts:
        with watching() as observer:  # its bars are gone before anything is printed
            found = plan.looks(part, observer)
            others: Sequence[Look | None] = [other] * len(found)
            if second is not None:
                others = looks(second, given[part.prompts], options, observer)
        yield from zip(found, others, strict=True)


def _texts(given: Sequence[str], file: Path | None, stdin: bool) -> list[str]:
    """What is to be looked at.

    Raises:
        SuiteError: nothing, or a file that cannot be read.
    """
    texts = list(given)
    if file is not None:
        try:
            texts += [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"{file} should be a text file in UTF-8, but it cannot be read ({error}).") from error
    if stdin:
        try:
            texts.append(sys.stdin.buffer.read().decode("utf-8").removesuffix("\n"))
        except UnicodeDecodeError as error:
            raise SuiteError(f"Standard input should be text in UTF-8, but it is not ({error}).") from error
    if not texts:
        raise SuiteError('There is no text to look at; write it behind the model, as in: look MODEL "The capital of".')
    return texts


def _print(one: "Look", other: "Look | None", as_json: bool, *, every_layer: bool) -> None:
    from layerscope.looking.difference import difference, difference_as_json

    compared = None if other is None else difference(one, other)
    if as_json:
        whole = one.to_dict()
        if other is not None and compared is not None:
            whole |= {"against": other.to_dict(), "difference": difference_as_json(compared)}
        typer.echo(json.dumps(whole, ensure_ascii=False, allow_nan=False))
        return
    from layerscope.looking.difference import difference_screen
    from layerscope.looking.screen import look_screen

    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST)

    def parts() -> Iterator[object]:
        yield from look_screen(one, console.width, every_layer=every_layer)
        if other is not None and compared is not None:
            yield ""
            yield from look_screen(other, console.width, every_layer=every_layer)
            yield ""
            yield from difference_screen(compared, console.width, every_layer=every_layer)
        yield ""

    for part in parts():
        console.print(part)


def _probe(
    model: "CausalLM",
    texts: Sequence[str],
    options: LookOptions,
    save: Path | None,
    show_page: bool,
    *,
    quiet: bool,
) -> None:
    """Measure the texts in full, and write or show what a probe writes."""
    from layerscope.looking.probed import probed
    from layerscope.run_folder import default_folder_name
    from layerscope.view.page.view import write_view

    with watching() as observer:
        run = probed(model, texts, options, observer)
    parent = Path(tempfile.mkdtemp(prefix="layerscope-")) if save is None else save
    folder = free_name(parent / default_folder_name(run.record))
    run.save(folder)
    page = write_view([run], folder / "view.html")
    for line in (f"page · {page}", f"run folder · {folder}"):
        typer.echo(line, err=quiet)  # behind JSON nothing else belongs on stdout
    if show_page and has_browser():
        webbrowser.open(page.resolve().as_uri())
