"""The audit of one report: every claim that can be checked against the files, in the order of its lines."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from layerscope.audit.judges.layer_flags import flags_of
from layerscope.audit.judges.table_rows import judge_tables
from layerscope.audit.lookup.cited_lines import Cited, Reader, holds_in
from layerscope.audit.lookup.early_tokens import early_tokens
from layerscope.audit.lookup.value_lookup import Verdict, is_cut_off, judge, judge_uncited, mentions
from layerscope.audit.parse.read_report import Statement, read_report
from layerscope.audit.parse.values import Pair, pairs_of, pairs_of_row
from layerscope.audit.parse.vocabulary import plain as typed
from layerscope.audit.statements import judge_statements
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding, Judgement

NOTHING = "it states no value that could be looked up in the cited lines."


@dataclass(frozen=True)
class AuditResult:
    """What an audit found."""

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
    findings = [
        f for statement, cited in read for f in _cited_values(statement, cited, on_line[statement.line], reader)
    ]
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
    return any(" | " in finding.claim or other.claim.strip() in typed(finding.claim) for other in concluded)


def _cited_values(statement: Statement, cited: Cited, on_line: Sequence[Cited], reader: Reader) -> Iterator[Finding]:
    """The findings on what a statement cites, and on the values that it copies.

    Args:
        statement: what is judged.
        cited: what it cites.
        on_line: what the statements of the same line cite, it among them.
        reader: looks up files.
    """
    for missing in cited.missing:
        yield Finding(
            statement.line, statement.text, missing.reference.text, Judgement.UNRESOLVABLE, f"{missing.reason}."
        )
    citation = "; ".join(reference.text for reference in statement.references) or None
    judged = False
    for pair, verdict in _verdicts(statement, cited, reader):
        judged = True
        if verdict.judgement is Judgement.ELSEWHERE and any(holds_in(verdict.found_at, other) for other in on_line):
            # The line cites the right place too: which citation goes with which words is not for us to say.
            verdict = replace(verdict, judgement=Judgement.UNDECIDED)
        yield _finding(statement, statement.text[pair.start : pair.end].strip(), citation, verdict)
    for finding in (*flags_of(statement, cited, citation), *early_tokens(statement, cited, citation, reader)):
        judged = True
        yield finding
    if not judged and citation is not None and not cited.missing:
        named = mentions(statement.text, cited, reader)
        if named is not None and (
            not named.judgement.is_wrong or not any(holds_in(named.found_at, o) for o in on_line)
        ):
            yield _finding(statement, statement.text, citation, named)
        else:
            yield Finding(statement.line, statement.text, citation, Judgement.UNDECIDED, NOTHING)


def _finding(statement: Statement, claim: str, citation: str | None, verdict: Verdict) -> Finding:
    return Finding(
        statement.line, claim, citation, verdict.judgement, verdict.reason, verdict.correct, verdict.found_at
    )


def _verdicts(statement: Statement, cited: Cited, reader: Reader) -> Iterator[tuple[Pair, Verdict]]:
    pairs = pairs_of(statement.text) if statement.cells is None else tuple(pairs_of_row(statement))
    if cited.jsons or cited.csvs:
        judged = [(pair, judge(pair, cited, reader, statement.text)) for pair in pairs]
        some_shown = any(verdict.judgement is Judgement.SUPPORTED for _, verdict in judged)
        for pair, verdict in judged:
            cut = verdict.judgement is Judgement.ELSEWHERE and is_cut_off(verdict, cited, others_shown=some_shown)
            yield pair, (replace(verdict, judgement=Judgement.UNDECIDED) if cut else verdict)
    elif not statement.references and len(statement.stems) == 1:
        for pair in pairs:
            uncited = judge_uncited(pair, statement.stems[0], reader)
            if uncited is not None:
                yield pair, uncited
