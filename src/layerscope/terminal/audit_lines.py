"""An audit as lines for a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from layerscope.audit.audit import AuditResult
from layerscope.audit.output import needs_mending, shortened
from layerscope.report.cited.findings import Finding, Judgement

_STYLE = {
    Judgement.SUPPORTED: "green",
    Judgement.ELSEWHERE: "yellow",
    Judgement.CONTRADICTED: "red",
    Judgement.UNRESOLVABLE: "magenta",
    Judgement.UNDECIDED: "dim",
}


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
    counted = ", ".join(f"{counts[judgement]} {judgement}" for judgement in Judgement if counts[judgement])
    yield Text(f"audit · {name} · {counted or 'no claim that could be checked'}")


def _finding(finding: Finding) -> Text:
    text = Text()
    text.append(finding.judgement, style=_STYLE[finding.judgement])
    text.append("  " + shortened(finding.claim))
    text.append("\n" + finding.reason, style="dim")
    if finding.correct is not None and finding.correct not in finding.reason:
        text.append("\nright: " + shortened(finding.correct))
    return text
