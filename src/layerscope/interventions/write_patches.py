"""One write of a fact's run at a time replaced by another fact's: does the answer go with it?

As with whole residuals (`layerscope.interventions.patched_runs`) the effect is
(LD_patched - LD_base) / (LD_source - LD_base), with LD the logit of the base's answer less the source's. A write that
is replaced takes with it whatever later blocks make of it. Its direct part is what the head reads in the difference of
both writes, the final norm's scale held as in the base's run; that is the part that a share is about.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import PlacementError
from layerscope.interventions.copies import SELF_LAYERS, Prompts
from layerscope.interventions.effects import Asked, Decoded, compared, decode, rows_at_once
from layerscope.interventions.pairs import Pair, Place
from layerscope.interventions.patched_runs import PASS_BYTES
from layerscope.model.causal_lm import CausalLM
from layerscope.model.patching import ROW_NODES
from layerscope.model.placement import format_bytes
from layerscope.model.write_patching import WritePatch, WritePatchedPass, WriteSite
from layerscope.record.patches import METRICS, NEXT
from layerscope.record.write_patches import HEAD, write_patches_frame

T = TypeVar("T")
BOTH: tuple[WriteSite, ...] = ("attn", "mlp")


@dataclass(frozen=True)
class ReplacedWrites:
    """What came of them."""

    table: pl.DataFrame
    """The columns of `layerscope.record.write_patches`."""
    self_patch_logit_change: float | None
    """Largest change of a logit by a run's own write, in nats; None where one is not finite."""


@dataclass(frozen=True)
class _Copy:
    pair: int
    place: Place
    patch: WritePatch


@dataclass(frozen=True)
class _Rows:
    own: Float[Tensor, "prompt d_model"]
    patched: Float[Tensor, "copy d_model"]
    steps: Float[Tensor, "copy d_model"]


class WritePatches:
    """Pairs of facts that the model answers, run with one write replaced."""

    def __init__(self, model: CausalLM, pairs: Sequence[Pair], heads: Sequence[tuple[int, int]]) -> None:
        """Take the pairs.

        Args:
            model: the model; its blocks can be resumed.
            pairs: at least one, whose logit differences are known to differ.
            heads: layer and number of heads that are replaced one at a time, beside every attention and MLP.
        """
        self.model, self.pairs, self.heads = model, list(pairs), list(heads)
        self.prompts = Prompts.of(self.pairs)
        self.token_ids = [fact.token_ids for fact in self.prompts.facts]

    @property
    def copies(self) -> list[_Copy]:
        """Every write at every place of every pair."""
        return [
            _Copy(i, place, self._patch(pair, place, layer, site, head))
            for i, pair in enumerate(self.pairs)
            for place in pair.subject_and_next
            for layer, site, head in self._parts()
        ]

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> ReplacedWrites:
        """Run them, and a few whose write is the base's own.

        Args:
            progress: called with (blocks done, blocks to do).
        """
        copies, selves = self.copies, self._selves()
        rows = self._run([*copies, *selves], progress)
        own = decode(rows.own, self.model.final_norm, self.model.unembedding)
        kept = _Rows(rows.own, rows.patched[: len(copies)], rows.steps[: len(copies)])
        again = decode(rows.patched[len(copies) :], self.model.final_norm, self.model.unembedding)
        change = float((again.logits - own.logits[selves[0].patch.base]).abs().max())
        return ReplacedWrites(self._table(copies, kept, own), change if change < torch.inf else None)

    def _parts(self) -> Iterator[tuple[int, WriteSite, int | None]]:
        for layer in range(1, self.model.n_layers + 1):
            yield from ((layer, site, None) for site in BOTH)
        yield from ((layer, "head", head) for layer, head in self.heads)

    def _patch(self, pair: Pair, place: Place, layer: int, site: WriteSite, head: int | None) -> WritePatch:
        base, source = self.prompts.row(pair.base), self.prompts.row(pair.source)
        return WritePatch(layer, site, base, place.position, source, place.source_position, head)

    def _selves(self) -> list[_Copy]:
        """The first pair's base's own writes, at a few layers."""
        n, pair = self.model.n_layers, self.pairs[0]
        layers = sorted({1 + round(i * (n - 1) / (SELF_LAYERS - 1)) for i in range(SELF_LAYERS)})
        last = len(pair.base.token_ids) - 1
        own, place = Pair(pair.base, pair.base), Place(NEXT, last, last)
        return [_Copy(0, place, self._patch(own, place, layer, site, None)) for layer in layers for site in BOTH]

    # What is run

    def _run(self, copies: Sequence[_Copy], progress: Callable[[int, int], None]) -> _Rows:
        """All copies, in as many passes as memory asks for."""
        memory = self.model.placement.memory
        room = (memory - self.model.largest_block_bytes) // 2
        least = max(self._bytes([copy]) for copy in copies)
        if least > room:
            raise PlacementError(
                f"One replaced write takes {format_bytes(least)} beside a block, but {format_bytes(max(0, room))} are "
                "left for them; raise --memory."
            )
        if not self.model.patches_ride:  # else every pass reads all weights again
            room = min(PASS_BYTES, room)
        order = sorted(range(len(copies)), key=lambda i: copies[i].patch.base)  # a base's copies stay together
        groups = _halved(order, lambda group: self._bytes([copies[i] for i in group]) <= room)
        device, d_model = self.model.placement.device, self.model.d_model
        patched, steps = (torch.empty(len(copies), d_model, device=device) for _ in range(2))
        own = torch.empty(len(self.token_ids), d_model, device=device)
        for done, group in enumerate(groups):
            used = self._used([copies[i] for i in group])
            run = self._pass_of([copies[i].patch for i in group], used)
            last, rows = self.model.run_patched(
                run,
                progress=lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
            )
            patched[group], own[used], steps[group] = rows, last, run.steps.to(device)
        return _Rows(own, patched, steps)

    def _pass_of(self, patches: Sequence[WritePatch], used: Sequence[int]) -> WritePatchedPass:
        """Some copies, with the prompts that they need."""
        place = {row: i for i, row in enumerate(used)}
        moved = [
            WritePatch(p.layer, p.site, place[p.base], p.position, place[p.source], p.source_position, p.head)
            for p in patches
        ]
        ids = [self.token_ids[row] for row in used]
        return WritePatchedPass(ids, moved, self.model.sublayers, self.model.n_heads, self.model.d_model)

    def _used(self, copies: Sequence[_Copy]) -> list[int]:
        return sorted({row for copy in copies for row in (copy.patch.base, copy.patch.source)})

    def _bytes(self, copies: Sequence[_Copy]) -> int:
        """Memory of a pass: what a block holds of all its tokens with a write twice, the stream twice, and steps."""
        used, model = self._used(copies), self.model
        nodes = sum(len(self.token_ids[copy.patch.base]) - copy.patch.position for copy in copies)
        width = max(len(self.token_ids[row]) for row in used) + 2 * ROW_NODES
        n_rows = len(used) + nodes // ROW_NODES
        per_token = model.widest_activation + 4 * model.d_model + width * ((model.n_heads or 0) + 3)
        return 4 * (per_token * width * n_rows + 2 * model.d_model * len(copies))

    # What they say

    def _table(self, copies: Sequence[_Copy], rows: _Rows, own: Decoded) -> pl.DataFrame:
        asked = self._asked([self.pairs[copy.pair] for copy in copies])
        step, parts = rows_at_once(self.model.unembedding, self.model.placement.memory), list[dict[str, Tensor]]()
        for start in range(0, len(copies), step):
            here = slice(start, start + step)
            patched = decode(rows.patched[here], self.model.final_norm, self.model.unembedding)
            parts.append(compared(patched, own, asked[here]))
        metrics = {name: torch.cat([part[name] for part in parts]).cpu() for name in METRICS}
        whole = pl.Series(metrics["effect"].isfinite().numpy())
        direct = self._direct(copies, rows, asked, own)
        given: dict[str, Sequence[object] | pl.Series] = {
            "pair": [copy.pair for copy in copies],
            "base": [self.prompts.fact_index(copy.patch.base) for copy in copies],
            "source": [self.prompts.fact_index(copy.patch.source) for copy in copies],
            "site": [copy.patch.site for copy in copies],
            "layer": [copy.patch.layer for copy in copies],
            "head": [copy.patch.head for copy in copies],
            "place": [copy.place.name for copy in copies],
            "position": [copy.place.position for copy in copies],
            "from_end": [len(self.token_ids[copy.patch.base]) - 1 - copy.place.position for copy in copies],
            "direct": direct.set(~direct.is_finite(), None),
        }
        measured = {name: pl.Series(values.numpy()).set(~whole, None) for name, values in metrics.items()}
        return write_patches_frame(given | measured)

    def _direct(self, copies: Sequence[_Copy], rows: _Rows, asked: Asked, own: Decoded) -> pl.Series:
        """What the head reads in the difference of both writes, as a share of what lies between both facts."""
        head, norm = self.model.unembedding, self.model.final_norm
        directions = (head.columns(asked.base_answers) - head.columns(asked.source_answers)).double()
        if head.projection is not None:
            directions = directions @ head.projection.double()
        read = (rows.steps.double() * (directions if norm is None else norm.pulled_back(directions))).sum(-1)
        if norm is not None:
            read = read * norm.inverse_scale(rows.own.double())[asked.base, 0]
        between = asked.difference(own.linear, asked.source) - asked.difference(own.linear, asked.base)
        at_next = torch.tensor([copy.place.name == NEXT for copy in copies], device=read.device)
        is_head = torch.tensor([copy.patch.site == HEAD for copy in copies], device=read.device)
        found = torch.where(at_next, read / between, 0.0)
        return pl.Series(torch.where(is_head, torch.nan, found).cpu().numpy())

    def _asked(self, pairs: Sequence[Pair]) -> Asked:
        ids = (
            [self.prompts.row(pair.base) for pair in pairs],
            [self.prompts.row(pair.source) for pair in pairs],
            [pair.base.answer_id for pair in pairs],
            [pair.source.answer_id for pair in pairs],
        )
        return Asked(*(torch.tensor(values, device=self.model.placement.device) for values in ids))


def _halved(items: list[T], fits: Callable[[list[T]], bool]) -> list[list[T]]:
    """Cut in halves until each fits, or is one item."""
    if len(items) == 1 or fits(items):
        return [items]
    half = len(items) // 2
    return [*_halved(items[:half], fits), *_halved(items[half:], fits)]
