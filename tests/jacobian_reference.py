"""Jacobians of a whole Transformers model by its own graph, in the form of a constant shift of every counted position.

Nothing here knows layerscope: the same vector is added to the residual stream at every counted position behind a block,
and the change of the last block's output is added up over the counted positions and divided by their number.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiny_models import BLOCKS_AT

IDS = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(1))
"""Two prompts of nine tokens."""
COUNTED = slice(3, 8)
ONE = slice(6, 7)
TOLERANCE = 2e-5
"""Relative to a matrix' norm. Both sides are float32: 6e-8 an operation, over chains of some twenty products whose sums
have up to 80 terms; the errors of independent terms add up like the root of their number."""


def jacobians(model: PreTrainedModel, ids: Tensor, counted: slice, layers: Sequence[int] | None = None) -> Tensor:
    """`[layer, d_out, d_in]`, layers 0 to n_layers - 1 or some of them, averaged over prompts."""
    model.config._attn_implementation = "eager"  # the fused one knows no rows at once
    model.config._experts_implementation = "eager"  # nor does the grouped product
    blocks = model.get_submodule(BLOCKS_AT.get(model.config.model_type, "model.layers"))
    n, d_model = counted.stop - counted.start, model.config.get_text_config().hidden_size

    def from_layer(layer: int) -> Tensor:
        def shifted(shift: Tensor) -> Tensor:
            left: list[Tensor] = []

            def before(module, args, kwargs):
                x = args[0] if args else kwargs["hidden_states"]
                x = torch.cat([x[:, : counted.start], x[:, counted] + shift, x[:, counted.stop :]], 1)
                return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

            def after(module, args, output):
                left.append(output[0] if isinstance(output, tuple) else output)

            hooks = [
                blocks[layer].register_forward_pre_hook(before, with_kwargs=True),
                blocks[-1].register_forward_hook(after),
            ]
            model(input_ids=ids, use_cache=False)
            for hook in hooks:
                hook.remove()
            return left[0][:, counted].sum(1).mean(0) / n

        return rows_of(shifted, d_model)

    return torch.stack([from_layer(layer) for layer in (range(len(blocks)) if layers is None else layers)])


def rows_of(function: Callable[[Tensor], Tensor], d_model: int) -> Tensor:
    """The Jacobian of a function at zero, row by row, all rows at once."""
    with torch.enable_grad():
        zero = torch.zeros(d_model, requires_grad=True)
        value = function(zero)
    back = torch.func.vmap(lambda row: torch.autograd.grad(value, zero, row, retain_graph=True)[0])
    return back(torch.eye(len(value)))


def off(found: Tensor, wanted: Tensor) -> float:
    """Distance relative to the norm of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
