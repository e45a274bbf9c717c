"""Runs side by side as one table for other programs: a row for each, every column of one type."""

from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any, TypeAlias

import polars as pl

from layerscope.analysis.onsets import CLEARLY_AHEAD, ON_TOP_FOR_GOOD
from layerscope.analysis.statistics import Summary
from layerscope.published.members import value_at
from layerscope.record import milestone_names
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG, STRONG_RUN2, MilestoneName
from layerscope.record.rows import table_bytes
from layerscope.report.cited.evidence import Evidence
from layerscope.report.sentences import answers
from layerscope.report.synthesis.causal_section import patched
from layerscope.report.synthesis.compared import Compared, compared
from layerscope.report.synthesis.limits import gold_resolved, limits, reasons_of, warns
from layerscope.report.synthesis.trust_sections import drift, risk_of
from layerscope.report.synthesis.writes_section import largest, writes

Value: TypeAlias = str | int | float | bool | list[str] | None
_Get: TypeAlias = Callable[[Compared], Value]
_DataType: TypeAlias = Any
"""A `polars.DataType`, a class that beartype refuses to check because of its `repr`."""
CSV, PARQUET = "comparison.csv", "comparison.parquet"
_RANKS = tuple(map(milestone_names.rank_within, (10, 5, 1)))
_LAYERS = (
    *(*_RANKS, ONSET, ON_TOP_FOR_GOOD, MilestoneName.ONSET_RUN2),
    *(MilestoneName.MARGIN_OK, MilestoneName.TOP2_OK, "gap_ge_1.0", STRONG, STRONG_RUN2, CLEARLY_AHEAD, CONFIRMED),
    *(MilestoneName.COPY, *map(milestone_names.copy_soft, (1, 2, 3)), MilestoneName.LOW_ENTROPY),
    *(MilestoneName.SURFACE_TO_MEANING, MilestoneName.GEOMETRY, MilestoneName.TOPK_DECAY),
    *("cos_ge_0.2", "cos_ge_0.4", "cos_ge_0.6", "first_p_top1_gt_0.30", "first_p_top1_gt_0.60"),
    *("first_kl_below_1.0", "first_kl_below_0.5"),
)
"""Milestones of the primary prompt under the headline lens."""
_FRACTIONS = (
    *(*_RANKS[:2], ONSET, ON_TOP_FOR_GOOD, MilestoneName.ONSET_RUN2),
    *(STRONG, STRONG_RUN2, CLEARLY_AHEAD, CONFIRMED),
    *(MilestoneName.COPY, MilestoneName.SURFACE_TO_MEANING, MilestoneName.GEOMETRY),
)
"""Those that stand as a share of the depth too, to three decimals."""


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
    columns = {name: (dtype, _field(of) if isinstance(of, str) else of) for name, (dtype, of) in _COLUMNS.items()}
    columns["not_comparable"] = (_TEXTS, lambda run: reasons_of(run, obstacles))
    return pl.DataFrame(
        {name: [of(run) for run in runs] for name, (_, of) in columns.items()},
        schema={name: dtype for name, (dtype, _) in columns.items()},
    )


def comparison_files(frame: pl.DataFrame) -> dict[str, bytes]:
    """The table as files by name: `comparison.csv` and `comparison.parquet`.

    A list is one text in the CSV, with `; ` between its items; an empty list is an empty text, and null nothing.
    """
    lists = [name for name, dtype in frame.schema.items() if dtype == _TEXTS]
    flat = frame.with_columns(pl.col(lists).list.join("; "))
    return {CSV: flat.write_csv().encode(), PARQUET: table_bytes(frame)}


# Values of a run


def _field(path: str) -> _Get:
    return lambda run: value_at(run, path)


def _compared(stretch: str, path: str) -> _Get:
    """Of the comparison with the raw lens; None where no layer of the stretch has both."""
    return lambda run: value_at(run, f"diagnostics.raw_full.{stretch}.{path}") if _n_compared(run, stretch) else None


def _n_compared(run: Compared, stretch: str) -> int:
    return value_at(run, f"diagnostics.raw_full.{stretch}.n_layers") or 0


def _score_v2(run: Compared) -> float | None:
    """The second score; None where the files lack the distances that it adds to the first."""
    full = run.diagnostics.raw_full
    if full is None or not full.whole.n_layers:
        return None
    added = (full.whole.js_divergence_percentiles["p50"], full.whole.l1_prob_diff_percentiles["p50"])
    return None if None in added else full.whole.score.v2


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


def _over_facts(name: str) -> _Get:
    return lambda run: value_at(_summary(run), name)


def _bound(place: int) -> _Get:
    """Of the interval over facts."""

    def get(run: Compared) -> float | None:
        summary = _summary(run)
        return None if summary is None or summary.interval_95 is None else summary.interval_95[place]

    return get


def _summary(run: Compared) -> Summary | None:
    """Of rank 1 over facts; None for a run of one fact, whose layer is no statistic."""
    statistics = run.diagnostics.statistics
    return statistics.by_milestone.get(ONSET) if statistics.n > 1 else None


def _median_frac(run: Compared) -> float | None:
    summary = _summary(run)
    return None if summary is None or summary.median is None else round(summary.median / run.n_layers, 3)


def _counted(name: str) -> _Get:
    """Of facts; None for a run of one fact."""
    return lambda run: answers.counts(run.diagnostics.answered)[name] if run.diagnostics.answered.n > 1 else None


def _over_answered(layer: str, path: str) -> _Get:
    """Over the answered facts; None for a run of one fact."""
    whole = f"diagnostics.layers_over_facts.{layer}.{path}"
    return lambda run: value_at(run, whole) if run.diagnostics.answered.n > 1 else None


def _handover(name: str) -> _Get:
    """Of the layer from which on patches carry the answer at the last token; None where nothing was patched."""
    return lambda run: None if (found := patched(run)) is None else getattr(found.handover, name)


def _handover_frac(run: Compared) -> float | None:
    found = patched(run)
    layer = None if found is None else found.handover.layer
    return None if layer is None else round(layer / run.n_layers, 3)


def _patch_verdict(run: Compared) -> str | None:
    """Of the headline lens' layer over facts."""
    found = patched(run)
    return None if found is None else str(found.verdict_of(run.evidence.headline))


def _largest_write(name: str) -> _Get:
    """Of the single write that moves the answer most; None where none was put into another run."""
    return lambda run: value_at(largest(run), name)


def _rank_change(lens: str, rank: int) -> _Get:
    def get(run: Compared) -> int | None:
        audit = run.diagnostics.fitted_lenses.get(lens)
        return None if audit is None else audit.rank_milestones[rank].delta

    return get


_TEXT, _INT, _REAL, _TRUTH = pl.String(), pl.Int32(), pl.Float64(), pl.Boolean()
_TEXTS = pl.List(pl.String)
_LAST, _GUIDANCE = "diagnostics.last_layer.measured", "evidence.verdict.guidance"
_QUARTERS, _FITTED = ("p25", "p50", "p75"), ("prism", "tuned")
_COLUMNS: dict[str, tuple[_DataType, str | _Get]] = {
    "model": (_TEXT, "name"),
    "model_id": (_TEXT, "model"),
    "run": (_TEXT, "run"),
    "family": (_TEXT, "family"),
    "protocol": (_TEXT, "evidence.record.protocol.name"),
    "protocol_version": (_TEXT, "evidence.record.protocol.version"),
    "headline_lens": (_TEXT, "evidence.headline"),
    "norm_strategy": (_TEXT, "strategy"),
    "stack": (_TEXT, "evidence.record.measured.stack"),
    "n_layers": (_INT, "n_layers"),
    "d_model": (_INT, "evidence.record.model.d_model"),
    "d_vocab": (_INT, "evidence.record.model.d_vocab"),
    "answer_resolved": (_TRUTH, gold_resolved),
    "answered": (_TRUTH, "answered"),
    **{name: (_INT, methodcaller("layer", name)) for name in _LAYERS},
    **{f"{name}_frac": (_REAL, methodcaller("fraction", name)) for name in _FRACTIONS},
    "preferred_milestone": (_TEXT, "preferred"),
    "preferred_layer": (_INT, lambda run: run.layer(run.preferred) if run.preferred else None),
    "preferred_frac": (_REAL, lambda run: run.fraction(run.preferred) if run.preferred else None),
    "strength": (_TEXT, "strength"),
    "earliness": (_TEXT, "earliness"),
    "weaknesses": (_TEXTS, lambda run: [*run.weaknesses]),
    "margin_ok_at_L_semantic": (_TRUTH, "diagnostics.margin_ok_at_semantic"),
    "copy_reflex": (_TRUTH, "diagnostics.copies_early"),
    "gap_at_L_semantic": (_REAL, "diagnostics.gap_at_semantic"),
    "confirmed_source": (_TEXT, "diagnostics.confirmation.source"),
    "confirmed_nontrivial": (_TRUTH, "diagnostics.confirmation.nontrivial"),
    "L_semantic_raw": (_INT, "diagnostics.confirmation.onset_raw"),
    "L_semantic_tuned": (_INT, "diagnostics.confirmation.onset_tuned"),
    "last_layer_kl_bits": (_REAL, f"{_LAST}.kl_to_final_bits"),
    "last_layer_temperature": (_REAL, f"{_LAST}.temp_est"),
    "last_layer_kl_after_temperature_bits": (_REAL, f"{_LAST}.kl_after_temp_bits"),
    "softcap": (_REAL, f"{_LAST}.softcap"),
    "last_layer_kl_after_softcap_bits": (_REAL, f"{_LAST}.kl_after_softcap_bits"),
    "warn_high_last_layer_kl": (_TRUTH, warns),
    "sampled_risk": (_TEXT, risk_of),
    "sampled_max_kl_bits": (_REAL, "diagnostics.raw_sample.max_kl_norm_vs_raw_bits"),
    "artefact_score_v1": (_REAL, _compared("whole", "score.v1")),
    "artefact_score_v2": (_REAL, _score_v2),
    "artefact_score_v1_prefinal": (_REAL, _compared("prefinal", "score.v1")),
    "share_layers_kl_ge_1.0": (_REAL, _compared("whole", "pct_layers_kl_ge_1_0")),
    "share_layers_kl_ge_0.5": (_REAL, _compared("whole", "pct_layers_kl_ge_0_5")),
    "max_kl_norm_vs_raw_bits": (_REAL, _compared("whole", "max_kl_norm_vs_raw_bits")),
    "artefact_tier": (_TEXT, _compared("whole", "score.tier")),
    "artefact_tier_prefinal": (_TEXT, _compared("prefinal", "score.tier")),
    "n_norm_only_layers": (_INT, _compared("whole", "n_norm_only_semantics_layers")),
    "first_norm_only_layer": (_INT, _compared("whole", "earliest_norm_only_semantic")),
    "entropy_drift_mid_bits": (_REAL, _drift),
    **{f"entropy_gap_{q}_bits": (_REAL, f"diagnostics.entropy_gap.percentiles.{q}") for q in _QUARTERS},
    "trajectory_slope": (_REAL, _line("slope")),
    "trajectory_r2": (_REAL, _line("r2")),
    "trajectory_spikes": (_INT, "diagnostics.trajectory.n_spikes"),
    **{
        f"{lens}_delta_kl_{q}_bits": (_REAL, f"diagnostics.fitted_lenses.{lens}.kl_bits_at_percentiles.{q}.delta")
        for lens in _FITTED
        for q in _QUARTERS
    },
    **{f"{lens}_delta_rank_le_{k}": (_INT, _rank_change(lens, k)) for lens in _FITTED for k in (10, 5, 1)},
    "prism_verdict": (_TEXT, "diagnostics.fitted_lenses.prism.verdict"),
    "tuned_verdict": (_TEXT, "diagnostics.fitted_lenses.tuned.verdict"),
    "preferred_lens": (_TEXT, f"{_GUIDANCE}.preferred_lens"),
    "prefer_tuned": (_TRUTH, "diagnostics.attribution.prefer_tuned"),
    "prefer_ranks": (_TRUTH, f"{_GUIDANCE}.prefer_ranks"),
    "suppress_abs_probs": (_TRUTH, f"{_GUIDANCE}.suppress_abs_probs"),
    "guidance_reasons": (_TEXTS, lambda run: [reason.name for reason in run.evidence.verdict.guidance.reasons]),
    "facts_n": (_INT, "diagnostics.statistics.n"),
    "facts_missing": (_INT, _over_facts("n_missing")),
    "facts_median": (_REAL, _over_facts("median")),
    "facts_median_frac": (_REAL, _median_frac),
    "facts_p25": (_REAL, _over_facts("p25")),
    "facts_p75": (_REAL, _over_facts("p75")),
    "facts_interval_95_low": (_REAL, _bound(0)),
    "facts_interval_95_high": (_REAL, _bound(1)),
    "facts_interval_reason": (_TEXT, _over_facts("interval_reason")),
    "facts_asked": (_INT, _counted("asked")),
    "facts_answered": (_INT, _counted("answered")),
    "facts_lost": (_INT, _counted("lost")),
    **{
        f"answered_{name}_median": (_REAL, _over_answered(name, "summary.median"))
        for name in ("first_on_top", "on_top_for_good", "clearly_ahead")
    },
    **{
        f"handover_{name}": (_INT, _handover(name))
        for name in ("layer", "low", "high", "release", "n_facts", "n_pairs")
    },
    "handover_layer_frac": (_REAL, _handover_frac),
    "handover_verdict": (_TEXT, _patch_verdict),
    "largest_write": (_TEXT, _largest_write("part")),
    "largest_write_layer": (_INT, _largest_write("layer")),
    "largest_write_effect": (_REAL, _largest_write("effect")),
    "write_effects_spearman": (_REAL, lambda run: value_at(writes(run), "spearman_of_shares")),
    "answered_on_top_for_good_median_frac": (_REAL, _over_answered("on_top_for_good", "median_depth")),
}
"""How a run gives the values of each column: by the path of a field, or by a function; `not_comparable` comes last."""
