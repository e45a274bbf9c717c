"""Tasks of words that a state leads towards without being next: the published evaluation sets, and files like them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from layerscope.errors import SuiteError

ReadAt: TypeAlias = Literal["before_target", "last_newline", "last_token"]
"""Which token's state is read: the one in front of the target, that of the last line break, or the prompt's last."""
PREFIX = "lens-eval-"
"""What the published files' names begin with; a task goes by the rest."""
LAST_NEWLINE = ("poetry",)
"""Published tasks that are read at the end of a line; others before their target, or at the end."""
EXPANDED = ("order-ops",)
"""Published tasks whose words are keys: a number counts in digits and as a word, an operation by name and sign."""

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_OPERATIONS = (
    ("addition", "plus", "add", "added", "sum", "+"),
    ("subtraction", "minus", "subtract", "subtracted", "difference", "-", "−"),
    ("multiplication", "times", "multiply", "multiplied", "product", "*", "×"),
    ("division", "divide", "divided", "quotient", "/", "//", "÷"),
    ("squared", "square", "²", "**", "^"),
    ("mod", "modulo", "modulus", "remainder", "%"),
)


@dataclass(frozen=True)
class WordItem:
    """One prompt, and what its state should lead towards."""

    name: str
    prompt: str
    words: tuple[tuple[str, ...], ...]
    """Each word as the strings that count as it, the first being its name."""
    target: str | None
    """What follows the prompt where the state in front of it is read; it is no word that is looked for."""


@dataclass(frozen=True)
class WordTask:
    """Items that are read alike."""

    name: str
    items: tuple[WordItem, ...]
    read_at: ReadAt


def read_word_tasks(path: str | Path) -> tuple[WordTask, ...]:
    """Read a file, or every `*.json` of a folder: an object with `items`, each with `prompt` and `intermediates`.

    An item may have a `name` and a `target`; a word may be a list of strings that count alike. A file may say under
    `read_at` where states are read. The published files do not, and are read as their description has it.

    Raises:
        SuiteError: no such place, no file there, or one that is no such task, named with what is wrong in it.
    """
    place = Path(path)
    if not place.exists():
        raise SuiteError(
            f"{place}: no such file or folder; give a file of tasks or a folder of them (their form: docs/fitting.md)."
        )
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not files:
        raise SuiteError(f"{place}: no *.json in it; give the folder with the tasks' files, or one of them.")
    return tuple(_task(file) for file in files)


def _task(file: Path) -> WordTask:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SuiteError(f"{file}: cannot be read as JSON ({error}).") from error
    items = found.get("items") if isinstance(found, dict) else None
    if not isinstance(items, list) or not items:
        raise SuiteError(f"{file}: should be an object with a list of `items`, at least one, and holds no such thing.")
    name = file.stem.removeprefix(PREFIX)
    read = tuple(_item(file, place, item, expanded=name in EXPANDED) for place, item in enumerate(items))
    return WordTask(name, read, _read_at(file, name, found.get("read_at"), read))


def _item(file: Path, place: int, found: Any, *, expanded: bool) -> WordItem:
    where = f"{file}: item {place}"
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str) or not found["prompt"]:
        raise SuiteError(f"{where}: `prompt` should be a text; chats and the like are not read.")
    words, target = found.get("intermediates"), found.get("target")
    if not isinstance(words, list) or not words:
        raise SuiteError(f"{where}: `intermediates` should be a list of words, at least one.")
    sets = tuple((word,) if isinstance(word, str) else word for word in words)
    if not all(isinstance(s, tuple | list) and s and all(isinstance(w, str) and w.strip() for w in s) for s in sets):
        raise SuiteError(f"{where}: an intermediate should be a word, or a list of words that count alike.")
    if target is not None and (not isinstance(target, str) or not target):
        raise SuiteError(f"{where}: `target` should be a text, or absent.")
    told = tuple(_alike(tuple(s)) if expanded else tuple(s) for s in sets)
    return WordItem(str(found.get("name", place)), found["prompt"], told, target)


def _read_at(file: Path, name: str, stated: Any, items: Sequence[WordItem]) -> ReadAt:
    targets = [item.target is not None for item in items]
    if stated is None:
        stated = "last_newline" if name in LAST_NEWLINE else "before_target" if any(targets) else "last_token"
    if stated not in get_args(ReadAt):
        raise SuiteError(f"{file}: `read_at` should be one of {', '.join(get_args(ReadAt))}, but is {stated!r}.")
    read_at: ReadAt = stated
    for item in items:
        if read_at == "before_target" and item.target is None:
            raise SuiteError(f"{file}: item {item.name} has no `target`, before which the state would be read.")
        if read_at == "last_newline" and "\n" not in item.prompt:
            raise SuiteError(f"{file}: item {item.name} has no line break, at which the state would be read.")
    return read_at


def _alike(words: tuple[str, ...]) -> tuple[str, ...]:
    """A key with what counts as it."""
    more: list[str] = []
    for word in words:
        more += next((names for names in _OPERATIONS if word == names[0]), ())
        if word.isdecimal() and int(word) < 100:
            more.append(_in_words(int(word)))
    return tuple(dict.fromkeys((*words, *more)))


def _in_words(number: int) -> str:
    """Below a hundred."""
    if number < len(_UNITS):
        return _UNITS[number]
    tens, rest = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[rest]}" if rest else "")
