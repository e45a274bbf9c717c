"""A look in words: what the model says next, how a word's rank goes through the layers, and what to know of both."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from layerscope.looking.look import Look, Tracked
from layerscope.report.numbers import short_text
from layerscope.report.text import printable, visible

_MOST_OF_TEXT = 200
MODEL_AT_THE_END = ("logit", "next_norm", "tuned", "ridge", "jacobian")
"""Lenses that are the model itself behind the last block."""


class Note(NamedTuple):
    """What has to be known of a word that is followed by less than itself, or not at all."""

    text: str
    unfollowed: bool
    """Whether it is not followed at all."""


def abridged(text: str) -> str:
    """The end of a text in one line."""
    shown = printable(text.replace("\n", "↵").replace("\t", "⇥"))
    return shown if len(shown) <= _MOST_OF_TEXT else f"…{shown[-_MOST_OF_TEXT:]}"


def says_next(look: Look) -> str:
    """The model's most likely tokens after the text, with their probabilities."""
    if look.output is None:
        return "nothing finite: the model's logits after this text are NaN or infinite"
    pairs = zip(look.output.top_tokens, look.output.top_probs, strict=True)
    return " · ".join(f"{visible(token)} {short_text(p)}" for token, p in pairs)


def course_of(look: Look, tracked: Tracked, lens: int) -> str:
    """How a followed word's rank goes through the layers, at the last place that was read."""
    ranks = [int(rank) for rank in tracked.rank[lens, :, -1]]
    words = course(look.layers, ranks, every=len(look.layers) > look.model.n_layers)
    return words if look.positions[-1] == len(look.tokens) - 1 else f"{words}, at place {look.positions[-1]}"


def course(layers: Sequence[int], ranks: Sequence[int], *, every: bool) -> str:
    """How a rank goes through layers, in words.

    Args:
        layers: which were read.
        ranks: there; 0 of a row that is not finite.
        every: whether these are all of the model's layers.
    """
    known = {layer: rank for layer, rank in zip(layers, ranks, strict=True) if rank}
    some = "" if every else " of those read"
    if not known:
        return f"no finite layer{some}"
    best, last = min(known.values()), layers[-1]
    first = next(layer for layer, rank in known.items() if rank == best)
    if best > 1:
        at_last = "" if first == last else f"; {_said(known, last)} at {last}"
        return f"best rank {best:,} at layer {first}{some}{at_last}"
    at_first = f"on top at layer {first}" if every and first == last else f"first on top at layer {first}{some}"
    if last not in known or known[last] > 1:
        return f"{at_first}; {_said(known, last)} at {last}"
    start = next(n for n in known if all(rank == 1 for at, rank in known.items() if at >= n))
    if first == last:
        return at_first
    if not every:
        return f"{at_first}; rank 1 at {last}"
    return f"on top from layer {first} on" if start == first else f"{at_first}, to the end from {start}"


def _said(known: dict[int, int], layer: int) -> str:
    return f"rank {known[layer]:,}" if layer in known else "not finite"


def notes(look: Look) -> Iterator[Note]:
    """Of every word that is followed by less than itself, or not at all."""
    for tracked in look.tracked:
        found = tracked.alignment
        if tracked.token is None:
            reason = printable(str(found.reason))
            yield Note(f"'{printable(tracked.word)}' cannot be followed after this text ({reason})", unfollowed=True)
        elif found.several_pieces:
            piece = f"the first of its {len(found.answer_ids)} pieces, {visible(tracked.token)}"
            yield Note(f"'{printable(tracked.word)}' is followed through {piece}", unfollowed=False)


def footer(look: Look) -> str:
    """Whether the last layer is the model's own output, whose the probabilities are, and what begins the text."""
    check = look.identity
    if check.ok:
        checked = f"identity check passed (KL {check.kl_bits:.1e} bits){_whose_p(look)}"
    else:
        kl = "not finite" if check.kl_bits is None else f"{check.kl_bits:.3g} bits"
        checked = f"identity check FAILED (KL {kl}): {check.note} Probabilities of layers are withheld."
    if look.encoded.chat is not None:
        return f"{checked} · chat, as the model's template writes it"
    return f"{checked} · {look.model.tokens.begins.note}"


def _whose_p(look: Look) -> str:
    """Of which rows the probabilities are the model's own."""
    n = look.model.n_layers
    names = [name for name in look.lens_names if name in MODEL_AT_THE_END]
    if n not in look.layers or not names:
        return ": p is the lens' own at every layer shown"
    under = "" if len(names) == len(look.lens_names) else f" under {', '.join(names)}"
    return f": p is the model's at layer {n}{under}, the lens' own elsewhere"
