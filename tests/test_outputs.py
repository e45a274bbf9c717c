"""What the model says, which facts it answers, the three layers over these, and how far the lens is before them."""

import json
from dataclasses import replace
from math import exp, log
from pathlib import Path

import polars as pl
import pytest

from layerscope.analysis.judged_view import judged_rows
from layerscope.analysis.milestones import EarlyReflex, early_reflex, find_milestones
from layerscope.analysis.onsets import LayersOfPrompt, blindness, layers_of_prompt, layers_over_facts
from layerscope.analysis.outputs import answered_facts, outputs
from layerscope.record import COLUMNS, rows_frame
from layerscope.record.parts import IdentityRecord, OutputRecord
from layerscope.record.protocol import Thresholds
from layerscope.record.run_record import RunRecord
from layerscope.run import Run
from small_record import D_VOCAB, answer, control, curve_of, curves_of, fact, ranked, record_of

BERLIN, PARIS = answer("Berlin", 7), answer("Paris", 8)
FAILED = IdentityRecord(ok=False, tolerance_bits=1e-6, n_prompts=1, fitted_bias=False, note="")


def head(rank: int | None, p: float | None = None, **more: object) -> OutputRecord:
    """What the model's own head is recorded to say."""
    said = {"top_ids": (5, 7), "top_tokens": (' "', " Berlin"), "top_probs": (0.25, 0.125)}
    return OutputRecord(
        **{**said, "answer_id": None if rank is None else 7, "answer_rank": rank, "p_answer": p, **more}
    )


# What the model says


def test_the_models_own_head_is_believed_before_the_rows():
    prompt = fact(0, BERLIN, output=head(2, 0.125))
    curve = ranked(prompt.key, (9, 1), p_answer=0.5, top1_id=7, top1=" Berlin", p_top1=0.5)
    (said,) = outputs(curves_of(curve), record_of([prompt], 1), "logit").values()
    assert (said.top_id, said.top_token, said.p_top) == (5, ' "', 0.25)
    assert (said.answer, said.answer_text, said.answer_rank, said.p_answer) == ("Berlin", " Berlin", 2, 0.125)
    assert said.log_prob_nats == pytest.approx(log(0.125))
    assert (said.answered, said.on_top, said.source) == (False, False, "model")


def test_without_its_record_the_last_layer_is_read_where_that_is_the_model():
    prompt = fact(0, BERLIN)
    last = {"top1_id": 7, "top1": " Berlin", "p_top1": 0.5, "p_answer": 0.5}
    curve = ranked(prompt.key, (9, 1), **last)
    (said,) = outputs(curves_of(curve), record_of([prompt], 1), "logit").values()
    assert (said.top_token, said.answer_rank, said.answered, said.source) == (" Berlin", 1, True, "last_layer")
    failed = record_of([prompt], 1, identity=FAILED)
    (said,) = outputs(curves_of(curve), failed, "logit").values()
    assert (said.top_token, said.answer_rank, said.answered, said.source) == (None, None, None, None)
    raw = ranked(prompt.key, (9, 1), lens="raw", **last)
    (said,) = outputs(curves_of(raw), record_of([prompt], 1, lenses=("raw",)), "raw").values()
    assert said.source is None  # without a norm the last layer is another thing


def test_what_was_decoded_is_the_models_own_as_far_as_the_identity_check_says():
    prompt = fact(0, BERLIN, output=head(1, 0.125, source="decoded"))
    curves = curves_of(ranked(prompt.key, (9, 1)))

    def told(identity: IdentityRecord):
        (said,) = outputs(curves, record_of([prompt], 1, identity=identity), "logit").values()
        return said.top_token, said.p_top, said.answer_rank, said.p_answer, said.log_prob_nats

    assert told(FAILED.model_copy(update={"ok": True})) == (' "', 0.25, 1, 0.125, log(0.125))
    # A missing scale changes no order.
    assert told(FAILED.model_copy(update={"fitted_scale": 0.5, "kl_bits": 1.0})) == (' "', None, 1, None, None)
    assert told(FAILED.model_copy(update={"kl_bits": 1.0})) == (None,) * 5


def test_a_prompt_without_an_answer_is_about_what_the_model_says_and_answers_nothing():
    prompt = fact(0, judge="model_top1", output=head(None))
    (said,) = outputs(curves_of(ranked(prompt.key, (1, 1))), record_of([prompt], 1), "logit").values()
    assert (said.answer_rank, said.p_answer, said.answer_text) == (1, 0.25, ' "')
    assert (said.answered, said.on_top) == (None, True)


def test_a_whole_answer_has_the_rank_of_its_rows_since_the_head_knows_first_pieces():
    prompt = fact(0, answer("Ottawa", 7, 9), judge="whole", output=head(1, 0.5))
    curve = ranked(prompt.key, (4, 3), p_answer=0.25, answer_log_prob_nats_all=-1.4)
    (said,) = outputs(curves_of(curve), record_of([prompt], 1), "logit").values()
    assert (said.answer_rank, said.p_answer, said.log_prob_nats, said.answered) == (3, 0.25, -1.4, False)


# Answered facts


def _four_facts():
    """Answered; found at layers 1 and 2 and lost; never on top; answered without the filler word alone."""
    ranks = {
        (0, "orig"): (9, 1, 9, 1, 1),
        (0, "no_filler"): (9, 9, 9, 9, 2),
        (1, "orig"): (9, 1, 1, 9, 6),
        (2, "orig"): (9, 9, 9, 9, 9),
        (3, "orig"): (9, 9, 9, 2, 2),
        (3, "no_filler"): (9, 9, 1, 1, 1),
    }
    prompts = [fact(index, BERLIN, variant=variant) for index, variant in ranks]
    lead = {"p_answer": 0.5, "answer_logit_gap": 1.0}
    curves = [ranked(p.key, r, **lead) for p, r in zip(prompts, ranks.values(), strict=True)]
    own = control(PARIS, BERLIN)
    return [*prompts, own], curves_of(*curves, ranked(own.key, (9, 9, 9, 9, 1)))


def test_facts_are_counted_once_by_what_becomes_of_their_answer():
    prompts, curves = _four_facts()
    found = answered_facts(outputs(curves, record_of(prompts, 4), "logit"), curves, "logit")
    assert (found.n, found.n_answered, found.n_without_answer, found.n_unknown) == (4, 1, 0, 0)
    assert [prompt.fact_index for prompt in found.counted] == [0]
    (lost,) = found.found_and_lost
    assert (lost.fact_key, lost.stretches, lost.output.answer_rank) == ("fact 1", ((1, 2),), 6)
    assert [prompt.fact_index for prompt in found.never_on_top] == [2, 3]
    assert (found.n_prompts, found.n_prompts_answered) == (6, 2)
    assert found.n_prompts_by_variant == {"orig": (1, 4), "no_filler": (1, 2)}


def test_an_unresolved_answer_is_neither_answered_nor_not():
    prompt = fact(0, answer("Berlin"))
    curves = curves_of(curve_of(prompt.key, 2, {}))
    found = answered_facts(outputs(curves, record_of([prompt], 2), "logit"), curves, "logit")
    assert (found.n, found.n_answered, found.n_unknown, found.never_on_top, found.counted) == (1, 0, 1, (), ())


# Three layers


def _milestones(curves, n=8):
    return {curve.prompt: find_milestones(curve, Thresholds()) for curve in curves}


def test_the_three_layers_of_a_prompt():
    prompt = fact(0, BERLIN)
    rows = {
        0: {"answer_rank": 9}, 1: {"answer_rank": 1, "p_answer": 0.5, "answer_logit_gap": 1.0}, 2: {"answer_rank": 3},
        3: {"answer_rank": 1, "p_answer": 0.5, "answer_logit_gap": 0.25},
        4: {"answer_rank": 1, "p_answer": 0.5, "answer_logit_gap": 0.5},
    }  # fmt: skip
    found = find_milestones(curve_of(prompt.key, 4, rows), Thresholds())
    assert layers_of_prompt(found) == LayersOfPrompt(first_on_top=1, on_top_for_good=3, clearly_ahead=4)
    lost = find_milestones(ranked(prompt.key, (9, 1, 1, 2)), Thresholds())
    assert layers_of_prompt(lost) == LayersOfPrompt(1, None, None)


def _over(layers, n_layers=10):
    """Three layers over facts that are on top, clearly, from these layers on."""
    prompts = [fact(i, BERLIN) for i in range(len(layers))]
    curves = [
        ranked(p.key, [1 if at >= first else 9 for at in range(n_layers + 1)], p_answer=0.5, answer_logit_gap=1.0)
        for p, first in zip(prompts, layers, strict=True)
    ]
    return layers_over_facts([p.key for p in prompts], _milestones(curves), n_layers).on_top_for_good


def test_over_facts_each_layer_has_its_median_depth_range_and_interval():
    found = _over((4, 5, 5, 6, 7, 7, 7, 8))
    assert (found.summary.median, found.median_depth, found.least, found.most) == (6.5, 0.65, 4, 8)
    low, high = found.summary.interval_95
    assert 4 <= low < 6.5 < high <= 8 and not found.all_equal


@pytest.mark.parametrize(
    ("layers", "reason", "equal"),
    [
        ((7,) * 20, "all 20 equal", True),
        ((7,) * 3, "all 3 equal", True),
        ((7,) * 19 + (2,), "19 of 20 equal", False),
        ((2, 3, 4, 5, 6), "facts with a value: 5; an interval needs 6", False),
        ((7,), "facts with a value: 1; an interval needs 6", False),
    ],
)
def test_an_interval_that_would_be_a_point_is_none_and_says_how_many_are_equal(layers, reason, equal):
    found = _over(layers)
    assert (found.summary.interval_95, found.summary.interval_reason, found.all_equal) == (None, reason, equal)


def test_no_answered_fact_has_no_layers():
    found = layers_over_facts([], {}, 10)
    assert (found.n, found.first_on_top.summary.median, found.first_on_top.all_equal) == (0, None, False)
    assert found.medians() == {
        "L_semantic": None, "L_semantic_stable": None, "L_semantic_strong_stable": None,
    }  # fmt: skip


# How far the lens is before them


def test_a_lens_is_blind_where_its_median_divergence_before_the_onset_exceeds_five_bits():
    prompts = [fact(i, BERLIN) for i in range(3)]
    rows = {layer: {"kl_to_final_bits": float(layer)} for layer in range(11)}
    curves = curves_of(*(curve_of(prompt.key, 10, rows) for prompt in prompts))
    found = blindness(curves, "logit", [prompts[0].key, prompts[2].key], 8)
    assert (found.first_layer, found.last_layer, found.median_kl_bits, found.n_facts) == (3, 7, 5.0, 2)
    assert found.blind is False  # five bits are not more than five
    assert blindness(curves, "logit", [prompts[0].key], 9).blind is True
    early = blindness(curves, "logit", [prompts[0].key], 2)
    assert (early.first_layer, early.last_layer, early.median_kl_bits) == (0, 1, 0.5)
    for onset in (None, 0):
        none = blindness(curves, "logit", [prompts[0].key], onset)
        assert none.blind is None and none.reason


# The judged view


def _rows(record: RunRecord, values: dict[str, object], layers=(0, 1)) -> pl.DataFrame:
    """Two rows of every prompt under the logit lens."""
    n = len(record.suite.prompts) * len(layers)
    keys = [(p.key, layer) for p in record.suite.prompts for layer in layers]
    columns: dict[str, object] = {column.name: [None] * n for column in COLUMNS}
    columns |= {
        "fact_index": [key.fact_index for key, _ in keys],
        "prompt_id": [key.prompt_id for key, _ in keys],
        "prompt_variant": [key.prompt_variant for key, _ in keys],
        "lens": ["logit"] * n,
        "layer": [layer for _, layer in keys],
        "position": [3] * n,
        "is_next": [True] * n,
        "finite": [True] * n,
    }
    return rows_frame(columns | {name: [value] * n for name, value in values.items()})


VALUES = {
    "answer_id": 7, "answer_rank": 1, "p_answer": 0.75, "answer_logit_gap": 2.0, "is_answer": True,
    "answer_vs_top1_gap": -1.0, "answer_rank_all": 3, "answer_log_prob_nats_all": -2.0, "answer_logit_gap_all": None,
    "model_top1_rank": 1, "p_model_top1": 0.5, "model_top1_logit_gap": 1.5,
}  # fmt: skip
JUDGED = ("answer_id", "answer_rank", "is_answer", "p_answer", "answer_logit_gap", "semantic_margin_ok", "answer_vs_top1_gap")  # fmt: skip # noqa: E501


def test_each_prompt_is_judged_by_its_own_judge():
    prompts = [
        fact(0, BERLIN),
        fact(1, answer("Ottawa", 7, 9), judge="whole"),
        fact(2, judge="model_top1", output=head(None)),
        control(PARIS, BERLIN),
    ]
    record = record_of(prompts, 1)
    rows = _rows(record, VALUES)
    found = judged_rows(rows, record)
    assert found.columns == rows.columns and found.height == rows.height
    first, whole, own, ctl = (found.filter(layer=1).select(JUDGED).row(i) for i in range(4))
    assert first == ctl == (7, 1, True, 0.75, 2.0, None, -1.0)
    assert whole == (7, 3, False, pytest.approx(exp(-2.0)), None, False, None)
    assert own == (5, 1, True, 0.5, 1.5, True, None)
    margins = found.filter(layer=1)["answer_minus_uniform"].to_list()
    assert margins[1:3] == pytest.approx([exp(-2.0) - 1 / D_VOCAB, 0.5 - 1 / D_VOCAB])
    assert judged_rows(found, record).equals(found)


def test_a_run_judged_by_first_pieces_keeps_its_rows():
    record = record_of([fact(0, BERLIN)], 1)
    rows = _rows(record, VALUES)
    assert judged_rows(rows, record) is rows


COPIES = dict.fromkeys(("copy_collapse", "copy_strict@0.7", "copy_soft_k1@0.5", "copy_soft_k2@0.5", "copy_soft_k3@0.5"), True)  # fmt: skip # noqa: E501


def test_a_tied_embedding_copies_nothing_by_decoding_to_its_own_input():
    prompts = [fact(0, BERLIN)]
    tied = record_of(prompts, 3, model={"tied_unembedding": True})
    rows = _rows(tied, COPIES, layers=(0, 1, 2, 3))
    found = judged_rows(rows, tied).sort("layer")
    assert found["copy_collapse"].to_list() == found["copy_soft_k1@0.5"].to_list() == [False, True, True, True]
    # A window that has the embedding in it rests on that.
    assert found["copy_soft_k2@0.5"].to_list() == [False, False, True, True]
    assert found["copy_soft_k3@0.5"].to_list() == [False, False, False, True]
    assert found["copy_strict@0.8"].null_count() == 4
    untied = record_of(prompts, 3, model={"tied_unembedding": False})
    published = record_of(prompts, 3, model={"tied_unembedding": True}, protocol="published")
    for record in (untied, published):
        assert judged_rows(rows, record) is rows


@pytest.mark.parametrize(
    ("copies", "tied", "found"),
    [
        ({0: True, 1: False, 2: False, 3: False}, True, EarlyReflex((), True, None)),
        ({0: True, 1: True, 2: False, 3: True, 4: True}, False, EarlyReflex((1, 3), True, True)),
        ({0: False, 4: True}, False, EarlyReflex((), False, False)),
    ],
)
def test_an_early_reflex_names_the_layers_that_fire(copies, tied, found):
    curve = curve_of(fact(0, BERLIN).key, 8, {layer: {"copy_collapse": copy} for layer, copy in copies.items()})
    assert early_reflex(curve, tied) == found
    assert found.present == (bool(found.layers) if found.known else None)


def test_changing_a_form_changes_how_the_answer_reads():
    for variant, text in (("with_space", " Berlin"), ("no_space", "Berlin"), ("as_written", "Berlin")):
        prompt = fact(0, answer("Berlin", 7, variant=variant), output=head(1, 0.5))
        (said,) = outputs(curves_of(ranked(prompt.key, (1, 1))), record_of([prompt], 1), "logit").values()
        assert said.answer_text == text
    assert replace(said, answer_rank=None).answered is None


# Published files, whose rows say what was decoded and whose prediction is the model's


@pytest.mark.parametrize("model", ["gemma-2-9b", "gemma-2-27b", "Yi-34B", "Meta-Llama-3-70B", "Qwen3-8B"])
def test_the_probability_of_an_answer_is_the_models_and_not_the_last_layers(shared: Path, model: str):
    folder = shared / "reference" / "run-20251004-1804"
    stated = json.loads((folder / f"output-{model}.json").read_text())
    run = Run.read(folder, model)
    output = run.diagnostics.outputs[run.diagnostics.primary]
    assert output.p_answer == stated["final_prediction"]["topk"][0][1]
    assert output.p_answer == stated["diagnostics"]["last_layer_consistency"]["p_top1_model"]
