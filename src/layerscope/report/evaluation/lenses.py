"""The headline lens beside others: the raw lens in three checks, and fitted lenses with what their gain is made of."""

from collections.abc import Mapping, Sequence

from layerscope.analysis.curve_shapes import listed_layers
from layerscope.analysis.fitted_lens_audit import AttributedGain, FittedLensAudit
from layerscope.analysis.percentiles import depth_layer
from layerscope.analysis.raw_comparison import Comparison
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import Block, Name, Paragraph, Part, Row, Section, Sentence, Text, row, sentence
from layerscope.report.evaluation.quotes import Path, Quotes, layer_cell, table

_D = "diagnostics"
_FULL = (_D, "raw_lens_full")


def raw_lens(quotes: Quotes) -> Section:
    """Four sampled layers, a window around milestones, every layer."""
    title = "Raw lens against norm lens"
    found = quotes.found
    sampled, rows = _sampled(quotes), []
    if found.raw_full is not None and found.raw_full.whole.n_layers:
        rows.append(_full_row(quotes, "all layers", found.raw_full.whole, _FULL, (*_FULL, "score")))
        prefinal = (*_FULL, "prefinal")
        rows.append(
            _full_row(quotes, "without the last", found.raw_full.prefinal, prefinal, (*_FULL, "score_prefinal"))
        )
    blocks: list[Block] = [Paragraph((*sampled, *_window(quotes)))]
    if rows:
        caption = quotes.caption(
            "Shares of layers at least {} and {} bits from the raw lens, layers with rank 1 under the headline "
            "lens alone, and the score. At the last layer the headline lens is the model's own head, so the "
            "second row is the fairer one.",
            Name("1.0"),
            Name("0.5"),
            marked=False,
        )
        header = (
            "layers",
            "≥1.0",
            "≥0.5",
            "norm-only",
            "first",
            "max KL (bits)",
            "JS p50",
            "score",
            "score v2",
            "tier",
        )
        blocks.append(table(header, rows, caption))
    else:
        blocks.append(Paragraph((sentence("The run has no rows of both lenses to compare at every layer."),)))
    return Section(title, tuple(blocks))


def _sampled(quotes: Quotes) -> list[Sentence]:
    base = ("raw_lens_check", "summary")
    found = quotes.found.raw_sample
    risk = _risk(quotes)
    if risk.value is None:
        return [sentence("No layers were sampled under the raw lens.")]
    largest = quotes.figure(
        "max_kl_norm_vs_raw_bits",
        None if found is None else found.max_kl_norm_vs_raw_bits,
        Unit.BITS,
        (*base, "max_kl_norm_vs_raw_bits"),
    )
    first = quotes.figure(
        "first_norm_only_semantic_layer",
        None if found is None else found.first_norm_only_semantic_layer,
        Unit.LAYER,
        (*base, "first_norm_only_semantic_layer"),
        reason="at no sampled layer",
    )
    return [
        sentence(
            "Sampled layers: risk {}, largest divergence {} bits, first layer with rank 1 under the norm alone {}.",
            risk,
            largest,
            first,
        )
    ]


def _risk(quotes: Quotes) -> Claim:
    found = quotes.found.raw_sample
    return quotes.figure(
        "lens_artifact_risk",
        None if found is None else found.lens_artifact_risk,
        Unit.TEXT,
        ("raw_lens_check", "summary", "lens_artifact_risk"),
        basis=quotes.evidence.raw_rows(),
    )


def _window(quotes: Quotes) -> list[Sentence]:
    base, found = (_D, "raw_lens_window"), quotes.found.raw_window
    if found is None or not found.layers_checked:
        return []
    entry = quotes.evidence.entry(*base, "norm_only_semantics_layers")
    ours = found.norm_only_semantics_layers
    radius = quotes.figure(
        "radius", found.radius, Unit.COUNT, (*base, "radius"), basis=(_risk(quotes),), how="rule for the sampled risk"
    )
    largest = quotes.figure(
        "max_kl_norm_vs_raw_bits_window",
        found.max_kl_norm_vs_raw_bits_window,
        Unit.BITS,
        (*base, "max_kl_norm_vs_raw_bits_window"),
        basis=quotes.evidence.raw_rows(),
    )
    same = entry is not None and _same_items(quotes, ours)
    basis: Sequence[Citation] = (
        (quotes.evidence.cite(entry),) if same and entry is not None else quotes.evidence.raw_rows()
    )
    text = None if ours is None else listed_layers(ours)
    layers = quotes.figure(
        "norm_only_semantics_layers",
        text,
        Unit.TEXT,
        basis=basis,
        how="layers with rank 1 under the headline lens and not under the raw one",
    )
    return [
        sentence(
            "Window of radius {} around milestones: layers with rank 1 under the norm alone {}, largest "
            "divergence {} bits.",
            radius,
            layers,
            largest,
        )
    ]


def _same_items(quotes: Quotes, ours: tuple[int, ...] | None) -> bool:
    entry = quotes.evidence.entry(_D, "raw_lens_window", "norm_only_semantics_layers")
    if entry is None or ours is None:
        return False
    return [item.value for item in quotes.evidence.json.children(entry)] == list(ours)


def _full_row(quotes: Quotes, label: str, found: Comparison, base: Path, score: Path) -> Row:
    basis = quotes.evidence.raw_rows()

    def figure(name: str, value: int | float | str | None, unit: Unit, *path: Path) -> Claim:
        return quotes.figure(name, value, unit, *path, basis=basis, reason="there is none")

    return row(
        label,
        figure("pct_layers_kl_ge_1.0", found.pct_layers_kl_ge_1_0, Unit.SHARE, (*base, "pct_layers_kl_ge_1.0")),
        figure("pct_layers_kl_ge_0.5", found.pct_layers_kl_ge_0_5, Unit.SHARE, (*base, "pct_layers_kl_ge_0.5")),
        figure(
            "n_norm_only_semantics_layers",
            found.n_norm_only_semantics_layers,
            Unit.COUNT,
            (*base, "n_norm_only_semantics_layers"),
        ),
        figure(
            "earliest_norm_only_semantic",
            found.earliest_norm_only_semantic,
            Unit.LAYER,
            (*base, "earliest_norm_only_semantic"),
        ),
        figure("max_kl_norm_vs_raw_bits", found.max_kl_norm_vs_raw_bits, Unit.BITS, (*base, "max_kl_norm_vs_raw_bits")),
        figure(
            "js_divergence_p50",
            found.js_divergence_percentiles["p50"],
            Unit.BITS,
            (*base, "js_divergence_percentiles", "p50"),
        ),
        figure("lens_artifact_score", found.score.v1, Unit.NUMBER, (*score, "lens_artifact_score")),
        figure(
            "lens_artifact_score_v2",
            found.score.v2 if found.js_divergence_percentiles["p50"] is not None else None,
            Unit.NUMBER,
            (*score, "lens_artifact_score_v2"),
        ),
        figure("tier", found.score.tier, Unit.TEXT, (*score, "tier")),
    )


def fitted(quotes: Quotes) -> Section:
    """Prism and tuned lens against the headline lens."""
    blocks: list[Block] = []
    for lens in ("prism", "tuned"):
        audit = quotes.found.sidecars.get(lens)
        blocks += [Paragraph((_absent(quotes, lens),))] if audit is None else _audit(quotes, audit)
    blocks += _attribution(quotes)
    return Section("Prism and tuned lens", tuple(blocks))


def _absent(quotes: Quotes, lens: str) -> Sentence:
    found = next((one for one in quotes.record.measured.sidecars if one.kind == lens), None)
    if quotes.headline == lens:
        return sentence("The lens {} is the headline lens itself.", Name(lens))
    why: tuple[Part, ...] = (Text(": "), Name(found.reason)) if found is not None and found.reason else ()
    words = " lens was read through" if why else " lens has rows in this run"
    return sentence("No {}{}{}.", Name(lens), words, why)


def _audit(quotes: Quotes, audit: FittedLensAudit) -> list[Block]:
    lens = audit.lens
    base: Path = (_D, "prism_summary", "metrics") if lens == "prism" else ("tuned_lens", "summary", "metrics")
    rows = []
    for rank, pair in audit.rank_milestones.items():
        cells = [
            quotes.figure(
                f"le_{rank}",
                value,
                Unit.LAYER,
                (*base, "rank_milestones", side, f"le_{rank}"),
                basis=quotes.rows(of),
                lens=of,
                reason="rank is not reached",
            )
            for side, of, value in (("baseline", quotes.headline, pair.baseline), (lens, lens, pair.sidecar))
        ]
        delta = quotes.figure(
            f"delta.le_{rank}",
            pair.delta,
            Unit.COUNT,
            (*base, "rank_milestones", "delta", f"le_{rank}"),
            basis=cells,
            how="fitted less headline",
            reason="one has no layer",
        )
        rows.append(row(Name(f"first rank ≤ {rank} (layer)"), *cells, delta))
    for layer, quarter in sorted(_by_layer({q: _layer_of(q, quotes) for q in audit.kl_bits_at_percentiles}).items()):
        bits = audit.kl_bits_at_percentiles[quarter]
        own, other = (quotes.cell("kl_to_final_bits", layer, Unit.BITS, lens=of) for of in (quotes.headline, lens))
        delta = quotes.figure(
            f"delta.{quarter}",
            bits.delta,
            Unit.BITS,
            (*base, "kl_bits_at_percentiles", "delta", quarter),
            basis=[own, other],
            how="headline less fitted",
        )
        rows.append(row(Name(f"KL at layer {layer} (bits)"), own, other, delta))
    near = [quotes.milestone("first_kl_below_1.0", lens=of) for of in (quotes.headline, lens)]
    step = quotes.figure(
        "delta.first_kl_le_1.0",
        audit.first_kl_le_1_0.delta,
        Unit.COUNT,
        (*base, "first_kl_le_1.0", "delta"),
        basis=near,
        how="fitted less headline",
        reason="one has no layer",
    )
    rows.append(row(Name("first KL ≤ 1.0 (layer)"), *map(layer_cell, near), step))
    verdict = quotes.figure(
        "verdict",
        audit.verdict,
        Unit.TEXT,
        (*base, "verdict"),
        basis=_both(quotes, lens),
        how="gains and losses of ranks and divergences",
    )
    caption = quotes.caption(
        "Lens {} against {}: {}. A difference of layers is fitted less headline (negative is earlier), one "
        "of KL is headline less fitted (positive is nearer to the model).",
        Name(lens),
        Name(quotes.headline),
        verdict,
        marked=False,
    )
    return [table(("measure", quotes.headline, lens, "difference"), rows, caption)]


def _layer_of(quarter: str, quotes: Quotes) -> int:
    """`p25` is a quarter of the depth."""
    return depth_layer(int(quarter[1:]) / 100, quotes.n_layers)


def _by_layer(layers: Mapping[str, int]) -> dict[int, str]:
    """Depths by their layer: in models of a few blocks several are one, which stands for them once."""
    return {layer: quarter for quarter, layer in reversed(list(layers.items()))}


def _both(quotes: Quotes, lens: str) -> list[Claim]:
    return [quotes.shape("kl_to_final_bits", True, "all rows", lens=of) for of in (quotes.headline, lens)]


def _attribution(quotes: Quotes) -> list[Block]:
    found = quotes.found.attribution
    if found is None:
        return []
    places = _by_layer({quarter: gain.layer for quarter, gain in found.percentiles.items()})
    gains = {quarter: found.percentiles[quarter] for _, quarter in sorted(places.items())}
    rows = [_gain(quotes, quarter, gain) for quarter, gain in gains.items()]
    prefer = quotes.figure(
        "prefer_tuned",
        found.prefer_tuned,
        Unit.TRUTH,
        ("tuned_lens", "attribution", "prefer_tuned"),
        basis=_both(quotes, "tuned"),
    )
    caption = quotes.caption(
        "What the tuned lens gains in bits, and how much of it a temperature alone would give; to be preferred: {}.",
        prefer,
        marked=False,
    )
    header = ["layer", "in all", "temperature", "rotation"]
    if any(gain.linear_bits is not None for gain in gains.values()):
        header += ["of it bias", "of it map"]
        rows = [_parts(quotes, one, gain) for one, gain in zip(rows, gains.values(), strict=True)]
    blocks: list[Block] = [table(header, rows, caption)]
    hint = quotes.stated(
        "hint",
        Unit.TEXT,
        ("tuned_lens", "audit_summary", "preferred_semantics_lens_hint"),
        ("measurement_guidance", "preferred_semantics_lens_hint"),
    )
    if hint.value is not None:
        blocks.append(Paragraph((sentence("Hint of the tuned lens' own audit: {}.", hint),)))
    return blocks


def _gain(quotes: Quotes, quarter: str, gain: AttributedGain) -> Row:
    base = ("tuned_lens", "attribution", "percentiles", quarter)
    basis = [quotes.cell("kl_to_final_bits", gain.layer, Unit.BITS, lens=of) for of in (quotes.headline, "tuned")]
    cells = [
        quotes.figure(key, value, Unit.BITS, (*base, key), basis=basis, how="differences of divergences")
        for key, value in (
            ("ΔKL_tuned", gain.tuned_bits),
            ("ΔKL_temp", gain.temperature_bits),
            ("ΔKL_rot", gain.rotation_bits),
        )
    ]
    return row(quotes.cell("layer", gain.layer, Unit.LAYER), *cells)


def _parts(quotes: Quotes, shown: Row, gain: AttributedGain) -> Row:
    basis = [quotes.cell("kl_to_final_bits", gain.layer, Unit.BITS, lens=of) for of in (quotes.headline, "tuned")]
    further = [
        quotes.figure(name, value, Unit.BITS, basis=basis, how="differences of divergences")
        for name, value in (("bias_bits", gain.bias_bits), ("linear_bits", gain.linear_bits))
    ]
    return Row((*shown.cells, *((claim,) for claim in further)))


def lens_check(quotes: Quotes) -> list[Sentence]:
    """What the raw lens says against the headline lens, in a sentence."""
    found = quotes.found.raw_full
    if found is None or not found.whole.n_layers:
        return []
    score = found.prefinal.score
    tier = quotes.figure(
        "tier", score.tier, Unit.TEXT, (*_FULL, "score_prefinal", "tier"), basis=quotes.evidence.raw_rows()
    )
    alone = quotes.figure(
        "n_norm_only_semantics_layers",
        found.prefinal.n_norm_only_semantics_layers,
        Unit.COUNT,
        (*_FULL, "prefinal", "n_norm_only_semantics_layers"),
        basis=quotes.evidence.raw_rows(),
    )
    return [
        sentence(
            "Against the raw lens, without the last layer, the tier is {} and the number of layers with the "
            "answer under the norm alone {}.",
            tier,
            alone,
        )
    ]
