"""Writes of a probe's paired facts put into one another's runs, beside the shares of the same writes."""

from collections import Counter
from collections.abc import Sequence

import polars as pl
import torch

from layerscope.analysis.write_effects import largest_heads, of_table
from layerscope.errors import LayerscopeError
from layerscope.interventions.pairs import Pair
from layerscope.interventions.write_patches import WritePatches
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import shortage_explained
from layerscope.model.reproducible import reproducible
from layerscope.probing.encode import Encoded
from layerscope.probing.patching import paired_facts
from layerscope.progress import Observer
from layerscope.record.patching import PatchedPairRecord, PatchingRecord
from layerscope.record.sublayers import SublayersRecord

PAIRS = 20
"""How many pairs are run at most: each costs two runs for every block and position, twice those of whole residuals."""
HEADS = 10
"""How many heads are replaced one at a time: those with the largest shares."""


def evenly(pairs: Sequence[PatchedPairRecord], n: int) -> list[PatchedPairRecord]:
    """At most so many pairs: again and again one whose base was taken least often, then whose source was."""
    left, taken = list(pairs), list[PatchedPairRecord]()
    bases, sources = Counter[int](), Counter[int]()
    while left and len(taken) < n:
        pair = min(left, key=lambda pair: (bases[pair.base], sources[pair.source]))
        left.remove(pair)
        taken.append(pair)
        bases[pair.base] += 1
        sources[pair.source] += 1
    return taken


def with_write_effects(
    model: CausalLM,
    encoded: Sequence[Encoded],
    patching: PatchingRecord,
    sublayers: SublayersRecord,
    shares: pl.DataFrame,
    seed: int,
    watcher: Observer,
) -> tuple[SublayersRecord, pl.DataFrame | None]:
    """Put every write of attention and MLPs of some pairs' sources into their bases' runs, one at a time.

    The pairs are of those that were patched, taken so that every fact is a base as often as others, and then a source.

    Args:
        model: the model.
        encoded: its prompts, with what it says after them.
        patching: which pairs were patched.
        sublayers: what was found of shares.
        shares: those of every prompt, the columns of `layerscope.record.writers`.
        seed: of every generator; nothing here is random.
        watcher: is told of blocks, and in a sentence what is run, or why nothing is.

    Returns:
        The record with what came of it, and the table; None where nothing was run.
    """
    if patching.reason is not None or not sublayers.adds_up:
        reason = patching.reason or "shares do not add up, so what is a write here is not known"
        return sublayers.model_copy(update={"write_patching_reason": reason}), None
    facts, chosen = paired_facts(encoded), evenly(patching.pairs, PAIRS)
    pairs = [Pair(facts[pair.base], facts[pair.source]) for pair in chosen]
    heads = largest_heads(shares, [pair.base for pair in chosen], patching.prompt_variant, HEADS)
    runs = WritePatches(model, pairs, heads)
    watcher.plan(f"{len(runs.copies):,} runs with one write replaced: {len(pairs)} of {len(patching.pairs)} pairs")
    device = model.placement.device
    ran_out = f"The memory of {device} ran out while writes were replaced; give a smaller --memory."
    # An observer of a script's own need not know of patches, and nothing that was measured is lost for that.
    told = getattr(watcher, "patches", lambda done, total: None)
    try:
        with shortage_explained(ran_out), reproducible(seed, device), torch.inference_mode():
            found = runs.run(told)
    except LayerscopeError as error:  # all else is measured by now, and shall not be lost
        reason = f"replacing writes failed ({error})"
        watcher.plan(reason)
        return sublayers.model_copy(update={"write_patching_reason": reason}), None
    record = of_table(
        found.table,
        model.n_layers,
        shares,
        prompt_variant=patching.prompt_variant,
        n_pairs_left=len(patching.pairs) - len(pairs),
        self_patch_logit_change=found.self_patch_logit_change,
    )
    return sublayers.model_copy(update={"write_patching": record}), found.table
