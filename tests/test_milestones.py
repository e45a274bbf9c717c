"""Milestones on curves made by hand and at random: first and stable crossings, gates, preference, reasons."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.curve import Curve, Curves
from layerscope.analysis.milestones import (
    NEVER,
    NO_TWO,
    NOT_MEASURED,
    NOT_TO_THE_END,
    PREFERENCE,
    Milestone,
    definitions,
    entropy_drop_bits,
    find_milestones,
    layers_between,
    milestones_of,
    rest_mass_peak,
    semantic_layer,
)
from layerscope.lenses import bind_lenses
from layerscope.readout.measure import measure
from layerscope.readout.prompt_query import PromptQuery
from layerscope.record.milestone_names import STABLE
from layerscope.record.prompt_key import PromptKey
from layerscope.record.protocol import PROTOCOLS, Thresholds
from layerscope.record.rows import COLUMNS, rows_frame
from layerscope.unembedding import HeadTransform, Norm, Unembedding
from properties import examples

T = Thresholds()
D_VOCAB = 1000
ASKED = PromptKey(0, "pos", "orig")
EMPTY = {column.name: None for column in COLUMNS}


def curve_of(n_layers: int | None = None, **columns: list[object]) -> Curve:
    """A curve with the given columns from layer 0 on; all others are absent."""
    length = len(next(iter(columns.values())))
    rows = tuple(
        EMPTY | {"layer": i, "row": 100 + i, "lens": "logit"} | {name: values[i] for name, values in columns.items()}
        for i in range(length)
    )
    return Curve(ASKED, "logit", length - 1 if n_layers is None else n_layers, D_VOCAB, rows)


def ranked(ranks: list[int | None], **columns: list[object]) -> Curve:
    """A curve of answer ranks, with `is_answer` as the ranks have it."""
    return curve_of(answer_rank=ranks, is_answer=[None if r is None else r == 1 for r in ranks], **columns)


def layers_of(curve: Curve) -> dict[str, int | None]:
    return {name: found.layer for name, found in find_milestones(curve, T).items()}


def test_a_rank_that_is_lost_and_won_again_has_a_first_and_a_stable_crossing():
    """As Qwen3-8B: first rank 1 at 31, lost at 32, stable from 33."""
    found = layers_of(ranked([9] * 31 + [1, 2] + [1] * 4))
    assert (found["L_semantic"], found["L_semantic_stable"], found["L_semantic_run2"]) == (31, 33, 33)
    assert found["first_rank_le_1"] == 31 and found["first_rank_le_5"] == found["first_rank_le_5_stable"] == 31


def test_a_milestone_carries_what_was_read_at_its_layer():
    found = find_milestones(
        ranked([4, 1], entropy_bits=[9.0, 2.5], kl_to_final_bits=[3.0, 0.75], p_answer=[0.1, 0.4]), T
    )
    assert found["L_semantic"] == Milestone("L_semantic", "logit", ASKED, 1, None, 101, 2.5, 0.75, 0.4, 1)


def test_where_there_is_no_layer_there_is_a_reason():
    found = find_milestones(ranked([1, 1, 2], entropy_bits=[9.0, 8.0, 7.0]), T)
    assert found["L_semantic_stable"].reason == NOT_TO_THE_END
    assert (found["L_copy_H"].reason, found["L_copy_H_stable"].reason) == (NOT_MEASURED, NOT_MEASURED)  # no flag column
    assert found["L_copy"].reason == NOT_MEASURED
    alone = find_milestones(ranked([2, 1, 2]), T)
    assert alone["L_semantic_run2"].reason == NO_TWO and alone["L_semantic_run2"].layer is None
    assert find_milestones(ranked([2, 2, 2]), T)["L_semantic"].reason == NEVER
    assert all((m.layer is None) != (m.reason is None) for m in find_milestones(ranked([3, 1, 1]), T).values())


def test_an_onset_at_the_last_layer_has_no_run_of_two():
    found = layers_of(ranked([5, 3, 1]))
    assert (found["L_semantic"], found["L_semantic_stable"], found["L_semantic_run2"]) == (2, 2, None)


def test_an_absent_value_satisfies_nothing_and_ends_a_stable_stretch():
    found = layers_of(ranked([1, None, 1, 1]))
    assert (found["L_semantic"], found["L_semantic_stable"]) == (0, 2)


def test_a_missing_layer_ends_a_stable_stretch_too():
    whole = ranked([1, 1, 1, 1])
    gap = replace(whole, rows=whole.rows[:1] + whole.rows[2:])
    cut = replace(whole, rows=whole.rows[:3])
    assert (layers_of(gap)["L_semantic"], layers_of(gap)["L_semantic_stable"]) == (0, 2)
    assert (layers_of(cut)["L_semantic"], layers_of(cut)["L_semantic_stable"]) == (0, None)


@pytest.mark.parametrize(
    ("name", "column", "at", "beyond"),
    [
        ("first_kl_below_1.0", "kl_to_final_bits", 1.0, 1.0000001),
        ("first_kl_below_0.5", "kl_to_final_bits", 0.5, 0.5000001),
        ("L_topk_decay", "topk_prompt_mass@50", 0.33, 0.3300001),
        ("cos_ge_0.4", "cos_to_final", 0.4, 0.3999999),
        ("cos_centered_ge_0.2", "cos_to_final_centered", 0.2, 0.1999999),
        ("first_p_top1_gt_0.30", "p_top1", 0.3000001, 0.30),
        ("first_p_top1_gt_0.60", "p_top1", 0.6000001, 0.60),
    ],
)
def test_a_threshold_is_inclusive_but_for_the_top_probability(name: str, column: str, at: float, beyond: float):
    assert layers_of(curve_of(**{column: [beyond, at]}))[name] == 1


def test_the_gates_ask_for_margin_and_lead_at_rank_1():
    p_ok, p_low = 1 / D_VOCAB + 0.002, 1 / D_VOCAB + 0.0019
    ranks = [1, 1, 1, 2, 1, 1]
    p = [p_low, p_ok, p_low, 0.4, p_ok, p_ok]
    gap = [0.2, 0.49, 0.5, None, 0.5, 1.0]
    found = layers_of(ranked(ranks, p_answer=p, answer_logit_gap=gap))
    assert (found["L_semantic"], found["L_semantic_margin_ok"], found["L_semantic_top2_ok"]) == (0, 1, 2)
    assert (found["L_semantic_strong"], found["L_semantic_strong_run2"]) == (4, 4)
    assert (found["gap_ge_0.5"], found["gap_ge_1.0"], found["L_semantic_run2"]) == (2, 5, 0)


def test_the_answer_outweighs_the_prompt_by_the_margin_inclusive():
    found = layers_of(curve_of(answer_mass=[0.5, 0.75], echo_mass_prompt=[0.5, 0.5]))
    assert found["L_surface_to_meaning"] == 1
    assert layers_of(curve_of(cos_to_answer=[0.1, 0.375], cos_to_prompt_max=[0.1, 0.25]))["L_geom"] == 1


def test_the_strongest_evidence_is_preferred():
    found = find_milestones(ranked([1, 1, 1], p_answer=[0.5] * 3, answer_logit_gap=[0.1, 0.6, 0.7]), T)
    assert semantic_layer(found) is found["L_semantic_strong_run2"]
    for name in PREFERENCE[:3]:  # "L_semantic_confirmed" is not among those of one curve
        found.pop(name, None)
    assert semantic_layer(found) is found["L_semantic"]
    assert semantic_layer(find_milestones(ranked([2, 3]), T)) is None


def test_numbers_between_milestones():
    curve = ranked(
        [3, 2, 1, 1], copy_collapse=[True, False, False, False], entropy_bits=[1.5, 8.0, 6.0, 2.0],
        rest_mass=[0.9, 0.1, 0.25, 0.75],
    )  # fmt: skip
    found = find_milestones(curve, T)
    assert layers_between(found["L_semantic"].layer, found["L_copy"].layer) == 2
    assert entropy_drop_bits(found) == 1.5 - 6.0
    assert rest_mass_peak(curve, found) == (3, 0.75)
    lost = find_milestones(ranked([3, 2], rest_mass=[0.5, 0.5]), T)
    assert layers_between(lost["L_semantic"].layer, lost["L_copy"].layer) is entropy_drop_bits(lost) is None
    assert rest_mass_peak(curve, lost) is None


def test_curves_are_grouped_by_prompt_and_lens_at_last_positions_alone():
    rows = pl.DataFrame(
        {
            "fact_index": [0, 0, 0, 0, None], "prompt_id": ["pos"] * 4 + ["ctl"], "prompt_variant": ["orig"] * 5,
            "lens": ["logit", "logit", "logit", "raw", "logit"], "layer": [1, 0, 0, 0, 0],
            "is_next": [True, True, False, True, True],
        }
    )  # fmt: skip
    curves = Curves.of(rows, 1, 10)
    assert [(str(c.prompt), c.lens, [r["row"] for r in c.rows]) for c in curves] == [
        ("pos 0 orig", "logit", [1, 0]), ("pos 0 orig", "raw", [3]), ("ctl orig", "logit", [4]),
    ]  # fmt: skip
    assert curves.primary == PromptKey(0, "pos", "orig") and len(curves.passes) == 2


def test_curves_of_a_table_are_those_of_its_rows_whatever_their_order():
    """Grouped in plain Python: a curve begins where its first row stands, and its rows ascend by layer."""
    table = [
        EMPTY
        | {"fact_index": fact, "prompt_id": "pos", "prompt_variant": "orig", "lens": lens, "layer": layer}
        | {"position": 4, "is_next": layer != 3 or fact == 0, "finite": True, "answer_rank": 1 + layer * fact}
        | {"top_ids": [fact, layer], "top_tokens": ["a", "b"], "top_probs": [0.5, 0.25], "fact_key": f"fact {fact}"}
        for layer in (0, 1, 3)
        for fact in (1, 0)
        for lens in ("logit", "raw")
    ]
    frame = rows_frame({column.name: [row[column.name] for row in table] for column in COLUMNS})
    for order in ([*range(len(table))], np.random.default_rng(5).permutation(len(table)).tolist()):
        wanted: dict[tuple[PromptKey, str], list[dict[str, object]]] = {}
        for place, row in enumerate(table[i] for i in order):
            if row["is_next"]:
                key = PromptKey(row["fact_index"], "pos", "orig"), row["lens"]
                wanted.setdefault(key, []).append({**row, "row": place})
        found = Curves.of(frame[order], 3, D_VOCAB)
        assert list(found.by_key) == list(wanted)
        for key, unsorted in wanted.items():
            curve, rows = found.by_key[key], tuple(sorted(unsorted, key=lambda row: row["layer"]))
            assert curve.rows == rows and dict(curve.rows[-1]) == rows[-1] and curve.at(2) is None
            alone = find_milestones(replace(curve, rows=rows), T)
            assert find_milestones(curve, T) == milestones_of(found, T)[key] == alone


# Properties

probability = st.one_of(st.none(), st.floats(0, 1))
VALUES: dict[str, st.SearchStrategy[object]] = {
    "answer_rank": st.one_of(st.none(), st.integers(1, 12)),
    "p_answer": probability,
    "p_top1": probability,
    "answer_logit_gap": st.one_of(st.none(), st.floats(0, 3)),
    "kl_to_final_bits": st.one_of(st.none(), st.floats(0, 3)),
    "cos_to_final": st.one_of(st.none(), st.floats(-1, 1)),
    "cos_to_final_centered": st.one_of(st.none(), st.floats(-1, 1)),
    "answer_mass": probability,
    "echo_mass_prompt": probability,
    "cos_to_answer": st.one_of(st.none(), st.floats(-1, 1)),
    "cos_to_prompt_max": st.one_of(st.none(), st.floats(-1, 1)),
    "topk_prompt_mass@50": probability,
}


def _columns(length: int) -> st.SearchStrategy[dict[str, list[object]]]:
    return st.fixed_dictionaries({name: st.lists(v, min_size=length, max_size=length) for name, v in VALUES.items()})


columns_of_a_curve = st.integers(1, 9).flatmap(_columns)


def random_curve(columns: dict[str, list[object]]) -> Curve:
    """Made in the test, not in the strategy: the checker of annotations rolls dice, which a strategy must not."""
    return ranked(columns["answer_rank"], **{name: v for name, v in columns.items() if name != "answer_rank"})


def no_earlier(stricter: int | None, looser: int | None) -> bool:
    return stricter is None or (looser is not None and stricter >= looser)


@examples(40)
@given(columns_of_a_curve, st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_threshold_never_fires_earlier(columns: dict[str, list[object]], a: float, b: float):
    curve = random_curve(columns)
    low, high = sorted((a, b))
    pairs = {  # looser, stricter
        "semantic_margin": (low, high), "semantic_gap": (low, high), "surface_margin": (low, high),
        "geometry_margin": (low, high), "topk_prompt_mass": (high, low), "kl_to_final_bits": ((high,), (low,)),
        "p_top1": ((low,), (high,)), "answer_gap": ((low,), (high,)), "cos_to_final": ((low,), (high,)),
        "answer_rank": ((5,), (1,)),
    }  # fmt: skip
    for field, (looser, stricter) in pairs.items():
        loose, strict = (
            [*find_milestones(curve, replace(T, **{field: value})).values()] for value in (looser, stricter)
        )
        assert all(no_earlier(s.layer, o.layer) for s, o in zip(strict, loose, strict=True)), field


@examples(40)
@given(columns_of_a_curve)
def test_a_stable_crossing_is_never_earlier_and_holds_to_the_end(columns: dict[str, list[object]]):
    curve = random_curve(columns)
    found = find_milestones(curve, T)
    for name, holds in definitions(T, D_VOCAB).items():
        first, stable = found[name].layer, found[name + STABLE].layer
        truth = [bool(holds(row)) for row in curve.rows]
        assert first == (truth.index(True) if True in truth else None)
        assert no_earlier(stable, first)
        tail = truth[stable:] if stable is not None else []
        assert all(tail) and (stable is not None) == truth[-1]
        assert stable in (None, 0) or not truth[stable - 1]


@examples(40)
@given(columns_of_a_curve)
def test_gates_imply_what_they_ask_for(columns: dict[str, list[object]]):
    found = layers_of(random_curve(columns))
    chain = ["L_semantic_strong_run2", "L_semantic_strong", "L_semantic_top2_ok", "L_semantic"]
    assert all(no_earlier(found[a], found[b]) for a, b in pairwise(chain))
    assert no_earlier(found["L_semantic_strong"], found["L_semantic_margin_ok"])
    assert found["first_rank_le_1"] == found["L_semantic"]
    assert no_earlier(found["first_rank_le_1"], found["first_rank_le_5"])
    assert no_earlier(found["first_kl_below_0.5"], found["first_kl_below_1.0"])


# From logits on

N, D, V = 3, 8, 120


def _measured(weight: torch.Tensor, prompt: tuple[int, ...], answer: int, transform: HeadTransform) -> pl.DataFrame:
    generator = torch.Generator().manual_seed(7)
    residuals = torch.randn(N + 1, 1, D, generator=generator)
    norm = Norm("rms", None, None, 1e-6, "final")
    columns = measure(
        residuals,
        bind_lenses(("logit", "raw"), final_norm=norm, next_norms=(norm,) * (N + 1)),
        [PromptQuery(prompt, 0, (len(prompt) - 1,), (answer,), answer, None, False)],
        Unembedding.of(weight, norm, transform=transform),
        protocol=PROTOCOLS["standard"],
        trivial=lambda ids: set(),
        temperatures=[1.5] * (N + 1),
    )
    return pl.DataFrame(columns)


def _weight() -> torch.Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(3))


ALIKE = {"rtol": 1e-4, "atol": 1e-5}
"""Rows of a head in another order: float32 products of a few terms and logits below 20, 2e-5 twice over."""


@examples(10)
@given(st.permutations(range(V)))
def test_permuting_the_vocabulary_permutes_top_ids_and_changes_no_scalar(order: list[int]):
    place = {old: new for new, old in enumerate(order)}
    prompt, answer = (5, 17, 40), 77
    before = _measured(_weight(), prompt, answer, HeadTransform())
    after = _measured(_weight()[order], tuple(place[i] for i in prompt), place[answer], HeadTransform())
    for name in before.columns:
        if name in ("top1_id", "answer_id"):
            assert [place[i] for i in before[name]] == after[name].to_list()
        elif name == "top_ids":
            assert [[place[i] for i in ids] for ids in before[name]] == after[name].to_list()
        elif name == "top_probs":
            np.testing.assert_allclose(np.array(before[name].to_list()), np.array(after[name].to_list()), **ALIKE)
        elif before[name].dtype == pl.Float64:
            np.testing.assert_allclose(before[name].to_numpy(), after[name].to_numpy(), **ALIKE, err_msg=name)
        elif name != "token_id":
            assert before[name].equals(after[name]), name


@examples(10)
@given(st.floats(0.01, 50))
def test_scaling_logits_never_changes_ranks(scale: float):
    plain, scaled = (_measured(_weight(), (5, 17, 40), 77, HeadTransform(scale=s)) for s in (None, scale))
    for name in ("answer_rank", "is_answer", "top_ids", "top1_id", "topk_jaccard_raw_norm@50"):
        assert plain[name].equals(scaled[name]), name
    assert not plain["p_answer"].equals(scaled["p_answer"]) or scale == 1  # the scale did arrive
