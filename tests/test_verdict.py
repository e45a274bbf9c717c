"""The verdict in words and the table of milestones: every sentence against plain loops over the rows, in 80 columns."""

import io
import re
from dataclasses import replace
from itertools import pairwise
from math import log2

import numpy as np
import polars as pl
import pytest
from rich.cells import cell_len
from rich.console import Console

import layerscope
from fitted_lenses import with_fitted_lenses
from layerscope.analysis.guidance import Guidance, Reason
from layerscope.analysis.statistics import summarize
from layerscope.errors import RunError
from layerscope.record.measured import LastLayerRecord, MeasuredRecord
from layerscope.record.parts import HeadTransformRecord, ProblemRecord
from layerscope.report.sentences.circumstances import spread
from layerscope.report.sentences.guidance import reporting
from layerscope.report.sentences.last_layer import explained
from layerscope.report.sentences.lines import layers
from layerscope.run import Run
from layerscope.terminal.run_tables import milestone_table, problem_lines
from layerscope.terminal.verdict import run_verdict, verdict_of

PRIMARY = (pl.col("fact_index") == 0) & (pl.col("prompt_variant") == "orig") & pl.col("is_next")


@pytest.fixture(scope="module")
def run() -> Run:
    """One fact in two wordings, and a control."""
    return layerscope.probe(suite="berlin", lenses="logit,next_norm,raw")


@pytest.fixture(scope="module")
def capitals() -> Run:
    """Five facts in two wordings, and a control."""
    return layerscope.probe(suite="capitals", lenses="logit,next_norm,raw")


def printed(parts) -> str:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    for part in parts:
        console.print(part)
    text = console.file.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    return text


def said(run: Run) -> str:
    """The verdict without its line breaks."""
    return " ".join(printed(run_verdict(run)).split())


def changed(run: Run, rows: pl.DataFrame | None = None, **record: object) -> Run:
    return Run(run.rows if rows is None else rows, run.record.model_copy(update=record))


def with_values(run: Run, where: pl.Expr, **values: object) -> Run:
    """The run with some values in some rows replaced."""
    types = run.rows.schema
    columns = [
        pl.when(where).then(pl.lit(value, dtype=types[name])).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    ]
    return changed(run, run.rows.with_columns(columns))


def without_rank_1(run: Run, where: pl.Expr, rank: int = 2) -> Run:
    return with_values(
        run, where, answer_rank=rank, is_answer=False, answer_logit_gap=None, semantic_margin_ok=False, p_answer=1e-4
    )


def curve(run: Run, lens: str, fact_index: int = 0, variant: str = "orig") -> list[dict]:
    found = run.rows.filter(is_next=True, lens=lens, fact_index=fact_index, prompt_variant=variant, prompt_id="pos")
    return found.sort("layer").to_dicts()


def first(rows: list[dict], holds) -> int | None:
    return next((row["layer"] for row in rows if holds(row)), None)


def is_strong(row: dict, d_vocab: int) -> bool:
    return row["answer_rank"] == 1 and row["p_answer"] - 1 / d_vocab >= 0.002 and row["answer_logit_gap"] >= 0.5


def first_of_two(rows: list[dict], holds) -> int | None:
    return next((a["layer"] for a, b in pairwise(rows) if holds(a) and holds(b)), None)


def failed(run: Run, **identity: object) -> Run:
    why = {"ok": False, "kl_bits": 3.5, "explanation": "softcap", "note": "A softcap is missing."}
    return changed(run, identity=run.record.identity.model_copy(update={**why, **identity}))


# The headline


def test_a_standard_run_takes_about_thirty_lines_of_80_columns(capitals):
    text = printed(run_verdict(capitals))
    assert len(text.splitlines()) <= 33


def test_the_headline_names_the_first_of_two_strong_layers_and_its_share_of_the_depth(run):
    layer = first_of_two(curve(run, "logit"), lambda row: is_strong(row, run.record.model.d_vocab))
    assert (
        f"The answer 'Berlin' becomes readable at layer {layer} of 12 ({layer / 12:.2f} of the depth) under lens "
        "logit: clearly ahead at two layers running (L_semantic_strong_run2)."
    ) in said(run)


def test_the_strength_is_what_the_row_of_that_layer_holds(run):
    d_vocab = run.record.model.d_vocab
    rows = curve(run, "logit")
    row = rows[first_of_two(rows, lambda row: is_strong(row, d_vocab))]
    entropy = row["entropy_bits"]
    assert (
        f"p {row['p_answer']:.3f}, {row['p_answer'] - 1 / d_vocab:.3f} above uniform, lead "
        f"{row['answer_logit_gap']:.3f} logits, entropy {entropy:.3f} bits = {entropy / log2(d_vocab):.2f} log2 V, "
        f"KL to final {row['kl_to_final_bits']:.3f} bits"
    ) in said(run)


def test_strength_at_the_first_rank_1_is_told_apart_from_that_of_the_headline(run):
    weak = with_values(run, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") == 4), answer_logit_gap=0.25)
    unsure = with_values(weak, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") == 4), p_answer=0.0005)
    assert "becomes readable at layer 5 of 12" in said(unsure)
    assert "at the first rank 1, layer 4: p 5.0e-04, lead 0.250 logits, hardly above uniform" in said(unsure)
    assert "hardly above uniform" not in said(weak)


def test_a_single_strong_layer_is_no_run_of_two(run):
    others = PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") != 6)
    text = said(with_values(run, others, answer_logit_gap=0.25))
    assert "readable at layer 6 of 12 (0.50 of the depth)" in text
    assert "clearly ahead, but not at two layers running (L_semantic_strong)" in text
    last = said(with_values(run, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") != 12), answer_logit_gap=0.2))
    assert "clearly ahead, at the last layer alone (L_semantic_strong)" in last


def test_a_rank_without_strength_is_headlined_as_such(run):
    logit = PRIMARY & (pl.col("lens") == "logit")
    text = said(with_values(run, logit, answer_logit_gap=0.25))
    assert "rank 1, confirmed by another lens, never clearly ahead (L_semantic_confirmed)" in text
    alone = without_rank_1(with_values(run, logit, answer_logit_gap=0.25), PRIMARY & (pl.col("lens") == "raw"))
    assert "rank 1 alone, never clearly ahead, confirmed by no other lens (L_semantic)" in said(alone)


def test_an_unrecorded_lead_is_never_told_as_a_missing_one(run):
    text = said(with_values(run, PRIMARY & (pl.col("lens") == "logit"), answer_logit_gap=None))
    assert "rank 1, confirmed by another lens, how clearly is not known" in text
    (row,) = re.findall(r"^logit .*$", printed(run_verdict(with_values(run, PRIMARY, answer_logit_gap=None))), re.M)
    assert row.split() == ["logit", "4", "4", "-", "-", "5", "5"]


def test_an_answer_that_never_leads_has_its_best_rank_told_and_no_strength(run):
    logit = PRIMARY & (pl.col("lens") == "logit")
    never = without_rank_1(without_rank_1(run, logit, 7), logit & (pl.col("layer") == 9), 3)
    text = printed(run_verdict(never))
    assert (
        "The answer 'Berlin' never becomes readable under lens logit: at no layer up to 12 is it the most likely "
        "token; its best rank is 3, at layer 9."
    ) in " ".join(text.split())
    assert not re.search(r"^(onset|confirmed|strength) ", text, re.M)
    assert re.search(r"^logit +none +none +none +none", text, re.M)


def test_an_answer_that_cannot_be_told_in_tokens_is_said_to_be_so(run):
    prompts = run.record.suite.prompts
    unresolved = (
        prompts[0]
        .answers[0]
        .model_copy(
            update={"ok": False, "status": "unresolved", "answer_ids": (), "first_id": None, "reason": "retokenised"}
        )
    )
    suite = run.record.suite.model_copy(
        update={"prompts": (prompts[0].model_copy(update={"answers": (unresolved,)}), *prompts[1:])}
    )
    absent = dict.fromkeys(("answer_rank", "is_answer", "p_answer", "answer_logit_gap", "semantic_margin_ok"))
    text = said(changed(with_values(run, PRIMARY, **absent), suite=suite))
    assert "never becomes readable under lens logit: it cannot be told in the model's tokens" in text
    assert "the gap between logit and next_norm is not known: the answer has no rank" in text


def test_first_and_stable_crossing_are_told_apart(run):
    lost = without_rank_1(run, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") == 6))
    text = said(lost)
    assert "rank 1 first at layer 4, but at every layer only from 7 on; clearly ahead at every layer from 7 on" in text
    at_last = without_rank_1(run, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") == 12))
    assert (
        "rank 1 first at layer 4, which does not hold to the last layer; clearly ahead not to the last layer"
        in said(at_last)
    )
    assert "rank 1 at every layer from 4 on" in said(run)


# Confirmation


def test_a_confirmation_names_the_lens_and_its_layers(run):
    rows = curve(run, "raw")
    near = [row["layer"] for row in rows if row["answer_rank"] == 1 and abs(row["layer"] - 4) <= 2]
    assert near == [4, 5, 6]
    assert "by raw at layers 4 to 6, for rank 1 at layer 4" in said(run)


def test_a_trivial_confirmation_is_called_trivial(run):
    sources = {**run.record.lens_sources, "logit": ("raw",) * 13}
    text = said(changed(run, lens_sources=sources))
    assert "by raw at layers 4 to 6, but trivially: there it computes the same as logit, so nothing new is said" in text
    weak = with_values(changed(run, lens_sources=sources), PRIMARY, answer_logit_gap=0.25)
    assert "rank 1, trivially confirmed by another lens, never clearly ahead" in said(weak)


def test_a_missing_confirmation_says_why_and_where_a_later_one_is(run):
    shallow = PRIMARY & (pl.col("lens") == "raw") & (pl.col("layer") < 9)
    text = said(without_rank_1(run, shallow))
    assert "no: no other lens has the answer on top within 2 layers of the onset" in text
    assert "a later rank 1, at layer 7, is confirmed" in text
    without = said(changed(run, run.rows.filter(pl.col("lens") != "raw")))
    assert "no: neither a raw nor a tuned lens was read" in without
    assert "not compared: no raw lens was read beside the headline lens" in without


# Lens by lens


@pytest.mark.parametrize("lens", ["logit", "next_norm", "raw"])
def test_the_table_of_lenses_is_what_loops_over_the_rows_find(run, lens):
    rows, d_vocab = curve(run, lens), run.record.model.d_vocab
    ranked = [row["layer"] for row in rows if row["answer_rank"] == 1]
    stable = next(i for i in range(13) if set(range(i, 13)) <= set(ranked))
    due = [
        ranked[0],
        stable,
        first(rows, lambda row: is_strong(row, d_vocab)),
        first_of_two(rows, lambda row: is_strong(row, d_vocab)),
        first(rows, lambda row: row["kl_to_final_bits"] <= 1),
        first(rows, lambda row: row["entropy_bits"] <= 1),
    ]
    (line,) = re.findall(rf"^{lens} +\d+ .*$", printed(run_verdict(run)), re.M)
    assert line.split()[1:] == [str(layer) for layer in due]


def test_never_is_said_only_where_every_layer_was_read(run):
    raw = PRIMARY & (pl.col("lens") == "raw")
    never = without_rank_1(run, raw)
    assert re.search(r"^raw +none +none +none +none", printed(run_verdict(never)), re.M)
    open_ = with_values(never, raw & (pl.col("layer") == 3), answer_rank=None, is_answer=None, p_answer=None)
    assert re.search(r"^raw +- +- +- +-", printed(run_verdict(open_)), re.M)
    fewer = changed(never, never.rows.filter(~(raw & (pl.col("layer") == 3))))
    assert re.search(r"^raw +- +- +- +-", printed(run_verdict(fewer)), re.M)


def test_the_gap_between_the_norms_is_always_said(run):
    assert "rank 1 comes at the same layer under logit and next_norm: 4" in said(run)
    shallow = PRIMARY & (pl.col("lens") == "next_norm") & (pl.col("layer") < 7)
    later = said(without_rank_1(run, shallow))
    assert "rank 1 comes 3 layers later under next_norm (7) than under logit (4)" in later
    logit = PRIMARY & (pl.col("lens") == "logit")
    earlier = said(without_rank_1(run, logit & (pl.col("layer") < 5)))
    assert "rank 1 comes 1 layer earlier under next_norm (4) than under logit (5)" in earlier
    never = said(without_rank_1(run, PRIMARY & (pl.col("lens") == "next_norm")))
    assert "rank 1 under logit at layer 4, under next_norm at no known layer, so the gap is not known" in never


def test_the_gap_is_taken_from_the_close_up_where_a_lens_has_no_rows(run):
    lenses = ("logit", "raw")
    protocol = run.record.protocol.model_copy(update={"lenses": lenses})
    sources = {lens: run.record.lens_sources[lens] for lens in lenses}
    fewer = changed(run, run.rows.filter(pl.col("lens").is_in(lenses)), protocol=protocol, lens_sources=sources)
    assert "rank 1 comes at the same layer under logit and next_norm: 4" in said(fewer)
    blind = changed(fewer, measured=MeasuredRecord(absent={"close_up": "not asked for"}))
    assert "the gap between logit and next_norm is not known: next_norm was not read" in said(blind)


# Circumstances


def test_control_and_wording_are_held_against_the_fact(run):
    rows = run.rows.filter(is_next=True, lens="logit", prompt_id="ctl").sort("layer").to_dicts()
    clear = first(
        rows, lambda r: r["control_margin"] > 0 and r["answer_rank"] == 1 and r["control_top2_logit_gap"] >= 0.5
    )
    most = max(row["control_top2_logit_gap"] for row in rows if row["control_top2_logit_gap"] is not None)
    assert f"its answer 'Paris' leads clearly first at layer {clear} (up to {most:.1f} logits)" in said(run)
    other = first(curve(run, "logit", variant="no_filler"), lambda row: row["answer_rank"] == 1)
    assert (other, clear) == (6, 4)
    assert "without the filler word at layer 6, 2 later than 4: sensitive" in said(run)


def test_a_control_without_a_clear_lead_and_a_fact_of_one_wording_are_told_as_such(run):
    muted = with_values(run, pl.col("prompt_id") == "ctl", control_margin=-0.5)
    assert "no clear lead of its answer 'Paris': the margin is positive at no layer" in said(muted)
    alone = said(changed(run, run.rows.filter(pl.col("prompt_variant") == "orig")))
    assert "not asked: the fact has one wording alone" in alone
    never = without_rank_1(run, (pl.col("prompt_variant") == "no_filler") & pl.col("is_next"))
    assert "rank 1 at layer 4, without the filler word at no known layer, so there is no difference to tell" in said(
        never
    )


def test_copying_is_told_with_its_distance_to_the_answer(run):
    assert "no strict copy (L_copy), no soft one; no echo in layers 0 to 3" in said(run)
    copied = with_values(run, PRIMARY & (pl.col("layer") == 1), copy_collapse=True)
    assert "strict copy (L_copy) at layer 1, 3 layers before rank 1; layers 0 to 3 echo the prompt" in said(copied)
    soft = with_values(run, PRIMARY & (pl.col("layer") == 5), **{"copy_soft_k1@0.5": True})
    assert "no strict copy (L_copy), a soft one at layer 5, 1 layer after rank 1; no echo" in said(soft)


def test_statistics_over_facts_are_those_of_the_onsets(capitals, run):
    onsets = [first(curve(capitals, "logit", fact_index=i), lambda row: row["answer_rank"] == 1) for i in range(5)]
    p25, middle, p75 = np.quantile(onsets, (0.25, 0.5, 0.75))
    assert f"rank 1: n 5, missing 0, median {middle:g} [IQR {p25:g}, {p75:g}]; 95% needs 10 facts" in said(capitals)
    fourth = pl.col("is_next") & (pl.col("fact_index") == 3) & (pl.col("prompt_variant") == "orig")
    assert "rank 1: n 5, missing 1, median" in said(without_rank_1(capitals, fourth))
    assert "one fact alone" in said(run)


def test_an_interval_is_given_where_there_are_facts_enough():
    summary = summarize([4] * 30)
    assert spread(summary) == "n 30, missing 0, median 4 [IQR 4, 4], 95% [4, 4]"
    assert spread(summarize([None, None])) == "n 2, missing 2"


def test_sampled_risk_and_full_tier_are_named_as_two_instruments(run):
    rows = curve(run, "logit")
    kl = [row["kl_norm_vs_raw_bits"] for row in rows]
    raw_ranks = {row["layer"]: row["answer_rank"] for row in curve(run, "raw")}
    alone = any(row["answer_rank"] == 1 and raw_ranks[row["layer"]] != 1 for row in rows)
    scores = [
        0.6 * sum(bits >= 1 for bits in part) / len(part) + 0.3 * alone + 0.1 * min(1, max(part) / 5)
        for part in (kl, kl[:-1])
    ]
    text = said(run)
    assert "sampled risk high (4 layers); full tier medium (13 layers)" in text
    assert f"score v1 {scores[0]:.3f} (v2 " in text and f"prefinal {scores[1]:.3f} (" in text
    assert max(kl[0], kl[4], kl[7], kl[10]) >= 1 and all(0.2 <= score <= 0.5 for score in scores)


@pytest.mark.parametrize(
    ("measured", "head", "sentence"),
    [
        (
            {"softcap": 30.0, "kl_after_softcap_bits": 0.01},
            None,
            "the model's softcap 30 would leave 0.010, which explains it",
        ),
        (
            {"scale": 0.0625, "kl_after_scale_bits": 0.9},
            None,
            "the model's scale 0.0625 would leave 0.900, which does not explain it",
        ),
        (
            {"scale": 2.0, "softcap": 30.0, "kl_after_scale_bits": 0.9, "kl_after_softcap_bits": 0.8,
             "kl_after_scale_then_softcap_bits": 0.1},
            None,
            "the model's scale 2 and softcap 30 would leave 0.100, which explains it",
        ),
        ({}, HeadTransformRecord(bias=False), "the model declares no scale and no softcap that would explain it"),
        ({}, None, "whether a scale or softcap of the model explains it is not known"),
    ],
)  # fmt: skip
def test_a_far_last_layer_says_whether_the_head_explains_it(run, measured, head, sentence):
    record = LastLayerRecord(kl_to_final_bits=1.2, top1_agree=False, temp_est=2.61, kl_after_temp_bits=0.35, **measured)
    assert explained(record, 0.25, head) == sentence
    far = changed(
        run,
        measured=run.record.measured.model_copy(update={"last_layer": record}),
        model=run.record.model.model_copy(update={"head_transform": head}),
    )
    text = said(far)
    start = "last layer 1.200 bits from the model's head under lens logit, with another top token; "
    assert f"{start}a temperature of 2.61 leaves 0.350; {sentence}" in text
    assert "withheld At the last layer the lens is far from the model's own output" in text


def test_a_near_last_layer_needs_no_explanation(run):
    kl = run.record.measured.last_layer.kl_to_final_bits
    assert kl < 1e-6
    assert f"last layer {kl:.1e} bits from the model's head under lens logit reporting" in said(run)


# What was not measured, what does not stand


def test_what_was_not_measured_is_said_and_no_number_takes_its_place(run):
    absent = {"last_layer": "the disk was full"}
    bare = changed(run, measured=MeasuredRecord(absent=absent))
    assert "its distance to the model's head was not measured: the disk was full" in said(bare)
    metrics = [name for name, kind in run.rows.schema.items() if kind == pl.Float64]
    text = printed(
        run_verdict(changed(bare, run.rows.with_columns(pl.lit(None, pl.Float64).alias(n) for n in metrics)))
    )
    body = text[: text.index("reporting")]
    assert re.findall(r"\d+\.\d+", body) == ["0.33", "0.002", "0.5"]  # the depth, and what strong asks for
    assert "strength layer 4: not measured" in " ".join(text.split())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_missing_from_the_rows_the_verdict_is_given(run, seed):
    rng = np.random.default_rng(seed)
    nullable = [c.name for c in layerscope.record.COLUMNS if c.nullable and c.name != "fact_index"]
    gone = [name for name in nullable if rng.random() < 0.4]
    rows = run.rows.with_columns(pl.lit(None, run.rows.schema[name]).alias(name) for name in gone)
    thinned = rows.filter(pl.Series(rng.random(len(rows)) < 0.8))
    text = said(changed(run, thinned))
    assert "None" not in text and "nan" not in text.split()


def test_a_failed_identity_check_withholds_whatever_rests_on_probabilities(run):
    text = printed(run_verdict(failed(run, fitted_softcap=30.0)))
    words = " ".join(text[: text.index("reporting")].split())
    assert "becomes readable at layer 4 of 12" in words
    assert "by rank alone, for probabilities are withheld (L_semantic)" in words
    for withheld in (
        "strong",
        "ahead",
        "entropy",
        "KL",
        "bits",
        " p ",
        "logits",
        "uniform",
        "score",
        "control",
        "copy",
    ):
        assert withheld not in words, withheld
    assert re.search(r"^lens +rank 1 +stable +layers running *\nlogit +4 +4 +4 *$", text, re.M)
    assert "without the filler word at layer 6, 2 later than 4: sensitive" in words
    assert "withheld The last layer, decoded by us, is not the model's own output" in " ".join(text.split())


def test_where_ranks_do_not_stand_either_no_layer_is_named(run):
    text = printed(run_verdict(failed(run, explanation=None)))
    words = " ".join(text.split())
    assert "No layer can be named: the identity check failed, and neither probabilities nor ranks stand." in words
    assert "report nothing of this run:" in words
    assert not re.search(r"^(lens|norm choice|facts|ablation|strength) ", text, re.M)
    table = " ".join(printed(milestone_table(failed(run, explanation=None))).split())
    assert "L_semantic" not in table and "Neither probabilities nor ranks stand." in table


def test_a_run_without_facts_names_no_layer(run):
    text = said(changed(run, run.rows.filter(pl.col("prompt_id") == "ctl")))
    assert "No layer can be named: there is no prompt about a fact under lens logit." in text


# What may be quoted


def test_every_reason_is_given_with_its_weight(run):
    text = said(run)
    assert len(run.guidance.reasons) == 3
    for reason in run.guidance.reasons:
        assert f"{ {'block': 'withheld', 'advise': 'caution'}[reason.severity] } {reason.text}" in text
    assert "report ranks and layers, but no probability or entropy of a layer:" in text
    assert "KL to final 8.300 bits (do not report)" in text


def guided(run: Run, **changes: object) -> str:
    found = replace(run.verdict, guidance=replace(run.guidance, **changes))
    return printed(verdict_of(found, run.record))


def test_without_a_reason_nothing_stands_against_probabilities(run):
    free = guided(run, reasons=(), suppress_abs_probs=False)
    assert "nothing stands against reporting probabilities" in free
    assert "do not report" not in free
    some = guided(run, reasons=(), suppress_abs_probs=False, undetermined=("copy_mask_missing",))
    assert "nothing that could be determined stands against reporting probabilities" in " ".join(some.split())
    assert re.search(r"^unknown +whether copy_mask_missing *$", some, re.M)


def test_advice_alone_forbids_nothing(run):
    advice = Reason("normalization_spike", "advise", "The norm jumps.")
    text = guided(run, reasons=(advice,), suppress_abs_probs=False)
    assert "probabilities may be reported together with this:" in text
    assert re.search(r"^caution +The norm jumps\. *$", text, re.M)


def test_what_is_unknown_takes_one_line_however_much_it_is():
    names = tuple(f"caution_number_{i}" for i in range(19))
    found = Guidance((), names, False, False, "tuned", None, None, "", None)
    said = {one.label: one.text for one in reporting(found, "logit")}
    shown = re.match(r"whether (.*) and (\d+) more$", said["unknown"])
    assert len(shown[1].split(", ")) + int(shown[2]) == 19
    assert len(said["unknown"]) <= 68
    assert said["prefer"] == "tuned is to be preferred to logit"


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([4], "layer 4"),
        ([4, 5], "layers 4 and 5"),
        ([4, 5, 6], "layers 4 to 6"),
        ([9, 1, 2, 3], "layers 1 to 3 and 9"),
        ([1, 3, 4, 5, 9], "layers 1, 3 to 5 and 9"),
    ],
)
def test_neighbouring_layers_are_drawn_together(numbers, words):
    assert layers(numbers) == words


# Names from outside


def test_wild_names_neither_steer_the_terminal_nor_burst_the_width(run):
    wild = "東京都\x1b[31m" * 12
    prompts = run.record.suite.prompts
    answer = prompts[0].answers[0].model_copy(update={"string": wild})
    first_prompt = prompts[0].model_copy(update={"answers": (answer,), "fact_key": wild})
    suite = run.record.suite.model_copy(update={"prompts": (first_prompt, *prompts[1:])})
    text = printed(run_verdict(changed(run, suite=suite)))
    assert "\x1b" not in text and r"\x1b[31m" in text.replace("\n", "").replace(" ", "")


def test_problems_are_listed_up_to_ten(run):
    problems = tuple(ProblemRecord(file="a.csv", row=i, message=f"cell {i} is no number\x1b") for i in range(13))
    lines = printed(problem_lines(changed(run, problems=problems))).splitlines()
    assert lines[0] == r"problem · a.csv, row 0: cell 0 is no number\x1b"
    assert lines[9].startswith("problem · a.csv, row 9") and lines[10:] == ["and 3 more"]
    assert not list(problem_lines(run))
    whole = ProblemRecord(file="b.csv", message="the file is missing")
    assert printed(problem_lines(changed(run, problems=(whole,)))) == "problem · b.csv: the file is missing\n"


# The table of milestones


def milestone_lines(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if re.match(r"(L_|first_|gap_|cos_)", line)}


@pytest.mark.parametrize("lens", ["logit", "next_norm", "raw"])
def test_the_table_of_milestones_has_a_line_for_each_with_what_its_row_holds(run, lens):
    text = printed(milestone_table(run, lens=lens))
    assert text.splitlines()[0].startswith(f"1 · Germany→Berlin · orig · lens {lens}")
    found, rows = milestone_lines(text), curve(run, lens)
    assert set(found) == {name.removesuffix("_stable") for name in run.milestones.of(lens)}
    layer = first(rows, lambda row: row["kl_to_final_bits"] <= 0.5)
    row = rows[layer]
    shown = [row["entropy_bits"], row["kl_to_final_bits"], row["p_answer"]]
    numbers = [f"{v:.3f}" if v == 0 or v >= 0.001 else f"{v:.1e}" for v in shown]
    stable = next(i for i in range(13) if all(r["kl_to_final_bits"] <= 0.5 for r in rows[i:]))
    assert found["first_kl_below_0.5"] == [str(layer), f"{layer / 12:.2f}", str(stable), *numbers]


def test_a_milestone_without_a_layer_has_its_reason_in_place_of_numbers(run):
    lost = without_rank_1(run, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer").is_in([5, 12])))
    text = printed(milestone_table(lost))
    found = milestone_lines(text)
    assert " ".join(found["L_copy"]) == "- - - holds at no layer"
    assert found["L_semantic"][:3] == ["4", "0.33", "lost"]
    assert "lost: does not hold to the last layer" in text
    confirmed = milestone_lines(printed(milestone_table(without_rank_1(run, PRIMARY))))["L_semantic_confirmed"]
    assert " ".join(confirmed).startswith("- - - the headline lens never has")


def test_the_milestones_of_another_prompt_are_asked_for_by_its_number(run):
    text = printed(milestone_table(run, prompt=2))
    layer = first(curve(run, "logit", variant="no_filler"), lambda row: row["answer_rank"] == 1)
    assert text.splitlines()[0].startswith("2 · Germany→Berlin · no_filler · lens logit")
    assert milestone_lines(text)["L_semantic"][0] == str(layer)
    for wrong in ({"prompt": 4}, {"prompt": 0}, {"lens": "tuned"}):
        with pytest.raises(RunError, match="This run has"):
            printed(milestone_table(run, **wrong))
    partial = changed(run, run.rows.filter(~PRIMARY | (pl.col("lens") != "raw")))
    with pytest.raises(RunError, match="no rows of"):
        printed(milestone_table(partial, lens="raw"))


def test_milestones_that_rest_on_probabilities_are_withheld_with_them(run):
    found = milestone_lines(printed(milestone_table(failed(run, fitted_scale=0.5))))
    kept = {name for name, cells in found.items() if cells[-1] != "withheld"}
    assert kept == {
        "L_semantic", "L_semantic_run2", "L_semantic_confirmed", "L_semantic_confirmed_any", "first_rank_le_1",
        "first_rank_le_5", "first_rank_le_10",
    }  # fmt: skip
    assert found["L_semantic"] == ["4", "0.33", "4"]


# Fitted lenses


@pytest.fixture(scope="module")
def fitted(run) -> Run:
    return with_fitted_lenses(run)


WEIGHED = "weighed by the model's probabilities, not by the lens'"
"""Of a fit and of what it is worth on held-out text: KL(model || lens), and not KL(lens || model) as rows have it."""


def about_fitted(run: Run) -> list[str]:
    """The lines under that label."""
    lines = printed(run_verdict(run)).splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("fitted")), len(lines))
    stop = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    return [line[12:].rstrip() for line in lines[start:stop]]


def with_measured(run: Run, **measured: object) -> Run:
    return changed(run, measured=run.record.measured.model_copy(update=measured))


def test_fitted_lenses_take_four_lines_with_gains_as_the_rows_have_them(fitted):
    own, tuned = ({row["layer"]: row for row in curve(fitted, lens)} for lens in ("logit", "tuned"))
    kl, tempered = own[6]["kl_to_final_bits"], own[6]["kl_to_final_bits_norm_temp"]
    no_map = fitted.record.measured.tuned_variants.bias_only.kl_to_final_bits[6]
    whole = tuned[6]["kl_to_final_bits"]
    verdicts = fitted.diagnostics.fitted_lenses
    assert about_fitted(fitted) == [
        f"against logit: tuned {verdicts['tuned'].verdict}, prism {verdicts['prism'].verdict}",
        f"tuned, layer 6, {kl - whole:+.2f} bits: temperature {kl - tempered:+.2f}, bias {tempered - no_map:+.2f}, "
        f"map {no_map - whole:+.2f}",
        "on held-out text +2.00 bits, weighed by the model's probabilities,",
        "not by the lens'; not accepted: gain, ranks",
    ]


def test_a_tuned_headline_lens_is_said_against_nothing_but_the_prism_lens(fitted):
    protocol = fitted.record.protocol.model_copy(update={"headline_lens": "tuned"})
    run = changed(fitted, protocol=protocol)
    assert about_fitted(run) == [f"against tuned: prism {run.diagnostics.fitted_lenses['prism'].verdict}"]


def test_bias_and_map_are_told_together_where_they_were_not_decoded_apart(fitted):
    (line,) = (line for line in about_fitted(with_measured(fitted, tuned_variants=None)) if "layer 6" in line)
    rest = curve(fitted, "logit")[6]["kl_to_final_bits_norm_temp"] - curve(fitted, "tuned")[5]["kl_to_final_bits"]
    assert line.endswith(f"map and bias {rest:+.2f}")


def test_a_run_without_fitted_lenses_says_nothing_of_them_and_a_refused_one_says_why(run, fitted):
    assert about_fitted(run) == []
    tuned = fitted.record.measured.fitted_lenses[0]
    why = {"status": "refused", "reason": "its weights are of another model"}
    refused = with_measured(run, fitted_lenses=(tuned.model_copy(update=why),))
    assert about_fitted(refused) == ["tuned was refused: its weights are of another model"]
    missing = with_measured(run, fitted_lenses=(tuned.model_copy(update=why | {"status": "missing"}),))
    assert about_fitted(missing) == []


def test_an_accepted_lens_and_one_that_only_calibrates_say_so(fitted):
    found = fitted.verdict
    passing = tuple(replace(c, passed=True) for c in found.diagnostics.acceptance.criteria)
    open_ = (replace(passing[0], passed=None), *passing[1:])
    for criteria, word in ((passing, "accepted"), (open_, "acceptance open")):
        accepted = replace(found.diagnostics.acceptance, criteria=criteria)
        diagnostics = replace(found.diagnostics, acceptance=accepted)
        text = " ".join(printed(verdict_of(replace(found, diagnostics=diagnostics), fitted.record)).split())
        assert f"on held-out text +2.00 bits, {WEIGHED}; {word} reporting" in text
    medians = replace(
        found.diagnostics.tuned_audit.rotation_vs_temperature,
        rotation_bits={"p50": 0.0}, temperature_bits={"p50": 1.0}, tuned_bits=1.0,
    )  # fmt: skip
    audit = replace(found.diagnostics.tuned_audit, rotation_vs_temperature=medians)
    diagnostics = replace(found.diagnostics, tuned_audit=audit)
    text = " ".join(printed(verdict_of(replace(found, diagnostics=diagnostics), fitted.record)).split())
    assert f"on held-out text +2.00 bits, {WEIGHED}; little more than a temperature reporting" in text


# Published runs


@pytest.mark.parametrize(
    ("model", "sentences"),
    [
        ("echo", ["layer 9", "strong"]),
        (
            "fickle",
            ["rank 1 first at layer 5, which does not hold to the last layer", "strict copy (L_copy) at layer 0"],
        ),
        ("reference", ["layer 4", "tuned"]),
        ("mute", ["at no layer"]),
    ],
)
def test_self_made_published_runs_get_a_verdict_too(made_sweep, model, sentences):
    run = Run.read(made_sweep, model=model)
    text = said(run)
    assert [sentence for sentence in sentences if sentence not in text] == []
    printed(milestone_table(run))


@pytest.mark.parametrize(
    ("sweep", "model", "sentences"),
    [
        (
            "run-20251004-1804",
            "Qwen3-8B",
            ["rank 1 first at layer 31, but at every layer only from 33 on", "full tier high (37 layers)"],
        ),
        (
            "run-20251004-1804",
            "gemma-2-9b",
            [
                "by tuned at layer 42, but trivially",
                "clearly ahead, at the last layer alone",
                "a temperature of 2.61",
                "tuned, layer 21, -10.52 bits: temperature -6.10, map and bias -4.42",
                "not accepted: gain, ranks, last layer, loss",
            ],
        ),
        (
            "run-20251004-1804",
            "Meta-Llama-3-70B",
            ["sampled risk low (4 layers); full tier medium (81 layers)", "layer 40: p 2.4e-05"],
        ),
        ("run-20250921-1713", "Qwen2.5-72B", ["how clearly is not known", "logit was not read"]),
    ],
)
def test_published_runs_get_a_verdict_too(shared, sweep, model, sentences):
    run = Run.read(shared / "reference" / sweep, model=model)
    text = said(run)
    assert [sentence for sentence in sentences if sentence not in text] == []
    printed(milestone_table(run))
