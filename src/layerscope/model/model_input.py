"""What a model's module is called with: prompts side by side, prompts as trees, and prompts with their copies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.model.packing import Folding, packed
from layerscope.model.patching import PatchTrees
from layerscope.model.placement import Placement


@dataclass(frozen=True)
class ModelInput:
    """Tokens in rows."""

    token_ids: Int[Tensor, "row position"]
    positions: Int[Tensor, "row position"] | None = None
    """Where they are not counted along the row."""
    mask: Float[Tensor, "row 1 position position"] | None = None
    """What is added to attention scores; the module's own causal mask where None."""

    @classmethod
    def of_copies(cls, trees: PatchTrees, placement: Placement) -> "ModelInput":
        """Prompts and copies of them with replaced residuals."""
        device = placement.device
        mask = trees.mask(placement.dtype, device)
        return cls(trees.token_ids.to(device), trees.positions.to(device), mask)

    def arguments(self) -> dict[str, Tensor | None]:
        """By the names that Transformers has for them."""
        positions = {} if self.positions is None else {"position_ids": self.positions}
        return {"input_ids": self.token_ids, "attention_mask": self.mask, **positions}


@dataclass(frozen=True)
class Batch:
    """Prompts that go through together, and where each one is in what the module reads."""

    input: ModelInput
    unfold: Callable[[Tensor], Tensor]
    """From the stream of the module's rows to that of every prompt: `[prompt, position, d_model]`."""
    last: tuple[tuple[int, int], ...]
    """Row and position of every prompt's last token."""

    @classmethod
    def folded(cls, folding: Folding, placement: Placement) -> "Batch":
        """As trees: what several prompts begin with stands there once."""
        trees, device = packed(folding), placement.device
        mask = trees.mask(placement.dtype, device)
        return cls(
            ModelInput(trees.token_ids.to(device), trees.positions.to(device), mask),
            trees.unfold,
            tuple(zip(trees.tree.tolist(), trees.nodes[:, -1].tolist(), strict=True)),
        )

    @classmethod
    def padded(cls, token_ids: Sequence[Sequence[int]], placement: Placement) -> "Batch":
        """A row each, followed by the prompt's own last token.

        Attention is causal: what stands to the right of a prompt's last token cannot be seen from it. A masked NaN is
        still a NaN, so the padding must not bring in an id that the prompt does not have.
        """
        width = max(map(len, token_ids))
        rows = torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in token_ids])
        last = tuple((row, len(ids) - 1) for row, ids in enumerate(token_ids))
        return cls(ModelInput(rows.to(placement.device)), lambda stream: stream, last)
