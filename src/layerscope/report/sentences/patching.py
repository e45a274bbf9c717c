"""What patching says of the headline, in a sentence."""

from collections.abc import Iterable, Sequence

from layerscope.analysis.drawn_facts import FACTS_FOR_A_CLAIM
from layerscope.analysis.handover import BeyondThird, Handover, Patching, PatchVerdict
from layerscope.report.sentences.lines import plural
from layerscope.report.sentences.onsets import FOR_GOOD, lens_name

UNSURE_SHARE = 0.25
"""Of the patched runs: from here on the sentence says that they are less certain than both their parents."""
OTHER_LENSES = ("tuned", "prism")
NOT_TESTED = "no third fact's state could be held against that"
ILLUSTRATION = f" (an illustration: a claim takes {FACTS_FOR_A_CLAIM} facts)"


def in_short(found: Patching, lens: str) -> str:
    """From where the answer is carried at the last position, and whether the lens' layer is borne out.

    Args:
        found: what patches say.
        lens: the headline lens.
    """
    if found.reason is not None or found.handover.layer is None:
        return f"nothing is known: {found.reason or 'no effect is'}"
    told = "; ".join((carried(found.handover), *_against(found, (lens,))))
    return f"{told} (an illustration)" if found.handover.is_an_illustration else told


def sentence(found: Patching, lens: str) -> str:
    """The same with the subject's part, fitted lenses, and what speaks against it."""
    at = found.handover
    if found.reason is not None or at.layer is None:
        return in_short(found, lens)
    told = carried(at)
    if at.release is not None:
        fewer = (
            "" if at.n_subject_pairs == at.n_pairs else f" ({facts_in_pairs(at.n_subject_facts, at.n_subject_pairs)})"
        )
        told += f", at its subject up to {at.release}{fewer}"
    told += _beyond_third(found)
    fitted = (name for name in OTHER_LENSES if name in found.by_lens)
    told += "".join(f"; {against}" for against in _against(found, (lens, *fitted)))
    if found.n_from_handover and found.n_unsure >= UNSURE_SHARE * found.n_from_handover:
        told += (
            f"; {found.n_unsure} of {found.n_from_handover} patched runs from there on are less certain than both "
            "runs that they mix, by over a bit, so that state may be one that no prompt makes"
        )
    if at.is_an_illustration:
        told += ILLUSTRATION
    return told


def carried(at: Handover) -> str:
    """Where the answer is carried at the last token, over how many facts and pairs."""
    spread = "" if at.low is None else f"; 95 % {at.low} to {at.high}"
    over = f"median over {facts_in_pairs(at.n_facts, at.n_pairs)}"
    if at.is_unclear:
        moved = at.layer if at.effect_from is None else at.effect_from
        return (
            f"from layer {moved} on a patch at the last token moves the answer by half or more ({over}), but whether "
            "it brings its own or takes the other away is not clear"
        )
    where = "at no layer before the output" if at.at_the_output else f"from layer {at.layer} on"
    return f"the answer is carried at the last token {where} ({over}{spread})"


def facts_in_pairs(n_facts: int, n_pairs: int) -> str:
    """How many of each."""
    return f"{n_facts} {plural('fact', n_facts)} in {n_pairs} {plural('pair', n_pairs)}"


def _beyond_third(found: Patching) -> str:
    """What a third fact's state does there: the answer may be gone without another having come."""
    at, third = found.handover, found.handover.beyond_third
    if third is None:
        return f"; {NOT_TESTED}"
    less = f"a third fact's state has an effect smaller by {third.gap:.2f}"
    if at.is_unclear:
        where = "at the output" if at.at_the_output else f"at layer {at.layer}"
        return f"; {where} {less}{_spread(third)}"
    if at.takes_away_only_from is not None:
        return (
            f"; from {at.takes_away_only_from} on a patch takes the other answer away, but brings its own less than "
            "half as far beyond a third fact's as at the output"
        )
    return "" if at.at_the_output else f"; {less} there{_spread(third)}"


def _spread(third: BeyondThird) -> str:
    return "" if third.low is None else f" (95 % {third.low:.2f} to {third.high:.2f})"


def _against(found: Patching, lenses: Iterable[str]) -> Sequence[str]:
    """Lenses held against it, each once."""
    told: list[str] = []
    for lens in dict.fromkeys(lenses):
        milestone = found.by_lens[lens]["on_top_for_good"] if lens in found.by_lens else None
        if milestone is not None and milestone.layer is not None and milestone.verdict != PatchVerdict.NOT_APPLICABLE:
            has = "has it" if told else f"has it {FOR_GOOD}"
            told.append(f"{lens_name(lens)} {has} from {milestone.layer:g}: {milestone.verdict}")
    return told
