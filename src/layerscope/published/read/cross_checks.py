"""Whether the files of a published run belong together: nothing missing between them, and nothing that contradicts."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from layerscope.published.dialect import Fault
from layerscope.published.layout import HEADLINE, Value
from layerscope.published.read.csv_table import PRIMARY, TableRow, TableRows, in_words, note
from layerscope.published.read.document import Block
from layerscope.published.read.merge import Tables
from layerscope.record.milestone_names import ONSET
from layerscope.record.parts import ProblemRecord
from layerscope.record.prompt_key import PromptKey

_BETWEEN_TABLES = 1e-6
"""Relative difference that tables may have: they were written from the same numbers."""
_COMPUTED_TWICE = 1e-4
"""Of what a table and the JSON computed apart, from float32 logits; of entropies, absolute in bits as well."""
_NO_DIVERGENCE = 1e-6
"""Bits (or probability) that rounding alone leaves: the identity check's tolerance in float32."""
_MIXED = "files of two runs may be mixed"


def within_layers(table: TableRows, n_layers: int, json: str, problems: list[ProblemRecord]) -> TableRows:
    """The table without rows of layers that the model does not have."""
    beyond = [row for row in table.rows if row.layer > n_layers]
    if beyond:
        layers = in_words(row.layer for row in beyond)
        message = f"rows of layers {layers} were left out, because {json} says that the model has {n_layers}; {_MIXED}"
        note(problems, table.file, [Fault(beyond[0].number, message)])
    return replace(table, rows=tuple(row for row in table.rows if row.layer <= n_layers))


def in_place(table: TableRows, last: Mapping[PromptKey, int], at_end: bool, problems: list[ProblemRecord]) -> TableRows:
    """The table without rows beyond their prompt's last position; `at_end` if none may be before it either."""
    kept, faults = list[TableRow](), list[Fault]()
    for row in table.rows:
        end = last.get(row.prompt, row.position)
        if row.position is None or row.position == end or (not at_end and end is not None and row.position < end):
            kept.append(row)
        else:
            message = (
                f"{row.prompt.label} is at position {row.position} here and ends at {end} elsewhere; left out, {_MIXED}"
            )
            faults.append(Fault(row.number, message))
    note(problems, table.file, faults)
    return replace(table, rows=tuple(kept))


def check_completeness(
    tables: Tables, last: Mapping[PromptKey, int], n_layers: int, json: str, problems: list[ProblemRecord]
) -> None:
    """Note every prompt and layer that a table should have and lacks."""
    for table in tables.all:
        first = 1 if any(table is tuned.get("tuned") for tuned in (tables.next_token, tables.records)) else 0
        by_prompt: dict[PromptKey, list[TableRow]] = {}
        for row in table.rows:
            by_prompt.setdefault(row.prompt, []).append(row)
        faults = [Fault(None, f"has no rows of {p.label}, which other tables have") for p in last if p not in by_prompt]
        top = max((row.layer for row in table.rows), default=None)
        if top is None:
            faults.append(Fault(None, "has no rows that could be read"))
        elif top < n_layers:
            message = f"the last layer is {top}, but {json} says that the model has {n_layers} layers"
            faults.append(Fault(table.rows[-1].number, f"{message}; the file is cut, or {_MIXED}"))
        for prompt, rows in by_prompt.items():
            faults += _missing_layers(prompt, rows, range(first, (top or 0) + 1))
        if any(table is records for records in tables.records.values()):
            faults += _missing_positions(by_prompt, last)
        note(problems, table.file, faults)


def _missing_layers(prompt: PromptKey, rows: list[TableRow], layers: range) -> list[Fault]:
    """Layers that a prompt lacks, or lacks at some of the positions it has."""
    have = {(row.layer, row.position) for row in rows}
    places = list(dict.fromkeys(row.position for row in rows))
    lacking: dict[tuple[int | None, ...], list[int]] = {}
    for layer in layers:
        positions = tuple(position for position in places if (layer, position) not in have)
        if positions:
            lacking.setdefault(positions, []).append(layer)
    faults = []
    for positions, those in lacking.items():
        some = len(positions) < len(places)
        where = f" at {_plural('position', [at for at in positions if at is not None])}" if some else ""
        before = [row.number for row in rows if row.layer < those[0]]
        message = f"{prompt.label} lacks {_plural('layer', those)}{where}"
        faults.append(Fault(max(before, default=None), f"{message}, expected after this row" if before else message))
    return faults


def _plural(name: str, numbers: list[int]) -> str:
    return f"{name}{'s' if len(numbers) > 1 else ''} {in_words(numbers)}"


def _missing_positions(by_prompt: Mapping[PromptKey, list[TableRow]], last: Mapping[PromptKey, int]) -> list[Fault]:
    """Positions that prompts lack at every layer, in one fault; a prompt that was read at its end alone lacks none."""
    messages = []
    for prompt, rows in by_prompt.items():
        have, end = sorted({row.position for row in rows if row.position is not None}), last.get(prompt, 0)
        gaps = [(before + 1, after - 1) for before, after in pairwise([-1, *have, end + 1]) if after - before > 1]
        if gaps and have != [end]:
            ranges = ", ".join(f"{first} to {final}" for first, final in gaps[:20])
            messages.append(f"{prompt.label} lacks positions {ranges}")
    more = f", and {len(messages) - 1} other prompts lack some too" if len(messages) > 1 else ""
    return [Fault(None, messages[0] + more)] if messages else []


def check_tables(tables: Tables, problems: list[ProblemRecord]) -> None:
    """Note tables that give two values for one quantity."""
    norm = tables.next_token.get(HEADLINE)
    if norm is not None and tables.rawlens is not None:
        for ours, theirs in (("p_top1", "p_top1_norm"), ("answer_rank", "answer_rank_norm")):
            _compare(norm, ours, tables.rawlens, theirs, problems)
    for lens, records in tables.records.items():
        if lens in tables.next_token:
            _compare(tables.next_token[lens], "entropy", records, "entropy", problems)
    for lens, sibling in tables.next_token.items():
        if norm is not None and lens != HEADLINE:
            _compare(norm, "teacher_entropy_bits", sibling, "teacher_entropy_bits", problems)


def _compare(
    table: TableRows, its_column: str, other: TableRows, others_column: str, problems: list[ProblemRecord]
) -> None:
    """Note the first row at which two tables differ, and how many there are."""
    known = {(row.prompt, row.layer): row for row in table.rows}
    different = []
    for row in other.rows:
        match = known.get((row.prompt, row.layer))
        if match is None or row.position not in (None, match.position):
            continue
        if not _near(match.values.get(its_column), row.values.get(others_column), _BETWEEN_TABLES, 1e-12):
            different.append((match, row))
    if different:
        match, row = different[0]
        message = (
            f"{row.prompt.label}, layer {row.layer}: `{others_column}` is {row.values[others_column]}, but "
            f"`{its_column}` is {match.values[its_column]} in {table.file}, row {match.number}; "
            f"{len(different)} rows differ so; {_MIXED}"
        )
        note(problems, other.file, [Fault(row.number, message)])


def check_json(document: Block, tables: Tables, n_layers: int, problems: list[ProblemRecord]) -> None:
    """Note what the JSON says of the primary prompt and the rows do not."""
    norm = tables.next_token.get(HEADLINE)
    if norm is None:
        return
    rows = {row.layer: row for row in norm.rows if row.prompt == PRIMARY}
    diagnostics = document.block("diagnostics")

    def contradiction(key: str, value: Value, row: TableRow, column: str) -> None:
        message = f"`{column}` is {row.values[column]}, but `{key}` of {document.file} is {value}; {_MIXED}"
        note(problems, norm.file, [Fault(row.number, message)])

    last_layer = diagnostics.block("last_layer_consistency")
    for key, column in (
        ("p_top1_lens", "p_top1"), ("p_answer_lens", "p_answer"), ("answer_rank_lens", "answer_rank"),
        ("kl_to_final_bits", "kl_to_final_bits"),
    ):  # fmt: skip
        value = last_layer.number(key)
        relative = _BETWEEN_TABLES if column == "answer_rank" else _COMPUTED_TWICE
        if n_layers in rows and not _near(rows[n_layers].values.get(column), value, relative, _NO_DIVERGENCE):
            contradiction(f"{last_layer.name}.{key}", value, rows[n_layers], column)
    entropy = document.block("final_prediction").number("entropy")
    for row in rows.values():
        if not _near(row.values.get("teacher_entropy_bits"), entropy, _COMPUTED_TWICE, _COMPUTED_TWICE):
            contradiction("final_prediction.entropy", entropy, row, "teacher_entropy_bits")
            break
    if ONSET in diagnostics.members and set(rows) == set(range(n_layers + 1)):
        _check_onset(diagnostics.whole(ONSET), norm, list(rows.values()), document.file, problems)


def _check_onset(
    stated: int | None, norm: TableRows, rows: list[TableRow], json: str, problems: list[ProblemRecord]
) -> None:
    """The first layer whose top token is the answer; not judged where some row does not say."""
    if any(row.values.get("is_answer") is None for row in rows):
        return
    onset = min((row.layer for row in rows if row.values["is_answer"]), default=None)
    if onset != stated:
        number = next((row.number for row in rows if row.layer == (stated if onset is None else onset)), None)
        message = f"the answer is first on top at layer {onset}, but {json} has L_semantic {stated}; {_MIXED}"
        note(problems, norm.file, [Fault(number, message)])


def _near(first: Value, second: Value, relative: float, absolute: float) -> bool:
    """Whether two numbers agree; one that is absent contradicts nothing."""
    if isinstance(first, str) or isinstance(second, str) or first is None or second is None:
        return True
    return math.isclose(first, second, rel_tol=relative, abs_tol=absolute)
