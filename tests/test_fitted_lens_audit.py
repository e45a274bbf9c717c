"""A fitted lens beside the baseline: numbers worked out by hand, verdicts by their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.curve import Curve
from layerscope.analysis.fitted_lens_audit import BitsPair, LayerPair, attribution, fitted_lens_audit, judge
from layerscope.record.measured import TunedVariantRecord, TunedVariantsRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.rows import COLUMNS

BLANK = {column.name: None for column in COLUMNS}


def curve(lens, ranks=None, kl=None, tempered=None, first_layer=0, n_layers=8):
    """A curve with these columns; layers follow each other."""
    columns = {"answer_rank": ranks, "kl_to_final_bits": kl, "kl_to_final_bits_norm_temp": tempered}
    size = len(next((values for values in columns.values() if values is not None), ()))
    rows = tuple(
        BLANK
        | {"row": i, "layer": first_layer + i}
        | {name: values[i] for name, values in columns.items() if values is not None}
        for i in range(size)
    )
    return Curve(PromptKey(0, "pos", "orig"), lens, n_layers, 100, rows)


BASELINE = curve(
    "logit",
    ranks=[90, 40, 20, 9, 5, 2, 1, 1, 1],
    kl=[9.0, 8.5, 8.0, 7.0, 6.0, 4.0, 2.0, 1.0, 0.0],
    tempered=[9.0, 8.4, 8.5, 7.0, 5.5, 4.0, 1.5, 1.0, 0.0],
)
TUNED = curve(
    "tuned",
    ranks=[60, 10, 8, 5, 1, 2, 1, 1],
    kl=[6.0, 5.0, 4.5, 4.0, 1.0, 1.5, 0.5, 0.0],
    first_layer=1,
)


def test_layers_are_compared_as_fitted_less_baseline_and_bits_the_other_way_round():
    found = fitted_lens_audit(BASELINE, TUNED)
    assert (found.lens, found.baseline_lens) == ("tuned", "logit")
    assert found.rank_milestones == {10: LayerPair(3, 2), 5: LayerPair(4, 4), 1: LayerPair(6, 5)}
    assert [pair.delta for pair in found.rank_milestones.values()] == [-1, 0, -1]
    # A quarter, a half and three quarters of 8 layers are layers 2, 4 and 6.
    assert found.kl_bits_at_percentiles == {
        "p25": BitsPair(8.0, 5.0), "p50": BitsPair(6.0, 4.0), "p75": BitsPair(2.0, 1.5)
    }  # fmt: skip
    assert [pair.delta for pair in found.kl_bits_at_percentiles.values()] == [3.0, 2.0, 0.5]
    assert found.first_kl_le_1_0 == LayerPair(7, 5)
    assert found.verdict == "helpful"


def test_a_lens_against_itself_is_neutral():
    found = fitted_lens_audit(BASELINE, BASELINE)
    assert found.verdict == "neutral"
    assert {pair.delta for pair in found.rank_milestones.values()} == {0}


def test_a_delta_is_absent_when_either_side_is():
    found = fitted_lens_audit(BASELINE, curve("prism", ranks=[50] * 9, kl=[None] * 9))
    assert found.rank_milestones[1] == LayerPair(6, None)
    assert (found.rank_milestones[1].delta, found.rank_milestones[1].worse) == (None, True)
    assert found.kl_bits_at_percentiles["p50"].delta is None
    assert found.verdict is None


def test_ranks_that_were_never_measured_leave_the_verdict_open_unless_there_was_none_to_lose():
    kl = [9.0] * 9
    assert fitted_lens_audit(BASELINE, curve("prism", kl=kl)).verdict is None
    assert fitted_lens_audit(curve("logit", kl=kl), curve("prism", kl=kl)).verdict == "neutral"


def test_curves_without_rows_compare_to_nothing():
    found = fitted_lens_audit(curve("logit"), curve("prism"))
    assert set(found.rank_milestones.values()) == {LayerPair(None, None)}
    assert (found.first_kl_le_1_0, found.verdict) == (LayerPair(None, None), None)


SAME = {10: LayerPair(3, 3), 5: LayerPair(4, 4), 1: LayerPair(6, 6)}
LATER_5 = SAME | {5: LayerPair(4, 5)}
LOST_1 = SAME | {1: LayerPair(6, None)}


@pytest.mark.parametrize(
    ("gains", "ranks", "verdict"),
    [
        ((0.5, 0.0, 0.0), SAME, "helpful"),
        ((0.0, 0.5, -0.2), SAME, "helpful"),  # worse than -0.2 is what forbids it
        ((0.0, 0.5, 0.0), LATER_5, "helpful"),  # rank 1 alone is asked for
        ((0.0, 0.0, 0.5), SAME, "neutral"),  # gained too deep to count as help
        ((0.5, 0.0, -0.3), SAME, "mixed"),
        ((0.5, 0.5, 0.5), LOST_1, "mixed"),
        ((3.16, 2.83, -0.54), LOST_1, "mixed"),
        ((0.0, -0.2, 0.0), SAME, "regressive"),
        ((-0.2, 0.0, -0.2), SAME, "regressive"),
        ((-0.9, 0.0, 0.0), SAME, "neutral"),  # one percentile, and not the middle one
        ((0.0, 0.0, 0.0), LATER_5, "regressive"),
        ((0.4, 0.4, 0.4), LOST_1, "regressive"),
        ((0.19, -0.19, 0.49), SAME, "neutral"),
        ((0.0, 0.0, 0.0), {rank: LayerPair(None, 4) for rank in (10, 5, 1)}, "neutral"),
    ],
)
def test_the_verdict_follows_gains_and_ranks(gains, ranks, verdict):
    bits = {name: BitsPair(0.0, -gain) for name, gain in zip(("p25", "p50", "p75"), gains, strict=True)}
    assert judge(ranks, bits) == verdict


LAYER = st.none() | st.integers(0, 9)
GAIN = st.floats(-2, 2)


@given(st.tuples(LAYER, LAYER, LAYER, LAYER, LAYER, LAYER), st.tuples(GAIN, GAIN, GAIN))
def test_every_verdict_meets_its_definition(layers, gains):
    ranks = {rank: LayerPair(*layers[2 * i : 2 * i + 2]) for i, rank in enumerate((10, 5, 1))}
    bits = {name: BitsPair(0.0, -gain) for name, gain in zip(("p25", "p50", "p75"), gains, strict=True)}
    verdict = judge(ranks, bits)
    lost = [a is not None and (b is None or b > a) for a, b in zip(layers[::2], layers[1::2], strict=True)]
    regression = any(gain <= -0.2 for gain in gains) or any(lost)
    if verdict == "helpful":
        assert max(gains[:2]) >= 0.5 and min(gains) >= -0.2 and not lost[2]
    elif verdict == "mixed":
        assert max(gains) >= 0.5 and regression
    elif verdict == "regressive":
        assert gains[1] <= -0.2 or sum(gain <= -0.2 for gain in gains) >= 2 or any(lost)
    else:
        assert not any(lost) and gains[1] > -0.2 and max(gains[:2]) < 0.5


def test_the_gain_is_split_into_a_temperatures_and_the_rest():
    found = attribution(BASELINE, TUNED)
    gains = [(g.layer, g.tuned_bits, g.temperature_bits, g.rotation_bits) for g in found.percentiles.values()]
    assert gains == [(2, 3.0, -0.5, 3.5), (4, 2.0, 0.5, 1.5), (6, 0.5, 0.5, 0.0)]
    assert found.prefer_tuned is True


def _without_map(*bits):
    """Parts of a tuned lens of which the one without a linear map has these divergences, from layer 0 on."""
    part = TunedVariantRecord(kl_to_final_bits=bits, answer_rank=(None,) * len(bits))
    blank = TunedVariantRecord(kl_to_final_bits=(), answer_rank=())
    return TunedVariantsRecord(rotation_only=blank, temperature_only=blank, bias_only=part)


def test_the_rest_is_split_into_a_bias_and_what_the_map_adds_to_it():
    parts = _without_map(None, 8.0, 7.0, 6.0, 3.5, 3.0, None, 0.5, 0.0)
    found = attribution(BASELINE, TUNED, parts).percentiles
    # At layer 2: 8 bits, 8.5 after a temperature, 7 without the map, 5 with it.
    assert (found["p25"].bias_bits, found["p25"].linear_bits) == (1.5, 2.0)
    # At layer 4: 6, 5.5, 3.5 and 4, so there the map harms.
    assert (found["p50"].bias_bits, found["p50"].linear_bits) == (2.0, -0.5)
    for gain in (found["p25"], found["p50"]):
        assert gain.temperature_bits + gain.bias_bits + gain.linear_bits == gain.tuned_bits
    assert (found["p75"].bias_bits, found["p75"].linear_bits, found["p75"].rotation_bits) == (None, None, 0.0)


def test_without_a_decode_without_the_map_nothing_is_split():
    for parts in (None, _without_map(), _without_map(1.0).model_copy(update={"bias_only": None})):
        gains = attribution(BASELINE, TUNED, parts).percentiles.values()
        assert {(gain.bias_bits, gain.linear_bits) for gain in gains} == {(None, None)}
        assert [gain.rotation_bits for gain in gains] == [3.5, 1.5, 0.0]


def _with(rotation_bits, baseline_rank_5, tuned_rank_5, n_layers):
    """Two curves with that gain beyond a temperature at half depth, and those layers of rank 5."""
    sizes = range(n_layers + 1)
    return attribution(
        curve("logit", [5 if i >= baseline_rank_5 else 50 for i in sizes], [4.0] * len(sizes), [4.0] * len(sizes),
              n_layers=n_layers),
        curve("tuned", [5 if i >= tuned_rank_5 else 50 for i in sizes], [4.0 - rotation_bits] * len(sizes),
              n_layers=n_layers),
    ).prefer_tuned  # fmt: skip


@pytest.mark.parametrize(
    ("rotation_bits", "earlier_by", "n_layers", "prefer"),
    [
        (0.25, 0, 80, True),
        (0.125, 1, 80, False),
        (0.125, 2, 80, True),
        (0.125, 1, 29, True),  # a twentieth of 29 layers is one
        (0.125, 1, 30, False),  # of 30 it is 1.5, rounded to two
        (0.125, 0, 8, False),  # of 8 it rounds to none, but one is asked for
        (0.125, 1, 8, True),
        (0.125, -2, 80, False),
    ],
)
def test_a_tuned_lens_is_preferred_for_its_map_or_for_reaching_rank_5_earlier(
    rotation_bits, earlier_by, n_layers, prefer
):
    assert _with(rotation_bits, 5, 5 - earlier_by, n_layers) is prefer


def test_what_is_not_measured_is_not_attributed():
    untempered = curve("logit", kl=[4.0] * 9)
    found = attribution(untempered, curve("tuned", kl=[3.0] * 9))
    assert {(g.tuned_bits, g.temperature_bits, g.rotation_bits) for g in found.percentiles.values()} == {
        (1.0, None, None)
    }
    assert found.prefer_tuned is None
    assert attribution(curve("logit"), curve("tuned")).prefer_tuned is None
    ranked = attribution(curve("logit", ranks=[9, 9, 9, 9, 1]), curve("tuned", ranks=[9, 1, 1, 1, 1]))
    assert ranked.prefer_tuned is True
