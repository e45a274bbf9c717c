"""A run's verdict in sentences: where the answer becomes readable, how well that is borne out, what bears on it."""

from collections.abc import Sequence

from layerscope.analysis.consistency import OnsetGap
from layerscope.analysis.curve import Row
from layerscope.analysis.diagnostics import Verdict, protocol_in_force
from layerscope.analysis.milestones import NEVER as HOLDS_NOWHERE
from layerscope.analysis.milestones import NO_TWO, NOT_MEASURED, NOT_TO_THE_END, Milestone
from layerscope.analysis.statistics import entropy_fraction
from layerscope.record.milestone_names import ONSET, STABLE, STRONG, STRONG_RUN2, MilestoneName, stable_twin
from layerscope.record.run_record import RunRecord
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.sentences import circumstances, fitted_lenses, last_layer, readable
from layerscope.report.sentences.lines import LabelledLine, under_one_label
from layerscope.report.sentences.readable import AHEAD, AHEAD_AT_TWO, RUNNING, rank_1
from layerscope.report.text import printable

NONE = "none"


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

    def title(self) -> str:
        """Which prompt the verdict is on."""
        primary = self.diagnostics.primary
        name = None if self.prompt is None else self.prompt.fact_key
        which = "no fact was asked" if primary is None else f"{name or 'first fact'} · {primary.prompt_variant}"
        return printable(f"verdict · {which} · lens {self.diagnostics.headline}")

    def headline(self) -> str:
        """The one sentence to take away."""
        lens = self.diagnostics.headline
        if not self.ranked:
            return readable.NOTHING_STANDS
        if not self.milestones:
            return readable.NO_FACT.format(lens=lens)
        semantic = self.semantic()
        if semantic is None:
            return readable.NEVER_READABLE.format(answer=self.answer(), lens=lens, why=self._why_never())
        fraction = ABSENT if semantic.layer is None else f"{semantic.layer / self.n_layers:.2f}"
        return readable.READABLE.format(
            answer=self.answer(),
            layer=f"{semantic.layer} of {self.n_layers}",
            depth=f"{fraction} of the depth",
            lens=f" under lens {lens}",
            basis=self._basis(semantic),
            milestone=semantic.name,
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
        never = self.cell(self.diagnostics.headline, STRONG) == NONE
        return readable.basis(self.diagnostics, semantic, self.n_layers, never_strong=never)

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
        if not self.trusted:
            return {"rank 1": ONSET, "stable": stable_twin(ONSET), f"rank 1 at two {RUNNING}": MilestoneName.ONSET_RUN2}
        kl = self.thresholds.kl_to_final_bits[0]
        return {
            "rank 1": ONSET,
            "stable": stable_twin(ONSET),
            AHEAD: STRONG,
            AHEAD_AT_TWO: STRONG_RUN2,
            f"KL <= {kl:g}": f"first_kl_below_{kl:.1f}",
            f"entropy <= {self.thresholds.entropy_collapse_bits:g}": MilestoneName.LOW_ENTROPY,
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

    # What bears on it

    def circumstances(self) -> list[LabelledLine]:
        """Norms, copying, control, wording, facts, raw lens and last layer: one or two lines each."""
        diagnostics = self.diagnostics
        lines = [
            LabelledLine("norm choice", self._norms()),
            LabelledLine("ablation", circumstances.ablation(diagnostics.ablation)),
        ]
        facts = under_one_label("facts", circumstances.facts(diagnostics.statistics, trusted=self.trusted))
        if not self.trusted:
            return [*lines, *facts]
        answer = self._control_answer()
        return [
            LabelledLine("ahead", circumstances.definition_of_ahead(self.thresholds), "aside"),
            lines[0],
            LabelledLine("copying", circumstances.copying(diagnostics, self.milestones, self.thresholds)),
            LabelledLine("control", circumstances.control(diagnostics.control, answer)),
            lines[1],
            *facts,
            *under_one_label("raw lens", circumstances.raw_against_norm(diagnostics)),
            LabelledLine("last layer", last_layer.sentence(diagnostics, self.record)),
            *under_one_label("fitted", fitted_lenses.lines(diagnostics, self.record.measured.fitted_lenses)),
        ]

    def _norms(self) -> str:
        """How much hangs on whose norm the residual is decoded through."""
        onsets = [rank_1(milestones) for lens in ("logit", "next_norm") if (milestones := self.by_lens.of(lens))]
        if len(onsets) == 2:
            if any(onset.reason == NOT_MEASURED for onset in onsets):
                return f"{circumstances.GAP_UNKNOWN}: the answer has no rank"
            return circumstances.onset_gap(OnsetGap(*(onset.layer for onset in onsets)))
        gap = self.diagnostics.decoding_point.onset_gap
        if gap is None:
            missing = [lens for lens in ("logit", "next_norm") if lens not in self.record.protocol.lenses]
            return f"{circumstances.GAP_UNKNOWN}: {' and '.join(missing) or 'one of them'} was not read"
        if self.onset.reason == NOT_MEASURED:
            return f"{circumstances.GAP_UNKNOWN}: the answer has no rank"
        return circumstances.onset_gap(gap)

    def _control_answer(self) -> str | None:
        controls = [prompt for prompt in self.record.suite.prompts if prompt.prompt_id != "pos"]
        return printable(repr(controls[0].answers[0].string)) if controls and controls[0].answers else None


def _measured(words: str, value: float | None) -> str:
    return "" if value is None else words.format(short_text(value))
