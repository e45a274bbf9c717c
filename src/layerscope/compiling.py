"""Loops compiled for the processor at hand: how they are compiled, and whether that can be done."""

from collections.abc import Callable, Set
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

Array = Any
"""A NumPy array; the compiler knows its type, and no other checker of types has a say in what it compiles."""


def compiled(fastmath: Set[str] = frozenset()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function when it is first called, to run without the interpreter's lock.

    Compiled code is kept on disk where there is a place for it, and made anew where the function's own file has
    changed: what is compiled calls nothing of another file.

    Args:
        fastmath: which liberties may be taken with floats; none by default, so that operations are those that are
            written.
    """
    import numba  # takes a while, and some never call what is compiled

    options = {"nogil": True, "fastmath": set(fastmath) or False, "error_model": "numpy"}

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            result: Callable[..., Any] = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder can be written, neither beside the code nor at the user's: compile each time
            result = numba.njit(**options)(function)
        return result

    return wrap


@cache
def loops(module: str) -> ModuleType | None:
    """A module of loops by its full name; None where there is no compiler for them.

    Nor is there where the compiler was told to compile nothing (`NUMBA_DISABLE_JIT`): the loops would take hours.
    """
    if find_spec("numba") is None:
        return None
    try:
        numba, found = import_module("numba"), import_module(module)
    except (ImportError, OSError):  # one that does not go with this Python or NumPy, or whose library does not load
        return None
    return None if numba.config.DISABLE_JIT else found
