"""A model's twin whose matrices hold their entries in random order: what a trained model's sizes alone would give."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from layerscope.errors import ModelError
from layerscope.model.stored_tensors import Stored

Scope: TypeAlias = Literal["blocks", "all"]
"""Which matrices: those of the blocks, or embedding and unembedding too."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
_WHOLE_NUMBERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By their bytes: what stands for a float while it is moved, since NumPy has no bfloat16."""


@dataclass(frozen=True)
class Shuffle:
    """How a twin's weights are permuted.

    Each matrix has its own permutation, drawn uniformly from a generator that the seed and the matrix's name decide, so
    that it is the same whenever the matrix is read. Vectors (gains of norms, biases) are kept. What one tensor of the
    checkpoint holds (several heads, queries beside keys, all experts) is permuted as a whole.

    A matrix is permuted when it is wanted and let go of afterwards: a pass holds one block's matrices at a time, in the
    compute dtype. Embedding and unembedding are held for as long as the twin, as stored, and once where they are one.
    """

    scope: str
    """One of `SCOPES`."""
    seed: int

    def __post_init__(self) -> None:
        """Refuse a scope that is none.

        Raises:
            ModelError: it is neither `blocks` nor `all`.
        """
        if self.scope not in SCOPES:
            raise ModelError(f"Weights are shuffled in '{self.scope}'; choose from {', '.join(SCOPES)}.")

    @property
    def name(self) -> str:
        """What tells the twin from its model and from other twins."""
        return f"shuffled-{self.scope}-{self.seed}"

    def apply(self, stored: Mapping[str, Stored], matrices: Collection[str], blocks: str) -> dict[str, Stored]:
        """The same tensors, permuted where they are matrices of the scope.

        Args:
            stored: for each parameter and buffer where it comes from.
            matrices: names of parameters with two axes or more.
            blocks: path of the container of blocks.
        """
        held: WeakValueDictionary[str, Tensor] = WeakValueDictionary()  # a matrix that somebody holds is given again
        scope = {
            name: source
            for name, source in stored.items()
            if name in matrices and (self.scope == "all" or name.startswith(f"{blocks}."))
        }
        keys = _keys(scope)
        return {
            name: self._permuted(keys[name], source, held) if name in scope else source
            for name, source in stored.items()
        }

    def _permuted(self, key: str, source: Stored, held: "WeakValueDictionary[str, Tensor]") -> Stored:
        def tensor() -> Tensor:
            found = held.get(key)
            if found is None:
                held[key] = found = permuted(source.tensor(), self._generator(key))
            return found

        return replace(source, convert=tensor, adapted=None)  # what an adapter makes of it is permuted with it

    def _generator(self, name: str) -> np.random.Generator:
        of_name = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return np.random.default_rng([self.seed % 2**64, of_name])


def _keys(stored: Mapping[str, Stored]) -> dict[str, str]:
    """For each matrix what decides its permutation: its own name among the stored tensors, or as the model has it.

    Tied parameters are one stored tensor, and stay one; but where an adapter changes one of them, they are two.
    """
    keys: dict[str, str] = {}
    of_key: dict[str, Stored] = {}
    for name, source in stored.items():
        as_stored = source.convert is None and source.adapted is None
        key = source.names[0] if as_stored else name
        if of_key.setdefault(key, source) is not source:
            key = f"{key} as {name}"
            of_key[key] = source
        keys[name] = key
    return keys


def permuted(tensor: Tensor, generator: np.random.Generator) -> Tensor:
    """A copy with the entries in another order, every order being as likely."""
    entries = tensor.reshape(-1).view(_WHOLE_NUMBERS[tensor.element_size()]).numpy()
    return torch.from_numpy(generator.permutation(entries)).view(tensor.dtype).reshape(tensor.shape)
