"""The map of a Prism lens: one standardisation and one rotation for all layers, found from vectors of the stream.

Vectors are rows; the rotation's name is in column convention, `g' = Q w(g)`, so that rows are decoded by `w(g) @ Q.T`.
Everything is computed in float64 and kept in float32.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerscope.errors import LensError, NumericError
from layerscope.fitting.finite import refuse_non_finite
from layerscope.fitting.options import Method
from layerscope.unembedding import Unembedding

EPS = 1e-8
"""Added to every variance, so that a feature that never changes stays finite."""
VECTORS_PER_DIRECTION = 20
"""How many distinct vectors each fitted direction asks for."""
MAX_ORTHOGONALITY_ERROR = 1e-3
"""Largest Frobenius norm of `Q^T Q - I` that still counts as a rotation."""
BLOCK_BYTES = 64 << 20
"""Rows of a sample or of the unembedding that are in float64 at one time."""
ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Relative error of a stored feature: the handful of float32 operations that a norm ends with."""
ROUNDOFF = torch.finfo(torch.float64).eps

Pairing = Literal["cross_covariance", "by_rank"]


class Standardiser:
    """Mean and variance of each feature over all vectors that were shown, in any portions.

    The pairwise update of Chan, Golub & LeVeque 1979 in float64; the variance is divided by the count.
    `w(x) = (x - mean) / sqrt(variance + eps)`.
    """

    def __init__(self, eps: float = EPS) -> None:
        self.eps = eps
        self.count = 0
        """Vectors shown so far, repeats included."""
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._squares = torch.zeros(0, dtype=torch.float64)

    def update(self, vectors: Float[Tensor, "n d_model"]) -> None:
        """Take in more vectors; none at all is allowed.

        Raises:
            LensError: vectors of another width than those before.
            NumericError: vectors that are not finite; nothing of them is taken in.
        """
        if not len(vectors):
            return
        if not self.count:
            self._mean = torch.zeros(vectors.shape[1], dtype=torch.float64, device=vectors.device)
            self._squares = self._mean.clone()
        elif vectors.shape[1] != len(self._mean):
            raise LensError(
                f"Vectors of one stream should have one width, but {vectors.shape[1]} features came after "
                f"{len(self._mean)}; begin a new Standardiser for another model."
            )
        refuse_non_finite(vectors, "vectors to standardise")
        for part in _parts(len(vectors), vectors.shape[1]):
            self._merge(vectors[part].to(self._mean.device, torch.float64))

    def _merge(self, block: Float[Tensor, "n d_model"]) -> None:
        n, total = len(block), self.count + len(block)
        mean = block.mean(0)
        shift = mean - self._mean
        self._squares += (block - mean).square().sum(0) + shift.square() * (self.count * n / total)
        self._mean += shift * (n / total)
        self.count = total

    @property
    def mean(self) -> Float[Tensor, " d_model"]:
        """Mean of each feature, float32."""
        self._require_vectors()
        return self._mean.float()

    @property
    def variance(self) -> Float[Tensor, " d_model"]:
        """Variance of each feature, divided by the count and without `eps`, float32."""
        self._require_vectors()
        return (self._squares / self.count).float()

    @property
    def n_constant(self) -> int:
        """Features that never changed; equal float32 numbers add up exactly in float64, so their variance is 0."""
        self._require_vectors()
        return int((self._squares == 0).sum())

    def _require_vectors(self) -> None:
        if not self.count:
            raise LensError("A mean needs vectors, but none were shown; call update with the stream first.")


@dataclass(frozen=True)
class PrismMap:
    """A fitted map, on the CPU, with what a reader has to know of its fit."""

    mean: Float[Tensor, " d_model"]
    variance: Float[Tensor, " d_model"]
    """Without `eps`."""
    eps: float
    rotation: Float[Tensor, "d_model d_model"]
    """Q for columns, `g' = Q w(g)`; rows are multiplied by its transpose. float32."""
    k: int
    """Directions that were paired; the rest of the space moves as little as it can."""
    k_asked: int
    rank_effective: int
    """Numerical rank of what was fitted to: the centred sample, or the cross-covariance."""
    distinct_vectors: int
    """Vectors of the sample that differ from all others."""
    reservoir: int
    """Observations that the subspace was found on: distinct vectors, or distinct pairs of vector and final vector."""
    orthogonality_error: float
    """Frobenius norm of `Q^T Q - I` of the float32 rotation."""
    method: Method
    pairing: Pairing
    notes: tuple[str, ...]
    """Sentences: a reduced k, constant features."""


def fit_by_rank(
    vectors: Float[Tensor, "n d_model"],
    standardiser: Standardiser,
    unembedding: Unembedding,
    *,
    k: int,
    device: torch.device | None = None,
) -> PrismMap:
    """Turn the sample's top-k principal directions into the top-k left singular vectors of `W_U`, by rank order.

    The pairing is a choice: nothing makes the first principal direction mean what the first singular vector means,
    and each direction's sign is as free as the direction of its axis.

    Holds four d_model x d_model matrices of float64 at its peak (2.1 GB for 8,192), and two of k columns, beside
    `vectors`. Takes O(d_model^2 (n + d_vocab + d_model)) operations.

    Args:
        vectors: sampled from the stream, not standardised.
        standardiser: of the whole stream.
        unembedding: whose `W_U`, projection included, gives the target.
        k: directions to pair; fewer are paired, with a note, where distinct vectors or ranks do not suffice.
        device: where matrices are multiplied and decomposed; that of `vectors` where None.

    Raises:
        LensError: k outside 1..d_model, widths that differ, fewer than 20 distinct vectors, or vectors whose
            differences are rounding.
        NumericError: vectors or weights that are not finite, or a result that is not orthogonal.
    """
    d_model = vectors.shape[1]
    _check_shapes(vectors, standardiser, k)
    if _width(unembedding) != d_model:
        raise LensError(
            f"Vectors should have the unembedding's {_width(unembedding)} features, but have {d_model}; "
            "fit with vectors of the same model."
        )
    refuse_non_finite(vectors, "vectors of the sample")
    device = vectors.device if device is None else device
    kept = _first_occurrences(vectors)
    _refuse_few(len(kept), len(vectors))
    source, rank = _principal_directions(_Sample(vectors, kept, _scale(standardiser), device), k)
    target, head_rank = unembedding_directions(unembedding, k, device)
    _refuse_rankless(head_rank, "The unembedding's rows should not all be zero")
    used, notes = _reduced(
        k,
        (_few_vectors(len(kept)), (rank, "the numerical rank of the sample"), (head_rank, "the rank of W_U")),
    )
    rotation, error = _finished(complete_rotation(source[:, :used], target[:, :used]))
    return PrismMap(
        mean=standardiser.mean.cpu(),
        variance=standardiser.variance.cpu(),
        eps=standardiser.eps,
        rotation=rotation,
        k=used,
        k_asked=k,
        rank_effective=rank,
        distinct_vectors=len(kept),
        reservoir=len(kept),
        orthogonality_error=error,
        method="by_rank",
        pairing="by_rank",
        notes=notes + _note_on_constants(standardiser),
    )


def fit_procrustes_to_final(
    vectors: Float[Tensor, "n d_model"],
    finals: Float[Tensor, "n d_model"],
    standardiser: Standardiser,
    *,
    k: int,
    device: torch.device | None = None,
) -> PrismMap:
    """Turn standardised vectors towards the final-layer vectors of the same positions.

    With the centred cross-covariance `sum g_n w^T = U S V^T`, the orthogonal Q that has the largest `tr(Q sum w g_n^T)`
    is `U V^T` (Schoenemann 1966); of it the k strongest pairs are kept, `Q V_k = U_k`. Both members of a pair change
    sign together, which leaves Q as it is.

    Pairs that are equal in both members are dropped. Equal vectors with different finals stay: the embedding of one
    token leads to many ends, and which ones is what a cross-covariance is about.

    Holds eight d_model x d_model matrices of float64 at its peak (4.3 GB for 8,192) beside its arguments. Takes
    O(d_model^2 (n + d_model)) operations.

    Args:
        vectors: sampled from the stream, not standardised.
        finals: the vector of the last layer, after the final norm, at the same positions.
        standardiser: of the whole stream.
        k: directions to pair; fewer are paired, with a note, where distinct vectors or the rank do not suffice.
        device: where matrices are multiplied and decomposed; that of `vectors` where None.

    Raises:
        LensError: k outside 1..d_model, shapes that differ, fewer than 20 distinct vectors, or vectors that vary
            with the final ones no more than rounding does.
        NumericError: vectors that are not finite, or a result that is not orthogonal.
    """
    _check_shapes(vectors, standardiser, k)
    if finals.shape != vectors.shape:
        raise LensError(
            f"Each vector should have its final vector, but there are {tuple(vectors.shape)} and "
            f"{tuple(finals.shape)}; take both at the same positions."
        )
    refuse_non_finite(vectors, "vectors of the sample")
    refuse_non_finite(finals, "final vectors")
    device = vectors.device if device is None else device
    distinct = len(_first_occurrences(vectors))
    _refuse_few(distinct, len(vectors))
    kept = _first_occurrences(vectors, finals)
    source, target, rank = _paired_directions(
        _Sample(vectors, kept, _scale(standardiser), device), _Sample(finals, kept, None, device), k
    )
    used, notes = _reduced(k, (_few_vectors(distinct), (rank, "the numerical rank of the cross-covariance")))
    rotation, error = _finished(complete_rotation(source[:, :used], target[:, :used]))
    return PrismMap(
        mean=standardiser.mean.cpu(),
        variance=standardiser.variance.cpu(),
        eps=standardiser.eps,
        rotation=rotation,
        k=used,
        k_asked=k,
        rank_effective=rank,
        distinct_vectors=distinct,
        reservoir=len(kept),
        orthogonality_error=error,
        method="procrustes_to_final",
        pairing="cross_covariance",
        notes=notes + _note_on_constants(standardiser),
    )


def complete_rotation(source: Float[Tensor, "d k"], target: Float[Tensor, "d k"]) -> Float[Tensor, "d d"]:
    """The orthogonal Q, float64, with `Q source = target` that is nearest to the identity elsewhere.

    Elsewhere is the complement of `source`, which goes to the complement of `target` by the polar factor of the
    identity restricted to the two (the nearest orthogonal matrix: Higham 1986). Where a direction of
    `source` stands at right angles to all of `target`, two ways are equally near, and the one is taken that turning
    continuously from the identity would reach.

    Written with the principal vectors `e_i`, `u_i` and cosines `c_i` of the two subspaces (Bjoerck & Golub 1973),

        Q = I + (target - source) source^T - sum_i (u_i + e_i) (u_i - c_i e_i)^T / (1 + c_i),

    since the polar factor leaves alone what is orthogonal to both, and in the plane of `e_i` and `u_i` it takes the
    normal of the one to the normal of the other. That costs O(d^2 k), and no basis of a complement is ever chosen.

    Raises:
        NumericError: columns that are not orthonormal.
    """
    source, target = source.double(), target.double()
    for name, columns in (("source", source), ("target", target)):
        _check_orthogonality(columns, f"The columns of the {name}")
    if source.shape[1] == source.shape[0]:
        return target @ source.T  # no complement; what follows comes to the same at many times the cost
    left, cosines, right = torch.linalg.svd(target.T @ source)
    e, u = source @ right.T, target @ left  # [d, k]
    rotation = (target - source) @ source.T
    rotation.addmm_((u + e) / (1 + cosines), (u - cosines * e).T, alpha=-1)
    rotation.diagonal().add_(1)
    return rotation


def unembedding_directions(
    unembedding: Unembedding, k: int, device: torch.device | None = None
) -> tuple[Float[Tensor, "d_model k"], int]:
    """The k strongest left singular vectors of `W_U` as columns, float64, and the rank of `W_U`.

    They are eigenvectors of `W_U W_U^T`, which is summed over slices of the vocabulary. The sign of each is chosen so
    that its largest component is positive, which means nothing but makes the result one. Where a model projects
    between final norm and head, `W_U` includes the projection. Singular values below about 1e-6 of the first cannot
    be told from zero.

    Raises:
        NumericError: weights that are not finite.
    """
    device = unembedding.device if device is None else device
    width = unembedding.d_head
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    parts = _parts(unembedding.d_vocab, width)
    buffer = torch.empty(parts[0].stop, width, device=unembedding.device)
    for part in parts:
        tile = unembedding.tile(part.start, part.stop, out=buffer).to(device, torch.float64)
        gram.addmm_(tile.T, tile)
    if not gram.isfinite().all():
        raise NumericError("The unembedding should be finite, but holds values that are not; read the model again.")
    if unembedding.projection is not None:
        projection = unembedding.projection.to(device, torch.float64)
        gram = projection.T @ gram @ projection
    values, directions = _descending_eigh(gram, k)
    tolerance = float(values[0]) * max(unembedding.d_vocab, len(values)) * ROUNDOFF
    return directions, int((values > tolerance).sum())


class _Sample:
    """Some rows of a matrix, scaled and centred, in float64 a block at a time: the same however often it is read."""

    def __init__(
        self,
        vectors: Float[Tensor, "n d_model"],
        kept: Int[Tensor, " kept"],
        scale: Float[Tensor, " d_model"] | None,
        device: torch.device,
    ) -> None:
        self.n, self.width, self.device = len(kept), vectors.shape[1], device
        self._vectors, self._kept = vectors, kept.to(vectors.device)
        self._scale = torch.ones(1, dtype=torch.float64, device=device) if scale is None else scale.to(device)
        moments = Standardiser()
        for block in self._raw():
            moments.update(block)
        self._mean = moments._mean
        variance = moments._squares / self.n
        rounded = torch.minimum((variance + self._mean.square()) * ROUNDING**2, variance)
        self.variance = float((variance / self._scale.square()).sum())
        """Summed over features: the squared Frobenius norm over the count."""
        self.rounding = float((rounded / self._scale.square()).sum())
        """The part of it that may be rounding of the stored features, which is relative to x and not to x - mean."""

    def _raw(self) -> Iterator[Float[Tensor, "block d_model"]]:
        for part in _parts(self.n, self.width):
            yield self._vectors[self._kept[part]].to(self.device, torch.float64)

    def __iter__(self) -> Iterator[Float[Tensor, "block d_model"]]:
        # w(x) less its mean over the sample: the stream's mean drops out.
        return ((block - self._mean) / self._scale for block in self._raw())


def _covariance(left: _Sample, right: _Sample) -> Float[Tensor, "d_model d_model"]:
    total = torch.zeros(left.width, right.width, dtype=torch.float64, device=left.device)
    for x, y in zip(left, right, strict=True):
        total.addmm_(x.T, y)
    return total.div_(left.n)


def _principal_directions(sample: _Sample, k: int) -> tuple[Float[Tensor, "d_model k"], int]:
    """The k first principal directions, and the rank: eigenvalues above what rounding alone could give."""
    values, directions = _descending_eigh(_covariance(sample, sample), k)
    tolerance = max(sample.rounding, float(values[0]) * max(sample.n, sample.width) * ROUNDOFF)
    rank = int((values > tolerance).sum())
    _refuse_rankless(rank, "The sampled vectors should differ")
    return directions, rank


def _paired_directions(
    sample: _Sample, finals: _Sample, k: int
) -> tuple[Float[Tensor, "d_model k"], Float[Tensor, "d_model k"], int]:
    """The k strongest pairs of directions, source and target, and the rank of the cross-covariance.

    It is never above the rank of the sample. Counted are singular values above the Frobenius norm that rounding,
    independent from vector to vector, gives a cross-covariance.
    """
    left, values, right = torch.linalg.svd(_covariance(finals, sample))
    rounding = math.sqrt(finals.rounding * sample.variance / sample.n)
    rounding += math.sqrt(finals.variance * sample.rounding / sample.n)
    rank = int((values > max(rounding, float(values[0]) * max(sample.n, sample.width) * ROUNDOFF)).sum())
    _refuse_rankless(rank, "Vectors should vary together with their final vectors")
    return right[:k].T.clone(), left[:, :k].clone(), rank


def _descending_eigh(matrix: Float[Tensor, "d d"], k: int) -> tuple[Float[Tensor, " d"], Float[Tensor, "d k"]]:
    """All eigenvalues from the largest down, and the first k eigenvectors, largest component positive."""
    values, vectors = torch.linalg.eigh(matrix)
    first = vectors[:, -k:].flip(1)
    # An eigenvector's sign is whatever the solver left there. This choice of it has no content either: it only makes
    # equal inputs give equal maps.
    pivots = first.gather(0, first.abs().argmax(0, keepdim=True))
    return values.flip(0), first * pivots.sign()


def _first_occurrences(*matrices: Float[Tensor, "n width"]) -> Int[Tensor, " kept"]:
    """Indices, in order, of rows that occur for the first time; with several matrices a row is what stands in all.

    Rows are told apart by a 128-bit hash of their values, so no copy of them is kept or sorted.
    """
    seen: set[bytes] = set()
    kept: list[int] = []
    n, width = matrices[0].shape
    for part in _parts(n, width):
        # 0.0 is added because -0.0 equals 0.0 and has other bytes.
        blocks = [(_widened(matrix[part]) + 0.0).cpu().contiguous().numpy() for matrix in matrices]
        for index, rows in enumerate(zip(*blocks, strict=True), start=part.start):
            state = hashlib.blake2b(digest_size=16)
            for row in rows:
                state.update(row)
            if (digest := state.digest()) not in seen:
                seen.add(digest)
                kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def _widened(block: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    return block if block.dtype == torch.float64 else block.float()


def _parts(n: int, width: int) -> list[slice]:
    rows = max(1, BLOCK_BYTES // (8 * width))
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _scale(standardiser: Standardiser) -> Float[Tensor, " d_model"]:
    # From the float32 variance, which is what a lens divides by.
    return (standardiser.variance.double() + standardiser.eps).sqrt()


def _width(unembedding: Unembedding) -> int:
    return unembedding.d_head if unembedding.projection is None else unembedding.projection.shape[1]


def _reduced(k: int, limits: tuple[tuple[int, str], ...]) -> tuple[int, tuple[str, ...]]:
    """`k` or the least limit, and a sentence for each time it had to shrink."""
    notes = []
    for limit, reason in limits:
        if limit < k:
            notes.append(f"k is {limit} and not {k}, because {limit} is {reason}.")
            k = limit
    return k, tuple(notes)


def _few_vectors(distinct: int) -> tuple[int, str]:
    reason = f"the number of directions that {distinct} distinct vectors allow, {VECTORS_PER_DIRECTION} for each"
    return distinct // VECTORS_PER_DIRECTION, reason


def _note_on_constants(standardiser: Standardiser) -> tuple[str, ...]:
    if not (n := standardiser.n_constant):
        return ()
    return (f"{n} of {len(standardiser.mean)} features never changed; their variance is replaced by eps alone.",)


def _finished(rotation: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], float]:
    """The rotation in float32 on the CPU, and how far from orthogonal rounding left it."""
    kept = rotation.float()
    return kept.cpu(), _check_orthogonality(kept, "The rotation")


def _check_orthogonality(columns: Float[Tensor, "d k"], name: str) -> float:
    """Frobenius norm of the Gram matrix's difference from the identity."""
    columns = columns.double()
    gram = columns.T @ columns
    gram.diagonal().sub_(1)
    error = float(torch.linalg.matrix_norm(gram))
    if not error < MAX_ORTHOGONALITY_ERROR:
        raise NumericError(
            f"{name} should be orthonormal within {MAX_ORTHOGONALITY_ERROR:g}, but the Gram matrix is {error:.2g} "
            "from the identity; fit again from other vectors or with a smaller k."
        )
    return error


def _check_shapes(vectors: Float[Tensor, "n d_model"], standardiser: Standardiser, k: int) -> None:
    d_model = vectors.shape[1]
    if not 1 <= k <= d_model:
        raise LensError(f"k should be from 1 to d_model = {d_model} directions, but is {k}; ask for another k.")
    if len(standardiser.mean) != d_model:
        raise LensError(
            f"Vectors should have the standardiser's {len(standardiser.mean)} features, but have {d_model}; "
            "standardise the stream that is sampled."
        )


def _refuse_few(distinct: int, n: int) -> None:
    if distinct < VECTORS_PER_DIRECTION:
        raise LensError(
            f"A fit needs at least {VECTORS_PER_DIRECTION} distinct vectors for its first direction, but of {n} "
            f"there are {distinct} distinct; give it more text."
        )


def _refuse_rankless(rank: int, expectation: str) -> None:
    if not rank:
        raise LensError(f"{expectation}, but their numerical rank is 0; fit with other text or another model.")
