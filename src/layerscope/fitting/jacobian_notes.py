"""What a reader of a Jacobian lens has to know of its fit, in sentences."""

from layerscope.lens_record import BIASED, JacobianFit, StopRule

LOOSE = 0.05
"""Relative standard error above which a mean over prompts is said not to have settled."""


def notes(fit: JacobianFit, asked: int, given: int) -> tuple[str, ...]:
    """What the record alone does not say plainly.

    Args:
        fit: with its figures.
        asked: prompts that were asked for.
        given: prompts that the text gave.
    """
    notes = [
        "It shows what a state disposes the model to say from here on, and is no read-out of the next token: its size "
        "means nothing, and milestones are not taken from it."
    ]
    if given < asked:
        notes.append(f"The text gave {given} prompts where {asked} were asked for.")
    if fit.stop is not None:
        notes.append(_stopped(fit, fit.stop, given))
    approximate = [str(layer.layer) for layer in fit.layers if layer.is_approximate]
    if approximate:
        notes.append(
            f"At layers {', '.join(approximate)} exact rows show the chain to be more than {BIASED:.0%} off: those are "
            "approximate, and nothing should be claimed by them."
        )
    loose = [str(layer.layer) for layer in fit.layers if (layer.standard_error or 0.0) > LOOSE]
    if loose:
        notes.append(
            f"At layers {', '.join(loose)} the standard error over prompts is above {LOOSE:.0%}: other prompts would "
            "give others, and more of them better ones."
        )
    no_better = [
        str(layer.layer)
        for layer in fit.layers
        if layer.jacobian_bits is not None
        and layer.shuffled_bits is not None
        and layer.jacobian_bits >= layer.shuffled_bits
    ]
    if no_better:
        notes.append(
            f"At layers {', '.join(no_better)} it is no nearer to the model on held-out text than the same lens with "
            "its weights shuffled: as a read-out of the next token its matrices say nothing there."
        )
    if fit.method == "chain" and fit.probe is None:
        notes.append("No exact rows were computed, so nobody knows how far the chain is off.")
    unknown = [str(layer.layer) for layer in fit.layers if layer.sigma is None]
    if unknown and (fit.probe is not None or fit.method == "exact"):
        notes.append(
            f"At layers {', '.join(unknown)} prompts differ so much that {_few(fit)} do not tell their mean from the "
            "spread between them; no spread is given there."
        )
    return tuple(notes)


def _few(fit: JacobianFit) -> str:
    return f"the {fit.n_prompts if fit.probe is None else fit.probe.n_prompts} with exact rows"


def _stopped(fit: JacobianFit, rule: StopRule, given: int) -> str:
    """Whether a fit ended early, or how far it came."""
    asked = [layer for layer in fit.layers if layer.layer >= rule.first_layer]
    open_at = [str(layer.layer) for layer in asked if not layer.settled(rule.at)]
    goal = (
        f"a standard error of at most {rule.at:g}, and halves with the same token on top at {1 - rule.at:g} of the "
        f"positions, from layer {rule.first_layer} on"
    )
    if fit.n_prompts is not None and fit.n_prompts < given:
        return f"It ended after {fit.n_prompts} of {given} prompts, by the rule that it was given: {goal}."
    whole = (
        "A chain takes all prompts through a block together, so it could not end early. "
        if fit.method == "chain"
        else ""
    )
    reached = f"not reached at layers {', '.join(open_at)}" if open_at else "reached"
    return f"{whole}The goal was {goal}; after all {given} prompts it was {reached}."
