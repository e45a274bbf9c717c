"""What programs list as the most likely tokens of every layer and position, and whether they list the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from agreement import Disagreement
from numpy.typing import NDArray

P_TOLERANCE = 1e-4
"""Probabilities nearer than this are the same, and tokens so near to one another a tie."""


@dataclass(frozen=True)
class Tops:
    """`[layer, position, place]`, most likely first; the last layer is the model's own output."""

    tokens: NDArray[np.object_]
    probs: NDArray[np.float64]


@dataclass(frozen=True)
class TopAgreement:
    """How far a program's lists are from layerscope's; none of it beyond tolerance."""

    rows: int
    """Of layer and position."""
    equal: int
    """Rows with the same token on top; in the others it is a tie."""
    p: float
    """Largest difference of the probability on top."""
    p_last_layer: float
    """Largest difference of any probability that is listed at the last layer."""


def compare_tops(ours: Tops, theirs: Tops) -> TopAgreement:
    """Hold a program's lists against ours, layer by layer from the last one back to the first that it has.

    Raises:
        Disagreement: another token on top where there is no tie, or another probability; a list of another shape.
    """
    n = len(theirs.tokens)
    if theirs.tokens.shape != ours.tokens[-n:].shape:
        shapes = f"{ours.tokens.shape} and {theirs.tokens.shape}"
        raise Disagreement(f"expected as many positions and places, and no more layers than ours, found {shapes}")
    tokens, probs = ours.tokens[-n:], ours.probs[-n:]
    same = tokens[..., 0] == theirs.tokens[..., 0]
    tied = probs[..., 0] - probs[..., 1] < P_TOLERANCE
    apart = np.abs(probs - theirs.probs)
    _refuse("the token on top", same | tied, tokens[..., 0], theirs.tokens[..., 0])
    _refuse("the probability on top", apart[..., 0] <= P_TOLERANCE, probs[..., 0], theirs.probs[..., 0])
    _refuse("a probability of the last layer", apart[-1] <= P_TOLERANCE, probs[-1], theirs.probs[-1])
    return TopAgreement(same.size, int(same.sum()), float(apart[..., 0].max()), float(apart[-1].max()))


def _refuse(what: str, right: NDArray[np.bool_], ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    if not right.all():
        first = tuple(int(index) for index in np.argwhere(~right)[0])
        raise Disagreement(f"{what} is another one, the first at {first}: {ours[first]!r} and {theirs[first]!r}")


def tops_of_look(found: dict[str, Any]) -> Tops:
    """Of what `layerscope look --json` prints, with one lens."""
    return _tops([[(one["token"], one["p"]) for one in cell["top"]] for cell in found["grid"]], len(found["layers"]))


def tops_of_interpkit(found: dict[str, Any]) -> Tops:
    """Of what `interpkit --format json lens` prints."""
    cells = [cell for layer in found["results"] for cell in layer["positions"]]
    lists = [list(zip(cell["top5_tokens"], cell["top5_probs"], strict=True)) for cell in cells]
    return _tops(lists, len(found["results"]))


def _tops(lists: Sequence[Sequence[tuple[str, float]]], n_layers: int) -> Tops:
    shape = (n_layers, len(lists) // n_layers, len(lists[0]))
    tokens = np.array([token for row in lists for token, _ in row], dtype=object)
    return Tops(tokens.reshape(shape), np.array([p for row in lists for _, p in row]).reshape(shape))
