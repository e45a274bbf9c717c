"""Lenses made of a fitted one without another fit: its weights shuffled, or its maps held to a rank."""

from dataclasses import replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.lenses.jacobian_lens import JacobianLens
from layerscope.lenses.prism_lens import PrismLens
from layerscope.lenses.tuned_lens import Translator, TunedLens

Mapped: TypeAlias = TunedLens | JacobianLens | PrismLens
"""Lenses that a map was fitted for; of a ridge lens too, which is a tuned one without temperatures."""


def shuffled(lens: Mapped, seed: int) -> Mapped:
    """The lens with what each layer's map adds to the identity written to other features, by a random permutation.

    With the map `I + A` in column vectors that is `I + P A`: every singular value of `A` and every direction that it
    reads stay, as does the identity, so that what is lost is where it writes. A bias moves with its features;
    temperatures, and what a prism lens standardises by, stay.

    Args:
        lens: fitted; its name becomes `<name>_shuffled`.
        seed: of the permutations, one for each layer, or one for the single map of a prism lens.
    """
    name = f"{lens.name}_shuffled"
    if isinstance(lens, PrismLens):
        rotation = lens.rotation
        return replace(lens, name=name, rotation=_rows_moved(rotation, _permutation(len(rotation), seed)))
    if isinstance(lens, JacobianLens):
        moved = (
            None if matrix is None else _rows_moved(matrix, _permutation(len(matrix), seed + layer))
            for layer, matrix in enumerate(lens.jacobians)
        )
        return replace(lens, name=name, jacobians=tuple(moved))
    moved_too = (_moved(each, seed + layer) for layer, each in enumerate(lens.translators))
    return replace(lens, name=name, translators=tuple(moved_too))


def of_rank(lens: TunedLens, rank: int) -> TunedLens | None:
    """The lens with each layer's linear part held to a rank: the nearest of that rank in Frobenius norm.

    Truncated singular value decompositions, in float64 (Eckart & Young 1936). What the rest of the map does to the mean
    input goes into the bias, where that mean is known.

    Args:
        lens: fitted; its name becomes `<name>_rank<rank>`.
        rank: at least 1.

    Returns:
        None where no map has a larger rank.
    """
    if all(translator.rank <= rank for translator in lens.translators):
        return None
    translators = tuple(_truncated(translator, rank) for translator in lens.translators)
    return replace(lens, name=f"{lens.name}_rank{rank}", translators=translators)


def _permutation(n: int, seed: int) -> Int[Tensor, " n"]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _rows_moved(
    matrix: Float[Tensor, "d_model d_model"], order: Int[Tensor, " d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """Of a matrix that acts on columns, what it adds to the identity with its rows in another order."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return identity + (matrix - identity)[order.to(matrix.device)]


def _moved(translator: Translator, seed: int) -> Translator:
    """Its maps multiply rows from the right, so what a column holds is written to one feature."""
    order = _permutation(len(translator.bias), seed).to(translator.bias.device)
    full, up = translator.full, translator.up
    return replace(
        translator,
        bias=translator.bias[order],
        full=None if full is None else full[:, order],
        up=None if up is None else up[:, order],
    )


def _truncated(translator: Translator, rank: int) -> Translator:
    full, down, up = translator.full, translator.down, translator.up
    if translator.rank <= rank:
        return translator
    if full is None:
        assert down is not None and up is not None
        full = down.double() @ up.double()
    left, sizes, right = torch.linalg.svd(full.double(), full_matrices=False)
    thin, back = left[:, :rank] * sizes[:rank], right[:rank]
    bias = translator.bias.double()
    if translator.mean is not None:
        mean = translator.mean.double()
        bias = bias + mean @ full.double() - (mean @ thin) @ back
    return replace(translator, bias=bias.float(), full=None, down=thin.float(), up=back.float())
