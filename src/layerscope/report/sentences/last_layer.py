"""How far the last layer is from the model's own output, in sentences, and what explains the distance."""

from layerscope.analysis.diagnostics import Diagnostics
from layerscope.record.measured import LastLayerRecord
from layerscope.record.parts import HeadTransformRecord
from layerscope.record.run_record import RunRecord
from layerscope.report.numbers import short_text

ACCOUNTS = {True: "which accounts for the distance", False: "which does not account for it"}
UNKNOWN = "; how far the last layer is from the output was not measured.{}"
FAR = "; the last layer is far from the output (KL {kl} bits)."
NEAR = "; the last layer is the model's output within the gate of {gate} bits (KL {kl} bits)."
WHY_SOFTCAP = (
    "A soft cap bends large logits more than small ones, so no single temperature stands for it; rows that do not pass "
    "it are too certain."
)
LIKE_A_SOFTCAP = (
    "The last row is more certain than the model{}, and one temperature mends a part of it alone: that is what a soft "
    "cap on the model's logits leaves in rows that do not pass it."
)


def sentence(diagnostics: Diagnostics, record: RunRecord) -> str:
    """The distance, and where it is large what a temperature, a scale or a softcap would leave of it."""
    last = diagnostics.last_layer
    kl = None if last is None else last.measured.kl_to_final_bits
    if last is None or kl is None:
        why = record.measured.absent.get("last_layer")
        return "its distance to the model's head was not measured" + (f": {why}" if why else "")
    measured = last.measured
    other = ", with another top token" if measured.top1_agree is False else ""
    distance = f"{short_text(kl)} bits from the model's head under lens {diagnostics.headline}{other}"
    if not last.warn_high_last_layer_kl:
        return distance
    temperature = ""
    if measured.temp_est is not None and measured.kl_after_temp_bits is not None:
        left = short_text(measured.kl_after_temp_bits)
        temperature = f"a temperature of {measured.temp_est:.2f} leaves {left}; "
    return f"{distance}; {temperature}{explained(measured, last.threshold_bits, record.model.head_transform)}"


def explained(measured: LastLayerRecord, threshold_bits: float, head: HeadTransformRecord | None) -> str:
    """Whether the scale and softcap that the model declares account for a lens' distance to its output."""
    key, bits = after_transform(measured)
    if bits is not None:
        declared = {"scale": measured.scale, "softcap": measured.softcap}
        scale, softcap = (name if value is None else f"{name} {value:g}" for name, value in declared.items())
        name = {"scale_then_softcap": f"{scale} and {softcap}", "softcap": softcap, "scale": scale}[key]
        verb = "explains it" if bits < threshold_bits else "does not explain it"
        return f"the model's {name} would leave {short_text(bits)}, which {verb}"
    if head is not None and head.scale is None and head.softcap is None:
        return "the model declares no scale and no softcap that would explain it"
    return "whether a scale or softcap of the model explains it is not known"


def after_transform(measured: LastLayerRecord) -> tuple[str, float | None]:
    """The most complete of the model's own transforms that was tried, and the distance that it leaves."""
    tried = {
        "scale_then_softcap": measured.kl_after_scale_then_softcap_bits,
        "softcap": measured.kl_after_softcap_bits,
        "scale": measured.kl_after_scale_bits,
    }
    return next(((key, bits) for key, bits in tried.items() if bits is not None), ("scale_then_softcap", None))
