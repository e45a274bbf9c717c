"""Facts together: the micro-suite's table and medians, wording, control, and the position window, worked by hand."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.curve import Curve, Curves
from layerscope.analysis.facts import (
    ablation,
    control_summary,
    fact_passes,
    micro_suite,
    position_grid,
    position_window,
    statistics_over_facts,
)
from layerscope.analysis.milestones import find_milestones
from layerscope.published.write.json_summary import published_micro_suite
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import Thresholds
from layerscope.record.rows import COLUMNS
from properties import examples

T = Thresholds()
D_VOCAB = 4096
CONTROL = PromptKey(None, "ctl", "orig")
PRIMARY = PromptKey(0, "pos", "orig")
Rows = dict[int, dict[str, Any]]
"""What a curve has at some of its layers."""


def _pass(index: int | None, variant: str = "orig") -> PromptKey:
    return PromptKey(index, "pos", variant)


def _curve(
    asked: PromptKey, n_layers: int, given: Rows, lens: str = "logit", layers: Sequence[int] | None = None
) -> Curve:
    """A curve of rows in which nothing holds, but for what is given."""
    nothing = {column.name: None for column in COLUMNS}
    plain = {"answer_rank": 9, "is_answer": False, "p_answer": 0.0, "copy_collapse": False, "copy_soft_k1@0.5": False}
    key = f"fact {asked.fact_index}" if asked.is_fact else None
    rows = [
        nothing | plain | {"fact_key": key, "layer": layer, "row": layer} | given.get(layer, {})
        for layer in (range(n_layers + 1) if layers is None else layers)
    ]
    return Curve(asked, lens, n_layers, D_VOCAB, tuple(rows))


def _answer(p: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"answer_rank": 1, "is_answer": True, "p_answer": p, **more}


def _curves(*curves: Curve) -> Curves:
    return Curves({(curve.prompt, curve.lens): curve for curve in curves})


def _milestones(curves: Curves, lens: str = "logit"):
    return {curve.prompt: find_milestones(curve, T) for curve in curves if curve.lens == lens}


def _suite_of(semantic: Sequence[int | None], n_layers: int = 80):
    """A micro-suite of facts that have L_semantic at these layers."""
    curves = _curves(
        *(_curve(_pass(i), n_layers, {} if layer is None else {layer: _answer()}) for i, layer in enumerate(semantic))
    )
    return micro_suite(curves, "logit", _milestones(curves), {})


# Which prompt stands for a fact


def test_a_fact_is_represented_by_the_wording_that_comes_first():
    asked = [_pass(0), _pass(0, "no_filler"), _pass(1, "no_filler"), _pass(1), _pass(2, "short"), CONTROL]
    assert fact_passes(asked) == (_pass(0), _pass(1), _pass(2, "short"))


def test_controls_alone_are_no_facts():
    assert fact_passes([CONTROL]) == ()


# The micro-suite


def test_a_micro_suite_worked_by_hand():
    curves = _curves(
        _curve(
            _pass(0), 8, {1: {"copy_collapse": True}, 3: {"copy_soft_k1@0.5": True}, 5: _answer(0.001), 6: _answer()}
        ),
        _curve(_pass(0), 8, {0: _answer()}, lens="raw"),
        _curve(_pass(0, "no_filler"), 8, {0: _answer()}),
        _curve(_pass(1), 8, {2: {"copy_soft_k1@0.5": True}, 6: _answer()}, layers=(2, 4, 6, 8)),
        _curve(_pass(2), 8, {1: {"copy_soft_k1@0.5": True}}),
        _curve(_pass(3), 8, {4: _answer()}),
        _curve(CONTROL, 8, {0: _answer()}),
    )
    suite = micro_suite(curves, "logit", _milestones(curves), {_pass(0): 5, _pass(3): None})
    assert [(f.fact_key, f.fact_index) for f in suite.facts] == [(f"fact {i}", i) for i in range(4)]
    assert [f.L_copy_strict for f in suite.facts] == [1, None, None, None]
    assert [f.L_copy_soft_k1 for f in suite.facts] == [3, 2, 1, None]
    assert [f.L_semantic for f in suite.facts] == [5, 6, None, 4]
    assert [f.L_semantic_margin_ok for f in suite.facts] == [6, 6, None, 4]
    assert [f.L_semantic_confirmed for f in suite.facts] == [5, None, None, None]
    assert [f.delta_hat for f in suite.facts] == [(5 - 1) / 8, (6 - 2) / 8, None, None]
    # 9 rows of each whole curve come before; the second fact lacks layers, so its third row is layer 6.
    assert [f.row_in_file for f in suite.facts] == [5, 18 + 2, None, 18 + 4 + 9 + 4]
    assert [f.row_in_pass for f in suite.facts] == [5, 2, None, 4]
    assert (suite.n, suite.n_missing, suite.delta_hat_median) == (4, 1, 0.5)
    assert (suite.L_semantic.median, suite.L_copy_soft_k1.median, suite.L_semantic_confirmed.median) == (5, 2, 5)


def test_the_published_block_has_the_published_keys_and_roundings():
    curves = _curves(
        _curve(_pass(0), 36, {0: {"copy_soft_k2@0.5": True}, 31: _answer()}),
        _curve(_pass(1), 36, {2: {"copy_soft_k1@0.5": True}, 32: _answer()}),
    )
    block = published_micro_suite(micro_suite(curves, "logit", _milestones(curves), {_pass(0): 31}))
    assert block["facts"][1] == {
        "fact_key": "fact 1",
        "fact_index": 1,
        "L_copy_strict": None,
        "L_copy_soft_k1": 2,
        "L_semantic_norm": 32,
        "L_semantic_confirmed": None,
        "L_semantic_margin_ok_norm": 32,
        "delta_hat": 30 / 36,
        "row_index": 37 + 32,
    }
    assert block["aggregates"] == {
        "n": 2,
        "L_copy_strict_median": None,
        "L_copy_soft_k1_median": 2,
        "L_semantic_norm_median": 32,  # of 31.5, halves to even
        "L_semantic_confirmed_median": 31,
        "L_semantic_margin_ok_norm_median": 32,
        "delta_hat_median": 0.8472,  # of (31 / 36 + 30 / 36) / 2
        "L_semantic_norm_iqr": [31, 32],
        "n_missing": 0,
    }
    assert block["citations"] == {"fact_rows": {"fact 0": 31, "fact 1": 69}}


@pytest.mark.parametrize(
    ("n_layers", "semantic", "median", "iqr"),
    [  # of ten models asked for the capitals of Germany, France, Italy, Japan and Canada
        (32, [25, 24, None, 22, 32], 24, [24, 27]),
        (32, [25, 24, 23, 25, 26], 25, [24, 25]),
        (36, [31, 30, 32, 30, 32], 31, [30, 32]),
        (42, [42, 42, 42, 42, 42], 42, [42, 42]),
        (40, [36, 35, 36, 33, 39], 36, [35, 36]),
        (46, [46, 46, 46, 46, 46], 46, [46, 46]),
        (60, [44, 41, 44, 42, 46], 44, [42, 44]),
        (80, [40, 49, 51, 80, 60], 51, [49, 60]),
        (40, [33, 30, 31, 32, 34], 32, [31, 33]),
        (80, [80, None, None, 80, None], 80, [80, 80]),
    ],
)
def test_the_aggregates_are_those_published_of_ten_models(n_layers, semantic, median, iqr):
    aggregates = published_micro_suite(_suite_of(semantic, n_layers))["aggregates"]
    assert (aggregates["L_semantic_norm_median"], aggregates["L_semantic_norm_iqr"]) == (median, iqr)
    assert (aggregates["n"], aggregates["n_missing"]) == (5, semantic.count(None))


@examples(8)
@given(st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_facts_changes_no_aggregate(semantic, rng):
    found, shuffled = _suite_of(semantic, 3), _suite_of(rng.sample(semantic, len(semantic)), 3)
    assert published_micro_suite(found)["aggregates"] == published_micro_suite(shuffled)["aggregates"]
    assert (found.L_semantic, found.L_semantic_margin_ok) == (shuffled.L_semantic, shuffled.L_semantic_margin_ok)


def test_a_run_without_rows_has_an_empty_micro_suite():
    suite = micro_suite(_curves(), "logit", {}, {})
    assert (suite.facts, suite.n, suite.L_semantic.median) == ((), 0, None)


def test_a_fact_that_the_headline_lens_did_not_read_is_counted_and_empty():
    curves = _curves(_curve(_pass(0), 4, {2: _answer()}), _curve(_pass(1), 4, {2: _answer()}, lens="raw"))
    suite = micro_suite(curves, "logit", _milestones(curves), {})
    assert (suite.n, suite.n_missing) == (2, 1)
    assert (suite.facts[1].fact_key, suite.facts[1].L_semantic, suite.facts[1].row_in_file) == ("fact 1", None, None)


# Every milestone over facts


def test_every_milestone_is_summarized_over_facts_asked_once():
    curves = _curves(
        _curve(_pass(0), 4, {2: _answer(), 3: _answer(), 4: _answer()}),
        _curve(_pass(0, "no_filler"), 4, {0: _answer()}),
        _curve(_pass(1), 4, {1: _answer()}),
        _curve(CONTROL, 4, {0: _answer()}),
    )
    milestones = _milestones(curves)
    found = statistics_over_facts(milestones, D_VOCAB)
    assert found.n == 2
    assert list(found.by_milestone) == list(milestones[_pass(0)])
    semantic, stable = found.by_milestone["L_semantic"], found.by_milestone["L_semantic_stable"]
    assert (semantic.median, semantic.n_missing, stable.median, stable.n_missing) == (1.5, 0, 2, 1)
    assert found.by_milestone["L_semantic_run2"].n_missing == 1
    assert found.by_milestone["L_copy"].median is None


def test_a_milestone_that_a_fact_does_not_name_is_missing_there():
    milestones = _milestones(_curves(_curve(_pass(0), 4, {2: _answer()}), _curve(_pass(1), 4, {2: _answer()})))
    del milestones[_pass(1)]["L_semantic"]
    found = statistics_over_facts(milestones, D_VOCAB).by_milestone["L_semantic"]
    assert (found.n, found.n_missing, found.median) == (2, 1, 2)


def test_the_entropy_at_the_semantic_layer_is_a_share_of_the_largest_there_is():
    curves = _curves(
        _curve(_pass(0), 4, {2: _answer(entropy_bits=3.0)}),
        _curve(_pass(1), 4, {1: _answer(entropy_bits=12.0)}),
        _curve(_pass(2), 4, {1: _answer()}),
        _curve(_pass(3), 4, {1: {"entropy_bits": 1.0}}),
    )
    found = statistics_over_facts(_milestones(curves), D_VOCAB)  # log2(4096) = 12
    assert (found.median_entropy_fraction, found.n_entropy_fractions) == ((0.25 + 1) / 2, 2)


def test_statistics_of_no_facts_are_empty():
    found = statistics_over_facts({}, D_VOCAB)
    assert (found.n, found.by_milestone, found.median_entropy_fraction) == (0, {}, None)


# Wording


@pytest.mark.parametrize(
    ("n_layers", "orig", "no_filler", "delta", "sensitive"),
    [  # of published models, and at the bound
        (32, 25, 24, -1, False),
        (80, 40, 42, 2, False),
        (40, 33, 31, -2, False),
        (40, 33, 29, -4, True),
        (30, 20, 23, 3, True),
        (32, 20, 23, 3, False),
        (8, None, 3, None, None),
        (8, 3, None, None, None),
    ],
)
def test_an_ablation_is_the_other_wording_less_the_first(n_layers, orig, no_filler, delta, sensitive):
    layers = {_pass(0): orig, _pass(0, "no_filler"): no_filler, _pass(1): 0, CONTROL: 0}
    curves = _curves(*(_curve(a, n_layers, {} if layer is None else {layer: _answer()}) for a, layer in layers.items()))
    found = ablation(_milestones(curves), n_layers)
    assert (found.variant_orig, found.variant_nf) == ("orig", "no_filler")
    assert (found.L_sem_orig, found.L_sem_nf, found.delta_L_sem, found.sensitive) == (orig, no_filler, delta, sensitive)
    assert (found.L_copy_orig, found.L_copy_nf, found.delta_L_copy) == (None, None, None)


def test_an_ablation_compares_copy_layers_too():
    rows = {_pass(0): 0, _pass(0, "no_filler"): 3}
    curves = _curves(*(_curve(asked, 46, {layer: {"copy_collapse": True}}) for asked, layer in rows.items()))
    found = ablation(_milestones(curves), 46)
    assert (found.L_copy_orig, found.L_copy_nf, found.delta_L_copy) == (0, 3, 3)


def test_an_ablation_takes_the_second_wording_only_where_there_is_none_without_filler():
    both = _curves(*(_curve(_pass(0, v), 4, {}) for v in ("orig", "loud", "no_filler")))
    assert ablation(_milestones(both), 4).variant_nf == "no_filler"
    one = _curves(*(_curve(_pass(0, v), 4, {}) for v in ("orig", "loud", "quiet")))
    assert ablation(_milestones(one), 4).variant_nf == "loud"


@pytest.mark.parametrize("asked", [[], [CONTROL], [_pass(0), _pass(1, "no_filler")]])
def test_without_a_second_wording_of_the_primary_fact_there_is_no_ablation(asked):
    found = ablation(_milestones(_curves(*(_curve(a, 4, {2: _answer()}) for a in asked))), 4)
    assert (found.variant_nf, found.L_sem_nf, found.delta_L_sem, found.sensitive) == (None, None, None, None)


# Control


def _control(*rows: tuple[float | None, int, float | None]) -> Curve:
    """Margin, rank of the control's answer, and its lead."""
    names = ("control_margin", "answer_rank", "control_top2_logit_gap")
    given = {layer: dict(zip(names, row, strict=True)) for layer, row in enumerate(rows)}
    return _curve(CONTROL, len(rows) - 1, given)


def test_a_control_worked_by_hand():
    found = control_summary(
        _control((-0.1, 9, None), (1e-7, 5, None), (0.2, 1, 0.4), (-0.1, 1, 3.0), (0.6, 1, 0.5), (0.5, 1, 2.0)), T
    )
    assert (found.first_control_margin_pos, found.max_control_margin) == (1, 0.6)
    assert (found.first_control_strong_pos, found.max_control_top2_logit_gap) == (4, 3.0)  # the lead is inclusive
    assert (found.delta_top2_logit_ctl, found.reason) == (0.5, None)


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        (None, "no control was read under this lens"),
        (_control((None, 9, None)), "no margin was recorded"),
        (_control((-0.1, 9, None), (0.0, 9, None)), "the margin is positive at no layer"),
        (_control((0.1, 2, None)), "the answer is on top at no layer"),
        (_control((0.1, 1, None)), "its lead over the second logit was not recorded"),
        (_control((0.1, 1, 0.3)), "no layer has the answer on top with a clear lead"),
    ],
)
def test_a_control_says_why_it_lacks_a_layer(curve, reason):
    found = control_summary(curve, T)
    assert found.first_control_strong_pos is None
    assert found.reason == reason


def test_without_recorded_leads_both_strong_fields_are_absent():
    found = control_summary(_control((0.1, 1, None), (0.7, 1, None)), T)
    assert (found.first_control_margin_pos, found.max_control_margin) == (0, 0.7)
    assert (found.first_control_strong_pos, found.max_control_top2_logit_gap) == (None, None)


# Position window


@pytest.mark.parametrize(
    ("last_index", "grid"),
    [
        (16, {3: 0.2, 6: 0.4, 10: 0.6, 13: 0.8, 15: 0.92, 16: 0.98}),  # a prompt of 17 tokens, as published
        (100, {20: 0.2, 40: 0.4, 60: 0.6, 80: 0.8, 92: 0.92, 96: 0.96, 98: 0.98, 100: 1.0}),
        (1, {0: 0.2, 1: 0.6}),
        (0, {0: 0.2}),
    ],
)
def test_the_grid_labels_each_position_with_the_first_fraction_that_leads_there(last_index, grid):
    assert position_grid(last_index) == grid


@given(st.integers(0, 5000))
def test_the_grid_ascends_to_the_last_position(last_index):
    places = list(position_grid(last_index))
    assert places == sorted(places)
    assert places[-1] == last_index


def _table(ranks: dict[tuple[int, int], int | None], asked: PromptKey = PRIMARY, lens: str = "logit") -> pl.DataFrame:
    """Rows of one prompt under one lens: the answer's rank by position and layer."""
    rows = [
        {"fact_index": asked.fact_index, "prompt_id": asked.prompt_id, "prompt_variant": asked.prompt_variant}
        | {"lens": lens, "layer": layer, "position": position, "answer_rank": rank}
        for (position, layer), rank in ranks.items()
    ]
    return pl.DataFrame(rows, schema_overrides={"fact_index": pl.Int32, "answer_rank": pl.Int32})


GRID_17 = (3, 6, 10, 13, 15, 16)


def _ranks(at_5: Sequence[int | None], at_6: Sequence[int | None]) -> dict[tuple[int, int], int | None]:
    return {(p, 5): r for p, r in zip(GRID_17, at_5, strict=True)} | {
        (p, 6): r for p, r in zip(GRID_17, at_6, strict=True)
    }


def test_a_position_window_worked_by_hand():
    table = _table(_ranks((8, 2, 1, 4, 1, 1), (1, 2, 7, 3, 2, 1)))
    found = position_window(table, _pass(0), "logit", 5, 5, 16)
    assert [(g.position, g.fraction, g.answer_rank) for g in found.grid] == [
        (3, 0.2, 8), (6, 0.4, 2), (10, 0.6, 1), (13, 0.8, 4), (15, 0.92, 1), (16, 0.98, 1),
    ]  # fmt: skip
    assert (found.n_positions, found.rank1_frac, found.rank1_frac_reason, found.low) == (6, 0.5, None, False)
    assert [g.rank1_strong_run2 for g in found.grid] == [True, False, True, False, True, True]
    assert (found.rank1_frac_strong_run2, found.rank1_frac_strong_run2_reason) == (4 / 6, None)


def test_other_prompts_and_lenses_have_no_part_in_the_window():
    own = _table(_ranks((2,) * 6, (2,) * 6))
    leading = _ranks((1,) * 6, (1,) * 6)
    others = [_table(leading, _pass(1)), _table(leading, _pass(0, "no_filler")), _table(leading, lens="raw")]
    for table in ([own, *others], [*others, own]):
        found = position_window(pl.concat(table), _pass(0), "logit", 5, None, 16)
        assert (found.rank1_frac, found.low) == (0, True)


def test_a_window_of_an_unnumbered_fact_can_be_taken():
    asked = PromptKey(None, "pos", "orig")
    found = position_window(_table(_ranks((1,) * 6, (1,) * 6), asked), asked, "logit", 5, None, 16)
    assert found.rank1_frac == 1


def test_a_last_position_alone_is_no_window():
    table = _table({(16, 5): 1, (16, 6): 1})
    found = position_window(table, _pass(0), "logit", 5, 5, 16)
    assert (found.n_positions, found.rank1_frac, found.low, found.rank1_frac_strong_run2) == (1, None, None, None)
    assert found.rank1_frac_reason == "5 of 6 positions have no rank of the answer there"
    assert found.rank1_frac_strong_run2_reason == found.rank1_frac_reason


def test_a_rank_that_is_absent_decides_nothing_unless_the_other_layer_of_the_run_is_first():
    table = _table(_ranks((1, 1, 1, 1, 1, None), (2, 2, 2, 2, 2, 1)))
    found = position_window(table, _pass(0), "logit", 5, 5, 16)
    assert (found.n_positions, found.rank1_frac) == (5, None)
    assert found.rank1_frac_strong_run2 == 1


def test_without_a_semantic_layer_there_is_a_grid_and_no_share():
    found = position_window(_table({(16, 5): 2}), _pass(0), "logit", None, None, 16)
    assert [g.position for g in found.grid] == list(GRID_17)
    assert (found.rank1_frac, found.rank1_frac_strong_run2) == (None, None)
    assert found.rank1_frac_reason == "there is no semantic layer"
    assert found.rank1_frac_strong_run2_reason == "there is no strong run of two"
