"""Commands whose options are the fields of dataclasses, with the fields' own texts as help."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import typer

from layerscope.cli.console import mistakes_in_one_sentence, warn
from layerscope.errors import LayerscopeError
from layerscope.options import NOT_RENAMED, field_texts, renamed

Model: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        help="Hub id, GGUF file, or a folder with config.json and *.safetensors.",
        show_default="the bundled model",
    ),
]
RunSource: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        help="A run's folder, or a folder or output-<M>.json of published files.", show_default="the newest in runs/"
    ),
]

_PLAIN = (bool, int, float, str, Path)
"""Types that a shell can give."""


def command(
    *,
    last: str = "",
    without: str = "",
    spelled: Mapping[str, str] = NOT_RENAMED,
    formerly: Mapping[str, str] = NOT_RENAMED,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command: a parameter that is a dataclass becomes an option for each of its fields.

    An error of ours ends the command with its sentence and exit code 2.

    Args:
        last: names of options that stand at the end of the help, in that order.
        without: names of fields that are no options.
        spelled: options whose name is not that of the field.
        formerly: old names by which options are still taken, with a note on stderr.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(function).parameters
        groups: dict[str, Any] = {n: p.annotation for n, p in parameters.items() if is_dataclass(p.annotation)}
        options: dict[str, inspect.Parameter] = {}
        for name, parameter in parameters.items():
            expanded = _options(groups[name], without.split(), spelled) if name in groups else [parameter]
            options |= {option.name: option for option in expanded}
        for name in last.split():
            options[name] = options.pop(name)
        for old, new in formerly.items():
            plain = get_args(options[new].annotation)[0] | None
            options[old] = _parameter(old, plain, typer.Option(hidden=True), None)

        @wraps(function)
        def called(**words: Any) -> None:
            with mistakes_in_one_sentence():
                for old, new in formerly.items():
                    _rename(words, old, new, options[new].default, spelled)
                for name, group in groups.items():
                    hints = get_type_hints(group)
                    given = {field.name: words.pop(field.name, None) for field in fields(group)}
                    words[name] = group(**{n: _value(n, hints[n], v) for n, v in given.items() if v is not None})
                function(**words)

        called.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
        called.__annotations__ = {name: option.annotation for name, option in options.items()}
        return called

    return decorate


def _options(group: Any, without: Sequence[str], spelled: Mapping[str, str]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group)
    for field in fields(group):
        if field.name not in without:
            default = field.default if isinstance(field.default, _PLAIN) else None
            plain = _shell_type(hints[field.name])
            if default is None:
                plain |= None
            yield _parameter(field.name, plain, option(group, field.name, spelled), default)


def _parameter(name: str, plain: Any, info: Any, default: Any) -> inspect.Parameter:
    annotation: Any = Annotated[plain, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _spelling(name: str, spelled: Mapping[str, str]) -> str:
    return spelled.get(name, f"--{name.replace('_', '-')}")


def option(group: type, name: str, spelled: Mapping[str, str] = NOT_RENAMED) -> Any:
    """One field of a dataclass as an option.

    Its own text is the help, in which names of fields become options and other code loses its backticks.
    """
    texts = field_texts(group)

    def plain(code: re.Match[str]) -> str:
        return _spelling(code[1], spelled) if code[1] in texts else code[1]

    text, _, default = re.sub(r"`([^`]+)`", plain, texts.get(name, "")).removesuffix(".").partition("; default: ")
    spelling = _spelling(name, spelled)
    if any(field.name == name and field.default is True for field in fields(group)):
        spelling += f"/--no-{spelling.removeprefix('--')}"  # what is on by default can be switched off
    return typer.Option(spelling, help=f"{text}.", show_default=default or True)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _shell_type(hint: Any) -> Any:
    """The first member of a union that a shell can give."""
    for member in _members(hint):
        if member in _PLAIN:
            return member
        if get_origin(member) is Literal:
            return type(get_args(member)[0])
        if issubclass(get_origin(member) or NoneType, Sequence):
            return list[str]
    raise TypeError(f"{hint} has no member that a shell can give")


def _value(name: str, hint: Any, word: Any) -> Any:
    """What a shell's word stands for.

    Raises:
        LayerscopeError: it is none of the words, nor a number where there may be one.
    """
    members = _members(hint)
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if not choices or word in choices:
        return word
    if int not in members:
        raise LayerscopeError(f"There is no {name} '{word}'; choose from {', '.join(choices)}.")
    if not word.isdecimal():
        raise LayerscopeError(f"'{word}' is no {name}; give {', '.join(choices)}, or a whole number.")
    return int(word)


def _rename(words: dict[str, Any], old: str, new: str, default: Any, spelled: Mapping[str, str]) -> None:
    """Let a word that was given under an old name stand under the new one.

    Raises:
        LayerscopeError: it was given under both.
    """
    word = words.pop(old)
    if word is None:
        return
    before, now = _spelling(old, NOT_RENAMED), _spelling(new, spelled)
    if words[new] != default:
        raise LayerscopeError(f"{before} is the old name of {now}, and both were given; give {now} alone.")
    warn(renamed(before, now))
    words[new] = word
