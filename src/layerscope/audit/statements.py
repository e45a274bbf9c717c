"""What a report concludes from curves, judged by computing it anew from the rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from layerscope.audit.judges import crossing_claims, delta_claims, flag_claims, shape_claims, sum_claims, token_claims
from layerscope.audit.judges import named_values as stated_claims
from layerscope.audit.judges import sentences as prose_claims
from layerscope.audit.judges.claim_context import Assertion, is_about, subjects
from layerscope.audit.lookup.cited_lines import Reader
from layerscope.audit.parse.read_report import Statement
from layerscope.audit.parse.vocabulary import plain
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding

_Judge: TypeAlias = Callable[[Assertion], Iterator[Finding]]


def prose(assertion: Assertion) -> Iterator[Finding]:
    """Plain sentences: by what their words mean, and where they do not tell by the name of what is cited."""
    judges = (
        prose_claims.milestones,
        prose_claims.cells,
        prose_claims.tokens,
        prose_claims.copies,
        prose_claims.depths,
    )
    findings = [finding for judge in judges for finding in judge(assertion)]
    yield from findings or stated_claims.stated(assertion)


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


def judge_statements(statements: Sequence[Statement], archive: Archive, reader: Reader | None = None) -> list[Finding]:
    """Judge every conclusion of a report that can be computed anew, in the order of the report.

    SUPPORTED means that the rows say so; whether the cited lines show it is told of crossings, tokens and plain
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
            assertion = (
                subject if not statement.references else _with_cited(subject, [statements[i] for i in near], reader)
            )
            for judge in JUDGES:
                findings += judge(assertion)
    return list(dict.fromkeys(findings))


def _with_cited(assertion: Assertion, on_line: Sequence[Statement], reader: Reader) -> Assertion:
    """What is said with what it cites, and what the other statements of its line do."""
    others = [other for other in on_line if other is not assertion.statement and other.references]
    return replace(
        assertion,
        cited=reader.read(assertion.references, assertion.statement.stems),
        nearby=tuple(reader.read(other.references, other.stems) for other in others),
        reader=reader,
    )
