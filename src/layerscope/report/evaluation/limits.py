"""Limitations: what guidance forbids, and the known faults of files that were found in this one."""

from layerscope.analysis.milestones import STABLE
from layerscope.report.cited.claims import Citation, Unit
from layerscope.report.cited.document import Basis, Block, Bullets, Name, Section, Sentence, row, sentence
from layerscope.report.evaluation.overview import ONSET, STRONG
from layerscope.report.evaluation.quotes import Quotes, layer_cell, names, table

_D = "diagnostics"
SATURATED_BITS = 95.0
"""Divergences from here on are decided by the floor under probabilities."""


def limitations(quotes: Quotes) -> Section:
    """The section."""
    items = [
        *_cautions(quotes),
        *_scope(quotes),
        *_files(quotes),
        *_rows(quotes),
        *_fitted(quotes),
    ]
    tables = (_otherwise(quotes) if quotes.ranked else None, _figures_otherwise(quotes))
    blocks: list[Block] = [Bullets(tuple(items)), *(one for one in tables if one is not None)]
    return Section("Limitations", tuple(blocks))


def _cautions(quotes: Quotes) -> list[Sentence]:
    """What guidance takes away from conclusions, by the weight of its reasons."""
    said = []
    for weight, effect in (
        ("block", "probabilities and entropies of lens rows are no evidence here"),
        ("advise", "what is quoted is to be read with the sentences of the table under Guidance"),
    ):
        of_weight = [reason.name for reason in quotes.guidance.reasons if reason.severity == weight]
        if of_weight:
            said.append(sentence("Because of {}, {}.", names(of_weight), effect))
    return said


def _scope(quotes: Quotes) -> list[Sentence]:
    said = []
    if "logit" not in quotes.record.protocol.lenses:
        said.append(sentence("Rows of one norm alone: how far layers move under the model's final norm is not known."))
    if quotes.found.micro_suite.n == 1:
        said.append(sentence("One fact alone: a layer of one fact is no property of the model."))
    gate = quotes.stated("gate", Unit.TRUTH, (_D, "decoding_point", "gate", "decoding_point_consistent"))
    if quotes.found.decoding_point.consistent is None and gate.value is None:
        said.append(sentence("How much hangs on the norm of one block or the next was not tested."))
    sample, full = quotes.found.raw_sample, quotes.found.raw_full
    if sample is not None and full is not None and full.whole.n_layers:
        risk, tier = sample.lens_artifact_risk, full.whole.score.tier
        if risk is not None and tier is not None and risk != tier:
            said.append(
                sentence(
                    "The sampled risk ({}) and the tier over all layers ({}) are two instruments; one does not stand "
                    "for the other.",
                    Name(risk),
                    Name(tier),
                )
            )
    for problem in quotes.record.problems:
        said.append(sentence("{}.", Name(f"{problem.file}: {problem.message}")))
    return said


def _files(quotes: Quotes) -> list[Sentence]:
    """Faults of files in this format, each where it is found."""
    if not quotes.ranked:
        return _format(quotes)
    said = []
    gaps = [quotes.evidence.otherwise(name) for name in (STRONG, "L_semantic_top2_ok", "gap_ge_0.5")]
    nulls = tuple(claim for claim in gaps if claim is not None and claim.value is None)
    if nulls:
        said.append(
            sentence(
                "The file has null for gates that rest on the lead of logits{}, though its rows hold that lead; "
                "the layers above are recomputed.",
                Basis(nulls),
            )
        )
    copies = quotes.found.copy_thresholds
    stability = (
        None
        if copies is None
        else quotes.otherwise("stability", copies.stability, Unit.TEXT, (_D, "copy_thresholds", "stability"))
    )
    if stability is not None and copies is not None:
        said.append(
            sentence(
                "The file calls the copy thresholds {}; by the rule they are {}.", stability, Name(copies.stability)
            )
        )
    window = quotes.found.raw_window
    radius = (
        None
        if window is None
        else quotes.otherwise("radius", window.radius, Unit.COUNT, (_D, "raw_lens_window", "radius"))
    )
    if radius is not None:
        said.append(
            sentence(
                "The file looked {} layers around milestones, fewer than its sampled risk calls for; the window "
                "above is the wider one.",
                radius,
            )
        )
    return said + _format(quotes)


def _format(quotes: Quotes) -> list[Sentence]:
    said = []
    promoted = quotes.stated("use_fp32_unembed", Unit.TRUTH, (_D, "use_fp32_unembed"))
    dtype = quotes.stated("unembed_dtype", Unit.TEXT, (_D, "unembed_dtype"))
    if promoted.value is False and dtype.value == "torch.float32":
        said.append(
            sentence(
                "The flag {} tells whether a promotion was needed ({}), not the precision, which is {}.",
                Name("use_fp32_unembed"),
                promoted,
                dtype,
            )
        )
    samples = quotes.evidence.entry("raw_lens_check", "samples")
    count = 0 if samples is None else len(quotes.evidence.json.children(samples))
    if samples is not None and quotes.found.raw_sample is not None and count > len(quotes.found.raw_sample.samples) > 0:
        cited = quotes.evidence.derived("samples", count, Unit.COUNT, [quotes.evidence.cite(samples)], "count")
        said.append(sentence("The file's raw-lens samples mix several facts ({} entries).", cited))
    window = quotes.found.position_window
    if window is not None and window.rank1_frac is None and window.rank1_frac_reason is not None:
        stated = quotes.stated("rank1_frac", Unit.SHARE, (_D, "position_window", "rank1_frac"))
        if stated.value is not None:
            said.append(
                sentence("The file's share of positions with rank 1, {}, rests on the last position alone.", stated)
            )
    table_ = quotes.evidence.table()
    if table_ is not None and table_.rows and table_.n_lines > len(table_.rows) + 1:
        whole = Citation(table_.name, 1, table_.n_lines)
        rows = quotes.evidence.derived("rows", len(table_.rows), Unit.COUNT, [whole], "count of rows")
        lines = quotes.evidence.derived("lines", table_.n_lines, Unit.COUNT, [whole], "count of lines")
        said.append(
            sentence(
                "Tokens contain line breaks: the table has {} rows in {} lines, and citations give physical lines.",
                rows,
                lines,
            )
        )
    return said


def _rows(quotes: Quotes) -> list[Sentence]:
    """What floors and underflow have done to rows."""
    said, curve = [], quotes.curve
    floored = (
        []
        if curve is None
        else [one["layer"] for one in curve.rows if one["p_answer"] == 0 and one["answer_rank"] is not None]
    )
    if floored:
        count = quotes.shape("p_answer_zero", len(floored), "rows with p_answer of zero and a rank", unit=Unit.COUNT)
        said.append(
            sentence(
                "At {} layers the answer's probability has underflowed, and its rank counts only tokens whose "
                "probability has not.",
                count,
            )
        )
    for column, word in (("kl_to_final_bits", "from the output"), ("kl_norm_vs_raw_bits", "from the raw lens")):
        high = [layer for layer, bits in quotes.points(column) if bits >= SATURATED_BITS]
        if high:
            one = (
                quotes.cell(column, high[0], Unit.BITS)
                if column == "kl_to_final_bits"
                else quotes.raw_cell(column, high[0], Unit.BITS)
            )
            basis = [one] if one.citations else quotes.rows()
            count = quotes.evidence.derived(f"{column}_saturated", len(high), Unit.COUNT, basis, "count of layers")
            said.append(
                sentence(
                    "At {} layers the divergence {} is the floor under probabilities and no measurement.", count, word
                )
            )
    found = quotes.found.last_layer
    if found is not None and found.warn_high_last_layer_kl and found.measured.softcap is None:
        cap = quotes.stated("softcap", Unit.LOGIT, (_D, "last_layer_consistency", "cfg_transform", "softcap"))
        said.append(
            sentence(
                "The file has no soft cap{}: its constant was not found, which is no proof that the model has none.",
                Basis((cap,)),
            )
        )
    return said


def _fitted(quotes: Quotes) -> list[Sentence]:
    said = [sentence("{}", Name(note)) for one in quotes.record.measured.sidecars for note in one.notes]
    foreign = quotes.record.source == "published" and quotes.record.layerscope_version is None
    loaded = [one.kind for one in quotes.record.measured.sidecars if one.status == "loaded"]
    if foreign and loaded:
        said.append(
            sentence(
                "How fitted lenses ({}) were made cannot be checked from these files; their figures describe that "
                "fit and are no property of the model.",
                names(loaded),
            )
        )
    skip = quotes.stated("m", Unit.NUMBER, (_D, "skip_layers_sanity", "m=2"))
    if skip.value is not None and foreign:
        said.append(
            sentence(
                "The file's skip-layer figures rest on a few prompts, and {} skips one block ({}); nothing is "
                "concluded from them.",
                Name("m=2"),
                skip,
            )
        )
    return said


def _otherwise(quotes: Quotes) -> Block | None:
    """Milestones of which the file states another layer."""
    own = quotes.evidence.verdict.milestones.of()
    rows = []
    for name in own:
        stated = quotes.evidence.otherwise(name)
        if stated is not None and not name.endswith(STABLE) and name != ONSET + STABLE:
            rows.append(row(Name(name), layer_cell(quotes.milestone(name)), stated))
    if not rows:
        return None
    caption = sentence("Milestones that the file states otherwise.")
    return table(("milestone", "from the rows", "in the file"), rows, caption)


def _figures_otherwise(quotes: Quotes) -> Block | None:
    """Figures above of which the file states another value, each by its place in the file."""
    rows = [
        row(Name(".".join(map(str, path[1:] if path[0] == _D else path))), ours, stated)
        for path, (ours, stated) in quotes.otherwise_stated.items()
    ]
    ours = [one for one, _ in quotes.otherwise_stated.values()]
    bare = all(one.unit is not Unit.PROBABILITY and "entropy" not in one.name for one in ours)
    columns = [name if bare else quotes.mark(name) for name in ("from the rows", "in the file")]
    caption = quotes.caption("Figures that the file states otherwise.", marked=not bare)
    return table(("figure", *columns), rows, caption) if rows else None
