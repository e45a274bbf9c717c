"""The headline lens beside others: the raw lens in three checks, and fitted lenses with what their gain is made of."""

from collections.abc import Mapping, Sequence

from layerscope.analysis.curve_shapes import listed_layers
from layerscope.analysis.fitted_lens_audit import AttributedGain, FittedLensAudit
from layerscope.analysis.percentiles import depth_layer
from layerscope.analysis.raw_comparison import Comparison
from layerscope.published.layout import PUBLISHED_LENS_NAMES
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import Block, Name, Row, Section, Sentence, paragraph, row, sentence
from layerscope.report.evaluation.quotes import D, Path, Quotes, layer_cell, table

_FULL = (D, "raw_lens_full")
SHARES = (
    "Shares of layers at least {} and {} bits from the raw lens, layers with rank 1 under the headline lens alone, and "
    "the score. At the last layer the headline lens is the model's own head, so the second row is the fairer one."
)
UNLISTED = (
    "The run was read through the lens {} too. Published files have no table of its rows, so no figure of it can be "
    "cited here; the run's verdict says what it gains."
)
AGAINST = (
    "Lens {} against {}: {}. A difference of layers is fitted less headline (negative is earlier), one of KL is "
    "headline less fitted (positive is nearer to the model)."
)
GAINS = "What the tuned lens gains in bits, and how much of it a temperature alone would give; to be preferred: {}."


def raw_lens(quotes: Quotes) -> Section:
    """Four sampled layers, a window around milestones, every layer."""
    full, title = quotes.diagnostics.raw_full, "Raw lens against norm lens"
    sampled, rows = _sampled(quotes), list[Row]()
    if full is not None and full.whole.n_layers:
        rows = [
            _full_row(quotes, "all layers", full.whole, _FULL, (*_FULL, "score")),
            _full_row(quotes, "without the last", full.prefinal, (*_FULL, "prefinal"), (*_FULL, "score_prefinal")),
        ]
    first = paragraph(*sampled, *_window(quotes))
    if not rows:
        none = sentence("The run has no rows of both lenses to compare at every layer.")
        return Section(title, (first, paragraph(none)))
    caption = quotes.caption(SHARES, Name("1.0"), Name("0.5"), marked=False)
    bounds, alone = ("≥1.0", "≥0.5"), ("norm-only", "first")
    header = ("layers", *bounds, *alone, "max KL (bits)", "JS p50", "score", "score v2", "tier")
    return Section(title, (first, table(header, rows, caption)))


def _sampled(quotes: Quotes) -> list[Sentence]:
    risk = _risk(quotes)
    if risk.value is None:
        return [sentence("No layers were sampled under the raw lens.")]
    at = quotes.under("raw_lens_check", "summary", of=quotes.diagnostics.raw_sample)
    largest = at.figure("max_kl_norm_vs_raw_bits", Unit.BITS)
    first = at.figure("first_norm_only_semantic_layer", Unit.LAYER, reason="at no sampled layer")
    template = "Sampled layers: risk {}, largest divergence {} bits, first layer with rank 1 under the norm alone {}."
    return [sentence(template, risk, largest, first)]


def _risk(quotes: Quotes) -> Claim:
    at = quotes.under("raw_lens_check", "summary", of=quotes.diagnostics.raw_sample, basis=quotes.evidence.raw_rows())
    return at.figure("lens_artifact_risk", Unit.TEXT)


def _window(quotes: Quotes) -> list[Sentence]:
    window, raw = quotes.diagnostics.raw_window, quotes.evidence.raw_rows()
    if window is None or not window.layers_checked:
        return []
    at = quotes.under(D, "raw_lens_window", of=window, basis=raw)
    radius = at.figure("radius", Unit.COUNT, basis=(_risk(quotes),), how="rule for the sampled risk")
    largest = at.figure("max_kl_norm_vs_raw_bits_window", Unit.BITS)
    alone = window.norm_only_semantics_layers
    entry = quotes.evidence.entry(D, "raw_lens_window", "norm_only_semantics_layers")
    basis: Sequence[Citation] = raw
    if entry is not None and alone is not None:
        stated = [item.value for item in quotes.evidence.json.children(entry)]
        basis = (quotes.evidence.cite(entry),) if stated == list(alone) else raw
    text = None if alone is None else listed_layers(alone)
    how = "layers with rank 1 under the headline lens and not under the raw one"
    layers = quotes.figure("norm_only_semantics_layers", text, Unit.TEXT, basis=basis, how=how)
    template = (
        "Window of radius {} around milestones: layers with rank 1 under the norm alone {}, largest divergence {} bits."
    )
    return [sentence(template, radius, layers, largest)]


def _full_row(quotes: Quotes, label: str, compared: Comparison, base: Path, score: Path) -> Row:
    about = {"basis": quotes.evidence.raw_rows(), "reason": "there is none"}
    at, scored = quotes.under(*base, of=compared, **about), quotes.under(*score, of=compared.score, **about)
    js = compared.js_divergence_percentiles["p50"]
    return row(
        label,
        at.figure("pct_layers_kl_ge_1.0", Unit.SHARE, value=compared.pct_layers_kl_ge_1_0),
        at.figure("pct_layers_kl_ge_0.5", Unit.SHARE, value=compared.pct_layers_kl_ge_0_5),
        at.figure("n_norm_only_semantics_layers", Unit.COUNT),
        at.figure("earliest_norm_only_semantic", Unit.LAYER),
        at.figure("max_kl_norm_vs_raw_bits", Unit.BITS),
        at.figure("js_divergence_p50", Unit.BITS, "js_divergence_percentiles", "p50", value=js),
        scored.figure("lens_artifact_score", Unit.NUMBER, value=compared.score.v1),
        scored.figure("lens_artifact_score_v2", Unit.NUMBER, value=None if js is None else compared.score.v2),
        scored.figure("tier", Unit.TEXT),
    )


def fitted(quotes: Quotes) -> Section:
    """Prism and tuned lens against the headline lens."""
    blocks: list[Block] = []
    for lens in ("prism", "tuned"):
        audit = quotes.diagnostics.fitted_lenses.get(lens)
        blocks.append(paragraph(_absent(quotes, lens)) if audit is None else _audit(quotes, audit))
    blocks += _attribution(quotes)
    others = [lens for lens in quotes.diagnostics.fitted_lenses if lens not in PUBLISHED_LENS_NAMES]
    blocks += [paragraph(sentence(UNLISTED, Name(lens))) for lens in others]
    return Section("Prism and tuned lens", tuple(blocks))


def _absent(quotes: Quotes, lens: str) -> Sentence:
    record = next((record for record in quotes.record.measured.fitted_lenses if record.kind == lens), None)
    if quotes.headline == lens:
        return sentence("The lens {} is the headline lens itself.", Name(lens))
    if record is not None and record.reason:
        return sentence("No {} lens was read through: {}.", Name(lens), Name(record.reason))
    return sentence("No {} lens has rows in this run.", Name(lens))


def _audit(quotes: Quotes, audit: FittedLensAudit) -> Block:
    lens = audit.lens
    base: Path = (D, "prism_summary", "metrics") if lens == "prism" else ("tuned_lens", "summary", "metrics")
    verdict_at = quotes.under(*base, of=audit, basis=_both(quotes, lens))
    rows = [*_rank_rows(quotes, audit, base), *_kl_rows(quotes, audit, base), _near_row(quotes, audit, base)]
    verdict = verdict_at.figure("verdict", Unit.TEXT, how="gains and losses of ranks and divergences")
    caption = quotes.caption(AGAINST, Name(lens), Name(quotes.headline), verdict, marked=False)
    return table(("measure", quotes.headline, lens, "difference"), rows, caption)


def _rank_rows(quotes: Quotes, audit: FittedLensAudit, base: Path) -> list[Row]:
    rows, lens = [], audit.lens
    for rank, pair in audit.rank_milestones.items():
        key = f"le_{rank}"
        sides = (("baseline", quotes.headline, pair.baseline), (lens, lens, pair.fitted))
        layers = []
        for side, of, value in sides:
            at = quotes.under(*base, "rank_milestones", side, basis=quotes.rows(of), lens=of)
            layers.append(at.figure(key, Unit.LAYER, value=value, reason="rank is not reached"))
        at = quotes.under(*base, "rank_milestones", "delta", basis=layers, how="fitted less headline")
        delta = at.figure(f"delta.{key}", Unit.COUNT, key, value=pair.delta, reason="one has no layer")
        rows.append(row(Name(f"first rank ≤ {rank} (layer)"), *layers, delta))
    return rows


def _kl_rows(quotes: Quotes, audit: FittedLensAudit, base: Path) -> list[Row]:
    rows = []
    depths = {quarter: depth_layer(int(quarter[1:]) / 100, quotes.n_layers) for quarter in audit.kl_bits_at_percentiles}
    for layer, quarter in sorted(_by_layer(depths).items()):
        cells = [quotes.cell("kl_to_final_bits", layer, lens=of) for of in (quotes.headline, audit.lens)]
        at = quotes.under(*base, "kl_bits_at_percentiles", "delta", basis=cells, how="headline less fitted")
        bits = audit.kl_bits_at_percentiles[quarter].delta
        delta = at.figure(f"delta.{quarter}", Unit.BITS, quarter, value=bits)
        rows.append(row(Name(f"KL at layer {layer} (bits)"), *cells, delta))
    return rows


def _near_row(quotes: Quotes, audit: FittedLensAudit, base: Path) -> Row:
    near = [quotes.milestone("first_kl_below_1.0", lens=of) for of in (quotes.headline, audit.lens)]
    at = quotes.under(*base, "first_kl_le_1.0", basis=near, how="fitted less headline")
    value, why = audit.first_kl_le_1_0.delta, "one has no layer"
    step = at.figure("delta.first_kl_le_1.0", Unit.COUNT, "delta", value=value, reason=why)
    return row(Name("first KL ≤ 1.0 (layer)"), *map(layer_cell, near), step)


def _by_layer(layers: Mapping[str, int]) -> dict[int, str]:
    """Depths by their layer: in models of a few blocks several are one, which stands for them once."""
    return {layer: quarter for quarter, layer in reversed(list(layers.items()))}


def _both(quotes: Quotes, lens: str) -> list[Claim]:
    return [quotes.shape("kl_to_final_bits", True, "all rows", lens=of) for of in (quotes.headline, lens)]


def _attribution(quotes: Quotes) -> list[Block]:
    attribution = quotes.diagnostics.attribution
    if attribution is None:
        return []
    places = _by_layer({quarter: gain.layer for quarter, gain in attribution.percentiles.items()})
    gains = {quarter: attribution.percentiles[quarter] for _, quarter in sorted(places.items())}
    whole = any(gain.linear_bits is not None for gain in gains.values())
    rows = [_gain(quotes, quarter, gain, apart=whole) for quarter, gain in gains.items()]
    at = quotes.under("tuned_lens", "attribution", of=attribution, basis=_both(quotes, "tuned"))
    prefer = at.figure("prefer_tuned", Unit.TRUTH)
    header = ["layer", "in all", "temperature", "rotation", *(["of it bias", "of it map"] if whole else [])]
    blocks: list[Block] = [table(header, rows, quotes.caption(GAINS, prefer, marked=False))]
    key = "preferred_semantics_lens_hint"
    hint = quotes.stated("hint", Unit.TEXT, ("tuned_lens", "audit_summary", key), ("measurement_guidance", key))
    if hint.value is not None:
        blocks.append(paragraph(sentence("Hint of the tuned lens' own audit: {}.", hint)))
    return blocks


def _gain(quotes: Quotes, quarter: str, gain: AttributedGain, *, apart: bool) -> Row:
    basis = [quotes.cell("kl_to_final_bits", gain.layer, lens=of) for of in (quotes.headline, "tuned")]
    how = "differences of divergences"
    at = quotes.under("tuned_lens", "attribution", "percentiles", quarter, basis=basis, how=how)
    sources = {"ΔKL_tuned": gain.tuned_bits, "ΔKL_temp": gain.temperature_bits, "ΔKL_rot": gain.rotation_bits}
    cells = [at.figure(key, Unit.BITS, value=bits) for key, bits in sources.items()]
    further = {"bias_bits": gain.bias_bits, "linear_bits": gain.linear_bits} if apart else {}
    cells += [quotes.figure(name, bits, Unit.BITS, basis=basis, how=how) for name, bits in further.items()]
    return row(quotes.cell("layer", gain.layer), *cells)


def lens_check(quotes: Quotes) -> list[Sentence]:
    """What the raw lens says against the headline lens, in a sentence."""
    full, raw = quotes.diagnostics.raw_full, quotes.evidence.raw_rows()
    if full is None or not full.whole.n_layers:
        return []
    tier = quotes.under(*_FULL, "score_prefinal", of=full.prefinal.score, basis=raw).figure("tier", Unit.TEXT)
    at = quotes.under(*_FULL, "prefinal", of=full.prefinal, basis=raw)
    alone = at.figure("n_norm_only_semantics_layers", Unit.COUNT)
    template = (
        "Against the raw lens, without the last layer, the tier is {} and the number of layers with the answer under "
        "the norm alone {}."
    )
    return [sentence(template, tier, alone)]
