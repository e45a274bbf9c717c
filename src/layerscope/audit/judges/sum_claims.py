"""Sentences with sums in them: depths as shares, entropy drops, differences of layers."""

import re
from collections.abc import Iterator
from dataclasses import replace

from layerscope.audit.judges.claim_context import Assertion
from layerscope.audit.parse.vocabulary import LAYER_ALONE, NUMBER_ALONE
from layerscope.report.cited.findings import Finding
from layerscope.report.numbers import NUMBER, Number

_IS = r"\s*(?=[=~])=*\s*"
_SHARE = re.compile(rf"(?<![\d./])(\d+)\s*/\s*(\d+)\s*(?==|~|->|is)(?:=|->|is)*\s*(~?\s*{NUMBER}\s?%)")
_DEPTH = re.compile(rf"{LAYER_ALONE},?\s*\(?(?:a |at )?depth fraction(?: of)?\s+{NUMBER_ALONE}", re.IGNORECASE)
_DROP = re.compile(
    rf"(?:\u0394|delta )H\w*\s*(?:\(bits\))?{_IS}(?P<drop>~?\s*{NUMBER})\s*(?:bits)?[^.;]{{0,12}}?"
    rf"\(?\s*entropy\s?@?\s?\(?L_copy\w*\)?{_IS}(?P<copy>~?\s*{NUMBER})(?: bits)?\s*(?:vs\.?|-|,|and|to|->)\s*"
    rf"entropy\s?@?\s?\(?L_sem\w*\)?{_IS}(?P<semantic>~?\s*{NUMBER})",
    re.IGNORECASE,
)
_DIFFERENCE = re.compile(
    r"(?:\u0394|delta)\s?\w*\s*[=~]*\s*(?P<change>[+-]?\d+)\s*"
    r"\((?:\w+ )?(?:L ?)?(?P<a>\d+) vs\.? (?:\w+ )?(?:L ?)?(?P<b>\d+)\)",
    re.IGNORECASE,
)


def depths(assertion: Assertion) -> Iterator[Finding]:
    """`40/80 = 50%`: the sum itself, and whether the model has so many layers."""
    n_layers = assertion.evidence.record.model.n_layers
    for match in _SHARE.finditer(assertion.text):
        layer, depth, printed = int(match[1]), int(match[2]), Number.parse(match[3])
        if depth == 0 or printed is None:
            continue
        share = 100 * layer / depth
        if not printed.stands_for(layer / depth):
            yield assertion.contradicted(match.group(), f"{layer} of {depth} is {share:.1f} %.", f"{share:.1f} %")
        elif depth == n_layers and assertion.alone:
            yield assertion.supported(match.group(), f"{layer} of {n_layers} layers is {share:.1f} %.")


def depth_fractions(assertion: Assertion) -> Iterator[Finding]:
    """`layer 31 (depth fraction 0.861)`: the layer as a share of the depth."""
    n_layers = assertion.evidence.record.model.n_layers
    for match in _DEPTH.finditer(assertion.text) if assertion.alone else ():
        layer, printed = int(match["layer"]), Number.parse(match["number"])
        if printed is None or printed.is_whole or n_layers == 0 or layer > n_layers:
            continue
        share = layer / n_layers
        reason = f"{layer} of {n_layers} layers is {share:.3f}."
        if printed.stands_for(share):
            yield assertion.supported(match.group(), reason)
        else:
            yield assertion.contradicted(match.group(), reason, f"{share:.3f}")


def drops(assertion: Assertion) -> Iterator[Finding]:
    """`entropy drop = 0.50 bits (entropy@L_copy = 0.815 vs entropy@L_sem = 0.312)`."""
    for match in _DROP.finditer(assertion.text):
        drop, copy, semantic = (Number.parse(match[name]) for name in ("drop", "copy", "semantic"))
        if drop is None or copy is None or semantic is None:
            continue
        difference = copy.value - semantic.value
        rows = [
            (layer, value) for lens in assertion.available for layer, value in assertion.points("entropy_bits", lens)
        ]
        known = all(any(number.stands_for(value) for _, value in rows) for number in (copy, semantic))
        # Each of the three may be half a unit of its last digit from what was measured.
        if not replace(drop, step=drop.step + copy.step + semantic.step).stands_for(difference):
            yield assertion.contradicted(
                match.group(),
                f"the difference of the two entropies is {difference:.4g} bits.",
                f"{difference:.4g} bits",
            )
        elif known:
            at = next(layer for layer, value in rows if semantic.stands_for(value))
            yield assertion.supported(
                match.group(), "both entropies are there, and so is the sum.", assertion.place(at)
            )


def differences(assertion: Assertion) -> Iterator[Finding]:
    """`+3 (39 vs 36)`: the amount alone; its sign depends on what is compared with what."""
    for match in _DIFFERENCE.finditer(assertion.text):
        first, second = int(match["a"]), int(match["b"])
        if abs(int(match["change"])) != abs(first - second):
            yield assertion.contradicted(
                match.group(), f"{first} and {second} are {abs(first - second)} apart.", f"{first - second:+d}"
            )
