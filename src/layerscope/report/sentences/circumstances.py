"""What bears on a verdict, in sentences: confirmation, norms, copying, control, wording, facts, the raw lens."""

from layerscope.analysis.confirmation import Confirmation
from layerscope.analysis.consistency import OnsetGap
from layerscope.analysis.diagnostics import Diagnostics
from layerscope.analysis.facts import NO_FILLER, Ablation, ControlSummary, FactStatistics
from layerscope.analysis.milestones import NOT_MEASURED, Milestones
from layerscope.analysis.statistics import FEWEST, Summary
from layerscope.record.milestone_names import ONSET, STRONG_RUN2, MilestoneName, copy_soft
from layerscope.record.protocol import Thresholds
from layerscope.report.numbers import short_text
from layerscope.report.sentences.lines import at_layer, layers, plural
from layerscope.report.sentences.readable import AHEAD, AHEAD_AT_TWO, rank_1
from layerscope.report.text import printable

GAP = (
    "Through the final norm ({logit}) the answer first has rank 1 {at_logit}, through the next block's norm "
    "({next_norm}) {at_next_norm}: a gap of {gap} layers."
)
ONE_NORM = (
    "Only the norm of the next block was decoded ({next_norm}, which these files call norm), not the model's final "
    "norm at every layer ({logit}): how many layers hang on that choice cannot be told from this run, and every layer "
    "named below stands under it."
)
GATES = (
    "Rank of the answer and gates. {margin_ok}: {margin} above uniform; {top2_ok}: a lead of {gap} logits; {strong}: "
    "both; {run2}: two layers in a row."
)
CONFIRMED = "Confirmed {where} (source {source}); own onset of the raw lens {raw}, of the tuned lens {tuned}."
UNCONFIRMED = "No other lens was read that could confirm a layer{}."
TRIVIAL = "The confirmation is trivial: there the other lens computes what {} computes, so it counts for nothing."
GAP_UNKNOWN = "the gap between logit and next_norm is not known"


def definition_of_ahead(thresholds: Thresholds) -> str:
    """What the words ask for."""
    margin, gap = thresholds.semantic_margin, thresholds.semantic_gap
    return f"{AHEAD}: rank 1, p >= {margin:g} above uniform, lead >= {gap:g} logits"


def confirmed(confirmation: Confirmation, headline: str) -> str:
    """Which other lens has the answer on top nearby, and whether that says anything new."""
    if not confirmation.hits:
        later = confirmation.layer_any_nontrivial
        also = "" if later is None else f"; a later rank 1, at layer {later}, is confirmed"
        return f"no: {confirmation.reason}{also}"
    telling = [hit for hit in confirmation.hits if not hit.trivial]
    by_lens: dict[str, list[int]] = {}
    for hit in telling or confirmation.hits:
        by_lens.setdefault(hit.lens, []).append(hit.layer)
    who = " and by ".join(f"{lens} at {layers(where)}" for lens, where in by_lens.items())
    if telling:
        return f"by {who}, for rank 1 at layer {confirmation.onset}"
    return f"by {who}, but trivially: there it computes the same as {headline}, so nothing new is said"


def onset_gap(gap: OnsetGap) -> str:
    """How many layers lie between the answer under the final norm and under the next block's."""
    logit, next_norm, n = gap.logit, gap.next_norm, gap.gap_layers
    if n is None:
        return f"rank 1 under logit {at_layer(logit)}, under next_norm {at_layer(next_norm)}, so the gap is not known"
    if n == 0:
        return f"rank 1 comes at the same layer under logit and next_norm: {logit}"
    return (
        f"rank 1 comes {abs(n)} {plural('layer', abs(n))} {'later' if n > 0 else 'earlier'} under next_norm "
        f"({next_norm}) than under logit ({logit}), so much hangs on the norm alone"
    )


def copying(diagnostics: Diagnostics, milestones: Milestones, thresholds: Thresholds) -> str:
    """Where the prompt is echoed, and how far from the answer that is."""
    early = {True: "; layers 0 to 3 echo the prompt: an early reflex", False: "; no echo in layers 0 to 3", None: ""}
    reflex = early[diagnostics.copies_early]
    copy, onset = milestones.get(MilestoneName.COPY), rank_1(milestones).layer
    if copy is None or copy.reason == NOT_MEASURED:
        return f"not measured{reflex}"
    soft = [milestones[copy_soft(k)].layer for k in thresholds.copy_soft_windows]
    layer = copy.layer if copy.layer is not None else min((at for at in soft if at is not None), default=None)
    if layer is None:
        return f"no strict copy (L_copy), no soft one{reflex}"
    kind = "strict copy (L_copy)" if copy.layer is not None else "no strict copy (L_copy), a soft one"
    before = "" if onset is None else f", {_apart(layer, onset)} rank 1"
    return f"{kind} at layer {layer}{before}{reflex}"


def _apart(layer: int, other: int) -> str:
    """How a layer lies to another, in words that end before the other's name."""
    n = abs(other - layer)
    return f"{n} {plural('layer', n)} {'before' if other > layer else 'after'}" if n else "that of"


def control(summary: ControlSummary, answer: str | None) -> str:
    """From where the control's own answer leads clearly."""
    its_answer = f"its answer {answer}" if answer else "its answer"
    if summary.first_control_strong_pos is None:
        return f"no clear lead of {its_answer}: {summary.reason}"
    most = summary.max_control_top2_logit_gap
    lead = "" if most is None else f" (up to {most:.1f} logits)"
    return f"{its_answer} leads clearly first at layer {summary.first_control_strong_pos}{lead}"


def ablation(summary: Ablation) -> str:
    """What another wording changes."""
    variant, first, other, delta = summary.variant_nf, summary.L_sem_orig, summary.L_sem_nf, summary.delta_L_sem
    if variant is None:
        return "not asked: the fact has one wording alone"
    wording = "without the filler word" if variant == NO_FILLER else f"in wording {printable(variant)}"
    if delta is None:
        return f"rank 1 {at_layer(first)}, {wording} {at_layer(other)}, so there is no difference to tell"
    moved = f"{abs(delta)} {'later' if delta > 0 else 'earlier'} than {first}" if delta else "as before"
    return f"{wording} at layer {other}, {moved}: {'sensitive' if summary.sensitive else 'not sensitive'}"


def facts(statistics: FactStatistics, *, trusted: bool) -> list[str]:
    """How layers vary over facts."""
    if statistics.n < 2:
        return ["one fact alone"] if statistics.n else []
    shown = {"rank 1": ONSET, AHEAD_AT_TWO: STRONG_RUN2} if trusted else {"rank 1": ONSET}
    return [f"{name}: {spread(statistics.by_milestone[milestone])}" for name, milestone in shown.items()]


def spread(summary: Summary) -> str:
    """A layer over facts: how many lack it, median, quartiles, and how sure the median is."""
    middle = f"n {summary.n}, missing {summary.n_missing}"
    if summary.median is None:
        return middle
    middle += f", median {summary.median:g} [IQR {summary.p25:g}, {summary.p75:g}]"
    if summary.interval_95 is None:
        return f"{middle}; 95% needs {FEWEST} facts"
    return f"{middle}, 95% [{summary.interval_95[0]:g}, {summary.interval_95[1]:g}]"


def raw_against_norm(diagnostics: Diagnostics) -> list[str]:
    """Two instruments, each by its name: a few layers sampled, and a score of them all."""
    sample, full = diagnostics.raw_sample, diagnostics.raw_full
    risk = None if sample is None else sample.lens_artifact_risk
    n_layers = 0 if full is None else full.whole.n_layers
    if sample is None or full is None or (risk is None and n_layers == 0):
        return ["not compared: no raw lens was read beside the headline lens"]
    sampled = f"sampled risk {risk or 'unknown'} ({len(sample.samples)} layers)"
    if n_layers == 0:
        return [f"{sampled}; full tier unknown: no layer has a distance to the raw lens"]
    whole, prefinal = full.whole.score, full.prefinal.score
    scores = f"score v1 {short_text(whole.v1)} (v2 {short_text(whole.v2)}) {whole.tier}"
    if prefinal.v1 is not None:
        scores += f"; prefinal {short_text(prefinal.v1)} ({short_text(prefinal.v2)}) {prefinal.tier}"
    return [f"{sampled}; full tier {whole.tier} ({n_layers} layers)", scores]
