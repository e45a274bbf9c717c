"""A model's final norm, unembedding and head transform, as everything that decodes takes them."""

import torch
from torch import nn

from layerscope.errors import NumericError
from layerscope.model.families import Family
from layerscope.model.streamed_module import StreamedModule
from layerscope.model.streaming import StreamedLinear
from layerscope.stored.weight import DenseWeight
from layerscope.unembedding import Norm, Unembedding


def unembedding_of(streamed: StreamedModule, family: Family, final_norm: Norm | None) -> Unembedding:
    """Of a model.

    Raises:
        NumericError: a final norm or a head bias that is not finite.
    """
    projection = None if family.projection is None else streamed.optional(family.projection)
    head: StreamedLinear | nn.Linear = streamed.module.get_submodule(streamed.head_name)
    unembedding = Unembedding(
        weight=head.stored if isinstance(head, StreamedLinear) else DenseWeight(head.weight.detach()),
        final_norm=final_norm,
        bias=None if head.bias is None else head.bias.detach().float(),
        transform=streamed.architecture.transform,
        projection=None if projection is None else projection.weight.float(),
        device=streamed.placement.device,
    )
    _check(unembedding)
    return unembedding


def _check(unembedding: Unembedding) -> None:
    """Refuse what would spoil every logit of every layer; the head's weight is checked while it is swept.

    Raises:
        NumericError: a final norm or a head bias that is not finite.
    """
    parts = {"bias of the unembedding": unembedding.bias}
    if unembedding.final_norm is not None:
        at = f"of the final norm before the head ({unembedding.final_norm.source})"
        parts |= {f"gain {at}": unembedding.final_norm.gain, f"bias {at}": unembedding.final_norm.bias}
    for name, part in parts.items():
        broken = 0 if part is None else int((~torch.isfinite(part)).sum())
        if part is not None and broken:
            raise NumericError(
                f"The {name} should be finite, but {broken} of its {part.numel()} values are NaN or infinite, so no "
                "probability can be trusted; fetch the checkpoint again, or find out where it was damaged."
            )
