"""Which experts of a mixture every token was sent to, and with what weight, as the model's own code calls them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerscope.model.model_input import Batch


@dataclass(frozen=True)
class Mixture:
    """A stack of experts in a block."""

    layer: int
    """The layer that the block writes, from 1."""
    module: str
    """Its path in the block, such as `mlp.experts`."""
    n_experts: int
    """How many it has."""


@dataclass(frozen=True)
class Choices:
    """To which experts of one mixture tokens were sent."""

    experts: Int[Tensor, "prompt position slot"]
    """Their numbers from 0, on the CPU, in the order in which the model names them."""
    weights: Float[Tensor, "prompt position slot"]
    """What the model multiplies each one's output by; float32."""


@dataclass
class Routing:
    """The choices of all mixtures for some prompts, right-padded to the longest."""

    n_prompts: int
    n_positions: int
    by_mixture: dict[Mixture, Choices] = field(default_factory=dict)

    def keep(self, mixture: Mixture, prompts: Sequence[int], experts: Tensor, weights: Tensor) -> None:
        """Some prompts' choices, `[prompt, position, slot]`; they take the place of earlier ones."""
        if mixture not in self.by_mixture:
            shape = (self.n_prompts, self.n_positions, experts.shape[-1])
            self.by_mixture[mixture] = Choices(torch.zeros(shape, dtype=torch.int32), torch.zeros(shape))
        choices = self.by_mixture[mixture]
        rows, width = list(prompts), experts.shape[1]
        choices.experts[rows, :width] = experts.to(choices.experts)
        choices.weights[rows, :width] = weights.to(choices.weights)


@dataclass(frozen=True)
class RoutingOfPass:
    """Keeps the choices that are made while one batch goes through the model."""

    routing: Routing
    prompts: Sequence[int]
    """Which of the prompts are in the batch, in its order."""
    batch: Batch

    def hook(self, mixture: Mixture) -> Any:
        """What stands in front of a mixture of experts, and looks at what it is called with."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            chosen = _chosen((*args, *kwargs.values()))
            rows = self.batch.input.token_ids.shape
            if chosen is None or chosen[0].numel() % rows.numel():
                return
            experts, weights = (self.batch.unfold(each.reshape(*rows, -1))[: len(self.prompts)] for each in chosen)
            self.routing.keep(mixture, self.prompts, experts, weights)

        return before


def mixtures_in(block: nn.Module, layer: int) -> Iterator[tuple[Mixture, nn.Module]]:
    """The modules of a block that hold a parameter `[expert, row, column]`, on whatever device it is."""
    for path, module in block.named_modules():
        stacks = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3]
        if stacks:
            yield Mixture(layer, path, stacks[0].shape[0]), module


def _chosen(given: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """Numbers of experts and weights of the same shape among what a mixture is called with; None where there are none.

    Transformers calls its mixtures with states, numbers and weights. Families that multiply all experts, or sort tokens
    before, do not.
    """
    tensors = [value for value in given if isinstance(value, Tensor)]
    whole = [value for value in tensors if value.dtype in (torch.int32, torch.int64)]
    for experts in whole:
        for weights in tensors:
            if weights.is_floating_point() and weights.shape == experts.shape:
                return experts, weights
    return None
