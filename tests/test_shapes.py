"""Shapes of curves: what each word means, by small examples and by plain loops over random curves."""

import random

import pytest

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.curve_shapes import Step

FALLING = [(0, 9.0), (1, 5.0), (2, 5.0), (3, 1.0)]
HUMP = [(0, 1.0), (1, 4.0), (3, 4.0), (4, 2.0)]


def test_points_are_sorted_and_layers_without_a_value_left_out():
    assert shapes.points([(2, 1.5), (0, None), (1, 3)]) == [(1, 3), (2, 1.5)]


def test_a_strict_fall_fails_where_the_curve_stays_level_and_a_weak_one_does_not():
    assert shapes.failures(FALLING, "falls") == [Step(1, 2, 0.0)]
    assert shapes.failures(FALLING, "falls", strict=False) == []
    assert shapes.is_monotone(FALLING, "falls") is False
    assert shapes.is_monotone(FALLING, "falls", strict=False) is True


def test_every_step_the_wrong_way_is_named_with_its_layers():
    assert shapes.failures(HUMP, "rises") == [Step(1, 3, 0.0), Step(3, 4, -2.0)]
    assert shapes.failures(HUMP, "falls", strict=False) == [Step(0, 1, 3.0)]


def test_slack_forgives_small_steps_alone():
    curve = [(0, 3.0), (1, 3.01), (2, 1.0), (3, 1.5)]
    assert shapes.failures(curve, "falls", slack=0.1) == [Step(2, 3, 0.5)]


@pytest.mark.parametrize("curve", [[], [(4, 1.0)]])
def test_of_fewer_than_two_points_no_shape_is_claimed(curve):
    assert shapes.is_monotone(curve, "falls") is None
    assert shapes.tendency(curve) is None
    assert shapes.largest_step(curve, "rises") is None


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([1, 1, 1], "constant"),
        ([1, 2, 3], "rises"),
        ([3, 2, 1], "falls"),
        ([1, 1, 2], "never falls"),
        ([2, 1, 1], "never rises"),
        ([1, 2, 1], "neither"),
    ],
)
def test_a_tendency_is_the_strongest_word_that_holds(values, word):
    assert shapes.tendency(list(enumerate(values))) == word


def test_peak_and_trough_are_the_shallowest_of_equals():
    assert shapes.peak(HUMP) == (1, 4.0)
    assert shapes.trough([(0, 2.0), (1, 1.0), (2, 1.0)]) == (1, 1.0)
    assert shapes.peak([]) is None and shapes.trough([]) is None


def test_crossings_include_the_bound():
    assert shapes.first_at_least(HUMP, 4.0) == 1
    assert shapes.first_at_least(HUMP, 4.5) is None


def test_what_holds_from_a_layer_on_reaches_to_the_last():
    assert shapes.held_from(FALLING, lambda value: value <= 5) == 1
    assert shapes.held_from(HUMP, lambda value: value >= 4) is None
    assert shapes.held_from([], lambda value: True) is None


def test_a_crossing_that_is_taken_back_is_found():
    ranks = [(0, 9), (1, 1), (2, 3), (3, 1)]
    assert shapes.returns(ranks, lambda rank: rank == 1) == [2]


def test_staying_below_is_asked_from_a_layer_on():
    assert shapes.stays_at_most(HUMP, 2.0) is False
    assert shapes.stays_at_most(HUMP, 2.0, start=4) is True
    assert shapes.stays_at_most(HUMP, 4.0) is True
    assert shapes.stays_at_most(HUMP, 4.0, start=9) is None


def test_the_largest_step_goes_the_way_that_was_asked_for():
    assert shapes.largest_step(HUMP, "rises") == Step(0, 1, 3.0)
    assert shapes.largest_step(HUMP, "falls") == Step(3, 4, -2.0)
    assert shapes.largest_step(FALLING, "rises") is None


def test_words_agree_with_plain_loops_on_random_curves():
    draw = random.Random(7)
    for _ in range(300):
        values = [draw.randint(0, 3) for _ in range(draw.randint(2, 6))]
        curve = list(enumerate(values))
        falls = all(values[i] < values[i - 1] for i in range(1, len(values)))
        assert shapes.is_monotone(curve, "falls") is falls
        assert (shapes.tendency(curve) == "falls") is falls
        assert shapes.peak(curve) == (values.index(max(values)), max(values))
        low = draw.randint(0, 3)
        held = [i for i in range(len(values)) if all(v >= low for v in values[i:])]
        assert shapes.held_from(curve, lambda v, low=low: v >= low) == (min(held) if held else None)


def test_a_part_of_a_curve_includes_both_ends():
    assert shapes.between(HUMP, 1, 3) == [(1, 4.0), (3, 4.0)]


def test_layers_are_listed_with_three_neighbours_or_more_as_a_stretch():
    assert shapes.listed_layers([0]) == "0"
    assert shapes.listed_layers([4, 3, 0]) == "0, 3, 4"
    assert shapes.listed_layers([0, 1, 2, 5, 7, 8, 9]) == "0 to 2, 5, 7 to 9"
    assert shapes.listed_layers([]) == "none"
