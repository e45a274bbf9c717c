"""The verdict in words and the table of milestones: every sentence against plain loops over the rows, in 80 columns."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import log, log2
from statistics import median

import numpy as np
import polars as pl
import pytest
from rich.cells import cell_len
from rich.console import Console

import layerscope
from fitted_lenses import with_fitted_lenses
from layerscope.analysis.guidance import Detail, Guidance, Reason, reason_names
from layerscope.analysis.milestones import find_milestones
from layerscope.analysis.onsets import layers_over_facts
from layerscope.analysis.quotability import LayerStatus, Quotability
from layerscope.errors import RunError
from layerscope.record.measured import (
    LastLayerRecord,
    MeasuredRecord,
    ShuffledPromptRecord,
    ShuffledWeightsRecord,
)
from layerscope.record.parts import HeadTransformRecord, ProblemRecord
from layerscope.record.protocol import Thresholds
from layerscope.report.sentences import circumstances, onsets
from layerscope.report.sentences.guidance import in_short, probabilities, reporting
from layerscope.report.sentences.last_layer import explained
from layerscope.report.sentences.lines import LINE, layers
from layerscope.run import Run
from layerscope.terminal.run_tables import milestone_table, problem_lines
from layerscope.terminal.verdict import run_verdict, verdict_of
from probed import probed
from small_record import answer, fact, ranked

PRIMARY = (pl.col("fact_index") == 0) & (pl.col("prompt_variant") == "orig") & pl.col("is_next")
LOGIT = PRIMARY & (pl.col("lens") == "logit")


@pytest.fixture(scope="module")
def run() -> Run:
    """One fact in two wordings, and a control."""
    return probed("berlin")


@pytest.fixture(scope="module")
def capitals() -> Run:
    """Five facts in two wordings, and a control."""
    return probed("capitals")


@pytest.fixture(scope="module")
def twenty() -> Run:
    """Twenty facts in two wordings, and a control."""
    return probed("capitals-20", positions="last")


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


def in_detail(run: Run) -> str:
    """The same with all that it rests on."""
    return " ".join(printed(run_verdict(run, details=True)).split())


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


def says(run: Run, top: str = " the", rank: int = 6, places: Sequence[int] = (0,)) -> Run:
    """The run with the model saying something else at the end of some prompts, the answer being of that rank."""
    prompts = list(run.record.suite.prompts)
    for place in places:
        other = {"top_ids": (7,), "top_tokens": (top,), "top_probs": (0.23,), "answer_rank": rank, "p_answer": 0.05}
        output = prompts[place].output.model_copy(update=other)
        prompts[place] = prompts[place].model_copy(update={"output": output})
    return with_prompts(run, prompts)


def with_prompts(run: Run, prompts: Sequence) -> Run:
    return changed(run, suite=run.record.suite.model_copy(update={"prompts": tuple(prompts)}))


def with_first_prompt(run: Run, **changes: object) -> Run:
    first_prompt, *others = run.record.suite.prompts
    return with_prompts(run, [first_prompt.model_copy(update=changes), *others])


def with_measured(run: Run, **measured: object) -> Run:
    return changed(run, measured=run.record.measured.model_copy(update=measured))


def first(rows: list[dict], holds) -> int | None:
    return next((row["layer"] for row in rows if holds(row)), None)


def for_good(rows: list[dict], holds) -> int | None:
    """From where it holds at every layer to the last."""
    kept = None
    for row in reversed(rows):
        if not holds(row):
            break
        kept = row["layer"]
    return kept


def on_top(row: dict) -> bool:
    return row["answer_rank"] == 1


def is_strong(row: dict, d_vocab: int) -> bool:
    return row["answer_rank"] == 1 and row["p_answer"] - 1 / d_vocab >= 0.002 and row["answer_logit_gap"] >= 0.5


def first_of_two(rows: list[dict], holds) -> int | None:
    return next((a["layer"] for a, b in pairwise(rows) if holds(a) and holds(b)), None)


def failed(run: Run, **identity: object) -> Run:
    """The run as its check would leave it: outputs are then the logits of the model's own code."""
    why = {"ok": False, "kl_bits": 3.5, "explanation": "softcap", "note": "A softcap is missing."}
    outputs = [prompt.output.model_copy(update={"source": "model"}) for prompt in run.record.suite.prompts]
    prompts = zip(run.record.suite.prompts, outputs, strict=True)
    told = with_prompts(run, [prompt.model_copy(update={"output": output}) for prompt, output in prompts])
    return changed(told, identity=run.record.identity.model_copy(update={**why, **identity}))


# What the model says, and the three layers of one prompt


def test_the_model_comes_first_and_layers_that_coincide_are_one_figure(run):
    rows, d_vocab = curve(run, "logit"), run.record.model.d_vocab
    stable = for_good(rows, on_top)
    assert first(rows, on_top) == stable == for_good(rows, lambda row: is_strong(row, d_vocab))
    text = printed(run_verdict(run)).splitlines()
    assert text[0].startswith("verdict · Germany→Berlin · orig · layerscope/reference · lens logit")
    assert " ".join(text[1:3]).startswith(
        f"The model answers ' Berlin' (p {rows[12]['p_answer']:.3f}); on top for good and clearly ahead from layer "
        f"{stable} of 12 (depth {stable / 12:.2f}) under the logit lens."
    )


def test_layers_that_differ_are_told_apart(run):
    lost = without_rank_1(run, LOGIT & (pl.col("layer") == 6))
    weak = with_values(lost, LOGIT & (pl.col("layer") < 9), answer_logit_gap=0.25)
    rows, d_vocab = curve(weak, "logit"), run.record.model.d_vocab
    found = first(rows, on_top), for_good(rows, on_top), for_good(rows, lambda row: is_strong(row, d_vocab))
    assert found == (4, 7, 9)
    assert "; on top for good from layer 7 of 12 (depth 0.58), first on top at 4, clearly ahead from 9 under" in said(
        weak
    )


def test_an_answer_that_is_never_clearly_ahead_is_told_so_and_an_unknown_lead_is_not(run):
    start = "on top for good from layer 4 of 12 (depth 0.33), "
    never = with_values(run, LOGIT & (pl.col("layer") == 12), answer_logit_gap=0.25)
    assert f"{start}clearly ahead to the end from no layer under the logit lens." in said(never)
    unknown = with_values(run, PRIMARY, answer_logit_gap=None)
    assert f"{start}how clearly is not known under the logit lens." in said(unknown)
    (row,) = re.findall(r"^logit .*$", printed(run_verdict(unknown, details=True)), re.M)
    assert row.split() == ["logit", "4", "4", "-", "-", "5", "5"]


def test_an_answer_that_is_lost_again_is_not_told_as_found(run):
    lost = without_rank_1(says(run), LOGIT & pl.col("layer").is_in([7, 12]), 6)
    assert (
        "The model says ' the' (p 0.230); ' Berlin' has rank 6 (p 0.050). Under the logit lens it passes through rank "
        "1 at layers 4 to 6 and 8 to 11 and loses it."
    ) in said(lost)
    assert "on top for good from layer" not in said(lost)


def test_an_answer_that_is_on_top_nowhere_has_its_best_rank_told_and_no_strength(run):
    never = without_rank_1(without_rank_1(says(run), LOGIT, 7), LOGIT & (pl.col("layer") == 9), 3)
    text = printed(run_verdict(never, details=True))
    assert (
        "' Berlin' has rank 6 (p 0.050). The logit lens has it on top nowhere: its best rank is 3, at layer 9."
    ) in " ".join(text.split())
    assert not re.search(r"^(onset|confirmed|strength) ", text, re.M)
    assert re.search(r"^logit +none +none +none +none", text, re.M)
    left_open = with_values(never, LOGIT & (pl.col("layer") == 3), answer_rank=None, is_answer=None)
    assert "Whether the logit lens has it on top anywhere is not known: its best known rank is 3, at layer 9." in said(
        left_open
    )


def test_an_answer_that_the_lens_loses_and_the_model_gives_is_told_of_each(run):
    at_last = without_rank_1(run, LOGIT & (pl.col("layer") == 12))
    assert (
        "The model answers ' Berlin' (p 0.999). Under the logit lens it passes through rank 1 at layers 4 to 11 "
        in (said(at_last))
    )
    cut_off = changed(run, run.rows.filter(pl.col("layer") < 12))
    assert "Under the logit lens it has rank 1 at layers 4 to 11; whether it stays there is not known." in said(cut_off)


def test_an_answer_that_cannot_be_told_in_tokens_is_said_to_be_so(run):
    unresolved = (
        run.record.suite.prompts[0]
        .answers[0]
        .model_copy(
            update={"ok": False, "status": "unresolved", "answer_ids": (), "first_id": None, "reason": "retokenised"}
        )
    )
    output = run.record.suite.prompts[0].output.model_copy(
        update={"answer_id": None, "answer_rank": None, "p_answer": None}
    )
    absent = dict.fromkeys(("answer_rank", "is_answer", "p_answer", "answer_logit_gap", "semantic_margin_ok"))
    found = with_first_prompt(with_values(run, PRIMARY, **absent), answers=(unresolved,), output=output)
    text = in_detail(found)
    assert (
        "The model says ' Berlin' (p 0.999); the rank of ' Berlin' is not known. Whether the logit lens has it on "
        in text
    )
    assert "is not known: it cannot be told in the model's tokens." in text
    assert "the gap between logit and next_norm is not known: the answer has no rank" in text


def test_without_an_answer_the_layers_are_those_of_what_the_model_says(run):
    top = {"model_top1_rank": "answer_rank", "p_model_top1": "p_answer", "model_top1_logit_gap": "answer_logit_gap"}
    rows = run.rows.with_columns(pl.col(name).alias(column) for column, name in top.items())
    asked = with_first_prompt(changed(run, rows), judge="model_top1", answers=())
    assert (
        "The model says ' Berlin' (p 0.999); no answer was given to judge it by; what the model says is on top for "
        "good and clearly ahead from layer 4 of 12"
    ) in said(asked)


def test_a_whole_answer_is_judged_by_its_last_piece_too(run):
    whole = with_first_prompt(run, judge="whole")
    log_p = curve(run, "logit")[12]["answer_log_prob_nats_all"]
    p = f"(p {np.exp(log_p):.3f})"
    assert f"The model says ' Berlin' {p} and goes on to the whole answer ' Berlin' {p}; on top for good and" in said(
        whole
    )
    worse = with_values(whole, LOGIT & (pl.col("layer") == 12), answer_rank_all=3)
    assert f"; the whole answer ' Berlin' {p} has a piece of rank 3. Under the logit lens it passes through" in said(
        worse
    )


def test_of_several_whole_answers_none_is_given_the_rank_and_probability_of_them_all(run):
    berlin = run.record.suite.prompts[0].answers[0]
    bonn = berlin.model_copy(update={"string": "Bonn", "answer_ids": (*berlin.answer_ids, 1)})
    both = with_first_prompt(run, judge="whole", answers=(berlin, bonn))
    assert "and goes on to a whole answer, ' Berlin' or another accepted one (p " in said(both)
    worse = with_values(both, LOGIT & (pl.col("layer") == 12), answer_rank_all=3)
    assert "; every whole answer, ' Berlin' or another, has a piece of rank 3 or worse. Under the" in said(worse)


def test_an_answer_judged_by_its_first_piece_is_said_to_be_so(run, capitals):
    (berlin,) = run.record.suite.prompts[0].answers
    long = berlin.model_copy(update={"string": "Berlin-Mitte", "answer_ids": (*berlin.answer_ids, 1)})
    told = with_first_prompt(run, answers=(long,))
    assert "The model answers ' Berlin-Mitte', judged by its first piece (p 0.999); on top" in said(told)
    assert "' the' (p 0.230); ' Berlin-Mitte', judged by its first piece, has rank 6 (p 0.050)" in said(says(told))
    assert said(with_first_prompt(capitals, answers=(long,))).count(
        "5 of 5 facts answered (1 by the first piece alone)"
    )


def test_what_the_model_says_is_not_told_where_it_is_not_known(run):
    unknown = dict.fromkeys(("answer_rank", "is_answer", "p_answer", "answer_logit_gap", "top1", "top1_id", "p_top1"))
    bare = with_measured(with_first_prompt(with_values(run, PRIMARY, **unknown), output=None), final_prediction=None)
    assert (
        "What the model itself says is not known. Whether the logit lens has it on top anywhere is not known"
        in said(bare)
    )


# Over facts


def of_fact(capitals: Run, place: int) -> pl.Expr:
    return (pl.col("fact_index") == place) & (pl.col("prompt_variant") == "orig") & pl.col("is_next")


def test_over_facts_the_headline_counts_answers_and_takes_medians_of_the_answered(capitals):
    logit = pl.col("lens") == "logit"
    later = without_rank_1(capitals, of_fact(capitals, 1) & logit & (pl.col("layer") < 8))
    later = without_rank_1(later, of_fact(capitals, 2) & logit & (pl.col("layer") < 6))
    place_of = {p.fact_index: at for at, p in enumerate(later.record.suite.prompts) if p.prompt_variant == "orig"}
    some = says(later, places=(place_of[3],))
    some = without_rank_1(some, of_fact(capitals, 3) & logit & (pl.col("layer") > 9), 6)
    answered = [0, 1, 2, 4]
    stable = [for_good(curve(some, "logit", fact_index=i), on_top) for i in answered]
    lost = [row["layer"] for row in curve(some, "logit", fact_index=3) if on_top(row)]
    assert len(set(stable)) > 1
    key = some.record.suite.prompts[place_of[3]].fact_key
    text = said(some)
    assert (
        f"4 of 5 facts answered; on top for good and clearly ahead from layer {median(stable):g} of 12 (depth "
        f"{median(stable) / 12:.2f}; median of 4, which range from {min(stable)} to {max(stable)}) under the logit "
        "lens."
    ) in text
    assert f"lost 1 fact passes through rank 1 and loses it: {key} (at {lost[0]} to {lost[-1]})" in in_detail(some)
    raw = [for_good(curve(some, "raw", fact_index=i), on_top) for i in answered]
    assert f"raw {median(raw):g}" in in_detail(some)


def test_facts_of_which_none_is_answered_are_counted_by_what_becomes_of_them(capitals):
    asked = [at for at, p in enumerate(capitals.record.suite.prompts) if p.prompt_variant == "orig" and p.fact_key]
    logit = (pl.col("lens") == "logit") & (pl.col("prompt_variant") == "orig") & pl.col("is_next")
    none = without_rank_1(says(capitals, places=asked), logit & (pl.col("layer") == 12), 6)
    never = without_rank_1(none, of_fact(capitals, 4), 9)
    assert (
        "0 of 5 facts answered; 4 on top at some layer and lost again, 1 on top at no layer under the logit lens."
    ) in said(never)
    left_open = with_values(never, of_fact(capitals, 4) & (pl.col("layer") == 3), answer_rank=None, is_answer=None)
    assert "1 on top at no known layer under the logit lens." in said(left_open)
    assert "lenses no fact to compare" in said(never)


def test_answered_facts_that_the_lens_loses_are_not_told_as_unanswered(capitals):
    last = (pl.col("lens") == "logit") & pl.col("is_next") & (pl.col("layer") == 12)
    assert "5 of 5 facts answered; on top for good from no layer under the logit lens." in said(
        without_rank_1(capitals, last)
    )
    gone = with_values(capitals, last, answer_rank=None, is_answer=None)
    assert "5 of 5 facts answered; on top for good from no known layer under the logit lens." in said(gone)


def over(*stable: int | None, n: int = 12) -> str:
    """The sentence over facts that are on top for good, and clearly ahead, from these layers on."""
    found = {}
    for index, layer in enumerate(stable):
        prompt = fact(index, answer("A", 7))
        ranks = [1 if layer is not None and at >= layer else 3 for at in range(n + 1)]
        found[prompt.key] = find_milestones(ranked(prompt.key, ranks, p_answer=0.5, answer_logit_gap=2.0), Thresholds())
    return onsets.over_facts(layers_over_facts(list(found), found, n), n, trusted=True)


@pytest.mark.parametrize(
    ("stable", "spread"),
    [
        ([5], "1 fact"),
        ([5, None], "1 fact"),
        ([5, 5], "the same in both"),
        ([5, 5, 5], "the same in all 3"),
        ([4, 5, 7], "median of 3, which range from 4 to 7"),
        # The median of a resample is 2 or 9, and 2 in 37 of 100: at least five draws of nine, each with chance 4/9.
        ([2] * 4 + [9] * 5, "median of 9, 95 % 2 to 9"),
        # Most are equal, so that the interval would be a point, and is none.
        ([4] * 11 + [9], "median of 12, which range from 4 to 9"),
    ],
)
def test_how_widely_a_layer_spreads_is_told_by_what_the_facts_allow(stable, spread):
    middle = median(layer for layer in stable if layer is not None)
    assert over(*stable) == (
        f"on top for good and clearly ahead from layer {middle:g} of 12 (depth {middle / 12:.2f}; {spread})"
    )


def test_no_layer_is_told_over_facts_without_one():
    assert over(None, None) == ""


# How blind the lens is


def test_a_lens_far_from_the_model_before_the_onset_is_called_blind(run):
    before = [row["kl_to_final_bits"] for row in curve(run, "logit") if row["layer"] < 4]
    assert median(before) > 5
    assert (
        f"The logit lens is far from the model before that (median {median(before):.2g} bits at layers 0 to 3), so the "
        "answer may be carried earlier; a tuned lens or a patch would tell."
    ) in said(run)
    shallow = LOGIT & (pl.col("layer") < 4)
    assert "may be carried earlier" not in said(with_values(run, shallow, kl_to_final_bits=5.0))
    assert "(median 5.1 bits at layers 0 to 3)" in said(with_values(run, shallow, kl_to_final_bits=5.1))
    late = without_rank_1(run, LOGIT & (pl.col("layer") < 8))
    five = [row["kl_to_final_bits"] for row in curve(late, "logit") if 3 <= row["layer"] < 8]
    assert (median(five) > 5) == ("may be carried earlier" in said(late))


def test_what_would_tell_is_what_was_not_read(run):
    early = without_rank_1(run, LOGIT & (pl.col("layer") == 0))
    early = with_values(early, LOGIT & (pl.col("layer").is_in([1, 2, 3])), answer_rank=1, is_answer=True)
    tuned = early.record.protocol.model_copy(update={"lenses": ("logit", "next_norm", "raw", "tuned")})
    text = said(changed(early, protocol=tuned))
    assert re.search(r"bits at layer 0\), so the answer may be carried earlier; a patch would tell\.", text)


# Is it more than chance?


def test_more_than_chance_is_told_with_what_shuffled_answers_give(twenty):
    rows = twenty.rows.filter(is_next=True, lens="logit", prompt_id="pos", prompt_variant="orig")
    stable = [for_good(curve(twenty, "logit", fact_index=i), on_top) for i in range(20)]
    layer = round(median(stable))
    here = rows.filter(layer=layer).to_dicts()
    ids = [p.answers[0].first_id for p in twenty.record.suite.prompts if p.prompt_variant == "orig" and p.fact_key]
    assert len(set(ids)) == 20
    dealt = sum(row["top1_id"] == one for row in here for one in ids) / 20
    n = sum(row["answer_rank"] == 1 for row in here)
    text = said(twenty)
    assert f"chance above chance: {n} of 20 on top at layer {layer}; by chance {dealt:.2g}, p < 0.001 " in text


def test_no_more_than_chance_is_told_as_such(twenty):
    always = twenty.record.suite.prompts[0].answers[0].first_id
    same = with_values(twenty, pl.col("is_next") & (pl.col("lens") == "logit"), top1_id=always)
    # One of twenty has that answer, whoever it is dealt to.
    layer = same.diagnostics.layers_over_facts.on_top_for_good.summary.median_rounded
    assert f"chance not above chance: 1 of 20 on top at layer {layer}; by chance 1, p 1 " in said(same)
    test = replace(same.diagnostics.chance, at_milestones={})
    assert onsets.chance(test, "L_semantic_stable") == "not above chance at any layer (shuffled answers, least p 1)"
    some = replace(twenty.diagnostics.chance, at_milestones={})
    assert onsets.chance(some, "L_semantic_stable") == "above chance at some layer (shuffled answers, least p < 0.001)"


def test_few_facts_are_told_as_too_few(capitals, run):
    assert "chance too few facts for a test (5 distinct answers over 5 facts)" in said(capitals)
    assert "chance" not in said(run)


# Wording, control, twin


def test_another_wording_is_told_with_its_answers_probability_and_layer(run):
    orig, other = curve(run, "logit"), curve(run, "logit", variant="no_filler")
    nats = log(other[12]["p_answer"]) - log(orig[12]["p_answer"])
    moved = for_good(other, on_top) - for_good(orig, on_top)
    assert moved == 2
    assert (
        "wording sensitive: without the filler word 1 of 1 answered, with it 1; log p "
        f"{abs(nats):.2f} nats lower there, on top for good 2 layers later"
    ) in said(run)
    there = (pl.col("prompt_variant") == "no_filler") & (pl.col("lens") == "logit") & pl.col("is_next")
    same = with_values(run, there & pl.col("layer").is_in([4, 5]), answer_rank=1, is_answer=True)
    assert "wording not sensitive: without the filler word 1 of 1 answered" in said(same)
    assert nats < 0
    assert "nats lower there, on top for good at the same layer" in said(same)
    earlier = without_rank_1(run, LOGIT & (pl.col("layer") < 7))
    assert "on top for good 1 layer earlier" in said(earlier)


def test_answers_that_flip_with_the_wording_are_told_with_their_p(capitals):
    asked = [at for at, p in enumerate(capitals.record.suite.prompts) if p.prompt_variant == "orig" and p.fact_key]
    # Five of five facts flip one way: twice the chance of five heads.
    assert f"without the filler word 5 of 5 answered, with it 0 (McNemar p {2 * 0.5**5:.3f})" in said(
        says(capitals, places=asked)
    )


def test_what_was_not_asked_is_not_told(run):
    alone = said(changed(run, run.rows.filter(pl.col("prompt_variant") == "orig")))
    assert "control its own" in alone
    assert "wording" not in alone.replace("in the wording orig no two facts", "")  # why nothing was patched
    without = said(changed(run, run.rows.filter(pl.col("prompt_id") == "pos")))
    assert "wording sensitive" in without and "control" not in without


def test_a_control_is_told_by_its_own_answer_and_by_the_facts(run):
    start = "control its own answer ' Paris'"
    assert f"{start} is on top; the fact's 'Berlin' is not on top" in said(run)
    assert f"{start} has rank 6; the fact's 'Berlin' is not on top" in said(says(run, places=(2,)))
    berlin = run.record.suite.prompts[2].contrast[0].first_id
    instead = says(run, places=(2,))
    control = instead.record.suite.prompts[2]
    output = control.output.model_copy(update={"top_ids": (berlin,)})
    prompts = [*instead.record.suite.prompts[:2], control.model_copy(update={"output": output})]
    assert f"{start} has rank 6; the fact's 'Berlin' is on top instead" in said(with_prompts(instead, prompts))


def twin(*layers: tuple[int | None, int | None], answered: int = 0, scope: str = "blocks") -> ShuffledWeightsRecord:
    """What a twin does with prompts that are first on top, and on top for good, at these layers."""
    prompts = tuple(
        ShuffledPromptRecord(
            fact_key=f"fact {i}", fact_index=i, prompt_variant="orig", answered=stable is not None, first=found,
            stable=stable, strong_stable=None,
        )
        for i, (found, stable) in enumerate(layers)
    )  # fmt: skip
    return ShuffledWeightsRecord(
        scope=scope, seed=1, lens="logit", identity_ok=True, n_asked=len(layers), n_answered=answered,
        prompts=prompts, on_top={},
    )  # fmt: skip


def test_a_twin_with_shuffled_weights_is_told_beside_the_model(run):
    assert "twin" not in said(run)
    started = "with the weights of the blocks shuffled, 0 of 2 prompts answered"
    none = with_measured(run, shuffled_weights=twin((None, None), (None, None)))
    assert f"twin {started}; on top at no layer" in said(none)
    assert circumstances.twin(twin((3, None), (None, None))) == f"{started}; first on top at 3 in 1 (medians)"
    assert circumstances.twin(twin((2, 4), (3, 7), answered=2, scope="all")) == (
        "with the weights shuffled, embeddings too, 2 of 2 prompts answered; first on top at 2.5 in 2, for good from "
        "5.5 in 2 (medians)"
    )
    # A prompt without an answer is one whose twin's own word is on top at the end.
    given, own = twin((None, None), (1, 6)), twin((1, 6))
    unasked = own.prompts[0].model_copy(update={"answered": None})
    mixed = given.model_copy(update={"prompts": (given.prompts[0], unasked)})
    assert circumstances.twin(mixed) == (
        "with the weights of the blocks shuffled, 0 of 1 prompts answered; on top at no layer"
    )
    assert circumstances.twin(own.model_copy(update={"prompts": (unasked,)})) == (
        "with the weights of the blocks shuffled, no prompt has an answer to find"
    )


# What a probability is, and what speaks for caution


def test_probabilities_are_told_by_what_they_are(run):
    kinds = ("decoded", "decoded", "decoded", "withheld", "near", None, "model")
    found = tuple(LayerStatus(layer, status, None, None, None) for layer, status in enumerate(kinds))
    assert probabilities(Quotability({"logit": found}, 1, True), "logit") == (
        "the model's at layer 6, an estimate of the model's at layer 4, the logit lens' (say so) at layers 0 to 2, "
        "withheld at layer 3"
    )
    assert probabilities(Quotability({}, 0, False), "logit") == "not measured"
    rows = curve(run, "logit")
    near = [
        row["layer"] for row in rows
        if row["kl_to_final_bits"] <= 0.5 and abs(row["entropy_bits"] - row["teacher_entropy_bits"]) <= 0.5
    ]  # fmt: skip
    assert near == list(range(near[0], 13))
    assert (
        f"p is the model's at layer 12, an estimate of the model's at layers {near[0]} to 11, the logit lens' (say "
        f"so) at layers 0 to {near[0] - 1} cautions"
    ) in said(run)


@pytest.mark.parametrize("protocol", ["standard", "published"])
def test_every_reason_has_a_short_form_that_fits_a_line(run, protocol):
    reasons = tuple(Reason(name, "advise", "Long.") for name in reason_names(protocol))
    short = in_short(replace(run.guidance, reasons=reasons))
    assert len(reasons) > 15 and len(reasons) - 1 <= len(short)  # what is told of a missing mask is told once
    assert all(0 < len(text) <= LINE for text in short)


def test_what_blocks_is_told_before_what_advises(run):
    reasons = (Reason("decoding_point_sensitive", "advise", "A."), Reason("numeric_health_caution", "block", "B."))
    assert in_short(replace(run.guidance, reasons=reasons)) == [
        "numbers were not finite at some layers", "the layer depends on which norm decodes it",
    ]  # fmt: skip


def test_a_verdict_over_twenty_facts_takes_at_most_sixteen_lines(twenty, run):
    for one in (twenty, run):
        text = printed(run_verdict(one))
        assert len(text.splitlines()) <= 16
        assert re.search(r"^cautions +none *$", text, re.M) and "--details" not in text


@pytest.mark.parametrize("n_reasons", [0, 1, 4, 30])
@pytest.mark.parametrize("key", ["Germany→Berlin", "a fact whose name is as long as " * 8, "東京都\x1b[31m" * 12])
def test_whatever_there_is_to_say_sixteen_lines_hold_it_or_name_what_they_leave_out(twenty, n_reasons, key):
    prompts = [p if p.fact_key is None else p.model_copy(update={"fact_key": key}) for p in twenty.record.suite.prompts]
    asked = [at for at, p in enumerate(prompts) if p.prompt_variant == "orig" and p.fact_key]
    wordy = says(with_prompts(twenty, prompts), top=" " + key, places=asked[::2])
    late = (pl.col("prompt_variant") == "orig") & (pl.col("lens") == "logit") & (pl.col("layer") > 9)
    lost = without_rank_1(wordy, late & pl.col("is_next") & (pl.col("fact_index") % 2 == 0), 6)
    found = with_measured(lost, shuffled_weights=twin((2, 4), (3, 7), answered=2, scope="all"))
    reasons = tuple(Reason(name, "advise", f"Because of {name}.") for name in reason_names("standard")[:n_reasons])
    verdict = replace(found.verdict, guidance=replace(found.guidance, reasons=reasons))
    text = printed(verdict_of(verdict, found.record))
    lines = text.splitlines()
    assert len(lines) <= 16 and "\x1b" not in text
    short = in_short(verdict.guidance)
    left_out = lines[-1] if "--details" in lines[-1] else ""
    shown = [line[12:].rstrip() for line in lines if line[12:].rstrip() in short]
    hidden = re.search(r"(\d+) (?:more )?cautions?: --details", left_out)
    assert len(shown) + (int(hidden[1]) if hidden else 0) == len(short)
    for label in ("first fact", "chance", "lost", "lenses", "wording", "control", "twin", "p is"):
        assert bool(re.search(f"^{label} ", text, re.M)) != (label in left_out), label
    whole = printed(verdict_of(verdict, found.record, details=True))
    assert all(reason.text in " ".join(whole.split()) for reason in reasons)
    for label in ("first fact", "chance", "lost", "lenses", "wording", "control", "twin", "p is", "norm choice"):
        assert re.search(f"^{label} ", whole, re.M), label


# In detail


def test_the_strength_is_what_the_row_of_that_layer_holds(run):
    d_vocab = run.record.model.d_vocab
    rows = curve(run, "logit")
    row = rows[first_of_two(rows, lambda row: is_strong(row, d_vocab))]
    entropy = row["entropy_bits"]
    assert (
        f"p {row['p_answer']:.3f}, {row['p_answer'] - 1 / d_vocab:.3f} above uniform, lead "
        f"{row['answer_logit_gap']:.3f} logits, entropy {entropy:.3f} bits = {entropy / log2(d_vocab):.2f} log2 V, "
        f"KL to final {row['kl_to_final_bits']:.3f} bits"
    ) in in_detail(run)


def test_strength_at_the_first_rank_1_is_told_apart_from_that_of_the_headline(run):
    weak = with_values(run, LOGIT & (pl.col("layer") == 4), answer_logit_gap=0.25)
    unsure = with_values(weak, LOGIT & (pl.col("layer") == 4), p_answer=0.0005)
    assert "at the first rank 1, layer 4: p 5.0e-04, lead 0.250 logits, hardly above uniform" in in_detail(unsure)
    assert "hardly above uniform" not in in_detail(weak)


def test_first_and_stable_crossing_are_told_apart(run):
    lost = without_rank_1(run, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") == 6))
    text = in_detail(lost)
    assert "rank 1 first at layer 4, but at every layer only from 7 on; clearly ahead at every layer from 7 on" in text
    at_last = without_rank_1(run, PRIMARY & (pl.col("lens") == "logit") & (pl.col("layer") == 12))
    assert (
        "rank 1 first at layer 4, which does not hold to the last layer; clearly ahead not to the last layer"
        in in_detail(at_last)
    )
    assert "rank 1 at every layer from 4 on" in in_detail(run)


# Confirmation


def test_a_confirmation_names_the_lens_and_its_layers(run):
    rows = curve(run, "raw")
    near = [row["layer"] for row in rows if row["answer_rank"] == 1 and abs(row["layer"] - 4) <= 2]
    assert near == [4, 5, 6]
    assert "by raw at layers 4 to 6, for rank 1 at layer 4" in in_detail(run)


def test_a_trivial_confirmation_is_called_trivial(run):
    sources = {**run.record.lens_sources, "logit": ("raw",) * 13}
    text = in_detail(changed(run, lens_sources=sources))
    assert "by raw at layers 4 to 6, but trivially: there it computes the same as logit, so nothing new is said" in text


def test_a_missing_confirmation_says_why_and_where_a_later_one_is(run):
    shallow = PRIMARY & (pl.col("lens") == "raw") & (pl.col("layer") < 9)
    text = in_detail(without_rank_1(run, shallow))
    assert "no: no other lens has the answer on top within 2 layers of the onset" in text
    assert "a later rank 1, at layer 7, is confirmed" in text
    without = in_detail(changed(run, run.rows.filter(pl.col("lens") != "raw")))
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
    (line,) = re.findall(rf"^{lens} +\d+ .*$", printed(run_verdict(run, details=True)), re.M)
    assert line.split()[1:] == [str(layer) for layer in due]


def test_never_is_said_only_where_every_layer_was_read(run):
    raw = PRIMARY & (pl.col("lens") == "raw")
    never = without_rank_1(run, raw)
    assert re.search(r"^raw +none +none +none +none", printed(run_verdict(never, details=True)), re.M)
    open_ = with_values(never, raw & (pl.col("layer") == 3), answer_rank=None, is_answer=None, p_answer=None)
    assert re.search(r"^raw +- +- +- +-", printed(run_verdict(open_, details=True)), re.M)
    fewer = changed(never, never.rows.filter(~(raw & (pl.col("layer") == 3))))
    assert re.search(r"^raw +- +- +- +-", printed(run_verdict(fewer, details=True)), re.M)


def test_the_gap_between_the_norms_is_always_in_detail(run):
    assert "rank 1 comes at the same layer under logit and next_norm: 4" in in_detail(run)
    shallow = PRIMARY & (pl.col("lens") == "next_norm") & (pl.col("layer") < 7)
    later = in_detail(without_rank_1(run, shallow))
    assert "rank 1 comes 3 layers later under next_norm (7) than under logit (4)" in later
    logit = PRIMARY & (pl.col("lens") == "logit")
    earlier = in_detail(without_rank_1(run, logit & (pl.col("layer") < 5)))
    assert "rank 1 comes 1 layer earlier under next_norm (4) than under logit (5)" in earlier
    never = in_detail(without_rank_1(run, PRIMARY & (pl.col("lens") == "next_norm")))
    assert "norm choice rank 1 under logit at layer 4, under next_norm at no layer copying" in never


def test_the_gap_is_taken_from_the_close_up_where_a_lens_has_no_rows(run):
    lenses = ("logit", "raw")
    protocol = run.record.protocol.model_copy(update={"lenses": lenses})
    sources = {lens: run.record.lens_sources[lens] for lens in lenses}
    fewer = changed(run, run.rows.filter(pl.col("lens").is_in(lenses)), protocol=protocol, lens_sources=sources)
    assert "rank 1 comes at the same layer under logit and next_norm: 4" in in_detail(fewer)
    blind = changed(fewer, measured=MeasuredRecord(absent={"close_up": "not asked for"}))
    assert "the gap between logit and next_norm is not known: next_norm was not read" in in_detail(blind)


# Circumstances


def test_copying_is_told_with_its_distance_to_the_answer(run):
    assert "copying the prompt's words are copied at no layer raw lens" in in_detail(run)
    copied = with_values(run, PRIMARY & (pl.col("layer") == 1), copy_collapse=True)
    assert (
        "strict copy at layer 1, 3 layers before rank 1; an early reflex: strict copy at layer 1 raw lens"
        in in_detail(copied)
    )
    soft = with_values(run, PRIMARY & (pl.col("layer") == 5), **{"copy_soft_k1@0.5": True})
    assert "no strict copy, a soft one at layer 5, 1 layer after rank 1 raw lens" in in_detail(soft)


def test_sampled_risk_and_full_tier_are_named_as_two_instruments(run):
    rows = curve(run, "logit")
    kl = [row["kl_norm_vs_raw_bits"] for row in rows]
    raw_ranks = {row["layer"]: row["answer_rank"] for row in curve(run, "raw")}
    alone = any(row["answer_rank"] == 1 and raw_ranks[row["layer"]] != 1 for row in rows)
    scores = [
        0.6 * sum(bits >= 1 for bits in part) / len(part) + 0.3 * alone + 0.1 * min(1, max(part) / 5)
        for part in (kl, kl[:-1])
    ]
    text = in_detail(run)
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
    text = in_detail(far)
    start = "last layer 1.200 bits from the model's head under lens logit, with another top token; "
    assert f"{start}a temperature of 2.61 leaves 0.350; {sentence}" in text
    assert "caution At the last layer the lens is far from the model's own output" in text


def test_a_near_last_layer_needs_no_explanation(run):
    kl = run.record.measured.last_layer.kl_to_final_bits
    assert kl < 1e-6
    assert f"last layer {kl:.1e} bits from the model's head under lens logit detail" in in_detail(run)


# What was not measured, what does not stand


def test_what_was_not_measured_is_said_and_no_number_takes_its_place(run):
    absent = {"last_layer": "the disk was full"}
    bare = changed(run, measured=MeasuredRecord(absent=absent))
    assert "its distance to the model's head was not measured: the disk was full" in in_detail(bare)
    metrics = [name for name, kind in run.rows.schema.items() if kind == pl.Float64]
    rows = run.rows.with_columns(pl.lit(None, pl.Float64).alias(name) for name in metrics)
    unsaid = {"p_answer": None, "top_probs": ()}
    prompts = [p.model_copy(update={"output": p.output.model_copy(update=unsaid)}) for p in run.record.suite.prompts]
    text = printed(run_verdict(with_prompts(changed(bare, rows), prompts), details=True))
    body = text[: re.search("^(caution|detail|unknown) ", text, re.M).start()]
    assert re.findall(r"\d+\.\d+", body) == ["0.33", "0.002", "0.5"]  # the depth, and what clearly ahead asks for
    assert "how clearly is not known" in " ".join(body.split())
    assert "strength layer 4: not measured" in " ".join(text.split())


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_missing_from_the_rows_the_verdict_is_given(run, seed):
    rng = np.random.default_rng(seed)
    nullable = [c.name for c in layerscope.record.COLUMNS if c.nullable and c.name != "fact_index"]
    gone = [name for name in nullable if rng.random() < 0.4]
    rows = run.rows.with_columns(pl.lit(None, run.rows.schema[name]).alias(name) for name in gone)
    thinned = rows.filter(pl.Series(rng.random(len(rows)) < 0.8))
    for text in (said(changed(run, thinned)), in_detail(changed(run, thinned))):
        assert "None" not in text and "nan" not in text.split()


def test_a_failed_identity_check_withholds_whatever_rests_on_probabilities(run):
    text = printed(run_verdict(failed(run, fitted_softcap=30.0), details=True))
    words = " ".join(text[: text.index("reporting")].split())
    # What the model itself says is its own head's, and stands.
    assert "The model answers ' Berlin' (p 0.999); on top for good from layer 4 of 12 (depth 0.33) under" in words
    for withheld in ("ahead", "entropy", "KL", "bits", " p is", "logits", "uniform", "score", "copy"):
        assert withheld not in words, withheld
    assert re.search(r"^ +first +on top *\nlens +on top +for good *\nlogit +4 +4 *$", text, re.M)
    assert "on top for good 2 layers later" in words
    assert "withheld The last layer, decoded by us, is not the model's own output" in " ".join(text.split())
    assert not re.search("^detail ", text, re.M)
    short = said(failed(run, fitted_softcap=30.0))
    assert "cautions the last layer is not the model's own output" in short and "bits" not in short


def test_where_ranks_do_not_stand_either_no_layer_is_named(run):
    for details in (False, True):
        text = printed(run_verdict(failed(run, explanation=None), details=details))
        words = " ".join(text.split())
        assert "No layer can be named: the identity check failed, and neither probabilities nor ranks stand." in words
        assert "report nothing of this run" in words and "withheld The last layer, decoded by us," in words
        assert not re.search(r"^(lens|norm choice|chance|wording|strength|p is|detail) ", text, re.M)
    table = " ".join(printed(milestone_table(failed(run, explanation=None))).split())
    assert "L_semantic" not in table and "Neither probabilities nor ranks stand." in table


def test_a_run_without_facts_names_no_layer(run):
    text = said(changed(run, run.rows.filter(pl.col("prompt_id") == "ctl")))
    assert "No layer can be named: there is no prompt about a fact under lens logit." in text


# What may be quoted


def guided(run: Run, *, whole: bool = True, **changes: object) -> str:
    found = replace(run.verdict, guidance=replace(run.guidance, **changes))
    return printed(verdict_of(found, run.record, details=whole))


def test_every_reason_is_given_with_its_weight(run):
    reasons = (
        Reason("decoding_point_sensitive", "advise", "It hangs on it."),
        Reason("copy_mask_missing", "block", "No mask."),
    )
    text = guided(run, reasons=reasons, details=(Detail("early_reflex", "A plain fact."),))
    assert re.search(r"^caution +It hangs on it\. *$", text, re.M) and re.search(r"^withheld +No mask\. *$", text, re.M)
    assert re.search(r"^detail +A plain fact\. *$", text, re.M)
    assert "report ranks and layers" not in text and "do not report" not in text
    forbidden = " ".join(guided(run, reasons=reasons, suppress_abs_probs=True).split())
    assert "report ranks and layers, but no probability or entropy of a layer" in forbidden
    assert "KL to final 8.300 bits (do not report)" in forbidden
    assert "p is not to be reported: by this protocol any caution stands against it" in forbidden


def test_without_a_reason_there_is_no_caution(run):
    assert re.search(r"^cautions +none *$", guided(run, whole=False, reasons=()), re.M)
    unknown = {"reasons": (), "undetermined": ("copy_mask_missing",)}
    assert "cautions none (1 could not be judged: --details)" in " ".join(guided(run, whole=False, **unknown).split())
    assert re.search(r"^unknown +not judged: copy mask missing *$", guided(run, **unknown), re.M)


def test_what_is_unknown_takes_one_line_however_much_it_is():
    names = tuple(f"caution_number_{i}" for i in range(19))
    found = Guidance((), names, False, False, "tuned", None, None, "", None)
    said = {one.label: one.text for one in reporting(found, "logit")}
    shown = re.match(r"not judged: (.*) and (\d+) more$", said["unknown"])
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
    for details in (False, True):
        text = printed(run_verdict(changed(run, suite=suite), details=details))
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
    lines = printed(run_verdict(run, details=True)).splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("fitted")), len(lines))
    stop = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    return [line[12:].rstrip() for line in lines[start:stop]]


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
        text = " ".join(
            printed(verdict_of(replace(found, diagnostics=diagnostics), fitted.record, details=True)).split()
        )
        assert f"on held-out text +2.00 bits, {WEIGHED}; {word} " in text
    medians = replace(
        found.diagnostics.tuned_audit.rotation_vs_temperature,
        rotation_bits={"p50": 0.0}, temperature_bits={"p50": 1.0}, tuned_bits=1.0,
    )  # fmt: skip
    audit = replace(found.diagnostics.tuned_audit, rotation_vs_temperature=medians)
    diagnostics = replace(found.diagnostics, tuned_audit=audit)
    text = " ".join(printed(verdict_of(replace(found, diagnostics=diagnostics), fitted.record, details=True)).split())
    assert f"on held-out text +2.00 bits, {WEIGHED}; little more than a temperature " in text


# Published runs


def in_short_and_in_detail(run: Run) -> str:
    short = printed(run_verdict(run))
    assert len(short.splitlines()) <= 16
    printed(milestone_table(run))
    return " ".join(short.split()) + " " + in_detail(run)


@pytest.mark.parametrize(
    ("model", "sentences"),
    [
        (
            "echo",
            ["The model answers ' Berlin' (p 0.996); on top for good and clearly ahead from layer 9 of 12"],
        ),
        (
            "fickle",
            [
                "' Berlin' has rank 2 (p 0.022). Under the next_norm lens it passes through rank 1 at layers 5 and",
                "rank 1 first at layer 5, which does not hold to the last layer",
                "strict copy at layer 0, 5 layers before rank 1; an early reflex: strict copy at layers 1 to 3",
            ],
        ),
        ("reference", ["5 of 5 facts answered; ", "from layer 4 of 12 (depth 0.33; the same in all 5)", "tuned 4"]),
        ("mute", ["' Berlin' has rank 46 (p 0.002). The next_norm lens has it on top nowhere: its best rank is"]),
    ],
)
def test_self_made_published_runs_get_a_verdict_too(made_sweep, model, sentences):
    text = in_short_and_in_detail(Run.read(made_sweep, model=model))
    assert [sentence for sentence in sentences if sentence not in text] == []


@pytest.mark.parametrize(
    ("sweep", "model", "sentences"),
    [
        (
            "run-20251004-1804",
            "Qwen3-8B",
            [
                "The model answers ' Berlin' (p 0.433); on top for good from layer 33 of 36 (depth 0.92), first on top "
                "at 31, clearly ahead from 36",
                "raw 31, prism none, tuned 34",  # of the raw lens, files hold ranks alone
                "rank 1 first at layer 31, but at every layer only from 33 on",
                "full tier high (37 layers)",
            ],
        ),
        (
            "run-20251004-1804",
            "gemma-2-9b",
            [
                "on top for good and clearly ahead from layer 42 of 42",
                "by tuned at layer 42, but trivially",
                "a temperature of 2.61",
                "tuned, layer 21, -10.52 bits: temperature -6.10, map and bias -4.42",
                "not accepted: gain, ranks, last layer, loss",
            ],
        ),
        (
            "run-20251004-1804",
            "Meta-Llama-3-70B",
            [
                "from layer 74 of 80 (depth 0.93), first on top at 40, clearly ahead from 80",
                "sampled risk low (4 layers); full tier medium (81 layers)",
                "layer 40: p 2.4e-05",
            ],
        ),
        ("run-20250921-1713", "Qwen2.5-72B", ["how clearly is not known", "logit was not read"]),
    ],
)
def test_published_runs_get_a_verdict_too(shared, sweep, model, sentences):
    text = in_short_and_in_detail(Run.read(shared / "reference" / sweep, model=model))
    assert [sentence for sentence in sentences if sentence not in text] == []
