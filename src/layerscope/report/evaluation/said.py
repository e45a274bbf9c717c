"""What the model says and from which layer on, with the places that show it: of a prompt, and over facts."""

from collections.abc import Sequence

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.facts import fact_passes
from layerscope.analysis.milestones import NEVER_SEEN
from layerscope.analysis.onsets import CLEARLY_AHEAD, FIRST_ON_TOP, ON_TOP_FOR_GOOD, LayerOverFacts
from layerscope.analysis.outputs import Output
from layerscope.record.parts import OutputRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import Basis, Name, Sentence, filled, sentence
from layerscope.report.evaluation.quotes import D, Path, Quotes, not_measured
from layerscope.report.sentences import answers, onsets, readable

# What the model says


def of_prompt(quotes: Quotes, prompt: PromptKey | None = None, *, opening: bool = True) -> tuple[doc.Part, ...]:
    """What the model says at the end of a prompt, the primary one where not given; without a full stop.

    Args:
        opening: whether it opens a sentence.
    """
    prompt = prompt or quotes.diagnostics.primary
    output = None if prompt is None else quotes.diagnostics.outputs.get(prompt)
    if output is None:
        return filled("What the model itself says is not known" if opening else "what the model says is not known")
    template = answers.template_of_prompt(output)
    top, p_top = top_token(quotes, output), probability(quotes, output, "p_top1")
    rank, p = rank_of_answer(quotes, output), probability(quotes, output, "p_answer")
    return filled(
        template if opening else template[:1].lower() + template[1:],
        top=top,
        p_top=_in_brackets(p_top),
        answer=doc.Token(output.answer_text or "", (rank,) if rank.citations else ()),
        rank=rank,
        p_answer=_in_brackets(p),
    )


def top_token(quotes: Quotes, output: Output) -> Claim:
    """The model's most likely token."""
    paths = [(*base, *inner) for base, inner in _places(quotes, output, "top_tokens", 0)]
    basis = _cell(quotes, output, "top1")
    return quotes.figure("model_top1", output.top_token, Unit.TOKEN, *paths, basis=basis, how=_HOW)


def rank_of_answer(quotes: Quotes, output: Output) -> Claim:
    """The rank of what is judged at the output; the JSON has that of an answer's first piece alone."""
    places = _places(quotes, output, "answer_rank") if output.judge == "first_piece" else []
    paths = [(*base, *inner) for base, inner in places]
    basis = _cell(quotes, output, "answer_rank")
    return quotes.figure("answer_rank_model", output.answer_rank, Unit.RANK, *paths, basis=basis, how=_HOW)


def probability(quotes: Quotes, output: Output, column: str) -> Claim | None:
    """The model's own probability of its top token or of the answer; None where only a lens gives one.

    Args:
        column: `p_top1` or `p_answer`.
    """
    of_top = column == "p_top1"
    value = output.p_top if of_top else output.p_answer
    if not _of_model(quotes, output, of_top=of_top):
        if of_top or output.answer_rank != 1 or output.source != "model":
            return None
        of_top, value = True, output.p_top  # the head lists the answer first, and no other figure of it
    own = of_top or output.judge == "model_top1"
    key = ("top_probs", 0) if own else ("p_answer",)
    places = _places(quotes, output, *key) if own or output.judge == "first_piece" else []
    paths = [(*base, *inner) for base, inner in places]
    basis = _cell(quotes, output, column)
    if value is None:
        return None
    return quotes.figure(f"{column}_model", value, Unit.PROBABILITY, *paths, basis=basis, how=_HOW)


_HOW = "the model's own output"


def _of_model(quotes: Quotes, output: Output, *, of_top: bool) -> bool:
    """Whether a probability was read from the head, or at a last layer that is the model."""
    if quotes.diagnostics.quotability.status(quotes.headline, quotes.n_layers) == "model":
        return True
    known = quotes.record.prompt(output.prompt)
    said = (known and known.output) or (
        quotes.record.measured.final_prediction if output.prompt == quotes.diagnostics.primary else None
    )
    return said is not None and (of_top or said.p_answer is not None)


def _places(quotes: Quotes, output: Output, *key: str | int) -> list[tuple[Path, Path]]:
    """Where the JSON may have a figure of an output: among its prompts, or as the head's list on the primary one."""
    prompts, found = quotes.record.suite.prompts, list[tuple[Path, Path]]()
    known = quotes.record.prompt(output.prompt)
    if known is not None and isinstance(known.output, OutputRecord):
        found.append((("record", "suite", "prompts", prompts.index(known), "output"), key))
    if output.prompt == quotes.diagnostics.primary and key[0] in ("top_tokens", "top_probs"):
        found.append((("final_prediction", "topk", 0), (0 if key[0] == "top_tokens" else 1,)))
    if output.prompt == quotes.diagnostics.primary:
        found.append((("record", "measured", "final_prediction"), key))
    return found


def _cell(quotes: Quotes, output: Output, column: str) -> list[Claim | Citation]:
    """The last row, which shows it where the lens is the model there; all rows of the prompt where it may not stand."""
    cell = quotes.cell(column, quotes.n_layers, prompt=output.prompt)
    return [cell] if cell.citations else list(quotes.rows(prompt=output.prompt))


def _in_brackets(p: Claim | None) -> tuple[doc.Part, ...]:
    return () if p is None else filled(" (p {})", p)


# From which layer on


def lens_words(lens: str) -> tuple[doc.Part, ...]:
    """`the logit lens`."""
    return filled("the {} lens", Name(lens))


def depth(quotes: Quotes, layer: Claim, name: str) -> Claim:
    """A layer as a share of the depth."""
    value = None if not isinstance(layer.value, int) else round(layer.value / quotes.n_layers, 3)
    paths = ((D, "depth_fractions", f"{name}_frac"),)
    return quotes.figure(f"{name}_frac", value, Unit.SHARE, *paths, basis=(layer,), how="layer / n_layers")


def layers_of_primary(quotes: Quotes, *, opening: bool = True) -> tuple[doc.Part, ...]:
    """From which layer on the primary prompt's answer is on top; else where it is and is lost; without a full stop.

    Args:
        opening: whether it opens a sentence.
    """
    layers = quotes.diagnostics.layers_of_primary
    known = layers.clearly_ahead is not None or readable.strength_known(quotes.evidence.verdict.milestones.of())
    template = onsets.template_of_prompt(layers, trusted=quotes.stand and known)
    under = "Under" if opening else "under"
    if not template:
        return _not_for_good(quotes, under)
    subject = "what the model says" if quotes.diagnostics.judge == "model_top1" else "the answer"
    stable, first, ahead = (quotes.milestone(name) for name in (ON_TOP_FOR_GOOD, FIRST_ON_TOP, CLEARLY_AHEAD))
    return (
        *filled(
            f"{under} {{lens}} {subject} is {template}",
            lens=lens_words(quotes.headline),
            stable=stable,
            n=_size(quotes),
            depth=filled("depth fraction {}", depth(quotes, stable, ON_TOP_FOR_GOOD)),
            first=filled("layer {}", first),
            ahead=filled("layer {}", ahead),
        ),
        Basis((ahead,)),
    )


def _not_for_good(quotes: Quotes, under: str) -> tuple[doc.Part, ...]:
    """That the lens does not have the answer on top at the end, as far as that is known."""
    first, lens = quotes.milestone(FIRST_ON_TOP), lens_words(quotes.headline)
    if not_measured(first):
        why = () if first.reason is None else filled(": {}", Name(first.reason))
        whether = "Whether" if under == "Under" else "whether"
        return filled(readable.LEAD_UNKNOWN, whether=whether, lens=lens, why=why, basis=Basis((first,)))
    ranks = quotes.points("answer_rank")
    if first.value is None:
        some = " where its rank is known" if first.reason == NEVER_SEEN else ""
        best = shapes.trough(ranks)
        rank, layer = (quotes.cell(column, None if best is None else best[0]) for column in ("answer_rank", "layer"))
        near = () if rank.value is None else filled("; its best rank is {}, at layer {}", rank, layer)
        return filled(readable.ON_TOP_NOWHERE, under=under, lens=lens, some=some, basis=Basis((first,)), near=near)
    on_top = [layer for layer, rank in ranks if rank == 1]
    words = answers.layer_ranges([(run[0], run[-1]) for run in shapes.stretches(on_top)])
    where = quotes.shape("layers_on_top", words, "layers with rank 1", unit=Unit.TEXT)
    ends = bool(ranks) and ranks[-1][0] == quotes.n_layers
    template = readable.FOUND_AND_LOST if ends else readable.LAST_MISSING
    return filled(template, under=under, lens=lens, where=where, basis=Basis((first,)))


def blindness(quotes: Quotes) -> Sentence | None:
    """That patches find the answer carried before the onset, or that the lens is far from the model there.

    None where neither is so, or it is not known.
    """
    found = quotes.diagnostics.blindness
    patching = quotes.diagnostics.patching
    template = onsets.template_of_blindness(found, quotes.record.protocol.lenses, patching)
    if patching is not None and template and patching.handover.supports_a_claim:
        how, path = "median over pairs of the table of patches", ("patching", "handover", "layer")
        return sentence(template, handover=quotes.figure("layer", patching.handover.layer, Unit.LAYER, path, how=how))
    if not template or found.first_layer is None or found.last_layer is None:
        return None
    counted = quotes.diagnostics.answered.counted
    between = range(found.first_layer, found.last_layer + 1)
    cells = [quotes.cell("kl_to_final_bits", layer, prompt=prompt) for prompt in counted for layer in between]
    how = "median over facts and layers"
    bits = quotes.evidence.derived(
        "median_kl_before_onset", found.median_kl_bits, Unit.BITS, cells, how, lens=quotes.headline
    )
    first, last = (
        quotes.evidence.derived("layer", layer, Unit.LAYER, cells, "layers before the onset")
        for layer in (found.first_layer, found.last_layer)
    )
    return sentence(template, lens=Name(found.lens), bits=bits, first=first, last=last)


# Over facts


def counts(quotes: Quotes) -> dict[str, Claim]:
    """How many facts are answered, asked, and so on, with the rank of every answer at the output behind it."""
    found = answers.counts(quotes.diagnostics.answered)
    basis = ranks_at_output(quotes)
    return {
        name: quotes.evidence.derived(f"facts_{name}", count, Unit.COUNT, basis, "count of facts")
        for name, count in found.items()
    }


def ranks_at_output(quotes: Quotes) -> list[Claim | Citation]:
    """Of every fact."""
    outputs = quotes.diagnostics.outputs
    cells = [_cell(quotes, outputs[fact.prompt], "answer_rank") for fact in facts_once(quotes)]
    return [claim for cell in cells for claim in cell]


def facts_once(quotes: Quotes) -> list[Output]:
    """Every fact in the wording that stands for it."""
    outputs = quotes.diagnostics.outputs
    return [outputs[prompt] for prompt in fact_passes(outputs)]


def over_facts(quotes: Quotes) -> tuple[doc.Part, ...]:
    """How many facts are answered, and from which layer on; without a full stop."""
    facts, layers, numbers = quotes.diagnostics.answered, quotes.diagnostics.layers_over_facts, counts(quotes)
    told = filled(answers.template_over_facts(facts), **numbers)
    under = lens_words(quotes.headline)
    template = onsets.template_over_facts(layers, trusted=quotes.stand)
    if not template:
        known = readable.known_never_on_top(facts.never_on_top, quotes.evidence.verdict.milestones.by_pass())
        return (*told, *filled(f"; {answers.NONE_FOR_GOOD} under {{under}}", **numbers, known=known, under=under))
    stable, first, ahead = layers.on_top_for_good, layers.first_on_top, layers.clearly_ahead
    subject = "what the model says is " if facts.n_without_answer == facts.n else ""
    middle, some = median(quotes, stable), ahead.summary.n - ahead.summary.n_missing
    share = None if stable.median_depth is None else round(stable.median_depth, 3)
    fraction = quotes.evidence.derived(
        f"{ON_TOP_FOR_GOOD}_median_frac", share, Unit.SHARE, (middle,), "layer / n_layers"
    )
    spread = quotes.evidence.derived(
        f"{ON_TOP_FOR_GOOD}_spread", onsets.spread(stable), Unit.TEXT, of_facts(quotes, ON_TOP_FOR_GOOD), "over facts"
    )
    return (
        *told,
        *filled(
            f"; {subject}{template} under {{under}}",
            stable=middle,
            n=_size(quotes),
            depth=filled("depth fraction {}; {}", fraction, spread),
            first=filled("layer {}", median(quotes, first)),
            ahead=filled("layer {}", median(quotes, ahead)),
            some=quotes.evidence.derived("facts_ahead", some, Unit.COUNT, of_facts(quotes, CLEARLY_AHEAD), "count"),
            under=under,
        ),
        Basis((median(quotes, ahead),)),
    )


def median(quotes: Quotes, layer: LayerOverFacts) -> Claim:
    """One of the three layers over the answered facts, in the middle of them."""
    name, value = f"{layer.milestone}_median_over_answered", layer.summary.median
    whole = int(value) if value is not None and value == int(value) else value
    behind = of_facts(quotes, layer.milestone)
    if whole is None or not any(claim.citations for claim in behind):
        return quotes.absent(name, Unit.LAYER, "no answered fact has it")
    return quotes.evidence.derived(name, whole, Unit.LAYER, behind, "median over answered facts", lens=quotes.headline)


def of_facts(quotes: Quotes, name: str) -> Sequence[Claim]:
    """A milestone of every answered fact."""
    return [quotes.milestone(name, prompt=prompt) for prompt in quotes.diagnostics.answered.counted]


def _size(quotes: Quotes) -> Claim:
    return quotes.figure("n_layers", quotes.n_layers, Unit.COUNT, ("model_stats", "num_layers"))
