"""Prompts folded into trees of tokens: what several of them begin with goes through the model once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from layerscope.model.architecture import Architecture

PACK_TOKENS = 256
"""Tokens of a tree, as a rule: attention within a tree grows with their square. A longer prompt's tree takes as many
beside it, so that short prompts need not stand in a row of that length."""
WORTH = 0.9
"""Folding is done where it leaves at most this share of the tokens of a padded batch."""


@dataclass(frozen=True)
class Packed:
    """Prompts as trees, side by side. A token sees those it comes after in its own prompt, and no other."""

    token_ids: Int[Tensor, "tree node"]
    """Parents stand before their children; a smaller tree is filled up with tokens that nothing reads."""
    positions: Int[Tensor, "tree node"]
    """Of every token in the prompts that it belongs to."""
    sees: Bool[Tensor, "tree 1 node node"]
    """Which tokens (last axis) a token attends to."""
    tree: Int[Tensor, " prompt"]
    """Where each prompt is."""
    nodes: Int[Tensor, "prompt position"]
    """And its tokens there; behind its last one, that one again."""

    def mask(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "tree 1 node node"]:
        """What is added to attention scores: zero, or the least number there is."""
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype)
        return torch.where(self.sees, torch.zeros((), dtype=dtype), hidden).to(device)

    def unfold(self, values: Shaped[Tensor, "tree node d"]) -> Shaped[Tensor, "prompt position d"]:
        """Every prompt's own values."""
        return values[self.tree[:, None].to(values.device), self.nodes.to(values.device)]


class _Tree:
    """Tokens of the prompts added so far, each with the one before it."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], int] = {}  # of a parent (-1 at the root) and a token
        self.positions: list[int] = []

    def new(self, token_ids: Sequence[int]) -> int:
        """How many of a prompt's tokens the tree lacks."""
        parent = -1
        for position, token in enumerate(token_ids):
            node = self.nodes.get((parent, token))
            if node is None:
                return len(token_ids) - position
            parent = node
        return 0

    def add(self, token_ids: Sequence[int]) -> list[int]:
        """The nodes of a prompt, made where there are none."""
        path, parent = [], -1
        for position, token in enumerate(token_ids):
            node = self.nodes.setdefault((parent, token), len(self.nodes))
            if node == len(self.positions):
                self.positions.append(position)
            path.append(node)
            parent = node
        return path


@dataclass(frozen=True)
class Folding:
    """How prompts would be folded; costs no tensor."""

    trees: tuple[_Tree, ...]
    paths: tuple[tuple[int, tuple[int, ...]], ...]
    """For each prompt its tree and its nodes there."""

    @property
    def width(self) -> int:
        """Tokens of the largest tree."""
        return max(len(tree.positions) for tree in self.trees)

    @property
    def n_tokens(self) -> int:
        """What the model reads, filling up included."""
        return len(self.trees) * self.width


def folding_of(token_ids: Sequence[Sequence[int]], architecture: Architecture) -> Folding | None:
    """How prompts would share what they begin with; None where they go through the model one beside the other."""
    limit = architecture.folds_up_to
    if architecture.rope is not None or (limit is not None and max(map(len, token_ids)) > limit):
        return None
    return fold(token_ids)


def fold(token_ids: Sequence[Sequence[int]]) -> Folding | None:
    """Fold prompts where that is worth it; None where it is not: they share little and are of about one length."""
    longest = max(map(len, token_ids))
    limit = PACK_TOKENS if longest <= PACK_TOKENS else longest + PACK_TOKENS
    trees: list[_Tree] = []
    paths: dict[int, tuple[int, tuple[int, ...]]] = {}
    # In the order of their ids, prompts that begin alike are neighbours.
    for i in sorted(range(len(token_ids)), key=lambda i: tuple(token_ids[i])):
        if not trees or len(trees[-1].positions) + trees[-1].new(token_ids[i]) > limit:
            trees.append(_Tree())
        paths[i] = (len(trees) - 1, tuple(trees[-1].add(token_ids[i])))
    folding = Folding(tuple(trees), tuple(paths[i] for i in range(len(token_ids))))
    return folding if folding.n_tokens <= WORTH * longest * len(token_ids) else None


def packed(folding: Folding) -> Packed:
    """The tensors of a folding."""
    shape = (len(folding.trees), folding.width)
    token_ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    sees = torch.eye(shape[1], dtype=torch.bool).repeat(shape[0], 1, 1)
    for t, tree in enumerate(folding.trees):
        for (parent, token), node in tree.nodes.items():
            token_ids[t, node], positions[t, node] = token, tree.positions[node]
            if parent >= 0:
                sees[t, node] |= sees[t, parent]
        token_ids[t, len(tree.positions) :] = token_ids[t, len(tree.positions) - 1]
    longest = max(len(path) for _, path in folding.paths)
    nodes = [[*path, *[path[-1]] * (longest - len(path))] for _, path in folding.paths]
    return Packed(
        token_ids, positions, sees[:, None], torch.tensor([tree for tree, _ in folding.paths]), torch.tensor(nodes)
    )
