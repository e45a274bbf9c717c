"""What was measured, through which norm, and what came of it: the first section, and the fingerprint at the end."""

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.milestones import NEVER_SEEN
from layerscope.record.milestone_names import ONSET, stable_twin
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Basis, Name, Section, Sentence, filled, paragraph, sentence, short_section
from layerscope.report.evaluation.quotes import D, Quotes, at_layer, names, not_measured
from layerscope.report.sentences import last_layer, readable
from layerscope.report.sentences.circumstances import GAP, ONE_NORM
from layerscope.report.sentences.guidance import FORBIDDEN, PREFERRED
from layerscope.report.sentences.readable import BASIS
from layerscope.report.sentences.weaknesses import weaknesses


def overview(quotes: Quotes) -> Section:
    """The section."""
    first = paragraph(_model(quotes), _prompt(quotes))
    return Section(
        "Overview", (first, doc.Paragraph(tuple(decoding_point(quotes))), doc.Paragraph(tuple(_result(quotes))))
    )


def fingerprint(quotes: Quotes) -> Section:
    """One sentence on the whole run."""
    claim, milestone = semantic(quotes), quotes.diagnostics.semantic
    if not quotes.ranked:
        result: doc.Filling = "no layer can be named, for the identity check failed"
    elif milestone is None or claim.value is None:
        result = _never(quotes, claim)
    else:
        points = weaknesses(quotes.evidence)
        result = filled(
            readable.READABLE_IN_SHORT,
            lens=Name(quotes.headline),
            depth=depth(quotes),
            layer=claim,
            milestone=Name(milestone.name),
            weak=f", weakly ({', '.join(points)})" if points else "",
        )
    return short_section("Fingerprint", sentence("{}: {}{}", Name(quotes.evidence.stem), result, _last_layer(quotes)))


def _never(quotes: Quotes, claim: Claim) -> tuple[doc.Part, ...]:
    """That the answer does not lead, as far as that is known."""
    if not_measured(claim):
        return filled(readable.LEAD_UNKNOWN, Name(quotes.headline), Basis((claim,)))
    tail = " where its rank is known" if claim.reason == NEVER_SEEN else ""
    return filled(readable.NEVER_LEADS, Name(quotes.headline), tail, Basis((claim,)))


def _last_layer(quotes: Quotes) -> tuple[doc.Part, ...]:
    """How far the last layer is from the output, by the gate for it."""
    kl, last = last_kl(quotes), quotes.diagnostics.last_layer
    if kl.value is None or last is None:
        return filled(last_layer.UNKNOWN, Basis((kl,)))
    if last.warn_high_last_layer_kl:
        return filled(last_layer.FAR, kl=kl)
    return filled(last_layer.NEAR, gate=Name(f"{last.threshold_bits:g}"), kl=kl)


def semantic(quotes: Quotes) -> Claim:
    """The one layer to headline, by the shared resolver."""
    milestone = quotes.diagnostics.semantic
    return quotes.milestone(ONSET if milestone is None else milestone.name)


def depth(quotes: Quotes) -> Claim:
    """That layer as a share of the depth."""
    milestone, claim = quotes.diagnostics.semantic, semantic(quotes)
    layer = None if milestone is None else milestone.layer
    fraction = None if layer is None else round(layer / quotes.n_layers, 3)
    name = f"{ONSET if milestone is None else milestone.name}_frac"
    paths = [(D, "depth_fractions", name)]
    if claim.value is not None and claim.value == quotes.layer_of(ONSET):
        paths.append((D, "depth_fractions", f"{ONSET}_frac"))
    return quotes.figure(name, fraction, Unit.SHARE, *paths, basis=(claim,), how="layer / n_layers")


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
    return [which, sentence(GAP, logit=logit, at_logit=a, next_norm=next_norm, at_next_norm=b, gap=layers)]


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
    claim, milestone = semantic(quotes), quotes.diagnostics.semantic
    if milestone is None or claim.value is None:
        return _no_rank_1(quotes, claim)
    result = sentence(
        readable.READABLE,
        answer="The answer",
        layer=claim,
        depth=filled("depth fraction {}", depth(quotes)),
        lens="",
        basis=BASIS[milestone.name],
        milestone=Name(milestone.name),
    )
    points, preferred = weaknesses(quotes.evidence), quotes.guidance.preferred_lens
    sentences = [result, *([sentence(readable.WEAK, "; ".join(points))] if points else []), *_held(quotes)]
    if preferred != quotes.headline:
        where = at_layer(quotes.milestone(ONSET, lens=preferred))
        sentences.append(sentence(PREFERRED, lens=Name(preferred), where=where))
    return sentences + ([sentence(FORBIDDEN)] if quotes.guidance.suppress_abs_probs else [])


def _no_rank_1(quotes: Quotes, claim: Claim) -> list[Sentence]:
    """That there is none, where that was measured, and how near it comes."""
    if not_measured(claim):
        unknown = sentence(readable.RANK_1_UNKNOWN, Name(claim.reason or ""), Basis((claim,)))
        stated = quotes.stated(ONSET, Unit.LAYER, (D, ONSET))
        unshown = sentence("The file states layer {}, which no row is there to show.", stated)
        return [unknown] if stated.value is None else [unknown, unshown]
    some = ", among those that have one" if claim.reason == NEVER_SEEN else ""
    none = sentence(readable.NO_RANK_1, some, Basis((claim,)))
    best = shapes.trough(quotes.points("answer_rank"))
    rank, layer = (quotes.cell(column, None if best is None else best[0]) for column in ("answer_rank", "layer"))
    return [none] if rank.value is None else [none, sentence("Its best rank is {}, at layer {}.", rank, layer)]


def _held(quotes: Quotes) -> list[Sentence]:
    """Where the first rank 1 is lost, and from where it holds."""
    onset, ranks = quotes.layer_of(ONSET), quotes.points("answer_rank")
    lost = [at for at in shapes.returns(ranks, lambda rank: rank == 1) if onset is not None and at > onset]
    if not lost:
        return []
    first, stable, gone = quotes.milestone(ONSET), quotes.milestone(stable_twin(ONSET)), quotes.cell("layer", lost[0])
    rest = filled(readable.HELD_FROM, stable)
    if stable.value is None:
        known = ranks[-1][0] == quotes.n_layers
        rest = filled("{}{}", readable.HELD_NOWHERE if known else readable.HELD_UNKNOWN, Basis((stable,)))
    return [sentence(readable.HELD, first=first, lost=gone, rest=rest)]
