"""An audit for people and programs: lines for a terminal, JSON, and the report with remarks in it."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.audit.audit import AuditResult
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.markdown import plain

CLAIM_SHOWN = 160
_STYLE = {
    Judgement.SUPPORTED: "green",
    Judgement.ELSEWHERE: "yellow",
    Judgement.CONTRADICTED: "red",
    Judgement.UNRESOLVABLE: "magenta",
    Judgement.UNDECIDED: "dim",
}
NEEDS_MENDING = (Judgement.CONTRADICTED, Judgement.ELSEWHERE, Judgement.UNRESOLVABLE)


def needs_mending(result: AuditResult) -> list[Finding]:
    """Findings by which a reader would be misled, sent to the wrong place, or to none."""
    return [finding for finding in result.findings if finding.judgement in NEEDS_MENDING]


def audit_lines(name: str, result: AuditResult, *, everything: bool = False) -> Iterator[RenderableType]:
    """What is to be mended, line by line, and the counts.

    Args:
        name: the report's.
        result: the audit.
        everything: list what is supported or undecided too.
    """
    shown = result.findings if everything else needs_mending(result)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="bold")
    table.add_column(overflow="fold")
    for finding in shown:
        table.add_row(str(finding.line), _finding(finding))
    if shown:
        yield table
        yield ""
    counts = result.counts
    said = ", ".join(f"{counts[judgement]} {judgement}" for judgement in Judgement if counts[judgement])
    yield Text(f"audit · {name} · {said or 'no claim that could be checked'}")


def _finding(finding: Finding) -> Text:
    text = Text()
    text.append(finding.judgement, style=_STYLE[finding.judgement])
    text.append("  " + _cut(finding.claim))
    text.append("\n" + finding.reason, style="dim")
    if finding.correct is not None and finding.correct not in finding.reason:
        text.append("\nright: " + _cut(finding.correct))
    return text


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= CLAIM_SHOWN else flat[: CLAIM_SHOWN - 3] + "..."


def audit_json(name: str, result: AuditResult) -> str:
    """Everything that was found, for other programs."""
    found = {
        "report": name,
        "counts": {str(judgement): count for judgement, count in result.counts.items()},
        "findings": [
            {**asdict(finding), "judgement": str(finding.judgement), "found_at": _place(finding)}
            for finding in result.findings
        ],
    }
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _place(finding: Finding) -> str | None:
    return None if finding.found_at is None else str(finding.found_at)


def annotated(text: str, result: AuditResult) -> str:
    """The report with a remark after each paragraph, list or table that has something to mend."""
    by_line: dict[int, list[Finding]] = {}
    for finding in needs_mending(result):
        by_line.setdefault(finding.line, []).append(finding)
    lines, waiting = list[str](), list[Finding]()
    for number, line in enumerate(text.split("\n"), start=1):
        if waiting and not line.strip():
            lines += ["", *map(_remark, waiting)]
            waiting = []
        lines.append(line)
        waiting += by_line.get(number, [])
    if waiting:
        lines += ["", *map(_remark, waiting), ""]
    return "\n".join(lines)


def _remark(finding: Finding) -> str:
    right = "" if finding.correct is None else f" Right: {plain(_cut(finding.correct))}."
    return (
        f"> **{finding.judgement}**, line {finding.line}: {plain(_cut(finding.claim))}. {plain(finding.reason)}{right}"
    )
