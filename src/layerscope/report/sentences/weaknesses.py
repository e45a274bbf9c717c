"""What speaks against taking a run's semantic layer for more than a rank: one judgement for all reports."""

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.confirmation import NO_OTHER_LENS, Confirmation
from layerscope.record.milestone_names import STRONG, STRONG_RUN2
from layerscope.report.cited.evidence import Evidence
from layerscope.report.sentences.readable import TRIVIAL, is_trivial, strength_known

_STRONG = (STRONG, STRONG_RUN2)


def weaknesses(evidence: Evidence) -> tuple[str, ...]:
    """In words, each for an enumeration; nothing where the answer never leads, or where nothing speaks against it."""
    diagnostics, semantic = evidence.verdict.diagnostics, evidence.verdict.diagnostics.semantic
    if semantic is None or semantic.layer is None:
        return ()
    if not evidence.record.ranks_stand:
        return ("the identity check failed",)
    points, strong = [], semantic.name in _STRONG
    if diagnostics.margin_ok_at_semantic is False:
        points.append("near uniform at the first rank 1")
    if not strong:
        known = strength_known(evidence.verdict.milestones.of())
        points.append("at no layer strong" if known else "strength not known")
    return (*points, *_unconfirmed(diagnostics.confirmation), *_place(evidence, semantic.layer, strong=strong))


def _unconfirmed(confirmation: Confirmation | None) -> list[str]:
    if confirmation is None or confirmation.reason == NO_OTHER_LENS:
        return ["no other lens was read that could confirm it"]
    if confirmation.layer is None:
        return ["not confirmed by another lens"]
    return [TRIVIAL] if is_trivial(confirmation) else []


def _place(evidence: Evidence, layer: int, *, strong: bool) -> list[str]:
    """Whether rank 1 stays from the headline layer on, or from the first one, and whether there is more than one."""
    curve = evidence.curve()
    ranks = [] if curve is None else shapes.points((row["layer"], row["answer_rank"]) for row in curve.rows)
    last = evidence.record.model.n_layers
    points = []
    if shapes.returns(shapes.between(ranks, layer, last), _leads):
        points.append("rank 1 is lost again at a deeper layer")
    elif shapes.returns(ranks, _leads):
        points.append("the first rank 1 is lost again")
    if layer == last:
        elsewhere = any(_leads(rank) for at, rank in ranks if at < last)
        known = {at for at, _ in ranks} >= set(range(1, last))
        if elsewhere and strong:
            points.append("strong at the last layer alone")
        elif not elsewhere:
            points.append("at the last layer alone" if known else "at the last layer, with ranks missing before it")
    return points


def _leads(rank: int | float) -> bool:
    return rank == 1
