"""The status of a layer at its bounds, what withholds one, and the positions that know the subject."""

from dataclasses import replace

import polars as pl
import pytest

from layerscope.analysis.consistency import repeatability
from layerscope.analysis.outputs import outputs
from layerscope.analysis.quotability import quotability
from layerscope.analysis.subject_window import subject_window
from layerscope.record.measured import (
    MeasuredRecord,
    PositionReadoutRecord,
    RepeatabilityRecord,
    SecondForwardRecord,
)
from layerscope.record.parts import IdentityRecord, LayerFlag, NumericHealthRecord
from small_record import answer, curve_of, curves_of, fact, record_of

LENSES = ("logit", "next_norm", "tuned", "raw", "prism")
PASSED = IdentityRecord(ok=True, tolerance_bits=1e-6, n_prompts=1, fitted_bias=False, note="")
TEACHER = 3.0


def judged(*layers, lens="logit", others=(), lenses=LENSES, **changes):
    """Statuses of one lens at layers 0 and on, of a prompt with these (KL, entropy less the model's).

    Args:
        others: the same of an unanswered prompt.
        other: fields of that one's record.
    """
    n = len(layers) - 1
    prompts = [fact(0, answer("A", 7)), *([fact(1, answer("B", 8), **changes.pop("other", {}))] if others else [])]
    curves = [
        curve_of(
            prompt.key,
            n,
            {
                layer: {
                    "kl_to_final_bits": kl,
                    "entropy_bits": TEACHER + gap,
                    "teacher_entropy_bits": TEACHER,
                    "answer_rank": rank,
                    "top_ids": [layer, 50],
                }
                | changes.get("row", {}).get(layer, {})
                for layer, (kl, gap) in enumerate(values)
            },
            lens,
        )
        for prompt, values, rank in zip(prompts, (layers, others), (1, 9), strict=False)
    ]
    parts = {"identity": PASSED} | {key: value for key, value in changes.items() if key != "row"}
    record = record_of(prompts, n, lenses=(lens, *(name for name in lenses if name != lens)), **parts)
    found = curves_of(*curves)
    repeat = repeatability(record.measured.position_readout)
    return quotability(found, record, outputs(found, record, lens), repeat)


def _statuses(found, lens="logit"):
    return [layer.status for layer in found.by_lens[lens]]


def test_both_medians_decide_whether_a_layer_is_near_and_half_a_bit_still_is():
    found = judged((0.5, 0.5), (0.5, -0.5), (0.6, 0.0), (0.0, 0.6), (0.0, -0.6), (9.0, 0.0), (0.0, 0.0))
    assert _statuses(found) == ["near", "near", "decoded", "decoded", "decoded", "decoded", "model"]
    assert (found.n_prompts, found.over_answered) == (1, True)
    assert (found.status("logit", 6), found.status("logit", None), found.status("raw", 0)) == ("model", None, None)


@pytest.mark.parametrize("lens", LENSES)
def test_the_last_layer_is_the_model_under_the_lenses_that_are_the_model_there(lens):
    found = judged((9.0, 1.0), (0.0, 0.0), lens=lens)
    assert _statuses(found, lens)[-1] == ("model" if lens in ("logit", "next_norm", "tuned") else "near")
    parted = judged((9.0, 1.0), (0.25, 0.0), lens=lens)  # a map or a softcap of its own there
    assert _statuses(parted, lens)[-1] == "near"
    unchecked = judged((9.0, 1.0), (0.0, 0.0), lens=lens, identity=None)
    assert _statuses(unchecked, lens)[-1] == "near"


def test_medians_are_over_answered_prompts_and_over_all_where_none_is():
    found = judged((0.2, 0.0), (0.0, 0.0), others=((9.0, 0.0), (0.0, 0.0)))
    assert _statuses(found) == ["near", "model"] and found.by_lens["logit"][0].kl_bits_over_prompts == 0.2
    none = judged((0.2, 0.0), (0.0, 0.0), others=((9.0, 0.0), (0.0, 0.0)), row={1: {"answer_rank": 2}})
    assert (none.over_answered, none.n_prompts, _statuses(none)) == (False, 2, ["decoded", "model"])


def test_a_prompt_without_an_answer_is_not_among_the_answered_ones():
    own = {"other": {"judge": "model_top1"}, "row": {1: {"answer_rank": 1}}}  # on top at the last layer, as it must be
    known = judged((0.2, 0.0), (0.0, 0.0), others=((9.0, 0.0), (0.0, 0.0)), **own)
    assert (known.over_answered, known.n_prompts, _statuses(known)[0]) == (True, 1, "near")


def test_a_layer_without_a_row_has_no_status():
    prompt = fact(0, answer("A", 7))
    curve = curve_of(prompt.key, 2, {layer: {"kl_to_final_bits": 0.0} for layer in range(3)}, "tuned")
    curves = curves_of(replace(curve, rows=curve.rows[1:]))
    record = record_of([prompt], 2, lenses=LENSES, identity=PASSED)
    found = quotability(curves, record, outputs(curves, record, "logit"), repeatability(None))
    assert _statuses(found, "tuned") == [None, "decoded", "model"]
    assert found.withheld("tuned") == found.withheld("logit") == ()


NEAR = ((0.1, 0.0), (0.1, 0.0), (0.0, 0.0))


def test_what_withholds_a_layer():
    failed = judged(*NEAR, identity=PASSED.model_copy(update={"ok": False}))
    assert failed.withheld("logit") == (0, 1, 2)
    assert {layer.reason for layer in failed.by_lens["logit"]} == {
        "the last layer, decoded by us, is not the model's own output"
    }
    broken = judged(*NEAR, row={1: {"finite": False}})
    assert (broken.withheld("logit"), broken.by_lens["logit"][1].reason) == ((1,), "numbers were not finite")
    flags = tuple(LayerFlag(layer=layer, lens=lens, any_nan=True, any_inf=False) for layer, lens in ((0, "logit"), (1, "raw")))  # fmt: skip # noqa: E501
    health = NumericHealthRecord(any_nan=True, any_inf=False, layers_flagged=flags)
    assert judged(*NEAR, numeric_health=health).withheld("logit") == (0,)


def _decoded_again(flips, rank_dev, headline="logit"):
    again = RepeatabilityRecord(status="ok", rank_dev=rank_dev, top1_flip=flips)
    readout = PositionReadoutRecord(
        headline=headline, views=(), overlaps=(), answer_gap=(), scaled=(), repeatability=again
    )
    return MeasuredRecord(position_readout=readout)


@pytest.mark.parametrize(
    ("measured", "withheld"),
    [
        (_decoded_again((False, True, False), (0, 1, 0)), (1,)),
        (_decoded_again((False, False, False), (6, 0, 0)), (0,)),
        (_decoded_again((False, False, False), (5, 0, 0)), ()),
        (_decoded_again((False, True, False), (0, 1, 0), "raw"), ()),
        # Of two ids each, one shared is a third of all three.
        (MeasuredRecord(second_forward=SecondForwardRecord(mode="always", top_ids=((0, 50), (60, 50), (2, 50)))), (1,)),
        (MeasuredRecord(second_forward=SecondForwardRecord(mode="off")), ()),
    ],
)
def test_a_layer_that_does_not_repeat_is_withheld(measured, withheld):
    assert judged(*NEAR, measured=measured).withheld("logit") == withheld


# The positions that know the subject


def _window(ranks, end, layer=5, **more):
    """The primary prompt's answer at positions 0 and on, at layer 5; None for one that was not decoded."""
    prompt = fact(0, answer("A", 7), subject_end=end, **more)
    n = len(ranks)
    rows = pl.DataFrame(
        {
            "fact_index": [0] * n, "prompt_id": ["pos"] * n, "prompt_variant": ["orig"] * n, "lens": ["logit"] * n,
            "layer": [5] * n, "position": list(range(n)), "token": [f"t{i}" for i in range(n)], "answer_rank": ranks,
        },
        schema_overrides={"answer_rank": pl.Int32},
    ).drop_nulls("answer_rank")  # fmt: skip
    return subject_window(rows, prompt.key, prompt, "logit", layer)


def test_only_positions_from_the_subjects_end_on_count():
    found = _window([900, 900, 10, 11, 5, 1], end=2)
    assert [(place.position, place.answer_rank) for place in found.places] == [(2, 10), (3, 11), (4, 5), (5, 1)]
    assert (found.n_positions, found.share_top_10, found.low, found.reason) == (4, 0.75, False, None)
    assert _window([900, 900, 30, 11, 50, 1], end=2).low is True
    assert _window([900, 10, 11, 11, 1, 1], end=2).low is False  # half is not fewer than half


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (_window([1, 1], end=None), "it is not known where the subject ends"),
        (_window([1, 1], end=0, layer=None), "the answer is not on top for good at any layer"),
        (_window([None, None, 1], end=1), "no other position after the subject was decoded"),
        (_window([1, 1], end=0, judge="whole"), "the prompt is not judged by the first piece of an answer"),
    ],
)
def test_where_it_cannot_be_asked_it_is_not(found, reason):
    assert (found.share_top_10, found.low, found.reason) == (None, None, reason)
