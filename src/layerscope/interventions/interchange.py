"""Facts' states exchanged along the directions that a lens reads: does the answer go with them?

With h_b and h_s the residuals of base and source at one layer and their prompts' last tokens, and U an orthonormal
basis of the directions in which a lens reads both answers at h_b, what is written into the base's run is

    full        h_s
    span        h_b + U U^T (h_s - h_b)      all else stays the base's
    complement  h_s - U U^T (h_s - h_b)      all else becomes the source's
    random      h_b + a step as long as the span's, in a random subspace of equal dimension
    others      as span, with the directions of two other answers

Between the states of two real runs (Geiger et al. 2024, "Finding Alignments Between Interpretable Causal Variables and
Distributed Neural Representations"); that a span may move an answer along a path which the model does not use, and that
its complement then carries it too, is from Makelov et al. 2023, arXiv:2311.17030.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.interventions import Directions
from layerscope.interventions.lens_directions import Spans, answer_directions, random_spans, spans
from layerscope.interventions.patched_runs import PASS_BYTES
from layerscope.lenses.lens import Lens
from layerscope.model.causal_lm import CausalLM
from layerscope.model.patching import ROW_NODES, Patch
from layerscope.record.shares import COMPLEMENT, FULL, OTHERS, RANDOM, SPAN, shares_frame


@dataclass(frozen=True)
class AnsweredFact:
    """A prompt that the model answers."""

    fact_index: int
    token_ids: tuple[int, ...]
    answer_id: int
    """The first token of its answer."""


@dataclass(frozen=True)
class _Written:
    """What is written into the base's run of every pair, at one layer, by one lens."""

    lens: str | None
    kind: str
    layer: int
    steps: Float[Tensor, "pair d_model"]
    """From the base's residual."""
    spans: Spans | None


class Interchange:
    """Pairs of facts, their residuals, and what comes of writing parts of one into the other."""

    def __init__(self, model: CausalLM, pairs: Sequence[tuple[AnsweredFact, AnsweredFact]], seed: int) -> None:
        """Read the residuals of all facts at their last tokens.

        Args:
            model: the model.
            pairs: base and source; their answers differ.
            seed: of the random subspaces.
        """
        self.model, self.seed = model, seed
        self.pairs = list(pairs)
        self.facts = list({fact.fact_index: fact for pair in pairs for fact in pair}.values())
        row = {fact.fact_index: i for i, fact in enumerate(self.facts)}
        self.base = torch.tensor([row[base.fact_index] for base, _ in pairs])
        self.source = torch.tensor([row[source.fact_index] for _, source in pairs])
        self.answers = torch.tensor([[base.answer_id, source.answer_id] for base, source in pairs])
        self.others = self._other_answers()
        """Two answers that are neither the base's nor the source's; None where there are not so many."""
        self.residuals = self._read()

    def run(
        self,
        lenses: Sequence[Lens],
        directions: Directions = "both",
        progress: Callable[[int, int], None] = lambda done, total: None,
        layers: Sequence[int] | None = None,
    ) -> pl.DataFrame:
        """The effect of every exchange at some layers.

        Args:
            lenses: bound to the model, on its device.
            directions: of which the span is taken.
            progress: called with (blocks done, blocks to do).
            layers: from 0 to n_layers; default: all.

        Returns:
            The columns of `layerscope.record.shares.SHARE_COLUMNS`. After the last block nothing is left to run, so
            what is written there is the output.
        """
        chosen = range(self.model.n_layers + 1) if layers is None else layers
        written = [self._full(layer) for layer in chosen]
        for lens in lenses:
            for layer in chosen:
                written += self._of_lens(lens, layer, directions)
        groups = self._groups(written)
        tables = []
        for done, group in enumerate(groups):
            effects = self._effects(
                group,
                lambda i, n, done=done: progress(done * n + i, len(groups) * n),  # type: ignore[misc]
            )
            tables += [self._frame(each, of_pairs) for each, of_pairs in zip(group, effects, strict=True)]
        return pl.concat(tables)

    # What is written

    def _at(self, layer: int, rows: Int[Tensor, " pair"]) -> Float[Tensor, "pair d_model"]:
        return self.residuals[rows, layer]

    def _step(self, layer: int) -> Float[Tensor, "pair d_model"]:
        """From the base's residual to the source's."""
        return self._at(layer, self.source) - self._at(layer, self.base)

    def _full(self, layer: int) -> _Written:
        return _Written(None, FULL, layer, self._step(layer), None)

    def _of_lens(self, lens: Lens, layer: int, directions: Directions) -> list[_Written]:
        base, step = self._at(layer, self.base), self._step(layer)
        unembedding = self.model.unembedding
        own = spans(answer_directions(lens, layer, base, self.answers.to(base.device), unembedding), directions)
        inside = own.part(step)
        drawn = random_spans(own, torch.Generator().manual_seed(self.seed + layer)).part(step)
        random = drawn * (inside.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)).nan_to_num()
        steps = {SPAN: inside, COMPLEMENT: step - inside, RANDOM: random}
        found = [_Written(lens.name, kind, layer, values, own) for kind, values in steps.items()]
        if self.others is not None:
            answers = self.others.to(base.device)
            theirs = spans(answer_directions(lens, layer, base, answers, unembedding), directions)
            found.append(_Written(lens.name, OTHERS, layer, theirs.part(step), theirs))
        return found

    def _other_answers(self) -> Int[Tensor, "pair 2"] | None:
        """Of every pair two further answers, those of the facts behind its base."""
        n, found = len(self.facts), list[list[int]]()
        for base, pair in zip(self.base.tolist(), self.answers.tolist(), strict=True):
            behind = (self.facts[(base + i) % n].answer_id for i in range(1, n))
            found.append(list(dict.fromkeys(answer for answer in behind if answer not in pair))[:2])
        return torch.tensor(found) if all(len(two) == 2 for two in found) else None

    def _read(self) -> Float[Tensor, "fact layer d_model"]:
        """At the last token of every prompt, a few prompts at a time."""
        longest = max(len(fact.token_ids) for fact in self.facts)
        bytes_each = 4 * longest * (self.model.n_layers + 1) * self.model.d_model
        at_once = max(1, min(PASS_BYTES, self.model.placement.memory // 4) // bytes_each)
        parts = []
        for start in range(0, len(self.facts), at_once):
            here = [fact.token_ids for fact in self.facts[start : start + at_once]]
            found = self.model.forward(here, n_logits=1)
            parts.append(torch.stack([found.of_prompt(i)[:, -1] for i in range(len(here))]))
        return torch.cat(parts).clone()

    # What comes of it

    def _groups(self, written: Sequence[_Written]) -> list[Sequence[_Written]]:
        """Halved until a half fits."""
        room = min(PASS_BYTES, (self.model.placement.memory - self.model.largest_block_bytes) // 2)
        if len(written) == 1 or self._bytes(len(written) * len(self.pairs)) <= room:
            return [written]
        half = len(written) // 2
        return [*self._groups(written[:half]), *self._groups(written[half:])]

    def _bytes(self, n_copies: int) -> int:
        """Memory of a pass, each copy of which is one node: what a block holds of all tokens, and the stream twice."""
        model, width = self.model, max(len(fact.token_ids) for fact in self.facts) + 2 * ROW_NODES
        n_rows = len(self.facts) + n_copies // ROW_NODES
        return 4 * (model.widest_activation + 2 * model.d_model + width * ((model.n_heads or 0) + 3)) * width * n_rows

    def _effects(
        self, group: Sequence[_Written], progress: Callable[[int, int], None]
    ) -> Float[Tensor, "written pair"]:
        """Of what is written at one go, beside the facts' own runs in the same pass."""
        n_layers, prompts = self.model.n_layers, [list(fact.token_ids) for fact in self.facts]
        rows = [self._at(each.layer, self.base) + each.steps for each in group]
        patches = [
            Patch(each.layer, base, len(prompts[base]) - 1, base, len(prompts[base]) - 1, row=row)
            for each, of_pairs in zip(group, rows, strict=True)
            if each.layer < n_layers
            for base, row in zip(self.base.tolist(), of_pairs, strict=True)
        ]
        own, patched = self.model.forward_patched(prompts, patches, progress=progress)
        run = iter(patched.reshape(-1, len(self.pairs), self.model.d_model))
        outputs = [next(run) if each.layer < n_layers else row for each, row in zip(group, rows, strict=True)]
        ours, theirs = (self._difference(own[rows]) for rows in (self.base, self.source))
        return torch.stack([(self._difference(output) - ours) / (theirs - ours) for output in outputs]).cpu()

    def _difference(self, rows: Float[Tensor, "pair d_model"]) -> Float[Tensor, " pair"]:
        """Logit of the base's answer less the source's, before the head's transform, of final residuals; float64."""
        head, answers = self.model.unembedding, self.answers.to(rows.device)
        read = head.head_input(rows if self.model.final_norm is None else self.model.final_norm(rows)).double()
        first, second = (head.columns(ids).double() for ids in answers.T)
        found = (read * (first - second)).sum(-1)
        if head.bias is not None:
            bias = head.bias.to(rows.device).double()
            found = found + bias[answers[:, 0]] - bias[answers[:, 1]]
        return found

    def _frame(self, written: _Written, effects: Float[Tensor, " pair"]) -> pl.DataFrame:
        n, whole = len(self.pairs), self._step(written.layer).norm(dim=-1)
        share = (written.steps.norm(dim=-1) / whole).cpu()
        of_span = written.spans
        columns: dict[str, Sequence[object] | pl.Series] = {
            "lens": [written.lens] * n,
            "kind": [written.kind] * n,
            "layer": [written.layer] * n,
            "pair": range(n),
            "base": [base.fact_index for base, _ in self.pairs],
            "source": [source.fact_index for _, source in self.pairs],
            "effect": _or_none(effects),
            "step_share": _or_none(share),
            "rank": [None] * n if of_span is None else of_span.rank.tolist(),
            "cosine": [None] * n if of_span is None else _or_none(of_span.cosine),
        }
        return shares_frame(columns)


def _or_none(values: Float[Tensor, " pair"]) -> pl.Series:
    """What is not finite is absent."""
    found = pl.Series(values.double().cpu().numpy())
    return found.set(~found.is_finite(), None)
