"""The charts of a page: which there are, in which section, and the words and files that go with each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.errors import RunError
from layerscope.view.page.packing import packed, safe_json
from layerscope.view.page.words import Column

if TYPE_CHECKING:
    from layerscope.view.charts import ChartSpec

_OF_RUNS = (
    Column("model", "The model that was probed."),
    Column("layers", "How many blocks it has."),
    Column("lens", "The lens under which the milestones are."),
    Column("facts", "How many facts the medians are over."),
)
TRAJECTORIES = ("entropy_bits", "kl_to_final_bits", "answer_rank", "p_answer", "masses", "cosines")
FACTS = ("answer_rank", "entropy_bits", "kl_to_final_bits", "p_answer")


@dataclass(frozen=True)
class Figure:
    """One chart as the page holds it."""

    id: str
    """Of its two packed scripts, `<id>-spec` and `<id>-table`."""
    name: str
    """Of its files."""
    title: str
    description: str
    wide: bool
    spec: str
    """Packed Vega-Lite."""
    table: str
    """Packed CSV."""


@dataclass(frozen=True)
class Group:
    """The charts of one run, or of all."""

    run: int | None
    """Place of the run; None where the charts are about all."""
    charts: tuple[Figure, ...]
    notes: tuple[str, ...]
    """Charts that cannot be drawn, each with the reason."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table of models."""

    text: str
    sort: str = ""
    """What it is sorted by; empty where it has no value."""
    reason: str | None = None
    """Why it is not to be compared with others, or has no value."""


@dataclass(frozen=True)
class Sheet:
    """A table that can be sorted."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    hints: tuple[str, ...]
    """How its cells are to be read."""


@dataclass(frozen=True)
class Section:
    """A section of charts."""

    id: str
    title: str
    lead: str
    groups: tuple[Group, ...]
    table: Sheet | None = None
    leads: bool = False
    """Whether it stands before what is about one run alone."""


def chart_sections(runs: Sequence[AnalysedRun], labels: Sequence[str]) -> list[Section]:
    """Trajectories and lens trust of every run; where there are several runs, all of them side by side."""
    from altair.utils.schemapi import debug_mode

    from layerscope.view.charts import LENS_TRUST, facts, lens_trust, patching, trajectories, writer_shares
    from layerscope.view.charts.patching import EFFECTS, MAP

    def of_facts(run: AnalysedRun, metric: str) -> "ChartSpec | None":
        return facts(run, metric) if len(run.diagnostics.micro_suite.facts) > 1 else None

    by_layer = [(trajectories, name) for name in TRAJECTORIES] + [(of_facts, name) for name in FACTS]
    trust = [(lens_trust, name) for name in LENS_TRUST]
    causal = [(patching, EFFECTS), (_of_all_positions, MAP)]
    named = list(enumerate(zip(runs, labels, strict=True)))
    patched = [(at, named_run) for at, named_run in named if named_run[0].diagnostics.patching is not None]
    # Their own tests hold that the charts are valid; to check them here, part by part, would take seconds.
    with debug_mode(False):
        sections = [
            Section(
                "trajectories",
                "Trajectories",
                "The first fact at its last position, one line for each lens; then all facts under the headline lens.",
                tuple(_group(at, run, label, by_layer) for at, (run, label) in named),
            ),
            *(
                []
                if not patched
                else [
                    Section(
                        "patching",
                        "Does the model use it?",
                        "Residuals of one fact written into the run of another: where the answer goes with them.",
                        tuple(_group(at, run, label, causal) for at, (run, label) in patched),
                    )
                ]
            ),
            Section(
                "trust",
                "Lens trust",
                "How far a reading is the model's, and how far the making of the lens.",
                tuple(_group(at, run, label, trust) for at, (run, label) in named),
            ),
        ]
        if any(run.record.measured.sublayers is not None for run in runs):
            written = [
                (lambda run, _: writer_shares(run), "writers"),
                (_of_single_writes, "write_effects"),
            ]
            sections.append(
                Section(
                    "writers",
                    "What wrote the answer",
                    "Direct logit attribution at the last position: what each block adds to the answer's lead; then "
                    "what becomes of the answer where one of these writes is another fact's.",
                    tuple(_group(at, run, label, written) for at, (run, label) in named),
                )
            )
        return sections + ([_across(runs)] if len(runs) > 1 else [])


def _of_all_positions(run: AnalysedRun, metric: str) -> "ChartSpec | None":
    """A map, where all positions were asked for."""
    from layerscope.view.charts import patching

    record = run.record.measured.patching
    return patching(run, metric) if record is not None and record.positions == "all" else None


def _of_single_writes(run: AnalysedRun, _: str) -> "ChartSpec | None":
    """What single writes do, where they were replaced or could have been."""
    from layerscope.view.charts import write_effects

    found = run.record.measured.sublayers
    asked = found is None or found.write_patching is not None or found.write_patching_reason is not None
    return write_effects(run) if asked else None


def _group(
    place: int,
    run: AnalysedRun,
    label: str,
    wanted: Sequence[tuple[Callable[[AnalysedRun, str], "ChartSpec | None"], str]],
) -> Group:
    charts, notes = [], []
    for make, metric in wanted:
        try:
            chart = make(run, metric)
        except RunError as error:  # what a run does not hold is said in the chart's place
            notes.append(str(error))
            continue
        if chart is not None:
            charts.append(figure_of(chart, f"chart-{place}-{chart.name}", f"{chart.name}-{label}"))
    return Group(place, tuple(charts), tuple(dict.fromkeys(notes)))


def figure_of(chart: "ChartSpec", place: str, name: str, wide: bool = False) -> Figure:
    """A chart as the page holds it, by the name of its scripts and that of its files."""
    spec = safe_json(chart.chart.to_dict(validate=False)).encode()
    return Figure(
        place, name, chart.title, chart.description, wide, packed(spec), packed(chart.table.write_csv().encode())
    )


def _across(runs: Sequence[AnalysedRun]) -> Section:
    from layerscope.view.charts import across_models

    try:
        chart = across_models(runs)
    except RunError as error:
        group, table = Group(None, (), (str(error),)), None
    else:
        group, table = Group(None, (figure_of(chart, "chart-all-models", chart.name, wide=True),), ()), _sheet(chart)
    return Section(
        "models",
        "Across models",
        "The same milestones in every run, as shares of the depth. What does not compare is marked, with the reason.",
        (group,),
        table,
        leads=True,
    )


def _sheet(chart: "ChartSpec") -> Sheet:
    """A row for each run, a column for each milestone, in the chart's order."""
    from layerscope.view.charts.models import MEANINGS, NAMES

    runs: list[dict[str, Mapping[str, Any]]] = []
    named = None
    for row in chart.table.iter_rows(named=True):
        # Runs that were read from one folder bear one id, and two runs may be of one model.
        same = (row["model"], row["run"], row["lens"])
        if same != named or row["milestone"] in runs[-1]:
            runs.append({})
        named = same
        runs[-1][row["milestone"]] = row
    rows = tuple(
        (*_named(list(by_milestone.values())), *(_cell(by_milestone.get(milestone)) for milestone in NAMES))
        for by_milestone in runs
    )
    signs = {
        "*": "* does not compare with the others; the reason is in the cell.",
        "[": "Brackets: the middle half of the facts.",
        "–": "–: no such layer; the reason is in the cell.",
    }
    return Sheet(
        "Milestones by model, as shares of the depth",
        (
            *_OF_RUNS,
            *(Column(name, f"{MEANINGS[milestone]} As a share of the depth.") for milestone, name in NAMES.items()),
        ),
        rows,
        tuple(hint for sign, hint in signs.items() if any(sign in cell.text for row in rows for cell in row[4:])),
    )


def _named(rows: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    first = rows[0]
    n_layers, n_facts = str(first["n_layers"]), str(max(row["n_facts"] or 0 for row in rows))
    return Cell(first["model"]), Cell(n_layers, n_layers), Cell(first["lens"], first["lens"]), Cell(n_facts, n_facts)


def _cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None or row["depth"] is None:
        return Cell("–", "", None if row is None else row["absent"])
    n = row["n_layers"]
    spread = (
        "" if row["p25_layer"] == row["p75_layer"] else f" [{row['p25_layer'] / n:.2f}, {row['p75_layer'] / n:.2f}]"
    )
    star = "" if row["comparable"] else " *"
    return Cell(f"{row['depth']:.2f}{spread}{star}", f"{row['depth']:.4f}", row["reason"])
