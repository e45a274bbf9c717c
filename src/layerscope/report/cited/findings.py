"""What an audit says of one claim of a report."""

from dataclasses import dataclass
from enum import StrEnum

from layerscope.report.cited.claims import Citation


class Judgement(StrEnum):
    """How a claim fares."""

    SUPPORTED = "supported"
    """It holds, and the cited lines show it."""
    ELSEWHERE = "supported elsewhere"
    """It holds, but the cited lines do not show it."""
    CONTRADICTED = "contradicted"
    """The files say otherwise."""
    UNRESOLVABLE = "unresolvable"
    """What is cited is not there."""
    UNDECIDED = "undecided"
    """The auditor cannot tell."""

    @property
    def is_wrong(self) -> bool:
        """Whether a reader would be misled, or sent to the wrong place."""
        return self in (Judgement.ELSEWHERE, Judgement.CONTRADICTED)


@dataclass(frozen=True)
class Finding:
    """One claim of a report, judged."""

    line: int
    """Physical line of the report, counted from 1."""
    claim: str
    """The claim in the report's own words."""
    citation: str | None
    """What it cites, in the report's own words; None where it cites nothing."""
    judgement: Judgement
    reason: str
    """Why, in one sentence that names files and lines."""
    correct: str | None = None
    """What the report should say there; None where nothing is wrong or it is not known."""
    found_at: Citation | None = None
    """Where that stands."""
