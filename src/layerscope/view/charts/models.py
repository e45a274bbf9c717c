"""Models side by side: where in depth each milestone lies, with its spread over facts."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.statistics import Summary
from layerscope.errors import RunError
from layerscope.record.milestone_names import ONSET, STRONG, MilestoneName, stable_twin
from layerscope.report.numbers import amount
from layerscope.view.charts.chart_spec import ChartSpec, Datum, built, data_of
from layerscope.view.charts.comparable import obstacles, reason_against
from layerscope.view.charts.lines import DEPTH_TICKS, encoded
from layerscope.view.charts.theme import ROW_NAME
from layerscope.view.charts.words import listed, model_name, sentences
from layerscope.view.palette import series_look

FOR_GOOD = stable_twin(ONSET)
NAMES = {
    MilestoneName.COPY: "copy",
    ONSET: "first on top",
    FOR_GOOD: "on top for good",
    STRONG: "first clearly ahead",
    "first_kl_below_1.0": "KL ≤ 1",
}
"""Milestones of the strip, and what it calls them."""
MEANINGS = {
    MilestoneName.COPY: "The first layer that repeats words of the prompt.",
    ONSET: "The first layer at which the answer has rank 1.",
    FOR_GOOD: "From this layer on the answer has rank 1 at every layer.",
    STRONG: "The first layer at which the answer is clearly ahead.",
    "first_kl_below_1.0": "The first layer whose distribution is within one bit of the model's output.",
}
"""The same for those who see the names for the first time."""
LANE, HEAD = 11, 20
"""Height in pixels of a milestone's lane, and of the line with the model's name."""
NOT_LISTED = "the run does not have it"


@dataclass(frozen=True)
class Cell:
    """One milestone of one run."""

    run: AnalysedRun
    name: str
    """What the chart calls the run."""
    milestone: str
    summary: Summary | None
    reason: str | None
    """Why it does not compare with the others; None where it does."""
    absent: str | None
    """Why there is no layer; None where there is one."""

    @property
    def depth(self) -> float | None:
        """Of the median over facts, 0 to 1."""
        return self._share(None if self.summary is None else self.summary.median)

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Of the facts that have it, as depths; None of fewer than two."""
        if self.summary is None or self.summary.n - self.summary.n_missing < 2:
            return None
        low, high = self._share(self.summary.p25), self._share(self.summary.p75)
        return None if low is None or high is None else (low, high)

    def _share(self, layer: float | None) -> float | None:
        return None if layer is None else layer / self.run.record.model.n_layers


def across_models(runs: Sequence[AnalysedRun]) -> ChartSpec:
    """A strip of depth for each run, earliest answer first; open marks do not compare, for the reason in their tooltip.

    Args:
        runs: one for each model, or several of one; the headline lens of each, facts in the first wording.

    Raises:
        RunError: no run was given, or none has any of the milestones.
    """
    if not runs:
        raise RunError("There are no runs to put side by side; give at least one.")
    cells = _sorted(_cells(runs))
    if all(cell.depth is None for cell in cells):
        raise RunError(f"None of these runs has a layer for any of {', '.join(NAMES)}; there is nothing to draw.")
    several = max(cell.summary.n for cell in cells if cell.summary is not None) > 1
    lines = ["Depth under the headline lens; 0 is the embedding"]
    lines += ["Mark: median over facts. Bar: middle half of them."] if several else []
    lines += (
        ["Open marks do not compare with the others."] if any(c.reason and c.depth is not None for c in cells) else []
    )
    description, table = _description(cells, len(runs)), _table(cells)
    height = len(runs) * (HEAD + LANE * len(NAMES))
    layers = _layers(cells, height)
    return built("across-models", "Milestones across models", lines, description, layers, height, table)


def run_names(runs: Sequence[AnalysedRun]) -> list[str]:
    """The models' names; of a model that is there more than once with its lens and run."""
    plain = [model_name(run) for run in runs]
    names = [
        name if plain.count(name) == 1 else f"{name} · {run.record.protocol.headline_lens} · {run.record.run_id}"
        for name, run in zip(plain, runs, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(names, start=1)]


def _cells(runs: Sequence[AnalysedRun]) -> list[list[Cell]]:
    return [
        [_cell(run, name, milestone, mixtures) for milestone in NAMES]
        for run, name, mixtures in zip(runs, run_names(runs), obstacles(runs), strict=True)
    ]


def _cell(run: AnalysedRun, name: str, milestone: str, mixtures: dict[str, str]) -> Cell:
    summary = run.verdict.diagnostics.statistics.by_milestone.get(milestone)
    entry = run.verdict.milestones.of().get(milestone)
    absent = None
    if summary is None or summary.median is None:
        absent = NOT_LISTED if entry is None else entry.reason or "no fact has it"
    return Cell(run, name, milestone, summary, reason_against(run, milestone, mixtures), absent)


def _sorted(by_run: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Runs by the depth from which the answer is on top for good, those without it last."""

    def settled(cells: Sequence[Cell]) -> tuple[float, str]:
        depth = next(cell.depth for cell in cells if cell.milestone == FOR_GOOD)
        return (2.0 if depth is None else depth, cells[0].name)

    return [cell for cells in sorted(by_run, key=settled) for cell in cells]


def _layers(cells: Sequence[Cell], height: int) -> list[alt.Chart]:
    """Names stand above their lanes rather than beside them, so that a phone has its width for the strip."""
    names = list(dict.fromkeys(cell.name for cell in cells))
    tall = HEAD + LANE * len(NAMES)
    tops = {name: at * tall for at, name in enumerate(names)}
    lanes = {milestone: HEAD + LANE * (at + 0.5) for at, milestone in enumerate(NAMES)}
    marks = [(cell, _mark(cell, tops[cell.name] + lanes[cell.milestone])) for cell in cells if cell.depth is not None]
    axis = alt.Axis(grid=True, format=".1f", values=list(DEPTH_TICKS), labelFlush=False)
    x = alt.X("x:Q", title="depth (share of layers)", axis=axis, scale=alt.Scale(domain=[0, 1], nice=False))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[height, 0], nice=False))
    looks = {name: series_look(at) for at, name in enumerate(NAMES.values())}
    colour, shape = encoded("milestone:N", looks, alt.Legend(title=None, orient="bottom", columns=5, symbolOpacity=1))
    tips = [alt.Tooltip(f"{field}:N", title=field) for field in ("model", "milestone", "layer", "facts", "comparable")]
    heads: list[Datum] = [{"x": 0, "y": tops[name] + HEAD - 9, "name": name} for name in names]
    seams: list[Datum] = [{"y": tops[name]} for name in names[1:]]
    spans = [mark | {"x": cell.quartiles[0], "x2": cell.quartiles[1]} for cell, mark in marks if cell.quartiles]
    solid, hollow = ([mark for cell, mark in marks if (cell.reason is None) == fair] for fair in (True, False))
    seam = alt.Chart(data_of(seams)).mark_rule(opacity=0.35, aria=False)
    head = alt.Chart(data_of(heads)).mark_text(style=ROW_NAME, align="left", baseline="middle", dx=2, aria=False)
    span = alt.Chart(data_of(spans)).mark_rule(strokeWidth=3, opacity=0.45, aria=False)
    whole = alt.Chart(data_of(solid)).mark_point(filled=True, size=75, opacity=1)
    outline = alt.Chart(data_of(hollow)).mark_point(filled=False, size=65, strokeWidth=1.8, opacity=1)
    return [
        seam.encode(y),
        head.encode(x, y, alt.Text("name:N")),
        span.encode(x, alt.X2("x2:Q"), y, color=colour),
        whole.encode(x, y, color=colour, shape=shape, tooltip=tips),
        outline.encode(x, y, color=colour, shape=shape, tooltip=tips),
    ]


def _mark(cell: Cell, y: float) -> dict[str, str | float | None]:
    assert cell.summary is not None and cell.summary.median is not None
    n, n_layers = cell.summary.n, cell.run.record.model.n_layers
    return {
        "x": cell.depth,
        "y": y,
        "milestone": NAMES[cell.milestone],
        "model": cell.name,
        "layer": f"{cell.summary.median:g} of {n_layers}",
        "facts": f"{n - cell.summary.n_missing} of {n}",
        "comparable": "yes" if cell.reason is None else f"no: {cell.reason}",
    }


def _description(cells: Sequence[Cell], n_runs: int) -> str:
    by_run: dict[str, list[Cell]] = {}
    for cell in cells:
        by_run.setdefault(cell.name, []).append(cell)
    onsets = [cell.depth for cell in cells if cell.milestone == ONSET and cell.depth is not None]
    against: dict[str, list[str]] = {}
    for cell in cells:
        if cell.reason is not None and cell.depth is not None:
            against.setdefault(cell.reason, []).append(f"{cell.name} {NAMES[cell.milestone]}")
    return sentences(
        [
            f"Depth of milestones in {n_runs} runs under their headline lens, as shares of the layers.",
            f"Rank 1 lies between {amount(min(onsets))} and {amount(max(onsets))}." if onsets else None,
            *(f"{name}: {', '.join(map(_in_words, entries))}." for name, entries in by_run.items()),
            *(f"Not comparable, {reason}: {listed(which)}." for reason, which in against.items()),
        ]
    )


def _in_words(cell: Cell) -> str:
    name = NAMES[cell.milestone]
    if cell.depth is None:
        return f"no {name} ({cell.absent})"
    low, high = (amount(cell.depth if edge is None else edge) for edge in (cell.quartiles or (None, None)))
    spread = "" if low == high else f" (middle half {low} to {high})"
    return f"{name} at {amount(cell.depth)}{spread}"


def _table(cells: Sequence[Cell]) -> pl.DataFrame:
    rows = [
        {
            "model": cell.run.record.model.id,
            "run": cell.run.record.run_id,
            "lens": cell.run.record.protocol.headline_lens,
            "n_layers": cell.run.record.model.n_layers,
            "milestone": cell.milestone,
            "layer": None if s is None else s.median,
            "depth": cell.depth,
            "p25_layer": None if s is None else s.p25,
            "p75_layer": None if s is None else s.p75,
            "interval_95_low_layer": None if s is None or s.interval_95 is None else s.interval_95[0],
            "interval_95_high_layer": None if s is None or s.interval_95 is None else s.interval_95[1],
            "n_facts": None if s is None else s.n,
            "n_missing": None if s is None else s.n_missing,
            "absent": cell.absent,
            "comparable": cell.reason is None,
            "reason": cell.reason,
        }
        for cell in cells
        for s in (cell.summary,)
    ]
    return pl.DataFrame(rows, schema=_TABLE)


_TABLE = {
    "model": pl.String, "run": pl.String, "lens": pl.String, "n_layers": pl.Int32, "milestone": pl.String,
    "layer": pl.Float64, "depth": pl.Float64, "p25_layer": pl.Float64, "p75_layer": pl.Float64,
    "interval_95_low_layer": pl.Float64, "interval_95_high_layer": pl.Float64, "n_facts": pl.Int32,
    "n_missing": pl.Int32, "absent": pl.String, "comparable": pl.Boolean, "reason": pl.String,
}  # fmt: skip
