"""Claims: what a report states, each with its value, its unit and the places that hold it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from layerscope.report.numbers import full_text

Value: TypeAlias = int | float | bool | str | None

ABSENT = "n.a."


class Unit(StrEnum):
    """What a value is in, which says how it prints."""

    LAYER = "layer"
    """0 is the embedding, n_layers the last."""
    BITS = "bits"
    PROBABILITY = "probability"
    RANK = "rank"
    COUNT = "count"
    SHARE = "share"
    """Of layers, of depth, of facts: between 0 and 1."""
    COSINE = "cosine"
    LOGIT = "logit"
    NUMBER = "number"
    """Without a unit: scores, temperatures, slopes."""
    TRUTH = "truth"
    TEXT = "text"
    TOKEN = "token"
    """A piece of text of the vocabulary's, which may hold anything."""


@dataclass(frozen=True)
class Citation:
    """Where a value stands."""

    file: str
    """Its name, without folders."""
    line: int
    """Physical line, counted from 1 by line feeds."""
    last_line: int
    """The same for a value of one line; of a list or object, or a row with line breaks in its tokens, a later one."""
    pointer: str | None = None
    """In a JSON file: RFC 6901."""
    row: int | None = None
    """In a table: data row, counted from 0."""
    column: str | None = None
    """In a table."""

    @property
    def lines(self) -> str:
        """`7085`, or `49-57`."""
        return f"{self.line}" if self.line == self.last_line else f"{self.line}-{self.last_line}"

    def __str__(self) -> str:
        return f"{self.file}:{self.lines}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One value that a report states."""

    subject: str
    """The model's name as in the files: `Qwen3-8B`."""
    name: str
    """What it is, by the name that the files have for it: `first_rank_le_1`."""
    value: Value
    unit: Unit
    citations: tuple[Citation, ...]
    """What the value follows from; one for a value that is copied, several for one that is derived."""
    lens: str | None = None
    prompt: str | None = None
    """The prompt: `pos/orig`."""
    layer: int | None = None
    derived: str | None = None
    """How it follows from what is cited, where it is not copied: `difference`, `count of layers`, `first layer at which
    answer_rank <= 1`."""
    reason: str | None = None
    """Why there is no value."""

    @property
    def text(self) -> str:
        """The value as it prints: `31`, `16.5` of a median layer, `1.0607`; `n.a.` where there is none."""
        if self.unit is Unit.LAYER and isinstance(self.value, float):
            return f"{self.value:g}"
        return value_text(self.value)


def value_text(value: Value) -> str:
    """A value in the form in which reports print it, without its unit."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    return full_text(value)


def merged(citations: Sequence[Citation]) -> str:
    """Several places in one bracket, each file once, in the order given: `a.json:7083, 7085; b.csv:33`."""
    by_file: dict[str, list[Citation]] = {}
    for citation in citations:
        by_file.setdefault(citation.file, []).append(citation)
    return "; ".join(f"{file}:{merged_lines(of_file)}" for file, of_file in by_file.items())


def merged_lines(citations: Sequence[Citation]) -> str:
    """Lines of one file in the order given; three neighbours or more as a range, and none that another one covers."""
    spans = list(dict.fromkeys((citation.line, citation.last_line) for citation in citations))
    kept = [span for span in spans if not any(_covers(other, span) for other in spans)]
    runs: list[list[tuple[int, int]]] = []
    for span in kept:
        if runs and span[0] == runs[-1][-1][1] + 1:
            runs[-1].append(span)
        else:
            runs.append([span])
    shown = [[(run[0][0], run[-1][1])] if len(run) > 2 else run for run in runs]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for run in shown for a, b in run)


def _covers(other: tuple[int, int], span: tuple[int, int]) -> bool:
    return other != span and other[0] <= span[0] and span[1] <= other[1]
