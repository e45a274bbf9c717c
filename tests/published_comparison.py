"""Published runs judged by us, and what they say of themselves in their JSON, quantity by quantity."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from layerscope.analysis.curve import Curve
from layerscope.analysis.diagnostics import Verdict, judge
from layerscope.analysis.facts import ControlSummary, control_summary
from layerscope.analysis.fitted_lens_audit import FittedLensAudit
from layerscope.analysis.milestones import Milestones, layers_between
from layerscope.analysis.percentiles import depth_fraction, depth_layer
from layerscope.analysis.raw_comparison import window_check
from layerscope.published.read.reader import read_published
from layerscope.published.write.json_summary import published_guidance, published_micro_suite
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds
from layerscope.record.run_record import RunRecord

SEPTEMBER_21, SEPTEMBER_28, OCTOBER_4 = "run-20250921-1713", "run-20250928-1722", "run-20251004-1804"
TINY = "tiny-qwen3/published"
NO_TUNED = ("Meta-Llama-3-70B", "Qwen2.5-72B")
"""Models without a tuned lens."""
TUNED = (
    "Meta-Llama-3-8B", "Mistral-7B-v0.1", "Mistral-Small-24B-Base-2501", "Qwen3-14B", "Qwen3-8B", "Yi-34B",
    "gemma-2-27b", "gemma-2-9b",
)  # fmt: skip
TEN = (*TUNED, *NO_TUNED)
SWEEPS: dict[str, Sequence[str]] = {
    SEPTEMBER_21: ("Qwen2.5-72B",),
    SEPTEMBER_28: TEN,
    OCTOBER_4: TEN,
    TINY: ("tiny-qwen3",),
}
"""Which models each folder holds."""

RELATIVE = 1e-12
"""How far a real number may be off: by the rounding of sums in float64, and nothing else.

Tables and JSON print the same numbers with all their digits, and what is derived from them was derived in float64. So
all reals agree to the last bit, but for the line through the norms, whose sums may be taken in another order.
"""
FLOAT32_ENTROPY = 1e-6
"""The same, in bits, for the entropy in `final_prediction`: it was summed in float32, where a step at 2 to 4 bits is
2.4e-7, and the one in the tables was summed in another order."""


@dataclass(frozen=True)
class PublishedRun:
    """One model of one folder: its files, read and judged."""

    sweep: str
    model: str
    folder: Path
    rows: pl.DataFrame
    record: RunRecord
    verdict: Verdict
    document: Mapping[str, Any]
    """Its JSON, read without our reader."""

    def said(self, place: str) -> Any:
        """A member by its place, `diagnostics/L_copy`; None where it is null or absent."""
        found: Any = self.document
        for key in place.split("/"):
            if isinstance(found, list):
                found = found[int(key)]
            elif isinstance(found, dict):
                found = found.get(key)
            else:
                return None
        return found

    def table(self, suffix: str) -> list[dict[str, str]]:
        """A table, read without our reader."""
        path = self.folder / f"output-{self.model}-{suffix}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, escapechar="\\"))

    @property
    def n_layers(self) -> int:
        return int(self.document["model_stats"]["num_layers"])

    @property
    def own(self) -> Milestones:
        """Of the primary prompt under the headline lens."""
        return self.verdict.milestones.of()

    def curve(self, lens: str, asked: PromptKey | None = None) -> Curve:
        found = self.verdict.curves.get(asked or self.verdict.diagnostics.primary, lens)
        assert found is not None, (self.sweep, self.model, lens)
        return found


def read_run(folder: Path, model: str) -> tuple[pl.DataFrame, RunRecord]:
    """The one place that knows what the reader returns."""
    found = read_published(folder, model)
    return found.rows, found.record


def published_run(shared: Path, sweep: str, model: str) -> PublishedRun:
    """One model of a published folder."""
    return run_of(shared / "reference" / sweep, sweep, model)


@cache
def run_of(folder: Path, sweep: str, model: str) -> PublishedRun:
    """One model of any folder, read once in a session."""
    rows, record = read_run(folder, model)
    document = json.loads((folder / f"output-{model}.json").read_text(encoding="utf-8"))
    return PublishedRun(sweep, model, folder, rows, record, judge(rows, record), document)


@dataclass(frozen=True)
class Check:
    """One quantity, as published and as found by us."""

    sweep: str
    model: str
    place: str
    """In the JSON."""
    published: Any
    ours: Any
    absolute: float = 0.0

    @property
    def agrees(self) -> bool:
        return agree(self.published, self.ours, self.absolute)

    @property
    def name(self) -> tuple[str, str, str]:
        return self.sweep, self.model, self.place


def agree(published: Any, ours: Any, absolute: float = 0.0) -> bool:
    """Reals up to rounding, everything else exactly and of the same type; lists item by item."""
    if isinstance(published, float) and type(ours) is float:
        return math.isclose(published, ours, rel_tol=RELATIVE, abs_tol=absolute)
    if isinstance(published, list) and isinstance(ours, list | tuple):
        return len(published) == len(ours) and all(map(agree, published, ours))
    return type(published) is type(ours) and published == ours


Found = Iterator[tuple[str, Any]]
"""Places in the JSON, and what we have for them."""


def _layer(found: Milestones, name: str) -> int | None:
    return found[name].layer


def _milestones(run: PublishedRun) -> Found:
    yield from _plain_milestones("diagnostics", run.own)


_PLAIN = (
    "L_copy", "L_copy_H", "L_semantic", "first_kl_below_1.0", "first_kl_below_0.5", "first_rank_le_1",
    "first_rank_le_5", "first_rank_le_10",
)  # fmt: skip


def _plain_milestones(block: str, found: Milestones) -> Found:
    for name in _PLAIN:
        yield f"{block}/{name}", _layer(found, name)


def _copy_sweep(run: PublishedRun) -> Found:
    yield from _copies("diagnostics", run, run.own)


def _copies(block: str, run: PublishedRun, found: Milestones) -> Found:
    """Soft copies from generation D on, strict ones by threshold from F on."""
    if run.said(f"{block}/L_copy_soft") is not None:
        for k in (1, 2, 3):
            yield f"{block}/L_copy_soft/{k}", _layer(found, f"L_copy_soft_k{k}")
    if run.said(f"{block}/copy_thresholds") is not None:
        for threshold in ("0.7", "0.8", "0.9", "0.95"):
            layer = _layer(found, f"L_copy_strict@{threshold}")
            yield f"{block}/copy_thresholds/L_copy_strict/{threshold}", layer
            yield f"{block}/copy_thresholds/L_copy_strict_frac/{threshold}", depth_fraction(layer, run.n_layers)


def _differences(run: PublishedRun) -> Found:
    """Layers from copying to meaning, and the copy layers under their second name."""
    yield from _copy_detector("diagnostics", run, run.own)


def _copy_detector(block: str, run: PublishedRun, found: Milestones) -> Found:
    delta = layers_between(found["L_semantic"].layer, found["L_copy"].layer)
    yield f"{block}/delta_layers", delta
    if run.said(f"{block}/copy_detector") is None:
        return
    yield f"{block}/copy_detector/strict/L_copy_strict", _layer(found, "L_copy")
    yield f"{block}/copy_detector/deltas/Δ_sem_minus_copy_strict", delta
    for k in (1, 2, 3):
        soft = layers_between(found["L_semantic"].layer, found[f"L_copy_soft_k{k}"].layer)
        yield f"{block}/delta_layers_soft/{k}", soft
        yield f"{block}/copy_detector/soft/L_copy_soft/k{k}", _layer(found, f"L_copy_soft_k{k}")
        yield f"{block}/copy_detector/deltas/Δ_sem_minus_copy_soft/k{k}", soft


def _copy_stability(run: PublishedRun) -> Found:
    copies = run.verdict.diagnostics.copy_thresholds
    if run.said("diagnostics/copy_thresholds") is None or copies is None:
        return
    yield "diagnostics/copy_thresholds/stability", copies.stability
    for threshold, flag in copies.norm_only_flags.items():
        yield f"diagnostics/copy_thresholds/norm_only_flags/{threshold:g}", flag


def _surface(run: PublishedRun) -> Found:
    yield from _surface_and_geometry("diagnostics", "norm", run, run.own, run.curve("next_norm"))


def _surface_and_geometry(block: str, lens: str, run: PublishedRun, found: Milestones, curve: Curve) -> Found:
    """From generation E on, with the values at each layer; cosines from F on."""
    if run.said("diagnostics/surface_diagnostics_config") is not None:
        surface, geometry, decay = (_layer(found, m) for m in ("L_surface_to_meaning", "L_geom", "L_topk_decay"))
        yield f"{block}/L_surface_to_meaning_{lens}", surface
        yield f"{block}/answer_mass_at_L_surface_{lens}", curve.value("answer_mass", surface)
        yield f"{block}/echo_mass_at_L_surface_{lens}", curve.value("echo_mass_prompt", surface)
        yield f"{block}/L_geom_{lens}", geometry
        yield f"{block}/cos_to_answer_at_L_geom_{lens}", curve.value("cos_to_answer", geometry)
        yield f"{block}/cos_to_prompt_max_at_L_geom_{lens}", curve.value("cos_to_prompt_max", geometry)
        yield f"{block}/L_topk_decay_{lens}", decay
        yield f"{block}/topk_prompt_mass_at_L_{lens}", curve.value("topk_prompt_mass@50", decay)
    if run.said(f"{block}/cos_milestones/{lens}") is not None:
        for cosine in ("0.2", "0.4", "0.6"):
            yield f"{block}/cos_milestones/{lens}/ge_{cosine}", _layer(found, f"cos_ge_{cosine}")


def _tuned_rows(run: PublishedRun) -> Found:
    """All of the above on the tuned lens' rows, prompt by prompt, and of the primary prompt once more."""
    if run.said("tuned_lens/summaries") is None:
        return
    by_pass = run.verdict.milestones.by_pass("tuned")
    assert len(by_pass) == len(run.said("tuned_lens/summaries"))
    for i, (asked, found) in enumerate(by_pass.items()):
        block, curve = f"tuned_lens/summaries/{i}", run.curve("tuned", asked)
        yield from _plain_milestones(block, found)
        yield from _copies(block, run, found)
        yield from _copy_detector(block, run, found)
        yield from _surface_and_geometry(block, "tuned", run, found, curve)
    yield from _surface_and_geometry(
        "diagnostics", "tuned", run, run.verdict.milestones.of("tuned"), run.curve("tuned")
    )


def _prompts(run: PublishedRun) -> Found:
    """Ablation and control; a clear lead of the control's answer from generation K on."""
    ablation, control = run.verdict.diagnostics.ablation, run.verdict.diagnostics.control
    for name in ("L_copy_orig", "L_sem_orig", "L_copy_nf", "L_sem_nf", "delta_L_copy", "delta_L_sem"):
        yield f"ablation_summary/{name}", getattr(ablation, name)
    yield "control_summary/first_control_margin_pos", control.first_control_margin_pos
    yield "control_summary/max_control_margin", control.max_control_margin
    if run.said("control_summary/delta_top2_logit_ctl") is not None:
        strong = control_with_leads(run)
        for name in ("first_control_strong_pos", "max_control_top2_logit_gap", "delta_top2_logit_ctl"):
            yield f"control_summary/{name}", getattr(strong, name)


def control_with_leads(run: PublishedRun) -> ControlSummary:
    """The control with its answer's lead over the second logit.

    Published tables have no column `control_top2_logit_gap`. On a control it is the answer's own lead, which they have.
    """
    control = next(asked for asked in run.verdict.curves.passes if not asked.is_fact)
    curve = run.curve("next_norm", control)
    rows = tuple({**row, "control_top2_logit_gap": row["answer_logit_gap"]} for row in curve.rows)
    return control_summary(replace(curve, rows=rows), Thresholds())


_FRACTIONS = {
    "L_semantic_frac": "L_semantic",
    "first_rank_le_5_frac": "first_rank_le_5",
    "L_copy_strict_frac": "L_copy_strict@0.95",
    "L_copy_soft_k1_frac": "L_copy_soft_k1",
    "L_copy_soft_k2_frac": "L_copy_soft_k2",
    "L_copy_soft_k3_frac": "L_copy_soft_k3",
}


def _depth_fractions(run: PublishedRun) -> Found:
    """From generation F on; that of a run of two from K on."""
    block = "diagnostics/depth_fractions"
    if run.said(block) is None:
        return
    for name, milestone in _FRACTIONS.items():
        yield f"{block}/{name}", depth_fraction(_layer(run.own, milestone), run.n_layers)
    if run.said("diagnostics/semantic_gate") is not None:
        yield f"{block}/L_semantic_run2_frac", depth_fraction(_layer(run.own, "L_semantic_run2"), run.n_layers)


def _confirmation(run: PublishedRun) -> Found:
    """From generation G on."""
    block, found = "diagnostics/confirmed_semantics", run.verdict.diagnostics.confirmation
    if run.said(block) is None or found is None:
        return
    yield f"{block}/L_semantic_norm", found.onset
    yield f"{block}/L_semantic_raw", found.onset_raw
    yield f"{block}/L_semantic_tuned", found.onset_tuned
    yield f"{block}/L_semantic_confirmed", found.layer
    yield f"{block}/confirmed_source", found.source
    yield f"{block}/Δ_window", found.window_layers
    yield "diagnostics/L_semantic_confirmed", found.layer


def _raw_full(run: PublishedRun) -> Found:
    """From generation G on, the last layer included."""
    block, found = "diagnostics/raw_lens_full", run.verdict.diagnostics.raw_full
    if run.said(block) is None or found is None:
        return
    whole = found.whole
    yield f"{block}/pct_layers_kl_ge_1.0", whole.pct_layers_kl_ge_1_0
    yield f"{block}/pct_layers_kl_ge_0.5", whole.pct_layers_kl_ge_0_5
    yield f"{block}/n_norm_only_semantics_layers", whole.n_norm_only_semantics_layers
    yield f"{block}/earliest_norm_only_semantic", whole.earliest_norm_only_semantic
    yield f"{block}/max_kl_norm_vs_raw_bits", whole.max_kl_norm_vs_raw_bits
    yield f"{block}/score/lens_artifact_score", whole.score.v1
    yield f"{block}/score/tier", whole.score.tier


def _raw_percentiles(run: PublishedRun) -> Found:
    """From generation I on."""
    block, found = "diagnostics/raw_lens_full", run.verdict.diagnostics.raw_full
    if run.said(f"{block}/js_divergence_percentiles") is None or found is None:
        return
    for name in ("p25", "p50", "p75"):
        yield f"{block}/js_divergence_percentiles/{name}", found.whole.js_divergence_percentiles[name]
        yield f"{block}/l1_prob_diff_percentiles/{name}", found.whole.l1_prob_diff_percentiles[name]
    overlap = found.topk_overlap
    yield f"{block}/first_js_le_0.1", found.first_js_le_0_1
    yield f"{block}/first_l1_le_0.5", found.first_l1_le_0_5
    yield f"{block}/teacher_entropy_bits", found.teacher_entropy_bits
    yield f"{block}/score/lens_artifact_score_v2", found.whole.score.v2
    yield f"{block}/topk_overlap/K", overlap.k
    yield f"{block}/topk_overlap/jaccard_raw_norm_p50", overlap.jaccard_raw_norm_p50
    yield f"{block}/topk_overlap/first_jaccard_raw_norm_ge_0.5", overlap.first_jaccard_raw_norm_ge_0_5
    for layer in range(run.n_layers + 1):
        yield f"{block}/topk_overlap/per_layer_raw_norm/{layer}", overlap.per_layer_raw_norm[layer]
        place = f"{block}/topk_overlap/per_layer_consecutive_norm/{layer}"
        yield place, overlap.per_layer_consecutive_norm[layer]


def _raw_sample(run: PublishedRun) -> Found:
    """Recomputed from the table of the full sweep, so from generation G on; the first four samples are fact 0's."""
    found = run.verdict.diagnostics.raw_sample
    if run.said("diagnostics/raw_lens_full") is None or found is None:
        return
    for name in ("first_norm_only_semantic_layer", "max_kl_norm_vs_raw_bits", "lens_artifact_risk"):
        yield f"raw_lens_check/summary/{name}", getattr(found, name)
    for i, sample in enumerate(found.samples):
        for name in ("layer", "kl_norm_vs_raw_bits", "top1_agree"):
            yield f"raw_lens_check/samples/{i}/{name}", getattr(sample, name)
        for name in ("p_top1", "p_answer", "answer_rank", "is_answer"):
            yield f"raw_lens_check/samples/{i}/{name}_norm", getattr(sample, name)
            yield f"raw_lens_check/samples/{i}/{name}_raw", getattr(sample, f"{name}_raw")


def _raw_window(run: PublishedRun) -> Found:
    """With the radius of 4 that every published run has: what our own radius changes is caveat C3."""
    found, block = run.verdict.diagnostics.raw_window, "diagnostics/raw_lens_window"
    if run.said(block) is None or found is None:
        return
    narrow = window_check(run.curve("next_norm"), run.curve("raw"), found.center_layers)
    yield f"{block}/radius", narrow.radius
    yield f"{block}/center_layers", found.center_layers
    yield f"{block}/layers_checked", narrow.layers_checked
    yield f"{block}/norm_only_semantics_layers", narrow.norm_only_semantics_layers
    yield f"{block}/max_kl_norm_vs_raw_bits_window", narrow.max_kl_norm_vs_raw_bits_window


def _own_window(run: PublishedRun) -> Found:
    """The window of our verdict, which is wider where the sample warns."""
    found, block = run.verdict.diagnostics.raw_window, "diagnostics/raw_lens_window"
    if run.said(block) is None or found is None:
        return
    yield f"{block}/radius", found.radius
    yield f"{block}/layers_checked", found.layers_checked
    yield f"{block}/norm_only_semantics_layers", found.norm_only_semantics_layers
    yield f"{block}/max_kl_norm_vs_raw_bits_window", found.max_kl_norm_vs_raw_bits_window


def _sidecars(run: PublishedRun) -> Found:
    """Prism and Tuned Lens against the norm lens, from generation F on."""
    blocks = {"prism": "diagnostics/prism_summary/metrics", "tuned": "tuned_lens/summary/metrics"}
    for lens, block in blocks.items():
        if run.said(block) is not None:
            yield from _sidecar(block, lens, run.verdict.diagnostics.fitted_lenses[lens])


def _sidecar(block: str, lens: str, found: FittedLensAudit) -> Found:
    for rank, layers in found.rank_milestones.items():
        for side, layer in (("baseline", layers.baseline), (lens, layers.fitted), ("delta", layers.delta)):
            yield f"{block}/rank_milestones/{side}/le_{rank}", layer
    for name, bits in found.kl_bits_at_percentiles.items():
        for side, value in (("baseline", bits.baseline), (lens, bits.fitted), ("delta", bits.delta)):
            yield f"{block}/kl_bits_at_percentiles/{side}/{name}", value
    near = found.first_kl_le_1_0
    for side, layer in (("baseline", near.baseline), (lens, near.fitted), ("delta", near.delta)):
        yield f"{block}/first_kl_le_1.0/{side}", layer


def _attribution(run: PublishedRun) -> Found:
    """From generation G on."""
    block, found = "tuned_lens/attribution", run.verdict.diagnostics.attribution
    if run.said(block) is None or found is None:
        return
    yield f"{block}/prefer_tuned", found.prefer_tuned
    for name, gain in found.percentiles.items():
        yield f"{block}/percentiles/{name}/ΔKL_tuned", gain.tuned_bits
        yield f"{block}/percentiles/{name}/ΔKL_temp", gain.temperature_bits
        yield f"{block}/percentiles/{name}/ΔKL_rot", gain.rotation_bits


def _norm_temperature(run: PublishedRun) -> Found:
    """From generation E on."""
    for percent in (25, 50, 75):
        block = f"diagnostics/kl_to_final_bits_norm_temp@{percent}%"
        if run.said(block) is not None:
            layer = depth_layer(percent / 100, run.n_layers)
            yield f"{block}/layer", layer
            yield f"{block}/value", run.curve("next_norm").value("kl_to_final_bits_norm_temp", layer)


def _last_layer(run: PublishedRun) -> Found:
    """From the last row, and the gate from the two divergences that the JSON itself gives."""
    block, curve = "diagnostics/last_layer_consistency", run.curve("next_norm")
    places = {"kl_to_final_bits": "kl_to_final_bits", "p_top1_lens": "p_top1", "p_answer_lens": "p_answer"}
    for place, column in (places | {"answer_rank_lens": "answer_rank"}).items():
        yield f"{block}/{place}", curve.value(column, run.n_layers)
    found = run.verdict.diagnostics.last_layer
    assert found is not None
    yield f"{block}/warn_high_last_layer_kl", found.warn_high_last_layer_kl
    if run.said(f"{block}/gates") is not None:
        yield f"{block}/gates/warn_high_last_layer_kl", found.warn_high_last_layer_kl
        yield f"{block}/gates/threshold_bits", found.threshold_bits
        yield f"{block}/gates/delta_kl_temp_bits", found.delta_kl_temp_bits


def _final_prediction(run: PublishedRun) -> Found:
    """From generation E on, which first has the model's own entropy in its tables."""
    if run.curve("next_norm").values("teacher_entropy_bits"):
        yield "final_prediction/entropy", run.curve("next_norm").value("teacher_entropy_bits", run.n_layers)


def _guidance(run: PublishedRun) -> Found:
    """From generation F on."""
    block = "measurement_guidance"
    if run.said(block) is None:
        return
    for name, value in published_guidance(run.verdict.guidance).items():
        yield f"{block}/{name}", value


def _gates(run: PublishedRun) -> Found:
    """What needs the lead over the second logit: from generation H on, much of it from K on."""
    gates, gap = run.own, run.verdict.diagnostics.gap_at_semantic
    blocks = {"diagnostics": gates}
    if run.said("tuned_lens/summaries") is not None:
        by_pass = run.verdict.milestones.by_pass("tuned").values()
        blocks |= {f"tuned_lens/summaries/{i}": found for i, found in enumerate(by_pass)}
    for block, found in blocks.items():
        if run.said(f"{block}/answer_margin_thresholds") is not None:
            for lead in ("0.5", "1.0"):
                yield f"{block}/answer_margin_thresholds/gap_ge_{lead}", _layer(found, f"gap_ge_{lead}")
    block = "diagnostics/semantic_gate"
    if run.said(block) is not None:
        top2, strong, run2 = (
            _layer(gates, name) for name in ("L_semantic_top2_ok", "L_semantic_strong", "L_semantic_strong_run2")
        )
        yield f"{block}/L_semantic_top2_ok_norm", top2
        yield f"{block}/L_semantic_top2_ok_norm_frac", depth_fraction(top2, run.n_layers)
        yield f"{block}/gap_at_L_semantic_norm", gap
        yield f"{block}/L_semantic_strong", strong
        yield f"{block}/L_semantic_strong_run2", run2
        fractions = "diagnostics/depth_fractions"
        yield f"{fractions}/L_semantic_strong_frac", depth_fraction(strong, run.n_layers)
        yield f"{fractions}/L_semantic_strong_run2_frac", depth_fraction(run2, run.n_layers)


def _margins(run: PublishedRun) -> Found:
    """Entropy gap from generation I on, margin from J on, run of two from K on."""
    found = run.verdict.diagnostics
    if run.said("diagnostics/entropy_gap_bits_percentiles") is not None and found.entropy_gap is not None:
        for name, bits in found.entropy_gap.percentiles.items():
            yield f"diagnostics/entropy_gap_bits_percentiles/{name}", bits
        yield "diagnostics/entropy_gap_samples", found.entropy_gap.n_layers
    block = "diagnostics/semantic_margin"
    if run.said(block) is not None:
        margin_ok, confirmed = _layer(run.own, "L_semantic_margin_ok"), _layer(run.own, "L_semantic_confirmed")
        yield "diagnostics/L_semantic_margin_ok", margin_ok
        yield f"{block}/p_uniform", 1 / run.record.model.d_vocab
        yield f"{block}/L_semantic_margin_ok_norm", margin_ok
        yield f"{block}/margin_ok_at_L_semantic_norm", found.margin_ok_at_semantic
        yield f"{block}/p_answer_at_L_semantic_norm", run.own["L_semantic"].p_answer
        yield f"{block}/L_semantic_confirmed_margin_ok_norm", confirmed if confirmed == margin_ok else None
    if run.said("diagnostics/semantic_gate") is not None:
        yield "diagnostics/semantic_gate/L_semantic_run2", _layer(run.own, "L_semantic_run2")


def _trajectory(run: PublishedRun) -> Found:
    """From generation I on."""
    block, found = "diagnostics/norm_trajectory", run.verdict.diagnostics.trajectory
    if run.said(block) is not None:
        for name in ("shape", "slope", "r2", "n_spikes", "sampled_layers"):
            yield f"{block}/{name}", getattr(found, name)


def _micro_suite(run: PublishedRun) -> Found:
    """From generation J on."""
    if run.said("micro_suite") is None:
        return
    found = published_micro_suite(run.verdict.diagnostics.micro_suite)
    for i, fact in enumerate(found["facts"]):
        for name, value in fact.items():
            yield f"micro_suite/facts/{i}/{name}", value
    for name, value in found["aggregates"].items():
        yield f"micro_suite/aggregates/{name}", value
    for name, row in found["citations"]["fact_rows"].items():
        yield f"diagnostics/micro_suite/citations/fact_rows/{name}", row


def _evaluation_pack(run: PublishedRun) -> Found:
    """The pack's own rounding; from generation I on."""
    block = "evaluation_pack/milestones/depth_fractions"
    if run.said(block) is not None:
        yield f"{block}/copy_strict_frac", depth_fraction(_layer(run.own, "L_copy"), run.n_layers, 4)
        yield f"{block}/semantic_frac", depth_fraction(_layer(run.own, "L_semantic"), run.n_layers, 4)
        delta_hat = run.verdict.diagnostics.micro_suite.facts[0].delta_hat
        yield f"{block}/delta_hat", None if delta_hat is None else round(delta_hat, 4)


GROUPS: dict[str, Callable[[PublishedRun], Found]] = {
    "milestones": _milestones,
    "copying by threshold": _copy_sweep,
    "differences of milestones": _differences,
    "stability of copying": _copy_stability,
    "surface, geometry, cosines": _surface,
    "tuned rows": _tuned_rows,
    "ablation and control": _prompts,
    "depth fractions": _depth_fractions,
    "confirmation": _confirmation,
    "raw lens, every layer": _raw_full,
    "raw lens, percentiles": _raw_percentiles,
    "raw lens, sample": _raw_sample,
    "raw lens, window of radius 4": _raw_window,
    "raw lens, our window": _own_window,
    "prism and tuned lens": _sidecars,
    "attribution": _attribution,
    "norm temperature": _norm_temperature,
    "last layer": _last_layer,
    "final prediction": _final_prediction,
    "guidance": _guidance,
    "leads over the second logit": _gates,
    "entropy gap, margin, run of two": _margins,
    "trajectory": _trajectory,
    "micro-suite": _micro_suite,
    "evaluation pack": _evaluation_pack,
}
"""By name, what is compared together."""


def checks(group: str, run: PublishedRun) -> list[Check]:
    """Everything of a group that the run's files hold."""
    absolute = FLOAT32_ENTROPY if group == "final prediction" else 0.0
    return [Check(run.sweep, run.model, place, run.said(place), ours, absolute) for place, ours in GROUPS[group](run)]
