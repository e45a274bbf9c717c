"""The table of patched runs: a row for each residual that was written into a run, whatever became of it."""

from collections.abc import Mapping, Sequence

import polars as pl

from layerscope.errors import RunError
from layerscope.record.rows import Column, table_of

PAIR, SAME_ANSWER, UNRELATED, RANDOM = "pair", "same_answer", "unrelated", "random"
KINDS = (PAIR, SAME_ANSWER, UNRELATED, RANDOM)
SUBJECT, NEXT, OTHER = "subject", "next", "other"
PLACES = (SUBJECT, NEXT, OTHER)

_KIND = (
    "What was written: `pair`: the source's residual; controls at `next`: `same_answer`: the base's own fact's in "
    "another wording; `unrelated`: that of a third fact; `random`: a random step as long as the one to the source."
)
_PLACE = "`subject`: the subject's last token; `next`: the prompt's last token; `other`: neither."

PATCH_COLUMNS: tuple[Column, ...] = (
    Column("kind", pl.String(), "text", _KIND, False),
    Column("pair", pl.Int32(), "count from 0", "Which of the record's pairs the effect is measured along.", False),
    Column("base", pl.Int32(), "count from 0", "`fact_index` of the fact that was run.", False),
    Column("source", pl.Int32(), "count from 0", "`fact_index` of the fact whose residual was written; null: none."),
    Column("place", pl.String(), "text", _PLACE, False),
    Column("position", pl.Int32(), "count from 0", "Index of the base's token, BOS included.", False),
    Column("from_end", pl.Int32(), "count from 0", "The same counted from the prompt's last token.", False),
    Column("layer", pl.Int32(), "count from 0", "How many blocks had written.", False),
    Column("effect", pl.Float64(), "share", "(LD_patched - LD_base) / (LD_source - LD_base), before any softcap."),
    Column("logit_difference", pl.Float64(), "nats", "LD: logit of the base's answer less the source's, as the head."),
    Column("p_base_answer", pl.Float64(), "probability", "Of the base's answer."),
    Column("p_source_answer", pl.Float64(), "probability", "Of the source's answer."),
    Column("rank_base_answer", pl.Int32(), "rank from 1", "Of the base's answer."),
    Column("rank_source_answer", pl.Int32(), "rank from 1", "Of the source's answer."),
    Column("kl_to_source_bits", pl.Float64(), "bits", "KL(patched || source) over the vocabulary."),
    Column("kl_from_base_bits", pl.Float64(), "bits", "KL(base || patched) over the vocabulary."),
    Column("total_variation", pl.Float64(), "probability", "Total variation from the base's distribution, 0 to 1."),
    Column("entropy_bits", pl.Float64(), "bits", "Entropy of the patched run's output."),
    Column("top1_id", pl.Int32(), "token id", "The most likely token; ties go to the smaller id."),
)
"""In the order in which they are stored. Metrics are null where the patched run's output is not finite."""

METRICS = tuple(column.name for column in PATCH_COLUMNS if column.nullable and column.name != "source")


def patches_frame(columns: Mapping[str, Sequence[object] | pl.Series]) -> pl.DataFrame:
    """The table made of its columns.

    Raises:
        RunError: a column is missing or unknown, or does not hold what it should.
    """
    frame = table_of("patches", PATCH_COLUMNS, columns)
    check_patches(frame)
    return frame


def no_patches() -> pl.DataFrame:
    """The table without a row."""
    return pl.DataFrame(schema={column.name: column.dtype for column in PATCH_COLUMNS})


def check_patches(frame: pl.DataFrame) -> None:
    """Whether a table is one of ours.

    Raises:
        RunError: naming the column that is missing, unknown, out of order, of the wrong type, or that holds what it
            must not.
    """
    expected = {column.name: column.dtype for column in PATCH_COLUMNS}
    if list(frame.schema.items()) != list(expected.items()):
        odd = [name for name, dtype in expected.items() if frame.schema.get(name) != dtype]
        more = [name for name in frame.columns if name not in expected]
        raise RunError(
            f"patches have the columns {', '.join(expected)}, in that order and each of its type; wrong or missing: "
            f"{', '.join(odd + more) or 'their order'}"
        )
    for column in PATCH_COLUMNS:
        values = frame[column.name]
        if not column.nullable and values.null_count():
            raise RunError(f"column `{column.name}` of patches has no value in {values.null_count()} rows")
        if column.dtype == pl.Float64() and not values.drop_nulls().is_finite().all():
            raise RunError(f"column `{column.name}` of patches holds NaN or infinity; an absent number is null")
    for name, known in (("kind", KINDS), ("place", PLACES)):
        unknown = set(frame[name].unique()) - set(known)
        if unknown:
            raise RunError(f"column `{name}` of patches should be one of {', '.join(known)}, but holds {unknown}")
