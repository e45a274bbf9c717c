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
    direction: Float[Tensor, " d_model"] | None = None
    """Of length one: the base's own residual takes a step this way, as long as the one to the source's, instead."""
    row: Float[Tensor, " d_model"] | None = None
    """What is written, where it is known beforehand; source and direction then say nothing."""

    def __post_init__(self) -> None:
        """Refuse two rules for one residual.

        Raises:
            ModelError: both a direction and a row.
        """
        if self.direction is not None and self.row is not None:
            raise ModelError("A patch writes a row, or takes a step in a direction, but both came; give one of them.")

    @property
    def key(self) -> tuple[object, ...]:
        """Equal where two patches write the same into the same run."""
        tensors = (None if of is None else id(of) for of in (self.direction, self.row))
        return (self.layer, self.base, self.position, self.source, self.source_position, *tensors)


ROW_NODES = 192
"""Nodes of copies in a row, as a rule: attention within a row grows with the square of its nodes, and a prompt whose
copies take several rows is computed once more for each."""


@dataclass(frozen=True)
class PatchTrees:
    """Prompts in rows, each followed by copies in the order of their layers.

    A prompt that no copy is made of, for it is written into others alone, stands in a row of another one, behind it.
    """

    token_ids: Int[Tensor, "row node"]
    positions: Int[Tensor, "row node"]
    sees: Bool[Tensor, "row 1 node node"]
    widths: tuple[int, ...]
    """How many nodes there are while block 0, 1, ... runs: the prompts', and the copies made up to there."""
    rows: tuple[int, ...]
    """For every patch the row in which its copy is."""
    firsts: tuple[int, ...]
    """For every patch the node of its patched token there; those of the tokens behind it follow."""
    own_rows: tuple[int, ...]
    """For every prompt a row in which it is."""
    own_firsts: tuple[int, ...]
    """And the node of its first token there: 0 for those that copies are made of, in all of their rows."""
    lengths: tuple[int, ...]
    """Of the prompts."""

    def last_node(self, patch: Patch, first: int) -> int:
        """The node of a copy's last token."""
        return first + self.lengths[patch.base] - 1 - patch.position

    def mask(
        self, dtype: torch.dtype, device: torch.device, window: int | None = None
    ) -> Float[Tensor, "row 1 node node"]:
        """What is added to attention scores: zero, or the least number there is.

        Args:
            dtype: of the scores.
            device: where they are computed.
            window: of how many positions of its own run, itself the last, a token sees the nodes; of all by default.
        """
        sees = self.sees
        if window is not None:
            positions = self.positions.int()
            distance = positions[:, None, :, None] - positions[:, None, None, :]
            sees = sees & (distance < window)
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        return torch.where(sees, torch.zeros((), dtype=dtype), hidden).to(device)


def patch_trees(token_ids: Sequence[Sequence[int]], patches: Sequence[Patch], n_layers: int) -> PatchTrees:
    """Lay out prompts and copies.

    Raises:
        ModelError: a patch of a layer, prompt or position that there is not.
    """
    lengths = tuple(map(len, token_ids))
    _check(patches, lengths, n_layers)
    prompt_of_row, rows_of_prompt = _rows(patches, lengths)
    own_rows, own_firsts, begin = _guests(prompt_of_row, rows_of_prompt, lengths)
    offsets, widths = [begin] * len(prompt_of_row), list[int]()
    rows, firsts = [0] * len(patches), [0] * len(patches)
    by_layer: dict[int, list[int]] = {}
    for i, patch in enumerate(patches):
        by_layer.setdefault(patch.layer, []).append(i)
    for layer in range(n_layers):
        # The longest first, each in the row that has the fewest so far.
        for i in sorted(by_layer.get(layer, []), key=lambda i: patches[i].position - lengths[patches[i].base]):
            row = min(rows_of_prompt[patches[i].base], key=lambda row: offsets[row])
            rows[i], firsts[i] = row, offsets[row]
            offsets[row] += lengths[patches[i].base] - patches[i].position
        # The copies of a layer end at one node in every row, so that a block runs on the first nodes of all.
        offsets = [max(offsets)] * len(offsets)
        widths.append(offsets[0])
    shape = (len(prompt_of_row), widths[-1])
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    sees = torch.eye(shape[1], dtype=torch.bool).repeat(shape[0], 1, 1)
    causal = torch.ones(max(lengths), max(lengths), dtype=torch.bool).tril()
    whole = {(row, 0): prompt for row, prompt in enumerate(prompt_of_row)}
    whole |= {(row, first): prompt for prompt, (row, first) in enumerate(zip(own_rows, own_firsts, strict=True))}
    for (row, first), prompt in whole.items():
        n = lengths[prompt]
        if first == 0:
            ids[row] = token_ids[prompt][-1]  # filled up with a token of the prompt's own, which nothing reads
        here = slice(first, first + n)
        ids[row, here] = torch.tensor(token_ids[prompt])
        positions[row, here] = torch.arange(n)
        sees[row, here, here] = causal[:n, :n]
    for patch, row, first in zip(patches, rows, firsts, strict=True):
        n = lengths[patch.base] - patch.position
        here = slice(first, first + n)
        ids[row, here] = torch.tensor(token_ids[patch.base][patch.position :])
        positions[row, here] = torch.arange(patch.position, patch.position + n)
        sees[row, here, : patch.position] = True
        sees[row, here, here] = causal[:n, :n]
    places = (tuple(rows), tuple(firsts), tuple(own_rows), tuple(own_firsts))
    return PatchTrees(ids, positions, sees[:, None], tuple(widths), *places, lengths)


def _rows(patches: Sequence[Patch], lengths: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The prompt of every row, and the rows of every prompt: as many as its copies fill, none where it has none.

    Without any copy every prompt has a row.
    """
    nodes = [0] * len(lengths)
    for patch in patches:
        nodes[patch.base] += lengths[patch.base] - patch.position
    prompt_of_row, rows_of_prompt = list[int](), list[list[int]]()
    for prompt, n in enumerate(nodes):
        n_rows = -(-n // ROW_NODES) if patches else 1
        rows_of_prompt.append([*range(len(prompt_of_row), len(prompt_of_row) + n_rows)])
        prompt_of_row += [prompt] * n_rows
    return prompt_of_row, rows_of_prompt


def _guests(
    prompt_of_row: Sequence[int], rows_of_prompt: Sequence[Sequence[int]], lengths: Sequence[int]
) -> tuple[list[int], list[int], int]:
    """Row and first node of every prompt, and the node behind all: the longest without a row go to the shortest row."""
    ends = [lengths[prompt] for prompt in prompt_of_row]
    rows = [of[0] if of else -1 for of in rows_of_prompt]
    firsts = [0] * len(lengths)
    guests = [prompt for prompt, row in enumerate(rows) if row < 0]
    for prompt in sorted(guests, key=lambda prompt: -lengths[prompt]):
        row = ends.index(min(ends))
        rows[prompt], firsts[prompt] = row, ends[row]
        ends[row] += lengths[prompt]
    return rows, firsts, max(ends)


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


def why_not_patched(architecture: Architecture) -> str | None:
    """Why a model's prompts cannot be run with their residuals replaced; None where they can."""
    if architecture.rope is not None:
        return f"the rotary frequencies of '{architecture.family}' models depend on the length of what they read"
    if not architecture.takes_mask:
        return (
            f"blocks of '{architecture.family}' models cannot be resumed: their attention takes no mask from outside, "
            "or nothing is known of it"
        )
    return None


def write_copies(
    stream: Float[Tensor, "row node d_model"], trees: PatchTrees, patches: Sequence[Patch], layer: int
) -> None:
    """Make the copies of a layer, in place: the base's residuals from the patched position on, the first replaced."""
    for patch, row, first in zip(patches, trees.rows, trees.firsts, strict=True):
        if patch.layer != layer:
            continue
        n = trees.lengths[patch.base] - patch.position
        stream[row, first : first + n] = stream[row, patch.position : patch.position + n]
        stream[row, first] = _written(stream, trees, patch, row)


def _written(
    stream: Float[Tensor, "row node d_model"], trees: PatchTrees, patch: Patch, row: int
) -> Float[Tensor, " d_model"]:
    """What a patch writes; the base stands in `row`."""
    if patch.row is not None:
        return patch.row.to(stream)
    source: Tensor = stream[trees.own_rows[patch.source], trees.own_firsts[patch.source] + patch.source_position]
    if patch.direction is None:
        return source
    own: Tensor = stream[row, patch.position]
    stepped: Tensor = own + patch.direction.to(stream) * (source - own).norm()
    return stepped


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
