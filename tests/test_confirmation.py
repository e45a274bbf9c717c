"""Confirmation of the headline onset by other lenses, on curves made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerscope.analysis.confirmation import NO_HIT, NO_ONSET, NO_OTHER_LENS, Hit, confirm
from layerscope.analysis.curve import Curve
from layerscope.record.prompt_key import PromptKey
from layerscope.record.rows import COLUMNS

BLANK = {column.name: None for column in COLUMNS}
ASKED = PromptKey(0, "pos", "orig")
NORMED = {"logit": ("ln_final",) * 9}


def curve(lens, ranks, first_layer=0, n_layers=None):
    """A curve with these ranks; the answer is on top where the rank is 1, and unknown where it is None."""
    rows = tuple(
        BLANK
        | {"row": i, "layer": first_layer + i, "answer_rank": rank, "is_answer": None if rank is None else rank == 1}
        for i, rank in enumerate(ranks)
    )
    return Curve(ASKED, lens, first_layer + len(ranks) - 1 if n_layers is None else n_layers, 100, rows)


def at(*layers, n_layers=8):
    """Ranks that are 1 at those layers."""
    return [1 if layer in layers else 7 for layer in range(n_layers + 1)]


@pytest.mark.parametrize("layer", [3, 4, 5, 6, 7])
def test_a_raw_hit_within_two_layers_confirms_the_headline_onset_and_not_its_own_layer(layer):
    found = confirm(curve("logit", at(5, 6, 7, 8)), curve("raw", at(layer)), None, NORMED)
    assert (found.layer, found.source, found.nontrivial, found.reason) == (5, "raw", True, None)
    assert found.hits == (Hit("raw", layer, False),)
    assert (found.window_layers, found.onset, found.onset_raw, found.onset_tuned) == (2, 5, layer, None)


@pytest.mark.parametrize("layer", [2, 8])
def test_a_hit_three_layers_away_confirms_nothing(layer):
    found = confirm(curve("logit", at(5)), curve("raw", at(layer)), None, NORMED)
    assert (found.layer, found.source, found.nontrivial, found.reason) == (None, "none", None, NO_HIT)
    assert (found.onset, found.onset_raw, found.hits) == (5, layer, ())


@pytest.mark.parametrize(
    ("raw", "tuned", "source"),
    [((4,), (6,), "both"), ((4,), (8,), "raw"), ((1,), (6,), "tuned"), ((1,), (8,), "none"), ((), (), "none")],
)
def test_the_source_names_the_lenses_that_confirm(raw, tuned, source):
    found = confirm(curve("logit", at(5)), curve("raw", at(*raw)), curve("tuned", at(*tuned)), NORMED)
    assert found.source == source
    assert found.layer == (None if source == "none" else 5)


def test_the_last_tuned_layer_confirms_as_published_but_says_nothing_new():
    tuned = curve("tuned", [7] * 7 + [1], first_layer=1)
    found = confirm(curve("next_norm", at(8)), curve("raw", at()), tuned, {"next_norm": ("ln_final",) * 9})
    assert (found.layer, found.source, found.nontrivial) == (8, "tuned", False)
    assert found.hits == (Hit("tuned", 8, True),)
    assert (found.layer_any, found.layer_any_nontrivial) == (8, None)


def test_one_hit_that_is_not_trivial_is_enough():
    found = confirm(curve("logit", at(8)), None, curve("tuned", at(7, 8)), NORMED)
    assert [hit.trivial for hit in found.hits] == [False, True]
    assert found.nontrivial is True
    assert found.layer_any_nontrivial == 8


def test_the_raw_lens_is_no_witness_where_the_headline_lens_applies_no_norm():
    sources = {"next_norm": ("a", "a", "raw", "raw", "a")}
    headline = curve("next_norm", at(2, n_layers=4))
    assert confirm(headline, curve("raw", at(2, 3, n_layers=4)), None, sources).nontrivial is False
    assert confirm(headline, curve("raw", at(2, 4, n_layers=4)), None, sources).nontrivial is True
    # What another lens applied there is beside the point.
    assert confirm(headline, curve("raw", at(2, n_layers=4)), None, {"logit": ("raw",) * 5}).nontrivial is True


def test_an_onset_that_is_confirmed_later_in_depth_stays_unconfirmed_itself():
    found = confirm(curve("logit", at(1, 6, 7, 8)), curve("raw", at(8)), None, NORMED)
    assert (found.onset, found.layer) == (1, None)
    assert found.layer_any == 6


def test_without_a_headline_onset_there_is_nothing_to_confirm():
    found = confirm(curve("logit", at()), curve("raw", at(4)), None, NORMED)
    assert (found.onset, found.onset_raw, found.layer, found.source) == (None, 4, None, "none")
    assert (found.nontrivial, found.layer_any, found.reason) == (None, None, NO_ONSET)


def test_without_another_lens_the_reason_says_so():
    found = confirm(curve("logit", at(4)), None, None, NORMED)
    assert (found.layer, found.source, found.reason) == (None, "none", NO_OTHER_LENS)


def test_unknown_ranks_and_missing_sources_confirm_nothing_and_break_nothing():
    nothing = [None] * 9
    found = confirm(curve("logit", nothing), curve("raw", nothing), curve("tuned", nothing), {})
    assert (found.onset, found.onset_raw, found.onset_tuned, found.layer) == (None, None, None, None)
    found = confirm(curve("logit", at(4)), curve("raw", nothing), curve("tuned", []), {})
    assert (found.onset, found.layer, found.reason) == (4, None, NO_HIT)


RANKS = st.lists(st.sampled_from([None, 1, 1, 2, 9]), min_size=7, max_size=7)
SOURCES = st.lists(st.sampled_from([None, "ln", "raw"]), min_size=7, max_size=7)


@given(RANKS, st.none() | RANKS, st.none() | RANKS, SOURCES)
def test_plain_loops_find_the_same(headline, raw, tuned, sources):
    found = confirm(
        curve("logit", headline),
        None if raw is None else curve("raw", raw),
        None if tuned is None else curve("tuned", tuned),
        {"logit": sources},
    )
    onset = headline.index(1) if 1 in headline else None
    any_layer, trusted_layer, witnesses, trusted = None, None, set(), False
    for layer in range(7):
        for name, ranks in (("raw", raw), ("tuned", tuned)):
            for near in range(max(0, layer - 2), min(6, layer + 2) + 1):
                if headline[layer] != 1 or ranks is None or ranks[near] != 1:
                    continue
                same = near == 6 if name == "tuned" else sources[near] == "raw"
                any_layer = layer if any_layer is None else any_layer
                trusted_layer = layer if trusted_layer is None and not same else trusted_layer
                if layer == onset:
                    witnesses.add(name)
                    trusted = trusted or not same
    assert found.onset == onset
    assert found.layer == (onset if witnesses else None)
    assert found.source == ("both" if len(witnesses) == 2 else min(witnesses, default="none"))
    assert found.nontrivial == (trusted if witnesses else None)
    assert (found.layer_any, found.layer_any_nontrivial) == (any_layer, trusted_layer)
    assert (found.reason is None) == (found.layer is not None)
