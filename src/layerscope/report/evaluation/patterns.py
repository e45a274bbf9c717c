"""Patterns and anomalies: where words show along the prompt, direction before size, and what the curves really do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from layerscope.analysis import curve_shapes as shapes
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import (
    Basis,
    Block,
    Bullets,
    Name,
    Paragraph,
    Part,
    Section,
    Sentence,
    row,
    sentence,
)
from layerscope.report.cited.sources import CsvFile, CsvRow
from layerscope.report.evaluation.findings import rest_mass
from layerscope.report.evaluation.lenses import lens_check
from layerscope.report.evaluation.overview import ONSET
from layerscope.report.evaluation.prompts import head_on_test_prompt, temperature_claims
from layerscope.report.evaluation.quotes import Quotes, at_layer, not_measured, table, token

SHORTEST = 4
"""Letters that a word of the prompt must have to be followed."""
LISTED = 20
"""Pairs of token and probability that a row of the records table has room for."""


def patterns(quotes: Quotes) -> Section:
    """The section; of a run whose ranks do not stand, what the model's own head says."""
    if not quotes.ranked:
        head = [*head_on_test_prompt(quotes), *_temperature(quotes)]
        none = sentence("The identity check failed: no pattern of lens rows is named.")
        return Section("Patterns and anomalies", (Bullets((none, *head)),))
    items = [
        *_rotation(quotes),
        *head_on_test_prompt(quotes),
        *_control_curve(quotes),
        *rest_mass(quotes),
        *_last_step(quotes),
        *_temperature(quotes),
        *lens_check(quotes),
    ]
    sections = (_trajectory(quotes), _drift(quotes))
    return Section("Patterns and anomalies", (Bullets(tuple(items)),) if items else (), sections)


# Direction and size


def _rotation(quotes: Quotes) -> list[Sentence]:
    """Whether the direction of the output is there before its distribution."""
    c, bits = quotes.thresholds.cos_to_final[1], quotes.thresholds.kl_to_final_bits[0]
    cosine, kl = quotes.milestone(f"cos_ge_{c:g}"), quotes.milestone(f"first_kl_below_{bits:.1f}")
    rank = quotes.milestone(ONSET)
    if cosine.value is None or not quotes.points("cos_to_final"):
        return []
    said = [
        sentence(
            "The cosine to the output first reaches {} {}, rank 1 comes {}, a divergence of at most {} bits {}.",
            Name(f"{c:g}"),
            at_layer(cosine),
            at_layer(rank),
            Name(f"{bits:.1f}"),
            at_layer(kl),
        )
    ]
    return said + _reading(quotes, cosine, kl, c)


def _reading(quotes: Quotes, cosine: Claim, kl: Claim, bound: float) -> list[Sentence]:
    """What the order of these layers supports, tested over the whole curve."""
    curve = quotes.points("cos_to_final")
    held = shapes.held_from(curve, lambda value: value >= bound)
    if not isinstance(cosine.value, int) or curve[-1][0] != quotes.n_layers:
        return []
    if held != cosine.value:
        gone = shapes.returns(curve, lambda value: value >= bound)
        layers = (quotes.cell("layer", gone[0], Unit.LAYER), quotes.cell("cos_to_final", gone[0], Unit.COSINE))
        tail: tuple[Part | str, ...] = (Basis((quotes.shape("cos_held", False, "every later layer"),)),)
        return [
            sentence(
                "That crossing is no early direction: at layer {} the cosine is back at {}{}.",
                layers[0],
                layers[1],
                tail,
            )
        ]
    basis = Basis((quotes.shape("cos_held", True, "every later layer"),))
    if not_measured(kl):
        return []
    if kl.value is None and held == quotes.n_layers:
        return [
            sentence(
                "The direction is there at the last layer alone{}, and even there the divergence is not that "
                "small: the size of the logits is not the model's.",
                basis,
            )
        ]
    if kl.value is None:
        return [
            sentence(
                "The direction stays{}, but the divergence never comes that near: the size of the logits is not "
                "the model's.",
                basis,
            )
        ]
    if not isinstance(kl.value, int) or cosine.value == kl.value:
        return [sentence("Direction and distribution come at one layer{}.", basis)]
    if cosine.value < kl.value:
        return [
            sentence(
                "The direction comes first and stays{}; the distribution follows later: rotation before amplification.",
                basis,
            )
        ]
    return [sentence("The distribution is near before the direction is{}.", basis)]


def _control_curve(quotes: Quotes) -> list[Sentence]:
    """Whether the control's margin, once positive, stays so."""
    passes = quotes.evidence.verdict.curves.passes
    asked = next((one for one in passes if not one.is_fact), None)
    curve = None if asked is None else quotes.evidence.curve(asked=asked)
    if curve is None or asked is None:
        return []
    margins = shapes.points((one["layer"], one["control_margin"]) for one in curve.rows)
    held = shapes.held_from(margins, lambda value: value > 0)
    first = shapes.first_where(margins, lambda value: value > 0)
    if held is None or first is None:
        return []
    claim = quotes.evidence.derived(
        "control_margin_held_from",
        held,
        Unit.LAYER,
        quotes.rows(asked=asked),
        "first layer from which every margin is positive",
    )
    if held == first:
        return [sentence("On the control its own answer leads the fact's from layer {} on without a break.", claim)]
    return [
        sentence(
            "On the control the margin changes sign after it is first positive; it stays positive from layer {} on.",
            claim,
        )
    ]


def _last_step(quotes: Quotes) -> list[Sentence]:
    """Whether entropy rises in the last step; said as a direction alone."""
    curve = quotes.points("entropy_bits")
    last = shapes.between(curve, quotes.n_layers - 1, quotes.n_layers)
    if len(last) < 2 or not quotes.quotable:
        return []
    ends = [quotes.cell("entropy_bits", layer, Unit.BITS) for layer, _ in last]
    change = last[1][1] - last[0][1]
    word = "rises" if change > 0 else "falls" if change < 0 else "stays"
    how = "sign of the difference of two layers"
    claim = quotes.evidence.derived("entropy_last_step", word, Unit.TEXT, ends, how)
    return [sentence("In the step to the last layer the entropy {}.", claim)]


def _temperature(quotes: Quotes) -> list[Sentence]:
    """Whether the answer keeps its rank in the head at other temperatures."""
    explored = quotes.record.measured.temperature_exploration
    found = [temperature_claims(quotes, place) for place in range(len(explored))]
    ranks = [one["rank"].value for one in found]
    if not found or None in ranks:
        return []
    basis = Basis(tuple(one["rank"] for one in found))
    ends = [found[0]["temperature"], found[-1]["temperature"]]
    if all(rank == 1 for rank in ranks):
        return [
            sentence(
                "In the model's head the answer has rank 1 at temperatures {} and {}{}, as it must: a temperature "
                "changes no order.",
                ends[0],
                ends[1],
                basis,
            )
        ]
    return [
        sentence(
            "In the model's head the answer does not have rank 1 at temperatures {} and {}{}.", ends[0], ends[1], basis
        )
    ]


def _drift(quotes: Quotes) -> Section:
    """How much less certain rows are than the model."""
    found, title = quotes.found.entropy_gap, "Entropy drift against the model"
    if found is None or not found.n_layers:
        return Section(title, (Paragraph((sentence("The files do not hold the model's own entropy beside rows."),)),))
    base = ("diagnostics", "entropy_gap_bits_percentiles")
    cells = [
        quotes.figure(f"entropy_gap_bits_{p}", found.percentiles[p], Unit.BITS, (*base, p))
        for p in ("p25", "p50", "p75")
    ]
    count = quotes.figure("entropy_gap_samples", found.n_layers, Unit.COUNT, ("diagnostics", "entropy_gap_samples"))
    caption = quotes.caption(
        "Entropy of rows less that of the model's output, over layers; above zero is less certain than the model."
    )
    header = ("layers", *(quotes.mark(f"{p} (bits)") for p in ("p25", "p50", "p75")))
    blocks: list[Block] = [table(header, [row(count, *cells)], caption)]
    if not quotes.quotable:
        return Section(title, tuple(blocks))
    over = [layer for layer, gap in _gaps(quotes) if gap < 0]
    below = quotes.shape(
        "layers_more_certain_than_the_model", len(over), "layers whose gap is negative", unit=Unit.COUNT
    )
    blocks.append(Paragraph((sentence("Rows are more certain than the model at {} layers.", below),)))
    return Section(title, tuple(blocks))


def _gaps(quotes: Quotes) -> list[shapes.Point]:
    own, teacher = quotes.points("entropy_bits"), dict(quotes.points("teacher_entropy_bits"))
    return [(layer, bits - teacher[layer]) for layer, bits in own if layer in teacher]


# Words along the prompt


@dataclass(frozen=True)
class _Seen:
    """Where a word is first listed, and first on top, at one position."""

    position: int
    input_token: CsvRow
    listed: CsvRow | None
    top: CsvRow | None
    n_top: int
    """Layers at which it is on top."""


def _trajectory(quotes: Quotes) -> Section:
    """The answer at every position, and words of the prompt at the last."""
    title, records, answer = "Important words", quotes.records(), quotes.answer
    if records is None or answer is None or quotes.evidence.primary is None:
        return Section(title, (Paragraph((sentence("The run has no table of records to follow words in."),)),))
    by_position = _rows_by_position(quotes, records)
    if not by_position:
        return Section(title, (Paragraph((sentence("The table of records has no rows of the primary prompt."),)),))
    seen = [_follow(answer, position, rows) for position, rows in sorted(by_position.items())]
    known = [one for one in seen if one.listed is not None]
    rows = [
        row(
            _value(quotes, records, one.input_token, "pos", Unit.COUNT),
            token(one.input_token.cells.get("token") or "", _place(quotes, records, one.input_token)),
            *_layers(quotes, records, one),
        )
        for one in known
    ]
    where = "Where the answer shows along the prompt: positions at which any layer lists it among its tokens."
    blocks: list[Block] = []
    if rows:
        header = ("position", "input token", "first listed (layer)", "first on top (layer)", "layers on top")
        blocks.append(table(header, rows, sentence(where)))
    else:
        claim = quotes.evidence.derived("positions_with_answer", 0, Unit.COUNT, _span(records, by_position), "count")
        blocks.append(Paragraph((sentence("The answer is listed at {} positions.", claim),)))
    last = by_position[max(by_position)]
    blocks += _words(quotes, records, last)
    return Section(title, tuple(blocks))


def _words(quotes: Quotes, records: CsvFile, last: Sequence[CsvRow]) -> list[Block]:
    """Words of the prompt at its last position."""
    text = quotes.prompt.text if quotes.prompt is not None and quotes.prompt.text else ""
    words = [word for word in dict.fromkeys(re.findall(r"[^\W\d_]+", text)) if len(word) >= SHORTEST]
    seen = {word: _follow(word, 0, last) for word in words if word != quotes.answer}
    known = {word: one for word, one in seen.items() if one.listed is not None}
    if not known:
        claim = quotes.evidence.derived(
            "prompt_words_listed", 0, Unit.COUNT, _span(records, {0: last}), "count of words"
        )
        return [
            Paragraph((sentence("At the last position {} of the prompt's own words are listed at any layer.", claim),))
        ]
    rows = [row(token(word), *_layers(quotes, records, one)) for word, one in known.items()]
    header = ("word of the prompt", "first listed (layer)", "first on top (layer)", "layers on top")
    return [table(header, rows, sentence("The prompt's own words at its last position."))]


def _rows_by_position(quotes: Quotes, records: CsvFile) -> dict[int, list[CsvRow]]:
    asked = quotes.evidence.primary
    found: dict[int, list[CsvRow]] = {}
    for one in records.rows:
        cells = one.cells
        if asked is None or (cells.get("prompt_id") or "pos") != asked.prompt_id:
            continue
        if (cells.get("prompt_variant") or "orig") != asked.prompt_variant:
            continue
        if one.number_in("fact_index") not in (None, asked.fact_index):
            continue
        position = one.number_in("pos")
        if isinstance(position, int) and isinstance(one.number_in("layer"), int):
            found.setdefault(position, []).append(one)
    return {position: sorted(rows, key=lambda r: r.number_in("layer") or 0) for position, rows in found.items()}


def _follow(word: str, position: int, rows: Sequence[CsvRow]) -> _Seen:
    listed = next((one for one in rows if word in _tokens(one)), None)
    on_top = [one for one in rows if (one.cells.get("top1") or "").strip() == word]
    return _Seen(position, rows[0], listed, on_top[0] if on_top else None, len(on_top))


def _tokens(one: CsvRow) -> list[str]:
    return [(one.cells.get(f"top{i}") or "").strip() for i in range(1, LISTED + 1)]


def _layers(quotes: Quotes, records: CsvFile, one: _Seen) -> list[Claim]:
    listed, top = (
        quotes.absent("layer", Unit.LAYER, "at no layer")
        if found is None
        else _value(quotes, records, found, "layer", Unit.LAYER)
        for found in (one.listed, one.top)
    )
    behind = [claim for claim in (listed, top) if claim.citations]
    count = quotes.evidence.derived("layers_on_top", one.n_top, Unit.COUNT, behind, "count of layers")
    return [listed, top, count]


def _place(quotes: Quotes, records: CsvFile, one: CsvRow) -> Claim:
    cited = Citation(records.name, one.line, one.last_line, row=one.number, column="token")
    return Claim(
        subject=quotes.evidence.stem, name="token", value=one.cells.get("token"), unit=Unit.TOKEN, citations=(cited,)
    )


def _value(quotes: Quotes, records: CsvFile, one: CsvRow, column: str, unit: Unit) -> Claim:
    cited = Citation(records.name, one.line, one.last_line, row=one.number, column=column)
    return Claim(
        subject=quotes.evidence.stem,
        name=column,
        value=one.number_in(column),
        unit=unit,
        citations=(cited,),
        lens=quotes.headline,
    )


def _span(records: CsvFile, by_position: dict[int, list[CsvRow]] | dict[int, Sequence[CsvRow]]) -> list[Citation]:
    every = [one for rows in by_position.values() for one in rows]
    return [Citation(records.name, min(r.line for r in every), max(r.last_line for r in every))]
