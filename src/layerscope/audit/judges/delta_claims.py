"""Sentences that compare a fitted lens with the one without a fit: gains in bits, shifts in layers, and their signs.

A gain in bits is the baseline's divergence less the fitted lens', a shift in layers the fitted lens' layer less the
baseline's. A text may say that it has it the other way round, or say in words which is better; then that counts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from layerscope.analysis.fitted_lens_audit import FittedLensAudit
from layerscope.analysis.percentiles import QUARTER_NAMES
from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.parse.vocabulary import HEDGE, NEGATION, clause
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.findings import Finding
from layerscope.report.numbers import NUMBER, Number

DISTINCTIVE_BITS = 0.05
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


def gains(assertion: Assertion) -> Iterator[Finding]:
    """`KL deltas p25/p50/p75 = +4.14/+4.00/+1.40 bits`: amounts that we know, with the sign they should have."""
    if not re.search(r"\bKL|\u0394|delta|bits", assertion.text + assertion.same_line):
        return
    taken: list[tuple[int, int]] = []
    for form in _TRIPLES:
        for match in form.finditer(assertion.text):
            if any(match.start() < end and start < match.end() for start, end in taken):
                continue
            known = _matching(assertion, match.groups())
            if known is not None:
                taken.append(match.span())
                yield from _signs(assertion, match, known)


def _matching(assertion: Assertion, printed: Sequence[str]) -> _Known | None:
    """The known gains whose amounts are these; None where none are, or several."""
    amounts = [Number.parse(text.lstrip("+-")) for text in printed]
    matching = [
        known
        for known in _known(assertion)
        if all(
            amount is not None and not amount.is_whole and amount.stands_for(abs(gain))
            for gain, amount in zip(known.gains, amounts, strict=True)
        )
    ]
    return matching[0] if len(matching) == 1 else None


def _known(assertion: Assertion) -> Iterator[_Known]:
    diagnostics = assertion.evidence.verdict.diagnostics
    for lens, audit in diagnostics.fitted_lenses.items():
        values = [None if (pair := audit.kl_bits_at_percentiles.get(q)) is None else pair.delta for q in QUARTER_NAMES]
        yield from _complete(lens, "all", values)
    if diagnostics.attribution is not None:
        parts = [diagnostics.attribution.percentiles.get(q) for q in QUARTER_NAMES]
        yield from _complete("tuned", "temperature", [None if p is None else p.temperature_bits for p in parts])
        yield from _complete("tuned", "rotation", [None if p is None else p.rotation_bits for p in parts])


def _complete(lens: str, kind: str, values: Sequence[float | None]) -> Iterator[_Known]:
    known = [value for value in values if value is not None]
    if len(known) == 3:
        yield _Known(lens, kind, (known[0], known[1], known[2]))


def _signs(assertion: Assertion, match: re.Match[str], known: _Known) -> Iterator[Finding]:
    distinctive = [
        (-1 if text.startswith("-") else 1, 1 if gain > 0 else -1)
        for text, gain in zip(match.groups(), known.gains, strict=True)
        if abs(gain) >= DISTINCTIVE_BITS
    ]
    if not distinctive:
        return
    signed = any(text[0] in "+-" for text in match.groups())
    factors = {printed * true for printed, true in distinctive}
    true_signs = {true for _, true in distinctive}
    meant = assertion.clause(*match.span()).text
    stated = _convention(known.lens, (meant, assertion.text, assertion.same_line))
    words = _direction(assertion.text)
    if known.kind == "all" and words is not None and true_signs == {-words}:
        yield _wrong(assertion, match, known, f"in words it says {'better' if words > 0 else 'worse'}")
    elif stated is not None:
        if factors == {stated}:
            yield _right(assertion, match, known)
        else:
            order = "baseline less fitted" if stated > 0 else "fitted less baseline"
            yield _wrong(assertion, match, known, f"it says {order}, and the signs are not so")
    elif factors == {1}:
        yield _right(assertion, match, known)
    elif signed and words is None and len(factors) == 1 and _direction(assertion.same_line) is None:
        unstated = not _AGAINST.search(assertion.text + assertion.same_line)
        if unstated and _convention(known.lens, (assertion.report,)) != -1:
            yield _wrong(assertion, match, known, "no other order is stated")
    elif signed and len(factors) == 2:
        yield _wrong(assertion, match, known, "no one order gives these signs")


def _convention(lens: str, texts: Sequence[str], *, of_ranks: bool = False) -> int | None:
    """1 where a text says baseline less fitted, -1 where it says fitted less baseline; None where it says neither.

    What a sentence on ranks alone says of its order holds for no gain in bits, and the other way round.
    """
    return next((order for text in texts if (order := _order(lens, text, of_ranks)) is not None), None)


@lru_cache(maxsize=256)  # the text of the whole report is searched for each claim in it
def _order(lens: str, text: str, of_ranks: bool) -> int | None:
    fitted = rf"(?:{_FITTED.get(lens, re.escape(lens))}|variant|sidecar)"
    orders = {-1: rf"\b{fitted}\s*(?:-|minus)\s*{_BASE}\b", 1: rf"\b{_BASE}\s*(?:-|minus)\s*{fitted}\b"}
    for order, form in orders.items():
        for match in re.finditer(form, text, re.IGNORECASE):
            around = clause(text, *match.span()).text
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


def _right(assertion: Assertion, match: re.Match[str], known: _Known) -> Finding:
    reason = f"{_printed(known)} in the rows of {known.lens} and of the baseline."
    return assertion.supported(match.group(), reason, _at(assertion, known.lens))


def _wrong(assertion: Assertion, match: re.Match[str], known: _Known, why: str) -> Finding:
    return assertion.contradicted(
        match.group(),
        f"lens {known.lens} gains {_printed(known)} bits over the baseline (above 0 is better): {why}.",
        f"{_printed(known)} bits (baseline less {known.lens})",
        _at(assertion, known.lens),
    )


def _printed(known: _Known) -> str:
    return "/".join(f"{gain:+.2f}" for gain in known.gains)


def _at(assertion: Assertion, lens: str) -> Citation | None:
    whole = assertion.evidence.whole_pass(lens)
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


def shifts(assertion: Assertion) -> Iterator[Finding]:
    """`rank deltas (tuned - baseline): le_10 +1`: layers of the fitted lens less those of the baseline."""
    if not re.search(r"\u0394|delta|shift", assertion.text, re.IGNORECASE):
        return
    for match in _SHIFT.finditer(assertion.text):
        audit = _audit(assertion, match)
        pair = None if audit is None else audit.rank_milestones.get(int(match["rank"]))
        if audit is None or pair is None or pair.delta is None:
            continue
        order = _convention(audit.lens, (assertion.clause(*match.span()).text, assertion.text), of_ranks=True)
        true = pair.delta * (-1 if order == 1 else 1)
        at = _at(assertion, audit.lens)
        if int(match["shift"]) == true:
            why = f"{pair.fitted} against {pair.baseline}."
            yield assertion.supported(match.group(), why, at)
        else:
            yield assertion.contradicted(
                match.group(),
                f"rank <= {match['rank']} is first reached at layer {pair.fitted} under {audit.lens} and at "
                f"{pair.baseline} without: {true:+d}.",
                f"{true:+d}",
                at,
            )


def earliness(assertion: Assertion) -> Iterator[Finding]:
    """`consistent rank improvements`, `no earlier rank milestones`, of one fitted lens."""
    for form, earlier in ((_RANKS, True), (_LATER, False)):
        for match in form.finditer(assertion.text):
            audit, around = _audit(assertion, match), assertion.clause(*match.span())
            if audit is None or not assertion.alone or HEDGE.search(around.text) or _is_of_baseline(assertion, match):
                continue
            head = assertion.text[max(around.start, match.start() - 25) : match.start()]
            denied = re.search(r"\b(?:no|not|never|without|nor|rather than)\b[^,]*$", head, re.IGNORECASE) is not None
            if not denied and NEGATION.search(head):
                continue
            claim = _RankClaim(earlier, denied, earlier and bool(match["consistent"]))
            yield from _earliness(assertion, match, audit, claim)


@dataclass(frozen=True)
class _RankClaim:
    """A claim on when a fitted lens reaches the ranks."""

    earlier: bool
    """Whether `earlier` is the word, and not `later`."""
    denied: bool
    consistent: bool

    def judged(self, *, gained: bool, lost: bool) -> bool | None:
        """Whether it holds of a lens that is earlier, later or both at some rank; None where that is open."""
        claimed, opposite = (gained, lost) if self.earlier else (lost, gained)
        if self.denied:
            return True if not claimed else (None if opposite else False)
        if not claimed or (self.consistent and opposite):
            return False
        return None if opposite else True


def _earliness(
    assertion: Assertion, match: re.Match[str], audit: FittedLensAudit, claim: _RankClaim
) -> Iterator[Finding]:
    pairs = audit.rank_milestones
    known = [pair for pair in pairs.values() if pair.baseline is not None or pair.fitted is not None]
    if len(known) < len(pairs) or not known:
        return
    gained = any(p.fitted is not None and (p.baseline is None or p.fitted < p.baseline) for p in known)
    right = claim.judged(gained=gained, lost=any(pair.worse for pair in known))
    if right is None:
        return
    truth = "; ".join(
        f"rank <= {rank}: {_layer(pair.fitted)} under {audit.lens}, {_layer(pair.baseline)} without"
        for rank, pair in pairs.items()
    )
    at = _at(assertion, audit.lens)
    if right:
        yield assertion.supported(match.group(), f"{truth}.", at)
    else:
        yield assertion.contradicted(match.group(), f"{truth}.", truth, at)


def _layer(layer: int | None) -> str:
    return "never" if layer is None else f"layer {layer}"


def _audit(assertion: Assertion, match: re.Match[str]) -> FittedLensAudit | None:
    """The fitted lens that is meant: the one named in the clause, else in the statement, else in the heading."""
    known = assertion.evidence.verdict.diagnostics.fitted_lenses
    around = assertion.clause(*match.span()).text
    for text in (around, assertion.text, " ".join(assertion.statement.headings[-1:])):
        named = [lens for lens, form in _FITTED.items() if re.search(rf"\b{form}\b", text, re.IGNORECASE)]
        if named:
            return known.get(named[0]) if len(named) == 1 else None
    return None


def _is_of_baseline(assertion: Assertion, match: re.Match[str]) -> bool:
    """Whether a comparison may have the baseline as its subject: `the norm lens has earlier ranks than tuned`."""
    around = assertion.clause(*match.span())
    head = assertion.text[around.start : match.start()]
    than = re.search(r"\bthan (?:the |under |with )*(?:prism|tuned)", around.text, re.IGNORECASE)
    subject = re.search(rf"(?<!vs )(?<!vs\. )(?<!over )(?<!than )(?<!to )(?<!the )\b{_BASE}\b", head, re.IGNORECASE)
    return bool(than or subject) or re.search(rf"KL (?:under|of|for) (?:the )?{_BASE}\b", around.text, re.I) is not None


_LEVEL = re.compile(
    r"\b(?P<a>higher|lower)\s+KL\b|"
    r"\bKL\b[^.;,()]{0,20}?\b(?:is |are )?(?P<b>higher|lower|worse|better|worsens|improves)\b",
    re.IGNORECASE,
)


def levels(assertion: Assertion) -> Iterator[Finding]:
    """`regressive (higher KL)`: wrong only where the divergence is on the other side at every quarter of the depth."""
    for match in _LEVEL.finditer(assertion.text):
        audit, around = _audit(assertion, match), assertion.clause(*match.span())
        if audit is None or not assertion.alone or HEDGE.search(around.text) or NEGATION.search(around.text):
            continue
        if _is_of_baseline(assertion, match) or re.search(r"\bL\s?\d|layer \d|raw|temp", around.text):
            continue
        word = (match["a"] or match["b"]).lower()
        sign = -1 if word in ("higher", "worse", "worsens") else 1
        known = [pair.delta for pair in audit.kl_bits_at_percentiles.values()]
        gained = [gain for gain in known if gain is not None]
        if len(gained) < len(known) or not known:
            continue
        printed = "/".join(f"{gain:+.2f}" for gain in gained)
        why = f"lens {audit.lens} gains {printed} bits at the quarters of the depth (above 0 is better)."
        if all(sign * gain < -DISTINCTIVE_BITS for gain in gained):
            yield assertion.contradicted(match.group(), why, f"{printed} bits", _at(assertion, audit.lens))
        elif all(sign * gain > 0 for gain in gained):
            yield assertion.supported(match.group(), why, _at(assertion, audit.lens))
