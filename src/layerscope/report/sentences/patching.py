"""What patching says of the headline, in a sentence."""

from layerscope.analysis.handover import PAIRS_FOR_A_CLAIM, Handover, PatchVerdict, patch_verdict
from layerscope.record.patching import PatchingRecord
from layerscope.report.sentences.lines import plural
from layerscope.report.sentences.onsets import FOR_GOOD, lens_name


def sentence(record: PatchingRecord, found: Handover, layer: float | None, lens: str) -> str:
    """From where the answer is carried at the last position, and whether the lens' layer is borne out.

    Args:
        record: the patched pairs.
        found: what they say.
        layer: where the lens has the answer on top for good; None where it has it nowhere.
        lens: the headline lens.
    """
    if record.reason is not None or found.layer is None:
        return f"nothing was patched: {record.reason or 'no effect is known'}"
    spread = "" if found.low is None else f"; {found.low} to {found.high}"
    over = f"median of {found.n_pairs} {plural('pair', found.n_pairs)}{spread}"
    where = f"from layer {found.layer} on"
    if found.at_the_output:
        where = "at no layer before the output"
    told = f"the answer is carried at the last token {where} ({over})"
    if found.release is not None:
        told += f", at its subject up to {found.release}"
    verdict = patch_verdict(layer, found)
    if layer is not None and verdict is not PatchVerdict.NOT_APPLICABLE:
        told += f"; {lens_name(lens)} has it {FOR_GOOD} from {layer:g}: {verdict}"
    if found.n_pairs < PAIRS_FOR_A_CLAIM:
        told += f" (an illustration: a claim takes {PAIRS_FOR_A_CLAIM} pairs)"
    return told
