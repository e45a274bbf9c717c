"""Patterns and anomalies: where words show along the prompt, direction before size, and what the curves really do."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layerscope.analysis import curve_shapes as shapes
from layerscope.record.milestone_names import ONSET
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Basis, Name, Section, Sentence, paragraph, row, sentence, short_section
from layerscope.report.cited.sources import CsvFile, CsvRow
from layerscope.report.evaluation.findings import rest_mass
from layerscope.report.evaluation.lenses import lens_check
from layerscope.report.evaluation.prompts import head_on_test_prompt, temperature_claims
from layerscope.report.evaluation.quotes import D, Quotes, at_layer, not_measured, table, token

SHORTEST = 4
"""Letters that a word of the prompt must have to be followed."""
LISTED = 20
"""Pairs of token and probability that a row of the records table has room for."""

CROSSINGS = "The cosine to the output first reaches {} {}, rank 1 comes {}, a divergence of at most {} bits {}."
NOT_EARLY = "That crossing is no early direction: at layer {} the cosine is back at {}{}."
AT_LAST = (
    "The direction is there at the last layer alone{}, and even there the divergence is not that small: the size of "
    "the logits is not the model's."
)
NEVER_NEAR = (
    "The direction stays{}, but the divergence never comes that near: the size of the logits is not the model's."
)
AT_ONCE = "Direction and distribution come at one layer{}."
DIRECTION_FIRST = "The cosine comes first and stays{}; the distribution follows later."
CENTRED_TOO = (
    "So it does once every state has lost its mean{}: the direction is the output's own, and no constant that all "
    "states share."
)
CENTRED_LATER = (
    "Once every state has lost its mean, the cosine stays from layer {} on{}: earlier the direction is one that all "
    "states share, and none of this output."
)
CENTRED_NEVER = (
    "Once every state has lost its mean, the cosine does not stay at any layer before the last{}: the early direction "
    "is one that all states share, and none of this output."
)
DISTRIBUTION_FIRST = "The distribution is near before the direction is{}."
UNBROKEN = "On the control its own answer leads the fact's from layer {} on without a break."
BROKEN = "On the control the margin changes sign after it is first positive; it stays positive from layer {} on."
KEPT = (
    "In the model's head the answer has rank 1 at temperatures {} and {}{}, as it must: a temperature changes no order."
)
NOT_FIRST = "In the model's head the answer does not have rank 1 at temperatures {} and {}{}."
DRIFT = "Entropy of rows less that of the model's output, over layers; above zero is less certain than the model."


def patterns(quotes: Quotes) -> Section:
    """The section; of a run whose ranks do not stand, what the model's own head says."""
    title = "Patterns and anomalies"
    if not quotes.ranked:
        none = sentence("The identity check failed: no pattern of lens rows is named.")
        return Section(title, (doc.Bullets((none, *head_on_test_prompt(quotes), *_temperature(quotes))),))
    items = (
        *_rotation(quotes),
        *head_on_test_prompt(quotes),
        *_control_curve(quotes),
        *rest_mass(quotes),
        *_last_step(quotes),
        *_temperature(quotes),
        *lens_check(quotes),
    )
    return Section(title, (doc.Bullets(items),) if items else (), (_trajectory(quotes), _drift(quotes)))


# Direction and size


def _rotation(quotes: Quotes) -> Iterator[Sentence]:
    """Whether the direction of the output is there before its distribution."""
    c, bits = quotes.thresholds.cos_to_final[1], quotes.thresholds.kl_to_final_bits[0]
    cosine, kl = quotes.milestone(f"cos_ge_{c:g}"), quotes.milestone(f"first_kl_below_{bits:.1f}")
    if cosine.value is None or not quotes.points("cos_to_final"):
        return
    near, rank = Name(f"{bits:.1f}"), at_layer(quotes.milestone(ONSET))
    yield sentence(CROSSINGS, Name(f"{c:g}"), at_layer(cosine), rank, near, at_layer(kl))
    yield from _reading(quotes, cosine, kl, c)


def _reading(quotes: Quotes, cosine: Claim, kl: Claim, bound: float) -> Iterator[Sentence]:
    """What the order of these layers supports, tested over the whole curve."""
    curve = quotes.points("cos_to_final")
    held = shapes.held_from(curve, lambda value: value >= bound)
    if not isinstance(cosine.value, int) or curve[-1][0] != quotes.n_layers:
        return
    basis = Basis((quotes.shape("cos_held", held == cosine.value, "every later layer"),))
    if held != cosine.value:
        gone = shapes.returns(curve, lambda value: value >= bound)
        yield sentence(NOT_EARLY, quotes.cell("layer", gone[0]), quotes.cell("cos_to_final", gone[0]), basis)
    elif not_measured(kl):
        return
    elif kl.value is None:
        yield sentence(AT_LAST if held == quotes.n_layers else NEVER_NEAR, basis)
    elif not isinstance(kl.value, int) or cosine.value == kl.value:
        yield sentence(AT_ONCE, basis)
    else:
        yield sentence(DIRECTION_FIRST if cosine.value < kl.value else DISTRIBUTION_FIRST, basis)
        if cosine.value < kl.value:
            yield from _centred(quotes, cosine.value, bound)


def _centred(quotes: Quotes, layer: int, bound: float) -> Iterator[Sentence]:
    """Whether an early direction is more than what all states share; nothing where files do not say."""
    curve = quotes.points("cos_to_final_centered")
    if not curve or curve[-1][0] != quotes.n_layers:
        return
    held = shapes.held_from(curve, lambda value: value >= bound)
    if held is None or held == quotes.n_layers:
        yield sentence(CENTRED_NEVER, Basis((quotes.cell("cos_to_final_centered", layer),)))
    elif held > layer:
        before = Basis((quotes.cell("cos_to_final_centered", held - 1), quotes.cell("cos_to_final_centered", held)))
        yield sentence(CENTRED_LATER, quotes.cell("layer", held), before)
    else:
        yield sentence(CENTRED_TOO, Basis((quotes.cell("cos_to_final_centered", layer),)))


def _control_curve(quotes: Quotes) -> Iterator[Sentence]:
    """Whether the control's margin, once positive, stays so."""
    prompt = next((key for key in quotes.evidence.verdict.curves.passes if not key.is_fact), None)
    curve = None if prompt is None else quotes.evidence.curve(prompt=prompt)
    if curve is None or prompt is None:
        return
    margins = shapes.points((row["layer"], row["control_margin"]) for row in curve.rows)
    held = shapes.held_from(margins, lambda value: value > 0)
    first = shapes.first_where(margins, lambda value: value > 0)
    if held is not None and first is not None:
        how, rows = "first layer from which every margin is positive", quotes.rows(prompt=prompt)
        claim = quotes.evidence.derived("control_margin_held_from", held, Unit.LAYER, rows, how)
        yield sentence(UNBROKEN if held == first else BROKEN, claim)


def _last_step(quotes: Quotes) -> Iterator[Sentence]:
    """Whether entropy rises in the last step; said as a direction alone."""
    curve = quotes.points("entropy_bits")
    last = shapes.between(curve, quotes.n_layers - 1, quotes.n_layers)
    if len(last) < 2 or not quotes.quotable:
        return
    ends = quotes.cells("entropy_bits", (layer for layer, _ in last))
    change = last[1][1] - last[0][1]
    word = "rises" if change > 0 else "falls" if change < 0 else "stays"
    how = "sign of the difference of two layers"
    claim = quotes.evidence.derived("entropy_last_step", word, Unit.TEXT, ends, how)
    yield sentence("In the step to the last layer the entropy {}.", claim)


def _temperature(quotes: Quotes) -> Iterator[Sentence]:
    """Whether the answer keeps its rank in the head at other temperatures."""
    explored = [temperature_claims(quotes, at) for at in range(len(quotes.record.measured.temperature_exploration))]
    ranks = [claims["rank"] for claims in explored]
    if ranks and all(rank.value is not None for rank in ranks):
        template = KEPT if all(rank.value == 1 for rank in ranks) else NOT_FIRST
        yield sentence(template, explored[0]["temperature"], explored[-1]["temperature"], Basis(tuple(ranks)))


def _drift(quotes: Quotes) -> Section:
    """How much less certain rows are than the model."""
    gap, title = quotes.diagnostics.entropy_gap, "Entropy drift against the model"
    if gap is None or not gap.n_layers:
        return short_section(title, sentence("The files do not hold the model's own entropy beside rows."))
    at, quarters = quotes.under(D, "entropy_gap_bits_percentiles"), ("p25", "p50", "p75")
    cells = [at.figure(f"entropy_gap_bits_{p}", Unit.BITS, p, value=gap.percentiles[p]) for p in quarters]
    count = quotes.under(D).figure("entropy_gap_samples", Unit.COUNT, value=gap.n_layers)
    header = ("layers", *(quotes.mark(f"{p} (bits)") for p in quarters))
    blocks: list[doc.Block] = [table(header, [row(count, *cells)], quotes.caption(DRIFT))]
    if quotes.quotable:
        over, how = [layer for layer, bits in _gaps(quotes) if bits < 0], "layers whose gap is negative"
        below = quotes.shape("layers_more_certain_than_the_model", len(over), how, unit=Unit.COUNT)
        blocks.append(paragraph(sentence("Rows are more certain than the model at {} layers.", below)))
    return Section(title, tuple(blocks))


def _gaps(quotes: Quotes) -> list[shapes.Point]:
    entropies, teacher = quotes.points("entropy_bits"), dict(quotes.points("teacher_entropy_bits"))
    return [(layer, bits - teacher[layer]) for layer, bits in entropies if layer in teacher]


# Words along the prompt


@dataclass(frozen=True)
class _Seen:
    """Where a word is first listed, and first on top, at one position."""

    first_row: CsvRow
    """Of the position."""
    listed: CsvRow | None
    top: CsvRow | None
    n_top: int
    """Layers at which it is on top."""


def _trajectory(quotes: Quotes) -> Section:
    """The answer at every position, and words of the prompt at the last."""
    title, records, answer = "Important words", quotes.records(), quotes.answer
    if records is None or answer is None or quotes.evidence.primary is None:
        return short_section(title, sentence("The run has no table of records to follow words in."))
    by_position = _rows_by_position(quotes, records)
    if not by_position:
        return short_section(title, sentence("The table of records has no rows of the primary prompt."))
    followed = (_follow(answer, rows) for _, rows in sorted(by_position.items()))
    seen = [at for at in followed if at.listed is not None]
    rows = [
        row(
            _value(quotes, records, at.first_row, "pos", Unit.COUNT),
            token(at.first_row.cells.get("token") or "", _place(quotes, records, at.first_row)),
            *_layers(quotes, records, at),
        )
        for at in seen
    ]
    if rows:
        where = "Where the answer shows along the prompt: positions at which any layer lists it among its tokens."
        header = ("position", "input token", "first listed (layer)", "first on top (layer)", "layers on top")
        shown: doc.Block = table(header, rows, sentence(where))
    else:
        every = [row for rows in by_position.values() for row in rows]
        claim = quotes.evidence.derived("positions_with_answer", 0, Unit.COUNT, [records.span(every)], "count")
        shown = paragraph(sentence("The answer is listed at {} positions.", claim))
    return Section(title, (shown, _words(quotes, records, by_position[max(by_position)])))


def _words(quotes: Quotes, records: CsvFile, last: Sequence[CsvRow]) -> doc.Block:
    """Words of the prompt at its last position."""
    text = quotes.prompt.text if quotes.prompt is not None and quotes.prompt.text else ""
    words = [word for word in dict.fromkeys(re.findall(r"[^\W\d_]+", text)) if len(word) >= SHORTEST]
    followed = {word: _follow(word, last) for word in words if word != quotes.answer}
    seen = {word: at for word, at in followed.items() if at.listed is not None}
    if not seen:
        basis = [records.span(last)]
        claim = quotes.evidence.derived("prompt_words_listed", 0, Unit.COUNT, basis, "count of words")
        template = "At the last position {} of the prompt's own words are listed at any layer."
        return paragraph(sentence(template, claim))
    rows = [row(token(word), *_layers(quotes, records, at)) for word, at in seen.items()]
    header = ("word of the prompt", "first listed (layer)", "first on top (layer)", "layers on top")
    return table(header, rows, sentence("The prompt's own words at its last position."))


def _rows_by_position(quotes: Quotes, records: CsvFile) -> dict[int, list[CsvRow]]:
    primary = quotes.evidence.primary
    by_position: dict[int, list[CsvRow]] = {}
    for record in records.rows:
        cells = record.cells
        if primary is None or (cells.get("prompt_id") or "pos") != primary.prompt_id:
            continue
        if (cells.get("prompt_variant") or "orig") != primary.prompt_variant:
            continue
        if record.number_in("fact_index") not in (None, primary.fact_index):
            continue
        position = record.number_in("pos")
        if isinstance(position, int) and isinstance(record.number_in("layer"), int):
            by_position.setdefault(position, []).append(record)
    return {position: sorted(rows, key=lambda r: r.number_in("layer") or 0) for position, rows in by_position.items()}


def _follow(word: str, rows: Sequence[CsvRow]) -> _Seen:
    listed = next((row for row in rows if word in _tokens(row)), None)
    on_top = [row for row in rows if (row.cells.get("top1") or "").strip() == word]
    return _Seen(rows[0], listed, on_top[0] if on_top else None, len(on_top))


def _tokens(record: CsvRow) -> list[str]:
    return [(record.cells.get(f"top{i}") or "").strip() for i in range(1, LISTED + 1)]


def _layers(quotes: Quotes, records: CsvFile, at: _Seen) -> list[Claim]:
    none = quotes.absent("layer", Unit.LAYER, "at no layer")
    rows = (at.listed, at.top)
    claims = [none if row is None else _value(quotes, records, row, "layer", Unit.LAYER) for row in rows]
    behind = [claim for claim in claims if claim.citations]
    return [*claims, quotes.evidence.derived("layers_on_top", at.n_top, Unit.COUNT, behind, "count of layers")]


def _place(quotes: Quotes, records: CsvFile, record: CsvRow) -> Claim:
    text, cited = record.cells.get("token"), records.cite(record, "token")
    return quotes.evidence.claim("token", text, Unit.TOKEN, [cited])


def _value(quotes: Quotes, records: CsvFile, record: CsvRow, column: str, unit: Unit) -> Claim:
    value, cited = record.number_in(column), records.cite(record, column)
    return quotes.evidence.claim(column, value, unit, [cited], lens=quotes.headline)
