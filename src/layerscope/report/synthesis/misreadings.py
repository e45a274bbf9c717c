"""Misreadings: what an audit found wrong in reports that lie beside the runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from layerscope.report.cited.claims import ABSENT, Citation, Claim, Unit
from layerscope.report.cited.document import Name, Part, Section, Table, Text, Token, paragraph, row, sentence
from layerscope.report.cited.findings import Finding
from layerscope.report.synthesis.words import listed

TITLE = "Misreadings in existing reports"


def misreadings_section(findings: Mapping[str, Sequence[Finding]]) -> Section:
    """What would mislead a reader, report by report."""
    if not findings:
        return Section(TITLE, (paragraph(sentence("No reports lie beside these runs.")),))
    wrong = {name: [finding for finding in judged if finding.judgement.is_wrong] for name, judged in findings.items()}
    clean = [name for name, judged in wrong.items() if not judged]
    nothing = sentence("Nothing was found wrong in {}.", listed([Name(name) for name in clean])) if clean else None
    sections = tuple(_of_report(name, judged, findings[name]) for name, judged in wrong.items() if judged)
    return Section(TITLE, (paragraph(nothing),) if nothing else (), sections)


def _of_report(name: str, wrong: Sequence[Finding], all_: Sequence[Finding]) -> Section:
    intro = sentence(
        "Wrong, or sent to the wrong place: {} of {} claims.",
        _count(name, "wrong", wrong),
        _count(name, "judged", all_),
    )
    rows = [
        row(
            _claim(name, "line", finding.line, Unit.COUNT, Citation(name, finding.line, finding.line)),
            Token(finding.claim),
            Name(finding.judgement.value),
            _correct(name, finding),
        )
        for finding in wrong
    ]
    return Section(name, (paragraph(intro), Table(("line", "claim", "judgement", "instead"), tuple(rows))))


def _correct(report: str, finding: Finding) -> Part:
    instead = finding.correct if finding.correct is not None else finding.reason
    if finding.found_at is not None:
        return Token(instead, (_claim(report, "instead", instead, Unit.TEXT, finding.found_at),))
    return Token(instead) if instead else Text(ABSENT)


def _count(report: str, name: str, judged: Sequence[Finding]) -> Claim:
    lines = list(dict.fromkeys(finding.line for finding in judged))
    ends = [Citation(report, line, line) for line in lines[:1] + lines[-1:]]
    return replace(_claim(report, name, len(judged), Unit.COUNT, *ends), derived="count of claims")


def _claim(report: str, name: str, value: int | str, unit: Unit, *where: Citation) -> Claim:
    return Claim(subject=report, name=name, value=value, unit=unit, citations=where)
