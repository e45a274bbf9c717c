"""What patches say: where the answer is carried, and every lens' layers held against that."""

from layerscope.analysis.drawn_facts import FACTS_FOR_A_CLAIM
from layerscope.analysis.handover import CONTROLS, BeyondThird, Handover, Patching
from layerscope.record.patches import RANDOM, SAME_ANSWER, UNRELATED
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Block, Name, Row, Section, Sentence, paragraph, row, sentence
from layerscope.report.evaluation.quotes import Path, Quotes, table

_AT: Path = ("patching",)
_CONTROL_NAMES = {SAME_ANSWER: "same fact, other wording", UNRELATED: "third fact", RANDOM: "random step"}
CARRIED_FROM = (
    "Written into another fact's run, the residual at the last token carries at least half of the answer from layer {} "
    "on (median over {} facts in {} pairs)."
)
CARRIED_NOWHERE = (
    "Written into another fact's run, the residual at the last token carries half of the answer at no layer before the "
    "output (median over {} facts in {} pairs)."
)
UNCLEAR = (
    "Written into another fact's run, the residual at the last token moves the answer by half or more from layer {} on "
    "(median over {} facts in {} pairs), but whether it brings its own or takes the other away is not clear."
)
INTERVAL = "Were other facts asked, that layer would lie between {} and {} ({} interval)."
NO_INTERVAL = "An interval takes {} facts, for pairs that share a fact are not independent."
GAP = "There a third fact's residual has an effect smaller by {} (median over {} pairs), and at the output by {}."
GAP_INTERVAL = "Were other facts asked, the first of both would lie between {} and {} ({} interval)."
GAP_AT = (
    "At layer {} a third fact's residual has an effect smaller by {} (median over {} pairs), and at the output by {}."
)
NO_GAP = "No third fact's residual could be held against that: none was written, or none does less at the output."
TAKES_AWAY = (
    "From layer {} on it takes the other answer away, but brings its own less than half as far beyond a third fact's "
    "as at the output."
)
RELEASED = "At the subject's last token it does so up to layer {} (median over {} facts in {} pairs)."
FEW = "That is an illustration: a claim takes {} facts."
UNSURE = "Of {} patched runs from there on, {} are less certain than both runs that they mix, by over a bit."
EFFECTS = (
    "Median effect of a patch by layer, as a share of the logit difference between both facts: {} is nothing, {} is "
    "the source's run. The last columns are controls at the last token, each for one pair of every base: {}. Beyond "
    "third fact is the median of the differences, pair by pair."
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
    facts, pairs = (_of_handover(quotes, at, name, Unit.COUNT) for name in ("n_facts", "n_pairs"))
    if at.is_unclear:
        where = "layer" if at.effect_from is None else "effect_from"
        told = [sentence(UNCLEAR, _of_handover(quotes, at, where, Unit.LAYER), facts, pairs)]
    elif at.at_the_output:
        told = [sentence(CARRIED_NOWHERE, facts, pairs)]
    else:
        told = [sentence(CARRIED_FROM, _of_handover(quotes, at, "layer", Unit.LAYER), facts, pairs)]
    if at.low is None:
        told.append(sentence(NO_INTERVAL, Name(str(FACTS_FOR_A_CLAIM))))
    elif not at.is_unclear:
        ends = (_of_handover(quotes, at, name, Unit.LAYER) for name in ("low", "high"))
        told.append(sentence(INTERVAL, *ends, Name("95 %")))
    told += _beyond_third(quotes, at)
    if at.release is not None:
        n = (_of_handover(quotes, at, name, Unit.COUNT) for name in ("n_subject_facts", "n_subject_pairs"))
        told.append(sentence(RELEASED, _of_handover(quotes, at, "release", Unit.LAYER), *n))
    if at.is_an_illustration:
        told.append(sentence(FEW, Name(str(FACTS_FOR_A_CLAIM))))
    if found.n_unsure:
        runs, unsure = (
            _figure(quotes, name, value, Unit.COUNT, name)
            for name, value in (("n_from_handover", found.n_from_handover), ("n_unsure", found.n_unsure))
        )
        told.append(sentence(UNSURE, runs, unsure))
    return told


def _of_handover(quotes: Quotes, at: Handover, name: str, unit: Unit) -> Claim:
    return _figure(quotes, name, getattr(at, name), unit, "handover", name)


def _beyond_third(quotes: Quotes, at: Handover) -> list[Sentence]:
    """What a third fact's residual does there, and whether the answer goes before another comes."""
    third = at.beyond_third
    if third is None:
        return [sentence(NO_GAP)]
    told = []
    if not at.is_unclear and at.takes_away_only_from is not None:
        told.append(sentence(TAKES_AWAY, _of_handover(quotes, at, "effect_from", Unit.LAYER)))
    if at.is_unclear or not at.at_the_output:
        gap, whole = (_of_third(quotes, third, name, Unit.NUMBER) for name in ("gap", "at_the_output"))
        n = _of_third(quotes, third, "n_pairs", Unit.COUNT)
        if at.is_unclear:  # what is named above may be an earlier layer than the one at which the two are held together
            told.append(sentence(GAP_AT, _of_handover(quotes, at, "layer", Unit.LAYER), gap, n, whole))
        else:
            told.append(sentence(GAP, gap, n, whole))
        if third.low is not None:
            ends = (_of_third(quotes, third, name, Unit.NUMBER) for name in ("low", "high"))
            told.append(sentence(GAP_INTERVAL, *ends, Name("95 %")))
    return told


def _of_third(quotes: Quotes, third: BeyondThird, name: str, unit: Unit) -> Claim:
    return _figure(quotes, name, getattr(third, name), unit, "handover", "beyond_third", name)


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
    effects = found.effects
    controls = [name for name in CONTROLS if name in effects.controls]
    places = [("next",), *([("subject",)] if effects.subject else []), *(("controls", name) for name in controls)]
    places += [("beyond_third",)] if effects.beyond_third else []

    def cells(layer: int) -> Row:
        values = [
            _figure(quotes, "effect", _of(found, place)[layer], Unit.NUMBER, "effects", *place, layer)
            for place in places
        ]
        return row(Name(str(layer)), *values)

    header = ("layer", "last token", *(["subject"] if effects.subject else []))
    names = [_CONTROL_NAMES[name] for name in controls] + (["beyond third fact"] if effects.beyond_third else [])
    counts = ", ".join(f"{_CONTROL_NAMES[name]} {(effects.n_controls or {}).get(name, 0)}" for name in controls)
    nothing, whole = Name("0"), Name("1")
    rows = [cells(layer) for layer in range(found.handover.n_layers + 1)]
    caption = quotes.caption(EFFECTS, nothing, whole, Name(counts or "none"), marked=False)
    return table((*header, *names), rows, caption)


def _of(found: Patching, place: tuple[str, ...]) -> tuple[float | None, ...]:
    if place[0] == "controls":
        return found.effects.controls[place[1]]
    others = {"next": found.effects.next, "subject": found.effects.subject}
    return others.get(place[0], found.effects.beyond_third)
