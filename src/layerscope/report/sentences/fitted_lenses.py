"""Fitted lenses in sentences: what they are worth, where the tuned one's gain comes from, whether it is accepted."""

from collections.abc import Sequence

from layerscope.analysis.acceptance import Acceptance, Direction
from layerscope.analysis.curve_shapes import stretches
from layerscope.analysis.diagnostics import Diagnostics
from layerscope.analysis.fitted_lens_audit import AttributedGain
from layerscope.lens_record import BIASED
from layerscope.record.measured import FittedLensRecord, HeldOutRecord, JacobianFitRecord
from layerscope.report.sentences.answers import layer_ranges
from layerscope.report.text import printable

_WEIGHED: dict[Direction, str] = {
    "lens_to_model": "the lens' probabilities, as rows are",
    "model_to_lens": "the model's probabilities, not by the lens'",
}
"""Which divergence a gain is of: by whose probabilities it takes its mean over the vocabulary."""
_CRITERIA = {"A": "gain", "B": "ranks", "C": "last layer", "D": "loss"}
"""Criteria of acceptance in a word."""


def lines(diagnostics: Diagnostics, records: Sequence[FittedLensRecord]) -> list[str]:
    """Whether fitted lenses are worth their fit, where the tuned one's gain comes from, and whether it is accepted."""
    verdicts = [f"{lens} {audit.verdict or 'undetermined'}" for lens, audit in diagnostics.fitted_lenses.items()]
    texts = [f"against {diagnostics.headline}: {', '.join(verdicts)}"] if verdicts else []
    refused = [lens for lens in records if lens.status == "refused" and lens.kind not in diagnostics.fitted_lenses]
    texts += [printable(f"{lens.kind} was refused: {lens.reason}") for lens in refused]
    texts += [
        _approximate(lens.jacobian)
        for lens in records
        if lens.status == "loaded" and lens.jacobian is not None and lens.jacobian.approximate
    ]
    if diagnostics.attribution is not None:
        held_out = next((lens.tuned.held_out for lens in records if lens.status == "loaded" and lens.tuned), None)
        gain = _gain(diagnostics.attribution.percentiles["p50"])
        texts += filter(None, [gain, _worth(diagnostics, held_out)])
    return texts


def _approximate(fit: JacobianFitRecord) -> str:
    """At which layers a Jacobian lens' chain is too far off for claims: by exact rows, or by noise once corrected."""
    layers = layer_ranges([(run[0], run[-1]) for run in stretches(fit.approximate)])
    if fit.n_corrected_rows is not None:
        return (
            f"jacobian approximate at {layers}: the standard error of its corrected chain is above {BIASED:.0%} there"
        )
    return f"jacobian approximate at {layers}: its chain is more than {BIASED:.0%} off there"


def _gain(gain: AttributedGain) -> str:
    """What the tuned lens gains over the headline lens at half depth, and from what."""
    if gain.tuned_bits is None:
        return ""
    apart = {"temperature": gain.temperature_bits, "bias": gain.bias_bits, "map": gain.linear_bits}
    together = {"temperature": gain.temperature_bits, "map and bias": gain.rotation_bits}
    sources = together if None in apart.values() else apart
    split = ", ".join(f"{name} {bits:+.2f}" for name, bits in sources.items() if bits is not None)
    return f"tuned, layer {gain.layer}, {gain.tuned_bits:+.2f} bits" + (f": {split}" if split else "")


def _worth(diagnostics: Diagnostics, held_out: HeldOutRecord | None) -> str:
    """What it gains on text that it was not fitted on, and whether it may stand for the headline lens.

    Gains on that text are of the divergence that it was fitted to; those of rows, in the line before, go the other way.
    """
    audit, accepted = diagnostics.tuned_audit, diagnostics.acceptance
    parts = []
    criterion = None if accepted is None else next((c for c in accepted.criteria if c.on == "held_out"), None)
    gain = None if held_out is None or criterion is None else criterion.value["p50"]
    if gain is not None and criterion is not None and criterion.direction is not None:
        parts.append(f"on held-out text {gain:+.2f} bits, weighed by {_WEIGHED[criterion.direction]}")
    if audit is not None and audit.calibration_only:
        parts.append("little more than a temperature")
    elif accepted is not None:
        parts.append(acceptance(accepted))
    return "; ".join(parts)


def acceptance(outcome: Acceptance) -> str:
    """Whether all criteria pass, and by their names those that do not."""
    if outcome.accepted:
        return "accepted"
    names = {criterion.name for criterion in outcome.criteria if criterion.passed is False}
    failed = [word for name, word in _CRITERIA.items() if name in names]
    return f"not accepted: {', '.join(failed)}" if failed else "acceptance open"
