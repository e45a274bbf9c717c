"""Verdicts on a lens' directions, from effects that are set by hand."""

import polars as pl
import pytest

from layerscope.analysis.causal_shares import causal_share
from layerscope.errors import RunError
from layerscope.record.shares import COMPLEMENT, FULL, OTHERS, RANDOM, SPAN, shares_frame

KINDS = (FULL, SPAN, COMPLEMENT, RANDOM, OTHERS)


def table(effects: tuple[float | None, ...], n_pairs: int = 20) -> pl.DataFrame:
    """The same effects for every pair, a hundredth apart, at layers 3 and 4."""
    rows = [
        (None if kind == FULL else "logit", kind, layer, pair, 0, 1, None if effect is None else effect + pair / 2000)
        for kind, effect in zip(KINDS, effects, strict=True)
        for layer in (3, 4)
        for pair in range(n_pairs)
    ]
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
    assert found.n_pairs == 20
    assert found.gain.value == pytest.approx(effects[1] - effects[3])
    assert found.loss.low <= found.loss.value <= found.loss.high
    assert found.span.low <= found.span.value == pytest.approx(effects[1] + 9.5 / 2000)


def test_few_pairs_make_no_claim():
    found = causal_share(table((1.0, 0.9, 0.1, 0.0, 0.0), n_pairs=19), "logit", (3,))
    assert found is not None
    assert found.verdict == "undetermined"


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
