"""The table of a run: a row for each prompt, lens, layer and position; every column has a type, a unit, a meaning."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.errors import RunError
from layerscope.record.prompt_key import Table
from layerscope.record.stored_rows import collected

Values: TypeAlias = Sequence[Any] | NDArray[Any] | pl.Series
"""What a column may be given as: None (or, among floats, NaN) is an absent value; a list column may be a 2-d array."""
TOP_SET = 50
"""Size of the sets of likely tokens that overlaps and prompt masses are taken over; the `@50` of their columns."""
_DataType: TypeAlias = Any
"""A `polars.DataType`, a class that beartype refuses to check because of its `repr`."""


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    name: str
    dtype: _DataType
    """A polars type; it is the column's type in Parquet too."""
    unit: str
    meaning: str
    nullable: bool = True
    """Whether a value may be absent."""
    since: str = "2.0"
    """The version of the schema in which it appeared; an older table lacks it."""


_INT, _TEXT = pl.Int32(), pl.String()


def _flag(name: str, meaning: str, nullable: bool = True) -> Column:
    return Column(name, pl.Boolean(), "yes or no", meaning, nullable)


def _float(name: str, unit: str, meaning: str, since: str = "2.0") -> Column:
    return Column(name, pl.Float64(), unit, meaning, since=since)


def _rank(name: str, meaning: str, since: str = "2.0") -> Column:
    return Column(name, _INT, "rank from 1", meaning, since=since)


_COPY_STRICT = (
    "The most likely token is content and occurs in the prompt, with probability above {}, 0.10 ahead of the second."
)
_COPY_SOFT = "The top tokens of this and the {} before it are a stretch of the prompt, and p_top1 is above 0.5."

COLUMNS: tuple[Column, ...] = (
    Column("fact_key", _TEXT, "text", "Which fact the prompt asks for; null for a control."),
    Column("fact_index", _INT, "count from 0", "Place of the fact in the suite; null for a control."),
    Column("prompt_id", _TEXT, "text", "`pos` for a fact, `ctl` for a control.", False),
    Column("prompt_variant", _TEXT, "text", "Which wording of the prompt.", False),
    Column("lens", _TEXT, "text", "How the residual was turned into the row that is unembedded.", False),
    Column("layer", _INT, "count from 0", "How many blocks have written; 0 is the embedding.", False),
    Column("position", _INT, "count from 0", "Index of the input token, BOS included.", False),
    Column("token_id", _INT, "token id", "The input token at the position; null where a file gives text alone."),
    Column("token", _TEXT, "text", "The same for people; not unique among ids; null where a file does not give it."),
    _flag("is_next", "Last position: what it predicts is the first token after the prompt.", False),
    _flag("finite", "False where residual or decoded row has NaN or Inf; then what follows is null.", False),
    _float("entropy_bits", "bits", "Entropy of the row's distribution over the vocabulary."),
    _float("teacher_entropy_bits", "bits", "The same for the model's own output at that position."),
    _flag("entropy_collapse", "Entropy is at most the protocol's threshold (1 bit)."),
    _float("kl_to_final_bits", "bits", "KL(row || model's own output), probabilities floored at 1e-30."),
    _flag("kl_saturated", "That divergence is above 95 bits, where the floor decides it."),
    Column("top1_id", _INT, "token id", "The most likely token; ties go to the smaller id."),
    Column("top1", _TEXT, "text", "The same for people."),
    _float("p_top1", "probability", "Of the most likely token."),
    _float("p_top5", "probability", "Of the five most likely tokens together."),
    _float("rest_mass", "probability", "Of all tokens that `top_ids` does not list."),
    Column("top_ids", pl.List(_INT), "token ids", "The run's `top_k` most likely tokens, most likely first."),
    Column("top_tokens", pl.List(_TEXT), "texts", "The same for people."),
    Column("top_probs", pl.List(pl.Float64), "probabilities", "Of each of them."),
    Column("answer_id", _INT, "token id", "First token of the accepted answer that ranks best; null if unresolved."),
    _float("p_answer", "probability", "Of that token."),
    _rank("answer_rank", "1 + number of tokens with a larger logit; ties share the best rank."),
    _flag("is_answer", "The rank is 1; for an unresolved answer, the top token's text is the answer."),
    _float("answer_minus_uniform", "probability", "p_answer less 1 / d_vocab."),
    _flag("semantic_margin_ok", "Rank 1 and at least 0.002 above uniform; null for lenses not so judged."),
    _float("answer_logit_gap", "logits (nats)", "Answer's logit less the second largest; null unless the rank is 1."),
    _float("answer_vs_top1_gap", "logits (nats)", "Answer's logit less the largest; null if the rank is 1."),
    _flag("copy_collapse", "The protocol's own copy rule; under the defaults equal to copy_strict@0.95."),
    *(_flag(f"copy_strict@{t}", _COPY_STRICT.format(t)) for t in (0.7, 0.8, 0.9, 0.95)),
    _flag("copy_soft_k1@0.5", "The most likely token is content, occurs in the prompt and has p > 0.5."),
    _flag("copy_soft_k2@0.5", _COPY_SOFT.format("layer")),
    _flag("copy_soft_k3@0.5", _COPY_SOFT.format("two layers")),
    _float("echo_mass_prompt", "probability", "Of the prompt's distinct content tokens together."),
    _float("answer_mass", "probability", "Of the answer's first token, under the name used beside echo mass."),
    _float("answer_minus_echo_mass", "probability", "answer_mass less echo_mass_prompt."),
    _float("mass_ratio_ans_over_prompt", "ratio", "answer_mass / (echo_mass_prompt + 1e-9)."),
    _float("topk_prompt_mass@50", "probability", "Of those prompt tokens that are among the 50 most likely."),
    _float("cos_to_final", "cosine", "Between the row's logits and the model's own, head bias left out."),
    _float("cos_to_final_centered", "cosine", "The same after each has lost its mean, so no shared constant counts."),
    _float("cos_to_answer", "cosine", "Between the unembedded row and the answer's unembedding vector."),
    _float("cos_to_prompt_max", "cosine", "Largest such cosine among the prompt's content tokens."),
    _flag("geom_crossover", "cos_to_answer is at least 0.02 above cos_to_prompt_max."),
    _float("raw_resid_norm", "length", "Euclidean norm of the residual before any lens."),
    _float("resid_norm_ratio", "ratio", "Norm of the row that is unembedded over raw_resid_norm."),
    _float("delta_resid_cos", "cosine", "Between the residual and the row that is unembedded."),
    _float("topk_jaccard_raw_norm@50", "share", "Ids in the 50 most likely here and under `raw`, of those in either."),
    _float("topk_jaccard_consecutive@50", "share", "The same between this layer and the one before; null at layer 0."),
    _float("kl_norm_vs_raw_bits", "bits", "KL(row || `raw` there), both floored at 1e-30; headline lens alone."),
    _float("kl_raw_to_norm_bits", "bits", "The other way round: KL(`raw` || row)."),
    _float("js_divergence_bits", "bits", "Jensen-Shannon divergence of the two, within [0, 1]."),
    _float("l1_prob_diff", "probability", "Sum over the vocabulary of the two's absolute differences, within [0, 2]."),
    _float("kl_to_final_bits_norm_temp", "bits", "kl_to_final_bits with logits divided by the layer's temperature."),
    _float("control_margin", "probability", "On a control: its own answer's less that of the fact compared with it."),
    _float("control_top2_logit_gap", "logits (nats)", "On a control with its answer on top: its logit less the next."),
    _float("answer_log_prob_nats_all", "nats", "Of the whole answer, each piece after the ones before it.", "2.3"),
    _rank("answer_rank_all", "The worst rank of its pieces: 1 where each would be the next token.", "2.3"),
    _float("answer_logit_gap_all", "logits (nats)", "The least lead of its pieces; null unless that rank is 1.", "2.3"),
    _rank("model_top1_rank", "Without an answer: rank of the token that the model itself says there.", "2.3"),
    _float("p_model_top1", "probability", "Of that token.", "2.3"),
    _float(
        "model_top1_logit_gap", "logits (nats)", "Its logit less the second largest; null unless its rank is 1.", "2.3"
    ),
)
"""In the order in which they are stored."""

_NAMES = [column.name for column in COLUMNS]
_METRICS = _NAMES[_NAMES.index("finite") + 1 :]
NEWER = tuple(column.name for column in COLUMNS if column.since != "2.0")
"""What a table of an older version of the schema may lack."""


def rows_frame(columns: Mapping[str, Values]) -> pl.DataFrame:
    """The table made of its columns, in the order and with the types of `COLUMNS`.

    NaN and infinities become null, and so does every metric of a row whose `finite` is False. Whole numbers are taken
    for floats, and any width of integer or float that fits; nothing else is converted.

    Raises:
        RunError: a column is missing, unknown, of another length or type, or has an absent value it must not have.
    """
    _check_names(columns)
    series = [_series(column, columns[column.name]) for column in COLUMNS]
    lengths = {s.name: len(s) for s in series}
    if len(set(lengths.values())) > 1:
        rows = lengths["layer"]
        odd = {name: length for name, length in lengths.items() if length != rows}
        raise RunError(f"Columns of a table have one length; `layer` has {rows} values, but others have {odd}.")
    frame = pl.DataFrame(series).with_columns(pl.when("finite").then(pl.col(_METRICS)))
    check_rows(frame)
    return frame


def with_newer_columns(frame: Table) -> Table:
    """A table of an older version of the schema with the columns that came since, absent in every row.

    Any other table is given back as it is, for `check_rows` to judge.
    """
    names = frame.collect_schema().names()
    added = [column for column in COLUMNS if column.name in NEWER and column.name not in names]
    if not added or names != [name for name in _NAMES if name in names]:
        return frame
    return frame.with_columns(pl.lit(None, column.dtype).alias(column.name) for column in added).select(_NAMES)


def check_rows(frame: pl.DataFrame | pl.LazyFrame) -> None:
    """Whether a table is one of ours; one that is not in memory is read once for that, part by part.

    Raises:
        RunError: naming the column that is missing, unknown, out of order or of the wrong type, that lacks a value it
            must have, or that holds a NaN or an infinity; or its file cannot be read.
    """
    schema = frame.collect_schema()
    _check_names(schema)
    found = collected(frame.lazy().select(_faults(schema)), engine="streaming")
    for column in COLUMNS:
        if schema[column.name] != column.dtype:
            raise RunError(f"column `{column.name}` should be of type {column.dtype}, but is {schema[column.name]}")
        n_null, n_odd = (int(found.item(0, f"{kind} {column.name}")) for kind in ("null", "odd"))
        if not column.nullable and n_null:
            raise RunError(f"column `{column.name}` has no value in {n_null} rows, but must have one in each")
        if n_odd:
            raise RunError(f"column `{column.name}` holds NaN or infinity; an absent number is null")
    if schema.names() != _NAMES:
        raise RunError("the columns stand in another order than COLUMNS; build the table with rows_frame")


def _faults(schema: Mapping[str, _DataType]) -> Iterator[pl.Expr]:
    """For each column, in how many rows there is no value, and in how many a NaN or an infinity."""
    for column in COLUMNS:
        of = pl.col(column.name)
        odd = pl.lit(0)
        if schema[column.name] == column.dtype == pl.Float64():
            odd = of.is_finite().not_().sum()
        elif schema[column.name] == column.dtype == pl.List(pl.Float64):
            odd = of.list.eval(pl.element().is_finite()).list.all().not_().sum()
        yield (pl.lit(0) if column.nullable else of.null_count()).alias(f"null {column.name}")
        yield odd.alias(f"odd {column.name}")


def table_bytes(table: pl.DataFrame) -> bytes:
    """A table as a Parquet file, made in memory: written by Polars itself, a full disk would come as an error without a
    number."""
    file = io.BytesIO()
    table.write_parquet(file, compression="zstd")
    return file.getvalue()


def table_of(what: str, spec: Sequence[Column], columns: Mapping[str, Values]) -> pl.DataFrame:
    """A table beside the rows, with the types of its columns.

    Args:
        what: it holds, for errors.
        spec: its columns in their order.
        columns: their values.

    Raises:
        RunError: a column is missing or unknown, or does not hold what it should.
    """
    names = [column.name for column in spec]
    if sorted(columns) != sorted(names):
        raise RunError(f"{what} have the columns {', '.join(names)}; given were {', '.join(columns)}")
    try:
        return pl.DataFrame([pl.Series(c.name, columns[c.name]).cast(c.dtype) for c in spec])
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{what} do not hold what their columns should: {error}") from error


def describe_columns(columns: Sequence[Column] = COLUMNS) -> str:
    """Columns as a Markdown table: name, type, whether a value may be absent, unit, meaning."""
    lines = ["| column | type | null | unit | meaning |", "|---|---|---|---|---|"]
    for column in columns:
        null, meaning = "may be" if column.nullable else "never", column.meaning.replace("|", r"\|")
        lines.append(f"| `{column.name}` | {column.dtype} | {null} | {column.unit} | {meaning} |")
    return "\n".join(lines)


def _check_names(names: Mapping[str, object]) -> None:
    missing = [name for name in _NAMES if name not in names]
    unknown = [name for name in names if name not in _NAMES]
    if missing or unknown:
        wrong = [f"{what}: {', '.join(those)}" for what, those in (("missing", missing), ("unknown", unknown)) if those]
        raise RunError(f"a run's rows have the {len(_NAMES)} columns of COLUMNS; {'; '.join(wrong)}")


def _series(column: Column, values: Values) -> pl.Series:
    """The values as the column's type, absent where they are not finite."""
    try:
        series = pl.Series(column.name, _plain(values, column.dtype), strict=True)
        if not _fits(series.dtype, column.dtype):
            raise RunError(f"column `{column.name}` should hold {column.dtype}, but was given {series.dtype}")
        series = series.cast(column.dtype)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise RunError(f"column `{column.name}` should hold {column.dtype}, but {error}") from error
    finite = pl.when(pl.element().is_finite()).then(pl.element())
    if column.dtype == pl.List(pl.Float64):
        return series.list.eval(finite)
    return series.set(series.is_finite().not_(), None) if column.dtype == pl.Float64 else series


def _plain(values: Values, dtype: _DataType) -> Values:
    """Python numbers in place of NumPy's inside a sequence; whole ones as floats where floats are due."""
    if isinstance(values, np.ndarray | pl.Series):
        return values
    plain = [value.tolist() if isinstance(value, np.ndarray | np.generic) else value for value in values]
    return [float(value) if type(value) is int else value for value in plain] if dtype == pl.Float64 else plain


def _fits(given: _DataType, due: _DataType) -> bool:
    """Whether a cast changes no meaning: widths may differ, whole numbers may be floats, and nothing has no type."""
    if given == pl.Null:
        return True
    if isinstance(due, pl.List):
        return isinstance(given, pl.List | pl.Array) and _fits(given.inner, due.inner)
    if due == pl.Float64():
        return bool(given.is_numeric())
    return bool(given.is_integer() if due == pl.Int32() else given == due)
