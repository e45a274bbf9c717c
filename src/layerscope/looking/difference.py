"""Two looks side by side: what each layer would say in one and in the other, and how far apart that is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from layerscope.looking.look import Look
from layerscope.looking.screen import MOST_ROWS, every_so_many
from layerscope.report.numbers import ABSENT, short_text
from layerscope.report.text import visible

_LN2 = math.log(2)
_SAYS, _RANK = 12, 8
"""Widths of columns: a token, and a rank."""


@dataclass(frozen=True)
class LayerDifference:
    """One layer at the last tokens of two texts, or of one text in two models."""

    layer: int
    top_a: str | None
    """Most likely token; None where the row is not finite."""
    top_b: str | None
    ranks: tuple[tuple[int | None, int | None], ...]
    """Of each word that both follow, in a and in b."""
    js_bits: float | None
    """Jensen-Shannon divergence of the two distributions, in bits from 0 to 1 (Lin 1991); None where they are over
    different vocabularies, not finite, or not to be trusted."""


@dataclass(frozen=True, eq=False)
class Difference:
    """Two looks, layer by layer under the first lens of each."""

    a: Look
    b: Look
    words: tuple[str, ...]
    """Words that both follow, and by the same token."""
    layers: tuple[LayerDifference, ...]
    reason: str | None
    """Why there are no layers, or no divergences; None where there are."""


def difference(a: Look, b: Look) -> Difference:
    """Compare two looks at their texts' last tokens, by the first lens of each."""
    if a.model.n_layers != b.model.n_layers:
        depths = f"{a.model.n_layers} and {b.model.n_layers} blocks"
        return Difference(a, b, (), (), f"the models have {depths}, so layers are not set against one another")
    common = [layer for layer in a.layers if layer in b.layers]
    if not common:
        return Difference(a, b, (), (), "no layer was read in both")
    reason = _not_comparable(a, b)
    logits = _last_logits(a, common), _last_logits(b, common)
    divergences: list[float | None] = _js_bits(*logits) if reason is None else [None] * len(common)
    words = tuple(t.word for t in a.tracked if t.token is not None and _token(b, t.word) == t.token)
    ranks = [[_rank_of(side, rows, word) for side, rows in zip((a, b), logits, strict=True)] for word in words]
    tops = [_tops(side, rows) for side, rows in zip((a, b), logits, strict=True)]
    layers = [
        LayerDifference(layer, tops[0][i], tops[1][i], tuple((one[i], other[i]) for one, other in ranks), js)
        for i, (layer, js) in enumerate(zip(common, divergences, strict=True))
    ]
    return Difference(a, b, words, tuple(layers), reason)


def difference_screen(found: Difference, width: int, *, every_layer: bool = False) -> Iterator[RenderableType]:
    """The difference as a table, so many columns wide; `every_layer` for a row for each layer, however many."""
    lenses = " and ".join(dict.fromkeys([found.a.lens_names[0], found.b.lens_names[0]]))
    yield Text(f"difference at the last token, a against b, by the {lenses} lens", style="bold")
    if found.reason is not None:
        yield Text(found.reason, style="yellow")
    if not found.layers:
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nlayer", justify="right", no_wrap=True)
    for name in "ab":
        table.add_column(f"{name}:\nsays", no_wrap=True, width=_SAYS, overflow="ellipsis")
    table.add_column("\nJS (bits)", justify="right", no_wrap=True, width=9)
    shown = max(1, (width - 2 * (_SAYS + 1) - 16) // (2 * (_RANK + 1)))
    for word in found.words[:shown]:
        table.add_column(f"{visible(word)}\nin a", justify="right", no_wrap=True, width=_RANK)
        table.add_column("rank\nin b", justify="right", no_wrap=True, width=_RANK)
    n = len(found.layers)
    step = 1 if every_layer else -(-n // MOST_ROWS)
    for each in found.layers[(n - 1) % step :: step]:
        says = [ABSENT if top is None else visible(top) for top in (each.top_a, each.top_b)]
        ranks = [_printed(rank) for pair in each.ranks[:shown] for rank in pair]
        table.add_row(str(each.layer), *says, short_text(each.js_bits), *ranks)
    yield table
    left = found.words[shown:]
    if left:
        yield Text(
            f"no room here for the ranks of {', '.join(map(visible, left))}: a wider terminal, or --json", style="dim"
        )
    for tracked in found.a.tracked:
        word = tracked.word
        if tracked.token is not None and word not in found.words and _token(found.b, word) is not None:
            yield Text(f"'{visible(word)}' is not the same token in a and b, so its ranks are not compared")
    if step > 1:
        yield Text(every_so_many(step, n), style="dim")


def difference_as_json(found: Difference) -> dict[str, Any]:
    """The difference as other programs take it."""
    layers = [
        {
            "layer": each.layer,
            "top_a": each.top_a,
            "top_b": each.top_b,
            "js_bits": each.js_bits,
            "ranks": {word: list(pair) for word, pair in zip(found.words, each.ranks, strict=True)},
        }
        for each in found.layers
    ]
    return {"lenses": [found.a.lens_names[0], found.b.lens_names[0]], "reason": found.reason, "layers": layers}


def _not_comparable(a: Look, b: Look) -> str | None:
    """Why their distributions cannot be set against one another."""
    if a.model is not b.model and (
        a.model.d_vocab != b.model.d_vocab or a.model.tokens.sha256 != b.model.tokens.sha256
    ):
        return "the models have different tokens, so there is no divergence between what they say"
    if not (a.identity.ok and b.identity.ok):
        return "the identity check failed, so there is no divergence of distributions"
    return None


def _last_logits(look: Look, layers: Sequence[int]) -> Float[Tensor, "layer d_vocab"]:
    lens, head = look.lenses[0], look.model.unembedding
    with torch.inference_mode():
        rows = torch.stack([lens(look.residuals[layer, -1], layer) for layer in layers])
        return head.transform.apply_(head.logits(head.head_input(rows)))


def _js_bits(p_logits: Float[Tensor, "layer d_vocab"], q_logits: Float[Tensor, "layer d_vocab"]) -> list[float | None]:
    """Layer by layer, in float64."""
    values: list[float | None] = []
    for p_row, q_row in zip(p_logits, q_logits, strict=True):
        log_p, log_q = (row.double().log_softmax(-1).cpu() for row in (p_row, q_row))
        log_m = torch.logaddexp(log_p, log_q) - _LN2
        # An id that one of them rules out (a logit of -inf) has no part in its sum.
        gaps = [torch.where(each == -math.inf, 0.0, each.exp() * (each - log_m)).sum() for each in (log_p, log_q)]
        value = float(sum(gaps)) / (2 * _LN2)
        values.append(min(1.0, max(0.0, value)) if math.isfinite(value) else None)
    return values


def _tops(look: Look, logits: Float[Tensor, "layer d_vocab"]) -> list[str | None]:
    """The most likely token of each row; None of one that is not finite."""
    ids = logits.argmax(-1).tolist()
    strings = look.model.tokens.display(ids)
    sound = (logits < math.inf).all(-1).tolist()
    return [strings[token_id] if ok else None for token_id, ok in zip(ids, sound, strict=True)]


def _followed(look: Look, word: str) -> int | None:
    """The id by which a word is followed."""
    return next((t.alignment.first_id for t in look.tracked if t.word == word), None)


def _token(look: Look, word: str) -> str | None:
    return next((t.token for t in look.tracked if t.word == word), None)


def _rank_of(look: Look, logits: Float[Tensor, "layer d_vocab"], word: str) -> list[int | None]:
    """1 + number of larger logits in each row; None where the row is not finite."""
    token_id = _followed(look, word)
    if token_id is None:
        return [None] * len(logits)
    ranks = (1 + (logits > logits[:, token_id, None]).sum(-1)).tolist()
    sound = (logits < math.inf).all(-1).tolist()
    return [rank if ok else None for rank, ok in zip(ranks, sound, strict=True)]


def _printed(rank: int | None) -> str:
    return ABSENT if rank is None else f"{rank:,}"
