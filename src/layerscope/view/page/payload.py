"""What a page knows: runs, prompts and lenses as plain data, and the numbers of each prompt and lens packed apart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import polars as pl

from layerscope.analysis.analysed_run import AnalysedRun
from layerscope.analysis.quotability import Status
from layerscope.published.layout import RECORDS, csv_name, stem_of
from layerscope.record.milestone_names import STRONG
from layerscope.record.parts import PromptRecord
from layerscope.record.prompt_key import PromptKey
from layerscope.record.stored_rows import collected
from layerscope.report.sentences import patching as patching_words
from layerscope.report.sentences.lines import plural
from layerscope.report.sentences.readable import rank_1
from layerscope.view.page.blocks import Block, Key, Vocabulary, blocks, listed
from layerscope.view.page.packing import packed

FACTS_IN_FULL = 200
"""Facts of a run whose every number is on its page; the others have a line in a table."""

ROWS_IN_FULL = 200_000
"""Rows of a run that its page holds, at most, but for those of one fact and one control."""


@dataclass(frozen=True)
class BlockData:
    """Where a prompt's numbers under one lens stand, and their shape."""

    id: str
    """Of the script element that holds them."""
    positions: tuple[int, ...]
    top_k: int


@dataclass(frozen=True)
class PromptData:
    """One prompt of a run."""

    fact_index: int | None
    prompt_id: str
    variant: str
    fact: str
    """What it asks for, in words."""
    text: str | None
    tokens: Mapping[int, str]
    """Input tokens by position, as far as they are known."""
    last: int | None
    """The position whose prediction is the first token after the prompt."""
    answers: tuple[str, ...]
    answer_tokens: tuple[int, ...]
    """Places in the page's vocabulary, counted from 1, of tokens that begin an accepted answer."""
    judged_token: int | None
    """Place of the token that ranks are of; None where several answers, or whole ones, are judged as one."""
    milestones: Mapping[str, Mapping[str, int]]
    """By lens: layers of `rank_1` and `strong`, where there are such."""
    blocks: Mapping[str, BlockData]
    """By lens; a lens that did not read the prompt is absent."""


@dataclass(frozen=True)
class Carried:
    """Median effects of patches by layer: what stands beside the grid's rows."""

    next: tuple[float | None, ...]
    """At the prompt's last token."""
    subject: tuple[float | None, ...]
    """At the subject's; empty where that was not patched."""
    words: str
    """What they amount to, in a sentence."""


@dataclass(frozen=True)
class RunData:
    """One run of a page."""

    label: str
    """Tells it from the page's other runs."""
    model: str
    n_layers: int
    d_vocab: int
    headline: str
    lenses: tuple[str, ...]
    every: str
    """All facts that are in full, in words."""
    ranks: bool
    """Whether ranks may be shown."""
    probabilities: bool
    """Whether probabilities, entropies and divergences may be shown."""
    suppressed: bool
    """Whether the guidance forbids quoting them; they are shown with that said beside them."""
    statuses: Mapping[str, tuple[Status | None, ...]]
    """For each lens and layer what its probabilities are; None where there is no row."""
    carried: Carried | None
    """Where patches say that the answer is carried; None where nothing was patched."""
    kl_bits: float
    """Where the colour scale of divergences ends."""
    missing: str | None
    """Why other positions than the last cannot be shown; None where they can."""
    prompts: tuple[PromptData, ...]


@dataclass(frozen=True)
class Payload:
    """Everything of the lens grid."""

    vocabulary: Vocabulary
    runs: tuple[RunData, ...]
    scripts: Mapping[str, str]
    """Packed blocks by the id of their script element."""


def payload(runs: Sequence[AnalysedRun]) -> Payload:
    """The data of a page about some runs, in their order."""
    tables = [_in_full(run) for run in runs]
    listings = [
        listed(table, probabilities=run.record.probabilities_stand) for run, table in zip(runs, tables, strict=True)
    ]
    vocabulary = Vocabulary.of(listings) if listings else Vocabulary((), (), pl.DataFrame())
    scripts: dict[str, str] = {}
    shown = []
    for place, (run, table, listing, label) in enumerate(zip(runs, tables, listings, labels(runs), strict=True)):
        made = blocks(
            table,
            vocabulary.numbered(listing),
            run.record.model.n_layers,
            probabilities=run.record.probabilities_stand,
            ranks=run.record.ranks_stand,
        )
        ids = {key: f"block-{place}-{number}" for number, key in enumerate(made)}
        scripts |= {ids[key]: packed(block.content) for key, block in made.items()}
        shown.append(_run(run, table, label, made, ids, vocabulary))
    return Payload(vocabulary, tuple(shown), scripts)


def labels(runs: Sequence[AnalysedRun]) -> list[str]:
    """A short name for each run: the model's, with more where several runs are of one model."""
    names = [run.record.model.id.rsplit("/", 1)[-1] for run in runs]
    long = [f"{name} · {run.record.suite.name}" for name, run in zip(names, runs, strict=True)]
    longest = [f"{name} · {run.record.created_utc or run.record.run_id}" for name, run in zip(long, runs, strict=True)]
    for choice in (names, long, longest):
        if len(set(choice)) == len(choice):
            return choice
    return [f"{name} · {place}" for place, name in enumerate(longest, start=1)]


def in_full(run: AnalysedRun) -> Sequence[PromptKey]:
    """The prompts whose numbers are on the page: those of the first facts, and as many controls.

    Where they have more rows than a browser can hold there are fewer, and one of each kind at least.
    """
    passes = run.verdict.curves.passes
    facts: dict[int | None, list[PromptKey]] = {}
    for prompt in passes:
        if prompt.is_fact:
            facts.setdefault(prompt.fact_index, []).append(prompt)
    controls = [[prompt] for prompt in passes if not prompt.is_fact]
    if run.n_rows <= ROWS_IN_FULL and len(facts) <= FACTS_IN_FULL:
        return passes
    counts = collected(run.scan.group_by(PromptKey._fields).len())
    n_rows = {PromptKey(*key): n for *key, n in counts.iter_rows()}
    shown: set[PromptKey] = set()
    room = ROWS_IN_FULL
    for place, turn in enumerate(zip_longest(facts.values(), controls, fillvalue=())):
        taken = {prompt for prompts in turn for prompt in prompts}
        room -= sum(n_rows[prompt] for prompt in taken)
        if place and (room < 0 or place >= FACTS_IN_FULL):
            break
        shown |= taken
    return tuple(prompt for prompt in passes if prompt in shown)


def kinds(prompts: Iterable[PromptKey]) -> Mapping[str, int]:
    """How many facts are among them, and how many controls; a kind of which there is none is absent."""
    each = list(prompts)
    counts = {"fact": len({p.fact_index for p in each if p.is_fact}), "control": sum(not p.is_fact for p in each)}
    return {kind: n for kind, n in counts.items() if n}


def _every(run: AnalysedRun) -> str:
    """What a look at all prompts in full is a look at; a run without facts has controls."""
    everything, shown = kinds(run.verdict.curves.passes), kinds(in_full(run))
    kind = next(iter(everything), "fact")
    n = shown.get(kind, 0)
    return f"every {kind}" if n == everything.get(kind, 0) else f"the first {n} {plural(kind, n)}"


def _in_full(run: AnalysedRun) -> pl.DataFrame:
    """Their rows, as they are judged."""
    shown = in_full(run)
    if len(shown) == len(run.verdict.curves.passes):
        return run.judged_rows
    names = list(PromptKey._fields)
    keys = pl.DataFrame(shown, schema={name: run.schema[name] for name in names}, orient="row")
    return collected(run.judged_scan.join(keys.lazy(), on=names, how="semi", nulls_equal=True))


def _run(
    run: AnalysedRun,
    table: pl.DataFrame,
    label: str,
    made: Mapping[Key, Block],
    ids: Mapping[Key, str],
    vocabulary: Vocabulary,
) -> RunData:
    record = run.record
    by_prompt = table.partition_by(PromptKey._fields, as_dict=True, maintain_order=True)
    kl = pl.Series(run.verdict.curves.numbers("kl_to_final_bits")).drop_nans()
    return RunData(
        label=label,
        model=record.model.id,
        n_layers=record.model.n_layers,
        d_vocab=record.model.d_vocab,
        headline=record.protocol.headline_lens,
        lenses=record.protocol.lenses,
        every=_every(run),
        ranks=record.ranks_stand,
        probabilities=record.probabilities_stand,
        suppressed=run.guidance.suppress_abs_probs,
        statuses={
            lens: tuple(layer.status for layer in layers)
            for lens, layers in run.diagnostics.quotability.by_lens.items()
        },
        carried=_carried(run),
        kl_bits=nice_bits(float(kl.quantile(0.98) or 1.0)) if len(kl) else 1.0,
        missing=missing_positions(run),
        prompts=tuple(_prompt(run, PromptKey(*key), rows, made, ids, vocabulary) for key, rows in by_prompt.items()),
    )


def _carried(run: AnalysedRun) -> Carried | None:
    found = run.diagnostics.patching
    if found is None or found.reason is not None or not run.record.ranks_stand:
        return None
    shares = [
        tuple(None if v is None else round(v, 3) for v in of) for of in (found.effects.next, found.effects.subject)
    ]
    return Carried(shares[0], shares[1], patching_words.sentence(found, run.record.protocol.headline_lens))


def nice_bits(bits: float) -> float:
    """The next of 1, 2, 5, 10, 15, 20, 25 and so on."""
    return next((step for step in (1.0, 2.0, 5.0) if bits <= step), 5.0 * math.ceil(bits / 5))


def missing_positions(run: AnalysedRun) -> str | None:
    """Why a run that was read from published files has the last position alone; None where it has others."""
    record = run.record
    if record.source != "published" or not collected(run.scan.select(pl.col("is_next").all())).item():
        return None
    name = csv_name(stem_of(record.model.id), RECORDS, None)
    return f"The file {name} is missing, which would hold the other positions; the last position alone can be shown."


def _prompt(
    run: AnalysedRun,
    prompt_key: PromptKey,
    rows: pl.DataFrame,
    made: Mapping[Key, Block],
    ids: Mapping[Key, str],
    vocabulary: Vocabulary,
) -> PromptData:
    fact_index, prompt_id, variant = prompt_key
    record = run.record.prompt(prompt_key)
    answers = () if record is None else tuple(answer.string for answer in record.answers)
    last = rows.filter("is_next")["position"].max()
    return PromptData(
        fact_index=fact_index,
        prompt_id=prompt_id,
        variant=variant,
        fact=_fact(record, rows, prompt_id, answers),
        text=None if record is None else record.text,
        tokens=_tokens(record, rows),
        last=None if last is None else int(str(last)),
        answers=answers,
        answer_tokens=_answer_tokens(record, rows, vocabulary),
        judged_token=_judged_token(record, rows, vocabulary),
        milestones={lens: layers for lens in run.record.protocol.lenses if (layers := _layers(run, lens, prompt_key))},
        blocks={
            lens: BlockData(ids[key], made[key].positions, made[key].top_k)
            for lens in run.record.protocol.lenses
            if (key := (fact_index, prompt_id, variant, lens)) in made
        },
    )


def _fact(record: PromptRecord | None, rows: pl.DataFrame, prompt_id: str, answers: Sequence[str]) -> str:
    key = next((key for key in rows["fact_key"] if key is not None), None) or (record.fact_key if record else None)
    kind = "fact" if prompt_id == "pos" else "control"
    return key or " ".join([kind, *answers[:1]])


def _tokens(record: PromptRecord | None, rows: pl.DataFrame) -> dict[int, str]:
    if record is not None and record.tokens is not None:
        return dict(enumerate(record.tokens))
    known = rows.select("position", "token").drop_nulls().unique("position").sort("position")
    return dict(known.iter_rows())


def _answer_tokens(record: PromptRecord | None, rows: pl.DataFrame, vocabulary: Vocabulary) -> tuple[int, ...]:
    """By id where ids are known, else by the text of the answer's first piece."""
    answers = () if record is None else record.answers
    ids = {answer.first_id for answer in answers} | set(rows["answer_id"].unique())
    texts = {answer.pieces[0].replace("Ġ", " ").replace("▁", " ") for answer in answers if answer.pieces}
    texts |= {space + answer.string for answer in answers if not answer.pieces for space in ("", " ")}
    known = [*(vocabulary.by_id.get(id_, ()) for id_ in ids if id_ is not None)]
    known += [vocabulary.by_text.get(text, ()) for text in texts]
    return tuple(sorted(at for places in known for at in places))


def _judged_token(record: PromptRecord | None, rows: pl.DataFrame, vocabulary: Vocabulary) -> int | None:
    ids = rows["answer_id"].drop_nulls().unique().to_list()
    by_first_piece = record is not None and record.judge == "first_piece" and len(record.answers) == 1
    places = vocabulary.by_id.get(ids[0], ()) if by_first_piece and len(ids) == 1 else ()
    return places[0] if len(places) == 1 else None


def _layers(run: AnalysedRun, lens: str, key: PromptKey) -> dict[str, int]:
    milestones = run.milestones.of(lens, key)
    if not milestones or not run.record.ranks_stand:
        return {}
    layers = {
        "rank_1": rank_1(milestones).layer,
        "strong": milestones[STRONG].layer if run.record.probabilities_stand else None,
    }
    return {name: layer for name, layer in layers.items() if layer is not None}
