"""A run's verdict for a terminal: where the answer becomes readable, how well that is borne out, what may be quoted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.analysis.acceptance import Acceptance, Direction
from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.confirmation import Confirmation
from layerscope.analysis.consistency import OnsetGap
from layerscope.analysis.curve import Row
from layerscope.analysis.curve_shapes import stretches
from layerscope.analysis.diagnostics import Diagnostics, Verdict, protocol_in_force
from layerscope.analysis.facts import NO_FILLER, Ablation, ControlSummary
from layerscope.analysis.fitted_lens_audit import AttributedGain
from layerscope.analysis.guidance import Guidance
from layerscope.analysis.milestones import NEVER as HOLDS_NOWHERE
from layerscope.analysis.milestones import NO_TWO, NOT_MEASURED, NOT_TO_THE_END, Milestone, Milestones
from layerscope.analysis.statistics import FEWEST, Summary, entropy_fraction
from layerscope.record.measured import FittedLensRecord, HeldOutRecord, LastLayerRecord
from layerscope.record.milestone_names import (
    CONFIRMED,
    ONSET,
    STABLE,
    STRONG,
    STRONG_RUN2,
    MilestoneName,
    copy_soft,
    rank_within,
    stable_twin,
)
from layerscope.record.parts import HeadTransformRecord
from layerscope.record.protocol import Thresholds
from layerscope.record.run_record import RunRecord
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.text import printable

WIDTH = 80
LABEL_WIDTH = 10
TEXT_WIDTH = WIDTH - LABEL_WIDTH - 1
RANK_1 = rank_within(1)
NEVER = "never"


@dataclass(frozen=True)
class LabelledLine:
    """One thing that is said: a label, and a text that may take several lines."""

    label: str
    text: str
    style: str = ""
    """Of the text; an addition, for nothing is said by colour alone."""


def run_verdict(run: AnalysedRun) -> Iterator[RenderableType]:
    """The verdict on a run, for a console of 80 columns; wider ones are not filled."""
    return verdict_of(run.verdict, run.record)


def verdict_of(found: Verdict, record: RunRecord) -> Iterator[RenderableType]:
    """The same of what was found and of the record it was found in.

    Where the identity check failed, nothing that rests on a probability is said; where it casts doubt on ranks too, no
    layer is named at all.
    """
    teller = VerdictText(found, record)
    yield teller.title()
    yield Text(teller.headline(), style="bold")
    if teller.ranked and teller.own:
        yield _grid(teller.strength())
        yield teller.lens_table()
        yield _grid(teller.circumstances())
    yield _grid(quoting(found.guidance, found.diagnostics.headline, ranked=teller.ranked))


def _grid(said: Sequence[LabelledLine]) -> Table:
    """Labels to the left, texts wrapped beside them."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=LABEL_WIDTH, no_wrap=True)
    grid.add_column(max_width=TEXT_WIDTH)
    for one in said:
        grid.add_row(Text(one.label, style=one.style or "dim"), Text(one.text, style=one.style))
    return grid


def _lines(label: str, texts: Sequence[str]) -> list[LabelledLine]:
    """Several texts under one label."""
    return [LabelledLine("" if place else label, text) for place, text in enumerate(texts)]


class VerdictText:
    """What there is to say of one run."""

    def __init__(self, found: Verdict, record: RunRecord) -> None:
        self.diagnostics, self.milestones, self.record = found.diagnostics, found.milestones, record
        self.curves = found.curves
        self.guidance = found.guidance
        self.thresholds = protocol_in_force(record).thresholds
        self.n_layers, self.d_vocab = record.model.n_layers, record.model.d_vocab
        self.own = found.milestones.of()
        self.curve = found.curves.get(found.diagnostics.primary, found.diagnostics.headline)
        self.trusted, self.ranked = record.probabilities_stand, record.ranks_stand
        self.prompt = record.prompt(found.diagnostics.primary)

    @property
    def onset(self) -> Milestone:
        """Where the answer first leads under the headline lens."""
        return rank_1(self.own)

    # What comes first

    def title(self) -> Text:
        """Which prompt the verdict is on."""
        primary = self.diagnostics.primary
        name = None if self.prompt is None else self.prompt.fact_key
        which = "no fact was asked" if primary is None else f"{name or 'first fact'} · {primary.prompt_variant}"
        return Text(printable(f"verdict · {which} · lens {self.diagnostics.headline}"), style="bold")

    def headline(self) -> str:
        """The one sentence to take away."""
        lens = self.diagnostics.headline
        if not self.ranked:
            return "No layer can be named: the identity check failed, and neither probabilities nor ranks stand."
        if not self.own:
            return f"No layer can be named: there is no prompt about a fact under lens {lens}."
        semantic = self.semantic()
        if semantic is None:
            return f"{self.answer()} never becomes readable under lens {lens}: {self._why_never()}."
        share = f"{semantic.layer} of {self.n_layers} ({_fraction(semantic.layer, self.n_layers)} of the depth)"
        return (
            f"{self.answer()} becomes readable at layer {share} under lens {lens}: "
            f"{self._basis(semantic)} ({semantic.name})."
        )

    def answer(self) -> str:
        """The answer by name."""
        answers = () if self.prompt is None else self.prompt.answers
        return f"The answer {printable(repr(answers[0].string))}" if answers else "The answer"

    def semantic(self) -> Milestone | None:
        """The milestone to headline: by rank alone where no probability stands; None where there is none."""
        if self.trusted:
            return self.diagnostics.semantic
        return None if self.onset.layer is None else self.onset

    def _basis(self, semantic: Milestone) -> str:
        if not self.trusted:
            return "by rank alone, for probabilities are withheld"
        if semantic.name == STRONG_RUN2:
            return "strong at two layers in a row"
        if semantic.name == STRONG:
            at_last = semantic.layer == self.n_layers
            return "strong, at the last layer alone" if at_last else "strong, but not at two layers in a row"
        weak = "never strong" if self.cell(self.diagnostics.headline, STRONG) == NEVER else "how strongly is not known"
        if semantic.name == CONFIRMED:
            confirmation = self.diagnostics.confirmation
            trivial = confirmation is not None and confirmation.nontrivial is False
            return f"rank 1, {'trivially ' if trivial else ''}confirmed by another lens, {weak}"
        return f"rank 1 alone, {weak}, confirmed by no other lens"

    def _why_never(self) -> str:
        if self.onset.reason == NOT_MEASURED:
            answers = () if self.prompt is None else self.prompt.answers
            aligned = any(answer.ok for answer in answers) or not answers
            return "its rank was not recorded" if aligned else "it cannot be told in the model's tokens"
        ranks = [(row["answer_rank"], row["layer"]) for row in self._rows() if row["answer_rank"] is not None]
        rank, layer = min(ranks, default=(None, None))
        best = "" if rank is None else f"; its best rank is {rank:,}, at layer {layer}"
        return f"at no layer up to {self.n_layers} is it the most likely token{best}"

    def _rows(self) -> Sequence[Row]:
        return () if self.curve is None else self.curve.rows

    # How strong, and how well confirmed

    def strength(self) -> list[LabelledLine]:
        """Onset, confirmation and strength of the headline."""
        semantic = self.semantic()
        if semantic is None:
            return []
        said = [LabelledLine("onset", self._onset())]
        if self.diagnostics.confirmation is not None:
            said.append(LabelledLine("confirmed", confirmed(self.diagnostics.confirmation, self.diagnostics.headline)))
        if self.trusted:
            said.append(LabelledLine("strength", self._strength(semantic)))
        return said

    def _onset(self) -> str:
        """First against stable crossing."""
        first, stable = self.onset.layer, self.own[stable_twin(self.onset.name)].layer
        if stable is None:
            said = f"rank 1 first at layer {first}, which does not hold to the last layer"
        elif stable == first:
            said = f"rank 1 at every layer from {first} on"
        else:
            said = f"rank 1 first at layer {first}, but at every layer only from {stable} on"
        strong, kept = self.own[STRONG].layer, self.own[stable_twin(STRONG)].layer
        if not self.trusted or strong is None or strong == kept:
            return said
        return f"{said}; strong {'not to the last layer' if kept is None else f'at every layer from {kept} on'}"

    def _strength(self, semantic: Milestone) -> str:
        onset = self.onset.layer
        said = f"layer {semantic.layer}: {self._numbers(semantic.layer)}"
        if onset is not None and onset != semantic.layer:
            said += f"; at the first rank 1, layer {onset}: {self._at_onset(onset)}"
        return f"{said} (not to be quoted)" if self.guidance.suppress_abs_probs else said

    def _numbers(self, layer: int | None) -> str:
        row = None if self.curve is None else self.curve.at(layer)
        if row is None:
            return "not measured"
        share = entropy_fraction(row["entropy_bits"], self.d_vocab)
        p, margin, lead = row["p_answer"], row["answer_minus_uniform"], row["answer_logit_gap"]
        parts = [
            "" if p is None else f"p {short_text(p)}",
            "" if margin is None else f"{short_text(margin)} above uniform",
            "" if lead is None else f"lead {short_text(lead)} logits",
            "" if share is None else f"entropy {short_text(row['entropy_bits'])} bits = {share:.2f} log2 V",
            "" if row["kl_to_final_bits"] is None else f"KL to final {short_text(row['kl_to_final_bits'])} bits",
        ]
        return ", ".join(filter(None, parts)) or "not measured"

    def _at_onset(self, layer: int) -> str:
        p, lead = self.onset.p_answer, self.diagnostics.gap_at_semantic
        parts = [
            "" if p is None else f"p {short_text(p)}",
            "" if lead is None else f"lead {short_text(lead)} logits",
            "hardly above uniform" if self.diagnostics.margin_ok_at_semantic is False else "",
        ]
        return ", ".join(filter(None, parts)) or "not measured"

    # Lens by lens

    def lens_table(self) -> Table:
        """Where each lens gets there; without columns that rest on probabilities where those do not stand."""
        columns = lens_columns(self.thresholds) if self.trusted else _RANK_COLUMNS
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("lens", min_width=LABEL_WIDTH - 1, no_wrap=True)
        for header in columns:
            table.add_column(header, justify="right", no_wrap=True)
        for lens in self.record.protocol.lenses:
            head = lens == self.diagnostics.headline
            cells = [self.cell(lens, name) for name in columns.values()]
            table.add_row(Text(printable(lens)), *cells, style="bold" if head else None)
        return table

    def cell(self, lens: str, name: str) -> str:
        """A layer; `never` only where every layer was read and none was left open."""
        own = self.milestones.of(lens)
        if name not in own:
            return ABSENT
        if name.removesuffix(STABLE) == ONSET:
            name = name.replace(ONSET, rank_1(own).name)
        layer = own[name].layer
        if layer is not None:
            return str(layer)
        return NEVER if own[name].reason in (HOLDS_NOWHERE, NO_TWO, NOT_TO_THE_END) else ABSENT

    # What bears on it

    def circumstances(self) -> list[LabelledLine]:
        """Norms, copying, control, wording, facts, raw lens and last layer: one or two lines each."""
        found = self.diagnostics
        said = [LabelledLine("strong", definition_of_strong(self.thresholds), "dim")] if self.trusted else []
        said.append(LabelledLine("norms", self._norms()))
        if self.trusted:
            said.append(LabelledLine("copying", self._copying()))
            said.append(LabelledLine("control", control(found.control, self._control_answer())))
        said.append(LabelledLine("ablation", ablation(found.ablation)))
        said += _lines("facts", self._facts())
        if self.trusted:
            said += _lines("raw lens", raw_against_norm(found))
            said.append(LabelledLine("last layer", self._last_layer()))
            said += _lines("fitted", fitted(found, self.record.measured.fitted_lenses))
        return said

    def _norms(self) -> str:
        """How much hangs on whose norm the residual is decoded through."""
        unknown = "the gap between logit and next_norm is not known"
        both = [self.milestones.of(lens) for lens in ("logit", "next_norm")]
        if all(both):
            onsets = [rank_1(own) for own in both]
            if any(onset.reason == NOT_MEASURED for onset in onsets):
                return f"{unknown}: the answer has no rank"
            return onset_gap(OnsetGap(*(onset.layer for onset in onsets)))
        gap = self.diagnostics.decoding_point.onset_gap
        if gap is None:
            missing = [lens for lens in ("logit", "next_norm") if lens not in self.record.protocol.lenses]
            return f"{unknown}: {' and '.join(missing) or 'one of them'} was not read"
        unranked = self.onset.reason == NOT_MEASURED
        return f"{unknown}: the answer has no rank" if unranked else onset_gap(gap)

    def _copying(self) -> str:
        early = {True: "layers 0 to 3 echo the prompt: an early reflex", False: "no echo in layers 0 to 3"}
        reflex = f"; {early[self.diagnostics.copies_early]}" if self.diagnostics.copies_early is not None else ""
        copy, onset = self.own.get(MilestoneName.COPY), self.onset.layer
        if copy is None or copy.reason == NOT_MEASURED:
            return f"not measured{reflex}"
        soft = [self.own[copy_soft(k)].layer for k in self.thresholds.copy_soft_windows]
        first_soft = min((layer for layer in soft if layer is not None), default=None)
        base = first_soft if copy.layer is None else copy.layer
        if base is None:
            return f"no strict copy (L_copy), no soft one{reflex}"
        kind = "strict copy (L_copy)" if copy.layer is not None else "no strict copy (L_copy), a soft one"
        before = "" if onset is None else f", {_apart(base, onset)} rank 1"
        return f"{kind} at layer {base}{before}{reflex}"

    def _control_answer(self) -> str | None:
        controls = [prompt for prompt in self.record.suite.prompts if prompt.prompt_id != "pos"]
        return printable(repr(controls[0].answers[0].string)) if controls and controls[0].answers else None

    def _facts(self) -> list[str]:
        statistics = self.diagnostics.statistics
        if statistics.n < 2:
            return ["one fact alone"] if statistics.n else []
        said = [f"rank 1: {spread(statistics.by_milestone[ONSET])}"]
        if not self.trusted:
            return said
        return [*said, f"strong x 2: {spread(statistics.by_milestone[STRONG_RUN2])}"]

    def _last_layer(self) -> str:
        found = self.diagnostics.last_layer
        kl = None if found is None else found.measured.kl_to_final_bits
        if found is None or kl is None:
            why = self.record.measured.absent.get("last_layer")
            return "its distance to the model's head was not measured" + (f": {why}" if why else "")
        measured, lens = found.measured, self.diagnostics.headline
        said = f"{short_text(kl)} bits from the model's head under lens {lens}"
        said += ", with another top token" if measured.top1_agree is False else ""
        if not found.warn_high_last_layer_kl:
            return said
        if measured.temp_est is not None and measured.kl_after_temp_bits is not None:
            said += f"; a temperature of {measured.temp_est:.2f} leaves {short_text(measured.kl_after_temp_bits)}"
        return f"{said}; {explained(measured, found.threshold_bits, self.record.model.head_transform)}"


def explained(measured: LastLayerRecord, threshold_bits: float, head: HeadTransformRecord | None) -> str:
    """Whether the scale and softcap that the model declares account for a lens' distance to its output."""
    scale, softcap = (
        name if value is None else f"{name} {value:g}"
        for name, value in (("scale", measured.scale), ("softcap", measured.softcap))
    )
    after = {
        f"{scale} and {softcap}": measured.kl_after_scale_then_softcap_bits,
        softcap: measured.kl_after_softcap_bits,
        scale: measured.kl_after_scale_bits,
    }
    name, bits = next(((name, bits) for name, bits in after.items() if bits is not None), ("", None))
    if bits is not None:
        verb = "explains it" if bits < threshold_bits else "does not explain it"
        return f"the model's {name} would leave {short_text(bits)}, which {verb}"
    if head is not None and head.scale is None and head.softcap is None:
        return "the model declares no scale and no softcap that would explain it"
    return "whether a scale or softcap of the model explains it is not known"


def quoting(found: Guidance, headline: str, *, ranked: bool = True) -> list[LabelledLine]:
    """What may be quoted, each reason against it with its weight, and what could not be found out."""
    known = " that could be determined" if found.undetermined else ""
    if not found.reasons:
        said = [LabelledLine("quoting", f"nothing{known} stands against quoting probabilities", "green")]
    elif not ranked:
        said = [LabelledLine("quoting", "quote nothing of this run:", "bold")]
    elif found.suppress_abs_probs:
        said = [LabelledLine("quoting", "quote ranks and layers, but no probability or entropy of a layer:", "bold")]
    else:
        said = [LabelledLine("quoting", "probabilities may be quoted together with this:", "bold")]
    colours = {"block": "red", "advise": "yellow"}
    said += [
        LabelledLine(reason.severity, printable(reason.text), colours[reason.severity]) for reason in found.reasons
    ]
    if found.preferred_lens != headline:
        said.append(LabelledLine("prefer", f"{found.preferred_lens} is to be preferred to {headline}"))
    if found.undetermined:
        said.append(LabelledLine("unknown", _in_one_line(found.undetermined), "dim"))
    return said


def _in_one_line(names: Sequence[str]) -> str:
    """As many names as a line holds, and how many more there are."""
    for shown in range(len(names), 0, -1):
        more = f" and {len(names) - shown} more" if shown < len(names) else ""
        line = f"whether {', '.join(names[:shown])}{more}"
        if len(line) <= TEXT_WIDTH:
            return line
    return f"{len(names)} cautions"


def confirmed(found: Confirmation, headline: str) -> str:
    """Which other lens has the answer on top nearby, and whether that says anything new."""
    if not found.hits:
        later = found.layer_any_nontrivial
        return f"no: {found.reason}" + ("" if later is None else f"; a later rank 1, at layer {later}, is confirmed")
    telling = [hit for hit in found.hits if not hit.trivial]
    by_lens: dict[str, list[int]] = {}
    for hit in telling or found.hits:
        by_lens.setdefault(hit.lens, []).append(hit.layer)
    who = " and by ".join(f"{lens} at {layers(where)}" for lens, where in by_lens.items())
    if telling:
        return f"by {who}, for rank 1 at layer {found.onset}"
    return f"by {who}, but trivially: there it computes the same as {headline}, so nothing new is said"


def layers(numbers: Sequence[int]) -> str:
    """Layers in words, three neighbours or more drawn together: `layers 4 to 6 and 9`."""
    parts = [
        part for run in stretches(numbers) for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    listed = ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
    return f"layer{'' if len(numbers) == 1 else 's'} {listed}"


def onset_gap(gap: OnsetGap) -> str:
    """How many layers lie between the answer under the final norm and under the next block's."""
    if gap.gap_layers is None:
        return f"rank 1 under logit {_at(gap.logit)}, under next_norm {_at(gap.next_norm)}, so the gap has no number"
    if gap.gap_layers == 0:
        return f"rank 1 comes at one layer under logit and next_norm: {gap.logit} (gap 0)"
    way = "later" if gap.gap_layers > 0 else "earlier"
    n = abs(gap.gap_layers)
    return (
        f"rank 1 comes {n} layer{'' if n == 1 else 's'} {way} under next_norm ({gap.next_norm}) than under logit "
        f"({gap.logit}), so much hangs on the norm alone"
    )


def control(found: ControlSummary, answer: str | None) -> str:
    """From where the control's own answer leads clearly."""
    own = f"its answer {answer}" if answer else "its answer"
    if found.first_control_strong_pos is None:
        return f"no clear lead of {own}: {found.reason}"
    most = found.max_control_top2_logit_gap
    lead = "" if most is None else f" (up to {most:.1f} logits)"
    return f"{own} leads clearly first at layer {found.first_control_strong_pos}{lead}"


def ablation(found: Ablation) -> str:
    """What another wording changes."""
    if found.variant_nf is None:
        return "not asked: the fact has one wording alone"
    without = (
        "without the filler word" if found.variant_nf == NO_FILLER else f"in wording {printable(found.variant_nf)}"
    )
    if found.delta_L_sem is None:
        return f"rank 1 {_at(found.L_sem_orig)}, {without} {_at(found.L_sem_nf)}, so there is no difference to tell"
    n, weight = abs(found.delta_L_sem), "sensitive" if found.sensitive else "not sensitive"
    moved = f"{n} {'later' if found.delta_L_sem > 0 else 'earlier'} than {found.L_sem_orig}" if n else "as before"
    return f"{without} at layer {found.L_sem_nf}, {moved}: {weight}"


def spread(summary: Summary) -> str:
    """A layer over facts: how many lack it, median, quartiles, and how sure the median is."""
    said = f"n {summary.n}, missing {summary.n_missing}"
    if summary.median is None:
        return said
    said += f", median {summary.median:g} [IQR {summary.p25:g}, {summary.p75:g}]"
    if summary.interval_95 is None:
        return f"{said}; 95% needs {FEWEST} facts"
    return f"{said}, 95% [{summary.interval_95[0]:g}, {summary.interval_95[1]:g}]"


def raw_against_norm(found: Diagnostics) -> list[str]:
    """Two instruments, each by its name: a few layers sampled, and a score of them all."""
    sample, full = found.raw_sample, found.raw_full
    risk = None if sample is None else sample.lens_artifact_risk
    n_layers = 0 if full is None else full.whole.n_layers
    if sample is None or full is None or (risk is None and n_layers == 0):
        return ["not compared: no raw lens was read beside the headline lens"]
    said = f"sampled risk {risk or 'unknown'} ({len(sample.samples)} layers)"
    if n_layers == 0:
        return [f"{said}; full tier unknown: no layer has a distance to the raw lens"]
    whole, prefinal = full.whole.score, full.prefinal.score
    last = (
        ""
        if prefinal.v1 is None
        else f"; prefinal {short_text(prefinal.v1)} ({short_text(prefinal.v2)}) {prefinal.tier}"
    )
    return [
        f"{said}; full tier {whole.tier} ({n_layers} layers)",
        f"score v1 {short_text(whole.v1)} (v2 {short_text(whole.v2)}) {whole.tier}{last}",
    ]


def definition_of_strong(thresholds: Thresholds) -> str:
    """What the word asks for."""
    return (
        f"rank 1, p at least {thresholds.semantic_margin:g} above uniform, "
        f"lead at least {thresholds.semantic_gap:g} logits"
    )


def fitted(found: Diagnostics, sidecars: Sequence[FittedLensRecord]) -> list[str]:
    """Whether fitted lenses are worth their fit, where the tuned one's gain comes from, and whether it is accepted."""
    said = [f"{lens} {audit.verdict or 'undetermined'}" for lens, audit in found.sidecars.items()]
    lines = [f"against {found.headline}: {', '.join(said)}"] if said else []
    refused = [one for one in sidecars if one.status == "refused" and one.kind not in found.sidecars]
    lines += [printable(f"{one.kind} was refused: {one.reason}") for one in refused]
    if found.attribution is not None:
        held_out = next((one.tuned.held_out for one in sidecars if one.status == "loaded" and one.tuned), None)
        lines += filter(None, [_gain(found.attribution.percentiles["p50"]), _worth(found, held_out)])
    return lines


def _gain(found: AttributedGain) -> str:
    """What the tuned lens gains over the headline lens at half depth, and from what."""
    if found.tuned_bits is None:
        return ""
    apart = (found.temperature_bits, found.bias_bits, found.linear_bits)
    together = (found.temperature_bits, found.rotation_bits)
    names = ("temperature", "bias", "map") if None not in apart else ("temperature", "map and bias")
    parts = zip(names, together if None in apart else apart, strict=True)
    split = ", ".join(f"{name} {bits:+.2f}" for name, bits in parts if bits is not None)
    return f"tuned, layer {found.layer}, {found.tuned_bits:+.2f} bits" + (f": {split}" if split else "")


def _worth(found: Diagnostics, held_out: HeldOutRecord | None) -> str:
    """What it gains on text that it was not fitted on, and whether it may stand for the headline lens.

    Gains on that text are of the divergence that it was fitted to; those of rows, in the line before, go the other way.
    """
    audit, accepted = found.tuned_audit, found.acceptance
    said = []
    criterion = None if accepted is None else next((c for c in accepted.criteria if c.on == "held_out"), None)
    gain = None if held_out is None or criterion is None else criterion.value["p50"]
    if gain is not None and criterion is not None and criterion.direction is not None:
        said.append(f"on held-out text {gain:+.2f} bits, weighed by {_WEIGHED[criterion.direction]}")
    if audit is not None and audit.calibration_only:
        said.append("little more than a temperature")
    elif accepted is not None:
        said.append(acceptance(accepted))
    return "; ".join(said)


def acceptance(found: Acceptance) -> str:
    """Whether all criteria pass, and by their names those that do not."""
    if found.accepted:
        return "accepted"
    failed = dict.fromkeys(_CRITERIA[criterion.name] for criterion in found.criteria if criterion.passed is False)
    if failed:
        return f"not accepted: {', '.join(failed)}"
    return "acceptance open"


_WEIGHED: dict[Direction, str] = {
    "lens_to_model": "the lens' probabilities, as rows are",
    "model_to_lens": "the model's probabilities, not by the lens'",
}
"""Which divergence a gain is of: by whose probabilities it takes its mean over the vocabulary."""
_CRITERIA = {"A": "gain", "B": "ranks", "C": "last layer", "D": "loss"}
"""Criteria of acceptance in a word."""


_RANK_COLUMNS = {"rank 1": ONSET, "stable": stable_twin(ONSET), "rank 1 x 2": MilestoneName.ONSET_RUN2}
"""Milestones that rest on ranks alone, by the header of their column."""


def lens_columns(thresholds: Thresholds) -> dict[str, str]:
    """The milestones of the table of lenses, by the header of their column."""
    kl = thresholds.kl_to_final_bits[0]
    return {
        "rank 1": ONSET,
        "stable": stable_twin(ONSET),
        "strong": STRONG,
        "strong x 2": STRONG_RUN2,
        f"KL <= {kl:g}": f"first_kl_below_{kl:.1f}",
        f"entropy <= {thresholds.entropy_collapse_bits:g}": MilestoneName.LOW_ENTROPY,
    }


def rank_1(own: Milestones) -> Milestone:
    """The first layer with the answer on top; by rank where a table says no more than that."""
    return own.get(RANK_1, own[ONSET]) if own[ONSET].reason == NOT_MEASURED else own[ONSET]


def _at(layer: int | None) -> str:
    return "at no known layer" if layer is None else f"at layer {layer}"


def _apart(layer: int, other: int) -> str:
    """How a layer lies to another, in words that end before the other's name."""
    n = abs(other - layer)
    return f"{n} layer{'' if n == 1 else 's'} {'before' if other > layer else 'after'}" if n else "that of"


def _fraction(layer: int | None, n_layers: int) -> str:
    return ABSENT if layer is None else f"{layer / n_layers:.2f}"
