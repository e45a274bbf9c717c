"""The brief of a run: typed facts, rules and citations, for whoever writes prose about it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import claims_of
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import code, markdown, plain, token_text
from layerscope.report.evaluation import evaluation
from layerscope.report.sentences.guidance import instructions

MOST_ROWS = 24
"""Rows of one table that a brief keeps: those about milestones, and of the rest an even choice."""
MOST_FACTS = 700
"""Of the JSON."""
_LEFT_OUT = ("Checklist", "Fingerprint")
"""Sections of the evaluation that its writer is to write."""

_STRUCTURE = (
    "Overview: model, prompt, what the model itself says; then the layers from which the answer is first on top, on "
    "top for good, and clearly ahead, and through which lens. Of an answer that the model does not give, say where it "
    "is on top and loses it.",
    "Method sanity-check: norm and unembedding, gold alignment, head calibration, repeatability, decoding point, "
    "guidance.",
    "Quantitative findings: layer table, ranks, divergences, gates, copying, control, wordings, facts, other lenses.",
    "Patterns and anomalies: only what the facts below show; name the peak where a curve is not monotone.",
    "Checklist: what was looked at, with a mark for yes, no, or not available.",
    "Limitations: every reason of the guidance, and what was not measured.",
    "Fingerprint: one sentence.",
)
_RULES = (
    "State no number that is not a fact below, and round no further than it is printed.",
    "End every sentence that states a number with its source in square brackets, as `[file:line]`, with a comma "
    "between lines of one file and a semicolon between files: `[output-M.json:12, 15; output-M-records.csv:33]`.",
    "Lines are physical lines, counted by line feeds; do not count rows.",
    "A difference of layers is fitted less headline (negative is earlier); a difference of divergences is headline "
    "less fitted (positive is nearer to the model).",
    "Say that something falls, rises, peaks, comes first or never happens only where a fact says so.",
    "Compare probabilities and entropies with none of another model; between models compare ranks and depth fractions.",
    "A layer of one fact is no property of the model.",
)


@dataclass(frozen=True)
class Brief:
    """A brief in two forms: to read, and to compute with."""

    text: str
    """Markdown: rules, structure and facts, each with its source."""
    data: str
    """JSON: the facts alone, typed, one list each, under the names in `columns`."""


@dataclass(frozen=True)
class _Fact:
    """A claim with what its place in the evaluation says about it."""

    section: str
    about: str
    claim: Claim


def brief(evidence: Evidence) -> Brief:
    """Everything that is needed to write about one run, small enough to be read at once.

    Args:
        evidence: the run with its files in the published format.
    """
    report = evaluation(evidence)
    sections = tuple(_shortened(section) for section in report.sections if section.title not in _LEFT_OUT)
    facts = markdown(doc.Report("Facts", report.opening, sections)).split("\n", 1)[1].strip()
    return Brief(text=f"{_preface(evidence)}\n\n## Facts\n\n{_deeper(facts)}\n", data=_data(evidence, report))


def _preface(evidence: Evidence) -> str:
    guidance = instructions(
        evidence.verdict.guidance, evidence.verdict.diagnostics.quotability, evidence.record, evidence.headline
    )
    return "\n\n".join(
        (
            f"# Brief on {plain(evidence.record.model.id)}",
            f"For a report on run {code(evidence.record.run_id)}. Write it as Markdown, to be named "
            f"{code(f'evaluation-{evidence.stem}.md')}; `layerscope audit` then checks every number and source in it.",
            "## Structure\n\n" + _list(_STRUCTURE),
            "## Rules\n\n" + _list(_RULES),
            "## Guidance of this run\n\n" + _list(guidance),
        )
    )


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _deeper(text: str) -> str:
    """Headings one level down."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.split("\n"))


def _shortened(section: doc.Section) -> doc.Section:
    """A section whose long tables keep bold rows, the first and the last, and an even choice of the others."""
    blocks = tuple(
        doc.Table(block.header, _chosen(block), block.caption) if isinstance(block, doc.Table) else block
        for block in section.blocks
    )
    return doc.Section(section.title, blocks, tuple(map(_shortened, section.sections)))


def _chosen(table: doc.Table) -> tuple[doc.Row, ...]:
    rows = table.rows
    if len(rows) <= 2 * MOST_ROWS:
        return rows
    bold = {i for i, row in enumerate(rows) if any(isinstance(part, doc.Strong) for cell in row.cells for part in cell)}
    near = {i + step for i in bold for step in range(-3, 4) if 0 <= i + step < len(rows)}
    even = {round(i * (len(rows) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)}
    return tuple(rows[i] for i in sorted(near | even))


def _data(evidence: Evidence, report: doc.Report) -> str:
    columns = ("name", "value", "unit", "lens", "prompt", "layer", "about", "source")
    first: dict[tuple[object, ...], _Fact] = {}
    for section in report.sections:
        for fact in _facts(_shortened(section), section.title):
            claim = fact.claim
            first.setdefault((claim.name, claim.lens, claim.prompt, claim.layer, claim.citations), fact)
    facts = list(first.values())
    kept = facts[:MOST_FACTS]
    files = list(dict.fromkeys(citation.file for fact in kept for citation in fact.claim.citations))
    sections = dict.fromkeys(fact.section for fact in kept)
    lines = [
        f"  {_json(title)}: [\n"
        + ",\n".join("   " + _json(_line(fact, files)) for fact in kept if fact.section == title)
        + "\n  ]"
        for title in sections
    ]
    head = {
        "model": evidence.record.model.id,
        "run": evidence.record.run_id,
        "headline_lens": evidence.headline,
        "suppress_probabilities": evidence.verdict.guidance.suppress_abs_probs,
        "n_facts_left_out": len(facts) - len(kept),
        "files": {str(i): file for i, file in enumerate(files)},
        "columns": columns,
        "source_is": "number of the file, colon, lines; several with a semicolon between",
    }
    inner = ",\n".join(f" {_json(key)}: {_json(value)}" for key, value in head.items())
    body = ",\n".join(lines)
    return f'{{\n{inner},\n "facts": {{\n{body}\n }}\n}}\n'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _line(fact: _Fact, files: Sequence[str]) -> list[object]:
    """One fact under `columns`; numbers with six significant digits, which is one more than reports print."""
    claim = fact.claim
    value = float(f"{claim.value:.6g}") if isinstance(claim.value, float) else claim.value
    by_file: dict[int, list[str]] = {}
    for citation in claim.citations:
        by_file.setdefault(files.index(citation.file), []).append(citation.lines)
    source = "; ".join(f"{file}:{', '.join(dict.fromkeys(lines))}" for file, lines in by_file.items())
    return [claim.name, value, str(claim.unit), claim.lens, claim.prompt, claim.layer, fact.about, source]


def _facts(section: doc.Section, title: str) -> Iterator[_Fact]:
    for block in section.blocks:
        match block:
            case doc.Paragraph(sentences) | doc.Bullets(sentences):
                for each in sentences:
                    yield from _of(each.parts, title, "")
            case doc.Checklist(checks):
                for check in checks:
                    yield from _of(check.note.parts, title, check.label)
            case doc.Table(header, rows, _):
                for row in rows:
                    label = _words(row.cells[0]) if row.cells else ""
                    for name, cell in zip(header, row.cells, strict=True):
                        yield from _of(cell, title, f"{name} ({header[0]} {label})" if label else name)
    for inner in section.sections:
        yield from _facts(inner, inner.title)


def _of(parts: Sequence[doc.Part], section: str, about: str) -> Iterator[_Fact]:
    """Claims that have a value, other than long texts."""
    for claim in claims_of(parts):
        if claim.value is not None and claim.citations and (claim.unit is not Unit.TEXT or len(str(claim.value)) < 200):
            yield _Fact(section, about, claim)


def _words(parts: Sequence[doc.Part]) -> str:
    """Parts without mark-up."""
    words = []
    for part in parts:
        match part:
            case doc.Text(text) | doc.Name(text):
                words.append(text)
            case doc.Token(text):
                words.append(token_text(text))
            case doc.Strong(inner):
                words.append(_words(inner))
            case Claim():
                words.append(part.text)
    return "".join(words)
