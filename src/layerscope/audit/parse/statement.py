"""A statement of a report, and the places that it cites."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One file that a statement cites, and where in it."""

    text: str
    """In the report's own words: `output-Qwen3-8B.json:7081-7083`."""
    file: str | None
    """The file's name without folders; None where none is named and none can be inherited."""
    lines: tuple[tuple[int, int], ...] = ()
    """Physical lines, first and last; empty where the whole file is meant."""
    rows: tuple[tuple[int, int], ...] = ()
    """Rows of a table, as the report counts them."""
    start: int = 0
    end: int = 0
    """The stretch of the raw statement that it takes."""


@dataclass(frozen=True)
class Statement:
    """A stretch of a report that makes claims: a sentence, a list item, a clause with its own citation, a table row."""

    line: int
    """Physical line of the report on which it begins, counted from 1."""
    text: str
    """With plain dashes, spaces and quotes, and citations taken out."""
    raw: str
    """As it stands in the report."""
    references: tuple[Reference, ...]
    headings: tuple[str, ...] = ()
    """Of the sections that it stands in, outermost first."""
    stems: tuple[str, ...] = ()
    """Models it is about: those it names, else that of the files it cites, else the report's own."""
    cells: tuple[str, ...] | None = None
    """Of a table row; None otherwise."""
    header: tuple[str, ...] | None = None
    """Of that table."""

    @property
    def citation(self) -> str | None:
        """Its references in the report's own words; None where it has none."""
        return "; ".join(reference.text for reference in self.references) or None
