"""Sentences on the shape of a curve: it rises, falls, peaks, stays on one side, or points one way early."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log10

from layerscope.analysis.curve_shapes import (
    Direction,
    Points,
    between,
    failures,
    first_at_least,
    is_monotone,
    peak,
    trough,
)
from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.parse.vocabulary import (
    HEDGE,
    LAYER,
    NEGATION,
    QUANTITY,
    column_of,
    sentence,
    spans,
)
from layerscope.record.milestone_names import ONSET
from layerscope.report.cited.claims import value_text
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.numbers import ENDS, NUMBER, Number

REVERSAL = 0.25
"""Share of a curve's range that it goes the wrong way, from which "falls with depth" is wrong."""
EARLY_REVERSAL, EARLY = 0.15, 0.25
"""The same where its extreme lies deeper than this share of the depth: it first goes the wrong way for long."""
NOISE = 0.02
"""Share of the range within which a step counts as none."""
FEWEST = 8
"""Layers that a curve must have to be called rising or falling."""
SETTLED = 2
"""Layers at the bottom that do not count as a reversal: the embedding is read with a later layer's norm."""
ALIGNED, EARLY_DEPTH = 0.2, 0.75
"""Cosine from which a direction counts as found, and the share of the depth after which that is not early."""

_FALL = r"decreas\w*|falls?|falling|drops?|declin\w*|shrinks?|improv\w*"
_RISE = r"increas\w*|rises?|rising|grows?|growing|climbs?|strengthens?"
_MANNER = (
    r"with (?:increasing )?(?:depth|layers?)|monotonic\w*|steadily|smoothly|throughout(?: the stack)?|layer by layer|"
    r"(?:across|over) (?:the )?(?:depth|layers|stack)|at every layer|consistently"
)
_MOVES = re.compile(
    rf"(?<![\w\u0394-])(?P<what>{QUANTITY})(?P<gap>(?: (?:to|from) (?:the )?final(?: head)?)?)\s+"
    rf"(?:\w+ly\s+)?(?P<verb>(?P<fall>{_FALL})|{_RISE})\b(?P<manner>[^.;,()]{{0,30}}?(?:{_MANNER}))?",
    re.IGNORECASE,
)
_STEADY = re.compile(
    rf"\b(?P<manner>monotonic|steady|consistent)\s+(?:(?P<fall>decrease|decline|drop|fall)|rise|increase|growth)\s+"
    rf"(?:in|of)\s+(?:the )?(?P<what>{QUANTITY})\b",
    re.IGNORECASE,
)
_PARTIAL = re.compile(
    r"\b(?:until|after|from|between|beyond|before|late|mid|early|once|near|around|only|again)\b", re.I
)
_PART = re.compile(
    r"\b(?:until|after|from|between|beyond|before|past|starting|late|later|mid\w*|once|within|upper|last|near|through)\b|"
    r"\b(?:early|final|top|deep\w*|shallow) (?:layers?|depths?|blocks?|part|half|third|quarter)\b",
    re.IGNORECASE,
)
"""Words for a part of the stack."""


def moves(assertion: Assertion) -> Iterator[Finding]:
    """`KL decreases with depth`, `entropy falls monotonically`."""
    for match, around in assertion.unhedged(_MOVES, _STEADY):
        column = column_of(match["what"])
        head = assertion.text[around.start : match.start()]
        tail = assertion.text[match.end() : min(around.end, match.end() + 40)]
        if column is None or NEGATION.search(head) or not match["manner"]:
            continue
        if not (_PARTIAL.search(match.group()) or spans(around.text) or _PART.search(head) or _PART.search(tail)):
            yield from _move(assertion, match, column)


def _move(assertion: Assertion, match: re.Match[str], column: str) -> Iterator[Finding]:
    direction: Direction = "falls" if match["fall"] else "rises"
    if column == "answer_rank" and match["fall"] is None:
        return  # a rank that "rises" may get better or worse
    words = match.group().lower()
    if "improv" in words and column != "answer_rank":
        return
    if column == "answer_rank" and not re.search("monoton|every layer|consistent|steadil|smooth", words):
        return  # a rank that improves with depth does so from end to end, not at each layer
    strictly = "monoton" in words or "every layer" in words
    lenses, claim = assertion.lenses(*match.span()), match.group()
    if not lenses or any(len(assertion.points(column, lens)) < FEWEST for lens in lenses):
        return
    verdicts = [_against(assertion, column, lens, direction, strictly) for lens in lenses]
    wrong = [verdict for verdict in verdicts if verdict is not None]
    if len(wrong) == len(verdicts):
        yield wrong[0].finding(assertion, claim)
    elif any(_holds(assertion, column, lens, direction) for lens in lenses):
        yield assertion.supported(claim, f"{column} does so in {assertion.table_name()}.")
    else:
        yield assertion.undecided(claim, f"{column} does so in part: not at every step.")


@dataclass(frozen=True)
class _Against:
    """How a curve goes against a claim."""

    column: str
    lens: str
    low: tuple[int, int | float]
    high: tuple[int, int | float]
    """From where to where it goes the wrong way."""
    extreme: tuple[int, int | float]

    def finding(self, assertion: Assertion, claim: str) -> Finding:
        where = f"{_point(self.low)} to {_point(self.high)}"
        return assertion.contradicted(
            claim,
            f"{self.column} of lens {self.lens} goes the other way from {where} in {assertion.table_name(self.lens)}; "
            f"its extreme is {_point(self.extreme)}.",
            f"{self.column} goes from {where}; its extreme is {_point(self.extreme)}",
            assertion.place(self.high[0], self.lens),
        )


def _point(point: tuple[int, int | float]) -> str:
    return f"{value_text(point[1])} at layer {point[0]}"


def _against(assertion: Assertion, column: str, lens: str, direction: Direction, strictly: bool) -> _Against | None:
    """How a curve contradicts a movement; None where it does not."""
    settled = [point for point in assertion.points(column, lens) if point[0] >= SETTLED]
    measured = [(layer, log10(max(value, 1))) for layer, value in settled] if column == "answer_rank" else settled
    span = max(value for _, value in measured) - min(value for _, value in measured)
    low, high, size = _reversal(measured, direction)
    top = peak(measured) if direction == "falls" else trough(measured)
    if span == 0 or top is None:
        return None
    is_deep = EARLY * settled[-1][0] <= top[0] < settled[-1][0]
    is_large = size >= REVERSAL * span or (is_deep and _way_to(measured, top, direction) >= EARLY_REVERSAL * span)
    breaks = failures(measured, direction, strict=False, slack=NOISE * float(span)) if strictly else []
    if not is_large and not breaks:
        return None
    by_layer = dict(settled)
    return _Against(column, lens, (low, by_layer[low]), (high, by_layer[high]), (top[0], by_layer[top[0]]))


def _reversal(curve: Points, direction: Direction) -> tuple[int, int, float]:
    """The largest way against a direction, from one layer to a later one."""
    sign = 1 if direction == "falls" else -1
    best, start = (curve[0][0], curve[0][0], 0.0), curve[0]
    for point in curve:
        if sign * point[1] < sign * start[1]:
            start = point
        if sign * (point[1] - start[1]) > best[2]:
            best = (start[0], point[0], float(sign * (point[1] - start[1])))
    return best


def _way_to(curve: Points, top: tuple[int, int | float], direction: Direction) -> float:
    """How far a curve goes the wrong way up to its extreme."""
    before = [value for layer, value in curve if layer <= top[0]]
    return float(top[1] - min(before) if direction == "falls" else max(before) - top[1])


def _holds(assertion: Assertion, column: str, lens: str, direction: Direction) -> bool:
    curve = assertion.points(column, lens)
    span = max((value for _, value in curve), default=0) - min((value for _, value in curve), default=0)
    return is_monotone(curve, direction, strict=False, slack=NOISE * float(span)) is True


_PEAK = re.compile(
    rf"(?<![\w\u0394-])(?P<what>{QUANTITY})\b[^.;()]{{0,40}}?\b"
    r"(?:(?P<low>bottoms? out|(?:is |reaches )?(?:its |a |the )?"
    rf"(?:minimum|lowest|smallest))|peaks?|peaking|(?:is |reaches )?(?:its |a |the )?(?:maximum|largest|highest))\s+"
    rf"(?:(?:value|point)\s+)?(?P<join>at|in|near|around|by)\s+"
    rf"(?:the )?(?:{LAYER}|(?P<last>final (?:layer|head)|last layer))",
    re.IGNORECASE,
)
_PEAK_OF = re.compile(
    rf"\b(?:(?P<low>minimum|lowest|smallest)|maximum|largest|highest|peak)\s+(?P<what>{QUANTITY})\b[^.;()0-9]{{0,25}}?\s"
    rf"(?P<join>at|in|near|around)\s+(?:the )?(?:{LAYER}|(?P<last>final (?:layer|head)|last layer))",
    re.IGNORECASE,
)


def peaks(assertion: Assertion) -> Iterator[Finding]:
    """`peaks at layer 29`, `largest KL at L29`, `the maximum after L_semantic appears at the final layer`."""
    for match, around in assertion.unhedged(_PEAK, _PEAK_OF):
        column = column_of(match["what"])
        unclear = NEGATION.search(around.text) or spans(around.text) or "delta" in around.text.lower()
        if column is not None and not unclear:
            yield from _peak(assertion, match, column, around.text)


def _peak(assertion: Assertion, match: re.Match[str], column: str, around: str) -> Iterator[Finding]:
    layer_text = next((group for group in match.groups()[::-1] if group and group.isdigit()), None)
    semantic = assertion.evidence.verdict.milestones.of().get(ONSET)
    start = semantic.layer if semantic is not None and re.search(r"after L_sem|post-sem", around, re.I) else None
    if start is None and re.search(r"\b(?:after|before|until|beyond|between|early|mid|late|pre|local)\b", around, re.I):
        return
    pick: Callable[[Points], tuple[int, int | float] | None] = trough if match["low"] else peak
    slack = 2 if match["join"] in ("near", "around") else 0
    right, wrong = False, list[tuple[str, tuple[int, int | float]]]()
    for lens in assertion.lenses(*match.span()):
        curve = assertion.points(column, lens)
        if not curve:
            return
        layer = int(layer_text) if layer_text else curve[-1][0]
        part = between(curve, start or 0, curve[-1][0])
        top = pick(part)
        if top is None or layer not in dict(curve):
            return
        span = abs(max(v for _, v in part) - min(v for _, v in part))
        right = right or abs(top[0] - layer) <= slack or abs(top[1] - dict(curve)[layer]) <= NOISE * span
        wrong.append((lens, top))
    if right:
        yield assertion.supported(match.group(), f"so it is in {assertion.table_name()}.")
    elif wrong:
        lens, top = wrong[0]
        yield assertion.contradicted(
            match.group(),
            f"the extreme of {column} in {assertion.table_name(lens)} is {_point(top)}.",
            _point(top),
            assertion.place(top[0], lens),
        )


_STAYS = re.compile(
    rf"(?<![\w\u0394-])(?P<what>{QUANTITY})\b[^.;()]{{0,12}}?\s(?:stays?|remains?|keeps?)\s+(?:well |always |all )?"
    rf"(?P<op>>=|<=|>|<|above|below|over|under)\s*(?P<bound>{NUMBER}){ENDS}\s*(?:bits?)?",
    re.IGNORECASE,
)
_SINGLE = re.compile(
    rf"{LAYER}|\b(?:sampled|early|mid|later?|until|through|most|after\w*|before|from|once|"
    r"beyond|thereafter|then|post|pre|onwards?|final|last|end|collapse|semantic\w*)\b",
    re.IGNORECASE,
)


def stays(assertion: Assertion) -> Iterator[Finding]:
    """`answer_rank stays > 10^4`: over the layers it names, else those it cites, else all."""
    for match, _ in assertion.unhedged(_STAYS):
        column, bound = column_of(match["what"]), Number.parse(match["bound"])
        if column is None or bound is None:
            continue
        outcomes = [_stay(assertion, match, column, bound.value, lens) for lens in assertion.lenses(*match.span())]
        findings = [outcome for outcome in outcomes if outcome is not None]
        if not findings or len(findings) < len(outcomes):
            continue
        settled = [finding for finding in findings if finding.judgement is Judgement.SUPPORTED]
        if all(finding.judgement is Judgement.CONTRADICTED for finding in findings):
            yield findings[0]
        elif settled:
            yield settled[0]


def _stay(assertion: Assertion, match: re.Match[str], column: str, bound: int | float, lens: str) -> Finding | None:
    """Whether no value is on the other side; None where that is not clear."""
    curve = dict(assertion.points(column, lens))
    above = match["op"] in (">", ">=", "above", "over")
    around = sentence(assertion.text, *match.span())
    named = _named_layers(assertion.text[match.end() : match.end() + 40], max(curve, default=0))
    if not named and (len(spans(around.text)) > 1 or _SINGLE.search(around.text)):
        return None
    named = named or [layer for first, last in spans(around.text) for layer in range(first, last + 1)]
    layers = [layer for layer in named or assertion.cited_layers(lens) or list(curve) if layer in curve]
    if not layers:
        return None
    broken = [layer for layer in layers if (curve[layer] < bound if above else curve[layer] > bound)]
    claim = match.group()
    if not broken:
        return assertion.supported(claim, f"so it does at {len(layers)} layers of {assertion.table_name(lens)}.")
    pointed = bool(named) or len(layers) < len(curve)
    if not pointed and len(broken) < REVERSAL * len(layers):
        return assertion.undecided(claim, f"it does not at {len(broken)} of {len(layers)} layers.")
    worst = min(broken, key=lambda layer: curve[layer]) if above else max(broken, key=lambda layer: curve[layer])
    return assertion.contradicted(
        claim,
        f"{column} is {_point((worst, curve[worst]))} in {assertion.table_name(lens)}, within the layers meant.",
        _point((worst, curve[worst])),
        assertion.place(worst, lens),
    )


def _named_layers(text: str, last: int) -> list[int]:
    """Layers right behind a claim: `at L36`, `until L20`, `from layer 5 on`, `in layers 3-9`."""
    for first, end in spans(text[:25]):
        return list(range(first, end + 1))
    match = re.match(rf"[\s(]*(at|until|through|up to|from|after|beyond)\s+{LAYER}", text, re.IGNORECASE)
    if match is None:
        return []
    word, layer = match.group(1).lower(), int(match.group(2))
    if word == "at":
        return [layer]
    if word == "until":
        return list(range(layer))
    if word in ("through", "up to"):
        return list(range(layer + 1))
    return list(range(layer + (word != "from"), last + 1))


_EARLY = re.compile(
    r"\bearly[- ](?:and stable )?(?:cosine[- ]|directional[- ]|geometric[- ])?(?:lock-in|alignment|direction)\b|"
    r"\balign(?:s|ed|ing|ment)? (?:to (?:the )?final )?early\b|\bdirection(?:al)? (?:is |aligns? |locks? in |forms? )"
    r"(?:found )?early\b",
    re.IGNORECASE,
)


def early_alignment(assertion: Assertion) -> Iterator[Finding]:
    """`early directional lock-in`: wrong where the cosine then points the other way for most of the stack."""
    if not assertion.alone or not re.search(r"\bcos|direction", assertion.text, re.IGNORECASE):
        return
    for match in _EARLY.finditer(assertion.text):
        around = assertion.clause(*match.span())
        head = assertion.text[around.start : match.start()]
        if NEGATION.search(head) or HEDGE.search(head[-30:]):
            continue
        outcomes = [_alignment(assertion, match.group(), lens) for lens in assertion.lenses(*match.span())]
        if outcomes and all(outcomes):
            yield from (outcome for outcome in outcomes[:1] if outcome is not None)


def _alignment(assertion: Assertion, claim: str, lens: str) -> Finding | None:
    curve = assertion.points("cos_to_final", lens)
    start = first_at_least(curve, ALIGNED)
    if start is None or len(curve) < 4:
        return None
    last = curve[-1][0]
    after = between(curve, start + 1, last - 1)
    against = [point for point in after if point[1] < 0]
    if start > EARLY_DEPTH * last:
        why = f"cos_to_final of lens {lens} first reaches {ALIGNED} at layer {start} of {last}"
    elif len(against) > len(after) / 2:
        low = min(against, key=lambda point: point[1])
        why = (
            f"cos_to_final of lens {lens} is below 0 at {len(against)} of the {len(after)} layers after layer {start}, "
            f"down to {_point(low)}"
        )
    else:
        return None
    worst = trough(after)
    at = assertion.place(start if worst is None or start > EARLY_DEPTH * last else worst[0], lens)
    return assertion.contradicted(claim, f"{why} ({assertion.table_name(lens)}).", why, at)
