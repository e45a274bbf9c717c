"""What a residual stream has to be before anything is read from it: one, handed from block to block, and causal."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from layerscope.errors import ModelError

_LENGTH = 8
"""Tokens of a witness at most."""
_ROUNDING = {torch.float32: 1e-2}
"""How far two computations of one position may lie apart, in units of its norm, by the dtype of the blocks."""
_ROUNDING_BELOW = 0.1
"""The same in half precision."""


def one_stream(stream: object, rows: tuple[int, int], d_model: int, family: str) -> Tensor:
    """What a block takes or gives, as a stream.

    Args:
        stream: what it takes or gives.
        rows: how many prompts, or trees, and positions there are.
        d_model: width of the stream.
        family: for the error.

    Raises:
        ModelError: it is no tensor, or not of that shape.
    """
    expected = (*rows, d_model)
    if isinstance(stream, Tensor) and tuple(stream.shape) == expected:
        return stream
    if not isinstance(stream, Tensor):
        came = f"a {type(stream).__name__}"
    else:
        shape = list(stream.shape)
        beside = [n for i, n in enumerate(shape) if tuple(shape[:i] + shape[i + 1 :]) == expected]
        if tuple(shape[:-1]) == rows and shape[-1] % d_model == 0:
            beside = [shape[-1] // d_model]
        if beside:
            raise ModelError(
                f"A '{family}' model keeps {beside[0]} residual streams side by side, so that none of them is what its "
                "blocks read or its head decodes; layerscope reads models with one."
            )
        came = f"a tensor {shape}"
    raise ModelError(
        f"The blocks of a '{family}' model should hand on a residual stream {list(expected)} (prompts, positions, "
        f"features), but it is {came}; give a model whose blocks do."
    )


def handed_on(read: Float[Tensor, "row position d_model"], written: Tensor, layer: int, family: str) -> None:
    """See that a block reads what the block before it has written, or a multiple of it.

    Args:
        read: what a block reads.
        written: what the one before it wrote, the stream after `layer` blocks.
        layer: for the error.
        family: for the error.

    Raises:
        ModelError: something between the two has changed it.
    """
    if read.data_ptr() == written.data_ptr() or torch.equal(read, written) or not written.isfinite().all():
        return
    read, written = read.double(), written.double()
    factor = (read * written).sum() / (written * written).sum()
    if (read - factor * written).norm() > 1e-3 * read.norm():
        raise ModelError(
            f"In a '{family}' model something changes the stream between blocks {layer} and {layer + 1}, so that its "
            "blocks do not stand one behind the other as they were found, and what they write cannot be read by itself."
        )


@dataclass(frozen=True)
class Witness:
    """A row that begins as a prompt does and goes on otherwise: where a model is causal, it begins alike."""

    token_ids: tuple[int, ...]
    prompt: int
    """The prompt that it begins as."""

    @classmethod
    def of(cls, token_ids: Sequence[Sequence[int]]) -> "Witness | None":
        """For some prompts; None where none has two tokens, or there is but one token."""
        for prompt, ids in enumerate(token_ids):
            last = min(len(ids), _LENGTH) - 1
            # Of the prompts' own tokens, since the embedding of another may not be finite.
            other = next((token for own in token_ids for token in own if token != ids[last]), None)
            if last > 0 and other is not None:
                return cls((*ids[:last], other), prompt)
        return None

    def check(self, stream: Float[Tensor, "row position d_model"], family: str) -> None:
        """See that it agrees with its prompt where it begins alike; it is the last row.

        Raises:
            ModelError: what follows has changed what stands before.
        """
        n = len(self.token_ids) - 1
        alone, within = stream[-1, :n].float(), stream[self.prompt, :n].float()
        apart = ((alone - within).norm(dim=-1) / within.norm(dim=-1)).nan_to_num().max()
        if apart > _ROUNDING.get(stream.dtype, _ROUNDING_BELOW):
            raise ModelError(
                f"In this '{family}' model tokens see what follows them, so it is no causal language model and has no "
                "next token to read; give a decoder, or a config that makes it one."
            )
