"""What was looked at in this run, each with its mark: held, not held, or not applicable."""

import unicodedata
from collections.abc import Sequence

from layerscope.analysis.confirmation import NO_OTHER_LENS
from layerscope.analysis.curve import Row
from layerscope.report.cited.claims import Unit
from layerscope.report.cited.document import Basis, Check, Checklist, Filling, Name, Section, Sentence, sentence
from layerscope.report.evaluation.findings import unmeasured_copies
from layerscope.report.evaluation.quotes import D, Path, Quotes
from layerscope.report.sentences.readable import TRIVIAL, is_trivial

NOT_THERE = "not in these files"
FILLERS = frozenset(
    {"a", "an", "it", "so", "that", "the", "this"}
    | {"as", "at", "by", "in", "of", "on", "to", "with"}
    | {"and", "be", "is", "or", "was"}
)
"""Words that carry grammar and no content."""
STOPPED = ("what is concluded from rows", None, "the identity check failed, and nothing is concluded")
SHALLOW = 5
"""Layers up to which anchoring on punctuation or fillers is looked for."""


def checklist(quotes: Quotes) -> Section:
    """The section."""
    concluded = [*_anchors(quotes), *_conclusions(quotes)] if quotes.ranked else [_check(*STOPPED)]
    checks = (*_instrument(quotes), *concluded, *_provenance(quotes))
    return Section("Checklist", (Checklist(checks),))


def _check(label: str, holds: bool | None, template: str = "", *values: Filling) -> Check:
    return Check(label, holds, sentence(template, *values))


def _stated(quotes: Quotes, label: str, unit: Unit, *paths: Path, holds: str | bool | None = None) -> Check:
    """A check on what the file states: that it is there, or that it is a certain value."""
    claim = quotes.stated(label, unit, *paths)
    if claim.value is None:
        return _check(label, None, NOT_THERE)
    held = claim.value == holds if holds is not None else True
    return _check(label, held, "{}", claim)


def _instrument(quotes: Quotes) -> list[Check]:
    kind = quotes.stated("final_ln_type", Unit.TEXT, (D, "final_ln_type"))
    bias = quotes.stated("unembed_bias.present", Unit.TRUTH, (D, "unembed_bias", "present"))
    dtype = quotes.stated("unembed_dtype", Unit.TEXT, (D, "unembed_dtype"))
    fix = quotes.stated("layernorm_bias_fix", Unit.TEXT, (D, "layernorm_bias_fix"))
    return [
        _check("RMS norm", None if kind.value is None else "RMS" in str(kind.value), "{}", kind),
        _check("bias of the norm dealt with", None if fix.value is None else True, "{}", fix),
        _check("unembedding in float32", None if dtype.value is None else "float32" in str(dtype.value), "{}", dtype),
        _check("no unembedding bias", None if bias.value is None else not bias.value, "bias present: {}", bias),
    ]


def _anchors(quotes: Quotes) -> list[Check]:
    curve = quotes.curve
    shallow = [] if curve is None else [row for row in curve.rows if row["layer"] <= SHALLOW and row["top1"]]
    marks = [row for row in shallow if _marks(row["top1"])]
    fillers = [row for row in shallow if row["top1"].strip().casefold() in FILLERS]
    return [
        Check("entropy rises in the last step", *_rise(quotes)),
        _anchor(quotes, "punctuation anchoring at shallow layers", shallow, marks),
        _anchor(quotes, "filler anchoring at shallow layers", shallow, fillers),
        _reflex(quotes),
    ]


def _reflex(quotes: Quotes) -> Check:
    reflex = quotes.diagnostics.copies_early
    if reflex is None:
        return _check("copy reflex", None, "not measured")
    flag = f"{'a' if reflex else 'no'} copy flag at layers 0 to 3{unmeasured_copies(quotes)}"
    basis = Basis((quotes.shape("copy_reflex", reflex, "any copy flag"),))
    return _check("copy reflex", reflex, "{}{}", flag, basis)


def _rise(quotes: Quotes) -> tuple[bool | None, Sentence]:
    if not quotes.quotable:
        return None, sentence("entropies of lens rows are not to be quoted here")
    cells = quotes.cells("entropy_bits", (quotes.n_layers - 1, quotes.n_layers))
    values = [cell.value for cell in cells if isinstance(cell.value, int | float)]
    if len(values) < 2:
        return None, sentence("not measured")
    return values[1] > values[0], sentence("last two layers{}", Basis(tuple(cells)))


def _marks(text: str) -> bool:
    """Blank, or nothing but punctuation and symbols."""
    return all(unicodedata.category(c)[0] in "PSZC" for c in text)


def _anchor(quotes: Quotes, label: str, shallow: Sequence[Row], hits: Sequence[Row]) -> Check:
    if not shallow:
        return _check(label, None, "no rows")
    behind = quotes.cells("top1", (row["layer"] for row in hits or shallow))
    count = quotes.evidence.derived("top1_count", len(hits), Unit.COUNT, behind, "count of layers")
    return _check(label, bool(hits), "number of layers {}", count)


def _confirmed(quotes: Quotes) -> tuple[bool | None, str]:
    """Whether another lens confirms the onset, and why not where that needs a word."""
    confirmation = quotes.diagnostics.confirmation
    if confirmation is None or confirmation.onset is None:
        return None, "no layer to confirm"
    if confirmation.reason == NO_OTHER_LENS:
        return None, "no other lens was read"
    trivial = is_trivial(confirmation)
    return confirmation.layer is not None and not trivial, TRIVIAL if trivial else ""


def _conclusions(quotes: Quotes) -> list[Check]:
    diagnostics = quotes.diagnostics
    full = diagnostics.raw_full is not None and diagnostics.raw_full.whole.n_layers > 0
    confirmed, why = _confirmed(quotes)
    attributed = diagnostics.attribution is not None
    gates, point = bool(quotes.points("answer_logit_gap")), diagnostics.decoding_point
    preferred, headline = Name(quotes.guidance.preferred_lens), Name(quotes.headline)
    return [
        _check("confirmed semantics", confirmed, why),
        _check("preferred lens", True, "{}; milestones here are those of {}", preferred, headline),
        _check("both lenses compared at every layer", full or None, "" if full else "no such table"),
        _check("tuned lens' gain attributed", attributed or None, "" if attributed else "no tuned lens"),
        _check("gates recomputed from rows", gates or None, "" if gates else "rows have no lead of logits"),
        _check("decoding point tested", point.tested or None, point.reason or ""),
    ]


def _provenance(quotes: Quotes) -> list[Check]:
    base = (D, "normalization_provenance")
    curve, mask = quotes.curve, quotes.record.measured.copy_mask
    effect = curve is not None and bool(curve.values("resid_norm_ratio"))
    kernels = ("provenance", "env", "deterministic_algorithms")
    return [
        _stated(quotes, "provenance of norms", Unit.TEXT, (*base, "strategy", "primary"), (*base, "strategy")),
        _check("effect of the norm by layer", effect or None, "" if effect else NOT_THERE),
        _stated(quotes, "deterministic kernels", Unit.TRUTH, kernels, holds=True),
        _health(quotes),
        _check("copy mask", None if mask is None else mask.size > 0, NOT_THERE if mask is None else ""),
        _stated(quotes, "layer map", Unit.TEXT, (D, "layer_map", quotes.n_layers, "norm")),
    ]


def _health(quotes: Quotes) -> Check:
    health = quotes.record.numeric_health
    nan = quotes.stated("any_nan", Unit.TRUTH, (D, "numeric_health", "any_nan"))
    if health is None:
        return _check("numeric health", None, NOT_THERE)
    return _check("numeric health", not health.any_nan and not health.any_inf, "NaN: {}", nan)
