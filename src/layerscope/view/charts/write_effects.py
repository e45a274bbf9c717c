"""What becomes of the answer where one write is another fact's: a bar for attention and the MLP of every block."""

import altair as alt
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.write_effects import Effect, at_subject, effects
from layerscope.errors import RunError
from layerscope.record.write_patching import WritePatchingRecord
from layerscope.report.sentences.writers import over_pairs
from layerscope.view.charts.chart_spec import ChartSpec, Datum, built
from layerscope.view.charts.part_bars import HEIGHT, part_bars
from layerscope.view.charts.words import model_name, sentences

NAMED = 3


def write_effects(run: AnalysedRun) -> ChartSpec:
    """Median effects at the prompt's last token of replacing one write at a time.

    Raises:
        RunError: no write was replaced.
    """
    found = _replaced(run)
    listed = effects(found)
    rows: list[Datum] = [
        {"layer": one.layer, "part": one.part, "effect": one.effect, "pairs": f"{one.n_positive} of {one.n_known}"}
        for one in listed
    ]
    bars = part_bars(rows, "effect", "effect", [alt.Tooltip("pairs:N", title="pairs above zero")])
    subject = {(part, layer): effect for part, layer, effect in at_subject(found)}
    table = pl.DataFrame(
        {
            "layer": [one.layer for one in listed],
            "part": [one.part for one in listed],
            "effect": [one.effect for one in listed],
            "n_positive": [one.n_positive for one in listed],
            "n_pairs": [one.n_known for one in listed],
            "effect_at_subject": [subject.get((one.part, one.layer)) for one in listed],
        },
        schema_overrides={"effect_at_subject": pl.Float64()},
    ).sort("layer", "part")
    notes = [
        f"{model_name(run)} · {over_pairs(found)}, wording {found.prompt_variant}",
        "1: the run says the other fact's answer; below 0: its own all the more.",
    ]
    title = "Effects of one write at a time"
    return built("write_effects", title, notes, _description(run, found, listed), [bars], HEIGHT, table)


def _replaced(run: AnalysedRun) -> WritePatchingRecord:
    found = run.record.measured.sublayers
    if found is None:
        raise RunError("This run says nothing of attention and MLPs; probe with --sublayers.")
    if found.write_patching is None:
        why = (
            found.write_patching_reason or "no facts were patched when it was made; probe with --sublayers and --causal"
        )
        raise RunError(f"In this run no write was put into another: {why}.")
    return found.write_patching


def _description(run: AnalysedRun, found: WritePatchingRecord, listed: list[Effect]) -> str:
    named = ", ".join(f"{one.part} of layer {one.layer} {one.effect:+.2f}" for one in listed[:NAMED])
    return sentences(
        [
            "Bars of what becomes of the answer where what attention or the MLP of one block adds at the prompt's last "
            "token is taken from another fact's run: (LD patched - LD base) / (LD source - LD base).",
            f"{run.record.model.id}: {over_pairs(found)}. The largest by size: {named}.",
        ]
    )
