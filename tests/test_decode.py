"""The sweep over the vocabulary equals a dense float64 computation, whatever the tiles, ties, biases and transforms."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layerscope.errors import LensError, NumericError
from layerscope.readout.decode import ROWS_PER_BLOCK, TILE_BYTES, Question, Readout, decode, tile_width
from layerscope.unembedding import HeadTransform, Unembedding
from properties import examples, slow
from rounding import DOUBLE, FLOAT32, SINGLE, ReadoutError, of_cosine, of_logits, of_readout, same_order

FLOOR_NATS = math.log(1e-30)
SCALARS = [
    "entropy_bits", "kl_to_final_bits", "log_sum_exp", "cos_to_final", "cos_to_final_centered", "max_abs_logit",
    "min_log_prob", "answer_log_prob", "top_log_probs",
]  # fmt: skip
SEEDS = st.integers(0, 2**32 - 1)

pytestmark = pytest.mark.usefixtures("engine")


def _transformed(logits: Tensor, transform: HeadTransform) -> Tensor:
    scaled = logits * (transform.scale or 1.0)
    return scaled if transform.softcap is None else transform.softcap * torch.tanh(scaled / transform.softcap)


def _dense(
    rows: Tensor,
    final_rows: Tensor,
    unembedding: Unembedding,
    answers: list[tuple[int, ...]],
    lens_transform: HeadTransform | None = None,
) -> dict[str, np.ndarray]:
    """The same numbers from whole rows of logits in float64; `answers` has a set of ids for each position."""
    head = unembedding.weight.tensor.double()
    if unembedding.projection is not None:
        head = head @ unembedding.projection.double()
    bias = torch.zeros(len(head)).double() if unembedding.bias is None else unembedding.bias.double()
    linear = rows.double() @ head.T + bias
    z = _transformed(linear, unembedding.transform if lens_transform is None else lens_transform)
    final = _transformed(final_rows.double() @ head.T + bias, unembedding.transform)
    log_p, log_q = z.log_softmax(-1), final.log_softmax(-1)
    p = log_p.exp()
    order = np.array(
        [[sorted(range(len(head)), key=lambda v: (-row[v], v)) for row in group] for group in linear.tolist()]
    )
    judged = np.array(
        [[max(ids, key=row.__getitem__, default=-1) for row, ids in zip(g, answers, strict=True)] for g in linear]
    )
    at = torch.from_numpy(np.maximum(judged, 0))[..., None]
    own, own_final = z - bias, final - bias
    return {
        "entropy_bits": -torch.special.xlogy(p, p).sum(-1) / math.log(2),
        "kl_to_final_bits": (p * (log_p.clamp_min(FLOOR_NATS) - log_q.clamp_min(FLOOR_NATS))).sum(-1) / math.log(2),
        "log_sum_exp": z.logsumexp(-1),
        "cos_to_final": torch.cosine_similarity(own, own_final.expand_as(own), dim=-1),
        "cos_to_final_centered": torch.cosine_similarity(
            own - own.mean(-1, keepdim=True), (own_final - own_final.mean(-1, keepdim=True)).expand_as(own), dim=-1
        ),
        "max_abs_logit": z.abs().amax(-1),
        "min_log_prob": log_p.amin(-1),
        "linear": linear,
        "own": own,
        "own_final": own_final.expand_as(own),
        "log_probs": log_p,
        "order": order,
        "answer_id": judged,
        "answer_rank": np.where(judged < 0, 0, 1 + (linear > linear.gather(-1, at)).sum(-1).numpy()),
        "answer_log_prob": log_p.gather(-1, at)[..., 0],
        "final_entropy_bits": -torch.special.xlogy(log_q.exp(), log_q.exp()).sum(-1) / math.log(2),
    }


def _tolerance(name: str, error: ReadoutError) -> dict[str, float]:
    """What is absolute in the logits' error, and what is relative; cosines have bounds of their own."""
    absolute = {
        "entropy_bits": SINGLE, "kl_to_final_bits": error.bits,
        "log_sum_exp": error.logit, "max_abs_logit": error.logit,
    }  # fmt: skip
    return {"rtol": error.relative, "atol": absolute.get(name, error.log_prob)}


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _as_given(logits: Tensor, final: Tensor, **more: object) -> tuple[Tensor, Tensor, Unembedding]:
    """Rows and a head whose products are these logits to the last bit: every row picks out its own coordinate."""
    n_groups, n_positions, d_vocab = logits.shape
    every = torch.cat([logits.reshape(-1, d_vocab), final])
    picks = torch.eye(len(every))
    rows = picks[: n_groups * n_positions].view(n_groups, n_positions, -1)
    return rows, picks[n_groups * n_positions :], Unembedding.of(every.T.contiguous(), None, **more)


def _random(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _assert_same_bits(a: Readout, b: Readout, where: np.ndarray | slice = slice(None)) -> None:
    for field in fields(Readout):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name == "known_log_probs":
            assert all(np.array_equal(i[where], j[where], equal_nan=True) for i, j in zip(x, y, strict=True))
        elif not field.name.startswith("final"):
            assert np.array_equal(x[where], y[where], equal_nan=True), field.name


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"transform": HeadTransform(scale=0.25)},
    "softcap": {"transform": HeadTransform(softcap=5.0)},
    "all": {"bias": True, "projection": True, "transform": HeadTransform(scale=2.0, softcap=7.0)},
}


@pytest.mark.parametrize("lens_transform", [None, HeadTransform(), HeadTransform(softcap=3.0)], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_a_sweep_equals_whole_rows_of_logits_in_float64(head, lens_transform):
    options = dict(HEADS[head])
    d_model, d_head, d_vocab = 16, 12 if options.get("projection") else 16, 301
    unembedding = Unembedding.of(
        _random(1, d_vocab, d_head, scale=0.7),
        None,
        bias=_random(2, d_vocab) if options.pop("bias", None) else None,
        projection=_random(3, d_head, d_model, scale=0.3) if options.pop("projection", None) else None,
        **options,
    )
    rows, final = _random(4, 3, 5, d_model), _random(5, 5, d_model)
    questions = [Question(3, (7, 8, 300), (0, 7, 299)), Question(1), Question(1, (2,), (2,))]
    answers = [(7, 8, 300)] * 3 + [()] + [(2,)]
    found = decode(rows, final, questions, unembedding, lens_transform=lens_transform, top_k=50, tile=64)
    due = _dense(rows, final, unembedding, answers, lens_transform)

    error = of_readout(unembedding, rows, final, transform=lens_transform)
    cosines = of_cosine(error.logit, due["own"], due["own_final"]) + of_cosine(
        error.logit, _centred(due["own"]), _centred(due["own_final"])
    )
    for name in ("answer_id", "answer_rank"):
        assert np.array_equal(getattr(found, name), due[name]), name
    assert same_order(found.top_ids, due["linear"], of_readout(unembedding, rows, transform=HeadTransform()).logit)
    for name in SCALARS[:7]:
        within = {"atol": cosines.max()} if name.startswith("cos") else _tolerance(name, error)
        np.testing.assert_allclose(getattr(found, name), due[name], err_msg=name, **within)
    log_probs = due["log_probs"].numpy()
    within = {"rtol": 0, "atol": error.log_prob}
    np.testing.assert_allclose(found.top_log_probs, np.take_along_axis(log_probs, found.top_ids, -1), **within)
    has = due["answer_id"] >= 0
    np.testing.assert_allclose(found.answer_log_prob[has], due["answer_log_prob"].numpy()[has], **within)
    np.testing.assert_allclose(found.final_entropy_bits, due["final_entropy_bits"], rtol=error.relative)
    np.testing.assert_allclose(found.known_log_probs[0], log_probs[:, :3, [0, 7, 299]], **within)
    assert found.known_log_probs[1].shape == (3, 1, 0)
    np.testing.assert_allclose(found.known_log_probs[2], log_probs[:, 4:, [2]], **within)
    assert found.finite.all() and found.final_finite.all()


def test_cosines_leave_the_heads_bias_out():
    logits, final = _random(0, 2, 3, 40), _random(1, 3, 40)
    rows, final_rows, plain = _as_given(logits, final)
    biased = Unembedding.of(plain.weight.tensor, None, bias=_random(2, 40, scale=5.0))
    without, with_bias = (decode(rows, final_rows, [Question(3)], head) for head in (plain, biased))
    # The bias is added to the logit and taken off again, each rounding what may be 20 by FLOAT32.
    within = of_cosine(2 * 20 * FLOAT32, logits, final.expand_as(logits)).max() * 2
    for name in ("cos_to_final", "cos_to_final_centered"):
        np.testing.assert_allclose(getattr(with_bias, name), getattr(without, name), atol=within)
    assert np.abs(with_bias.entropy_bits - without.entropy_bits).min() > 0.1


@pytest.mark.parametrize("tile", [1, 3, 64, None])
def test_equal_logits_are_listed_by_id_and_share_the_best_rank(tile):
    logits = torch.randint(-3, 4, (4, 3, 97), generator=torch.Generator().manual_seed(0)).float()
    rows, final_rows, head = _as_given(logits, logits[0])
    found = decode(rows, final_rows, [Question(3, (50,))], head, top_k=60, tile=tile)
    due = _dense(rows, final_rows, head, [(50,)] * 3)
    assert np.array_equal(found.top_ids, due["order"][..., :60])
    assert np.array_equal(found.answer_rank, due["answer_rank"])
    assert len(np.unique(found.answer_rank)) > 2


def test_a_tie_worked_by_hand():
    # Logits 1 3 3 2 3: ids 1, 2 and 4 share rank 1, id 3 comes fourth, id 0 fifth.
    rows, final_rows, head = _as_given(torch.tensor([[[1.0, 3.0, 3.0, 2.0, 3.0]]]), torch.zeros(1, 5))
    ranks = {a: decode(rows, final_rows, [Question(1, (a,))], head).answer_rank.item() for a in range(5)}
    assert ranks == {0: 5, 1: 1, 2: 1, 3: 4, 4: 1}
    assert decode(rows, final_rows, [Question(1)], head, top_k=4, tile=2).top_ids.tolist() == [[[1, 2, 4, 3]]]


@pytest.mark.parametrize("tile", [slow(7), 64, None])
@pytest.mark.parametrize(("n_groups", "n_positions", "d_model"), [(1, 1, 63), (5, 7, 100), (20, 10, 128)])
def test_tokens_with_the_answers_own_row_of_the_head_never_rank_above_it(tile, n_groups, n_positions, d_model):
    """Their logits are equal by definition, but a product may round them differently from column to column.

    The answer's logit comes from a product of its own, and half of all ranks used to be worse by the duplicates.
    """
    weight = _random(0, 1000, d_model)
    twins = [5, 333, 998, 999]
    weight[twins] = weight[5].clone()
    rows = _random(1, n_groups, n_positions, d_model)
    logits = rows.double() @ weight.double().T
    others = np.delete(logits.numpy(), twins, axis=-1)
    head = Unembedding.of(weight, None)
    own, error = logits[..., 5:6].numpy(), 2 * of_readout(head, rows).logit
    ranks = []
    for answer in twins:
        found = decode(rows, rows[-1], [Question(n_positions, (answer,))], head, tile=tile)
        assert (found.answer_rank >= 1 + (others > own + error).sum(-1)).all()
        assert (found.answer_rank <= 1 + (others > own - error).sum(-1)).all()
        ranks.append(found.answer_rank)
    assert all(np.array_equal(ranks[0], other) for other in ranks)


def test_the_same_row_with_a_larger_bias_is_no_tie():
    weight = _random(0, 50, 8)
    weight[30] = weight[20] = torch.full((8,), 3.0)
    bias = torch.zeros(50)
    bias[30] = 0.5
    rows = weight[20].view(1, 1, 8) * 10
    ask = [Question(1, (20,))]
    assert decode(rows, rows[0], ask, Unembedding.of(weight, None, bias=bias), tile=7).answer_rank.item() == 2
    assert decode(rows, rows[0], ask, Unembedding.of(weight, None), tile=7).answer_rank.item() == 1


def test_of_several_accepted_answers_the_one_with_the_largest_logit_is_judged():
    logits = torch.tensor([[[0.0, 4.0, 1.0, 5.0]], [[0.0, 1.0, 4.0, 5.0]]])
    rows, final_rows, head = _as_given(logits, logits[0])
    found = decode(rows, final_rows, [Question(1, (2, 1))], head)
    assert found.answer_id.tolist() == [[1], [2]]
    assert found.answer_rank.tolist() == [[2], [2]]
    due = logits[0, 0].double().log_softmax(-1)[1].item()
    np.testing.assert_allclose(found.answer_log_prob, due, rtol=0, atol=of_logits(logits).log_prob)


def test_without_an_answer_the_id_is_minus_one_and_the_rank_zero():
    rows, final_rows, head = _as_given(_random(0, 2, 1, 9), _random(1, 1, 9))
    found = decode(rows, final_rows, [Question(1)], head)
    assert found.answer_id.tolist() == [[-1], [-1]]
    assert found.answer_rank.tolist() == [[0], [0]]


@examples(60)
@given(SEEDS, st.integers(1, 150), st.integers(1, 170), st.integers(1, 60), st.booleans())
def test_tiles_of_any_size_give_what_one_tile_gives(seed, d_vocab, tile, top_k, with_bias):
    weight = _random(seed, d_vocab, 8)
    head = Unembedding.of(weight, None, bias=_random(seed + 1, d_vocab) if with_bias else None)
    rows, final = _random(seed + 2, 3, 2, 8), _random(seed + 3, 2, 8)
    ask = [Question(2, (d_vocab // 2,), (0,))]
    whole = decode(rows, final, ask, head, top_k=top_k, tile=d_vocab)
    tiled = decode(rows, final, ask, head, top_k=top_k, tile=tile)
    error = of_readout(head, rows, final) * 2
    linear = rows.double() @ weight.double().T
    own_final = (final.double() @ weight.double().T).expand_as(linear)
    for name in SCALARS:
        if name == "cos_to_final_centered" and d_vocab < 3:
            continue  # one logit has no spread, and that of two may be rounding
        within = _tolerance(name, error)
        if name.startswith("cos"):
            pair = [_centred(z) if name.endswith("centered") else z for z in (linear, own_final)]
            # The sum of squares about the mean is that of squares less the mean's, and keeps its rounding.
            lost = sum((z.norm(dim=-1) / y.norm(dim=-1)) ** 2 for z, y in zip((linear, own_final), pair, strict=True))
            within = {"atol": float((of_cosine(error.logit, *pair) + d_vocab * FLOAT32 * lost.numpy()).max())}
        np.testing.assert_allclose(getattr(tiled, name), getattr(whole, name), err_msg=name, **within)
    if d_vocab == 1:
        return
    # An id may change places with another only where their logits differ by rounding.
    z = linear if head.bias is None else linear + head.bias.double()
    assert same_order(tiled.top_ids, z, error.logit) and same_order(whole.top_ids, z, error.logit)
    assert np.abs(tiled.answer_rank - whole.answer_rank).max() <= 1


@examples(100)
@given(SEEDS, st.integers(1, 80), st.integers(1, 90), st.floats(1e-3, 300.0), st.floats(1e-3, 300.0))
def test_entropy_lies_between_zero_and_log2_of_the_vocabulary_and_divergence_between_zero_and_its_floor(
    seed, d_vocab, tile, scale, final_scale
):
    logits, final = _random(seed, 3, 2, d_vocab, scale=scale), _random(seed + 1, 2, d_vocab, scale=final_scale)
    rows, final_rows, head = _as_given(logits, final)
    found = decode(rows, final_rows, [Question(2)], head, tile=tile)
    due = _dense(rows, final_rows, head, [(), ()])
    assert (found.entropy_bits >= 0).all()
    error = of_logits(torch.cat([logits.flatten(), final.flatten()]))
    assert (found.entropy_bits <= math.log2(d_vocab) * (1 + SINGLE) + DOUBLE).all()
    assert (found.kl_to_final_bits >= 0).all()
    assert (found.kl_to_final_bits <= math.log2(1e30) + error.bits).all()
    np.testing.assert_allclose(found.entropy_bits, due["entropy_bits"], **_tolerance("entropy_bits", error))
    np.testing.assert_allclose(
        found.kl_to_final_bits, due["kl_to_final_bits"].clamp_min(0), **_tolerance("kl_to_final_bits", error)
    )


def test_a_row_equal_to_the_final_one_diverges_by_nothing():
    final = _random(0, 3, 70, scale=4.0)
    rows, final_rows, head = _as_given(final[None], final)
    found = decode(rows, final_rows, [Question(3)], head, tile=11)
    assert found.kl_to_final_bits.max() < 1e-14
    np.testing.assert_allclose(found.cos_to_final, 1.0, atol=of_cosine(0.0, final, final).max())


def _of_divergence(logits: Tensor, final: Tensor) -> np.ndarray:
    """Largest error in bits of a divergence whose logits are given to the last bit, whatever their size.

    Relative to its peak a logit rounds by u of what is left, |s| or |g|; their difference by u of itself; an
    exponential by 4 u, its product with the difference by u. So a term's own error is 8 u (|s| + |g|), and what a
    weight is off, u (|s| + 5), moves the divergence by as much of |log p - log q - KL|. The model's normaliser is off
    by u (|g| + 5) of each weight of q.
    """
    log_p, log_q = logits.double().log_softmax(-1), final.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    s, g = (z.double() - z.double().amax(-1, keepdim=True) for z in (logits, final))
    apart = log_p - log_q.clamp_min(FLOOR_NATS)
    kl = (p * apart).sum(-1, keepdim=True)
    g = g.clamp_min(FLOOR_NATS)
    terms = p * (8 * (s.abs() + g.abs()) + (s.abs() + 5) * (apart - kl).abs())
    nats = FLOAT32 * (terms.sum(-1) + (q * (g.abs() + 5)).sum(-1))
    return nats.numpy() / math.log(2)


@pytest.mark.parametrize("size", [1e3, -1e4])
@pytest.mark.parametrize("tile", [7, 300])
def test_the_divergence_of_a_row_with_huge_logits_is_as_exact_as_any_other(tile, size):
    """Massive activations under the raw lens: the row's peak and the model's lie thousands of logits apart.

    Their difference used to be rounded before the peaks were taken off, which left errors of 1e-3 bits.
    """
    generator = torch.Generator().manual_seed(int(abs(size)) + tile)
    near = torch.randint(0, 300, (20, 4, 8), generator=generator)  # a few ids share the probability, the rest is far
    logits = size - abs(size) * (1 + torch.rand(20, 4, 300, generator=generator))
    logits.scatter_(-1, near, size + torch.randn(20, 4, 8, generator=generator) * 2)
    logits[:, :, :150] -= abs(size)  # the running peak rises by thousands on its way
    logits[10:] = size + torch.randn(10, 4, 300, generator=generator) * 3
    final = -0.3 * size + torch.randn(4, 300, generator=generator) * 4
    final[1, :280] -= 500.0  # its own running peak rises too, by much more than the floor
    rows, final_rows, head = _as_given(logits, final)
    found = decode(rows, final_rows, [Question(4)], head, tile=tile)
    due = _dense(rows, final_rows, head, [()] * 4)["kl_to_final_bits"].numpy()
    within = _of_divergence(logits, final.expand_as(logits))
    assert within.max() < 1e-4 and np.median(within) < 5e-5
    assert (np.abs(found.kl_to_final_bits - due) <= within).all()


def test_the_divergence_counts_final_probabilities_below_1e_30_as_1e_30():
    # p = (1/2, 1/2), q = (1, e^-100): KL = -1 - (0 + log2 1e-30) / 2.
    rows, final_rows, head = _as_given(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[0.0, -100.0]]))
    for tile in (1, 2):
        found = decode(rows, final_rows, [Question(1)], head, tile=tile)
        assert found.kl_to_final_bits.item() == pytest.approx(-1 + math.log2(1e30) / 2, rel=SINGLE)
    # p sure of what q excludes: the largest divergence there can be.
    rows, final_rows, head = _as_given(torch.tensor([[[-200.0, 0.0]]]), torch.tensor([[0.0, -200.0]]))
    assert decode(rows, final_rows, [Question(1)], head).kl_to_final_bits.item() == pytest.approx(
        math.log2(1e30), rel=SINGLE
    )


@examples(50)
@given(SEEDS, st.integers(2, 60), st.integers(-100, 100), st.integers(1, 70))
def test_a_constant_added_by_the_heads_bias_shows_in_the_largest_logit_alone(seed, d_vocab, constant, tile):
    # Multiples of 1/64, so that adding the constant rounds nothing.
    logits = (_random(seed, 3, 2, d_vocab) * 64).round() / 64
    rows, final_rows, head = _as_given(logits, logits[1])
    shifted = Unembedding.of(head.weight.tensor, None, bias=torch.full((d_vocab,), float(constant)))
    ask = [Question(2, (1,), (0,))]
    a, b = (decode(rows, final_rows, ask, which, tile=tile) for which in (head, shifted))
    assert np.array_equal(a.top_ids, b.top_ids)
    assert np.array_equal(a.answer_rank, b.answer_rank)
    unchanged = set(SCALARS) - {"log_sum_exp", "max_abs_logit"}
    for name in unchanged:
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-10, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(b.log_sum_exp, a.log_sum_exp + constant, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(b.max_abs_logit, (logits + constant).abs().amax(-1))


def test_a_constant_in_the_logits_themselves_moves_the_plain_cosine_and_not_the_centred_one():
    logits = (_random(0, 3, 2, 50) * 64).round() / 64
    a, b = (decode(*_as_given(x, x[1])[:2], [Question(2)], _as_given(x, x[1])[2]) for x in (logits, logits + 8))
    # Sums of squares of logits up to 12, less the constant's: 50 x FLOAT32 of what is 64 times larger.
    np.testing.assert_allclose(b.cos_to_final_centered, a.cos_to_final_centered, atol=4 * 50 * FLOAT32 * 64)
    assert (b.cos_to_final > 0.95).all() and a.cos_to_final[0].max() < 0.5
    np.testing.assert_allclose(b.entropy_bits, a.entropy_bits, rtol=1e-10)
    np.testing.assert_allclose(b.kl_to_final_bits, a.kl_to_final_bits, rtol=1e-10, atol=1e-10)


@examples(50)
@given(SEEDS, st.floats(1e-3, 1e3), st.none() | st.floats(0.5, 50.0))
def test_a_scale_and_a_softcap_change_no_rank_and_no_top_id(seed, scale, softcap):
    logits = _random(seed, 2, 3, 70, scale=10.0)
    rows, final_rows, head = _as_given(logits, logits[0])
    a, b = (
        decode(rows, final_rows, [Question(3, (5,))], head, lens_transform=transform, top_k=70)
        for transform in (None, HeadTransform(scale=scale, softcap=softcap))
    )
    assert np.array_equal(a.top_ids, b.top_ids)
    assert np.array_equal(a.answer_rank, b.answer_rank)


@examples(40)
@given(SEEDS, st.integers(2, 90), st.integers(1, 100))
def test_renaming_the_ids_renames_what_is_listed_and_changes_no_number(seed, d_vocab, tile):
    generator = torch.Generator().manual_seed(seed)
    # Every row a permutation of the same values, so that there are no ties.
    logits = torch.stack([torch.randperm(d_vocab, generator=generator) for _ in range(6)]).view(3, 2, -1) / 8
    new_id = torch.randperm(d_vocab, generator=generator)
    renamed = torch.empty_like(logits)
    renamed[..., new_id] = logits
    readouts = []
    for values, answer in ((logits, 1), (renamed, int(new_id[1]))):
        rows, final_rows, head = _as_given(values, values[2])
        readouts.append(decode(rows, final_rows, [Question(2, (answer,), (answer,))], head, top_k=20, tile=tile))
    a, b = readouts
    assert np.array_equal(new_id.numpy()[a.top_ids], b.top_ids)
    assert np.array_equal(a.answer_rank, b.answer_rank)
    error = of_logits(logits) * 2
    for name in SCALARS:
        # Moving the peak between tiles moves float32 terms of the divergence and the entropy.
        within = _tolerance(name, error)
        if name.startswith("cos"):  # logits of 0, 1/8 ...: their spread is a quarter of their squares
            within = {"rtol": 0, "atol": 4 * 2 * of_cosine(0.0, logits, logits).max()}
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), err_msg=name, **within)
    np.testing.assert_allclose(a.known_log_probs[0], b.known_log_probs[0], rtol=0, atol=error.log_prob)


@pytest.mark.parametrize("tile", [1, 4, 9])
@pytest.mark.parametrize("peak", [0, 5, 8])
@pytest.mark.parametrize("depth", [5, 20, 40, 60, 72])
def test_the_entropy_of_a_row_that_is_all_but_sure_keeps_its_digits(depth, peak, tile):
    # One logit 0, eight at -depth: with t = 8 exp(-depth), H = ln(1 + t) + depth t / (1 + t) nats.
    logits = torch.full((1, 1, 9), -float(depth))
    logits[..., peak] = 0.0
    rows, final_rows, head = _as_given(logits, logits[0])
    tail = 8 * math.exp(-depth)
    due = (math.log1p(tail) + depth * tail / (1 + tail)) / math.log(2)
    found = decode(rows, final_rows, [Question(1)], head, tile=tile)
    assert found.entropy_bits.item() == pytest.approx(due, rel=SINGLE, abs=0)
    assert found.final_entropy_bits.item() == pytest.approx(due, rel=SINGLE, abs=0)
    assert depth < 72 or due < 1e-28


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_flagged_and_touches_no_other(broken):
    head = Unembedding.of(_random(0, 300, 16), None, bias=_random(1, 300))
    rows, final = _random(2, 4, 6, 16), _random(3, 6, 16)
    ask = [Question(4, (3, 4), (1, 2)), Question(2)]
    clean = decode(rows, final, ask, head, tile=64)
    spoilt = rows.clone()
    spoilt[1, 2, 7] = broken
    spoilt[3, 5] = broken
    found = decode(spoilt, final, ask, head, tile=64)
    due = np.ones((4, 6), dtype=bool)
    due[1, 2] = due[3, 5] = False
    assert np.array_equal(found.finite, due)
    assert found.final_finite.all()
    sound = [0, 2]  # whole groups, so that every field can be compared, those by question too
    _assert_same_bits(found, clean, sound)
    for field in fields(Readout):
        if not field.name.startswith(("final", "known")):
            assert np.array_equal(getattr(found, field.name)[due], getattr(clean, field.name)[due]), field.name


def test_a_final_row_that_is_not_finite_is_flagged_at_its_position_alone():
    head = Unembedding.of(_random(0, 300, 16), None)
    rows, final = _random(2, 4, 6, 16), _random(3, 6, 16)
    clean = decode(rows, final, [Question(6)], head)
    final[2, 0] = torch.nan
    found = decode(rows, final, [Question(6)], head)
    assert found.final_finite.tolist() == [True, True, False, True, True, True]
    assert found.finite.all()
    assert np.array_equal(found.entropy_bits, clean.entropy_bits)
    others = [0, 1, 3, 4, 5]
    assert np.array_equal(found.kl_to_final_bits[:, others], clean.kl_to_final_bits[:, others])
    assert np.array_equal(found.final_entropy_bits[others], clean.final_entropy_bits[others])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("at", [0, 77, 299])
def test_a_head_that_is_not_finite_is_refused(part, broken, at):
    weight, bias = _random(0, 300, 16), _random(1, 300)
    (weight if part == "weight" else bias)[at] = broken
    rows = _random(2, 2, 3, 16)
    rows[0, 1] = torch.nan  # a broken row is not the head's fault and is not counted
    with pytest.raises(NumericError, match=r"5 of 5 finite rows.*weight and bias"):
        decode(rows, rows[1], [Question(3)], Unembedding.of(weight, None, bias=bias), tile=64)


def test_two_sweeps_agree_to_the_last_bit():
    head = Unembedding.of(_random(0, 700, 32), None, bias=_random(1, 700), transform=HeadTransform(softcap=9.0))
    rows, final = _random(2, 7, 9, 32), _random(3, 9, 32)
    ask = [Question(9, (3,), (1, 2))]
    _assert_same_bits(decode(rows, final, ask, head), decode(rows, final, ask, head))


@pytest.mark.parametrize(("n_groups", "n_positions"), [(2, ROWS_PER_BLOCK + 5), (9, 500)])
def test_rows_beyond_one_block_are_put_back_in_their_places(n_groups, n_positions):
    head = Unembedding.of(_random(0, 23, 6), None, bias=_random(1, 23))
    rows, final = _random(2, n_groups, n_positions, 6), _random(3, n_positions, 6)
    half = n_positions // 2
    ask = [Question(half, (3,), (1, 2)), Question(n_positions - half, (4, 5), (6,))]
    found = decode(rows, final, ask, head, top_k=1)
    due = _dense(rows, final, head, [(3,)] * half + [(4, 5)] * (n_positions - half))
    error = of_readout(head, rows, final)
    for name in SCALARS[:7]:
        within = _tolerance(name, error)
        if name.startswith("cos"):
            pair = [_centred(due[z]) if name.endswith("centered") else due[z] for z in ("own", "own_final")]
            within = {"rtol": 0, "atol": of_cosine(error.logit, *pair).max()}
        np.testing.assert_allclose(getattr(found, name), due[name], err_msg=name, **within)
    log_probs = due["log_probs"].numpy()
    np.testing.assert_allclose(found.known_log_probs[1][..., 0], log_probs[:, half:, 6], rtol=0, atol=error.log_prob)
    np.testing.assert_allclose(found.answer_log_prob, due["answer_log_prob"], rtol=0, atol=error.log_prob)
    # Among so many rows some hold two logits that only rounding tells apart.
    assert same_order(found.top_ids, due["linear"], error.logit)
    assert (found.answer_rank != due["answer_rank"]).mean() < 1e-3


@examples(40)
@given(SEEDS, st.integers(3, 200), st.integers(1, 210), st.none() | st.floats(0.5, 50.0), st.booleans())
def test_a_known_id_has_the_very_probability_that_is_listed_for_it(seed, d_vocab, tile, softcap, with_bias):
    """Another product for the known ids used to round otherwise than the sweep's, by up to 1e-4 of a probability."""
    transform, bias = HeadTransform(softcap=softcap), _random(seed + 1, d_vocab) if with_bias else None
    head = Unembedding.of(_random(seed, d_vocab, 40), None, bias=bias, transform=transform)
    rows, final = _random(seed + 2, 3, 4, 40, scale=3.0), _random(seed + 3, 4, 40)
    ids = torch.randperm(d_vocab, generator=torch.Generator().manual_seed(seed))[:9].tolist()
    ask = [Question(3, (ids[0], ids[1]), tuple(ids)), Question(1, (), tuple(ids[:2]))]
    found = decode(rows, final, ask, head, top_k=25, tile=tile)
    hits = 0
    for question, known, at in zip(ask, found.known_log_probs, (slice(3), slice(3, 4)), strict=True):
        for j, token_id in enumerate(question.known_ids):
            listed = found.top_ids[:, at] == token_id
            assert (known[listed.any(-1), j] == found.top_log_probs[:, at][listed]).all()
            assert (known[..., j] <= found.top_log_probs[:, at, 0]).all()
            hits += listed.sum()
    judged = found.answer_id[:, :3, None] == np.array(ids)
    assert np.array_equal(found.answer_log_prob[:, :3], found.known_log_probs[0][judged].reshape(3, 3))
    assert hits


@pytest.mark.parametrize("tile", [7, 64, None])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_in_place_of_an_answer_the_models_own_most_likely_token_is_followed(tile, softcap):
    head = Unembedding.of(_random(0, 301, 12), None, bias=_random(1, 301), transform=HeadTransform(softcap=softcap))
    rows, final = _random(2, 5, 6, 12), _random(3, 6, 12)
    rows[4] = final  # the last layer is the model itself
    ask = [Question(4, of_model=True), Question(2, (5,))]
    found = decode(rows, final, ask, head, tile=tile)
    own = (final.double() @ head.weight.tensor.double().T + head.bias.double()).argmax(-1)
    due = _dense(rows, final, head, [(int(i),) for i in own[:4]] + [(5,)] * 2)
    for name in ("answer_id", "answer_rank"):
        assert np.array_equal(getattr(found, name), due[name]), name
    error = of_readout(head, rows, final)
    np.testing.assert_allclose(found.answer_log_prob, due["answer_log_prob"], rtol=0, atol=error.log_prob)
    assert (found.answer_rank[4, :4] == 1).all() and (found.answer_rank[:4, :4] > 1).any()


def test_of_equal_logits_of_the_model_the_smaller_id_is_followed_and_ties_share_its_rank():
    final = torch.tensor([[0.0, 3.0, 1.0, 3.0]])
    rows, final_rows, head = _as_given(torch.tensor([[[0.0, 2.0, 2.0, 1.0]], [[4.0, 2.0, 5.0, 1.0]]]), final)
    for tile in (1, 2, 4):
        found = decode(rows, final_rows, [Question(1, of_model=True)], head, tile=tile)
        assert found.answer_id.tolist() == [[1], [1]]
        assert found.answer_rank.tolist() == [[1], [3]]


def test_where_the_model_itself_is_not_finite_no_token_is_followed():
    head = Unembedding.of(_random(0, 50, 8), None)
    rows, final = _random(1, 2, 3, 8), _random(2, 3, 8)
    final[1, 2] = torch.nan
    found = decode(rows, final, [Question(3, of_model=True)], head)
    assert (found.answer_id[:, 1] == -1).all() and (found.answer_rank[:, 1] == 0).all()
    assert (found.answer_id[:, [0, 2]] >= 0).all()


def test_a_question_is_about_an_answer_or_about_the_model_itself():
    with pytest.raises(LensError, match="ask for one"):
        Question(1, (3,), of_model=True)


def test_progress_ends_with_the_whole_vocabulary():
    calls = []
    rows, final_rows, head = _as_given(_random(0, 1, 1, 10), _random(1, 1, 10))
    decode(rows, final_rows, [Question(1)], head, tile=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]


@given(st.integers(0, 4096), st.integers(1, 300_000))
def test_a_tile_fits_the_cache_and_the_vocabulary(rows, d_vocab):
    width = tile_width(rows, d_vocab)
    assert 1 <= width <= d_vocab
    assert width <= 256 or 4 * rows * width <= TILE_BYTES
