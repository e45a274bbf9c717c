"""The audit of one report: every claim that can be checked against the files, in the order of its lines."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from layerscope.audit.judges import (
    crossing_claims,
    delta_claims,
    flag_claims,
    named_values,
    sentences,
    shape_claims,
    sum_claims,
    token_claims,
)
from layerscope.audit.judges.cited_claims import NOTHING, cited_claims
from layerscope.audit.judges.claim_context import Assertion, is_about, subjects
from layerscope.audit.judges.table_rows import judge_tables
from layerscope.audit.lookup.cited_lines import Cited, Reader
from layerscope.audit.parse.read_report import Statement, read_report
from layerscope.audit.parse.vocabulary import plain
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding, Judgement

_Judge: TypeAlias = Callable[[Assertion], Iterator[Finding]]


def prose(assertion: Assertion) -> Iterator[Finding]:
    """Plain sentences: by what their words mean, and where they do not tell by the name of what is cited."""
    judges = (sentences.milestones, sentences.cells, sentences.tokens, sentences.copies, sum_claims.depth_fractions)
    findings = [finding for judge in judges for finding in judge(assertion)]
    yield from findings or named_values.stated(assertion)


JUDGES: tuple[_Judge, ...] = (
    shape_claims.moves,
    shape_claims.peaks,
    shape_claims.stays,
    shape_claims.early_alignment,
    crossing_claims.crossings,
    crossing_claims.never,
    token_claims.leads,
    token_claims.lasts,
    token_claims.includes,
    token_claims.dominates,
    flag_claims.copying,
    flag_claims.spikes,
    flag_claims.health,
    flag_claims.calibration,
    sum_claims.depths,
    sum_claims.drops,
    sum_claims.differences,
    delta_claims.gains,
    delta_claims.shifts,
    delta_claims.earliness,
    delta_claims.levels,
    prose,
)
"""Each knows one kind of sentence, and keeps silent where it does not meet it or the sentence hedges."""


NEIGHBOURS = 25
"""Statements before and after one on the same line that may say how its numbers are meant."""


@dataclass(frozen=True)
class AuditResult:
    """The findings of an audit."""

    findings: tuple[Finding, ...]
    """In the order of the report's lines."""

    @cached_property
    def counts(self) -> Mapping[Judgement, int]:
        """How many findings there are of each judgement."""
        counted = Counter(finding.judgement for finding in self.findings)
        return {judgement: counted[judgement] for judgement in Judgement}

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """Claims by which a reader would be misled, or sent to the wrong place."""
        return tuple(finding for finding in self.findings if finding.judgement.is_wrong)


def audit(text: str | bytes, archive: Archive) -> AuditResult:
    """Audit a report.

    Args:
        text: the report in Markdown; bytes that are no UTF-8 are read as far as they can be.
        archive: the files that it cites; a folder such as `run-latest` in a citation means this one.

    Raises:
        RunError: a model's files are there but cannot be read as a run.
    """
    statements = read_report(text, archive.stems)
    reader = Reader(archive.sources)
    read = [(statement, reader.read(statement.references, statement.stems)) for statement in statements]
    on_line: dict[int, list[Cited]] = {}
    for statement, cited in read:
        on_line.setdefault(statement.line, []).append(cited)
    findings = [f for statement, cited in read for f in cited_claims(statement, cited, on_line[statement.line], reader)]
    concluded = [*judge_statements(statements, archive, reader), *judge_tables(statements, archive)]
    by_line: dict[int, list[Finding]] = {}
    for finding in concluded:
        by_line.setdefault(finding.line, []).append(finding)
    findings = [finding for finding in findings if not _is_empty(finding, by_line.get(finding.line, ()))] + concluded
    order = {id(finding): at for at, finding in enumerate(findings)}
    unique = {(f.line, f.claim, f.citation, f.judgement): f for f in reversed(findings)}
    return AuditResult(tuple(sorted(unique.values(), key=lambda f: (f.line, order[id(f)]))))


def _is_empty(finding: Finding, concluded: Sequence[Finding]) -> bool:
    """Whether a finding says only that there was nothing to look up, where another judges the same words."""
    if finding.reason != NOTHING:
        return False
    return any(" | " in finding.claim or other.claim.strip() in plain(finding.claim) for other in concluded)


def judge_statements(statements: Sequence[Statement], archive: Archive, reader: Reader | None = None) -> list[Finding]:
    """Judge every conclusion of a report that can be computed anew, in the order of the report.

    SUPPORTED means that the rows say so; whether the cited lines show it is judged for crossings, tokens and plain
    sentences, for which ELSEWHERE is given where the cited lines plainly are others. A sentence that hedges, that may
    mean several models, or whose curve goes both ways is not judged, or is UNDECIDED.

    Args:
        statements: of one report; rows of tables are left to `judge_tables`.
        archive: the runs it is about.
        reader: looks up what is cited; one is made where none is given.

    Raises:
        RunError: a model's files are there but cannot be read as a run.
    """
    reader = reader or Reader(archive.sources)
    texts = [plain(statement.text) for statement in statements]
    report = "\n".join(texts)
    several = len({stem for statement in statements for stem in statement.stems}) > 1
    findings: list[Finding] = []
    for at, statement in enumerate(statements) if is_about(statements, archive) else ():
        if statement.cells is not None:
            continue
        first, last = max(0, at - NEIGHBOURS), at + NEIGHBOURS + 1
        near = [i for i in range(first, min(last, len(statements))) if statements[i].line == statement.line]
        same_line = "\n".join(texts[i] for i in near)
        for subject in subjects(statement, archive, same_line, report, several=several):
            if statement.references:
                subject = _with_cited(subject, [statements[i] for i in near], reader)
            for judge in JUDGES:
                findings += judge(subject)
    return list(dict.fromkeys(findings))


def _with_cited(assertion: Assertion, on_line: Sequence[Statement], reader: Reader) -> Assertion:
    """An assertion with what it cites, and what the other statements of its line do."""
    others = [other for other in on_line if other is not assertion.statement and other.references]
    return replace(
        assertion,
        cited=reader.read(assertion.references, assertion.statement.stems),
        nearby=tuple(reader.read(other.references, other.stems) for other in others),
        reader=reader,
    )
