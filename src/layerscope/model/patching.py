"""Residuals of one run written into another: every copy a few further nodes of its prompt's tree, in one pass.

A run of prompt b in which the residual at (layer l, position p) is replaced equals b below l, and at positions before p
altogether. So its copy is there from block l + 1 on only, with the tokens from p on; their keys and values for earlier
positions are b's own, computed beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerscope.errors import ModelError
from layerscope.model.architecture import Architecture


@dataclass(frozen=True)
class Patch:
    """One residual to be replaced, and by what."""

    layer: int
    """0 to n_layers - 1: what the block of this index reads is replaced."""
    base: int
    """The prompt that is run."""
    position: int
    """Where its residual is replaced, counted from 0."""
    source: int
    """The prompt that the residual comes from."""
    source_position: int
    added: Float[Tensor, " d_model"] | None = None
    """Added to the base's own residual, where the source's is not what is wanted."""


@dataclass(frozen=True)
class PatchTrees:
    """Prompts as rows, each followed by its copies in the order of their layers."""

    token_ids: Int[Tensor, "prompt node"]
    positions: Int[Tensor, "prompt node"]
    sees: Bool[Tensor, "prompt 1 node node"]
    widths: tuple[int, ...]
    """How many nodes there are while block 0, 1, ... runs: the prompts', and the copies made up to there."""
    firsts: tuple[int, ...]
    """For every patch the node of its patched token; those of the tokens behind it follow."""
    lengths: tuple[int, ...]
    """Of the prompts."""

    def last_node(self, patch: Patch, first: int) -> int:
        """The node of a copy's last token."""
        return first + self.lengths[patch.base] - 1 - patch.position

    def mask(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "prompt 1 node node"]:
        """What is added to attention scores: zero, or the least number there is."""
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        return torch.where(self.sees, torch.zeros((), dtype=dtype), hidden).to(device)


def patch_trees(token_ids: Sequence[Sequence[int]], patches: Sequence[Patch], n_layers: int) -> PatchTrees:
    """Lay out prompts and copies.

    Raises:
        ModelError: a patch of a layer, prompt or position that there is not.
    """
    lengths = tuple(map(len, token_ids))
    _check(patches, lengths, n_layers)
    base_width = max(lengths)
    offsets, widths = [base_width] * len(lengths), list[int]()
    firsts = [0] * len(patches)
    by_layer: dict[int, list[int]] = {}
    for i, patch in enumerate(patches):
        by_layer.setdefault(patch.layer, []).append(i)
    for layer in range(n_layers):
        for i in by_layer.get(layer, []):
            base = patches[i].base
            firsts[i] = offsets[base]
            offsets[base] += lengths[base] - patches[i].position
        # The copies of a layer end at one node in every row, so that a block runs on the first nodes of all.
        offsets = [max(offsets)] * len(offsets)
        widths.append(offsets[0])
    shape = (len(lengths), widths[-1])
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    sees = torch.eye(shape[1], dtype=torch.bool).repeat(shape[0], 1, 1)
    for row, prompt in enumerate(token_ids):
        ids[row] = prompt[-1]  # filled up with a token of the prompt's own, which nothing reads
        ids[row, : len(prompt)] = torch.tensor(prompt)
        positions[row, : len(prompt)] = torch.arange(len(prompt))
        sees[row, : len(prompt), : len(prompt)] = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
    for patch, first in zip(patches, firsts, strict=True):
        n = lengths[patch.base] - patch.position
        here = slice(first, first + n)
        ids[patch.base, here] = torch.tensor(token_ids[patch.base][patch.position :])
        positions[patch.base, here] = torch.arange(patch.position, patch.position + n)
        sees[patch.base, here, : patch.position] = True
        sees[patch.base, here, here] = torch.ones(n, n, dtype=torch.bool).tril()
    return PatchTrees(ids, positions, sees[:, None], tuple(widths), tuple(firsts), lengths)


def _check(patches: Sequence[Patch], lengths: Sequence[int], n_layers: int) -> None:
    for patch in patches:
        if not 0 <= patch.layer < n_layers:
            raise ModelError(f"A patch should be at a layer from 0 to {n_layers - 1}, but it is at {patch.layer}.")
        for prompt, position in ((patch.base, patch.position), (patch.source, patch.source_position)):
            if not 0 <= prompt < len(lengths):
                raise ModelError(f"A patch is of prompt {prompt}, but there are {len(lengths)}, counted from 0.")
            if not 0 <= position < lengths[prompt]:
                raise ModelError(
                    f"A patch is at position {position} of prompt {prompt}, which has {lengths[prompt]} tokens, "
                    "counted from 0; give a position inside the prompt."
                )


def why_not_patched(architecture: Architecture, longest: int) -> str | None:
    """Why prompts of such a length cannot be run with their residuals replaced; None where they can."""
    limit = architecture.folds_up_to
    if architecture.rope is not None:
        return f"the rotary frequencies of '{architecture.family}' models depend on the length of what they read"
    if limit == 0:
        return (
            f"blocks of '{architecture.family}' models cannot be resumed: their attention takes no mask from outside, "
            "or nothing is known of it"
        )
    if limit is not None and longest > limit:
        return f"a prompt has {longest} tokens, and the sliding window of the model ends after {limit}"
    return None


def write_copies(
    stream: Float[Tensor, "prompt node d_model"], trees: PatchTrees, patches: Sequence[Patch], layer: int
) -> None:
    """Make the copies of a layer, in place: the base's residuals from the patched position on, the first replaced."""
    for patch, first in zip(patches, trees.firsts, strict=True):
        if patch.layer != layer:
            continue
        n = trees.lengths[patch.base] - patch.position
        stream[patch.base, first : first + n] = stream[patch.base, patch.position : patch.position + n]
        if patch.added is not None:
            stream[patch.base, first] += patch.added.to(stream)
        else:
            stream[patch.base, first] = stream[patch.source, patch.source_position]


def first_nodes(kwargs: Mapping[str, Any], n: int, width: int) -> dict[str, Any] | None:
    """What a block is given beside the stream, for its first nodes; None where it holds something unknown.

    Then the block runs on all nodes: more work, with equal results, for nothing reads a copy before it is made.
    """
    cut: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name == "hidden_states" or not _holds_tensor(value):
            cut[name] = value
        elif name == "attention_mask" and value.ndim == 4 and value.shape[-2:] == (width, width):
            cut[name] = value[..., :n, :n]
        elif name == "position_embeddings" and isinstance(value, tuple) and all(t.shape[-2] == width for t in value):
            cut[name] = tuple(t[..., :n, :] for t in value)
        elif name == "position_ids" and value.shape[-1] == width:
            cut[name] = value[..., :n]
        elif name == "cache_position" and value.shape == (width,):
            cut[name] = value[:n]
        else:
            return None
    return cut


def _holds_tensor(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)
