"""The values that a statement claims, each under the name that the statement gives it."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from layerscope.audit.parse.statement import Statement
from layerscope.report.numbers import ENDS, NUMBER, Number

Item: TypeAlias = Number | str
Claimed: TypeAlias = Number | bool | str | tuple[Item, ...] | None
"""What is claimed; None is null, which reports also call none or n/a."""

FINAL = "final"
UNNAMED = ""
"""The name of a number that stands alone."""
_DISTINCTIVE_ALONE = 3
PROBABILITY = "p"
"""The name of a probability that has none of its own."""


@dataclass(frozen=True)
class Pair:
    """One claimed value and its name."""

    key: str
    value: Claimed
    start: int
    end: int
    """The stretch of the statement's text."""
    layer: int | str | None = None
    """The layer that the words about it name, or `final`."""
    token: str | None = None
    """The token that a probability is of."""
    is_derived: bool = False
    """A difference or a count, which no file need hold."""
    is_named: bool = False
    """The report quotes a name, such as `first_rank_le_1`; else it gives it in words."""


_KEY = r"(?P<key>(?<![\w@.\-])[A-Za-zΔτ_][\w@%Δ]*(?:[.\[][\w@%]+\]?)*(?:\{[\d.,\sk]{1,30}\})?)"
_QUOTES = r"[\"'`*]{0,3}"
_SIGN = r"(?:==?|:|≈|~|≃|≅)"
_LAYER = r"(?:\b[Ll]ayers?\s*=?\s*|\bL\s?_?=?\s?)"
_BARE = r"true|false|null|none|n/a|n\.a\.?"
_LIST = r"[\[{][^\[\]{}]{0,200}[\]}]"
_VALUE = (
    rf"(?P<list>{_LIST})|(?P<bare>(?i:{_BARE}))(?![\w/])|(?P<slashed>(?:\d+|null)(?:/(?:\d+|null))+)(?![\w.])"
    rf"|(?P<number>{NUMBER}(?:…|\.\.\.)?(?:\s?%)?){ENDS}"
)
_TEXT = r"|\"(?P<quoted>[^\"]{0,300})\"|'(?P<single>[^']{0,300})'(?!\w)"
_ASSIGNED = re.compile(
    rf"{_KEY}{_QUOTES}\s{{0,2}}(?P<op>{_SIGN})\s{{0,2}}(?P<rough>[≈~])?\s?{_LAYER}?(?:{_VALUE}{_TEXT}"
    rf"|(?P<word>[A-Za-z][\w./+\-]{{0,60}}))"
)
_SPACED = re.compile(
    rf"{_KEY}{_QUOTES}\s(?:is\s|of\s|remains\s|(?:first\s)?(?:at|by)\s{_LAYER})?(?P<op>)(?P<rough>[≈~])?\s?(?:{_VALUE})"
)
_AT_LAYER = re.compile(rf"{_KEY}{_QUOTES}\s(?:first\s)?(?:at|by)\s{_LAYER}")
_SPACED_WORDS = frozenset({"size", "seed"})
_IS_LAYER = re.compile(r"first_|L_|le_|earliest_")
"""Names whose values are layers, which are therefore about no layer."""
_DERIVED_BEFORE = re.compile(r"(?:Δ\s?|\w\s-\s|delta\s|shift\s|change in\s|difference in\s)[\"'`]?$", re.IGNORECASE)
_MAY_CLAIM = re.compile(r"\d|[=:≈~]|\b(?:true|false|null|none|n/a)\b", re.IGNORECASE)
_DENIED_BEFORE = re.compile(r"\b(?:no|not|never|without|non)\s(?:\w+\s){0,2}[\"'`]?$", re.IGNORECASE)
_RANKS = re.compile(
    r"\brank(?:\s?thresholds?)?s?\s?\(?≤\s?(?P<bounds>\{[\d,\s]+\}|\d+(?:\s?/\s?≤?\s?\d+)*)\)?"
    rf"\s?(?P<gap>=|:|at|by|is|first at|reached at)\s?(?:{_LAYER})?"
    r"(?P<layers>\{[^}]{1,40}\}|null|none|\d+(?:\s?/\s?\d+)*)(?![\w.]*\w)"
)
_MORE_RANKS = re.compile(rf"(?<![\w≤≥<>])≤\s?(?P<bounds>\d+)\s(?:at|by|=)\s?{_LAYER}(?P<layers>\d+)\b")
_BARE_RANKS = re.compile(
    r"\(?(?P<bounds>≤\s?\d+(?:\s?/\s?≤?\s?\d+){1,5})\)?\s?(?:=|:|at)\s?"
    r"(?P<layers>(?:\d+|null)(?:\s?/\s?(?:\d+|null)){1,5})(?![\w.]*\w)"
)
_TOKEN_P = re.compile(
    r"(?:\"\s?(?P<quoted>[^\"\s,()]{1,30})\"|'\s?(?P<single>[^'\s,()]{1,30})'|(?P<bare>\b[A-Za-z]{1,20}))"
    r"(?P<gap>\s?[,(]\s?|\s(?:with|at|remains|has|still|leads|list|in|the|but|rank[- ]?\d+|\s){0,40}?|\s?\()"
    r"(?P<p>p\s?[=≈]{1,2}\s?)?(?P<number>0?\.\d+(?:[eE]-?\d+)?|\d\.\d+[eE]-\d+)(?![\d.\w%]|\s?-\s?\d)"
)
_BARE_NUMBER = re.compile(
    r"(?<![\w.@\-+/])(?P<rough>[≈~])?\s?(?P<number>[-+]?\d+\.\d+(?:[eE][-+]?\d+)?)(?![\w%]|\.\d|\s?[-/]\s?\d|\+\w)"
)
_MENTION = re.compile(
    r"(?:\b[Ll]ayer\s?=?\s?|\bL\s?=?\s?)(\d{1,3})\b(?!\s?[-/,]\s?\d)"
    r"|\b(final|last)[- ](?:layer|row|CSV|[a-z_]*\w(?=\s?[≈=]))"
)
_NEXT_LAYER = re.compile(rf"\s?(?:bits?)?\s?(?:at|by|@)\s{_LAYER}(\d{{1,3}})\b")
_BEFORE_NUMBERS = (
    "p with at bits by and or to layer entropy kl cos mass is of from in vs ratio value about only layers rank"
)
_NO_TOKENS = frozenset(_BEFORE_NUMBERS.split())
"""Words before a number that are no tokens."""
_BEFORE_COLONS = (
    "verdict note e.g i.e layer layers l t at rms overview presence prompt_id prompt_variant see json csv fig"
)
_PROSE = frozenset(_BEFORE_COLONS.split())
"""Words before a colon or an equals sign that name no value."""


@lru_cache(maxsize=512)
def pairs_of(text: str) -> tuple[Pair, ...]:
    """The values that a text claims, in the order of the text.

    Args:
        text: with plain marks, citations taken out; long texts are read as far as a report's sentence may go.
    """
    if not _MAY_CLAIM.search(text):
        return ()
    layers = _Layers(text)
    named = [*_ranks(text), *_token_probabilities(text), *_assigned(text)]
    chosen: list[Pair] = []
    taken: set[int] = set()
    by_stretch: dict[tuple[int, int], set[str]] = {}
    for pair in (*named, *_bare_numbers(text)):
        if not taken.isdisjoint(range(pair.start, pair.end)) and not _same_stretch(pair, by_stretch):
            continue
        is_layer = _IS_LAYER.match(pair.key) is not None
        chosen.append(pair if is_layer else replace(pair, layer=layers.about(pair.start, pair.end)))
        taken.update(range(pair.start, pair.end))
        by_stretch.setdefault((pair.start, pair.end), set()).add(pair.key)
    return tuple(sorted(chosen, key=lambda pair: pair.start))


def pairs_of_row(statement: Statement) -> list[Pair]:
    """The values of a table row that has a name in its first cell, or one layer for all: `first_rank_le_1 | 31`."""
    cells, header = statement.cells or (), statement.header or ()
    if len(cells) < 2:
        return []
    name, pairs, at = cells[0].strip(" *`"), list[Pair](), len(cells[0]) + 3
    layer = re.fullmatch(r"(?:L(?:ayer)?\s?)?(\d{1,3})", name)
    for column, cell in enumerate(cells[1:], 1):
        start, at = at, at + len(cell) + 3
        value = _scalar(cell.strip(" *`"), False)
        if isinstance(value, str):
            continue
        key = name if layer is None else header[column].strip(" *`") if column < len(header) else UNNAMED
        is_name = re.fullmatch(r"[A-Za-z]\w*(?:[.@%]\w+)*", key) is not None
        if is_name or (isinstance(value, Number) and value.digits >= _DISTINCTIVE_ALONE):
            about = None if layer is None else int(layer[1])
            # Of several columns only one need be the one that the row's name is of.
            derived = not is_name or (layer is None and len(cells) > 2)
            pairs.append(
                Pair(key if is_name else UNNAMED, value, start, start + len(cell), about, None, derived, "_" in key)
            )
    return pairs


def _same_stretch(pair: Pair, by_stretch: Mapping[tuple[int, int], set[str]]) -> bool:
    """Several values may come of one phrase: `rank≤{10,5,1} at {38,38,40}`."""
    keys = by_stretch.get((pair.start, pair.end))
    return keys is not None and pair.key not in keys


class _Layers:
    """Which layer the words around a place are about."""

    def __init__(self, text: str) -> None:
        self._text = text
        mentions = list(_MENTION.finditer(text))
        self._ends = [mention.end() for mention in mentions]
        self._layers: list[int | str] = [int(mention[1]) if mention[1] else FINAL for mention in mentions]
        self._stops = [m.start() for m in re.finditer(r";|\. ", text)]

    def about(self, start: int, end: int) -> int | str | None:
        after = _NEXT_LAYER.match(self._text, end)
        if after:
            return int(after[1])
        at = bisect_right(self._ends, start) - 1
        if at < 0:
            return None
        stop = bisect_right(self._stops, start) - 1
        return None if stop >= 0 and self._stops[stop] > self._ends[at] else self._layers[at]


def _assigned(text: str) -> Iterator[Pair]:
    at = 0
    while (match := _ASSIGNED.search(text, at)) is not None:
        pairs = _pairs_in(text, match)
        # What is no claim may hold one: `excellent: kl_to_final_bits=0.0`, `"unembed_bias": {"present": false}`.
        at = match.end() if pairs else match.end("key")
        yield from pairs
    for match in _SPACED.finditer(text):
        key = match["key"]
        named = "_" in key or key.lower() in _SPACED_WORDS
        layered = _AT_LAYER.match(text, match.start()) is not None
        if named and (not layered or _IS_LAYER.match(key)) and match["list"] is None:
            yield from _pairs_in(text, match)


def _pairs_in(text: str, match: re.Match[str]) -> list[Pair]:
    key = match["key"]
    quoted = text[max(0, match.start() - 1) : match.start()] in ('"', "`", "'")
    if key.lower().rstrip(".") in _PROSE or (match["op"] == ":" and not (_is_named(key) or quoted)):
        return []
    groups = match.groupdict()
    keys = _expanded(key)
    values = _claimed(groups, len(keys))
    if values is None:
        return []
    before = text[max(0, match.start() - 30) : match.start()]
    if _DENIED_BEFORE.search(before):
        return []
    derived = _DERIVED_BEFORE.search(before) is not None or (groups.get("number") or "").startswith("+")
    return [
        Pair(name, value, match.start(), match.end(), is_derived=derived, is_named=_is_named(key))
        for name, value in zip(keys, values, strict=True)
    ]


def _is_named(key: str) -> bool:
    return "_" in key


def _expanded(key: str) -> list[str]:
    """`first_kl_below_{1.0,0.5}` is two names."""
    match = re.search(r"\{([^}]*)\}", key)
    if match is None:
        return [key]
    return [key[: match.start()] + part.strip() + key[match.end() :] for part in match[1].split(",")]


def _claimed(groups: dict[str, str | None], count: int) -> list[Claimed] | None:
    """The values of one assignment, as many as it has names; None where they do not fit together."""
    rough = groups.get("rough") is not None or groups.get("op") in ("≈", "~", "≃", "≅")
    if (listed := groups.get("list")) is not None:
        items = _items(listed[1:-1], rough)
        if count > 1:
            return list(items) if len(items) == count else None
        return [items] if items and not re.search(r"[\w\"]\s?:", listed) and "…" not in listed else None
    if (slashed := groups.get("slashed")) is not None:
        parts = slashed.split("/")
        return [_scalar(part, rough) for part in parts] if count > 1 and len(parts) == count else None
    if (bare := groups.get("bare")) is not None:
        return [_scalar(bare, rough)] * count
    if (printed := groups.get("number")) is not None:
        number = Number.parse(printed, rough=rough)
        return None if number is None else [number] * count
    text = next((groups[name] for name in ("quoted", "single", "word") if groups.get(name) is not None), None)
    if text is None:
        return None
    return [_scalar(text.rstrip("."), rough) if groups.get("word") else text] * count


def _items(text: str, rough: bool) -> tuple[Item, ...]:
    parts = [part.strip(" \"'`") for part in text.split(",")]
    return tuple(Number.parse(part, rough=rough) or part for part in parts if part)


def _scalar(text: str, rough: bool) -> Claimed:
    lowered = text.lower().rstrip(".")
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("null", "none", "n/a", "n.a"):
        return None
    return Number.parse(text, rough=rough) or text


def _ranks(text: str) -> Iterator[Pair]:
    for match in _RANKS.finditer(text):
        yield from _rank_pairs(match)
    for match in _BARE_RANKS.finditer(text):
        if "rank" in text[max(0, match.start() - 80) : match.start()].lower():
            yield from _rank_pairs(match)
    for match in _MORE_RANKS.finditer(text):
        before = text[: match.start()].lower()
        subject = max(("rank", "cos", "kl", "entropy"), key=before.rfind)
        if subject == "rank" and "rank" in before:
            yield from _rank_pairs(match)


def _bare_numbers(text: str) -> Iterator[Pair]:
    """Numbers of several digits that no name goes with: what a list over models leaves of `max_kl=0.1793`."""
    for match in _BARE_NUMBER.finditer(text):
        number = Number.parse(match["number"], rough=match["rough"] is not None)
        if number is not None and number.digits >= _DISTINCTIVE_ALONE:
            yield Pair(UNNAMED, number, match.start(), match.end(), is_derived=match["number"].startswith("+"))


def _rank_pairs(match: re.Match[str]) -> Iterator[Pair]:
    bounds = re.findall(r"\d+", match["bounds"])
    layers = re.findall(r"\d+|null|none", match["layers"])
    if len(layers) == 1:
        layers = layers * len(bounds)
    if len(layers) != len(bounds):
        return
    for bound, layer in zip(bounds, layers, strict=True):
        yield Pair(f"first_rank_le_{bound}", _scalar(layer, False), match.start(), match.end(), layer=None)


def _token_probabilities(text: str) -> Iterator[Pair]:
    for match in _TOKEN_P.finditer(text):
        token = match["quoted"] or match["single"] or match["bare"]
        number = Number.parse(match["number"], rough="≈" in (match["p"] or ""))
        if number is None or (match["bare"] and not match["p"] and number.digits < 3):
            continue
        if token.lower() in _NO_TOKENS or re.search(r"[a-z]_|_[a-z]", token):
            continue
        start = match.start("number") if match["p"] is None else match.start("p")
        yield Pair(PROBABILITY, number, start, match.end("number"), token=token)
