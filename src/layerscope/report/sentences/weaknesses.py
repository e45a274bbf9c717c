"""What speaks against taking a run's layers for more than ranks: one judgement for all reports."""

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.confirmation import NO_OTHER_LENS, Confirmation
from layerscope.analysis.onsets import LayersOfPrompt
from layerscope.report.cited.evidence import Evidence
from layerscope.report.sentences.onsets import AHEAD, FOR_GOOD, NEVER_AHEAD
from layerscope.report.sentences.readable import TRIVIAL, is_trivial, strength_known


def weaknesses(evidence: Evidence) -> tuple[str, ...]:
    """In words, each for an enumeration; nothing where the answer is never on top, or where nothing speaks against it.

    Of the primary prompt under the headline lens.
    """
    diagnostics = evidence.verdict.diagnostics
    layers = diagnostics.layers_of_primary
    if layers.first_on_top is None:
        return ()
    if not evidence.record.ranks_stand:
        return ("the identity check failed",)
    output = None if diagnostics.primary is None else diagnostics.outputs.get(diagnostics.primary)
    points = []
    if output is not None and output.answered is False:
        points.append("the model does not answer it")
    if diagnostics.margin_ok_at_semantic is False:
        points.append("near uniform at the first rank 1")
    if layers.on_top_for_good is not None and layers.clearly_ahead is None:
        known = strength_known(evidence.verdict.milestones.of())
        points.append(NEVER_AHEAD if known else "how clearly it is ahead is not known")
    return (*points, *_unconfirmed(diagnostics.confirmation), *_place(evidence, layers))


def _unconfirmed(confirmation: Confirmation | None) -> list[str]:
    if confirmation is None or confirmation.reason == NO_OTHER_LENS:
        return ["no other lens was read that could confirm it"]
    if confirmation.layer is None:
        return ["not confirmed by another lens"]
    return [TRIVIAL] if is_trivial(confirmation) else []


def _place(evidence: Evidence, layers: LayersOfPrompt) -> list[str]:
    """Whether the first rank 1 stays, and whether there is more than the last layer."""
    curve = evidence.curve()
    ranks = [] if curve is None else shapes.points((row["layer"], row["answer_rank"]) for row in curve.rows)
    last, stable = evidence.record.model.n_layers, layers.on_top_for_good
    lost = shapes.returns(ranks, _leads)
    points = []
    if lost:
        points.append("rank 1 is lost again" if stable is None else "the first rank 1 is lost again")
    if stable == last:
        elsewhere = any(_leads(rank) for at, rank in ranks if at < last)
        known = {at for at, _ in ranks} >= set(range(1, last))
        alone = "at the last layer alone" if known else "at the last layer, with ranks missing before it"
        points.append(f"{FOR_GOOD} at the last layer alone" if elsewhere else alone)
    elif layers.clearly_ahead == last:
        points.append(f"{AHEAD} for good at the last layer alone")
    return points


def _leads(rank: int | float) -> bool:
    return rank == 1
