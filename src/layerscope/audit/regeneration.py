"""Reports that layerscope wrote: regenerated from the run, and compared line by line."""

import difflib
import re
from dataclasses import dataclass

from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.report_files import body_of

SIMILAR = 0.6
"""Two lines at least this similar are one line that was changed; below, one was taken out and another put in."""
REACH = 20
"""Lines from where a changed line was due, within which it is looked for."""
_WORD = re.compile(r"\s+|[^\s\w]|\w+")
_CITED = re.compile(r"`[^`]*:\d[^`]*`\]?\.?\s*$")


@dataclass(frozen=True)
class ComparedLines:
    """The outcome of comparing a report with the same report regenerated."""

    findings: tuple[Finding, ...]
    settled: frozenset[int]
    """Lines of the report that need no other judge: they stand in both, or are changed ones."""


def is_generated(text: str) -> bool:
    """Whether a text begins as reports of layerscope do, changed or not."""
    return body_of(text) is not None or text.startswith("<!-- written by layerscope ")


def compare_with_regenerated(text: str, regenerated: str) -> ComparedLines:
    """Judge a report by the one that the run gives today.

    Lines that were taken out are no claims; lines that were put in are left to the audit of any report.

    Args:
        text: the report, with its first line by which it is known.
        regenerated: the same report written from the run, without that line.
    """
    old, new = regenerated.split("\n"), text.split("\n")
    offset = 1 if is_generated(text) else 0
    new = new[offset:]
    findings, settled = list[Finding](), set(range(1, offset + 1))
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            settled.update(range(c + 1 + offset, d + 1 + offset))
            findings += [_supported(i + 1 + offset, new[i]) for i in range(c, d) if _CITED.search(new[i].rstrip(" |"))]
        elif kind == "replace":
            for i, j in _pairs(old[a:b], new[c:d]):
                number = c + j + 1 + offset
                settled.add(number)
                findings.append(_changed(number, old[a + i], new[c + j]))
    return ComparedLines(tuple(findings), frozenset(settled))


def _pairs(old: list[str], new: list[str]) -> list[tuple[int, int]]:
    """Which line became which, in order."""
    pairs, start = list[tuple[int, int]](), 0
    for j, line in enumerate(new):
        best, at = 0.0, -1
        for i in range(max(start, j - REACH), min(len(old), max(start, j) + REACH)):
            matcher = difflib.SequenceMatcher(None, old[i], line, autojunk=False)
            if matcher.real_quick_ratio() > max(best, SIMILAR) and matcher.quick_ratio() > max(best, SIMILAR):
                ratio = matcher.ratio()
                best, at = (ratio, i) if ratio > best else (best, at)
        if line.strip() and best >= SIMILAR:
            pairs.append((at, j))
            start = at + 1
    return pairs


def _supported(line: int, text: str) -> Finding:
    return Finding(line, text.strip(), None, Judgement.SUPPORTED, "regenerated from the run, this line is the same")


def _changed(line: int, expected: str, text: str) -> Finding:
    """A changed line; what is wrong are the words that differ."""
    old, new = _WORD.findall(expected), _WORD.findall(text)
    changes = [
        ("".join(old[a:b]).strip() or "nothing", "".join(new[c:d]).strip() or "nothing")
        for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if kind != "equal"
    ]
    shown = "; ".join(f"{written!r} where the run gives {right!r}" for right, written in changes[:5])
    reason = f"regenerated from the run, this line differs: {shown}"
    return Finding(line, text.strip(), None, Judgement.CONTRADICTED, reason, expected.strip())
