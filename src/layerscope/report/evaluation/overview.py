"""What was measured, through which norm, and what came of it: the first section, and the fingerprint at the end."""

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.onsets import ON_TOP_FOR_GOOD
from layerscope.record.milestone_names import ONSET
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Basis, Name, Section, Sentence, filled, paragraph, sentence, short_section
from layerscope.report.evaluation import said
from layerscope.report.evaluation.quotes import D, Quotes, at_layer, names, not_measured
from layerscope.report.sentences import last_layer, readable
from layerscope.report.sentences.circumstances import GAP, GAP_LAYERS, ONE_NORM
from layerscope.report.sentences.guidance import FORBIDDEN, PREFERRED
from layerscope.report.sentences.weaknesses import weaknesses

ABLATED = "This is the model with {}: every number is of the ablated model, and none of {}."


def overview(quotes: Quotes) -> Section:
    """The section: first what the model says, then how it was decoded, then from which layer on it is on top."""
    answer = sentence("{}.", said.of_prompt(quotes)) if quotes.ranked else None
    ablation = quotes.record.model.ablation
    without = None if ablation is None else sentence(ABLATED, Name(ablation.words), Name(ablation.base_id))
    first = paragraph(without, _model(quotes), _prompt(quotes), answer)
    return Section(
        "Overview", (first, doc.Paragraph(tuple(decoding_point(quotes))), doc.Paragraph(tuple(_result(quotes))))
    )


def fingerprint(quotes: Quotes) -> Section:
    """One sentence on the whole run."""
    if not quotes.ranked:
        result: doc.Filling = "no layer can be named, for the identity check failed"
    elif over_facts(quotes):
        result = said.over_facts(quotes)
    else:
        points = weaknesses(quotes.evidence)
        weak = f", weakly ({', '.join(points)})" if points else ""
        layers = said.layers_of_primary(quotes, opening=False)
        result = filled("{}; {}{}", said.of_prompt(quotes, opening=False), layers, weak)
    return short_section("Fingerprint", sentence("{}: {}{}", Name(quotes.evidence.stem), result, _last_layer(quotes)))


def over_facts(quotes: Quotes) -> bool:
    """Whether the run is summed up over several facts; one that was read from published files is told by its first."""
    return quotes.diagnostics.answered.n > 1 and quotes.protocol != "published"


def _last_layer(quotes: Quotes) -> tuple[doc.Part, ...]:
    """How far the last layer is from the output, by the gate for it."""
    kl, last = last_kl(quotes), quotes.diagnostics.last_layer
    if kl.value is None or last is None:
        return filled(last_layer.UNKNOWN, Basis((kl,)))
    if last.warn_high_last_layer_kl:
        return filled(last_layer.FAR, kl=kl)
    return filled(last_layer.NEAR, gate=Name(f"{last.threshold_bits:g}"), kl=kl)


def headlined(quotes: Quotes) -> Claim:
    """The one layer to headline: from where on the answer keeps rank 1."""
    return quotes.milestone(ON_TOP_FOR_GOOD)


def last_kl(quotes: Quotes) -> Claim:
    """How far the last layer is from the model's own output."""
    last = quotes.diagnostics.last_layer
    at = quotes.under(D, "last_layer_consistency", of=None if last is None else last.measured)
    return at.figure("kl_to_final_bits", Unit.BITS)


def decoding_point(quotes: Quotes) -> list[Sentence]:
    """Through which norm rows were decoded, and how much hangs on it."""
    lenses, gap = quotes.record.protocol.lenses, quotes.diagnostics.decoding_point.onset_gap
    which = sentence(
        "Lenses: {}; figures are those of {} unless another is named.", names(lenses), Name(quotes.headline)
    )
    logit, next_norm = Name("logit"), Name("next_norm")
    if "logit" not in lenses:
        return [which, sentence(ONE_NORM, logit=logit, next_norm=next_norm)]
    if gap is None or not quotes.ranked:
        return [which]
    onsets = [quotes.milestone(ONSET, lens=lens) for lens in ("logit", "next_norm")]
    a, b = map(at_layer, onsets)
    at = quotes.under(D, "decoding_point", "onset_gap", of=gap, basis=onsets, how="difference of layers")
    layers = at.figure("gap_layers", Unit.COUNT, reason="one of the two lenses has no onset")
    apart = () if layers.value is None else filled(GAP_LAYERS, layers)
    return [which, sentence(GAP, logit=logit, at_logit=a, next_norm=next_norm, at_next_norm=b, gap=apart)]


def _model(quotes: Quotes) -> Sentence:
    model = quotes.record.model
    sizes = [
        quotes.figure(key, getattr(model, key), Unit.COUNT, ("model_stats", path), ("record", "model", key))
        for key, path in (("n_layers", "num_layers"), ("d_model", "d_model"), ("d_vocab", "d_vocab"))
    ]
    created = quotes.stated("created_utc", Unit.TEXT, ("created_utc",))
    when = filled(", measured {}", created) if created.value is not None else ()
    template = "{} has {} layers, a residual stream of {} and a vocabulary of {}{}."
    return sentence(template, Name(model.id), *sizes, when)


def _prompt(quotes: Quotes) -> Sentence:
    text = quotes.stated("context_prompt", Unit.TOKEN, ("prompt", "context_prompt"), (D, "context_prompt"))
    gold = quotes.stated("gold_answer", Unit.TOKEN, ("gold_answer", "string"), ("prompt", "ground_truth"))
    return sentence("The prompt is {}; the answer looked for is {}.", text, gold)


def _result(quotes: Quotes) -> list[Sentence]:
    if not quotes.ranked:
        return [sentence(readable.NOTHING_STANDS_HERE)]
    blind = said.blindness(quotes)
    far = [blind] if blind is not None else []
    if over_facts(quotes):
        first = sentence("Of the primary prompt: {}.", said.layers_of_primary(quotes, opening=False))
        sentences = [sentence("Over the suite: {}.", said.over_facts(quotes)), *far, first]
    else:
        sentences = [sentence("{}.", said.layers_of_primary(quotes)), *far]
    sentences += [*_stated_layer(quotes), *_held(quotes)]
    points, preferred = weaknesses(quotes.evidence), quotes.guidance.preferred_lens
    if points:
        sentences.append(sentence(readable.WEAK, "; ".join(points)))
    if preferred != quotes.headline:
        where = at_layer(quotes.milestone(ONSET, lens=preferred))
        sentences.append(sentence(PREFERRED, lens=Name(preferred), where=where))
    return sentences + ([sentence(FORBIDDEN)] if quotes.guidance.suppress_abs_probs else [])


def _stated_layer(quotes: Quotes) -> list[Sentence]:
    """A layer that the file states, where no row is there to show it."""
    stated = quotes.stated(ONSET, Unit.LAYER, (D, ONSET))
    if not not_measured(quotes.milestone(ONSET)) or stated.value is None:
        return []
    return [sentence("The file states layer {}, which no row is there to show.", stated)]


def _held(quotes: Quotes) -> list[Sentence]:
    """Where the first rank 1 is lost, if it comes back for good."""
    onset, stable, ranks = quotes.layer_of(ONSET), headlined(quotes), quotes.points("answer_rank")
    lost = [at for at in shapes.returns(ranks, lambda rank: rank == 1) if onset is not None and at > onset]
    if not lost or stable.value is None:
        return []
    first, gone = quotes.milestone(ONSET), quotes.cell("layer", lost[0])
    return [sentence(readable.HELD, first=first, lost=gone, stable=stable)]
