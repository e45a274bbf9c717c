"""What bears on a verdict, in sentences: wording, controls, confirmation, norms, copying, the raw lens."""

from layerscope.analysis.comparisons import ControlAnswer, ControlAnswers, WordingEffect
from layerscope.analysis.confirmation import Confirmation
from layerscope.analysis.consistency import OnsetGap
from layerscope.analysis.diagnostics import Diagnostics
from layerscope.analysis.facts import NO_FILLER
from layerscope.analysis.milestones import NOT_MEASURED, EarlyReflex, Milestones
from layerscope.analysis.percentiles import median
from layerscope.record.measured import ShuffledWeightsRecord
from layerscope.record.milestone_names import MilestoneName, copy_soft
from layerscope.record.protocol import Thresholds
from layerscope.report.numbers import short_text
from layerscope.report.sentences import answers
from layerscope.report.sentences.lines import layers, plural
from layerscope.report.sentences.readable import AHEAD, rank_1
from layerscope.report.text import printable

GAP = (
    "Through the final norm ({logit}) the answer first has rank 1 {at_logit}, through the next block's norm "
    "({next_norm}) {at_next_norm}{gap}."
)
GAP_LAYERS = ": a gap of {} layers"
ONE_NORM = (
    "Only the norm of the next block was decoded ({next_norm}, which these files call norm), not the model's final "
    "norm at every layer ({logit}): how many layers hang on that choice cannot be told from this run, and every layer "
    "named below stands under it."
)
GATES = (
    "Rank of the answer and gates. {margin_ok}: {margin} above uniform; {top2_ok}: a lead of {gap} logits; {strong}: "
    "both; {run2}: two layers in a row. {onset} is the layer at which the answer is first on top, and for good that "
    "from which it is on top for good; {ahead} for good is clearly ahead for good."
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


def onset_gap(gap: OnsetGap, *, known: bool = True) -> str:
    """How many layers lie between the answer under the final norm and under the next block's.

    Args:
        gap: the first layers on top.
        known: whether a layer that is absent was looked for at every layer.
    """
    logit, next_norm, n = gap.logit, gap.next_norm, gap.gap_layers
    if n is None:
        if known and logit is None and next_norm is None:
            return "the answer is on top at no layer under logit, nor under next_norm"
        none = "at no layer" if known else "at no known layer"
        where = [none if layer is None else f"at layer {layer}" for layer in (logit, next_norm)]
        return f"rank 1 under logit {where[0]}, under next_norm {where[1]}"
    if n == 0:
        return f"rank 1 comes at the same layer under logit and next_norm: {logit}"
    return (
        f"rank 1 comes {abs(n)} {plural('layer', abs(n))} {'later' if n > 0 else 'earlier'} under next_norm "
        f"({next_norm}) than under logit ({logit})"
    )


def copying(reflex: EarlyReflex | None, milestones: Milestones, thresholds: Thresholds) -> str:
    """Where the prompt is echoed, and how far from the answer that is."""
    early = "" if reflex is None or not reflex.layers else f"; an early reflex: strict copy at {layers(reflex.layers)}"
    copy, onset = milestones.get(MilestoneName.COPY), rank_1(milestones).layer
    if copy is None or copy.reason == NOT_MEASURED:
        return f"not measured{early}"
    soft = [milestones[copy_soft(k)].layer for k in thresholds.copy_soft_windows]
    layer = copy.layer if copy.layer is not None else min((at for at in soft if at is not None), default=None)
    if layer is None:
        return f"the prompt's words are copied at no layer{early}"
    kind = "strict copy" if copy.layer is not None else "no strict copy, a soft one"
    before = "" if onset is None else f", {_apart(layer, onset)} rank 1"
    return f"{kind} at layer {layer}{before}{early}"


def _apart(layer: int, other: int) -> str:
    """How a layer lies to another, in words that end before the other's name."""
    n = abs(other - layer)
    return f"{n} {plural('layer', n)} {'before' if other > layer else 'after'}" if n else "that of"


def wording(effect: WordingEffect) -> str:
    """What another wording changes, over all facts that were asked in both."""
    if effect.reason is not None or effect.first is None or effect.second is None:
        return f"not asked: {effect.reason or 'no fact was asked in two wordings'}"
    first, second, both = effect.answers.n_first, effect.answers.n_second, effect.answers.n
    other = "without the filler word" if effect.second == NO_FILLER else f"in wording {printable(effect.second)}"
    this = "with it" if effect.second == NO_FILLER else f"in {printable(effect.first)}"
    told = f"{other} {second} of {both} answered, {this} {first}"
    if effect.answers.only_first or effect.answers.only_second:
        told += f" (McNemar p {short_text(effect.answers.mcnemar_p)})"
    shifts = []
    if effect.median_shift_nats is not None:
        nats = effect.median_shift_nats
        size = f"{abs(nats):.2f}"
        change = f"{size} nats {'lower' if nats < 0 else 'higher'} there"
        shifts.append(f"log p {'as before' if float(size) == 0 else change}")
    if effect.shift_layers.median is not None:
        shifts.append(f"on top for good {_moved(effect.shift_layers.median)}")
    state = {True: "sensitive", False: "not sensitive", None: "cannot be judged"}[effect.sensitive]
    return f"{state}: {'; '.join((told, *filter(None, [', '.join(shifts)])))}"


def _moved(layers: int | float) -> str:
    if layers == 0:
        return "at the same layer"
    return f"{abs(layers):g} {plural('layer', abs(layers))} {'later' if layers > 0 else 'earlier'}"


def controls(found: ControlAnswers) -> str:
    """Whether the same question about another subject gets its own answer, and not the fact's."""
    if found.reason is not None:
        return f"not asked: {found.reason}"
    if found.n == 1:
        return _control(found.controls[0])
    return (
        f"{found.n_answered} of {found.n} controls get their own answer, {found.n_says_contrast} that of the fact they "
        "are compared with"
    )


def _control(control: ControlAnswer) -> str:
    """One control: its own answer, and whether the fact's is given instead."""
    output = control.output
    if output.answered is None:
        return answers.of_prompt(output)
    own = answers.token(output.answer_text)
    stands = "is on top" if output.answered else f"has rank {output.answer_rank:,}"
    piece = answers.by_piece(output)
    told = f"its own answer {own}{piece}{',' if piece else ''} {stands}"
    if control.says_contrast is None or control.contrast is None:
        return told
    given = "is on top instead" if control.says_contrast else "is not on top"
    return f"{told}; the fact's {answers.token(control.contrast)} {given}"


def twin(record: ShuffledWeightsRecord) -> str:
    """How a model with the same weights in random order fares."""
    what = "of the blocks shuffled" if record.scope == "blocks" else "shuffled, embeddings too"
    # Without an answer what the twin itself says is on top for good, whatever it is.
    asked = [prompt for prompt in record.prompts if prompt.answered is not None]
    if not asked:
        return f"with the weights {what}, no prompt has an answer to find"
    told = f"with the weights {what}, {record.n_answered} of {len(asked)} prompts answered"
    first, stable, ahead = (
        [layer for layer in layers if layer is not None]
        for layers in zip(*((prompt.first, prompt.stable, prompt.strong_stable) for prompt in asked), strict=True)
    )
    if not first:
        return f"{told}; on top at no layer"
    layers_told = [f"first on top at {median(first):g} in {len(first)}"]
    layers_told += [f"for good from {median(stable):g} in {len(stable)}"] if stable else []
    layers_told += [f"clearly ahead from {median(ahead):g} in {len(ahead)}"] if ahead else []
    return f"{told}; {', '.join(layers_told)} (medians)"


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
