"""A run's verdict in sentences: what the model says, from which layer on, how well that is borne out."""

import math
from collections.abc import Sequence

from layerscope.analysis.consistency import OnsetGap
from layerscope.analysis.curve import Row
from layerscope.analysis.diagnostics import Verdict, protocol_in_force
from layerscope.analysis.milestones import NEVER as HOLDS_NOWHERE
from layerscope.analysis.milestones import NO_TWO, NOT_MEASURED, NOT_TO_THE_END, Milestone
from layerscope.analysis.onsets import ON_TOP_FOR_GOOD
from layerscope.analysis.statistics import entropy_fraction
from layerscope.record.milestone_names import ONSET, STABLE, STRONG, MilestoneName, stable_twin
from layerscope.record.run_record import RunRecord
from layerscope.record.sublayers import WordingWritersRecord
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.sentences import (
    answers,
    circumstances,
    fitted_lenses,
    guidance,
    last_layer,
    onsets,
    patching,
    readable,
    writers,
)
from layerscope.report.sentences.lines import LabelledLine, under_one_label
from layerscope.report.sentences.lines import layers as layers_in_words
from layerscope.report.sentences.onsets import AHEAD, FIRST, FOR_GOOD
from layerscope.report.sentences.readable import rank_1
from layerscope.report.text import printable

NONE, UNKNOWN = "none", "not known"
MODEL_SAYS = "what the model says is"
"""What is on top where no answer was given."""
NOT_TO_BE_REPORTED = "not to be reported: by this protocol any caution stands against it"
P_IS = "p is"
"""The label of what probabilities of layers are."""


class VerdictText:
    """What there is to say of one run.

    Where the identity check failed, nothing that rests on a probability is said; where it casts doubt on ranks too, no
    layer is named at all.
    """

    def __init__(self, verdict: Verdict, record: RunRecord) -> None:
        self.diagnostics, self.guidance, self.record = verdict.diagnostics, verdict.guidance, record
        self.thresholds = protocol_in_force(record).thresholds
        self.n_layers, self.d_vocab = record.model.n_layers, record.model.d_vocab
        self.by_lens = verdict.milestones
        self.milestones = verdict.milestones.of()
        """Of the headline lens."""
        self.curves = verdict.curves
        self.curve = verdict.curves.get(verdict.diagnostics.primary, verdict.diagnostics.headline)
        self.trusted, self.ranked = record.probabilities_stand, record.ranks_stand
        self.prompt = record.prompt(verdict.diagnostics.primary)

    @property
    def names_layers(self) -> bool:
        """Whether any layer is named."""
        return self.ranked and bool(self.milestones)

    @property
    def onset(self) -> Milestone:
        """Where the answer first leads under the headline lens."""
        return rank_1(self.milestones)

    # What comes first

    @property
    def over_facts(self) -> bool:
        """Whether the verdict is over several facts, and not on one prompt alone."""
        return self.diagnostics.answered.n > 1

    def title(self) -> str:
        """What the verdict is on."""
        primary, suite = self.diagnostics.primary, self.record.suite.name
        name = None if self.prompt is None else self.prompt.fact_key
        if primary is None:
            which = "no fact was asked"
        elif self.over_facts:
            which = f"{suite} · {primary.prompt_variant}"
        else:
            which = f"{name or 'first fact'} · {primary.prompt_variant}"
        return printable(f"verdict · {which} · {self.record.model.id} · lens {self.diagnostics.headline}")

    def headline(self) -> str:
        """What to take away: what the model says, from which layer on under which lens, and how blind that is."""
        return " ".join(filter(None, (self.statement(), self.blindness())))

    def statement(self) -> str:
        """The first half of it: what the model says, and from which layer on under which lens."""
        ablation = self.record.model.ablation
        without = "" if ablation is None else f"Ablated, {ablation.words}. "
        return without + self._statement()

    def _statement(self) -> str:
        if not self.ranked:
            return readable.NOTHING_STANDS
        if not self.milestones:
            return readable.NO_FACT.format(lens=self.diagnostics.headline)
        return self._over_facts() if self.over_facts else self._of_prompt()

    def blindness(self) -> str:
        """The second half: that the lens is far from the model before that layer; empty where it is not."""
        if not self.names_layers or not self.trusted:
            return ""
        found = self.diagnostics
        return onsets.blind(found.blindness, self.record.protocol.lenses, found.patching if self.ranked else None)

    def _over_facts(self) -> str:
        facts, under = self.diagnostics.answered, onsets.lens_name(self.diagnostics.headline)
        layers = onsets.over_facts(self.diagnostics.layers_over_facts, self.n_layers, trusted=self.trusted)
        told = answers.over_facts(facts)
        if layers:
            subject = f"{MODEL_SAYS} " if facts.n_without_answer == facts.n else ""
            chance = self.diagnostics.chance.above_chance
            doubt = " That is not above chance." if chance is False else ""
            return f"{told}; {subject}{layers} under {under}.{doubt}"
        if facts.counted:
            lens = self.diagnostics.headline
            curves = [self.curves.get(prompt, lens) for prompt in facts.counted]
            at_last = [None if curve is None else curve.value("answer_rank", self.n_layers) for curve in curves]
            return f"{told}; {FOR_GOOD} from no {'known ' if None in at_last else ''}layer under {under}."
        known = readable.known_never_on_top(facts.never_on_top, self.by_lens.by_pass())
        none = answers.NONE_FOR_GOOD.format(known=known, **answers.counts(facts))
        return f"{told}; {none} under {under}."

    def _of_prompt(self) -> str:
        diagnostics = self.diagnostics
        output = None if diagnostics.primary is None else diagnostics.outputs.get(diagnostics.primary)
        if output is None:
            return "What the model itself says is not known."
        told, under = answers.of_prompt(output), onsets.lens_name(diagnostics.headline)
        layers = onsets.of_prompt(diagnostics.layers_of_primary, self.n_layers, trusted=self.trusted)
        if not layers or not output.on_top:
            return f"{told}. {self._not_on_top(under)}"
        subject = f"{MODEL_SAYS} " if output.judge == "model_top1" else ""
        return f"{told}; {subject}{layers} under {under}."

    def _not_on_top(self, under: str) -> str:
        """Of a prompt whose answer is not on top for good, be it that the model or the lens has another there."""
        lost = self.diagnostics.answered.found_and_lost
        if lost:
            return f"Under {under} it {answers.lost_again(lost[0])}."
        if self.onset.layer is not None:
            on_top = layers_in_words([row["layer"] for row in self._rows() if row["answer_rank"] == 1])
            last = self._rows()[-1]
            if last["layer"] < self.n_layers or last["answer_rank"] in (None, 1):
                return f"Under {under} it has rank 1 at {on_top}; whether it stays there is not known."
            return f"Under {under} it passes through rank 1 at {on_top} and loses it."
        if self.onset.reason == HOLDS_NOWHERE:
            return f"{under[:1].upper()}{under[1:]} has it on top nowhere: {self._why_never()}."
        return f"Whether {under} has it on top anywhere is not known: {self._why_never()}."

    def semantic(self) -> Milestone | None:
        """The milestone to headline: by rank alone where no probability stands; None where there is none."""
        if self.trusted:
            return self.diagnostics.semantic
        return None if self.onset.layer is None else self.onset

    def layer(self) -> int | float | None:
        """The layer of the headline: on top for good, over facts the median; None where none can be named."""
        if not self.names_layers:
            return None
        if self.over_facts:
            return self.diagnostics.layers_over_facts.on_top_for_good.summary.median
        return self.diagnostics.layers_of_primary.on_top_for_good

    def _why_never(self) -> str:
        if self.onset.reason == NOT_MEASURED:
            answers = () if self.prompt is None else self.prompt.answers
            aligned = any(answer.ok for answer in answers) or not answers
            return "its rank was not recorded" if aligned else "it cannot be told in the model's tokens"
        ranks = [(row["answer_rank"], row["layer"]) for row in self._rows() if row["answer_rank"] is not None]
        rank, layer = min(ranks, default=(None, None))
        known = "" if self.onset.reason == HOLDS_NOWHERE else "known "
        return "no rank is known" if rank is None else f"its best {known}rank is {rank:,}, at layer {layer}"

    def _rows(self) -> Sequence[Row]:
        return () if self.curve is None else self.curve.rows

    # In short

    def summary(self, *, whole: bool = True) -> list[LabelledLine]:
        """What bears on the headline, each in a line or two; all that patches say, or in short."""
        diagnostics, lines = self.diagnostics, []
        if self.over_facts:
            lines.append(LabelledLine("first fact", self._first_fact()))
            if diagnostics.chance.n_facts:
                lines.append(LabelledLine("chance", onsets.chance(diagnostics.chance, ON_TOP_FOR_GOOD)))
            lost = answers.all_lost(diagnostics.answered)
            lines += [LabelledLine("lost", lost)] if lost else []
        lines.append(LabelledLine("lenses", self._other_lenses()))
        if diagnostics.patching is not None and self.ranked:
            told = patching.sentence if whole else patching.in_short
            lines.append(LabelledLine("patching", told(diagnostics.patching, diagnostics.headline)))
        attributed = self.record.measured.sublayers
        if attributed is not None and self.ranked:
            lines.append(LabelledLine("writers", writers.in_short(attributed, self._attributed())))
        if diagnostics.wording.reason is None:
            lines.append(LabelledLine("wording", circumstances.wording(diagnostics.wording)))
        if diagnostics.controls.reason is None:
            lines.append(LabelledLine("control", circumstances.controls(diagnostics.controls)))
        twin = self.record.measured.shuffled_weights
        lines += [] if twin is None else [LabelledLine("twin", circumstances.twin(twin))]
        quotable = guidance.probabilities(diagnostics.quotability, diagnostics.headline)
        if self.guidance.suppress_abs_probs:
            quotable = NOT_TO_BE_REPORTED
        return [*lines, LabelledLine(P_IS, quotable)] if self.trusted else lines

    def writers(self) -> list[LabelledLine]:
        """What wrote the answer, where that was asked: over the prompts of the first fact's wording."""
        found = self.record.measured.sublayers
        return [] if found is None else writers.in_detail(found, self._attributed())

    def _attributed(self) -> WordingWritersRecord | None:
        found, primary = self.record.measured.sublayers, self.diagnostics.primary
        if found is None or primary is None:
            return None
        return found.of_wording(primary.prompt_id, primary.prompt_variant)

    def cautions(self) -> list[str]:
        """Every reason for caution in a few words."""
        return guidance.in_short(self.guidance)

    def _first_fact(self) -> str:
        primary = self.diagnostics.primary
        output = None if primary is None else self.diagnostics.outputs.get(primary)
        name = "" if output is None or output.fact_key is None else f"{answers.shortened(printable(output.fact_key))}: "
        told = "not known" if output is None else answers.of_prompt(output)
        return f"{name}{told[:1].lower()}{told[1:]}"

    def _other_lenses(self) -> str:
        """From where each of the others has the answer on top for good, over the same facts."""
        parts = []
        for lens, layers in self.diagnostics.layers_by_lens.items():
            if lens == self.diagnostics.headline:
                continue
            summary = layers.on_top_for_good.summary
            held = summary.n - summary.n_missing
            some = f" ({held} of {summary.n})" if held < summary.n else ""
            none = UNKNOWN if layers.on_top_for_good.n_undetermined else NONE
            rough = (
                " (approximate)" if summary.median is not None and self._is_approximate(lens, summary.median) else ""
            )
            parts.append(f"{lens} {none if summary.median is None else f'{summary.median:g}{some}{rough}'}")
        if not parts:
            return "none was read"
        return f"on top for good from {', '.join(parts)}" if self.diagnostics.answered.counted else "no fact to compare"

    def _is_approximate(self, lens: str, layer: float) -> bool:
        """Whether a lens' matrices are known to be too far off there for claims."""
        records = (fitted.jacobian for fitted in self.record.measured.fitted_lenses if fitted.kind == lens)
        return any(record is not None and math.floor(layer) in record.approximate for record in records)

    # How strong, and how well confirmed

    def strength(self) -> list[LabelledLine]:
        """Onset, confirmation and strength of the headline."""
        semantic, confirmation = self.semantic(), self.diagnostics.confirmation
        if semantic is None:
            return []
        lines = [LabelledLine("onset", readable.held(self.onset, self.milestones, trusted=self.trusted))]
        if confirmation is not None:
            confirmed = circumstances.confirmed(confirmation, self.diagnostics.headline)
            lines.append(LabelledLine("confirmed", confirmed))
        if self.trusted:
            lines.append(LabelledLine("strength", self._strength(semantic)))
        return lines

    def _strength(self, semantic: Milestone) -> str:
        onset = self.onset.layer
        strength = f"layer {semantic.layer}: {self._numbers(semantic.layer)}"
        if onset is not None and onset != semantic.layer:
            strength += f"; at the first rank 1, layer {onset}: {self._at_onset()}"
        return f"{strength} (do not report)" if self.guidance.suppress_abs_probs else strength

    def _numbers(self, layer: int | None) -> str:
        row = None if self.curve is None else self.curve.at(layer)
        if row is None:
            return "not measured"
        share = entropy_fraction(row["entropy_bits"], self.d_vocab)
        entropy = "" if share is None else f"entropy {short_text(row['entropy_bits'])} bits = {share:.2f} log2 V"
        parts = [
            _measured("p {}", row["p_answer"]),
            _measured("{} above uniform", row["answer_minus_uniform"]),
            _measured("lead {} logits", row["answer_logit_gap"]),
            entropy,
            _measured("KL to final {} bits", row["kl_to_final_bits"]),
        ]
        return ", ".join(filter(None, parts)) or "not measured"

    def _at_onset(self) -> str:
        parts = [
            _measured("p {}", self.onset.p_answer),
            _measured("lead {} logits", self.diagnostics.gap_at_semantic),
            "hardly above uniform" if self.diagnostics.margin_ok_at_semantic is False else "",
        ]
        return ", ".join(filter(None, parts)) or "not measured"

    # Lens by lens

    @property
    def columns(self) -> dict[str, str]:
        """The milestones of the table of lenses by the header of their column; those of ranks where no more stands."""
        ranks = {FIRST: ONSET, FOR_GOOD: stable_twin(ONSET)}
        if not self.trusted:
            return ranks
        kl, entropy = self.thresholds.kl_to_final_bits[0], self.thresholds.entropy_collapse_bits
        return ranks | {
            f"first {AHEAD}": STRONG,
            f"{AHEAD} for good": stable_twin(STRONG),
            f"KL <= {kl:g}": f"first_kl_below_{kl:.1f}",
            f"entropy <= {entropy:g}": MilestoneName.LOW_ENTROPY,
        }

    def cells(self, lens: str) -> list[str]:
        """The row of a lens in that table."""
        return [self.cell(lens, name) for name in self.columns.values()]

    def cell(self, lens: str, name: str) -> str:
        """A layer; `none` only where every layer was read and none was left open."""
        milestones = self.by_lens.of(lens)
        if name not in milestones:
            return ABSENT
        if name.removesuffix(STABLE) == ONSET:
            name = name.replace(ONSET, rank_1(milestones).name)
        layer = milestones[name].layer
        if layer is not None:
            return str(layer)
        return NONE if milestones[name].reason in (HOLDS_NOWHERE, NO_TWO, NOT_TO_THE_END) else ABSENT

    # What bears on the first fact

    def circumstances(self) -> list[LabelledLine]:
        """Norms, copying, raw lens, last layer and fitted lenses: one or two lines each."""
        diagnostics = self.diagnostics
        norms = LabelledLine("norm choice", self._norms())
        if not self.trusted:
            return [norms]
        copying = circumstances.copying(diagnostics.early_reflex, self.milestones, self.thresholds)
        return [
            LabelledLine("ahead", circumstances.definition_of_ahead(self.thresholds), "aside"),
            norms,
            LabelledLine("copying", copying),
            *under_one_label("raw lens", circumstances.raw_against_norm(diagnostics)),
            LabelledLine("last layer", last_layer.sentence(diagnostics, self.record)),
            *under_one_label("fitted", fitted_lenses.lines(diagnostics, self.record.measured.fitted_lenses)),
        ]

    def _norms(self) -> str:
        """How much hangs on whose norm the residual is decoded through."""
        read = [rank_1(milestones) for lens in ("logit", "next_norm") if (milestones := self.by_lens.of(lens))]
        if len(read) == 2:
            if any(onset.reason == NOT_MEASURED for onset in read):
                return f"{circumstances.GAP_UNKNOWN}: the answer has no rank"
            known = all(onset.layer is not None or onset.reason == HOLDS_NOWHERE for onset in read)
            return circumstances.onset_gap(OnsetGap(*(onset.layer for onset in read)), known=known)
        gap = self.diagnostics.decoding_point.onset_gap
        if gap is None:
            missing = [lens for lens in ("logit", "next_norm") if lens not in self.record.protocol.lenses]
            return f"{circumstances.GAP_UNKNOWN}: {' and '.join(missing) or 'one of them'} was not read"
        if self.onset.reason == NOT_MEASURED:
            return f"{circumstances.GAP_UNKNOWN}: the answer has no rank"
        return circumstances.onset_gap(gap, known=self.onset.reason in (None, HOLDS_NOWHERE))


def _measured(words: str, value: float | None) -> str:
    return "" if value is None else words.format(short_text(value))
