"""Two runs of the same prompts held against each other: how they were made, and every cell of their tables."""

from collections.abc import Mapping
from dataclasses import dataclass

from layerscope.analysis.model_diff import SuiteDiff


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs."""

    model_id: str
    run_id: str
    created_utc: str | None
    layerscope_version: str | None


@dataclass(frozen=True)
class SettingDiff:
    """An entry of both records that differs; results are none."""

    name: str
    """Its path in `run.json`: `provenance.torch`."""
    base: str | None
    """As JSON; None where the record lacks it."""
    variant: str | None


@dataclass(frozen=True)
class ColumnDiff:
    """A column of the tables in which some cell differs."""

    column: str
    unit: str
    n_different: int
    """Cells with other values, those that one of the two lacks included."""
    n_in_one_only: int
    """Cells that one of the two lacks."""
    is_real: bool
    """Whether it holds reals, which rounding alone may change; ids, ranks, flags and texts are none."""
    largest_difference: float | None
    """Of reals, in the column's unit; None of what is no real, and where no cell has a value in both."""
    layer: int | None
    """Where that stands,"""
    lens: str | None
    position: int | None
    prompt: str | None


@dataclass(frozen=True)
class LensLayerDiff:
    """Both runs' rows of one lens at one layer."""

    lens: str
    layer: int
    n_rows: int
    top1_agreement: float | None
    """Share of rows with the same token on top; None where no row is finite in both."""
    kl_at_least_bits: float | None
    """A lower bound of KL(base || variant), the mean over rows: that of the tokens which both rows list and of the rest
    taken as one; None where the rows list none."""
    entropy_change_bits: float | None
    """Mean size of the difference of both entropies."""
    kl_to_final_change_bits: float | None
    """The same of the divergence from each one's own output."""
    n_rank_changes: int
    """Rows in which the answer has another rank."""


@dataclass(frozen=True)
class MilestoneMove:
    """A milestone that stands at another layer, or in one of the two alone."""

    milestone: str
    lens: str
    prompt: str
    base: int | None
    variant: int | None


@dataclass(frozen=True)
class RunDiff:
    """A run held against another of the same prompts."""

    layerscope_version: str
    created_utc: str
    base: ComparedRun
    variant: ComparedRun
    n_prompts: int
    """Prompts that are the same tokens in both; the rest are left out."""
    n_rows: int
    """Rows that both have: the same prompt, lens, layer and position."""
    n_rows_in_base_only: int
    n_rows_in_variant_only: int
    settings: tuple[SettingDiff, ...]
    """How the runs were made, as far as that differs."""
    columns: tuple[ColumnDiff, ...]
    """Only those in which something differs."""
    layers: tuple[LensLayerDiff, ...]
    """Lens by lens."""
    n_layers: tuple[int, int]
    """Blocks of both models."""
    milestones: tuple[MilestoneMove, ...]
    """Those that moved, of all prompts and lenses that both have."""
    n_milestones: int
    """How many were compared."""
    headline: str | None
    """The lens that facts are judged under; None where the two runs have not the same."""
    suite: SuiteDiff | None
    """The prompts' answers under that lens; None where there is none, or no answer is judged."""
    notes: tuple[str, ...]

    @property
    def is_identical(self) -> bool:
        """Whether the two have the same rows, and the same in them."""
        return not (self.columns or self.milestones or self.n_rows_in_base_only or self.n_rows_in_variant_only)

    def discrete(self) -> tuple[ColumnDiff, ...]:
        """Those of the columns that hold ids, ranks, flags or texts."""
        return tuple(column for column in self.columns if not column.is_real)

    def real(self) -> tuple[ColumnDiff, ...]:
        """Those that hold reals."""
        return tuple(column for column in self.columns if column.is_real)

    def by_lens(self) -> Mapping[str, tuple[LensLayerDiff, ...]]:
        """The layers of every lens."""
        lenses = dict.fromkeys(layer.lens for layer in self.layers)
        return {lens: tuple(layer for layer in self.layers if layer.lens == lens) for lens in lenses}

    @property
    def last_layer(self) -> LensLayerDiff | None:
        """The headline lens behind the last block of both; None where they have not as many, or no rows of it."""
        if self.n_layers[0] != self.n_layers[1]:
            return None
        at_end = (layer for layer in self.layers if (layer.lens, layer.layer) == (self.headline, self.n_layers[0]))
        return next(at_end, None)
