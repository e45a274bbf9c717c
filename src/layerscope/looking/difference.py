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
from layerscope.looking.screen import MOST_ROWS, visible
from layerscope.report.numbers import ABSENT, short_text

_LN2 = math.log(2)


@dataclass(frozen=True)
class LayerDifference:
    """One layer at the last tokens of two texts, or of one text in two models."""

    layer: int
    top_a: str | None
    """Most likely token; None where the row is not finite."""
    top_b: str | None
    js_bits: float | None
    """Jensen-Shannon divergence of the two distributions, in bits from 0 to 1 (Lin 1991); None where they are over
    different vocabularies, not finite, or not to be trusted."""


@dataclass(frozen=True)
class Difference:
    """Two looks, layer by layer under the first lens of each."""

    a: Look
    b: Look
    layers: tuple[LayerDifference, ...]
    reason: str | None
    """Why there are no layers, or no divergences; None where there are."""


def difference(a: Look, b: Look) -> Difference:
    """Compare two looks at their last tokens, by the first lens of each."""
    if a.model.n_layers != b.model.n_layers:
        depths = f"{a.model.n_layers} and {b.model.n_layers} blocks"
        return Difference(a, b, (), f"the models have {depths}, so layers are not set against one another")
    common = [layer for layer in a.layers if layer in b.layers]
    reason = _not_comparable(a, b)
    divergences: list[float | None] = [None] * len(common)
    if reason is None:
        divergences = _js_bits(_last_logits(a, common), _last_logits(b, common))
    tops = [(_top(a, layer), _top(b, layer)) for layer in common]
    layers = tuple(LayerDifference(n, *top, js) for n, top, js in zip(common, tops, divergences, strict=True))
    return Difference(a, b, layers, reason)


def difference_screen(found: Difference) -> Iterator[RenderableType]:
    """The difference as a table."""
    yield Text("difference at the last token, a against b", style="bold")
    if found.reason is not None:
        yield Text(found.reason, style="yellow")
    if not found.layers:
        return
    words = [t.word for t in found.a.tracked if t.token is not None and _ranks(found.b, t.word)]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nlayer", justify="right", no_wrap=True)
    for name in "ab":
        table.add_column(f"{name}:\nsays", no_wrap=True, width=14, overflow="ellipsis")
    table.add_column("\nJS (bits)", justify="right", no_wrap=True)
    for word in words:
        table.add_column(f"rank of {visible(word)}\na", justify="right", no_wrap=True)
        table.add_column("\nb", justify="right", no_wrap=True)
    ranks = {word: (_ranks(found.a, word), _ranks(found.b, word)) for word in words}
    step = -(-len(found.layers) // MOST_ROWS)
    for each in found.layers[(len(found.layers) - 1) % step :: step]:
        says = [ABSENT if top is None else visible(top) for top in (each.top_a, each.top_b)]
        of_words = [_rank(side.get(each.layer)) for word in words for side in ranks[word]]
        table.add_row(str(each.layer), *says, short_text(each.js_bits), *of_words)
    yield table


def difference_as_json(found: Difference) -> dict[str, Any]:
    """The difference as other programs take it."""
    layers = [{"layer": d.layer, "top_a": d.top_a, "top_b": d.top_b, "js_bits": d.js_bits} for d in found.layers]
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
        gaps = [(each.exp() * (each - log_m)).nan_to_num(nan=math.nan).sum() for each in (log_p, log_q)]
        value = float(sum(gaps)) / (2 * _LN2)
        values.append(min(1.0, max(0.0, value)) if math.isfinite(value) else None)
    return values


def _top(look: Look, layer: int) -> str | None:
    at = (0, look.layers.index(layer), -1)
    return str(look.top_tokens[at][0]) if look.top_ids[at][0] >= 0 else None


def _ranks(look: Look, word: str) -> dict[int, int]:
    found = next((t for t in look.tracked if t.word == word and t.token is not None), None)
    if found is None:
        return {}
    return dict(zip(look.layers, map(int, found.rank[0, :, -1]), strict=True))


def _rank(rank: int | None) -> str:
    return f"{rank:,}" if rank else ABSENT
