"""What other prompts say: the control, the wording, the further facts, and the head at other temperatures."""

from collections.abc import Iterator
from dataclasses import replace

from layerscope.analysis.facts import Fact, fact_passes
from layerscope.analysis.statistics import Summary
from layerscope.record.milestone_names import CONFIRMED, ONSET, STRONG, STRONG_RUN2, MilestoneName
from layerscope.record.prompt_key import PromptKey
from layerscope.report.cited import document as doc
from layerscope.report.cited.claims import Citation, Claim, Unit
from layerscope.report.cited.document import Name, Section, Sentence, filled, paragraph, row, sentence, short_section
from layerscope.report.cited.evidence import agree
from layerscope.report.evaluation import suite
from layerscope.report.evaluation.quotes import Path, Quotes, table
from layerscope.report.sentences import onsets

CONTROL = (
    "Layers at which the control's own answer leads that of the fact. A first positive margin on near-uniform rows is "
    "rounding; a clear lead is not."
)
ONE_FACT = "First layers of the first fact in both wordings; the difference is other wording less first."
WORDINGS = "First layers in both wordings; the difference is other wording less first. Sensitive to the wording: {}."
INTERVAL = "Over facts. The interval is one of the median, by resampling; it is given where enough facts have a layer."


def control(quotes: Quotes) -> Section:
    """Where on the control its own answer leads the fact's."""
    summary = quotes.diagnostics.control
    prompt = next((key for key in quotes.evidence.verdict.curves.passes if not key.is_fact), None)
    rows = quotes.rows(prompt=prompt) if prompt is not None else ()
    text = quotes.under("control_prompt").stated("context_prompt", Unit.TOKEN)
    at = quotes.under("control_summary", of=summary, basis=rows, reason=summary.reason)
    first = at.figure("first_control_margin_pos", Unit.LAYER)
    largest = at.figure("max_control_margin", Unit.PROBABILITY)
    strong = at.figure("first_control_strong_pos", Unit.LAYER)
    lead = at.figure("max_control_top2_logit_gap", Unit.LOGIT, reason=None)
    header = ("margin first above zero", quotes.mark("largest margin"), "clear lead first", "largest lead (logits)")
    leads = table(header, [row(first, largest, strong, lead)], quotes.caption(CONTROL))
    asks = (paragraph(sentence("The control asks {}.", text)),) if text.value is not None else ()
    return Section("Negative control", (*asks, *suite.controls(quotes), leads))


def ablation(quotes: Quotes) -> Section:
    """What leaving out the filler word changes."""
    summary, passes = quotes.diagnostics.ablation, quotes.evidence.verdict.curves.passes
    if not passes:
        return short_section("Ablation", sentence("The run has no rows to compare wordings by."))
    if summary.variant_nf is None:
        return short_section("Ablation", sentence("The fact was asked in one wording alone."))
    other = next((key for key in passes if key.is_fact and key.prompt_variant == summary.variant_nf), None)
    basis = (*quotes.rows(), *(quotes.rows(prompt=other) if other is not None else ()))
    at = quotes.under("ablation_summary", of=summary, basis=basis, reason="there is none in that wording")
    semantic = "semantic" if quotes.protocol == "published" else onsets.FIRST
    sides = {semantic: ("L_sem_orig", "L_sem_nf", "delta_L_sem")}
    sides["strict copy"] = ("L_copy_orig", "L_copy_nf", "delta_L_copy")
    rows = [row(label, *(at.figure(key, Unit.LAYER) for key in keys)) for label, keys in sides.items()]
    header = ("layer of", summary.variant_orig or "first", summary.variant_nf, "difference")
    if quotes.protocol != "published":
        first = table(header, rows, quotes.caption(ONE_FACT, marked=False))
        return Section("Ablation", (*suite.wordings(quotes), first))
    how = "a tenth of the depth or more"
    sensitive = quotes.figure("sensitive", summary.sensitive, Unit.TRUTH, basis=basis, how=how)
    return Section("Ablation", (table(header, rows, quotes.caption(WORDINGS, sensitive, marked=False)),))


def facts(quotes: Quotes) -> Section:
    """Every fact, and the middle of them."""
    micro, title = quotes.diagnostics.micro_suite, "Facts"
    if micro.n == 0:
        return short_section(title, sentence("The run has no rows of any fact."))
    if micro.n < 2:
        return short_section(title, sentence("One fact alone was asked: nothing tells how its layers vary."))
    if quotes.protocol != "published":
        return Section(title, suite.facts(quotes))
    passes = fact_passes(quotes.evidence.verdict.curves.passes)
    prompts = dict(zip([fact.prompt for fact in micro.facts], passes, strict=True))
    rows = [_fact(quotes, fact, prompts[fact.prompt]) for fact in micro.facts]
    template = "First layers of each fact; δ is from copy to meaning as a share of the depth."
    header = ("fact", "semantic", "confirmed", "clear margin", "strong", "δ")
    return Section(title, (table(header, rows, quotes.caption(template, marked=False)), _spread(quotes)))


def _fact(quotes: Quotes, fact: Fact, prompt: PromptKey) -> doc.Row:
    names = (ONSET, CONFIRMED, MilestoneName.MARGIN_OK, STRONG)
    layers = [quotes.milestone(name, prompt=prompt) for name in names]
    delta = quotes.figure("delta_hat", fact.delta_hat, Unit.SHARE, basis=layers, reason="no copy layer")
    return row(Name(fact.fact_key or str(fact.fact_index)), *layers, delta)


def _spread(quotes: Quotes) -> doc.Block:
    summaries = quotes.diagnostics.statistics.by_milestone
    rows = [_summary(quotes, name, summaries[name]) for name in (ONSET, STRONG, STRONG_RUN2) if name in summaries]
    header = ("milestone", "facts", "without", "median", "p25", "p75", "95% from", "to")
    return table(header, rows, quotes.caption(INTERVAL, marked=False))


def _summary(quotes: Quotes, name: str, summary: Summary) -> doc.Row:
    passes = fact_passes(quotes.evidence.verdict.curves.passes)
    behind: list[Claim | Citation] = [quotes.milestone(name, prompt=prompt) for prompt in passes]
    if name == ONSET:
        behind = _aggregate(quotes, summary) or behind
    low, high = summary.interval_95 or (None, None)
    layers = {"median": summary.median, "p25": summary.p25, "p75": summary.p75, "low": low, "high": high}
    counts = {"n": summary.n, "n_missing": summary.n_missing}

    def figure(key: str, value: int | float | None, unit: Unit) -> Claim:
        why = summary.interval_reason
        return quotes.figure(f"{name}_{key}", value, unit, basis=behind, how="over facts", reason=why)

    claims = [figure(key, value, Unit.COUNT) for key, value in counts.items()]
    return row(Name(name), *claims, *(figure(key, value, Unit.LAYER) for key, value in layers.items()))


def _aggregate(quotes: Quotes, summary: Summary) -> list[Claim | Citation]:
    """The block of the file that holds the medians, where its median is ours."""
    block = ("micro_suite", "aggregates")
    median = quotes.evidence.entry(*block, "L_semantic_norm_median")
    entry = quotes.evidence.entry(*block)
    if median is None or entry is None or not agree(median.value, summary.median_rounded):
        return []
    return [quotes.evidence.cite(entry)]


def temperatures(quotes: Quotes) -> Section:
    """The model's own head with its logits divided."""
    explored, title = quotes.record.measured.temperature_exploration, "Temperature exploration"
    if not explored:
        return short_section(title, sentence("None was made."))
    rows = [row(*temperature_claims(quotes, place).values()) for place in range(len(explored))]
    caption = quotes.caption("The model's own head on the primary prompt, which may be quoted.", marked=False)
    header = ("temperature", "entropy (bits)", "rank of answer", "p of answer", "top-1 token")
    return Section(title, (table(header, rows, caption),))


def temperature_claims(quotes: Quotes, place: int) -> dict[str, Claim]:
    """The figures of one temperature: of the answer as the file's list of tokens has it where it has no rank itself."""
    explored = quotes.record.measured.temperature_exploration[place]
    base = ("temperature_exploration", place)
    rank, p = explored.answer_rank, explored.p_answer
    where = _listed_at(quotes, place)
    if rank is None and where is not None:
        rank, p = where + 1, explored.top_probs[where]
    listed: list[Path] = [] if where is None else [(*base, "topk", where, 1)]
    entries = [quotes.evidence.entry(*path) for path in listed or [(*base, "topk", 0, 0)]]
    basis = [quotes.evidence.cite(entry) for entry in entries if entry is not None]
    top = explored.top_tokens[0] if explored.top_tokens else None
    at, unlisted = quotes.under(*base, of=explored), "the answer is not listed"
    how, up_to = "place among the listed tokens", _up_to(quotes, place)
    places = (*listed, (*base, "p_answer"))
    return {
        "temperature": at.figure("temperature", Unit.NUMBER),
        "entropy": at.figure("entropy", Unit.BITS, value=explored.entropy_bits),
        "rank": at.figure("answer_rank", Unit.RANK, value=rank, basis=up_to, how=how, reason=unlisted),
        "p": quotes.figure("p_answer", p, Unit.PROBABILITY, *places, basis=basis, reason=unlisted),
        "top": at.figure("top1", Unit.TOKEN, "topk", 0, 0, value=top, basis=basis),
    }


def _up_to(quotes: Quotes, place: int) -> list[Citation]:
    """The listed tokens from the first to the answer's own, which show its place among them."""
    where = _listed_at(quotes, place)
    ends = [quotes.evidence.entry("temperature_exploration", place, "topk", at) for at in (0, where) if at is not None]
    first, last = ends[0], ends[-1]
    if where is None or first is None or last is None:
        return []
    return [replace(quotes.evidence.cite(first), last_line=last.last_line, pointer=None)]


def _listed_at(quotes: Quotes, place: int) -> int | None:
    """Where the answer's first piece stands among the listed tokens, by its text."""
    prompt, explored = quotes.prompt, quotes.record.measured.temperature_exploration[place]
    if prompt is None or not prompt.answers:
        return None
    answer = prompt.answers[0]
    if explored.top_ids is not None and answer.first_id in explored.top_ids:
        return explored.top_ids.index(answer.first_id)
    wanted = (" " if answer.variant == "with_space" else "") + answer.string
    texts = list(explored.top_tokens)
    return next((texts.index(text) for text in (wanted, answer.string) if text in texts), None)


def head_on_test_prompt(quotes: Quotes) -> Iterator[Sentence]:
    """What the model's head says when the fact is asked the other way round."""
    prompts, answer = quotes.record.measured.test_prompts, quotes.answer
    if not prompts or not prompts[0].top_tokens:
        return
    at = quotes.under("test_prompts", 0)
    words: list[doc.Part] = []
    for place in range(min(3, len(prompts[0].top_tokens))):
        word, p = at.stated("token", Unit.TOKEN, "topk", place, 0), at.stated("p", Unit.PROBABILITY, "topk", place, 1)
        words += filled(", {} {}" if place else "{} {}", word, p)
    there = answer in [token.strip() for token in prompts[0].top_tokens]
    leak = "" if answer is None else f"; the answer itself is {'' if there else 'not '}among the listed tokens"
    template = "Asked the other way round, {}, the model's head says {}{}."
    yield sentence(template, at.stated("prompt", Unit.TOKEN), words, leak)
