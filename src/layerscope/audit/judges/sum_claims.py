"""Sentences with sums in them: depths as percentages, entropy drops, differences of layers."""

import re
from collections.abc import Iterator

from layerscope.audit.judges.claim_context import ModelStatement
from layerscope.audit.parse.vocabulary import agrees, number, printed_step
from layerscope.report.cited.findings import Finding, Judgement

_SHARE = re.compile(r"(?<![\d./])(\d+)\s*/\s*(\d+)\s*(?:=|~|->|is)+\s*~?(\d+(?:\.\d+)?)\s*%")
_DROP = re.compile(
    r"(?:\u0394|delta )H\w*\s*(?:\(bits\))?\s*[=~]+\s*(?P<drop>[+-]?\d+(?:\.\d+)?)\s*(?:bits)?[^.;]{0,12}?"
    r"\(?\s*entropy\s?@?\s?\(?L_copy\w*\)?\s*[=~]+\s*(?P<copy>\d+(?:\.\d+)?)(?: bits)?\s*(?:vs\.?|-|,|and|to|->)\s*"
    r"entropy\s?@?\s?\(?L_sem\w*\)?\s*[=~]+\s*(?P<semantic>\d+(?:\.\d+)?)",
    re.IGNORECASE,
)
_DIFFERENCE = re.compile(
    r"(?:\u0394|delta)\s?\w*\s*[=~]*\s*(?P<change>[+-]?\d+)\s*"
    r"\((?:\w+ )?(?:L ?)?(?P<a>\d+) vs\.? (?:\w+ )?(?:L ?)?(?P<b>\d+)\)",
    re.IGNORECASE,
)


def depths(said: ModelStatement) -> Iterator[Finding]:
    """`40/80 = 50%`: the sum itself, and whether the model has so many layers."""
    n_layers = said.evidence.record.model.n_layers
    for found in _SHARE.finditer(said.text):
        layer, depth, printed = int(found[1]), int(found[2]), found[3]
        if depth == 0:
            continue
        share = 100 * layer / depth
        if abs(share - number(printed)) > printed_step(printed) * (1 + 1e-9):
            yield said.finding(
                found.group(),
                Judgement.CONTRADICTED,
                f"{layer} of {depth} is {share:.1f} %.",
                correct=f"{share:.1f} %",
            )
        elif depth == n_layers and said.alone:
            yield said.finding(found.group(), Judgement.SUPPORTED, f"{layer} of {n_layers} layers is {share:.1f} %.")


def drops(said: ModelStatement) -> Iterator[Finding]:
    """`entropy drop = 0.50 bits (entropy@L_copy = 0.815 vs entropy@L_sem = 0.312)`."""
    for found in _DROP.finditer(said.text):
        difference = number(found["copy"]) - number(found["semantic"])
        slack = printed_step(found["copy"]) + printed_step(found["semantic"]) + printed_step(found["drop"])
        rows = [(layer, value) for lens in said.available for layer, value in said.points("entropy_bits", lens)]
        known = all(any(agrees(value, found[name]) for _, value in rows) for name in ("copy", "semantic"))
        if abs(difference - number(found["drop"])) > slack:
            yield said.finding(
                found.group(),
                Judgement.CONTRADICTED,
                f"the difference of the two entropies is {difference:.4g} bits.",
                correct=f"{difference:.4g} bits",
            )
        elif known:
            at = next(layer for layer, value in rows if agrees(value, found["semantic"]))
            yield said.finding(
                found.group(), Judgement.SUPPORTED, "both entropies are there, and so is the sum.",
                found_at=said.place(at),
            )  # fmt: skip


def differences(said: ModelStatement) -> Iterator[Finding]:
    """`+3 (39 vs 36)`: the amount alone; its sign depends on what is compared with what."""
    for found in _DIFFERENCE.finditer(said.text):
        first, second = int(found["a"]), int(found["b"])
        if abs(int(found["change"])) != abs(first - second):
            yield said.finding(
                found.group(),
                Judgement.CONTRADICTED,
                f"{first} and {second} are {abs(first - second)} apart.",
                correct=f"{first - second:+d}",
            )
