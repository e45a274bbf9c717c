"""The growth of the residual stream's length, on curves made by hand and against NumPy's least squares.

Tolerances. Float64 sums of a few terms: 1e-9 of a slope, and of an R2, a ratio of two such sums, 1e-6.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.curve import Curve
from layerscope.analysis.trajectory import norm_trajectory
from layerscope.record.prompt_key import PromptKey
from layerscope.record.rows import COLUMNS

BLANK = {column.name: None for column in COLUMNS}


def curve(lengths=None, ratios=None, cosines=None):
    """A curve with these columns, from layer 0."""
    size = len(next(values for values in (lengths, ratios, cosines, ()) if values is not None))
    columns = {"raw_resid_norm": lengths, "resid_norm_ratio": ratios, "delta_resid_cos": cosines}
    rows = tuple(
        BLANK | {"row": i, "layer": i} | {name: values[i] for name, values in columns.items() if values is not None}
        for i in range(size)
    )
    return Curve(PromptKey(0, "pos", "orig"), "logit", max(size - 1, 1), 100, rows)


def test_a_stream_that_grows_by_a_factor_has_that_factors_logarithm_as_its_slope():
    found = norm_trajectory(curve([2.0 * 3.0**layer for layer in range(6)]), None, False)
    assert found.slope == pytest.approx(math.log(3.0))
    assert found.r2 == pytest.approx(1.0)
    assert (found.shape_trend, found.sampled_layers) == ("monotonic", 6)


def test_a_stream_of_one_length_is_a_plateau_wholly_explained():
    found = norm_trajectory(curve([5.3] * 7), None, False)
    assert (found.slope, found.r2, found.shape, found.sampled_layers) == (0.0, 1.0, "plateau", 7)


def test_a_zigzag_is_not_monotonic():
    # ln of the lengths is 0, 3, 0, 3: around the mean of 1.5 the line explains (3 * 3)^2 / (4 * 5 * 9) = 0.2 of it.
    found = norm_trajectory(curve([1.0, math.exp(3), 1.0, math.exp(3)]), None, False)
    assert found.slope == pytest.approx(0.6)
    assert found.r2 == pytest.approx(0.2)
    assert found.shape_trend == "non_monotonic"


def test_a_single_layer_has_no_slope_and_nothing_to_explain():
    found = norm_trajectory(curve([4.0]), None, False)
    assert (found.slope, found.r2, found.shape, found.sampled_layers) == (0.0, None, "plateau", 1)


@given(st.lists(st.floats(0.01, 1e4), min_size=3, max_size=30))
def test_numpys_least_squares_give_the_same_line(lengths):
    found = norm_trajectory(curve(lengths), None, False)
    y = np.log(np.array(lengths) + 1e-9)
    slope, offset = np.polyfit(np.arange(len(y)), y, 1)
    assert found.slope == pytest.approx(slope, abs=1e-9)
    total = ((y - y.mean()) ** 2).sum()
    if total > 1e-6:
        left = ((y - slope * np.arange(len(y)) - offset) ** 2).sum()
        assert found.r2 == pytest.approx(1 - left / total, abs=1e-6)
    assert found.r2 is not None and -1e-9 <= found.r2 <= 1.0


def test_without_lengths_the_reciprocal_of_the_ratio_stands_for_them():
    lengths = [2.0, 8.0, 3.0, 40.0]
    assert norm_trajectory(curve(ratios=[1 / x for x in lengths]), None, False).slope == pytest.approx(
        norm_trajectory(curve(lengths), None, False).slope
    )


def test_lengths_and_reciprocals_are_not_mixed():
    found = norm_trajectory(curve([1.0, None, math.e**2], ratios=[7.0, 1e-9, 7.0]), None, False)
    assert found.slope == pytest.approx(1.0)
    assert found.sampled_layers == 2


def test_a_spike_is_a_ratio_above_three_or_a_turn_up_to_the_onset():
    found = norm_trajectory(
        curve([1.0] * 6, ratios=[3.0, 3.1, 0.1, 9.0, 0.1, 9.0], cosines=[0.8, 0.9, 0.79, 0.1, 1.0, 1.0]), 3, True
    )
    assert found.n_spikes == 3  # layers 1, 2 and 3: twice a ratio, twice a turn, layer 3 once
    everywhere = norm_trajectory(curve([1.0] * 6, ratios=[3.0, 3.1, 0.1, 9.0, 0.1, 9.0]), None, True)
    assert everywhere.n_spikes == 3
    assert (found.shape, found.shape_trend, found.spike) == ("spike", "plateau", True)


def test_a_relative_spike_is_three_times_the_median_of_its_neighbours():
    # At layer 3 the neighbours are 1, 1, 2, 2: median 1.5, without the layer itself.
    found = norm_trajectory(curve([1.0] * 6, ratios=[1.0, 1.0, 1.0, 4.6, 2.0, 2.0]), None, False)
    assert (found.n_spikes_relative, found.spike) == (1, True)
    assert norm_trajectory(curve([1.0] * 6, ratios=[1.0, 1.0, 1.0, 4.5, 2.0, 2.0]), None, False).n_spikes_relative == 0


def test_ratios_that_are_large_throughout_are_absolute_spikes_alone():
    ratios, n = [5.0, 6.0, 5.0, 6.0, 5.0], 5
    absolute = norm_trajectory(curve([1.0] * n, ratios=ratios), None, True)
    assert (absolute.n_spikes, absolute.n_spikes_relative, absolute.spike) == (n, 0, True)
    relative = norm_trajectory(curve([1.0] * n, ratios=ratios), None, False)
    assert (relative.spike, relative.shape, relative.shape_trend) == (False, "spike", "plateau")


def test_relative_spikes_beyond_the_onset_do_not_count():
    ratios = [9.0, 1.0, 1.0, 1.0, 1.0, 9.0]
    assert norm_trajectory(curve([1.0] * 6, ratios=ratios), None, False).n_spikes_relative == 2
    assert norm_trajectory(curve([1.0] * 6, ratios=ratios), 4, False).n_spikes_relative == 1


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=12), st.floats(0.1, 10.0))
def test_relative_spikes_do_not_change_with_the_scale_of_the_norm(ratios, scale):
    ratios = [round(ratio * 1024) / 1024 + 1 / 1024 for ratio in ratios]
    scaled = [ratio * 2.0 ** round(math.log2(scale)) for ratio in ratios]  # a power of two rounds nothing
    one, other = (norm_trajectory(curve(ratios=r), None, False).n_spikes_relative for r in (ratios, scaled))
    assert one == other


def test_nothing_measured_is_unknown():
    for empty in (curve(), curve([None] * 4, [None] * 4, [None] * 4)):
        found = norm_trajectory(empty, 2, True)
        assert (found.slope, found.r2, found.sampled_layers) == (None, None, 0)
        assert (found.n_spikes, found.n_spikes_relative, found.spike) == (None, None, None)
        assert (found.shape, found.shape_trend) == ("unknown", "unknown")


def test_lengths_without_ratios_leave_spikes_unknown():
    found = norm_trajectory(curve([1.0, 2.0, 4.0]), None, True)
    assert (found.n_spikes, found.spike, found.shape) == (None, None, "monotonic")
