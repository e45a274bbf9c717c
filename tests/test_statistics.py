"""Statistics over facts: worked by hand, held to exact and to naive computations, and to what a median promises.

Tolerances. Shares and widths are from simulated samples, whose own spread is stated beside them; the rest is
float64's.
"""

import random
from math import comb, log2, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.analysis.statistics import FEWEST, RESAMPLES, Z_95, Summary, entropy_fraction, summarize

LAYERS = st.lists(st.none() | st.integers(0, 80), max_size=40)
FEW = settings(max_examples=40, deadline=None)


def test_a_summary_worked_by_hand():
    found = summarize([25, 24, None, 22, 32])
    assert (found.n, found.n_missing, found.share_missing) == (5, 1, 0.2)
    assert (found.median, found.p25, found.p75, found.mean) == (24.5, 23.5, 26.75, 25.75)
    assert (found.median_rounded, found.p25_rounded, found.p75_rounded) == (24, 24, 27)  # halves to even
    assert found.interval_95 is None
    assert found.interval_reason == "4 facts have a layer; an interval needs 10"


@pytest.mark.parametrize("n", [0, 3])
def test_without_any_layer_everything_is_absent_but_the_share(n):
    found = summarize([None] * n)
    assert (found.n, found.n_missing, found.median, found.median_rounded) == (n, n, None, None)
    assert (found.p25, found.p75, found.mean, found.interval_95) == (None, None, None, None)
    assert found.share_missing == (1.0 if n else None)
    assert (found.share_missing_interval_95 is None) == (n == 0)


@FEW
@given(LAYERS, st.randoms(use_true_random=False))
def test_the_order_of_the_facts_changes_nothing(layers, rng):
    shuffled = rng.sample(layers, len(layers))
    assert summarize(shuffled) == summarize(layers)


@FEW
@given(LAYERS)
def test_the_bootstrap_repeats_bit_for_bit(layers):
    assert summarize(layers) == summarize(list(layers))


def test_another_seed_draws_other_resamples():
    layers = [int(layer) for layer in np.random.default_rng(0).integers(0, 10_000, 30)]
    assert len({summarize(layers, seed).interval_95 for seed in range(5)}) > 1


@FEW
@given(LAYERS, st.integers(0, 20))
def test_facts_without_a_layer_claim_no_depth(layers, more):
    found, padded = summarize(layers), summarize(layers + [None] * more)
    assert padded.n_missing == found.n_missing + more
    for name in ("median", "p25", "p75", "mean", "median_rounded", "p25_rounded", "p75_rounded"):
        assert getattr(padded, name) == getattr(found, name)


@pytest.mark.parametrize("n", [FEWEST - 1, FEWEST])
def test_an_interval_needs_ten_facts_with_a_layer(n):
    found = summarize([7] * n + [None] * 20)
    assert found.interval_95 == ((7.0, 7.0) if n == FEWEST else None)
    assert (found.interval_reason is None) == (n == FEWEST)


@FEW
@given(st.lists(st.integers(0, 40), min_size=FEWEST // 2, max_size=30), st.integers(0, 10))
def test_the_interval_holds_the_median_of_symmetric_data(offsets, n_missing):
    layers = [40 - d for d in offsets] + [40 + d for d in offsets]
    low, high = _interval(summarize(layers + [None] * n_missing))
    assert low <= 40 <= high


@FEW
@given(st.lists(st.integers(0, 80), min_size=FEWEST, max_size=30))
def test_the_interval_of_more_facts_of_the_same_kind_is_no_wider(layers):
    low, high = _interval(summarize(layers))
    narrow_low, narrow_high = _interval(summarize(layers * 9))
    assert narrow_high - narrow_low <= high - low


def test_the_interval_narrows_with_the_root_of_the_number_of_facts():
    rng = np.random.default_rng(1)
    widths = []
    for n in (100, 2500):
        low, high = _interval(summarize([int(layer) for layer in rng.normal(500, 100, n)]))
        widths.append(high - low)
    # The standard error of a normal sample's median is sqrt(pi / 2) standard deviations over sqrt(n).
    expected = [2 * 1.96 * 100 * sqrt(np.pi / 2 / n) for n in (100, 2500)]
    assert widths == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize("n", [11, 21, 35])
def test_the_interval_agrees_with_the_exact_bootstrap_of_an_odd_number(n):
    # A resampled median is at most the i-th value if more than half of n draws hit the first i: Efron 1979, section 3.
    at_most = [
        sum(comb(n, k) * i**k * (n - i) ** (n - k) for k in range(n // 2 + 1, n + 1)) / n**n for i in range(n + 1)
    ]
    error = 4 * sqrt(0.025 * 0.975 / RESAMPLES)
    low, high = _interval(summarize(list(range(1, n + 1))))
    assert at_most[int(low) - 1] < 0.025 + error and at_most[round(low + 0.49)] > 0.025 - error
    assert at_most[int(high) - 1] < 0.975 + error and at_most[round(high + 0.49)] > 0.975 - error


@pytest.mark.parametrize("n_missing", [0, 3, 25])
def test_the_interval_agrees_with_drawing_facts_one_by_one(n_missing):
    rng = random.Random(2)
    layers = [1000 * layer for layer in range(12)]  # an even number, so that medians between two values occur
    facts = layers + [None] * n_missing
    medians = []
    for _ in range(20_000):
        found = sorted(fact for fact in rng.choices(facts, k=len(facts)) if fact is not None)
        if found:
            medians.append((found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2)
    medians.sort()
    low, high = _interval(summarize(facts))
    for bound, q in ((low, 0.025), (high, 0.975)):
        nearby = medians[round((q - 0.005) * len(medians))], medians[round((q + 0.005) * len(medians))]
        assert nearby[0] <= bound <= nearby[1]


def test_not_knowing_how_many_facts_have_a_layer_widens_the_interval():
    # Ten facts at layer 0 and three at 80. Of 13 draws, 7 at 80 come in 1.6 per cent of resamples: below 2.5. Where
    # 300 facts have no layer, the number that has one varies, and with it whether as many may stand at 80 as at 0.
    layers = [0] * 10 + [80] * 3
    assert _share_of_medians_above_zero(13, {13: 1.0}) == pytest.approx(0.016, abs=5e-4)
    sizes = {n: comb(313, n) * (13 / 313) ** n * (300 / 313) ** (313 - n) for n in range(1, 80)}
    assert _share_of_medians_above_zero(13, sizes) == pytest.approx(0.030, abs=5e-4)
    assert _interval(summarize(layers)) == (0.0, 0.0)
    assert _interval(summarize(layers + [None] * 300)) == (0.0, 40.0)


def _share_of_medians_above_zero(n: int, sizes: dict[int, float]) -> float:
    """Of resamples with so many layers, weighted, drawn from 3 deep facts among n: at least half of the draws deep."""
    deep = 3 / n
    share = {
        size: sum(comb(size, k) * deep**k * (1 - deep) ** (size - k) for k in range((size + 1) // 2, size + 1))
        for size in sizes
    }
    return sum(sizes[size] * share[size] for size in sizes) / sum(sizes.values())


@given(st.integers(1, 200), st.data())
def test_the_interval_of_the_missing_share_solves_the_score_equation(n, data):
    missing = data.draw(st.integers(0, n))
    found = summarize([None] * missing + [3] * (n - missing))
    assert found.share_missing_interval_95 is not None
    low, high = found.share_missing_interval_95
    assert 0 <= low <= missing / n <= high <= 1
    assert low < high  # no share of a few facts is certain
    for share in (low, high):
        assert abs(missing / n - share) == pytest.approx(Z_95 * sqrt(share * (1 - share) / n), abs=1e-8)


@pytest.mark.parametrize(
    ("layers", "middle", "quartiles"),
    [
        ([25, 24, None, 22, 32], 24, (24, 27)),
        ([25, 24, 23, 25, 26], 25, (24, 25)),
        ([31, 30, 32, 30, 32], 31, (30, 32)),
        ([42] * 5, 42, (42, 42)),
        ([36, 35, 36, 33, 39], 36, (35, 36)),
        ([46] * 5, 46, (46, 46)),
        ([44, 41, 44, 42, 46], 44, (42, 44)),
        ([40, 49, 51, 80, 60], 51, (49, 60)),
        ([33, 30, 31, 32, 34], 32, (31, 33)),
        ([80, None, None, 80, None], 80, (80, 80)),
    ],
)
def test_medians_and_quartiles_round_as_those_published_of_ten_models(layers, middle, quartiles):
    found = summarize(layers)
    assert found.median_rounded == middle
    assert (found.p25_rounded, found.p75_rounded) == quartiles
    assert found.n_missing == layers.count(None)


def test_an_entropy_fraction_is_one_of_a_uniform_distribution_and_comparable_between_vocabularies():
    assert entropy_fraction(log2(151936), 151936) == 1
    assert entropy_fraction(6.0, 4096) == entropy_fraction(8.0, 65536) == 0.5


def test_an_entropy_fraction_is_absent_without_an_entropy_or_a_choice():
    assert entropy_fraction(None, 4096) is None
    assert entropy_fraction(0.0, 1) is None


def _interval(found: Summary) -> tuple[float, float]:
    assert found.interval_95 is not None
    return found.interval_95
