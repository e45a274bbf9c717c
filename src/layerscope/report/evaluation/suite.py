"""What all facts of a run say together: which are answered, from which layer on, in which wording, against controls.

Of runs of our own: of files that were published long ago the tables of `prompts` stay as they were.
"""

from collections.abc import Sequence

from layerscope.analysis.comparisons import ControlAnswer
from layerscope.analysis.onsets import CLEARLY_AHEAD, FIRST_ON_TOP, ON_TOP_FOR_GOOD, LayerOverFacts
from layerscope.analysis.outputs import Output
from layerscope.record.milestone_names import CONFIRMED
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Claim, Unit, Value
from layerscope.report.cited.document import Bullets, Name, Sentence, paragraph, row, sentence
from layerscope.report.evaluation import said
from layerscope.report.evaluation.quotes import Quotes, table, token
from layerscope.report.sentences import answers, onsets
from layerscope.report.sentences.lines import plural

ANSWERED = (
    "Of {n} facts asked in both wordings the model answers {first} in {this} and {second} in {other}: {only_first} in "
    "the first alone, {only_second} in the other alone (exact McNemar p {p})."
)
SHIFT = (
    "From the first wording to the other, on top for good moves by {layers} {unit} (median over {n} {facts} answered "
    "in both; negative is earlier)."
)
NATS = "The answer's log-probability at the output changes by {nats} nats (median over {n} {facts})."
DECIDED = "By {judged} the run is {sensitive}{by}."
_BY = {"answers": "answers", "layers": "layers", "log_prob": "log-probability"}
CONTROLS = "Controls: {answered} of {n} get their own answer, {contrast} that of the fact they are compared with."
FACTS = (
    "Each fact once: its answer at the output, and under {lens} the layers from which it is first on top, on top for "
    "good and clearly ahead for good."
)
OVER_ANSWERED = (
    "Over the facts that are answered{others}. The interval is one of the median, by resampling; it is given where "
    "enough facts have the layer and they are not all equal."
)
LOST = "{fact}: the answer passes through rank 1 at {where} and loses it"


# Wordings


def wordings(quotes: Quotes) -> list[doc.Block]:
    """In which of both wordings facts are answered, and what moves."""
    effect = quotes.diagnostics.wording
    if effect.reason is not None or effect.first is None or effect.second is None:
        return [paragraph(sentence("Not asked: {}.", Name(effect.reason or "one wording alone")))]
    pairs = [o for o in quotes.diagnostics.outputs.values() if o.prompt.prompt_variant in (effect.first, effect.second)]
    behind = _ranks(quotes, pairs)

    def figure(name: str, value: Value, unit: Unit, how: str) -> Claim:
        return quotes.evidence.derived(name, value, unit, behind, how)

    def count(name: str, value: int) -> Claim:
        return figure(f"wording_{name}", value, Unit.COUNT, "count of facts")

    found, shift = effect.answers, effect.shift_layers
    both = shift.n - shift.n_missing
    sentences = [
        sentence(
            ANSWERED,
            n=count("n", found.n),
            first=count("n_first", found.n_first),
            this=Name(effect.first),
            second=count("n_second", found.n_second),
            other=Name(effect.second),
            only_first=count("only_first", len(found.only_first)),
            only_second=count("only_second", len(found.only_second)),
            p=figure("mcnemar_p", found.mcnemar_p, Unit.NUMBER, "exact, two-sided"),
        )
    ]
    if shift.median is not None:
        layers = figure("wording_median_shift_layers", _whole(shift.median), Unit.NUMBER, "median of differences")
        unit, answered_both = plural("layer", abs(shift.median)), count("n_both", both)
        sentences.append(sentence(SHIFT, n=answered_both, facts=plural("fact", both), layers=layers, unit=unit))
    if effect.median_shift_nats is not None:
        nats = figure("wording_median_shift_nats", effect.median_shift_nats, Unit.NUMBER, "median of differences")
        facts_with_both = plural("fact", effect.n_nats)
        sentences.append(sentence(NATS, nats=nats, n=count("n_nats", effect.n_nats), facts=facts_with_both))
    if effect.sensitive is not None:
        told = f"{'' if effect.sensitive else 'not '}sensitive to the wording"
        by = f" ({', '.join(_BY[name] for name in effect.decided_by)})" if effect.decided_by else ""
        judged = ", ".join(_BY[name] for name in effect.judged)
        sentences.append(sentence(DECIDED, judged=judged, sensitive=told, by=by))
    return [paragraph(*sentences)]


def _whole(value: int | float) -> int | float:
    """A count of layers, or halfway between two."""
    return int(value) if value == int(value) else value


def _ranks(quotes: Quotes, outputs: Sequence[Output]) -> list[Claim]:
    """Of several answers at the output."""
    return [claim for output in outputs if (claim := said.rank_of_answer(quotes, output)).citations]


# Controls


def controls(quotes: Quotes) -> list[doc.Block]:
    """Whether each control gets its own answer, and not the fact's; nothing of published files."""
    found = quotes.diagnostics.controls
    if quotes.protocol == "published" or found.reason is not None:
        return []
    said_there = [said.top_token(quotes, control.output) for control in found.controls]
    behind = [*_ranks(quotes, [control.output for control in found.controls]), *said_there]

    def count(name: str, value: int) -> Claim:
        return quotes.evidence.derived(f"controls_{name}", value, Unit.COUNT, behind, "count of controls")

    counted = sentence(
        CONTROLS,
        answered=count("answered", found.n_answered),
        n=count("n", found.n),
        contrast=count("say_contrast", found.n_says_contrast),
    )
    header = ("its own answer", "the model says", "rank of its own", "the fact's answer", "given instead")
    rows = [_control(quotes, control) for control in found.controls]
    return [paragraph(counted), table(header, rows, sentence("Controls at the output, which is the model's own."))]


def _control(quotes: Quotes, control: ControlAnswer) -> doc.Row:
    instead = {True: "yes", False: "no", None: "not known"}[control.says_contrast]
    own, rank = control.output.answer_text, said.rank_of_answer(quotes, control.output)
    contrast: doc.Filling = "-" if control.contrast is None else token(control.contrast)
    said_there = said.top_token(quotes, control.output)
    return row("-" if own is None else token(own), said_there, rank, contrast, instead)


# Facts


def facts(quotes: Quotes) -> tuple[doc.Block, ...]:
    """Every fact, those found and lost again, the middle of the answered ones, and chance."""
    rows = [_fact(quotes, fact) for fact in said.facts_once(quotes)]
    header = ("fact", "answered", "the model says", "rank", *_THREE, "confirmed")
    caption = quotes.caption(FACTS, lens=said.lens_words(quotes.headline), marked=False)
    blocks: list[doc.Block] = [table(header, rows, caption)]
    items = _found_and_lost(quotes)
    blocks += [Bullets(tuple(items))] if items else []
    return (*blocks, _middle(quotes), paragraph(_chance(quotes)))


_THREE = (onsets.FIRST, onsets.FOR_GOOD, onsets.AHEAD)


def _fact(quotes: Quotes, fact: Output) -> doc.Row:
    answered = {True: "yes", False: "no", None: "not known"}[fact.answered]
    if fact.judge == "model_top1":
        answered = "no answer given"
    milestones = (FIRST_ON_TOP, ON_TOP_FOR_GOOD, CLEARLY_AHEAD, CONFIRMED)
    layers = [quotes.milestone(name, prompt=fact.prompt) for name in milestones]
    name = fact.fact_key or str(fact.prompt.fact_index)
    return row(Name(name), answered, said.top_token(quotes, fact), said.rank_of_answer(quotes, fact), *layers)


def _found_and_lost(quotes: Quotes) -> list[Sentence]:
    found = []
    for fact in quotes.diagnostics.answered.found_and_lost:
        rows, words = quotes.rows(prompt=fact.prompt), answers.layer_ranges(fact.stretches)
        where = quotes.evidence.derived("layers_on_top", words, Unit.TEXT, rows, "layers with rank 1")
        name = fact.fact_key or str(fact.prompt.fact_index)
        found.append(sentence(f"{LOST}.", fact=Name(name), where=where))
    return found


def _middle(quotes: Quotes) -> doc.Block:
    """The three layers over the answered facts."""
    layers = quotes.diagnostics.layers_over_facts
    three = (layers.first_on_top, layers.on_top_for_good, layers.clearly_ahead)
    rows = [_over_answered(quotes, label, layer) for label, layer in zip(_THREE, three, strict=True)]
    others = ", or have no answer to judge by" if quotes.diagnostics.answered.n_without_answer else ""
    header = ("layer", "facts", "without", "median", "p25", "p75", "95% from", "to")
    return table(header, rows, quotes.caption(OVER_ANSWERED, others=others, marked=False))


def _over_answered(quotes: Quotes, label: str, layer: LayerOverFacts) -> doc.Row:
    summary, behind = layer.summary, said.of_facts(quotes, layer.milestone)
    low, high = summary.interval_95 or (None, None)

    def figure(key: str, value: int | float | None, unit: Unit) -> Claim:
        name = f"{layer.milestone}_{key}_over_answered"
        if value is None or not behind:
            return quotes.absent(name, unit, summary.interval_reason or "no answered fact has it")
        return quotes.evidence.derived(name, _whole(value), unit, behind, "over answered facts", lens=quotes.headline)

    counts = [figure("n", summary.n, Unit.COUNT), figure("n_missing", summary.n_missing, Unit.COUNT)]
    spread = {"p25": summary.p25, "p75": summary.p75, "low": low, "high": high}
    middle = said.median(quotes, layer)
    return row(label, *counts, middle, *(figure(key, value, Unit.LAYER) for key, value in spread.items()))


def _chance(quotes: Quotes) -> Sentence:
    """Whether own answers are on top more often than answers dealt out at random."""
    words = onsets.chance(quotes.diagnostics.chance, ON_TOP_FOR_GOOD)
    behind = [citation for fact in said.facts_once(quotes) for citation in quotes.rows(prompt=fact.prompt)]
    told = quotes.evidence.derived("against_chance", words, Unit.TEXT, behind, "permutation of answers")
    return sentence(
        "Own answers against shuffled ones, under {lens}: {told}.", lens=said.lens_words(quotes.headline), told=told
    )
