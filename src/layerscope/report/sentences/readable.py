"""Where the answer becomes readable, and what that rests on.

Fields of a template are filled with numbers for a terminal or a page, and with claims for a report.
"""

from layerscope.analysis.confirmation import Confirmation
from layerscope.analysis.diagnostics import Diagnostics
from layerscope.analysis.milestones import NEVER_SEEN, NOT_MEASURED, Milestone, Milestones
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG, STRONG_RUN2, rank_within, stable_twin

READABLE = "{answer} becomes readable at layer {layer} ({depth}){lens}: {basis} ({milestone})."
NEVER_READABLE = "{answer} never becomes readable under lens {lens}: {why}."
READABLE_IN_SHORT = (
    "the answer becomes readable under {lens} at depth fraction {depth} (layer {layer}, {milestone}){weak}"
)
NEVER_LEADS, LEAD_UNKNOWN = (
    "the answer never leads under {}{}{}",
    "whether the answer leads under {} was not measured{}",
)
NO_RANK_1 = "The answer has rank 1 at no layer{}{}."
RANK_1_UNKNOWN = "Whether the answer has rank 1 at any layer was not measured: {}{}."
AT_ONSET = (
    "At the first rank 1, layer {layer} (depth fraction {depth}), the answer leads by {gap} logits; clearly above "
    "uniform: {margin}."
)
WEAK = "This is weak evidence: {}."
NOTHING_STANDS = "No layer can be named: the identity check failed, and neither probabilities nor ranks stand."
NOTHING_STANDS_HERE = "The identity check failed: neither probabilities nor ranks stand, and no layer is named."
NO_FACT = "No layer can be named: there is no prompt about a fact under lens {lens}."

AHEAD, RUNNING = "clearly ahead", "layers running"
AHEAD_AT_TWO = f"{AHEAD} at two {RUNNING}"
BY_RANK, TRIVIAL = "rank 1 alone", "confirmed by trivial agreement alone"
BASIS: dict[str, str] = {
    STRONG_RUN2: "strong at two layers in a row",
    STRONG: "strong, but not at two layers in a row",
    CONFIRMED: "rank 1, not strong",
    ONSET: BY_RANK,
}
"""What each semantic milestone rests on, in short and in the words of the files that reports cite."""


def rank_1(milestones: Milestones) -> Milestone:
    """The first layer with the answer on top; by rank where a table says no more than that."""
    onset = milestones[ONSET]
    return milestones.get(rank_within(1), onset) if onset.reason == NOT_MEASURED else onset


def strength_known(milestones: Milestones) -> bool:
    """Whether the rows tell if the answer is strong anywhere."""
    return milestones[STRONG].reason not in (NOT_MEASURED, NEVER_SEEN)


def is_trivial(confirmation: Confirmation | None) -> bool:
    """Whether a layer is confirmed only where the other lens is the headline lens itself."""
    return confirmation is not None and confirmation.nontrivial is False


def basis(diagnostics: Diagnostics, milestone: Milestone, n_layers: int, *, never_strong: bool) -> str:
    """What the layer of the headline rests on, in full.

    Args:
        diagnostics: of the run.
        milestone: the headline's.
        n_layers: number of blocks.
        never_strong: whether every layer was looked at and none is strong.
    """
    if milestone.name == STRONG_RUN2:
        return AHEAD_AT_TWO
    if milestone.name == STRONG:
        return (
            f"{AHEAD}, at the last layer alone" if milestone.layer == n_layers else f"{AHEAD}, but not at two {RUNNING}"
        )
    weak = f"never {AHEAD}" if never_strong else "how clearly is not known"
    if milestone.name == CONFIRMED:
        trivially = "trivially " if is_trivial(diagnostics.confirmation) else ""
        return f"rank 1, {trivially}confirmed by another lens, {weak}"
    return f"{BY_RANK}, {weak}, confirmed by no other lens"


def held(onset: Milestone, milestones: Milestones, *, trusted: bool) -> str:
    """Whether rank 1, and strength where probabilities stand, hold from their first layer on."""
    first, stable = onset.layer, milestones[stable_twin(onset.name)].layer
    if stable is None:
        lead = f"rank 1 first at layer {first}, which does not hold to the last layer"
    elif stable == first:
        lead = f"rank 1 at every layer from {first} on"
    else:
        lead = f"rank 1 first at layer {first}, but at every layer only from {stable} on"
    strong, kept = milestones[STRONG].layer, milestones[stable_twin(STRONG)].layer
    if not trusted or strong is None or strong == kept:
        return lead
    return f"{lead}; {AHEAD} {'not to the last layer' if kept is None else f'at every layer from {kept} on'}"


HELD = "Rank 1 comes first at layer {first}, is lost at layer {lost}, and {rest}."
HELD_FROM = "it holds from layer {} on"
HELD_NOWHERE, HELD_UNKNOWN = "it does not hold to the last layer", "the last layer, which would tell, is missing"
