"""What was found layer by layer, and each milestone with its stable twin: the tables on the headline lens."""

from collections.abc import Sequence

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.confirmation import NO_OTHER_LENS
from layerscope.analysis.curve_shapes import listed_layers
from layerscope.analysis.diagnostics import CONFIRMED
from layerscope.analysis.milestones import NEVER_SEEN, STABLE, rest_mass_peak
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import (
    Basis,
    Block,
    Name,
    Paragraph,
    Part,
    Row,
    Section,
    Sentence,
    Strong,
    Table,
    Text,
    row,
    sentence,
)
from layerscope.report.evaluation.overview import ONSET, STRONG, STRONG_RUN2, semantic
from layerscope.report.evaluation.quotes import Quotes, at_layer, layer_cell, names, not_measured, table

_D = "diagnostics"


def layer_by_layer(quotes: Quotes) -> Section:
    """Every layer of the primary prompt, the semantic one in bold."""
    curve = quotes.curve
    if curve is None:
        return Section("Layer by layer", (Paragraph((sentence("The primary prompt has no rows."),)),))
    if not quotes.rows():
        why = sentence("The table of the primary prompt is not there, so that no row can be cited and none is shown.")
        return Section("Layer by layer", (Paragraph((why,)),))
    bold = semantic(quotes).value
    shown = [_layer_row(quotes, one["layer"], bold=one["layer"] == bold) for one in curve.rows]
    kl = "KL to final (bits)" if quotes.stand else quotes.mark("KL to final (bits)")
    header = ["layer", "top-1 token", "rank of answer", kl, quotes.mark("entropy (bits)")]
    if quotes.quotable:
        header.append("p of answer")
    caption = quotes.caption(
        "Primary prompt at its last position under {}; the semantic layer is bold.", Name(quotes.headline)
    )
    return Section("Layer by layer", (table(header, shown, caption), Paragraph(tuple(_kl_shape(quotes)))))


def _layer_row(quotes: Quotes, layer: int, *, bold: bool) -> Row:
    columns = [
        ("layer", Unit.LAYER),
        ("top1", Unit.TOKEN),
        ("answer_rank", Unit.RANK),
        ("kl_to_final_bits", Unit.BITS),
        ("entropy_bits", Unit.BITS),
    ]
    if quotes.quotable:
        columns.append(("p_answer", Unit.PROBABILITY))
    cells: list[Part] = [quotes.cell(column, layer, unit) for column, unit in columns]
    if quotes.evidence.row(layer) is None:
        cells[0] = Name(str(layer))
    return row(*(Strong((cell,)) for cell in cells)) if bold else row(*cells)


def _kl_shape(quotes: Quotes) -> list[Sentence]:
    """What the divergence does with depth, said only as far as it holds."""
    curve = quotes.points("kl_to_final_bits")
    word = shapes.tendency(curve)
    top, low = shapes.peak(curve), shapes.trough(curve)
    if word is None or top is None or low is None:
        return []
    shape = quotes.shape("kl_tendency", word, "the sign of every step", unit=Unit.TEXT)
    ends = (
        quotes.cell("kl_to_final_bits", curve[0][0], Unit.BITS),
        quotes.cell("kl_to_final_bits", curve[-1][0], Unit.BITS),
    )
    ranged: tuple[Part | str, ...] = (", from ", ends[0], " to ", ends[1], " bits.")
    if word == "falls":
        return [sentence("The divergence from the model's output falls at every layer{}{}", Basis((shape,)), ranged)]
    if word == "never rises":
        return [sentence("The divergence from the model's output rises at no layer{}{}", Basis((shape,)), ranged)]
    up = shapes.failures(curve, "falls", strict=False)
    count = quotes.shape("kl_rises", len(up), "count of steps that go up", unit=Unit.COUNT)
    layer, value = (
        quotes.cell(name, top[0], unit) for name, unit in (("layer", Unit.LAYER), ("kl_to_final_bits", Unit.BITS))
    )
    return [
        sentence(
            "The divergence from the model's output does not fall steadily: it rises at {} of its steps and is "
            "largest at layer {} ({} bits).",
            count,
            layer,
            value,
        ),
        *_largest_fall(quotes, curve),
    ]


def _largest_fall(quotes: Quotes, curve: shapes.Points) -> list[Sentence]:
    fall = shapes.largest_step(curve, "falls")
    if fall is None:
        return []
    ends = [quotes.cell("kl_to_final_bits", layer, Unit.BITS) for layer in (fall.first, fall.last)]
    size = quotes.evidence.derived(
        "largest_fall", -fall.change, Unit.BITS, ends, "difference of two layers", lens=quotes.headline
    )
    to = quotes.cell("layer", fall.last, Unit.LAYER)
    return [sentence("Its largest fall, {} bits, is the step to layer {}.", size, to)]


def milestones(quotes: Quotes) -> Section:
    """Ranks and gates, then the distance to the output, then copying and surface."""
    return Section("Milestones", (), (_ranks(quotes), _distance(quotes), _copying(quotes), _surface(quotes)))


def _milestone_table(quotes: Quotes, named: Sequence[str], caption: Sentence) -> Table:
    """First crossings and stable ones, and what the file says where it says something else of any of them."""
    others = {name: quotes.evidence.otherwise(name) for name in named}
    header = ["milestone", "first at", "for good from"]
    if any(others.values()):
        header.append("file says otherwise")
    rows = []
    for name, other in others.items():
        twin = quotes.own(name + STABLE)
        cells: list[tuple[Part, ...]] = [(Name(name),), layer_cell(quotes.milestone(name))]
        cells.append((Text("-"),) if twin is None else layer_cell(quotes.stable(name)))
        if any(others.values()):
            cells.append((Text(""),) if other is None else (other,))
        rows.append(Row(tuple(cells)))
    return table(header, rows, caption)


def _ranks(quotes: Quotes) -> Section:
    t = quotes.thresholds
    named = [
        *(f"first_rank_le_{rank}" for rank in sorted(t.answer_rank, reverse=True)),
        ONSET,
        "L_semantic_run2",
        CONFIRMED,
        "L_semantic_margin_ok",
        "L_semantic_top2_ok",
        *(f"gap_ge_{gap:.1f}" for gap in t.answer_gap),
        STRONG,
        STRONG_RUN2,
    ]
    caption = quotes.caption(
        "Rank of the answer and gates. {}: {} above uniform; {}: a lead of {} logits; {}: both; {}: two "
        "layers in a row.",
        Name("margin_ok"),
        Name(f"{t.semantic_margin:g}"),
        Name("top2_ok"),
        Name(f"{t.semantic_gap:g}"),
        Name("strong"),
        Name("run2"),
        marked=False,
    )
    at_onset = quotes.milestone(ONSET)
    said = []
    if at_onset.value is not None:
        gap = quotes.figure(
            "gap_at_L_semantic",
            quotes.found.gap_at_semantic,
            Unit.LOGIT,
            (_D, "semantic_gate", f"gap_at_L_semantic_{quotes.label}"),
            basis=(quotes.cell("answer_logit_gap", quotes.layer_of(ONSET), Unit.LOGIT),),
            how="cell of the row",
            reason="the rows do not hold the lead",
        )
        margin = quotes.figure(
            "margin_ok_at_L_semantic",
            quotes.found.margin_ok_at_semantic,
            Unit.TRUTH,
            (_D, "semantic_margin", f"margin_ok_at_L_semantic_{quotes.label}"),
            basis=(quotes.cell("p_answer", quotes.layer_of(ONSET), Unit.PROBABILITY),),
            how="p_answer above uniform",
        )
        said.append(_onset(quotes, at_onset, gap, margin))
    last = Paragraph((*said, *_confirmation(quotes), *_robustness(quotes)))
    return Section("Rank and gates", (_milestone_table(quotes, named, caption), last))


def _onset(quotes: Quotes, at_onset: Claim, gap: Claim, margin: Claim) -> Sentence:
    """The first rank 1: how deep, and how clear."""
    fraction = round(layer / quotes.n_layers, 3) if (layer := quotes.layer_of(ONSET)) is not None else None
    share = quotes.figure(
        "L_semantic_frac",
        fraction,
        Unit.SHARE,
        (_D, "depth_fractions", "L_semantic_frac"),
        basis=(at_onset,),
        how="layer / n_layers",
    )
    return sentence(
        "At the first rank 1, layer {} (depth fraction {}), the answer leads by {} logits; clearly above uniform: {}.",
        at_onset,
        share,
        gap,
        margin,
    )


def _confirmation(quotes: Quotes) -> list[Sentence]:
    found, base = quotes.found.confirmation, (_D, "confirmed_semantics")
    if found is None:
        return []
    if found.reason == NO_OTHER_LENS:
        return [sentence("No other lens was read that could confirm a layer{}.", Basis((quotes.milestone(CONFIRMED),)))]
    known = None if found.onset_raw is None and found.onset_tuned is None else found.source
    source = quotes.figure(
        "confirmed_source", found.source if found.layer is not None else known, Unit.TEXT, (*base, "confirmed_source")
    )
    raw = quotes.figure(
        "L_semantic_raw",
        found.onset_raw,
        Unit.LAYER,
        (*base, "L_semantic_raw"),
        reason="the raw lens has no onset, or was not read",
    )
    tuned = quotes.figure(
        "L_semantic_tuned",
        found.onset_tuned,
        Unit.LAYER,
        (*base, "L_semantic_tuned"),
        reason="the tuned lens has no onset, or was not read",
    )
    layer = quotes.milestone(CONFIRMED)
    said = [
        sentence(
            "Confirmed {} (source {}); own onset of the raw lens {}, of the tuned lens {}.",
            at_layer(layer),
            source,
            raw,
            tuned,
        )
    ]
    if found.nontrivial is False:
        said.append(
            sentence(
                "The confirmation is trivial: there the other lens computes what {} computes, so it counts for "
                "nothing.",
                Name(quotes.headline),
            )
        )
    return said


def _robustness(quotes: Quotes) -> list[Sentence]:
    """Whether the gates hold at scales near the measured one, lenses share top tokens, and positions agree."""
    said, gates, window = [], quotes.found.gate_stability, quotes.found.position_window
    share = quotes.figure(
        "min_both_gates_pass_frac",
        None if gates is None else gates.min_both_gates_pass_frac,
        Unit.SHARE,
        (_D, "gate_stability_small_scale", "min_both_gates_pass_frac"),
    )
    if share.value is not None:
        said.append(
            sentence(
                "With logits scaled by a few per cent both gates pass at a share of at least {} of the scales.", share
            )
        )
    pairs = () if quotes.found.lens_consistency is None else quotes.found.lens_consistency.pairs
    for pair in pairs:
        base = (_D, "lens_consistency", f"{quotes.label}_vs_{pair.against}", "p50")
        overlap = quotes.figure("jaccard@10", pair.p50.jaccard_10, Unit.SHARE, (*base, "jaccard@10"))
        if overlap.value is not None:
            said.append(
                sentence(
                    "At the milestones the ten likeliest tokens are shared with the lens {} by a median share of {}.",
                    Name(pair.against),
                    overlap,
                )
            )
    fraction = None if window is None else window.rank1_frac
    if window is not None and fraction is not None:
        there = quotes.figure(
            "rank1_frac",
            fraction,
            Unit.SHARE,
            (_D, "position_window", "rank1_frac"),
            ("summary", "position_window", "rank1_frac"),
        )
        said.append(
            sentence(
                "Along the prompt, at that layer, the answer has rank 1 at a share of {} of the positions looked at.",
                there,
            )
        )
    return said


def _distance(quotes: Quotes) -> Section:
    t = quotes.thresholds
    named = [
        *(f"first_kl_below_{bits:.1f}" for bits in t.kl_to_final_bits),
        *(f"cos_ge_{c:g}" for c in t.cos_to_final),
        *(f"first_p_top1_gt_{p:.2f}" for p in t.p_top1),
    ]
    caption = quotes.caption(
        "Divergence from the model's output, cosine to it, and certainty of any token.", marked=False
    )
    curve = quotes.points("cos_to_final")
    low = shapes.trough(curve)
    said = []
    if low is not None:
        layer, value = quotes.cell("layer", low[0], Unit.LAYER), quotes.cell("cos_to_final", low[0], Unit.COSINE)
        last = quotes.cell("cos_to_final", curve[-1][0], Unit.COSINE)
        where: tuple[Part | str, ...] = (" at the last layer",)
        if curve[-1][0] != quotes.n_layers:
            where = (" at layer ", quotes.cell("layer", curve[-1][0], Unit.LAYER), ", the last that has a value")
        said.append(sentence("The cosine is lowest at layer {} ({}) and {}{}.", layer, value, last, where))
    blocks: list[Block] = [_milestone_table(quotes, named, caption)]
    blocks += [Paragraph(tuple(said))] if said else []
    return Section("Distance to the output", (*blocks, _semantic_row(quotes)))


def _semantic_row(quotes: Quotes) -> Block:
    """The figures of the onset, the headline layer, the last layer and the head side by side."""
    found = semantic(quotes)
    onset = quotes.milestone(ONSET)
    places = [("first rank 1", onset)]
    if found.value != onset.value:
        places.append((found.name, found))
    last = quotes.cell("layer", quotes.n_layers, Unit.LAYER)
    places.append(("last layer", last))
    rows = [
        row(Name(label), where, *_at(quotes, where.value if isinstance(where.value, int) else None))
        for label, where in places
    ]
    rows.append(_head_row(quotes))
    header = (
        "where",
        "layer",
        quotes.mark("entropy (bits)"),
        quotes.mark("p top-1"),
        quotes.mark("p of answer"),
        "rank",
        "lead (logits)",
        "KL (bits)",
        "cosine",
        quotes.mark("rest mass"),
    )
    caption = quotes.caption("Rows that conclusions rest on, beside the model's own head, which may be quoted.")
    return table(header, rows, caption)


_AT = (
    ("entropy_bits", Unit.BITS),
    ("p_top1", Unit.PROBABILITY),
    ("p_answer", Unit.PROBABILITY),
    ("answer_rank", Unit.RANK),
    ("answer_logit_gap", Unit.LOGIT),
    ("kl_to_final_bits", Unit.BITS),
    ("cos_to_final", Unit.COSINE),
    ("rest_mass", Unit.PROBABILITY),
)


def _at(quotes: Quotes, layer: int | None) -> list[Claim]:
    return [quotes.cell(column, layer, unit) for column, unit in _AT]


def _head_row(quotes: Quotes) -> Row:
    final, last = quotes.record.measured.final_prediction, quotes.found.last_layer
    entropy = quotes.figure(
        "entropy", None if final is None else final.entropy_bits, Unit.BITS, ("final_prediction", "entropy")
    )
    top = quotes.figure(
        "p_top1_model",
        None if last is None else last.measured.p_top1_model,
        Unit.PROBABILITY,
        (_D, "last_layer_consistency", "p_top1_model"),
    )
    return row("model's head", "-", entropy, top, "-", "-", "-", "-", "-", "-")


def _copying(quotes: Quotes) -> Section:
    t = quotes.thresholds
    named = [
        "L_copy",
        *(f"L_copy_strict@{p:g}" for p in t.copy_strict),
        *(f"L_copy_soft_k{k}" for k in t.copy_soft_windows),
        "L_copy_H",
    ]
    caption = quotes.caption(
        "Echoes of the prompt; {} is low entropy on any token and no copy.", Name("L_copy_H"), marked=False
    )
    said = [_reflex(quotes), *_copy_layers(quotes), _drop(quotes), _stability(quotes)]
    if any(quotes.layer_of(name) is not None for name in named[:-1]):
        return Section("Copying", (_milestone_table(quotes, named, caption), Paragraph(tuple(said))))
    first = [*_no_copy(quotes, named[:-1]), _low_entropy(quotes)]
    return Section("Copying", (Paragraph((*first, *said[1:])),))


def _no_copy(quotes: Quotes, named: Sequence[str]) -> list[Sentence]:
    """That no flag is set anywhere, of those that there are."""
    claims = {name: quotes.milestone(name) for name in named}
    unknown = [name for name, claim in claims.items() if not_measured(claim)]
    asked = [name for name in named if name not in unknown]
    if not asked:
        return [sentence("Whether any layer copies the prompt was not measured{}.", Basis(tuple(claims.values())))]
    how = (
        (Text(", strictly at any threshold or softly over any window"),)
        if not unknown
        else (Text(", as far as that was measured ("), *names(asked), Text(")"))
    )
    basis = Basis(tuple(claims[name] for name in asked))
    tail = "; some layers lack a flag" if any(claim.reason == NEVER_SEEN for claim in basis.claims) else ""
    said = [sentence("No layer copies the prompt{}{}{}.", how, basis, tail)]
    return said + ([sentence("Not measured: {}.", names(unknown))] if unknown else [])


def _low_entropy(quotes: Quotes) -> Sentence:
    low = quotes.milestone("L_copy_H")
    if not_measured(low):
        return sentence("Whether entropy is low at any layer was not measured ({}{}).", Name("L_copy_H"), Basis((low,)))
    if low.value is None:
        return sentence("Entropy is low {} ({}).", at_layer(low), Name("L_copy_H"))
    return sentence(
        "Entropy is first low, on whatever token, {} ({}), which is no copy.", at_layer(low), Name("L_copy_H")
    )


def _reflex(quotes: Quotes) -> Sentence:
    early = quotes.found.copies_early
    if early is None:
        return sentence("Whether layers 0 to 3 echo the prompt was not measured.")
    claim = quotes.shape("copy_reflex", early, "any copy flag at the first four layers")
    return sentence("Layers 0 to 3 echo the prompt: {}{}.", claim, unmeasured_copies(quotes))


def unmeasured_copies(quotes: Quotes) -> str:
    """What a statement on early copies leaves open: one of the two kinds of flags."""
    curve = quotes.curve
    open_ = [word for word, column in _copy_flags(quotes) if curve is None or not curve.values(column)]
    return "".join(f"; {word} copies were not measured" for word in open_)


def _copy_flags(quotes: Quotes) -> list[tuple[str, str]]:
    return [("strict", "copy_collapse"), ("soft", f"copy_soft_k1@{quotes.thresholds.copy_soft:g}")]


def _copy_layers(quotes: Quotes) -> list[Sentence]:
    """At which layers a copy flag is set, where any is."""
    curve, said = quotes.curve, []
    for word, column in _copy_flags(quotes):
        layers = [] if curve is None else [one["layer"] for one in curve.rows if one[column]]
        if layers:
            where = quotes.shape(column, listed_layers(layers), "layers at which the flag is set", unit=Unit.TEXT)
            said.append(sentence("A {} copy stands at layer{} {}.", word, "" if len(layers) == 1 else "s", where))
    return said


def _drop(quotes: Quotes) -> Sentence:
    """ΔH, where there are both layers; it is a difference of entropies, so it may be out of bounds."""
    copy, onset = quotes.milestone("L_copy"), quotes.milestone(ONSET)
    if copy.value is None or onset.value is None:
        return sentence("ΔH is n.a.: it needs a strict copy layer{} and a semantic one.", Basis((copy, onset)))
    if not quotes.quotable:
        return sentence("ΔH is n.a.: it is a difference of entropies, which are not to be quoted here.")
    ends = [quotes.cell("entropy_bits", quotes.layer_of(name), Unit.BITS) for name in ("L_copy", ONSET)]
    values = [end.value for end in ends if isinstance(end.value, int | float)]
    if len(values) < 2:
        return sentence("ΔH is n.a.: an entropy is missing.")
    drop = quotes.evidence.derived("delta_H_bits", values[0] - values[1], Unit.BITS, ends, "difference of entropies")
    return sentence("ΔH from layer {} to layer {} is {} bits.", copy, onset, drop)


def _stability(quotes: Quotes) -> Sentence:
    found = quotes.found.copy_thresholds
    word = quotes.figure(
        "stability",
        None if found is None else found.stability,
        Unit.TEXT,
        (_D, "copy_thresholds", "stability"),
        how="distance of the loosest threshold's layer from the strictest's",
    )
    return sentence("Stability over the strict thresholds: {}.", word)


def _surface(quotes: Quotes) -> Section:
    """Surface, geometry and coverage with what was read there."""
    rows = [
        _surface_row(quotes, "L_surface_to_meaning", ("answer_mass", "echo_mass_prompt"), Unit.PROBABILITY),
        _surface_row(quotes, "L_geom", ("cos_to_answer", "cos_to_prompt_max"), Unit.COSINE),
        _surface_row(quotes, "L_topk_decay", ("topk_prompt_mass@50",), Unit.PROBABILITY),
    ]
    caption = quotes.caption(
        "Where the answer outweighs the prompt's own tokens: by mass, by cosine, and among the "
        "most likely tokens (the echo's mass alone)."
    )
    header = ("milestone", "first at", "for good from", quotes.mark("answer"), quotes.mark("prompt"))
    blocks: list[Block] = [table(header, rows, caption)]
    near_uniform = quotes.points("topk_prompt_mass@50")
    if near_uniform and shapes.stays_at_most(near_uniform, quotes.thresholds.topk_prompt_mass):
        claim = quotes.shape("topk_prompt_mass_low", True, "every layer is below the threshold")
        blocks.append(
            Paragraph(
                (
                    sentence(
                        "{} says nothing here: the mass is low at every layer{}.", Name("L_topk_decay"), Basis((claim,))
                    ),
                )
            )
        )
    return Section("Surface, geometry, coverage", tuple(blocks))


def _surface_row(quotes: Quotes, name: str, columns: tuple[str, ...], unit: Unit) -> Row:
    layer = quotes.layer_of(name)
    found: list[Part | str] = [quotes.cell(column, layer, unit) for column in columns]
    if len(found) == 1:
        found.insert(0, "-")
    return row(Name(name), layer_cell(quotes.milestone(name)), layer_cell(quotes.stable(name)), *found)


def rest_mass(quotes: Quotes) -> list[Sentence]:
    """Where the rows' listed tokens cover least, from the semantic layer on."""
    curve = quotes.curve
    peak = None if curve is None else rest_mass_peak(curve, quotes.evidence.verdict.milestones.of())
    if peak is None:
        return []
    layer = quotes.cell("layer", peak[0], Unit.LAYER)
    value = quotes.cell("rest_mass", peak[0], Unit.PROBABILITY)
    shown: tuple[Part | str, ...] = (" (", value, ")") if quotes.quotable else (Basis((value,)),)
    return [
        sentence(
            "From the first rank 1 on, the listed tokens cover least at layer {}{}; rest mass tells how much a "
            "row lists, not how faithful a lens is.",
            layer,
            shown,
        )
    ]
