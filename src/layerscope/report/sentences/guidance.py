"""What may be reported of a run, in sentences, and what speaks against more."""

from layerscope.analysis.guidance import IDENTITY_FAILED, Guidance
from layerscope.analysis.quotability import Quotability, Status
from layerscope.record.run_record import RunRecord
from layerscope.report.sentences.lines import LabelledLine, in_one_line, layers, plural
from layerscope.report.text import printable

EFFECTS = {
    "block": "probabilities and entropies of lens rows are no evidence here",
    "withheld": "layers whose status is withheld are not to be quoted, nor what rests on them",
    "advise": "what is quoted is to be read with the sentences of the table under Guidance",
}
"""What the reasons of a weight come to in a report; `withheld`: of one that blocks where layers have a status."""
FORBIDDEN = (
    "Guidance forbids to quote probabilities and entropies of lens rows; conclusions here rest on ranks, layers and "
    "divergences, and the figures stand in marked columns."
)
PREFERRED = "Guidance prefers the lens {lens}, under which rank 1 comes {where}."


_SHORT = {
    "identity_failed": "the last layer is not the model's own output",
    "warn_high_last_layer_kl": "the lens is far from the model at the last layer",
    "norm_only_semantics_window": "near its onset the answer leads with the norm, not without it",
    "high_lens_artifact_risk": "at sampled layers the raw lens reads something else",
    "high_lens_artifact_score": "over all layers the raw lens reads something else",
    "repeatability_variance_high": "a second decode gave other ranks or top tokens",
    "repeatability_forward_disagreement": "a second forward pass gave another layer or top tokens",
    "gold_alignment_partial": "some answers cannot be told in the model's tokens",
    "nondeterministic_env": "the run may not repeat to the last bit",
    "normalization_spike": "the norm changes the residual abruptly at some layers",
    "numeric_health_caution": "numbers were not finite at some layers",
    "copy_mask_missing": "copying may rest on blanks and punctuation",
    "copy_mask_error": "copying may rest on blanks and punctuation",
    "layer_map_missing": "which norm was applied where is not recorded",
    "rank_only_near_uniform": "where it is first on top the answer is hardly above uniform",
    "decoding_point_sensitive": "the layer depends on which norm decodes it",
    "low_lens_consistency_at_semantic": "around the answer two lenses share few top tokens",
    "tuned_is_calibration_only": "the tuned lens gains by a temperature for the most part",
    "pos_window_low_stability": "after the subject the answer is near the top at few positions",
    "scale_sensitive_semantic_gate": "whether it is clearly ahead hangs on small differences",
}
"""Every reason in a few words."""


_WHOSE: dict[Status, str] = {
    "model": "the model's at {}",
    "near": "an estimate of the model's at {}",
    "decoded": "the {lens} lens' (say so) at {}",
    "withheld": "withheld at {}",
}
LEGEND: dict[Status, str] = {
    "model": "the model's own",
    "near": "an estimate of the model's: within half a bit of it",
    "decoded": "the lens' own: to be quoted by its name",
    "withheld": "withheld",
}
"""What the probabilities of a layer are, by its status."""
GIVES: dict[Status, str] = {
    "model": "Its probability there is {p}, which is the model's own under the {lens} lens.",
    "near": "The {lens} lens gives it {p} there, an estimate of the model's probability.",
    "decoded": "The {lens} lens gives it {p} there, which is that lens' probability and not the model's.",
}
"""How the answer's probability at a layer is quoted, by the layer's status."""


def probabilities(quotability: Quotability, lens: str) -> str:
    """What the probabilities of a lens are, layer by layer."""
    layers_of: dict[Status, list[int]] = {}
    for layer in quotability.by_lens.get(lens, ()):
        if layer.status is not None:
            layers_of.setdefault(layer.status, []).append(layer.layer)
    parts = [
        text.format(layers(layers_of[status]), lens=lens) for status, text in _WHOSE.items() if status in layers_of
    ]
    return ", ".join(parts) or "not measured"


def in_short(guidance: Guidance) -> list[str]:
    """Every reason in a few words, what weighs more first."""
    heavy_first = sorted(guidance.reasons, key=lambda reason: reason.severity != "block")
    return list(dict.fromkeys(_SHORT[reason.name] for reason in heavy_first))


def reporting(guidance: Guidance, headline: str, *, ranked: bool = True) -> list[LabelledLine]:
    """Each reason for caution, which lens is to be preferred, and what could not be found out."""
    lines = []
    if guidance.reasons and not ranked:
        lines.append(LabelledLine("reporting", "report nothing of this run", "main"))
    elif guidance.suppress_abs_probs:
        scope = "report ranks and layers, but no probability or entropy of a layer"
        lines.append(LabelledLine("reporting", scope, "main"))
    labels = {"block": "withheld", "advise": "caution"}
    lines += [LabelledLine(labels[r.severity], printable(r.text), r.severity) for r in guidance.reasons]
    if all(reason.name != IDENTITY_FAILED for reason in guidance.reasons):  # else they rest on what cannot be trusted
        lines += [LabelledLine("detail", printable(detail.text), "aside") for detail in guidance.details]
    if guidance.preferred_lens != headline:
        lines.append(LabelledLine("prefer", f"{guidance.preferred_lens} is to be preferred to {headline}"))
    if guidance.undetermined:
        lines.append(LabelledLine("unknown", in_one_line(guidance.undetermined), "aside"))
    return lines


def instructions(guidance: Guidance, quotability: Quotability, record: RunRecord, headline: str) -> list[str]:
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
        by_layer = probabilities(quotability, headline)
        scope = (
            f"Ranks and layers may be quoted. Probabilities under {headline} are {by_layer}. All of it holds within "
            "this model alone."
        )
    preferred = guidance.preferred_lens
    lens = f"The lens to report by is {preferred}; where no lens is named, {headline} is meant."
    return [scope, lens, *(f"`{reason.name}` ({reason.severity}): {reason.text}" for reason in guidance.reasons)]


def identity(record: RunRecord) -> str:
    """Whether the last layer is the model itself, in one line."""
    check = record.identity
    if check is None:
        return "none: the run was read from published files"
    if check.ok:
        over = f"over {check.n_prompts} {plural('prompt', check.n_prompts)} (tolerance {check.tolerance_bits:.0e})"
        of = "" if record.model.ablation is None else " · of the ablated model, against its own output"
        return f"passed · KL {check.kl_bits:.1e} bits {over}{of}"
    if check.kl_bits is None:
        return f"FAILED · KL not finite · {check.note} Probabilities are withheld."
    left = "Probabilities are withheld; ranks stand."
    if not record.ranks_stand:
        left = "Neither probabilities nor ranks stand."
    return f"FAILED · KL {check.kl_bits:.3g} bits · {check.note} {left}"
