"""Layers and positions in words, as in `0,4,8-`."""

import re
from collections.abc import Callable

from layerscope.errors import LayerscopeError

_RANGE = re.compile(r"(\d+)(?:(-)(\d+)?)?")


def places(words: str, n: int, what: str) -> tuple[int, ...]:
    """The places that are meant, in order and each once.

    Args:
        words: numbers and ranges, comma-separated; a range without an end goes on to the last.
        n: how many there are, counted from 0.
        what: what they are, for the sentence: "layers".

    Raises:
        LayerscopeError: words that are none of this, or a place that there is not.
    """
    chosen: set[int] = set()
    for word in words.split(","):
        match = _RANGE.fullmatch(word.strip())
        if match is None:
            raise LayerscopeError(
                f"'{words}' names no {what}; write numbers and ranges from 0 to {n - 1}, as in 0,4,8- or 5-9."
            )
        first = int(match[1])
        last = first if match[2] is None else n - 1 if match[3] is None else int(match[3])
        if max(first, last) >= n:
            raise LayerscopeError(f"The {what} are counted from 0 to {n - 1} here, but '{word.strip()}' came.")
        if last < first:
            raise LayerscopeError(f"A range of {what} should not end before it begins, as '{word.strip()}' does.")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def chosen_places(words: str | None, n: int, what: str, unasked: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """The same, of words that may also be `all`, `last` or missing; raises like `places`."""
    if words is None:
        return unasked()
    if words == "all":
        return tuple(range(n))
    return (n - 1,) if words == "last" else places(words, n, what)
