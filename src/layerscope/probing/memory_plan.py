"""How much memory a probe will hold, and into how many passes a suite must be cut to fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from layerscope.model.causal_lm import CausalLM
from layerscope.model.placement import MemoryPlan, check_fits, format_bytes
from layerscope.probing.encode import Encoded
from layerscope.probing.whole_answers import Forcing
from layerscope.record.protocol import Protocol
from layerscope.record.rows import TOP_SET
from layerscope.suite import Suite

SWEEP_BYTES = 1 << 30
"""Decoded rows held at once, at most: more would only save casting the unembedding once more."""
ENOUGH_BYTES = 256 << 20
"""What the prompts of a part may take even where there is room for more, unless the weights are that large: a pass over
weights of a quarter of it is soon made again, and more prompts at once would not make it faster."""
IDENTITY_PROMPTS = 32
"""How many prompts the identity check compares; each costs a full row of logits."""
STATISTICS_BYTES, TOP_BYTES = 2000, 70
"""Measured beside one decoded row: its sums and columns, and for each of its top ids what buffers, sorting, lists and
strings take together at the worst moment."""


@dataclass(frozen=True)
class Batch:
    """Prompts that go through the model together, and the memory that takes."""

    prompts: slice
    memory: MemoryPlan
    sweep_bytes: int
    """What decoded rows may take at once; the vocabulary is swept several times where that is not all of them."""


def plan_memory(
    model: CausalLM,
    encoded: Sequence[Encoded],
    n_lenses: int,
    top_k: int,
    protocol: Protocol,
    auxiliary: Sequence[Sequence[int]] = (),
    auxiliary_bytes: int = 0,
) -> list[Batch]:
    """Cut a suite into parts that fit the budget; each part is one pass over the weights.

    Args:
        n_lenses: how many lenses decode them.
        top_k: how many tokens a row lists.
        protocol: says whether answers are read to their last piece, by sequences that count as prompts.
        auxiliary: token ids of further texts, which go through the model with the first part.
        auxiliary_bytes: what is measured of them and of the primary prompt takes, before the first part's sweep.

    Raises:
        PlacementError: not even one prompt fits.
    """
    at, parts = 0, list[Batch]()
    budget, enough = model.placement.memory, max(ENOUGH_BYTES, 4 * model.checkpoint.bytes_on_disk)
    while at < len(encoded):
        # A part is seldom much larger than the one before, and to plan it costs what it holds.
        stop = len(encoded) if not parts else min(len(encoded), at + 2 * (at - parts[-1].prompts.start))
        extra: tuple[Sequence[Sequence[int]], int] = (auxiliary, auxiliary_bytes) if at == 0 else ((), 0)
        least = _part(model, encoded, slice(at, at + 1), n_lenses, top_k, protocol, *extra).memory.of_prompts
        part = _part(model, encoded, slice(at, stop), n_lenses, top_k, protocol, *extra)
        while stop - at > 1 and (part.memory.total > budget or part.memory.of_prompts > least + enough):
            stop = at + -(-(stop - at) // 2)
            part = _part(model, encoded, slice(at, stop), n_lenses, top_k, protocol, *extra)
        check_fits(part.memory, model.placement)
        parts.append(part)
        at = stop
    return parts


def _part(
    model: CausalLM,
    encoded: Sequence[Encoded],
    prompts: slice,
    n_lenses: int,
    top_k: int,
    protocol: Protocol,
    auxiliary: Sequence[Sequence[int]],
    auxiliary_bytes: int,
) -> Batch:
    here = encoded[prompts]
    forcing = Forcing.of(model, here, protocol)
    texts = [*(e.token_ids for e in here), *auxiliary, *forcing.sequences]
    width = max(map(len, texts))
    tokens = width * len(texts)
    rows = sum(len(e.positions) for e in here) + forcing.n_rows
    n_layers = model.n_layers + 1
    groups = n_lenses * n_layers
    checked = min(IDENTITY_PROMPTS, len(here))
    # Log-probabilities of a prompt's own ids at each of its positions, and their exponentials, in float64; beside them
    # the float32 logits that they come from.
    echoes = 2 * 8 * groups * max(len(e.positions) * len(e.token_ids) for e in here)
    echoes += (8 + 4) * groups * sum(len(e.positions) * len(e.token_ids) for e in here)
    per_row = 4 * model.d_model
    logits = 4 * model.d_vocab
    memory = MemoryPlan(
        residuals=n_layers * per_row * (tokens + rows) + 2 * logits * checked,
        block=model.largest_block_bytes,
        activations=4 * model.activation_numbers(texts),
        # What lives through the sweep beside the rows: sums and top sets of every row, tiles, and before it the
        # identity check's float64 logits.
        sweep=groups * rows * (STATISTICS_BYTES + TOP_BYTES * max(TOP_SET, top_k))
        + echoes
        + 12 * logits * checked
        + (48 << 20),
        resident=model.resident_bytes,
    )
    spare = model.placement.memory - memory.resident - memory.residuals - memory.sweep
    one_group = per_row * rows
    wanted = min(groups * one_group, max(SWEEP_BYTES, one_group))
    sweep_bytes = max(one_group, min(wanted, spare))
    return Batch(prompts, replace(memory, sweep=max(memory.sweep + sweep_bytes, auxiliary_bytes)), sweep_bytes)


def planned_bytes(parts: Sequence[Batch]) -> int:
    """The most that is held at once."""
    return max(part.memory.total for part in parts)


def plan_line(model: CausalLM, parts: Sequence[Batch], suite: Suite) -> str:
    """What will be done, in one line."""
    passes = "" if len(parts) == 1 else f" in {len(parts)} passes"
    prompts = f"{len(suite.prompts)} prompt{'' if len(suite.prompts) == 1 else 's'}"
    return (
        f"{model.id} · {model.n_layers} blocks · {_millions(model.architecture.n_parameters)} parameters · "
        f"{format_bytes(model.checkpoint.bytes_on_disk)} on disk ({model.stored_dtype}) · "
        f"{model.placement.device} {model.placement.dtype_name} · {format_bytes(planned_bytes(parts))} planned of "
        f"{format_bytes(model.placement.memory)} · suite {suite.name}, {prompts}{passes}"
    )


def _millions(n: int) -> str:
    return f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M"
