"""Texts that take seconds to make and are the same for every page: kept in the user's cache between commands."""

import hashlib
import secrets
from collections.abc import Callable
from contextlib import suppress

from layerscope.cache_folder import cache_folder


def kept_text(name: str, make: Callable[[], str]) -> str:
    """A text as it was made before, or made now and kept.

    What is kept begins with its own hash, so that a damaged file is made again. Where nothing can be written, nothing
    is kept.

    Args:
        name: what it is, with the version of whatever makes it; part of a file's name.
        make: makes it.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    file = folder / f"{name}.txt"
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
