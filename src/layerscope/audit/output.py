"""An audit for other programs as JSON, and for people as remarks in the report."""

import json
from dataclasses import asdict

from layerscope.audit.audit import AuditResult
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.markdown import plain

CLAIM_SHOWN = 160
NEEDS_MENDING = (Judgement.CONTRADICTED, Judgement.ELSEWHERE, Judgement.UNRESOLVABLE)


def needs_mending(result: AuditResult) -> list[Finding]:
    """Findings by which a reader would be misled, sent to the wrong place, or to none."""
    return [finding for finding in result.findings if finding.judgement in NEEDS_MENDING]


def shortened(text: str) -> str:
    """A claim in one line, cut where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= CLAIM_SHOWN else flat[: CLAIM_SHOWN - 3] + "..."


def audit_json(name: str, result: AuditResult) -> str:
    """All findings, for other programs."""
    document = {
        "report": name,
        "counts": {str(judgement): count for judgement, count in result.counts.items()},
        "findings": [
            {**asdict(finding), "judgement": str(finding.judgement), "found_at": _place(finding)}
            for finding in result.findings
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
    right = "" if finding.correct is None else f" Right: {plain(shortened(finding.correct))}."
    claim = plain(shortened(finding.claim))
    return f"> **{finding.judgement}**, line {finding.line}: {claim}. {plain(finding.reason)}{right}"
