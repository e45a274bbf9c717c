"""`layerscope bakeoff`: lenses held against each other."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from layerscope.bundled import BUNDLED
from layerscope.cli.console import NARROWEST, folder_for_runs, free_name, print_line, quieten_transformers, watching
from layerscope.cli.options import command
from layerscope.model.lean_imports import collection_paused
from layerscope.probing.options import BakeoffOptions


@command(last="device dtype memory out revision adapter bos seed trust_remote_code", spelled={"lenses": "--lens"})
def bakeoff(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, GGUF file, or a folder with config.json and *.safetensors.",
            show_default="the bundled model",
        ),
    ] = None,
    *,
    options: BakeoffOptions,
    out: Annotated[Path, typer.Option(help="Folder in which the bake-off's own folder is made.")] = Path("bakeoffs"),
    page: Annotated[
        Path | None, typer.Option(help="Write one page too, with the table and charts, into this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, with intervals.")] = False,
) -> None:
    """Hold a model's lenses against each other: how well and early each reads, and whether the model uses it."""
    parent = folder_for_runs(out)
    if page is not None:
        from layerscope.view.page.document import check_ours

        check_ours(page)  # before the work, not after it
    options = options.with_suite_read()
    with collection_paused():
        from layerscope.probing.bakeoff import bakeoff as held
        from layerscope.run_folder import default_folder_name
        from layerscope.terminal.bakeoff_table import bakeoff_table

        quieten_transformers()
    with watching() as observer:
        found = held(BUNDLED if model is None else model, observer=observer, **vars(options))
    folder = free_name(parent / default_folder_name(found.run.record))
    found.save(folder)
    if page is not None:
        from layerscope.view.page.bakeoff_page import write_bakeoff_page

        print_line(f"page · {write_bakeoff_page(found.summary, page)}", err=as_json)
    if as_json:
        typer.echo(found.json, nl=False)
    else:
        console = Console(highlight=False)
        console.width = max(console.width, NARROWEST)
        for part in bakeoff_table(found.summary):
            console.print(part, markup=False)
    print_line(f"bake-off · {folder}", err=as_json)
