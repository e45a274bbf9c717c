"""What one pass over a suite leaves: the residual stream of every prompt after every block, and the model's own logits.

Layers count how many blocks have written: 0 is what enters block 0 (the embedding, with whatever a family adds or
multiplies), n_layers leaves the last block, before the final norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.model.routing import Routing


@dataclass(frozen=True)
class Residuals:
    """The residual stream of some prompts, right-padded to the longest."""

    values: Float[Tensor, "prompt layer position d_model"]
    """float32; positions past a prompt's length are zero or meaningless."""
    lengths: tuple[int, ...]
    """Number of real positions of each prompt."""
    logits: Float[Tensor, "some d_vocab"]
    """The model's own logits at the last token of the first prompts, head transform included, float32."""
    routing: Routing | None = None
    """Which experts their tokens were sent to, of no mixture in a dense model; None where no pass has told."""

    @property
    def n_layers(self) -> int:
        """Number of blocks; there is one layer more."""
        return self.values.shape[1] - 1

    def of_prompt(self, prompt: int) -> Float[Tensor, "layer position d_model"]:
        """The residual stream of one prompt, counted from 0, without what pads it; float32, a view of `values`."""
        return self.values[prompt, :, : self.lengths[prompt]]

    def last(self) -> Float[Tensor, "prompt d_model"]:
        """The residual after the last block at each prompt's last position."""
        rows = torch.arange(len(self.lengths))
        return self.values[rows, -1, torch.tensor(self.lengths) - 1]

    def select(self, positions: Sequence[Sequence[int]]) -> Float[Tensor, "layer row d_model"]:
        """Chosen positions of every prompt side by side, prompt by prompt."""
        return self.rows(list(enumerate(positions)))

    def rows(self, places: Sequence[tuple[int, Sequence[int]]]) -> Float[Tensor, "layer row d_model"]:
        """Chosen positions side by side, each set of them with the prompt that it is of."""
        return torch.cat([self.values[i, :, list(chosen)] for i, chosen in places], dim=1)
