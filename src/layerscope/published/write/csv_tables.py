"""Every table of a published folder as a value: its name, columns and rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from layerscope.analysis import raw_comparison, tuned_audit
from layerscope.analysis.analysed_run import AnalysedRun, n_write_patches
from layerscope.analysis.curve import Curve, Row, entropy_gap
from layerscope.analysis.milestones import Milestone
from layerscope.analysis.percentiles import median
from layerscope.analysis.tuned_audit import Reading
from layerscope.lens_record import FITTED_NAMES
from layerscope.published.layout import (
    ARTIFACT_AUDIT,
    MILESTONES,
    NEXT,
    NEXT_TOKEN,
    PAIRS,
    PATCHES,
    POSITIONS_TUNED_AUDIT,
    RAWLENS,
    RAWLENS_WINDOW,
    RECORDS,
    SINGLE_WRITES,
    TUNED_VARIANTS,
    Dialect,
    Table,
    TableColumn,
    Value,
    columns_of,
    csv_name,
    value_of,
)
from layerscope.published.members import MILESTONE
from layerscope.published.write.json_fitted_lenses import has_raw_tables, has_variants, is_read
from layerscope.published.write.json_source import Source, label_of
from layerscope.published.write.json_summary import row_in_pass, softest_copy
from layerscope.record.milestone_names import CONFIRMED, ONSET, MilestoneName
from layerscope.record.prompt_key import PromptKey

NEXT_LISTED, VERBOSE_LISTED = 5, 20
"""Tokens that a published row lists: at most positions, and at those that matter."""
IMPORTANT_WORDS = ("germany", "berlin", "capital", "answer", "word", "simply")
"""An input token with one of them in it makes its position matter, as the last position does."""
STRIPPED = ".,!?;:"
"""Characters that are no part of an input token there."""


@dataclass(frozen=True)
class CsvTable:
    """One table."""

    name: str
    """Of its file."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


def csv_tables(run: AnalysedRun, dialect: Dialect) -> Iterator[CsvTable]:
    """Every table that the run has, one after the other.

    In the extended dialect `norm` in a column's name is the headline lens, whichever it is; cells name it.
    """
    source = Source(run, dialect)
    yield from _by_lens(source)
    if has_raw_tables(source):
        yield _table(source, RAWLENS, _rawlens_rows(source))
        yield _table(source, RAWLENS_WINDOW, _window_rows(source))
        yield _table(source, ARTIFACT_AUDIT, _audit_rows(source))
    yield _table(source, MILESTONES, _milestone_rows(source))
    if has_variants(source):
        yield _table(source, TUNED_VARIANTS, _variant_rows(source))
    if source.extended or is_read(source, "tuned"):
        yield _table(source, POSITIONS_TUNED_AUDIT, _position_rows(source))
    if source.extended and run.has_pairs:
        yield _table(source, PATCHES, run.patches.iter_rows(named=True))
    if source.extended and run.write_patches is not None and n_write_patches(run.record):
        yield _table(source, SINGLE_WRITES, run.write_patches.iter_rows(named=True))


def _table(
    source: Source, table: Table, rows: Iterable[Mapping[str, Value]], lens: str | None = None, pairs: int = PAIRS
) -> CsvTable:
    """Rows, given by column name, in the order of the table's columns."""
    names = tuple(column.name for column in columns_of(table, source.dialect, pairs=pairs))
    return CsvTable(
        csv_name(source.stem, table, lens), names, tuple(tuple(row[name] for name in names) for row in rows)
    )


# One row a layer under one lens


def _by_lens(source: Source) -> Iterator[CsvTable]:
    """Records and next-token tables of every lens that has them in this dialect, the headline lens first."""
    lenses = source.run.record.protocol.lenses
    others = [lens for lens in lenses if lens != source.headline and (source.extended or lens in FITTED_NAMES)]
    for lens in (source.headline, *others):
        suffix = None if lens == source.headline else lens
        pairs = _longest_list(source, lens)
        columns = columns_of(RECORDS, source.dialect, pairs=pairs)
        yield _table(source, RECORDS, _record_rows(source, lens, columns), suffix, pairs)
        yield _table(source, NEXT_TOKEN, _next_rows(source, lens), suffix)


def _longest_list(source: Source, lens: str) -> int:
    """How many tokens the longest list of a lens has; published tables have room for 20."""
    if not source.extended:
        return PAIRS
    lengths = (len(row) for row in source.run.rows.filter(lens=lens)["top_tokens"] if row is not None)
    return max([PAIRS, *lengths])


def _record_rows(source: Source, lens: str, columns: Sequence[TableColumn]) -> Iterator[dict[str, Value]]:
    """Every position that was decoded; the extended dialect lists all tokens, since it holds the run whole."""
    # The extended dialect holds the run whole; what the others state is of the judged view, as the JSON is.
    table = source.run.rows if source.extended else source.run.judged_rows
    rows = table.with_row_index("row_in_run").filter(lens=lens)
    for row in rows.iter_rows(named=True):
        if source.extended:
            yield {**_cells(columns, row), "row_in_run": row["row_in_run"]}
        else:
            yield _listing(_cells(columns, row), row, VERBOSE_LISTED if _matters(row) else NEXT_LISTED)


def _matters(row: Row) -> bool:
    """Whether a published table lists many tokens at a position."""
    token = (row["token"] or "").lower().strip(STRIPPED)
    return row["is_next"] or any(word in token for word in IMPORTANT_WORDS)


def _next_rows(source: Source, lens: str) -> Iterator[dict[str, Value]]:
    """The last position of every prompt."""
    columns = columns_of(NEXT_TOKEN, source.dialect)
    for _, curve in _curves(source, lens):
        for row in curve.rows:
            cells = {**_cells(columns, row), "token": NEXT, "entropy_gap_bits": entropy_gap(row)}
            yield _listing(cells, row, NEXT_LISTED)


def _curves(source: Source, lens: str) -> Iterator[tuple[PromptKey, Curve]]:
    curves = source.run.verdict.curves
    return ((prompt, curve) for prompt in curves.passes if (curve := curves.get(prompt, lens)) is not None)


def _cells(columns: Sequence[TableColumn], row: Row) -> dict[str, Value]:
    return {column.name: value_of(column, row) for column in columns}


def _listing(cells: dict[str, Value], row: Row, listed: int) -> dict[str, Value]:
    """The cells with so many tokens, and as rest the mass that these leave."""
    beyond = [f"{name}{i}" for i in range(listed + 1, PAIRS + 1) for name in ("top", "prob")]
    return {**cells, **dict.fromkeys(beyond), "rest_mass": _rest_mass(row, listed)}


def _rest_mass(row: Row, listed: int) -> float | None:
    probs = row["top_probs"]
    return None if probs is None or None in probs[:listed] else max(0.0, 1 - sum(probs[:listed]))


# Headline lens and raw lens


def _rawlens_rows(source: Source) -> Iterator[dict[str, Value]]:
    """Both lenses of a layer in one row; a layer that either lacks leaves its cells empty."""
    columns = columns_of(RAWLENS, source.dialect)
    raw_columns = [column for column in columns if column.lens == "raw"]
    for prompt, curve in _curves(source, source.headline):
        raw = source.run.verdict.curves.get(prompt, "raw")
        for row in curve.rows:
            other = None if raw is None else raw.at(row["layer"])
            cells = _cells(columns, row) | dict.fromkeys(column.name for column in raw_columns)
            cells |= {} if other is None else _cells(raw_columns, other)
            cells |= {
                "entropy_gap_bits": entropy_gap(row),
                "norm_only_semantics": raw_comparison.norm_only(row, other),
            }
            yield cells


def _window_rows(source: Source) -> Iterator[dict[str, Value]]:
    """The layers around each prompt's milestones; the primary prompt's sample decides the radius for all of them."""
    columns = columns_of(RAWLENS_WINDOW, source.dialect)
    for prompt, curve in _curves(source, source.headline):
        raw = source.run.verdict.curves.get(prompt, "raw")
        centres = raw_comparison.window_centres(source.run.milestones.of(prompt=prompt))
        window = raw_comparison.window_check(curve, raw, centres, source.diagnostics.raw_sample)
        for layer in window.layers_checked:
            kl = curve.value("kl_norm_vs_raw_bits", layer)
            for either in (curve, raw):
                row = None if either is None else either.at(layer)
                if row is not None:
                    yield {**_cells(columns, row), "lens": label_of(row["lens"]), "kl_norm_vs_raw_bits": kl}


def _audit_rows(source: Source) -> Iterator[dict[str, Value]]:
    """Medians and verdict, then every layer of the primary prompt."""
    curve, check = source.curve, source.diagnostics.raw_full
    if curve is None or check is None:
        return
    columns, score = columns_of(ARTIFACT_AUDIT, source.dialect), check.whole.score
    medians = {column.name: median(curve.values(column.ours)) for column in columns if column.ours is not None}
    yield {**medians, "layer": "_summary", "lens_artifact_score_v2": score.v2, "risk_tier": score.tier}
    for row in curve.rows:
        yield {**_cells(columns, row), "layer": str(row["layer"])}


# Milestones and positions


def _milestone_rows(source: Source) -> Iterator[dict[str, Value]]:
    """The four published ones, each with a layer or without; the extended dialect goes on with all others."""
    milestones, k = source.milestones, softest_copy(source)
    soft = milestones.get(f"L_copy_soft_k{k or source.thresholds.copy_soft_windows[0]}")
    confirmation = source.diagnostics.confirmation
    copy, onset, confirmed = (milestones.get(name) for name in (MilestoneName.COPY, ONSET, CONFIRMED))
    yield _milestone_row(source, "L_copy", copy, is_copy_strict=_has_layer(copy))
    yield _milestone_row(source, "L_copy_soft", soft, is_copy_soft_k=k)
    yield _milestone_row(source, ONSET, onset, is_semantic_norm=_has_layer(onset))
    by_lens = "none" if confirmation is None else confirmation.source
    confirming = {"is_semantic_confirmed": _has_layer(confirmed), "lens": by_lens}
    yield _milestone_row(source, "L_semantic_confirmed", confirmed, **confirming)
    if source.extended:
        for name, milestone in milestones.items():
            if name not in (MilestoneName.COPY, ONSET, CONFIRMED):
                yield _milestone_row(source, name, milestone)


def _has_layer(milestone: Milestone | None) -> bool:
    return milestone is not None and milestone.layer is not None


def _milestone_row(source: Source, name: str, milestone: Milestone | None, **cells: Value) -> dict[str, Value]:
    layer = None if milestone is None else milestone.layer
    return {
        "milestone": name,
        "csv_row_index": row_in_pass(source, layer),
        "is_copy_strict": False,
        "is_copy_soft_k": None,
        "is_semantic_norm": False,
        "is_semantic_confirmed": False,
        **source.block(MILESTONE, milestone),
        "lens": source.label,
        **cells,
    }


def _position_rows(source: Source) -> Iterator[dict[str, Value]]:
    """The primary prompt at the places of the position window, layer by layer; tuned cells may be empty."""
    primary, curve = source.diagnostics.primary, source.curve
    if primary is None or curve is None:
        return
    last = curve.rows[0]["position"]
    for row in tuned_audit.position_rows(source.run.judged_rows, primary, source.headline, source.n_layers, last):
        yield {
            **_fact(curve),
            "pos_frac": row.fraction,
            "pos_index": row.position,
            "layer": row.layer,
            **_compared(row.baseline, row.tuned, "tuned"),
        }


def _variant_rows(source: Source) -> Iterator[dict[str, Value]]:
    """The primary prompt's last position under the tuned lens, whole and in parts, layer by layer."""
    curve, tuned = source.curve, source.curve_of("tuned")
    variants = source.record.measured.tuned_variants
    if curve is None or tuned is None or variants is None:
        return
    for row in tuned_audit.variant_rows(curve, tuned, variants):
        yield {
            **_fact(curve),
            "layer": row.layer,
            **_compared(row.baseline, row.tuned, "tuned"),
            **_compared(row.baseline, row.rotation_only, "rot_only"),
            **_compared(row.baseline, row.temperature_only, "temp_only"),
            "delta_kl_bits_interaction": row.interaction_bits,
        }


def _fact(curve: Curve) -> dict[str, Value]:
    return {name: curve.rows[0][name] for name in ("fact_key", "fact_index")}


def _compared(baseline: Reading, other: Reading, name: str) -> dict[str, Value]:
    """Two lenses at one place, and by how much the other is nearer to the model and to the answer."""
    return {
        "kl_bits_baseline": baseline.kl_bits,
        f"kl_bits_{name}": other.kl_bits,
        f"delta_kl_bits_{name}": tuned_audit.gain_bits(baseline, other),
        "answer_rank_baseline": baseline.answer_rank,
        f"answer_rank_{name}": other.answer_rank,
        f"rank_shift_{name}": tuned_audit.rank_shift(baseline, other),
        "entropy_bits_baseline": baseline.entropy_bits,
        f"entropy_bits_{name}": other.entropy_bits,
    }
