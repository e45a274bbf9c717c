"""A suite's facts written into one another: every layer, at the subject and where the answer is said."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.interventions.effects import Comparison, Decoded, concatenated, decode, rows_at_once
from layerscope.interventions.pairs import Pair, PairedFact, pairs_of
from layerscope.model.causal_lm import CausalLM
from layerscope.model.patching import ROW_NODES, Patch, why_not_patched
from layerscope.record.patching import PatchCurveRecord, PatchedPairRecord, PatchingRecord

LEAST_DIFFERENCE = 2.0
"""Nats by which the logit difference of base and source must differ: an effect is a share of it."""
PASS_BYTES = 1 << 30
"""What one pass may take, even where there is room for more."""
NO_PAIR = "no two facts of one template that the model answers with different tokens"


@dataclass(frozen=True)
class _Copy:
    """A patch, and what it is of."""

    pair: int
    position: Literal["subject", "next"]
    patch: Patch
    random: bool = False


@dataclass(frozen=True)
class _Runs:
    """Final residuals at last positions."""

    own: Float[Tensor, "fact d_model"]
    patched: Float[Tensor, "copy d_model"]


class PatchedRuns:
    """The pairs of some facts of one wording, run through a model."""

    def __init__(self, model: CausalLM, facts: Sequence[PairedFact], seed: int) -> None:
        self.model, self.seed = model, seed
        self.pairs, self.left_out = pairs_of(facts)
        paired = {fact.fact_index for pair in self.pairs for fact in (pair.base, pair.source)}
        self.facts = [fact for fact in facts if fact.fact_index in paired]
        self._row = {fact.fact_index: i for i, fact in enumerate(self.facts)}

    def record(
        self,
        prompt_variant: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> PatchingRecord:
        """Run them.

        Args:
            prompt_variant: the wording.
            progress: called with (blocks done, blocks to do).
        """
        reason = self._why_not()
        if reason is not None:
            return PatchingRecord(prompt_variant=prompt_variant, pairs=(), left_out=dict(self.left_out), reason=reason)
        copies = [*self._copies(), *self._random(), *self._self_patches()]
        runs = self._run(copies, progress)
        own = decode(runs.own, self.model.final_norm, self.model.unembedding)
        return self._record(prompt_variant, copies, runs, own)

    def _why_not(self) -> str | None:
        if not self.pairs:
            return NO_PAIR
        longest = max(len(fact.token_ids) for fact in self.facts)
        return why_not_patched(self.model.architecture, longest)

    # What is run

    def _copies(self) -> list[_Copy]:
        return [
            _Copy(i, name, self._patch(pair, layer, places))
            for i, pair in enumerate(self.pairs)
            for name, places in pair.places.items()
            for layer in range(self.model.n_layers)
        ]

    def _patch(self, pair: Pair, layer: int, places: tuple[int, int], direction: Tensor | None = None) -> Patch:
        base, source = self._row[pair.base.fact_index], self._row[pair.source.fact_index]
        return Patch(layer, base, places[0], source, places[1], direction)

    def _random(self) -> list[_Copy]:
        """For each fact's first pair a random step at the last position, as long as the one to the source there."""
        generator = torch.Generator().manual_seed(self.seed)
        copies: list[_Copy] = []
        for i, pair in self._first_pairs():
            for layer in range(self.model.n_layers):
                step = torch.randn(self.model.d_model, generator=generator)
                patch = self._patch(pair, layer, pair.places["next"], step / step.norm())
                copies.append(_Copy(i, "next", patch, random=True))
        return copies

    def _first_pairs(self) -> list[tuple[int, Pair]]:
        first: dict[int, tuple[int, Pair]] = {}
        for i, pair in enumerate(self.pairs):
            first.setdefault(pair.base.fact_index, (i, pair))
        return list(first.values())

    def _self_patches(self) -> list[_Copy]:
        """The first pair's base written into itself, wherever the pair is patched."""
        pair = self.pairs[0]
        base = self._row[pair.base.fact_index]
        return [
            _Copy(-1, name, Patch(layer, base, at, base, at))
            for name, (at, _) in pair.places.items()
            for layer in range(self.model.n_layers)
        ]

    def _run(self, copies: Sequence[_Copy], progress: Callable[[int, int], None]) -> _Runs:
        """All copies, in as many passes as memory asks for."""
        groups = self._groups(sorted(range(len(copies)), key=lambda i: copies[i].patch.base), copies)
        patched = torch.empty(len(copies), self.model.d_model, device=self.model.placement.device)
        own = torch.empty(len(self.facts), self.model.d_model, device=self.model.placement.device)
        for done, group in enumerate(groups):
            used = self._used([copies[i] for i in group])
            place = {row: i for i, row in enumerate(used)}
            patches = [
                Patch(p.layer, place[p.base], p.position, place[p.source], p.source_position, p.direction)
                for p in (copies[i].patch for i in group)
            ]
            last, rows = self.model.forward_patched(
                [self.facts[row].token_ids for row in used],
                patches,
                progress=lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
            )
            patched[group], own[used] = rows, last
        return _Runs(own, patched)

    def _used(self, copies: Sequence[_Copy]) -> list[int]:
        return sorted({row for copy in copies for row in (copy.patch.base, copy.patch.source)})

    def _groups(self, order: list[int], copies: Sequence[_Copy]) -> list[list[int]]:
        """Halved until a half fits; a base's copies stay together as far as that goes."""
        memory = self.model.placement.memory
        room = min(PASS_BYTES, (memory - self.model.largest_block_bytes) // 2)
        if len(order) == 1 or self._bytes([copies[i] for i in order]) <= room:
            return [order]
        half = len(order) // 2
        return [*self._groups(order[:half], copies), *self._groups(order[half:], copies)]

    def _bytes(self, copies: Sequence[_Copy]) -> int:
        """Memory of a pass: what a block holds of all its tokens, and the stream twice."""
        used = self._used(copies)
        nodes = sum(len(self.facts[copy.patch.base].token_ids) - copy.patch.position for copy in copies)
        width = max(len(self.facts[row].token_ids) for row in used) + 2 * ROW_NODES
        n_rows = len(used) + nodes // ROW_NODES
        per_token = self.model.widest_activation + 2 * self.model.d_model + width * ((self.model.n_heads or 0) + 2)
        return 4 * per_token * width * n_rows

    # What they say

    def _record(self, prompt_variant: str, copies: Sequence[_Copy], runs: _Runs, own: Decoded) -> PatchingRecord:
        kept = [i for i, copy in enumerate(copies) if copy.pair >= 0]
        found = self._compared([copies[i] for i in kept], runs.patched[kept], own)
        at_last = self._at_the_last_layer(own)
        rows = {(c.pair, c.position, c.patch.layer, c.random): i for i, c in enumerate(copies[i] for i in kept)}
        usable = [i for i, pair in enumerate(self.pairs) if self._is_usable(pair, own)]

        def curve(i: int, name: Literal["subject", "next"]) -> PatchCurveRecord:
            of_pair = [rows[i, name, layer, False] for layer in range(self.model.n_layers)]
            return _curve(name, of_pair, found, at_last[name], i)

        records = tuple(
            self._pair(pair, own, tuple(curve(i, name) for name in pair.places))
            for i, pair in enumerate(self.pairs)
            if i in usable
        )
        random, n_random = self._random_effect(usable, rows, found)
        return PatchingRecord(
            prompt_variant=prompt_variant,
            pairs=records,
            left_out=dict(self.left_out),
            reason=None if records else NO_PAIR,
            self_patch_logit_change=self._self_change(copies, runs, own),
            random_effect=random,
            n_random=n_random,
        )

    def _is_usable(self, pair: Pair, own: Decoded) -> bool:
        """Whether both runs are finite and differ; counted where not."""
        both = [self._row[fact.fact_index] for fact in (pair.base, pair.source)]
        if not own.linear[both].isfinite().all():
            self.left_out["the output of a run is not finite"] += 1
            return False
        ours, theirs = self._differences(pair, own)
        if abs(theirs - ours) <= LEAST_DIFFERENCE:
            self.left_out[f"logit differences of both runs lie within {LEAST_DIFFERENCE:g} nats"] += 1
            return False
        return True

    def _differences(self, pair: Pair, own: Decoded) -> tuple[float, float]:
        """Logit of the base's answer less the source's: of the base's run, and of the source's."""
        of_base, of_source = pair.base.answer_id, pair.source.answer_id
        base, source = (
            float(own.logits[row, of_base] - own.logits[row, of_source])
            for row in (self._row[pair.base.fact_index], self._row[pair.source.fact_index])
        )
        return base, source

    def _pair(self, pair: Pair, own: Decoded, curves: tuple[PatchCurveRecord, ...]) -> PatchedPairRecord:
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
            entropy_base_bits=float(entropies[self._row[pair.base.fact_index]]),
            entropy_source_bits=float(entropies[self._row[pair.source.fact_index]]),
            curves=curves,
        )

    def _at_the_last_layer(self, own: Decoded) -> dict[str, Comparison]:
        """Behind the last block nothing is left to run: the source's output at `next`, the base's own elsewhere."""
        base, source, *answers = self._ids(self.pairs)
        of = {"next": source, "subject": base}
        return {name: Comparison.of(own[rows], own, base, source, answers[0], answers[1]) for name, rows in of.items()}

    def _compared(self, copies: Sequence[_Copy], rows: Float[Tensor, "copy d_model"], own: Decoded) -> Comparison:
        step, parts = rows_at_once(self.model.unembedding), list[Comparison]()
        for start in range(0, len(copies), step):
            base, source, *answers = self._ids([self.pairs[c.pair] for c in copies[start : start + step]])
            patched = decode(rows[start : start + step], self.model.final_norm, self.model.unembedding)
            parts.append(Comparison.of(patched, own, base, source, answers[0], answers[1]))
        return concatenated(parts)

    def _ids(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Rows of bases and of sources, and their answers."""
        device = self.model.placement.device
        return [
            torch.tensor(values, device=device)
            for values in (
                [self._row[pair.base.fact_index] for pair in pairs],
                [self._row[pair.source.fact_index] for pair in pairs],
                [pair.base.answer_id for pair in pairs],
                [pair.source.answer_id for pair in pairs],
            )
        ]

    def _random_effect(
        self,
        usable: Sequence[int],
        rows: dict[tuple[int, Literal["subject", "next"], int, bool], int],
        found: Comparison,
    ) -> tuple[tuple[float | None, ...], int]:
        """The median over facts of a random step's effect, by layer; none at the last, where none was run."""
        firsts = [i for i, _ in self._first_pairs() if i in usable]
        effects = found.columns["effect"]
        by_layer: list[float | None] = []
        for layer in range(self.model.n_layers):
            values = [v for i in firsts if (v := effects[rows[i, "next", layer, True]]) is not None]
            by_layer.append(median(values) if values else None)
        return ((*by_layer, None), len(firsts)) if firsts else ((), 0)

    def _self_change(self, copies: Sequence[_Copy], runs: _Runs, own: Decoded) -> float | None:
        """Largest change of a logit by a run's own residual, in nats."""
        selves = [i for i, copy in enumerate(copies) if copy.pair < 0]
        patched = decode(runs.patched[selves], self.model.final_norm, self.model.unembedding)
        change = float((patched.logits - own.logits[copies[selves[0]].patch.base]).abs().max())
        return change if math.isfinite(change) else None


def _curve(
    name: Literal["subject", "next"], rows: Sequence[int], found: Comparison, at_last: Comparison, pair: int
) -> PatchCurveRecord:
    """A pair at one position, layer by layer, the last of them with what needs no run."""
    columns: dict[str, Any] = {
        metric: (*(values[row] for row in rows), at_last.columns[metric][pair])
        for metric, values in found.columns.items()
    }
    return PatchCurveRecord(position=name, **columns)
