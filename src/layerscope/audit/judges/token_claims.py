"""Sentences on tokens: which leads at a layer, which are among the first few, whether fillers or marks dominate."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.lookup.cited_lines import row_citation
from layerscope.audit.parse.vocabulary import HEDGE, LAYER, NEGATION, sentence, spans
from layerscope.errors import RunError
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.findings import Finding, Judgement

_FILLERS = (
    "a an the this that these those it its is are was were be been being am of to in on at by for from with as and or "
    "but if so not no do does did has have had will would can could should may might shall which what who whom whose "
    "where when why how there here than then very just only also too such each every any some all both he she they we "
    "simply called named you i me him her them us my your his their our into over under about up down out off s t "
    "的 了 是 在 和 也 就 都 与"
)
FILLERS = frozenset(_FILLERS.split())
"""Words that carry grammar and no subject matter."""
SCARCE, AMPLE = 0.2, 0.5
"""Shares of layers: up to the first a kind of token does not dominate, from the second on it may."""

_RANK_1 = r"(?:rank[- ]?1\b|top-?1\b|the top(?:-1)? token|the leading token)"
_LEADS = re.compile(
    r"(?P<token>['\"](?P<quoted>[^'\"]{1,20})['\"]|\b(?P<bare>(?-i:[A-Z][a-z]+)))\s+"
    r"(?:is|becomes?|turns?|gets?(?: to)?|reach\w*)\s+"
    rf"(?:(?P<first>first)\s+)?(?:decisively\s+)?{_RANK_1}\s*(?:\([^()]*\)\s*)?(?P<join>at|by|in|from)\s+{LAYER}",
    re.IGNORECASE,
)
_FIRST_LEADS = re.compile(
    r"(?P<token>['\"](?P<quoted>[^'\"]{1,20})['\"]|\b(?P<bare>(?-i:[A-Z][a-z]+)))\s+first\s+(?:becomes?|is|turns?|reach\w*)\s+"
    rf"{_RANK_1}\s*(?P<join>at|in)\s+{LAYER}",
    re.IGNORECASE,
)
_ENTERS = re.compile(
    r"(?P<token>['\"](?P<quoted>[^'\"]{1,20})['\"]|\b(?P<bare>(?-i:[A-Z][a-z]+)))\s+"
    r"first\s+(?:enters?|appears? in|is in|penetrates?)\s+"
    rf"(?:the |any )?top-?(?P<k>\d+)\s+(?P<join>at|in)\s+{LAYER}",
    re.IGNORECASE,
)
_STAYS_FIRST = re.compile(
    r"(?:stabili[sz]es as|remains|stays)\s+(?:the )?(?:persistent )?(?P<what>rank[- ]?1|top-?1)\s+(?P<join>from|by)\s+"
    rf"{LAYER}(?P<onward>\s+(?:onwards?|on))?",
    re.IGNORECASE,
)


def leads(assertion: Assertion) -> Iterator[Finding]:
    """`'Berlin' becomes rank-1 at L36`, `Berlin first enters any top-5 at L 29`."""
    seen: set[tuple[int, int]] = set()
    for form, first in ((_FIRST_LEADS, True), (_ENTERS, True), (_LEADS, False)):
        for match in form.finditer(assertion.text):
            if match.span() in seen or assertion.is_elsewhere(*match.span()) or HEDGE.search(match.group()):
                continue
            seen.add(match.span())
            limit = int(match["k"]) if "k" in match.re.groupindex else 1
            by = match["join"].lower() == "by"
            is_first = first or bool("first" in match.re.groupindex and match["first"])
            yield from _leads(assertion, match, limit, is_first=is_first and not by, by=by)


def _leads(assertion: Assertion, match: re.Match[str], limit: int, *, is_first: bool, by: bool) -> Iterator[Finding]:
    token, layer = (match["quoted"] or match["bare"]).strip(), int(match.groups()[-1])
    if assertion.row(layer) is None or not any(token in _tokens(assertion, lens) for lens in assertion.available):
        return
    meant, entry = assertion.lenses(*match.span()), _Entry(layer, is_first, by)
    right = [lens for lens in meant if any(map(entry.holds, _ways_in(assertion, lens, token, limit)))]
    if right:
        yield assertion.supported(match.group(), f"so it is in {assertion.table_name(right[0])}.")
        return
    elsewhere = any(entry.holds(way) for lens in assertion.available for way in _ways_in(assertion, lens, token, limit))
    if token not in _answers(assertion) or not meant or elsewhere:
        return
    first = min(_ways_in(assertion, meant[0], token, limit)[0], default=None)
    truth = "at no layer" if first is None else f"first at layer {first}"
    yield assertion.contradicted(
        match.group(),
        f"in {assertion.table_name(meant[0])} {token!r} is among the first {limit} {truth}"
        + ("." if is_first else f", and is not at layer {layer}."),
        truth,
        assertion.place(first, meant[0]),
    )


@dataclass(frozen=True)
class _Entry:
    """That a token is among the first few: at a layer, first there, or there at the latest."""

    layer: int
    is_first: bool
    by: bool

    def holds(self, layers: Sequence[int]) -> bool:
        """Whether that is so of a token that is among them at these layers."""
        first = min(layers, default=None)
        if first is None:
            return False
        if self.by:
            return first <= self.layer
        return first == self.layer if self.is_first else self.layer in layers


def _ways_in(assertion: Assertion, lens: str, token: str, limit: int) -> list[list[int]]:
    """Layers at which a token is among the first few: by its text, and for the answer by its rank too."""
    ranked = [layer for layer, rank in assertion.points("answer_rank", lens) if rank <= limit]
    by_text = _layers_in(assertion, lens, token, limit)
    return [by_text, ranked] if token in _answers(assertion) else [by_text]


def lasts(assertion: Assertion) -> Iterator[Finding]:
    """`stabilises as the persistent top-1 from L 33 onward`, of the answer."""
    for match, around in assertion.unhedged(_STAYS_FIRST):
        if NEGATION.search(around.text) or not _is_of_answer(assertion, match):
            continue
        layer, outcomes = int(match.group(3)), list[tuple[str, int | None, bool]]()
        for lens in assertion.lenses(*match.span()):
            ranks = assertion.points("answer_rank", lens)
            broken = [at for at, rank in ranks if at >= layer and rank != 1]
            outcomes.append((lens, broken[0] if broken else None, bool(ranks) and ranks[-1][0] >= layer))
        if not outcomes or not all(known for *_, known in outcomes):
            continue
        if any(broken is None for _, broken, _ in outcomes):
            yield assertion.supported(match.group(), f"so it does in {assertion.table_name()}.")
        else:
            lens, first, _ = outcomes[0]
            yield assertion.contradicted(
                match.group(),
                f"in {assertion.table_name(lens)} the answer's rank at layer {first} is not 1.",
                at=assertion.place(first, lens),
            )


def _answers(assertion: Assertion) -> set[str]:
    """The accepted answers of the first prompt, without the spaces around them."""
    prompts = [prompt for prompt in assertion.evidence.record.suite.prompts if prompt.prompt_id == "pos"]
    return {answer.string.strip() for answer in prompts[0].answers} if prompts else set()


def _is_of_answer(assertion: Assertion, match: re.Match[str]) -> bool:
    """Whether the sentence up to a claim names the answer, and no other token in quotes."""
    around = sentence(assertion.text, *match.span())
    head = assertion.text[around.start : match.start()]
    quoted = {text.strip() for text in re.findall(r"['\"]([^'\"]{1,20})['\"]", head)}
    answers = _answers(assertion)
    return quoted <= answers and any(re.search(rf"\b{re.escape(answer)}\b", head) for answer in answers)


def _tokens(assertion: Assertion, lens: str) -> set[str]:
    return {token.strip() for row in assertion.rows(lens) for token in row["top_tokens"] or ()}


def _layers_in(assertion: Assertion, lens: str, token: str, limit: int) -> list[int]:
    lists = [(row["layer"], (row["top_tokens"] or ())[:limit]) for row in assertion.rows(lens)]
    return [layer for layer, tokens in lists if any(listed.strip() == token for listed in tokens)]


# Lists of tokens at a layer

_INCLUDES = re.compile(
    rf"{LAYER}[^.;()]{{0,20}}?\btop-?(?P<k>\d+)\s+(?:list )?(?:includes?|contains?|has|lists?)\s+(?P<items>[^.;()]+)",
    re.I,
)
_GLUE = re.compile(r"\s*(?:,|\balongside\b|\band\b|\bwith\b|\bplus\b|\bas well as\b)\s*")


@dataclass(frozen=True)
class _List:
    """The likeliest tokens at a place, likeliest first."""

    tokens: tuple[str, ...]
    place: Citation | None
    is_cited: bool


def includes(assertion: Assertion) -> Iterator[Finding]:
    """`L76 top-5 includes capital alongside Berlin`: in the cited rows of that layer, else at the last position."""
    for match in _INCLUDES.finditer(assertion.text):
        layer, limit = int(match.group(1)), int(match["k"])
        items = [item.strip().strip("'\"").strip() for item in _GLUE.split(match["items"]) if item.strip()]
        around = assertion.clause(*match.span())
        bad = NEGATION.search(around.text) or assertion.is_elsewhere(*match.span()) or HEDGE.search(match.group())
        if bad or not items or any(" " in item or len(item) > 20 for item in items):
            continue
        lists = _lists(assertion, layer)
        if not lists:
            continue
        holding = [listed for listed in lists if _has(listed.tokens[:limit], items)]
        cited = [listed for listed in lists if listed.is_cited]
        if holding and (not cited or any(listed.is_cited for listed in holding)):
            yield assertion.supported(match.group(), "so it is there.", holding[0].place)
        elif holding:
            yield assertion.elsewhere(
                match.group(), f"not in the cited rows, but at {holding[0].place}.", holding[0].place
            )
        elif _are_tokens(assertion, match["items"], items, lists):
            shown = (cited or lists)[0]
            first = ", ".join(repr(token) for token in shown.tokens[:limit])
            yield assertion.contradicted(
                match.group(), f"the first {limit} at {shown.place} are {first}.", first, shown.place
            )


def _are_tokens(assertion: Assertion, text: str, items: Sequence[str], lists: Sequence[_List]) -> bool:
    """Whether each item is meant as a token: it stands in quotes, or is a token elsewhere in the rows."""
    known = {token.lower() for lens in assertion.available for token in _tokens(assertion, lens)}
    known |= {token.strip().lower() for listed in lists for token in listed.tokens}
    return all(item.lower() in known or re.search(rf"['\"]\s*{re.escape(item)}\s*['\"]", text) for item in items)


def _has(tokens: Sequence[str], items: Sequence[str]) -> bool:
    present = {token.strip().lower() for token in tokens}
    return all(item.lower() in present for item in items)


def _lists(assertion: Assertion, layer: int) -> list[_List]:
    """What is most likely at a layer: at the last position under every lens, and in the rows of any cited table."""
    lists = []
    for lens in assertion.available:
        row = assertion.row(layer, lens)
        place = assertion.place(layer, lens)
        if row is not None and row["top_tokens"]:
            lists.append(_List(tuple(row["top_tokens"]), place, layer in assertion.cited_layers(lens)))
    for reference in assertion.references:
        lists += _cited_lists(assertion, reference.file, reference.lines, layer)
    return lists


def _cited_lists(assertion: Assertion, file: str | None, lines: Sequence[tuple[int, int]], layer: int) -> list[_List]:
    if file is None or not file.endswith(".csv") or "-pure-" in file or not assertion.evidence.sources.has(file):
        return []
    try:
        table = assertion.evidence.sources.csv(file)
    except RunError:  # a cited table that cannot be read is reported by whoever looks its lines up
        return []
    cited = {row.number for first, last in lines for row in table.within(first, last)}
    names = _token_columns(table.header)
    return [
        _List(
            tuple(token for name in names if (token := row.cells[name]) is not None),
            row_citation(table, row),
            row.number in cited,
        )
        for row in table.rows
        if row.number_in("layer") == layer
    ]


def _token_columns(header: Sequence[str]) -> list[str]:
    return sorted((name for name in header if re.fullmatch(r"top\d+", name)), key=lambda name: int(name[3:]))


# Kinds of tokens

_KINDS = {
    "filler": r"fillers?|function words?|stop ?words|grammatical (?:tokens|words)",
    "mark": r"punctuation|quotes?|quotation marks|commas?|markup|underscores?|placeholders?|hyphens?",
}
_DOMINATES = re.compile(
    rf"(?P<kinds>(?:{'|'.join(_KINDS.values())})(?:\s*(?:/|,|and|or)\s*(?:{'|'.join(_KINDS.values())})){{0,4}})\s*"
    r"(?:tokens? )?(?:clearly |strongly )?(?:dominates?|dominating|leads?|are top-?1|is top-?1|around|fill)\b",
    re.IGNORECASE,
)


def dominates(assertion: Assertion) -> Iterator[Finding]:
    """`fillers dominate L0-5 top-1`, `quotes dominate top-1`, over the layers it names, else those it cites."""
    for match in _DOMINATES.finditer(assertion.text):
        around = assertion.clause(*match.span())
        head = assertion.text[around.start : match.start()]
        if not assertion.alone or NEGATION.search(head) or HEDGE.search(match.group()):
            continue
        if assertion.is_elsewhere(*match.span()) or not re.search(r"top-?1\b", around.text, re.IGNORECASE):
            continue
        kinds = [kind for kind, form in _KINDS.items() if re.search(form, match["kinds"], re.IGNORECASE)]
        yield from _dominates(assertion, match, kinds, around.text)


def _dominates(assertion: Assertion, match: re.Match[str], kinds: Sequence[str], around: str) -> Iterator[Finding]:
    named = [layer for first, last in spans(around) for layer in range(first, last + 1)]
    lenses = assertion.lenses(*match.span())
    if len(lenses) != 1 or (named and re.search(r"\b(?:late|mid|later)\b", around)):
        return
    layers = named or assertion.cited_layers()
    share, tokens = _share(assertion, layers, kinds)
    if share is None:
        return
    listed = ", ".join(repr(token) for token in dict.fromkeys(tokens[:8]))
    at = assertion.place(layers[0])
    if share >= AMPLE:
        yield assertion.supported(match.group(), f"top-1 at these layers: {listed}.", at)
    elif share <= SCARCE and named:
        yield assertion.contradicted(
            match.group(),
            f"top-1 at layers {layers[0]} to {layers[-1]} of {assertion.table_name()} is {listed}.",
            listed,
            at,
        )
    elif share == 0:
        yield from _cited_in_vain(assertion, match, kinds, around, layers, listed)


def _cited_in_vain(
    assertion: Assertion, match: re.Match[str], kinds: Sequence[str], around: str, layers: Sequence[int], listed: str
) -> Iterator[Finding]:
    """None of the cited rows has such a token; whether others do says if the claim or the citation is wrong."""
    rows = assertion.rows()
    depth = rows[-1]["layer"] if rows else 0
    late = re.search(r"\b(?:mid|late|later|upper|final)\b", around, re.IGNORECASE)
    meant = [row["layer"] for row in rows if (row["layer"] >= depth / 2 if late else row["layer"] < depth / 2)]
    held = [layer for layer in meant if _share(assertion, [layer], kinds)[0] == 1]
    if len(held) >= AMPLE * len(meant) and held:
        yield assertion.finding(
            match.group(),
            Judgement.ELSEWHERE,
            f"the cited rows hold layers {layers[0]} to {layers[-1]}, whose top-1 is {listed}; such tokens lead at "
            f"{len(held)} layers from {held[0]} on.",
            at=assertion.place(held[0]),
        )


def _share(assertion: Assertion, layers: Sequence[int], kinds: Sequence[str]) -> tuple[float | None, list[str]]:
    """The share of layers whose first token is of a kind; None where no layer has one."""
    rows = [row for layer in layers if (row := assertion.row(layer)) is not None and row["top1"] is not None]
    tokens = [row["top1"] for row in rows]
    if not tokens or len(tokens) < len(layers):
        return None, tokens
    return sum(_is_of(token, kinds) for token in tokens) / len(tokens), tokens


def _is_of(token: str, kinds: Sequence[str]) -> bool:
    bare = token.strip().lower()
    mark = not any(letter.isalnum() for letter in bare) and "\ufffd" not in bare
    return (mark and "mark" in kinds) or (bare in FILLERS and "filler" in kinds)
