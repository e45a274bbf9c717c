"""What a run's rows and measurements amount to: milestones of every prompt and lens, audits, statistics, guidance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import polars as pl
import polars.selectors as cs

from layerscope.analysis import (
    acceptance,
    chance,
    comparisons,
    consistency,
    facts,
    fitted_lens_audit,
    guidance,
    handover,
    onsets,
    raw_comparison,
    tuned_audit,
)
from layerscope.analysis.acceptance import Acceptance, SkippingCost
from layerscope.analysis.confirmation import Confirmation, confirm
from layerscope.analysis.curve import Curve, Curves, entropy_gap
from layerscope.analysis.guidance import negated
from layerscope.analysis.judged_view import judge_of, judged_rows
from layerscope.analysis.milestones import (
    CurveMilestones,
    EarlyReflex,
    Gates,
    Milestone,
    Milestones,
    copies_early,
    early_reflex,
    find_milestones,
    layer_of,
    milestones_of,
    semantic_layer,
)
from layerscope.analysis.outputs import AnsweredFacts, Output, answered_facts, outputs
from layerscope.analysis.percentiles import median, quartiles
from layerscope.analysis.quotability import Quotability, quotability
from layerscope.analysis.subject_window import SubjectWindow, subject_window
from layerscope.analysis.trajectory import NormTrajectory, norm_trajectory
from layerscope.analysis.tuned_audit import HeadMismatch, TunedAudit
from layerscope.lens_record import FITTED_NAMES
from layerscope.record.measured import FittedLensRecord, LastLayerRecord
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG_RUN2, MilestoneName
from layerscope.record.parts import Judge
from layerscope.record.patches import no_patches
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Protocol, Thresholds, protocol_of
from layerscope.record.run_record import RunRecord
from layerscope.record.stored_rows import collected


@dataclass(frozen=True)
class AllMilestones:
    """Every milestone of a run: of each prompt under each lens."""

    headline: str
    primary: PromptKey | None
    """The prompt that is meant where none is named."""
    by_curve: Mapping[tuple[PromptKey, str], Milestones]

    def __iter__(self) -> Iterator[Milestone]:
        """All of them, prompt by prompt and lens by lens."""
        return (milestone for milestones in self.by_curve.values() for milestone in milestones.values())

    def of(self, lens: str | None = None, prompt: PromptKey | None = None) -> Milestones:
        """The milestones of one prompt under one lens by name; none where it was not read.

        Args:
            lens: the headline lens where not given.
            prompt: the primary prompt where not given.
        """
        prompt = prompt or self.primary
        return {} if prompt is None else self.by_curve.get((prompt, lens or self.headline), {})

    def by_pass(self, lens: str | None = None) -> dict[PromptKey, Milestones]:
        """The milestones of every prompt under one lens, in the order of the rows."""
        lens = lens or self.headline
        return {prompt: milestones for (prompt, name), milestones in self.by_curve.items() if name == lens}

    def frame(self) -> pl.DataFrame:
        """All of them as a table: one row for each."""
        values = [m.prompt._asdict() | vars(m) | {"milestone": m.name} for m in self]
        rows = [{column: of[column] for column in _FRAME} for of in values]
        return pl.DataFrame(rows, schema=_FRAME)


_FRAME = {
    "fact_index": pl.Int32, "prompt_id": pl.String, "prompt_variant": pl.String, "lens": pl.String,
    "milestone": pl.String, "layer": pl.Int32, "reason": pl.String, "row": pl.Int64, "entropy_bits": pl.Float64,
    "kl_to_final_bits": pl.Float64, "p_answer": pl.Float64, "answer_rank": pl.Int32,
}  # fmt: skip


@dataclass(frozen=True)
class EntropyGap:
    """By how much rows are less certain than the model's own output, over layers."""

    percentiles: Mapping[str, float | None]
    """In bits: `p25`, `p50`, `p75`."""
    n_layers: int
    """How many layers have both entropies."""


@dataclass(frozen=True)
class LastLayer:
    """Whether the last layer under the headline lens says what the model says."""

    measured: LastLayerRecord
    threshold_bits: float
    delta_kl_temp_bits: float | None
    """What one temperature on its logits mends."""
    warn_high_last_layer_kl: bool | None


@dataclass(frozen=True)
class Diagnostics:
    """Everything but the milestones; about the primary prompt under the headline lens unless it says otherwise."""

    headline: str
    primary: PromptKey | None
    judge: Judge
    """What the primary prompt's milestones are about."""
    outputs: Mapping[PromptKey, Output]
    """What the model itself says at the end of every prompt, in the order of the rows."""
    answered: AnsweredFacts
    """Which facts it answers."""
    layers_of_primary: onsets.LayersOfPrompt
    """First on top, on top for good, clearly ahead."""
    layers_over_facts: onsets.LayersOverFacts
    """The same over the facts that are answered, each once."""
    layers_by_lens: Mapping[str, onsets.LayersOverFacts]
    """The same under every lens that was read."""
    blindness: onsets.Blindness
    """How far the headline lens is from the model just before the onset over facts."""
    patching: handover.Patching | None
    """Where patches say that the answer is carried, and every lens against that; None where none were asked for."""
    chance: chance.AgainstChance
    """Whether facts have their own answers on top more often than shuffled ones."""
    quotability: Quotability
    """The status of every layer under every lens."""
    wording: comparisons.WordingEffect
    """Two wordings over all facts."""
    controls: comparisons.ControlAnswers
    """Controls against the facts that they are compared with."""
    early_reflex: EarlyReflex | None
    """Strict copies at layers 1 to 3; None where the primary prompt was not read."""
    subject_window: SubjectWindow | None
    """The answer at positions that know the subject; None where the primary prompt was not read."""
    semantic: Milestone | None
    """The milestone to headline, strongest evidence first; None where the answer never leads."""
    margin_ok_at_semantic: bool | None
    """Whether the answer is clearly more probable than any token at L_semantic; None without that layer."""
    gap_at_semantic: float | None
    """Its lead there, in logits."""
    confirmation: Confirmation | None
    copies_early: bool | None
    """Whether any of layers 0 to 3 echoes the prompt."""
    copy_thresholds: raw_comparison.CopyThresholds | None
    raw_sample: raw_comparison.SampleCheck | None
    raw_window: raw_comparison.WindowCheck | None
    raw_full: raw_comparison.FullCheck | None
    last_layer: LastLayer | None
    entropy_gap: EntropyGap | None
    trajectory: NormTrajectory | None
    decoding_point: consistency.DecodingPoint
    lens_consistency: consistency.LensConsistency | None
    gate_stability: consistency.GateStability | None
    repeatability: consistency.Repeatability
    forward_of_two: consistency.ForwardOfTwo | None
    position_window: facts.PositionWindow | None
    ablation: facts.Ablation
    control: facts.ControlSummary
    micro_suite: facts.MicroSuite
    statistics: facts.FactStatistics
    fitted_lenses: Mapping[str, fitted_lens_audit.FittedLensAudit]
    """Fitted lenses against the headline lens; without that one itself, where it is fitted."""
    attribution: fitted_lens_audit.Attribution | None
    """What of the tuned lens' gain a temperature would give.

    None without a tuned lens, as what follows; this, the audit and acceptance also where that is the headline lens.
    """
    tuned_audit: TunedAudit | None
    """What its parts are worth layer by layer, where along the prompt it helps, and how it ends."""
    acceptance: Acceptance | None
    """Whether it may stand for the headline lens."""
    skip_layers: SkippingCost | None
    """What it costs to put it in the place of the last blocks."""


@dataclass(frozen=True)
class _SuiteFindings:
    """What is found over all prompts of a suite; fields of `Diagnostics`, where they are explained."""

    outputs: Mapping[PromptKey, Output]
    answered: AnsweredFacts
    layers_over_facts: onsets.LayersOverFacts
    layers_by_lens: Mapping[str, onsets.LayersOverFacts]
    blindness: onsets.Blindness
    chance: chance.AgainstChance
    wording: comparisons.WordingEffect
    controls: comparisons.ControlAnswers


@dataclass(frozen=True)
class Verdict:
    """Milestones, diagnostics and guidance of one run: functions of its rows and its record."""

    curves: Curves
    milestones: AllMilestones
    diagnostics: Diagnostics
    guidance: guidance.Guidance


def judge(
    rows: pl.DataFrame | pl.LazyFrame, record: RunRecord, keep: object = None, patches: pl.DataFrame | None = None
) -> Verdict:
    """Find every milestone, make every audit, and say how far the numbers may be trusted.

    The verdict goes on reading rows; `keep` is whatever has to live as long. Without `patches` nothing is said of them.
    """
    return _Judge(rows, record, no_patches() if patches is None else patches, keep).verdict()


class _Judge:
    """One run on its way to a verdict."""

    def __init__(
        self, rows: pl.DataFrame | pl.LazyFrame, record: RunRecord, patches: pl.DataFrame, keep: object = None
    ) -> None:
        self.table, self.record, self.patches = rows.lazy(), record, patches
        self.view = partial(judged_rows, record=record)
        self.protocol = protocol_in_force(record)
        self.headline = self.protocol.headline
        self.n_layers, self.d_vocab = record.model.n_layers, record.model.d_vocab
        self.standard = self.protocol.name != "published"
        self.curves = Curves.of(self.table, self.n_layers, self.d_vocab, self.view, keep)
        self.primary = self.curves.primary
        self.rows = pl.DataFrame() if self.primary is None else self._rows_of_primary(self.primary)
        self.curve = self._curve(self.headline)
        self.confirmations = {
            prompt: self._confirm(prompt) for prompt in self.curves.passes if self.curves.get(prompt, self.headline)
        }
        found = milestones_of(self.curves, self.protocol.thresholds)
        self.milestones = AllMilestones(
            self.headline, self.primary, {key: self._with_confirmed(key, of_curve) for key, of_curve in found.items()}
        )
        self.headlined = self.milestones.of()
        self.judge = judge_of(record, self.primary)
        self.of_first_piece = self.headlined if self.judge == "first_piece" else self._of_first_piece()

    def _patching(self, by_lens: Mapping[str, onsets.LayersOverFacts]) -> handover.Patching | None:
        record = self.record.measured.patching
        return None if record is None else handover.patching(record, self.patches, self.n_layers, by_lens)

    def _curve(self, lens: str) -> Curve | None:
        return self.curves.get(self.primary, lens)

    def _other(self, lens: str) -> Curve | None:
        """A lens that can be compared with the headline lens: another one."""
        return None if lens == self.headline else self._curve(lens)

    def _confirm(self, prompt: PromptKey) -> Confirmation:
        headline = self.curves.by_key[prompt, self.headline]
        others = [self.curves.get(prompt, name) if name != self.headline else None for name in ("raw", "tuned")]
        return confirm(headline, others[0], others[1], self.record.lens_sources)

    def _with_confirmed(self, key: tuple[PromptKey, str], found: CurveMilestones) -> CurveMilestones:
        """Under the headline lens with the two that other lenses bear on."""
        if key[1] != self.headline:
            return found
        curve, confirmation = self.curves.by_key[key], self.confirmations[key[0]]
        layers = {CONFIRMED: confirmation.layer, MilestoneName.CONFIRMED_ANY: confirmation.layer_any}
        return found.with_more(
            {name: Milestone.at(name, curve, layer, confirmation.reason) for name, layer in layers.items()}
        )

    def _rows_of_primary(self, primary: PromptKey) -> pl.DataFrame:
        """As it is judged, at all of its positions; without the lists, which are long."""
        rows = self.view(primary.rows_of(self.table))
        return collected(rows.select(cs.exclude(cs.list())))

    def _of_first_piece(self) -> Milestones:
        """The primary prompt's milestones as its answer's first piece has them.

        A position that is looked at closely, and a second pass, know that piece alone.
        """
        if self.primary is None or self.curve is None:
            return {}
        curves = Curves.of(self.primary.rows_of(self.table), self.n_layers, self.d_vocab)
        return find_milestones(curves.by_key[self.primary, self.headline], self.protocol.thresholds)

    def verdict(self) -> Verdict:
        diagnostics = self._diagnostics()
        advice = guidance.guidance(self._evidence(diagnostics), self.protocol.name, self.headline)
        return Verdict(self.curves, self.milestones, diagnostics, advice)

    def _diagnostics(self) -> Diagnostics:
        curve, raw, measured = self.curve, self._other("raw"), self.record.measured
        thresholds = self.protocol.thresholds
        sample = window = full = copies = None
        if curve is not None:
            sample = raw_comparison.sample_check(curve, raw)
            centres = raw_comparison.window_centres(self.headlined)
            window = raw_comparison.window_check(curve, raw, centres, sample)
            full = raw_comparison.full_check(curve, raw)
            copies = raw_comparison.copy_thresholds(curve, raw, self.headlined, window.radius, thresholds)
        preferred = semantic_layer(self.headlined)
        onset = self._layer(ONSET)
        by_pass = self.milestones.by_pass()
        tuned, variants = self._other("tuned"), measured.tuned_variants
        audit = self._tuned_audit()
        readout, second = measured.position_readout, measured.second_forward
        not_judged = self.n_layers if self.standard else None
        repeat = consistency.repeatability(readout)
        suite = self._suite()
        return Diagnostics(
            headline=self.headline,
            primary=self.primary,
            judge=self.judge,
            **vars(suite),
            layers_of_primary=onsets.layers_of_prompt(self.headlined),
            patching=self._patching(suite.layers_by_lens),
            quotability=quotability(self.curves, self.record, suite.outputs, repeat),
            early_reflex=None if curve is None else early_reflex(curve, bool(self.record.model.tied_unembedding)),
            subject_window=self._subject_window(),
            semantic=preferred,
            margin_ok_at_semantic=self._margin_ok_at(onset),
            gap_at_semantic=None if curve is None else curve.value("answer_logit_gap", onset),
            confirmation=None if self.primary is None else self.confirmations.get(self.primary),
            copies_early=None if curve is None else copies_early(curve, thresholds),
            copy_thresholds=copies,
            raw_sample=sample,
            raw_window=window,
            raw_full=full,
            last_layer=_last_layer(measured.last_layer, self.protocol),
            entropy_gap=None if curve is None else _entropy_gap(curve),
            trajectory=None if curve is None else norm_trajectory(curve, onset, self.protocol.absolute_spikes),
            decoding_point=consistency.decoding_point(
                readout, self.of_first_piece, semantic_layer(self.of_first_piece), measured.stack, not_judged
            ),
            lens_consistency=consistency.lens_consistency(readout, self.headlined, not_judged),
            gate_stability=consistency.gate_stability(readout, self.of_first_piece, self.d_vocab, thresholds),
            repeatability=repeat,
            forward_of_two=None
            if curve is None
            else consistency.forward_of_two(second, self.of_first_piece, curve, thresholds),
            position_window=self._position_window(onset),
            ablation=facts.ablation(by_pass, self.n_layers),
            control=facts.control_summary(self._control(), thresholds),
            micro_suite=facts.micro_suite(
                self.curves,
                self.headline,
                by_pass,
                {prompt: c.layer for prompt, c in self.confirmations.items()},
            ),
            statistics=facts.statistics_over_facts(by_pass, self.d_vocab),
            fitted_lenses={
                lens: fitted_lens_audit.fitted_lens_audit(curve, fitted)
                for lens in FITTED_NAMES
                if curve is not None and (fitted := self._other(lens)) is not None
            },
            attribution=None
            if curve is None or tuned is None
            else fitted_lens_audit.attribution(curve, tuned, variants),
            tuned_audit=audit,
            acceptance=None if audit is None else self._acceptance(audit.head_mismatch),
            skip_layers=None if self._curve("tuned") is None else acceptance.skip_layers(self._loaded("tuned")),
        )

    def _suite(self) -> _SuiteFindings:
        """What the model says of every prompt, and the layers of all facts together."""
        by_pass = self.milestones.by_pass()
        said = outputs(self.curves, self.record, self.headline)
        facts = answered_facts(said, self.curves, self.headline)
        over_facts = onsets.layers_over_facts(facts.counted, by_pass, self.n_layers)
        # Facts with an answer of their own alone can be tested against chance.
        tested = onsets.layers_over_facts([p for p in facts.counted if said[p].answered], by_pass, self.n_layers)
        return _SuiteFindings(
            outputs=said,
            answered=facts,
            layers_over_facts=over_facts,
            layers_by_lens={
                lens: onsets.layers_over_facts(facts.counted, self.milestones.by_pass(lens), self.n_layers)
                for lens in self.curves.lenses
            },
            blindness=onsets.blindness(
                self.curves, self.headline, facts.counted, over_facts.medians()[onsets.ON_TOP_FOR_GOOD]
            ),
            chance=chance.against_chance(
                self.curves, self.record, self.headline, tested.medians(), onsets.ON_TOP_FOR_GOOD
            ),
            wording=comparisons.wording_effect(said, by_pass, self.n_layers),
            controls=comparisons.control_answers(said, self.record),
        )

    def _tuned_audit(self) -> TunedAudit | None:
        curve, tuned = self.curve, self._other("tuned")
        if self.primary is None or curve is None or tuned is None:
            return None
        last = curve.rows[0]["position"]
        positions = tuned_audit.position_rows(self.rows, self.primary, self.headline, self.n_layers, last)
        measured = self.record.measured
        return tuned_audit.tuned_audit(curve, tuned, measured.tuned_variants, positions, measured.last_layer)

    def _acceptance(self, mismatch: HeadMismatch) -> Acceptance:
        lens = self._loaded("tuned")
        fit = None if lens is None else lens.tuned
        held_out = None if fit is None else fit.held_out
        return acceptance.acceptance(self.curves, self.headline, self.n_layers, mismatch, held_out, self.standard)

    def _calibration_only(self, audit: TunedAudit | None) -> bool | None:
        """Open where a tuned lens has nothing beside it to tell by; ruled out where none was read."""
        if audit is None:
            return None if self._curve("tuned") is not None or self.headline == "tuned" else False
        return audit.calibration_only

    def _loaded(self, kind: str) -> FittedLensRecord | None:
        """What is recorded of a fitted lens that the run was read through."""
        records = self.record.measured.fitted_lenses
        return next((record for record in records if record.kind == kind and record.status == "loaded"), None)

    def _layer(self, name: str) -> int | None:
        return layer_of(self.headlined, name)

    def _margin_ok_at(self, layer: int | None) -> bool | None:
        row = None if self.curve is None else self.curve.at(layer)
        return None if row is None else Gates(self.d_vocab, self.protocol.thresholds).margin_ok(row)

    def _control(self) -> Curve | None:
        control = next((prompt for prompt in self.curves.passes if not prompt.is_fact), None)
        return self.curves.get(control, self.headline)

    def _position_window(self, onset: int | None) -> facts.PositionWindow | None:
        if self.primary is None or self.curve is None:
            return None
        last = self.curve.rows[0]["position"]
        strong = self._layer(STRONG_RUN2)
        return facts.position_window(self.rows, self.primary, self.headline, onset, strong, last)

    def _subject_window(self) -> SubjectWindow | None:
        if self.primary is None or self.curve is None:
            return None
        known = self.record.prompt(self.primary)
        for_good = self._layer(onsets.ON_TOP_FOR_GOOD)
        return subject_window(self.rows, self.primary, known, self.headline, for_good)

    def _evidence(self, diagnostics: Diagnostics) -> guidance.Evidence:
        record, flags = self.record, self.record.flags
        mask_error = flags.get("copy_mask_error")
        gates, spikes = diagnostics.gate_stability, diagnostics.trajectory
        sources = record.lens_sources.get(self.headline, ())
        layers = None
        if record.numeric_health is not None:
            broken = [] if self.curve is None else [row["layer"] for row in self.curve.rows if not row["finite"]]
            layers = guidance.numeric_layers_before(broken, [self._layer(MilestoneName.COPY), self._layer(ONSET)])
        repeat, again = diagnostics.repeatability, diagnostics.forward_of_two
        skipped = again is not None and again.mode == "skipped_deterministic"  # because nothing could differ
        consistent = diagnostics.decoding_point.consistent
        lens_consistency = diagnostics.lens_consistency
        low = None if lens_consistency is None else lens_consistency.low_at_semantic
        window = diagnostics.subject_window if self.standard else diagnostics.position_window
        low_window = None if window is None else window.low
        accepted, reflex = diagnostics.acceptance, diagnostics.early_reflex
        audit, last_layer = diagnostics.tuned_audit, diagnostics.last_layer
        return guidance.Evidence(
            identity_ok=None if record.identity is None else record.identity.ok,
            warn_high_last_layer_kl=None if last_layer is None else last_layer.warn_high_last_layer_kl,
            norm_only_layers=self._norm_only_layers(diagnostics.raw_window),
            sampled_risk=None if diagnostics.raw_sample is None else diagnostics.raw_sample.lens_artifact_risk,
            full_tier=None if diagnostics.raw_full is None else self._judged(diagnostics.raw_full).score.tier,
            repeatability_high=_or_flag(repeat.high_variance, "repeatability_variance_high", flags),
            forward_disagreement=_or_flag(
                False if skipped else None if again is None or again.agree is None else not again.agree,
                "repeatability_forward_disagreement",
                flags,
            ),
            alignment_rate=record.suite.gold_alignment_rate,
            deterministic=None if record.provenance is None else record.provenance.deterministic_algorithms,
            n_spikes=None if spikes is None else self._spikes(spikes),
            numeric_layers=layers,
            copy_mask_present=record.measured.copy_mask is not None,
            copy_mask_error=mask_error if isinstance(mask_error, str) else None,
            layer_map_present=any(source is not None for source in sources),
            rank_only_near_uniform=False if self._layer(ONSET) is None else negated(diagnostics.margin_ok_at_semantic),
            decoding_point_consistent=negated(_or_flag(negated(consistent), "decoding_point_sensitive", flags)),
            low_lens_consistency=_or_flag(low, "low_lens_consistency_at_semantic", flags),
            tuned_is_calibration_only=self._calibration_only(audit),
            raw_overlap=_raw_overlap(diagnostics.raw_full) if self.standard else None,
            tuned_accepted=None if accepted is None else accepted.accepted,
            reflex_layers=None if reflex is None or not reflex.known else reflex.layers,
            pos_window_asked=not self.standard or low_window is not None,
            pos_window_low=_or_flag(low_window, "pos_window_low_stability", flags),
            min_both_gates_pass_frac=None if gates is None else gates.min_both_gates_pass_frac,
            prefer_tuned=None if diagnostics.attribution is None else diagnostics.attribution.prefer_tuned,
            audit_hint=None if audit is None else audit.hint,
            confirmed=None if diagnostics.confirmation is None else diagnostics.confirmation.layer is not None,
        )

    def _norm_only_layers(self, window: raw_comparison.WindowCheck | None) -> tuple[int, ...] | None:
        """Layers of the window with the answer under the headline lens alone.

        At the last layer that lens is the model itself; published files count it all the same.
        """
        if window is None or window.norm_only_semantics_layers is None:
            return None
        last = None if self.protocol.name == "published" else self.n_layers
        return tuple(layer for layer in window.norm_only_semantics_layers if layer != last)

    def _judged(self, check: raw_comparison.FullCheck) -> raw_comparison.Comparison:
        """The stretch of layers that the tier is about: for the same reason without the last one."""
        return check.whole if self.protocol.name == "published" else check.prefinal

    def _spikes(self, trajectory: NormTrajectory) -> int | None:
        return trajectory.n_spikes if self.protocol.absolute_spikes else trajectory.n_spikes_relative


def protocol_in_force(record: RunRecord) -> Protocol:
    """The protocol that a record names, with the headline lens and thresholds that it states."""
    recorded, thresholds = record.protocol, Thresholds.from_dict(record.protocol.thresholds)
    return replace(protocol_of(recorded.name), headline=recorded.headline_lens, thresholds=thresholds)


def _entropy_gap(curve: Curve) -> EntropyGap:
    gaps = [gap for row in curve.rows if (gap := entropy_gap(row)) is not None]
    return EntropyGap(quartiles(gaps), len(gaps))


def _last_layer(record: LastLayerRecord | None, protocol: Protocol) -> LastLayer | None:
    """Far from the model if the divergence is large, or a temperature mends much of it."""
    if record is None:
        return None
    bound, kl, after = protocol.thresholds.last_layer_kl_bits, record.kl_to_final_bits, record.kl_after_temp_bits
    mended = None if kl is None or after is None else kl - after
    warn = None if kl is None else kl >= bound or (mended is not None and mended >= bound)
    return LastLayer(record, bound, mended, warn)


def _raw_overlap(check: raw_comparison.FullCheck | None) -> float | None:
    """The median over all layers but the last, where the headline lens is the model and the raw one is not."""
    shares = () if check is None else check.topk_overlap.per_layer_raw_norm[:-1]
    return median([share for share in shares if share is not None])


def _or_flag(known: bool | None, flag: str, flags: Mapping[str, object]) -> bool | None:
    """What was found; where nothing could be, the caution that a file itself states counts."""
    return True if known is None and flag in flags else known
