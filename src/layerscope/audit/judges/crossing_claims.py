"""Sentences on where a value first crosses a bound, or that it never does: `p_top1 > 0.30 at layer 77`."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from layerscope.analysis.curve_shapes import first_where
from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.parse.vocabulary import QUANTITY, column_of, listed
from layerscope.report.cited.findings import Finding
from layerscope.report.numbers import ENDS, Number

_BOUND = r"\{[\d.,\s/]+\}|10\^\d|\d+(?:\.\d+)?(?:/\d+(?:\.\d+)?)*"
_WHERE = r"\{[^{}]{1,30}\}|\d+(?:/\d+)+|\d+"
_NONE = r"none|never|null|n/?a\b\.?|not reached"
_JOIN = (
    r"(?:\s*bits?)?[\s,:=(~-]*(?:(?:is|are|first|all|reached|crossed|achieved|occurs?|only|each|both)\s+)*"
    r"(?P<join>at|by|@|:|=|->|in|from)?\s*(?:all (?:at )?)?"
)
_ITEM = re.compile(
    rf"(?:(?<![\w\u0394-])(?P<what>{QUANTITY})\b[^.;:,(){{}}<>=\d]{{0,24}})?(?P<op>>=|<=|>|<)\s*(?P<bound>{_BOUND}){_JOIN}"
    rf"(?:(?P<named>(?:layers?|L)\s*=?\s*)(?P<where>{_WHERE})|(?P<list>\{{[^{{}}]{{1,30}}\}}|\d+(?:/\d+)+)"
    rf"|(?P<none>{_NONE}))(?!\d|\.\d|%|\s*(?:-|to|through)\s*L?\s*\d)",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(?P<key>first_kl_below_|first_kl_le_|first_rank_le_|first_p_top1_gt_|(?<![\w@])ge_|(?<![\w@])le_)"
    r"(?P<bound>\{[\d.,\s]+\}|\d+(?:\.\d+)?)\"?\s*(?P<join>:|=|at|@|->)\s*(?:all (?:at )?)?"
    rf"(?:(?P<named>(?:layers?|L)\s*=?\s*)?(?P<where>{_WHERE})|(?P<none>{_NONE}))(?!\d|\.\d|%|\s*(?:vs|bits))",
    re.IGNORECASE,
)
_KEYS = {
    "first_kl_below_": ("kl_to_final_bits", "<="),
    "first_kl_le_": ("kl_to_final_bits", "<="),
    "first_rank_le_": ("answer_rank", "<="),
    "le_": ("answer_rank", "<="),
    "first_p_top1_gt_": ("p_top1", ">"),
    "ge_": ("cos_to_final", ">="),
}
_NEVER = re.compile(
    rf"\b(?:never|at no layer|no layer)\s+"
    r"(?:reach\w*|cross\w*|exceed\w*|attain\w*|get\w*(?: to)?|falls? below|drops? below)\s+"
    rf"(?P<what>{QUANTITY})?\s*(?P<op>>=|<=|>|<)?\s*(?P<bound>{_BOUND}){ENDS}",
    re.IGNORECASE,
)
_CHANGED = re.compile(
    r"\u0394|delta|\bvs\.?\b|stab(?:le|ly|ili)|no[-_ ]filler|_nf\b|_frac|fraction|centered", re.IGNORECASE
)


_COMPARE: Mapping[str, Callable[[int | float, int | float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class _Crossing:
    """A bound, and the layer at which a sentence has it crossed."""

    column: str
    op: str
    bound: int | float
    layer: int | None
    """None where the sentence has it never crossed."""
    join: str
    is_first: bool
    """Whether the first crossing is meant, and not only that it holds there."""

    def holds(self, value: int | float) -> bool:
        return _COMPARE[self.op](value, self.bound)

    def __str__(self) -> str:
        return f"{self.column} {self.op} {self.bound:g}"


def crossings(assertion: Assertion) -> Iterator[Finding]:
    """`rank <= 10 at L32`, `rank<={10,5,1} at {24,25,25}`, `p_top1 > 0.60: none`, `first_rank_le_1 at L 34`."""
    last: tuple[int, str] | None = None
    for match in _ITEM.finditer(assertion.text):
        around = assertion.clause(*match.span())
        if match["what"]:
            named = list(re.finditer(QUANTITY, assertion.text[match.start() : match.start("op")], re.IGNORECASE))
            last = (match.end(), named[-1].group() if named else match["what"])
        elif (
            last is None
            or match.start() - last[0] > 25
            or re.search(r"[.](?=\s)", assertion.text[last[0] : match.start()])
        ):
            last = None
            continue
        what, last = last[1], (match.end(), last[1])
        column = column_of(what)
        if column is not None and not _CHANGED.search(around.text) and not assertion.is_elsewhere(*match.span()):
            where = match["where"] or match["list"]
            yield from _judged(assertion, match, column, match["op"], where, first=_is_first(assertion, match))
    for match in _KEY.finditer(assertion.text):
        around = assertion.clause(*match.span())
        column, op = _KEYS[match["key"].lower()]
        if match["key"].lower() in ("ge_", "le_") and match["named"] is None and match["none"] is None:
            continue
        if not _CHANGED.search(around.text) and not assertion.is_elsewhere(*match.span()):
            yield from _judged(assertion, match, column, op, match["where"], first=True)


def _is_first(assertion: Assertion, match: re.Match[str]) -> bool:
    head = assertion.text[max(0, match.start() - 60) : match.end()]
    return re.search(r"\bfirst\b|milestone", head, re.IGNORECASE) is not None or "{" in (match["list"] or "")


def _judged(
    assertion: Assertion, match: re.Match[str], column: str, op: str, where: str | None, *, first: bool
) -> Iterator[Finding]:
    bounds = listed(match["bound"])
    layers: list[str] = listed(where) if where is not None else []
    if len(layers) == 1:
        layers *= len(bounds)
    if where is not None and len(layers) != len(bounds):
        return
    join, verdicts = (match["join"] or "").lower(), list[Finding]()
    for place, bound in enumerate(bounds):
        text = layers[place].lstrip("L= ") if where is not None else ""
        if where is not None and not text.isdigit() and text.lower() not in ("null", "none", "n/a"):
            continue
        layer, printed = int(text) if text.isdigit() else None, Number.parse(bound)
        if printed is None:
            return
        verdicts += _judge(assertion, match, _Crossing(column, op, printed.value, layer, join, first))
    yield from _together(verdicts)


def _together(verdicts: list[Finding]) -> list[Finding]:
    """The findings on a claim with several bounds: all that is wrong, else that it is right."""
    wrong = [verdict for verdict in verdicts if verdict.judgement.is_wrong]
    return wrong or verdicts[:1]


def _judge(assertion: Assertion, match: re.Match[str], crossing: _Crossing) -> Iterator[Finding]:
    read = [lens for lens in assertion.available if assertion.points(crossing.column, lens)]
    firsts = {lens: _first(assertion, crossing, lens) for lens in assertion.lenses(*match.span()) if lens in read}
    if not firsts:
        return
    claim = match.group()
    right = [lens for lens in firsts if _is_right(assertion, crossing, lens, firsts[lens])]
    if right:
        yield _supported(assertion, claim, crossing, right[0])
        return
    others = [lens for lens in read if lens not in firsts]
    right = [lens for lens in others if _is_right(assertion, crossing, lens, _first(assertion, crossing, lens))]
    if crossing.layer is not None and right:
        return
    lens, layer = next(iter(firsts.items()))
    truth = "no layer" if layer is None else f"layer {layer}"
    yield assertion.contradicted(
        claim,
        f"in {assertion.table_name(lens)} {crossing} first holds at {truth}.",
        f"{crossing} first at {truth}",
        assertion.place(layer, lens),
    )


def _first(assertion: Assertion, crossing: _Crossing, lens: str) -> int | None:
    return first_where(assertion.points(crossing.column, lens), crossing.holds)


def _is_right(assertion: Assertion, crossing: _Crossing, lens: str, first: int | None) -> bool:
    if crossing.layer is None or first is None:
        return crossing.layer == first
    if crossing.join == "by":
        return first <= crossing.layer
    value = dict(assertion.points(crossing.column, lens)).get(crossing.layer)
    return first == crossing.layer or (not crossing.is_first and value is not None and crossing.holds(value))


def _supported(assertion: Assertion, claim: str, crossing: _Crossing, lens: str) -> Finding:
    """It holds; but not in the cited lines where these are all rows of tables, and none is of that layer."""
    at = assertion.place(crossing.layer, lens)
    tables = [reference for reference in assertion.references if reference.lines]
    rows_only = len(tables) == len(assertion.references) and all((r.file or "").endswith(".csv") for r in tables)
    in_file = [reference for reference in tables if at is not None and reference.file == at.file]
    if crossing.layer is not None and at is not None and rows_only and in_file and len(in_file) == len(tables):
        cited = assertion.cited_layers(lens)
        if crossing.layer not in cited:
            shown = ", ".join(map(str, cited)) or "none"
            return assertion.elsewhere(
                claim,
                f"so it is, but the cited lines of {at.file} hold layers {shown}; "
                f"layer {crossing.layer} is on {at.lines}.",
                at,
            )
    return assertion.supported(claim, f"so it is in {assertion.table_name(lens)}.", at)


def never(assertion: Assertion) -> Iterator[Finding]:
    """`Prism never reaches rank <= 10/5/1`, `p_top1 never exceeds 0.6`."""
    for match in _NEVER.finditer(assertion.text):
        around = assertion.clause(*match.span())
        before = list(re.finditer(QUANTITY, assertion.text[around.start : match.start()], re.IGNORECASE))
        words = match["what"] or (before[-1].group() if before else None)
        column = None if words is None else column_of(words)
        if column is None or assertion.is_elsewhere(*match.span()):
            continue
        text = match.group().lower()
        op = match["op"] or (">" if "exceed" in text else "<=" if "below" in text else None)
        op = op or ("<=" if column in ("answer_rank", "kl_to_final_bits", "entropy_bits") else ">=")
        verdicts = list[Finding]()
        for bound in listed(match["bound"]):
            printed = Number.parse(bound)
            if printed is not None:
                verdicts += _judge(assertion, match, _Crossing(column, op, printed.value, None, "never", True))
        yield from _together(verdicts)
