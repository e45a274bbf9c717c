"""Verification of a comparison: what follows from its rows and its other members is found anew."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import polars as pl

from layerscope.analysis.diff_files import read_diff
from layerscope.analysis.model_diff import LayerDiff, ModelDiff, onset_for_good
from layerscope.analysis.verdict_json import json_text
from layerscope.errors import RunError
from layerscope.record.diff_rows import DIFF_COLUMNS, FILE
from layerscope.report.cited.claims import Citation
from layerscope.report.cited.markdown import markdown
from layerscope.report.cited.report_files import body_of
from layerscope.report.cited.sources import JsonFile, pointer, read_json
from layerscope.report.diffs import NAME, diff_report
from layerscope.report.verify import Difference, Verified, differing_lines, same_value, short_text

_MEANS = ("injected_kl_bits", "kl_bits", "js_bits", "base_to_output_bits", "variant_to_output_bits")
_MEDIANS = ("relative_change", "cosine", "injected", "inherited")
NO_ROWS = "of output, modules, rounding and settings no rows are kept"
"""What a comparison's figures cannot be checked against."""


def verify_diff(path: Path) -> Verified:
    """Hold a comparison's JSON against its rows, and its report against the JSON.

    Args:
        path: its `diff.json` or `run-diff.json`.

    Raises:
        RunError: a file cannot be read, or is no such comparison.
    """
    found = read_diff(path)
    stated = path.read_text(encoding="utf-8")
    checked, differences, notes = dict[str, int](), list[Difference](), [NO_ROWS]
    checked[path.name], of_file = differing_lines(path.name, stated, json_text(found))
    differences += of_file
    if isinstance(found, ModelDiff):
        document = read_json(path.name, stated.encode())
        of_rows = list(_against_rows(found, _rows(path.parent / FILE), document))
        checked[FILE] = len(of_rows)
        differences += [one for one in of_rows if one is not None]
    report = path.parent / NAME
    if not report.exists():
        notes.append(f"no {NAME} beside it")
    elif (body := body_of(report.read_text(encoding="utf-8", errors="replace"))) is None:
        notes.append(f"{NAME} was written by others")
    else:
        checked[NAME], of_report = differing_lines(NAME, body, markdown(diff_report(path)), first_line=2)
        differences += of_report
    name = found.variant.id if isinstance(found, ModelDiff) else found.variant.model_id
    return Verified(name, checked, tuple(differences), tuple(notes))


def _rows(path: Path) -> pl.DataFrame:
    try:
        rows = pl.read_parquet(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); a comparison's folder holds it.") from error
    except pl.exceptions.PolarsError as error:
        raise RunError(f"{path}: no such table ({error}); take the file from a copy.") from error
    expected = {column.name: column.dtype for column in DIFF_COLUMNS}
    if dict(rows.schema) != expected:
        raise RunError(f"{path}: it should have the columns {', '.join(expected)}; take the file from a copy.")
    return rows


def _against_rows(found: ModelDiff, rows: pl.DataFrame, document: JsonFile) -> Iterator[Difference | None]:
    """A difference, or None, for every value that rows give."""
    by_layer = rows.filter(~pl.col("is_prompt")).group_by("layer").agg(_summaries()).sort("layer")
    again = {row["layer"]: row for row in by_layer.iter_rows(named=True)}
    yield _compared(document, found.n_rows, rows.filter(~pl.col("is_prompt"), layer=0).height, "n_rows")
    for i, layer in enumerate(found.layers):
        for name in (field.name for field in fields(LayerDiff)):
            derived = again.get(layer.layer, {}).get(name)
            yield _compared(document, getattr(layer, name), derived, "layers", i, name)
    if found.suite is None:
        return
    prompts = rows.filter("is_prompt").partition_by("text", maintain_order=True)
    yield _compared(document, len(found.suite.prompts), len(prompts), "suite", "prompts")
    for i, (fact, own) in enumerate(zip(found.suite.prompts, prompts, strict=False)):
        at_end = own.filter(pl.col("position") == pl.col("position").max()).sort("layer")
        for which in ("base", "variant"):
            ranks = at_end[f"{which}_rank"].to_list()
            judged = fact.answer is not None
            rank, onset = f"{which}_rank", f"{which}_onset"
            yield _compared(document, getattr(fact, rank), ranks[-1] if judged else None, "suite", "prompts", i, rank)
            own_onset = onset_for_good(ranks) if judged else None
            yield _compared(document, getattr(fact, onset), own_onset, "suite", "prompts", i, onset)


def _summaries() -> list[pl.Expr]:
    return [
        *(pl.col(name).median() for name in _MEDIANS),
        *(pl.col(name).mean() for name in _MEANS),
        (pl.col("base_top1_id") == pl.col("variant_top1_id")).mean().alias("top1_agreement"),
    ]


def _compared(document: JsonFile, stated: object, derived: object, *path: str | int) -> Difference | None:
    if path[-1] == "layer" or same_value(stated, derived):
        return None
    entry = document.at(*path)
    where = None if entry is None else Citation(document.name, entry.line, entry.last_line, pointer=entry.pointer)
    return Difference(pointer(*path), short_text(stated), short_text(derived), where)
