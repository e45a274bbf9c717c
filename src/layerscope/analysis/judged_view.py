"""The judged view: a run's rows with the columns of the answer saying what each prompt is judged by."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from layerscope.record.parts import Judge, PromptRecord
from layerscope.record.prompt_key import PromptKey, Table
from layerscope.record.protocol import Thresholds
from layerscope.record.run_record import RunRecord

_KEY = ["fact_index", "prompt_id", "prompt_variant"]
_JUDGE, _OWN = "_judge", "_own_id"
_COPY_WINDOWS = {"copy_soft_k2@0.5": 1, "copy_soft_k3@0.5": 2}
"""Soft copies over several layers, and the deepest layer at which the embedding is one of them."""


def judge_of(record: RunRecord, prompt: PromptKey | None) -> Judge:
    """What the milestones of a prompt are about; its answer's first piece where the record does not know it."""
    known = record.prompt(prompt)
    return "first_piece" if known is None else known.judge


def own_token(prompt: PromptRecord | None) -> int | None:
    """The token that the model itself says at the end of a prompt; None where that is not recorded."""
    return None if prompt is None or prompt.output is None else next(iter(prompt.output.top_ids), None)


def judged_rows(rows: Table, record: RunRecord) -> Table:
    """The table with the columns of an answer as each prompt is judged; everything else stays.

    `answer_rank`, `p_answer`, `answer_logit_gap`, `is_answer`, `answer_minus_uniform` and `semantic_margin_ok` speak of
    the whole answer where a prompt is judged by it, and of what the model itself says where it has no answer.
    `answer_vs_top1_gap` has no such counterpart and is null there. Masses and cosines stay with the first piece.

    Under protocol `standard`, the embedding of a model whose embedding is its unembedding decodes to the token that it
    was given, whatever the model does; it is no copy there.
    """
    rows = _by_judge(rows, record)
    tied = record.model.tied_unembedding and record.protocol.name != "published"
    return _without_trivial_copies(rows) if tied else rows


def _by_judge(rows: Table, record: RunRecord) -> Table:
    others = [prompt for prompt in record.suite.prompts if prompt.judge != "first_piece"]
    if not others:
        return rows
    columns = {_JUDGE: [p.judge for p in others], _OWN: [own_token(p) for p in others]}
    keys: Mapping[str, list[object]] = {name: [getattr(p.key, name) for p in others] for name in _KEY}
    given = rows.collect_schema()
    schema = {name: given[name] for name in _KEY} | {_JUDGE: pl.String(), _OWN: pl.Int32()}
    judged: Any = pl.DataFrame({**keys, **columns}, schema=schema)
    joined = rows.join(
        judged if isinstance(rows, pl.DataFrame) else judged.lazy(),
        on=_KEY,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    thresholds = Thresholds.from_dict(record.protocol.thresholds)
    return joined.with_columns(_judged_columns(1 / record.model.d_vocab, thresholds)).select(given.names())


def _judged_columns(uniform: float, thresholds: Thresholds) -> list[pl.Expr]:
    whole, own = pl.col(_JUDGE).eq_missing("whole"), pl.col(_JUDGE).eq_missing("model_top1")
    other = pl.col(_JUDGE).is_not_null()
    p_whole = pl.col("answer_log_prob_nats_all").exp()
    rank = pl.when(whole).then("answer_rank_all").otherwise("model_top1_rank")
    p = pl.when(whole).then(p_whole).otherwise("p_model_top1")
    gap = pl.when(whole).then("answer_logit_gap_all").otherwise("model_top1_logit_gap")
    clear = (rank == 1) & (p - uniform >= thresholds.semantic_margin)
    judged = {
        "answer_rank": rank,
        "p_answer": p,
        "answer_logit_gap": gap,
        "is_answer": rank == 1,
        "answer_minus_uniform": p - uniform,
        "semantic_margin_ok": clear,
        "answer_vs_top1_gap": pl.lit(None, pl.Float64),
    }
    columns = [pl.when(other).then(value).otherwise(pl.col(name)).alias(name) for name, value in judged.items()]
    return [*columns, pl.when(own).then(_OWN).otherwise("answer_id").alias("answer_id")]


def _without_trivial_copies(rows: Table) -> Table:
    copies = [
        name for name in rows.collect_schema() if name.startswith(("copy_collapse", "copy_strict@", "copy_soft_k"))
    ]
    return rows.with_columns(
        pl.when((pl.col("layer") <= _COPY_WINDOWS.get(name, 0)) & pl.col(name).is_not_null())
        .then(False)
        .otherwise(pl.col(name))
        .alias(name)
        for name in copies
    )
