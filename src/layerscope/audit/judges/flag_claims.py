"""Sentences that give a clean bill: no copying early, no spikes of the norm, numeric health, a calibrated head."""

import re
from collections.abc import Iterator

from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.parse.vocabulary import HEDGE, NEGATION, spans
from layerscope.report.cited.findings import Finding, Judgement

_COPY = re.compile(
    r"\b(?:early )?copy[-_ ]?(?:reflex|collapse|flags?|echo)\b|\bstrict/soft hits\b|\bcopy hits\b", re.IGNORECASE
)
_EARLY_LAYERS = re.compile(r"\bL ?0 ?(?:-|to) ?L? ?3\b|layers? 0 ?(?:-|to) ?3\b|\bearly\b|reflex", re.IGNORECASE)
_WIDE, _NARROW = re.compile(r"k\s?=?\s?\{?[23]"), re.compile(r"k\w*\s?=?\s?\{?1", re.IGNORECASE)
"""Soft copies over two layers or three, and over one; the last alone counts as a reflex."""
_NO = re.compile(r"\b(?:no|none|not|without|never|neither)\b|\u2717|=\s*False|\bFalse\b", re.IGNORECASE)
_YES = re.compile(r"\u2713|=\s*True|\bTrue\b|\b(?:fires?|shows?|present|detected|strong)\b", re.IGNORECASE)

_DENIED = re.compile(r"\b(?:no|not|without)\b[^.;()]*", re.IGNORECASE)


def copying(assertion: Assertion) -> Iterator[Finding]:
    """`no early copy flags in L0-L3`, `Copy-reflex? yes`: copying counts where layers 0 to 3 echo the prompt."""
    match = _COPY.search(assertion.text)
    if match is None or not assertion.alone or not _EARLY_LAYERS.search(assertion.text) or HEDGE.search(assertion.text):
        return
    if _WIDE.search(assertion.text) and not _NARROW.search(assertion.text):
        return
    denied, affirmed = bool(_NO.search(assertion.text)), bool(_YES.search(_DENIED.sub(" ", assertion.text)))
    flags = _flags(assertion.text)
    copies = _copies(assertion, flags)
    meant = assertion.lenses(*match.span())
    if denied == affirmed or copies is None or meant != (assertion.evidence.headline,):
        return
    where = f"{' and '.join(flags)} in layers 0 to 3 of {assertion.table_name()}: {'set' if copies else 'not set'}"
    if copies == affirmed:
        yield assertion.supported(assertion.text, f"{where}.", assertion.place(0))
    else:
        layer = _first_copy(assertion, flags) if copies else 0
        yield assertion.contradicted(assertion.text, f"{where}.", where, assertion.place(layer))


STRICT, SOFT = "copy_collapse", "copy_soft_k1@0.5"


def _flags(text: str) -> tuple[str, ...]:
    """The flags that are meant: both, unless the text speaks of one of them alone."""
    strict, soft = (re.search(word, text, re.IGNORECASE) is not None for word in ("strict|copy_collapse", "soft"))
    return (STRICT, SOFT) if strict == soft else ((STRICT,) if strict else (SOFT,))


def _copies(assertion: Assertion, flags: tuple[str, ...]) -> bool | None:
    """Whether one of these is set in layers 0 to 3; None where none was measured."""
    known = [row[flag] for row in assertion.rows() if row["layer"] <= 3 for flag in flags if row[flag] is not None]
    return any(known) if known else None


def _first_copy(assertion: Assertion, flags: tuple[str, ...]) -> int | None:
    curve = assertion.curve()
    return None if curve is None else curve.first(lambda row: any(bool(row[flag]) for flag in flags))


_NO_SPIKES = re.compile(r"\b(?:no|without|free of)\s+(?:\w+\s+){0,3}?spik(?:es?|ing)\b|\bspike-free\b", re.IGNORECASE)
_OF_NORMS = re.compile(r"normali[sz]|norm ratio|resid_norm|residual norm|norm[- ]spike|norm trajector", re.IGNORECASE)
_OF_OTHERS = re.compile(r"rest[_ -]?mass|entropy|\bKL\b|\bcos\w*\b|\bafter\b|beyond|\blate\b|\bfinal\b", re.IGNORECASE)


def spikes(assertion: Assertion) -> Iterator[Finding]:
    """`no extreme spikes` of the normalizer, against the run's flag and against the trajectory of the norms."""
    match = _NO_SPIKES.search(assertion.text)
    if match is None or not assertion.alone or not _OF_NORMS.search(assertion.text):
        return
    if _OF_OTHERS.search(assertion.text) or spans(assertion.text):
        return  # of other values, or of a few layers; the run's flag is of all
    flag = assertion.evidence.json.at("diagnostics", "flags", "normalization_spike")
    trajectory = assertion.evidence.verdict.diagnostics.trajectory
    n_spikes = None if trajectory is None else trajectory.n_spikes
    if flag is not None and flag.value and n_spikes != 0:
        counted = "" if n_spikes is None else f", and the norms have {n_spikes} spikes"
        yield assertion.contradicted(
            match.group(),
            f"{flag.pointer} is set in {assertion.evidence.json.name}{counted}.",
            "flags.normalization_spike is set",
            assertion.evidence.cite(flag),
        )
    elif n_spikes == 0 and (flag is None or not flag.value):
        yield assertion.supported(match.group(), "the norms have no spikes, and none is flagged.")


_HEALTHY = re.compile(r"\bnumeric[_ ]health\s*(?::|=|\?|is)?\s*(?:clean|good|ok|fine)\b", re.IGNORECASE)


def health(assertion: Assertion) -> Iterator[Finding]:
    """`Numeric health is clean`: no NaN, no infinity, no layer flagged."""
    match = _HEALTHY.search(assertion.text)
    if match is None or not assertion.alone or "\u2717" in assertion.text:
        return
    block = assertion.evidence.json.at("diagnostics", "numeric_health")
    if block is None:
        return
    members = {entry.key: entry for entry in assertion.evidence.json.children(block)}
    flagged = members.get("layers_flagged")
    bad = [name for name in ("any_nan", "any_inf") if (entry := members.get(name)) is not None and entry.value is True]
    if flagged is not None and assertion.evidence.json.children(flagged):
        bad.append("layers_flagged")
    at = assertion.evidence.cite(block)
    if bad:
        yield assertion.contradicted(
            match.group(),
            f"{' and '.join(bad)} of {block.pointer} in {assertion.evidence.json.name} say otherwise.",
            f"{', '.join(bad)} set",
            at,
        )
    elif {"any_nan", "any_inf"} <= set(members):
        yield assertion.supported(match.group(), f"{block.pointer} has nothing against it.", at)


_CALIBRATED = re.compile(
    r"\bwell[- ]calibrated\b|\bhead calibration is (?:good|excellent|strong|clean|sound|perfect)\b|"
    r"\bcalibration is (?:good|excellent|strong|clean|sound|perfect)\b|\bclean final calibration\b|\bcalibrated head\b",
    re.IGNORECASE,
)


def calibration(assertion: Assertion) -> Iterator[Finding]:
    """`the head is well calibrated`: the last row says what the model says."""
    for match in _CALIBRATED.finditer(assertion.text):
        around = assertion.clause(*match.span())
        others = re.search(r"tuned|prism|mismatch|after|temp|would|if", around.text, re.I)
        if not assertion.alone or NEGATION.search(around.text) or others:
            continue
        last = assertion.evidence.verdict.diagnostics.last_layer
        warned = None if last is None else last.warn_high_last_layer_kl
        if last is None or warned is None:
            continue
        bits = last.measured.kl_to_final_bits
        truth = f"the last row is {bits if bits is not None else 0:.4g} bits from the model's head"
        at, stated = None, assertion.evidence.entry("diagnostics", "last_layer_consistency", "kl_to_final_bits")
        if stated is not None:
            at = assertion.evidence.cite(stated)
        judgement = Judgement.CONTRADICTED if warned else Judgement.SUPPORTED
        yield assertion.finding(match.group(), judgement, f"{truth}.", correct=truth if warned else None, at=at)
