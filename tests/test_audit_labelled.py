"""The audit against claims of published reports that were read by hand."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

from layerscope.audit.audit import AuditResult, audit
from layerscope.audit.parse.vocabulary import plain_marks
from layerscope.report.cited.findings import Finding, Judgement
from published_archives import archive_of

RUNS = {
    "evaluation-Qwen2.5-72B.20250921.md": "run-20250921-1713",
    "evaluation-Qwen3-14B.20251004.md": "run-20251004-1804",
    "evaluation-Qwen3-8B.20251004.md": "run-20251004-1804",
    "evaluation-cross-models.20250928.md": "run-20250928-1722",
    "evaluation-Qwen3-8B.early.md": "run-20251004-1804",
}
LEAST_PRECISION, LEAST_RECALL = 0.97, 0.75
_WORDS = re.compile(r"[a-z_][a-z_0-9]{2,}|\d+(?:\.\d+)?")
_COMMON = {"and", "the", "with", "layer", "layers", "for", "from", "are", "top"}


@dataclass(frozen=True)
class Labelled:
    id: str
    report: str
    line: int
    citation: str
    claim: str
    is_true: bool
    category: str
    evidence: str
    reasoning: str


@lru_cache
def audited(shared: Path, report: str) -> AuditResult:
    archive = archive_of(shared / "reference" / RUNS[report])
    return audit((shared / "reports" / report).read_bytes(), archive)


def labelled(shared: Path) -> list[Labelled]:
    with (shared / "reports" / "claims.csv").open(encoding="utf-8", newline="") as file:
        return [
            Labelled(
                row["id"],
                row["report"],
                int(row["line"]),
                row["citation"],
                row["claim"],
                row["label"] == "true",
                row["category"],
                row["evidence"],
                row["reasoning"],
            )
            for row in csv.DictReader(file)
        ]


def words(text: str) -> set[str]:
    return set(_WORDS.findall(plain_marks(text).lower())) - _COMMON


def concerns(finding: Finding, claim: Labelled) -> bool:
    """Same line of the report, and words of the one in the other; citations must not name different places."""
    if finding.line != claim.line:
        return False
    cited, own = plain_marks(claim.citation), plain_marks(finding.citation or "")
    if (
        claim.citation != "none"
        and own
        and not set(re.findall(r"\d+", cited.split(":", 1)[-1])) & set(re.findall(r"\d+", own))
    ):
        return False
    said, asked = words(finding.claim), words(claim.claim)
    return bool(said & asked) and len(said & asked) >= min(len(said), len(asked), 2)


def of(claim: Labelled, findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if concerns(finding, claim)]


def listed(claims: Sequence[Labelled]) -> str:
    return "\n".join(f"{c.id} {c.report}:{c.line} {c.category}: {c.claim!r} ({c.reasoning})" for c in claims)


def test_no_true_claim_is_called_wrong_and_most_false_ones_are(shared: Path) -> None:
    claims = labelled(shared)
    flagged = {c.id: [f for f in of(c, audited(shared, c.report).findings) if f.judgement.is_wrong] for c in claims}
    false_alarms = [c for c in claims if c.is_true and flagged[c.id]]
    hits = [c for c in claims if not c.is_true and flagged[c.id]]
    missed = [c for c in claims if not c.is_true and not flagged[c.id]]
    precision = len(hits) / (len(hits) + len(false_alarms))
    recall = len(hits) / (len(hits) + len(missed))
    print(f"precision {precision:.3f}, recall {recall:.3f}; missed:\n{listed(missed)}")  # noqa: T201 - for pytest -s
    assert precision >= LEAST_PRECISION, listed(false_alarms)
    assert recall >= LEAST_RECALL, listed(missed)


def test_true_values_are_supported_where_they_are_met_at_all(shared: Path) -> None:
    claims = [c for c in labelled(shared) if c.is_true]
    supported = [
        c for c in claims if any(f.judgement is Judgement.SUPPORTED for f in of(c, audited(shared, c.report).findings))
    ]
    missed = [c for c in claims if c not in supported]
    assert len(supported) >= 0.8 * len(claims), listed(missed)


def test_wrong_lines_are_told_with_the_right_ones(shared: Path) -> None:
    """Where the reading by hand names the line of the JSON that holds the value, the audit names it too."""
    claims = [c for c in labelled(shared) if c.category == "wrong_line" and re.match(r"json \d", c.evidence)]
    told = []
    for claim in claims:
        first, *last = (int(n) for n in re.findall(r"\d+", claim.evidence.split("(")[0])[:2])
        found = [f for f in of(claim, audited(shared, claim.report).findings) if f.judgement is Judgement.ELSEWHERE]
        if any(f.found_at is not None and first <= f.found_at.line <= max([first, *last]) for f in found):
            told.append(claim)
    assert len(told) >= 0.8 * len(claims), listed([c for c in claims if c not in told])


@pytest.mark.parametrize("report", RUNS)
def test_findings_come_in_the_order_of_lines_and_say_why(shared: Path, report: str) -> None:
    result = audited(shared, report)
    lines = [finding.line for finding in result.findings]
    assert lines == sorted(lines) and all(finding.reason.endswith(".") for finding in result.findings)
    assert sum(result.counts.values()) == len(result.findings)
    assert all(finding.judgement.is_wrong for finding in result.wrong)


def test_a_report_on_files_that_are_nowhere_is_unresolvable_and_nothing_else(shared: Path) -> None:
    result = audited(shared, "evaluation-Qwen3-8B.early.md")
    cited = {f.judgement for f in result.findings if f.citation is not None}
    assert cited == {Judgement.UNRESOLVABLE} and result.wrong == ()
