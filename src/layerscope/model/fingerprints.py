"""Hashes of a model's head and blocks, as stored: by them a lens knows the model that it was fitted to."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from layerscope.model.checkpoint import Checkpoint
from layerscope.model.streaming import Stored
from layerscope.unembedding import Norm

HEAD_BYTES = 64 << 20
"""Of an unembedding over this size evenly spaced rows are hashed."""


def head_fingerprint(weight: Tensor, norm: Norm | None, vectors: Iterable[Stored | None]) -> str:
    """sha256 over an unembedding, the kind of the norm before it, and vectors: those of the norm, a bias."""
    digest = hashlib.sha256()
    step = max(1, weight.numel() * weight.element_size() // HEAD_BYTES)
    digest.update(f"{tuple(weight.shape)} {weight.dtype} {step}".encode())
    for start in range(0, len(weight), 1024 * step):
        digest.update(_bytes_of(weight[start : start + 1024 * step : step]))
    digest.update(b"no norm" if norm is None else f"{norm.kind} {norm.eps}".encode())
    for vector in vectors:
        digest.update(b"-" if vector is None else _bytes_of(vector.tensor()))
    return digest.hexdigest()


def blocks_fingerprint(
    stored: Mapping[str, Stored], prefix: str, checkpoint: Checkpoint, changes: Iterable[str], means: Iterable[Tensor]
) -> str:
    """sha256 over names, shapes and a few rows of every tensor of the blocks.

    Args:
        stored: for each parameter and buffer where it comes from.
        prefix: what the names of the blocks' begin with.
        checkpoint: their files.
        changes: names of what was done to the blocks since they were stored.
        means: what parts of them are set to.
    """
    digest = hashlib.sha256()
    for change in changes:
        digest.update(change.encode())
    for mean in means:
        digest.update(_bytes_of(mean))
    for name in sorted(name for name in stored if name.startswith(prefix)):
        for part in stored[name].names:
            tensor = checkpoint.tensor(part)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            rows = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
            digest.update(_bytes_of(rows[:: max(1, len(rows) // 4), :1024]))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
