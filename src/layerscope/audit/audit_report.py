"""An audit of any report against any runs: one that layerscope wrote is regenerated first."""

from collections.abc import Sequence
from pathlib import Path

from layerscope.audit.audit import AuditResult, audit
from layerscope.audit.regeneration import compare_with_regenerated, is_generated
from layerscope.errors import RunError
from layerscope.report.cited.archive import Archive
from layerscope.report.cited.findings import Finding, Judgement
from layerscope.report.cited.markdown import markdown, plain
from layerscope.report.evaluation import evaluation
from layerscope.report.synthesis import synthesis

LARGEST_REPORT = 64 << 20
"""Bytes of a report that is read."""
_BEST_FIRST = (
    Judgement.SUPPORTED,
    Judgement.ELSEWHERE,
    Judgement.CONTRADICTED,
    Judgement.UNDECIDED,
    Judgement.UNRESOLVABLE,
)
"""Of judgements of one claim by several runs' files: that of the files which know most of it."""


def read_report_file(path: Path) -> bytes:
    """A report's bytes.

    Raises:
        RunError: there is no such file, it is too large, or it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_REPORT:
            raise RunError(f"{path}: {size} bytes, and a report has at most {LARGEST_REPORT}; give a Markdown file.")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); give a report in Markdown.") from error


def audit_report(report: bytes, archives: Sequence[Archive]) -> AuditResult:
    """Judge every claim of a report that can be checked.

    Args:
        report: Markdown; bytes that are no UTF-8 are read as far as they can be.
        archives: the runs that it is about.

    Raises:
        RunError: no run is given, or one cannot be read.
    """
    if not archives:
        raise RunError("An audit needs the run that the report is about; give it with --run.")
    text = report.decode("utf-8", errors="replace")
    regenerated = regenerate(text, archives) if is_generated(text) else None
    if regenerated is None:
        return _combined([audit(text, archive) for archive in archives])
    comparison = compare_with_regenerated(text, regenerated)
    if all(line in comparison.settled for line in range(1, text.count("\n") + 2)):
        return AuditResult(comparison.findings)
    others = _combined([audit(text, archive) for archive in archives])
    left = [finding for finding in others.findings if finding.line not in comparison.settled]
    return AuditResult(tuple(sorted((*comparison.findings, *left), key=lambda finding: finding.line)))


def regenerate(text: str, archives: Sequence[Archive]) -> str | None:
    """The report that a text claims to be, from the runs; None where no run here is that of the report.

    The heading gives its kind and model; where that was changed, the report that shares most lines with it is taken.
    """
    evidences = [evidence for archive in archives for evidence in archive.readable()[0]]
    lines = set(text.split("\n"))
    named = [evidence for evidence in evidences if f"# {plain(f'Evaluation of {evidence.record.model.id}')}" in lines]
    if len(named) == 1:
        return markdown(evaluation(named[0]))
    if len(evidences) > 1 and not named:
        whole = markdown(synthesis(evidences, wrong_claims_of_reports(archives)))
        if _share(lines, whole) > 0.5:
            return whole
    candidates = [markdown(evaluation(evidence)) for evidence in named or evidences]
    best = max(candidates, key=lambda candidate: _share(lines, candidate))
    return best if _share(lines, best) > 0.5 else None


def wrong_claims_of_reports(archives: Sequence[Archive]) -> dict[str, Sequence[Finding]]:
    """The wrong claims of the reports in the folders of runs, by the report's name."""
    wrong: dict[str, Sequence[Finding]] = {}
    for archive in archives:
        folder = archive.path if archive.path.is_dir() else archive.path.parent
        for path in sorted(folder.glob("evaluation-*.md")):
            text = read_report_file(path)
            if not path.name.startswith("evaluation-cross-models"):
                name = path.name if len(archives) == 1 else f"{folder.name}/{path.name}"
                wrong[name] = audit_report(text, [archive]).wrong
    return wrong


def _share(lines: set[str], regenerated: str) -> float:
    expected = set(regenerated.split("\n")) - {""}
    return len(expected & lines) / len(expected)


def _combined(results: Sequence[AuditResult]) -> AuditResult:
    """Of each claim the judgement by the files that know most of it."""
    if len(results) == 1:
        return results[0]
    best: dict[tuple[int, str, str | None], Finding] = {}
    for result in results:
        for finding in result.findings:
            key = (finding.line, finding.claim, finding.citation)
            if key not in best or _rank(finding) < _rank(best[key]):
                best[key] = finding
    return AuditResult(tuple(sorted(best.values(), key=lambda finding: finding.line)))


def _rank(finding: Finding) -> int:
    return _BEST_FIRST.index(finding.judgement)
