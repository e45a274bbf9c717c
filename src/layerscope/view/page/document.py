"""What pages have in common: templates, style, scripts, the policy that lets nothing else in, whose file is whose."""

import base64
import hashlib
import os
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from layerscope.errors import RunError
from layerscope.report.cited.report_files import unwritable

MARKER = "<!-- layerscope view: written by layerscope, which may write it again -->"
"""Near the head of every page; a file without it is someone else's."""
_HEAD_BYTES = 1024
"""How far into a file the marker is looked for."""
ADVICE = "choose a folder that you may write to."
"""What to do where a page cannot be written."""


def check_ours(target: Path) -> None:
    """Refuse to write over what is not a page of ours.

    Raises:
        RunError: it is not, or it cannot be read.
    """
    if not os.path.lexists(target):
        return
    try:
        ours = target.is_file() and MARKER.encode() in _head(target)
    except OSError as error:
        raise unwritable(target, error, ADVICE) from error
    if not ours:
        raise RunError(f"{target} is already there and was not written as a view by layerscope; give another name.")


def _head(target: Path) -> bytes:
    with target.open("rb") as file:
        return file.read(_HEAD_BYTES)


def policy(*scripts: str, style: str) -> str:
    """Nothing may be loaded, and no script or style may run but those of this very text."""
    ran = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {ran}; style-src 'sha256-{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def environment() -> Environment:
    """The templates."""
    environment = Environment(
        loader=PackageLoader("layerscope.view.page", "assets"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["share"] = _share
    return environment


def _share(layer: int, n_layers: int) -> str:
    """A depth as a share of a line's length."""
    return f"{100 * layer / n_layers:.2f}%"


@cache
def asset(name: str) -> str:
    """A file of the page; line ends as HTML parsers make them, for the policy holds a hash of it."""
    text = (files("layerscope.view.page") / "assets" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def script_of(names: Iterable[str]) -> str:
    """Several scripts as one, in their order."""
    return "\n".join(asset(f"{name}.js") for name in names)


def package_version() -> str:
    """The version that writes; empty where the package is not installed."""
    try:
        return version("layerscope")
    except PackageNotFoundError:
        return ""
