"""From tables to our rows: what several of them say of one prompt, lens, layer and position becomes one row."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from layerscope.published.dialect import Fault
from layerscope.published.layout import HEADLINE, TableColumn, Value
from layerscope.published.read.csv_table import PRIMARY, TableRow, TableRows, note
from layerscope.record.parts import ProblemRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import PROTOCOLS
from layerscope.record.rows import COLUMNS, rows_frame

LENSES = (HEADLINE, "raw", "prism", "tuned")
"""Lenses of published tables, in the order of our rows."""
_OVERLAPS = ("topk_jaccard_raw_norm@50", "topk_jaccard_consecutive@50")
_SATURATED = PROTOCOLS["published"].thresholds.kl_saturated_bits
Key = tuple[PromptKey, str, int, int]
"""Prompt, lens, layer, position."""
Row = dict[str, object]
"""By our columns' names."""


@dataclass(frozen=True)
class Tables:
    """The tables of one run from which rows are made."""

    next_token: dict[str, TableRows]
    """By lens."""
    records: dict[str, TableRows]
    rawlens: TableRows | None

    def each(self, change: Callable[[TableRows, bool], TableRows]) -> "Tables":
        """Tables changed one by one; `change` takes the table and whether it is at the last position."""
        return Tables(
            {lens: change(table, True) for lens, table in self.next_token.items()},
            {lens: change(table, False) for lens, table in self.records.items()},
            None if self.rawlens is None else change(self.rawlens, True),
        )

    @property
    def all(self) -> list[TableRows]:
        """Every one of them, the tables at the last position first."""
        return [*self.next_token.values(), *self.records.values(), *([self.rawlens] if self.rawlens else [])]


@dataclass(frozen=True)
class FromJson:
    """What rows take from the JSON."""

    file: str
    answer_ids: Mapping[PromptKey, int | None]
    raw_resid_norms: Sequence[float | None] = ()
    """Of the primary prompt's last position, by layer."""
    not_finite: frozenset[tuple[str, int]] = frozenset()
    """Lens and layer of rows of the primary prompt that were flagged."""


@dataclass
class Merged:
    """Rows, with the last position and the tokens of their prompts."""

    rows: dict[Key, Row] = field(default_factory=dict)
    last: dict[PromptKey, int] = field(default_factory=dict)
    """The last position of each prompt, in the order of the files."""
    tokens: dict[tuple[PromptKey, int], str] = field(default_factory=dict)
    """Input token by prompt and position."""

    @property
    def lenses(self) -> list[str]:
        """Those that have rows, in our order."""
        read = {lens for _, lens, _, _ in self.rows}
        return [lens for lens in LENSES if lens in read]

    @property
    def facts(self) -> set[int]:
        """The facts that have prompts."""
        return {prompt.fact_index for prompt in self.last if prompt.fact_index is not None}

    def positions(self, prompt: PromptKey) -> tuple[int, ...]:
        """Positions of the prompt that have rows."""
        return tuple(sorted({key[3] for key in self.rows if key[0] == prompt}))


def merge(tables: Tables, last: dict[PromptKey, int], document: FromJson, problems: list[ProblemRecord]) -> Merged:
    """All rows that the tables hold; `last` is where each prompt ends."""
    merged = Merged(last=last, tokens=_tokens(tables.records.values(), problems))
    for lens, table in tables.next_token.items():
        for row in table.rows:
            if row.position is not None:
                merged.rows[row.prompt, lens, row.layer, row.position] = _plain_values(table.columns, row.values)
    for lens, table in tables.records.items():
        for row in table.rows:
            if row.position is not None:
                _add_record(merged, (row.prompt, lens, row.layer, row.position), table.columns, row)
    if len(merged.facts) > 1:
        # Where there are several facts, published next-token tables have the last one's overlaps for every fact. The
        # raw-lens table has each fact's own; without it there are none.
        for known in merged.rows.values():
            known.update(dict.fromkeys(_OVERLAPS))
    if tables.rawlens is not None:
        _add_rawlens(merged, tables.rawlens, problems)
    _add_what_json_says(merged, document, problems)
    for (prompt, *_), known in merged.rows.items():
        if prompt.prompt_id == "ctl":  # whose answer is the control's own, so that both leads are one
            known["control_top2_logit_gap"] = known.get("answer_logit_gap")
    return merged


def frame_of_rows(merged: Merged, fact_keys: Mapping[PromptKey, str]) -> pl.DataFrame:
    """The table of the run: by prompt in the order of the files, then lens, layer, position."""
    order = {prompt: i for i, prompt in enumerate(merged.last)}
    keys = sorted(merged.rows, key=lambda key: (order[key[0]], LENSES.index(key[1]), *key[2:]))
    rows = [_whole_row(merged, key, fact_keys) for key in keys]
    return rows_frame({column.name: [row.get(column.name) for row in rows] for column in COLUMNS})


def last_positions(tables: Tables) -> dict[PromptKey, int]:
    """Where each prompt ends, by the first table that has it: next-token tables have the last position alone."""
    last: dict[PromptKey, int] = {}
    for table in (*tables.next_token.values(), *tables.records.values()):
        positions: dict[PromptKey, Counter[int]] = {}
        for row in table.rows:
            if row.position is not None:
                positions.setdefault(row.prompt, Counter())[row.position] += 1
        for prompt, counts in positions.items():
            # Every position has as many rows as any other; one that has few is a damaged cell, and no end.
            most = max(counts.values())
            last.setdefault(prompt, max(position for position, n in counts.items() if 2 * n > most))
    return last


def _tokens(records: Iterable[TableRows], problems: list[ProblemRecord]) -> dict[tuple[PromptKey, int], str]:
    """Input tokens; a row that says another one than the first row of its place is noted."""
    tokens: dict[tuple[PromptKey, int], str] = {}
    for table in records:
        faults = []
        for row in table.rows:
            if row.position is None or not any(column.name == "token" for column in table.columns):
                continue
            token = str(row.values["token"] or "")
            first = tokens.setdefault((row.prompt, row.position), token)
            if token != first:
                message = (
                    f"the input token of {row.prompt.label} at position {row.position} is not the same in all rows"
                )
                faults.append(Fault(row.number, f"{message} ({first!r} was kept); files of two runs may be mixed"))
        note(problems, table.file, faults)
    return tokens


def _plain_values(columns: Sequence[TableColumn], values: Mapping[str, Value]) -> Row:
    """What a next-token or records row holds, under our names; its own token is left to the records."""
    row: Row = {
        column.ours: values[column.name]
        for column in columns
        if column.ours is not None and column.part is None and column.name not in ("entropy", "token")
    }
    if row.get("entropy_bits") is None:
        row["entropy_bits"] = values.get("entropy")
    tokens, probs = [], []
    for column in columns:
        if column.ours == "top_tokens" and isinstance(column.part, int):
            token, prob = values[column.name], values.get(f"prob{column.part + 1}")
            if token is None and prob is None:
                break
            tokens.append("" if token is None else token)  # of a token that is there, an empty cell is the empty text
            probs.append(prob)
    if tokens:
        row |= {"top1": tokens[0], "top_tokens": tokens, "top_probs": probs}
    return row


def _add_record(merged: Merged, key: Key, columns: Sequence[TableColumn], row: TableRow) -> None:
    """At the last position, a record adds the longer list to the next-token row; elsewhere it is the row."""
    record = _plain_values(columns, row.values)
    known = merged.rows.setdefault(key, record)
    if known is record:
        return
    longer, shorter = record.get("top_tokens"), known.get("top_tokens")
    if isinstance(longer, list) and (not isinstance(shorter, list) or len(longer) > len(shorter)):
        known |= {name: record.get(name) for name in ("top_tokens", "top_probs", "rest_mass")}
    for name, value in record.items():
        if known.get(name) is None:
            known[name] = value


def _add_rawlens(merged: Merged, table: TableRows, problems: list[ProblemRecord]) -> None:
    """The raw lens' rows, and to the norm lens' rows what compares the two."""
    faults = []
    for row in table.rows:
        position = merged.last.get(row.prompt)
        if position is None:
            message = f"no other table says at which position {row.prompt.label} ends, so its rows were left out"
            faults.append(Fault(row.number, message))
            continue
        for lens in ("raw", HEADLINE):
            values: Row = {
                column.ours: row.values[column.name]
                for column in table.columns
                if column.lens == lens and column.ours is not None
            }
            if values.get("top1") is None and values.get("top1_id") is not None:
                values["top1"] = ""
            known = merged.rows.setdefault((row.prompt, lens, row.layer, position), {})
            for name, value in values.items():
                if known.get(name) is None or (name in _OVERLAPS and value is not None):
                    known[name] = value
    note(problems, table.file, faults)


def _add_what_json_says(merged: Merged, document: FromJson, problems: list[ProblemRecord]) -> None:
    for (prompt, lens, layer, position), row in merged.rows.items():
        row["answer_id"] = document.answer_ids.get(prompt)
        if prompt != PRIMARY or position != merged.last[prompt]:
            continue
        if layer < len(document.raw_resid_norms):
            row["raw_resid_norm"] = document.raw_resid_norms[layer]
        row["finite"] = (lens, layer) not in document.not_finite
        if not row["finite"] and row.get("entropy_bits") is not None:
            message = f"layer {layer} of {lens} is flagged as not finite, so the metrics of its row were left out"
            note(problems, document.file, [Fault(None, message)])


def _whole_row(merged: Merged, key: Key, fact_keys: Mapping[PromptKey, str]) -> Row:
    prompt, lens, layer, position = key
    row = merged.rows[key]
    kl = row.get("kl_to_final_bits")
    return row | {
        "fact_key": fact_keys.get(prompt),
        "fact_index": prompt.fact_index,
        "prompt_id": prompt.prompt_id,
        "prompt_variant": prompt.prompt_variant,
        "lens": lens,
        "layer": layer,
        "position": position,
        "token": merged.tokens.get((prompt, position)),
        "is_next": position == merged.last[prompt],
        "finite": row.get("finite", True),
        "kl_saturated": kl > _SATURATED if isinstance(kl, float) else None,
    }
