"""Sentences that compare a fitted lens with the one without a fit: gains in bits, shifts in layers, and their signs.

A gain in bits is the baseline's divergence less the fitted lens', a shift in layers the fitted lens' layer less the
baseline's. A text may say that it has it the other way round, or say in words which is better; then that counts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from layerscope.analysis.fitted_lens_audit import FittedLensAudit
from layerscope.audit.judges.claim_context import ModelStatement
from layerscope.audit.parse.vocabulary import HEDGE, NEGATION, NUMBER, agrees, clause
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.findings import Finding, Judgement

QUARTERS = ("p25", "p50", "p75")
TELLING_BITS = 0.05
"""A gain or loss below this has no sign worth judging."""

_THREE = rf"({NUMBER})\s*[,/]\s*({NUMBER})\s*[,/]\s*({NUMBER})"
_LABELLED = r"\u0394?\s?p(?:25|50|75)\s*[=:~]*\s*"
_TRIPLES = (
    re.compile(
        rf"\{{\s*(?:{_LABELLED})?({NUMBER})\s*[,;/]\s*(?:{_LABELLED})?({NUMBER})\s*[,;/]\s*(?:{_LABELLED})?({NUMBER})\s*\}}"
    ),
    re.compile(
        rf"p25\s*[=:~]*\s*({NUMBER})(?: bits)?\s*[,;/]\s*(?:and )?"
        rf"\u0394?\s?p50\s*[=:~]*\s*({NUMBER})(?: bits)?\s*[,;/]\s*(?:and )?"
        rf"\u0394?\s?p75\s*[=:~]*\s*({NUMBER})"
    ),
    re.compile(rf"(?<![\w./{{,]){_THREE}(?![\w./}}])"),
)
_WORSE = re.compile(
    r"\b(?:worse\w*|higher|increas\w*|rais\w*|regress\w*|degrad\w*|harm\w*|non-?gains?|inflat\w*)\b", re.I
)
_BETTER = re.compile(r"\b(?:better|lower\w*|reduc\w*|decreas\w*|improv\w*|gains?|drops?)\b", re.I)
_DENIED = re.compile(
    r"\b(?:no|not|without|non|never|rather than|rarely)[- ](?:\w+ )?(?:improv\w*|gains?|better|earlier|reduc\w*)", re.I
)
_ON_RANKS = r"\brank|\ble_\d|\blayers?\b|earl"
_BASE = r"(?:baseline|norm|base|logit)(?:[- ]lens)?"
_AGAINST = re.compile(r"\bvs\.?\b|versus|relative to|compared|against|\bover\b|\bchanges?\b|\bthan\b", re.IGNORECASE)
"""Words after which a difference may be meant the other way round without saying so."""
_FITTED = {"prism": r"prism(?:[- ]lens)?", "tuned": r"tuned(?:[- ]lens)?"}


@dataclass(frozen=True)
class _Known:
    """Three gains of one kind, in bits at a quarter, half and three quarters of the depth."""

    lens: str
    kind: str
    gains: tuple[float, float, float]


def gains(said: ModelStatement) -> Iterator[Finding]:
    """`KL deltas p25/p50/p75 = +4.14/+4.00/+1.40 bits`: amounts that we know, with the sign they should have."""
    if not re.search(r"\bKL|\u0394|delta|bits", said.text + said.beside):
        return
    taken: list[tuple[int, int]] = []
    for form in _TRIPLES:
        for found in form.finditer(said.text):
            if any(found.start() < end and start < found.end() for start, end in taken):
                continue
            known = _matching(said, found.groups())
            if known is not None:
                taken.append(found.span())
                yield from _signs(said, found, known)


def _matching(said: ModelStatement, printed: Sequence[str]) -> _Known | None:
    """The known gains whose amounts are these; None where none are, or several."""
    amounts = [text.lstrip("+-") for text in printed]
    found = [
        one
        for one in _known(said)
        if all(agrees(abs(gain), text) for gain, text in zip(one.gains, amounts, strict=True))
        and all("." in text for text in amounts)
    ]
    return found[0] if len(found) == 1 else None


def _known(said: ModelStatement) -> Iterator[_Known]:
    diagnostics = said.evidence.verdict.diagnostics
    for lens, audit in diagnostics.sidecars.items():
        values = [None if (pair := audit.kl_bits_at_percentiles.get(q)) is None else pair.delta for q in QUARTERS]
        yield from _complete(lens, "all", values)
    if diagnostics.attribution is not None:
        parts = [diagnostics.attribution.percentiles.get(q) for q in QUARTERS]
        yield from _complete("tuned", "temperature", [None if p is None else p.temperature_bits for p in parts])
        yield from _complete("tuned", "rotation", [None if p is None else p.rotation_bits for p in parts])


def _complete(lens: str, kind: str, values: Sequence[float | None]) -> Iterator[_Known]:
    known = [value for value in values if value is not None]
    if len(known) == 3:
        yield _Known(lens, kind, (known[0], known[1], known[2]))


def _signs(said: ModelStatement, found: re.Match[str], known: _Known) -> Iterator[Finding]:
    telling = [
        (-1 if text.startswith("-") else 1, 1 if gain > 0 else -1)
        for text, gain in zip(found.groups(), known.gains, strict=True)
        if abs(gain) >= TELLING_BITS
    ]
    if not telling:
        return
    signed = any(text[0] in "+-" for text in found.groups())
    factors = {printed * true for printed, true in telling}
    true_signs = {true for _, true in telling}
    meant = said.clause(*found.span()).text
    stated = _convention(known.lens, (meant, said.text, said.beside))
    words = _direction(said.text)
    if known.kind == "all" and words is not None and true_signs == {-words}:
        yield _wrong(said, found, known, f"in words it says {'better' if words > 0 else 'worse'}")
    elif stated is not None:
        if factors == {stated}:
            yield _right(said, found, known)
        else:
            order = "baseline less fitted" if stated > 0 else "fitted less baseline"
            yield _wrong(said, found, known, f"it says {order}, and the signs are not so")
    elif factors == {1}:
        yield _right(said, found, known)
    elif signed and words is None and len(factors) == 1 and _direction(said.beside) is None:
        if _convention(known.lens, (said.report,)) != -1 and not _AGAINST.search(said.text + said.beside):
            yield _wrong(said, found, known, "no other order is stated")
    elif signed and len(factors) == 2:
        yield _wrong(said, found, known, "no one order gives these signs")


def _convention(lens: str, texts: Sequence[str], *, of_ranks: bool = False) -> int | None:
    """1 where a text says baseline less fitted, -1 where it says fitted less baseline; None where it says neither.

    What a sentence on ranks alone says of its order holds for no gain in bits, and the other way round.
    """
    return next((order for text in texts if (order := _order(lens, text, of_ranks)) is not None), None)


@lru_cache(maxsize=256)  # the text of the whole report is asked again for each claim in it
def _order(lens: str, text: str, of_ranks: bool) -> int | None:
    fitted = rf"(?:{_FITTED.get(lens, re.escape(lens))}|variant|sidecar)"
    orders = {-1: rf"\b{fitted}\s*(?:-|minus)\s*{_BASE}\b", 1: rf"\b{_BASE}\s*(?:-|minus)\s*{fitted}\b"}
    for order, form in orders.items():
        for found in re.finditer(form, text, re.IGNORECASE):
            around = clause(text, *found.span()).text
            ranks, bits = (re.search(words, around, re.IGNORECASE) is not None for words in (_ON_RANKS, r"\bKL|bits"))
            if (ranks or not bits) if of_ranks else (bits or not ranks):
                return order
    return None


def _direction(text: str) -> int | None:
    """1 where words on bits say better, -1 where they say worse; None where neither or both."""
    parts = re.split(r"[;,.]\s|\byet\b|\bbut\b|\bwhile\b", text)
    text = "; ".join(part for part in parts if not re.search(_ON_RANKS, part, re.I) or re.search(r"\bKL|bits", part))
    denied = _DENIED.search(text) is not None
    text = _DENIED.sub(" ", text)
    worse, better = bool(_WORSE.search(text)) or denied, bool(_BETTER.search(text))
    return None if worse == better else (1 if better else -1)


def _right(said: ModelStatement, found: re.Match[str], known: _Known) -> Finding:
    return said.finding(
        found.group(), Judgement.SUPPORTED, f"{_printed(known)} in the rows of {known.lens} and of the baseline.",
        found_at=_at(said, known.lens),
    )  # fmt: skip


def _wrong(said: ModelStatement, found: re.Match[str], known: _Known, why: str) -> Finding:
    return said.finding(
        found.group(),
        Judgement.CONTRADICTED,
        f"lens {known.lens} gains {_printed(known)} bits over the baseline (above 0 is better): {why}.",
        correct=f"{_printed(known)} bits (baseline less {known.lens})",
        found_at=_at(said, known.lens),
    )


def _printed(known: _Known) -> str:
    return "/".join(f"{gain:+.2f}" for gain in known.gains)


def _at(said: ModelStatement, lens: str) -> Citation | None:
    whole = said.evidence.whole_pass(lens)
    return whole[0] if whole else None


# Ranks

_SHIFT = re.compile(r"(?:first_rank_)?le_(?P<rank>\d+)\s*[=:~]*\s*(?P<shift>[+-]\d+)(?!\d|\.\d)", re.IGNORECASE)
_RANKS = re.compile(
    r"(?P<consistent>\b(?:consistent|clear|uniform|systematic|across-the-board)(?:ly)?\s+)?(?:"
    r"rank(?:[- ](?:milestones?|earliness))?\s+(?:improvements?|gains?)|earlier\s+rank(?:[- ]\d| milestones?|s)?\b|"
    r"improv(?:es|ed|ing)\s+(?:the )?(?:answer )?rank(?:s|[- ]milestones?| earliness)?\b|"
    r"(?:rank )?milestones (?:are |come |arrive )?earlier)",
    re.IGNORECASE,
)
_LATER = re.compile(
    r"\b(?:rank )?milestones (?:are |come |arrive )?(?:all )?later\b|\bdelays? (?:the )?rank", re.IGNORECASE
)


def shifts(said: ModelStatement) -> Iterator[Finding]:
    """`rank deltas (tuned - baseline): le_10 +1`: layers of the fitted lens less those of the baseline."""
    if not re.search(r"\u0394|delta|shift", said.text, re.IGNORECASE):
        return
    for found in _SHIFT.finditer(said.text):
        audit = _audit(said, found)
        pair = None if audit is None else audit.rank_milestones.get(int(found["rank"]))
        if audit is None or pair is None or pair.delta is None:
            continue
        order = _convention(audit.lens, (said.clause(*found.span()).text, said.text), of_ranks=True)
        true = pair.delta * (-1 if order == 1 else 1)
        at = _at(said, audit.lens)
        if int(found["shift"]) == true:
            why = f"{pair.sidecar} against {pair.baseline}."
            yield said.finding(found.group(), Judgement.SUPPORTED, why, found_at=at)
        else:
            yield said.finding(
                found.group(),
                Judgement.CONTRADICTED,
                f"rank <= {found['rank']} is first reached at layer {pair.sidecar} under {audit.lens} and at "
                f"{pair.baseline} without: {true:+d}.",
                correct=f"{true:+d}",
                found_at=at,
            )


def earliness(said: ModelStatement) -> Iterator[Finding]:
    """`consistent rank improvements`, `no earlier rank milestones`, of one fitted lens."""
    for form, earlier in ((_RANKS, True), (_LATER, False)):
        for found in form.finditer(said.text):
            audit, around = _audit(said, found), said.clause(*found.span())
            if audit is None or not said.alone or HEDGE.search(around.text) or _is_of_baseline(said, found):
                continue
            head = said.text[max(around.start, found.start() - 25) : found.start()]
            denied = re.search(r"\b(?:no|not|never|without|nor|rather than)\b[^,]*$", head, re.IGNORECASE) is not None
            if not denied and NEGATION.search(head):
                continue
            yield from _earliness(said, found, audit, _Said(earlier, denied, earlier and bool(found["consistent"])))


@dataclass(frozen=True)
class _Said:
    """What is said of when a fitted lens reaches the ranks."""

    earlier: bool
    """Whether `earlier` is the word, and not `later`."""
    denied: bool
    consistent: bool

    def judged(self, *, gained: bool, lost: bool) -> bool | None:
        """Whether it holds of a lens that is earlier, later or both at some rank; None where that is open."""
        if self.denied:
            asked, other = (gained, lost) if self.earlier else (lost, gained)
            return True if not asked else (None if other else False)
        asked, other = (gained, lost) if self.earlier else (lost, gained)
        if not asked or (self.consistent and other):
            return False
        return None if other else True


def _earliness(said: ModelStatement, found: re.Match[str], audit: FittedLensAudit, meant: _Said) -> Iterator[Finding]:
    pairs = audit.rank_milestones
    known = [pair for pair in pairs.values() if pair.baseline is not None or pair.sidecar is not None]
    if len(known) < len(pairs) or not known:
        return
    gained = any(p.sidecar is not None and (p.baseline is None or p.sidecar < p.baseline) for p in known)
    right = meant.judged(gained=gained, lost=any(pair.worse for pair in known))
    if right is None:
        return
    truth = "; ".join(
        f"rank <= {rank}: {_layer(pair.sidecar)} under {audit.lens}, {_layer(pair.baseline)} without"
        for rank, pair in pairs.items()
    )
    yield said.finding(
        found.group(),
        Judgement.SUPPORTED if right else Judgement.CONTRADICTED,
        f"{truth}.",
        correct=None if right else truth,
        found_at=_at(said, audit.lens),
    )


def _layer(layer: int | None) -> str:
    return "never" if layer is None else f"layer {layer}"


def _audit(said: ModelStatement, found: re.Match[str]) -> FittedLensAudit | None:
    """The fitted lens that is meant: the one named in the clause, else in the statement, else in the heading."""
    known = said.evidence.verdict.diagnostics.sidecars
    around = said.clause(*found.span()).text
    for text in (around, said.text, " ".join(said.statement.headings[-1:])):
        named = [lens for lens, form in _FITTED.items() if re.search(rf"\b{form}\b", text, re.IGNORECASE)]
        if named:
            return known.get(named[0]) if len(named) == 1 else None
    return None


def _is_of_baseline(said: ModelStatement, found: re.Match[str]) -> bool:
    """Whether a comparison may have the baseline as its subject: `the norm lens has earlier ranks than tuned`."""
    around = said.clause(*found.span())
    head = said.text[around.start : found.start()]
    than = re.search(r"\bthan (?:the |under |with )*(?:prism|tuned)", around.text, re.IGNORECASE)
    subject = re.search(rf"(?<!vs )(?<!vs\. )(?<!over )(?<!than )(?<!to )(?<!the )\b{_BASE}\b", head, re.IGNORECASE)
    return bool(than or subject) or re.search(rf"KL (?:under|of|for) (?:the )?{_BASE}\b", around.text, re.I) is not None


_LEVEL = re.compile(
    r"\b(?P<a>higher|lower)\s+KL\b|"
    r"\bKL\b[^.;,()]{0,20}?\b(?:is |are )?(?P<b>higher|lower|worse|better|worsens|improves)\b",
    re.IGNORECASE,
)


def levels(said: ModelStatement) -> Iterator[Finding]:
    """`regressive (higher KL)`: wrong only where the divergence is on the other side at every quarter of the depth."""
    for found in _LEVEL.finditer(said.text):
        audit, around = _audit(said, found), said.clause(*found.span())
        if audit is None or not said.alone or HEDGE.search(around.text) or NEGATION.search(around.text):
            continue
        if _is_of_baseline(said, found):
            continue
        if re.search(r"\bL\s?\d|layer \d|raw|temp", around.text):
            continue
        word = (found["a"] or found["b"]).lower()
        sign = -1 if word in ("higher", "worse", "worsens") else 1
        known = [pair.delta for pair in audit.kl_bits_at_percentiles.values()]
        gained = [gain for gain in known if gain is not None]
        if len(gained) < len(known) or not known:
            continue
        printed = "/".join(f"{gain:+.2f}" for gain in gained)
        why = f"lens {audit.lens} gains {printed} bits at the quarters of the depth (above 0 is better)."
        if all(sign * gain < -TELLING_BITS for gain in gained):
            yield said.finding(
                found.group(), Judgement.CONTRADICTED, why, correct=f"{printed} bits", found_at=_at(said, audit.lens)
            )
        elif all(sign * gain > 0 for gain in gained):
            yield said.finding(found.group(), Judgement.SUPPORTED, why, found_at=_at(said, audit.lens))
