"""A report as a value: sections of sentences, tables and lists whose numbers are claims, and nothing but claims."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TypeAlias

from layerscope.report.cited.claims import Claim

MARK = " †"
"""Behind the header of a column whose figures are not to be quoted."""
_DIGIT = re.compile(r"\d")
_TERM = re.compile(r"\b(top-1|top-5|top-10|top-20|top-50|[Rr]ank 1|L1|0 to 3|1 to n_layers)\b")
"""Terms with a digit that are names and no findings."""


class UncitedNumber(AssertionError):
    """A template's own words hold a number: only a claim may."""


@dataclass(frozen=True)
class Text:
    """Words of a template. Numbers are refused, but for a few terms of the field."""

    text: str

    def __post_init__(self) -> None:
        if _DIGIT.search(_TERM.sub("", self.text)):
            raise UncitedNumber(f"a template's words may hold no number: {self.text!r}; make it a claim")


@dataclass(frozen=True)
class Name:
    """A name that may hold digits and is no finding: a model, a lens, a file, a key, a threshold of the definitions."""

    text: str


@dataclass(frozen=True)
class Token:
    """Text from a vocabulary or a prompt, which may hold anything and is shown as text whatever it holds."""

    text: str
    citations: tuple["Claim", ...] = ()


@dataclass(frozen=True)
class Strong:
    """Parts in bold."""

    parts: tuple["Part", ...]


@dataclass(frozen=True)
class Basis:
    """Claims that the sentence puts into words: nothing is printed, but their places are cited."""

    claims: tuple[Claim, ...]


Part: TypeAlias = Text | Name | Token | Claim | Strong | Basis
"""What sentences and cells are made of; a claim prints its value, and its source at the end of the sentence."""


@dataclass(frozen=True)
class Sentence:
    """Parts that end with the places of their claims."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class Bullets:
    """A list; each item is a sentence."""

    items: tuple[Sentence, ...]


@dataclass(frozen=True)
class Check:
    """A line of a checklist."""

    label: str
    holds: bool | None
    """None prints as `n.a.`"""
    note: Sentence


@dataclass(frozen=True)
class Checklist:
    """What was looked at, and what came of it."""

    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    cells: tuple[tuple[Part, ...], ...]
    """One tuple of parts for each column of the header."""


@dataclass(frozen=True)
class Table:
    """A table; its last column, added when it is rendered, is the source of the row's claims."""

    header: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: Sentence | None = None


Block: TypeAlias = Paragraph | Bullets | Checklist | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]
    sections: tuple["Section", ...] = ()


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    opening: Paragraph
    sections: tuple[Section, ...]

    @property
    def claims(self) -> list[Claim]:
        """Every claim, in the order in which they print."""
        return list(_claims(self))


def paragraph(*sentences: Sentence | None) -> Paragraph:
    """A paragraph of the sentences that there are."""
    return Paragraph(tuple(each for each in sentences if each is not None))


def short_section(title: str, *sentences: Sentence) -> Section:
    """A section of one paragraph."""
    return Section(title, (Paragraph(sentences),))


Filling: TypeAlias = Part | str | Sequence[Part | str]
"""What fills a field of a template: one part, plain words, or several of them."""


def sentence(template: str, *values: Filling, **named: Filling) -> Sentence:
    """A sentence whose fields, `{}` or `{name}`, are filled with parts: so a number in it is a claim."""
    return Sentence(filled(template, *values, **named))


def filled(template: str, *values: Filling, **named: Filling) -> tuple[Part, ...]:
    """The parts of such a template.

    Raises:
        ValueError: there are more values, or fewer, than fields.
    """
    parts: list[Part] = []
    left = list(values)
    for words, field, _, _ in Formatter().parse(template):
        parts += [Text(words)] if words else []
        if field == "" and not left:
            raise ValueError(f"{template!r} has more fields than the {len(values)} values given")
        if field is not None:
            parts += _cell(named[field] if field else left.pop(0))
    if left:
        raise ValueError(f"{template!r} has fewer fields than the {len(values)} values given")
    return tuple(parts)


def row(*cells: Filling) -> Row:
    """A row of cells, each one part, plain words, or several of them."""
    return Row(tuple(map(_cell, cells)))


def _cell(cell: Filling) -> tuple[Part, ...]:
    parts = (cell,) if isinstance(cell, str | Part) else cell
    return tuple(Text(part) if isinstance(part, str) else part for part in parts)


def claims_of(parts: Sequence[Part]) -> list[Claim]:
    """The claims among parts, those inside bold ones too."""
    claims: list[Claim] = []
    for part in parts:
        if isinstance(part, Claim):
            claims.append(part)
        elif isinstance(part, Token):
            claims += part.citations
        elif isinstance(part, Basis):
            claims += part.claims
        elif isinstance(part, Strong):
            claims += claims_of(part.parts)
    return claims


def _claims(report: Report) -> Iterator[Claim]:
    for opening in report.opening.sentences:
        yield from claims_of(opening.parts)
    for section in report.sections:
        yield from _section_claims(section)


def _section_claims(section: Section) -> Iterator[Claim]:
    for block in section.blocks:
        match block:
            case Paragraph(sentences) | Bullets(sentences):
                for each in sentences:
                    yield from claims_of(each.parts)
            case Checklist(checks):
                for check in checks:
                    yield from claims_of(check.note.parts)
            case Table(_, rows, caption):
                yield from claims_of(caption.parts if caption else ())
                for line in rows:
                    for cell in line.cells:
                        yield from claims_of(cell)
    for inner in section.sections:
        yield from _section_claims(inner)
