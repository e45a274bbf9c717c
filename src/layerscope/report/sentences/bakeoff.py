"""A bake-off in words: what it is about, and how its numbers are to be read."""

from collections.abc import Sequence

from layerscope.analysis.bakeoff import Bakeoff, Entrant, LensInBakeoff, Seen
from layerscope.analysis.causal_shares import MATERIAL, OVERSHOT, CausalShare, DirectionVerdict
from layerscope.analysis.drawn_facts import FACTS_FOR_A_CLAIM
from layerscope.analysis.handover import CARRIED
from layerscope.report.sentences.lines import capitalised, plural
from layerscope.report.sentences.patching import ILLUSTRATION, NOT_TESTED, carried

SPAN = "span: effect of the source's state along the lens' directions alone"
NO_ONSET = "none"
"""In place of a lens' layer, where there is none."""
NOT_KNOWN = "not known"
"""In place of a verdict, where there is no effect."""


def lens_words(lens: LensInBakeoff) -> str:
    """A lens by name; what was made of one says so."""
    if lens.entrant is Entrant.NULL:
        return f"{lens.of}, shuffled"
    if lens.entrant is Entrant.DERIVED:
        return f"{lens.of}, {lens.lens.removeprefix(f'{lens.of}_').replace('rank', 'rank ')}"
    return lens.lens


def about(found: Bakeoff) -> str:
    """Where the answer is carried, over which layers lenses are held against each other, and what whole states do
    there."""
    at, first, last = found.handover, found.layers[0], found.layers[-1]
    told = capitalised(carried(at))
    if at.beyond_third is None:
        told += f"; {NOT_TESTED}"
    full = next((lens.share.full.value for lens in found.lenses if lens.share is not None), None)
    where = f"at layer {first}" if first == last else f"over layers {first} to {last}"
    told += f"; {where}" + ("" if full is None else f" the whole state has an effect of {full:.2f}")
    return f"{told}{ILLUSTRATION if at.is_an_illustration else ''}:"


def how_read(found: Bakeoff) -> str:
    """What the numbers on reading are over, and on which text."""
    facts = f"{found.n_facts} answered {plural('fact', found.n_facts)}"
    told = [
        f"text: {found.n_text_positions} positions of {', '.join(found.text)}{_seen(found)}; means over positions and "
        "layers",
        f"prompts: last tokens of {facts}; KL: median over facts and layers",
        "on top less handover: layers from the handover to where the answer is on top for good, median over facts "
        "that have such a layer" + (f"; {NO_ONSET}: no fact has" if any(map(lacks_onset, found.lenses)) else ""),
    ]
    if any(lens.entrant is not Entrant.LENS for lens in found.lenses):
        told.append("prompts are not read through what was made of another lens")
    return " ".join(f"{part}." for part in told)


def lacks_onset(lens: LensInBakeoff) -> bool:
    """Whether prompts were read through it, and no fact has a layer from which on the answer is on top for good."""
    return lens.entrant is Entrant.LENS and lens.onset is None


def _seen(found: Bakeoff) -> str:
    """Which fits held the text out, and which may not have."""
    told = []
    for seen in (Seen.HELD_OUT, Seen.OTHER, Seen.PERHAPS, Seen.UNKNOWN):
        names = [lens.lens for lens in found.lenses if lens.entrant is Entrant.LENS and lens.text.seen is seen]
        if names:
            told.append(f"{', '.join(names)}: {seen}")
    return f" ({'; '.join(told)})" if told else ""


def how_used(found: Bakeoff) -> str:
    """What is exchanged, and what the verdicts that occur mean."""
    shares = [lens.share for lens in found.lenses if lens.share is not None]
    told = [SPAN, "rest: of all but that", "random: of a random step as long"]
    if any(share.others is not None for share in shares):
        told.append("others: along two other answers' directions")
    parts = [told]
    if any(lens.entrant is Entrant.NULL for lens in found.lenses):
        parts.append(["shuffled: the lens with what its map adds to the identity written to other features"])
        if any(lens.over_shuffled is not None for lens in found.lenses):
            parts[-1].append("over shuffled: the span's effect less that lens'")
        if any(lens.lens == "logit" for lens in found.lenses):
            parts.append(["logit: every map the identity"])
    if verdicts := _verdicts(found, shares):
        parts.append(verdicts)
    return " ".join(f"{'; '.join(part)}." for part in parts)


def spread(found: Bakeoff) -> str:
    """What the numbers on use are over, and whether they have intervals."""
    if has_intervals(found):
        return "Effects are medians over pairs, with 95 % intervals, facts drawn again."
    return f"Effects are medians over pairs; under {FACTS_FOR_A_CLAIM} facts they have no interval."


def has_intervals(found: Bakeoff) -> bool:
    """Whether any effect has one."""
    return any(lens.share is not None and not lens.share.is_an_illustration for lens in found.lenses)


_MEANINGS = {
    DirectionVerdict.USED: (
        f"the span does more than a random step by over {MATERIAL:g}, and the rest less than the whole state by as much"
    ),
    DirectionVerdict.OVERSHOOTS: f"the span does over {OVERSHOT:g} times what the whole state does; the rest undoes it",
    DirectionVerdict.DORMANT: (
        f"the span does more than a random step by over {MATERIAL:g}, and the rest, without it, no less than the whole "
        "state"
    ),
    DirectionVerdict.NOT_USED: (
        f"the span does no more than a random step by {MATERIAL:g}, nor the rest so much less than the whole state"
    ),
    DirectionVerdict.NOT_CARRIED: f"the whole state's effect is under {CARRIED:g}, so there is nothing to ask",
}


def _verdicts(found: Bakeoff, shares: Sequence[CausalShare]) -> list[str]:
    """The meanings of those that occur."""
    occur = {share.verdict for share in shares}
    told = [f"{verdict}: {meaning}" for verdict, meaning in _MEANINGS.items() if verdict in occur]
    told += [f"{DirectionVerdict.UNDETERMINED}: {why}" for why in _why_undetermined(found, shares)]
    if len(shares) < len(found.lenses):
        told.append(f"{NOT_KNOWN}: no pair has all of these effects")
    return told


def _why_undetermined(found: Bakeoff, shares: Sequence[CausalShare]) -> list[str]:
    """One reason, or several where lenses differ in it."""
    open_shares = [share for share in shares if share.verdict is DirectionVerdict.UNDETERMINED]
    if open_shares and found.handover.is_unclear:
        return ["whether the whole state brings its own answer or takes the other away is not clear"]
    few = [f"under {FACTS_FOR_A_CLAIM} facts there is no interval to judge by"]
    wide = ["the intervals of span less random and of whole less rest do not decide it"]
    return few * any(share.is_an_illustration for share in open_shares) + wide * any(
        not share.is_an_illustration for share in open_shares
    )
