"""Where the answer is on top, whether it stays there, and what that rests on.

Fields of a template are filled with numbers for a terminal or a page, and with claims for a report.
"""

from collections.abc import Iterable, Mapping

from layerscope.analysis.confirmation import Confirmation
from layerscope.analysis.milestones import NEVER as HOLDS_NOWHERE
from layerscope.analysis.milestones import NEVER_SEEN, NOT_MEASURED, Milestone, Milestones
from layerscope.record.milestone_names import ONSET, STRONG, rank_within, stable_twin
from layerscope.record.prompt_key import PromptKey

LEAD_UNKNOWN = "{whether} the answer is on top at any layer under {lens} was not measured{why}{basis}"
ON_TOP_NOWHERE = "{under} {lens} the answer is on top at no layer{some}{basis}{near}"
FOUND_AND_LOST = "{under} {lens} the answer passes through rank 1 at {where} and loses it{basis}"
LAST_MISSING = "{under} {lens} the answer has rank 1 at {where}; the last layer, which would tell, is missing{basis}"
AT_ONSET = (
    "At the first rank 1, layer {layer} (depth fraction {depth}), the answer leads by {gap} logits; clearly above "
    "uniform: {margin}."
)
WEAK = "This is weak evidence: {}."
NOTHING_STANDS = "No layer can be named: the identity check failed, and neither probabilities nor ranks stand."
NOTHING_STANDS_HERE = "The identity check failed: neither probabilities nor ranks stand, and no layer is named."
NO_FACT = "No layer can be named: there is no prompt about a fact under lens {lens}."

AHEAD, TRIVIAL = "clearly ahead", "confirmed by trivial agreement alone"


def rank_1(milestones: Milestones) -> Milestone:
    """The first layer with the answer on top; by rank where a table says no more than that."""
    onset = milestones[ONSET]
    return milestones.get(rank_within(1), onset) if onset.reason == NOT_MEASURED else onset


def known_never_on_top(prompts: Iterable[PromptKey], milestones: Mapping[PromptKey, Milestones]) -> str:
    """What stands before `layer` where answers are said to be on top at none: `known ` if a rank is missing."""
    return "" if all(rank_1(milestones[prompt]).reason == HOLDS_NOWHERE for prompt in prompts) else "known "


def strength_known(milestones: Milestones) -> bool:
    """Whether the rows tell if the answer is strong anywhere."""
    return STRONG in milestones and milestones[STRONG].reason not in (NOT_MEASURED, NEVER_SEEN)


def is_trivial(confirmation: Confirmation | None) -> bool:
    """Whether a layer is confirmed only where the other lens is the headline lens itself."""
    return confirmation is not None and confirmation.nontrivial is False


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


HELD = "Rank 1 comes first at layer {first}, is lost at layer {lost}, and holds from layer {stable} on."
