"""Fitted lenses of a published run: what its JSON says of them, and what its two audit tables hold."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from layerscope.published.dialect import Fault
from layerscope.published.layout import FIT_TIME, HEADLINE, LENS_STATUSES, TableColumn, Value
from layerscope.published.read.csv_table import PRIMARY, note, read_frame
from layerscope.published.read.document import Block
from layerscope.published.read.merge import Merged
from layerscope.record.measured import FittedLensRecord, PrismFitRecord, TunedFitRecord, TunedVariantsRecord
from layerscope.record.parts import ProblemRecord
from layerscope.record.prompt_key import PromptKey

_STATUS = {published: ours for ours, published in LENS_STATUSES.items()}
"""What a record calls a published status."""
_STAMP = re.compile(r"\d{8}T\d{4}Z")
_FOLDERS = re.compile(r"(?<!\S)/(?:[^\s/]+/)*")
"""The folders of an absolute path, which say nothing but whose machine it was."""
_SAME = 1e-6
"""Relative difference that tables may have: they were written from the same numbers."""
AuditRow: TypeAlias = Mapping[str, Value]
"""Values by the published column's name; and under `tables.ROW` the data row of the file."""


# What the JSON says


def lens_records(document: Block, n_layers: int) -> tuple[FittedLensRecord, ...]:
    """The fitted lenses that the JSON speaks of, read through or not."""
    lenses = (_tuned(document.block("tuned_lens"), n_layers), _prism(document.block("diagnostics")))
    return tuple(lens for lens in lenses if lens is not None)


def _tuned(block: Block, n_layers: int) -> FittedLensRecord | None:
    status = block.text("status")
    if status is None:
        return None
    if status not in _STATUS:
        block.wrong("status", f"should be one of {', '.join(_STATUS)}, but is {status[:30]!r}; left out")
        return None
    provenance = block.block("provenance")
    fit = _fit(provenance.block("translator"), n_layers)
    values = {"fitted_to": provenance.text("model_id"), "created_utc": _created(provenance), "tuned": fit}
    return _record(block, "tuned", _STATUS[status], block.text("path"), values)


def _prism(diagnostics: Block) -> FittedLensRecord | None:
    block = diagnostics.block("prism_summary")
    if not block.members:
        return None
    status = "off" if block.text("mode") == "off" else "missing"
    if block.truth("compatible"):
        status = "loaded"
    elif block.truth("present"):
        status = "refused"
    k, layers = block.whole("k"), tuple(str(name) for name in block.items("layers") or ())
    fit = block.part(PrismFitRecord, {"k": k, "layers": layers}) if k is not None or layers else None
    return _record(block, "prism", status, block.text("artifact_path"), {"prism": fit})


def _record(
    block: Block, kind: str, status: str, path: str | None, values: Mapping[str, object]
) -> FittedLensRecord | None:
    reason = None
    if status != "loaded":
        reason = _FOLDERS.sub("", block.text("error") or "") or "the published file gives no reason"
    folder = None if path is None else re.split(r"[/\\]", path.rstrip("/\\"))[-1] or None
    return block.part(FittedLensRecord, {"kind": kind, "status": status, "path": folder, "reason": reason, **values})


def _created(provenance: Block) -> str | None:
    """When it was fitted, from its version's stamp."""
    stamp = provenance.text("tl_version") or ""
    try:
        time = datetime.strptime(stamp, FIT_TIME) if _STAMP.fullmatch(stamp) else None
    except ValueError:
        time = None
    return None if time is None else time.replace(tzinfo=UTC).isoformat()


def _fit(translator: Block, n_layers: int) -> TunedFitRecord | None:
    """The published translators begin at layer 1."""
    if not translator.members:
        return None
    temperatures, norms = (_by_layer(translator, key, n_layers) for key in ("temperatures", "uv_norms"))
    values: dict[str, object] = {"rank": translator.whole("rank"), "temperatures": temperatures, "map_norms": norms}
    return translator.part(TunedFitRecord, values)


def _by_layer(translator: Block, key: str, n_layers: int) -> tuple[object, ...]:
    """A list over layers 1 to n_layers with none for layer 0 before it; nothing where it is absent."""
    items = translator.items(key)
    if items is not None and len(items) != n_layers:
        translator.wrong(key, f"has {len(items)} values, but the model {n_layers} layers; left out")
        items = None
    return () if items is None else (None, *(float(item) if type(item) is int else item for item in items))


# What the audit tables hold


@dataclass(frozen=True)
class AuditTable:
    """A table about one prompt under the tuned lens; it does not say which."""

    file: str
    rows: tuple[AuditRow, ...]


def read_audit(
    path: Path,
    known: Sequence[TableColumn],
    due: Sequence[TableColumn],
    problems: list[ProblemRecord],
) -> AuditTable | None:
    """A table of parts or positions; None where it has no rows, or, with a problem, where none can be read.

    Args:
        known: Every column that may stand there, in order.
        due: Those that the run's generation had.
        problems: Where what is wrong is added.
    """
    keys = [name for name in ("pos_index", "layer") if name in {column.name for column in known}]
    _, frame = read_frame(path, known, due, keys, problems, least=None)
    rows = () if frame is None else tuple(frame.iter_rows(named=True))
    return AuditTable(path.name, rows) if rows else None


def tuned_variants(
    table: AuditTable | None,
    merged: Merged,
    n_layers: int,
    temperatures: tuple[float | None, ...],
    problems: list[ProblemRecord],
) -> TunedVariantsRecord | None:
    """The primary prompt under parts of the tuned lens; None, and a problem, where the table is about another one.

    Args:
        merged: The rows of the run, by which the table's prompt is recognised.
        temperatures: Of the tuned lens by layer, if they are known.
        problems: Where what is wrong is added.
    """
    if table is None or not _is_of_primary(table, merged, lambda row, _: True, problems):
        return None
    by_layer: dict[int, AuditRow] = {}
    for row in table.rows:
        layer = row["layer"]
        if isinstance(layer, int) and 0 < layer <= n_layers:
            by_layer.setdefault(layer, row)

    def part(name: str) -> dict[str, object]:
        columns = {"kl_to_final_bits": f"kl_bits_{name}", "answer_rank": f"answer_rank_{name}"}
        return {
            ours: tuple(by_layer.get(layer, {}).get(theirs) for layer in range(n_layers + 1))
            for ours, theirs in columns.items()
        }

    parts = {"rotation_only": part("rot_only"), "temperature_only": part("temp_only")}
    return TunedVariantsRecord.model_validate({"temperatures": temperatures, **parts})


def add_positions(table: AuditTable | None, merged: Merged, n_layers: int, problems: list[ProblemRecord]) -> None:
    """Add what the table of positions says to the primary prompt's rows; what those hold already stays."""
    last = merged.last.get(PRIMARY)
    if table is None or not _is_of_primary(table, merged, lambda row, end: row["pos_index"] == end, problems):
        return
    lenses = {lens: name for lens, name in ((HEADLINE, "baseline"), ("tuned", "tuned")) if lens in merged.lenses}
    for row in table.rows:
        layer, position = row["layer"], row["pos_index"]
        if not (isinstance(layer, int) and isinstance(position, int) and last is not None):
            continue
        if not (0 < layer <= n_layers and 0 <= position <= last):
            continue
        for lens, name in lenses.items():
            columns = {"kl_to_final_bits": "kl_bits", "answer_rank": "answer_rank", "entropy_bits": "entropy_bits"}
            values = {ours: row[f"{theirs}_{name}"] for ours, theirs in columns.items()}
            if any(value is not None for value in values.values()):
                known = merged.rows.setdefault((PRIMARY, lens, layer, position), {})
                known |= {ours: value for ours, value in values.items() if known.get(ours) is None}


def _is_of_primary(
    table: AuditTable, merged: Merged, is_at: Callable[[AuditRow, int], bool], problems: list[ProblemRecord]
) -> bool:
    """Whether a table is about the primary prompt: its divergences are those of that prompt's last position.

    From generation J on, published ones are about the last fact instead.
    """
    counts = {
        prompt: sum(_agrees(merged, prompt, end, row) for row in table.rows if is_at(row, end))
        for prompt, end in merged.last.items()
    }
    enough = {
        prompt: n for prompt, n in counts.items() if 2 * n > sum(is_at(row, merged.last[prompt]) for row in table.rows)
    }
    if not enough:
        message = "its divergences are those of no prompt in the other tables, so it was left out"
        note(problems, table.file, [Fault(None, message)])
        return False
    described = max(enough, key=lambda prompt: (enough[prompt], prompt == PRIMARY))
    if described == PRIMARY:
        return True
    message = f"is about {described.label}, by its divergences, and not about the first fact, so it was left out"
    note(problems, table.file, [Fault(None, message)])
    return False


def _agrees(merged: Merged, prompt: PromptKey, end: int, row: AuditRow) -> bool:
    layer, divergence = row["layer"], row["kl_bits_baseline"]
    if not isinstance(layer, int) or not isinstance(divergence, float):
        return False
    known = merged.rows.get((prompt, HEADLINE, layer, end), {}).get("kl_to_final_bits")
    return isinstance(known, float) and math.isclose(divergence, known, rel_tol=_SAME, abs_tol=1e-12)
