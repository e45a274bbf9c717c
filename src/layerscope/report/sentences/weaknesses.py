"""What speaks against taking a run's semantic layer for more than a rank: one judgement for all reports."""

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.confirmation import NO_OTHER_LENS, Confirmation
from layerscope.analysis.milestones import NEVER_SEEN, NOT_MEASURED
from layerscope.report.cited.evidence import Evidence

_STRONG = ("L_semantic_strong", "L_semantic_strong_run2")


def weaknesses(evidence: Evidence) -> tuple[str, ...]:
    """In words, each for an enumeration; nothing where the answer never leads, or where nothing speaks against it."""
    found, own = evidence.verdict.diagnostics, evidence.verdict.milestones.of()
    if found.semantic is None or found.semantic.layer is None:
        return ()
    if not evidence.record.ranks_stand:
        return ("the identity check failed",)
    said = []
    if found.margin_ok_at_semantic is False:
        said.append("near uniform at the first rank 1")
    if found.semantic.name not in _STRONG:
        unknown = own["L_semantic_strong"].reason in (NOT_MEASURED, NEVER_SEEN)
        said.append("strength not known" if unknown else "at no layer strong")
    said += _unconfirmed(found.confirmation)
    said += _place(evidence, found.semantic.layer, strong=found.semantic.name in _STRONG)
    return tuple(said)


def _unconfirmed(confirmation: Confirmation | None) -> list[str]:
    if confirmation is None or confirmation.reason == NO_OTHER_LENS:
        return ["no other lens was read that could confirm it"]
    if confirmation.layer is None:
        return ["not confirmed by another lens"]
    return ["confirmed by trivial agreement alone"] if confirmation.nontrivial is False else []


def _place(evidence: Evidence, layer: int, *, strong: bool) -> list[str]:
    """Whether rank 1 stays from the headline layer on, or from the first one, and whether there is more than one."""
    curve = evidence.curve()
    ranks = [] if curve is None else shapes.points((row["layer"], row["answer_rank"]) for row in curve.rows)
    last = evidence.record.model.n_layers
    said = []
    if shapes.returns(shapes.between(ranks, layer, last), _leads):
        said.append("rank 1 is lost again at a deeper layer")
    elif shapes.returns(ranks, _leads):
        said.append("the first rank 1 is lost again")
    if layer == last:
        elsewhere = any(_leads(rank) for at, rank in ranks if at < last)
        known = {at for at, _ in ranks} >= set(range(1, last))
        if elsewhere and strong:
            said.append("strong at the last layer alone")
        elif not elsewhere:
            said.append("at the last layer alone" if known else "at the last layer, with ranks missing before it")
    return said


def _leads(rank: int | float) -> bool:
    return rank == 1
