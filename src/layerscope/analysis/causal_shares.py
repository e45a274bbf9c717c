"""Whether the model uses the directions along which a lens reads two answers: medians, intervals, verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl
from numpy.typing import NDArray

from layerscope.analysis.drawn_facts import FACTS_FOR_A_CLAIM, Median, MediansOverPairs
from layerscope.analysis.handover import CARRIED
from layerscope.record.shares import COMPLEMENT, FULL, OTHERS, RANDOM, SPAN

MATERIAL = 0.1
"""Share of the logit difference that an effect has to differ by; below it two count as equal."""
OVERSHOT = 1.5
"""Times the whole state's effect from which a span's is one that the rest undoes, and no share of the whole."""


class DirectionVerdict(StrEnum):
    """What the exchanges say of a lens' directions."""

    USED = "used"
    OVERSHOOTS = "overshoots"
    DORMANT = "dormant path"
    NOT_USED = "not used"
    NOT_CARRIED = "not carried"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class CausalShare:
    """One lens over some layers; of each pair the mean over these."""

    lens: str
    layers: tuple[int, ...]
    n_pairs: int
    """Pairs with every effect at every one of these layers; the others are left out."""
    n_facts: int
    """Facts that these are of; those whose answers `others` was taken from are not among them."""
    full: Median
    span: Median
    complement: Median
    random: Median
    others: Median | None
    """None where there are not two further answers."""
    gain: Median
    """The span's effect less the random step's, pair by pair."""
    loss: Median
    """The whole step's effect less the complement's, pair by pair."""
    verdict: DirectionVerdict

    @property
    def is_an_illustration(self) -> bool:
        """Whether facts are too few for a claim."""
        return self.n_facts < FACTS_FOR_A_CLAIM


def causal_share(
    shares: pl.DataFrame, lens: str, layers: tuple[int, ...], *, is_clear: bool = True
) -> CausalShare | None:
    """Sum up a lens' exchanges over some layers; None where no pair has all effects there.

    The directions are used where the span does more than a random step of its length (`gain`) and its absence costs the
    rest something (`loss`), both by more than `MATERIAL` at the lower end of their intervals. A gain without a loss,
    the whole interval of which lies below `MATERIAL`, is the dormant path of Makelov et al. 2023 (arXiv:2311.17030).
    A span whose whole interval lies above `OVERSHOT` times the whole state's effect overshoots: it is no share of it.
    Neither, both intervals below, is `not used`. Anything else is undetermined, and so is everything under
    `FACTS_FOR_A_CLAIM` facts, which have no interval; where the whole state carries less than half of the answer, there
    is nothing to ask.

    Args:
        shares: the columns of `layerscope.record.shares.SHARE_COLUMNS`.
        lens: its name.
        layers: at least one.
        is_clear: whether whole states clearly bring their own answer there (`Handover.is_unclear`); where they may do
            no more than take the other one away, nothing is said of a lens.
    """
    here = shares.filter(pl.col("layer").is_in(layers), pl.col("lens").is_null() | (pl.col("lens") == lens))
    by_pair = {kind: _by_pair(here, kind, len(layers)) for kind in (FULL, SPAN, COMPLEMENT, RANDOM, OTHERS)}
    asked = [FULL, SPAN, COMPLEMENT, RANDOM, *([OTHERS] if by_pair[OTHERS] else [])]
    pairs = sorted(set.intersection(*(set(by_pair[kind]) for kind in asked)))
    if not pairs:
        return None
    over_pairs = MediansOverPairs(_facts(here, pairs))
    effects = {kind: np.array([by_pair[kind][pair] for pair in pairs]) for kind in asked}
    full, span = over_pairs.of(effects[FULL]), over_pairs.of(effects[SPAN])
    gain, loss = over_pairs.of(effects[SPAN] - effects[RANDOM]), over_pairs.of(effects[FULL] - effects[COMPLEMENT])
    return CausalShare(
        lens=lens,
        layers=layers,
        n_pairs=len(pairs),
        n_facts=over_pairs.n_facts,
        full=full,
        span=span,
        complement=over_pairs.of(effects[COMPLEMENT]),
        random=over_pairs.of(effects[RANDOM]),
        others=over_pairs.of(effects[OTHERS]) if OTHERS in effects else None,
        gain=gain,
        loss=loss,
        verdict=_verdict(full, span, gain, loss, is_clear=is_clear),
    )


def over(shares: pl.DataFrame, lens: str, other: str, layers: tuple[int, ...]) -> Median | None:
    """How much more one lens' span does than another's, pair by pair; None where no pair has both.

    Args:
        shares: the columns of `layerscope.record.shares.SHARE_COLUMNS`.
        lens: its name.
        other: the name of the one that is taken off.
        layers: of each pair the mean over these.
    """
    here = shares.filter(pl.col("layer").is_in(layers))
    ours, theirs = (_by_pair(here.filter(lens=name), SPAN, len(layers)) for name in (lens, other))
    pairs = sorted(ours.keys() & theirs.keys())
    if not pairs:
        return None
    return MediansOverPairs(_facts(here, pairs)).of(np.array([ours[pair] - theirs[pair] for pair in pairs]))


def _by_pair(shares: pl.DataFrame, kind: str, n_layers: int) -> dict[int, float]:
    """Mean effects over the layers, of the pairs that have one at each."""
    known = shares.filter(pl.col("kind") == kind, pl.col("effect").is_not_null())
    means = known.group_by("pair").agg(pl.col("effect").mean(), n=pl.len()).filter(pl.col("n") == n_layers)
    return dict(zip(means["pair"].to_list(), means["effect"].to_list(), strict=True))


def _facts(shares: pl.DataFrame, pairs: Sequence[int]) -> NDArray[np.int64]:
    """Base and source of each pair, [pair, 2]."""
    of_pairs = shares.filter(pl.col("pair").is_in(pairs)).group_by("pair").agg(pl.col("base", "source").first())
    return of_pairs.sort("pair").select("base", "source").to_numpy().astype(np.int64)


def _verdict(full: Median, span: Median, gain: Median, loss: Median, *, is_clear: bool) -> DirectionVerdict:
    if full.value < CARRIED:
        return DirectionVerdict.NOT_CARRIED
    if (
        not is_clear
        or span.low is None
        or gain.low is None
        or loss.low is None
        or gain.high is None
        or loss.high is None
    ):
        return DirectionVerdict.UNDETERMINED
    if span.low > OVERSHOT * full.value:
        return DirectionVerdict.OVERSHOOTS
    if gain.low > MATERIAL and loss.low > MATERIAL:
        return DirectionVerdict.USED
    if gain.low > MATERIAL and loss.high < MATERIAL:
        return DirectionVerdict.DORMANT
    if gain.high < MATERIAL and loss.high < MATERIAL:
        return DirectionVerdict.NOT_USED
    return DirectionVerdict.UNDETERMINED
