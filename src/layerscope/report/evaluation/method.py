"""Whether the measurement itself is sound: norms, head, machine, alignment, detectors, repetition, guidance."""

from layerscope.analysis.consistency import DecodingTarget
from layerscope.record.measured import LastLayerRecord
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import (
    Basis,
    Block,
    Bullets,
    Filling,
    Name,
    Paragraph,
    Part,
    Section,
    Sentence,
    Strong,
    Text,
    row,
    sentence,
)
from layerscope.report.evaluation.overview import ONSET
from layerscope.report.evaluation.quotes import Quotes, layers_word, names, table

_D = "diagnostics"
_LAST = (_D, "last_layer_consistency")


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
    return Section("Method sanity-check", (Bullets(tuple(items)),), sections)


def _item(title: str, template: str, *values: Filling) -> Sentence:
    return sentence(f"{{}} {template}", Strong((Text(f"{title}."),)), *values)


def _indexing(quotes: Quotes) -> Sentence:
    curve = quotes.curve
    position = None if curve is None or not curve.rows else quotes.cell("position", curve.rows[0]["layer"], Unit.COUNT)
    where: list[Part | str] = ["; rows are those of position ", position] if position is not None else []
    last = quotes.figure("n_layers", quotes.n_layers, Unit.LAYER, ("model_stats", "num_layers"))
    return _item(
        "Indexing",
        "A layer is the number of blocks that have written: the embedding comes first, {} is what the "
        "final norm receives{} (the first counts as zero), where the next token is predicted.",
        last,
        where,
    )


def _norms(quotes: Quotes) -> Sentence:
    kind = quotes.stated("first_block_ln1_type", Unit.TEXT, (_D, "first_block_ln1_type"))
    final = quotes.stated("final_ln_type", Unit.TEXT, (_D, "final_ln_type"))
    base = (_D, "normalization_provenance")
    strategy = quotes.stated("strategy", Unit.TEXT, (*base, "strategy", "primary"), (*base, "strategy"))
    first = quotes.stated("ln_source", Unit.TEXT, (*base, "per_layer", 0, "ln_source"))
    last = quotes.stated("ln_source", Unit.TEXT, (*base, "per_layer", quotes.n_layers, "ln_source"))
    parts: list[Part | str] = ["The norm of the first block is ", kind, ", the one before the head ", final]
    if strategy.value is None:
        return _item("Norms", "{}; the file does not say which norm was applied at which layer.", parts)
    return _item(
        "Norms", "{}; strategy {}, with {} at the embedding and {} at the last layer.", parts, strategy, first, last
    )


def _norm_effect(quotes: Quotes) -> list[Sentence]:
    """Ratio and cosine of what the norm does, at the embedding and the onset."""
    onset = quotes.layer_of(ONSET)
    ratio = quotes.cell("resid_norm_ratio", 0, Unit.NUMBER)
    if ratio.value is None:
        return [_item("What the norm does", "It is not recorded layer by layer.")]
    said: list[Part | str] = [
        "At the embedding it multiplies the length by ",
        ratio,
        " (cosine ",
        quotes.cell("delta_resid_cos", 0, Unit.COSINE),
        ")",
    ]
    if onset is not None and quotes.ranked:
        said += [
            ", at layer ",
            quotes.milestone(ONSET),
            " by ",
            quotes.cell("resid_norm_ratio", onset, Unit.NUMBER),
            " (cosine ",
            quotes.cell("delta_resid_cos", onset, Unit.COSINE),
            ")",
        ]
    return [_item("What the norm does", "{}.", said), *_trajectory(quotes)]


def _trajectory(quotes: Quotes) -> list[Sentence]:
    """How the stream grows; what the norm's factor tells of that where lengths are missing is not the stream's."""
    found, curve = quotes.found.trajectory, quotes.curve
    if found is None or curve is None:
        return []
    base, said = (_D, "norm_trajectory"), list[Part | str]()
    if curve.values("raw_resid_norm") and found.slope is not None:
        slope = quotes.figure("slope", found.slope, Unit.NUMBER, (*base, "slope"))
        r2 = quotes.figure("r2", found.r2, Unit.NUMBER, (*base, "r2"))
        said += ["Its logarithm changes by ", slope, " a layer; a line explains a share of ", r2, " of it"]
    else:
        said += ["Lengths are not recorded"]
    if quotes.ranked and found.n_spikes is not None:  # counted up to the onset
        spikes = quotes.figure("n_spikes", found.n_spikes, Unit.COUNT, (*base, "n_spikes"))
        relative = quotes.figure("n_spikes_relative", found.n_spikes_relative, Unit.COUNT, (*base, "n_spikes_relative"))
        said += [
            "; the norm is abrupt at ",
            spikes,
            f" {layers_word(spikes)} by the absolute rule, at ",
            relative,
            " by comparison with neighbours",
        ]
    return [_item("Length of the stream", "{}.", said)]


def _head(quotes: Quotes) -> Sentence:
    present = quotes.stated("unembed_bias.present", Unit.TRUTH, (_D, "unembed_bias", "present"))
    dtype = quotes.stated("unembed_dtype", Unit.TEXT, (_D, "unembed_dtype"))
    promoted = quotes.stated("use_fp32_unembed", Unit.TRUTH, (_D, "use_fp32_unembed"))
    if present.value is None:
        bias: tuple[Part | str, ...] = ("Whether it has a bias is not recorded",)
    elif present.value:
        bias = (
            "It has a bias",
            Basis((present,)),
            " of length ",
            quotes.stated("l2_norm", Unit.LOGIT, (_D, "unembed_bias", "l2_norm")),
        )
    else:
        bias = ("It has no bias", Basis((present,)))
    return _item("Unembedding", "{}; it was computed in {} (promotion needed: {}).", bias, dtype, promoted)


def _machine(quotes: Quotes) -> Sentence:
    env = ("provenance", "env")
    device = quotes.stated("device", Unit.TEXT, (*env, "device"), (_D, "device"))
    keys = (("torch_version", Unit.TEXT), ("dtype_compute", Unit.TEXT), ("seed", Unit.COUNT))
    torch, dtype, seed = (quotes.stated(key, unit, (*env, key)) for key, unit in keys)
    kernels = quotes.stated("deterministic_algorithms", Unit.TRUTH, (*env, "deterministic_algorithms"))
    if kernels.value is None:
        return _item("Environment", "Device {}; the file has no more on the machine.", device)
    return _item(
        "Environment",
        "Device {}, PyTorch {}, blocks in {}, seed {}, deterministic kernels: {}.",
        device,
        torch,
        dtype,
        seed,
        kernels,
    )


def _health(quotes: Quotes) -> Sentence:
    base = (_D, "numeric_health")
    nan = quotes.stated("any_nan", Unit.TRUTH, (*base, "any_nan"))
    inf = quotes.stated("any_inf", Unit.TRUTH, (*base, "any_inf"))
    if nan.value is None:
        return _item("Numeric health", "Not recorded in these files.")
    largest = quotes.stated("max_abs_logit_p99", Unit.LOGIT, (*base, "max_abs_logit_p99"))
    return _item("Numeric health", "NaN: {}, infinities: {}, largest logit {}.", nan, inf, largest)


def _alignment(quotes: Quotes) -> Sentence:
    base = (_D, "gold_alignment")
    status = quotes.stated("gold_alignment", Unit.TEXT, (*base, "status"), base)
    answer = quotes.stated("string", Unit.TOKEN, ("gold_answer", "string"))
    first = quotes.stated("first_id", Unit.COUNT, ("gold_answer", "first_id"))
    variant = quotes.stated("variant", Unit.TEXT, ("gold_answer", "variant"))
    rate = quotes.stated("gold_alignment_rate", Unit.SHARE, (_D, "gold_alignment_rate"))
    share: list[Part | str] = [", share of prompts resolved ", rate] if rate.value is not None else []
    return _item("Gold alignment", "Status {}: {} is id {}, {}{}.", status, answer, first, variant, share)


def _mask(quotes: Quotes) -> Sentence:
    found = quotes.record.measured.copy_mask
    size = quotes.figure(
        "size",
        None if found is None else found.size,
        Unit.COUNT,
        (_D, "copy_mask", "size"),
        ("record", "measured", "copy_mask", "size"),
    )
    if size.value is None:
        return _item("Copy mask", "Not recorded in these files.")
    return _item("Copy mask", "{} ids of blanks and punctuation never count as an echo.", size)


def _detectors(quotes: Quotes) -> Sentence:
    threshold = quotes.figure("copy_thresh", quotes.thresholds.copy_collapse, Unit.PROBABILITY, (_D, "copy_thresh"))
    window = quotes.stated("copy_window_k", Unit.COUNT, (_D, "copy_window_k"))
    match = quotes.stated("copy_match_level", Unit.TEXT, (_D, "copy_match_level"))
    soft = quotes.stated(
        "copy_soft_threshold", Unit.PROBABILITY, (_D, "copy_soft_threshold"), (_D, "copy_soft_config", "threshold")
    )
    return _item(
        "Copy detectors",
        "Strict above {} over {} {}, by {}; soft above {}.",
        threshold,
        window,
        layers_word(window),
        match,
        soft,
    )


def _calibration(quotes: Quotes) -> Section:
    """How far the last layer is from the model's output, and what would mend it."""
    title, found = "Head calibration", quotes.found.last_layer
    if found is None:
        why = quotes.record.measured.absent.get("last_layer", "the files do not say")
        return Section(title, (Paragraph((sentence("Not measured: {}.", Name(why)),)),))
    measured = found.measured
    kl = quotes.figure("kl_to_final_bits", measured.kl_to_final_bits, Unit.BITS, (*_LAST, "kl_to_final_bits"))
    temperature = quotes.figure("temp_est", measured.temp_est, Unit.NUMBER, (*_LAST, "temp_est"))
    after = quotes.figure("kl_after_temp_bits", measured.kl_after_temp_bits, Unit.BITS, (*_LAST, "kl_after_temp_bits"))
    agree = quotes.figure("top1_agree", measured.top1_agree, Unit.TRUTH, (*_LAST, "top1_agree"))
    warn = quotes.figure(
        "warn_high_last_layer_kl", found.warn_high_last_layer_kl, Unit.TRUTH, (*_LAST, "warn_high_last_layer_kl")
    )
    said = [
        sentence(
            "The last layer under {} is {} bits from the model's output; same top-1 token: {}.",
            Name(quotes.headline),
            kl,
            agree,
        ),
        sentence("The best temperature, {}, leaves {} bits; warning: {}.", temperature, after, warn),
    ]
    return Section(title, (Paragraph((*said, *_transform(quotes))),))


def _transform(quotes: Quotes) -> list[Sentence]:
    """What the head's own scale and soft cap account for."""
    found = quotes.found.last_layer
    if found is None:
        return []
    measured, fits = found.measured, (*_LAST, "kl_after_transform_bits")
    scale = quotes.figure("scale", measured.scale, Unit.NUMBER, (*_LAST, "cfg_transform", "scale"))
    cap = quotes.figure("softcap", measured.softcap, Unit.LOGIT, (*_LAST, "cfg_transform", "softcap"))
    rests = (
        ("scale then soft cap", measured.kl_after_scale_then_softcap_bits, "scale_then_softcap"),
        ("soft cap", measured.kl_after_softcap_bits, "softcap"),
        ("scale", measured.kl_after_scale_bits, "scale"),
    )
    name, value, key = next((rest for rest in rests if rest[1] is not None), rests[0])
    left = quotes.figure(f"kl_after_transform_bits.{key}", value, Unit.BITS, (*fits, key))
    if left.value is not None and value is not None:
        explains = (
            "which accounts for the distance" if value < found.threshold_bits else "which does not account for it"
        )
        declared: list[Part | str] = ["soft cap ", cap] if measured.softcap is not None else ["scale ", scale]
        said = [sentence("The model declares {}; with its {} {} bits remain, {}.", declared, name, left, explains)]
        return said + ([_why_softcap()] if measured.softcap is not None else [])
    if not found.warn_high_last_layer_kl:
        return []
    return [
        sentence(
            "The file declares no scale and no soft cap{}, so the model's own transform could not be tried.",
            Basis((scale, cap)),
        ),
        *_like_a_softcap(quotes, found.measured),
    ]


def _like_a_softcap(quotes: Quotes, measured: LastLayerRecord) -> list[Sentence]:
    """That the last row is what a soft cap would leave: too certain, and mended in part by a temperature."""
    lens, model = (
        quotes.figure(name, value, Unit.PROBABILITY, (*_LAST, name))
        for name, value in (("p_top1_lens", measured.p_top1_lens), ("p_top1_model", measured.p_top1_model))
    )
    p, q = measured.p_top1_lens, measured.p_top1_model
    before, after = measured.kl_to_final_bits, measured.kl_after_temp_bits
    if p is None or q is None or before is None or after is None or not (p > q and 0 < after < before):
        return []
    return [
        sentence(
            "The last row is more certain than the model{}, and one temperature mends a part of it alone: that "
            "is what a soft cap on the model's logits leaves in rows that do not pass it.",
            Basis((lens, model)),
        )
    ]


def _why_softcap() -> Sentence:
    return sentence(
        "A soft cap bends large logits more than small ones, so no single temperature stands for it; rows that do not "
        "pass it are too certain."
    )


def _repetition(quotes: Quotes) -> Section:
    """Whether a second time gives the same."""
    base, found = (_D, "repeatability"), quotes.found.repeatability
    status = quotes.figure(
        "status", found.status if found.status != "unavailable" else None, Unit.TEXT, (*base, "status")
    )
    deviation = quotes.figure("max_rank_dev", found.max_rank_dev, Unit.COUNT, (*base, "max_rank_dev"))
    flips = quotes.figure("top1_flip_rate", found.top1_flip_rate, Unit.SHARE, (*base, "top1_flip_rate"))
    if deviation.value is None:
        why: list[Part | str] = [" (", Name(found.reason), ")"] if found.reason else []
        said = [sentence("No second decode was made or kept{}.", why)]
    else:
        said = [
            sentence(
                "Second decode {}: largest rank deviation {}, share of layers whose top-1 token flipped {}.",
                status,
                deviation,
                flips,
            )
        ]
    mode = quotes.stated("mode", Unit.TEXT, (_D, "repeatability_forward", "mode"))
    if mode.value is not None:
        passed = quotes.stated(
            "repeatability_forward_pass",
            Unit.TRUTH,
            (_D, "repeatability_forward", "gate", "repeatability_forward_pass"),
        )
        said.append(sentence("Second forward pass: {}, agreement {}.", mode, passed))
    return Section("Repeatability", (Paragraph(tuple(said)),))


def _decoding(quotes: Quotes) -> Section:
    """Whether milestones hang on the norm of the block that wrote, or of the next."""
    point, title = quotes.found.decoding_point, "Decoding point"
    gate = quotes.figure(
        "decoding_point_consistent",
        point.consistent,
        Unit.TRUTH,
        (_D, "decoding_point", "gate", "decoding_point_consistent"),
    )
    if not quotes.ranked:
        return Section(title, (Paragraph((sentence("The identity check failed, and milestones do not stand."),)),))
    if not point.targets:
        if gate.value is None:
            why = point.reason or "the files do not say"
            return Section(title, (Paragraph((sentence("Not tested: {}.", Name(why)),)),))
        return Section(title, (Paragraph((sentence("Consistent, as the file states it: {}.", gate),)),))
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
    caption = quotes.caption(
        "Rank of the answer under the norm of the block that wrote last and under that of the next, and "
        "the share of their most likely tokens; consistent: {}.",
        gate,
        marked=False,
    )
    header = ("milestone", "layer", "post_ln2", "next_norm", "Jaccard@10")
    return Section(title, (table(header, rows, caption),))


def _of_target(quotes: Quotes, target: DecodingTarget, key: str, value: int | float | None, unit: Unit) -> Claim:
    """A figure of one target, cited where the file lists that target."""
    name = target.name.replace(ONSET, f"{ONSET}_{quotes.label}") if target.name == ONSET else target.name
    for place in range(len(quotes.found.decoding_point.targets)):
        base = (_D, "decoding_point", "per_target", place)
        entry = quotes.evidence.entry(*base, "name")
        if entry is not None and entry.value in (name, target.name):
            return quotes.figure(key, value, unit, (*base, key))
    return quotes.figure(key, value, unit)


def _guidance(quotes: Quotes) -> Section:
    """What may be quoted, each reason against it with its weight."""
    found, base = quotes.guidance, ("measurement_guidance",)
    suppress = quotes.figure("suppress_abs_probs", found.suppress_abs_probs, Unit.TRUTH, (*base, "suppress_abs_probs"))
    prefer = quotes.figure("prefer_ranks", found.prefer_ranks, Unit.TRUTH, (*base, "prefer_ranks"))
    lens = "norm" if found.preferred_lens == "next_norm" else found.preferred_lens
    preferred = quotes.figure("preferred_lens_for_reporting", lens, Unit.TEXT, (*base, "preferred_lens_for_reporting"))
    confirmed = quotes.figure(
        "use_confirmed_semantics", found.use_confirmed, Unit.TRUTH, (*base, "use_confirmed_semantics")
    )
    said = [
        sentence("Prefer ranks: {}; suppress absolute probabilities: {}.", prefer, suppress),
        sentence("Preferred lens: {}; use the confirmed semantic layer: {}.", preferred, confirmed),
    ]
    if quotes.evidence.entry("measurement_guidance") is None:
        said.append(sentence("The files hold no guidance; this is what their rows call for."))
    blocks: list[Block] = [Paragraph(tuple(said))]
    stated = _stated_reasons(quotes)
    rows = [row(Name(r.name), r.severity, Name(r.text), _reason(quotes, r.name, stated)) for r in found.reasons]
    if rows:
        blocks.append(table(("reason", "weight", "what it means", "stated in the file"), rows))
    further = [claim for name, claim in stated.items() if name not in {reason.name for reason in found.reasons}]
    if further:
        parts = [part for claim in further for part in (Text(", "), claim)][1:]
        blocks.append(
            Paragraph((sentence("The file gives reasons that its rows do not bear out, or cannot: {}.", parts),))
        )
    if found.undetermined:
        unknown = sentence("Neither raised nor ruled out, for want of data: {}.", names(found.undetermined))
        blocks.append(Paragraph((unknown,)))
    return Section("Guidance", tuple(blocks))


def _stated_reasons(quotes: Quotes) -> dict[str, Claim]:
    """The reasons that the file lists."""
    entry = quotes.evidence.entry("measurement_guidance", "reasons")
    items = [] if entry is None else quotes.evidence.json.children(entry)
    claims = [quotes.stated("reason", Unit.TEXT, item.path) for item in items]
    return {claim.value: claim for claim in claims if isinstance(claim.value, str)}


def _reason(quotes: Quotes, name: str, stated: dict[str, Claim]) -> tuple[Part, ...]:
    behind = stated.get(name)
    if behind is not None:
        return (Text("yes"), Basis((behind,)))
    return (Text("no"), Basis((quotes.shape(name, True, "found in the rows"),)))
