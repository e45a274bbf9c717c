"""Plain sentences with a quantity in words: `the KL at layer 29 is 12.23 bits`, `rank 1 comes first at layer 31`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layerscope.analysis.onsets import CLEARLY_AHEAD, FIRST_ON_TOP, ON_TOP_FOR_GOOD
from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.judges.table_rows import same_token
from layerscope.audit.lookup.cited_lines import is_number, row_citation
from layerscope.audit.lookup.key_matching import name_parts
from layerscope.audit.parse.vocabulary import (
    HEDGE,
    LAYER_ALONE,
    NEGATION,
    NUMBER_ALONE,
    QUANTITIES,
    REACH,
    column_of,
    plain,
    plain_marks,
    token_meant,
)
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG, STRONG_RUN2, MilestoneName, copy_soft
from layerscope.report.cited.claims import Claim, value_text
from layerscope.report.cited.findings import Finding
from layerscope.report.numbers import Number

_ANY_LAYER = re.compile(LAYER_ALONE + r"|\b(?P<last>(?:last|final) layer)\b", re.IGNORECASE)
_COLUMNS = {
    **QUANTITIES,
    "kl_to_final_bits": r"KL(?: divergence)?(?:[_ -]to[_ -]final(?:_bits)?)?|kl_to_final(?:_bits)?|divergence",
    "p_answer": r"p_answer|answer prob(?:ability|\.)?|p\(answer\)|probability of the answer",
    "answer_logit_gap": r"lead|logit gap",
    "resid_norm_ratio": r"resid_norm_ratio",
}
"""What plain sentences call the columns of our rows."""
_COLUMN = "|".join(_COLUMNS.values())
_LINK = (
    r"(?:\s+(?:to|from|of|with|the|final|last|model's|model|own|output|head|distribution|answer|token|its|is|was|stands|"
    r"at|equals|about|only|in|bits|value|under|tuned|prism|raw|norm|next_norm|logit|lens|there|here|layers?\s+\d{1,3}|"
    r"L\d{1,3}),?)*"
)
_CELLS = (
    re.compile(rf"(?<![\w\u0394-])(?P<what>{_COLUMN}){_LINK}\s*[=:]?\s*\(?{NUMBER_ALONE}", re.IGNORECASE),
    re.compile(rf"{NUMBER_ALONE}\s*bits\s+of\s+(?P<what>{_COLUMN})\b", re.IGNORECASE),
    re.compile(rf"\b(?P<what>lead)(?:s|ing)?\s+(?:\w+\s+){{0,3}}?by\s+{NUMBER_ALONE}\s*logits?", re.IGNORECASE),
)
_NO_CELL = re.compile(
    r"\u0394|\bdelta\b|\b(?:drops?|falls?|rises?|chang\w*|gains?|less|more|than|vs|versus|differ\w*|mean|average|first|"
    r"reach\w*|comes?|becomes?|earliest|until|between|threshold\w*|within|averag\w*|or better|or less|at least|at most|"
    r"fact|facts|for good|holds?|held|stays?|stable|stably|onwards?|from\s+(?:layer|L)|ablat\w*|wording)\b",
    re.IGNORECASE,
)
"""What makes a number next to a column's name another than the value of a row."""
_OF_MODEL = re.compile(r"\b(?:final|last|model(?:'s)?|head(?:'s)?|overall|prompt|own)\s+$", re.IGNORECASE)
_TOP_TOKEN = re.compile(
    r"\btop-?1(?: token)?\b(?:\s+(?:at|in|is|was|there|of)|\s+layers?\s+\d{1,3},?|\s+L\d{1,3})*\s*[=:]?\s*"
    r"(?P<token>\"(?:[^\"\\]|\\.)*\")",
    re.IGNORECASE,
)
_SEVERAL = 3
"""Digits of a number that a row of many columns hardly holds by chance."""
_OTHER_COSINE = re.compile(r"\b(?:answer|prompt|token|before|after|centered)\b", re.IGNORECASE)
_MARKS = re.compile(r"[\"\\*`\ufffd]")
"""What plain text takes out of tokens, or takes for the end of one."""

_WHERE = (
    r"(?:\s+(?:is|lies|comes?|first|occurs?|appears?|reached|only|already|then|happens|arrives|for the first time|"
    rf"under (?:the )?\w+ lens))*\s*(?:\(L_\w+\)\s*)?(?:at|in|is|=|:)\s*(?:at\s+)?(?:the\s+)?{LAYER_ALONE}"
)
_FROM = _WHERE.replace("(?:at|in|", "(?:from|at|in|", 1)
_FOR_GOOD = re.compile(r"\b(?:on top|clearly ahead) for good\b", re.IGNORECASE)
"""A milestone of its own, which does not make another one of the same clause the last of several."""
_BOUND = r"(?P<bound>\d+(?:\.\d+)?)"
_BETTER = r"(?:\s+or\s+(?:better|less|lower|below))?"
_SEMANTIC = (
    ONSET,
    STRONG,
    STRONG_RUN2,
    MilestoneName.ONSET_RUN2,
    CONFIRMED,
    MilestoneName.MARGIN_OK,
    MilestoneName.TOP2_OK,
)


@dataclass(frozen=True)
class _Wording:
    """Words for a milestone; where they hold a bound, it is put into the name."""

    form: str
    names: tuple[str, ...]
    """Of several any may be meant."""
    as_bound: str = "{:g}"
    """How the name has the bound: ranks whole, others with as many decimals as the files give them."""
    where: str = _WHERE
    """What leads from the words to the layer."""


_WORDINGS = (
    _Wording(
        rf"first\s+(?:has|have|reach\w*|gets?(?: to)?|attains?|hits|comes? to|takes|arrives at)\s+"
        rf"rank\s?{_BOUND}{_BETTER}",
        ("first_rank_le_{}",),
    ),
    _Wording(rf"reach(?:es|ed)\s+rank\s?{_BOUND}{_BETTER}(?:\s+first)?", ("first_rank_le_{}",)),
    _Wording(rf"\brank\s?{_BOUND}{_BETTER}\s+(?:(?:comes?|is reached|appears|is)\s+)?first", ("first_rank_le_{}",)),
    _Wording(rf"\bfirst\s+rank\s?{_BOUND}", ("first_rank_le_{}",)),
    _Wording(
        rf"(?:KL|divergence){_LINK}\s+first\s+(?:falls|drops|gets|comes|goes|is)\s+(?:to\s+)?(?:or\s+)?"
        rf"(?:below|under|at most|at or below)?\s*{_BOUND}\s*(?:bits?)?{_BETTER}",
        ("first_kl_below_{}",),
        "{:.1f}",
    ),
    _Wording(
        rf"\bcosine{_LINK}\s+first\s+(?:reaches|exceeds|crosses|is at least|rises to|gets to)\s+{_BOUND}",
        ("cos_ge_{}",),
        "{:.1f}",
    ),
    _Wording(
        rf"\b(?:p_top1|top-?1 probability){_LINK}\s+first\s+(?:exceeds|passes|rises above|is above|crosses)\s+{_BOUND}",
        ("first_p_top1_gt_{}",),
        "{:.2f}",
    ),
    _Wording(
        rf"\blead{_LINK}\s+first\s+(?:reaches|exceeds|is at least|crosses)\s+{_BOUND}(?:\s*logits?)?",
        ("gap_ge_{}",),
        "{:.1f}",
    ),
    _Wording(r"\bfirst\s+on\s+top", (FIRST_ON_TOP,)),
    _Wording(r"\bon\s+top\s+for\s+good(?:\s+and\s+clearly\s+ahead)?", (ON_TOP_FOR_GOOD,), where=_FROM),
    _Wording(r"\bclearly\s+ahead(?:\s+for\s+good)?", (CLEARLY_AHEAD,), where=_FROM),
    _Wording(r"\bbecomes?\s+readable(?:\s+first)?", _SEMANTIC),
    _Wording(r"\bsemantic layer", _SEMANTIC),
    _Wording(r"\bconfirmed(?:\s+semantic(?:s|\s+layer))?", (CONFIRMED,)),
    _Wording(r"\bsurface[- ]to[- ]meaning(?:\s+(?:crossover|transition|layer))?", (MilestoneName.SURFACE_TO_MEANING,)),
    _Wording(r"\bgeometric(?:al)?\s+(?:crossover|transition|layer)", (MilestoneName.GEOMETRY,)),
    _Wording(r"\btop-?k\s+decay(?:\s+layer)?", (MilestoneName.TOPK_DECAY,)),
)
_MILESTONES = tuple(
    (wording, re.compile(form, re.IGNORECASE))
    for wording in _WORDINGS
    for form in (
        wording.form + wording.where,
        rf"\bat\s+{LAYER_ALONE},?\s+(?:(?:the|it|its|answer|token)\s+){{0,3}}{wording.form}",
    )
)
_NOT_FIRST = re.compile(
    r"\b(?:again|back|lost|returns?|for good|stable|stably|until|onwards?|earlier|later|facts?|"
    r"(?<!depth )frac\w*|percent|\u0394|delta|median|shift\w*|vs|versus|held|holds)\b|%",
    re.IGNORECASE,
)
_IS_LAYER = re.compile(r"(?:first_|L_|le_|ge_|gap_ge_|earliest_|layer|k\d|\d)", re.IGNORECASE)
_NO_COPY = re.compile(r"\bno\s+(?P<kind>strict\s+|soft\s+)?(?:copy(?:ing)?\s+layer|layer\s+copies)\b", re.IGNORECASE)


def milestones(assertion: Assertion) -> Iterator[Finding]:
    """`rank 1 comes first at layer 31`, `confirmed at layer 33`, `the KL first falls below 1.0 bits at layer 36`."""
    if not assertion.alone or _ANY_LAYER.search(assertion.text) is None:
        return
    taken: list[tuple[int, int]] = []
    for wording, form in _MILESTONES:
        for match in form.finditer(assertion.text):
            start, end = match.span()
            around = assertion.clause(start, end).text
            if any(start < other_end and other_start < end for other_start, other_end in taken):
                continue
            several = _NOT_FIRST.search(_FOR_GOOD.sub("", around))
            if assertion.is_elsewhere(start, end) or several or _is_unsure(around):
                continue
            taken.append((start, end))
            bound = float(match["bound"]) if "bound" in match.re.groupindex else None
            shown = "" if bound is None else wording.as_bound.format(bound)
            yield from _milestone(assertion, match, tuple(name.format(shown) for name in wording.names))


def _is_unsure(text: str) -> bool:
    return HEDGE.search(text) is not None or NEGATION.search(text) is not None


def _milestone(assertion: Assertion, match: re.Match[str], names: Sequence[str]) -> Iterator[Finding]:
    layer, (meant, sure) = int(match["layer"]), _lenses(assertion, match)
    known = _layers(assertion, names, meant)
    if not known:
        return
    right = next((claim for claim in known if claim.value == layer), None)
    if right is not None:
        shown = assertion.cites_layer(layer) or _layer_stated(assertion, layer, right.name)
        yield assertion.supported_if_shown(match.group(), f"{right.name} is layer {layer}", shown, right.citations[0])
        return
    others = () if sure else _layers(assertion, names, assertion.available)
    alternatives = [assertion.evidence.otherwise(name, lens) for name in names for lens in meant]
    is_otherwise = any(claim is not None and claim.value == layer for claim in (*others, *alternatives))
    if is_otherwise or _layer_stated(assertion, layer):
        return
    truth = known[0]
    correct = "no layer" if truth.value is None else f"layer {truth.value}"
    reason = f"{truth.name} of lens {truth.lens} is {correct} ({truth.citations[0]})."
    yield assertion.contradicted(match.group(), reason, correct, truth.citations[0])


def _layers(assertion: Assertion, names: Sequence[str], lenses: Sequence[str]) -> list[Claim]:
    claims = (assertion.evidence.milestone(name, lens=lens) for name in names for lens in lenses)
    return [claim for claim in claims if claim is not None]


def _lenses(assertion: Assertion, match: re.Match[str]) -> tuple[tuple[str, ...], bool]:
    """The lenses that may be meant, and whether that is sure: a cited table is of one."""
    cited = {reference.file for reference in assertion.references}
    of_tables = [lens for lens in assertion.available if assertion.table_name(lens) in cited]
    meant = assertion.lenses(*match.span())
    if len(of_tables) == 1 and (of_tables[0] in meant or len(meant) != 1):
        return tuple(of_tables), True
    return meant, len(meant) == 1


def cells(assertion: Assertion) -> Iterator[Finding]:
    """`at layer 29 the KL to the final output is 12.23 bits`, `the answer leads by 3.08 logits at layer 31`."""
    if not assertion.alone or _ANY_LAYER.search(assertion.text) is None:
        return
    for form in _CELLS:
        for match in form.finditer(assertion.text):
            around = assertion.clause(*match.span())
            column, printed = column_of(match["what"], _COLUMNS), Number.parse(match["number"])
            before = assertion.text[max(0, match.start() - 12) : match.start()]
            if assertion.is_elsewhere(*match.span()) or _OF_MODEL.search(before):
                continue
            if assertion.text.startswith(" or ", match.end()):
                continue
            if column == "cos_to_final" and _OTHER_COSINE.search(around.text):
                continue
            layer = _layer_of(assertion, match, around.text)
            if column is None or layer is None or printed is None:
                continue
            if not _NO_CELL.search(around.text) and not _is_unsure(around.text):
                yield from _cell(assertion, match, _Value(column, layer, printed))


def _layer_of(assertion: Assertion, match: re.Match[str], around: str) -> int | None:
    """The layer that a value is of: right behind it, else the only one of the clause."""
    behind = re.match(
        rf"\s*(?:bits?|logits?)?\)?\s*(?:at|in)\s+{LAYER_ALONE}", assertion.text[match.end() :], re.IGNORECASE
    )
    if behind is not None:
        return int(behind["layer"])
    inside = [int(mention["layer"]) for mention in _ANY_LAYER.finditer(match.group()) if mention["layer"]]
    if len(inside) == 1:
        return inside[0]
    depth, start = assertion.evidence.record.model.n_layers, assertion.clause(*match.span()).start
    mentions = list(_ANY_LAYER.finditer(around))
    layers = {int(mention["layer"]) if mention["layer"] else depth for mention in mentions}
    if len(layers) != 1:
        return None
    first = mentions[0]
    apart = assertion.text[min(start + first.end(), match.end()) : max(start + first.start(), match.start())]
    leads_in = re.fullmatch(r"[\W_]*(?:at|in)\s+(?:the\s+)?", around[: first.start()], re.IGNORECASE) is not None
    return layers.pop() if leads_in or not re.search(r"[,()]", apart) else None


@dataclass(frozen=True)
class _Value:
    """A value that a sentence gives a column at a layer."""

    column: str
    layer: int
    printed: Number

    def is_of(self, assertion: Assertion, lens: str) -> bool:
        """Whether the lens' row has it."""
        value = self.value(assertion, lens)
        return value is not None and self.printed.stands_for(value)

    def value(self, assertion: Assertion, lens: str) -> int | float | None:
        curve = assertion.curve(lens)
        value = None if curve is None else curve.value(self.column, self.layer)
        return value if is_number(value) else None


def _cell(assertion: Assertion, match: re.Match[str], claimed: _Value) -> Iterator[Finding]:
    meant, sure = _lenses(assertion, match)
    named, meant = meant, tuple(lens for lens in meant if claimed.value(assertion, lens) is not None)
    if not meant:
        yield from _of_another_layer(assertion, match, claimed, named)
        return
    right = [lens for lens in meant if claimed.is_of(assertion, lens)]
    shown = _rows_show(assertion, claimed) or assertion.cites_number(claimed.printed)
    shown = shown or (claimed.column == "answer_rank" and _layer_stated(assertion, claimed.layer))
    where = f"{claimed.column} at layer {claimed.layer}"
    if right:
        at = assertion.place(claimed.layer, right[0])
        shows = shown or assertion.cites_layer(claimed.layer, right[0])
        reason = f"{where} is so in {assertion.table_name(right[0])}"
        yield assertion.supported_if_shown(match.group(), reason, shows, at)
        return
    truth = claimed.value(assertion, meant[0])
    values = [value for lens in meant if (value := claimed.value(assertion, lens)) is not None]
    if shown or _row_holds(assertion, claimed) or truth is None or any(map(claimed.printed.may_mean, values)):
        return
    if not sure and any(claimed.is_of(assertion, lens) for lens in assertion.available):
        return
    correct = value_text(truth)
    yield assertion.contradicted(
        match.group(),
        f"{where} is {correct} in {assertion.table_name(meant[0])}.",
        correct,
        assertion.place(claimed.layer, meant[0]),
    )


def _of_another_layer(
    assertion: Assertion, match: re.Match[str], claimed: _Value, lenses: Sequence[str]
) -> Iterator[Finding]:
    """The layer has no such value, and the one row that is cited has it at another layer."""
    rows = [(table, row) for table in assertion.cited_tables for row in table.rows]
    if len(rows) != 1 or assertion.cites_number(claimed.printed) or rows[0][0].has_row_numbers:
        return
    ((table, row),) = rows
    layer, value = row.number_in("layer"), row.number_in(claimed.column)
    of_lens = any(assertion.table_name(lens) == table.file.name for lens in lenses)
    if of_lens and layer != claimed.layer and value is not None and claimed.printed.stands_for(value):
        at = row_citation(table.file, row)
        why = f"{claimed.column} is {value} at layer {layer} ({at}), and has no value at layer {claimed.layer}."
        yield assertion.contradicted(match.group(), why, f"layer {layer}", at)


def tokens(assertion: Assertion) -> Iterator[Finding]:
    """`the top-1 token at layer 5 is " (?)"`."""
    if not assertion.alone:
        return
    for match in _TOP_TOKEN.finditer(assertion.text):
        token = match["token"]
        around = assertion.clause(*match.span()).text.replace(token, "")
        layer = _layer_of(assertion, match, around)
        if layer is None or assertion.is_elsewhere(*match.span()) or _is_unsure(around):
            continue
        meant, sure = _lenses(assertion, match)
        tops = {lens: row["top1"] for lens in meant if (row := assertion.row(layer, lens)) is not None}
        tail = assertion.text[match.start("token") : match.end() + REACH]
        right = [lens for lens, top in tops.items() if top is not None and _is_token(token, top, tail)]
        if right:
            shown = assertion.cites_layer(layer, right[0])
            at = assertion.place(layer, right[0])
            reason = f"so it is in {assertion.table_name(right[0])}"
            yield assertion.supported_if_shown(match.group(), reason, shown, at)
        elif sure and tops and all(top is not None and not _MARKS.search(plain_marks(top)) for top in tops.values()):
            top = str(next(iter(tops.values())))
            why = f"top-1 at layer {layer} of {assertion.table_name(meant[0])} is {top!r}."
            at = assertion.place(layer, meant[0])
            yield assertion.contradicted(match.group(), why, repr(top), at)


def _is_token(text: str, token: str, tail: str) -> bool:
    """Whether a text in quotes shows a token, or begins one that has quotes of its own."""
    return (
        same_token(text, token)
        or same_token(token_meant(text[1:-1]), token)
        or f'"{plain(plain_marks(token))}"' in tail
    )


def copies(assertion: Assertion) -> Iterator[Finding]:
    """`no copy layer`: the prompt's own tokens lead at no layer, strictly, softly, or either way."""
    for match in _NO_COPY.finditer(assertion.text):
        kind = (match["kind"] or "").strip().lower()
        names: list[str] = [MilestoneName.COPY] if kind != "soft" else []
        names += [copy_soft(k) for k in (1, 2, 3)] if kind != "strict" else []
        meant, _ = _lenses(assertion, match)
        if not assertion.alone or assertion.is_elsewhere(*match.span()) or meant != (assertion.evidence.headline,):
            continue
        known = _layers(assertion, names, meant)
        copied = [claim for claim in known if claim.value is not None]
        if copied:
            first = copied[0]
            reason = f"{first.name} is layer {first.value} ({first.citations[0]})."
            yield assertion.contradicted(match.group(), reason, f"layer {first.value}", first.citations[0])
        elif known:
            why = f"{' and '.join(claim.name for claim in known)}: at no layer."
            yield assertion.supported(match.group(), why, known[0].citations[0])


def _rows_show(assertion: Assertion, claimed: _Value) -> bool:
    """Whether a cited row of the layer, of whatever prompt or position, holds a value under the column."""
    return any(
        row.number_in("layer") == claimed.layer
        and (value := row.number_in(claimed.column)) is not None
        and claimed.printed.stands_for(value)
        for table in assertion.cited_tables
        for row in table.rows
    )


def _row_holds(assertion: Assertion, claimed: _Value) -> bool:
    """Whether a cited row of the layer has a number of several digits in any column: the words may mean that one."""
    printed = claimed.printed
    if printed.is_whole or printed.digits < _SEVERAL:
        return False
    rows = (row for table in assertion.cited_tables for row in table.rows if row.number_in("layer") == claimed.layer)
    values = (row.number_in(column) for row in rows for column in row.cells)
    return any(value is not None and printed.stands_for(value) for value in values)


def _layer_stated(assertion: Assertion, layer: int, name: str = "") -> bool:
    """Whether a cited line of a document gives a layer to anything, other than a milestone of another bound."""
    printed = Number.parse(str(layer))
    if assertion.cited is None or printed is None:
        return False
    stated = [entry.key for file in assertion.cited.jsons for entry in file.leaves.printed(printed)]
    return any(
        _IS_LAYER.match(key) and (not _bounds(key) or _bounds(key) == (_bounds(name) or _bounds(key))) for key in stated
    )


def _bounds(name: str) -> list[str]:
    return [part for part in name_parts(name) if part[0].isdigit()]
