"""What single writes of one fact's run do in another's: which attention, MLP and head move the answer."""

from collections.abc import Iterator

from layerscope.analysis.drawn_facts import FACTS_FOR_A_CLAIM
from layerscope.analysis.write_effects import Effect, effects
from layerscope.analysis.writers import ATTENTION
from layerscope.record.sublayers import SublayersRecord
from layerscope.record.write_patching import HeadEffectRecord, WriteEffectsRecord, WritePatchingRecord
from layerscope.report.cited.claims import Claim, Unit
from layerscope.report.cited.document import Block, Name, Row, Section, Sentence, paragraph, row, sentence
from layerscope.report.evaluation.causal import FEW
from layerscope.report.evaluation.quotes import Path, Quotes, table

TITLE = "Which writes move the answer?"
LISTED = 12
"""Effects in the table of the largest; every one of them is in the run's table."""
_AT: Path = ("write_patching",)
_SHARES: Path = ("record", "measured", "sublayers", "wordings")
_HOW = "median over pairs of the table of single writes"
NOTHING = "No write was put into another run: {}."
LARGEST = (
    "Of all writes of another fact's run, put in one at a time at the last token, that of {part} in the block of layer "
    "{layer} moves the answer most: {effect} in the median, of what lies between both facts (below zero the run's own "
    "answer gains), and more than zero in {positive} of {known} pairs ({facts} facts in {pairs} pairs were patched)."
)
PAIRS_LEFT = "Of the patched pairs {} were left out, taken evenly over the facts."
AGREEMENT = (
    "Over attention and MLP of every block the effects and the shares of the facts that are run have a rank "
    "correlation of {} (Spearman): a share is what was written, not what was used."
)
NO_AGREEMENT = "How far shares agree with that is not known: all of one are equal."
DIRECT = "What the writes do by themselves, without what later blocks make of them, has one of {} with the effects."
ITSELF = "A run's own write, put into it, changes no logit by more than {} nats."
EFFECTS = (
    "The largest effects by size, medians over pairs: {} is nothing, {} is the source's run, and below zero the run's "
    "own answer gains. Direct is the write by itself, read by the head at the scale that the final norm has in the "
    "run. Shares are in nats, of the answer's lead over the next token: means over {} prompts, which need not be those "
    "that were paired."
)
HEADS = (
    "The heads with the largest shares by size, of the prompts that are run; effects as above, with the head's part "
    "replaced in front of the output matrix."
)


def single_writes(quotes: Quotes) -> tuple[Section, ...]:
    """One section; none of a run that was not asked for sublayers."""
    sublayers = quotes.record.measured.sublayers
    if sublayers is None:
        return ()
    found = quotes.evidence.run.write_effects
    if found is None:
        if sublayers.write_patching_reason is None:
            return ()
        reason = Name(sublayers.write_patching_reason)
        return (Section(TITLE, (paragraph(sentence(NOTHING, reason)),)),)
    listed = effects(found)
    blocks: list[Block] = [paragraph(*_told(quotes, found, listed)), _effects(quotes, found, sublayers, listed)]
    if found.heads:
        blocks.append(_heads(quotes, found))
    return (Section(TITLE, tuple(blocks)),)


def _figure(quotes: Quotes, name: str, value: float | int | None, unit: Unit, *path: str | int) -> Claim:
    return quotes.figure(name, value, unit, (*_AT, *path), how=_HOW)


def _count(quotes: Quotes, found: WritePatchingRecord, name: str) -> Claim:
    return _figure(quotes, name, getattr(found, name), Unit.COUNT, name)


def _told(quotes: Quotes, found: WritePatchingRecord, listed: list[Effect]) -> Iterator[Sentence]:
    if listed:
        largest = listed[0]
        yield sentence(
            LARGEST,
            part=Name(_words(largest.part)),
            layer=Name(str(largest.layer)),
            effect=_of(quotes, found, largest, "next"),
            positive=_of(quotes, found, largest, "n_positive"),
            known=_of(quotes, found, largest, "n_known"),
            facts=_count(quotes, found, "n_facts"),
            pairs=_count(quotes, found, "n_pairs"),
        )
    if found.n_pairs_left:
        yield sentence(PAIRS_LEFT, _count(quotes, found, "n_pairs_left"))
    if found.spearman_of_shares is None:
        yield sentence(NO_AGREEMENT)
    else:
        name = "spearman_of_shares"
        yield sentence(AGREEMENT, _figure(quotes, name, found.spearman_of_shares, Unit.NUMBER, name))
    if found.spearman_of_direct is not None:
        name = "spearman_of_direct"
        yield sentence(DIRECT, _figure(quotes, name, found.spearman_of_direct, Unit.NUMBER, name))
    if found.n_facts < FACTS_FOR_A_CLAIM:
        yield sentence(FEW, Name(str(FACTS_FOR_A_CLAIM)))
    if found.self_patch_logit_change is not None:
        name = "self_patch_logit_change"
        yield sentence(ITSELF, _figure(quotes, name, found.self_patch_logit_change, Unit.LOGIT, name))


def _words(part: str) -> str:
    return "attention" if part == ATTENTION else "the MLP"


def _key(part: str) -> str:
    return "attention" if part == ATTENTION else "mlp"


def _of(quotes: Quotes, found: WritePatchingRecord, effect: Effect, name: str) -> Claim:
    """What is known of one write, by the record's name for it."""
    record: WriteEffectsRecord = getattr(found, _key(effect.part))
    value = getattr(record, name)[effect.layer]
    unit = Unit.COUNT if name.startswith("n_") else Unit.NUMBER
    named = "effect" if name in ("next", "subject") else name
    return _figure(quotes, named, value, unit, _key(effect.part), name, effect.layer)


def _effects(quotes: Quotes, found: WritePatchingRecord, sublayers: SublayersRecord, listed: list[Effect]) -> Block:
    wordings = [wording for wording in sublayers.wordings if wording.prompt_id == "pos"]
    own = next((wording for wording in wordings if wording.prompt_variant == found.prompt_variant), None)
    place = None if own is None else sublayers.wordings.index(own)
    at_subject = bool(found.attention.subject)
    names = ("next", "n_positive", "n_known", "direct", *(("subject",) if at_subject else ()))

    def share(effect: Effect) -> Claim:
        path = (*_SHARES, place or 0, _key(effect.part), "dla", effect.layer)
        value = None if own is None else getattr(own, _key(effect.part)).dla[effect.layer]
        return quotes.figure("share", value, Unit.LOGIT, path, how="mean over prompts of the table of shares")

    def cells(effect: Effect) -> Row:
        figures = (_of(quotes, found, effect, name) for name in names)
        return row(Name(effect.part), Name(str(effect.layer)), *figures, share(effect))

    header = ("write", "layer", "effect", "above zero in", "of pairs", "direct")
    n = quotes.figure("n", None if own is None else own.n, Unit.COUNT, (*_SHARES, place or 0, "n"))
    caption = quotes.caption(EFFECTS, Name("0"), Name("1"), n, marked=False)
    extra = (*(("at the subject",) if at_subject else ()), "share")
    return table((*header, *extra), [cells(effect) for effect in listed[:LISTED]], caption)


def _heads(quotes: Quotes, found: WritePatchingRecord) -> Block:
    def cells(place: int, head: HeadEffectRecord) -> Row:
        figures = (
            _figure(quotes, name, getattr(head, name), unit, "heads", place, name)
            for name, unit in (("effect", Unit.NUMBER), ("n_positive", Unit.COUNT), ("share", Unit.LOGIT))
        )
        return row(Name(str(head.layer)), Name(str(head.head)), *figures)

    rows = [cells(place, head) for place, head in enumerate(found.heads)]
    return table(("layer", "head", "effect", "above zero in", "share"), rows, quotes.caption(HEADS, marked=False))
