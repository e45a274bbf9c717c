"""`layerscope serve`: the explorer, a page of this machine."""

import logging
import sys
import webbrowser
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from layerscope.cli.console import print_line, quieten_transformers, warn
from layerscope.cli.options import command
from layerscope.cli.reports import has_browser
from layerscope.errors import LayerscopeError
from layerscope.model.lean_imports import collection_paused
from layerscope.serving.options import ServeOptions

NEEDED = ("starlette", "uvicorn")
"""Packages of the extra `serve`."""


@command(last="device dtype memory revision adapter bos trust_remote_code")
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Hub ids, GGUF files, or folders with config.json and *.safetensors.",
            show_default="the bundled model",
        ),
    ] = None,
    *,
    options: ServeOptions,
    port: Annotated[int, typer.Option(help="Where it listens; 0 for a port that is free.", min=0, max=65535)] = 0,
    host: Annotated[
        str, typer.Option(help="Address that it listens on; any but this one can be reached from other machines.")
    ] = "127.0.0.1",
    show_page: Annotated[bool, typer.Option("--open/--no-open", help="Open it, where there is a browser.")] = True,
) -> None:
    """Explore models in a browser: type a text, and see what every layer would say."""
    _check_extra()
    with collection_paused():
        from layerscope.serving.server import Server, address_of, explorer_of, is_loopback, listening

        quieten_transformers()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    given: list[str | Path] = list(models or [])
    with listening(host, port) as listener:  # before models are opened, which takes longer
        explorer = explorer_of(given, host, options)
        if not is_loopback(host):
            warn(
                f"'{host}' can be reached from other machines, and what they send and are sent is not encrypted; who "
                "has the address with its token can use this machine's models"
            )
        address = address_of(listener, host, explorer.token)
        print_line(f"explorer · {address}")
        print_line("Ctrl-C ends it")
        if show_page and has_browser():
            webbrowser.open(address)  # connections wait from now on, until they are answered
        with suppress(KeyboardInterrupt):  # raised again by the server, once it has ended everything
            Server(explorer).run([listener])
    print_line("explorer ended")


def _check_extra() -> None:
    """Refuse before any work where the extra is not installed.

    Raises:
        LayerscopeError: a package is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise LayerscopeError(
            f"Serving needs {' and '.join(missing)}, which come with an extra; install it with "
            "pip install 'layerscope[serve]'."
        )
