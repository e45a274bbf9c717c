"""Reports as files: whole under their final name or not there at all, and never over what somebody else wrote."""

import contextlib
import hashlib
import os
import re
import secrets
from pathlib import Path

from layerscope.errors import RunError

_MARK = "<!-- written by layerscope {version}, sha256 of what follows: {digest} -->\n"
_ADVICE = "choose a folder that you may write to, on a disk with room, with --out."
_MARKED = re.compile(r"<!-- written by layerscope (\S+), sha256 of what follows: ([0-9a-f]{64}) -->\r?\n")


def signed(text: str, version: str) -> str:
    """A text with a first line by which it is known again, and known to be unchanged."""
    return _MARK.format(version=version, digest=_digest(text)) + text


def body_of(text: str) -> str | None:
    """What follows the first line of a text that layerscope wrote; None for any other text."""
    mark = _MARKED.match(text)
    return None if mark is None else text[mark.end() :]


def is_untouched(text: str) -> bool:
    """Whether layerscope wrote it and nobody has changed it since."""
    mark = _MARKED.match(text)
    return mark is not None and _digest(text[mark.end() :]) == mark[2]


def write_report(path: Path, text: str, version: str, *, force: bool = False) -> None:
    """Write a signed report; one that is there already is replaced only if nobody has changed it since.

    Args:
        path: where to; its folder is made where it is missing.
        text: the report.
        version: of layerscope.
        force: replace whatever is there.

    Raises:
        RunError: a file of that name is there that layerscope did not write or that was changed since, or the place
            cannot be written to.
    """
    if not force and os.path.lexists(path) and not _replaceable(path):
        raise RunError(
            f"{path} is there already, and somebody wrote or changed it; move it away, give another folder with --out, "
            "or replace it with --force."
        )
    write_whole(path, signed(text, version).encode())


def write_new(path: Path, content: bytes, *, force: bool = False) -> None:
    """Write a file that cannot be signed; one that is there is replaced by the same content, or by force.

    Raises:
        RunError: another file of that name is there, or the place cannot be written to.
    """
    if not force and os.path.lexists(path) and not _holds(path, content):
        raise RunError(f"{path} is there already and holds something else; give another name, or use --force.")
    write_whole(path, content)


def write_whole(path: Path, content: bytes, advice: str = _ADVICE) -> None:
    """Write a file that has its name only when it is whole; whatever had it before is replaced.

    Args:
        path: where to; its folder is made where it is missing.
        content: of the file.
        advice: what to do where the place cannot be written to.

    Raises:
        RunError: the place cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise unwritable(path, error, advice) from error
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what matters
            partial.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError, advice: str) -> RunError:
    """The error of a place that cannot be written to."""
    return RunError(f"{path} could not be written ({error.strerror or error}); {advice}")


def _replaceable(path: Path) -> bool:
    try:
        return is_untouched(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
