"""Modules of compiled loops, loaded when the first matrix needs one."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


@cache
def loops(name: str) -> ModuleType | None:
    """A module of `layerscope.stored`, or None where there is no compiler for its loops."""
    if find_spec("numba") is None:
        return None
    try:
        module = import_module(f"layerscope.stored.{name}")
    except (ImportError, OSError):  # one that does not go with this Python or NumPy, or whose library does not load
        return None
    return None if module.interpreted() else module
