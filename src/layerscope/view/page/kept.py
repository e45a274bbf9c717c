"""Texts that take seconds to make and are the same for every page: kept in the user's cache between commands."""

import hashlib
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def kept_text(name: str, make: Callable[[], str]) -> str:
    """A text as it was made before, or made now and kept.

    What is kept begins with its own hash, so that a damaged file is made again. Where nothing can be written, nothing
    is kept.

    Args:
        name: what it is, with the version of whatever makes it; part of a file's name.
        make: makes it.
    """
    file = _folder() / f"{name}.txt"
    try:
        digest, _, text = file.read_bytes().decode().partition("\n")
    except (OSError, UnicodeDecodeError):
        digest = text = ""
    if digest and digest == _digest(text):
        return text
    text = make()
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(f"{_digest(text)}\n{text}".encode())
        partial.replace(file)
    except OSError:
        with suppress(OSError):  # it may not be there
            partial.unlink()
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _folder() -> Path:
    """Of the user's caches, as the system has it: XDG_CACHE_HOME, ~/Library/Caches or LOCALAPPDATA."""
    stated = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return (Path(stated) if stated else usual) / "layerscope"
