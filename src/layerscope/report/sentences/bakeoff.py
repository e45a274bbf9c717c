"""A bake-off in words: what it is about, and how its numbers are to be read."""

from layerscope.analysis.bakeoff import Bakeoff, Entrant, LensInBakeoff, Seen

SPAN = "span: effect of the source's state along the lens' directions alone"
OTHERS = "others: along two other answers' directions"


def lens_words(lens: LensInBakeoff) -> str:
    """A lens by name; what was made of one says so."""
    if lens.entrant is Entrant.NULL:
        return f"{lens.of}, shuffled"
    if lens.entrant is Entrant.DERIVED:
        return f"{lens.of}, {lens.lens.removeprefix(f'{lens.of}_').replace('rank', 'rank ')}"
    return lens.lens


def about(found: Bakeoff) -> str:
    """Where the answer is carried, and by how much."""
    at, first, last = found.handover, found.layers[0], found.layers[-1]
    full = next((lens.share.full.value for lens in found.lenses if lens.share is not None), None)
    whole = "" if full is None else f", where the whole state has {full:.2f}"
    return (
        f"The answer is carried at the last token from layer {at.layer} on (median over {at.n_facts} facts in "
        f"{at.n_pairs} pairs); over layers {first} to {last}{whole}:"
    )


def how_read(found: Bakeoff) -> str:
    """What the numbers on reading are over, and on which text."""
    return (
        f"text: {found.n_text_positions} positions of {', '.join(found.text)}{_seen(found)}; mean over positions and "
        f"layers. prompts, on top for good: over {found.n_facts} answered facts{_not_probed(found)}."
    )


def _not_probed(found: Bakeoff) -> str:
    """Why some lines have no such numbers."""
    made = any(lens.entrant is not Entrant.LENS for lens in found.lenses)
    return "; the probe is not read through what was made of another lens" if made else ""


def _seen(found: Bakeoff) -> str:
    """Which fits held the text out, and which may not have."""
    told = []
    for seen in (Seen.HELD_OUT, Seen.OTHER, Seen.PERHAPS, Seen.UNKNOWN):
        names = [lens.lens for lens in found.lenses if lens.entrant is Entrant.LENS and lens.text.seen is seen]
        if names:
            told.append(f"{', '.join(names)}: {seen}")
    return f" ({'; '.join(told)})" if told else ""


def how_used(found: Bakeoff) -> str:
    """What is exchanged, and what the verdicts mean."""
    nulls = [lens for lens in found.lenses if lens.entrant is Entrant.NULL]
    shuffled = (
        " shuffled: the lens with what its map adds to the identity written to other features; over shuffled: the "
        "span's effect less that lens'."
        if nulls
        else ""
    )
    identity = " logit: every map the identity." if nulls and any(lens.lens == "logit" for lens in found.lenses) else ""
    return (
        f"{SPAN}; rest: of all but that; random: of a random step as long; {OTHERS}.{shuffled}{identity} used: the "
        "span does more than a random step, and the rest less than the whole state; overshoots: the span does far more "
        "than the whole state, and the rest undoes it."
    )
