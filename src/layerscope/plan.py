"""How much memory a probe will hold, and into how many passes a suite must be cut to fit."""

from collections.abc import Sequence

from layerscope.encode import Encoded
from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import MemoryPlan, check_fits, format_bytes
from layerscope.suite import Suite

SWEEP_BYTES = 1 << 30
"""Decoded rows held at once, at most: more would only save casting the unembedding once more."""
IDENTITY_PROMPTS = 32
"""How many prompts the identity check compares; each costs a full row of logits."""


def plan_memory(model: CausalLM, encoded: Sequence[Encoded], n_lenses: int) -> tuple[MemoryPlan, list[slice]]:
    """Cut a suite into parts that fit the budget; each part is one pass over the weights.

    Raises:
        PlacementError: not even one prompt fits.
    """
    budget = model.placement.memory
    at, parts, largest = 0, [], MemoryPlan(0, 0, 0, 0)
    while at < len(encoded):
        size = len(encoded) - at
        while size > 1 and _plan_for(model, encoded[at : at + size], n_lenses).total > budget:
            size = -(-size // 2)
        plan = _plan_for(model, encoded[at : at + size], n_lenses)
        check_fits(plan, model.placement)
        largest = max(largest, plan, key=lambda p: p.total)
        parts.append(slice(at, at + size))
        at += size
    return largest, parts


def _plan_for(model: CausalLM, encoded: Sequence[Encoded], n_lenses: int) -> MemoryPlan:
    width = max(len(e.token_ids) for e in encoded)
    tokens = width * len(encoded)
    rows = sum(len(e.positions) for e in encoded)
    per_layer = 4 * model.d_model
    groups = n_lenses * (model.n_layers + 1)
    # About twelve float32 numbers a row and group, and the top sets, live through the whole sweep.
    statistics = groups * rows * (12 * 8 + 70 * 12)
    checked = 3 * 4 * model.d_vocab * min(IDENTITY_PROMPTS, len(encoded))
    return MemoryPlan(
        residuals=(model.n_layers + 1) * per_layer * (2 * tokens + rows),
        block=model.largest_block_bytes,
        activations=4 * tokens * model.widest_activation + 4 * model.d_vocab * len(encoded),
        resident=model.checkpoint.bytes_on_disk if model.resident else 0,
        sweep=min(groups * rows * per_layer, SWEEP_BYTES) + statistics + checked + (32 << 20),
    )


def plan_line(model: CausalLM, plan: MemoryPlan, suite: Suite, n_passes: int) -> str:
    """What will be done, in one line."""
    passes = "" if n_passes == 1 else f" in {n_passes} passes"
    return (
        f"{model.id} · {model.n_layers} blocks · {model.architecture.n_parameters / 1e9:.3g} B parameters · "
        f"{format_bytes(model.checkpoint.bytes_on_disk)} on disk ({model.stored_dtype}) · "
        f"{model.placement.device} {model.placement.dtype_name} · {format_bytes(plan.total)} planned of "
        f"{format_bytes(model.placement.memory)} · suite {suite.name}, {len(suite.prompts)} prompts{passes}"
    )
