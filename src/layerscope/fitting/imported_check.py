"""Whether an imported Jacobian lens belongs to a model: its matrices against exact rows on prompts of our own.

Published files say neither which weights they were fitted to nor how their layers are counted, and look-alikes have
equal shapes. Rows computed here tell them apart: those of other weights agree by chance alone, a transposed file agrees
better the other way round, and one whose layers are counted otherwise agrees better a layer on.
"""

from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import LensError
from layerscope.fitting.held_out_text import own_passages
from layerscope.lens_record import LensRecord
from layerscope.lenses.lens_folder_check import jacobian_fit
from layerscope.model.causal_lm import CausalLM
from layerscope.suite.auxiliary_texts import check_prompts

ROWS = 16
LONGEST = 128
"""Tokens of a prompt that are read."""
FIRST_POSITION = 16
AGREES = 0.5
"""Least cosine, as a median over the later half of the layers, of a lens that belongs to the model. Prompts that differ
by as much as their mean leave a mean over four of them at 0.9; independent rows of width d are at one over its root."""
SEED = 316


@dataclass(frozen=True)
class Agreement:
    """Cosines of a lens' rows with exact ones, each less the identity's; medians over layers."""

    as_is: float
    """Over the later half of the layers."""
    by_reading: dict[str, float]
    """Over all layers, of every way to read the file: as it is, transposed, and with its layers counted otherwise."""

    by_chance: float
    """The same over all layers of a null: exact rows against the file's rows of other output features."""

    @property
    def best(self) -> str:
        """The reading that agrees best."""
        return max(self.by_reading, key=lambda name: self.by_reading[name])

    @property
    def in_words(self) -> str:
        """A note for the lens' record."""
        others = ", ".join(f"{name} {value:.2f}" for name, value in self.by_reading.items() if name != _PLAIN)
        return (
            f"Exact rows of {ROWS} output features on {len(check_prompts())} prompts agree with its own: cosine "
            f"{self.as_is:.2f} in the later half of the layers, {self.by_reading[_PLAIN]:.2f} over all ({others}; rows "
            f"of other features {self.by_chance:.2f})."
        )


_PLAIN = "as it is"


@dataclass(frozen=True)
class OwnRows:
    """A few rows of a model's Jacobians, computed exactly on our own prompts."""

    model_id: str
    features: Int[Tensor, " row"]
    """Of the last block's output."""
    rows: Float[Tensor, "layer row d_model"]
    """Their mean over prompts, layers 0 to n_layers - 1, float64."""

    @classmethod
    def of(cls, model: CausalLM) -> "OwnRows":
        """Run the model forward and back.

        Raises:
            LensError: it reads too few positions.
            ModelError: attention that cannot be differentiated.
        """
        features = torch.randperm(model.d_model, generator=torch.Generator().manual_seed(SEED))[:ROWS]
        ids = _prompts(model)
        counted = slice(FIRST_POSITION, ids.shape[1] - 1)
        pulled = model.pull_back(ids, torch.eye(model.d_model)[features], counted, rows_at_once=ROWS)
        return cls(model.id, features, pulled.mean(2))


def check_jacobian(own: OwnRows, record: LensRecord, tensors: dict[str, Tensor], name: str) -> Agreement:
    """Hold a lens against exact rows of the model it is taken to belong to.

    Args:
        own: rows of that model.
        record: of the lens.
        tensors: of the lens.
        name: of its file, for messages.

    Raises:
        LensError: it does not agree, or agrees better when read otherwise.
    """
    layers = [layer.layer for layer in jacobian_fit(record).layers]
    exact, features = own.rows, own.features
    identity = torch.eye(exact.shape[-1], dtype=torch.float64)[features]

    def of_others(layer: int) -> Float[Tensor, "row d_model"]:
        return rows(layer).roll(1, 0)  # every exact row beside the one of the feature before it

    def rows(layer: int, *, transposed: bool = False) -> Float[Tensor, "row d_model"]:
        matrix = tensors[f"layers.{layer:03d}.jacobian"]
        return (matrix[:, features].T if transposed else matrix[features]).double() - identity

    def cosines(shift: int, *, transposed: bool = False) -> list[float]:
        return [
            _cosine(exact[layer] - identity, rows(layer + shift, transposed=transposed))
            for layer in layers
            if layer + shift in layers
        ]

    plain = cosines(0)
    readings = {
        _PLAIN: plain,
        "transposed": cosines(0, transposed=True),
        "with its layers one too low": cosines(-1),  # none of a model of two blocks, as of the next
        "with its layers one too high": cosines(1),
    }
    found = Agreement(
        median(plain[len(plain) // 2 :]),
        {name: median(values) for name, values in readings.items() if values},
        median([_cosine(exact[layer] - identity, of_others(layer)) for layer in layers]),
    )
    if found.as_is < AGREES and found.best == _PLAIN:
        raise LensError(
            f"{name}: its rows should agree with exact ones of {own.model_id}, but their cosine is {found.as_is:.2f} "
            "in the later half of the layers: it was fitted to other weights, or to another layer's output; open the "
            "model that it was fitted to."
        )
    if found.best != _PLAIN:
        raise LensError(
            f"{name}: its rows agree with exact ones of {own.model_id} better {found.best} "
            f"({found.by_reading[found.best]:.2f}) than as it is ({found.by_reading[_PLAIN]:.2f}); it is not in the "
            "published layout, rows being outputs and block b's matrix reading what leaves block b."
        )
    return found


def _prompts(model: CausalLM) -> Int[Tensor, "prompt position"]:
    """Our own prompts, cut to the length of the shortest."""
    ids = own_passages(model, LONGEST)
    n = ids.shape[1]
    if n < FIRST_POSITION + 2:
        raise LensError(
            f"{model.id} reads {n} positions of the check's prompts, but a Jacobian lens is checked from position "
            f"{FIRST_POSITION} on; leave the check out with --no-check."
        )
    return ids


def _cosine(first: Tensor, second: Tensor) -> float:
    norms = float(first.norm() * second.norm())
    return float((first * second).sum()) / norms if norms > 0 else 0.0
