"""Milestones as rules across a chart, their labels stacked above it so that none lies on another at any width."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import altair as alt

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.diagnostics import protocol_in_force
from layerscope.analysis.milestones import Milestones
from layerscope.record import milestone_names
from layerscope.record.milestone_names import ONSET, STRONG, STRONG_RUN2, MilestoneName
from layerscope.view.charts.chart_spec import data_of, y_at
from layerscope.view.charts.theme import MILESTONE
from layerscope.view.charts.words import listed

LONGEST = 20
"""Letters of a label's line, the layer aside."""
LINE_HEIGHT = 14
"""Of a label, in pixels."""
EDGE_SHARE = 0.3
"""Labels of rules this near to an edge, as a share of the width, run away from it."""


@dataclass(frozen=True)
class Named:
    """A milestone under a short name."""

    milestone: str
    label: str
    layer: int | float | None
    """A median over facts may lie between layers."""
    reason: str | None
    """Why there is no layer; None where there is one."""


@dataclass(frozen=True)
class Rule:
    """One layer, and all that happens there."""

    layer: int | float
    labels: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """What stands beside it, from the top, in lines that a phone has room for."""
        lines: list[str] = []
        for label in self.labels:
            if lines and len(lines[-1]) + len(label) + 2 <= LONGEST:
                lines[-1] += f", {label}"
            else:
                lines.append(label)
        at = f" · L{self.layer:g}"
        return (*(f"{line}," for line in lines[:-1]), lines[-1] + at)


@dataclass(frozen=True)
class Placed:
    """A rule with the place of its label."""

    rule: Rule
    row: int
    """Its lowest line above the plot, counted from 0 at the bottom."""
    align: Literal["left", "right"]
    """The side of the text that touches the rule."""


def named_milestones(run: AnalysedRun, metric: str) -> list[tuple[str, str]]:
    """Which milestones a chart names, and what it calls them; only such as the identity check leaves standing."""
    thresholds = protocol_in_force(run.record).thresholds
    rank_1, ranks = (ONSET, "rank 1"), [(milestone_names.rank_within(k), f"rank ≤ {k}") for k in (10, 5)]
    strong = [(STRONG, "ahead"), (STRONG_RUN2, "ahead ×2")]
    copy = [(MilestoneName.COPY, "copy"), (milestone_names.copy_soft(1), "soft copy")]
    kl = [(f"first_kl_below_{bits:.1f}", f"KL ≤ {bits:g}") for bits in thresholds.kl_to_final_bits[:1]]
    special = {
        "masses": (MilestoneName.SURFACE_TO_MEANING, "answer > echo"),
        "cosines": (MilestoneName.GEOMETRY, "answer > prompt"),
    }
    if not run.record.ranks_stand:
        return []
    if not run.record.probabilities_stand:
        return [*ranks, rank_1] if metric == "answer_rank" else [rank_1]
    if metric == "answer_rank":
        return [*ranks, rank_1, (milestone_names.stable_twin(ONSET), "rank 1 kept"), *strong]
    return [*copy, rank_1, *strong, *([special[metric]] if metric in special else kl)]


def found_milestones(names: Sequence[tuple[str, str]], milestones: Milestones) -> list[Named]:
    """Them in one prompt under one lens."""
    return [
        Named(name, label, milestones[name].layer, milestones[name].reason)
        for name, label in names
        if name in milestones
    ]


def _rules_of(named: Sequence[Named]) -> list[Rule]:
    """One rule for each layer, ascending; a weaker milestone goes without saying beside a stronger one."""
    by_layer: dict[int | float, list[str]] = {}
    for milestone in named:
        if milestone.layer is not None:
            by_layer.setdefault(milestone.layer, []).append(milestone.label)
    weaker = {
        "rank 1": "rank 1 kept",
        "ahead": "ahead ×2",
        "soft copy": "copy",
        "rank ≤ 10": "rank ≤ 5",
        "rank ≤ 5": "rank 1",
    }
    return [
        Rule(layer, tuple(label for label in labels if weaker.get(label) not in labels))
        for layer, labels in sorted(by_layer.items())
    ]


def place(rules: Sequence[Rule], deepest: int) -> list[Placed]:
    """Each label in a line of its own; those of early rules run to the right, those of late ones to the left.

    Between the edges the widest gap divides them. Rules end at their label: so early ones stand above late ones, the
    outermost highest in each group, and a label crosses no rule unless the plot is very narrow.
    """
    early = list(rules[: _divide(rules, deepest)])
    late = list(rules[len(early) :])
    upwards = [*late, *reversed(early)]
    starts = accumulate((len(rule.lines) for rule in upwards), initial=0)
    return [Placed(rule, row, "left" if rule in early else "right") for row, rule in zip(starts, upwards, strict=False)]


def rule_layers(named: Sequence[Named], deepest: int, scale: int | float = 1) -> list[alt.Chart]:
    """Rules and labels as layers of a chart whose horizontal field is `x`, in layers over `scale`."""
    return [layer for rule in place(_rules_of(named), deepest) for layer in _drawn(rule, scale)]


def milestone_sentence(named: Sequence[Named], lens: str, of: str = "") -> str | None:
    """Where each of them lies, and which are missing, by their reasons."""
    if not named:
        return None
    at: dict[int | float, list[str]] = {}
    missing: dict[str, list[str]] = {}
    for milestone in named:
        if milestone.layer is not None:
            at.setdefault(milestone.layer, []).append(milestone.label)
        else:
            missing.setdefault(milestone.reason or "no layer", []).append(milestone.label)
    reached = [f"{listed(labels)} at layer {layer:g}" for layer, labels in sorted(at.items())]
    lacking = [f"none of {listed(labels)} ({reason})" for reason, labels in missing.items()]
    return f"Milestones under {lens}{of}: {'; '.join([*reached, *lacking])}."


def _divide(rules: Sequence[Rule], deepest: int) -> int:
    """How many rules, from the left, have their label to the right."""
    surely_early = sum(rule.layer < EDGE_SHARE * deepest for rule in rules)
    surely_late = sum(rule.layer > (1 - EDGE_SHARE) * deepest for rule in rules)
    choices = range(surely_early, len(rules) - surely_late + 1)
    edges = [0, *(rule.layer for rule in rules), deepest]
    return max(choices, key=lambda count: edges[count + 1] - edges[count])


def _drawn(placed: Placed, scale: int | float) -> list[alt.Chart]:
    """The rule, up to its highest line, and a text for each line."""
    x = placed.rule.layer if scale == 1 else placed.rule.layer / scale
    lines = list(reversed(placed.rule.lines))
    heights = [-LINE_HEIGHT * (placed.row + up) - 10 for up in range(len(lines))]
    rule = alt.Chart(data_of([{"x": x}])).mark_rule(style=f"{MILESTONE}-rule", aria=False)
    foot = alt.Y2Value("height")  # type: ignore[no-untyped-call]
    layers = [rule.encode(alt.X("x:Q"), y_at(heights[-1] - 5), foot)]
    for line, height in zip(lines, heights, strict=True):
        text = alt.Chart(data_of([{"x": x, "label": line}])).mark_text(
            style=MILESTONE, align=placed.align, baseline="middle", dx=4 if placed.align == "left" else -4, aria=False
        )
        layers.append(text.encode(alt.X("x:Q"), y_at(height), alt.Text("label:N")))
    return layers
