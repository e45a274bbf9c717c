"""The published tables as data: their columns, types and generations, and which of our columns they are.

A generation is a letter: the format grew a few columns at a time, from B (the first with probabilities and ranks) to M.
There are two dialects of one format. `GENERATION_M` is what was published: its columns in its order. `EXTENDED` is what
we write: the same columns first, then what they lack, so that the tables of records alone hold every row of a run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias

from layerscope.errors import RunError
from layerscope.record.patches import PATCH_COLUMNS
from layerscope.record.rows import COLUMNS
from layerscope.record.write_patches import WRITE_PATCH_COLUMNS

Kind: TypeAlias = Literal["int", "float", "str", "bool"]
Value: TypeAlias = str | int | float | bool | None
"""What a cell holds; None where it holds nothing."""


class Dialect(Enum):
    """Which of the two ways of writing the format."""

    GENERATION_M = "generation M"
    EXTENDED = "extended"


GENERATION_M, EXTENDED = Dialect.GENERATION_M, Dialect.EXTENDED
GENERATIONS = "BCDEFGHIJKLM"

NEXT = "⟨NEXT⟩"
"""What next-token tables have in the column `token`; it is not a token."""
HEADLINE = "next_norm"
"""The lens of the published tables that name none."""
PUBLISHED_LENS_NAMES = {"next_norm": "norm", "raw": "raw", "prism": "prism", "tuned": "tuned"}
"""Lenses as published cells and keys call them."""
LENS_STATUSES = {"loaded": "loaded", "missing": "missing", "off": "disabled", "refused": "error"}
"""Statuses of fitted lenses as published files call them."""
FIT_TIME = "%Y%m%dT%H%MZ"
"""How published files write the time of a fit."""
PAIRS = 20
"""Numbers of pairs `top{i}`, `prob{i}` in a row."""
FLAG_COLUMNS = (
    "copy_strict@0.95", "copy_strict@0.7", "copy_strict@0.8", "copy_strict@0.9",
    "copy_soft_k1@0.5", "copy_soft_k2@0.5", "copy_soft_k3@0.5",
)  # fmt: skip
"""Copy flags of the default configuration; `copy_flag_columns` of the JSON names those of another one."""
RECORD_KEY = "record"
"""In extended JSON: our `run.json`, whole. An object under this key is what makes a folder an extended one."""
DIALECT_KEY = "dialect"
"""In extended JSON: the dialect's name, so that one whose record is lost is not taken for an older generation."""
N_ROWS_KEY = "n_rows"
"""In extended JSON: how many rows the run has, so that a table cut between two lines is noticed."""

_LONGEST_LENS = 60
"""In bytes. With a model's 150 and the table's suffix that stays within the 255 that a file's name may have."""
_UNFIT = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")

_OURS = {"pos": "position", "entropy": "entropy_bits", "js_divergence": "js_divergence_bits"}
_NAMES = {column.name for column in COLUMNS}
_FIRST_ITEMS = {"top_tokens": "top1", "top_ids": "top1_id"}
"""A list's first item and the column that holds it by itself; both are one column of a table of records."""


@dataclass(frozen=True)
class TableColumn:
    """One column of a published table."""

    name: str
    kind: Kind
    since: str = "B"
    """The generation in which it appeared."""
    ours: str | None = None
    """The column of our rows that it holds; None where ours have none."""
    part: int | Literal["length"] | None = None
    """Of a list: the item it holds, from 0, or that it holds the number of items. None for any other column."""
    lens: str | None = None
    """The lens whose row it belongs to, in a table whose rows speak of two."""


@dataclass(frozen=True)
class Table:
    """One kind of published table."""

    suffix: str
    """What follows `output-<model>-` in the file's name."""
    since: str
    """The generation in which it appeared."""
    columns: tuple[TableColumn, ...]
    """Generation M's, in its order, with `FLAG_COLUMNS` and `PAIRS`."""
    prepended: tuple[TableColumn, ...] = ()
    """What the extended dialect puts before them."""
    appended: tuple[TableColumn, ...] = ()
    """What it puts after them."""
    by_lens: bool = False
    """Whether other lenses have tables of their own, named `<suffix>-<lens>`."""


def _of(kind: Kind, names: str, since: str = "B", lens: str | None = None) -> tuple[TableColumn, ...]:
    """Columns of one type and generation; a name ending in `_raw` or `_norm` may be another lens' plain column."""
    return tuple(_column(kind, name, since, lens) for name in names.split())


def _column(kind: Kind, name: str, since: str = "B", lens: str | None = None) -> TableColumn:
    plain = name.removesuffix(f"_{PUBLISHED_LENS_NAMES[lens]}") if lens else name
    return TableColumn(name, kind, since, _OURS.get(plain, plain if plain in _NAMES else None), lens=lens)


def _pairs(first: int, last: int, since: str = "B") -> tuple[TableColumn, ...]:
    """`top{i}` and `prob{i}`, i from 1."""
    return tuple(
        TableColumn(f"{name}{i}", kind, since, ours, i - 1)
        for i in range(first, last + 1)
        for name, kind, ours in _PAIR
    )


_KINDS: dict[str, Kind] = {"Int32": "int", "Float64": "float", "String": "str", "Boolean": "bool"}
_PAIR: tuple[tuple[str, Kind, str], ...] = (("top", "str", "top_tokens"), ("prob", "float", "top_probs"))


def _ids(last: int) -> tuple[TableColumn, ...]:
    """`top{i}_id`, i from 1."""
    return tuple(TableColumn(f"top{i}_id", "int", "M", "top_ids", i - 1) for i in range(1, last + 1))


def _flags(names: Sequence[str]) -> tuple[TableColumn, ...]:
    """Copy flags; the strict ones below 0.95 came with the sweep over thresholds."""
    later = [name for name in FLAG_COLUMNS if name.startswith("copy_strict") and name != "copy_strict@0.95"]
    return tuple(_column("bool", name, "F" if name in later else "D") for name in names)


def is_flag(name: str) -> bool:
    """Whether a column is a copy flag, whatever its threshold."""
    return name.startswith(("copy_strict@", "copy_soft_k"))


_FACT = _of("str", "fact_key", "J") + _of("int", "fact_index", "J")
_PROMPT = _of("str", "prompt_id prompt_variant")
_ROW = (
    *_FACT, *_PROMPT, *_of("int", "layer pos"), *_of("str", "token"),
    *_of("float", "entropy"), *_of("float", "entropy_bits", "I"), *_pairs(1, PAIRS), *_of("float", "rest_mass"),
)  # fmt: skip


def _other_columns(pairs: int) -> tuple[TableColumn, ...]:
    """Our columns that a published table of records lacks, in our order; then what makes lists and order whole."""
    written = {column.ours for column in _ROW} | {"top1"}
    others: list[TableColumn] = []
    for column in COLUMNS:
        if column.name == "top1_id":
            others += _ids(pairs)
        elif column.name not in written and column.name != "top_ids":
            others.append(TableColumn(column.name, _KINDS[str(column.dtype)], "M", column.name))
    lists = ("top_ids", "top_tokens", "top_probs")
    lengths = [TableColumn(f"n_{name}", "int", "M", name, "length") for name in lists]
    return (*others, *lengths, TableColumn("row_in_run", "int", "M"))


RECORDS = Table("records", "B", _ROW, appended=_other_columns(PAIRS), by_lens=True)

NEXT_TOKEN = Table(
    "pure-next-token",
    "B",
    (
        *_ROW, *_of("bool", "copy_collapse"), *_flags(FLAG_COLUMNS), *_of("bool", "entropy_collapse is_answer"),
        *_of("float", "p_top1 p_top5 p_answer"), *_of("float", "answer_minus_uniform", "J"),
        *_of("bool", "semantic_margin_ok", "J"), *_of("float", "teacher_entropy_bits", "E"),
        *_of("float", "kl_to_final_bits"), *_of("float", "kl_to_final_bits_norm_temp", "E"), *_of("int", "answer_rank"),
        *_of("float", "topk_jaccard_raw_norm@50 topk_jaccard_consecutive@50", "I"), *_of("float", "cos_to_final"),
        *_of("float", "cos_to_answer cos_to_prompt_max", "E"), *_of("bool", "geom_crossover", "E"),
        *_of("float", "echo_mass_prompt answer_mass answer_minus_echo_mass mass_ratio_ans_over_prompt", "E"),
        *_of("float", "topk_prompt_mass@50", "E"), *_of("float", "control_margin"),
        *_of("float", "resid_norm_ratio delta_resid_cos answer_logit_gap answer_vs_top1_gap", "H"),
    ),
    appended=(
        *_ids(5), *_of("float", "cos_to_final_centered control_top2_logit_gap entropy_gap_bits", "M"),
        *_of("bool", "kl_saturated", "M"), *_of("float", "raw_resid_norm", "M"),
    ),
    by_lens=True,
)  # fmt: skip


def _top_of(lens: str) -> tuple[TableColumn, ...]:
    """What a raw-lens table says of one lens."""
    name = PUBLISHED_LENS_NAMES[lens]
    return (
        *_of("float", f"p_top1_{name}", lens=lens),
        TableColumn(f"top1_token_id_{name}", "int", "B", "top1_id", lens=lens),
        TableColumn(f"top1_token_str_{name}", "str", "B", "top1", lens=lens),
        *_of("float", f"p_answer_{name}", lens=lens),
        *_of("int", f"answer_rank_{name}", lens=lens),
    )


def _paired(names: str, since: str) -> tuple[TableColumn, ...]:
    """What a raw-lens table says of norm and raw lens together; it belongs to the norm lens' row."""
    return tuple(replace(column, lens=HEADLINE) for column in _of("float", names, since))


RAWLENS = Table(
    "pure-next-token-rawlens",
    "G",
    (
        *_FACT, *_PROMPT, *_of("int", "layer"), *_top_of("raw"), *_top_of(HEADLINE),
        *_paired("kl_norm_vs_raw_bits", "B"), *_paired("kl_raw_to_norm_bits js_divergence", "I"),
        *_of("float", "entropy_bits_norm", "I", HEADLINE), *_of("float", "entropy_bits_raw", "I", "raw"),
        *_paired("entropy_gap_bits l1_prob_diff", "I"),
        *_paired("topk_jaccard_raw_norm@50 topk_jaccard_consecutive@50", "I"), *_of("bool", "norm_only_semantics"),
    ),
)  # fmt: skip

RAWLENS_WINDOW = Table(
    "pure-next-token-rawlens-window",
    "F",
    (
        *_FACT, *_PROMPT, *_of("int", "layer"), *_of("str", "lens"), *_of("float", "p_top1"),
        TableColumn("top1_token_id", "int", "B", "top1_id"), TableColumn("top1_token_str", "str", "B", "top1"),
        *_of("float", "p_answer"), *_of("int", "answer_rank"), *_of("float", "kl_norm_vs_raw_bits"),
    ),
    appended=_flags([name for name in FLAG_COLUMNS if name.startswith("copy_strict")]),
)  # fmt: skip

MILESTONES = Table(
    "milestones",
    "I",
    (
        *_of("int", "layer csv_row_index"), *_of("bool", "is_copy_strict"), *_of("int", "is_copy_soft_k"),
        *_of("bool", "is_semantic_norm is_semantic_confirmed"), *_of("int", "answer_rank"),
        *_of("float", "p_answer kl_to_final_bits entropy_bits"), *_of("str", "lens"),
    ),
    prepended=_of("str", "milestone"),
)  # fmt: skip

ARTIFACT_AUDIT = Table(
    "artifact-audit",
    "I",
    (
        *_of("str", "layer"), *_of("float", "js_divergence kl_raw_to_norm_bits l1_prob_diff topk_jaccard_raw_norm@50"),
        *_of("float", "lens_artifact_score_v2"), *_of("str", "risk_tier"),
    ),
)  # fmt: skip

TUNED_VARIANTS = Table(
    "pure-next-token-tuned-variants",
    "I",
    (
        *_of("int", "layer"),
        *_of("float", "kl_bits_baseline kl_bits_tuned kl_bits_rot_only kl_bits_temp_only delta_kl_bits_tuned"),
        *_of("float", "delta_kl_bits_rot_only delta_kl_bits_temp_only delta_kl_bits_interaction"),
        *_of("int", "answer_rank_baseline answer_rank_tuned answer_rank_rot_only answer_rank_temp_only"),
        *_of("int", "rank_shift_tuned rank_shift_rot_only rank_shift_temp_only"),
        *_of("float", "entropy_bits_baseline entropy_bits_tuned"),
    ),
    prepended=_FACT,
)  # fmt: skip

POSITIONS_TUNED_AUDIT = Table(
    "positions-tuned-audit",
    "I",
    (
        *_of("float", "pos_frac"), *_of("int", "pos_index layer"),
        *_of("float", "kl_bits_baseline kl_bits_tuned delta_kl_bits_tuned"),
        *_of("int", "answer_rank_baseline answer_rank_tuned rank_shift_tuned"),
        *_of("float", "entropy_bits_baseline entropy_bits_tuned"),
    ),
    prepended=_FACT,
)  # fmt: skip

PATCHES = Table(
    "patches", "M", (), appended=tuple(TableColumn(c.name, _KINDS[str(c.dtype)], "M") for c in PATCH_COLUMNS)
)
"""What came of every patch, in the extended dialect alone."""

SINGLE_WRITES = Table(
    "single-writes",
    "M",
    (),
    appended=tuple(TableColumn(c.name, _KINDS[str(c.dtype)], "M") for c in WRITE_PATCH_COLUMNS),
)
"""What came of every write that was put into another run, in the extended dialect alone."""

TABLES = (
    RECORDS, NEXT_TOKEN, RAWLENS, RAWLENS_WINDOW, MILESTONES, ARTIFACT_AUDIT, TUNED_VARIANTS, POSITIONS_TUNED_AUDIT,
    PATCHES, SINGLE_WRITES,
)  # fmt: skip


def columns_of(
    table: Table,
    dialect: Dialect,
    *,
    generation: str = "M",
    flags: Sequence[str] | None = None,
    pairs: int = PAIRS,
) -> tuple[TableColumn, ...]:
    """The columns of a table in their order.

    Args:
        dialect: The extended one has columns before and after those of generation M, and knows no older ones.
        generation: Columns that came later are left out.
        flags: The copy flags of the run's configuration, each once; if None, the usual ones that the generation had.
        pairs: Of an extended table of records: how many tokens its longest list has; it never has fewer than `PAIRS`.
    """
    columns: list[TableColumn] = []
    for column in table.columns:
        if flags is None or not is_flag(column.name):
            columns.append(column)
        elif column.name == FLAG_COLUMNS[0]:
            columns += [_column("bool", name) for name in flags]
        if column.name == f"prob{PAIRS}" and table is RECORDS and dialect is EXTENDED:
            columns += _pairs(PAIRS + 1, pairs)
    if dialect is EXTENDED:
        appended = _other_columns(max(PAIRS, pairs)) if table is RECORDS else table.appended
        return (*table.prepended, *columns, *appended)
    return tuple(column for column in columns if column.since <= generation)


def value_of(column: TableColumn, row: Mapping[str, object]) -> Value:
    """What a table's cell holds of one of our rows; None for a column that ours lack.

    `top1` and `top1_id` are cells of their own, which the lists of tokens and ids share as their first item.

    Raises:
        RunError: the first item of a list is another one than that.
    """
    if column.ours is None:
        return None
    value = row[column.ours]
    if column.part is None:
        return _scalar(column, value)
    if value is not None and not isinstance(value, list | tuple):
        raise RunError(f"column `{column.ours}` should hold lists, but holds {value!r}")
    items = value or ()
    if column.part == "length":
        return None if value is None else len(items)
    item = _scalar(column, items[column.part]) if column.part < len(items) else None
    if column.part == 0 and column.ours in _FIRST_ITEMS:
        first = _scalar(column, row[_FIRST_ITEMS[column.ours]])
        if items and item != first:
            raise RunError(f"`{_FIRST_ITEMS[column.ours]}` is {first!r}, but `{column.ours}` begins with {item!r}")
        return first
    return item


def _scalar(column: TableColumn, value: object) -> Value:
    if value is None or isinstance(value, str | int | float):
        return value
    raise RunError(f"a cell of `{column.name}` should be text, a number or a truth value, but is {value!r}")


def stem_of(model: str) -> str:
    """`<M>` in the files' names: a model's id after its last slash."""
    return model.rsplit("/", 1)[-1]


def check_lens_names(lenses: Sequence[str]) -> None:
    """Refuse lenses that no file can be named after.

    Raises:
        RunError: a name is empty or too long, or has a slash, a backslash or a control character in it.
    """
    for lens in lenses:
        if not lens or len(lens.encode(errors="replace")) > _LONGEST_LENS or _UNFIT.search(lens):
            raise RunError(
                f"The lens {lens[:80]!r} cannot be part of a file's name; name it in at most {_LONGEST_LENS} bytes, "
                "without slashes, backslashes and control characters."
            )


def json_name(stem: str) -> str:
    """The name of a model's JSON."""
    return f"output-{stem}.json"


def is_file_of(stem: str, name: str) -> bool:
    """Whether a file of this name is the model's JSON or one of its tables, and not one of a model of a longer name."""
    if name == json_name(stem):
        return True
    before, rest = f"output-{stem}-", name.removesuffix(".csv")
    if rest == name or not rest.startswith(before):
        return False
    rest = rest.removeprefix(before)
    return any(rest == t.suffix or (t.by_lens and rest.startswith(f"{t.suffix}-")) for t in TABLES)


def csv_name(stem: str, table: Table, lens: str | None = None) -> str:
    """The name of a model's table; `lens` where the table is another one's than the headline lens'."""
    return f"output-{stem}-{table.suffix}{'' if lens is None else f'-{lens}'}.csv"
