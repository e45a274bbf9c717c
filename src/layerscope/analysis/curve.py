"""Curves: the rows of one prompt under one lens at its last position, from the embedding to the last layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import polars as pl

from layerscope.record.prompt_key import PromptKey

Row: TypeAlias = Mapping[str, Any]
"""Values by column name, and under `row` the row's place in the table."""
Predicate: TypeAlias = Callable[[Row], bool | None]
"""Whether something holds in a row; None where its value is absent."""


def entropy_gap(row: Row) -> float | None:
    """By how much a row is less certain than the model's own output, in bits; None where that is not known."""
    lens, teacher = row["entropy_bits"], row["teacher_entropy_bits"]
    return None if lens is None or teacher is None else lens - teacher


@dataclass(frozen=True)
class Curve:
    """What a lens reads at the last position of a prompt, layer by layer."""

    prompt: PromptKey
    lens: str
    n_layers: int
    """Number of blocks of the model: the last layer's number."""
    d_vocab: int
    rows: tuple[Row, ...]
    """In ascending layer order; layers may be missing where a file lacks them, or a lens has no map for them."""

    def first(self, holds: Predicate) -> int | None:
        """The shallowest layer at which it holds; None where it never does."""
        return next((row["layer"] for row in self.rows if holds(row)), None)

    def stable(self, holds: Predicate) -> int | None:
        """The shallowest layer from which it holds at every layer to the last; a missing layer or value ends it."""
        due, start = self.n_layers, None
        for row in reversed(self.rows):
            if row["layer"] != due or not holds(row):
                break
            start, due = due, due - 1
        return start

    def first_of_two(self, holds: Predicate) -> int | None:
        """The shallowest layer at which it holds together with the next layer."""
        held = {row["layer"] for row in self.rows if holds(row)}
        return min((layer for layer in held if layer + 1 in held), default=None)

    def layers(self, holds: Predicate) -> list[int]:
        """Every layer at which it holds."""
        return [row["layer"] for row in self.rows if holds(row)]

    def at(self, layer: int | None) -> Row | None:
        """The row of a layer; None where there is none."""
        return next((row for row in self.rows if row["layer"] == layer), None)

    def value(self, column: str, layer: int | None) -> Any:
        """A value at a layer; None where either is absent."""
        row = self.at(layer)
        return None if row is None else row[column]

    def values(self, column: str) -> list[Any]:
        """Values that are not absent, from shallow to deep."""
        return [row[column] for row in self.rows if row[column] is not None]


@dataclass(frozen=True)
class Curves:
    """All curves of a run, in the order of its rows."""

    by_key: Mapping[tuple[PromptKey, str], Curve]

    @classmethod
    def of(cls, rows: pl.DataFrame, n_layers: int, d_vocab: int) -> "Curves":
        """Group the rows at last positions by prompt and lens."""
        at_next = rows.with_row_index("row").filter("is_next").sort("layer", maintain_order=True)
        grouped: dict[tuple[PromptKey, str], list[Row]] = {}
        for row in at_next.iter_rows(named=True):
            prompt = PromptKey(row["fact_index"], row["prompt_id"], row["prompt_variant"])
            grouped.setdefault((prompt, row["lens"]), []).append(row)
        order = sorted(grouped, key=lambda key: min(row["row"] for row in grouped[key]))
        return cls({key: Curve(*key, n_layers, d_vocab, tuple(grouped[key])) for key in order})

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.by_key.values())

    def get(self, prompt: PromptKey | None, lens: str) -> Curve | None:
        """One prompt under one lens; None where it was not read."""
        return None if prompt is None else self.by_key.get((prompt, lens))

    @property
    def passes(self) -> Sequence[PromptKey]:
        """The prompts, in the order of the rows."""
        return list(dict.fromkeys(prompt for prompt, _ in self.by_key))

    @property
    def primary(self) -> PromptKey | None:
        """The prompt that diagnostics describe unless they say otherwise: the first fact in its first wording."""
        return next((prompt for prompt in self.passes if prompt.is_fact), None)
