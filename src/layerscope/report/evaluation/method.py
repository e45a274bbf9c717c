"""Whether the measurement itself is sound: norms, head, machine, alignment, detectors, repetition, guidance."""

from layerscope.analysis.consistency import DecodingTarget
from layerscope.record.measured import LastLayerRecord
from layerscope.record.milestone_names import ONSET
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Basis, Name, Section, Sentence, filled, paragraph, row, sentence
from layerscope.report.evaluation.quotes import D, Quotes, names, table
from layerscope.report.sentences.guidance import probabilities
from layerscope.report.sentences.last_layer import ACCOUNTS, LIKE_A_SOFTCAP, WHY_SOFTCAP, after_transform
from layerscope.report.sentences.lines import plural

_LAST = (D, "last_layer_consistency")


def method(quotes: Quotes) -> Section:
    """The section."""
    items = [
        _indexing(quotes),
        _norms(quotes),
        *_norm_effect(quotes),
        _head(quotes),
        _machine(quotes),
        _health(quotes),
        _alignment(quotes),
        _mask(quotes),
        _detectors(quotes),
    ]
    sections = (_calibration(quotes), _repetition(quotes), _decoding(quotes), _guidance(quotes))
    return Section("Method sanity-check", (doc.Bullets(tuple(items)),), sections)


def _item(title: str, template: str, *values: doc.Filling) -> Sentence:
    return sentence(f"{{}} {template}", doc.Strong((doc.Text(f"{title}."),)), *values)


def _indexing(quotes: Quotes) -> Sentence:
    curve = quotes.curve
    where: doc.Filling = ()
    if curve is not None and curve.rows:
        where = filled("; rows are those of position {}", quotes.cell("position", curve.rows[0]["layer"]))
    last = quotes.figure("n_layers", quotes.n_layers, Unit.LAYER, ("model_stats", "num_layers"))
    template = (
        "A layer is the number of blocks that have written: the embedding comes first, {} is what the final norm "
        "receives{} (the first counts as zero), where the next token is predicted."
    )
    return _item("Indexing", template, last, where)


def _norms(quotes: Quotes) -> Sentence:
    base = (D, "normalization_provenance")
    kind = quotes.stated("first_block_ln1_type", Unit.TEXT, (D, "first_block_ln1_type"))
    final = quotes.stated("final_ln_type", Unit.TEXT, (D, "final_ln_type"))
    strategy = quotes.stated("strategy", Unit.TEXT, (*base, "strategy", "primary"), (*base, "strategy"))
    first, last = (
        quotes.stated("ln_source", Unit.TEXT, (*base, "per_layer", layer, "ln_source"))
        for layer in (0, quotes.n_layers)
    )
    template = "The norm of the first block is {}, the one before the head {}; "
    if strategy.value is None:
        return _item("Norms", f"{template}the file does not say which norm was applied at which layer.", kind, final)
    template += "strategy {}, with {} at the embedding and {} at the last layer."
    return _item("Norms", template, kind, final, strategy, first, last)


def _norm_effect(quotes: Quotes) -> list[Sentence]:
    """Ratio and cosine of what the norm does, at the embedding and the onset."""
    onset = quotes.layer_of(ONSET)
    ratio, cosine = (quotes.cell(column, 0) for column in ("resid_norm_ratio", "delta_resid_cos"))
    if ratio.value is None:
        return [_item("What the norm does", "It is not recorded layer by layer.")]
    there: doc.Filling = ()
    if onset is not None and quotes.ranked:
        at_onset = (quotes.cell(column, onset) for column in ("resid_norm_ratio", "delta_resid_cos"))
        there = filled(", at layer {} by {} (cosine {})", quotes.milestone(ONSET), *at_onset)
    template = "At the embedding it multiplies the length by {} (cosine {}){}."
    return [_item("What the norm does", template, ratio, cosine, there), *_trajectory(quotes)]


def _trajectory(quotes: Quotes) -> list[Sentence]:
    """How the stream grows; what the norm's factor tells of that where lengths are missing is not the stream's."""
    trajectory, curve = quotes.diagnostics.trajectory, quotes.curve
    if trajectory is None or curve is None:
        return []
    at = quotes.under(D, "norm_trajectory", of=trajectory)
    growth: doc.Filling = "Lengths are not recorded"
    if curve.values("raw_resid_norm") and trajectory.slope is not None:
        slope, r2 = at.figure("slope", Unit.NUMBER), at.figure("r2", Unit.NUMBER)
        growth = filled("Its logarithm changes by {} a layer; a line explains a share of {} of it", slope, r2)
    abrupt: doc.Filling = ()
    if quotes.ranked and trajectory.n_spikes is not None:  # counted up to the onset
        spikes, relative = at.figure("n_spikes", Unit.COUNT), at.figure("n_spikes_relative", Unit.COUNT)
        template = "; the norm is abrupt at {} {} by the absolute rule, at {} by comparison with neighbours"
        abrupt = filled(template, spikes, plural("layer", spikes.value), relative)
    return [_item("Length of the stream", "{}{}.", growth, abrupt)]


def _head(quotes: Quotes) -> Sentence:
    at = quotes.under(D, "unembed_bias")
    present = at.stated("unembed_bias.present", Unit.TRUTH, "present")
    dtype = quotes.stated("unembed_dtype", Unit.TEXT, (D, "unembed_dtype"))
    promoted = quotes.stated("use_fp32_unembed", Unit.TRUTH, (D, "use_fp32_unembed"))
    if present.value is None:
        bias: doc.Filling = "Whether it has a bias is not recorded"
    elif present.value:
        bias = filled("It has a bias{} of length {}", Basis((present,)), at.stated("l2_norm", Unit.LOGIT))
    else:
        bias = filled("It has no bias{}", Basis((present,)))
    return _item("Unembedding", "{}; it was computed in {} (promotion needed: {}).", bias, dtype, promoted)


def _machine(quotes: Quotes) -> Sentence:
    at = quotes.under("provenance", "env")
    device = quotes.stated("device", Unit.TEXT, ("provenance", "env", "device"), (D, "device"))
    torch, dtype = at.stated("torch_version", Unit.TEXT), at.stated("dtype_compute", Unit.TEXT)
    seed, kernels = at.stated("seed", Unit.COUNT), at.stated("deterministic_algorithms", Unit.TRUTH)
    if kernels.value is None:
        return _item("Environment", "Device {}; the file has no more on the machine.", device)
    template = "Device {}, PyTorch {}, blocks in {}, seed {}, deterministic kernels: {}."
    return _item("Environment", template, device, torch, dtype, seed, kernels)


def _health(quotes: Quotes) -> Sentence:
    at = quotes.under(D, "numeric_health")
    nan, inf = at.stated("any_nan", Unit.TRUTH), at.stated("any_inf", Unit.TRUTH)
    if nan.value is None:
        return _item("Numeric health", "Not recorded in these files.")
    largest = at.stated("max_abs_logit_p99", Unit.LOGIT)
    return _item("Numeric health", "NaN: {}, infinities: {}, largest logit {}.", nan, inf, largest)


def _alignment(quotes: Quotes) -> Sentence:
    base, gold = (D, "gold_alignment"), quotes.under("gold_answer")
    status = quotes.stated("gold_alignment", Unit.TEXT, (*base, "status"), base)
    answer, first = gold.stated("string", Unit.TOKEN), gold.stated("first_id", Unit.COUNT)
    variant = gold.stated("variant", Unit.TEXT)
    rate = quotes.stated("gold_alignment_rate", Unit.SHARE, (D, "gold_alignment_rate"))
    share = filled(", share of prompts resolved {}", rate) if rate.value is not None else ()
    return _item("Gold alignment", "Status {}: {} is id {}, {}{}.", status, answer, first, variant, share)


def _mask(quotes: Quotes) -> Sentence:
    mask, path = quotes.record.measured.copy_mask, ("copy_mask", "size")
    count = None if mask is None else mask.size
    size = quotes.figure("size", count, Unit.COUNT, (D, *path), ("record", "measured", *path))
    if size.value is None:
        return _item("Copy mask", "Not recorded in these files.")
    what = "blanks and punctuation" if quotes.protocol == "published" else "blanks, punctuation and special tokens"
    return _item("Copy mask", f"{{}} ids of {what} never count as an echo.", size)


def _detectors(quotes: Quotes) -> Sentence:
    at = quotes.under(D)
    threshold = at.figure("copy_thresh", Unit.PROBABILITY, value=quotes.thresholds.copy_collapse)
    window, match = at.stated("copy_window_k", Unit.COUNT), at.stated("copy_match_level", Unit.TEXT)
    places = ((D, "copy_soft_threshold"), (D, "copy_soft_config", "threshold"))
    soft = quotes.stated("copy_soft_threshold", Unit.PROBABILITY, *places)
    template = "Strict above {} over {} {}, by {}; soft above {}."
    return _item("Copy detectors", template, threshold, window, plural("layer", window.value), match, soft)


def _calibration(quotes: Quotes) -> Section:
    """How far the last layer is from the model's output, and what would mend it."""
    title, last = "Head calibration", quotes.diagnostics.last_layer
    if last is None:
        why = quotes.record.measured.absent.get("last_layer", "the files do not say")
        return doc.short_section(title, sentence("Not measured: {}.", Name(why)))
    at = quotes.under(*_LAST, of=last.measured)
    kl, temperature = at.figure("kl_to_final_bits", Unit.BITS), at.figure("temp_est", Unit.NUMBER)
    after, agree = at.figure("kl_after_temp_bits", Unit.BITS), at.figure("top1_agree", Unit.TRUTH)
    warn = at.figure("warn_high_last_layer_kl", Unit.TRUTH, value=last.warn_high_last_layer_kl)
    template = "The last layer under {} is {} bits from the model's output; same top-1 token: {}."
    return doc.short_section(
        title,
        sentence(template, Name(quotes.headline), kl, agree),
        sentence("The best temperature, {}, leaves {} bits; warning: {}.", temperature, after, warn),
        *_transform(quotes),
    )


def _transform(quotes: Quotes) -> list[Sentence]:
    """What the head's own scale and soft cap account for."""
    last = quotes.diagnostics.last_layer
    if last is None:
        return []
    measured, at = last.measured, quotes.under(*_LAST, of=last.measured)
    scale = at.figure("scale", Unit.NUMBER, "cfg_transform", "scale")
    cap = at.figure("softcap", Unit.LOGIT, "cfg_transform", "softcap")
    key, bits = after_transform(measured)
    name = f"kl_after_transform_bits.{key}"
    left = at.figure(name, Unit.BITS, "kl_after_transform_bits", key, value=bits)
    if left.value is not None and bits is not None:
        declared = filled("scale {}", scale) if measured.softcap is None else filled("soft cap {}", cap)
        transform = key.replace("_", " ").replace("softcap", "soft cap")
        accounts = ACCOUNTS[bits < last.threshold_bits]
        template = "The model declares {}; with its {} {} bits remain, {}."
        why = [sentence(WHY_SOFTCAP)] if measured.softcap is not None else []
        return [sentence(template, declared, transform, left, accounts), *why]
    if not last.warn_high_last_layer_kl:
        return []
    none = "The file declares no scale and no soft cap{}, so the model's own transform could not be tried."
    return [sentence(none, Basis((scale, cap))), *_like_a_softcap(quotes, measured)]


def _like_a_softcap(quotes: Quotes, measured: LastLayerRecord) -> list[Sentence]:
    """That the last row is what a soft cap would leave: too certain, and mended in part by a temperature."""
    at = quotes.under(*_LAST, of=measured)
    certainty = Basis(tuple(at.figure(name, Unit.PROBABILITY) for name in ("p_top1_lens", "p_top1_model")))
    p, q = measured.p_top1_lens, measured.p_top1_model
    before, after = measured.kl_to_final_bits, measured.kl_after_temp_bits
    if p is None or q is None or before is None or after is None or not (p > q and 0 < after < before):
        return []
    return [sentence(LIKE_A_SOFTCAP, certainty)]


def _repetition(quotes: Quotes) -> Section:
    """Whether a second time gives the same."""
    repeated = quotes.diagnostics.repeatability
    at = quotes.under(D, "repeatability", of=repeated)
    status = at.figure("status", Unit.TEXT, value=repeated.status if repeated.status != "unavailable" else None)
    deviation, flips = at.figure("max_rank_dev", Unit.COUNT), at.figure("top1_flip_rate", Unit.SHARE)
    if deviation.value is None:
        why = filled(" ({})", Name(repeated.reason)) if repeated.reason else ()
        second = sentence("No second decode was made or kept{}.", why)
    else:
        template = "Second decode {}: largest rank deviation {}, share of layers whose top-1 token flipped {}."
        second = sentence(template, status, deviation, flips)
    forward = quotes.under(D, "repeatability_forward")
    mode = forward.stated("mode", Unit.TEXT)
    agreement = forward.stated("repeatability_forward_pass", Unit.TRUTH, "gate", "repeatability_forward_pass")
    passed = sentence("Second forward pass: {}, agreement {}.", mode, agreement) if mode.value is not None else None
    return Section("Repeatability", (paragraph(second, passed),))


def _decoding(quotes: Quotes) -> Section:
    """Whether milestones hang on the norm of the block that wrote, or of the next."""
    point, title = quotes.diagnostics.decoding_point, "Decoding point"
    gate = quotes.under(D, "decoding_point", "gate").figure(
        "decoding_point_consistent", Unit.TRUTH, value=point.consistent
    )
    if not quotes.ranked:
        return doc.short_section(title, sentence("The identity check failed, and milestones do not stand."))
    if not point.targets and gate.value is None:
        return doc.short_section(title, sentence("Not tested: {}.", Name(point.reason or "the files do not say")))
    if not point.targets:
        return doc.short_section(title, sentence("Consistent, as the file states it: {}.", gate))
    rows = [
        row(
            Name(target.name),
            _of_target(quotes, target, "layer", target.layer, Unit.LAYER),
            _of_target(quotes, target, "answer_rank_post_ln2", target.answer_rank_post_ln2, Unit.RANK),
            _of_target(quotes, target, "answer_rank_next_ln1", target.answer_rank_next_norm, Unit.RANK),
            _of_target(quotes, target, "jaccard@10", target.jaccard_10, Unit.SHARE),
        )
        for target in point.targets
    ]
    template = (
        "Rank of the answer under the norm of the block that wrote last and under that of the next, and the share of "
        "their most likely tokens; consistent: {}."
    )
    header = ("milestone", "layer", "post_ln2", "next_norm", "Jaccard@10")
    return Section(title, (table(header, rows, quotes.caption(template, gate, marked=False)),))


def _of_target(quotes: Quotes, target: DecodingTarget, key: str, value: int | float | None, unit: Unit) -> Claim:
    """A figure of one target, cited where the file lists that target."""
    name = target.name.replace(ONSET, f"{ONSET}_{quotes.label}") if target.name == ONSET else target.name
    for place in range(len(quotes.diagnostics.decoding_point.targets)):
        base = (D, "decoding_point", "per_target", place)
        entry = quotes.evidence.entry(*base, "name")
        if entry is not None and entry.value in (name, target.name):
            return quotes.figure(key, value, unit, (*base, key))
    return quotes.figure(key, value, unit)


def _guidance(quotes: Quotes) -> Section:
    """What may be quoted, each reason against it with its weight."""
    guidance, at = quotes.guidance, quotes.under("measurement_guidance", of=quotes.guidance)
    suppress, prefer = at.figure("suppress_abs_probs", Unit.TRUTH), at.figure("prefer_ranks", Unit.TRUTH)
    lens = "norm" if guidance.preferred_lens == "next_norm" else guidance.preferred_lens
    preferred = at.figure("preferred_lens_for_reporting", Unit.TEXT, value=lens)
    confirmed = at.figure("use_confirmed_semantics", Unit.TRUTH, value=guidance.use_confirmed)
    stated = _stated_reasons(quotes)
    none = None
    if quotes.evidence.entry("measurement_guidance") is None:
        none = sentence("The files hold no guidance; this is what their rows call for.")
    lenses = sentence("Preferred lens: {}; use the confirmed semantic layer: {}.", preferred, confirmed)
    ranks = sentence("Prefer ranks: {}; suppress absolute probabilities: {}.", prefer, suppress)
    blocks: list[doc.Block] = [paragraph(ranks, _status(quotes), lenses, none)]
    rows = [row(Name(r.name), r.severity, Name(r.text), _reason(quotes, r.name, stated)) for r in guidance.reasons]
    if rows:
        blocks.append(table(("reason", "weight", "what it means", "stated in the file"), rows))
    if guidance.details:
        details = [
            row(Name(detail.name), (Name(detail.text), _found(quotes, detail.name))) for detail in guidance.details
        ]
        what = sentence("Plain facts that hold of many good runs and many bad ones, and are no reason for caution.")
        blocks.append(table(("detail", "what it means"), details, what))
    further = [claim for name, claim in stated.items() if name not in {reason.name for reason in guidance.reasons}]
    if further:
        parts = [part for claim in further for part in (doc.Text(", "), claim)][1:]
        blocks.append(
            paragraph(sentence("The file gives reasons that its rows do not bear out, or cannot: {}.", parts))
        )
    if guidance.undetermined:
        unknown = sentence("Neither raised nor ruled out, for want of data: {}.", names(guidance.undetermined))
        blocks.append(paragraph(unknown))
    return Section("Guidance", tuple(blocks))


def _status(quotes: Quotes) -> Sentence | None:
    """What probabilities of layers are; None where guidance speaks of all of them at once."""
    if not quotes.by_status:
        return None
    words = probabilities(quotes.diagnostics.quotability, quotes.headline)
    told = quotes.shape("probability_status", words, "medians over prompts", unit=Unit.TEXT)
    return sentence("Probabilities under {} are {}.", Name(quotes.headline), told)


def _stated_reasons(quotes: Quotes) -> dict[str, Claim]:
    """The reasons that the file lists."""
    entry = quotes.evidence.entry("measurement_guidance", "reasons")
    items = [] if entry is None else quotes.evidence.json.children(entry)
    claims = [quotes.stated("reason", Unit.TEXT, item.path) for item in items]
    return {claim.value: claim for claim in claims if isinstance(claim.value, str)}


def _reason(quotes: Quotes, name: str, stated: dict[str, Claim]) -> tuple[doc.Part, ...]:
    behind = stated.get(name)
    if behind is not None:
        return (doc.Text("yes"), Basis((behind,)))
    return (doc.Text("no"), _found(quotes, name))


def _found(quotes: Quotes, name: str) -> Basis:
    """The rows that show it."""
    return Basis((quotes.shape(name, True, "found in the rows"),))
