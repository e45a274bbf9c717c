"""The facts of a suite that may be patched into one another, as a probe has found them."""

from collections.abc import Sequence

import torch

from layerscope.interventions.pairs import PairedFact
from layerscope.interventions.patched_runs import PatchedRuns
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.probing.encode import Encoded
from layerscope.progress import Observer
from layerscope.record.patching import PatchingRecord

GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the subject in a template; no text has it."""


def patched(model: CausalLM, encoded: Sequence[Encoded], seed: int, watcher: Observer) -> PatchingRecord:
    """Write residuals of facts of the primary prompt's wording into one another's runs.

    Args:
        model: the model.
        encoded: its prompts, with what it says after them.
        seed: of random steps.
        watcher: is told of blocks, and in a sentence why nothing is patched.
    """
    variant = next((e.prompt.prompt_variant for e in encoded if e.prompt.prompt_id == "pos"), "")
    of_variant = [e for e in encoded if e.prompt.prompt_id == "pos" and e.prompt.prompt_variant == variant]
    left_out: dict[str, int] = {}
    facts: list[PairedFact] = []
    for e in of_variant:
        reason = _why_not(e)
        if reason is None:
            facts.append(_fact(e))
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    ran_out = f"The memory of {model.placement.device} ran out while residuals were replaced; give a smaller --memory."
    runs = PatchedRuns(model, facts, seed)
    with shortage_explained(ran_out), reproducible(seed, model.placement.device), torch.inference_mode():
        record = runs.record(variant, watcher.blocks)
    if record.reason is not None:
        watcher.plan(f"nothing is patched: {record.reason}")
    return record.model_copy(update={"left_out": left_out | record.left_out})


def _why_not(e: Encoded) -> str | None:
    if e.subject_end is None or e.prompt.subject is None or e.prompt.subject not in e.text:
        return "its subject is not known"
    if e.output is None or e.output.answer_id is None:
        return "its answer or what the model says is not known"
    if e.output.answer_rank != 1 or e.output.top_ids[0] != e.output.answer_id:
        return "the model does not answer it"
    return None


def _fact(e: Encoded) -> PairedFact:
    before, _, after = e.text.rpartition(e.prompt.subject or "")
    assert e.prompt.fact_index is not None and e.subject_end is not None and e.output is not None
    assert e.output.answer_id is not None
    return PairedFact(
        fact_index=e.prompt.fact_index,
        token_ids=e.token_ids,
        template=f"{before}{GAP}{after}",
        subject_end=e.subject_end,
        answer_id=e.output.answer_id,
    )
