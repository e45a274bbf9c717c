from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from layerscope.fitting import divergence
from layerscope.fitting.divergence import Head, Targets
from layerscope.fitting.sampled import Draws
from layerscope.unembedding import HeadTransform, Norm, Unembedding
from rounding import of_readout, of_sum

D_MODEL, D_HEAD, D_VOCAB, N = 12, 8, 700, 9


def unembedding_of(kind: str) -> Unembedding:
    generator = torch.Generator().manual_seed(3)
    projected = kind == "projection"
    weight = torch.randn(D_VOCAB, D_HEAD if projected else D_MODEL, generator=generator)
    return Unembedding.of(
        weight=weight,
        final_norm=Norm("rms", None, None, 1e-6, "norm"),
        bias=torch.randn(D_VOCAB, generator=generator) if kind in ("bias", "all") else None,
        transform={
            "scale": HeadTransform(scale=0.3),
            "softcap": HeadTransform(softcap=4.0),
            "all": HeadTransform(scale=0.7, softcap=5.0),
        }.get(kind, HeadTransform()),
        projection=torch.randn(D_HEAD, D_MODEL, generator=generator) if projected else None,
    )


def whole_logits(head: Unembedding, rows: Tensor) -> Tensor:
    """Straight from the definition, in float64."""
    if head.projection is not None:
        rows = rows @ head.projection.double().T
    z = rows @ head.weight.tensor.double().T
    if head.bias is not None:
        z = z + head.bias.double()
    z = z * (head.transform.scale or 1.0)
    cap = head.transform.softcap
    return z if cap is None else cap * torch.tanh(z / cap)


@dataclass(frozen=True)
class Error:
    """How far a float32 divergence of some rows may be off; sums over the vocabulary are float32 too."""

    nats: float
    relative: float
    gradient: float

    @classmethod
    def of(cls, head: Unembedding, *rows: Tensor) -> "Error":
        readout = of_readout(head, *rows)
        sums = of_sum(D_VOCAB, 1.0)
        # A gradient is a mean of the head's rows, whose weights are off by these shares, less another such mean.
        largest = float(head.weight.tensor.abs().max()) * abs(head.transform.scale or 1.0)
        if head.projection is not None:
            largest *= float(head.projection.abs().sum(0).max())
        shares = readout.relative + 2 * sums
        return cls(readout.nats + 3 * sums, shares, 2 * shares * largest)


@pytest.mark.parametrize("tile_bytes", [4 * N * 256, 4 * N * 300, 1 << 20])
@pytest.mark.parametrize("kind", ["plain", "bias", "scale", "softcap", "all", "projection"])
def test_divergence_and_gradient_are_those_of_whole_logits(kind: str, tile_bytes: int, monkeypatch):
    monkeypatch.setattr(divergence, "TILE_BYTES", tile_bytes)
    head = unembedding_of(kind)
    generator = torch.Generator().manual_seed(8)
    final, rows = (torch.randn(N, D_MODEL, generator=generator) for _ in range(2))
    wide = rows.double().requires_grad_()
    log_p = whole_logits(head, final.double()).log_softmax(-1)
    expected = (log_p.exp() * (log_p - whole_logits(head, wide).log_softmax(-1))).sum(-1)
    (slope,) = torch.autograd.grad(expected.sum(), wide)

    targets = Head(head).targets(final)
    found = Head(head).divergence(rows, targets)

    error = Error.of(head, final, rows)
    torch.testing.assert_close(found.nats.double(), expected.detach(), rtol=error.relative, atol=error.nats)
    assert found.gradient is not None
    torch.testing.assert_close(found.gradient.double(), slope, rtol=error.relative, atol=error.gradient)
    entropy = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(targets.entropy.double(), entropy, rtol=error.relative, atol=error.nats)
    without = Head(head).divergence(rows, targets, gradient=False)
    assert without.gradient is None
    torch.testing.assert_close(without.nats, found.nats, rtol=2 * error.relative, atol=2 * error.nats)


@pytest.mark.parametrize("kind", ["plain", "all", "projection"])
def test_the_model_is_no_distance_from_itself(kind: str):
    head = Head(unembedding_of(kind))
    final = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1))
    found = head.divergence(final, head.targets(final))
    error = Error.of(head.unembedding, final)
    assert found.nats.abs().max() < error.nats
    assert found.gradient is not None and found.gradient.abs().max() < error.gradient


@pytest.mark.parametrize("kind", ["plain", "bias", "all", "projection"])
def test_log_probs_of_single_tokens_are_those_of_whole_logits(kind: str):
    head = unembedding_of(kind)
    rows = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(4))
    ids = torch.tensor([0, 1, 2, 255, 256, 257, 511, 698, 699])
    expected = whole_logits(head, rows.double()).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(
        Head(head).log_probs(rows, ids).double(), expected, rtol=0, atol=Error.of(head, rows).nats
    )


def test_targets_of_some_positions_are_the_rows_of_all():
    head = Head(unembedding_of("all"))
    final = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1))
    some = torch.tensor([4, 1, 7])
    whole, part = head.targets(final).at(some), head.targets(final[some])
    error = Error.of(head.unembedding, final)
    torch.testing.assert_close(whole.mean_unembedding, part.mean_unembedding, rtol=0, atol=error.gradient)
    torch.testing.assert_close(whole.entropy, part.entropy, rtol=0, atol=2 * error.nats)
    assert whole.rows is not None and part.rows is not None
    torch.testing.assert_close(whole.rows, part.rows, rtol=0, atol=error.nats)


@pytest.mark.parametrize("kind", ["plain", "all"])
def test_targets_found_in_two_stretches_are_those_found_at_once(kind: str):
    head = Head(unembedding_of(kind))
    final = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1))
    whole, parts = head.targets(final), Targets.joined([head.targets(final[:4]), head.targets(final[4:])])
    error = Error.of(head.unembedding, final)
    for name in ("rows", "mean_unembedding", "mean_bias", "log_sum_exp", "entropy"):
        one, other = getattr(whole, name), getattr(parts, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=2 * max(error.nats, error.gradient))


def visited_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows go through the visit that keeps a maximum, call by call."""
    counts: list[int] = []
    real = Head._sums
    monkeypatch.setattr(Head, "_sums", lambda self, rows, **kw: (counts.append(len(rows)), real(self, rows, **kw))[1])
    return counts


@pytest.mark.parametrize("kind", ["plain", "bias", "scale", "projection"])
def test_rows_whose_logits_spread_over_hundreds_are_as_right_as_others(kind: str, monkeypatch: pytest.MonkeyPatch):
    head = unembedding_of(kind)
    generator = torch.Generator().manual_seed(5)
    final, rows = (torch.randn(N, D_MODEL, generator=generator) for _ in range(2))
    rows[::2] *= 300.0
    final[2] *= 100.0  # the model sure of one token, the lens of another
    final[4], rows[4] = 50.0 * final[4], 50.0 * final[4]  # both of the same
    wide = rows.double().requires_grad_()
    log_p = whole_logits(head, final.double()).log_softmax(-1)
    expected = (log_p.exp() * (log_p - whole_logits(head, wide).log_softmax(-1))).sum(-1)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    assert expected.detach().max() > 300

    targets = Head(head).targets(final)
    again = visited_again(monkeypatch)
    found = Head(head).divergence(rows, targets)
    without = Head(head).divergence(rows, targets, gradient=False)

    assert again and max(again) < N
    # Logits of 300 x 12 x up to 3 x 3 have steps of 5e-4 to 1e-3 in float32; the other rows' bound is the usual one.
    far, plain = {"rtol": 1e-5, "atol": 4e-3}, Error.of(head, final[1::2], rows[1::2])
    torch.testing.assert_close(found.nats.double(), expected.detach(), **far)
    torch.testing.assert_close(without.nats.double(), expected.detach(), **far)
    torch.testing.assert_close(found.nats[1::2].double(), expected.detach()[1::2], rtol=plain.relative, atol=plain.nats)
    assert found.gradient is not None
    torch.testing.assert_close(found.gradient.double(), slope, rtol=1e-3, atol=4e-3)


def test_rows_near_the_model_need_no_second_visit(monkeypatch: pytest.MonkeyPatch):
    head = Head(unembedding_of("plain"))
    final = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1))
    targets = head.targets(final)
    again = visited_again(monkeypatch)
    head.divergence(0.7 * final, targets)
    assert not again


def test_a_row_that_is_not_finite_spoils_no_other():
    head = Head(unembedding_of("bias"))
    final = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1))
    targets, rows = head.targets(final), 0.7 * final
    sound = head.divergence(rows, targets)
    rows[3, 0] = torch.nan
    found = head.divergence(rows, targets)
    others = torch.arange(N) != 3
    assert bool(found.nats[3].isnan())
    assert found.gradient is not None and sound.gradient is not None
    error = Error.of(head.unembedding, final)
    torch.testing.assert_close(found.nats[others], sound.nats[others], rtol=0, atol=2 * error.nats)
    torch.testing.assert_close(found.gradient[others], sound.gradient[others], rtol=0, atol=2 * error.gradient)


@pytest.mark.parametrize("kind", ["plain", "bias", "all", "projection"])
def test_a_head_of_some_ids_weighs_each_by_how_seldom_it_is_drawn(kind: str):
    """Straight from the definition: both distributions over the drawn ids, each id 1 / inclusion times."""
    generator = torch.Generator().manual_seed(5)
    unembedding, rows, model = unembedding_of(kind), *(torch.randn(N, D_MODEL, generator=generator) for _ in range(2))
    ids = torch.randperm(D_VOCAB, generator=generator)[:200].sort().values
    inclusion = 0.05 + 0.95 * torch.rand(200, generator=generator)
    head = Head(unembedding).of_ids(ids, inclusion)
    found = head.divergence(rows, head.targets(model))

    leaf = rows.double().requires_grad_()
    log_q, log_p = (
        (whole_logits(unembedding, r)[:, ids] - inclusion.double().log()).log_softmax(-1)
        for r in (leaf, model.double())
    )
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    (by_row,) = torch.autograd.grad(expected.sum(), leaf)
    error = Error.of(unembedding, rows, model)
    torch.testing.assert_close(found.nats.double(), expected.detach(), rtol=error.relative, atol=error.nats)
    assert found.gradient is not None
    torch.testing.assert_close(found.gradient.double(), by_row, rtol=1e-3, atol=error.gradient)


def test_every_64_bit_seed_can_be_drawn_by_and_each_draws_otherwise():
    rows = torch.randn(4000, D_MODEL, generator=torch.Generator().manual_seed(8))
    seeds = (-(2**63), -1, 0, 1, 2**20, 2**43, 2**63 - 1)
    chosen = [
        tuple(
            Draws(Head(unembedding_of("plain")), lambda at: rows[at], 4000, batch=8, seed=s, ids=10)
            .at(5)
            .chosen.tolist()
        )
        for s in seeds
    ]
    assert len(set(chosen)) == len(seeds)


def test_draws_include_ids_as_often_as_they_say_and_are_the_same_whichever_step_comes_first():
    """Of 300 steps: a count of ids is off by less than five standard deviations of a sum of independent draws."""
    unembedding = unembedding_of("plain")
    rows = torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(8))
    make = lambda: Draws(Head(unembedding), lambda at: rows[at], 40, batch=4, seed=3, ids=100)  # noqa: E731
    draws, others = make(), make()
    others.at(7)
    assert torch.equal(draws.at(3).chosen, others.at(3).chosen)
    assert torch.equal(draws.at(3).targets.entropy, others.at(3).targets.entropy)
    probabilities = whole_logits(unembedding, rows.double()).softmax(-1).mean(0)
    inclusion = 1 - (1 - 0.5 * probabilities - 0.5 / D_VOCAB) ** 100
    n = 300
    counts = torch.zeros(D_VOCAB)
    for step in range(n):
        head = draws.at(step).head
        assert head.offset is not None
        counts[(head.unembedding.weight.tensor[:, None, 0] == unembedding.weight.tensor[:, 0]).nonzero()[:, 1]] += 1
    spread = (n * inclusion * (1 - inclusion)).sqrt()
    assert float(((counts - n * inclusion).abs() / spread).max()) < 5
