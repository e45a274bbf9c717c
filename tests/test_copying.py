"""Prompt echo, worked by hand: which runs of ids a prompt contains, and when a top token counts as copied."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.readout.copying import Echo, copy_flags
from layerscope.readout.prompt_query import Echoes, PromptQuery
from layerscope.record.protocol import Thresholds

PROMPT = (10, 11, 12, 10, 13)
STRICT = ["copy_strict@0.7", "copy_strict@0.8", "copy_strict@0.9", "copy_strict@0.95"]
SOFT = ["copy_soft_k1@0.5", "copy_soft_k2@0.5", "copy_soft_k3@0.5"]


def _flags(
    top1: list[int],
    p1: float | list[float] = 0.99,
    p2: float | list[float] = 0.0,
    *,
    upto: int = 4,
    trivial: frozenset[int] = frozenset(),
    thresholds: Thresholds | None = None,
) -> dict[str, list[bool]]:
    """Flags of one position, layer by layer."""
    rules = thresholds or Thresholds()
    ids = np.array(top1).reshape(-1, 1)
    p1, p2 = (np.broadcast_to(np.array(p, dtype=np.float64).reshape(-1, 1), ids.shape) for p in (p1, p2))
    echo = Echo(PROMPT, (1, *rules.copy_soft_windows))
    found = copy_flags(ids, p1, p2, (upto,), echo, trivial, rules)
    return {name: values[:, 0].tolist() for name, values in found.items()}


def test_every_threshold_has_its_column():
    assert list(_flags([10])) == [*STRICT, "copy_collapse", *SOFT]


def test_a_sure_top_token_of_the_prompt_is_a_copy_and_another_token_is_not():
    found = _flags([12, 99])
    assert all(found[name] == [True, False] for name in [*STRICT, "copy_collapse", SOFT[0]])


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9, 0.95])
def test_a_strict_threshold_is_exceeded_and_not_met(threshold):
    above = float(np.nextafter(threshold, 1))
    found = _flags([10, 10, 10], [threshold, above, float(np.nextafter(threshold, 0))])
    assert found[f"copy_strict@{threshold:g}"] == [False, True, False]
    if threshold == 0.95:
        assert found["copy_collapse"] == [False, True, False]


def test_the_soft_threshold_is_exceeded_and_not_met_and_asks_for_no_lead():
    found = _flags([10, 10], [0.5, 0.5000001], [0.5, 0.4999999])
    assert found["copy_soft_k1@0.5"] == [False, True]
    assert not any(found["copy_strict@0.7"])


def test_a_strict_copy_leads_the_second_by_more_than_the_margin():
    # Halves and eighths, so that the difference is exact.
    rules = replace(Thresholds(), copy_strict=(0.25,), copy_collapse=0.25, copy_margin=0.125)
    found = _flags([10, 10, 10], [0.5, 0.5, 0.5], [0.375, 0.25, 0.4375], thresholds=rules)
    assert found["copy_strict@0.25"] == found["copy_collapse"] == [False, True, False]
    assert found["copy_soft_k1@0.5"] == [False, False, False]


def test_a_trivial_token_is_never_a_copy():
    found = _flags([10, 11, 12], trivial=frozenset({12}))
    assert all(found[name] == [True, True, False] for name in [*STRICT, "copy_collapse", SOFT[0]])
    assert found["copy_soft_k2@0.5"] == [False, True, False]
    assert found["copy_soft_k3@0.5"] == [False, False, False]


def test_a_window_is_a_stretch_of_the_prompt_in_its_order():
    # Over depth: 10 11 12 spells the prompt's first three, 12 11 is its order reversed, 11 10 leaves a gap.
    found = _flags([10, 11, 12, 11, 10, 13])
    assert found["copy_soft_k1@0.5"] == [True] * 6
    assert found["copy_soft_k2@0.5"] == [False, True, True, False, False, True]
    assert found["copy_soft_k3@0.5"] == [False, False, True, False, False, False]


def test_a_window_waits_until_as_many_layers_have_been_seen():
    found = _flags([12, 10, 13])
    assert found["copy_soft_k2@0.5"] == [False, True, True]
    assert found["copy_soft_k3@0.5"] == [False, False, True]
    assert _flags([10])["copy_soft_k3@0.5"] == [False]


def test_a_window_broken_by_another_token_starts_anew():
    assert _flags([10, 99, 11, 12])["copy_soft_k2@0.5"] == [False, False, False, True]


def test_only_the_top_layers_probability_counts_for_a_window():
    assert _flags([10, 11], [0.1, 0.9])["copy_soft_k2@0.5"] == [False, True]
    assert _flags([10, 11], [0.9, 0.1])["copy_soft_k2@0.5"] == [False, False]


def test_a_position_sees_the_prompt_read_so_far():
    # At the second of five tokens 12 has not been read; at the third it has.
    assert not _flags([12], upto=1)["copy_soft_k1@0.5"][0]
    assert _flags([12], upto=2)["copy_soft_k1@0.5"][0]
    assert not _flags([11, 12], upto=1)["copy_soft_k2@0.5"][1]
    assert _flags([11, 12], upto=2)["copy_soft_k2@0.5"][1]


def test_a_token_read_twice_counts_from_its_first_occurrence():
    assert _flags([10], upto=0)["copy_soft_k1@0.5"] == [True]


def test_nothing_is_a_copy_before_the_prompts_first_token():
    assert not any(any(values) for values in _flags([10, 11, 12], upto=-1).values())


def test_positions_of_one_prompt_are_judged_apart():
    ids = np.array([[12, 12], [10, 13]])
    sure = np.full((2, 2), 0.99)
    found = copy_flags(ids, sure, 1 - sure, (0, 4), Echo(PROMPT, (1, 2, 3)), frozenset(), Thresholds())
    assert found["copy_strict@0.95"].tolist() == [[False, True], [True, True]]
    assert found["copy_soft_k2@0.5"].tolist() == [[False, False], [False, False]]


def test_the_bos_is_no_part_of_the_prompt():
    asked = PromptQuery((1, 10, 2, 11, 10), 1, (0, 1, 2, 3, 4), (), None, None, False)
    assert asked.context_ids == (10, 2, 11, 10)
    echoes = Echoes.of(asked, {2})
    assert echoes.ids == (10, 11)
    assert echoes.upto == (-1, 0, 1, 2, 3)
    assert echoes.seen.T.tolist() == [[False, True, True, True, True], [False, False, False, True, True]]
    assert not Echo(asked.context_ids, (1,)).contains((1,), 3)


def test_a_prompt_of_trivial_tokens_has_nothing_to_echo():
    echoes = Echoes.of(PromptQuery((2, 3), 0, (0, 1), (), None, None, False), {2, 3})
    assert echoes.ids == ()
    assert echoes.seen.shape == (2, 0)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(-1, 9))
def test_a_run_is_contained_when_some_slice_of_what_was_read_equals_it(context, run, upto):
    read = context[: upto + 1]
    due = any(read[i : i + len(run)] == run for i in range(len(read) - len(run) + 1))
    assert Echo(context, (1, 2, 3)).contains(tuple(run), upto) == due
