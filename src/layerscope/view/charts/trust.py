"""How far a lens may be trusted: raw beside headline lens, the choice of norm, fitted lenses on held-out text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from types import MappingProxyType

import altair as alt
import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.facts import fact_passes
from layerscope.analysis.milestones import layer_of
from layerscope.analysis.percentiles import median
from layerscope.analysis.raw_comparison import HIGH_KL_BITS, NEAR_JACCARD, NEAR_JS_BITS, NEAR_L1, Comparison
from layerscope.errors import RunError
from layerscope.record.measured import FittedLensRecord, HeldOutRecord
from layerscope.record.milestone_names import ONSET
from layerscope.record.prompt_key import PromptKey
from layerscope.view.charts.chart_spec import ChartSpec, Datum, built, data_of
from layerscope.view.charts.lines import Axes, Line, Values, encoded, hover_layer, line_layers, reference_layer
from layerscope.view.charts.trajectories import HEIGHT, NO_VALUE, curve_values
from layerscope.view.charts.words import course, listed, measured, model_name, prompt_name, sentences, signed
from layerscope.view.palette import LENSES, SERIES, lens_look, series_look

MOST_FACTS = 40
"""Facts with a line of their own in the chart of onsets; of more, so many at even steps."""


@dataclass(frozen=True)
class _Audit:
    """A measure of how far two lenses are apart, by layer."""

    title: str
    axis: str
    means: str
    columns: Mapping[str, str]
    """What each column is called in the legend; of a single one, lenses are."""
    bound: float
    bound_means: str
    unit: str = ""
    domain: tuple[float, float] | None = None


_AUDITS: Mapping[str, _Audit] = MappingProxyType(
    {
        "kl_norm_vs_raw_bits": _Audit(
            "Divergence from the raw lens", "KL (bits)",
            "KL divergence between the headline lens' distribution and the raw lens'.",
            {"kl_norm_vs_raw_bits": "KL(headline || raw)", "kl_raw_to_norm_bits": "KL(raw || headline)"},
            HIGH_KL_BITS, "a layer counts as far apart from there on", " bits",
        ),
        "js_divergence_bits": _Audit(
            "Jensen-Shannon divergence from the raw lens", "JS divergence (bits)",
            "Jensen-Shannon divergence of the headline lens' and the raw lens' distributions, 0 to 1 bit.",
            {"js_divergence_bits": "headline lens"}, NEAR_JS_BITS, "lenses count as near up to there",
            " bits", (0.0, 1.0),
        ),
        "l1_prob_diff": _Audit(
            "L1 distance from the raw lens", "sum of |probability differences|",
            "Sum over the vocabulary of the differences in probability between headline and raw lens, 0 to 2.",
            {"l1_prob_diff": "headline lens"}, NEAR_L1, "lenses count as near up to there", "", (0.0, 2.0),
        ),
        "topk_jaccard_raw_norm@50": _Audit(
            "Shared top tokens with the raw lens", "Jaccard index of top 50",
            "Share of ids in either lens' 50 most likely that are in both, each lens against the raw lens.",
            {"topk_jaccard_raw_norm@50": ""}, NEAR_JACCARD, "lenses count as near from there on", "", (0.0, 1.0),
        ),
    }
)  # fmt: skip
ONSETS, HELD_OUT = "decoding_point", "held_out_bits"
LENS_TRUST = (*_AUDITS, ONSETS, HELD_OUT)
"""What `lens_trust` draws, by name."""


def lens_trust(run: AnalysedRun, metric: str) -> ChartSpec:
    """One measure of whether a reading is the model's or the lens' own making.

    Args:
        run: what to draw; the primary prompt, or all facts for `decoding_point`.
        metric: a name of `LENS_TRUST`.

    Raises:
        RunError: no such metric, or the run lacks what it needs.
    """
    others: dict[str, Callable[[AnalysedRun], ChartSpec]] = {ONSETS: _onsets, HELD_OUT: _held_out}
    if metric in others:
        return others[metric](run)
    if metric not in _AUDITS:
        raise RunError(f"There is no chart '{metric}' of lens trust; choose from {', '.join(LENS_TRUST)}.")
    return _audited(run, metric, _AUDITS[metric])


def artefact_words(run: AnalysedRun) -> str:
    """Both artefact scores and what they amount to, or that there is none."""
    comparison = _judged(run)
    if comparison is None or comparison.score.v1 is None:
        return "No artefact score: raw and headline lens were not compared."
    second = "" if comparison.score.v2 is None else f"; second version {comparison.score.v2:.2f}"
    share = comparison.pct_layers_kl_ge_1_0
    far = "" if share is None else f"; {100 * share:.0f}% of layers at least 1 bit apart"
    return f"Artefact score {comparison.score.v1:.2f} of 1, {comparison.score.tier}{second}{far}."


def _judged(run: AnalysedRun) -> Comparison | None:
    """The stretch that the tier is about: for published runs with the last layer, where else the lens is the model."""
    full = run.verdict.diagnostics.raw_full
    if full is None:
        return None
    return full.whole if run.record.protocol.name == "published" else full.prefinal


def _audited(run: AnalysedRun, name: str, audit: _Audit) -> ChartSpec:
    primary = run.verdict.curves.primary
    if primary is None:
        raise RunError("This run has no rows of any fact, so no lenses can be compared.")
    headline = run.record.protocol.headline_lens
    if len(audit.columns) > 1 or audit.columns[name]:
        tried = [
            Line(label, series_look(at), curve_values(run.verdict.curves.get(primary, headline), column), at == 0)
            for at, (column, label) in enumerate(audit.columns.items())
        ]
    else:
        lenses = [lens for lens in run.record.protocol.lenses if lens != "raw"]
        tried = [
            Line(lens, lens_look(lens, at), curve_values(run.verdict.curves.get(primary, lens), name), lens == headline)
            for at, lens in enumerate(lenses)
        ]
    lines, absent = [line for line in tried if line.known], [line.name for line in tried if not line.known]
    if not lines:
        raise RunError(f"This run has no `{name}` at any layer: raw and {headline} lens were not compared so.")
    axes = Axes(run.record.model.n_layers, audit.axis, domain=audit.domain)
    bound = f"ashed line at {measured(audit.bound, audit.unit)}: {audit.bound_means}."
    scores = artefact_words(run)
    above = [layer for layer, value in lines[0].known if value >= audit.bound]
    description = sentences(
        [
            audit.means,
            f"{run.record.model.id}, prompt {prompt_name(run, primary)}, headline lens {headline}.",
            *(course(line.name, line.known, audit.unit) for line in lines),
            f"{lines[0].name} is at or above {measured(audit.bound, audit.unit)} at {len(above)} of "
            f"{len(lines[0].known)} layers.",
            scores,
            f"A d{bound}",
            f"Left out: {listed(absent)}, {NO_VALUE}." if absent else None,
        ]
    )
    notes = [f"{model_name(run)} · {prompt_name(run, primary)} · headline {headline}", scores, f"D{bound}"]
    layers = [reference_layer(audit.bound), *line_layers(lines, axes), hover_layer(lines, axes)]
    table = _long(run, [(line.name, line.curve) for line in tried], name)
    file_safe = name.replace("@", "-")
    return built(f"trust-{file_safe}", audit.title, notes, description, layers, HEIGHT, table)


def _held_out(run: AnalysedRun) -> ChartSpec:
    """Mean KL(model || lens) on text that the fits did not see."""
    loaded = {
        lens.kind: record for lens in run.record.measured.fitted_lenses if (record := _held_out_of(lens)) is not None
    }
    if not loaded:
        raise RunError("This run has no fitted lens with a record of held-out text; fit one with `layerscope fit`.")
    parts: dict[str, tuple[float | None, ...]] = {}
    for kind, record in loaded.items():
        parts.setdefault("logit", record.logit_bits)
        parts[kind] = record.lens_bits
        parts |= {f"{kind}, bias alone": record.bias_bits} if record.bias_bits else {}
        parts |= {f"{kind}, closed form": record.closed_form_bits} if record.closed_form_bits else {}
    taken = {LENSES[name].colour for name in parts if name in LENSES}
    free = cycle(look for look in SERIES if look.colour not in taken)
    lines = [
        Line(name, LENSES[name] if name in LENSES else next(free), tuple(enumerate(values)), name in loaded)
        for name, values in parts.items()
        if any(value is not None for value in values)
    ]
    sizes = [f"{kind}: {record.n_positions:,} positions" for kind, record in loaded.items() if record.n_positions]
    axes = Axes(run.record.model.n_layers, "mean KL(model || lens) (bits)")
    description = sentences(
        [
            "Mean KL divergence from the model's own output to a lens, over text that nothing was chosen by.",
            f"{run.record.model.id}, layers 0 to {run.record.model.n_layers}.",
            *(course(line.name, line.known, " bits") for line in lines),
            f"The logit lens is measured on the text of the {next(iter(loaded))} lens." if len(loaded) > 1 else None,
        ]
    )
    notes = [model_name(run), *([" · ".join(sizes)] if sizes else []), "Lower is nearer the model."]
    layers = [*line_layers(lines, axes), hover_layer(lines, axes)]
    table = _long(run, [(line.name, line.curve) for line in lines], HELD_OUT)
    return built("trust-held-out", "Fitted lenses on held-out text", notes, description, layers, HEIGHT, table)


def _held_out_of(lens: FittedLensRecord) -> HeldOutRecord | None:
    fit = lens.tuned or lens.prism or lens.ridge or lens.jacobian
    return None if fit is None or lens.status != "loaded" else fit.held_out


def _onsets(run: AnalysedRun) -> ChartSpec:
    """The first layer with the answer on top under the final norm and under the next block's, fact by fact."""
    passes = fact_passes(run.verdict.curves.passes)
    lenses = [lens for lens in ("logit", "next_norm") if lens in run.record.protocol.lenses]
    if len(lenses) < 2 or not passes:
        raise RunError("This run was not read under both `logit` and `next_norm`, so their onsets cannot be compared.")
    onsets = [(prompt, _onset(run, "logit", prompt), _onset(run, "next_norm", prompt)) for prompt in passes]
    gaps = [later - earlier for _, earlier, later in onsets if earlier is not None and later is not None]
    if not gaps:
        raise RunError("No fact of this run has the answer on top under both `logit` and `next_norm`.")
    kept = onsets[:: -(-len(onsets) // MOST_FACTS)]
    shift = median(gaps)
    middle = "" if shift is None else signed(shift)
    never = [prompt_name(run, prompt) for prompt, *layers in onsets if None in layers]
    description = sentences(
        [
            "First layer with the answer on top under the model's final norm (logit) and the next block's (next_norm).",
            f"{run.record.model.id}, {len(onsets)} facts.",
            f"next_norm less logit: median {middle} layers, from {signed(min(gaps))} to {signed(max(gaps))}; "
            f"{len(gaps)} facts.",
            f"Without an onset under one of them: {listed(never)}." if never else None,
            f"{len(kept)} of {len(onsets)} facts are drawn." if len(kept) < len(onsets) else None,
        ]
    )
    notes = [model_name(run), f"next_norm less logit: median {middle} layers over {len(gaps)} facts"]
    rows = [
        (run.record.model.id, name, lens, layer, None if layer is not None else "never on top")
        for name, *layers in ((prompt_name(run, prompt), *layers) for prompt, *layers in onsets)
        for lens, layer in zip(lenses, layers, strict=True)
    ]
    schema = {"model": pl.String, "prompt": pl.String, "lens": pl.String, "layer": pl.Int32, "reason": pl.String}
    table, layers = pl.DataFrame(rows, schema=schema, orient="row"), _onset_layers(run, kept)
    height = 40 + 22 * len(kept)
    return built("trust-decoding-point", "Onset of the answer by norm", notes, description, layers, height, table)


def _onset(run: AnalysedRun, lens: str, prompt: PromptKey) -> int | None:
    milestones = run.verdict.milestones.of(lens, prompt)
    return layer_of(milestones, ONSET)


def _onset_layers(run: AnalysedRun, onsets: Sequence[tuple[PromptKey, int | None, int | None]]) -> list[alt.Chart]:
    """A line between both onsets of a fact; where they are one, the open circle lies around the triangle."""
    axes = Axes(run.record.model.n_layers, "")
    looks = {lens: LENSES[lens] for lens in ("logit", "next_norm")}
    names = [prompt_name(run, prompt) for prompt, _, _ in onsets]
    y = alt.Y("fact:N", sort=names, title=None, axis=alt.Axis(grid=True, labelLimit=130))
    spans: list[Datum] = [
        {"fact": name, "x": early, "x2": late}
        for name, (_, early, late) in zip(names, onsets, strict=True)
        if early is not None and late is not None
    ]
    dots: list[Datum] = [
        {"fact": name, "x": layer, "lens": lens}
        for name, (_, *layers) in zip(names, onsets, strict=True)
        for lens, layer in zip(looks, layers, strict=True)
        if layer is not None
    ]
    colour, shape = encoded("lens:N", looks, alt.Legend(title=None, orient="bottom", columns=2))
    tips = [alt.Tooltip("fact:N"), alt.Tooltip("lens:N"), alt.Tooltip("x:Q", title="layer")]
    line = alt.Chart(data_of(spans)).mark_rule(strokeWidth=2, aria=False)
    layers: list[alt.Chart] = [line.encode(axes.x(), alt.X2("x2:Q"), y)]
    for lens, size in zip(looks, (150, 40), strict=True):
        points = alt.Chart(data_of([dot for dot in dots if dot["lens"] == lens]))
        points = points.mark_point(strokeWidth=2, opacity=1, size=size, aria=False)
        layers.append(points.encode(axes.x(), y, color=colour, shape=shape, tooltip=tips))
    return layers


def _long(run: AnalysedRun, curves: Sequence[tuple[str, Values]], quantity: str) -> pl.DataFrame:
    n_layers = run.record.model.n_layers
    rows = [
        (run.record.model.id, quantity, name, layer, layer / n_layers, None if value is None else float(value))
        for name, curve in curves
        for layer, value in curve
    ]
    schema = {
        "model": pl.String, "quantity": pl.String, "series": pl.String, "layer": pl.Int32, "depth": pl.Float64,
        "value": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")
