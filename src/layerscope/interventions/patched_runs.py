"""A suite's facts written into one another: every layer, at the subject and where the answer is said."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.interventions import Positions
from layerscope.interventions.copies import SELF, Copies, Copy, Prompts
from layerscope.interventions.effects import Asked, Decoded, compared, decode, rows_at_once
from layerscope.interventions.pairs import Pair, PairedFact, pairs_of
from layerscope.model.causal_lm import CausalLM
from layerscope.model.patched_pass import PatchedPass
from layerscope.model.patching import ROW_NODES, Patch, why_not_patched
from layerscope.record.patches import METRICS, NEXT, RANDOM, SAME_ANSWER, UNRELATED, no_patches, patches_frame
from layerscope.record.patching import PatchedPairRecord, PatchingRecord

LEAST_DIFFERENCE = 2.0
"""Nats by which the logit difference of base and source must differ: an effect is a share of it."""
PASS_BYTES = 1 << 30
"""What one pass may take, even where there is room for more, as long as weights are at hand."""
NO_PAIR = "in the wording {} no two facts of one template are answered by the model with different tokens"


@dataclass(frozen=True)
class Patched:
    """What was patched, and what came of it."""

    record: PatchingRecord
    table: pl.DataFrame
    """The columns of `layerscope.record.patches.PATCH_COLUMNS`."""


@dataclass(frozen=True)
class _Rows:
    """Final residuals at last positions."""

    own: Float[Tensor, "prompt d_model"]
    patched: Float[Tensor, "copy d_model"]


class PatchedRuns:
    """The pairs of some facts of one wording, run through a model."""

    def __init__(self, model: CausalLM, facts: Sequence[PairedFact], seed: int, positions: Positions) -> None:
        self.model, self.positions = model, positions
        self.pairs, self.left_out = pairs_of(facts)
        self.prompts = Prompts.of(self.pairs)
        self.token_ids = self.prompts.token_ids
        self._copies = Copies(self.pairs, self.prompts, model.n_layers, model.d_model, positions, seed)

    def riding(self, room_bytes: int) -> PatchedPass | None:
        """All copies as one pass that may ride along with another; None where it would take more than there is.

        Args:
            room_bytes: what there is.
        """
        if self._why_not("") is not None or self.planned_bytes > room_bytes // 2:
            return None
        return self._pass_of(range(len(self.patches)))

    def run(
        self,
        prompt_variant: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
        ridden: PatchedPass | None = None,
    ) -> Patched:
        """Run them, or take what came of them where they rode along with another pass.

        Args:
            prompt_variant: the wording.
            progress: called with (blocks done, blocks to do).
            ridden: the pass that `riding` gave, when it has run.
        """
        reason = self._why_not(prompt_variant)
        if reason is not None:
            return Patched(self._record(prompt_variant, (), reason), no_patches())
        copies = self.copies
        rows = self._run(progress) if ridden is None else _Rows(ridden.own, ridden.patched)
        rows = _Rows(rows.own, rows.patched[self._patch_of])
        own = decode(rows.own, self.model.final_norm, self.model.unembedding)
        usable = [i for i, pair in enumerate(self.pairs) if self._is_usable(pair, own)]
        answered = (own.linear.argmax(-1)).tolist()
        kept = [
            (copy, row)
            for copy, row in zip(copies, rows.patched, strict=True)
            if copy.pair in usable and self._is_control(copy, answered)
        ]
        table = self._table(kept, own)
        place = {pair: i for i, pair in enumerate(usable)}
        table = table.with_columns(pl.col("pair").replace_strict(place, return_dtype=pl.Int32)) if usable else table
        records = tuple(self._pair(self.pairs[i], own) for i in usable)
        record = self._record(prompt_variant, records, None if records else NO_PAIR.format(prompt_variant))
        change = self._self_change(copies, rows, own)
        return Patched(record.model_copy(update={"self_patch_logit_change": change}), table)

    @property
    def planned_bytes(self) -> int:
        """Memory of all copies in one pass."""
        return self._bytes(self.patches)

    @cached_property
    def copies(self) -> list[Copy]:
        """All that is written into any run; a third fact's residual is another pair's own, and is run once for both."""
        return self._copies.all()

    @cached_property
    def patches(self) -> list[Patch]:
        """What is run for them, each once."""
        return list({copy.patch.key: copy.patch for copy in self.copies}.values())

    @cached_property
    def _patch_of(self) -> list[int]:
        """For every copy the place of its patch."""
        place = {patch.key: i for i, patch in enumerate(self.patches)}
        return [place[copy.patch.key] for copy in self.copies]

    def _is_control(self, copy: Copy, top: Sequence[int]) -> bool:
        """Whether another wording has the base's answer on top, and a third fact neither the base's nor the source's;
        what is no such control need not say anything."""
        pair = self.pairs[copy.pair]
        if copy.kind == SAME_ANSWER:
            return copy.source is not None and top[copy.source] == pair.base.answer_id
        if copy.kind == UNRELATED:
            return copy.source is not None and top[copy.source] not in (pair.base.answer_id, pair.source.answer_id)
        return True

    def _why_not(self, prompt_variant: str) -> str | None:
        if not self.pairs:
            return NO_PAIR.format(prompt_variant)
        return why_not_patched(self.model.architecture)

    def _record(self, variant: str, pairs: tuple[PatchedPairRecord, ...], reason: str | None) -> PatchingRecord:
        left_out = dict(self.left_out)
        return PatchingRecord(
            prompt_variant=variant, positions=self.positions, pairs=pairs, left_out=left_out, reason=reason
        )

    # What is run

    def _run(self, progress: Callable[[int, int], None]) -> _Rows:
        """All patches, in as many passes as memory asks for."""
        groups = self._groups(sorted(range(len(self.patches)), key=lambda i: self.patches[i].base))
        device = self.model.placement.device
        patched = torch.empty(len(self.patches), self.model.d_model, device=device)
        own = torch.empty(len(self.token_ids), self.model.d_model, device=device)
        for done, group in enumerate(groups):
            used = self._used([self.patches[i] for i in group])
            run = self._pass_of(group)
            last, rows = self.model.run_patched(
                run,
                progress=lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
            )
            patched[group], own[used] = rows, last
        return _Rows(own, patched)

    def _pass_of(self, group: Sequence[int]) -> PatchedPass:
        """Some patches, with the prompts that they need."""
        wanted = [self.patches[i] for i in group]
        used = self._used(wanted)
        place = {row: i for i, row in enumerate(used)}
        patches = [
            Patch(p.layer, place[p.base], p.position, place[p.source], p.source_position, p.direction) for p in wanted
        ]
        return PatchedPass([self.token_ids[row] for row in used], patches, self.model.n_layers)

    def _used(self, patches: Sequence[Patch]) -> list[int]:
        return sorted({row for patch in patches for row in (patch.base, patch.source)})

    def _groups(self, order: list[int]) -> list[list[int]]:
        """Halved until a half fits; a base's patches stay together as far as that goes."""
        memory = self.model.placement.memory
        room = (memory - self.model.largest_block_bytes) // 2
        if not self.model.patches_ride:  # else every pass reads all weights again
            room = min(PASS_BYTES, room)
        if len(order) == 1 or self._bytes([self.patches[i] for i in order]) <= room:
            return [order]
        half = len(order) // 2
        return [*self._groups(order[:half]), *self._groups(order[half:])]

    def _bytes(self, patches: Sequence[Patch]) -> int:
        """Memory of a pass: what a block holds of all its tokens, and the stream twice."""
        used = self._used(patches)
        nodes = sum(len(self.token_ids[patch.base]) - patch.position for patch in patches)
        width = max(len(self.token_ids[row]) for row in used) + 2 * ROW_NODES
        n_rows = len(used) + nodes // ROW_NODES
        per_token = self.model.widest_activation + 2 * self.model.d_model + width * ((self.model.n_heads or 0) + 3)
        return 4 * per_token * width * n_rows

    # What they say

    def _table(self, found: Sequence[tuple[Copy, Tensor]], own: Decoded) -> pl.DataFrame:
        kept = [(copy, row) for copy, row in found if copy.kind != SELF]
        if not kept:
            return no_patches()
        copies = [copy for copy, _ in kept]
        metrics = self._metrics(torch.stack([row for _, row in kept]), self._asked(self._pairs_of(copies)), own)
        table = self._frame(copies, [copy.patch.layer for copy in copies], metrics)
        # Behind the last block nothing is left to run: `next` has the output of what is written, others the base's own.
        last = [copy for copy in copies if copy.patch.layer == self.model.n_layers - 1 and copy.kind != RANDOM]
        outputs = [copy.source if copy.place.name == NEXT else copy.patch.base for copy in last]
        asked = self._asked(self._pairs_of(last))
        rows, step = torch.tensor(outputs, device=asked.base.device), self._rows_at_once
        parts = [compared(own[rows[i : i + step]], own, asked[i : i + step]) for i in range(0, len(rows), step)]
        columns = {name: torch.cat([part[name] for part in parts]).cpu() for name in METRICS}
        return pl.concat([table, self._frame(last, [self.model.n_layers] * len(last), columns)])

    def _metrics(self, rows: Float[Tensor, "copy d_model"], asked: Asked, own: Decoded) -> dict[str, Tensor]:
        step, parts = self._rows_at_once, list[dict[str, Tensor]]()
        for start in range(0, len(rows), step):
            here = slice(start, start + step)
            patched = decode(rows[here], self.model.final_norm, self.model.unembedding)
            parts.append(compared(patched, own, asked[here]))
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in METRICS}

    @property
    def _rows_at_once(self) -> int:
        return rows_at_once(self.model.unembedding, self.model.placement.memory)

    def _pairs_of(self, copies: Sequence[Copy]) -> list[Pair]:
        return [self.pairs[copy.pair] for copy in copies]

    def _asked(self, pairs: Sequence[Pair]) -> Asked:
        row = {fact.fact_index: i for i, fact in enumerate(self.prompts.facts)}
        ids = (
            [row[pair.base.fact_index] for pair in pairs],
            [row[pair.source.fact_index] for pair in pairs],
            [pair.base.answer_id for pair in pairs],
            [pair.source.answer_id for pair in pairs],
        )
        return Asked(*(torch.tensor(values, device=self.model.placement.device) for values in ids))

    def _frame(self, copies: Sequence[Copy], layers: Sequence[int], metrics: dict[str, Tensor]) -> pl.DataFrame:
        whole = pl.Series(metrics["effect"].isfinite().numpy())
        measured = {name: pl.Series(values.numpy()).set(~whole, None) for name, values in metrics.items()}
        given: dict[str, Sequence[object] | pl.Series] = {
            "kind": [copy.kind for copy in copies],
            "pair": [copy.pair for copy in copies],
            "base": [self.prompts.fact_index(copy.patch.base) for copy in copies],
            "source": [None if copy.source is None else self.prompts.fact_index(copy.source) for copy in copies],
            "place": [copy.place.name for copy in copies],
            "position": [copy.place.position for copy in copies],
            "from_end": [len(self.token_ids[copy.patch.base]) - 1 - copy.place.position for copy in copies],
            "layer": layers,
        }
        return patches_frame(given | measured)

    def _is_usable(self, pair: Pair, own: Decoded) -> bool:
        """Whether both runs are finite, have their answers, and differ; counted where not."""
        both = [self.prompts.row(fact) for fact in (pair.base, pair.source)]
        if not own.linear[both].isfinite().all():
            self.left_out["the output of a run is not finite"] += 1
            return False
        if own.linear[both].argmax(-1).tolist() != [pair.base.answer_id, pair.source.answer_id]:
            self.left_out["the model does not answer one of both"] += 1
            return False
        ours, theirs = self._differences(pair, own)
        if abs(theirs - ours) <= LEAST_DIFFERENCE:
            self.left_out[f"logit differences of both runs lie within {LEAST_DIFFERENCE:g} nats"] += 1
            return False
        return True

    def _differences(self, pair: Pair, own: Decoded) -> tuple[float, float]:
        """Logit of the base's answer less that of the source's: of the base's run, and of the source's."""
        asked = self._asked([pair])
        return float(asked.difference(own.logits, asked.base)), float(asked.difference(own.logits, asked.source))

    def _pair(self, pair: Pair, own: Decoded) -> PatchedPairRecord:
        ours, theirs = self._differences(pair, own)
        entropies = own.entropy_bits.clamp(min=0.0)
        return PatchedPairRecord(
            base=pair.base.fact_index,
            source=pair.source.fact_index,
            base_answer_id=pair.base.answer_id,
            source_answer_id=pair.source.answer_id,
            alignment=pair.alignment,
            logit_difference_base=ours,
            logit_difference_source=theirs,
            entropy_base_bits=float(entropies[self.prompts.row(pair.base)]),
            entropy_source_bits=float(entropies[self.prompts.row(pair.source)]),
        )

    def _self_change(self, copies: Sequence[Copy], rows: _Rows, own: Decoded) -> float | None:
        """Largest change of a logit by a run's own residual, in nats."""
        selves = [i for i, copy in enumerate(copies) if copy.kind == SELF]
        patched = decode(rows.patched[selves], self.model.final_norm, self.model.unembedding)
        change = float((patched.logits - own.logits[copies[selves[0]].patch.base]).abs().max())
        return change if math.isfinite(change) else None
