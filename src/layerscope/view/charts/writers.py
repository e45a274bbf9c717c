"""What wrote the answer: a bar for attention and one for the MLP of every block."""

import altair as alt
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.writers import n_answered, writers
from layerscope.errors import RunError
from layerscope.record.sublayers import SublayersRecord, WordingWritersRecord
from layerscope.report.sentences.lines import plural
from layerscope.report.sentences.writers import why_none
from layerscope.view.charts.chart_spec import ChartSpec, Datum, built
from layerscope.view.charts.part_bars import HEIGHT, part_bars
from layerscope.view.charts.words import model_name, sentences

NAMED = 3


def writer_shares(run: AnalysedRun) -> ChartSpec:
    """Mean shares of the answer's lead over its rival, over the prompts of the first fact's wording.

    Raises:
        RunError: nothing was attributed, or what has to add up does not.
    """
    found, wording = _attributed(run)
    parts = writers(wording)
    rows: list[Datum] = [
        {"layer": w.layer, "part": w.part, "share": w.share, "prompts": f"{w.n_positive} of {wording.n}"} for w in parts
    ]
    bars = part_bars(rows, "share", "share (nats)", [alt.Tooltip("prompts:N", title="prompts above zero")])
    told = f"{model_name(run)} · mean of {wording.n} {plural('prompt', wording.n)}, wording {wording.prompt_variant}"
    notes = [told, "What was written, not what was used: later blocks read it too."]
    table = pl.DataFrame(
        {
            "layer": [w.layer for w in parts],
            "part": [w.part for w in parts],
            "share_nats": [w.share for w in parts],
            "n_positive": [w.n_positive for w in parts],
            "n_prompts": [wording.n] * len(parts),
        }
    ).sort("layer", "part")
    description = _description(run, found, wording)
    title = "Shares of the answer's lead"
    return built("writers", title, notes, description, [bars], HEIGHT, table)


def _attributed(run: AnalysedRun) -> tuple[SublayersRecord, WordingWritersRecord]:
    found, primary = run.record.measured.sublayers, run.diagnostics.primary
    if found is None:
        raise RunError("This run says nothing of attention and MLPs; probe with --sublayers.")
    wording = None if primary is None else found.of_wording(primary.prompt_id, primary.prompt_variant)
    reason = why_none(found, wording)
    if wording is None or reason is not None:
        raise RunError(f"Shares of attention and MLPs cannot be drawn: {reason}.")
    return found, wording


def _description(run: AnalysedRun, found: SublayersRecord, wording: WordingWritersRecord) -> str:
    parts = writers(wording)
    largest = [w for w in parts if w.share > 0][:NAMED]
    against = [w for w in reversed(parts) if w.share < 0][:NAMED]

    def named(what: str, of: list[str]) -> str | None:
        return f"{what}: {', '.join(of)}." if of else None

    return sentences(
        [
            "Bars of the share that attention and MLP of each block have in the logit of the answer less that of its "
            "rival, the most likely other token.",
            f"{run.record.model.id}: the difference is {wording.logit_difference:+.2f} nats in the mean of {wording.n} "
            f"{plural('prompt', wording.n)}, of which {n_answered(found, wording)} "
            f"{'is' if n_answered(found, wording) == 1 else 'are'} answered.",
            named("Largest", [f"{w.part} of layer {w.layer} {w.share:+.2f}" for w in largest]),
            named("Against it", [f"{w.part} of layer {w.layer} {w.share:+.2f}" for w in against]),
        ]
    )
