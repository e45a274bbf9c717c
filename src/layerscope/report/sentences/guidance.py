"""What may be reported of a run, in sentences, and what speaks against more."""

from layerscope.analysis.guidance import Guidance
from layerscope.record.run_record import RunRecord
from layerscope.report.sentences.lines import LabelledLine, in_one_line
from layerscope.report.text import printable

EFFECTS = {
    "block": "probabilities and entropies of lens rows are no evidence here",
    "advise": "what is quoted is to be read with the sentences of the table under Guidance",
}
"""What the reasons of a weight come to in a report."""
FORBIDDEN = (
    "Guidance forbids to quote probabilities and entropies of lens rows; conclusions here rest on ranks, layers and "
    "divergences, and the figures stand in marked columns."
)
PREFERRED = "Guidance prefers the lens {lens}, under which rank 1 comes {where}."


def reporting(guidance: Guidance, headline: str, *, ranked: bool = True) -> list[LabelledLine]:
    """What may be reported, each reason against it with its weight, and what could not be found out."""
    known = " that could be determined" if guidance.undetermined else ""
    if not guidance.reasons:
        scope = f"nothing{known} stands against reporting probabilities"
    elif not ranked:
        scope = "report nothing of this run:"
    elif guidance.suppress_abs_probs:
        scope = "report ranks and layers, but no probability or entropy of a layer:"
    else:
        scope = "probabilities may be reported together with this:"
    lines = [LabelledLine("reporting", scope, "main" if guidance.reasons else "free")]
    labels = {"block": "withheld", "advise": "caution"}
    lines += [LabelledLine(labels[r.severity], printable(r.text), r.severity) for r in guidance.reasons]
    if guidance.preferred_lens != headline:
        lines.append(LabelledLine("prefer", f"{guidance.preferred_lens} is to be preferred to {headline}"))
    if guidance.undetermined:
        lines.append(LabelledLine("unknown", in_one_line(guidance.undetermined), "aside"))
    return lines


def instructions(guidance: Guidance, record: RunRecord, headline: str) -> list[str]:
    """The same for whoever writes a report: what to quote, by which lens, and why not more."""
    if record.identity is not None and not record.identity.ok:
        scope = (
            "The last layer is not the model's own output: quote no layer, rank, probability or entropy of any lens."
        )
    elif guidance.suppress_abs_probs:
        scope = (
            "Quote ranks and layers. Quote no probability and no entropy of a row of any lens; those of the model's "
            "own head may be quoted. Columns with † are among those not to be quoted."
        )
    else:
        scope = "Probabilities and entropies of rows may be quoted, within this model alone."
    preferred = guidance.preferred_lens
    lens = f"The lens to report by is {preferred}; where no lens is named, {headline} is meant."
    return [scope, lens, *(f"`{reason.name}` ({reason.severity}): {reason.text}" for reason in guidance.reasons)]


def identity(record: RunRecord) -> str:
    """Whether the last layer is the model itself, in one line."""
    check = record.identity
    if check is None:
        return "none: the run was read from published files"
    if check.ok:
        over = f"over {check.n_prompts} prompts (tolerance {check.tolerance_bits:.0e})"
        return f"passed · KL {check.kl_bits:.1e} bits {over}"
    if check.kl_bits is None:
        return f"FAILED · KL not finite · {check.note} Probabilities are withheld."
    left = "Probabilities are withheld; ranks stand."
    if not record.ranks_stand:
        left = "Neither probabilities nor ranks stand."
    return f"FAILED · KL {check.kl_bits:.3g} bits · {check.note} {left}"
