"""What was found layer by layer, and each milestone with its stable twin: the tables on the headline lens."""

from collections.abc import Sequence

from layerscope.analysis import curve_shapes as shapes
from layerscope.analysis.confirmation import NO_OTHER_LENS
from layerscope.analysis.curve_shapes import listed_layers
from layerscope.analysis.milestones import NEVER_SEEN, rest_mass_peak
from layerscope.analysis.onsets import CLEARLY_AHEAD, FIRST_ON_TOP, ON_TOP_FOR_GOOD
from layerscope.record import milestone_names
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG, STRONG_RUN2, MilestoneName
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import ABSENT, Claim, Unit
from layerscope.report.cited.document import Basis, Name, Section, Sentence, filled, paragraph, row, sentence
from layerscope.report.evaluation import said
from layerscope.report.evaluation.overview import headlined
from layerscope.report.evaluation.quotes import D, Quotes, at_layer, layer_cell, names, not_measured, table
from layerscope.report.sentences import circumstances, onsets, readable
from layerscope.report.sentences.guidance import GIVES, LEGEND
from layerscope.report.sentences.lines import plural

STATUS = "p is"
"""Header of the column that says what probabilities of a layer are."""


def layer_by_layer(quotes: Quotes) -> Section:
    """Every layer of the primary prompt, the one from which the answer is on top for good in bold."""
    curve, title = quotes.curve, "Layer by layer"
    if curve is None:
        return doc.short_section(title, sentence("The primary prompt has no rows."))
    if not quotes.rows():
        why = "The table of the primary prompt is not there, so that no row can be cited and none is shown."
        return doc.short_section(title, sentence(why))
    bold = headlined(quotes).value
    shown = [_layer_row(quotes, row["layer"], bold=row["layer"] == bold) for row in curve.rows]
    kl = "KL to final (bits)" if quotes.stand else quotes.mark("KL to final (bits)")
    header = ["layer", "top-1 token", "rank of answer", kl, quotes.mark("entropy (bits)")]
    header += ["p of answer"] if quotes.quotable else []
    header += [STATUS] if quotes.by_status else []
    template = (
        "Primary prompt at its last position under {}; bold is the layer from which the answer is on top for good.{}"
    )
    caption = quotes.caption(template, Name(quotes.headline), _legend(quotes, [row["layer"] for row in curve.rows]))
    return Section(title, (table(header, shown, caption), doc.Paragraph(tuple(_kl_shape(quotes)))))


def _layer_row(quotes: Quotes, layer: int, *, bold: bool) -> doc.Row:
    columns = ["layer", "top1", "answer_rank", "kl_to_final_bits", "entropy_bits"]
    columns += ["p_answer"] if quotes.quotable else []
    cells: list[doc.Part] = [quotes.cell(column, layer) for column in columns]
    if quotes.evidence.row(layer) is None:
        cells[0] = Name(str(layer))
    cells += [_status(quotes, layer)] if quotes.by_status else []
    return row(*(doc.Strong((cell,)) for cell in cells)) if bold else row(*cells)


def _status(quotes: Quotes, layer: object) -> doc.Part:
    """What the probabilities of a layer are, in a word."""
    return doc.Text((quotes.status(layer) if isinstance(layer, int) else None) or ABSENT)


def _legend(quotes: Quotes, layers: Sequence[int]) -> doc.Filling:
    """What the words of that column mean, of those that occur."""
    found = {quotes.status(layer) for layer in layers}
    told = [f"{status}: {text}" for status, text in LEGEND.items() if status in found]
    if not told:
        return ()
    known = quotes.diagnostics.quotability
    over = quotes.shape("prompts_behind_status", known.n_prompts, "count of prompts", unit=Unit.COUNT)
    which = f"{'answered ' if known.over_answered else ''}{plural('prompt', known.n_prompts)}"
    return filled(f" Probabilities, by medians over {{}} {which} ({STATUS}): {'; '.join(told)}.", over)


def _kl_shape(quotes: Quotes) -> list[Sentence]:
    """What the divergence does with depth, said only as far as it holds."""
    curve = quotes.points("kl_to_final_bits")
    word = shapes.tendency(curve)
    top, low = shapes.peak(curve), shapes.trough(curve)
    if word is None or top is None or low is None:
        return []
    basis = Basis((quotes.shape("kl_tendency", word, "the sign of every step", unit=Unit.TEXT),))
    first, last = quotes.cells("kl_to_final_bits", (curve[0][0], curve[-1][0]))
    if word in ("falls", "never rises"):
        verb = "falls at every layer" if word == "falls" else "rises at no layer"
        template = "The divergence from the model's output {}{}, from {} to {} bits."
        return [sentence(template, verb, basis, first, last)]
    up = shapes.failures(curve, "falls", strict=False)
    count = quotes.shape("kl_rises", len(up), "count of steps that go up", unit=Unit.COUNT)
    layer, value = quotes.cell("layer", top[0]), quotes.cell("kl_to_final_bits", top[0])
    template = (
        "The divergence from the model's output does not fall steadily: it rises at {} of its steps and is largest at "
        "layer {} ({} bits)."
    )
    return [sentence(template, count, layer, value), *_largest_fall(quotes, curve)]


def _largest_fall(quotes: Quotes, curve: shapes.Points) -> list[Sentence]:
    fall = shapes.largest_step(curve, "falls")
    if fall is None:
        return []
    ends, how = quotes.cells("kl_to_final_bits", (fall.first, fall.last)), "difference of two layers"
    size = quotes.evidence.derived("largest_fall", -fall.change, Unit.BITS, ends, how, lens=quotes.headline)
    return [sentence("Its largest fall, {} bits, is the step to layer {}.", size, quotes.cell("layer", fall.last))]


def milestones(quotes: Quotes) -> Section:
    """Ranks and gates, then the distance to the output, then copying and surface."""
    return Section("Milestones", (), (_ranks(quotes), _distance(quotes), _copying(quotes), _surface(quotes)))


def _milestone_table(quotes: Quotes, named: Sequence[str], caption: Sentence) -> doc.Table:
    """First crossings and stable ones, and what the file says where it says something else of any of them."""
    others = {name: quotes.evidence.otherwise(name) for name in named}
    header = ["milestone", "first at", "for good from"]
    header += ["file says otherwise"] if any(others.values()) else []
    rows = []
    for name, other in others.items():
        stable: doc.Filling = (
            "-" if quotes.summary(milestone_names.stable_twin(name)) is None else layer_cell(quotes.stable(name))
        )
        cells: list[doc.Filling] = [Name(name), layer_cell(quotes.milestone(name)), stable]
        cells += [other or ""] if any(others.values()) else []
        rows.append(row(*cells))
    return table(header, rows, caption)


def _ranks(quotes: Quotes) -> Section:
    t, onset = quotes.thresholds, quotes.milestone(ONSET)
    ranks = [milestone_names.rank_within(rank) for rank in sorted(t.answer_rank, reverse=True)]
    gates = [MilestoneName.MARGIN_OK, MilestoneName.TOP2_OK, *(f"gap_ge_{gap:.1f}" for gap in t.answer_gap)]
    named = [*ranks, ONSET, MilestoneName.ONSET_RUN2, CONFIRMED, *gates, STRONG, STRONG_RUN2]
    terms = {name: Name(name) for name in ("margin_ok", "top2_ok", "strong", "run2")}
    terms |= {"onset": Name(ONSET), "ahead": Name(STRONG)}
    bounds = {"margin": Name(f"{t.semantic_margin:g}"), "gap": Name(f"{t.semantic_gap:g}")}
    caption = quotes.caption(circumstances.GATES, marked=False, **terms, **bounds)
    first = _onset(quotes, onset) if onset.value is not None else []
    last = paragraph(*first, *_confirmation(quotes), *_robustness(quotes))
    return Section("Rank and gates", (_milestone_table(quotes, named, caption), last))


def _onset(quotes: Quotes, onset: Claim) -> list[Sentence]:
    """The first rank 1: how deep, how clear, and how probable the answer is there, if that may be quoted."""
    diagnostics, layer = quotes.diagnostics, quotes.layer_of(ONSET)
    lead, p = quotes.cell("answer_logit_gap", layer), quotes.cell("p_answer", layer)
    gate = quotes.under(D, "semantic_gate", basis=(lead,), how="cell of the row")
    key, none = f"gap_at_L_semantic_{quotes.label}", "the rows do not hold the lead"
    gap = gate.figure("gap_at_L_semantic", Unit.LOGIT, key, value=diagnostics.gap_at_semantic, reason=none)
    uniform, key = quotes.under(D, "semantic_margin", basis=(p,)), f"margin_ok_at_L_semantic_{quotes.label}"
    ok, how = diagnostics.margin_ok_at_semantic, "p_answer above uniform"
    margin = uniform.figure("margin_ok_at_L_semantic", Unit.TRUTH, key, value=ok, how=how)
    fraction = None if layer is None else round(layer / quotes.n_layers, 3)
    at = quotes.under(D, "depth_fractions", basis=(onset,), how="layer / n_layers")
    depth = at.figure("L_semantic_frac", Unit.SHARE, value=fraction)
    there = sentence(readable.AT_ONSET, layer=onset, depth=depth, gap=gap, margin=margin)
    status = quotes.status(layer)
    if status is None or p.value is None:
        return [there]
    return [there, sentence(GIVES[status], lens=Name(quotes.headline), p=p)]


def _confirmation(quotes: Quotes) -> list[Sentence]:
    confirmation, layer = quotes.diagnostics.confirmation, quotes.milestone(CONFIRMED)
    if confirmation is None:
        return []
    if confirmation.reason == NO_OTHER_LENS:
        return [sentence(circumstances.UNCONFIRMED, Basis((layer,)))]
    at = quotes.under(D, "confirmed_semantics")
    read = confirmation.layer is not None or confirmation.onset_raw is not None or confirmation.onset_tuned is not None
    source = at.figure("confirmed_source", Unit.TEXT, value=confirmation.source if read else None)
    onsets = {"raw": confirmation.onset_raw, "tuned": confirmation.onset_tuned}
    why = "the {} lens has no onset, or was not read"
    raw, tuned = (
        at.figure(f"L_semantic_{lens}", Unit.LAYER, value=onset, reason=why.format(lens))
        for lens, onset in onsets.items()
    )
    confirmed = sentence(circumstances.CONFIRMED, where=at_layer(layer), source=source, raw=raw, tuned=tuned)
    trivial = sentence(circumstances.TRIVIAL, Name(quotes.headline))
    return [confirmed, trivial] if readable.is_trivial(confirmation) else [confirmed]


def _robustness(quotes: Quotes) -> list[Sentence]:
    """Whether the gates hold at scales near the measured one, lenses share top tokens, and positions agree."""
    diagnostics, sentences = quotes.diagnostics, []
    scales = quotes.under(D, "gate_stability_small_scale", of=diagnostics.gate_stability)
    share = scales.figure("min_both_gates_pass_frac", Unit.SHARE)
    if share.value is not None:
        template = "With logits scaled by a few per cent both gates pass at a share of at least {} of the scales."
        sentences.append(sentence(template, share))
    for pair in () if diagnostics.lens_consistency is None else diagnostics.lens_consistency.pairs:
        at = quotes.under(D, "lens_consistency", f"{quotes.label}_vs_{pair.against}", "p50")
        overlap = at.figure("jaccard@10", Unit.SHARE, value=pair.p50.jaccard_10)
        if overlap.value is not None:
            template = "At the milestones the ten likeliest tokens are shared with the lens {} by a median share of {}."
            sentences.append(sentence(template, Name(pair.against), overlap))
    window = diagnostics.position_window
    if window is not None and window.rank1_frac is not None:
        places = ((D, "position_window", "rank1_frac"), ("summary", "position_window", "rank1_frac"))
        there = quotes.figure("rank1_frac", window.rank1_frac, Unit.SHARE, *places)
        template = "Along the prompt, at that layer, the answer has rank 1 at a share of {} of the positions looked at."
        sentences.append(sentence(template, there))
    return sentences


def _distance(quotes: Quotes) -> Section:
    t = quotes.thresholds
    named = [
        *(f"first_kl_below_{bits:.1f}" for bits in t.kl_to_final_bits),
        *(f"cos_ge_{c:g}" for c in t.cos_to_final),
        *(f"first_p_top1_gt_{p:.2f}" for p in t.p_top1),
    ]
    template = "Divergence from the model's output, cosine to it, and certainty of any token."
    blocks: list[doc.Block] = [_milestone_table(quotes, named, quotes.caption(template, marked=False))]
    curve = quotes.points("cos_to_final")
    low = shapes.trough(curve)
    if low is not None:
        layer, value = quotes.cell("layer", low[0]), quotes.cell("cos_to_final", low[0])
        last, where = quotes.cell("cos_to_final", curve[-1][0]), filled(" at the last layer")
        if curve[-1][0] != quotes.n_layers:
            where = filled(" at layer {}, the last that has a value", quotes.cell("layer", curve[-1][0]))
        blocks.append(paragraph(sentence("The cosine is lowest at layer {} ({}) and {}{}.", layer, value, last, where)))
    return Section("Distance to the output", (*blocks, _semantic_row(quotes)))


def _semantic_row(quotes: Quotes) -> doc.Block:
    """The figures of the three layers, the last one and the head side by side."""
    names_of = {onsets.FIRST: FIRST_ON_TOP, onsets.FOR_GOOD: ON_TOP_FOR_GOOD, f"{onsets.AHEAD} for good": CLEARLY_AHEAD}
    named = {label: quotes.milestone(name) for label, name in names_of.items()}
    places = [("first on top", named.pop(onsets.FIRST))]
    for label, claim in named.items():
        if claim.value is not None and claim.value != places[-1][1].value:
            places.append((label, claim))
    places.append(("last layer", quotes.cell("layer", quotes.n_layers)))
    rows = [row(Name(label), where, *_at(quotes, where.value)) for label, where in places]
    uncertain = [quotes.mark(column) for column in ("entropy (bits)", "p top-1", "p of answer")]
    header = ["where", "layer", *uncertain, "rank", "lead (logits)", "KL (bits)", "cosine", quotes.mark("rest mass")]
    header += [STATUS] if quotes.by_status else []
    caption = quotes.caption("Rows that conclusions rest on, beside the model's own head, which may be quoted.")
    return table(header, [*rows, _head_row(quotes)], caption)


def _at(quotes: Quotes, layer: object) -> list[doc.Part]:
    at = layer if isinstance(layer, int) else None
    certainty = [quotes.cell(column, at) for column in ("entropy_bits", "p_top1", "p_answer")]
    place = [quotes.cell(column, at) for column in ("answer_rank", "answer_logit_gap")]
    distance = [quotes.cell(column, at) for column in ("kl_to_final_bits", "cos_to_final", "rest_mass")]
    return [*certainty, *place, *distance, *([_status(quotes, at)] if quotes.by_status else [])]


def _head_row(quotes: Quotes) -> doc.Row:
    final, last = quotes.record.measured.final_prediction, quotes.diagnostics.last_layer
    head = quotes.under("final_prediction")
    entropy = head.figure("entropy", Unit.BITS, value=None if final is None else final.entropy_bits)
    at = quotes.under(D, "last_layer_consistency", of=None if last is None else last.measured)
    own = ["model"] if quotes.by_status else []
    return row("model's head", "-", entropy, at.figure("p_top1_model", Unit.PROBABILITY), *["-"] * 6, *own)


def _copying(quotes: Quotes) -> Section:
    t, low = quotes.thresholds, MilestoneName.LOW_ENTROPY
    strict, soft = (
        (milestone_names.copy_strict(p) for p in t.copy_strict),
        (milestone_names.copy_soft(k) for k in t.copy_soft_windows),
    )
    named = [MilestoneName.COPY, *strict, *soft]
    about = [*_copy_layers(quotes), _drop(quotes), _stability(quotes)]
    if any(quotes.layer_of(name) is not None for name in named):
        template = "Echoes of the prompt; {} is low entropy on any token and no copy."
        caption = quotes.caption(template, Name(low), marked=False)
        copies = _milestone_table(quotes, [*named, low], caption)
        return Section("Copying", (copies, paragraph(_reflex(quotes), *about)))
    return doc.short_section("Copying", *_no_copy(quotes, named), _low_entropy(quotes), *about)


def _no_copy(quotes: Quotes, named: Sequence[str]) -> list[Sentence]:
    """That no flag is set anywhere, of those that there are."""
    claims = {name: quotes.milestone(name) for name in named}
    unknown = [name for name, claim in claims.items() if not_measured(claim)]
    known = [name for name in named if name not in unknown]
    if not known:
        return [sentence("Whether any layer copies the prompt was not measured{}.", Basis(tuple(claims.values())))]
    basis = Basis(tuple(claims[name] for name in known))
    tail = "; some layers lack a flag" if any(claim.reason == NEVER_SEEN for claim in basis.claims) else ""
    how = filled(", strictly at any threshold or softly over any window")
    if unknown:
        how = filled(", as far as that was measured ({})", names(known))
    none = sentence("No layer copies the prompt{}{}{}.", how, basis, tail)
    return [none, sentence("Not measured: {}.", names(unknown))] if unknown else [none]


def _low_entropy(quotes: Quotes) -> Sentence:
    low = quotes.milestone(MilestoneName.LOW_ENTROPY)
    name = Name(MilestoneName.LOW_ENTROPY)
    if not_measured(low):
        return sentence("Whether entropy is low at any layer was not measured ({}{}).", name, Basis((low,)))
    if low.value is None:
        return sentence("Entropy is low {} ({}).", at_layer(low), name)
    return sentence("Entropy is first low, on whatever token, {} ({}), which is no copy.", at_layer(low), name)


def _reflex(quotes: Quotes) -> Sentence:
    early = quotes.diagnostics.copies_early
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
    curve, sentences = quotes.curve, []
    for word, column in _copy_flags(quotes):
        layers = [] if curve is None else [row["layer"] for row in curve.rows if row[column]]
        if layers:
            where = quotes.shape(column, listed_layers(layers), "layers at which the flag is set", unit=Unit.TEXT)
            sentences.append(sentence("A {} copy stands at {} {}.", word, plural("layer", len(layers)), where))
    return sentences


def _drop(quotes: Quotes) -> Sentence:
    """ΔH, where there are both layers; it is a difference of entropies, so it may be out of bounds."""
    copy, onset = quotes.milestone(MilestoneName.COPY), quotes.milestone(ONSET)
    if copy.value is None or onset.value is None:
        return sentence("ΔH is n.a.: it needs a strict copy layer{} and a semantic one.", Basis((copy, onset)))
    if not quotes.quotable:
        return sentence("ΔH is n.a.: it is a difference of entropies, which are not to be quoted here.")
    ends = quotes.cells("entropy_bits", map(quotes.layer_of, (MilestoneName.COPY, ONSET)))
    values = [end.value for end in ends if isinstance(end.value, int | float)]
    if len(values) < 2:
        return sentence("ΔH is n.a.: an entropy is missing.")
    drop = quotes.evidence.derived("delta_H_bits", values[0] - values[1], Unit.BITS, ends, "difference of entropies")
    template = "Under {}, ΔH from layer {} to layer {} is {} bits."
    return sentence(template, said.lens_words(quotes.headline), copy, onset, drop)


def _stability(quotes: Quotes) -> Sentence:
    how = "distance of the loosest threshold's layer from the strictest's"
    at = quotes.under(D, "copy_thresholds", of=quotes.diagnostics.copy_thresholds, how=how)
    return sentence("Stability over the strict thresholds: {}.", at.figure("stability", Unit.TEXT))


def _surface(quotes: Quotes) -> Section:
    """Surface, geometry and coverage with what was read there."""
    rows = [
        _surface_row(quotes, MilestoneName.SURFACE_TO_MEANING, "answer_mass", "echo_mass_prompt"),
        _surface_row(quotes, MilestoneName.GEOMETRY, "cos_to_answer", "cos_to_prompt_max"),
        _surface_row(quotes, MilestoneName.TOPK_DECAY, None, "topk_prompt_mass@50"),
    ]
    template = (
        "Where the answer outweighs the prompt's own tokens: by mass, by cosine, and among the most likely tokens (the "
        "echo's mass alone)."
    )
    header = ("milestone", "first at", "for good from", quotes.mark("answer"), quotes.mark("prompt"))
    blocks: list[doc.Block] = [table(header, rows, quotes.caption(template))]
    near_uniform = quotes.points("topk_prompt_mass@50")
    if near_uniform and shapes.stays_at_most(near_uniform, quotes.thresholds.topk_prompt_mass):
        basis = Basis((quotes.shape("topk_prompt_mass_low", True, "every layer is below the threshold"),))
        nothing = "{} says nothing here: the mass is low at every layer{}."
        blocks.append(paragraph(sentence(nothing, Name(MilestoneName.TOPK_DECAY), basis)))
    return Section("Surface, geometry, coverage", tuple(blocks))


def _surface_row(quotes: Quotes, name: str, *columns: str | None) -> doc.Row:
    layer = quotes.layer_of(name)
    masses: list[doc.Filling] = ["-" if column is None else quotes.cell(column, layer) for column in columns]
    return row(Name(name), layer_cell(quotes.milestone(name)), layer_cell(quotes.stable(name)), *masses)


def rest_mass(quotes: Quotes) -> list[Sentence]:
    """Where the rows' listed tokens cover least, from the semantic layer on."""
    curve = quotes.curve
    peak = None if curve is None else rest_mass_peak(curve, quotes.evidence.verdict.milestones.of())
    if peak is None:
        return []
    layer, value = quotes.cell("layer", peak[0]), quotes.cell("rest_mass", peak[0])
    shown = filled(" ({} under {})", value, said.lens_words(quotes.headline)) if quotes.quotable else Basis((value,))
    template = (
        "From the first rank 1 on, the listed tokens cover least at layer {}{}; rest mass tells how much a row lists, "
        "not how faithful a lens is."
    )
    return [sentence(template, layer, shown)]
