"""What tells the prompts of a run apart, and the rows of one."""

from typing import NamedTuple, TypeVar

import polars as pl

Table = TypeVar("Table", pl.DataFrame, pl.LazyFrame)
"""A table at hand, or one that is read as far as it is asked for."""


class PromptKey(NamedTuple):
    """One prompt of a suite; the three parts together tell prompts apart."""

    fact_index: int | None
    prompt_id: str
    prompt_variant: str

    @property
    def is_fact(self) -> bool:
        """Whether it asks for a fact, and is no control."""
        return self.prompt_id == "pos"

    @property
    def short_label(self) -> str:
        """As claims name it: `pos/orig`."""
        return f"{self.prompt_id}/{self.prompt_variant}"

    @property
    def label(self) -> str:
        """The same with the fact: `pos/orig of fact 0`."""
        return self.short_label + ("" if self.fact_index is None else f" of fact {self.fact_index}")

    def rows_of(self, rows: Table) -> Table:
        """Its rows in a run's table; a control has no `fact_index` there."""
        return rows.filter(pl.col(name).eq_missing(value) for name, value in zip(self._fields, self, strict=True))

    def __str__(self) -> str:
        which = self.prompt_id if self.fact_index is None else f"{self.prompt_id} {self.fact_index}"
        return f"{which} {self.prompt_variant}"
