"""What other prompts say: the control, the wording, the further facts, and the head at other temperatures."""

from dataclasses import replace

from layerscope.analysis.curve import PromptKey
from layerscope.analysis.diagnostics import CONFIRMED
from layerscope.analysis.facts import Fact, fact_passes
from layerscope.analysis.statistics import Summary
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import Block, Name, Paragraph, Part, Row, Section, Sentence, Text, row, sentence
from layerscope.report.cited.evidence import agree
from layerscope.report.evaluation.overview import ONSET, STRONG
from layerscope.report.evaluation.quotes import Path, Quotes, table

_D = "diagnostics"


def control(quotes: Quotes) -> Section:
    """Where on the control its own answer leads the fact's."""
    found, base = quotes.found.control, ("control_summary",)
    passes = quotes.evidence.verdict.curves.passes
    asked = next((one for one in passes if not one.is_fact), None)
    rows = quotes.rows(asked=asked) if asked is not None else ()
    text = quotes.stated("context_prompt", Unit.TOKEN, ("control_prompt", "context_prompt"))
    first = quotes.figure(
        "first_control_margin_pos",
        found.first_control_margin_pos,
        Unit.LAYER,
        (*base, "first_control_margin_pos"),
        basis=rows,
        reason=found.reason,
    )
    largest = quotes.figure(
        "max_control_margin",
        found.max_control_margin,
        Unit.PROBABILITY,
        (*base, "max_control_margin"),
        basis=rows,
        reason=found.reason,
    )
    strong = quotes.figure(
        "first_control_strong_pos",
        found.first_control_strong_pos,
        Unit.LAYER,
        (*base, "first_control_strong_pos"),
        basis=rows,
        reason=found.reason,
    )
    lead = quotes.figure(
        "max_control_top2_logit_gap",
        found.max_control_top2_logit_gap,
        Unit.LOGIT,
        (*base, "max_control_top2_logit_gap"),
        basis=rows,
    )
    said = [sentence("The control asks {}.", text)] if text.value is not None else []
    header = ("margin first above zero", quotes.mark("largest margin"), "clear lead first", "largest lead (logits)")
    caption = quotes.caption(
        "Layers at which the control's own answer leads that of the fact. A first positive "
        "margin on near-uniform rows is rounding; a clear lead is not."
    )
    blocks: list[Block] = [Paragraph(tuple(said))] if said else []
    blocks.append(table(header, [row(first, largest, strong, lead)], caption))
    return Section("Negative control", tuple(blocks))


def ablation(quotes: Quotes) -> Section:
    """What leaving out the filler word changes."""
    found, base = quotes.found.ablation, ("ablation_summary",)
    if not quotes.evidence.verdict.curves.passes:
        return Section("Ablation", (Paragraph((sentence("The run has no rows to compare wordings by."),)),))
    if found.variant_nf is None:
        return Section("Ablation", (Paragraph((sentence("The fact was asked in one wording alone."),)),))
    passes = [one for one in quotes.evidence.verdict.curves.passes if one.is_fact]
    other = next((one for one in passes if one.prompt_variant == found.variant_nf), None)
    basis = (*quotes.rows(), *(quotes.rows(asked=other) if other is not None else ()))

    def layer(key: str, value: int | None) -> Claim:
        return quotes.figure(key, value, Unit.LAYER, (*base, key), basis=basis, reason="there is none in that wording")

    rows = [
        row(
            "semantic",
            layer("L_sem_orig", found.L_sem_orig),
            layer("L_sem_nf", found.L_sem_nf),
            layer("delta_L_sem", found.delta_L_sem),
        ),
        row(
            "strict copy",
            layer("L_copy_orig", found.L_copy_orig),
            layer("L_copy_nf", found.L_copy_nf),
            layer("delta_L_copy", found.delta_L_copy),
        ),
    ]
    sensitive = quotes.figure("sensitive", found.sensitive, Unit.TRUTH, basis=basis, how="a tenth of the depth or more")
    caption = quotes.caption(
        "First layers in both wordings; the difference is other wording less first. Sensitive to the wording: {}.",
        sensitive,
        marked=False,
    )
    header = ("layer of", found.variant_orig or "first", found.variant_nf, "difference")
    return Section("Ablation", (table(header, rows, caption),))


def facts(quotes: Quotes) -> Section:
    """Every fact, and the middle of them."""
    suite, title = quotes.found.micro_suite, "Facts"
    if suite.n == 0:
        return Section(title, (Paragraph((sentence("The run has no rows of any fact."),)),))
    if suite.n < 2:
        return Section(title, (Paragraph((sentence("One fact alone was asked: nothing tells how its layers vary."),)),))
    asked = dict(
        zip([fact.asked for fact in suite.facts], fact_passes(quotes.evidence.verdict.curves.passes), strict=True)
    )
    rows = [_fact(quotes, fact, asked[fact.asked]) for fact in suite.facts]
    caption = quotes.caption(
        "First layers of each fact; δ is from copy to meaning as a share of the depth.", marked=False
    )
    first = table(("fact", "semantic", "confirmed", "clear margin", "strong", "δ"), rows, caption)
    return Section(title, (first, _spread(quotes)))


def _fact(quotes: Quotes, fact: Fact, asked: PromptKey) -> Row:
    named = [(ONSET, fact.L_semantic), (CONFIRMED, None), ("L_semantic_margin_ok", None), (STRONG, None)]
    layers = [quotes.milestone(name, asked=asked) for name, _ in named]
    delta = quotes.figure("delta_hat", fact.delta_hat, Unit.SHARE, basis=layers, reason="no copy layer")
    return row(Name(fact.fact_key or str(fact.fact_index)), *layers, delta)


def _spread(quotes: Quotes) -> Block:
    found = quotes.found.statistics.by_milestone
    rows = [_summary(quotes, name, found[name]) for name in (ONSET, STRONG, "L_semantic_strong_run2") if name in found]
    caption = quotes.caption(
        "Over facts. The interval is one of the median, by resampling; it is given where enough facts have a layer.",
        marked=False,
    )
    header = ("milestone", "facts", "without", "median", "p25", "p75", "95% from", "to")
    return table(header, rows, caption)


def _summary(quotes: Quotes, name: str, found: Summary) -> Row:
    asked = fact_passes(quotes.evidence.verdict.curves.passes)
    behind: list[Claim | Citation] = [quotes.milestone(name, asked=one) for one in asked]
    if name == ONSET:
        behind = _aggregate(quotes, found) or behind
    low, high = found.interval_95 or (None, None)
    values: list[tuple[str, int | float | None, Unit]] = [
        ("n", found.n, Unit.COUNT),
        ("n_missing", found.n_missing, Unit.COUNT),
        ("median", found.median, Unit.LAYER),
        ("p25", found.p25, Unit.LAYER),
        ("p75", found.p75, Unit.LAYER),
        ("low", low, Unit.LAYER),
        ("high", high, Unit.LAYER),
    ]
    return row(
        Name(name),
        *(
            quotes.figure(f"{name}_{key}", value, unit, basis=behind, how="over facts", reason=found.interval_reason)
            for key, value, unit in values
        ),
    )


def _aggregate(quotes: Quotes, found: Summary) -> list[Claim | Citation]:
    """The block of the file that holds the medians, where its median is ours."""
    block = ("micro_suite", "aggregates")
    median = quotes.evidence.entry(*block, "L_semantic_norm_median")
    entry = quotes.evidence.entry(*block)
    if median is None or entry is None or not agree(median.value, found.median_rounded):
        return []
    return [quotes.evidence.cite(entry)]


def temperatures(quotes: Quotes) -> Section:
    """The model's own head with its logits divided."""
    explored = quotes.record.measured.temperature_exploration
    if not explored:
        return Section("Temperature exploration", (Paragraph((sentence("None was made."),)),))
    rows = [_temperature(quotes, place) for place in range(len(explored))]
    caption = quotes.caption("The model's own head on the primary prompt, which may be quoted.", marked=False)
    header = ("temperature", "entropy (bits)", "rank of answer", "p of answer", "top-1 token")
    return Section("Temperature exploration", (table(header, rows, caption),))


def temperature_claims(quotes: Quotes, place: int) -> dict[str, Claim]:
    """The figures of one temperature: of the answer as the file's list of tokens has it where it has no rank itself."""
    found = quotes.record.measured.temperature_exploration[place]
    base = ("temperature_exploration", place)
    rank, p = found.answer_rank, found.p_answer
    where = _listed_at(quotes, place)
    if rank is None and where is not None:
        rank, p = where + 1, found.top_probs[where]
    listed: list[Path] = [] if where is None else [(*base, "topk", where, 1)]
    entries = [quotes.evidence.entry(*path) for path in listed or [(*base, "topk", 0, 0)]]
    basis = [quotes.evidence.cite(entry) for entry in entries if entry is not None]
    top = found.top_tokens[0] if found.top_tokens else None
    return {
        "temperature": quotes.figure("temperature", found.temperature, Unit.NUMBER, (*base, "temperature")),
        "entropy": quotes.figure("entropy", found.entropy_bits, Unit.BITS, (*base, "entropy")),
        "rank": quotes.figure(
            "answer_rank",
            rank,
            Unit.RANK,
            (*base, "answer_rank"),
            basis=_up_to(quotes, place),
            how="place among the listed tokens",
            reason="the answer is not listed",
        ),
        "p": quotes.figure(
            "p_answer",
            p,
            Unit.PROBABILITY,
            *listed,
            (*base, "p_answer"),
            basis=basis,
            reason="the answer is not listed",
        ),
        "top": quotes.figure("top1", top, Unit.TOKEN, (*base, "topk", 0, 0), basis=basis),
    }


def _up_to(quotes: Quotes, place: int) -> list[Citation]:
    """The listed tokens from the first to the answer's own, which show its place among them."""
    where = _listed_at(quotes, place)
    ends = [quotes.evidence.entry("temperature_exploration", place, "topk", at) for at in (0, where) if at is not None]
    first, last = ends[0], ends[-1]
    if where is None or first is None or last is None:
        return []
    return [replace(quotes.evidence.cite(first), last_line=last.last_line, pointer=None)]


def _temperature(quotes: Quotes, place: int) -> Row:
    found = temperature_claims(quotes, place)
    return row(*(found[key] for key in ("temperature", "entropy", "rank", "p", "top")))


def _listed_at(quotes: Quotes, place: int) -> int | None:
    """Where the answer's first piece stands among the listed tokens, by its text."""
    prompt, found = quotes.prompt, quotes.record.measured.temperature_exploration[place]
    if prompt is None or not prompt.answers:
        return None
    answer = prompt.answers[0]
    if found.top_ids is not None and answer.first_id in found.top_ids:
        return found.top_ids.index(answer.first_id)
    wanted = (" " if answer.variant == "with_space" else "") + answer.string
    texts = list(found.top_tokens)
    return next((texts.index(text) for text in (wanted, answer.string) if text in texts), None)


def head_on_test_prompt(quotes: Quotes) -> list[Sentence]:
    """What the model's head says when the fact is asked the other way round."""
    prompts = quotes.record.measured.test_prompts
    if not prompts or not prompts[0].top_tokens:
        return []
    base = ("test_prompts", 0)
    text = quotes.stated("prompt", Unit.TOKEN, (*base, "prompt"))
    parts: list[Part] = []
    for place in range(min(3, len(prompts[0].top_tokens))):
        word = quotes.stated("token", Unit.TOKEN, (*base, "topk", place, 0))
        p = quotes.stated("p", Unit.PROBABILITY, (*base, "topk", place, 1))
        parts += [Text(", " if place else ""), word, Text(" "), p]
    answer = quotes.answer
    named = [t.strip() for t in prompts[0].top_tokens]
    leak = (
        "" if answer is None else f"; the answer itself is {'' if answer in named else 'not '}among the listed tokens"
    )
    return [sentence("Asked the other way round, {}, the model's head says {}{}.", text, parts, leak)]
