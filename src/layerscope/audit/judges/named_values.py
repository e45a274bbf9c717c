"""A number given to a member of the document in the words of the member's name: `the lens artifact score is 0.554`."""

import re
from collections.abc import Iterator, Sequence

from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.lookup.cited_lines import Cited, entry_citation, is_number
from layerscope.audit.lookup.key_matching import name_parts
from layerscope.audit.parse.vocabulary import HEDGE, NEGATION
from layerscope.report.cited.claims import value_text
from layerscope.report.cited.findings import Finding
from layerscope.report.cited.sources import Entry, JsonFile
from layerscope.report.numbers import ENDS, NUMBER, Number

_MUTE = frozenset(
    ["l", "n", "num", "at", "of", "to", "in", "is", "for", "the", "bits", "ge", "le", "gt", "ok", "id", "est"]
)
"""Parts of names that sentences leave out, or say in other words."""
_MEANT = {
    "frac": ("fraction", "share"),
    "pct": ("share", "percent", "fraction"),
    "kl": ("kl", "divergence"),
    "cos": ("cosine",),
    "sem": ("semantic", "readable"),
    "semantic": ("semantic", "readable", "depth"),
    "temp": ("temperature",),
    "thresh": ("threshold",),
    "max": ("max", "largest", "highest"),
    "min": ("min", "smallest", "lowest"),
    "first": ("first", "earliest"),
    "pos": ("positive", "position", "above"),
    "vocab": ("vocabulary",),
    "abs": ("absolute",),
    "delta": ("delta", "difference", "change"),
    "nf": ("filler",),
    "orig": ("original",),
    "d": ("width", "size", "dimension", "residual", "vocabulary"),
    "model": ("model", "stream"),
    "vs": ("vs", "against", "versus"),
    "p": ("probability",),
    "conf": ("confirmed",),
}
"""How sentences say the parts of names that are cut short."""
_NUMBER = re.compile(
    rf"(?:(?=~)|(?<![\w.@-]))(?P<layer>(?:layers?\s*=?\s*|L\s?=?\s?))?(?P<number>(?:~\s?)?{NUMBER}){ENDS}", re.I
)
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"")
_UNLIKE = re.compile(r"\u0394|\b(?:less|more|than|except|between|or better|plus|minus)\b", re.IGNORECASE)
_LAYER_NAME = re.compile(r"first_|L_(?!.*frac)|le_|ge_|gap_ge_|earliest_")
FEWEST_DISTINCTIVE = 2
"""Parts that a name must have to be looked for beyond the cited lines, unless the file has it once."""
_DIGITS = 3
"""Digits that a number must have for the same, where it is no layer."""


def stated(assertion: Assertion) -> Iterator[Finding]:
    """Judge a sentence with one number, by the member that the cited line holds and the sentence names."""
    cited, text = assertion.cited, _QUOTED.sub(" ", assertion.text)
    if cited is None or not cited.jsons or not cited.is_complete or not assertion.alone:
        return
    if HEDGE.search(text) or NEGATION.search(text) or _UNLIKE.search(text):
        return
    sentence = _Sentence(text)
    named = {entry.pointer: (file, entry) for file, entry in _cited_numbers(cited) if sentence.names(entry)}
    if len(named) > 1:
        return
    if named:
        ((file, entry),) = named.values()
        yield from _compare_with(assertion, sentence, file, entry)
    else:
        yield from _elsewhere(assertion, sentence, cited)


def _compare_with(assertion: Assertion, sentence: "_Sentence", file: JsonFile, entry: Entry) -> Iterator[Finding]:
    printed, value = sentence.number_for(entry), entry.value
    if printed is None or not is_number(value) or assertion.cited is None:
        return
    at = entry_citation(file, entry)
    place = f"{entry.pointer.removeprefix('/')} is {value} at {at}"
    if printed.stands_for(value):
        yield assertion.supported(assertion.text, f"{place}.", at)
        return
    if _is_shown(printed, assertion.cited) or (printed.is_whole and not isinstance(value, int)):
        return
    if printed.may_mean(value) or printed.stands_for(100 * value):
        return
    others = _places(assertion, sentence, file, printed)
    if others:
        yield from _moved(assertion, file, others)
        return
    yield assertion.contradicted(assertion.text, f"{place}.", value_text(value), at)


def _elsewhere(assertion: Assertion, sentence: "_Sentence", cited: Cited) -> Iterator[Finding]:
    """The cited lines hold no member that the sentence names; another line of the file does, with this number."""
    if any(first < last for part in cited.parts for first, last in part.reference.lines):
        return  # a range may only be cut short
    for cited_file in cited.jsons:
        for printed in (sentence.layer, sentence.amount):
            if printed is None or _is_shown(printed, cited):
                continue
            of_others = assertion.is_elsewhere(0, len(assertion.text)) and "control" not in assertion.text
            if printed is sentence.layer and of_others:
                continue
            others = _places(assertion, sentence, cited_file.file, printed)
            if others:
                yield from _moved(assertion, cited_file.file, others)
                return


def _moved(assertion: Assertion, file: JsonFile, places: Sequence[Entry]) -> Iterator[Finding]:
    lines = [line for reference in assertion.references for span in reference.lines for line in span]
    entry = min(places, key=lambda place: min((abs(place.line - line) for line in lines), default=0))
    at = entry_citation(file, entry)
    if assertion.is_cited_on_line(at):
        return
    reason = (
        f"{entry.pointer.removeprefix('/')} is {entry.value} at {at}; {assertion.statement.citation} does not show it."
    )
    yield assertion.elsewhere(assertion.text, reason, at)


def _places(assertion: Assertion, sentence: "_Sentence", file: JsonFile, printed: Number) -> list[Entry]:
    """Members that the sentence names surely, and that have a number."""
    if assertion.reader is None:
        return []
    held = [entry for entry in assertion.reader.leaves(file).printed(printed) if sentence.names(entry)]
    keys = assertion.reader.by_key(file)
    distinctive = [
        e for e in held if len(_distinctive(e)) >= FEWEST_DISTINCTIVE or len(keys.get(e.key.lower(), ())) == 1
    ]
    return [entry for entry in distinctive if _is_layer(entry) == (printed is sentence.layer)]


def _cited_numbers(cited: Cited) -> Iterator[tuple[JsonFile, Entry]]:
    """Members that stand on the cited lines themselves, and no others of their blocks."""
    for file in cited.jsons:
        for first, last in file.reference.lines:
            for entry in file.file.within(first, last) if first == last else ():
                if is_number(entry.value):
                    yield file.file, entry


def _is_shown(printed: Number, cited: Cited) -> bool:
    """Whether anything that is cited holds a number."""
    in_rows = any(
        (value := row.number_in(column)) is not None and printed.stands_for(value)
        for table in cited.csvs
        for row in table.rows
        for column in row.cells
    )
    return in_rows or any(file.leaves.printed(printed) for file in cited.jsons)


def _distinctive(entry: Entry) -> list[str]:
    return [part for part in name_parts(entry.key) if part not in _MUTE]


def _is_layer(entry: Entry) -> bool:
    return isinstance(entry.value, int) and _LAYER_NAME.match(entry.key) is not None


class _Sentence:
    """The words and numbers of a sentence."""

    def __init__(self, text: str) -> None:
        self._words = re.findall(r"[a-z]+", text.lower())
        self._numbers = list(_NUMBER.finditer(text))
        self.layer = self._only(layers=True, but=())
        self.amount = self._only(layers=False, but=())

    def _only(self, *, layers: bool, but: Sequence[str]) -> Number | None:
        """The one number of the sentence that is a layer, or is none; None where there are several."""
        texts = {match["number"] for match in self._numbers if (match["layer"] is not None) == layers} - set(but)
        number = Number.parse(texts.pop()) if len(texts) == 1 else None
        return number if number is None or layers or number.digits >= _DIGITS or but else None

    def names(self, entry: Entry) -> bool:
        """Whether it says every distinctive part of a member's name."""
        parts = _distinctive(entry)
        return any(part[0].isalpha() for part in parts) and all(map(self._says, parts))

    def _says(self, part: str) -> bool:
        if part[0].isdigit():
            return any(match["number"] == part for match in self._numbers)
        forms = _MEANT.get(part, (part,))
        return any(word == form or (len(form) > 2 and word.startswith(form)) for word in self._words for form in forms)

    def number_for(self, entry: Entry) -> Number | None:
        """The number that it gives a member: for a layer the layer, else a number that is not part of the name."""
        but = [part for part in name_parts(entry.key) if part[0].isdigit()]
        return self.layer if _is_layer(entry) else self._only(layers=False, but=but or ("",))
