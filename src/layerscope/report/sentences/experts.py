"""Which experts the prompts' last tokens are sent to, in a few lines."""

import polars as pl

from layerscope.analysis.routing import ExpertsAtNext, experts_at_next
from layerscope.record.routing import RoutingRecord
from layerscope.report.sentences.lines import LabelledLine, layers, plural

MOST = 5
"""Experts that are named of a layer."""


def in_detail(found: RoutingRecord, table: pl.DataFrame, onset: int | None, variant: str) -> list[LabelledLine]:
    """How many experts there are, and which ones read the last token where the answer comes to stand on top.

    Args:
        found: the mixtures.
        table: the choices.
        onset: the layer from which on the answer is on top for good, the median over facts; None without one.
        variant: the wording of the facts.
    """
    sizes = sorted({(one.n_chosen, one.n_experts) for one in found.mixtures})
    of = " or ".join(f"{chosen} of {all_of_them}" for chosen, all_of_them in sizes)
    blocks = len({one.layer for one in found.mixtures})
    lines = [LabelledLine("experts", f"each token is sent to {of}, in {blocks} {plural('block', blocks)}")]
    if onset is None:
        return lines
    at_onset = experts_at_next(table, onset, variant)
    if not at_onset:
        where = f"block that writes layer {onset}, where the answer is on top for good (median)"
        return [*lines, LabelledLine("", f"no experts are chosen in the {where}")]
    return [*lines, *(LabelledLine("", _used(one)) for one in at_onset)]


def _used(found: ExpertsAtNext) -> str:
    named = ", ".join(f"{use.expert} ({use.n}; {use.mean_weight:.2f})" for use in found.used[:MOST])
    more = len(found.used) - MOST
    rest = f", and {more} more" if more > 0 else ""
    return (
        f"{layers([found.layer])}, where the answer is on top for good (median): of {found.n_prompts} prompts' last "
        f"tokens, to expert {named}{rest} (how many prompts; mean weight)"
    )
