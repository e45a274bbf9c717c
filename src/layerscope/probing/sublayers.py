"""What wrote the answers of a suite's prompts: writes of attention and MLPs at the last token of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import polars as pl
import torch
from torch import Tensor

from layerscope.analysis.handover import median_effects
from layerscope.analysis.writers import against_patching
from layerscope.errors import ModelError
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.model.sublayers import Writes
from layerscope.probing.encode import Encoded
from layerscope.probing.memory_plan import IDENTITY_PROMPTS, Batch
from layerscope.probing.writers_table import writers_table
from layerscope.progress import Observer
from layerscope.readout.decode import Question, decode
from layerscope.readout.direct_attribution import (
    AnswerDirections,
    Check,
    NeuronSums,
    Shares,
    check_blocks,
    check_heads,
    check_neurons,
    check_steps,
    check_total,
    check_writes,
    shares_of,
)
from layerscope.record.patches import NEXT
from layerscope.record.patching import PatchingRecord
from layerscope.record.sublayers import (
    AnswerAndRivalRecord,
    CheckedSumRecord,
    HeadsRecord,
    NeuronRecord,
    PatchAgreementRecord,
    SublayersRecord,
    WordingWritersRecord,
    WriterRecord,
)

SumName = Literal["writes", "shares", "steps", "heads", "neurons"]
NO_PROMPT = "no prompt has an answer that is known"
PARALLEL = "attention and MLP of a block read the same state, so there is none between them"
UNKNOWN_ORDER = "whether the MLP reads what attention has written is not known of this family"
NEURONS = 20
"""How many neurons of a wording are recorded."""
UNKNOWN_HEADS = "the matrix behind the heads is not known, or cannot be split by head"


def refuse_unknown_blocks(model: CausalLM) -> None:
    """See to it, before anything runs, that the parts of every block are known.

    Raises:
        ModelError: they are not; or the stream is no sum of what they add.
    """
    if not model.sublayers:
        raise ModelError(f"{model.id} has no blocks, so nothing can be attributed to any.")


def sublayers(
    model: CausalLM,
    encoded: Sequence[Encoded],
    parts: Sequence[Batch],
    seed: int,
    watcher: Observer,
    *,
    neurons: bool = False,
) -> "WhatWrote":
    """Take the answers' logit differences apart, at the last token of every prompt whose answer is known.

    Args:
        model: the model.
        encoded: its prompts, with what it says after them.
        parts: which of them go through it together.
        seed: of every generator; nothing here is random.
        watcher: is told of blocks, and in a sentence where nothing can be said.
        neurons: whether MLPs are taken apart too.

    Raises:
        ModelError: a part of a block that is not known, named; or blocks whose writes are not what they add.
    """
    left_out: dict[str, int] = {}
    batches: list[list[Encoded]] = []
    # States and writes of every block, once in float32 and a few times in float64 while sums are taken.
    per_block = 80 * model.d_model + (4 * 8 * model.widest_activation if neurons else 0)
    most = max(1, model.placement.memory // (2 * per_block * (model.n_layers + 1)))
    for part in parts:
        here: list[Encoded] = []
        for prompt in encoded[part.prompts]:
            reason = _why_not(prompt)
            if reason is None:
                here.append(prompt)
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
        batches += [here[i : i + most] for i in range(0, len(here), most)]
    found = _Found(model, neurons)
    ran_out = f"The memory of {model.placement.device} ran out while writes were read; give a smaller --memory."
    with shortage_explained(ran_out), reproducible(seed, model.placement.device), torch.inference_mode():
        for i, batch in enumerate(batches):
            found.add(batch, lambda done, total, i=i: watcher.blocks(i * total + done, len(batches) * total))  # type: ignore[misc]
    result = found.result(left_out)
    if result.record.reason is not None:
        watcher.plan(f"no answer is attributed: {result.record.reason}")
    return result


def _why_not(prompt: Encoded) -> str | None:
    if not prompt.prompt.answers or prompt.output is None or prompt.output.answer_id is None:
        return "its answer or what the model says is not known"
    return None


def _answer_and_rival(prompt: Encoded) -> tuple[int, int]:
    """Its answer, and the most likely token that is not the answer."""
    assert prompt.output is not None and prompt.output.answer_id is not None
    answer = prompt.output.answer_id
    return answer, next(token_id for token_id in prompt.output.top_ids if token_id != answer)


class _Found:
    """What the passes gave so far."""

    def __init__(self, model: CausalLM, neurons: bool) -> None:
        self._model, self._neurons = model, neurons
        self._by_wording: dict[tuple[str, str], NeuronSums] = {}
        self._order = model.block_order
        self._unit = torch.finfo(model.placement.dtype).eps / 2
        self._prompts: list[AnswerAndRivalRecord] = []
        self._shares: list[Shares] = []
        self._tables: list[pl.DataFrame] = []
        self._checks: dict[SumName, list[Check]] = {}
        self._not_finite = 0

    def add(self, batch: Sequence[Encoded], progress: Callable[[int, int], None]) -> None:
        """Run some prompts."""
        model = self._model
        directions = AnswerDirections.of(model.unembedding, *zip(*map(_answer_and_rival, batch), strict=True))
        writes = model.forward_writes(
            [prompt.token_ids for prompt in batch],
            directions.directions,
            n_logits=min(len(batch), IDENTITY_PROMPTS),
            neurons=self._neurons,
            progress=progress,
        )
        finite = writes.states.isfinite().all(-1).all(-1)
        self._not_finite += int((~finite).sum())
        kept = finite.nonzero()[:, 0].tolist()
        if not kept:
            return
        writes, directions = writes.of(kept), directions.of_prompts(kept)
        self._refuse_strange_blocks(writes)
        shares = shares_of(writes, directions, sequential=self._order == "sequential")
        self._shares.append(shares)
        self._check(shares, writes, directions)
        prompts = [batch[i] for i in kept]
        self._add_neurons(prompts, writes, directions)
        self._read(prompts, shares, writes, directions)
        self._name(prompts, shares, directions.capped(writes.states[:, -1]))

    def _refuse_strange_blocks(self, writes: Writes) -> None:
        """Blocks of a family that no test knows may add something else besides.

        Raises:
            ModelError: the writes of a block are not its step.
        """
        checked = check_blocks(writes, self._unit)
        if checked.ok:
            return
        error, bound = checked.worst()
        layer = checked.worst_case() % self._model.n_layers + 1
        raise ModelError(
            f"Attention and MLP of the block of layer {layer} should add up to its step, but they miss it by "
            f"{error:.2g} where rounding explains {bound:.2g}: a '{self._model.family}' block writes something else "
            "besides, so no share can be given."
        )

    def _check(self, shares: Shares, writes: Writes, directions: AnswerDirections) -> None:
        checks: dict[SumName, Check | None] = {
            "writes": check_writes(writes, self._unit),
            "shares": check_total(shares, writes, directions, self._unit),
            "steps": check_steps(shares, writes, directions, self._unit),
            "heads": check_heads(shares),
            "neurons": check_neurons(shares, writes, directions),
        }
        for name, check in checks.items():
            if check is not None:
                self._checks.setdefault(name, []).append(check)

    def _add_neurons(self, prompts: Sequence[Encoded], writes: Writes, directions: AnswerDirections) -> None:
        rows: dict[tuple[str, str], list[int]] = {}
        for i, prompt in enumerate(prompts):
            rows.setdefault((prompt.prompt.prompt_id, prompt.prompt.prompt_variant), []).append(i)
        for key, chosen in rows.items():
            sums = NeuronSums.of(writes.of(chosen), directions.of_prompts(chosen))
            if sums is not None:
                self._by_wording[key] = sums.added_to(self._by_wording.get(key))

    def _read(self, prompts: Sequence[Encoded], shares: Shares, writes: Writes, directions: AnswerDirections) -> None:
        """States and single writes through the logit lens, in one sweep."""
        sites = {"attn": writes.attention, "mlp": writes.mlp}
        if shares.mid is not None:
            sites["mid"] = writes.states[:, :-1] + writes.attention
        norm, n = self._model.final_norm, self._model.n_layers
        rows, last = torch.cat([rows.transpose(0, 1) for rows in sites.values()]), writes.states[:, -1]
        rows, last = (rows, last) if norm is None else (norm(rows), norm(last))
        questions = [Question(1, (answer,)) for answer in directions.answers.tolist()]
        whole = decode(rows, last, questions, self._model.unembedding, top_k=1)
        readouts = {site: whole.of_groups(slice(i * n, (i + 1) * n)) for i, site in enumerate(sites)}
        alone = {site: directions.lens_of(sites[site]) for site in ("attn", "mlp")}
        self._tables.append(writers_table(prompts, shares, alone, readouts))

    def _name(self, prompts: Sequence[Encoded], shares: Shares, capped: Tensor | None) -> None:
        pairs = list(map(_answer_and_rival, prompts))
        strings = self._model.tokens.display({token_id for pair in pairs for token_id in pair})
        for i, (prompt, (answer, rival)) in enumerate(zip(prompts, pairs, strict=True)):
            self._prompts.append(
                AnswerAndRivalRecord(
                    prompt_id=prompt.prompt.prompt_id,
                    prompt_variant=prompt.prompt.prompt_variant,
                    fact_index=prompt.prompt.fact_index,
                    answer_id=answer,
                    answer=strings[answer],
                    rival_id=rival,
                    rival=strings[rival],
                    logit_difference=float(shares.total[i]),
                    logit_difference_capped=None if capped is None else float(capped[i]),
                )
            )

    def result(self, left_out: Mapping[str, int]) -> "WhatWrote":
        """All of it."""
        not_finite = {"a state of its run is not finite": self._not_finite} if self._not_finite else {}
        no_mid = {"parallel": PARALLEL, None: UNKNOWN_ORDER}.get(self._order)
        with_heads = all(shares.heads is not None for shares in self._shares)
        record = SublayersRecord(
            order=self._order,
            mid_reason=no_mid if self._prompts else None,
            heads_reason=None if with_heads else UNKNOWN_HEADS,
            prompts=tuple(self._prompts),
            wordings=self._wordings(),
            left_out={**left_out, **not_finite},
            reason=None if self._prompts else NO_PROMPT,
            sums=tuple(_checked(name, checks) for name, checks in self._checks.items()),
        )
        return WhatWrote(record, pl.concat(self._tables) if self._tables else None)

    def _wordings(self) -> tuple[WordingWritersRecord, ...]:
        rows: dict[tuple[str, str], list[int]] = {}
        for i, prompt in enumerate(self._prompts):
            rows.setdefault((prompt.prompt_id, prompt.prompt_variant), []).append(i)
        if not rows:
            return ()
        shares = Shares.together(self._shares)
        return tuple(_wording(*key, shares.of(chosen), self._by_wording.get(key)) for key, chosen in rows.items())


@dataclass(frozen=True)
class WhatWrote:
    """What a probe says of it."""

    record: SublayersRecord
    table: pl.DataFrame | None
    """The columns of `layerscope.record.writers`; None where no prompt's answer is known."""

    def beside(self, patching: PatchingRecord | None, patches: pl.DataFrame | None) -> "WhatWrote":
        """The same with the rank correlation of shares and effects, over the facts that have both."""
        if patching is None or patches is None or self.table is None:
            return self
        bases = sorted({pair.base for pair in patching.pairs})
        shares = self.table.filter(
            pl.col("site").is_in(["attn", "mlp"]),
            pl.col("fact_index").is_in(bases),
            kind="dla",
            prompt_id="pos",
            prompt_variant=patching.prompt_variant,
        )
        n_facts = shares["fact_index"].n_unique()
        by_layer = shares.group_by("layer").agg(pl.col("logit_difference").sum() / n_facts).sort("layer")
        effects = median_effects(patches, NEXT, by_layer.height)
        rank_correlation = against_patching(by_layer["logit_difference"].to_list(), effects)
        if rank_correlation is None:
            return self
        found = PatchAgreementRecord(
            prompt_variant=patching.prompt_variant,
            n_facts=n_facts,
            n_blocks=by_layer.height,
            spearman=rank_correlation,
        )
        return replace(self, record=self.record.model_copy(update={"patching": found}))


def _checked(name: SumName, checks: Sequence[Check]) -> CheckedSumRecord:
    check = Check(torch.cat([c.error for c in checks]), torch.cat([c.bound for c in checks]))
    error, bound = check.worst()
    return CheckedSumRecord(sum=name, error=error, bound=bound, n=len(check.error), ok=check.ok)


def _wording(prompt_id: str, prompt_variant: str, shares: Shares, neurons: NeuronSums | None) -> WordingWritersRecord:
    """Means over some prompts."""
    attention_steps, mlp_steps = shares.steps()
    return WordingWritersRecord(
        prompt_id=prompt_id,
        prompt_variant=prompt_variant,
        n=len(shares.embedding),
        logit_difference=float(shares.total.mean()),
        embedding=float(shares.embedding.mean()),
        constant=float(shares.constant.mean()),
        attention=_writer(shares.attention, attention_steps),
        mlp=_writer(shares.mlp, mlp_steps),
        heads=_heads(shares),
        neurons=() if neurons is None else tuple(NeuronRecord.of(found) for found in neurons.largest(NEURONS)),
        lens_logit_difference=tuple(shares.lens.mean(0).tolist()),
    )


def _writer(dla: Tensor, steps: Tensor | None) -> WriterRecord:
    """Of blocks: nothing stands at layer 0."""
    return WriterRecord(
        dla=(None, *dla.mean(0).tolist()),
        n_positive=(None, *(dla > 0).sum(0).tolist()),
        step=() if steps is None else (None, *steps.mean(0).tolist()),
    )


def _heads(shares: Shares) -> HeadsRecord | None:
    if shares.heads is None or shares.head_rest is None:
        return None
    return HeadsRecord(
        dla=((), *map(tuple, shares.heads.mean(0).tolist())),
        n_positive=((), *map(tuple, (shares.heads > 0).sum(0).tolist())),
        biases=(None, *shares.head_rest.mean(0).tolist()),
    )
