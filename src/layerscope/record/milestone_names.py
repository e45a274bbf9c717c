"""Names of milestones, as they print and as files have them."""

from enum import StrEnum


class MilestoneName(StrEnum):
    """The milestones with fixed names; those of one threshold among several have a function each below."""

    COPY = "L_copy"
    LOW_ENTROPY = "L_copy_H"
    ONSET = "L_semantic"
    ONSET_RUN2 = "L_semantic_run2"
    CONFIRMED = "L_semantic_confirmed"
    CONFIRMED_ANY = "L_semantic_confirmed_any"
    MARGIN_OK = "L_semantic_margin_ok"
    TOP2_OK = "L_semantic_top2_ok"
    STRONG = "L_semantic_strong"
    STRONG_RUN2 = "L_semantic_strong_run2"
    SURFACE_TO_MEANING = "L_surface_to_meaning"
    GEOMETRY = "L_geom"
    TOPK_DECAY = "L_topk_decay"


# What most sentences are about, for short.
ONSET, CONFIRMED = MilestoneName.ONSET, MilestoneName.CONFIRMED
STRONG, STRONG_RUN2 = MilestoneName.STRONG, MilestoneName.STRONG_RUN2

COPY_SOFT, COPY_STRICT, RANK_WITHIN = "L_copy_soft_k", "L_copy_strict@", "first_rank_le_"
"""What the names of a family start with; the threshold follows."""
STABLE = "_stable"
"""What the name of a milestone's twin ends with: the layer from which on it holds to the last."""


def copy_soft(window: int) -> str:
    """Soft copy within a window of so many tokens."""
    return f"{COPY_SOFT}{window}"


def copy_strict(threshold: float) -> str:
    """Strict copy at a threshold."""
    return f"{COPY_STRICT}{threshold:g}"


def rank_within(rank: int) -> str:
    """The answer's rank is at most so large."""
    return f"{RANK_WITHIN}{rank}"


def stable_twin(name: str) -> str:
    """The twin of a milestone: where it begins to hold to the last layer."""
    return name + STABLE
