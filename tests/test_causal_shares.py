"""Verdicts on a lens' directions, from effects that are set by hand."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from layerscope.analysis.causal_shares import causal_share, over
from layerscope.analysis.drawn_facts import MediansOverPairs
from layerscope.errors import RunError
from layerscope.record.shares import COMPLEMENT, FULL, OTHERS, RANDOM, SPAN, shares_frame

KINDS = (FULL, SPAN, COMPLEMENT, RANDOM, OTHERS)


def ring(n_facts: int) -> list[tuple[int, int]]:
    """Base and source: every fact with the two behind it."""
    return [(base, (base + i) % n_facts) for base in range(n_facts) for i in (1, 2)]


def table(
    effects: Sequence[float | None], n_facts: int = 10, lens: str = "logit", of_base: Sequence[float] | None = None
) -> pl.DataFrame:
    """The same effects for every pair, a little apart from fact to fact, at layers 3 and 4.

    Args:
        effects: of each kind.
        n_facts: of the ring of pairs.
        lens: whose.
        of_base: what is added to all effects but the random step's, by the base's fact; by default 1/1000 of its
            number.
    """
    added = [base / 1000 for base in range(n_facts)] if of_base is None else of_base
    rows = [
        (None if kind == FULL else lens, kind, layer, pair, base, source,
         None if effect is None else effect + (kind != RANDOM) * added[base] + (0.1 if layer == 4 else -0.1))
        for kind, effect in zip(KINDS, effects, strict=True)
        for layer in (3, 4)
        for pair, (base, source) in enumerate(ring(n_facts))
    ]  # fmt: skip
    names = ("lens", "kind", "layer", "pair", "base", "source", "effect")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    absent = [None] * len(rows)
    return shares_frame(columns | {"step_share": absent, "rank": absent, "cosine": absent})


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((1.0, 0.9, 0.1, 0.0, 0.0), "used"),
        ((1.0, 0.5, 0.98, 0.0, 0.0), "dormant path"),
        ((1.0, 1.6, -0.6, 0.0, 0.0), "overshoots"),
        ((1.0, 1.4, -0.4, 0.0, 0.0), "used"),
        ((1.0, 0.02, 0.98, 0.0, 0.0), "not used"),
        ((1.0, 0.02, 0.5, 0.0, 0.0), "undetermined"),  # needed, and not enough
        ((0.4, 0.4, 0.0, 0.0, 0.0), "not carried"),
    ],
)
def test_a_verdict_follows_from_span_and_complement(effects, verdict):
    found = causal_share(table(effects), "logit", (3, 4))
    assert found is not None
    assert found.verdict == verdict
    assert (found.n_pairs, found.n_facts, found.is_an_illustration) == (20, 10, False)
    # Ten facts add 0 to 0.009, each in two pairs: the median is 0.0045 above; layers are as far above as below.
    middle = [effect + 0.0045 for effect in effects]
    assert found.full.value == pytest.approx(middle[0])
    assert found.span.value == pytest.approx(middle[1])
    assert found.complement.value == pytest.approx(middle[2])
    assert found.random.value == pytest.approx(effects[3], abs=1e-12)
    assert found.gain.value == pytest.approx(middle[1] - effects[3])
    assert found.loss.value == pytest.approx(effects[0] - effects[2])  # what the fact adds falls away
    assert found.loss.low == pytest.approx(found.loss.value) == found.loss.high
    assert found.span.low is not None and found.span.high is not None
    assert middle[1] - 0.0045 <= found.span.low < found.span.value < found.span.high <= middle[1] + 0.0045


def test_what_a_verdict_rests_on_is_drawn_by_facts():
    """Every other fact adds 0.6 to what its pairs do: the median may be either's, or between them."""
    of_base = [0.0, 0.6] * 5
    found = causal_share(table((1.0, 0.15, 0.4, 0.0, 0.0), of_base=of_base), "logit", (3, 4))
    assert found is not None
    assert found.gain.low is not None and found.gain.high is not None
    assert (found.gain.low, found.gain.value, found.gain.high) == pytest.approx((0.15, 0.45, 0.75))


def test_intervals_are_those_of_facts_written_out_as_often_as_they_were_drawn():
    generator, n = np.random.default_rng(11), 12
    pairs = ring(n)
    as_base, as_source = generator.normal(size=(2, n))
    values = np.array([as_base[base] + as_source[source] for base, source in pairs])
    value_of, medians = dict(zip(pairs, values, strict=True)), []
    for _ in range(4000):
        drawn = generator.integers(n, size=n).tolist()
        # Every pair of two draws, one as base and one as source, for which there is a pair of their facts.
        medians.append(np.median([value_of[b, s] for b in drawn for s in drawn if (b, s) in value_of]))
    low, high = np.percentile(medians, [2.5, 97.5])
    found = MediansOverPairs(np.array(pairs)).of(values)
    assert found.value == pytest.approx(float(np.median(values)))
    assert found.low == pytest.approx(low, abs=0.15) and found.high == pytest.approx(high, abs=0.15)
    of_pairs = values[generator.integers(len(pairs), size=(4000, len(pairs)))]
    narrow = np.subtract(*np.percentile(np.median(of_pairs, axis=1), [97.5, 2.5]))
    assert found.high - found.low > 1.2 * narrow


def test_under_ten_facts_there_is_no_interval_and_no_claim():
    """Nine facts make eighteen pairs, or seventy-two: it is the facts that count."""
    found = causal_share(table((1.0, 0.9, 0.1, 0.0, 0.0), n_facts=9), "logit", (3,))
    assert found is not None
    assert (found.verdict, found.n_facts, found.is_an_illustration) == ("undetermined", 9, True)
    assert {(effect.low, effect.high) for effect in (found.full, found.span, found.gain, found.loss)} == {(None, None)}
    nine = [(base, source) for base in range(9) for source in range(9) if base != source]
    assert MediansOverPairs(np.array(nine)).of(np.arange(72.0)).low is None


def test_where_whole_states_do_not_clearly_bring_their_answer_no_lens_is_judged():
    found = causal_share(table((1.0, 0.9, 0.1, 0.0, 0.0)), "logit", (3, 4), is_clear=False)
    assert found is not None and found.verdict == "undetermined" and not found.is_an_illustration
    too_little = causal_share(table((0.4, 0.4, 0.1, 0.0, 0.0)), "logit", (3, 4), is_clear=False)
    assert too_little is not None and too_little.verdict == "not carried"


def test_a_span_is_held_against_another_lens_pair_by_pair():
    ours = table((1.0, 0.9, 0.1, 0.0, 0.0), of_base=[0.0] * 10)
    theirs = table((1.0, 0.5, 0.1, 0.0, 0.0), lens="tuned")
    both = pl.concat([ours, theirs.filter(pl.col("kind") != FULL)])
    found = over(both, "logit", "tuned", (3, 4))
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(0.4 - 0.0045)
    assert 0.4 - 0.009 <= found.low < found.value < found.high <= 0.4
    assert over(both, "logit", "prism", (3, 4)) is None


def test_a_pair_that_lacks_an_effect_is_left_out():
    whole = table((1.0, 0.9, 0.1, 0.0, 0.0))
    holed = whole.with_columns(
        pl.when((pl.col("pair") == 7) & (pl.col("kind") == SPAN) & (pl.col("layer") == 4))
        .then(None)
        .otherwise(pl.col("effect"))
        .alias("effect")
    )
    found = causal_share(holed, "logit", (3, 4))
    assert found is not None
    assert found.n_pairs == 19


def test_a_lens_without_effects_has_no_share():
    assert causal_share(table((1.0, None, 0.1, 0.0, 0.0)), "logit", (3, 4)) is None
    assert causal_share(table((1.0, 0.9, 0.1, 0.0, 0.0)), "tuned", (3, 4)) is None


def test_a_table_of_other_kinds_is_refused():
    row = {name: [0] for name in ("layer", "pair", "base", "source")}
    absent = {name: [None] for name in ("lens", "effect", "step_share", "rank", "cosine")}
    with pytest.raises(RunError, match="should be one of full, span"):
        shares_frame(row | absent | {"kind": ["half"]})
