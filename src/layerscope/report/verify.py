"""Verification of a run: what its rows amount to is recomputed and compared with everything that its files state."""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from layerscope.analysis.verdict_json import verdict_text
from layerscope.errors import RunError
from layerscope.published.dialect import serialise
from layerscope.published.layout import EXTENDED, Dialect
from layerscope.published.write.csv_tables import csv_tables
from layerscope.published.write.json_document import tree
from layerscope.record.rows import NEWER
from layerscope.record.run_record import SCHEMA_VERSION
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.evidence import Evidence
from layerscope.report.cited.markdown import markdown
from layerscope.report.cited.report_files import body_of
from layerscope.report.cited.sources import Entry, JsonFile, Scalar, dialect_of, pointer
from layerscope.report.evaluation import evaluation

RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""Differences between numbers that were added up in another order."""

_COPIED = (
    "/schema_version",
    "/provenance",
    "/model_stats",
    "/record",
    "/diagnostics/tuned_lens/path",
    "/tuned_lens/path",
)
"""Members that are stated and cannot be recomputed from rows."""
_INTO_RECORD = "#/record/"
"""What a member begins with that points into the record, whose keys are those of the version that wrote it."""
_COPIED_KEYS = {"artifact_path", "tuned_lens_regression"}

REASONS, NEAR_UNIFORM = "/measurement_guidance/reasons", "rank_only_near_uniform"
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"gap_ge_|_top2_ok_|/gap_at_|L_semantic_strong",
        "published files leave what rests on the lead over the second logit empty, though their rows hold that lead",
    ),
    (r"/copy_thresholds/stability$", "published files looked up a threshold under a name that it does not have"),
    (
        r"/raw_lens_window/",
        "published windows reach four layers to each side, where a high sampled risk asks for eight",
    ),
)
"""Differences that are known of published files, by the pointer's pattern."""


@dataclass(frozen=True)
class Difference:
    """One thing that a file states and the rows do not bear out."""

    what: str
    """A member's pointer, or what of a file."""
    stated: str
    derived: str
    where: Citation | None
    known: str | None = None
    """Why published files have it wrong, where that is known."""


@dataclass(frozen=True)
class Verified:
    """One run, verified."""

    model: str
    checked: Mapping[str, int]
    """How many values or lines of each file were compared with the rows."""
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    """What could not be checked, and why."""

    @property
    def holds(self) -> bool:
        """Whether nothing differs but what is known of published files."""
        return all(difference.known is not None for difference in self.differences)


def verify(evidence: Evidence, folder: Path) -> Verified:
    """Recompute milestones, diagnostics, guidance and report, and say what differs from the files.

    Args:
        evidence: the run and its published files.
        folder: the run's own folder, or that of its published files.
    """
    checked: dict[str, int] = {}
    differences, notes = list[Difference](), list[str]()
    for name, count, of_file in _checks(evidence, folder, notes):
        checked[name] = count
        differences += of_file
    return Verified(evidence.stem, checked, tuple(differences), tuple(notes))


def _checks(evidence: Evidence, folder: Path, notes: list[str]) -> Iterator[tuple[str, int, list[Difference]]]:
    is_run_folder = (folder / "run.json").exists()
    dialect = dialect_of(evidence.json)
    yield evidence.json.name, *_document(evidence, dialect)
    if is_run_folder:
        yield from _tables(evidence, dialect, notes)
        if (folder / "verdict.json").exists():
            text = verdict_text(evidence.verdict, evidence.record)
            yield "verdict.json", *differing_lines("verdict.json", _read(folder / "verdict.json"), text)
        else:
            notes.append("verdict.json is not there")
    else:
        notes.append("the tables are the source of the rows here and cannot be checked against them")
        notes += [f"{problem.file}: {problem.message}" for problem in evidence.run.problems]
    report = folder / f"evaluation-{evidence.stem}.md"
    if not report.exists():
        notes.append(f"no {report.name} beside the run")
        return
    stated = _read(report)
    body = body_of(stated)
    if body is None:
        notes.append(f"{report.name} was written by others; `layerscope audit` checks it")
        return
    yield report.name, *differing_lines(report.name, body, markdown(evaluation(evidence)), first_line=2)


def _document(evidence: Evidence, dialect: Dialect) -> tuple[int, list[Difference]]:
    """Every member of the JSON that follows from rows."""
    derived = json.loads(json.dumps(tree(evidence.run, dialect), allow_nan=False))
    count, differences = 0, list[Difference]()
    for at, value in _flat(derived, ""):
        entry = evidence.json.by_pointer.get(at)
        if entry is None or at.startswith(_COPIED) or entry.key in _COPIED_KEYS:
            continue
        stated = _plain(evidence.json, entry)
        if isinstance(value, str) and value.startswith(_INTO_RECORD):
            continue
        if isinstance(stated, dict) or (isinstance(stated, list) != isinstance(value, list)):
            continue  # another generation's shape
        count += 1
        if not same_value(stated, value):
            where = Citation(evidence.json.name, entry.line, entry.last_line, pointer=at)
            differences.append(
                Difference(at, short_text(stated), short_text(value), where, _known(at, stated, value, dialect))
            )
    return count, differences


def _flat(value: object, at: str) -> Iterator[tuple[str, object]]:
    """Members that are values or lists of plain values, each with its pointer."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, at + pointer(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{at}/{i}")
    else:
        yield at, value


def _plain(document: JsonFile, entry: Entry) -> Scalar | list[Scalar] | dict[str, object]:
    if not entry.is_container:
        return entry.value
    items = document.children(entry)
    if any(item.is_container or not item.key.isdigit() for item in items):
        return {item.key: item.value for item in items}
    return [item.value for item in items]


def same_value(stated: object, derived: object) -> bool:
    """Whether two values, or lists of them, are the same, numbers up to the order in which they were added up."""
    if isinstance(stated, list) and isinstance(derived, list):
        return len(stated) == len(derived) and all(map(same_value, stated, derived))
    numbers = [value for value in (stated, derived) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == 2:
        return math.isclose(numbers[0], numbers[1], rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return stated == derived and type(stated) is type(derived)


def _known(at: str, stated: object, derived: object, dialect: Dialect) -> str | None:
    if dialect is EXTENDED:
        return None
    if at == REASONS and isinstance(derived, list) and [name for name in derived if name != NEAR_UNIFORM] == stated:
        return "files of older generations did not ask whether the answer is clearly above uniform"
    return next((why for pattern, why in _KNOWN if re.search(pattern, at)), None)


def _tables(evidence: Evidence, dialect: Dialect, notes: list[str]) -> Iterator[tuple[str, int, list[Difference]]]:
    """The published tables of a run of our own, regenerated from its rows; an older version's lack newer columns."""
    version = evidence.entry("record", "schema_version")
    may_lack = NEWER if version is not None and version.value != SCHEMA_VERSION else ()
    for table in csv_tables(evidence.run, dialect):
        if not evidence.sources.has(table.name):
            notes.append(f"{table.name} is not there")
            continue
        lines = evidence.sources.lines(table.name)
        kept = [i for i, name in enumerate(table.columns) if name not in may_lack or name in lines[0].split(",")]
        columns = tuple(table.columns[i] for i in kept)
        again = serialise(columns, [tuple(cells[i] for i in kept) for cells in table.rows], dialect).decode()
        stated = "\n".join(lines)
        yield table.name, *differing_lines(table.name, stated, again)


def differing_lines(name: str, stated: str, derived: str, first_line: int = 1) -> tuple[int, list[Difference]]:
    """How many lines a text should have, and those that differ from what was derived."""
    old, new = stated.split("\n"), derived.split("\n")
    if old == new:
        return len(new), []
    differences: list[Difference] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        where = Citation(name, a + first_line, max(a, b - 1) + first_line)
        removed = " / ".join(old[a:b]) or "nothing"
        differences.append(
            Difference("text", short_text(removed), short_text(" / ".join(new[c:d]) or "nothing"), where)
        )
    return len(new), differences


def short_text(value: object) -> str:
    """A value in a line."""
    text = value if isinstance(value, str) else "null" if value is None else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}).") from error
