"""The facts of a suite that may be patched into one another, as a probe has found them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from layerscope.interventions import Positions
from layerscope.interventions.pairs import PairedFact
from layerscope.interventions.patched_runs import Patched, PatchedRuns
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.probing.encode import Encoded
from layerscope.progress import Observer

GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the subject in a template; no text has it."""


def patched(model: CausalLM, encoded: Sequence[Encoded], positions: Positions, seed: int, watcher: Observer) -> Patched:
    """Write residuals of facts of the primary prompt's wording into one another's runs.

    Args:
        model: the model.
        encoded: its prompts, with what it says after them.
        positions: where residuals are written.
        seed: of random steps.
        watcher: is told of blocks, and in a sentence why nothing is patched.
    """
    of_facts = [e for e in encoded if e.prompt.prompt_id == "pos"]
    variant = of_facts[0].prompt.prompt_variant if of_facts else ""
    others = {e.prompt.fact_index: e for e in of_facts if e.prompt.prompt_variant != variant and _why_not(e) is None}
    left_out: dict[str, int] = {}
    facts: list[PairedFact] = []
    for e in of_facts:
        reason = _why_not(e)
        if e.prompt.prompt_variant != variant:
            continue
        if reason is None:
            facts.append(_fact(e, others.get(e.prompt.fact_index)))
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    ran_out = f"The memory of {model.placement.device} ran out while residuals were replaced; give a smaller --memory."
    runs = PatchedRuns(model, facts, seed, positions)
    with shortage_explained(ran_out), reproducible(seed, model.placement.device), torch.inference_mode():
        found = runs.run(variant, watcher.patches)
    several = len({e.prompt.fact_index for e in of_facts}) > 1  # one fact has nothing to be patched with
    if found.record.reason is not None and several:
        watcher.plan(f"nothing is patched: {found.record.reason}")
    return replace(found, record=found.record.model_copy(update={"left_out": left_out | found.record.left_out}))


def _why_not(e: Encoded) -> str | None:
    if e.subject_end is None or e.prompt.subject is None or e.prompt.subject not in e.text:
        return "its subject is not known"
    if e.output is None or e.output.answer_id is None:
        return "its answer or what the model says is not known"
    if e.output.answer_rank != 1 or e.output.top_ids[0] != e.output.answer_id:
        return "the model does not answer it"
    return None


def _fact(e: Encoded, other: Encoded | None) -> PairedFact:
    """A fact as it is patched, with another wording that has the same first token of its answer."""
    before, _, after = e.text.rpartition(e.prompt.subject or "")
    assert e.prompt.fact_index is not None and e.subject_end is not None and e.output is not None
    assert e.output.answer_id is not None
    same = other is not None and other.output is not None and other.output.answer_id == e.output.answer_id
    return PairedFact(
        fact_index=e.prompt.fact_index,
        token_ids=e.token_ids,
        template=f"{before}{GAP}{after}",
        subject_end=e.subject_end,
        answer_id=e.output.answer_id,
        paraphrase=other.token_ids if other is not None and same else None,
    )
