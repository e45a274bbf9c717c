"""Statistics over facts: how far a run's one headline fact tells of the others."""

from collections.abc import Sequence

from layerscope.analysis.facts import fact_passes
from layerscope.analysis.onsets import LayerOverFacts
from layerscope.analysis.statistics import Summary
from layerscope.record.milestone_names import ONSET
from layerscope.report.cited.claims import Claim, Unit, Value
from layerscope.report.cited.document import Section, Sentence, paragraph, sentence
from layerscope.report.sentences import answers
from layerscope.report.synthesis.compared import Compared
from layerscope.report.synthesis.words import of_runs, run_table


def facts_section(runs: Sequence[Compared]) -> Section:
    """The layer of rank 1 over facts."""
    several = [run for run in runs if run.diagnostics.statistics.n > 1]
    single = [run for run in runs if run not in several]
    title = "Statistics over facts"
    if not several:
        sentences = (
            sentence("Every run asks one fact alone, so there is no spread over facts and no interval."),
            sentence("A layer that rests on one fact may lie anywhere in the range that other facts would have."),
        )
        return Section(title, (paragraph(*sentences),))
    header = "facts | missing | first fact | median | depth | p25 | p75 | 95 % of the median"
    table = run_table(
        several,
        header,
        lambda run: [
            *(
                _about(run, "n"),
                _about(run, "n_missing"),
                run.milestone(ONSET),
                _about(run, "median"),
                _median_depth(run),
            ),
            *(_about(run, "p25"), _about(run, "p75"), _interval(run)),
        ],
    )
    return Section(title, (table, paragraph(*_sentences(several, single))), (_answered(several),))


def _answered(several: Sequence[Compared]) -> Section:
    """The three layers over the facts that are answered."""
    table = run_table(
        several,
        "answered | of | first on top | on top for good | depth | clearly ahead | without clearly ahead",
        lambda run: [
            *(_count(run, "answered"), _count(run, "asked")),
            *(_middle(run, "first_on_top"), _middle(run, "on_top_for_good"), _middle_depth(run)),
            *(_middle(run, "clearly_ahead"), _without(run)),
        ],
    )
    note = sentence(
        "Facts whose answer has rank 1 at the output, each once, and medians over them of the layers from which it is "
        "first on top, on top for good, and clearly ahead for good."
    )
    return Section("Over the answered facts", (table, paragraph(note)))


def _count(run: Compared, name: str) -> Claim | None:
    """How many facts are answered, or were asked for."""
    cells = (
        run.named(run.evidence.cell("answer_rank", run.n_layers, Unit.RANK, prompt=prompt))
        for prompt in fact_passes(run.diagnostics.outputs)
    )
    basis = [cell for cell in cells if cell is not None]
    value = answers.counts(run.diagnostics.answered)[name]
    return run.derived(f"facts_{name}", value, Unit.COUNT, basis, "count of facts") if basis else None


def _layers(run: Compared, name: str) -> tuple[LayerOverFacts, list[Claim]]:
    """One of the three layers with that of every answered fact."""
    layer: LayerOverFacts = getattr(run.diagnostics.layers_over_facts, name)
    claims = (
        run.named(run.evidence.milestone(layer.milestone, prompt=fact)) for fact in run.diagnostics.answered.counted
    )
    return layer, [claim for claim in claims if claim is not None]


def _middle(run: Compared, name: str) -> Claim | None:
    layer, basis = _layers(run, name)
    value = layer.summary.median
    if value is None or not basis:
        return None
    return run.derived(f"{layer.milestone}_median_over_answered", value, Unit.LAYER, basis, "median over facts")


def _middle_depth(run: Compared) -> Claim | None:
    layer, basis = _layers(run, "on_top_for_good")
    if layer.median_depth is None or not basis:
        return None
    name, value = f"{layer.milestone}_median_frac_over_answered", round(layer.median_depth, 3)
    return run.derived(name, value, Unit.SHARE, basis, "median over facts / n_layers")


def _without(run: Compared) -> Claim | None:
    layer, basis = _layers(run, "clearly_ahead")
    value = layer.summary.n_missing
    return run.derived("facts_never_clearly_ahead", value, Unit.COUNT, basis, "count of facts") if basis else None


def summary_of(run: Compared) -> Summary | None:
    """The layer of rank 1 over facts."""
    return run.diagnostics.statistics.by_milestone.get(ONSET)


def _sentences(several: Sequence[Compared], single: Sequence[Compared]) -> list[Sentence | None]:
    lowest, deepest = ([run for run in several if _extreme(run) == end] for end in ("shallowest", "deepest"))
    too_few = [run for run in several if (summary := summary_of(run)) is not None and summary.interval_95 is None]
    return [
        sentence(
            "The layers of rank 1 under the headline lens, each fact asked once; medians are over facts that have one."
        ),
        of_runs("The first fact is the shallowest of all in {}.", lowest, ONSET),
        of_runs("It is the deepest of all in {}.", deepest, ONSET),
        of_runs("Too few facts have a layer for an interval in {}.", too_few),
        of_runs("One fact alone was asked of {}.", single),
    ]


def _extreme(run: Compared) -> str | None:
    """Where the primary fact lies among all; None for between, and where all are equal."""
    primary = run.layer(ONSET)
    layers = [fact.L_semantic for fact in run.diagnostics.micro_suite.facts if fact.L_semantic is not None]
    if primary is None or len(set(layers)) < 2:
        return None
    return "shallowest" if primary == min(layers) else "deepest" if primary == max(layers) else None


def _basis(run: Compared) -> list[Claim]:
    """The layer of every fact."""
    claims = (
        run.named(run.evidence.milestone(ONSET, prompt=fact.prompt)) for fact in run.diagnostics.micro_suite.facts
    )
    return [claim for claim in claims if claim is not None]


def _about(run: Compared, name: str) -> Claim | None:
    summary = summary_of(run)
    value: Value = None if summary is None else getattr(summary, name)
    basis = _basis(run)
    unit = Unit.COUNT if name in ("n", "n_missing") else Unit.LAYER
    if value is None or not basis:
        return None
    return run.derived(f"{ONSET}_{name}", value, unit, basis, f"{name} over facts")


def _median_depth(run: Compared) -> Claim | None:
    median, size = _about(run, "median"), run.size()
    if median is None or size is None or not isinstance(median.value, int | float):
        return None
    value = round(median.value / run.n_layers, 3)
    return run.derived(f"{ONSET}_median_frac", value, Unit.SHARE, [median, size], "layer / n_layers")


def _interval(run: Compared) -> Claim | None:
    summary = summary_of(run)
    if summary is None or summary.interval_95 is None:
        return None
    low, high = summary.interval_95
    text = f"{low:g} to {high:g}"
    return run.derived(f"{ONSET}_interval_95", text, Unit.TEXT, _basis(run), "bootstrap over facts")
