"""Limitations: what guidance forbids, and the known faults of files that were found in this one."""

from collections.abc import Iterator

from layerscope.record.milestone_names import ONSET, STABLE, STRONG, MilestoneName, stable_twin
from layerscope.report.cited.claims import Citation, Unit
from layerscope.report.cited.document import Basis, Block, Bullets, Name, Section, Sentence, row, sentence
from layerscope.report.evaluation.quotes import D, Quotes, layer_cell, names, table
from layerscope.report.sentences.guidance import EFFECTS

SATURATED_BITS = 95.0
"""Divergences from here on are decided by the floor under probabilities."""

TWO_INSTRUMENTS = (
    "The sampled risk ({}) and the tier over all layers ({}) are two instruments; one does not stand for the other."
)
NULLS = (
    "The file has null for gates that rest on the lead of logits{}, though its rows hold that lead; the layers above "
    "are recomputed."
)
RADIUS = (
    "The file looked {} layers around milestones, fewer than its sampled risk calls for; the window above is the wider "
    "one."
)
PROMOTED = "The flag {} tells whether a promotion was needed ({}), not the precision, which is {}."
LINE_BREAKS = "Tokens contain line breaks: the table has {} rows in {} lines, and citations give physical lines."
UNDERFLOW = (
    "At {} layers the answer's probability has underflowed, and its rank counts only tokens whose probability has not."
)
NO_CAP = "The file has no soft cap{}: its constant was not found, which is no proof that the model has none."
MADE_ELSEWHERE = (
    "How fitted lenses ({}) were made cannot be checked from these files; their figures describe that fit and are no "
    "property of the model."
)
SKIPPED = (
    "The file's skip-layer figures rest on a few prompts, and {} skips one block ({}); nothing is concluded from them."
)


def limitations(quotes: Quotes) -> Section:
    """The section."""
    faults = (*(_milestones(quotes) if quotes.ranked else ()), *_format(quotes))
    items = (*_cautions(quotes), *_scope(quotes), *faults, *_rows(quotes), *_fitted(quotes))
    tables = (_otherwise(quotes) if quotes.ranked else None, _figures_otherwise(quotes))
    blocks: list[Block] = [Bullets(items), *(block for block in tables if block is not None)]
    return Section("Limitations", tuple(blocks))


def _cautions(quotes: Quotes) -> Iterator[Sentence]:
    """What guidance takes away from conclusions, by the weight of its reasons."""
    for weight in ("block", "advise"):
        of_weight = [reason.name for reason in quotes.guidance.reasons if reason.severity == weight]
        effect = EFFECTS["withheld" if weight == "block" and quotes.by_status else weight]
        if of_weight:
            yield sentence("Because of {}, {}.", names(of_weight), effect)


def _scope(quotes: Quotes) -> Iterator[Sentence]:
    diagnostics = quotes.diagnostics
    if "logit" not in quotes.record.protocol.lenses:
        yield sentence("Rows of one norm alone: how far layers move under the model's final norm is not known.")
    if diagnostics.micro_suite.n == 1:
        yield sentence("One fact alone: a layer of one fact is no property of the model.")
    gate = quotes.under(D, "decoding_point", "gate").stated("gate", Unit.TRUTH, "decoding_point_consistent")
    if diagnostics.decoding_point.consistent is None and gate.value is None:
        yield sentence("How much hangs on the norm of one block or the next was not tested.")
    sample, full = diagnostics.raw_sample, diagnostics.raw_full
    if sample is not None and full is not None and full.whole.n_layers:
        risk, tier = sample.lens_artifact_risk, full.whole.score.tier
        if risk is not None and tier is not None and risk != tier:
            yield sentence(TWO_INSTRUMENTS, Name(risk), Name(tier))
    for problem in quotes.record.problems:
        yield sentence("{}.", Name(f"{problem.file}: {problem.message}"))


def _milestones(quotes: Quotes) -> Iterator[Sentence]:
    copies, window = quotes.diagnostics.copy_thresholds, quotes.diagnostics.raw_window
    gaps = [quotes.evidence.otherwise(name) for name in (STRONG, MilestoneName.TOP2_OK, "gap_ge_0.5")]
    nulls = tuple(claim for claim in gaps if claim is not None and claim.value is None)
    if nulls:
        yield sentence(NULLS, Basis(nulls))
    if copies is not None:
        path = (D, "copy_thresholds", "stability")
        stability = quotes.otherwise("stability", copies.stability, Unit.TEXT, path)
        if stability is not None:
            template = "The file calls the copy thresholds {}; by the rule they are {}."
            yield sentence(template, stability, Name(copies.stability))
    if window is not None:
        radius = quotes.otherwise("radius", window.radius, Unit.COUNT, (D, "raw_lens_window", "radius"))
        if radius is not None:
            yield sentence(RADIUS, radius)


def _format(quotes: Quotes) -> Iterator[Sentence]:
    at, evidence = quotes.under(D), quotes.evidence
    promoted, dtype = at.stated("use_fp32_unembed", Unit.TRUTH), at.stated("unembed_dtype", Unit.TEXT)
    if promoted.value is False and dtype.value == "torch.float32":
        yield sentence(PROMOTED, Name("use_fp32_unembed"), promoted, dtype)
    samples, sampled = evidence.entry("raw_lens_check", "samples"), quotes.diagnostics.raw_sample
    count = 0 if samples is None else len(evidence.json.children(samples))
    if samples is not None and sampled is not None and count > len(sampled.samples) > 0:
        cited = evidence.derived("samples", count, Unit.COUNT, [evidence.cite(samples)], "count")
        yield sentence("The file's raw-lens samples mix several facts ({} entries).", cited)
    window = quotes.diagnostics.position_window
    if window is not None and window.rank1_frac is None and window.rank1_frac_reason is not None:
        stated = quotes.under(D, "position_window").stated("rank1_frac", Unit.SHARE)
        if stated.value is not None:
            template = "The file's share of positions with rank 1, {}, rests on the last position alone."
            yield sentence(template, stated)
    rows_at = evidence.table()
    if rows_at is not None and rows_at.rows and rows_at.n_lines > len(rows_at.rows) + 1:
        whole = Citation(rows_at.name, 1, rows_at.n_lines)
        rows = evidence.derived("rows", len(rows_at.rows), Unit.COUNT, [whole], "count of rows")
        lines = evidence.derived("lines", rows_at.n_lines, Unit.COUNT, [whole], "count of lines")
        yield sentence(LINE_BREAKS, rows, lines)


def _rows(quotes: Quotes) -> Iterator[Sentence]:
    """What floors and underflow have done to rows."""
    rows = () if quotes.curve is None else quotes.curve.rows
    n_floored = sum(row["p_answer"] == 0 and row["answer_rank"] is not None for row in rows)
    if n_floored:
        how = "rows with p_answer of zero and a rank"
        yield sentence(UNDERFLOW, quotes.shape("p_answer_zero", n_floored, how, unit=Unit.COUNT))
    for column, word in (("kl_to_final_bits", "from the output"), ("kl_norm_vs_raw_bits", "from the raw lens")):
        high = [layer for layer, bits in quotes.points(column) if bits >= SATURATED_BITS]
        if high:
            cell = quotes.cell if column == "kl_to_final_bits" else quotes.raw_cell
            first = cell(column, high[0])
            basis = [first] if first.citations else quotes.rows()
            name = f"{column}_saturated"
            count = quotes.evidence.derived(name, len(high), Unit.COUNT, basis, "count of layers")
            template = "At {} layers the divergence {} is the floor under probabilities and no measurement."
            yield sentence(template, count, word)
    last = quotes.diagnostics.last_layer
    if last is not None and last.warn_high_last_layer_kl and last.measured.softcap is None:
        at = quotes.under(D, "last_layer_consistency", "cfg_transform")
        yield sentence(NO_CAP, Basis((at.stated("softcap", Unit.LOGIT),)))


def _fitted(quotes: Quotes) -> Iterator[Sentence]:
    records = quotes.record.measured.fitted_lenses
    for note in (note for record in records for note in record.notes):
        yield sentence("{}", Name(note))
    foreign = quotes.record.source == "published" and quotes.record.layerscope_version is None
    loaded = [record.kind for record in records if record.status == "loaded"]
    if foreign and loaded:
        yield sentence(MADE_ELSEWHERE, names(loaded))
    skip = quotes.stated("m", Unit.NUMBER, (D, "skip_layers_sanity", "m=2"))
    if skip.value is not None and foreign:
        yield sentence(SKIPPED, Name("m=2"), skip)


def _otherwise(quotes: Quotes) -> Block | None:
    """Milestones of which the file states another layer."""
    rows = []
    for name in quotes.evidence.verdict.milestones.of():
        stated = quotes.evidence.otherwise(name)
        if stated is not None and not name.endswith(STABLE) and name != stable_twin(ONSET):
            rows.append(row(Name(name), layer_cell(quotes.milestone(name)), stated))
    caption = sentence("Milestones that the file states otherwise.")
    return table(("milestone", "from the rows", "in the file"), rows, caption) if rows else None


def _figures_otherwise(quotes: Quotes) -> Block | None:
    """Figures above of which the file states another value, each by its place in the file."""
    rows = [
        row(Name(".".join(map(str, path[1:] if path[0] == D else path))), ours, stated)
        for path, (ours, stated) in quotes.otherwise_stated.items()
    ]
    figures = [ours for ours, _ in quotes.otherwise_stated.values()]
    bare = all(ours.unit is not Unit.PROBABILITY and "entropy" not in ours.name for ours in figures)
    columns = [name if bare else quotes.mark(name) for name in ("from the rows", "in the file")]
    caption = quotes.caption("Figures that the file states otherwise.", marked=not bare)
    return table(("figure", *columns), rows, caption) if rows else None
