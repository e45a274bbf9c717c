"""What patches say: where the answer is carried, and every lens' layers held against that."""

from layerscope.analysis.handover import CONTROLS, PAIRS_FOR_A_CLAIM, Patching
from layerscope.record.patches import RANDOM, SAME_ANSWER, UNRELATED
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Block, Name, Row, Section, Sentence, paragraph, row, sentence
from layerscope.report.evaluation.quotes import Path, Quotes, table

_AT: Path = ("patching",)
_CONTROL_NAMES = {SAME_ANSWER: "same fact, other wording", UNRELATED: "third fact", RANDOM: "random step"}
CARRIED_FROM = (
    "Written into another fact's run, the residual at the last token carries at least half of the answer from layer {} "
    "on (median over {} pairs; {} interval {} to {})."
)
CARRIED_NOWHERE = (
    "Written into another fact's run, the residual at the last token carries half of the answer at no layer before the "
    "output (median over {} pairs)."
)
RELEASED = "At the subject's last token it does so up to layer {} (median over {} pairs)."
FEW = "That is an illustration: a claim takes {} pairs."
UNSURE = "Of {} patched runs from there on, {} are less certain than both runs that they mix, by over a bit."
EFFECTS = (
    "Median effect of a patch by layer, as a share of the logit difference between both facts: {} is nothing, {} is "
    "the source's run. The last columns are controls at the last token."
)
LENSES = (
    "Each lens' layer over the answered facts, and what patching says of it: confirmed where it is at most {} from the "
    "one from which on the answer is carried."
)


def causal(quotes: Quotes) -> tuple[Section, ...]:
    """One section; none of a run that was not asked for patches."""
    found = quotes.diagnostics.patching
    if found is None:
        return ()
    title = "Does the model use it?"
    if found.reason is not None:
        return (Section(title, (paragraph(sentence("Nothing was patched: {}.", Name(found.reason))),)),)
    blocks: tuple[Block, ...] = (paragraph(*_carried(quotes, found)), _lenses(quotes, found), _effects(quotes, found))
    return (Section(title, blocks),)


def _figure(quotes: Quotes, name: str, value: float | int | str | None, unit: Unit, *path: str | int) -> Claim:
    return quotes.figure(name, value, unit, (*_AT, *path), how="median over pairs of the table of patches")


def _carried(quotes: Quotes, found: Patching) -> list[Sentence]:
    at = found.handover
    pairs = _figure(quotes, "n_pairs", at.n_pairs, Unit.COUNT, "handover", "n_pairs")
    if at.at_the_output:
        told = [sentence(CARRIED_NOWHERE, pairs)]
    else:
        layer, low, high = (
            _figure(quotes, name, value, Unit.LAYER, "handover", name)
            for name, value in (("layer", at.layer), ("low", at.low), ("high", at.high))
        )
        told = [sentence(CARRIED_FROM, layer, pairs, Name("95 %"), low, high)]
    if at.release is not None:
        layer, n = (
            _figure(quotes, name, getattr(at, name), unit, "handover", name)
            for name, unit in (("release", Unit.LAYER), ("n_subject_pairs", Unit.COUNT))
        )
        told.append(sentence(RELEASED, layer, n))
    if at.n_pairs < PAIRS_FOR_A_CLAIM:
        told.append(sentence(FEW, Name(str(PAIRS_FOR_A_CLAIM))))
    if found.n_unsure:
        runs, unsure = (
            _figure(quotes, name, value, Unit.COUNT, name)
            for name, value in (("n_from_handover", found.n_from_handover), ("n_unsure", found.n_unsure))
        )
        told.append(sentence(UNSURE, runs, unsure))
    return told


def _lenses(quotes: Quotes, found: Patching) -> Block:
    names = ("first_on_top", "on_top_for_good", "clearly_ahead")

    def cells(lens: str) -> Row:
        parts: list[Claim] = []
        for name in names:
            against, path = found.by_lens[lens][name], ("by_lens", lens, name)
            parts.append(_figure(quotes, name, against.layer, Unit.LAYER, *path, "layer"))
            parts.append(_figure(quotes, "verdict", str(against.verdict), Unit.TEXT, *path, "verdict"))
        return row(Name(lens), *parts)

    tolerance = _figure(quotes, "tolerance", found.handover.tolerance, Unit.NUMBER, "handover", "tolerance")
    header = ("lens", "first on top", "patches", "on top for good", "patches", "clearly ahead", "patches")
    return table(header, [cells(lens) for lens in found.by_lens], quotes.caption(LENSES, tolerance, marked=False))


def _effects(quotes: Quotes, found: Patching) -> Block:
    controls = [name for name in CONTROLS if name in found.effects.controls]
    places = [("next",), *([("subject",)] if found.effects.subject else []), *(("controls", name) for name in controls)]

    def cells(layer: int) -> Row:
        values = [
            _figure(quotes, "effect", _of(found, place)[layer], Unit.NUMBER, "effects", *place, layer)
            for place in places
        ]
        return row(Name(str(layer)), *values)

    header = ("layer", "last token", *(["subject"] if found.effects.subject else []))
    names = tuple(_CONTROL_NAMES[name] for name in controls)
    nothing, whole = Name("0"), Name("1")
    rows = [cells(layer) for layer in range(found.handover.n_layers + 1)]
    return table((*header, *names), rows, quotes.caption(EFFECTS, nothing, whole, marked=False))


def _of(found: Patching, place: tuple[str, ...]) -> tuple[float | None, ...]:
    if place[0] == "controls":
        return found.effects.controls[place[1]]
    return found.effects.next if place[0] == "next" else found.effects.subject
