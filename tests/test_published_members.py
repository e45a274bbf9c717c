"""Blocks of the published JSON as rows of keys and attributes: how a row is written, and that all it names exists."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass

import pytest
from pydantic import BaseModel

from layerscope import lens_record
from layerscope.analysis import (
    confirmation,
    consistency,
    diagnostics,
    facts,
    fitted_lens_audit,
    guidance,
    milestones,
    raw_comparison,
    trajectory,
    tuned_audit,
)
from layerscope.published import members
from layerscope.published.layout import EXTENDED, GENERATION_M
from layerscope.published.members import Member, block_of
from layerscope.published.read.document import Block
from layerscope.record import measured, parts, run_record

HOLDERS = [
    (members.RUN_IDENTITY, run_record.RunRecord),
    (members.MODEL_STATS, parts.ModelRecord),
    (members.UNEMBED_BIAS, measured.UnembedBiasRecord),
    (members.COPY_MASK, measured.CopyMaskRecord),
    (members.ENVIRONMENT, parts.ProvenanceRecord),
    (members.NUMERIC_HEALTH, parts.NumericHealthRecord),
    (members.NORM_TEMPERATURE, measured.NormTemperatureRecord),
    (members.LAYER_FLAG, parts.LayerFlag),
    (members.LAST_LAYER, measured.LastLayerRecord),
    (members.LAST_LAYER_REFINED, measured.LastLayerRecord),
    (members.LAST_LAYER_GATES, diagnostics.LastLayer),
    (members.PROMPT_KEY, parts.PromptRecord),
    (members.FACT_KEY, parts.PromptRecord),
    (members.GOLD_ANSWER, parts.AlignmentRecord),
    (members.GOLD_ALIGNMENT, parts.AlignmentRecord),
    (members.CONTROL_SUMMARY, facts.ControlSummary),
    (members.ABLATION, facts.Ablation),
    (members.NAMED_LAYER, milestones.Milestone),
    (members.NAMED_LAYER, consistency.DecodingTarget),
    (members.MILESTONE, milestones.Milestone),
    (members.CONFIRMATION, confirmation.Confirmation),
    (members.SCALED_TARGET, consistency.ScaledTarget),
    (members.REPEATABILITY, consistency.Repeatability),
    (members.DECODING_TARGET, consistency.DecodingTarget),
    (members.ONSET_GAP, consistency.OnsetGap),
    (members.LENS_AGREEMENT, consistency.LensAgreement),
    (members.FORWARD_MILESTONES, consistency.ForwardOfTwo),
    (members.FORWARD, consistency.ForwardOfTwo),
    (members.POSITION_WINDOW, facts.PositionWindow),
    (members.POSITION_REASONS, facts.PositionWindow),
    (members.GRID_POSITION, facts.GridPosition),
    (members.SAMPLED_TRAJECTORY, trajectory.NormTrajectory),
    (members.RAW_SAMPLE, raw_comparison.RawSample),
    (members.RAW_SUMMARY, raw_comparison.SampleCheck),
    (members.RAW_WINDOW, raw_comparison.WindowCheck),
    (members.RAW_PREVALENCE, raw_comparison.Comparison),
    (members.RAW_PERCENTILES, raw_comparison.Comparison),
    (members.RAW_FIRST, raw_comparison.FullCheck),
    (members.RAW_FIRST_LATER, raw_comparison.FullCheck),
    (members.TOPK_OVERLAP, raw_comparison.TopkOverlap),
    (members.ARTEFACT_SCORE, raw_comparison.ArtefactScores),
    (members.SCORE_RULE, raw_comparison.ScoreRule),
    (members.AUDITED_LAYERS, fitted_lens_audit.LayerPair),
    (members.ROTATION_GAIN, tuned_audit.RotationVsTemperature),
    (members.POSITIONS_AUDIT, tuned_audit.PositionsAudit),
    (members.HEAD_MISMATCH, tuned_audit.HeadMismatch),
    (members.ATTRIBUTED_GAIN, fitted_lens_audit.AttributedGain),
    (members.TRAINING_SEED, lens_record.Settings),
    (members.TRAINING_TEXT, lens_record.CorpusRecord),
    (members.TRAINING_DEVICE, lens_record.Settings),
    (members.PUBLISHED_FACT, facts.Fact),
    (members.FACT_ROWS, facts.Fact),
    (members.FACT_AGGREGATES, facts.MicroSuite),
    (members.FACT_MEDIANS, facts.MicroSuite),
    (members.GUIDANCE, guidance.Guidance),
    (members.PACK_ARTEFACT, raw_comparison.FullCheck),
    (members.PACK_ENTROPY, diagnostics.EntropyGap),
]
"""Every table with what its rows are attributes of."""


@dataclass(frozen=True)
class _Bits:
    p50: float | None


@dataclass(frozen=True)
class _Audit:
    below_0_5: int
    layers: tuple[int, ...]
    bits: _Bits
    by_name: dict[str, int]
    reason: str | None = None


AUDIT = _Audit(3, (1, 2), _Bits(0.25), {"a": 7})


def test_a_row_names_a_key_and_an_attribute_or_both_at_once() -> None:
    table = members.members(
        "below_0.5 first=below_0_5 {lens}_bits=bits.p50 inner/list=layers inner/a=by_name.a b=by_name.b"
    )
    block = block_of(table, AUDIT, GENERATION_M, lens="raw")
    assert block == {"below_0.5": 3, "first": 3, "raw_bits": 0.25, "inner": {"list": [1, 2], "a": 7}, "b": None}
    assert list(block) == ["below_0.5", "first", "raw_bits", "inner", "b"]


def test_what_came_with_the_extended_dialect_is_in_no_older_file() -> None:
    table = members.members("below_0.5", extended="reason")
    assert block_of(table, AUDIT, GENERATION_M) == {"below_0.5": 3}
    assert block_of(table, AUDIT, EXTENDED) == {"below_0.5": 3, "reason": None}


def test_nothing_has_no_attributes_and_each_is_null() -> None:
    table = members.members("below_0.5 bits=bits.p50 gate/reason=reason")
    assert block_of(table, None, EXTENDED) == {"below_0.5": None, "bits": None, "gate": {"reason": None}}


@pytest.mark.parametrize(("table", "holder"), HOLDERS)
def test_every_row_names_an_attribute_that_is_there(table: Sequence[Member], holder: type) -> None:
    names = set(dir(holder))  # properties
    if issubclass(holder, BaseModel):
        names |= set(holder.model_fields)
    elif is_dataclass(holder):
        names |= {field.name for field in fields(holder)}
    assert {member.attribute.partition(".")[0] for member in table} <= names


def test_no_table_is_left_out_of_that() -> None:
    tables = {name for name, value in vars(members).items() if name.isupper() and isinstance(value, tuple)}
    checked = {name for name in tables for table, _ in HOLDERS if set(getattr(members, name)) <= set(table)}
    assert checked == tables


def test_a_block_is_read_by_the_rows_that_write_it() -> None:
    record = measured.LastLayerRecord(kl_to_final_bits=0.5, top1_agree=True, answer_rank_lens=2, softcap=30.0)
    block = block_of(members.LAST_LAYER, record, GENERATION_M)
    assert block["cfg_transform"] == {"scale": None, "softcap": 30.0}
    problems: list[parts.ProblemRecord] = []
    values = Block(block, "last", "output-m.json", problems).values(measured.LastLayerRecord, members.LAST_LAYER)
    assert measured.LastLayerRecord.model_validate(values) == record and problems == []


def test_a_member_of_another_type_than_the_record_s_is_a_problem() -> None:
    block = {"top1_agree": 1, "answer_rank_lens": 2.5, "cfg_transform": {"softcap": "x"}}
    problems: list[parts.ProblemRecord] = []
    values = Block(block, "last", "output-m.json", problems).values(measured.LastLayerRecord, members.LAST_LAYER)
    assert set(values.values()) == {None}
    assert [problem.message.partition(",")[0] for problem in problems] == [
        "`last.top1_agree` should be a truth value",
        "`last.answer_rank_lens` should be a whole number",
        "`last.cfg_transform.softcap` should be a number",
    ]
