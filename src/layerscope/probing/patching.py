"""The facts of a suite that may be patched into one another, as a probe has found them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from layerscope.errors import LayerscopeError
from layerscope.interventions import Positions
from layerscope.interventions.pairs import PairedFact
from layerscope.interventions.patched_runs import Patched, PatchedRuns
from layerscope.model.causal_lm import CausalLM
from layerscope.model.patched_pass import PatchedPass
from layerscope.model.placement import format_bytes, shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.probing.encode import Encoded
from layerscope.progress import Observer
from layerscope.record.patches import no_patches
from layerscope.record.patching import PatchingRecord

GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the subject in a template; no text has it."""


class Patching:
    """The patches of a probe: in a pass of their own when answers are known, or along with the prompts.

    A pass of their own takes the facts that the model answers. Where the weights would have to be read again for it,
    the copies ride along with the prompts instead, and what the model does not answer is left out afterwards.
    """

    def __init__(self, model: CausalLM, positions: Positions, seed: int) -> None:
        self.model, self.positions, self.seed = model, positions, seed
        self._runs: PatchedRuns | None = None
        self._ridden: PatchedPass | None = None

    def riding(self, encoded: Sequence[Encoded], room_bytes: int, watcher: Observer) -> PatchedPass | None:
        """The pass that rides along; None where it had better be one of its own.

        Args:
            encoded: the prompts of a suite.
            room_bytes: what there is beside their own pass.
            watcher: is told what the copies take.
        """
        # Which of several accepted answers a fact is about is known only when the model has said it.
        several = any(len({a.first_id for a in e.answers} - {None}) > 1 for e in _of_facts(encoded))
        if self.model.patches_ride and not several:
            facts, _ = _facts(encoded, answered=False)
            self._runs = PatchedRuns(self.model, facts, self.seed, self.positions)
            self._ridden = self._runs.riding(room_bytes)
            if self._ridden is not None:
                n, size = len(self._runs.patches), format_bytes(self._runs.planned_bytes)
                watcher.plan(f"{n:,} patched runs ride along with the prompts: {size} more")
        return self._ridden

    def found(self, encoded: Sequence[Encoded], watcher: Observer) -> Patched:
        """What came of the patches.

        Args:
            encoded: the prompts of the suite, with what the model says after them.
            watcher: is told of blocks, and in a sentence why nothing is patched.
        """
        facts, left_out = _facts(encoded, answered=self._ridden is None)
        runs = self._runs
        if runs is None or self._ridden is None:
            runs = PatchedRuns(self.model, facts, self.seed, self.positions)
        device = self.model.placement.device
        ran_out = f"The memory of {device} ran out while residuals were replaced; give a smaller --memory."
        # An observer of a script's own need not know of patches, and nothing that was measured is lost for that.
        told = getattr(watcher, "patches", lambda done, total: None)
        try:
            with shortage_explained(ran_out), reproducible(self.seed, device), torch.inference_mode():
                found = runs.run(_variant(encoded), told, self._ridden)
        except LayerscopeError as error:  # all rows are measured by now, and shall not be lost for what was not asked
            reason = f"the patches failed ({error})"
            found = Patched(PatchingRecord(prompt_variant=_variant(encoded), pairs=(), reason=reason), no_patches())
        several = len({e.prompt.fact_index for e in _of_facts(encoded)}) > 1  # one has nothing to be patched with
        if found.record.reason is not None and several:
            watcher.plan(f"nothing is patched: {found.record.reason}")
        return replace(found, record=found.record.model_copy(update={"left_out": left_out | found.record.left_out}))


def _of_facts(encoded: Sequence[Encoded]) -> list[Encoded]:
    return [e for e in encoded if e.prompt.prompt_id == "pos"]


def _variant(encoded: Sequence[Encoded]) -> str:
    """The primary prompt's wording."""
    return next((e.prompt.prompt_variant for e in _of_facts(encoded)), "")


def _facts(encoded: Sequence[Encoded], *, answered: bool) -> tuple[list[PairedFact], dict[str, int]]:
    """The facts of that wording that may be paired, and how many may not, by reason.

    Args:
        encoded: the prompts of a suite.
        answered: whether to ask that the model answers them, which is to be known then.
    """
    variant, left_out, facts = _variant(encoded), dict[str, int](), list[PairedFact]()
    others = {
        e.prompt.fact_index: e
        for e in _of_facts(encoded)
        if e.prompt.prompt_variant != variant and _why_not(e, answered) is None
    }
    for e in _of_facts(encoded):
        if e.prompt.prompt_variant == variant:
            reason = _why_not(e, answered)
            if reason is None:
                facts.append(_fact(e, others.get(e.prompt.fact_index)))
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
    return facts, left_out


def _why_not(e: Encoded, answered: bool) -> str | None:
    if e.subject_end is None or e.prompt.subject is None or e.prompt.subject not in e.text:
        return "its subject is not known"
    if _answer(e) is None:
        return "its answer is not known"
    if answered and (e.output is None or not e.output.top_ids or e.output.top_ids[0] != _answer(e)):
        return "the model does not answer it"
    return None


def _answer(e: Encoded) -> int | None:
    """The token that the fact is answered by: the accepted answer that ranks best, or the first where none is known."""
    if e.output is not None:
        return e.output.answer_id
    return next((answer.first_id for answer in e.answers if answer.first_id is not None), None)


def _fact(e: Encoded, other: Encoded | None) -> PairedFact:
    """A fact as it is patched, with another wording that has the same first token of its answer."""
    before, _, after = e.text.rpartition(e.prompt.subject or "")
    answer = _answer(e)
    assert e.prompt.fact_index is not None and e.subject_end is not None and answer is not None
    return PairedFact(
        fact_index=e.prompt.fact_index,
        token_ids=e.token_ids,
        template=f"{before}{GAP}{after}",
        subject_end=e.subject_end,
        answer_id=answer,
        paraphrase=other.token_ids if other is not None and _answer(other) == answer else None,
    )


def paired_facts(encoded: Sequence[Encoded]) -> dict[int, PairedFact]:
    """The facts that may be paired, by `fact_index`.

    Args:
        encoded: the prompts of a suite, with what the model says after them.
    """
    return {fact.fact_index: fact for fact in _facts(encoded, answered=False)[0]}
