"""The Prism map's mathematics: planted rotations, plain torch and numpy, and polar factors made another way.

Tolerances. What is float64 is within 1e-16 times the width (up to 40) times the condition stated beside it; what was
stored or read as float32 is within 2^-24 times as much: 1e-5 for rotations of condition below ten, 1e-3 for a
hundred.
"""

import math
from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import layerscope.fitting.prism_map as prism_map
from layerscope.errors import LensError, NumericError
from layerscope.fitting.prism_map import (
    PrismMap,
    Standardiser,
    complete_rotation,
    fit_by_rank,
    fit_procrustes_to_final,
    unembedding_directions,
)
from layerscope.unembedding import Unembedding
from properties import examples

SEEDS = st.integers(0, 2**32 - 1)
D, N, D_VOCAB = 12, 600, 90


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _orthonormal(seed: int, d: int, k: int) -> Tensor:
    return torch.linalg.qr(_normal(seed, d, k))[0]


def _white(seed: int, n: int, d: int) -> Tensor:
    """Rows whose mean is 0 and whose covariance is the identity, exactly and not only in expectation."""
    x = _normal(seed, n, d)
    return torch.linalg.qr(x - x.mean(0))[0] * math.sqrt(n)


def _skewed(seed: int, white: Tensor) -> Tensor:
    """The same with another mean and scale in every feature, float32: what a standardiser has to undo."""
    scale = _normal(seed, white.shape[1]).exp()
    return (white * scale + 5 * _normal(seed + 1, white.shape[1])).float()


def _standardiser(vectors: Tensor) -> Standardiser:
    standardiser = Standardiser()
    standardiser.update(vectors)
    return standardiser


def _standardised(vectors: Tensor, fitted: PrismMap) -> Tensor:
    return (vectors.double() - fitted.mean.double()) / (fitted.variance.double() + 1e-8).sqrt()


def _head(seed: int, d: int = D, d_vocab: int = D_VOCAB) -> Unembedding:
    # Columns of different strengths, so that singular values are well apart and their vectors are no matter of taste.
    return Unembedding.of((_normal(seed, d_vocab, d) * torch.logspace(0, -1, d)).float(), None)


def _principal(vectors: Tensor, k: int) -> Tensor:
    """Top-k principal directions of centred, standardised vectors from one dense SVD in numpy."""
    x = vectors.double().numpy()
    w = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-8)
    return torch.from_numpy(np.linalg.svd(w - w.mean(0), full_matrices=False)[2][:k].T.copy())


def _anisotropic(seed: int, n: int = N, d: int = D) -> Tensor:
    return (_normal(seed, n, d) @ _normal(seed + 1, d, d) + 3 * _normal(seed + 2, d)).float()


def _complement(columns: Tensor) -> np.ndarray:
    full = np.linalg.svd(columns.numpy(), full_matrices=True)[0]
    return full[:, columns.shape[1] :]


def _rotation_by_bases(source: Tensor, target: Tensor) -> Tensor:
    """Q from explicit bases of both complements and numpy's polar factor between them."""
    source_rest, target_rest = _complement(source), _complement(target)
    left, _, right = np.linalg.svd(target_rest.T @ source_rest)
    rest = target_rest @ (left @ right) @ source_rest.T
    return target @ source.T + torch.from_numpy(rest)


# Standardiser


@given(SEEDS, st.lists(st.integers(0, 40), min_size=1, max_size=8), st.sampled_from([0.0, 1.0, 1e4]))
@examples(60)
def test_streamed_statistics_are_those_of_all_vectors_at_once(seed, portions, offset):
    x = (_normal(seed, sum(portions) + 2, 5) * _normal(seed + 1, 5).exp() + offset).float()
    standardiser = Standardiser()
    for portion in x.split([*portions, 2]):
        standardiser.update(portion)
    whole = x.double()
    assert standardiser.count == len(x)
    torch.testing.assert_close(standardiser.mean, whole.mean(0).float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(standardiser.variance, torch.var(whole, 0, unbiased=False).float(), rtol=1e-6, atol=0)


def test_one_large_update_is_read_in_blocks(monkeypatch):
    x = _anisotropic(0)
    monkeypatch.setattr(prism_map, "BLOCK_BYTES", 8 * D * 7)  # 600 rows are no multiple of 7
    standardiser = _standardiser(x)
    assert standardiser.count == N
    torch.testing.assert_close(standardiser.mean, x.double().mean(0).float())
    torch.testing.assert_close(standardiser.variance, x.double().var(0, unbiased=False).float())


def test_the_variance_is_divided_by_the_count():
    # 1 and 3 lie 1 from their mean: divided by 2 that is 1, divided by 1 it would be 2.
    standardiser = _standardiser(torch.tensor([[1.0], [3.0]]))
    assert (standardiser.mean.tolist(), standardiser.variance.tolist()) == ([2.0], [1.0])


def test_statistics_of_bfloat16_vectors_are_taken_in_float64():
    x = _anisotropic(1).bfloat16()
    torch.testing.assert_close(_standardiser(x).variance, x.double().var(0, unbiased=False).float())


def test_vectors_that_are_not_finite_are_counted_and_leave_the_statistics_alone():
    standardiser = _standardiser(torch.ones(3, 2))
    bad = torch.ones(5, 2)
    bad[1, 0], bad[4] = torch.nan, torch.inf
    with pytest.raises(NumericError, match="2 of 5 are not"):
        standardiser.update(bad)
    assert standardiser.count == 3 and standardiser.mean.tolist() == [1.0, 1.0]


def test_a_stream_keeps_its_width():
    with pytest.raises(LensError, match="3 features came after 2"):
        _standardiser(torch.ones(3, 2)).update(torch.ones(3, 3))


def test_a_mean_of_nothing_is_refused():
    standardiser = Standardiser()
    standardiser.update(torch.ones(0, 4))
    with pytest.raises(LensError, match="none were shown"):
        _ = standardiser.mean
    with pytest.raises(LensError, match="none were shown"):
        _ = standardiser.variance


def test_constant_features_are_counted_whatever_their_value_and_the_portions():
    x = _anisotropic(2)
    x[:, 3], x[:, 5], x[:, 7] = 0.1, 0.0, 0.1
    x[-1, 7] = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))  # changes once, by the least there is
    standardiser = Standardiser()
    for portion in x.split(17):
        standardiser.update(portion)
    assert standardiser.n_constant == 2


# complete_rotation


@given(SEEDS, st.integers(2, 10), st.data())
@examples(80)
def test_a_rotation_takes_source_to_target_and_is_nearest_to_the_identity_elsewhere(seed, d, data):
    k = data.draw(st.integers(1, d))
    source, target = _orthonormal(seed, d, k), _orthonormal(seed + 1, d, k)
    q = complete_rotation(source, target)
    torch.testing.assert_close(q.T @ q, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-11)
    torch.testing.assert_close(q @ source, target, rtol=0, atol=1e-11)
    cosines = np.linalg.svd(source.numpy().T @ target.numpy(), compute_uv=False)
    if cosines.min() > 1e-4:  # nearer to a right angle the polar factor has no digits left to compare
        torch.testing.assert_close(q, _rotation_by_bases(source, target), rtol=0, atol=1e-8)


def test_no_other_completion_is_nearer_to_the_identity():
    d, k = 9, 3
    source, target = _orthonormal(1, d, k), _orthonormal(2, d, k)
    distance = torch.linalg.matrix_norm(complete_rotation(source, target) - torch.eye(d, dtype=torch.float64))
    source_rest, target_rest = (torch.from_numpy(_complement(columns)) for columns in (source, target))
    for seed in range(200):
        other = target @ source.T + target_rest @ _orthonormal(10 + seed, d - k, d - k) @ source_rest.T
        assert torch.linalg.matrix_norm(other - torch.eye(d, dtype=torch.float64)) > distance


@pytest.mark.parametrize("k", [1, 5, 8])
def test_equal_directions_give_the_identity(k):
    columns = _orthonormal(3, 8, k)
    torch.testing.assert_close(
        complete_rotation(columns, columns), torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-13
    )


def test_nearly_equal_directions_give_nearly_the_identity():
    # The formula with a division by the sine of the angle would lose every digit here.
    source = _orthonormal(4, 8, 3)
    target = torch.linalg.qr(source + 1e-9 * _normal(5, 8, 3))[0]
    target = target * (target * source).sum(0).sign()
    q = complete_rotation(source, target)
    torch.testing.assert_close(q @ source, target, rtol=0, atol=1e-13)
    torch.testing.assert_close(q, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-7)


def test_a_quarter_turn_turns_the_plane_and_leaves_the_rest():
    e1, e2 = torch.eye(3, dtype=torch.float64)[:, :1], torch.eye(3, dtype=torch.float64)[:, 1:2]
    due = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(complete_rotation(e1, e2), due)


def test_opposite_directions_are_a_mirror_and_leave_the_rest():
    source = _orthonormal(6, 7, 2)
    due = torch.eye(7, dtype=torch.float64) - 2 * source @ source.T
    torch.testing.assert_close(complete_rotation(source, -source), due, rtol=0, atol=1e-13)


def test_columns_that_are_not_orthonormal_are_refused():
    good, bad = _orthonormal(7, 6, 2), 1.01 * _orthonormal(8, 6, 2)
    # The Gram matrix of columns of length 1.01 is 0.0201 too large on its diagonal: 0.0201 sqrt(2) = 0.0284.
    with pytest.raises(NumericError, match=r"columns of the source .* is 0\.028 from"):
        complete_rotation(bad, good)
    with pytest.raises(NumericError, match="columns of the target"):
        complete_rotation(good, bad)


# unembedding_directions


@pytest.mark.parametrize("rows", [1, 7, D_VOCAB - 1, D_VOCAB, 10 * D_VOCAB])
def test_directions_of_the_unembedding_are_the_left_singular_vectors_of_all_of_it(rows, monkeypatch):
    monkeypatch.setattr(prism_map, "BLOCK_BYTES", 8 * D * rows)
    head = _head(0)
    found, rank = unembedding_directions(head, 5)
    due = torch.linalg.svd(head.weight.tensor.double().T, full_matrices=False)[0][:, :5]
    assert rank == D
    torch.testing.assert_close(found * (found * due).sum(0).sign(), due, rtol=0, atol=1e-9)


def test_each_directions_largest_component_is_positive():
    found, _ = unembedding_directions(_head(1), D)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_heads_own_projection_belongs_to_its_unembedding():
    projection = _normal(3, D, D + 4).float()
    head = Unembedding.of(_head(2).weight.tensor, None, projection=projection)
    found, rank = unembedding_directions(head, 6)
    dense = (head.weight.tensor.double() @ projection.double()).T  # [d_model, d_vocab]
    due = torch.linalg.svd(dense, full_matrices=False)[0][:, :6]
    assert (found.shape, rank) == ((D + 4, 6), D)
    torch.testing.assert_close(found * (found * due).sum(0).sign(), due, rtol=0, atol=1e-9)


def test_weights_that_are_not_finite_are_refused():
    weight = _head(4).weight.tensor.clone()
    weight[7, 3] = torch.nan
    with pytest.raises(NumericError, match="unembedding should be finite"):
        unembedding_directions(Unembedding.of(weight, None), 2)


# fit_procrustes_to_final


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_rotation_is_found_and_decodes_by_rows(seed):
    planted = _orthonormal(seed, D, D)
    x = _skewed(seed, _normal(seed + 1, N, D))
    w = (x.double() - x.double().mean(0)) / (x.double().var(0, unbiased=False) + 1e-8).sqrt()
    finals = (w @ planted.T).float()  # R w for each row
    fitted = fit_procrustes_to_final(x, finals, _standardiser(x), k=D)
    torch.testing.assert_close(fitted.rotation.double(), planted, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        _standardised(x, fitted) @ fitted.rotation.double().T, finals.double(), rtol=0, atol=1e-3
    )
    assert (_standardised(x, fitted) @ fitted.rotation.double() - finals).abs().max() > 1  # transposed, it is not
    assert (fitted.k, fitted.k_asked, fitted.rank_effective, fitted.notes) == (D, D, D, ())
    assert (fitted.method, fitted.pairing) == ("procrustes_to_final", "cross_covariance")


def test_the_planted_rotation_does_not_depend_on_the_means_of_either_side():
    planted = _orthonormal(5, D, D)
    x = _skewed(5, _normal(6, N, D))
    w = (x.double() - x.double().mean(0)) / x.double().std(0, unbiased=False)
    # A mean far larger than the spread: without centring it would be the strongest direction of the product.
    finals = (w @ planted.T + 100 * _normal(7, D)).float()
    shifted = _standardiser(x + 3 * x.std(0))  # statistics of a stream whose mean the sample does not have
    fitted = fit_procrustes_to_final(x, finals, shifted, k=D)
    torch.testing.assert_close(fitted.rotation.double(), planted, rtol=0, atol=1e-3)


def test_a_rotation_planted_on_a_subspace_is_found_there():
    k = 4
    planted, subspace = _orthonormal(8, D, D), _orthonormal(9, D, k)
    white = _white(10, N, D)
    x = _skewed(11, white)
    finals = (white @ subspace @ subspace.T @ planted.T).float()  # R P w: nothing but the subspace reaches the end
    fitted = fit_procrustes_to_final(x, finals, _standardiser(x), k=k)
    q = fitted.rotation.double()
    assert (fitted.k, fitted.rank_effective) == (k, k)
    torch.testing.assert_close(q @ subspace, planted @ subspace, rtol=0, atol=1e-3)
    torch.testing.assert_close(q, _rotation_by_bases(subspace, planted @ subspace), rtol=0, atol=1e-3)


def test_with_all_directions_it_is_the_orthogonal_procrustes_solution_also_with_noise():
    x = _skewed(12, _normal(13, N, D))
    finals = (x.double() @ _normal(14, D, D) + 3 * _normal(15, N, D)).float()
    fitted = fit_procrustes_to_final(x, finals, _standardiser(x), k=D)
    w = _standardised(x, fitted)
    g = finals.double() - finals.double().mean(0)
    left, values, right = np.linalg.svd((w.T @ g).T.numpy())
    torch.testing.assert_close(fitted.rotation.double(), torch.from_numpy(left @ right), rtol=0, atol=1e-5)
    gained = float((w @ fitted.rotation.double().T * g).sum())  # tr(Q sum w g^T), at most the nuclear norm
    assert gained == pytest.approx(float(values.sum()), rel=1e-6)


def test_fewer_directions_are_the_strongest_pairs():
    k = 3
    x = _skewed(16, _normal(17, N, D))
    finals = (x.double() @ _normal(18, D, D)).float()
    fitted = fit_procrustes_to_final(x, finals, _standardiser(x), k=k)
    w, g = _standardised(x, fitted), finals.double() - finals.double().mean(0)
    left, _, right = np.linalg.svd((w.T @ g).T.numpy())
    source, target = torch.from_numpy(right[:k].T.copy()), torch.from_numpy(left[:, :k].copy())
    torch.testing.assert_close(fitted.rotation.double(), _rotation_by_bases(source, target), rtol=0, atol=1e-5)


def test_equal_vectors_with_different_finals_are_all_used_and_counted_once():
    x = _anisotropic(19, n=100).repeat(3, 1)
    finals = _anisotropic(20, n=300)
    both = [torch.cat([matrix, matrix[:50]]) for matrix in (x, finals)]  # 50 pairs again, word for word
    standardiser = _standardiser(x)
    fitted = fit_procrustes_to_final(*both, standardiser, k=4)
    assert (fitted.distinct_vectors, fitted.reservoir) == (100, 300)
    torch.testing.assert_close(fitted.rotation, fit_procrustes_to_final(x, finals, standardiser, k=4).rotation)


def test_k_is_the_rank_of_the_cross_covariance_where_that_is_less():
    white = _white(21, N, D)
    x = _skewed(22, white)
    finals = (white @ _normal(23, D, 3) @ _normal(24, 3, D) + 50).float()
    fitted = fit_procrustes_to_final(x, finals, _standardiser(x), k=8)
    assert (fitted.k, fitted.k_asked, fitted.rank_effective) == (3, 8, 3)
    assert fitted.notes == ("k is 3 and not 8, because 3 is the numerical rank of the cross-covariance.",)
    assert fitted.orthogonality_error < 1e-5


def test_k_is_the_rank_of_the_vectors_where_that_is_less():
    x = (_normal(25, N, 4) @ _normal(26, 4, D) + 2).float()
    fitted = fit_procrustes_to_final(x, _anisotropic(27), _standardiser(x), k=8)
    assert (fitted.k, fitted.rank_effective) == (4, 4)


def test_finals_that_never_change_are_refused():
    x = _anisotropic(28)
    with pytest.raises(LensError, match="vary together with their final vectors, but their numerical rank is 0"):
        fit_procrustes_to_final(x, torch.full((N, D), 0.3), _standardiser(x), k=2)


def test_each_vector_needs_its_final_vector():
    x = _anisotropic(29)
    with pytest.raises(LensError, match=r"\(600, 12\) and \(599, 12\)"):
        # The unchecked function, as users get it: shapes are checked in tests alone.
        unwrap(fit_procrustes_to_final)(x, x[1:], _standardiser(x), k=2)


# fit_by_rank


@pytest.mark.parametrize("k", [1, 5, D])
def test_principal_directions_are_turned_into_singular_vectors_by_rank(k):
    x, head = _anisotropic(30), _head(31)
    fitted = fit_by_rank(x, _standardiser(x), head, k=k)
    q = fitted.rotation.double()
    source = _principal(x, k)
    target = torch.linalg.svd(head.weight.tensor.double().T, full_matrices=False)[0][:, :k]
    matched = (q @ source * target).sum(0)  # cosine of Q e_i and u_i, each of a sign of its own
    torch.testing.assert_close(matched.abs(), torch.ones(k, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(q.T @ q, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(q, _rotation_by_bases(source, target * matched.sign()), rtol=0, atol=1e-5)
    assert (fitted.k, fitted.k_asked, fitted.rank_effective, fitted.notes) == (k, k, D, ())
    assert (fitted.distinct_vectors, fitted.reservoir) == (N, N)
    assert (fitted.method, fitted.pairing) == ("by_rank", "by_rank")
    torch.testing.assert_close(fitted.mean, x.double().mean(0).float())
    torch.testing.assert_close(fitted.variance, x.double().var(0, unbiased=False).float())
    assert fitted.eps == 1e-8


def test_principal_directions_that_are_singular_vectors_already_give_the_identity():
    # Standardised features with unequal correlations, and a head built from the same axes with the same order.
    x = _anisotropic(32)
    axes = _principal(x, D)
    weight = (_orthonormal(33, D_VOCAB, D) * torch.linspace(9, 1, D, dtype=torch.float64)) @ axes.T
    fitted = fit_by_rank(x, _standardiser(x), Unembedding.of(weight.float(), None), k=5)
    torch.testing.assert_close(fitted.rotation, torch.eye(D), rtol=0, atol=1e-5)


def test_a_stored_rotation_is_orthogonal_as_far_as_its_record_says():
    x = _anisotropic(34)
    fitted = fit_by_rank(x, _standardiser(x), _head(35), k=6)
    q = fitted.rotation.double().numpy()
    assert fitted.rotation.dtype == torch.float32
    assert fitted.orthogonality_error == pytest.approx(np.linalg.norm(q.T @ q - np.eye(D)), rel=1e-6)
    assert 0 < fitted.orthogonality_error < 1e-5


def test_a_rotation_that_is_not_orthogonal_is_refused(monkeypatch):
    x = _anisotropic(36)
    monkeypatch.setattr(prism_map, "MAX_ORTHOGONALITY_ERROR", 1e-10)  # below what float32 can keep
    with pytest.raises(NumericError, match="The rotation should be orthonormal"):
        fit_by_rank(x, _standardiser(x), _head(37), k=6)


def test_equal_inputs_give_the_same_bits():
    x, head = _anisotropic(38), _head(39)
    first, again = (fit_by_rank(x.clone(), _standardiser(x), head, k=6).rotation for _ in range(2))
    assert torch.equal(first, again)


def test_the_size_of_blocks_does_not_matter(monkeypatch):
    x, finals, head = _anisotropic(40), _anisotropic(41), _head(42)
    standardiser = _standardiser(x)
    whole = [fit_by_rank(x, standardiser, head, k=6), fit_procrustes_to_final(x, finals, standardiser, k=6)]
    monkeypatch.setattr(prism_map, "BLOCK_BYTES", 8 * D * 7)
    parts = [fit_by_rank(x, standardiser, head, k=6), fit_procrustes_to_final(x, finals, standardiser, k=6)]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.rotation, other.rotation, rtol=0, atol=1e-6)
        assert (one.distinct_vectors, one.reservoir) == (other.distinct_vectors, other.reservoir) == (N, N)


def test_repeats_are_dropped_before_the_subspace_is_found():
    x = _anisotropic(43)
    standardiser = _standardiser(x)
    often = torch.cat([x[:1].expand(5000, D), x, x[:20]])  # one vector so often that it would be the first direction
    fitted = fit_by_rank(often, standardiser, _head(44), k=6)
    assert (fitted.distinct_vectors, fitted.reservoir) == (N, N)
    torch.testing.assert_close(fitted.rotation, fit_by_rank(x, standardiser, _head(44), k=6).rotation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_distinct_vectors_are_counted_by_value_in_any_layout(dtype):
    x = _normal(45, 80, D).to(dtype)
    x[:, 0] = 0.0
    signed = x.clone()
    signed[:, 0] = -0.0  # equal to 0.0 and stored otherwise
    near = x[:10].clone()
    near[:, 1] = torch.nextafter(near[:, 1].float(), torch.tensor(9.0)).to(dtype)  # in bfloat16 this rounds back
    stacked = torch.cat([x, signed, near]).T.contiguous().T  # columns lie together
    distinct = len({tuple(row) for row in stacked.tolist()})
    fitted = fit_by_rank(stacked, _standardiser(stacked), _head(46), k=2)
    assert fitted.distinct_vectors == distinct == (80 if dtype == torch.bfloat16 else 90)


def test_k_is_what_distinct_vectors_allow():
    x = _anisotropic(47, n=119)
    fitted = fit_by_rank(x.repeat(10, 1), _standardiser(x), _head(48), k=9)
    # 119 vectors are 20 for each of 5 directions and 19 more.
    assert (fitted.k, fitted.k_asked, fitted.distinct_vectors, fitted.rank_effective) == (5, 9, 119, D)
    (note,) = fitted.notes
    assert note.startswith("k is 5 and not 9, because 5 is the number of directions that 119 distinct vectors allow")


def test_k_stays_where_distinct_vectors_just_suffice():
    x = _anisotropic(49, n=120)
    assert fit_by_rank(x, _standardiser(x), _head(50), k=6).k == 6


def test_k_is_the_rank_of_the_sample_where_that_is_less():
    x = (_normal(51, N, 4) @ _normal(52, 4, D) + 30).float()
    fitted = fit_by_rank(x, _standardiser(x), _head(53), k=8)
    assert (fitted.k, fitted.k_asked, fitted.rank_effective) == (4, 8, 4)
    assert fitted.notes == ("k is 4 and not 8, because 4 is the numerical rank of the sample.",)


def test_the_output_of_a_layer_norm_has_one_direction_less():
    # Before its gain and bias every row sums to zero, which leaves d_model - 1 directions and float32's rounding.
    gain, bias = _normal(54, D).float() + 2, 7 * _normal(55, D).float()
    x = torch.nn.functional.layer_norm(_anisotropic(56, n=2000), (D,), gain, bias)
    assert fit_by_rank(x, _standardiser(x), _head(57), k=D).rank_effective == D - 1


def test_a_weak_direction_counts_if_it_is_more_than_rounding():
    strength = torch.ones(D, dtype=torch.float64)
    strength[-1] = 1e-5
    x = (_normal(58, N, D) * strength @ _orthonormal(59, D, D)).float()
    assert fit_by_rank(x, _standardiser(x), _head(60), k=D).rank_effective == D


def test_k_is_the_rank_of_the_unembedding_where_that_is_less():
    head = Unembedding.of((_normal(61, D_VOCAB, 3) @ _normal(62, 3, D)).float(), None)
    x = _anisotropic(63)
    fitted = fit_by_rank(x, _standardiser(x), head, k=8)
    assert (fitted.k, fitted.rank_effective) == (3, D)
    assert fitted.notes == ("k is 3 and not 8, because 3 is the rank of W_U.",)


def test_constant_features_stay_finite_and_are_noted():
    x = _anisotropic(64)
    x[:, 3], x[:, 5] = 0.1, -400.0
    fitted = fit_by_rank(x, _standardiser(x), _head(65), k=4)
    assert fitted.notes == ("2 of 12 features never changed; their variance is replaced by eps alone.",)
    assert fitted.rank_effective == D - 2
    assert _standardised(x, fitted).isfinite().all() and fitted.rotation.isfinite().all()


# Refusals that both methods share


def _fit(method: str, vectors: Tensor, standardiser: Standardiser, k: int) -> PrismMap:
    if method == "by_rank":
        return fit_by_rank(vectors, standardiser, _head(70), k=k)
    return fit_procrustes_to_final(vectors, _anisotropic(71, n=len(vectors)), standardiser, k=k)


both_methods = pytest.mark.parametrize("method", ["by_rank", "procrustes_to_final"])


@both_methods
@pytest.mark.parametrize("k", [0, -3, D + 1])
def test_k_outside_the_space_is_refused(method, k):
    x = _anisotropic(72)
    with pytest.raises(LensError, match=f"k should be from 1 to d_model = 12 directions, but is {k};"):
        _fit(method, x, _standardiser(x), k)


@both_methods
def test_a_handful_of_repeated_vectors_is_not_a_fit(method):
    x = _anisotropic(73, n=19)
    with pytest.raises(LensError, match="of 380 there are 19 distinct"):
        _fit(method, x.repeat(20, 1), _standardiser(x), 1)


@both_methods
def test_twenty_distinct_vectors_are_enough_for_one_direction(method):
    x = _anisotropic(74, n=20)
    assert _fit(method, x, _standardiser(x), 3).k == 1


@both_methods
def test_vectors_of_the_sample_that_are_not_finite_are_counted(method):
    x = _anisotropic(75)
    standardiser = _standardiser(x)
    x[3, 4], x[99, 0], x[99, 1] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(NumericError, match="vectors of the sample should be finite, but 2 of 600 are not"):
        _fit(method, x, standardiser, 2)


def test_final_vectors_that_are_not_finite_are_counted():
    x, finals = _anisotropic(76), _anisotropic(77)
    finals[5] = torch.nan
    with pytest.raises(NumericError, match="final vectors should be finite, but 1 of 600 are not"):
        fit_procrustes_to_final(x, finals, _standardiser(x), k=2)


@both_methods
def test_a_standardiser_of_another_width_is_refused(method):
    with pytest.raises(LensError, match="standardiser's 5 features, but have 12"):
        _fit(method, _anisotropic(78), _standardiser(torch.ones(30, 5)), 2)


def test_an_unembedding_of_another_width_is_refused():
    x = _anisotropic(79)
    with pytest.raises(LensError, match="unembedding's 9 features, but have 12"):
        fit_by_rank(x, _standardiser(x), _head(80, d=9), k=2)


def test_an_unembedding_of_zeros_is_refused():
    x = _anisotropic(81)
    with pytest.raises(LensError, match="unembedding's rows should not all be zero"):
        fit_by_rank(x, _standardiser(x), Unembedding.of(torch.zeros(D_VOCAB, D), None), k=2)


def test_vectors_that_differ_by_rounding_alone_are_refused():
    steps = torch.randint(4, (N, D), generator=torch.Generator().manual_seed(82))
    x = 1 + torch.finfo(torch.float32).eps * steps  # the four numbers of float32 from 1 upwards
    with pytest.raises(LensError, match="vectors should differ, but their numerical rank is 0"):
        fit_by_rank(x, _standardiser(x), _head(83), k=2)
