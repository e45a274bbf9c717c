"""What patching says of the headline, in a sentence."""

from collections.abc import Iterable, Sequence

from layerscope.analysis.handover import PAIRS_FOR_A_CLAIM, Patching, PatchVerdict
from layerscope.report.sentences.lines import plural
from layerscope.report.sentences.onsets import FOR_GOOD, lens_name

UNSURE_SHARE = 0.25
"""Of the patched runs: from here on the sentence says that they are less certain than both their parents."""
OTHER_LENSES = ("tuned", "prism")


def in_short(found: Patching, lens: str) -> str:
    """From where the answer is carried at the last position, and whether the lens' layer is borne out.

    Args:
        found: what patches say.
        lens: the headline lens.
    """
    if found.reason is not None or found.handover.layer is None:
        return f"nothing is known: {found.reason or 'no effect is'}"
    told = "; ".join((carried(found), *_against(found, (lens,))))
    return told if found.handover.n_pairs >= PAIRS_FOR_A_CLAIM else f"{told} (an illustration)"


def sentence(found: Patching, lens: str) -> str:
    """The same with the subject's part, fitted lenses, and what speaks against it."""
    at = found.handover
    if found.reason is not None or at.layer is None:
        return in_short(found, lens)
    told = carried(found)
    if at.release is not None:
        fewer = "" if at.n_subject_pairs == at.n_pairs else f" ({at.n_subject_pairs} pairs)"
        told += f", at its subject up to {at.release}{fewer}"
    fitted = (name for name in OTHER_LENSES if name in found.by_lens)
    told += "".join(f"; {against}" for against in _against(found, (lens, *fitted)))
    if found.n_from_handover and found.n_unsure >= UNSURE_SHARE * found.n_from_handover:
        told += (
            f"; {found.n_unsure} of {found.n_from_handover} patched runs from there on are less certain than both "
            "runs that they mix, by over a bit, so that state may be one that no prompt makes"
        )
    if at.n_pairs < PAIRS_FOR_A_CLAIM:
        told += f" (an illustration: a claim takes {PAIRS_FOR_A_CLAIM} pairs)"
    return told


def carried(found: Patching) -> str:
    """Where the answer is carried at the last token, over how many pairs."""
    at = found.handover
    spread = "" if at.low is None else f"; {at.low} to {at.high}"
    over = f"median of {at.n_pairs} {plural('pair', at.n_pairs)}{spread}"
    where = "at no layer before the output" if at.at_the_output else f"from layer {at.layer} on"
    return f"the answer is carried at the last token {where} ({over})"


def _against(found: Patching, lenses: Iterable[str]) -> Sequence[str]:
    """Lenses held against it, each once."""
    told: list[str] = []
    for lens in dict.fromkeys(lenses):
        milestone = found.by_lens[lens]["on_top_for_good"] if lens in found.by_lens else None
        if milestone is not None and milestone.layer is not None and milestone.verdict != PatchVerdict.NOT_APPLICABLE:
            has = "has it" if told else f"has it {FOR_GOOD}"
            told.append(f"{lens_name(lens)} {has} from {milestone.layer:g}: {milestone.verdict}")
    return told
