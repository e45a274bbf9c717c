"""Cell by cell: the tables of two runs joined by prompt, lens, layer and position."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.run_diff import ColumnDiff, LensLayerDiff
from layerscope.errors import RunError
from layerscope.record.prompt_key import PromptKey
from layerscope.record.rows import COLUMNS
from layerscope.record.stored_rows import collected

FLOOR = 1e-30
"""Least probability in a divergence, as everywhere."""
_PROMPT = "prompt"
_KEY = (_PROMPT, "lens", "layer", "position")
_OF_PROMPT = PromptKey._fields
_SAME_BY_DESIGN = ("fact_key", "fact_index", "prompt_id", "prompt_variant", "token_id", "token", *_KEY)
_CELLS = tuple(column for column in COLUMNS if column.name not in _SAME_BY_DESIGN)
_REALS = (pl.Float64(), pl.List(pl.Float64))
_LISTED = ("top_ids", "top_probs")
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class RowCounts:
    """Rows of the prompts that both have."""

    both: int
    base_only: int
    variant_only: int


class JoinedRows:
    """The rows of two runs side by side; columns of the variant end in `_variant`."""

    def __init__(
        self, base: AnalysedRun, variant: AnalysedRun, prompts: Sequence[tuple[PromptKey, PromptKey, str]]
    ) -> None:
        """Join them.

        Args:
            base: a run, here read as far as it is asked for.
            variant: another.
            prompts: those that are the same in both: the key in the base, in the variant, and the text.

        Raises:
            RunError: a table has two rows for one prompt, lens, layer and position.
        """
        self._texts = [text for _, _, text in prompts]
        ours, theirs = [key for key, _, _ in prompts], [key for _, key, _ in prompts]
        self._sides = [_numbered(base, ours), _numbered(variant, theirs)]
        for run, side in zip((base, variant), self._sides, strict=True):
            if collected(side.select(pl.struct(_KEY).is_duplicated().any()), "streaming").item():
                raise RunError(
                    f"Run {run.record.run_id} has several rows for one prompt, lens, layer and position; "
                    "such rows cannot be told apart."
                )
        self._joined = self._sides[0].join(self._sides[1], on=_KEY, how="inner", suffix="_variant")

    def counts(self) -> RowCounts:
        """How many rows stand in both and in one alone."""
        both = collected(self._joined.select(pl.len()), "streaming").item()
        base, variant = (collected(side.select(pl.len()), "streaming").item() for side in self._sides)
        return RowCounts(both, base - both, variant - both)

    def columns(self) -> Iterator[ColumnDiff]:
        """Columns in which a cell differs, one read at a time."""
        for column in _CELLS:
            cells = collected(self._joined.select(*_KEY, column.name, f"{column.name}_variant"))
            changed = cells.filter(pl.col(column.name).ne_missing(pl.col(f"{column.name}_variant")))
            if len(changed):
                yield self._column(column.name, column.unit, changed, is_real=column.dtype in _REALS)

    def _column(self, name: str, unit: str, changed: pl.DataFrame, *, is_real: bool) -> ColumnDiff:
        ours, theirs = pl.col(name), pl.col(f"{name}_variant")
        both = changed.filter(ours.is_not_null() & theirs.is_not_null())
        place, largest = changed.row(0, named=True), None
        if is_real and len(both):
            sizes = [_size(*pair) for pair in both.select(ours, theirs).iter_rows()]
            largest = max(sizes)
            place = both.row(sizes.index(largest), named=True)
        return ColumnDiff(
            column=name,
            unit=unit,
            n_different=len(changed),
            n_in_one_only=len(changed) - len(both),
            is_real=is_real,
            largest_difference=largest,
            layer=place["layer"],
            lens=place["lens"],
            position=place["position"],
            prompt=self._texts[place[_PROMPT]],
        )

    def layers(self) -> tuple[LensLayerDiff, ...]:
        """Every lens at every layer that both have, in the base's order of lenses."""
        lenses = collected(self._joined.select("lens").unique(maintain_order=True))["lens"].to_list()
        return tuple(layer for lens in lenses for layer in self._of_lens(lens))

    def _of_lens(self, lens: str) -> Iterator[LensLayerDiff]:
        asked = ("top1_id", "top1", "entropy_bits", "kl_to_final_bits", "answer_rank", *_LISTED)
        wanted = [*_KEY, *asked, *(f"{name}_variant" for name in asked)]
        rows = collected(self._joined.filter(pl.col("lens") == lens).select(wanted))
        least = pl.Series("kl_at_least", list(_least_divergences(rows)), dtype=pl.Float64())
        by_layer = rows.with_columns(least).group_by("layer", maintain_order=True).agg(*_MEASURES.values())
        for found in by_layer.sort("layer").iter_rows(named=True):
            yield LensLayerDiff(lens=lens, **found)


def _size(ours: Any, theirs: Any) -> float:
    """Of the difference of two reals, or the largest of two lists as far as both go."""
    if isinstance(ours, float):
        return abs(ours - float(theirs))
    return max((abs(a - b) for a, b in zip(ours, theirs, strict=False)), default=0.0)


def _change(name: str) -> Any:
    return (pl.col(name) - pl.col(f"{name}_variant")).abs().mean()


_SAME_TOP = (
    pl.when(pl.col("top1_id").is_not_null() & pl.col("top1_id_variant").is_not_null())
    .then(pl.col("top1_id") == pl.col("top1_id_variant"))
    .otherwise(pl.col("top1") == pl.col("top1_variant"))
)
_MEASURES: Mapping[str, Any] = {
    name: measure.alias(name)
    for name, measure in {
        "n_rows": pl.len(),
        "top1_agreement": _SAME_TOP.mean(),
        "kl_at_least_bits": pl.col("kl_at_least").mean(),
        "entropy_change_bits": _change("entropy_bits"),
        "kl_to_final_change_bits": _change("kl_to_final_bits"),
        "n_rank_changes": pl.col("answer_rank").ne_missing(pl.col("answer_rank_variant")).sum(),
    }.items()
}


def _numbered(run: AnalysedRun, keys: Sequence[PromptKey]) -> pl.LazyFrame:
    """Its rows of some prompts, each prompt by its number."""
    given = run.scan.collect_schema()
    schema = {name: given[name] for name in _OF_PROMPT} | {_PROMPT: pl.Int32()}
    columns = {name: [getattr(key, name) for key in keys] for name in _OF_PROMPT}
    numbers = pl.LazyFrame({**columns, _PROMPT: range(len(keys))}, schema=schema)
    return run.scan.join(numbers, on=_OF_PROMPT, how="inner", nulls_equal=True, maintain_order="left").drop(_OF_PROMPT)


def _least_divergences(rows: pl.DataFrame) -> Iterator[float | None]:
    """For each row a lower bound of KL(base || variant), in bits."""
    for some in rows.iter_slices(_ROWS_AT_ONCE):
        ids, probs = (some[name].to_list() for name in _LISTED)
        other_ids, other_probs = (some[f"{name}_variant"].to_list() for name in _LISTED)
        for row in zip(ids, probs, other_ids, other_probs, strict=True):
            yield None if any(values is None for values in row) else at_least_bits(*row)


def at_least_bits(
    ids: Sequence[int], probs: Sequence[float], other_ids: Sequence[int], other_probs: Sequence[float]
) -> float:
    """A lower bound of KL(p || q) from the likely tokens of both, in bits.

    Tokens that both list are told apart, all others are taken as one: taking outcomes together never makes a divergence
    larger (the log sum inequality, Cover and Thomas, Elements of Information Theory, theorem 2.7.1).
    """
    q_of = dict(zip(other_ids, other_probs, strict=True))
    pairs = [(p, q_of[token]) for token, p in zip(ids, probs, strict=True) if token in q_of]
    p, q = np.array([*pairs, (1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs))]).clip(FLOOR).T
    return max(0.0, float((p * np.log2(p / q)).sum()))
