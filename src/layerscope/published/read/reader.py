"""A published run's folder, of any generation, as a run; what is missing or damaged becomes a problem of its record."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.errors import RunError
from layerscope.published.dialect import Fault
from layerscope.published.layout import (
    ARTIFACT_AUDIT,
    DIALECT_KEY,
    EXTENDED,
    FLAG_COLUMNS,
    GENERATION_M,
    HEADLINE,
    MILESTONES,
    NEXT_TOKEN,
    POSITIONS_TUNED_AUDIT,
    RAWLENS,
    RAWLENS_WINDOW,
    RECORD_KEY,
    RECORDS,
    TABLES,
    TUNED_VARIANTS,
    Table,
    columns_of,
    csv_name,
    is_file_of,
    is_flag,
    json_name,
    stem_of,
)
from layerscope.published.manifest import check_manifest
from layerscope.published.read import cross_checks, fitted_lenses, metadata
from layerscope.published.read.csv_table import TableRows, check_table, note, read_table
from layerscope.published.read.document import Block, generation_of, read_document
from layerscope.published.read.extended import read_extended
from layerscope.published.read.merge import Tables, frame_of_rows, last_positions, merge
from layerscope.record.parts import ProblemRecord, ProtocolRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import PROTOCOLS
from layerscope.record.run_record import SCHEMA_VERSION, RunRecord


def read_published(path: str | Path, model: str | None = None) -> AnalysedRun:
    """The run that a folder of published files holds.

    Args:
        path: The folder, or the `output-<M>.json` of one model in it.
        model: Which model, where the folder holds several: `<M>`, or its whole id.

    Returns:
        Rows and record. Everything that is missing, damaged or contradictory is in `record.problems`, and nothing is
        filled in for it.

    Raises:
        RunError: there is no such folder or model, several models and none named, no JSON, or one that holds no run;
            or the JSON does not give d_model and d_vocab, which tables do not say.
    """
    source = _locate(Path(path), model)
    problems: list[ProblemRecord] = []
    document = read_document(source.folder / json_name(source.stem), problems)
    if isinstance(document.members.get(RECORD_KEY), dict):
        run = read_extended(source.folder, source.stem, document)
    elif document.members.get(DIALECT_KEY) == EXTENDED.value:
        raise RunError(
            f"{source.folder / document.file}: an extended JSON without its `{RECORD_KEY}`, so it is cut or damaged; "
            "take it from a whole copy."
        )
    else:
        run = _read_generation(source, document)
    noted = list(run.record.problems)
    check_manifest(source.folder, source.stem, noted)
    record = run.record.model_copy(update={"problems": tuple(noted)})
    run = AnalysedRun(run.rows, record, patches=run.patches, write_patches=run.write_patches)
    if model is not None and "/" in model and "/" in run.record.model.id and model != run.record.model.id:
        raise RunError(f"{source.folder}: does not hold {model}; {document.file} is of {run.record.model.id}.")
    return run


def holds_published(path: Path) -> bool:
    """Whether a path is a folder with published files, or one model's `output-<M>.json`."""
    if path.is_file():
        return re.fullmatch(r"output-(.+)\.json", path.name) is not None
    return path.is_dir() and bool(_stems(path))


# Which model


@dataclass(frozen=True)
class _Source:
    """One model's files."""

    folder: Path
    stem: str
    """The model as the files' names have it."""

    def csv(self, table: Table, lens: str | None = None) -> Path:
        """Where a table should be."""
        return self.folder / csv_name(self.stem, table, lens)


def _locate(path: Path, model: str | None) -> _Source:
    if path.is_file():
        match = re.fullmatch(r"output-(.+)\.json", path.name)
        if match is None:
            raise RunError(f"{path}: no published run; give its folder, or its output-<model>.json.")
        if model is not None and stem_of(model) != match[1]:
            raise RunError(f"{path}: holds the model {match[1]}, not {model}; give its folder to read another one.")
        return _Source(path.parent, match[1])
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; give a folder with output-<model>.json and its tables.")
    stems = _stems(path)
    if not stems:
        raise RunError(f"{path}: no published run, because it has no output-<model>.json and no tables of one.")
    if model is None and len(stems) > 1:
        raise RunError(f"{path}: holds several models; name one of them: {', '.join(stems)}.")
    stem = stems[0] if model is None else stem_of(model)
    if stem not in stems:
        raise RunError(f"{path}: does not hold {model}; the models there are {', '.join(stems)}.")
    return _Source(path, stem)


_SUFFIXES = "|".join(re.escape(table.suffix) + ("(?:-.+)?" if table.by_lens else "") for table in TABLES)
_TABLE_NAME = re.compile(rf"output-(.+?)-(?:{_SUFFIXES})\.csv", re.DOTALL)


def _stems(folder: Path) -> list[str]:
    """Every model that has JSON or tables there, as the files' names have it."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror}); choose a folder that you may read.") from error
    stems = {match[1] for name in names if (match := re.fullmatch(r"output-(.+)\.json", name))}
    for name in names:
        match = _TABLE_NAME.fullmatch(name)
        if match and not any(is_file_of(stem, name) for stem in stems):
            stems.add(match[1])
    return sorted(stems)


# Its tables


def _read_generation(source: _Source, document: Block) -> AnalysedRun:
    """A run that was written by a published generation."""
    problems = document.problems
    tables, audits = _read_tables(source, document)
    layers = {row.layer for table in tables.all for row in table.rows}
    reached = next(layer for layer in count(1) if layer + 1 not in layers) if layers & {0, 1} else None
    model = metadata.model_record(document, source.stem, reached)
    tables = tables.each(lambda table, _: cross_checks.within_layers(table, model.n_layers, document.file, problems))
    last = last_positions(tables)
    tables = tables.each(lambda table, at_end: cross_checks.in_place(table, last, at_end, problems))
    answers, fact_keys = metadata.alignments(document), _fact_keys(tables)
    merged = merge(tables, last, metadata.from_json(document, answers, model.n_layers), problems)
    fitted_lenses.add_positions(audits.get(POSITIONS_TUNED_AUDIT.suffix), merged, model.n_layers, problems)
    fits = fitted_lenses.lens_records(document, model.n_layers)
    taus = next((lens.tuned.temperatures for lens in fits if lens.tuned is not None), ())
    parts = audits.get(TUNED_VARIANTS.suffix)
    variants = fitted_lenses.tuned_variants(parts, merged, model.n_layers, taus, problems)
    measured = metadata.measured_record(document, model.n_layers, fits, variants)
    if not metadata.is_named(document, source.stem):
        document.block("diagnostics").wrong("model", f"is not {source.stem}, as in the file's name")
    cross_checks.check_completeness(tables, last, model.n_layers, document.file, problems)
    cross_checks.check_tables(tables, problems)
    cross_checks.check_json(document, tables, model.n_layers, problems)
    rows = frame_of_rows(merged, fact_keys)
    lenses = tuple(dict.fromkeys((HEADLINE, *merged.lenses)))
    suite = metadata.suite_record(document, merged, answers, fact_keys)
    protocol = PROTOCOLS["published"]
    run_id, created = _when(source.folder, document)
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=run_id,
        source="published",
        created_utc=created,
        protocol=ProtocolRecord.of(
            protocol,
            lenses=lenses,
            headline_lens=HEADLINE,
            lens_head_transform=protocol.lens_transform,
            thresholds=protocol.thresholds.as_dict(),
        ),
        model=model,
        suite=suite,
        lens_sources={lens: metadata.lens_source(document, lens, model.n_layers) for lens in lenses},
        numeric_health=metadata.numeric_health(document),
        flags=metadata.flags(document),
        measured=measured,
        provenance=metadata.provenance(document),
        # Last, because what stands above finds problems too; a member that was asked for twice has noted itself twice.
        problems=tuple(dict.fromkeys(problems)),
    )
    return AnalysedRun(rows, record)


def _read_tables(source: _Source, document: Block) -> tuple[Tables, dict[str, fitted_lenses.AuditTable]]:
    """Every table that rows are made of, and those of the tuned lens' audit by their suffix.

    Those that are missing though the JSON speaks of them are noted.
    """
    generation, problems = generation_of(document), document.problems
    audits: dict[str, fitted_lenses.AuditTable] = {}
    tables: dict[tuple[str, str | None], TableRows] = {}
    for table, lens, due in _due(document, generation):
        path = source.csv(table, lens)
        if not path.exists():
            message = f"the file is missing, though {document.file} (generation {generation}) speaks of what it holds"
            note(problems, path.name, [Fault(None, message)] if due else [])
            continue
        flags = _copy_flags(document)
        known = None if flags is None else [*flags, *(name for name in FLAG_COLUMNS if name not in flags)]
        columns = columns_of(table, GENERATION_M, flags=known)
        announced = columns_of(table, GENERATION_M, generation=generation, flags=flags)
        if table in (TUNED_VARIANTS, POSITIONS_TUNED_AUDIT):
            audit = fitted_lenses.read_audit(path, columns, announced, problems)
            audits |= {} if audit is None else {table.suffix: audit}
        elif table not in (RECORDS, NEXT_TOKEN, RAWLENS):
            check_table(path, columns, announced, problems)
        elif (rows := read_table(path, columns, announced, problems)) is not None:
            tables[table.suffix, lens] = rows
    by_lens = {
        table.suffix: {lens or HEADLINE: rows for (suffix, lens), rows in tables.items() if suffix == table.suffix}
        for table in (NEXT_TOKEN, RECORDS)
    }
    rawlens = tables.get((RAWLENS.suffix, None))
    return Tables(by_lens[NEXT_TOKEN.suffix], by_lens[RECORDS.suffix], rawlens), audits


def _due(document: Block, generation: str) -> Iterator[tuple[Table, str | None, bool]]:
    """Every table, for which lens, and whether it should be there."""
    prism = document.block("diagnostics").block("prism_summary").truth("compatible") is True
    tuned = document.block("tuned_lens").text("status") == "loaded"
    for table in (NEXT_TOKEN, RECORDS):
        yield from ((table, None, True), (table, "prism", prism), (table, "tuned", tuned))
    yield RAWLENS, None, document.has("diagnostics.raw_lens_full")
    yield RAWLENS_WINDOW, None, document.has("diagnostics.raw_lens_window")
    yield MILESTONES, None, generation >= MILESTONES.since
    yield ARTIFACT_AUDIT, None, generation >= ARTIFACT_AUDIT.since and document.has("diagnostics.raw_lens_full")
    for table in (TUNED_VARIANTS, POSITIONS_TUNED_AUDIT):
        yield table, None, generation >= table.since and tuned


def _copy_flags(document: Block) -> list[str] | None:
    """The copy flags of the run's configuration, each once; None where the JSON does not say."""
    items = document.items("copy_flag_columns")
    if items is None:
        return None
    flags = list(dict.fromkeys(name for name in items if isinstance(name, str) and is_flag(name)))
    odd = [item for item in items if item not in flags]
    if odd:
        names = ", ".join(repr(item)[:30] for item in odd[:5])
        document.wrong("copy_flag_columns", f"has {len(odd)} names of no copy flag, such as {names}; left out")
    if len(flags) + len(odd) < len(items):
        document.wrong("copy_flag_columns", "has a name more than once; it was taken once")
    return flags


def _fact_keys(tables: Tables) -> dict[PromptKey, str]:
    """The key of each prompt's fact; none before generation J."""
    keys: dict[PromptKey, str] = {}
    for table in tables.all:
        for row in table.rows:
            key = row.values.get("fact_key")
            if isinstance(key, str):
                keys.setdefault(row.prompt, key)
    return keys


# Its identity


def _when(folder: Path, document: Block) -> tuple[str, str | None]:
    """The run's id, from the folder's name or the time stamp in it; and its time, where that says its zone."""
    stamps = sorted(path for path in folder.iterdir() if path.name.startswith("timestamp-"))
    named = re.match(r"run-\d{8}-\d{4}(?!\d)", folder.resolve().name)
    run_ids = [re.sub("^timestamp", "run", stamp.name) for stamp in stamps]
    if len(stamps) > 1:
        names = ", ".join(stamp.name for stamp in stamps)
        document.note(f"there are {len(stamps)} time stamps beside it ({names}); files of two runs may be mixed")
        return (named[0] if named else "run-unknown"), None
    if named:
        if run_ids and run_ids != [named[0]]:
            document.note(f"the folder is named {named[0]}, but holds {stamps[0].name}; files of two runs may be mixed")
        return named[0], _created(stamps)
    known = [run_id for run_id in run_ids if re.fullmatch(r"run-\d{8}-\d{4}", run_id)]
    return (known[0] if known else "run-unknown"), _created(stamps)


def _created(stamps: list[Path]) -> str | None:
    """The time that a stamp holds, if it names its zone: a local time of an unknown place is no time in UTC."""
    if not stamps:
        return None
    try:
        text = stamps[0].read_text(encoding="utf-8", errors="replace")
        time = datetime.fromisoformat(text.partition(":")[2].strip())
    except (OSError, ValueError):
        return None
    return None if time.utcoffset() is None else time.astimezone(UTC).isoformat()
