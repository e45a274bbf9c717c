"""Where patches say that the answer is carried, run by run, and whether the headline lens' layer is borne out."""

from collections.abc import Sequence

from layerscope.analysis.handover import Patching
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Section, paragraph, sentence
from layerscope.report.synthesis.compared import Compared
from layerscope.report.synthesis.words import of_runs, run_table

HEADER = (
    "facts | pairs | carried from | depth | interval from | to | at the subject up to | "
    "headline lens on top for good | patches"
)


def patched(run: Compared) -> Patching | None:
    """What patches say of a run; None where nothing was patched."""
    found = run.diagnostics.patching
    return None if found is None or found.reason is not None else found


def causal_section(runs: Sequence[Compared]) -> tuple[Section, ...]:
    """One section; none where no run was patched."""
    several = [run for run in runs if patched(run) is not None]
    if not several:
        return ()
    others = [run for run in runs if run not in several]
    note = sentence(
        "The residual of one fact written into the run of another of the same template, at the last token: the layer "
        "from which on it carries at least half of the difference between both answers, as the median over pairs, and "
        "exceeds a third fact's residual at least half as far as at the output. Intervals are over facts."
    )
    about = [note, of_runs("Nothing was patched in {}.", others)]
    return (Section("Does the model use it?", (run_table(several, HEADER, _cells), paragraph(*about))),)


def _cells(run: Compared) -> list[Claim | None]:
    found = patched(run)
    if found is None:
        return [None] * len(HEADER.split("|"))
    at, lens = found.handover, run.evidence.headline
    against = found.by_lens.get(lens, {}).get("on_top_for_good")
    layer = _stated(run, "layer", at.layer, Unit.LAYER, "handover")
    return [
        _stated(run, "n_facts", at.n_facts, Unit.COUNT, "handover"),
        _stated(run, "n_pairs", at.n_pairs, Unit.COUNT, "handover"),
        layer,
        _depth(run, layer, at.layer),
        *(_stated(run, name, getattr(at, name), Unit.LAYER, "handover") for name in ("low", "high", "release")),
        None
        if against is None
        else _stated(run, "layer", against.layer, Unit.LAYER, "by_lens", lens, "on_top_for_good"),
        None
        if against is None
        else _stated(run, "verdict", str(against.verdict), Unit.TEXT, "by_lens", lens, "on_top_for_good"),
    ]


def _stated(run: Compared, name: str, value: int | float | str | None, unit: Unit, *path: str) -> Claim | None:
    if value is None:
        return None
    return run.agreed(name, value, unit, ("patching", *path, name), basis=(), how="median over pairs")


def _depth(run: Compared, layer: Claim | None, value: int | None) -> Claim | None:
    size = run.size()
    if layer is None or size is None or value is None:
        return None
    return run.derived("handover_frac", round(value / run.n_layers, 3), Unit.SHARE, [layer, size], "layer / n_layers")
