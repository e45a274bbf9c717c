"""Hashes of a model's head and blocks, as stored: by them a lens knows the model that it was fitted to."""

import hashlib
from collections.abc import Iterable, Mapping

from torch import Tensor

from layerscope.model.stored_tensors import Stored
from layerscope.model.tensor_files import TensorFiles
from layerscope.stored.weight import StoredWeight, bytes_of
from layerscope.unembedding import Norm

HEAD_BYTES = 64 << 20
"""Of an unembedding over this size evenly spaced rows are hashed."""


def head_fingerprint(weight: StoredWeight, norm: Norm | None, vectors: Iterable[Stored | None]) -> str:
    """sha256 over an unembedding, the kind of the norm before it, and vectors: those of the norm, a bias."""
    digest = hashlib.sha256()
    step = max(1, weight.nbytes // HEAD_BYTES)
    digest.update(f"{weight.shape} torch.{weight.storage} {step}".encode())  # as torch says it of a dtype
    for start in range(0, len(weight), 1024 * step):
        digest.update(weight.raw_rows(slice(start, start + 1024 * step, step)))
    digest.update(b"no norm" if norm is None else f"{norm.kind} {norm.eps}".encode())
    for vector in vectors:
        digest.update(b"-" if vector is None else bytes_of(vector.tensor()))
    return digest.hexdigest()


def blocks_fingerprint(
    stored: Mapping[str, Stored], prefix: str, checkpoint: TensorFiles, changes: Iterable[str], means: Iterable[Tensor]
) -> str:
    """sha256 over names, shapes and a few rows of every tensor of the blocks, and what a GGUF file says of them.

    Args:
        stored: for each parameter and buffer where it comes from.
        prefix: what the names of the blocks' begin with.
        checkpoint: their files.
        changes: names of what was done to the blocks since they were stored.
        means: what parts of them are set to.
    """
    digest = hashlib.sha256(checkpoint.description.encode())
    for change in changes:
        digest.update(change.encode())
    for mean in means:
        digest.update(bytes_of(mean))
    for name in sorted(name for name in stored if name.startswith(prefix)):
        for part in stored[name].names:
            digest.update(f"{name} ".encode() + checkpoint.excerpt(part))
    return digest.hexdigest()
