"""What wrote the answer, in a few lines."""

from collections.abc import Sequence

from layerscope.analysis import write_effects
from layerscope.analysis.drawn_facts import FACTS_FOR_A_CLAIM
from layerscope.analysis.write_effects import effects
from layerscope.analysis.writers import Writer, heads, n_answered, writers
from layerscope.record.sublayers import CheckedSumRecord, SublayersRecord, WordingWritersRecord
from layerscope.record.write_patching import WritePatchingRecord
from layerscope.report.numbers import short_text
from layerscope.report.sentences.lines import LabelledLine, plural

MOST = 5
"""How many writers are named."""
MOST_AGAINST = 3
_SUMS = {
    "writes": ("the writes", "the final residual", "of its largest entry"),
    "shares": ("the shares", "the model's own logit difference", "nats"),
    "steps": ("the steps", "the model's own logit difference", "nats"),
    "heads": ("the heads", "their attention's share", "nats"),
    "neurons": ("the neurons", "their MLP's share", "nats"),
}


def in_short(found: SublayersRecord, wording: WordingWritersRecord | None) -> str:
    """The largest shares in a line, or why there are none."""
    reason = why_none(found, wording)
    if reason is not None or wording is None:
        return reason or ""
    named = ", ".join(_named(writer) for writer in _positive(writers(wording))[:3])
    return f"{named or 'no part writes towards the answer'}; {_difference(wording)}"


def in_detail(found: SublayersRecord, wording: WordingWritersRecord | None) -> list[LabelledLine]:
    """Shares, heads and sums, a line each.

    Args:
        found: what the probe says.
        wording: means over the prompts that the lines are about; None where it has none.
    """
    reason = why_none(found, wording)
    if reason is not None or wording is None:
        return [LabelledLine("writers", reason or "", "block" if not found.adds_up else "")]
    n, parts, every_head = wording.n, writers(wording), heads(wording)
    told = f"{_difference(wording)}, mean of {n} {plural('prompt', n)}, {n_answered(found, wording)} of them answered"
    lines = [LabelledLine("lead", told)]
    lines.append(LabelledLine("writers", _listed(_positive(parts)[:MOST], n) or "none writes towards the answer"))
    against = _listed(_negative(parts)[:MOST_AGAINST], n)
    lines += [LabelledLine("against", against)] if against else []
    if found.heads_reason is not None:
        lines.append(LabelledLine("heads", f"not told apart: {found.heads_reason}"))
    else:
        of_heads = [*_positive(every_head)[:MOST], *_negative(every_head)[:MOST_AGAINST]]
        lines.append(LabelledLine("heads", _listed(of_heads, n)))
    if wording.neurons:
        parts = [Writer(f"neuron {i.neuron}", i.layer, i.dla, i.n_positive) for i in wording.neurons[:MOST]]
        lines.append(LabelledLine("neurons", _listed(parts, n)))
    lines.append(LabelledLine("sums", _sums(found.sums)))
    if found.write_patching is not None:
        lines += _put_in(found.write_patching)
    elif found.write_patching_reason is not None:
        lines.append(LabelledLine("put in", f"no write: {found.write_patching_reason}"))
    lines.append(LabelledLine("cause", _cause(found)))
    return lines


def why_none(found: SublayersRecord, wording: WordingWritersRecord | None) -> str | None:
    """Why no share is named; None where shares are."""
    if found.reason is not None:
        return f"nothing is attributed: {found.reason}"
    if not found.adds_up:
        return f"no share can be trusted: {_sums(found.sums)}"
    return "no prompt of this wording has an answer that is known" if wording is None else None


def _difference(wording: WordingWritersRecord) -> str:
    return f"answer's logit less its rival's {wording.logit_difference:+.2f} nats"


def _positive(parts: Sequence[Writer]) -> list[Writer]:
    return [writer for writer in parts if writer.share > 0]


def _negative(parts: Sequence[Writer]) -> list[Writer]:
    """The most negative first."""
    return [writer for writer in reversed(parts) if writer.share < 0]


def _listed(parts: Sequence[Writer], n: int) -> str:
    """Shares, and in how many prompts each has the sign that it has in the mean."""
    return ", ".join(
        f"{_named(writer)} ({writer.n_positive if writer.share > 0 else n - writer.n_positive} of {n})"
        for writer in parts
    )


def _named(writer: Writer) -> str:
    where = f"head {writer.layer}.{writer.part}" if writer.part.isdecimal() else f"{writer.part} {writer.layer}"
    if writer.part.startswith("neuron"):
        where = f"{writer.part} of layer {writer.layer}"
    return f"{where} {writer.share:+.2f}"


def _sums(sums: Sequence[CheckedSumRecord]) -> str:
    broken = [checked for checked in sums if not checked.ok]
    if not broken:
        shares = next((checked for checked in sums if checked.sum == "shares"), None)
        if shares is None:
            return "all that has to add up does"
        return (
            f"all that has to add up does; nearest to its bound, a prompt's shares miss the model's own difference by "
            f"{_number(shares.error)} nats, where rounding explains {_number(shares.bound)}"
        )
    parts = []
    for checked in broken:
        what, whole, unit = _SUMS[checked.sum]
        parts.append(
            f"{what} miss {whole} by {_number(checked.error)} {unit}, and rounding explains {_number(checked.bound)}"
        )
    return "; ".join(parts)


def _number(value: float) -> str:
    return short_text(value) if value >= 0.001 else f"{value:.1e}"


def _put_in(found: WritePatchingRecord) -> list[LabelledLine]:
    """What moves the answer where one write at a time is another fact's: the largest effects by size, and the shares.

    An effect of 1 is the source's answer in the place of the base's; one below zero strengthens the base's own.
    """
    at_last = [
        f"{one.part} {one.layer} {one.effect:+.2f} ({one.n_positive} of {one.n_known})" for one in effects(found)[:MOST]
    ]
    told = f"one write at a time from another fact's run ({over_pairs(found)}), at the last token: {', '.join(at_last)}"
    subject = [
        f"{part} {layer} {effect:+.2f}" for part, layer, effect in write_effects.at_subject(found)[:MOST_AGAINST]
    ]
    if subject:
        told += f"; at the subject's: {', '.join(subject)}"
    heads = sorted(found.heads, key=lambda head: -abs(head.effect))[:MOST]
    if heads:
        named = (f"head {head.layer}.{head.head} {head.effect:+.2f}" for head in heads)
        told += f"; of {len(found.heads)} heads with the largest shares: {', '.join(named)}"
    lines = [LabelledLine("put in", told)]
    if found.spearman_of_shares is not None:
        few = _too_few(found.n_facts)
        lines.append(
            LabelledLine(
                "agreement",
                f"over attention and MLP of every block these effects and the shares of the bases alone have a rank "
                f"correlation of {found.spearman_of_shares:.2f} (Spearman){few}",
            )
        )
    return lines


def over_pairs(found: WritePatchingRecord) -> str:
    """How many facts and pairs a median is over."""
    pairs = f"{found.n_pairs} of {found.n_pairs + found.n_pairs_left}"
    return f"median over {found.n_facts} {plural('fact', found.n_facts)} in {pairs} pairs"


def _too_few(n_facts: int) -> str:
    return "" if n_facts >= FACTS_FOR_A_CLAIM else f" (an illustration: a claim takes {FACTS_FOR_A_CLAIM} facts)"


def _cause(found: SublayersRecord) -> str:
    if found.patching is None:
        return "a share is what was written, not what was used; patches ask that"
    agreement = found.patching
    facts = plural("fact", agreement.n_facts)
    return (
        f"over {agreement.n_blocks} blocks shares and effects of patching have a rank correlation of "
        f"{agreement.spearman:.2f} (Spearman, {agreement.n_facts} {facts}){_too_few(agreement.n_facts)}; a share is "
        "what was written, not what was used"
    )
