"""Options stated once: a dataclass' fields are a function's keywords in Python and a command's options in a shell."""

import ast
import inspect
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache, wraps
from itertools import pairwise
from types import MappingProxyType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741 - options
R = TypeVar("R")

NOT_RENAMED: Mapping[str, str] = MappingProxyType({})


@cache
def field_texts(options: type) -> Mapping[str, str]:
    """What stands under each field of a dataclass and of those it inherits from; nothing where no source is at hand."""
    texts: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(options.__mro__)):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        (definition,) = tree.body
        if not isinstance(definition, ast.ClassDef):
            continue
        for field, below in pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    texts[name] = " ".join(text.split())
    return MappingProxyType(texts)


def keywords(
    options: Callable[P, O], formerly: Mapping[str, str] = NOT_RENAMED
) -> Callable[[Callable[[O], R]], Callable[P, R]]:
    """Let a function of a dataclass be called with the fields themselves; its signature and docstring then list them.

    Args:
        formerly: old names of fields by which they are still taken, with a warning.
    """

    def decorate(function: Callable[[O], R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in formerly.items():
                if old in kwargs:
                    warnings.warn(renamed(f"`{old}`", f"`{new}`"), DeprecationWarning, stacklevel=2)
                    if new in kwargs:
                        raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}")
                    kwargs[new] = kwargs.pop(old)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(options(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        signature = inspect.signature(options).replace(return_annotation=returned)
        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__doc__ = _with_arguments(inspect.getdoc(function), options)
        return called

    return decorate


def renamed(old: str, new: str) -> str:
    """What is said to whoever still uses the old name of an option."""
    return f"{old} is now called {new}; the old name works until the next release."


def _with_arguments(docstring: str | None, options: Callable[..., object]) -> str | None:
    """A docstring with the options between what it says first and what it raises."""
    if docstring is None or not isinstance(options, type):
        return docstring
    texts = field_texts(options)
    arguments = [f"    {name}: {texts[name]}" for name in inspect.signature(options).parameters if name in texts]
    summary, raises, errors = docstring.partition("\n\nRaises:")
    return f"{summary}\n\nArgs:\n" + "\n".join(arguments) + raises + errors
