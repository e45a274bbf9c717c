"""Runs side by side as one table for other programs: a row for each, every column of one type."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import polars as pl

from layerscope.analysis.diagnostics import LastLayer
from layerscope.analysis.raw_comparison import Comparison
from layerscope.analysis.statistics import Summary
from layerscope.record.milestone_names import (
    CONFIRMED,
    ONSET,
    STRONG,
    STRONG_RUN2,
    MilestoneName,
    copy_soft,
    rank_within,
    stable_twin,
)
from layerscope.report.cited.evidence import Evidence
from layerscope.report.synthesis.compared import Compared, compared
from layerscope.report.synthesis.limits import gold_resolved, limits, reasons_of
from layerscope.report.synthesis.trust_sections import drift

Value: TypeAlias = str | int | float | bool | list[str] | None
_Get: TypeAlias = Callable[[Compared], Value]
_DataType: TypeAlias = Any
"""A `polars.DataType`, a class that beartype refuses to check because of its `repr`."""
CSV, PARQUET = "comparison.csv", "comparison.parquet"
_LAYERS = (
    *(rank_within(10), rank_within(5), rank_within(1)),
    *(ONSET, stable_twin(ONSET), MilestoneName.ONSET_RUN2, MilestoneName.MARGIN_OK, MilestoneName.TOP2_OK),
    *("gap_ge_1.0", STRONG, STRONG_RUN2, CONFIRMED),
    *(MilestoneName.COPY, copy_soft(1), copy_soft(2), copy_soft(3), MilestoneName.LOW_ENTROPY),
    *(MilestoneName.SURFACE_TO_MEANING, MilestoneName.GEOMETRY, MilestoneName.TOPK_DECAY),
    *("cos_ge_0.2", "cos_ge_0.4", "cos_ge_0.6", "first_p_top1_gt_0.30", "first_p_top1_gt_0.60"),
    *("first_kl_below_1.0", "first_kl_below_0.5"),
)
"""Milestones of the primary prompt under the headline lens."""
_FRACTIONS = (
    *(rank_within(10), rank_within(5), ONSET, MilestoneName.ONSET_RUN2),
    *(STRONG, STRONG_RUN2, CONFIRMED),
    *(MilestoneName.COPY, MilestoneName.SURFACE_TO_MEANING, MilestoneName.GEOMETRY),
)
"""Those that stand as a share of the depth too, to three decimals."""


@dataclass(frozen=True)
class _Column:
    """One column, and how a run gives its value."""

    name: str
    dtype: _DataType
    of: _Get


def comparison_table(evidences: Sequence[Evidence]) -> pl.DataFrame:
    """A row for each run in the order given; a run that is given twice has one row.

    Layers are those of the primary prompt under the headline lens, depth fractions are layer / n_layers to three
    decimals, differences of divergences are headline lens less fitted lens in bits, differences of layers fitted lens
    less headline lens. Absent is null. Between rows compare layers as fractions, ranks and gates alone, and those only
    where `not_comparable` names nothing against it.

    Args:
        evidences: the runs, of any number of folders.

    Raises:
        RunError: no run at all.
    """
    runs = compared(evidences)
    obstacles = limits(runs)
    columns = (*_COLUMNS, _Column("not_comparable", pl.List(pl.String), lambda run: [*reasons_of(run, obstacles)]))
    return pl.DataFrame(
        {column.name: [column.of(run) for run in runs] for column in columns},
        schema={column.name: column.dtype for column in columns},
    )


def comparison_files(frame: pl.DataFrame) -> dict[str, bytes]:
    """The table as files by name: `comparison.csv` and `comparison.parquet`.

    A list is one text in the CSV, with `; ` between its items; an empty list is an empty text, and null nothing.
    """
    lists = [name for name, dtype in frame.schema.items() if dtype == pl.List(pl.String)]
    flat = frame.with_columns(pl.col(lists).list.join("; "))
    # Through memory: written by Polars itself, a full disk would come as an error without a number.
    parquet = io.BytesIO()
    frame.write_parquet(parquet, compression="zstd")
    return {CSV: flat.write_csv().encode(), PARQUET: parquet.getvalue()}


# Values of a run


def _last(run: Compared) -> LastLayer | None:
    return run.diagnostics.last_layer


def _whole(run: Compared) -> Comparison | None:
    full = run.diagnostics.raw_full
    return None if full is None or full.whole.n_layers == 0 else full.whole


def _prefinal(run: Compared) -> Comparison | None:
    full = run.diagnostics.raw_full
    return None if full is None or full.prefinal.n_layers == 0 else full.prefinal


def _score_v2(run: Compared) -> float | None:
    """The second score; None where the files lack the distances that it adds to the first."""
    whole = _whole(run)
    if whole is None or None in (whole.js_divergence_percentiles["p50"], whole.l1_prob_diff_percentiles["p50"]):
        return None
    return whole.score.v2


def _preferred_layer(run: Compared) -> int | None:
    return None if run.preferred is None else run.layer(run.preferred)


def _preferred_frac(run: Compared) -> float | None:
    return None if run.preferred is None else run.fraction(run.preferred)


def _drift(run: Compared) -> float | None:
    """Entropy of the lens less that of the model's output at half depth, in bits."""
    claim = drift(run)
    return claim.value if claim is not None and isinstance(claim.value, float) else None


def _line(name: str) -> _Get:
    """Of the line through the stream's lengths; None where these are not recorded, and only a proxy stands for them."""

    def get(run: Compared) -> float | None:
        trajectory, curve = run.diagnostics.trajectory, run.evidence.curve()
        known = trajectory is not None and curve is not None and bool(curve.values("raw_resid_norm"))
        return getattr(trajectory, name) if known else None

    return get


def _entropy_gap(quarter: str) -> _Get:
    return lambda run: None if run.diagnostics.entropy_gap is None else run.diagnostics.entropy_gap.percentiles[quarter]


def _facts(name: str) -> _Get:
    """A field of the statistics of rank 1 over facts; None for a run of one fact, whose layer is no statistic."""
    return lambda run: None if (summary := _summary(run)) is None else getattr(summary, name)


def _bound(place: int) -> _Get:
    def get(run: Compared) -> float | None:
        summary = _summary(run)
        return None if summary is None or summary.interval_95 is None else summary.interval_95[place]

    return get


def _summary(run: Compared) -> Summary | None:
    statistics = run.diagnostics.statistics
    return statistics.by_milestone.get(ONSET) if statistics.n > 1 else None


def _median_frac(run: Compared) -> float | None:
    summary = _summary(run)
    return None if summary is None or summary.median is None else round(summary.median / run.n_layers, 3)


def _part(of: Callable[[Compared], object], *names: str) -> _Get:
    """A field of a field of something that a run may lack."""

    def get(run: Compared) -> Value:
        value: Any = of(run)
        for name in names:
            value = None if value is None else getattr(value, name)
        return value  # type: ignore[no-any-return]  # the column's type refuses anything else

    return get


def _gain(lens: str, quarter: str) -> _Get:
    def get(run: Compared) -> float | None:
        audit = run.diagnostics.fitted_lenses.get(lens)
        return None if audit is None else audit.kl_bits_at_percentiles[quarter].delta

    return get


def _rank_change(lens: str, rank: int) -> _Get:
    def get(run: Compared) -> int | None:
        audit = run.diagnostics.fitted_lenses.get(lens)
        return None if audit is None else audit.rank_milestones[rank].delta

    return get


def _layer(name: str) -> _Get:
    return lambda run: run.layer(name)


def _fraction(name: str) -> _Get:
    return lambda run: run.fraction(name)


def _columns(dtype: _DataType, /, **of: _Get) -> tuple[_Column, ...]:
    return tuple(_Column(name, dtype, get) for name, get in of.items())


_TEXT, _INT, _REAL, _TRUTH = pl.String(), pl.Int32(), pl.Float64(), pl.Boolean()
_QUARTERS = ("p25", "p50", "p75")
_COLUMNS = (
    *_columns(
        _TEXT,
        model=lambda run: run.name,
        model_id=lambda run: run.model,
        run=lambda run: run.run,
        family=lambda run: run.family,
        protocol=lambda run: run.evidence.record.protocol.name,
        protocol_version=lambda run: run.evidence.record.protocol.version,
        headline_lens=lambda run: run.evidence.headline,
        norm_strategy=lambda run: run.strategy,
        stack=lambda run: run.evidence.record.measured.stack,
    ),
    *_columns(
        _INT,
        n_layers=lambda run: run.n_layers,
        d_model=lambda run: run.evidence.record.model.d_model,
        d_vocab=lambda run: run.evidence.record.model.d_vocab,
    ),
    *_columns(_TRUTH, answer_resolved=gold_resolved),
    *_columns(_INT, **{name: _layer(name) for name in _LAYERS}),
    *_columns(_REAL, **{f"{name}_frac": _fraction(name) for name in _FRACTIONS}),
    *_columns(_TEXT, preferred_milestone=lambda run: run.preferred),
    *_columns(_INT, preferred_layer=_preferred_layer),
    *_columns(_REAL, preferred_frac=_preferred_frac),
    *_columns(_TEXT, strength=lambda run: run.strength, earliness=lambda run: run.earliness),
    *_columns(pl.List(pl.String), weaknesses=lambda run: [*run.weaknesses]),
    *_columns(
        _TRUTH,
        margin_ok_at_L_semantic=lambda run: run.diagnostics.margin_ok_at_semantic,
        copy_reflex=lambda run: run.diagnostics.copies_early,
    ),
    *_columns(_REAL, gap_at_L_semantic=lambda run: run.diagnostics.gap_at_semantic),
    *_columns(_TEXT, confirmed_source=_part(lambda run: run.diagnostics.confirmation, "source")),
    *_columns(_TRUTH, confirmed_nontrivial=_part(lambda run: run.diagnostics.confirmation, "nontrivial")),
    *_columns(
        _INT,
        L_semantic_raw=_part(lambda run: run.diagnostics.confirmation, "onset_raw"),
        L_semantic_tuned=_part(lambda run: run.diagnostics.confirmation, "onset_tuned"),
    ),
    *_columns(
        _REAL,
        last_layer_kl_bits=_part(_last, "measured", "kl_to_final_bits"),
        last_layer_temperature=_part(_last, "measured", "temp_est"),
        last_layer_kl_after_temperature_bits=_part(_last, "measured", "kl_after_temp_bits"),
        softcap=_part(_last, "measured", "softcap"),
        last_layer_kl_after_softcap_bits=_part(_last, "measured", "kl_after_softcap_bits"),
    ),
    *_columns(_TRUTH, warn_high_last_layer_kl=_part(_last, "warn_high_last_layer_kl")),
    *_columns(_TEXT, sampled_risk=_part(lambda run: run.diagnostics.raw_sample, "lens_artifact_risk")),
    *_columns(
        _REAL,
        **{
            "sampled_max_kl_bits": _part(lambda run: run.diagnostics.raw_sample, "max_kl_norm_vs_raw_bits"),
            "artefact_score_v1": _part(_whole, "score", "v1"),
            "artefact_score_v2": _score_v2,
            "artefact_score_v1_prefinal": _part(_prefinal, "score", "v1"),
            "share_layers_kl_ge_1.0": _part(_whole, "pct_layers_kl_ge_1_0"),
            "share_layers_kl_ge_0.5": _part(_whole, "pct_layers_kl_ge_0_5"),
            "max_kl_norm_vs_raw_bits": _part(_whole, "max_kl_norm_vs_raw_bits"),
        },
    ),
    *_columns(
        _TEXT, artefact_tier=_part(_whole, "score", "tier"), artefact_tier_prefinal=_part(_prefinal, "score", "tier")
    ),
    *_columns(
        _INT,
        n_norm_only_layers=_part(_whole, "n_norm_only_semantics_layers"),
        first_norm_only_layer=_part(_whole, "earliest_norm_only_semantic"),
    ),
    *_columns(
        _REAL,
        **{
            "entropy_drift_mid_bits": _drift,
            **{f"entropy_gap_{quarter}_bits": _entropy_gap(quarter) for quarter in _QUARTERS},
            "trajectory_slope": _line("slope"),
            "trajectory_r2": _line("r2"),
        },
    ),
    *_columns(_INT, trajectory_spikes=_part(lambda run: run.diagnostics.trajectory, "n_spikes")),
    *_columns(_REAL, **{f"{lens}_delta_kl_{q}_bits": _gain(lens, q) for lens in ("prism", "tuned") for q in _QUARTERS}),
    *_columns(
        _INT,
        **{
            f"{lens}_delta_rank_le_{rank}": _rank_change(lens, rank)
            for lens in ("prism", "tuned")
            for rank in (10, 5, 1)
        },
    ),
    *_columns(
        _TEXT,
        prism_verdict=_part(lambda run: run.diagnostics.fitted_lenses.get("prism"), "verdict"),
        tuned_verdict=_part(lambda run: run.diagnostics.fitted_lenses.get("tuned"), "verdict"),
        preferred_lens=lambda run: run.evidence.verdict.guidance.preferred_lens,
    ),
    *_columns(
        _TRUTH,
        prefer_tuned=_part(lambda run: run.diagnostics.attribution, "prefer_tuned"),
        prefer_ranks=lambda run: run.evidence.verdict.guidance.prefer_ranks,
        suppress_abs_probs=lambda run: run.evidence.verdict.guidance.suppress_abs_probs,
    ),
    *_columns(
        pl.List(pl.String),
        guidance_reasons=lambda run: [reason.name for reason in run.evidence.verdict.guidance.reasons],
    ),
    *_columns(_INT, facts_n=lambda run: run.diagnostics.statistics.n, facts_missing=_facts("n_missing")),
    *_columns(
        _REAL,
        facts_median=_facts("median"),
        facts_median_frac=_median_frac,
        facts_p25=_facts("p25"),
        facts_p75=_facts("p75"),
        facts_interval_95_low=_bound(0),
        facts_interval_95_high=_bound(1),
    ),
    *_columns(_TEXT, facts_interval_reason=_facts("interval_reason")),
)
"""In the order of the table; `not_comparable` comes last."""
