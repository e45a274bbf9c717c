"""What was measured, through which norm, and what came of it: the first section, and the fingerprint at the end."""

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.diagnostics import CONFIRMED
from layerscope.analysis.milestones import NEVER_SEEN, STABLE
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Basis, Name, Paragraph, Part, Section, Sentence, Text, sentence
from layerscope.report.evaluation.quotes import Quotes, at_layer, names, not_measured
from layerscope.report.sentences.weaknesses import weaknesses

ONSET, STRONG, STRONG_RUN2 = "L_semantic", "L_semantic_strong", "L_semantic_strong_run2"
_BASIS = {
    STRONG_RUN2: "strong at two layers in a row",
    STRONG: "strong, but not at two layers in a row",
    CONFIRMED: "rank 1, not strong",
    ONSET: "rank 1 alone",
}
"""What each semantic milestone rests on."""


def overview(quotes: Quotes) -> Section:
    """The section."""
    first = Paragraph((_model(quotes), _prompt(quotes)))
    return Section("Overview", (first, Paragraph(tuple(decoding_point(quotes))), Paragraph(tuple(_result(quotes)))))


def fingerprint(quotes: Quotes) -> Section:
    """One sentence on the whole run."""
    claim = semantic(quotes)
    found = quotes.found.semantic
    parts: list[Part] = [Name(quotes.evidence.stem), Text(": ")]
    if not quotes.ranked:
        parts.append(Text("no layer can be named, for the identity check failed"))
    elif found is None or claim.value is None:
        parts += _never(quotes, claim)
    else:
        parts += [Text("the answer becomes readable under "), Name(quotes.headline), Text(" at depth fraction ")]
        parts += [depth(quotes), Text(" (layer "), claim, Text(", "), Name(found.name), Text(")")]
        weak = weaknesses(quotes.evidence)
        parts.append(Text(", weakly (" + ", ".join(weak) + ")" if weak else ""))
    parts += _last_layer(quotes)
    return Section("Fingerprint", (Paragraph((Sentence(tuple(parts)),)),))


def _never(quotes: Quotes, claim: Claim) -> list[Part]:
    """That the answer does not lead, as far as that is known."""
    if not_measured(claim):
        return [
            Text("whether the answer leads under "),
            Name(quotes.headline),
            Text(" was not measured"),
            Basis((claim,)),
        ]
    tail = " where its rank is known" if claim.reason == NEVER_SEEN else ""
    return [Text("the answer never leads under "), Name(quotes.headline), Text(tail), Basis((claim,))]


def _last_layer(quotes: Quotes) -> list[Part]:
    """How far the last layer is from the output, by the gate for it."""
    last, found = last_kl(quotes), quotes.found.last_layer
    if last.value is None or found is None:
        return [Text("; how far the last layer is from the output was not measured."), Basis((last,))]
    if found.warn_high_last_layer_kl:
        return [Text("; the last layer is far from the output (KL "), last, Text(" bits).")]
    gate = Name(f"{found.threshold_bits:g}")
    return [
        Text("; the last layer is the model's output within the gate of "),
        gate,
        Text(" bits (KL "),
        last,
        Text(" bits)."),
    ]


def semantic(quotes: Quotes) -> Claim:
    """The one layer to headline, by the shared resolver."""
    found = quotes.found.semantic
    return quotes.milestone(ONSET if found is None else found.name)


def depth(quotes: Quotes) -> Claim:
    """That layer as a share of the depth."""
    found, claim = quotes.found.semantic, semantic(quotes)
    fraction = None if found is None or found.layer is None else round(found.layer / quotes.n_layers, 3)
    name = f"{ONSET if found is None else found.name}_frac"
    paths = [("diagnostics", "depth_fractions", name)]
    if claim.value is not None and claim.value == quotes.layer_of(ONSET):
        paths.append(("diagnostics", "depth_fractions", f"{ONSET}_frac"))
    return quotes.figure(name, fraction, Unit.SHARE, *paths, basis=(claim,), how="layer / n_layers")


def last_kl(quotes: Quotes) -> Claim:
    """How far the last layer is from the model's own output."""
    found = quotes.found.last_layer
    value = None if found is None else found.measured.kl_to_final_bits
    return quotes.figure(
        "kl_to_final_bits", value, Unit.BITS, ("diagnostics", "last_layer_consistency", "kl_to_final_bits")
    )


def decoding_point(quotes: Quotes) -> list[Sentence]:
    """Through which norm rows were decoded, and how much hangs on it."""
    lenses = quotes.record.protocol.lenses
    point = quotes.found.decoding_point
    said = [
        sentence("Lenses: {}; figures are those of {} unless another is named.", names(lenses), Name(quotes.headline))
    ]
    if "logit" not in lenses:
        said.append(
            sentence(
                "Only the norm of the next block was decoded ({}, which these files call norm), not the model's "
                "final norm at every layer ({}): how many layers hang on that choice cannot be told from this run, "
                "and every layer named below stands under it.",
                Name("next_norm"),
                Name("logit"),
            )
        )
    elif point.onset_gap is not None and quotes.ranked:
        a, b = quotes.milestone(ONSET, lens="logit"), quotes.milestone(ONSET, lens="next_norm")
        gap = quotes.figure(
            "gap_layers",
            point.onset_gap.gap_layers,
            Unit.COUNT,
            ("diagnostics", "decoding_point", "onset_gap", "gap_layers"),
            basis=(a, b),
            how="difference of layers",
            reason="one of the two lenses has no onset",
        )
        said.append(
            sentence(
                "Through the final norm ({}) the answer first has rank 1 {}, through the next block's norm ({}) "
                "{}: a gap of {} layers.",
                Name("logit"),
                at_layer(a),
                Name("next_norm"),
                at_layer(b),
                gap,
            )
        )
    return said


def _model(quotes: Quotes) -> Sentence:
    model = quotes.record.model
    sizes = [
        quotes.figure(key, value, Unit.COUNT, ("model_stats", path), ("record", "model", key))
        for key, path, value in (
            ("n_layers", "num_layers", model.n_layers),
            ("d_model", "d_model", model.d_model),
            ("d_vocab", "d_vocab", model.d_vocab),
        )
    ]
    created = quotes.stated("created_utc", Unit.TEXT, ("created_utc",))
    when: list[Part] = [Text(", measured "), created] if created.value is not None else []
    return sentence(
        "{} has {} layers, a residual stream of {} and a vocabulary of {}{}.",
        Name(model.id),
        sizes[0],
        sizes[1],
        sizes[2],
        when,
    )


def _prompt(quotes: Quotes) -> Sentence:
    text = quotes.stated("context_prompt", Unit.TOKEN, ("prompt", "context_prompt"), ("diagnostics", "context_prompt"))
    gold = quotes.stated("gold_answer", Unit.TOKEN, ("gold_answer", "string"), ("prompt", "ground_truth"))
    return sentence("The prompt is {}; the answer looked for is {}.", text, gold)


def _result(quotes: Quotes) -> list[Sentence]:
    if not quotes.ranked:
        return [sentence("The identity check failed: neither probabilities nor ranks stand, and no layer is named.")]
    claim, found = semantic(quotes), quotes.found.semantic
    if found is None or claim.value is None:
        return _no_rank_1(quotes, claim)
    said = [
        sentence(
            "The answer becomes readable at layer {} (depth fraction {}): {} ({}).",
            claim,
            depth(quotes),
            _BASIS[found.name],
            Name(found.name),
        )
    ]
    weak = weaknesses(quotes.evidence)
    if weak:
        said.append(sentence("This is weak evidence: {}.", "; ".join(weak)))
    said += _held(quotes)
    if quotes.guidance.preferred_lens != quotes.headline:
        own = quotes.milestone(ONSET, lens=quotes.guidance.preferred_lens)
        said.append(
            sentence(
                "Guidance prefers the lens {}, under which rank 1 comes {}.",
                Name(quotes.guidance.preferred_lens),
                at_layer(own),
            )
        )
    if quotes.guidance.suppress_abs_probs:
        said.append(
            sentence(
                "Guidance forbids to quote probabilities and entropies of lens rows; conclusions here rest on ranks, "
                "layers and divergences, and the figures stand in marked columns."
            )
        )
    return said


def _no_rank_1(quotes: Quotes, claim: Claim) -> list[Sentence]:
    """That there is none, where that was measured, and how near it comes."""
    if not_measured(claim):
        said = [
            sentence(
                "Whether the answer has rank 1 at any layer was not measured: {}{}.",
                Name(claim.reason or ""),
                Basis((claim,)),
            )
        ]
        stated = quotes.stated(ONSET, Unit.LAYER, ("diagnostics", ONSET))
        if stated.value is not None:
            said.append(sentence("The file states layer {}, which no row is there to show.", stated))
        return said
    some = ", among those that have one" if claim.reason == NEVER_SEEN else ""
    said = [sentence("The answer has rank 1 at no layer{}{}.", some, Basis((claim,)))]
    best = shapes.trough(quotes.points("answer_rank"))
    rank, layer = (
        quotes.cell(column, None if best is None else best[0], unit)
        for column, unit in (("answer_rank", Unit.RANK), ("layer", Unit.LAYER))
    )
    if rank.value is not None:
        said.append(sentence("Its best rank is {}, at layer {}.", rank, layer))
    return said


def _held(quotes: Quotes) -> list[Sentence]:
    """Where the first rank 1 is lost, and from where it holds."""
    onset, ranks = quotes.layer_of(ONSET), quotes.points("answer_rank")
    lost = [at for at in shapes.returns(ranks, lambda rank: rank == 1) if onset is not None and at > onset]
    if not lost:
        return []
    first, stable = quotes.milestone(ONSET), quotes.milestone(ONSET + STABLE)
    gone = quotes.cell("layer", lost[0], Unit.LAYER)
    tail: tuple[Part | str, ...] = ("it holds from layer ", stable, " on")
    if stable.value is None:
        known = ranks[-1][0] == quotes.n_layers
        words = "it does not hold to the last layer" if known else "the last layer, which would tell, is missing"
        tail = (words, Basis((stable,)))
    return [sentence("Rank 1 comes first at layer {}, is lost at layer {}, and {}.", first, gone, tail)]
